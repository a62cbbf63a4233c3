"""The public records: frozen, exact, and readable as attributes and as mappings."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcredits import model
from agentcredits.amounts import from_micros
from agentcredits.model import (
    ActionCost,
    Allocation,
    Balance,
    CreditGrant,
    Decision,
    DryRunResult,
    GrantCategory,
    GrantStatus,
    Page,
    Quote,
    QuoteLine,
    ReservationRecord,
    ReservationState,
    SweepReport,
    Transaction,
    TransactionType,
    VerifyProblem,
    VerifyReport,
)
from agentcredits.model.making import maker

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def balance(**terms: int) -> Balance:
    """A balance with the given terms (micros), all others 0."""
    names = ("granted", "scheduled", "spent", "reserved", "expired", "voided")
    return Balance("acme", **{f"{name}_micros": terms.get(name, 0) for name in names}, as_of=NOW)


SAMPLES: list[Any] = [
    balance(granted=10_000_000, spent=2_500_000),
    CreditGrant("acme", "g", 10_000_000, GrantCategory.PAID, 50, NOW, NOW, GrantStatus.ACTIVE, spent_micros=4_000_000),
    Transaction("acme", "t", 1, TransactionType.DEBIT, -2_500_000, 7_500_000, NOW, uncollected_micros=1),
    ReservationRecord(
        "acme", "r", ReservationState.ACTIVE, 3_000_000, NOW, NOW, allocations=(Allocation("g", 3_000_000),)
    ),
    ActionCost("", "ContentAgent", "generate_content", Decimal("0.5"), NOW),
    Decision("acme", allowed=False, required_micros=10_000_000, available_micros=3_500_000),
    QuoteLine("VideoAgent", "generate_video", Decimal(2), 20_000_000),
]

terms = st.integers(min_value=0, max_value=10**18)


@given(terms, terms, terms, terms, terms, terms)
def test_the_balance_formula_is_closed(
    granted: int, scheduled: int, spent: int, reserved: int, expired: int, voided: int
) -> None:
    """Available = granted - scheduled - spent - reserved - expired - voided, true and signed; debt is its lack."""
    one = balance(granted=granted, scheduled=scheduled, spent=spent, reserved=reserved, expired=expired, voided=voided)
    expected = granted - scheduled - spent - reserved - expired - voided
    assert one.available_micros == expected
    assert one.available == from_micros(expected) == Decimal(expected) / 1_000_000
    assert one.debt_micros == max(0, -expected)
    assert one.available + one.scheduled + one.spent + one.reserved + one.expired + one.voided == one.granted


@pytest.mark.parametrize("record", SAMPLES, ids=lambda record: type(record).__name__)
def test_a_record_reads_as_a_mapping_too(record: Any) -> None:
    """Every key of a record gives what its attribute gives; an unknown one is a KeyError, private names included."""
    assert record.keys()
    for name in record.keys():  # noqa: SIM118  # records have keys(), but are not iterable
        assert record[name] == getattr(record, name)
    for name in ("no_such_field", "__class__", "keys", "as_dict"):
        with pytest.raises(KeyError):
            record[name]
    assert dict(record) == record.as_dict()


@pytest.mark.parametrize("record", SAMPLES, ids=lambda record: type(record).__name__)
def test_every_amount_is_there_in_micros_and_in_credits(record: Any) -> None:
    """For each ``x_micros`` there is ``x`` in exact Decimal credits (None stays None)."""
    for name in record.keys():  # noqa: SIM118  # records have keys(), but are not iterable
        if name.endswith("_micros"):
            micros = record[name]
            expected = None if micros is None else from_micros(micros)
            assert record[name.removesuffix("_micros")] == expected


@pytest.mark.parametrize("record", SAMPLES, ids=lambda record: type(record).__name__)
def test_a_record_is_frozen_and_travels(record: Any) -> None:
    """A record cannot be changed or given new attributes; it copies and pickles equal to itself."""
    for name in (dataclasses.fields(record)[0].name, "brand_new"):
        with pytest.raises((dataclasses.FrozenInstanceError, AttributeError, TypeError)):
            setattr(record, name, "other")
    assert pickle.loads(pickle.dumps(record)) == record
    assert copy.deepcopy(record) == record


def test_every_record_class_is_frozen_and_slotted() -> None:
    """The rule holds for all dataclasses of the module, those of later issues included."""
    classes = [member for member in vars(model).values() if dataclasses.is_dataclass(member)]
    assert len(classes) >= 15
    for cls in classes:
        assert cls.__dataclass_params__.frozen, cls
        assert "__slots__" in vars(cls), cls


def test_balance_mapping_gives_available_and_debt() -> None:
    """``balance["available"]`` and ``balance.available`` both work."""
    one = balance(granted=10_000_000, spent=2_500_000)
    assert one["available"] == one.available == Decimal("7.5")
    assert one["debt"] == 0
    assert balance(granted=1, spent=3)["debt_micros"] == 2


@given(amount=st.integers(1, 10**15), parts=st.tuples(*[st.integers(0, 10**14)] * 4))
def test_what_remains_of_a_grant(amount: int, parts: tuple[int, int, int, int]) -> None:
    """Remaining = amount - spent - held - expired - voided."""
    spent, held, expired, voided = parts
    grant = CreditGrant(
        "acme", "g", amount, GrantCategory.PLAN, 50, NOW, NOW, GrantStatus.ACTIVE,
        spent_micros=spent, held_micros=held, expired_micros=expired, voided_micros=voided,
    )  # fmt: skip  # one line for the identity, one for the numbers
    assert grant.remaining_micros == amount - spent - held - expired - voided
    assert grant.remaining == from_micros(grant.remaining_micros)


def test_charged_is_what_a_row_took() -> None:
    """A DEBIT of 2.5 charged 2.5; a row that gives charged nothing."""
    debit = Transaction("acme", "t", 1, TransactionType.DEBIT, -2_500_000, 0, NOW)
    refund = Transaction("acme", "u", 2, TransactionType.REFUND, 2_500_000, 0, NOW)
    assert (debit.charged, refund.charged) == (Decimal("2.5"), Decimal(0))


def test_a_decision_is_truthy_when_allowed_and_says_what_is_missing() -> None:
    """``if service.check_credits(...)`` works; the shortfall is never negative."""
    denied = Decision("acme", allowed=False, required_micros=10_000_000, available_micros=3_500_000)
    allowed = Decision("acme", allowed=True, required_micros=1, available_micros=5)
    assert not denied
    assert (denied.shortfall, denied["shortfall"]) == (Decimal("6.5"), Decimal("6.5"))
    assert allowed
    assert allowed.shortfall == 0


def test_a_quote_sums_its_lines() -> None:
    """The total is the sum of the lines, to the micro."""
    lines = tuple(QuoteLine("A", "b", Decimal(1), micros) for micros in (1, 2_000_000, 3))
    quote = Quote("acme", lines, Decision("acme", True, 2_000_004, 5_000_000))
    assert (quote.total_micros, quote.total, quote.allowed) == (2_000_004, Decimal("2.000004"), True)


def test_a_dry_run_result_is_falsy_and_reads_as_one_sentence() -> None:
    """``str()`` tells a language model what happened, without an exponent in the amount."""
    result = DryRunResult("VideoAgent", "generate_video", 10_000_000, "out of credits")
    assert not result
    assert result.as_dict()["amount"] == 10
    with pytest.raises(TypeError, match="not subscriptable"):
        result["url"]  # type: ignore[index]  # a plan must not be taken for the result that it stands for
    assert str(result) == "Dry run: generate_video was not performed (out of credits); it would cost 10 credits."


def test_pages_and_reports() -> None:
    """A page iterates over its items; a report is truthy when clean."""
    assert list(Page((1, 2), 7)) == [1, 2]
    assert len(Page(())) == 0
    assert VerifyReport(1, 5)
    assert VerifyReport(1, 5).ok
    assert not VerifyReport(1, 5, (VerifyProblem("acme", "spent", "off by 1"),))
    assert SweepReport(1, 2, 3).expired_unknown == ()


def test_a_record_that_is_made_fast_is_like_any_other() -> None:
    """Equal, frozen, copied and pickled as if its own constructor had made it; with too few values nothing is made."""
    allocation = Allocation("grant", 5, GrantCategory.PAID, Decimal("0.01"), "EUR")
    values = [getattr(allocation, entry.name) for entry in dataclasses.fields(Allocation)]
    made = maker(Allocation)(*values)
    assert type(made) is Allocation
    assert (made, hash(made), repr(made)) == (allocation, hash(allocation), repr(allocation))
    assert copy.copy(made) == pickle.loads(pickle.dumps(made)) == dataclasses.replace(made) == allocation
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.amount_micros = 6  # type: ignore[misc]  # that is the point
    with pytest.raises(TypeError, match="missing"):
        maker(Allocation)(*values[:-1])


def test_words_of_the_ledger() -> None:
    """The stored words are stable: they stand in the database."""
    assert {state.value for state in ReservationState} == {"active", "unknown", "committed", "released", "expired"}
    assert {kind.value for kind in TransactionType} == {"purchase", "credit", "debit", "refund", "expire", "adjust"}
    assert {category.value for category in GrantCategory} == {"promotional", "plan", "adjustment", "paid"}
