"""What time alone brings about: booked in the order of time, once, exactly at its moment."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any

import pytest

from agentcredits.model import (
    Allocation,
    GrantCategory,
    GrantStatus,
    LimitMode,
    LimitScope,
    LimitUnit,
    RecurringStatus,
    ReservationState,
)
from agentcredits.rules.due import book_due, is_due, is_refill_due
from agentcredits.rules.periods import RolloverTerms
from agentcredits.rules.state import (
    AccountState,
    Changes,
    GrantState,
    HoldState,
    Ledger,
    LimitState,
    RecurringState,
    RunState,
    UsageState,
)
from agentcredits.testing import START as NOW

DAY = timedelta(days=1)
TICK = timedelta(microseconds=1)


def ledger_of(*records: GrantState | HoldState) -> Ledger:
    """A ledger whose counters say what the records say, with everything due soon enough."""
    account = AccountState("acme", NOW - 9 * DAY, NOW - 9 * DAY, next_due_at=NOW - 9 * DAY)
    ledger = Ledger("acme", account)
    for record in records:
        if isinstance(record, GrantState):
            ledger.grants[record.id] = record
            account.granted_micros += record.amount_micros
            account.spent_micros += record.spent_micros
            if record.status is GrantStatus.SCHEDULED:
                account.scheduled_micros += record.amount_micros
        else:
            ledger.holds[record.id] = record
            account.reserved_micros += record.amount_micros
            for part in record.allocations:
                ledger.grants[str(part.grant_id)].held_micros += part.amount_micros
    return ledger


def grant(name: str, amount: int = 10, **changes: Any) -> GrantState:
    arguments: dict[str, Any] = {"status": GrantStatus.ACTIVE, "effective_at": NOW - 9 * DAY, "priority": 50} | changes
    return GrantState(
        id=name,
        amount_micros=amount,
        category=GrantCategory.PAID,
        created_at=NOW - 9 * DAY,
        **arguments,
    )


def hold(name: str, expires_at: datetime, *parts: tuple[str, int], **changes: Any) -> HoldState:
    arguments: dict[str, Any] = {"state": ReservationState.ACTIVE} | changes
    return HoldState(
        id=name,
        amount_micros=sum(amount for _, amount in parts),
        allocations=tuple(Allocation(place, amount) for place, amount in parts),
        created_at=NOW - 9 * DAY,
        expires_at=expires_at,
        idempotency_key=name,
        **arguments,
    )


def counters(ledger: Ledger) -> dict[str, int]:
    account = ledger.account
    assert account is not None
    names = ("granted", "scheduled", "spent", "reserved", "expired", "voided")
    return {name: value for name in names if (value := getattr(account, f"{name}_micros"))}


def rows(ledger: Ledger) -> list[tuple[str, int, int, int]]:
    return [(row.type.value, row.amount_micros, row.balance_after_micros, row.seq) for row in ledger.changes.rows]


# -- the moment ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "due"), [(-1, False), (0, True), (1, True)])
def test_something_is_due_from_its_moment_on(offset: int, due: bool) -> None:
    """The counters are exact before next_due_at, and not from it on."""
    account = AccountState("acme", NOW, NOW, next_due_at=NOW)
    assert is_due(account, NOW + offset * TICK) is due
    assert not is_due(AccountState("acme", NOW, NOW), NOW)


@pytest.mark.parametrize(("offset", "due"), [(-1, False), (0, True), (1, True)])
def test_a_recurring_grant_is_due_from_its_moment_on(offset: int, due: bool) -> None:
    """Then all of them have to be loaded."""
    account = AccountState("acme", NOW, NOW, next_refill_at=NOW)
    assert is_refill_due(account, NOW + offset * TICK) is due
    assert not is_refill_due(AccountState("acme", NOW, NOW), NOW)


def test_before_anything_is_due_nothing_is_touched() -> None:
    """Not even looked at: the fast path."""
    ledger = ledger_of(grant("g", expires_at=NOW))
    assert ledger.account is not None
    ledger.account.next_due_at = NOW + TICK
    assert book_due(ledger, NOW)
    assert not ledger.changes.account
    assert rows(ledger) == []
    assert book_due(Ledger("nobody"), NOW)


@pytest.mark.parametrize(("offset", "ended"), [(-1, False), (0, True), (1, True)])
def test_a_grant_ends_exactly_at_its_end(offset: int, ended: bool) -> None:
    """What is unused becomes breakage: one EXPIRE row."""
    ledger = ledger_of(grant("g", 10, spent_micros=3, expires_at=NOW))
    book_due(ledger, NOW + offset * TICK)
    assert ledger.grants["g"].status is (GrantStatus.EXPIRED if ended else GrantStatus.ACTIVE)
    assert rows(ledger) == ([("expire", -7, 0, 1)] if ended else [])
    assert counters(ledger) == {"granted": 10, "spent": 3} | ({"expired": 7} if ended else {})


@pytest.mark.parametrize(("offset", "begun"), [(-1, False), (0, True)])
def test_a_scheduled_grant_begins_exactly_at_its_start(offset: int, begun: bool) -> None:
    """It stops being scheduled and writes no row: its row was written when it was granted."""
    ledger = ledger_of(grant("g", 10, status=GrantStatus.SCHEDULED, effective_at=NOW))
    book_due(ledger, NOW + offset * TICK)
    assert counters(ledger) == ({"granted": 10} if begun else {"granted": 10, "scheduled": 10})
    assert rows(ledger) == []


@pytest.mark.parametrize("state", [ReservationState.ACTIVE, ReservationState.UNKNOWN])
@pytest.mark.parametrize(("offset", "over"), [(-1, False), (0, True)])
def test_an_open_hold_ends_exactly_at_its_end(state: ReservationState, offset: int, over: bool) -> None:
    """Its credits are back in their grants; one that awaited a verdict says that none came."""
    ledger = ledger_of(grant("a", 10), grant("b", 10), hold("h", NOW, ("a", 10), ("b", 2), state=state))
    book_due(ledger, NOW + offset * TICK)
    ended = ledger.holds["h"]
    assert ended.state is (ReservationState.EXPIRED if over else state)
    assert counters(ledger) == {"granted": 20} | ({} if over else {"reserved": 12})
    assert [entry.held_micros for entry in ledger.grants.values()] == ([0, 0] if over else [10, 2])
    if over:
        unknown = state is ReservationState.UNKNOWN
        assert ended.reason == ("no verdict from the provider" if unknown else "time-to-live ended")
        assert ledger.changes.holds == {"h"}
        assert rows(ledger) == []


@pytest.mark.parametrize("state", [ReservationState.COMMITTED, ReservationState.RELEASED, ReservationState.EXPIRED])
def test_a_settled_hold_is_left_alone(state: ReservationState) -> None:
    """Its time-to-live means nothing any more."""
    settled = hold("h", NOW - DAY, state=state)
    ledger = ledger_of(grant("g"), settled)
    book_due(ledger, NOW)
    assert ledger.holds["h"].state is state
    assert ledger.changes.holds == set()


def test_a_hold_that_runs_out_leaves_its_run_and_its_limits() -> None:
    """As of its end, whenever that is booked; one that awaited a verdict is told."""
    for state in (ReservationState.ACTIVE, ReservationState.UNKNOWN):
        ended = hold("h", NOW - DAY, ("g", 6), state=state, run_id="r", limits=("run", "l"))
        ledger = ledger_of(grant("g", 10), ended)
        run = RunState("r", "r", NOW - 9 * DAY, NOW - 8 * DAY, 3600, cap_micros=20, held_micros=8)
        ledger.runs["r"] = run
        ledger.add_limit(
            LimitState(
                "l", LimitScope.ORGANIZATION, "", LimitUnit.CREDITS, "lifetime", 50, LimitMode.HARD, NOW - 9 * DAY
            )
        )
        ledger.usage["l", ""] = UsageState("l", "", held=7)
        book_due(ledger, NOW)
        assert (run.held_micros, run.expires_at, ledger.usage["l", ""].held) == (2, NOW - DAY + timedelta(hours=1), 1)
        assert (ended.state, ended.settled_at) == (ReservationState.EXPIRED, NOW - DAY)
        assert ledger.changes.unanswered == ([ended] if state is ReservationState.UNKNOWN else [])


# -- the order -----------------------------------------------------------------------------------------------------


def test_at_one_moment_holds_end_before_grants() -> None:
    """What the hold gives back ends with its grant, in one row."""
    ledger = ledger_of(grant("g", 10, expires_at=NOW), hold("h", NOW, ("g", 4)))
    book_due(ledger, NOW)
    assert rows(ledger) == [("expire", -10, 0, 1)]
    assert counters(ledger) == {"granted": 10, "expired": 10}


def test_a_hold_that_outlives_its_grant_gives_back_breakage() -> None:
    """Two rows: the grant's end takes what was free, the hold's end what it had kept."""
    ledger = ledger_of(grant("g", 10, expires_at=NOW - DAY), hold("h", NOW, ("g", 4)))
    book_due(ledger, NOW - TICK)
    assert counters(ledger) == {"granted": 10, "reserved": 4, "expired": 6}
    book_due(ledger, NOW)
    assert rows(ledger) == [("expire", -6, 4, 1), ("expire", -4, 0, 2)]
    assert [row.created_at for row in ledger.changes.rows] == [NOW - TICK, NOW]
    assert counters(ledger) == {"granted": 10, "expired": 10}


def test_a_grant_may_begin_and_end_between_two_looks() -> None:
    """Both are booked, the start first."""
    ledger = ledger_of(grant("g", 10, status=GrantStatus.SCHEDULED, effective_at=NOW - 2 * DAY, expires_at=NOW - DAY))
    book_due(ledger, NOW)
    assert ledger.grants["g"].status is GrantStatus.EXPIRED
    assert counters(ledger) == {"granted": 10, "expired": 10}


def test_at_one_moment_a_hold_gives_back_before_a_grant_starts() -> None:
    """So it is the older grant that pays the debt."""
    ledger = ledger_of(
        grant("old", 5, priority=9),
        grant("new", 5, status=GrantStatus.SCHEDULED, effective_at=NOW),
        hold("h", NOW, ("old", 5)),
    )
    account = ledger.account
    assert account is not None
    account.overdrawn_micros, account.spent_micros = 5, 5
    book_due(ledger, NOW)
    assert [one.repaid_micros for one in ledger.grants.values()] == [5, 0]


def test_at_one_moment_a_grant_starts_before_another_ends() -> None:
    """And what starts pays the debt at once."""
    ledger = ledger_of(
        grant("ends", 5, expires_at=NOW),
        grant("starts", 7, status=GrantStatus.SCHEDULED, effective_at=NOW),
    )
    account = ledger.account
    assert account is not None
    account.overdrawn_micros, account.spent_micros = 4, 4
    book_due(ledger, NOW)
    assert [(row.type.value, row.grant_id) for row in ledger.changes.rows] == [("adjust", "starts"), ("expire", "ends")]


def test_debt_is_paid_at_the_moment_at_which_credits_became_usable() -> None:
    """Also by a grant that began and ended before anybody looked."""
    ledger = ledger_of(
        grant("short", 10, status=GrantStatus.SCHEDULED, effective_at=NOW - 3 * DAY, expires_at=NOW - 2 * DAY)
    )
    account = ledger.account
    assert account is not None
    account.overdrawn_micros, account.spent_micros = 4, 4
    book_due(ledger, NOW)
    assert rows(ledger) == [("adjust", 0, 6, 1), ("expire", -6, 0, 2)]
    assert account.overdrawn_micros == 0
    assert {row.created_at for row in ledger.changes.rows} == {NOW}


def recurring(name: str, **changes: Any) -> RecurringState:
    """10 micros each UTC day, next at NOW (a midnight)."""
    facts: dict[str, Any] = {"category": GrantCategory.PLAN, "window_text": "day UTC", "next_at": NOW} | changes
    times = {"starts_at": NOW - DAY, "created_at": NOW - DAY, "last_start": NOW - DAY}
    return RecurringState(
        id=name, **{"status": RecurringStatus.ACTIVE, "amount_micros": 10, "priority": 50} | times | facts
    )


def test_at_one_moment_a_period_ends_before_it_comes_again() -> None:
    """So that its rest is carried over; what was carried over ends, in the same look, before the next."""
    ledger = ledger_of(grant("p", 10, recurring_id="r", expires_at=NOW))
    ledger.recurring["r"] = recurring("r", rollover=RolloverTerms(None, 0, "period"))
    book_due(ledger, NOW + DAY)
    assert [(row.type.value, row.amount_micros) for row in ledger.changes.rows] == [
        ("adjust", -10),
        ("adjust", 10),
        ("credit", 10),
        ("adjust", -10),
        ("adjust", 10),
        ("expire", -10),
        ("credit", 10),
    ]
    assert counters(ledger) == {"granted": 50, "voided": 20, "expired": 10}


def test_an_ended_recurring_grant_comes_no_more() -> None:
    """Loaded or not; what is not due yet waits, and the account says for what."""
    ledger = ledger_of()
    for name, changes in (
        ("due", {}),
        ("cancelled", {"status": RecurringStatus.CANCELLED}),
        ("ended", {"status": RecurringStatus.ENDED}),
        ("later", {"next_at": NOW + timedelta(hours=2)}),
    ):
        ledger.recurring[name] = recurring(name, **changes)
    assert book_due(ledger, NOW) is True
    assert [one.recurring_id for one in ledger.grants.values()] == ["due"]
    account = ledger.account
    assert account is not None
    assert account.next_refill_at == account.next_due_at == NOW + timedelta(hours=2)
    assert ledger.changes.recurring == {"due"}


def test_a_refill_that_somebody_else_waits_for_is_not_forgotten() -> None:
    """Of recurring grants that are not loaded the account alone knows when the next one comes."""
    ledger = ledger_of(grant("g", 10, expires_at=NOW))
    assert ledger.account is not None
    ledger.account.next_refill_at = NOW + DAY
    book_due(ledger, NOW)
    assert (ledger.account.next_due_at, ledger.account.next_refill_at) == (NOW + DAY, NOW + DAY)


def test_so_many_refills_at_most_are_booked() -> None:
    """0 books what comes before the first of them; what is left stays due."""
    for most, granted, whole in ((0, 0, False), (1, 1, False), (3, 3, True), (None, 3, True)):
        ledger = ledger_of(grant("g", 10, expires_at=NOW), grant("later", 10, expires_at=NOW + 3 * DAY))
        ledger.recurring["r"] = recurring("r", expires_after=None)
        assert ledger.account is not None
        ledger.account.next_refill_at = NOW
        assert book_due(ledger, NOW + 2 * DAY, most_refills=most) is whole
        assert sum(one.recurring_id == "r" for one in ledger.grants.values()) == granted
        assert ledger.grants["g"].status is GrantStatus.EXPIRED
        assert ledger.account.next_due_at == NOW + granted * DAY
        assert ledger.account.next_refill_at == NOW + granted * DAY


def everything() -> list[GrantState | HoldState]:
    return [
        grant("a", 10, expires_at=NOW - 3 * DAY),
        grant("b", 20, expires_at=NOW - DAY),
        grant("c", 40),
        grant("d", 80, status=GrantStatus.SCHEDULED, effective_at=NOW - 2 * DAY),
        hold("h1", NOW - 4 * DAY, ("a", 3), ("b", 1)),
        hold("h2", NOW - 2 * DAY, ("a", 2), ("c", 5)),
        hold("h3", NOW - TICK, ("b", 7), state=ReservationState.UNKNOWN),
        hold("h4", NOW + DAY, ("c", 1)),
    ]


def test_many_looks_book_what_one_look_books() -> None:
    """Lazy means late, not different: the rows and counters are the same however often somebody looked."""
    once = ledger_of(*everything())
    book_due(once, NOW)
    often = ledger_of(*everything())
    for days in (-5, -4, -3.5, -3, -2, -1, -0.5, 0):
        book_due(often, NOW + days * DAY)
    assert rows(often) == rows(once)
    assert counters(often) == counters(once) == {"granted": 150, "reserved": 1, "expired": 30}
    book_due(once, NOW)
    assert len(rows(once)) == len(rows(often))


def test_the_order_of_loading_does_not_matter() -> None:
    """Sorted by time, kind and id."""
    reference = ledger_of(*everything())
    book_due(reference, NOW)
    for seed in range(20):
        ledger = ledger_of(*everything())
        for records in (ledger.grants, ledger.holds):
            names = list(records)
            random.Random(seed).shuffle(names)
            moved = {name: records[name] for name in names}
            records.clear()
            records.update(moved)  # type: ignore[arg-type]  # the same kind of record goes back
        book_due(ledger, NOW)
        assert rows(ledger) == rows(reference)


# -- afterwards ----------------------------------------------------------------------------------------------------


def test_the_next_moment_is_the_earliest_that_is_left() -> None:
    """Of open holds (loaded or not), scheduled starts and ends of grants that have something left."""
    ledger = ledger_of(
        grant("used up", 10, spent_micros=10, expires_at=NOW + TICK),
        grant("ends", 10, expires_at=NOW + 5 * DAY),
        grant("starts", 10, status=GrantStatus.SCHEDULED, effective_at=NOW + 4 * DAY),
        grant("plain", 10),
        hold("open", NOW + 3 * DAY, ("plain", 1)),
    )
    assert ledger.account is not None
    ledger.later_due_at = NOW + 2 * DAY
    seen = []
    for moment in (NOW, NOW + 2 * DAY, NOW + 3 * DAY, NOW + 4 * DAY, NOW + 5 * DAY):
        ledger.account.next_due_at = moment
        book_due(ledger, moment)
        ledger.later_due_at = None
        seen.append(ledger.account.next_due_at)
    assert seen == [NOW + 2 * DAY, NOW + 3 * DAY, NOW + 4 * DAY, NOW + 5 * DAY, None]


def test_rows_say_when_they_were_booked() -> None:
    """An account's history never runs backwards, so that a row is not dated back to the moment that was missed."""
    ledger = ledger_of(grant("g", 10, expires_at=NOW - 3 * DAY))
    book_due(ledger, NOW)
    assert [row.created_at for row in ledger.changes.rows] == [NOW]
    assert ledger.account is not None
    assert ledger.account.last_posted_at == NOW


def test_what_is_left_alone_is_not_written() -> None:
    """Neither a grant nor a hold that is not due; one that is used up ends unseen."""
    ledger = ledger_of(
        grant("ends", 10, expires_at=NOW),
        grant("used up", 10, spent_micros=10, expires_at=NOW - DAY),
        grant("voided", 10, voided_micros=4, status=GrantStatus.VOIDED, expires_at=NOW - DAY),
        grant("plain", 10),
        grant("starts", 10, status=GrantStatus.SCHEDULED, effective_at=NOW - DAY),
        hold("over", NOW, ("plain", 2)),
        hold("open", NOW + DAY, ("voided", 6)),
    )
    ledger.changes = Changes()
    book_due(ledger, NOW)
    assert ledger.changes.grants == {"ends", "plain", "starts"}
    assert ledger.changes.holds == {"over"}
    assert ledger.changes.account
    assert ledger.grants["used up"].status is GrantStatus.ACTIVE
    assert ledger.grants["voided"].status is GrantStatus.VOIDED
