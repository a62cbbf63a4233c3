"""Between rows of the database, the rules' state, and the public records: recurring grants."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from agentcredits.amounts import from_micros
from agentcredits.model import GrantCategory, Lasting, RecurringGrant, RecurringStatus, Rollover
from agentcredits.rules.periods import RolloverTerms
from agentcredits.rules.state import RecurringState
from agentcredits.store.dialects import RowLike
from agentcredits.store.records import Values, exact, read_names, write_names

_PLAIN: Final = (
    "id",
    "amount_micros",
    "priority",
    "window_text",
    "starts_at",
    "next_at",
    "last_start",
    "ends_at",
    "currency",
    "source",
    "created_at",
    "cancelled_at",
)


def read_recurring(row: RowLike) -> RecurringState:
    """A recurring_grants row as state."""
    return RecurringState(
        status=RecurringStatus(row["status"]),
        category=GrantCategory(row["category"]),
        expires_after=_read_lasting(row["expires_after"]),
        rollover=None
        if row["rollover_minimum_micros"] is None
        else RolloverTerms(
            row["rollover_maximum_micros"],
            row["rollover_minimum_micros"],
            _read_lasting(row["rollover_expires_after"]),
        ),
        only_for=read_names(row["only_for"]),
        unit_cost=exact(row["unit_cost"]),
        **{name: row[name] for name in _PLAIN},
    )


def recurring_values(organization_id: str, recurring: RecurringState) -> Values:
    """A whole recurring_grants row."""
    rollover = recurring.rollover
    return {
        "organization_id": organization_id,
        "status": recurring.status.value,
        "category": recurring.category.value,
        "expires_after": _write_lasting(recurring.expires_after),
        "rollover_minimum_micros": None if rollover is None else rollover.minimum_micros,
        "rollover_maximum_micros": None if rollover is None else rollover.maximum_micros,
        "rollover_expires_after": None if rollover is None else _write_lasting(rollover.expires_after),
        "only_for": write_names(recurring.only_for),
        "unit_cost": recurring.unit_cost,
        **{name: getattr(recurring, name) for name in _PLAIN},
    }


def recurring_changes(organization_id: str, recurring: RecurringState) -> Values:
    """What an UPDATE of a recurring grant writes, with its key."""
    return {
        "organization_id": organization_id,
        "id": recurring.id,
        "status": recurring.status.value,
        "next_at": recurring.next_at,
        "last_start": recurring.last_start,
        "cancelled_at": recurring.cancelled_at,
    }


def public_recurring(organization_id: str, recurring: RecurringState, *, replayed: bool = False) -> RecurringGrant:
    """The record that callers get."""
    terms = recurring.rollover
    return RecurringGrant(
        organization_id=organization_id,
        id=recurring.id,
        status=recurring.status,
        amount_micros=recurring.amount_micros,
        category=recurring.category,
        priority=recurring.priority,
        window=recurring.window_text,
        starts_at=recurring.starts_at,
        created_at=recurring.created_at,
        next_at=recurring.next_at if recurring.is_active else None,
        ends_at=recurring.ends_at,
        expires_after=recurring.expires_after,
        rollover=None
        if terms is None
        else Rollover(
            None if terms.maximum_micros is None else from_micros(terms.maximum_micros),
            from_micros(terms.minimum_micros),
            terms.expires_after,
        ),
        only_for=recurring.only_for,
        unit_cost=recurring.unit_cost,
        currency=recurring.currency,
        source=recurring.source,
        cancelled_at=recurring.cancelled_at,
        replayed=replayed,
    )


def _read_lasting(text: str) -> Lasting:
    if text == "period":
        return "period"
    return None if text == "never" else timedelta(seconds=int(text))


def _write_lasting(lasting: Lasting) -> str:
    if isinstance(lasting, timedelta):
        return str(lasting // timedelta(seconds=1))
    return "never" if lasting is None else lasting
