"""Metered tools: charged on success only, whatever CrewAI does around them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from crew_fakes import ACME, agent, charged, crew, left, llm, use
from crewai import Crew
from crewai.hooks.dispatch import HookAborted
from crewai.tools import BaseTool, tool
from crewai.tools.base_tool import _TOOL_TYPE_REGISTRY
from crewai.tools.tool_failure import ToolExecutionFailedError, ToolFailure, ToolFailurePolicy
from pydantic import BaseModel, PrivateAttr

from agentcredits import (
    ConfigurationError,
    DryRunResult,
    InsufficientCreditsError,
    MissingContextError,
    RequestContext,
    SyncCreditService,
    UnpricedActionError,
    consume_credits,
    use_context,
)
from agentcredits_crewai import credited, meter

PROMPT = '{"prompt": "tea"}'


class Arguments(BaseModel):
    prompt: str
    size: int = 1


class Draw(BaseTool):
    name: str = "draw"
    description: str = "Draws."
    args_schema: type[BaseModel] = Arguments
    prefix: str = "picture of "
    _ran: list[str] = PrivateAttr(default_factory=list)

    def _run(self, prompt: str, size: int = 1) -> Any:
        self._ran.append(prompt)
        if prompt == "broken":
            raise RuntimeError("no paint")
        if prompt == "refused":
            return ToolFailure(message="the printer is on fire", code="fire")
        return self.prefix + prompt


class DrawLater(BaseTool):
    name: str = "draw"
    description: str = "Draws."

    async def _run(self, prompt: str) -> str:
        await asyncio.sleep(0)
        if prompt == "broken":
            raise RuntimeError("no paint")
        return "picture of " + prompt


def drawing(kind: str, ledger: SyncCreditService, **how: Any) -> BaseTool:
    """The same tool in every shape that CrewAI knows."""

    @tool("draw")
    def draw(prompt: str) -> str:
        """Draws."""
        if prompt == "broken":
            raise RuntimeError("no paint")
        return "picture of " + prompt

    @tool("draw")
    async def draw_later(prompt: str) -> str:
        """Draws."""
        await asyncio.sleep(0)
        if prompt == "broken":
            raise RuntimeError("no paint")
        return "picture of " + prompt

    shapes: dict[str, Any] = {"instance": Draw(), "async": DrawLater(), "@tool": draw, "async @tool": draw_later}
    if kind == "class":
        return meter(Draw, "draw", service=ledger, **how)()
    return meter(shapes[kind], "draw", service=ledger, **how)


SHAPES = ["instance", "class", "async", "@tool", "async @tool"]


@pytest.mark.parametrize("kind", SHAPES)
def test_each_shape_of_tool_is_charged_once_when_it_succeeds(
    ledger: SyncCreditService, kind: str, native: bool
) -> None:
    """In a plain crew, with nothing but a context around it."""
    model = llm(use("draw", PROMPT, native=native), native=native)
    with use_context(ACME):
        assert str(crew(model, drawing(kind, ledger)).kickoff(inputs={"topic": "tea"})) == "fin"
    assert "picture of tea" in model.text()
    assert charged(ledger) == ["draw"]
    assert left(ledger) == 90


@pytest.mark.parametrize("kind", SHAPES)
def test_a_tool_that_raises_is_given_back_however_often_it_is_tried(
    ledger: SyncCreditService, kind: str, native: bool
) -> None:
    """The react path runs a failing tool six times: each try is reserved and given back."""
    model = llm(use("draw", '{"prompt": "broken"}', native=native), native=native)
    with use_context(ACME):
        assert str(crew(model, drawing(kind, ledger)).kickoff(inputs={"topic": "tea"})) == "fin"
    assert charged(ledger) == []
    assert left(ledger) == 100
    assert len(ledger.list_reservations("acme")) == (1 if native else 6)


def test_a_tool_failure_and_a_failure_text_are_given_back(ledger: SyncCreditService, native: bool) -> None:
    """What the tool returned reaches the LLM as it is."""
    for prompt, words in (("refused", "the printer is on fire"), ("error", "picture of error")):
        model = llm(use("draw", json.dumps({"prompt": prompt}), native=native), native=native)
        paid = drawing("instance", ledger, is_failure=lambda result: "error" in str(result))
        with use_context(ACME):
            crew(model, paid).kickoff(inputs={"topic": "tea"})
        assert words in model.text()
    assert charged(ledger) == []
    assert left(ledger) == 100


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("on_denied", ["fallback", "tool_failure"])
def test_without_credits_the_llm_reads_one_sentence(
    ledger: SyncCreditService, kind: str, on_denied: Any, native: bool
) -> None:
    """It says what happened and what to do, and offers no link or command of anybody's shop."""
    ledger.consume_credits(organization_id="acme", amount=95)
    model = llm(use("draw", PROMPT, native=native), native=native)
    with use_context(ACME):
        out = crew(model, drawing(kind, ledger, on_denied=on_denied)).kickoff(inputs={"topic": "tea"})
    assert str(out) == "fin"
    assert "was not run because there are not enough credits for it (10 credits): go on without it" in model.text()
    assert "picture of" not in model.text()
    assert "http" not in model.text()
    assert "grant" not in model.text()
    assert left(ledger) == 5


def test_a_limit_is_named_as_the_reason(ledger: SyncCreditService) -> None:
    """The organization has credits; its limit is the reason."""
    from agentcredits import Window

    ledger.set_limit("acme", amount=5, window=Window.lifetime())
    with use_context(ACME):
        assert "a credit limit is reached" in drawing("instance", ledger).run(prompt="tea")


@pytest.mark.parametrize("kind", SHAPES)
def test_a_fallback_gets_the_priced_plan(ledger: SyncCreditService, kind: str) -> None:
    """Prompt, parameters, price and reason; and in a dry run nothing is written either."""
    plans: list[DryRunResult] = []

    def storyboard(plan: DryRunResult) -> str:
        plans.append(plan)
        return f"storyboard of {plan.prompt}"

    paid = drawing(kind, ledger, fallback=storyboard)
    with use_context(RequestContext("acme", dry_run=True)):
        assert paid.run(prompt="tea") == "storyboard of tea"
    ledger.consume_credits(organization_id="acme", amount=95)
    with use_context(ACME):
        assert paid.run(prompt="tea") == "storyboard of tea"
    assert [plan.reason for plan in plans] == ["dry_run", "insufficient_credits"]
    assert [plan.amount for plan in plans] == [10, 10]
    assert all(plan.parameters["prompt"] == "tea" for plan in plans)
    assert left(ledger) == 5


def test_cost_and_dimensions_see_the_arguments(ledger: SyncCreditService) -> None:
    """A function of what the LLM asked for."""
    paid = meter(Draw(), "draw", cost=lambda prompt, size: 2 * size, service=ledger)
    with use_context(ACME):
        assert paid.run(prompt="tea", size=3) == "picture of tea"
    assert left(ledger) == 94


@pytest.mark.parametrize("kind", SHAPES)
def test_cache_hits_are_free_and_plans_are_not_cached(ledger: SyncCreditService, kind: str, native: bool) -> None:
    """A second identical call is answered from the cache; a plan is asked for again."""
    words = [use("draw", PROMPT, native=native), use("draw", '{"prompt": "b"}', native=native)]
    with use_context(ACME):
        model = llm(*words, words[0], native=native)
        crew(model, drawing(kind, ledger), cache=True).kickoff(inputs={"topic": "tea"})
        assert charged(ledger) == ["draw", "draw"]
        ledger.consume_credits(organization_id="acme", amount=75)
        plans: list[DryRunResult] = []
        paid = drawing(kind, ledger, fallback=lambda plan: plans.append(plan) or "a plan")
        crew(llm(*words, words[0], native=native), paid, cache=True).kickoff(inputs={"topic": "tea"})
    assert len(plans) == 3
    assert left(ledger) == 5


def test_the_metered_tool_is_still_the_tool(ledger: SyncCreditService) -> None:
    """Class, name, schema, own fields, private state and the registry stay; the original stays free."""
    original = Draw(prefix="sketch of ")
    paid = meter(original, "draw", service=ledger)
    made = meter(Draw, "draw", service=ledger)
    assert isinstance(paid, Draw)
    assert issubclass(made, Draw)
    assert (paid.name, paid.description, paid.args_schema) == (original.name, original.description, Arguments)
    assert paid.tool_type == original.tool_type == made().tool_type
    assert _TOOL_TYPE_REGISTRY[original.tool_type] is Draw
    assert meter(DrawLater, "draw")().args_schema.model_fields.keys() == {"prompt"}
    with use_context(ACME):
        assert paid.run(prompt="a") == "sketch of a"
        assert paid.model_copy().run(prompt="b") == "sketch of b"
        assert made(prefix="x ").run(prompt="c") == "x c"
        assert paid._ran == ["a", "b"]
    assert original.run(prompt="d") == "sketch of d"
    assert left(ledger) == 70


def test_copies_of_a_crew_keep_the_metered_tools(ledger: SyncCreditService) -> None:
    """kickoff_for_each copies the crew, its agents and their tools."""
    model = llm(*[use("draw", PROMPT, native=True), "fin"] * 2, native=True)
    with use_context(ACME):
        crew(model, drawing("instance", ledger)).kickoff_for_each(inputs=[{"topic": "a"}, {"topic": "b"}])
    assert charged(ledger) == ["draw", "draw"]


def test_without_a_context_or_a_price_the_tool_does_not_run(ledger: SyncCreditService) -> None:
    """It fails closed, with the error that says what to do."""
    paid = drawing("instance", ledger)
    with pytest.raises(MissingContextError):
        paid.run(prompt="tea")
    with use_context(ACME), pytest.raises(UnpricedActionError):
        meter(Draw(), "sing", service=ledger).run(prompt="tea")
    assert paid._ran == []


def test_stop_outside_a_credited_crew_raises(ledger: SyncCreditService) -> None:
    """Called directly there is no run to stop."""
    ledger.consume_credits(organization_id="acme", amount=95)
    with use_context(ACME), pytest.raises(InsufficientCreditsError):
        drawing("instance", ledger, on_denied="stop").run(prompt="tea")


def test_tool_failure_obeys_crewais_policy(ledger: SyncCreditService, native: bool) -> None:
    """With RAISE the crew stops in CrewAI's own way, after one try."""
    ledger.consume_credits(organization_id="acme", amount=95)
    model = llm(use("draw", PROMPT, native=native), native=native)
    who = agent(
        model, drawing("instance", ledger, on_denied="tool_failure"), tool_failure_policy=ToolFailurePolicy.RAISE
    )
    one = crew(model)
    one.tasks[0].agent = who
    with use_context(ACME), pytest.raises(ToolExecutionFailedError):
        Crew(agents=[who], tasks=one.tasks, tracing=False).kickoff(inputs={"topic": "tea"})
    assert model.calls == 1


def test_an_error_of_the_tools_own_credits_is_its_own(ledger: SyncCreditService) -> None:
    """A charge inside the tool that is refused fails the tool; it is no refusal of the tool itself."""

    @consume_credits("Inner", "inner", estimate=500, service=ledger)
    def inner() -> None:
        raise AssertionError

    class Outer(BaseTool):
        name: str = "outer"
        description: str = "d"

        def _run(self) -> None:
            inner()

    with use_context(ACME), pytest.raises(InsufficientCreditsError, match="inner"):
        meter(Outer(), "draw", service=ledger).run()
    assert left(ledger) == 100


def test_what_cannot_be_metered_is_refused(ledger: SyncCreditService) -> None:
    """Twice, something else, a word that is unknown, an amount that is none."""
    for wrong, words in ((drawing("instance", ledger), "metered already"), (meter(Draw, "draw"), "metered already")):
        with pytest.raises(ConfigurationError, match=words):
            meter(wrong, "draw")
    with pytest.raises(ConfigurationError, match="no CrewAI tool"):
        meter(print, "draw")  # type: ignore[type-var]  # that is the point
    with pytest.raises(ConfigurationError, match="on_denied"):
        meter(Draw(), "draw", on_denied="perhaps")  # type: ignore[arg-type]  # that is the point
    with pytest.raises(ValueError, match="estimate"):
        meter(Draw(), "draw", cost=-1)


def test_a_credited_crew_stops_at_a_refused_tool(ledger: SyncCreditService, native: bool) -> None:
    """on_denied="stop": our own error with its numbers, no model call after it, and nothing of the tool ran."""
    ledger.consume_credits(organization_id="acme", amount=95)
    model = llm(use("draw", PROMPT, native=native), native=native)
    paid = drawing("instance", ledger, on_denied="stop")
    with use_context(ACME), pytest.raises(InsufficientCreditsError) as caught:
        credited(crew(model, paid), service=ledger).kickoff(inputs={"topic": "tea"})
    assert caught.value.context["shortfall"] == 5
    assert model.calls == 1
    assert left(ledger) == 5


class FakeLockedError(Exception):
    """As a provider's client raises it when the operator's account there is empty."""

    status_code = 403
    message = "User is locked. Reason: Exhausted balance. Top up your balance at fal.ai/dashboard/billing."


@pytest.mark.parametrize("on_denied", ["fallback", "tool_failure", "stop"])
def test_an_exhausted_provider_ends_in_a_plan_and_is_not_asked_again(
    ledger: SyncCreditService, native: bool, on_denied: Any
) -> None:
    """The operator's empty account: given back, one sentence without the supplier's words, one request in all."""
    asked: list[str] = []

    @tool("draw")
    def draw(prompt: str) -> str:
        """Draws."""
        asked.append(prompt)
        raise FakeLockedError(FakeLockedError.message)

    metered = meter(draw, "draw", service=ledger, provider="fal", on_denied=on_denied)
    model = llm(*[use("draw", f'{{"prompt": "{n}"}}', native=native) for n in range(3)], native=native)
    paid = credited(crew(model, metered), llm_action="llm_call", service=ledger)
    with use_context(ACME):
        if on_denied == "stop":
            with pytest.raises(HookAborted, match="not available"):
                paid.kickoff(inputs={"topic": "tea"})
        else:
            assert str(paid.kickoff(inputs={"topic": "tea"})) == "fin"
            assert "its provider cannot be used at the moment" in model.text()
            assert "fal.ai" not in model.text()
    assert asked == ["0"]
    assert left(ledger) == 100 - model.calls
    assert model.calls == (1 if on_denied == "stop" else 4)
