"""Jobs whose outcome was unknown: settled once, by a webhook or by asking the provider."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from agentcredits import (
    CreditService,
    InvalidInputError,
    MissingContextError,
    RequestContext,
    ReservationAlreadySettledError,
    ReservationNotFoundError,
    ReservationState,
    SyncCreditService,
    use_context,
)
from agentcredits.media import media_tool, reconcile, resolve_unknown
from agentcredits.media.verdicts import judge, unfinished_job
from agentcredits.testing import FakeClock

PRICE = 10


class FakeTimeoutError(TimeoutError):
    """A client that stopped waiting for a job."""

    def __init__(self, request_id: str | None) -> None:
        super().__init__("timed out")
        self.request_id = request_id


@pytest.fixture
def ledger(database_url: str, clock: FakeClock) -> Iterator[SyncCreditService]:
    with SyncCreditService(database_url, clock=clock) as service:
        service.set_cost("VideoAgent", "generate_video", PRICE)
        for organization in ("acme", "globex"):
            service.grant_credits(organization, 100)
        yield service


def wait_for(ledger: SyncCreditService, reference: str, organization: str = "acme") -> str:
    """Run a tool whose client stops waiting; the id of its hold."""

    @media_tool("generate_video", agent_type="VideoAgent", provider="fal", service=ledger)
    def generate(prompt: str) -> None:
        raise FakeTimeoutError(reference)

    with use_context(RequestContext(organization)), pytest.raises(FakeTimeoutError):
        generate("a cat")
    return next(
        hold.id
        for hold in ledger.list_reservations(organization, states=("unknown",))
        if hold.provider_reference == reference
    )


def spent(ledger: SyncCreditService, organization: str = "acme") -> tuple[Decimal, Decimal]:
    balance = ledger.get_balance(organization)
    assert ledger.verify().problems == ()
    return balance.spent, balance.reserved


@pytest.mark.parametrize("by", ["id", "reference", "record"])
def test_a_job_that_succeeded_is_charged_once(ledger: SyncCreditService, by: str) -> None:
    """However the webhook names it, and however often it is delivered."""
    place = wait_for(ledger, "job-1")
    target: Any = {
        "id": place,
        "reference": ("fal.ai", "job-1"),
        "record": ledger.get_reservation(place, organization_id="acme"),
    }[by]
    organization = "acme" if by == "id" else None
    for _ in range(3):
        record = resolve_unknown(ledger, target, outcome="succeeded", organization_id=organization)
        assert (record.id, record.state, record.charged) == (place, ReservationState.COMMITTED, PRICE)
    assert spent(ledger) == (PRICE, 0)


def test_a_job_that_failed_costs_nothing(ledger: SyncCreditService) -> None:
    """Also when it is told twice; the other way round is refused afterwards."""
    wait_for(ledger, "job-1")
    for _ in range(2):
        record = resolve_unknown(ledger, ("fal", "job-1"), outcome="failed")
        assert record.state is ReservationState.RELEASED
    with pytest.raises(ReservationAlreadySettledError):
        resolve_unknown(ledger, ("fal", "job-1"), outcome="succeeded")
    assert spent(ledger) == (0, 0)
    wait_for(ledger, "job-2")
    resolve_unknown(ledger, ("fal", "job-2"), outcome="succeeded")
    with pytest.raises(ReservationAlreadySettledError):
        resolve_unknown(ledger, ("fal", "job-2"), outcome="failed")
    assert spent(ledger) == (PRICE, 0)


def test_what_it_really_cost_is_charged(ledger: SyncCreditService) -> None:
    """Less than the hold, or more if it is there."""
    wait_for(ledger, "job-1")
    assert resolve_unknown(ledger, ("fal", "job-1"), outcome="succeeded", actual="2.5").charged == Decimal("2.5")
    assert resolve_unknown(ledger, ("fal", "job-1"), outcome="succeeded").charged == Decimal("2.5")
    wait_for(ledger, "job-2")
    assert resolve_unknown(ledger, ("fal", "job-2"), outcome="succeeded", actual=12).charged == 12
    assert spent(ledger) == (Decimal("14.5"), 0)


def test_a_verdict_after_the_hold_ran_out_is_still_booked(ledger: SyncCreditService, clock: FakeClock) -> None:
    """The provider's bill came, however late; a late failure has nothing to give back."""
    first, second = wait_for(ledger, "job-1"), wait_for(ledger, "job-2")
    clock.advance(timedelta(days=8))
    assert spent(ledger) == (0, 0)
    record = resolve_unknown(ledger, first, outcome="succeeded", organization_id="acme")
    assert (record.charged, record.late) == (PRICE, True)
    assert resolve_unknown(ledger, first, outcome="succeeded", organization_id="acme").charged == PRICE
    assert resolve_unknown(ledger, second, outcome="failed", organization_id="acme").state is ReservationState.EXPIRED
    assert spent(ledger) == (PRICE, 0)


def test_many_deliveries_at_once_charge_once(ledger: SyncCreditService) -> None:
    """Sixteen threads."""
    wait_for(ledger, "job-1")
    with ThreadPoolExecutor(16) as pool:
        records = list(pool.map(lambda _: resolve_unknown(ledger, ("fal", "job-1"), outcome="succeeded"), range(16)))
    assert {record.charged for record in records} == {Decimal(PRICE)}
    assert spent(ledger) == (PRICE, 0)


def test_a_foreign_or_unknown_job_is_not_found(ledger: SyncCreditService) -> None:
    """Whose it is can be said; then nobody else's is touched."""
    place = wait_for(ledger, "job-1")
    for target, organization in (
        (("fal", "job-2"), None),
        (("replicate", "job-1"), None),
        (("fal", "job-1"), "globex"),
        (place, "globex"),
    ):
        with pytest.raises(ReservationNotFoundError):
            resolve_unknown(ledger, target, outcome="succeeded", organization_id=organization)  # type: ignore[arg-type]
    with use_context(RequestContext("globex")), pytest.raises(ReservationNotFoundError):
        resolve_unknown(ledger, ("fal", "job-1"), outcome="succeeded")
    with pytest.raises(MissingContextError):
        resolve_unknown(ledger, place, outcome="succeeded")
    for outcome in ("running", None, True):
        with pytest.raises(InvalidInputError):
            resolve_unknown(ledger, place, outcome=outcome, organization_id="acme")  # type: ignore[call-overload]
    with pytest.raises(InvalidInputError):
        resolve_unknown(ledger, ("fal",), outcome="failed")  # type: ignore[call-overload]
    assert spent(ledger) == (0, PRICE)


def test_reconcile_asks_about_each_job_of_the_organization(ledger: SyncCreditService) -> None:
    """What ended is settled, what runs waits, and one job that cannot be looked at stops no other."""
    for reference in ("good", "bad", "slow", "odd", "nonsense"):
        wait_for(ledger, reference)
    wait_for(ledger, "good", "globex")
    asked: list[tuple[str, str]] = []

    def look(provider: str, reference: str) -> Any:
        asked.append((provider, reference))
        if reference == "odd":
            raise RuntimeError("away")
        return {"good": "succeeded", "bad": "failed", "slow": "running"}.get(reference, "what?")

    found = reconcile(ledger, "acme", look)
    assert sorted(asked) == [("fal", name) for name in ("bad", "good", "nonsense", "odd", "slow")]
    assert {hold.provider_reference: hold.state for hold in found.settled} == {
        "good": ReservationState.COMMITTED,
        "bad": ReservationState.RELEASED,
    }
    assert [hold.provider_reference for hold in found.running] == ["slow"]
    assert {hold.provider_reference: said for hold, said in found.failed} == {
        "odd": "RuntimeError",
        "nonsense": 'outcome must be "succeeded" or "failed", not \'what?\'.',
    }
    assert spent(ledger) == (PRICE, 3 * PRICE)
    assert spent(ledger, "globex") == (0, PRICE)
    assert reconcile(ledger, "acme", look).settled == ()
    assert spent(ledger) == (PRICE, 3 * PRICE)


def test_the_async_service_is_awaited(ledger: SyncCreditService, database_url: str, clock: FakeClock) -> None:
    """The same with coroutines; look may be one."""
    wait_for(ledger, "job-1")
    wait_for(ledger, "job-2")

    async def look(provider: str, reference: str) -> Any:
        return "succeeded"

    async def main() -> None:
        async with CreditService(database_url, clock=clock) as service:
            record = await resolve_unknown(service, ("fal", "job-1"), outcome="failed")
            assert record.state is ReservationState.RELEASED
            found = await reconcile(service, "acme", look)
            assert [hold.provider_reference for hold in found.settled] == ["job-2"]

    asyncio.run(main())
    assert spent(ledger) == (PRICE, 0)


# -- which errors are time-outs of jobs that go on -----------------------------------------------------------------


class FakeTask:
    id = "task-9"


class FakeTaskTimeoutError(Exception):
    """As runwayml raises it: the job is an attribute."""

    def __init__(self) -> None:
        self.task_details = FakeTask()


class FakeAPITimeoutError(Exception):
    """The HTTP request timed out: there is no job to ask about."""

    request = object()


class FakeStatusError(TimeoutError):
    """An HTTP answer 504; its id names the HTTP request."""

    status_code = 504
    request_id = "req_http"


def wrapped(inner: Exception) -> Exception:
    outer = RuntimeError("generation failed")
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FakeTimeoutError("job-1"), "job-1"),
        (FakeTaskTimeoutError(), "task-9"),
        (wrapped(FakeTimeoutError("job-1")), "job-1"),
        (ExceptionGroup("both", [ValueError("1"), FakeTimeoutError("job-1")]), "job-1"),
        (FakeTimeoutError(None), None),
        (FakeTimeoutError(""), None),
        (FakeTimeoutError("a\nb"), None),
        (FakeAPITimeoutError(), None),
        (FakeStatusError(), None),
        (ValueError("job-1"), None),
        (TimeoutError("timed out"), None),
    ],
)
def test_only_a_time_out_with_the_id_of_a_job_is_unknown(error: BaseException, expected: str | None) -> None:
    """Any other failure is given back at once."""
    assert unfinished_job(error) == expected
    verdict = judge(error=error, provider="fal")
    assert (verdict.settle, verdict.reference) == ("give_back" if expected is None else "unknown", expected)
