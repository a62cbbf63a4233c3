"""Reservations: over-runs, late settlement, blocks, keys, and whose reservation an id means."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from agentcredits import (
    AccountNotFoundError,
    CreditsError,
    CreditService,
    GrantNotFoundError,
    IdempotencyMismatchError,
    InsufficientCreditsError,
    MissingContextError,
    OverageRejectedError,
    RequestContext,
    Reservation,
    ReservationAlreadySettledError,
    ReservationExpiredError,
    ReservationInUseError,
    ReservationNotFoundError,
    ReservationState,
    SettlementFailedError,
    SyncCreditService,
    SyncReservation,
    TransactionNotFoundError,
    TransactionType,
    use_context,
)
from agentcredits.settings import Settings
from agentcredits.testing import FakeClock

ACME = "acme"
TTL = timedelta(minutes=5)
LATER = timedelta(minutes=2)


@pytest.fixture
def timed(database_url: str, clock: FakeClock) -> Iterator[SyncCreditService]:
    """100 credits under a clock that is moved by hand."""
    with SyncCreditService(database_url, clock=clock) as made:
        made.grant_credits(ACME, 100)
        yield made


@pytest.fixture
def service(service: SyncCreditService) -> SyncCreditService:
    """100 credits under the database's own clock."""
    service.grant_credits(ACME, 100)
    return service


def reserve(service: SyncCreditService, amount: int = 10, **arguments: Any) -> SyncReservation:
    return service.reserve_credits(organization_id=ACME, amount=amount, **arguments)


def debits(service: SyncCreditService) -> list[Decimal]:
    return [row.charged for row in service.list_transactions(ACME, type="debit")]


# -- settlement ----------------------------------------------------------------------------------------------------


def test_a_partial_commit_gives_the_rest_back_newest_first(timed: SyncCreditService, clock: FakeClock) -> None:
    """The hold's allocations are used in burn-down order; what is left goes back to where it came from."""
    promotional = timed.grant_credits(ACME, 4, category="promotional", expires_at=clock.now() + timedelta(days=1))
    hold = reserve(timed)
    assert [(part.grant_id == promotional.id, part.amount) for part in hold.record.allocations] == [
        (True, 4),
        (False, 6),
    ]
    timed.commit_reservation(hold, 5)
    row = timed.list_transactions(ACME, limit=1).items[0]
    assert [(part.grant_id == promotional.id, part.amount) for part in row.allocations] == [(True, 4), (False, 1)]
    assert (row.type, row.amount, row.balance_after, row.reservation_id) == (TransactionType.DEBIT, -5, 99, hold.id)
    assert timed.get_balance(ACME).available == 99
    assert timed.verify()


def test_an_explicit_commit_above_the_hold_is_rejected_and_the_hold_stays(service: SyncCreditService) -> None:
    """The error names the amount that would do."""
    hold = reserve(service)
    with pytest.raises(OverageRejectedError) as refusal:
        service.commit_reservation(hold, 12)
    assert refusal.value.fixes == ({"param": "amount", "value": Decimal(10)},)
    assert service.get_reservation(hold).state is ReservationState.ACTIVE
    assert service.get_balance(ACME).reserved == 10


def test_a_commit_above_the_hold_takes_what_is_there(service: SyncCreditService) -> None:
    """CAP: the hold, then what is available; the rest stands as uncollected on the row and the hold."""
    other = reserve(service, 85)
    record = service.commit_reservation(reserve(service, 10), 20, overage="cap")
    row = service.list_transactions(ACME, limit=1).items[0]
    assert (record.requested, record.charged, record.uncollected) == (20, 15, 5)
    assert (row.charged, row.uncollected, row.balance_after) == (15, 5, 85)
    assert service.get_balance(ACME).available == 0
    assert service.get_reservation(other).amount == 85
    assert service.verify()


def test_a_handle_caps_by_itself(service: SyncCreditService) -> None:
    """Work that is done is charged as far as credits go, in a block and by hand."""
    with reserve(service, 10) as hold:
        hold.commit(30)
    assert (hold.record.charged, hold.record.uncollected) == (30, 0)
    by_hand = reserve(service, 10)
    assert (by_hand.commit(200).charged, by_hand.record.uncollected) == (70, 130)
    assert service.get_balance(ACME).available == 0
    assert service.verify()


def test_a_commit_of_nothing_settles_without_a_row(service: SyncCreditService) -> None:
    """commit(0): COMMITTED, no DEBIT, the hold's credits are back."""
    record = service.commit_reservation(reserve(service), 0)
    assert (record.state, record.charged, record.transaction_id) == (ReservationState.COMMITTED, 0, None)
    assert debits(service) == []
    assert service.get_balance(ACME).available == 100
    assert service.verify()


@pytest.mark.parametrize("reached", [timedelta(0), timedelta(microseconds=-1)])
def test_a_hold_ends_exactly_with_its_time_to_live(
    timed: SyncCreditService, clock: FakeClock, reached: timedelta
) -> None:
    """At expires_at it is over, a microsecond before it is not."""
    hold = reserve(timed, ttl=TTL)
    clock.set(hold.expires_at + reached)
    over = reached == timedelta(0)
    assert timed.get_balance(ACME).reserved == (0 if over else 10)
    assert timed.get_reservation(hold).state is (ReservationState.EXPIRED if over else ReservationState.ACTIVE)
    if over:
        with pytest.raises(ReservationExpiredError):
            timed.commit_reservation(hold)
    else:
        assert timed.commit_reservation(hold).charged == 10


def test_a_handle_settles_late_once_and_both_facts_stay(timed: SyncCreditService, clock: FakeClock) -> None:
    """The hold stays EXPIRED, the charge is marked late, and a second settlement is refused."""
    hold = reserve(timed, ttl=TTL)
    clock.advance(timedelta(hours=1))
    timed.sweep()
    record = hold.commit(7)
    row = timed.list_transactions(ACME, limit=1).items[0]
    assert (record.state, record.late, record.charged) == (ReservationState.EXPIRED, True, 7)
    assert (row.late, row.charged, row.reservation_id, record.transaction_id) == (True, 7, hold.id, row.id)
    assert timed.commit_reservation(hold, 7).replayed
    for call in (
        lambda: timed.commit_reservation(hold, 8),
        lambda: timed.release_reservation(hold),
        lambda: timed.extend_reservation(hold, TTL),
        lambda: timed.mark_unknown(hold, "fal"),
    ):
        with pytest.raises(ReservationAlreadySettledError):
            call()
    assert debits(timed) == [7]
    assert timed.verify()


def test_a_late_settlement_takes_what_is_there(timed: SyncCreditService, clock: FakeClock) -> None:
    """Its hold is gone, so it charges what is available now; the rest is uncollected."""
    hold = reserve(timed, 60, ttl=TTL)
    clock.advance(TTL)
    timed.consume_credits(organization_id=ACME, amount=70)
    record = hold.commit()
    assert (record.charged, record.uncollected, record.late) == (30, 30, True)
    assert timed.get_balance(ACME).available == 0
    assert timed.verify()


def test_a_grace_lets_an_explicit_commit_settle_late(database_url: str, clock: FakeClock) -> None:
    """Up to the end of the grace, not at it."""
    grace = timedelta(seconds=30)
    with SyncCreditService(
        database_url, clock=clock, settings=Settings(commit_grace_seconds=grace.total_seconds())
    ) as service:
        service.grant_credits(ACME, 100)
        first, second = reserve(service, ttl=TTL), reserve(service, ttl=TTL)
        clock.set(first.expires_at + grace - timedelta(microseconds=1))
        assert service.commit_reservation(first).late
        clock.set(first.expires_at + grace)
        with pytest.raises(ReservationExpiredError):
            service.commit_reservation(second)
        assert debits(service) == [10]


def test_an_unknown_hold_waits_seven_days_and_is_then_reported(timed: SyncCreditService, clock: FakeClock) -> None:
    """A poll time-out is no failure: the credits stay held; at the end the sweep names the hold."""
    hold = reserve(timed, ttl=TTL)
    timed.mark_unknown(hold, "fal", "req-1")
    clock.advance(timedelta(days=7) - timedelta(microseconds=1))
    assert timed.get_balance(ACME).reserved == 10
    clock.advance(timedelta(microseconds=1))
    report = timed.sweep()
    assert (report.expired_reservations, report.expired_unknown) == (1, (hold.id,))
    after = timed.get_reservation(hold)
    assert (after.state, after.reason) == (ReservationState.EXPIRED, "no verdict from the provider")
    assert timed.get_balance(ACME).available == 100


def test_an_extension_counts_from_now_and_can_shorten(timed: SyncCreditService, clock: FakeClock) -> None:
    """It is now + ttl, never relative to the old end; the new end is what counts."""
    hold = reserve(timed, ttl=timedelta(hours=1))
    clock.advance(timedelta(minutes=1))
    assert hold.extend(LATER).expires_at == clock.now() + LATER
    clock.advance(LATER)
    assert timed.get_balance(ACME).reserved == 0


# -- blocks --------------------------------------------------------------------------------------------------------


def test_a_block_charges_the_whole_hold_or_gives_it_back(service: SyncCreditService) -> None:
    """Success: the hold. An exception: released with its reason, and the exception is the user's own."""
    with reserve(service) as hold:
        assert service.get_balance(ACME).reserved == 10
    assert hold.record.charged == 10
    with pytest.raises(KeyError), reserve(service) as failed:
        raise KeyError("frame")
    assert service.get_reservation(failed).reason == "KeyError: 'frame'"
    assert service.get_balance(ACME).available == 90


async def test_the_coroutine_handle_can_be_awaited_or_entered(aservice: CreditService) -> None:
    """reserve_credits() is both; release and commit by hand end the block's settlement."""
    await aservice.grant_credits(ACME, 100)
    async with aservice.reserve_credits(organization_id=ACME, amount=10) as hold:
        assert isinstance(hold, Reservation)
        await hold.commit(3)
    async with aservice.reserve_credits(organization_id=ACME, amount=10) as hold:
        await hold.release("not needed")
    awaited = await aservice.reserve_credits(organization_id=ACME, amount=10)
    async with awaited:
        await awaited.extend(TTL)
    with pytest.raises(KeyError):
        async with aservice.reserve_credits(organization_id=ACME, amount=10):
            raise KeyError("frame")
    assert (await aservice.get_balance(ACME)).spent == 13
    assert await aservice.verify()


@pytest.mark.parametrize("settle", ["commit", "release"])
def test_a_hold_that_the_service_settled_inside_its_block_is_left_alone(
    database_url: str, settle: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of the block has nothing to settle: no error, no complaint in the log, also when failures are raised."""
    with SyncCreditService(database_url, settings=Settings(on_settlement_failure="raise")) as service:
        service.grant_credits(ACME, 100)
        try:
            with reserve(service) as hold:
                if settle == "commit":
                    service.commit_reservation(hold, 4)
                else:
                    service.release_reservation(hold, "not needed")
        except SettlementFailedError as error:
            pytest.fail(f"the block settled again: {error}")
        assert service.get_balance(ACME).spent == (4 if settle == "commit" else 0)
    assert "was not settled" not in caplog.text


@pytest.mark.parametrize("failed", [False, True])
def test_a_hold_whose_verdict_is_awaited_outlives_its_block(service: SyncCreditService, failed: bool) -> None:
    """mark_unknown inside: the end of the block neither charges nor releases, also when polling timed out."""
    with contextlib.suppress(TimeoutError), reserve(service) as hold:
        service.mark_unknown(hold, "fal", "req-1")
        if failed:
            raise TimeoutError("no verdict yet")
    assert service.get_reservation(hold).state is ReservationState.UNKNOWN
    assert debits(service) == []
    assert service.release_reservation(hold).state is ReservationState.RELEASED


# -- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["active", "unknown", "committed"])
def test_a_living_attempts_key_replays_its_hold(timed: SyncCreditService, clock: FakeClock, state: str) -> None:
    """The same hold comes back and nothing more is held; an open one cannot be entered by the second caller."""
    first = reserve(timed, idempotency_key="k")
    if state == "unknown":
        timed.mark_unknown(first, "fal")
    elif state == "committed":
        first.commit()
    again = reserve(timed, idempotency_key="k", ttl=timedelta(hours=1), metadata={"try": 2})
    assert (again.id, again.replayed, again.state.value) == (first.id, True, state)
    held = {"active": 10, "unknown": 10, "committed": 0}[state]
    assert timed.get_balance(ACME).reserved == held
    if state == "committed":
        with again:
            pass
        assert debits(timed) == [10]
    else:
        with pytest.raises(ReservationInUseError) as refusal, again:
            pytest.fail("another attempt's hold was entered")
        assert refusal.value.retryable
        assert timed.get_reservation(first).state.value == state


@pytest.mark.parametrize("state", ["released", "expired"])
def test_a_key_makes_a_new_hold_once_its_attempt_has_ended(
    timed: SyncCreditService, clock: FakeClock, state: str
) -> None:
    """Released or run out: the work may be tried again under the same key."""
    first = reserve(timed, idempotency_key="k", ttl=TTL)
    if state == "released":
        first.release()
    else:
        clock.advance(TTL)
    second = reserve(timed, idempotency_key="k")
    assert not second.replayed
    assert second.id != first.id
    assert timed.get_balance(ACME).reserved == 10
    second.commit()
    assert reserve(timed, idempotency_key="k").id == second.id
    assert timed.verify()


def test_a_key_that_was_settled_late_replays(timed: SyncCreditService, clock: FakeClock) -> None:
    """The hold ran out, but its work was charged: the key does not run it again."""
    first = reserve(timed, idempotency_key="k", ttl=TTL)
    clock.advance(TTL)
    first.commit()
    assert reserve(timed, idempotency_key="k").id == first.id
    assert debits(timed) == [10]


def test_a_key_with_another_payload_is_a_mismatch_also_after_the_attempt_ended(timed: SyncCreditService) -> None:
    """Amount, action, quantity, dimensions and scopes are the payload."""
    reserve(timed, idempotency_key="k").release()
    for change in ({"amount": 11}, {"user_id": "u"}, {"quantity": 2}, {"dimensions": {"a": 1}}, {"action": "x"}):
        arguments: dict[str, Any] = {"organization_id": ACME, "amount": 10, **change}
        with pytest.raises(IdempotencyMismatchError):
            timed.reserve_credits(idempotency_key="k", **arguments)
    assert timed.get_balance(ACME).reserved == 0


def test_a_refused_key_can_succeed_later(timed: SyncCreditService) -> None:
    """A refusal is not stored."""
    with pytest.raises(InsufficientCreditsError):
        reserve(timed, 101, idempotency_key="k")
    timed.grant_credits(ACME, 1)
    assert not reserve(timed, 101, idempotency_key="k").replayed


def test_credits_that_are_only_held_make_a_retryable_refusal(service: SyncCreditService) -> None:
    """An empty account is told apart from one whose credits are at work."""
    reserve(service, 60)
    with pytest.raises(InsufficientCreditsError) as refusal:
        reserve(service, 50)
    assert (refusal.value.reason, refusal.value.retryable) == ("credits_held", True)
    assert refusal.value.context["available"] == 40
    with pytest.raises(InsufficientCreditsError) as refusal:
        reserve(service, 150)
    assert (refusal.value.reason, refusal.value.retryable) == ("insufficient_credits", False)
    assert refusal.value.context["shortfall"] == 110


# -- whose ---------------------------------------------------------------------------------------------------------


def test_an_id_is_resolved_by_argument_object_or_context(service: SyncCreditService) -> None:
    """In this order; with none of them the call is refused before anything is looked up."""
    charge = service.consume_credits(organization_id=ACME, amount=1)
    grant = service.list_grants(ACME)[0]
    hold = reserve(service, 1)
    for call in (
        service.commit_reservation,
        service.release_reservation,
        lambda place: service.extend_reservation(place, TTL),
        lambda place: service.mark_unknown(place, "fal"),
        service.get_reservation,
    ):
        with pytest.raises(MissingContextError):
            call(hold.id)
    for call_with, place in ((service.refund_credits, charge.id), (service.void_grant, grant.id)):
        with pytest.raises(MissingContextError):
            call_with(place)
    assert service.get_reservation(hold.id, organization_id=ACME) == service.get_reservation(hold)
    with use_context(RequestContext(ACME)):
        assert service.get_reservation(hold.id) == service.get_reservation(hold.record)
        assert service.commit_reservation(hold.id).charged == 1
        assert service.refund_credits(charge.id).refund_of == charge.id
        assert service.void_grant(grant.id).id == grant.id
    with use_context(RequestContext("other")):
        assert service.get_reservation(hold).id == hold.id


def test_a_foreign_id_answers_as_an_unknown_one(service: SyncCreditService) -> None:
    """Nobody learns of, settles or refunds what belongs to another organization."""
    service.grant_credits("other", 10)
    hold = reserve(service)
    charge = service.consume_credits(organization_id=ACME, amount=1)
    grant = service.list_grants(ACME)[0]
    before = service.get_balance(ACME).as_dict() | {"as_of": None}
    calls: list[tuple[Callable[..., object], str, type[CreditsError]]] = [
        (service.commit_reservation, hold.id, ReservationNotFoundError),
        (service.release_reservation, hold.id, ReservationNotFoundError),
        (lambda place, **who: service.extend_reservation(place, TTL, **who), hold.id, ReservationNotFoundError),
        (lambda place, **who: service.mark_unknown(place, "fal", **who), hold.id, ReservationNotFoundError),
        (service.get_reservation, hold.id, ReservationNotFoundError),
        (service.refund_credits, charge.id, TransactionNotFoundError),
        (service.void_grant, grant.id, GrantNotFoundError),
    ]
    for call, place, error in calls:
        with pytest.raises(error) as foreign:
            call(place, organization_id="other")
        with pytest.raises(error) as unknown:
            call("01900000-0000-7000-8000-000000000000", organization_id="other")
        assert foreign.value.message.replace(place, "ID") == unknown.value.message.replace(
            "01900000-0000-7000-8000-000000000000", "ID"
        )
        with pytest.raises((AccountNotFoundError, error)):
            call(place, organization_id="nobody")
    assert (service.get_balance(ACME).as_dict() | {"as_of": None}) == before


def test_open_reservations_are_listed_however_many_ran_out_after_them(
    timed: SyncCreditService, clock: FakeClock
) -> None:
    """Newest first, as they are now: what ran out but is not booked yet hides nobody."""
    living = [reserve(timed, 1, ttl=timedelta(hours=1)).id for _ in range(3)]
    for _ in range(20):
        reserve(timed, 1, ttl=TTL)
    clock.advance(TTL)
    assert [hold.id for hold in timed.list_reservations(ACME, states=["active"], limit=2)] == living[:0:-1]
    assert len(timed.list_reservations(ACME, states=["expired"])) == 20
    assert len(timed.list_reservations(ACME)) == 23
