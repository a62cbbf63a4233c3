"""Usage by day: what the rows of a posting add to which line."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from agentcredits.model import Allocation, GrantCategory, Pricing, TransactionType
from agentcredits.rules.rollups import Totals, bucket, day_of, totals
from agentcredits.rules.state import Row

EVENING = datetime(2026, 1, 31, 23, 30, tzinfo=UTC)
ANN = ("Writer", "draft", "sales", "p1", "ann")


def row(amount: int, *, at: datetime = EVENING, kind: TransactionType = TransactionType.DEBIT, **columns: Any) -> Row:
    fields = dict(zip(("agent_type", "action", "department_id", "project_id", "user_id"), ANN, strict=True)) | columns
    return Row("t", 1, kind, amount, 0, at, **fields)


def test_charges_and_refunds_of_one_place_are_one_line() -> None:
    """Charges, what they took, what they could not take, and what was given back are added up."""
    refund = TransactionType.REFUND
    rows = [
        row(50, kind=TransactionType.PURCHASE),
        row(-5, uncollected_micros=2),
        row(-9, pricing=Pricing.OBSERVED),
        row(-7, uncollected_micros=4),
        row(3, kind=refund),
        row(1, kind=refund),
    ]
    assert totals(rows) == {("2026-01-31", ANN): Totals(2, 12, 4, 6)}


def test_moments_of_one_day_are_added_and_days_and_places_are_not() -> None:
    """The line is that of the UTC day and of all five columns; what is not said is ''."""
    earlier, tomorrow = EVENING - timedelta(hours=1), EVENING + timedelta(hours=1)
    rows = [
        row(-1, uncollected_micros=10),
        row(-2, at=earlier, uncollected_micros=20),
        row(4, at=earlier, kind=TransactionType.REFUND),
        row(8, kind=TransactionType.REFUND),
        row(-16, at=tomorrow),
        row(-32, user_id=None),
    ]
    assert totals(rows) == {
        ("2026-01-31", ANN): Totals(2, 3, 12, 30),
        ("2026-02-01", ANN): Totals(1, 16, 0, 0),
        ("2026-01-31", (*ANN[:4], "")): Totals(1, 32, 0, 0),
    }


def parts(*amounts: tuple[int, GrantCategory | None]) -> dict[str, Any]:
    return {"allocations": tuple(Allocation("g", micros, category) for micros, category in amounts)}


def test_usage_is_told_by_where_its_credits_came_from() -> None:
    """Charged less refunded, by the category of the grants; what the overdraft line lent has none."""
    paid, plan, adjustment = GrantCategory.PAID, GrantCategory.PLAN, GrantCategory.ADJUSTMENT
    refund = TransactionType.REFUND
    rows = [
        row(-9, **parts((5, paid), (3, plan), (1, None))),
        row(-4, **parts((2, paid), (2, paid))),
        row(-1, at=EVENING - timedelta(hours=1), **parts((1, plan))),
        row(6, kind=refund, **parts((1, None), (2, plan), (3, adjustment))),
        row(1, kind=refund, at=EVENING - timedelta(hours=2), **parts((1, plan))),
    ]
    assert totals(rows) == {("2026-01-31", ANN): Totals(3, 14, 7, 0, {paid: 9, plan: 1, adjustment: -3})}


def test_totals_are_added_and_taken_off_again() -> None:
    """Column by column, and category by category."""
    paid, plan, adjustment = GrantCategory.PAID, GrantCategory.PLAN, GrantCategory.ADJUSTMENT
    one, other = Totals(1, 20, 3, 4, {paid: 5, plan: 6}), Totals(10, 200, 30, 40, {plan: 60, adjustment: 70})
    both = one.plus(other)
    assert both == Totals(11, 220, 33, 44, {paid: 5, plan: 66, adjustment: 70})
    assert both.plus(other.negated()) == Totals(1, 20, 3, 4, {paid: 5, plan: 6, adjustment: 0})
    assert one.negated() == Totals(-1, -20, -3, -4, {paid: -5, plan: -6})


def test_a_day_is_that_of_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the moment was read, and wherever the machine stands."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert day_of(EVENING.astimezone(timezone(timedelta(hours=9)))) == "2026-01-31"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_bucket_is_the_same_for_ever_and_tells_values_apart() -> None:
    """It stands in databases, and the second migration works it out in SQL."""
    assert bucket(ANN) == "59c38c307a034eb7fa837f5733913fee"
    assert bucket(("a", "bc")) != bucket(("ab", "c"))
