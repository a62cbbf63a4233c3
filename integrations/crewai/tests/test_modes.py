"""A credited crew carries its credits: every way to run it, in whatever thread, task or stream."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import Any

import pytest
from crew_fakes import ACME, GLOBEX, FakeLLM, agent, charged, crew, left, llm, on_both, use
from crewai import Crew, Process, Task
from crewai.flow.async_feedback.types import HumanFeedbackPending
from crewai.flow.flow import Flow, listen, start
from crewai.flow.human_feedback import human_feedback
from crewai.hooks.dispatch import HookAborted, InterceptionPoint, scoped_hooks
from crewai.tools import tool

from agentcredits import (
    ConfigurationError,
    DryRunNotSupportedError,
    MissingContextError,
    RequestContext,
    SyncCreditService,
    use_context,
)
from agentcredits_crewai import CreditedCrew, Run, credited, meter, require_credits

INPUTS = {"topic": "tea"}


@tool("draw")
def draw(prompt: str) -> str:
    """Draws."""
    return f"picture of {prompt}"


def model_of(native: bool, runs: int = 1) -> FakeLLM:
    end: Any = "fin" if native else "Thought: I know.\nFinal Answer: fin"
    return llm(*[use("draw", '{"prompt": "tea"}', native=native), end] * runs, native=native)


def paid_crew(ledger: SyncCreditService, native: bool = True, runs: int = 1, **how: Any) -> tuple[Any, FakeLLM]:
    model = model_of(native, runs)
    terms = {name: how.pop(name) for name in ("context", "max_credits", "on_run", "rate") if name in how}
    made = crew(model, meter(draw, "draw", service=ledger), **how)
    return credited(made, llm_action="llm_call", service=ledger, **terms), model


def consume(stream: Any) -> Any:
    for _chunk in stream:
        pass
    return stream.result


async def aconsume(stream: Any) -> Any:
    async for _chunk in stream:
        pass
    return stream.result


MODES: dict[str, Callable[[Any], Any]] = {
    "kickoff": lambda it: it.kickoff(inputs=INPUTS),
    "kickoff_async": lambda it: asyncio.run(it.kickoff_async(inputs=INPUTS)),
    "akickoff": lambda it: asyncio.run(it.akickoff(inputs=INPUTS)),
    "kickoff_for_each": lambda it: it.kickoff_for_each(inputs=[INPUTS])[0],
    "kickoff_for_each_async": lambda it: asyncio.run(it.kickoff_for_each_async(inputs=[INPUTS]))[0],
    "akickoff_for_each": lambda it: asyncio.run(it.akickoff_for_each(inputs=[INPUTS]))[0],
    "copy": lambda it: it.copy().kickoff(inputs=INPUTS),
}


STREAMS: dict[str, Callable[[Any], Any]] = {
    "kickoff": lambda it: it.kickoff(inputs=INPUTS),
    "kickoff_for_each": lambda it: it.kickoff_for_each(inputs=[INPUTS])[0],
}


@on_both
@pytest.mark.parametrize("mode", MODES)
def test_every_way_to_run_charges_the_model_and_the_tool(ledger: SyncCreditService, native: bool, mode: str) -> None:
    """Two LLM calls at 1 and a tool at 10."""
    paid, model = paid_crew(ledger, native)
    with use_context(ACME):
        assert str(MODES[mode](paid)) == "fin"
    assert model.calls == 2
    assert charged(ledger) == ["llm_call", "draw", "llm_call"]
    assert left(ledger) == 88
    assert paid.run.is_over
    assert paid.run.summary().charged == 12


@pytest.mark.parametrize("mode", STREAMS)
@pytest.mark.parametrize("where", ["inside", "after the block", "in another thread"])
def test_a_stream_is_charged_wherever_it_is_iterated(ledger: SyncCreditService, mode: str, where: str) -> None:
    """Each step runs in the run's own context."""
    runs: list[Run] = []
    paid, model = paid_crew(ledger, stream=True, on_run=runs.append)
    with use_context(ACME):
        stream = STREAMS[mode](paid)
        if where == "inside":
            consume(stream)
    if where == "after the block":
        consume(stream)
    if where == "in another thread":
        with ThreadPoolExecutor() as pool:
            pool.submit(consume, stream).result()
    assert str(stream.result) == "fin"
    assert model.calls == 2
    assert runs == [paid.run]
    assert charged(ledger) == ["llm_call", "draw", "llm_call"]
    assert left(ledger) == 88
    assert paid.run.is_over


@pytest.mark.parametrize("mode", ["kickoff_async", "akickoff", "kickoff_for_each_async", "akickoff_for_each"])
def test_an_async_stream_is_charged_in_any_task(ledger: SyncCreditService, mode: str) -> None:
    """Iterated by a task that inherited nothing."""
    paid, model = paid_crew(ledger, stream=True)
    inputs = [INPUTS] if "each" in mode else INPUTS

    async def main() -> None:
        with use_context(ACME):
            stream = await getattr(paid, mode)(inputs=inputs)

        async def iterate() -> None:
            async for _chunk in stream:
                pass

        await asyncio.get_running_loop().create_task(iterate(), context=Context())

    asyncio.run(main())
    assert model.calls == 2
    assert charged(ledger) == ["llm_call", "draw", "llm_call"]
    assert left(ledger) == 88


def test_a_task_that_outlives_the_block_keeps_its_holds(ledger: SyncCreditService) -> None:
    """Also a coroutine that is made inside the block and awaited after it."""
    paid, _model = paid_crew(ledger, runs=2)

    async def main() -> None:
        with use_context(ACME):
            task = asyncio.create_task(paid.kickoff_async(inputs=INPUTS))
            later = paid.copy().kickoff_async(inputs=INPUTS)
        await task
        await later

    asyncio.run(main())
    assert sorted(map(str, charged(ledger))) == ["draw"] * 2 + ["llm_call"] * 4
    assert left(ledger) == 76


def test_users_own_threads(ledger: SyncCreditService) -> None:
    """Credited where a context is active, a crew pays from it in any thread; else a thread without one is refused."""
    with use_context(ACME):
        paid, model = paid_crew(ledger)
    late, other = paid_crew(ledger)
    with ThreadPoolExecutor() as pool:
        assert str(pool.submit(paid.kickoff, inputs=INPUTS).result()) == "fin"
        with use_context(ACME), pytest.raises(MissingContextError):
            pool.submit(late.kickoff, inputs=INPUTS).result()
    assert (model.calls, other.calls) == (2, 0)
    assert left(ledger) == 88


@pytest.mark.parametrize("mode", MODES)
def test_without_a_context_nothing_starts(ledger: SyncCreditService, mode: str) -> None:
    """No model call, no tool call; the error says what to do."""
    paid, model = paid_crew(ledger)
    with pytest.raises(MissingContextError, match="use_context"):
        MODES[mode](paid)
    assert model.calls == 0
    assert charged(ledger) == []


def test_two_organizations_for_one_kickoff_are_refused(ledger: SyncCreditService) -> None:
    """Neither wins in silence: not the explicit, not the captured, not the active one."""
    explicit, model = paid_crew(ledger, context=ACME)
    with use_context(ACME):
        captured, other = paid_crew(ledger)
    with use_context(GLOBEX):
        for paid in (explicit, captured):
            with pytest.raises(MissingContextError, match=r"globex.*acme"):
                paid.kickoff(inputs=INPUTS)
    assert model.calls == other.calls == 0
    with use_context(RequestContext("acme", user_id="eve")):
        captured.kickoff(inputs=INPUTS)
    assert {row.user_id for row in ledger.list_transactions("acme", type="debit")} == {"eve"}


def test_kickoff_for_each_with_another_organization_for_each_input(ledger: SyncCreditService) -> None:
    """context= as a function of the inputs; each has its own run and bill."""
    runs: list[Run] = []
    paid, _model = paid_crew(ledger, runs=2, context=lambda inputs: RequestContext(inputs["org"]), on_run=runs.append)
    paid.kickoff_for_each(inputs=[{"topic": "a", "org": "acme"}, {"topic": "b", "org": "globex"}])
    assert (left(ledger), left(ledger, "globex")) == (88, 88)
    assert [(run.context.organization_id, run.summary().charged) for run in runs] == [("acme", 12), ("globex", 12)]


def test_crediting_a_crew_again_leaves_the_first_terms_alone(ledger: SyncCreditService) -> None:
    """A crew of the module, credited in each request: nobody pays for another."""
    base = crew(model_of(True, 2), meter(draw, "draw", service=ledger))
    with use_context(ACME):
        first = credited(base, llm_action="llm_call", service=ledger)
    with use_context(GLOBEX):
        second = credited(base, service=ledger)
    first.kickoff(inputs=INPUTS)
    second.kickoff(inputs=INPUTS)
    assert (left(ledger), left(ledger, "globex")) == (88, 90)
    assert first is base
    assert second is not base


def test_many_tenants_at_once_in_threads_and_tasks(ledger: SyncCreditService) -> None:
    """Each pays for its own."""

    def work(organization: str) -> None:
        with use_context(RequestContext(organization)):
            paid, _model = paid_crew(ledger)
            paid.kickoff(inputs=INPUTS)

    async def tasks() -> None:
        async def one(organization: str) -> None:
            with use_context(RequestContext(organization)):
                paid, _model = paid_crew(ledger)
                await paid.akickoff(inputs=INPUTS)

        await asyncio.gather(*(one(name) for name in ("acme", "globex") * 2))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, ("acme", "globex") * 2))
    asyncio.run(tasks())
    assert (left(ledger), left(ledger, "globex")) == (52, 52)


def test_async_tasks_and_parallel_tool_calls(ledger: SyncCreditService) -> None:
    """Task(async_execution=True), and three calls of one answer at once."""
    model = llm([("draw", f'{{"prompt": "{n}"}}') for n in range(3)], native=True)
    made = crew(model, meter(draw, "draw", service=ledger))
    made.tasks[0].async_execution = True
    with use_context(ACME):
        assert str(credited(made, llm_action="llm_call", service=ledger).kickoff(inputs=INPUTS)) == "fin"
    assert sorted(map(str, charged(ledger))) == ["draw"] * 3 + ["llm_call"] * 2
    assert left(ledger) == 68


def test_a_flow_its_crews_and_its_agents(ledger: SyncCreditService) -> None:
    """@start and @listen, a plain crew and an agent's own kickoff inside: one run, one bill."""
    model = llm("fin", "fin", "fin", native=True)

    class Story(Flow[Any]):
        @start()
        def write(self) -> str:
            return str(crew(model).kickoff(inputs=INPUTS))

        @listen(write)
        async def check(self, text: str) -> str:
            result: Any = await agent(model).kickoff_async(f"check {text}")
            return f"{text}, {result.raw}"

    flow = credited(Story(), llm_action="llm_call", agent_type="Flow", service=ledger)
    with use_context(ACME):
        assert flow.kickoff() == "fin, fin"
    assert charged(ledger) == ["llm_call", "llm_call"]
    assert left(ledger) == 98
    assert flow.run is not None
    assert flow.run.summary().by("agent")["writer"]["calls"] == 2

    streamed = credited(Story(stream=True), llm_action="llm_call", agent_type="Flow", service=ledger)
    with use_context(ACME):
        stream = streamed.kickoff()
    assert consume(stream) == "fin, fin"
    asynchronous = credited(Story(), llm_action="llm_call", agent_type="Flow", service=ledger)
    with use_context(ACME):
        assert asyncio.run(asynchronous.akickoff()) == "fin, fin"
    assert left(ledger) == 94


def test_a_credited_crew_inside_a_credited_flow_is_charged_once(ledger: SyncCreditService) -> None:
    """The inner terms count inside; both summaries have the lines."""
    model = llm("fin", native=True)
    inner_runs: list[Run] = []

    class Story(Flow[Any]):
        @start()
        def write(self) -> str:
            paid = credited(crew(model), llm_action="llm_call", service=ledger, on_run=inner_runs.append)
            return str(paid.kickoff(inputs=INPUTS))

    flow = credited(Story(), llm_action="llm_call", agent_type="Flow", service=ledger)
    with use_context(ACME):
        flow.kickoff()
    assert charged(ledger) == ["llm_call"]
    assert len(ledger.list_reservations("acme")) == 1
    assert flow.run is not None
    assert flow.run.summary().charged == inner_runs[0].summary().charged == 1


def test_delegation_is_charged_once(ledger: SyncCreditService) -> None:
    """Three LLM calls of two agents; CrewAI's own delegation tool costs nothing, with tools="all" too."""
    order = '{"task": "t", "context": "c", "coworker": "writer"}'
    boss = llm(use("delegate_work_to_coworker", order, native=True), native=True)
    worker = llm(native=True)
    one = agent(worker)
    made = Crew(
        agents=[one],
        tasks=[Task(description="d", expected_output="e")],
        process=Process.hierarchical,
        manager_agent=agent(boss, role="boss", allow_delegation=True),
        tracing=False,
    )
    with use_context(ACME):
        credited(made, llm_action="llm_call", tools="all", service=ledger).kickoff()
    assert charged(ledger) == ["llm_call"] * 3
    assert left(ledger) == 97


@pytest.mark.parametrize("tools", ["all", {"draw": "draw"}])
def test_named_tools_are_metered_at_the_start(ledger: SyncCreditService, native: bool, tools: Any) -> None:
    """Of agents and of tasks, without a word in the crew's own code; twice is once."""
    model = model_of(native, 2)
    made = crew(model)
    made.tasks[0].tools = [draw]
    paid = credited(made, tools=tools, service=ledger)
    with use_context(ACME):
        paid.kickoff(inputs=INPUTS)
        paid.kickoff(inputs=INPUTS)
    assert charged(ledger) == ["draw", "draw"]


def test_named_tools_of_agents_outside_the_crews_list(ledger: SyncCreditService) -> None:
    """A task's own agent, and an agent's own kickoff in a flow: metered, or refused with the word to use."""
    model = model_of(True)
    outsider = agent(model, draw, role="outsider")
    task = Task(description="d", expected_output="e", agent=outsider)
    made = Crew(agents=[agent(llm())], tasks=[task], tracing=False)
    with use_context(ACME):
        credited(made, tools="all", service=ledger).kickoff()
    assert charged(ledger) == ["draw"]
    for tools in ("all", {"draw": "draw"}):
        inner = model_of(True)

        class Story(Flow[Any]):
            @start()
            async def write(self) -> Any:
                return await agent(inner, draw).kickoff_async("draw")  # noqa: B023  # called in this round

        flow = credited(Story(), tools=tools, service=ledger)  # type: ignore[arg-type]  # both are words it knows
        with use_context(ACME), pytest.raises(HookAborted, match="wrap it in meter"):
            flow.kickoff()
        assert inner.calls == 1
    assert charged(ledger) == ["draw"]


def test_the_guard(ledger: SyncCreditService) -> None:
    """A credited crew that is started around its own kickoff, and everything else after require_credits()."""
    paid, model = paid_crew(ledger)
    with use_context(ACME), pytest.raises(MissingContextError, match="what credited"):
        Crew.kickoff(paid, inputs=INPUTS)
    plain = llm(native=True)
    require_credits()
    try:
        with use_context(ACME):
            with pytest.raises(MissingContextError):
                crew(plain).kickoff(inputs=INPUTS)
            with pytest.raises(MissingContextError):
                agent(plain).kickoff("hello")
            assert str(paid.kickoff(inputs=INPUTS)) == "fin"
    finally:
        require_credits(False)
    assert plain.calls == 0
    assert model.calls == 2
    crew(plain).kickoff(inputs=INPUTS)
    assert plain.calls == 1


def test_other_hooks_keep_working_and_cannot_hide_ours(ledger: SyncCreditService) -> None:
    """An outer scope is merged; an inner one that replaces ours is refused."""
    seen: list[Any] = []
    paid, _model = paid_crew(ledger)
    with use_context(ACME), scoped_hooks({InterceptionPoint.PRE_MODEL_CALL: [lambda ctx: seen.append(ctx) or None]}):
        paid.kickoff(inputs=INPUTS)
    assert len(seen) == 2
    inner = llm(native=True)

    class Hiding(Flow[Any]):
        @start()
        def write(self) -> str:
            with scoped_hooks({}):
                return str(crew(inner).kickoff(inputs=INPUTS))

    with use_context(ACME), pytest.raises(Exception, match="scoped_hooks"):
        credited(Hiding(), llm_action="llm_call", agent_type="Flow", service=ledger).kickoff()
    assert inner.calls == 0


def test_a_cap_for_one_run(ledger: SyncCreditService) -> None:
    """An agent that loops all night stops at its cap; the next run has its own."""
    from agentcredits import CreditLimitExceededError

    model = llm(*[use("draw", f'{{"prompt": "{n}"}}', native=True) for n in range(9)], native=True)
    paid = credited(
        crew(model, meter(draw, "draw", service=ledger, on_denied="stop")),
        max_credits=24,
        llm_action="llm_call",
        service=ledger,
    )
    with use_context(ACME):
        for spent in (23, 46):
            with pytest.raises(CreditLimitExceededError):
                paid.kickoff(inputs=INPUTS)
            assert left(ledger) == 100 - spent
    warned = [(str(one.threshold), one.spent) for one in reversed(ledger.list_limit_crossings("acme"))]
    assert warned == [("0.5", 12), ("0.8", 22)] * 2


def test_a_replay_costs_what_it_does_again(ledger: SyncCreditService) -> None:
    """The second of two tasks: one more LLM call, in a run of its own."""
    model = llm("one", "two", "again", native=True)
    made = crew(model, tasks=2)
    made.tasks[1].description = "check {topic}"
    paid = credited(made, llm_action="llm_call", service=ledger)
    with use_context(ACME):
        paid.kickoff(inputs=INPUTS)
        first = paid.run
        assert str(paid.replay(str(paid.tasks[1].id), INPUTS)) == "again"
    assert paid.run is not first
    assert (first.summary().charged, paid.run.summary().charged) == (2, 1)
    assert left(ledger) == 97
    assert model.calls == 3


def test_a_flow_that_waits_for_a_person_goes_on_with_its_credits(ledger: SyncCreditService) -> None:
    """``resume`` is a start like any other: its LLM calls are charged, and nobody else's."""
    model = llm("draft", "final", native=True)

    class Later:
        def request_feedback(self, context: Any, flow: Any) -> str:
            raise HumanFeedbackPending(context=context)

    class Review(Flow[Any]):
        @start()
        @human_feedback(message="Good?", provider=Later())
        def write(self) -> str:
            return str(agent(model).kickoff("draft").raw)

        @listen(write)
        def publish(self, _feedback: Any) -> str:
            return str(agent(model).kickoff("publish").raw)

    paid = credited(Review(), llm_action="llm_call", agent_type="Flow", service=ledger)
    with use_context(ACME):
        assert isinstance(paid.kickoff(), HumanFeedbackPending)
    assert charged(ledger) == ["llm_call"]
    waiting = Review.from_pending(paid.state["id"])
    with pytest.raises(MissingContextError):
        credited(waiting, llm_action="llm_call", agent_type="Flow", service=ledger).resume("fine")
    again = Review.from_pending(paid.state["id"])
    with use_context(ACME):
        assert credited(again, llm_action="llm_call", agent_type="Flow", service=ledger).resume("fine") == "final"
    assert charged(ledger) == ["llm_call"] * model.calls == ["llm_call"] * 2


def test_the_mixin(ledger: SyncCreditService) -> None:
    """One word in the @crew method; set_context of the agent pays, its agent_type names the price."""
    ledger.set_cost("ContentAgent", "llm_call", 3)

    class Content(CreditedCrew):
        agent_type = "ContentAgent"
        credit_service = ledger

        def crew(self) -> Crew:
            return self.credited(crew(llm(native=True)), llm_action="llm_call")

    one = Content()
    with pytest.raises(MissingContextError):
        one.crew().kickoff(inputs=INPUTS)
    one.set_context(ACME)
    one.crew().kickoff(inputs=INPUTS)
    assert left(ledger) == 97


def test_a_dry_run_plans_the_tools_and_refuses_charged_models(ledger: SyncCreditService) -> None:
    """LLM calls have no dry run; without llm_action they are not charged anyway."""
    dry = RequestContext("acme", dry_run=True)
    paid, model = paid_crew(ledger)
    with use_context(dry):
        with pytest.raises(DryRunNotSupportedError):
            paid.kickoff(inputs=INPUTS)
        credited(paid, service=ledger).kickoff(inputs=INPUTS)
    assert "this is a dry run (10 credits)" in model.text()
    assert left(ledger) == 100


def test_bad_terms_are_refused(ledger: SyncCreditService) -> None:
    """Before anything runs."""
    from agentcredits import CreditService, InvalidAmountError

    made = crew(llm())
    for wrong in ({"tools": "some"}, {"on_denied": "perhaps"}, {"service": CreditService()}):
        with pytest.raises(ConfigurationError):
            credited(made, **wrong)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(InvalidAmountError):
        credited(made, max_credits=-1)
    with pytest.raises(ConfigurationError, match="crew or a flow"):
        credited(agent(llm()))  # type: ignore[type-var]  # that is the point
    assert str(made.kickoff(inputs=INPUTS)) == "fin"


def test_two_threads_share_nothing(ledger: SyncCreditService) -> None:
    """A run that is stopped does not stop another one of the same crew's copies."""
    ledger.consume_credits(organization_id="globex", amount=100)
    errors: list[BaseException] = []
    paid, _model = paid_crew(ledger, runs=1, context=lambda inputs: RequestContext(inputs["org"]))

    def work(copy: Any, organization: str) -> None:
        try:
            copy.kickoff(inputs={"topic": "a", "org": organization})
        except Exception as error:  # noqa: BLE001  # looked at below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(paid.copy(), name)) for name in ("globex", "acme")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [type(error).__name__ for error in errors] == ["CrewInsufficientCredits"]
    assert left(ledger) < 100
