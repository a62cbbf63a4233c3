"""Counters recomputed from ledger rows: the account's terms, its grants, usage by day, and what limits count."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agentcredits.model import GrantCategory, LimitMode, LimitScope, LimitUnit
from agentcredits.rules.recount import (
    AccountRecount,
    Break,
    Entry,
    GrantSums,
    LimitRecount,
    Marks,
    Part,
    Period,
    UsageRecount,
)
from agentcredits.rules.rollups import Totals
from agentcredits.rules.state import LimitState

NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)
MIDNIGHT = datetime(2026, 1, 15, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
TICK = timedelta(microseconds=1)


def entry(seq: int, kind: str, amount: int, balance: int = 0, at: datetime = NOON, **facts: Any) -> Entry:
    columns = ("agent_type", "action", "department_id", "project_id", "user_id", "run_id")
    defaults: dict[str, Any] = {"uncollected_micros": 0, "pricing": "priced"} | dict.fromkeys(columns)
    return Entry(seq, kind, amount, balance, created_at=at, **defaults | facts)


# -- the account and its grants ------------------------------------------------------------------------------------


def test_the_terms_of_an_account_are_the_sums_of_its_rows() -> None:
    """By the kind of row; what is taken back is no grant."""
    book = AccountRecount()
    rows = [
        ("purchase", 100, 100),
        ("credit", 50, 150),
        ("adjust", 20, 170),
        ("debit", -60, 110),
        ("refund", 10, 120),
        ("expire", -7, 113),
        ("adjust", -3, 110),
        ("adjust", 0, 110),
        ("expire", -1, 109),
        ("adjust", -4, 105),
        ("debit", -5, 100),
    ]
    breaks = [book.add(entry(seq, *row)) for seq, row in enumerate(rows, 1)]
    assert breaks == [None] * len(rows)
    assert (book.granted, book.spent, book.expired, book.voided, book.balance) == (170, 55, 8, 7, 100)
    assert (book.rows, book.last_seq, book.is_gapless) == (11, 11, True)


def test_a_row_that_does_not_follow_from_the_one_before_is_told() -> None:
    """By seq, by time or by balance; the next one is compared with what this one said."""
    book = AccountRecount()
    rows = [
        (entry(1, "credit", 9, 9), None),
        (entry(3, "debit", -1, 8), Break.ORDER),
        (entry(4, "debit", -1, 7, NOON + HOUR), None),
        (entry(5, "debit", -1, 6, NOON + HOUR - TICK), Break.ORDER),
        (entry(6, "debit", -1, 9, NOON + HOUR), Break.BALANCE),
        (entry(7, "debit", -1, 8, NOON + HOUR), None),
        (entry(7, "debit", -1, 7, NOON + HOUR), Break.ORDER),
        (entry(8, "debit", -1, 7, NOON + HOUR), Break.BALANCE),
        # A wrong balance of a row that is out of order is not told apart.
        (entry(10, "debit", -1, 70, NOON + HOUR), Break.ORDER),
    ]
    assert [book.add(row) for row, _ in rows] == [wanted for _, wanted in rows]
    assert (book.balance, book.rows, book.last_seq, book.is_gapless) == (1, 9, 10, False)
    assert AccountRecount().add(entry(1, "credit", 9, 8)) is Break.BALANCE
    assert AccountRecount().add(entry(2, "credit", 9, 9)) is Break.ORDER


def test_grants_and_debt_are_the_sums_of_allocations() -> None:
    """Of a transfer the first allocation pays the second: between a grant and the debt, in either direction."""
    book = AccountRecount()
    told: list[tuple[str, int, list[tuple[str | None, int]]]] = [
        ("purchase", 100, [("a", 100)]),
        ("adjust", 50, [("b", 50)]),
        ("debit", -70, [("a", 40), ("b", 10), (None, 20)]),
        ("debit", -7, [("a", 4), (None, 3)]),
        ("refund", 9, [(None, 6), ("b", 2), ("a", 1)]),
        ("adjust", 0, [("a", 11), (None, 11)]),
        ("adjust", 0, [("a", 2), (None, 2)]),
        ("adjust", 0, [(None, 5), ("a", 5)]),
        ("expire", -8, [("a", 8)]),
        ("expire", -1, [("a", 1)]),
        ("adjust", -12, [("b", 7), ("a", 5)]),
        ("adjust", -1, [("b", 1)]),
        ("credit", 3, [("a", 3)]),
    ]
    for seq, (kind, amount, parts) in enumerate(told, 1):
        row = entry(seq, kind, amount)
        for position, (grant_id, micros) in enumerate(parts):
            book.add_part(row, Part(seq, position, grant_id, micros, None if grant_id is None else "paid"))
    assert book.grants == {
        "a": GrantSums(amount=103, spent=40 + 4 - 1 + 11 + 2 - 5, expired=9, voided=5, repaid=11 + 2 - 5),
        "b": GrantSums(amount=50, spent=8, voided=8),
    }
    assert book.debt == 20 + 3 - 6 - 11 - 2 + 5


# -- usage by day --------------------------------------------------------------------------------------------------

ANN = {"agent_type": "Writer", "action": "draft", "department_id": "d", "project_id": "p", "user_id": "u"}
PLACE = ("Writer", "draft", "d", "p", "u")


def part(micros: int, category: str | None, position: int = 0) -> Part:
    return Part(1, position, None if category is None else "g", micros, category)


def test_a_day_is_told_when_the_next_one_begins() -> None:
    """With its lines by what usage is grouped by; the last day is there to be read."""
    usage = UsageRecount()
    paid, plan = GrantCategory.PAID, GrantCategory.PLAN
    rows = [
        (entry(1, "debit", -9, at=MIDNIGHT, uncollected_micros=2, **ANN), [part(5, "paid"), part(4, "plan", 1)]),
        (entry(2, "debit", -3, at=NOON, uncollected_micros=1, **ANN), [part(1, "paid"), part(2, None, 1)]),
        (entry(3, "refund", 4, at=NOON, **ANN), [part(3, "paid"), part(1, None, 1)]),
        (entry(4, "refund", 2, at=NOON, **ANN), [part(2, "plan")]),
        (entry(5, "debit", 0, at=NOON, pricing="free"), []),
    ]
    assert [usage.add(row, parts) for row, parts in rows] == [None] * 5
    closed = usage.add(entry(6, "debit", -1, at=MIDNIGHT + DAY, **ANN))
    assert closed == (
        "2026-01-15",
        {PLACE: Totals(2, 12, 6, 3, {paid: 3, plan: 2}), ("",) * 5: Totals(1)},
    )
    assert (usage.day, usage.lines) == ("2026-01-16", {PLACE: Totals(1, 1)})
    closed = usage.add(entry(7, "refund", 1, at=MIDNIGHT + 9 * DAY, **ANN), [part(1, "paid")])
    assert closed == ("2026-01-16", {PLACE: Totals(1, 1)})
    assert usage.lines == {PLACE: Totals(0, 0, 1, 0, {paid: -1})}


def test_a_charge_before_its_refunds_in_one_day_and_category() -> None:
    """The first thing that happens to a category may be a refund."""
    usage = UsageRecount()
    usage.add(entry(1, "refund", 4, **ANN), [part(4, "plan")])
    usage.add(entry(2, "debit", -7, **ANN), [part(7, "plan")])
    assert usage.lines[PLACE].net_micros == {GrantCategory.PLAN: 3}


@pytest.mark.parametrize("column", list(ANN))
def test_each_column_makes_a_line_of_its_own(column: str) -> None:
    """What is not said is ''."""
    usage = UsageRecount()
    usage.add(entry(1, "debit", -1, **ANN))
    usage.add(entry(2, "debit", -2, **ANN | {column: None}))
    usage.add(entry(3, "debit", -4, **ANN | {column: "other"}))
    place = list(ANN).index(column)
    assert {key[place]: line.charged_micros for key, line in usage.lines.items()} == {
        ANN[column]: 1,
        "": 2,
        "other": 4,
    }
    assert len(usage.lines) == 3


def test_what_is_no_charge_and_no_refund_is_no_usage() -> None:
    """Nor is what mode "observe" let pass; none of it begins or ends a day."""
    usage = UsageRecount()
    for kind in ("purchase", "credit", "adjust", "expire"):
        assert usage.add(entry(1, kind, 5)) is None
    assert usage.add(entry(2, "debit", -5, pricing="observed")) is None
    assert (usage.day, usage.lines) == ("", {})
    usage.add(entry(3, "debit", -5))
    assert usage.add(entry(4, "expire", -5, at=NOON + DAY)) is None
    assert usage.add(entry(5, "debit", -5, at=NOON + DAY, pricing="observed")) is None
    assert usage.day == "2026-01-15"


# -- limits --------------------------------------------------------------------------------------------------------


def limit(
    id_: str, window: str = "day UTC", scope: LimitScope = LimitScope.ORGANIZATION, scope_id: str = "", **facts: Any
) -> LimitState:
    defaults: dict[str, Any] = {"unit": LimitUnit.CREDITS, "amount": 1, "mode": LimitMode.HARD, "created_at": NOON}
    return LimitState(id=id_, scope=scope, scope_id=scope_id, window_text=window, **defaults | facts)


def recount(*limits: LimitState, windows: dict[tuple[str, str], Period] | None = None) -> LimitRecount:
    return LimitRecount({one.id: one for one in limits}, windows or {}, NOON)


def charge(seq: int, amount: int, at: datetime = NOON, **facts: Any) -> Entry:
    return entry(seq, "debit", -amount, at=at, **facts)


def refund(seq: int, amount: int, of: Entry, at: datetime = NOON, **facts: Any) -> Entry:
    told = {"charge_seq": of.seq, "charge_at": of.created_at, "charge_pricing": of.pricing}
    return entry(seq, "refund", amount, at=at, **told | facts)


def test_a_limit_counts_the_charges_of_its_window_less_their_refunds() -> None:
    """From its first moment, up to but without its last; a refund of an earlier window's charge is none of it."""
    book = recount(limit("l"))
    early = charge(1, 100, MIDNIGHT - TICK)
    first = charge(2, 10, MIDNIGHT)
    rows = [
        early,
        first,
        charge(3, 5),
        refund(4, 4, first),
        refund(5, 50, early),
        charge(6, 2, MIDNIGHT + DAY - TICK),
        refund(7, 1, first, MIDNIGHT + DAY - TICK),
        charge(8, 1_000, MIDNIGHT + DAY),
        refund(9, 3, first, MIDNIGHT + DAY),
        entry(10, "expire", -500),
        entry(11, "purchase", 500),
    ]
    for row in rows:
        book.add(row)
    assert book.spent == {("l", ""): 12}
    assert book.starts_at == MIDNIGHT


def test_a_count_counts_charges_and_no_refund_makes_room() -> None:
    """Free ones too."""
    book = recount(limit("l", unit=LimitUnit.COUNT))
    first = charge(1, 5)
    for row in (first, charge(2, 0), refund(3, 5, first)):
        book.add(row)
    assert book.spent == {("l", ""): 2}


def test_what_counts_nothing_makes_no_counter() -> None:
    """A free charge, of a limit of credits."""
    book = recount(limit("l"))
    book.add(charge(1, 0))
    assert book.spent == {}


def test_observed_charges_count_nowhere() -> None:
    """Nor what is given back of them; what a refund itself says of its pricing is no matter."""
    book = recount(limit("l"), limit("c", unit=LimitUnit.COUNT))
    observed, priced = charge(1, 5, pricing="observed"), charge(2, 7)
    for row in (observed, refund(3, 5, observed), priced, refund(4, 3, priced, pricing="observed")):
        book.add(row)
    assert book.spent == {("l", ""): 4, ("c", ""): 1}


@pytest.mark.parametrize("missing", ["charge_seq", "charge_at"])
def test_a_refund_whose_charge_is_not_there_counts_nothing(missing: str) -> None:
    """Plain SQL may have removed it: that is told elsewhere."""
    book = recount(limit("l"))
    book.add(charge(1, 5))
    book.add(refund(2, 3, charge(1, 5), **{missing: None}))
    assert book.spent == {("l", ""): 5}


def test_a_limit_counts_from_the_row_on_at_which_it_was_set() -> None:
    """A refund counts where its charge does."""
    book = recount(limit("l", counts_from_seq=2))
    before, after = charge(2, 10), charge(3, 5)
    for row in (charge(1, 20), before, after, refund(4, 7, before), refund(5, 1, after)):
        book.add(row)
    assert book.spent == {("l", ""): 4}
    book = recount(limit("new", counts_from_seq=2), limit("old"))
    book.add(charge(1, 20))
    assert book.spent == {("old", ""): 20}
    assert set(book.limits) == {"new", "old"}


def test_every_scope_of_a_charge_counts_it() -> None:
    """The limit of its very scope, and the default for each of the kind; others not."""
    user = LimitScope.USER
    book = recount(
        limit("all"),
        limit("each", scope=user),
        limit("ann", scope=user, scope_id="ann"),
        limit("bob", scope=user, scope_id="bob"),
        limit("action", scope=LimitScope.ACTION, scope_id="Writer.draft"),
    )
    book.add(charge(1, 1, user_id="ann"))
    book.add(charge(2, 2, user_id="cid"))
    book.add(charge(3, 4, agent_type="Writer", action="draft"))
    assert book.spent == {
        ("all", ""): 7,
        ("each", "ann"): 1,
        ("each", "cid"): 2,
        ("ann", "ann"): 1,
        ("action", "Writer.draft"): 4,
    }


def test_a_stored_counter_is_recounted_in_its_own_window() -> None:
    """Another one in the window of now; rows before all of them are passed over."""
    yesterday = (MIDNIGHT - DAY, MIDNIGHT)
    book = recount(limit("l", scope=LimitScope.USER), limit("hour", "hour UTC"), windows={("l", "ann"): yesterday})
    assert book.starts_at == MIDNIGHT - DAY
    for user in ("ann", "bob"):
        book.add(charge(1, 1, MIDNIGHT - DAY - TICK, user_id=user))
        book.add(charge(2, 2, MIDNIGHT - DAY, user_id=user))
        book.add(charge(3, 4, MIDNIGHT - TICK, user_id=user))
        book.add(charge(4, 8, MIDNIGHT, user_id=user))
        book.add(charge(5, 16, NOON, user_id=user))
    assert book.spent == {("l", "ann"): 6, ("l", "bob"): 24, ("hour", ""): 32}


def test_a_lifetime_counts_all_rows() -> None:
    """Then no row can be passed over, whatever windows the others have."""
    for limits in ([limit("l", "lifetime"), limit("d")], [limit("d"), limit("l", "lifetime")]):
        book = recount(*limits)
        assert book.starts_at is None
        book.add(charge(1, 1, MIDNIGHT - 900 * DAY))
        book.add(charge(2, 2, NOON + 900 * DAY))
        book.add(charge(3, 4))
        assert book.spent == {("l", ""): 7, ("d", ""): 4}
    assert recount(limit("d"), windows={("d", ""): (None, None)}).starts_at is None


def test_a_limit_that_cannot_be_read_is_not_recounted() -> None:
    """And without any limit no row is looked at."""
    book = recount(limit("l", "fortnight", unusable="no such window"))
    book.add(charge(1, 1))
    assert (book.spent, book.starts_at) == ({}, None)


# -- where a moment is ---------------------------------------------------------------------------------------------


def test_a_mark_says_up_to_which_row_all_are_earlier_than_a_moment() -> None:
    """A row of that very moment is not earlier."""
    marks = Marks()
    assert marks.seq_before(NOON) == 0
    for hours, seq in ((0, 10), (1, 20), (1, 30), (2, 40)):
        marks.add(NOON + hours * HOUR, seq)
    moments = [NOON, NOON + TICK, NOON + HOUR, NOON + HOUR + TICK, NOON + 2 * HOUR, NOON + DAY]
    assert [marks.seq_before(moment) for moment in moments] == [0, 10, 10, 30, 30, 40]
