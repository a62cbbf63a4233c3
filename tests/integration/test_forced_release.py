"""A reservation that an operator gives back by force: the work that ends after all is charged late, once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from agentcredits import (
    CreditEvent,
    CreditService,
    InvalidInputError,
    RequestContext,
    ReservationAlreadySettledError,
    SyncCreditService,
    consume_credits,
    use_context,
)
from agentcredits.testing import FakeClock

ACME = "acme"


@pytest.fixture
def acme(database_url: str, clock: FakeClock) -> Iterator[SyncCreditService]:
    """100 credits; verified in the end."""
    with SyncCreditService(database_url, clock=clock) as made:
        made.grant_credits(ACME, 100)
        yield made
        assert made.verify().problems == ()


def force(service: SyncCreditService, hold: Any) -> Any:
    return service.release_reservation(hold.id, "job lost", organization_id=ACME, force=True)


@pytest.mark.parametrize("state", ["active", "unknown"])
def test_its_credits_are_back_at_once(acme: SyncCreditService, state: str) -> None:
    """Of running work, and of work that waits for a verdict; why is kept."""
    hold = acme.reserve_credits(organization_id=ACME, amount=10)
    if state == "unknown":
        acme.mark_unknown(hold, "fal")
    released = force(acme, hold)
    assert (released.state, released.reason, released.forced, released.replayed) == (
        "released",
        "job lost",
        True,
        False,
    )
    assert force(acme, hold).replayed
    assert acme.get_balance(ACME).available == 100
    assert acme.get_reservation(hold).forced


@pytest.mark.parametrize("reason", [None, ""])
def test_force_needs_a_reason(acme: SyncCreditService, reason: str | None) -> None:
    """Nothing changes without one; an ordinary release needs none."""
    hold = acme.reserve_credits(organization_id=ACME, amount=10)
    with pytest.raises(InvalidInputError):
        acme.release_reservation(hold.id, reason, organization_id=ACME, force=True)
    assert acme.get_reservation(hold).state == "active"
    assert not acme.release_reservation(hold).forced


def test_a_block_that_ends_after_all_is_charged_late(acme: SyncCreditService, told: list[CreditEvent]) -> None:
    """Finished work is never free: once, as much as is available; that it was forced back stays in the ledger."""
    with acme.reserve_credits(organization_id=ACME, amount=10) as hold:
        force(acme, hold)
        acme.consume_credits(organization_id=ACME, amount=93)
    record = acme.get_reservation(hold)
    assert (record.state, record.late, record.forced, record.reason) == ("released", True, True, "job lost")
    assert (record.charged, record.uncollected) == (7, 3)
    row = acme.list_transactions(ACME).items[0]
    assert (row.amount, row.late, row.reservation_id) == (-7, True, hold.id)
    assert [event.name for event in told if event.reservation is not None and event.reservation.id == hold.id] == [
        "settled",
        "settled",
        "uncollected",
    ]
    assert hold.commit().replayed
    with pytest.raises(ReservationAlreadySettledError):
        hold.commit(5)
    with pytest.raises(ReservationAlreadySettledError):
        force(acme, hold)


def test_a_block_that_fails_after_all_gives_nothing_back_twice(acme: SyncCreditService) -> None:
    """The body's own error comes out, the release is a repetition."""
    hold = acme.reserve_credits(organization_id=ACME, amount=10)

    def fail() -> None:
        with hold:
            force(acme, hold)
            raise ValueError("body")

    with pytest.raises(ValueError, match="body"):
        fail()
    assert acme.get_balance(ACME).available == 100
    assert not acme.get_reservation(hold).late


def test_a_settlement_by_id_is_told_the_truth(acme: SyncCreditService) -> None:
    """Whoever settles by id hears that it was released; only the handle, which has the work, settles late."""
    hold = acme.reserve_credits(organization_id=ACME, amount=10)
    force(acme, hold)
    for call in (
        lambda: acme.commit_reservation(hold.id, organization_id=ACME),
        lambda: acme.mark_unknown(hold.id, "fal", organization_id=ACME),
        lambda: acme.extend_reservation(hold.id, timedelta(minutes=1), organization_id=ACME),
    ):
        with pytest.raises(ReservationAlreadySettledError, match="released"):
            call()
    assert acme.get_balance(ACME).spent == 0


def test_a_release_of_ones_own_stays_free(acme: SyncCreditService) -> None:
    """Without force nothing changes: what the block gave back itself is not charged at its end."""
    with acme.reserve_credits(organization_id=ACME, amount=10) as hold:
        acme.release_reservation(hold.id, organization_id=ACME)
    with pytest.raises(ReservationAlreadySettledError):
        hold.commit()
    assert acme.get_balance(ACME).spent == 0


def test_a_key_makes_a_new_hold_until_the_work_was_charged(acme: SyncCreditService) -> None:
    """As after every release; charged late, the hold answers for the key if no newer one does."""
    first = acme.reserve_credits(organization_id=ACME, amount=10, idempotency_key="k")
    force(acme, first)
    first.commit()
    again = acme.reserve_credits(organization_id=ACME, amount=10, idempotency_key="k")
    assert (again.id, again.replayed) == (first.id, True)
    other = acme.reserve_credits(organization_id=ACME, amount=5, idempotency_key="k2")
    force(acme, other)
    assert not acme.reserve_credits(organization_id=ACME, amount=5, idempotency_key="k2").replayed


async def test_a_decorated_coroutine_is_charged_late(acme: SyncCreditService, database_url: str) -> None:
    """The caller gets his result, the ledger its row."""
    async with CreditService(database_url) as service:

        @consume_credits("Agent", "work", estimate=10, service=service)
        async def work() -> str:
            (hold,) = await service.list_reservations(ACME)
            await service.release_reservation(hold, "job lost", force=True)
            return "done"

        with use_context(RequestContext(ACME)):
            assert await work() == "done"
        assert (await service.get_balance(ACME)).spent == 10
