"""The demo's two agents. Their crews are real CrewAI crews; only the language model is scripted.

Importing this module imports crewai, which takes seconds: ``demo`` does it after :func:`quiet_crewai`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

from crewai import Agent, BaseLLM, Crew, Task
from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.tasks.task_output import TaskOutput
from pydantic import Field

from agentcredits import BaseCrew, consume_credits

#: Told the role and the answer after each task of a crew.
listener: ContextVar[Callable[[str, str], None]] = ContextVar("listener")


class ScriptedLLM(BaseLLM):
    """Says its lines instead of asking a model: no network, no keys. A line that is an exception is raised."""

    lines: list[Any] = Field(default_factory=list)

    def call(self, *_args: Any, **_kwargs: Any) -> str:
        """The next line, in the form that an agent's loop understands."""
        line = self.lines.pop(0)
        if isinstance(line, Exception):
            raise line
        return f"Thought: I know the answer.\nFinal Answer: {line}"

    async def acall(self, *_args: Any, **_kwargs: Any) -> str:
        """The same for crews that run on an event loop."""
        return self.call()

    def get_input_tokens_count(self, *_args: Any, **_kwargs: Any) -> int:
        """Nothing is sent anywhere."""
        return 0


def report(output: TaskOutput) -> None:
    """Hand a finished task to the listener; crewai warns of callbacks that are not on a module's top level."""
    listener.get()(output.agent.strip(), output.raw)


def make_crew(parts: Sequence[tuple[str, str]], lines: Sequence[str | Exception]) -> Crew:
    """A sequential crew.

    Args:
        parts: A role and the description of its task, for each agent in turn.
        lines: What the model will say.
    """
    llm = ScriptedLLM(model="scripted", lines=list(lines))
    agents: list[BaseAgent] = [
        Agent(role=role, goal=f"be a good {role}", backstory=f"a {role}", llm=llm, max_retry_limit=0)
        for role, _description in parts
    ]
    tasks = [
        Task(description=description, expected_output="one sentence", agent=agent)
        for agent, (_role, description) in zip(agents, parts, strict=True)
    ]

    return Crew(agents=agents, tasks=tasks, task_callback=report, tracing=False)


class ContentAgent:
    """A plain class: each decorated method is one priced action."""

    @consume_credits("ContentAgent", "generate_content")
    def generate_content(self, topic: str, lines: Sequence[str | Exception]) -> str:
        """A researcher and a writer make a post."""
        parts = [("researcher", "Find one fact about {topic}."), ("writer", "Write a post about {topic}.")]
        return str(make_crew(parts, lines).kickoff(inputs={"topic": topic}))

    @consume_credits("ContentAgent", "generate_instagram_reel")
    def generate_instagram_reel(self, topic: str, lines: Sequence[str | Exception]) -> str:
        """A writer and a cutter make a reel."""
        parts = [("writer", "Write a hook about {topic}."), ("cutter", "Plan the cuts of a reel about {topic}.")]
        return str(make_crew(parts, lines).kickoff(inputs={"topic": topic}))


class VideoAgent(BaseCrew):
    """A crew with the mixin: ``set_context`` says once who pays. Its method is a coroutine."""

    agent_type = "VideoAgent"

    @consume_credits("VideoAgent", "generate_video")
    async def generate_video(self, topic: str, lines: Sequence[str | Exception]) -> str:
        """A director and a renderer make a video."""
        parts = [("director", "Plan a shot of {topic}."), ("renderer", "Render the shot of {topic}.")]
        return str(await make_crew(parts, lines).kickoff_async(inputs={"topic": topic}))
