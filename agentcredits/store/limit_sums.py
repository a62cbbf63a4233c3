"""What the ledger rows say that a limit's counters should be: sums by scope id."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, FromClause, Select, and_, case, func, literal, or_, select

from agentcredits.model import LimitScope, LimitUnit, Pricing
from agentcredits.store.tables import credit_transaction_details, credit_transactions

rows = credit_transactions
charges = credit_transactions.alias("charges")
details = credit_transaction_details

#: Charges, and refunds with the charge that they give back (``charges``; of a charge: itself), with the user.
COUNTED: FromClause = rows.join(
    charges,
    and_(
        charges.c.organization_id == rows.c.organization_id,
        charges.c.id == case((rows.c.type == "refund", rows.c.refund_of), else_=rows.c.id),
    ),
).outerjoin(
    details, and_(details.c.organization_id == charges.c.organization_id, details.c.transaction_id == charges.c.id)
)


def scope_column(scope: LimitScope) -> ColumnElement[Any]:
    """By what a limit of this scope counts; NULL where a row is not in the scope."""
    columns: dict[LimitScope, ColumnElement[Any]] = {
        LimitScope.ORGANIZATION: literal(""),
        LimitScope.DEPARTMENT: charges.c.department_id,
        LimitScope.PROJECT: charges.c.project_id,
        LimitScope.USER: details.c.user_id,
        LimitScope.AGENT_TYPE: charges.c.agent_type,
        LimitScope.ACTION: charges.c.agent_type + "." + charges.c.action,
        LimitScope.RUN: charges.c.run_id,
    }
    return columns[scope]


def units(unit: LimitUnit) -> ColumnElement[Any]:
    """What a row adds: its credits (a refund takes off), or one for each charge."""
    if unit is LimitUnit.CREDITS:
        return func.sum(-rows.c.amount_micros)
    return func.sum(case((rows.c.type == "debit", 1), else_=0))


def is_counted() -> ColumnElement[bool]:
    """Charges that were made (not merely observed), and refunds of them."""
    return and_(or_(rows.c.type == "debit", rows.c.type == "refund"), charges.c.pricing != Pricing.OBSERVED.value)


def spent_since(
    organization_id: str, scope: LimitScope, scope_id: str, unit: LimitUnit, start: datetime | None
) -> Select[tuple[str, int]]:
    """By scope id, what was charged from ``start`` on, less what of that was given back.

    Args:
        organization_id: Whose.
        scope: The limit's.
        scope_id: Only this; '' (but for the organization): each.
        unit: The limit's.
        start: When the window began; None: ever.
    """
    place = scope_column(scope)
    statement = (
        select(place.label("scope_id"), units(unit).label("spent"))
        .select_from(COUNTED)
        .where(rows.c.organization_id == organization_id, is_counted(), place.is_not(None))
    )
    if start is not None:
        statement = statement.where(rows.c.created_at >= start, charges.c.created_at >= start)
    if scope_id:
        statement = statement.where(place == scope_id)
    return statement.group_by(place)
