"""Soft limits and thresholds: recorded once in a window, told once, after they are booked."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from agentcredits import (
    CreditEvent,
    CreditLimitExceededError,
    CreditService,
    RequestContext,
    add_hook,
    remove_hook,
    use_context,
)
from tests.integration.limit_book import (
    ACME,
    DAY,
    MICRO,
    MIDNIGHT,
    NOON,
    Book,
    crossings,
    refused,
)


def test_soft_limits_never_refuse_and_tell_once_that_they_were_passed(book: Book, told: list[CreditEvent]) -> None:
    """Reaching one exactly is not going beyond it; 0 is passed by the first charge."""
    limit, zero = book.limit(10, mode="soft"), book.limit(0, "month", mode="soft", scope="user", scope_id="ann")
    book.spend(10)
    assert book.service.list_limit_crossings(ACME) == ()
    charge = book.spend(1)
    book.spend(100)
    book.hold(50).commit(60)
    (crossing,) = book.service.list_limit_crossings(ACME)
    assert (crossing.limit_id, crossing.threshold, crossing.spent) == (limit.id, 1, 11)
    assert (crossing.limit_amount, crossing.transaction_id, crossing.scope_id) == (10, charge.id, "")
    assert (crossing.window_start, crossing.created_at) == (datetime(2026, 1, 15, tzinfo=UTC), NOON)
    assert book.check(200).allowed
    assert book.counter(limit) == (171, 0)
    book.spend(1, user_id="ann")
    assert [one.limit_id for one in book.service.list_limit_crossings(ACME)] == [zero.id, limit.id]
    assert [event.crossing for event in told if event.name == "limit_crossed"] == list(
        reversed(book.service.list_limit_crossings(ACME))
    )


# -- thresholds -----------------------------------------------------------------------------------------------------


def crossed(book: Book) -> list[tuple[Decimal, Decimal]]:
    """(threshold, spent) of every crossing, oldest first."""
    return [(one.threshold, one.spent) for one in reversed(book.service.list_limit_crossings(ACME))]


def test_a_threshold_is_recorded_once_in_a_window(book: Book) -> None:
    """At exactly its part, by charges and settlements; a refund does not arm it again, a new window does."""
    book.limit(100, warn_at=("0.8", 0.5))
    hold = book.hold(30)
    book.spend(Decimal("49.999999"))
    assert crossed(book) == []
    charge = book.spend(MICRO)
    assert crossed(book) == [(Decimal("0.5"), 50)]
    book.service.refund_credits(charge)
    book.spend(MICRO)
    hold.commit()
    assert crossed(book) == [(Decimal("0.5"), 50), (Decimal("0.8"), 80)]
    book.spend(20)
    assert len(crossed(book)) == 2
    book.clock.set(MIDNIGHT)
    book.spend(90)
    assert sorted(crossed(book)[2:]) == [(Decimal("0.5"), 90), (Decimal("0.8"), 90)]
    assert {one.window_start for one in book.service.list_limit_crossings(ACME)} == {MIDNIGHT - DAY, MIDNIGHT}


def test_a_raised_limit_arms_what_the_raise_put_above_the_counter(book: Book) -> None:
    """90 of 100 crossed both; at 120 only 0.8 is armed again; at 110, lowered, nothing is."""
    book.limit(100, warn_at=(0.5, 0.8))
    book.spend(90)
    assert sorted(crossed(book)) == [(Decimal("0.5"), 90), (Decimal("0.8"), 90)]
    book.limit(120, warn_at=(0.5, 0.8))
    book.spend(5)
    assert len(crossed(book)) == 2
    book.spend(1)
    assert crossed(book)[2:] == [(Decimal("0.8"), 96)]
    book.limit(110, warn_at=(0.5, 0.8))
    book.spend(4)
    assert len(crossed(book)) == 3
    book.limit(1_000, warn_at=(0.5, 0.8))
    book.spend(400)
    assert crossed(book)[3:] == [(Decimal("0.5"), 500)]


def test_thresholds_of_each_user_and_of_counts_are_their_own(book: Book) -> None:
    """One user's crossing says nothing of another's; the replaced default does not warn."""
    each = book.limit(10, scope="user", warn_at=(1,))
    count = book.limit(2, scope="user", unit="count", warn_at=(0.5,))
    book.limit(50, scope="user", scope_id="vip")
    for user in ("ann", "bob", "vip"):
        book.spend(10, user_id=user)
    found = {(one.limit_id, one.scope_id): one.spent for one in book.service.list_limit_crossings(ACME)}
    assert found == {
        (each.id, "ann"): 10,
        (each.id, "bob"): 10,
        (count.id, "ann"): 1,
        (count.id, "bob"): 1,
        (count.id, "vip"): 1,
    }


def test_a_crossing_is_told_once_after_it_is_booked(book: Book, told: list[CreditEvent]) -> None:
    """By charges, settlements by id, handles and blocks; the hook can read what it is told, replays tell nothing."""
    seen: list[bool] = []

    @add_hook
    def look(event: CreditEvent) -> None:
        if event.crossing is not None:
            seen.append(event.crossing in book.service.list_limit_crossings(ACME))

    try:
        book.limit(100, warn_at=(0.1, 0.2, 0.3, 0.4))
        for _ in range(2):
            book.spend(10, idempotency_key="k")
        book.service.commit_reservation(book.hold(10))
        book.hold(10).commit()
        with book.hold(10):
            pass
    finally:
        remove_hook(look)
    assert [one.threshold for one in crossings(told)] == [Decimal(f"0.{n}") for n in (1, 2, 3, 4)]
    assert crossings(told) == list(reversed(book.service.list_limit_crossings(ACME)))
    assert seen == [True] * 4


async def test_a_crossing_is_told_to_coroutines_too(book: Book, told: list[CreditEvent]) -> None:
    """The coroutine face's charge and handle."""
    book.limit(20, warn_at=(0.5, 1))
    async with CreditService(book.url, clock=book.clock) as service:
        await service.consume_credits(organization_id=ACME, amount=10)
        async with service.reserve_credits(organization_id=ACME, amount=10):
            pass
    assert [one.threshold for one in crossings(told)] == [Decimal("0.5"), 1]


def test_a_crossing_in_the_users_session_is_told_at_its_commit(
    book: Book, told: list[CreditEvent], app_engine: Engine
) -> None:
    """Not before, not at all after a rollback, and then the next charge crosses it."""
    book.limit(10, warn_at=(0.5,))
    with Session(app_engine) as session:
        book.spend(6, session=session)
        session.rollback()
        assert crossings(told) == []
        assert book.service.list_limit_crossings(ACME) == ()
        book.spend(7, session=session)
        assert crossings(told) == []
        session.commit()
    assert [one.spent for one in crossings(told)] == [7]
    assert refused(lambda: book.spend(4)).context["left"] == 3


def test_a_crossing_is_told_beside_a_savepoint_that_was_rolled_back(
    book: Book, told: list[CreditEvent], app_engine: Engine
) -> None:
    """What the savepoint took back is not told, what the session booked is."""
    book.limit(10, warn_at=(0.5,))
    with Session(app_engine) as session:
        savepoint = session.begin_nested()
        book.spend(6, session=session)
        savepoint.rollback()
        book.spend(7, session=session)
        session.commit()
    assert [one.spent for one in crossings(told)] == [7]


def test_the_cap_of_a_run_warns_at_half_and_at_four_fifths(book: Book, told: list[CreditEvent]) -> None:
    """Once each, also when its first charge crosses both; a cap of 0 has nothing to cross."""
    with use_context(RequestContext(ACME, run_id="slow", max_credits=10)):
        for _ in range(10):
            book.spend(1)
    with use_context(RequestContext(ACME, run_id="quick", max_credits=10)):
        book.spend(9)
    with use_context(RequestContext(ACME, run_id="none", max_credits=0)), pytest.raises(CreditLimitExceededError):
        book.spend(1)
    seen = [(one.scope_id, str(one.threshold), one.spent) for one in crossings(told)]
    assert seen == [("slow", "0.5", 5), ("slow", "0.8", 8), ("quick", "0.5", 9), ("quick", "0.8", 9)]
