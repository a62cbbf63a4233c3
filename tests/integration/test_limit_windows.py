"""Limits in their windows: full at the end of one, free in the next; what was read and changed meanwhile."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from agentcredits import (
    ReservationState,
    SyncReservation,
    Transaction,
)
from tests.integration.limit_book import (
    ACME,
    HOUR,
    INSTANT,
    MICRO,
    MIDNIGHT,
    Book,
    refused,
)


def utc(words: str) -> datetime:
    return datetime.fromisoformat(words).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("window", "start", "end"),
    [
        ("day Europe/Berlin", "2026-03-28 23:00", "2026-03-29 22:00"),
        ("day Europe/Berlin", "2026-10-24 22:00", "2026-10-25 23:00"),
        ("day America/New_York", "2026-03-08 05:00", "2026-03-09 04:00"),
        ("day America/New_York", "2026-11-01 04:00", "2026-11-02 05:00"),
        ("hour Europe/Berlin", "2026-10-25 01:00", "2026-10-25 02:00"),
        ("week", "2026-01-19 00:00", "2026-01-26 00:00"),
        ("month Europe/Berlin", "2026-02-28 23:00", "2026-03-31 22:00"),
        ("month America/New_York", "2026-03-01 05:00", "2026-04-01 04:00"),
        ("anniversary 2026-01-31T09:00:00+00:00", "2026-02-28 09:00", "2026-03-31 09:00"),
        ("anniversary 2025-08-31T12:00:00+02:00 Europe/Berlin", "2026-02-28 11:00", "2026-03-31 10:00"),
        ("fixed 36h 2027-01-01T00:00:00+00:00", "2026-04-30 00:00", "2026-05-01 12:00"),
        ("fixed 1s 2026-01-01T00:00:00+00:00", "2026-02-01 00:00:07", "2026-02-01 00:00:08"),
    ],
)
def test_holds_and_charges_across_the_ends_of_a_window(book: Book, window: str, start: str, end: str) -> None:
    """Full a moment before its start; then the hold counts on, spends in the new window, and is gone at its end."""
    begin, over = utc(start), utc(end)
    limit = book.limit(100, window)
    book.clock.set(begin - INSTANT)
    hold = book.hold(30)
    book.spend(70)
    error = refused(lambda: book.spend(MICRO))
    assert error.context["resets_at"] == begin
    book.clock.set(begin)
    assert book.counter(limit) == (0, 30)
    assert book.leaves(70)
    book.spend(60)
    book.clock.set(over - INSTANT)
    hold.commit(25)
    assert book.counter(limit) == (85, 0)
    assert book.leaves(15)
    (listed,) = book.service.list_limits(ACME)
    assert [(line.window_start, line.resets_at) for line in listed.usage] == [(begin, over)]
    book.spend(15)
    error = refused(lambda: book.hold(MICRO))
    assert (error.context["window_start"], error.context["resets_at"]) == (begin, over)
    assert error.fixes[0] == {"action": "wait", "until": over}
    book.clock.set(over)
    assert book.leaves(100)


def test_a_lifetime_never_comes_back(book: Book) -> None:
    """Ten years later the same is left; its refusal names no reset, and only a raise helps."""
    limit = book.limit(20, "lifetime")
    charge = book.spend(15)
    book.clock.advance(timedelta(days=3_653))
    error = refused(lambda: book.spend(6))
    assert (error.context["left"], error.context["resets_at"], error.retryable) == (5, None, False)
    assert [fix["action"] for fix in error.fixes] == ["raise_limit"]
    assert error.fixes[0]["amount"] == 21
    book.service.refund_credits(charge)
    assert book.counter(limit) == (0, 0)


# -- what is listed -------------------------------------------------------------------------------------------------


def test_limits_are_listed_with_what_an_id_is_under(book: Book) -> None:
    """Of one user: the organization's, the default's and his own, each with its own counter; the most used first."""
    organization, each = book.limit(100), book.limit(10, scope="user")
    bob = book.limit(20, scope="user", scope_id="bob")
    for user, amount in (("ann", 3), ("bob", 9), ("cid", 5)):
        book.spend(amount, user_id=user)
    for user, lines in (("ann", {organization.id: 17, each.id: 3}), ("bob", {organization.id: 17, bob.id: 9})):
        listed = book.service.list_limits(ACME, scope_id=user)
        found = {one.id: one.usage[0].spent for one in listed}
        assert {limit_id: found[limit_id] for limit_id in lines} == lines
        assert {one.usage[0].scope_id for one in listed} == {"", user}
    (default, own) = book.service.list_limits(ACME, scope="user")
    assert (default.is_each, own.is_each, organization.is_each) == (True, False, False)
    assert [line.scope_id for line in default.usage] == ["bob", "cid", "ann"]
    assert [line.remaining for line in default.usage] == [1, 5, 7]
    unknown = book.service.list_limits(ACME, scope="user", scope_id="new")
    assert [(one.id, one.usage[0].spent, one.usage[0].remaining) for one in unknown] == [(each.id, 0, 10)]


def test_a_listed_counter_sees_what_is_due_and_the_new_window(book: Book) -> None:
    """A hold that ran out and a day that ended are not shown any more, though nothing was posted since."""
    limit = book.limit(100)
    book.spend(40)
    book.hold(20, ttl=HOUR)
    book.clock.advance(HOUR)
    assert book.counter(limit) == (40, 0)
    book.clock.set(MIDNIGHT)
    assert book.counter(limit) == (0, 0)
    (listed,) = book.service.list_limits(ACME)
    assert listed.usage[0].remaining == 100


def test_at_most_20_counters_are_listed_the_most_used_of_the_present_window_first(book: Book) -> None:
    """What was used in windows that are over does not push a present counter out."""
    limit = book.limit(100, scope="user")
    for number in range(25):
        book.spend(20, user_id=f"old-{number}")
    book.clock.set(MIDNIGHT)
    book.spend(2, user_id="ann")
    book.hold(3, user_id="bob").release()
    book.hold(1, user_id="cid")
    (listed,) = book.service.list_limits(ACME)
    assert listed.id == limit.id
    assert len(listed.usage) == 20
    assert [(line.scope_id, line.spent, line.held) for line in listed.usage[:2]] == [("ann", 2, 0), ("cid", 0, 1)]
    assert {line.spent for line in listed.usage[2:]} == {0}


# -- verify ---------------------------------------------------------------------------------------------------------


TAMPERED = {
    "spent more": ("UPDATE credit_limit_usage SET spent = spent + 1 WHERE limit_id = '{each}'", "limit"),
    "spent less": ("UPDATE credit_limit_usage SET spent = spent - 1 WHERE limit_id = '{organization}'", "limit"),
    "spent of a count": ("UPDATE credit_limit_usage SET spent = spent + 1 WHERE limit_id = '{count}'", "limit"),
    "held more": ("UPDATE credit_limit_usage SET held = held + 1 WHERE limit_id = '{each}'", "limit"),
    "held less": ("UPDATE credit_limit_usage SET held = 0 WHERE limit_id = '{organization}'", "limit"),
    "held of a count": ("UPDATE credit_limit_usage SET held = held + 1 WHERE limit_id = '{count}'", "limit"),
    "counter lost": ("DELETE FROM credit_limit_usage WHERE limit_id = '{organization}'", "limit"),
    "counter of a user lost": ("DELETE FROM credit_limit_usage WHERE limit_id = '{each}'", "limit"),
    "counter of nobody": (
        "INSERT INTO credit_limit_usage (organization_id, limit_id, scope_id, spent) VALUES ('acme', '{each}', 'x', 5)",
        "limit",
    ),
    "rollup charged": ("UPDATE usage_rollups SET charged_micros = charged_micros + 1 WHERE user_id = 'ann'", "usage"),
    "rollup refunded": ("UPDATE usage_rollups SET refunded_micros = 0 WHERE user_id = 'ann'", "usage"),
    "rollup charges": ("UPDATE usage_rollups SET charges = charges + 1 WHERE user_id = 'ann'", "usage"),
    "rollup lost": ("DELETE FROM usage_rollups WHERE user_id = 'ann'", "usage"),
    "rollup of another day": ("UPDATE usage_rollups SET day = '2026-01-14' WHERE user_id = 'ann'", "usage"),
    "rollup of another user": ("UPDATE usage_rollups SET user_id = 'eve' WHERE user_id = 'ann'", "usage"),
    "window unreadable": ("UPDATE credit_limits SET window_text = 'fortnight' WHERE id = '{each}'", "limit"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_verify_names_what_was_changed_behind_its_back(open_book: Book, what: str) -> None:
    """Counters of limits and totals of usage are recomputed from the rows."""
    book = open_book
    names = {
        "organization": book.limit(500, "month").id,
        "each": book.limit(100, scope="user").id,
        "count": book.limit(100, unit="count").id,
    }
    charge = book.spend(30, user_id="ann")
    book.service.refund_credits(charge, 10)
    book.hold(5, user_id="ann")
    book.service.grant_credits("other", 1)
    assert book.service.verify().ok
    statement, check = TAMPERED[what]
    assert book.sql(statement.format(**names)) == 1
    report = book.service.verify()
    assert {problem.check for problem in report.problems} == {check}
    assert {problem.organization_id for problem in report.problems} == {ACME}


def test_verify_is_clean_through_windows_and_states(book: Book) -> None:
    """Months of charges, holds, refunds and changed limits, looked at again and again."""
    each, organization = book.limit(50, scope="department"), book.limit(200, "month Europe/Berlin")
    book.limit(3, "hour", unit="count", scope="user")
    charges: list[Transaction] = []
    holds: list[SyncReservation] = []
    for step in range(40):
        scopes = {"department_id": f"d{step % 3}", "user_id": f"u{step % 2}"}
        if step % 4 < 2:
            charges.append(book.spend(step % 7 + 1, **scopes))
        elif step % 4 == 2:
            holds.append(book.hold(step % 5 + 1, ttl=timedelta(days=step % 9 + 1), **scopes))
        elif step % 8 == 3:
            book.service.refund_credits(charges[-2])
            holds[-1].commit(2)
        elif holds[-1].record.state is ReservationState.ACTIVE:
            holds.pop().release()
        if step == 20:
            book.service.remove_limit(each)
            book.limit(60, scope="department", include_existing=True)
        if step == 30:
            book.service.remove_limit(organization)
        book.clock.advance(timedelta(hours=19, minutes=step))
        assert step % 4 or book.service.verify().ok, step
    assert not book.service.list_transactions(ACME, type="debit", limit=1).items[0].late
