"""Real CrewAI classes with the mixin and the decorators: only what the developer wrote is charged."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
from pydantic import Field

from agentcredits import (
    BaseCrew,
    ConfigurationError,
    InsufficientCreditsError,
    MissingContextError,
    RequestContext,
    SyncCreditService,
    consume_credits,
    current_context,
    track_agent_usage,
    use_context,
)
from agentcredits._meter import MARK

pytestmark = [
    pytest.mark.crewai,
    # crewai 1.15 reads fields of its own that it has deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

ACME = RequestContext("acme")
FINAL = "Thought: I know.\nFinal Answer: fin"
USE_TOOL = 'Thought: look it up.\nAction: look_up\nAction Input: {"word": "tea"}\n'


@pytest.fixture(scope="module")
def crewai(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """CrewAI without telemetry and without a network."""
    patch = pytest.MonkeyPatch()
    for name in ("CREWAI_DISABLE_TELEMETRY", "CREWAI_DISABLE_TRACKING", "OTEL_SDK_DISABLED"):
        patch.setenv(name, "true")
    patch.setenv("CREWAI_DISABLE_VERSION_CHECK", "true")
    patch.setenv("CREWAI_TRACING_ENABLED", "false")
    patch.setenv("CREWAI_STORAGE_DIR", str(tmp_path_factory.mktemp("crewai")))
    import crewai

    yield crewai
    patch.undo()


@pytest.fixture
def kit(crewai: ModuleType) -> SimpleNamespace:
    """A scripted model, and the parts of a one-task crew that uses it."""
    from crewai.tools import tool

    class ScriptedLLM(crewai.BaseLLM):  # type: ignore[misc, name-defined]  # crewai comes from a fixture
        lines: list[str] = Field(default_factory=list)

        def call(self, *_args: Any, **_kwargs: Any) -> str:
            return self.lines.pop(0) if self.lines else FINAL

        async def acall(self, *_args: Any, **_kwargs: Any) -> str:
            return self.call()

    def agent(*lines: str, tools: tuple[Any, ...] = ()) -> Any:
        llm = ScriptedLLM(model="scripted", lines=list(lines))
        return crewai.Agent(role="writer", goal="g", backstory="b", llm=llm, tools=list(tools), max_retry_limit=0)

    def task(who: Any) -> Any:
        return crewai.Task(description="write about {topic}", expected_output="text", agent=who)

    def crew(*lines: str, tools: tuple[Any, ...] = ()) -> Any:
        who = agent(*lines, tools=tools)
        return crewai.Crew(agents=[who], tasks=[task(who)], tracing=False)

    return SimpleNamespace(agent=agent, task=task, crew=crew, tool=tool)


@pytest.fixture
def service(service: SyncCreditService) -> SyncCreditService:
    """Credits and prices on both databases."""
    service.grant_credits("acme", 100)
    service.set_cost("ContentAgent", "*", 1)
    service.set_cost("Tool", "look_up", 5)
    return service


def charged(service: SyncCreditService) -> list[str | None]:
    return [row.action for row in reversed(list(service.list_transactions("acme", type="debit")))]


def content_agent(crewai: ModuleType, kit: SimpleNamespace, service: SyncCreditService, track: str) -> type[Any]:
    """The scaffold of ``crewai create crew``, with the class decorator over or under @CrewBase."""
    from crewai import project as typed_project

    project: Any = typed_project

    class ContentAgent(BaseCrew):
        agents: Any
        tasks: Any
        agents_config: ClassVar[dict[str, Any]] = {}
        tasks_config: ClassVar[dict[str, Any]] = {}
        credit_service = service

        @project.before_kickoff
        def prepare(self, inputs: Any) -> Any:
            return inputs

        @project.after_kickoff
        def finish(self, output: Any) -> Any:
            return output

        @project.agent
        def writer(self) -> Any:
            return kit.agent()

        @project.task
        def write(self) -> Any:
            return kit.task(self.writer())

        @project.crew
        def crew(self) -> Any:
            return crewai.Crew(agents=self.agents, tasks=self.tasks, tracing=False)

        async def generate_content(self, topic: str) -> str:
            return str(await self.crew().kickoff_async(inputs={"topic": topic}))

        def generate_now(self, topic: str) -> str:
            return str(self.crew().kickoff(inputs={"topic": topic}))

        async def generate_by_hand(self, topic: str) -> str:
            await self.consume_credits_for_action("by_hand", {"topic": topic})
            return await self._generate(topic)

        async def _generate(self, topic: str) -> str:
            return str(await self.crew().kickoff_async(inputs={"topic": topic}))

    decorate = track_agent_usage("ContentAgent")
    made = project.CrewBase(decorate(ContentAgent)) if track == "under" else decorate(project.CrewBase(ContentAgent))
    assert isinstance(made, type)
    return made


@pytest.mark.parametrize("track", ["over", "under"])
def test_over_and_under_crewbase_only_the_developers_methods_are_charged(
    crewai: ModuleType, kit: SimpleNamespace, service: SyncCreditService, track: str
) -> None:
    """Not what @CrewBase injects, not @agent, @task, @crew and the kickoff hooks; making an instance is free."""
    cls = content_agent(crewai, kit, service, track)
    assert {name for name, member in vars(cls).items() if hasattr(member, MARK)} == {
        "generate_content",
        "generate_now",
        "generate_by_hand",
    }
    agent = cls()
    agent.set_context(ACME)
    assert asyncio.run(agent.generate_content("tea")) == "fin"
    assert agent.generate_now("tea") == "fin"
    assert charged(service) == ["generate_content", "generate_now"]
    assert asyncio.run(agent.generate_by_hand("tea")) == "fin"
    assert sorted(charged(service)[2:]) == ["by_hand", "generate_by_hand"]  # type: ignore[type-var]  # actions are set
    assert service.get_balance("acme").available == 96
    assert service.verify()


@pytest.mark.parametrize("track", ["over", "under"])
def test_without_credits_or_context_the_crew_does_not_start(
    crewai: ModuleType, kit: SimpleNamespace, service: SyncCreditService, track: str
) -> None:
    """The refusal comes before the first model call."""
    agent = content_agent(crewai, kit, service, track)()
    with pytest.raises(MissingContextError):
        agent.generate_now("tea")
    service.consume_credits(organization_id="acme", amount=100)
    with use_context(ACME), pytest.raises(InsufficientCreditsError):
        agent.generate_now("tea")


@pytest.mark.parametrize("kind", ["sync", "async", "for_each"])
def test_the_context_reaches_tools_in_crewais_threads(
    kit: SimpleNamespace, service: SyncCreditService, kind: str
) -> None:
    """A charged function inside a tool pays for the crew's organization, in whatever thread crewai runs it."""
    seen: list[tuple[str | None, bool]] = []
    main = threading.current_thread()

    @consume_credits("Tool", "look_up", service=service)
    def charged_look_up(word: str) -> str:
        context = current_context()
        seen.append((None if context is None else context.organization_id, threading.current_thread() is main))
        return f"{word} is a drink"

    @kit.tool("look_up")
    def look_up(word: str) -> str:
        """Look a word up."""
        return charged_look_up(word)

    class ContentAgent(BaseCrew):
        credit_service = service

        @consume_credits(None, "generate")
        def generate(self, topic: str) -> str:
            crew = kit.crew(USE_TOOL, FINAL, tools=(look_up,))
            if kind == "sync":
                return str(crew.kickoff(inputs={"topic": topic}))
            if kind == "async":
                return str(asyncio.run(crew.kickoff_async(inputs={"topic": topic})))
            return str(crew.kickoff_for_each(inputs=[{"topic": topic}])[0])

    assert ContentAgent().set_context(ACME).generate("tea") == "fin"
    assert [organization for organization, _ in seen] == ["acme"]
    assert sorted(str(action) for action in charged(service)) == ["generate", "look_up"]
    assert service.get_balance("acme").available == 94


def test_a_crew_that_fails_gives_back(kit: SimpleNamespace, service: SyncCreditService) -> None:
    """An exception that leaves the crew is a failed body."""

    @consume_credits("ContentAgent", "generate", service=service)
    def generate() -> str:
        crew = kit.crew()
        crew.agents[0].llm = None
        crew.before_kickoff_callbacks.append(lambda inputs: 1 / 0)
        return str(crew.kickoff(inputs={"topic": "tea"}))

    with use_context(ACME), pytest.raises(ZeroDivisionError):
        generate()
    assert charged(service) == []
    assert service.get_balance("acme").available == 100


def test_crewai_models_take_the_mixin(crewai: ModuleType, kit: SimpleNamespace, service: SyncCreditService) -> None:
    """Crew and Flow subclasses: no new fields, copies of a crew run under the active context."""
    from crewai.flow.flow import Flow, listen, start

    class PaidCrew(BaseCrew, crewai.Crew):  # type: ignore[misc, name-defined]  # crewai comes from a fixture
        def generate(self, topic: str) -> str:
            return str(self.kickoff_for_each(inputs=[{"topic": topic}])[0])

    track_agent_usage("ContentAgent", service=service)(PaidCrew)
    assert set(PaidCrew.model_fields) == set(crewai.Crew.model_fields)
    who = kit.agent()
    crew = PaidCrew(agents=[who], tasks=[kit.task(who)], tracing=False)
    assert crew.set_context(ACME).generate("tea") == "fin"

    class PaidFlow(BaseCrew, Flow[Any]):
        credit_service = service

        @start()
        @consume_credits("ContentAgent", "begin")
        def begin(self) -> str:
            return "begun"

        @listen(begin)
        @consume_credits("ContentAgent", "go_on")
        async def go_on(self, before: str) -> str:
            return f"{before}, done"

    with use_context(ACME):
        assert PaidFlow().kickoff() == "begun, done"
    assert charged(service) == ["generate", "begin", "go_on"]


def test_over_a_flows_own_decorator_the_message_says_below(crewai: ModuleType) -> None:
    """@start() makes an object of the method: ours goes below it."""
    from crewai.flow.flow import start

    @start()
    def begin(self: Any) -> str:
        return "begun"

    with pytest.raises(ConfigurationError, match="below"):
        consume_credits("ContentAgent", "begin")(begin)
