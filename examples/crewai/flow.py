"""A credited Flow: a step with a price of its own, a crew inside whose LLM calls are charged, and what it all cost.

python examples/crewai/flow.py [DATABASE_URL]

Without an argument it is AGENTCREDITS_DATABASE_URL, else a SQLite file in a temporary folder. FakeLLM stands in for a
provider: no network, no keys.
"""

from __future__ import annotations

import os
import sys
from tempfile import TemporaryDirectory

import quiet_crewai  # noqa: F401  # before crewai
from crewai import Agent, Crew, Task
from crewai.flow.flow import Flow, listen, start
from fake_llm import FakeLLM
from pydantic import BaseModel

from agentcredits import RequestContext, SyncCreditService, configure, consume_credits, use_context
from agentcredits_crewai import Run, credited

LLM = FakeLLM(model="fake", lines=["The sea comes twice a day.", "Twice a day, the sea comes home."])


class Page(BaseModel):
    topic: str = ""


class PageFlow(Flow[Page]):
    @start()
    @consume_credits("PageFlow", "look_up")  # below CrewAI's own decorators
    def look_up(self) -> str:
        return f"two {self.state.topic} a day"

    @listen(look_up)
    def write(self, fact: str) -> str:
        writer = Agent(role="writer", goal="write", backstory="You write.", llm=LLM)
        editor = Agent(role="editor", goal="edit", backstory="You edit.", llm=LLM)
        draft = Task(description=f"Write about {fact}.", expected_output="a sentence", agent=writer)
        final = Task(description="Make it better.", expected_output="a sentence", agent=editor)
        return str(Crew(agents=[writer, editor], tasks=[draft, final]).kickoff())


def show(run: Run) -> None:
    cost = run.summary()
    for action, line in cost.by("action").items():
        print(f"{line['calls']} × {action}: {line['charged']}")
    for agent, line in cost.by("agent").items():
        print(f"{agent}: {line['charged']}")
    print(f"charged: {cost.charged}")


def main(database: str) -> None:
    configure(database)  # what decorators and credited() use
    with SyncCreditService(database) as service:
        service.grant_credits("acme", 10)
        service.set_cost("PageFlow", "look_up", 3)
        service.set_cost("PageFlow", "llm_call", 1)

        flow = credited(PageFlow(), llm_action="llm_call", on_run=show)
        with use_context(RequestContext("acme", user_id="ada")):
            print(flow.kickoff(inputs={"topic": "tides"}))
        print(f"served: {LLM.calls} LLM calls; {service.get_balance('acme').available} credits left")


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("AGENTCREDITS_DATABASE_URL")
        main(given or f"sqlite:///{folder}/credits.db")
