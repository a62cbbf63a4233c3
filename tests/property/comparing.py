"""The service's records against the reference model's; every difference is said with both sides."""

from __future__ import annotations

from typing import Any

from agentcredits.model import CreditGrant, RecurringGrant, ReservationRecord, Transaction
from tests.property.reference import Grant, Hold, Recurring, Row


def same(what: Any, actual: Any, expected: Any) -> None:
    """Fail with both sides (this module's asserts are not rewritten by pytest)."""
    if isinstance(actual, dict) and isinstance(expected, dict) and actual.keys() == expected.keys():
        different = [name for name in actual if actual[name] != expected[name]]
        actual, expected = ({name: side[name] for name in different} for side in (actual, expected))
    if actual != expected:
        raise AssertionError(f"{what}: the service says {actual!r}, the model {expected!r}")


def takes_of(takes: Any) -> list[tuple[str, int]]:
    return [(grant.id, amount) for grant, amount in takes]


def parts_of(row: Row) -> list[tuple[str | None, int]]:
    """The allocations of a charge (the line last), a refund (the line first) or a transfer (who pays comes first)."""
    line: list[tuple[str | None, int]] = [(None, row.overdraft)] if row.overdraft else []
    if row.moved and row.grant is not None:
        sides: list[tuple[str | None, int]] = [(row.grant.id, abs(row.moved)), (None, abs(row.moved))]
        return sides if row.moved > 0 else sides[::-1]
    takes: list[tuple[str | None, int]] = [*takes_of(row.takes)]
    return line + takes if row.type == "refund" else takes + line


def allocations_of(record: Transaction | ReservationRecord) -> list[tuple[str | None, int]]:
    return [(allocation.grant_id, allocation.amount_micros) for allocation in record.allocations]


def compare_row(expected: Row, actual: Transaction) -> None:
    """A ledger row equals the model's."""
    facts: dict[str, tuple[Any, Any]] = {
        "id": (actual.id, expected.id or actual.id),
        "seq": (actual.seq, expected.seq),
        "type": (actual.type.value, expected.type),
        "amount": (actual.amount_micros, expected.amount),
        "balance_after": (actual.balance_after_micros, expected.balance_after),
        "uncollected": (actual.uncollected_micros, expected.uncollected),
        "refund_of": (actual.refund_of, None if expected.refund_of is None else expected.refund_of.id),
        "late": (actual.late, expected.late),
    }
    if expected.type in ("debit", "refund") or expected.moved:
        facts["allocations"] = (allocations_of(actual), parts_of(expected))
        facts["hold"] = (actual.reservation_id, None if expected.hold is None else expected.hold.id)
    if expected.grant is not None:
        facts["grant"] = (actual.grant_id, expected.grant.id)
    compare_facts("row", facts)


def compare_grant(expected: Grant, actual: CreditGrant) -> None:
    """A grant's counters, status and times equal the model's."""
    names = ("amount", "spent", "held", "expired", "voided", "repaid", "remaining")
    facts: dict[str, tuple[Any, Any]] = {name: (actual[f"{name}_micros"], getattr(expected, name)) for name in names}
    facts |= {
        "status": (actual.status.value, expected.status),
        "category": (actual.category.value, expected.category),
        "effective_at": (actual.effective_at, expected.effective_at),
        "expires_at": (actual.expires_at, expected.expires_at),
        "created_at": (actual.created_at, expected.created_at),
        "period_start": (actual.period_start, expected.period_start),
        "only_for": (actual.only_for, tuple(f"{name}.*" if "." not in name else name for name in expected.only_for)),
        "recurring": (actual.recurring_id, None if expected.recurring is None else expected.recurring.id),
        "rolled from": (actual.rolled_from, None if expected.rolled_from is None else expected.rolled_from.id),
    }
    compare_facts("grant", facts)


def compare_recurring(expected: Recurring, actual: RecurringGrant) -> None:
    """A recurring grant's state and next time equal the model's."""
    compare_facts(
        "recurring grant",
        {
            "status": (actual.status.value, expected.status),
            "next_at": (actual.next_at, expected.next_at if expected.status == "active" else None),
            "amount": (actual.amount_micros, expected.amount),
        },
    )


def compare_hold(expected: Hold, actual: ReservationRecord) -> None:
    """A hold's state, amounts and allocations equal the model's."""
    row = expected.row
    compare_facts(
        "hold",
        {
            "state": (actual.state.value, expected.state),
            "amount": (actual.amount_micros, expected.amount),
            "requested": (actual.requested_micros, expected.requested),
            "charged": (actual.charged_micros, expected.charged),
            "uncollected": (actual.uncollected_micros, expected.uncollected),
            "late": (actual.late, expected.late),
            "forced": (actual.forced, expected.forced),
            "expires_at": (actual.expires_at, expected.expires_at),
            "transaction_id": (actual.transaction_id, None if row is None else row.id or actual.transaction_id),
            "allocations": (allocations_of(actual), takes_of(expected.takes)),
        },
    )


def compare_facts(what: str, facts: dict[str, tuple[Any, Any]]) -> None:
    """Every fact is the same on both sides."""
    sides = zip(*facts.values(), strict=True)
    actual, expected = (dict(zip(facts, side, strict=True)) for side in sides)
    same(what, actual, expected)
