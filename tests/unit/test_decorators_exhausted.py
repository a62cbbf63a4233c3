"""on_exhausted, dry runs and missing prices."""

from __future__ import annotations

import asyncio
import inspect
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

from agentcredits import (
    AccountNotFoundError,
    AgentCreditsWarning,
    BaseCrew,
    CreditLimitExceededError,
    DryRunNotSupportedError,
    DryRunResult,
    InsufficientCreditsError,
    MissingContextError,
    Pricing,
    RequestContext,
    SyncCreditService,
    UnpricedActionError,
    _call,
    consume_credits,
    current_context,
    track_agent_usage,
    use_context,
)

ACME = RequestContext("acme")
DRY = RequestContext("acme", dry_run=True)


@pytest.fixture(autouse=True)
def _acme(service: SyncCreditService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_call, "_warned_unpriced", set())
    service.grant_credits("acme", 10)
    service.set_cost("Agent", "cheap", 1)
    service.set_cost("Agent", "video", 20)


def untouched(service: SyncCreditService) -> bool:
    """Nothing was held, charged or written."""
    return service.list_reservations("acme") == () and service.get_balance("acme").available == 10


def runs(charge: Callable[..., Any], ran: list[Any]) -> dict[str, Callable[..., Any]]:
    """A function of each colour that takes a prompt; generators give the list of their items."""

    @charge
    def function(prompt: str, seconds: int = 5) -> object:
        ran.append(prompt)
        return "real"

    @charge
    async def coroutine(prompt: str, seconds: int = 5) -> object:
        ran.append(prompt)
        return "real"

    @charge
    def generator(prompt: str, seconds: int = 5) -> Iterator[object]:
        ran.append(prompt)
        yield "real"

    @charge
    async def async_generator(prompt: str, seconds: int = 5) -> AsyncIterator[object]:
        ran.append(prompt)
        yield "real"

    async def collect(prompt: str) -> list[object]:
        return [item async for item in async_generator(prompt)]

    return {
        "function": lambda prompt: [function(prompt)],
        "coroutine": lambda prompt: [asyncio.run(coroutine(prompt))],
        "generator": lambda prompt: list(generator(prompt)),
        "async generator": lambda prompt: asyncio.run(collect(prompt)),
    }


COLOURS = ["function", "coroutine", "generator", "async generator"]


# -- when credits run out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", COLOURS)
def test_dry_run_on_exhaustion_gives_one_priced_plan(service: SyncCreditService, colour: str) -> None:
    """Instead of the work comes a falsy plan that says what, how much and why; generators yield just it."""
    ran: list[Any] = []
    charge = consume_credits(
        "Agent", "video", service=service, on_exhausted="dry_run", dimensions=lambda *_, **__: {"seconds": 5}
    )
    with use_context(ACME):
        (plan,) = runs(charge, ran)[colour]("a cat")
    assert ran == []
    assert isinstance(plan, DryRunResult)
    assert not plan
    assert (plan.agent_type, plan.action, plan.amount, plan.reason) == (
        "Agent",
        "video",
        Decimal(20),
        "insufficient_credits",
    )
    assert (plan.prompt, dict(plan.parameters)) == ("a cat", {"prompt": "a cat", "seconds": 5})
    assert dict(plan.dimensions) == {"seconds": 5}
    assert "video" in str(plan)
    assert "20" in str(plan)
    assert untouched(service)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_function_of_the_plan_makes_the_result(service: SyncCreditService, colour: str) -> None:
    """Its return value takes the result's place, awaited in async functions; the context is active in it."""
    ran: list[Any] = []
    seen: list[Any] = []

    def fallback(plan: DryRunResult) -> str:
        seen.append(current_context())
        return f"instead of {plan.prompt}"

    async def later(plan: DryRunResult) -> str:
        await asyncio.sleep(0)
        return fallback(plan)

    def returns_an_awaitable(plan: DryRunResult) -> Awaitable[str]:
        return later(plan)

    chosen: Any = fallback if colour in ("function", "generator") else returns_an_awaitable
    charge = consume_credits("Agent", "video", service=service, on_exhausted=chosen)
    with use_context(ACME):
        assert runs(charge, ran)[colour]("a cat") == ["instead of a cat"]
    assert (ran, seen) == ([], [ACME])
    assert current_context() is None
    assert untouched(service)


def test_enough_credits_run_the_real_thing(service: SyncCreditService) -> None:
    """A fallback changes nothing while there are credits."""
    ran: list[Any] = []
    charge = consume_credits("Agent", "cheap", service=service, on_exhausted="dry_run")
    with use_context(ACME):
        assert runs(charge, ran)["function"]("x") == ["real"]
    assert ran == ["x"]
    assert service.get_balance("acme").available == 9


@pytest.mark.parametrize("error", [InsufficientCreditsError("inner"), CreditLimitExceededError("inner")])
def test_a_refusal_inside_the_body_is_no_plan(service: SyncCreditService, error: Exception) -> None:
    """Half-done work must not look like a dry run: the inner error arrives and the credits are back."""

    @consume_credits("Agent", "cheap", service=service, on_exhausted="dry_run")
    def work() -> str:
        raise error

    with use_context(ACME), pytest.raises(type(error), match="inner"):
        work()
    assert service.get_balance("acme").available == 10


def test_a_new_organization_without_credits_gets_the_plan_too(service: SyncCreditService) -> None:
    """No account yet is a kind of having no credits: AccountNotFoundError is an InsufficientCreditsError."""
    ran: list[Any] = []
    with use_context(organization_id="newcomer"):
        (plan,) = runs(consume_credits("Agent", "cheap", service=service, on_exhausted="dry_run"), ran)["function"]("x")
        assert isinstance(plan, DryRunResult)
        assert plan.reason == "account_not_found"
        with pytest.raises(AccountNotFoundError):
            runs(consume_credits("Agent", "cheap", service=service), ran)["function"]("x")
    assert ran == []


def test_missing_context_and_missing_price_are_never_a_plan(service: SyncCreditService) -> None:
    """on_exhausted answers for credits, not for configuration."""
    ran: list[Any] = []
    unpriced = runs(consume_credits("Agent", "unpriced", service=service, on_exhausted="dry_run"), ran)["function"]
    priced = runs(consume_credits("Agent", "cheap", service=service, on_exhausted="dry_run"), ran)["function"]
    with pytest.raises(MissingContextError):
        priced("x")
    with use_context(ACME), pytest.raises(UnpricedActionError):
        unpriced("x")
    assert ran == []


def test_parameters_leave_self_out_and_show_defaults(service: SyncCreditService) -> None:
    """A plan describes the call, not the agent."""

    class Agent(BaseCrew):
        credit_service = service

        @consume_credits("Agent", "video", on_exhausted="dry_run")
        def video(self, *shots: str, size: str = "hd", **rest: str) -> str:
            return "real"

    plan = Agent().set_context(ACME).video("a", "b", prompt="c")
    assert isinstance(plan, DryRunResult)
    assert dict(plan.parameters) == {"shots": ("a", "b"), "size": "hd", "prompt": "c"}
    assert plan.prompt == "c"


@pytest.mark.parametrize(
    ("arguments", "prompt"),
    [
        ({"image_description": "tea", "size": 512}, "tea"),
        ({"first": "tea", "second": "coffee"}, None),
        ({"prompt": None, "style": "wild"}, None),
        ({}, None),
    ],
)
def test_the_only_text_among_the_arguments_is_the_prompt(
    service: SyncCreditService, arguments: dict[str, Any], prompt: str | None
) -> None:
    """Tools have other names for it; of two texts none is guessed."""

    @consume_credits("Agent", "video", on_exhausted="dry_run", service=service)
    def video(**given: Any) -> str:
        return "real"

    with use_context(ACME):
        plan = video(**arguments)
    assert isinstance(plan, DryRunResult)
    assert (plan.parameters, plan.prompt) == (arguments, prompt)


# -- dry runs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", COLOURS)
def test_a_dry_context_returns_the_plan_of_actions_that_declare_one(service: SyncCreditService, colour: str) -> None:
    """No work, no hold, no row; credits are there."""
    ran: list[Any] = []
    charge = consume_credits("Agent", "cheap", service=service, on_exhausted="dry_run")
    with use_context(DRY):
        (plan,) = runs(charge, ran)[colour]("x")
    assert (plan.reason, plan.amount) == ("dry_run", 1)
    assert ran == []
    assert untouched(service)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_dry_context_refuses_all_other_actions_before_their_body(service: SyncCreditService, colour: str) -> None:
    """A caller that expects a plan must not get real work."""
    ran: list[Any] = []
    with use_context(DRY), pytest.raises(DryRunNotSupportedError, match=r"Agent\.cheap"):
        runs(consume_credits("Agent", "cheap", service=service), ran)[colour]("x")
    assert ran == []
    assert untouched(service)


def test_a_dry_context_of_an_agent_counts_as_well(service: SyncCreditService) -> None:
    """set_context(dry_run) is a dry run like use_context; a fallback function gets the plan."""

    def fallback(plan: DryRunResult) -> list[str]:
        context = current_context()
        return ["dry", plan.reason, "" if context is None else context.organization_id]

    @track_agent_usage("Agent")
    class Agent(BaseCrew):
        credit_service = service

        @consume_credits("Agent", "cheap", on_exhausted=fallback)
        def cheap(self) -> list[str]:
            return ["real"]

        @consume_credits("Agent", "cheap", on_exhausted=fallback)
        async def acheap(self) -> list[str]:
            return ["real"]

        def video(self) -> list[str]:
            return ["real"]

    agent = Agent().set_context(DRY)
    assert agent.cheap() == asyncio.run(agent.acheap()) == ["dry", "dry_run", "acme"]
    with pytest.raises(DryRunNotSupportedError):
        agent.video()
    assert untouched(service)


def test_an_included_action_runs_dry_in_a_dry_context_too(service: SyncCreditService) -> None:
    """Being paid for already does not turn a dry run into real work."""
    ran: list[Any] = []
    inner = runs(consume_credits("Agent", "cheap", service=service, nested="included", on_exhausted="dry_run"), ran)

    @consume_credits("Agent", "cheap", service=service)
    def outer() -> list[Any]:
        with use_context(DRY):
            plans: list[Any] = inner["function"]("x")
        return plans

    with use_context(ACME):
        (plan,) = outer()
    assert isinstance(plan, DryRunResult)
    assert ran == []


# -- missing prices --------------------------------------------------------------------------------------------------


def test_tracked_methods_without_a_price_are_recorded_and_warned_about_once(service: SyncCreditService) -> None:
    """The one named exception to fail closed: a DEBIT of 0 that says so, and one warning for each action."""

    @track_agent_usage("WarnedOnce", service=service)
    class Agent:
        def work(self) -> str:
            return "done"

        def other(self) -> str:
            return "done"

    with use_context(ACME):
        with pytest.warns(AgentCreditsWarning, match=r"WarnedOnce.work has no price"):
            assert Agent().work() == "done"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert Agent().work() == "done"
        with pytest.warns(AgentCreditsWarning, match=r"WarnedOnce.other has no price"):
            assert Agent().other() == "done"
    rows = list(service.list_transactions("acme", agent_type="WarnedOnce"))
    assert [(row.action, row.amount, row.pricing) for row in rows] == [
        ("other", 0, Pricing.UNPRICED),
        ("work", 0, Pricing.UNPRICED),
        ("work", 0, Pricing.UNPRICED),
    ]
    assert service.get_balance("acme").available == 10
    assert service.verify()


def test_tracked_methods_can_refuse_to_run_without_a_price(service: SyncCreditService) -> None:
    """unpriced="deny" is the rule of consume_credits."""
    ran: list[int] = []

    @track_agent_usage("Agent", unpriced="deny", service=service)
    class Agent:
        def work(self) -> None:
            ran.append(1)

    with use_context(ACME), pytest.raises(UnpricedActionError):
        Agent().work()
    assert ran == []
    assert untouched(service)


def test_the_price_set_later_is_used(service: SyncCreditService) -> None:
    """Recording ends with the first price."""

    @track_agent_usage("PricedLater", service=service)
    class Agent:
        def work(self) -> None: ...

    with use_context(ACME):
        with pytest.warns(AgentCreditsWarning, match="PricedLater"):
            Agent().work()
        service.set_cost("PricedLater", "work", 3)
        Agent().work()
    assert [row.charged for row in service.list_transactions("acme", agent_type="PricedLater")] == [3, 0]


def test_a_fallback_keeps_the_colour() -> None:
    """What inspect sees does not depend on on_exhausted."""

    async def work() -> str:
        return "x"

    assert inspect.iscoroutinefunction(consume_credits("Agent", "cheap", on_exhausted="dry_run")(work))
