"""The arguments of @consume_credits: quantity, dimensions, metadata, estimate, actual, ttl, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from agentcredits import (
    ConfigurationError,
    InsufficientCreditsError,
    InvalidAmountError,
    InvalidInputError,
    RequestContext,
    ReservationState,
    SyncCreditService,
    Transaction,
    consume_credits,
    use_context,
)

ACME = RequestContext("acme", metadata={"channel": "web"})


@pytest.fixture(autouse=True)
def _acme(service: SyncCreditService) -> None:
    service.grant_credits("acme", 100)
    service.set_cost("Agent", "work", 2)


def charges(service: SyncCreditService) -> list[Transaction]:
    return list(service.list_transactions("acme", type="debit"))


def test_quantity_multiplies_the_price(service: SyncCreditService) -> None:
    """A value, or a function of the call's own arguments with self."""

    class Agent:
        per_item = 2

        @consume_credits("Agent", "work", service=service, quantity=lambda self, items, **_: len(items) * self.per_item)
        def work(self, items: list[str], *, fast: bool = False) -> int:
            return len(items)

    @consume_credits("Agent", "work", service=service, quantity="2.5")
    def fixed() -> None: ...

    with use_context(ACME):
        assert Agent().work(["a", "b"], fast=True) == 2
        fixed()
    assert [(row.quantity, row.charged) for row in reversed(charges(service))] == [(4, 8), (Decimal("2.5"), 5)]


def test_a_quantity_that_is_none_stops_the_action(service: SyncCreditService) -> None:
    """Nothing runs on a nonsensical quantity."""
    ran: list[int] = []

    @consume_credits("Agent", "work", service=service, quantity=lambda n: n)
    def work(n: int) -> None:
        ran.append(n)

    with use_context(ACME):
        for bad in (0, -1, float("nan"), True):
            with pytest.raises(InvalidAmountError):
                work(bad)  # type: ignore[arg-type]  # NaN is the point
    assert ran == []
    assert service.list_reservations("acme") == ()


def test_metadata_and_dimensions_are_written_beside_the_charge(service: SyncCreditService) -> None:
    """The context's metadata is there too; the charge's own wins."""

    @consume_credits(
        "Agent",
        "work",
        service=service,
        dimensions=lambda topic: {"length": len(topic)},
        metadata=lambda topic: {"topic": topic, "channel": "api"},
    )
    def work(topic: str) -> None: ...

    @consume_credits("Agent", "work", service=service, metadata={"fixed": True})
    def fixed() -> None: ...

    with use_context(ACME):
        work("tea")
        fixed()
    fixed_row, row = charges(service)
    assert (dict(row.metadata), dict(row.dimensions)) == ({"topic": "tea", "channel": "api"}, {"length": 3})
    assert dict(fixed_row.metadata) == {"channel": "web", "fixed": True}


@pytest.mark.parametrize("bad", [{"x": "y" * 9_000}, {"x": "\x00"}, {"x": object()}, "text"])
def test_metadata_that_cannot_be_stored_stops_the_action_before_the_reserve(
    service: SyncCreditService, bad: Any
) -> None:
    """An amount is never held for a charge that could not be written."""
    ran: list[int] = []

    @consume_credits("Agent", "work", service=service, metadata=lambda: bad)
    def work() -> None:
        ran.append(1)

    with use_context(ACME), pytest.raises(InvalidInputError, match="metadata"):
        work()
    assert ran == []
    assert service.list_reservations("acme") == ()


def test_an_error_in_a_users_function_is_the_users_own(service: SyncCreditService) -> None:
    """It is no refusal, even when it looks like one, and nothing is held."""

    def metadata() -> dict[str, Any]:
        raise InsufficientCreditsError("not ours")

    @consume_credits("Agent", "work", service=service, metadata=metadata, on_exhausted="dry_run")
    def work() -> None: ...

    with use_context(ACME), pytest.raises(InsufficientCreditsError, match="not ours"):
        work()
    assert service.list_reservations("acme") == ()


def test_estimate_holds_and_actual_charges(service: SyncCreditService) -> None:
    """The hold is the estimate, the charge is what the result says, the rest goes back; no price is needed."""
    held: list[Decimal] = []

    @consume_credits("Agent", "unpriced", service=service, estimate=lambda n: n, actual=lambda result: result / 2)
    def work(n: int) -> int:
        held.append(service.get_balance("acme").reserved)
        return n

    with use_context(ACME):
        assert work(10) == 10
    assert held == [10]
    assert [row.charged for row in charges(service)] == [5]
    assert service.get_balance("acme").available == 95


def test_actual_above_the_hold_takes_what_is_there(service: SyncCreditService) -> None:
    """An over-run never costs the caller the result: CAP, and the rest stands as uncollected."""

    @consume_credits("Agent", "work", service=service, estimate=90, actual=lambda _: 120)
    def work() -> str:
        return "done"

    with use_context(ACME):
        assert work() == "done"
    (row,) = charges(service)
    assert (row.charged, row.uncollected) == (100, 20)


def test_actual_zero_charges_nothing(service: SyncCreditService) -> None:
    """A result that turns out to be worth nothing is free, and the hold is settled."""

    @consume_credits("Agent", "work", service=service, actual=lambda _: 0)
    def work() -> str:
        return "cached"

    with use_context(ACME):
        assert work() == "cached"
    assert service.get_balance("acme").available == 100
    assert [hold.state for hold in service.list_reservations("acme")] == [ReservationState.COMMITTED]


@pytest.mark.parametrize("bad", [lambda _: 1 / 0, lambda _: "lots", lambda _: -1, lambda _: None])
def test_a_broken_actual_costs_the_hold_and_not_the_result(
    service: SyncCreditService, bad: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The work is done: it is charged as estimated, the mistake is in the log."""

    @consume_credits("Agent", "work", service=service, estimate=7, actual=bad)
    def work() -> str:
        return "done"

    with use_context(ACME):
        assert work() == "done"
    assert [row.charged for row in charges(service)] == [7]
    assert "actual= of Agent.work failed" in caplog.text


def test_ttl_is_the_holds(service: SyncCreditService) -> None:
    """ttl= reaches the reservation."""
    lives: list[timedelta] = []

    @consume_credits("Agent", "work", service=service, ttl=timedelta(seconds=42))
    def work() -> None:
        (hold,) = service.list_reservations("acme")
        lives.append(hold.expires_at - hold.created_at)

    with use_context(ACME):
        work()
    assert lives == [timedelta(seconds=42)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nested": "free"}, "nested"),
        ({"on_exhausted": "ignore"}, "on_exhausted"),
        ({"on_close": "keep"}, "on_close"),
        ({"on_close": "actual"}, "actual"),
        ({"actual": 3}, "actual"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    """A decorator's mistake shows at import, not in production."""
    with pytest.raises(ConfigurationError, match=message):
        consume_credits("Agent", "work", **options)(lambda: None)


@pytest.mark.parametrize(
    "options",
    [{"quantity": 0}, {"quantity": "many"}, {"estimate": -1}, {"metadata": {"x": object()}}, {"dimensions": "4k"}],
)
def test_values_that_cannot_be_used_are_refused_at_once(options: dict[str, Any]) -> None:
    """So do constants that no call could use."""
    with pytest.raises(InvalidInputError):
        consume_credits("Agent", "work", **options)(lambda: None)


def test_what_cannot_be_decorated_is_refused() -> None:
    """Classes, objects and functions that belong to no agent type each get a sentence that says what to do."""

    class Agent: ...

    class Callable:
        async def __call__(self) -> None: ...

    for thing, message in ((Agent, "track_agent_usage"), (Callable(), "function inside"), (3, "functions")):
        with pytest.raises(ConfigurationError, match=message):
            consume_credits("Agent", "work")(thing)  # type: ignore[arg-type]  # the point of the test
    with pytest.raises(ConfigurationError, match="agent_type"):
        consume_credits(None, "work")(lambda: None)
    with pytest.raises(InvalidInputError):
        consume_credits("", "work")(lambda: None)

    async def later(plan: Any) -> None: ...

    with pytest.raises(ConfigurationError, match="not async"):
        consume_credits("Agent", "work", on_exhausted=later)(lambda: None)
