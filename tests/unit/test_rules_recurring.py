"""Recurring grants on plain state: made, refused, cancelled, and what no database brings about in a test."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from agentcredits.amounts import MAX_TOTAL_MICROS
from agentcredits.errors import (
    AccountClosedError,
    AccountNotFoundError,
    IdempotencyMismatchError,
    InvalidAmountError,
    InvalidInputError,
    RecurringGrantNotFoundError,
)
from agentcredits.model import AccountStatus, GrantCategory, GrantStatus, Lasting, RecurringStatus
from agentcredits.rules.due import book_due
from agentcredits.rules.operations import CancelRecurring, CreateRecurring
from agentcredits.rules.outcomes import Outcome
from agentcredits.rules.periods import RolloverTerms, end_of
from agentcredits.rules.periods import periods as periods_of
from agentcredits.rules.posting import decide
from agentcredits.rules.state import AccountState, Changes, GrantState, Ledger, RecurringState
from agentcredits.rules.windows import Window
from tests.unit.recurring_book import DAY, HOUR, NOW, TODAY, TOMORROW, account_of, made, operation, rows


def periods(ledger: Ledger) -> list[datetime | None]:
    return [grant.period_start for grant in ledger.grants.values()]


@pytest.mark.parametrize("early", [True, False], ids=["moved back", "moved on"])
def test_a_boundary_that_a_government_moves_grants_no_period_twice_and_none_never(early: bool) -> None:
    """The moment that was computed under the old rules of the zone lies before or after the period's new start."""
    ledger, one = made()
    boundary = one.next_at
    account = ledger.account
    assert account is not None
    account.next_refill_at = account.next_due_at = one.next_at = boundary - HOUR if early else boundary + HOUR
    assert book_due(ledger, boundary + 2 * HOUR)
    assert periods(ledger) == [boundary - timedelta(days=1), boundary]
    assert one.next_at == boundary + timedelta(days=1)


def test_an_account_that_can_count_no_more_is_granted_no_more() -> None:
    """What comes by time ends; what is asked for is refused, and nothing changes."""
    ledger, one = made()
    assert ledger.account is not None
    ledger.account.granted_micros = MAX_TOTAL_MICROS - 9
    assert book_due(ledger, NOW + timedelta(days=3))
    assert (one.status, len(ledger.grants)) == (RecurringStatus.ENDED, 1)
    assert ledger.account.next_refill_at is None
    facts = {"organization_id": "acme", "id": "s", "key": "l", "fingerprint": "f"}
    operation = CreateRecurring(**facts, amount_micros=10, every="day", tz="UTC")
    error = decide(ledger, operation, NOW + timedelta(days=3)).error
    assert isinstance(error, InvalidAmountError)
    assert set(ledger.recurring) == {"r"}


def test_a_bounded_booking_stops_between_two_refills_and_goes_on() -> None:
    """In the order of time; the account stays due until all of it is booked, and the whole is the same."""
    at_once, _ = made()
    assert book_due(at_once, NOW + timedelta(days=10))
    bit_by_bit, one = made()
    assert not book_due(bit_by_bit, NOW + timedelta(days=10), most_refills=4)
    assert len(bit_by_bit.grants) == 5
    assert bit_by_bit.account is not None
    assert bit_by_bit.account.next_due_at == one.next_at
    assert not book_due(bit_by_bit, NOW + timedelta(days=10), most_refills=4)
    assert book_due(bit_by_bit, NOW + timedelta(days=10), most_refills=4)
    assert list(bit_by_bit.grants.values()) == list(at_once.grants.values())
    assert bit_by_bit.account == at_once.account


# -- made ----------------------------------------------------------------------------------------------------------


def test_the_period_that_is_running_is_granted_at_once() -> None:
    """From now to its end; everything that was said of the credits stands on the grant and its row."""
    terms: dict[str, Any] = {
        "category": GrantCategory.PROMOTIONAL,
        "priority": 7,
        "only_for": ("VideoAgent.*",),
        "unit_cost": Decimal("0.01"),
        "currency": "EUR",
        "source": "contract 1",
    }
    ledger, one = made(**terms, ends_at=NOW + 9 * DAY, rollover=RolloverTerms(5, 1, None), anchor=NOW - 40 * DAY)
    assert one == RecurringState(
        id="r",
        status=RecurringStatus.ACTIVE,
        amount_micros=10,
        window_text="day Europe/Berlin",
        starts_at=NOW,
        next_at=TOMORROW,
        created_at=NOW,
        last_start=TODAY,
        ends_at=NOW + 9 * DAY,
        rollover=RolloverTerms(5, 1, None),
        **terms,
    )
    (grant,) = ledger.grants.values()
    assert grant == GrantState(
        id=grant.id,
        status=GrantStatus.ACTIVE,
        amount_micros=10,
        effective_at=NOW,
        created_at=NOW,
        expires_at=TOMORROW,
        recurring_id="r",
        period_start=TODAY,
        **terms,
    )
    assert rows(ledger) == [("credit", 10, 10, grant.id, "contract 1")]
    (part,) = ledger.changes.rows[0].allocations
    assert (part.grant_id, part.amount_micros, part.category) == (grant.id, 10, GrantCategory.PROMOTIONAL)
    account = account_of(ledger)
    assert (account.next_refill_at, account.next_due_at, account.available_micros) == (TOMORROW, TOMORROW, 10)
    changes = ledger.changes
    assert (changes.new_recurring, changes.recurring, changes.new_grants) == ({"r"}, set(), {grant.id})


def test_a_later_start_waits_for_its_anchor() -> None:
    """The first grant runs from the anchor to the end of the period that it lies in."""
    ledger, one = made(anchor=NOW + 3 * HOUR)
    assert (one.starts_at, one.next_at, one.created_at, one.last_start) == (NOW + 3 * HOUR, NOW + 3 * HOUR, NOW, None)
    assert ledger.grants == {}
    assert account_of(ledger).next_refill_at == account_of(ledger).next_due_at == NOW + 3 * HOUR
    assert book_due(ledger, NOW + 2 * DAY)
    assert [(grant.effective_at, grant.period_start) for grant in ledger.grants.values()] == [
        (NOW + 3 * HOUR, TODAY),
        (TOMORROW, TOMORROW),
        (TOMORROW + DAY, TOMORROW + DAY),
    ]


def test_a_period_that_is_booked_late_is_granted_as_of_its_start() -> None:
    """Its row says when it was booked; the ids do not depend on that."""
    late, _ = made()
    book_due(late, NOW + DAY)
    in_time, _ = made()
    book_due(in_time, TOMORROW)
    for ledger, at in ((late, NOW + DAY), (in_time, TOMORROW)):
        grant = list(ledger.grants.values())[-1]
        assert (grant.created_at, grant.effective_at, grant.expires_at) == (TOMORROW, TOMORROW, TOMORROW + DAY)
        assert [row.created_at for row in ledger.changes.rows] == [NOW, at, at]
    assert list(late.grants) == list(in_time.grants)
    assert len({*late.grants}) == 2
    assert [row[:3] for row in rows(late)] == [("credit", 10, 10), ("expire", -10, 0), ("credit", 10, 10)]


def test_a_later_booking_notes_what_it_changed() -> None:
    """For the store: the recurring grant, when it comes next."""
    ledger, _ = made()
    ledger.changes = Changes()
    book_due(ledger, TOMORROW)
    assert (ledger.changes.recurring, ledger.changes.new_recurring) == ({"r"}, set())
    assert ledger.changes.account_features
    assert account_of(ledger).next_refill_at == TOMORROW + DAY


@pytest.mark.parametrize(
    ("ends_at", "granted"),
    [(TOMORROW, 1), (TOMORROW + timedelta(microseconds=1), 2), (TOMORROW + DAY, 2), (TOMORROW + DAY + HOUR, 3)],
)
def test_no_period_begins_at_its_end_or_later(ends_at: datetime, granted: int) -> None:
    """The last period is granted whole; what comes no more is not waited for."""
    ledger, one = made(ends_at=ends_at)
    book_due(ledger, NOW + 9 * DAY)
    assert (len(ledger.grants), one.status) == (granted, RecurringStatus.ENDED)
    assert account_of(ledger).next_refill_at is None


@pytest.mark.parametrize(
    ("expires_after", "expires_at"), [("period", TOMORROW), (None, None), (36 * HOUR, NOW + 36 * HOUR)]
)
def test_a_periods_credits_last_as_long_as_was_said(expires_after: Lasting, expires_at: datetime | None) -> None:
    """To the end of the period, for ever, or for a time from when they can be used."""
    ledger, _ = made(expires_after=expires_after)
    assert [grant.expires_at for grant in ledger.grants.values()] == [expires_at]
    assert end_of(expires_after, NOW, TOMORROW) == expires_at


def test_months_are_counted_from_the_anchor_days_and_weeks_from_midnight() -> None:
    """In the zone."""
    assert periods_of("month", NOW, "Asia/Tokyo") == Window.anniversary(NOW, "Asia/Tokyo")
    assert periods_of("week", NOW, "Asia/Tokyo") == Window.calendar("week", "Asia/Tokyo")
    assert periods_of("day", NOW, "UTC") == Window.calendar("day", "UTC")
    _, one = made(every="month")
    assert one.next_at == datetime(2026, 2, 28, 9, tzinfo=UTC)
    _, one = made(every="month", anchor=datetime(2025, 12, 7, 3, tzinfo=UTC), tz="UTC")
    assert one.next_at == datetime(2026, 2, 7, 3, tzinfo=UTC)


# -- refused -------------------------------------------------------------------------------------------------------


def test_an_end_must_be_later_than_the_first_period() -> None:
    """Than now and than the anchor; the refusal says so and changes nothing."""
    ledger = Ledger("acme", AccountState("acme", NOW, NOW))
    before = copy.deepcopy(ledger)
    for changes in ({"ends_at": NOW}, {"ends_at": NOW + HOUR, "anchor": NOW + HOUR}, {"ends_at": NOW - DAY}):
        error = decide(ledger, operation(**changes), NOW).error
        assert isinstance(error, InvalidInputError)
        assert error.reason == "ends_in_the_past"
        assert error.message.startswith("ends_at must be later than anchor")
        assert dict(error.context) == {"parameter": "ends_at", "ends_at": changes["ends_at"], "now": NOW}
        assert ledger == before
    assert decide(ledger, operation(ends_at=NOW + HOUR, anchor=NOW - HOUR), NOW).error is None


def test_an_account_has_at_most_fifty() -> None:
    """Active ones; what is cancelled makes room."""
    ledger = Ledger("acme", AccountState("acme", NOW, NOW))
    for number in range(50):
        assert decide(ledger, operation(str(number)), NOW).error is None
    error = decide(ledger, operation("one more"), NOW).error
    assert isinstance(error, InvalidInputError)
    assert error.reason == "too_many_recurring_grants"
    assert error.message.startswith("organization acme has 50 recurring grants")
    decide(ledger, CancelRecurring(organization_id="acme", recurring_id="7"), NOW)
    assert decide(ledger, operation("one more"), NOW).error is None
    assert sum(one.is_active for one in ledger.recurring.values()) == 50


def test_what_an_account_can_count_can_come_again() -> None:
    """To the micro."""
    ledger = Ledger("acme", AccountState("acme", NOW, NOW, granted_micros=MAX_TOTAL_MICROS - 20))
    assert isinstance(decide(ledger, operation(amount_micros=21), NOW).error, InvalidAmountError)
    assert ledger.recurring == {}
    assert decide(ledger, operation(), NOW) == Outcome(ledger.recurring["s"])
    assert book_due(ledger, TOMORROW)
    assert (account_of(ledger).granted_micros, ledger.recurring["s"].status) == (
        MAX_TOTAL_MICROS,
        RecurringStatus.ACTIVE,
    )
    assert book_due(ledger, TOMORROW + DAY)
    assert (len(ledger.grants), ledger.recurring["s"].status) == (2, RecurringStatus.ENDED)
    ledger = Ledger("acme", AccountState("acme", NOW, NOW, granted_micros=MAX_TOTAL_MICROS - 10))
    assert decide(ledger, operation(), NOW).error is None


def test_a_closed_account_is_granted_nothing() -> None:
    """A frozen one is: credits may come while nothing is spent."""
    ledger = Ledger("acme", AccountState("acme", NOW, NOW, status=AccountStatus.CLOSED))
    assert isinstance(decide(ledger, operation(), NOW).error, AccountClosedError)
    assert ledger.recurring == {}
    account_of(ledger).status = AccountStatus.FROZEN
    assert decide(ledger, operation(), NOW).error is None


def test_a_key_answers_again() -> None:
    """The same recurring grant, replayed to another call and not to the one that made it; nothing comes twice."""
    ledger, one = made()
    before = copy.deepcopy(ledger)
    assert decide(ledger, operation("r", key="k"), NOW) == Outcome(one)
    assert decide(ledger, operation("x", key="k"), NOW + HOUR) == Outcome(one, replayed=True)
    assert isinstance(decide(ledger, operation("x", key="k", fingerprint="g"), NOW).error, IdempotencyMismatchError)
    assert ledger == before
    assert ledger.keys["recurring", "k"].created_at == NOW


# -- cancelled -----------------------------------------------------------------------------------------------------


def test_a_cancelled_one_comes_no_more() -> None:
    """What was granted stays until its end; the second time is a replay, and the account waits for the others."""
    ledger, one = made()
    assert decide(ledger, operation("other", anchor=NOW + 9 * DAY), NOW).error is None
    ledger.changes = Changes()
    cancel = CancelRecurring(organization_id="acme", recurring_id="r")
    assert decide(ledger, cancel, NOW + HOUR) == Outcome(one)
    assert (one.status, one.cancelled_at) == (RecurringStatus.CANCELLED, NOW + HOUR)
    assert ledger.changes.recurring == {"r"}
    assert account_of(ledger).next_refill_at == NOW + 9 * DAY
    assert decide(ledger, cancel, NOW + 2 * HOUR) == Outcome(one, replayed=True)
    assert one.cancelled_at == NOW + HOUR
    book_due(ledger, NOW + 5 * DAY)
    assert len(ledger.grants) == 1


def test_only_what_is_there_can_be_cancelled() -> None:
    """The refusal names it."""
    ledger, _ = made()
    error = decide(ledger, CancelRecurring(organization_id="acme", recurring_id="nowhere"), NOW).error
    assert isinstance(error, RecurringGrantNotFoundError)
    assert error.message.startswith("organization acme has no recurring grant nowhere")
    assert dict(error.context) == {"recurring_id": "nowhere"}
    ledger = Ledger("nobody")
    cancel = CancelRecurring(organization_id="nobody", recurring_id="r")
    assert isinstance(decide(ledger, cancel, NOW).error, AccountNotFoundError)
