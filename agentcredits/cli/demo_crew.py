"""The demo's account and its crew: research, write, picture, video. Read it as an example.

A real CrewAI crew; only its language model is scripted. It is credited as any crew is: ``meter()`` around the tools,
``credited()`` around the crew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from crewai import Agent, BaseLLM, Crew, Process, Task
from crewai.tasks.task_output import TaskOutput
from crewai.tools import BaseTool, tool
from pydantic import Field

from agentcredits import DryRunResult, RequestContext, SyncCreditService
from agentcredits.cli.demo_picture import PICTURE_FILE, PICTURE_SIZE, tide_png
from agentcredits_crewai import credited, meter

#: agent_type, action, credits. "Crew" makes the LLM calls; "Tool" is what CrewAI's @tool makes of a function.
PRICES: Final = (
    ("Crew", "llm_call", Decimal("0.5")),
    ("Tool", "search", Decimal(2)),
    ("Tool", "picture", Decimal(5)),
    ("Tool", "video", Decimal(20)),
)
PROMOTIONAL: Final = 8
PAID: Final = 12
DEPARTMENT: Final = "marketing"
MONTHLY_LIMIT: Final = 12
RAISED_LIMIT: Final = 40

#: Hears of each finished task.
listener: ContextVar[Callable[[TaskOutput], None]] = ContextVar("listener")


# -- the account -------------------------------------------------------------------------------------------------


def open_account(service: SyncCreditService, organization_id: str) -> RequestContext:
    """An organization with few credits, its own prices, and a limit for a department; returns who will pay."""
    for agent_type, action, cost in PRICES:
        service.set_cost(agent_type, action, cost, organization_id=organization_id, source="demo")
    in_30_days = datetime.now(UTC) + timedelta(days=30)
    service.grant_credits(organization_id, PROMOTIONAL, category="promotional", expires_at=in_30_days)
    service.grant_credits(organization_id, PAID, source="invoice 1")
    limit_department(service, organization_id, MONTHLY_LIMIT)
    return RequestContext(organization_id, project_id="tides", department_id=DEPARTMENT, user_id="ada")


def limit_department(service: SyncCreditService, organization_id: str, amount: int) -> None:
    """Set the department's limit; set again it has another amount and keeps what it counted."""
    service.set_limit(organization_id, scope="department", scope_id=DEPARTMENT, amount=amount, window="month")


# -- the tools ---------------------------------------------------------------------------------------------------


@tool("search_web")
def search_web(query: str) -> str:
    """Searches the web."""
    raise ConnectionError("offline")


@tool("search_archive")
def search_archive(query: str) -> str:
    """Searches an archive of articles."""
    return "The moon pulls the near sea more, and the far sea less, than the Earth between them: two bulges."


@tool("draw_picture")
def draw_picture(prompt: str) -> str:
    """Draws a picture into a PNG file."""
    Path(PICTURE_FILE).write_bytes(tide_png(*PICTURE_SIZE))
    return PICTURE_FILE


@tool("make_video")
def make_video(prompt: str, seconds: int = 8, resolution: str = "1080p") -> str:
    """Makes a video."""
    # Never reached: the story is that the video cannot be paid, so its plan comes back. A paid provider is not called.
    raise NotImplementedError("call a video provider here; the organization of the demo cannot pay for it")


# -- the language model ------------------------------------------------------------------------------------------


class ScriptedLLM(BaseLLM):
    """Stands in for a provider's model: says its lines one after another. No network, no keys."""

    lines: list[str] = Field(default_factory=list)

    def call(self, *_args: Any, **_kwargs: Any) -> str:
        """The next line."""
        return self.lines.pop(0)

    async def acall(self, *_args: Any, **_kwargs: Any) -> str:
        """The same for crews that run on an event loop."""
        return self.call()

    def get_input_tokens_count(self, *_args: Any, **_kwargs: Any) -> int:
        """Nothing is sent anywhere."""
        return 0


def _use(name: str, arguments: str) -> str:
    """What a model says to call a tool, in the text form that CrewAI calls ReAct."""
    return f"Thought: I use a tool.\nAction: {name}\nAction Input: {arguments}"


def _answer(text: str) -> str:
    return f"Thought: I know the answer.\nFinal Answer: {text}"


# -- the crew ----------------------------------------------------------------------------------------------------


def make_crew(service: SyncCreditService, fallback: Callable[[DryRunResult], str]) -> Crew:
    """Four agents, four tasks, one after another; whatever they do is charged to the context at the kickoff.

    Args:
        service: Who books.
        fallback: Answers instead of a tool that cannot be paid; the agents go on with what it says.
    """

    def metered(plain: BaseTool, action: str) -> BaseTool:
        return meter(plain, action, fallback=fallback, service=service)

    tasks = [
        _task(
            "research",
            "Find out why the sea comes in twice a day.",
            _agent(
                "researcher",
                _use("search_web", '{"query": "why two tides a day"}'),
                _use("search_archive", '{"query": "two tides a day"}'),
                _answer("The moon raises two bulges of water, and the Earth turns below both once a day."),
                tools=[metered(search_web, "search"), metered(search_archive, "search")],
            ),
        ),
        _task(
            "write",
            "Write a post about it.",
            _agent("writer", _answer("Two bulges, one turning Earth: that is why the sea comes in twice a day.")),
        ),
        _task(
            "picture",
            "Draw a picture for the post, and a second one to choose from.",
            _agent(
                "painter",
                _use("draw_picture", '{"prompt": "the moon over the sea at dusk"}'),
                _use("draw_picture", '{"prompt": "the same harbour at high and at low tide"}'),
                _answer("One picture of the moon over the sea; the second one has to wait."),
                tools=[metered(draw_picture, "picture")],
            ),
        ),
        _task(
            "video",
            "Make a video for the post.",
            _agent(
                "director",
                _use("make_video", '{"prompt": "one long shot from the sea wall: the tide comes in", "seconds": 12}'),
                _answer("The post goes out with its picture; the plan of the video is ready for a top-up."),
                tools=[metered(make_video, "video")],
            ),
        ),
    ]
    crew = Crew(
        agents=[task.agent for task in tasks if task.agent is not None],
        tasks=tasks,
        process=Process.sequential,
        task_callback=_report,
        tracing=False,
    )
    return credited(crew, llm_action="llm_call", service=service)


def _agent(role: str, *lines: str, tools: Sequence[BaseTool] = ()) -> Agent:
    llm = ScriptedLLM(model="scripted model", lines=list(lines))
    return Agent(role=role, goal=f"be a good {role}", backstory=f"a {role}", llm=llm, tools=list(tools))


def _task(name: str, description: str, agent: Agent) -> Task:
    return Task(name=name, description=description, expected_output="a sentence", agent=agent)


def _report(output: TaskOutput) -> None:
    """On the module's top level: CrewAI warns of callbacks that are not."""
    listener.get()(output)
