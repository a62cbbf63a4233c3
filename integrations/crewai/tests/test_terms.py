"""What a credit covers: flows, crews inside, delegation, named tools, hooks, caps, dry runs; bad terms are refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from crew_fakes import ACME, agent, charged, crew, left, llm, use
from crewai import Crew, Process, Task
from crewai.flow.async_feedback.types import HumanFeedbackPending
from crewai.flow.flow import Flow, listen, start
from crewai.flow.human_feedback import human_feedback
from crewai.hooks.dispatch import HookAborted, InterceptionPoint, scoped_hooks
from paid_crews import INPUTS, consume, draw, model_of, paid_crew

from agentcredits import (
    ConfigurationError,
    DryRunNotSupportedError,
    MissingContextError,
    RequestContext,
    SyncCreditService,
    use_context,
)
from agentcredits_crewai import CreditedCrew, Run, credited, meter, require_credits


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
