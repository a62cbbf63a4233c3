"""A hierarchical crew with a cap for each run: the second manager delegates for ever, and is stopped.

python examples/crewai/hierarchical.py [DATABASE_URL]

Each LLM call costs a credit, the manager's and the delegated ones alike; delegating itself costs nothing. CrewAI tells
a manager of refused work as text, so a refusal is final: no later call of the run gets through. Without an argument it
is AGENTCREDITS_DATABASE_URL, else a SQLite file in a temporary folder. FakeLLM stands in for a provider.
"""

from __future__ import annotations

import os
import sys
from tempfile import TemporaryDirectory

import quiet_crewai  # noqa: F401  # before crewai
from crewai import Agent, Crew, Process, Task
from fake_llm import FakeLLM, Line

from agentcredits import CreditLimitExceededError, RequestContext, SyncCreditService, configure, use_context
from agentcredits_crewai import Run, credited


def delegate(coworker: str, task: str) -> Line:
    return "delegate_work_to_coworker", {"coworker": coworker, "task": task, "context": "A page about tides."}


FIND, WRITE = delegate("researcher", "Find a fact."), delegate("writer", "Write it down.")
WORKER = FakeLLM(model="fake", lines=["The moon pulls the sea."])
MANAGERS = [
    FakeLLM(model="fake", lines=[FIND, WRITE, "A page: the moon pulls the sea."]),
    FakeLLM(model="fake", lines=[FIND]),
]


def make_crew(manager: FakeLLM) -> Crew:
    return Crew(
        agents=[
            Agent(role="researcher", goal="find facts", backstory="You find facts.", llm=WORKER),
            Agent(role="writer", goal="write", backstory="You write.", llm=WORKER),
        ],
        tasks=[Task(description="Make a page about tides.", expected_output="a page")],
        process=Process.hierarchical,
        manager_llm=manager,
    )


def show(run: Run) -> None:
    cost = run.summary()
    agents = ", ".join(f"{agent} {line['charged']}" for agent, line in cost.by("agent").items())
    print(f"charged {cost.charged}: {agents}")


def main(database: str) -> None:
    configure(database)  # what credited() uses
    with SyncCreditService(database) as service:
        service.grant_credits("acme", 100)
        service.set_cost("Crew", "llm_call", 1)

        with use_context(RequestContext("acme", user_id="ada")):
            for manager in MANAGERS:
                crew = credited(make_crew(manager), llm_action="llm_call", max_credits=5, on_run=show)
                try:
                    print(crew.kickoff())
                except CreditLimitExceededError as error:
                    print(f"stopped by the {error.limit_source} limit: {error.context['left']} credits left of the cap")
        calls = sum(llm.calls for llm in (WORKER, *MANAGERS))
        print(f"served: {calls} LLM calls; {service.get_balance('acme').available} credits left")


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("AGENTCREDITS_DATABASE_URL")
        main(given or f"sqlite:///{folder}/credits.db")
