"""Recurring grants on plain state: what the database and the service cannot bring about in a test."""

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
from agentcredits.rules.operations import CancelRecurring, Consume, CreateRecurring
from agentcredits.rules.outcomes import Outcome
from agentcredits.rules.periods import RolloverTerms, end_of
from agentcredits.rules.periods import periods as periods_of
from agentcredits.rules.posting import decide
from agentcredits.rules.state import AccountState, Changes, GrantState, Ledger, RecurringState
from agentcredits.rules.windows import Window

NOW = datetime(2026, 1, 31, 9, tzinfo=UTC)
#: Midnight in Berlin before and after it.
TODAY, TOMORROW = datetime(2026, 1, 30, 23, tzinfo=UTC), datetime(2026, 1, 31, 23, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def made(**changes: Any) -> tuple[Ledger, RecurringState]:
    """An account with one recurring grant of 10 micros, made now."""
    ledger = Ledger("acme", AccountState("acme", NOW, NOW))
    facts = {"organization_id": "acme", "id": "r", "key": "k", "fingerprint": "f"}
    arguments: dict[str, Any] = {"amount_micros": 10, "every": "day", "tz": "Europe/Berlin"} | changes
    assert decide(ledger, CreateRecurring(**facts, **arguments), NOW).error is None
    return ledger, ledger.recurring["r"]


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


@pytest.mark.parametrize(
    ("terms", "remaining", "earlier", "carried"),
    [
        (RolloverTerms(None, 0, "period"), 7, 100, 7),
        (RolloverTerms(5, 0, "period"), 7, 0, 5),
        (RolloverTerms(5, 0, "period"), 7, 3, 2),
        (RolloverTerms(5, 0, "period"), 7, 6, 0),
        (RolloverTerms(5, 7, "period"), 7, 0, 5),
        (RolloverTerms(5, 8, "period"), 7, 0, 0),
        (RolloverTerms(5, 3, "period"), 0, 0, 0),
    ],
)
def test_what_is_carried_over_is_never_more_than_there_is(
    terms: RolloverTerms, remaining: int, earlier: int, carried: int
) -> None:
    """The minimum is a threshold, the maximum is for all rollovers together."""
    assert terms.carried_micros(remaining, earlier) == carried


# -- made ----------------------------------------------------------------------------------------------------------


def operation(id_: str = "s", **changes: Any) -> CreateRecurring:
    facts: dict[str, Any] = {"organization_id": "acme", "id": id_, "key": f"key {id_}", "fingerprint": "f"}
    return CreateRecurring(**facts | {"amount_micros": 10, "every": "day", "tz": "Europe/Berlin"} | changes)


def account_of(ledger: Ledger) -> AccountState:
    assert ledger.account is not None
    return ledger.account


def rows(ledger: Ledger) -> list[tuple[str, int, int, str | None, str | None]]:
    """Of each row type, amount, balance, grant and reason."""
    return [
        (row.type.value, row.amount_micros, row.balance_after_micros, row.grant_id, row.reason)
        for row in ledger.changes.rows
    ]


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


# -- carried over --------------------------------------------------------------------------------------------------


def spend(ledger: Ledger, amount: int, at: datetime = NOW) -> None:
    book_due(ledger, at)
    name = f"charge {len(ledger.rows)}"
    charge = Consume(organization_id="acme", id=name, key=name, fingerprint="f", amount_micros=amount)
    assert decide(ledger, charge, at).error is None


def rollovers(ledger: Ledger) -> list[GrantState]:
    return [grant for grant in ledger.grants.values() if grant.rolled_from is not None]


def test_the_rest_of_a_period_is_carried_over_into_the_next() -> None:
    """It leaves the old grant and becomes one of its own, of the same kind, that ends with the next period."""
    terms: dict[str, Any] = {
        "category": GrantCategory.PROMOTIONAL,
        "priority": 7,
        "unit_cost": Decimal("0.01"),
        "currency": "EUR",
        "source": "contract 1",
    }
    ledger, _ = made(**terms, rollover=RolloverTerms(None, 0, "period"))
    (old,) = ledger.grants.values()
    spend(ledger, 4)
    ledger.changes = Changes()
    book_due(ledger, NOW + DAY)
    (rollover,) = rollovers(ledger)
    assert rollover == GrantState(
        id=rollover.id,
        status=GrantStatus.ACTIVE,
        amount_micros=6,
        effective_at=TOMORROW,
        created_at=TOMORROW,
        expires_at=TOMORROW + DAY,
        recurring_id="r",
        rolled_from=old.id,
        **terms,
    )
    assert (old.status, old.voided_micros, old.expired_micros, old.remaining_micros) == (GrantStatus.EXPIRED, 6, 0, 0)
    new = next(grant for grant in ledger.grants.values() if grant not in (old, rollover))
    assert rows(ledger) == [
        ("adjust", -6, 0, old.id, "carried over into the next period"),
        ("adjust", 6, 6, rollover.id, "carried over from the period before"),
        ("credit", 10, 16, new.id, "contract 1"),
    ]
    assert {row.created_at for row in ledger.changes.rows} == {NOW + DAY}
    assert [(part.grant_id, part.amount_micros) for row in ledger.changes.rows for part in row.allocations] == [
        (old.id, 6),
        (rollover.id, 6),
        (new.id, 10),
    ]
    account = account_of(ledger)
    assert (account.granted_micros, account.voided_micros, account.available_micros) == (26, 6, 16)
    assert (ledger.changes.grants, ledger.changes.new_grants) == ({old.id}, {rollover.id, new.id})
    book_due(ledger, NOW + 2 * DAY)
    assert rollover.expired_micros == 6
    assert [grant.amount_micros for grant in rollovers(ledger)] == [6, 10]


def test_what_was_taken_back_before_is_not_carried_over() -> None:
    """It stays taken back beside what is."""
    ledger, _ = made(rollover=RolloverTerms(None, 0, "period"))
    (old,) = ledger.grants.values()
    book_due(ledger, NOW)
    old.voided_micros = account_of(ledger).voided_micros = 3
    book_due(ledger, TOMORROW)
    assert [grant.amount_micros for grant in rollovers(ledger)] == [7]
    assert (old.voided_micros, account_of(ledger).voided_micros, account_of(ledger).available_micros) == (10, 10, 17)


def test_the_grants_of_a_period_have_the_same_ids_for_ever() -> None:
    """Two machines, or two versions of the program, that book the same period make the same records."""
    ledger, _ = made(rollover=RolloverTerms(None, 0, "period"))
    book_due(ledger, TOMORROW)
    assert list(ledger.grants) == [
        "07abe3e7-2d81-5e04-8d0d-9d82c42ddde9",
        "507d2f58-f563-54dc-9b55-5147be1076d0",
        "012eb0d0-1319-5d21-9604-d2ded5a69937",
    ]


def test_a_rollover_stays_restricted_to_its_actions() -> None:
    """As the grant that it comes from."""
    ledger, _ = made(rollover=RolloverTerms(None, 0, "period"), only_for=("VideoAgent.*",))
    book_due(ledger, TOMORROW)
    assert [grant.only_for for grant in rollovers(ledger)] == [("VideoAgent.*",)]


@pytest.mark.parametrize(
    ("lasts", "expires_at"), [("period", TOMORROW + DAY), (None, None), (36 * HOUR, TOMORROW + 36 * HOUR)]
)
def test_a_rollover_lasts_as_long_as_was_said(lasts: Lasting, expires_at: datetime | None) -> None:
    """To the end of the next period, for ever, or for a time from its start."""
    ledger, _ = made(rollover=RolloverTerms(None, 0, lasts))
    book_due(ledger, TOMORROW)
    assert [grant.expires_at for grant in rollovers(ledger)] == [expires_at]


def test_earlier_rollovers_count_against_the_maximum_while_they_last() -> None:
    """What is left of them and what is held of them, as long as they do not end at this very moment."""
    ledger, _ = made(rollover=RolloverTerms(15, 0, None))
    book_due(ledger, TOMORROW)
    book_due(ledger, TOMORROW + DAY)
    assert [grant.amount_micros for grant in rollovers(ledger)] == [10, 5]
    first, second = rollovers(ledger)
    first.held_micros, second.held_micros = 3, 1
    first.spent_micros = 4
    account_of(ledger).spent_micros += 4
    account_of(ledger).reserved_micros += 4
    book_due(ledger, TOMORROW + 2 * DAY)
    assert [grant.amount_micros for grant in rollovers(ledger)] == [10, 5, 4]
    ledger, _ = made(rollover=RolloverTerms(15, 0, "period"))
    book_due(ledger, TOMORROW + 2 * DAY)
    assert [grant.amount_micros for grant in rollovers(ledger)] == [10, 10, 10]
    ledger, _ = made(rollover=RolloverTerms(15, 0, 36 * HOUR))
    book_due(ledger, TOMORROW + 2 * DAY)
    assert [grant.amount_micros for grant in rollovers(ledger)] == [10, 5, 10]


def test_rollovers_of_others_do_not_count_nor_do_those_that_were_taken_back() -> None:
    """Only those of the same recurring grant that can still be used."""
    ledger, _ = made(rollover=RolloverTerms(15, 0, None))
    assert decide(ledger, operation("other", rollover=RolloverTerms(12, 0, None)), NOW).error is None
    book_due(ledger, TOMORROW)
    assert [grant.amount_micros for grant in rollovers(ledger)] == [10, 10]
    mine = next(grant for grant in rollovers(ledger) if grant.recurring_id == "r")
    mine.status = GrantStatus.VOIDED
    book_due(ledger, TOMORROW + DAY)
    amounts = {(grant.recurring_id, grant.effective_at): grant.amount_micros for grant in rollovers(ledger)}
    assert (amounts["r", TOMORROW + DAY], amounts["other", TOMORROW + DAY]) == (10, 2)


@pytest.mark.parametrize(
    ("changes", "carried"),
    [
        ({}, []),
        ({"rollover": RolloverTerms(0, 0, None)}, []),
        ({"rollover": RolloverTerms(1, 0, None)}, [1]),
        ({"rollover": RolloverTerms(None, 11, None)}, []),
        ({"rollover": RolloverTerms(None, 0, None), "ends_at": TOMORROW}, []),
        ({"rollover": RolloverTerms(None, 0, None), "expires_after": None}, []),
        ({"rollover": RolloverTerms(None, 0, None), "expires_after": HOUR}, []),
    ],
    ids=["no terms", "nothing", "one", "too little", "the last period", "lasts for ever", "ended before"],
)
def test_only_what_the_terms_allow_is_carried_over(changes: dict[str, Any], carried: list[int]) -> None:
    """And only at the end of a period that another one follows."""
    ledger, _ = made(**changes)
    book_due(ledger, TOMORROW)
    assert [grant.amount_micros for grant in rollovers(ledger)] == carried
    assert account_of(ledger).voided_micros == sum(carried)


def test_nothing_is_carried_over_after_a_cancellation() -> None:
    """It is breakage, as what is left of a grant that nobody made to come again."""
    ledger, one = made(rollover=RolloverTerms(None, 0, None))
    decide(ledger, CancelRecurring(organization_id="acme", recurring_id="r"), NOW)
    one.next_at = TOMORROW
    book_due(ledger, TOMORROW)
    assert (rollovers(ledger), account_of(ledger).expired_micros) == ([], 10)


def test_an_account_carries_over_no_more_than_it_can_count() -> None:
    """To the micro."""
    for room, carried in ((3, [3]), (1, [1]), (0, [])):
        ledger, _ = made(rollover=RolloverTerms(None, 0, None))
        account_of(ledger).granted_micros = MAX_TOTAL_MICROS - room
        book_due(ledger, TOMORROW)
        assert [grant.amount_micros for grant in rollovers(ledger)] == carried
