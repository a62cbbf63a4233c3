"""Recorded usage, page by page, for simulations: nothing is written, and no page keeps more than its rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, and_, func, select

from agentcredits.clock import Clock
from agentcredits.rules.simulation import Recorded
from agentcredits.store import loading, queries, records, tenancy
from agentcredits.store.tables import credit_reservations, credit_transactions

_rows = credit_transactions

_REPLAYED = loading.TRANSACTIONS.add_columns(credit_reservations.c.created_at.label("held_at")).outerjoin(
    credit_reservations,
    and_(
        credit_reservations.c.organization_id == _rows.c.organization_id,
        credit_reservations.c.id == _rows.c.reservation_id,
    ),
)


@dataclass(frozen=True, slots=True)
class Span:
    """Rows of one organization: those with ``first < seq <= last``."""

    organization_id: str
    first: int
    last: int


def moment(connection: Connection, clock: Clock | None) -> datetime:
    """The time now."""
    return queries.now_of(connection, clock)


def accounts_after(connection: Connection, organization_id: str, count: int) -> list[str]:
    """The next organizations that have an account, in the order of their ids."""
    table = tenancy.all_accounts(connection)
    statement = select(table.c.organization_id).where(table.c.organization_id > organization_id)
    return list(connection.execute(statement.order_by(table.c.organization_id).limit(count)).scalars())


def span(connection: Connection, organization_id: str, since: datetime | None, until: datetime | None) -> Span | None:
    """The rows of a period; None: the organization has no account.

    Found by bisection: ``seq`` has no gaps, and the times of an account never run backwards.
    """
    account = loading.load_account(connection, organization_id)
    if account is None:
        return None
    last = account.last_seq
    first = 0 if since is None else _rows_before(connection, organization_id, since, last)
    return Span(
        organization_id, first, last if until is None else _rows_before(connection, organization_id, until, last)
    )


def _rows_before(connection: Connection, organization_id: str, at: datetime, last_seq: int) -> int:
    low, high = 0, last_seq
    while low < high:
        middle = (low + high + 1) // 2
        statement = select(_rows.c.created_at).where(_rows.c.organization_id == organization_id, _rows.c.seq == middle)
        if connection.execute(statement).scalar_one() < at:
            low = middle
        else:
            high = middle - 1
    return low


def page(connection: Connection, place: Span, after: int, count: int) -> list[Recorded]:
    """The next charges and refunds of a span, in their order."""
    mine = _rows.c.organization_id == place.organization_id
    found = (
        connection.execute(
            _REPLAYED.where(mine, _rows.c.seq > after, _rows.c.seq <= place.last, _rows.c.type.in_(["debit", "refund"]))
            .order_by(_rows.c.seq)
            .limit(count)
        )
        .mappings()
        .all()
    )
    charges = [row["id"] for row in found if row["type"] == "debit"]
    refunds = (
        {}
        if not charges
        else {
            str(row.refund_of): int(row.amount)
            for row in connection.execute(
                select(_rows.c.refund_of, func.sum(_rows.c.amount_micros).label("amount"))
                .where(mine, _rows.c.refund_of.in_(charges), _rows.c.seq <= place.last)
                .group_by(_rows.c.refund_of)
            )
        }
    )
    return [
        Recorded(records.read_row(row, ()), row["held_at"] or row["created_at"], refunds.get(row["id"], 0))
        for row in found
    ]
