"""The state table of a reservation: what each call does in each state, on both databases and both faces."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from agentcredits import (
    CreditsError,
    CreditService,
    ReservationAlreadySettledError,
    ReservationExpiredError,
    ReservationRecord,
    ReservationState,
    ReservationUnknownError,
    SyncCreditService,
)
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


Answer = str | type[CreditsError]

#: (call, state) → the state it leads to, "replay", or the error. A committed hold was committed with 4.
TABLE: dict[tuple[str, str], Answer] = {
    ("commit 4", "active"): "committed",
    ("commit 4", "unknown"): "committed",
    ("commit 4", "committed"): "replay",
    ("commit 4", "released"): ReservationAlreadySettledError,
    ("commit 4", "expired"): ReservationExpiredError,
    ("commit 5", "committed"): ReservationAlreadySettledError,
    ("commit 0", "active"): "committed",
    ("commit 0", "unknown"): "committed",
    ("commit 0", "committed"): ReservationAlreadySettledError,
    ("commit 0", "expired"): ReservationExpiredError,
    ("commit", "committed"): ReservationAlreadySettledError,
    ("release", "active"): "released",
    ("release", "unknown"): "released",
    ("release", "committed"): ReservationAlreadySettledError,
    ("release", "released"): "replay",
    ("release", "expired"): "replay",
    ("extend", "active"): "active",
    ("extend", "unknown"): ReservationUnknownError,
    ("extend", "committed"): ReservationAlreadySettledError,
    ("extend", "released"): ReservationAlreadySettledError,
    ("extend", "expired"): ReservationExpiredError,
    ("mark_unknown", "active"): "unknown",
    ("mark_unknown", "unknown"): "replay",
    ("mark_unknown", "committed"): ReservationAlreadySettledError,
    ("mark_unknown", "released"): ReservationAlreadySettledError,
    ("mark_unknown", "expired"): ReservationExpiredError,
}

CALLS: dict[str, Callable[[Any, str], Any]] = {
    "commit": lambda face, place: face.commit_reservation(place, organization_id=ACME),
    "commit 0": lambda face, place: face.commit_reservation(place, 0, organization_id=ACME),
    "commit 4": lambda face, place: face.commit_reservation(place, 4, organization_id=ACME),
    "commit 5": lambda face, place: face.confirm(place, 5, organization_id=ACME),
    "release": lambda face, place: face.release_reservation(place, "why", organization_id=ACME),
    "extend": lambda face, place: face.extend_reservation(place, LATER, organization_id=ACME),
    "mark_unknown": lambda face, place: face.mark_unknown(place, "fal", "ref", organization_id=ACME),
}


def hold_in(service: SyncCreditService, clock: FakeClock, state: str) -> ReservationRecord:
    """A hold of 10 in the given state."""
    hold = service.reserve_credits(organization_id=ACME, amount=10, ttl=TTL)
    if state == "unknown":
        service.mark_unknown(hold, "fal", "first")
    elif state == "committed":
        service.commit_reservation(hold, 4)
    elif state == "released":
        service.rollback(hold, "first")
    elif state == "expired":
        clock.advance(TTL)
        service.sweep()
    return service.get_reservation(hold)


async def perform(face: Any, call: str, place: str) -> ReservationRecord:
    """The call on either face."""
    result = CALLS[call](face, place)
    record: ReservationRecord = await result if inspect.isawaitable(result) else result
    return record


async def check_cell(face: Any, service: SyncCreditService, clock: FakeClock, call: str, state: str) -> None:
    """One cell of the table: the answer, the record afterwards, what was charged, and the balance."""
    before = hold_in(service, clock, state)
    assert before.state.value == state
    clock.advance(timedelta(seconds=1))
    rows = len(service.list_transactions(ACME))
    answer = TABLE[call, state]
    if isinstance(answer, str):
        record = await perform(face, call, before.id)
        assert record.replayed == (answer == "replay")
        assert record.state.value == (state if answer == "replay" else answer)
        after = service.get_reservation(before)
        assert (after.state, after.expires_at, after.charged) == (record.state, record.expires_at, record.charged)
    else:
        with pytest.raises(answer) as refusal:
            await perform(face, call, before.id)
        assert before.id in refusal.value.message
        after = service.get_reservation(before)
    if not isinstance(answer, str) or answer == "replay":
        assert after == before
        assert len(service.list_transactions(ACME)) == rows
    if answer == "active":
        assert after.expires_at == clock.now() + LATER
    elif answer == "unknown":
        assert (after.provider, after.provider_reference) == ("fal", "ref")
        assert after.expires_at == clock.now() + timedelta(days=7)
    elif answer == "committed":
        amount = int(call.split()[1])
        assert (after.requested, after.charged, after.settled_at) == (amount, amount, clock.now())
        assert len(service.list_transactions(ACME)) == rows + (amount > 0)
        assert (after.transaction_id is None) == (amount == 0)
    elif answer == "released":
        assert (after.reason, after.charged, after.requested) == ("why", 0, None)
    held = 10 if after.state in (ReservationState.ACTIVE, ReservationState.UNKNOWN) else 0
    balance = service.get_balance(ACME)
    assert (balance.reserved, balance.spent, balance.available) == (held, after.charged, 100 - held - after.charged)
    assert service.verify()


@pytest.mark.parametrize(("call", "state"), TABLE, ids=lambda part: part)
async def test_every_cell_of_the_state_table(timed: SyncCreditService, clock: FakeClock, call: str, state: str) -> None:
    """What a call does to a hold in each state, on the blocking face."""
    await check_cell(timed, timed, clock, call, state)


async def test_the_state_table_is_the_same_for_coroutines(
    timed: SyncCreditService, database_url: str, clock: FakeClock
) -> None:
    """All cells on the coroutine face, each from a fresh start."""
    async with CreditService(database_url, clock=clock) as face:
        for call, state in TABLE:
            await check_cell(face, timed, clock, call, state)
            for row in timed.list_transactions(ACME, type="debit"):
                if row.charged and row.reservation_id:
                    timed.refund_credits(row, idempotency_key=row.id)
            for hold in timed.list_reservations(ACME, states=["active", "unknown"]):
                timed.release_reservation(hold)
