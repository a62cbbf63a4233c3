"""CrewAI's DallETool, metered: two pictures are charged, a failed one is given back, and the last one is refused.

python examples/crewai/dalle.py [DATABASE_URL]          (needs crewai-tools)

DallETool says in words that it failed, so is_failure tells meter() what to look for; fallback answers in its place when
there are not enough credits. Without an argument it is AGENTCREDITS_DATABASE_URL, else a SQLite file in a temporary
folder. FakeOpenAI stands in for OpenAI: no network, no keys.
"""

from __future__ import annotations

import os
import re
import sys
from tempfile import TemporaryDirectory
from typing import Any

import quiet_crewai  # noqa: F401  # before crewai
from crewai import Agent, Crew, Task
from crewai_tools import DallETool
from fake_openai import FakeOpenAI

from agentcredits import DryRunResult, RequestContext, SyncCreditService, configure, use_context
from agentcredits_crewai import Run, credited, meter

SUBJECTS = ["a harbour", "nothing at all", "a lighthouse", "the open sea"]


def has_failed(result: str) -> bool:
    return result == "Failed to generate image."


def describe(plan: DryRunResult) -> str:
    return f"No picture of {plan.prompt}: it costs {plan.amount} credits ({plan.reason})."


def show(run: Run) -> None:
    cost = run.summary()
    print(f"charged {cost.charged}, given back {cost.given_back}")


def fake_chat(request: dict[str, Any]) -> str | tuple[str, dict[str, Any]]:
    """The fake model calls its tool with what its task asks for, and repeats what the tool said."""
    said = [message["content"] for message in request["messages"] if message["role"] == "tool"]
    if said:
        return str(said[-1])
    subject = re.findall(r"Draw (.+)\.", request["messages"][-1]["content"])[0]
    return request["tools"][0]["function"]["name"], {"image_description": subject}


def fake_image(prompt: str) -> str | None:
    return None if prompt == "nothing at all" else f"https://pictures.example/{prompt.replace(' ', '-')}.png"


def make_crew() -> Crew:
    draw = meter(DallETool(), "generate_image", is_failure=has_failed, fallback=describe)
    painter = Agent(role="painter", goal="draw", backstory="You draw.", tools=[draw], llm="openai/gpt-4o-mini")
    task = Task(description="Draw {subject}.", expected_output="a link", agent=painter)
    return credited(Crew(agents=[painter], tasks=[task]), llm_action="llm_call", on_run=show)


def main(database: str) -> None:
    configure(database)  # what meter() and credited() use
    with SyncCreditService(database) as service, FakeOpenAI(fake_chat, fake_image) as server:
        os.environ |= {"OPENAI_API_KEY": "no-key", "OPENAI_BASE_URL": server.url}
        service.grant_credits("acme", 36)
        service.set_cost("DallETool", "generate_image", 10)
        service.set_cost("Crew", "llm_call", 1)

        crew = make_crew()
        with use_context(RequestContext("acme", user_id="ada")):
            for subject in SUBJECTS:
                print(crew.kickoff(inputs={"subject": subject}))

        served = f"{len(server.images)} pictures, {len(server.chats)} LLM calls"
        print(f"served: {served}; {service.get_balance('acme').available} credits left")


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("AGENTCREDITS_DATABASE_URL")
        main(given or f"sqlite:///{folder}/credits.db")
