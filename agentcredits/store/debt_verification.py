"""Verify an account's debt: what was charged from the overdraft line, paid back, and given back by refunds.

A transfer is a row of type ADJUST and amount 0 with two allocations: the first pays the second, and one of them is
the debt (no grant).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import Connection, FromClause, and_, case, func, select

from agentcredits.amounts import from_micros
from agentcredits.rules import burn_down
from agentcredits.store import records
from agentcredits.store.tables import credit_transaction_allocations as parts
from agentcredits.store.tables import credit_transactions as rows

MAX_EXAMPLES: Final = 20

IS_TRANSFER: Final = and_(rows.c.type == "adjust", rows.c.amount_micros == 0)

_PARTS_OF_ROWS: Final[FromClause] = parts.join(
    rows, and_(rows.c.organization_id == parts.c.organization_id, rows.c.id == parts.c.transaction_id)
)

#: What an allocation of a transfer pays: the first one pays, the second one is paid.
_PAID: Final = case((parts.c.position == 0, parts.c.amount_micros), else_=-parts.c.amount_micros)


def repaid(connection: Connection, organization_id: str) -> dict[str, int]:
    """By grant, what it paid of the debt, less what it got back."""
    found: dict[str, int] = defaultdict(int)
    for grant_id, paid in connection.execute(
        select(parts.c.grant_id, func.sum(_PAID))
        .select_from(_PARTS_OF_ROWS)
        .where(parts.c.organization_id == organization_id, parts.c.grant_id.is_not(None), IS_TRANSFER)
        .group_by(parts.c.grant_id)
    ):
        found[grant_id] = int(paid)
    return found


def check_debt(connection: Connection, account: Any, grants: list[Any]) -> Iterator[tuple[str, str]]:
    """The debt is what the allocations without a grant say, every transfer is whole, and nothing was left unpaid."""
    organization_id = account["organization_id"]
    owed = case(
        (IS_TRANSFER, _PAID),
        (rows.c.type == "debit", parts.c.amount_micros),
        else_=-parts.c.amount_micros,
    )
    recomputed = int(
        connection.execute(
            select(func.coalesce(func.sum(owed), 0))
            .select_from(_PARTS_OF_ROWS)
            .where(parts.c.organization_id == organization_id, parts.c.grant_id.is_(None))
        ).scalar_one()
    )
    debt = account["overdrawn_micros"]
    if debt != recomputed:
        yield "debt", f"the debt is {from_micros(debt):f}, its rows say {from_micros(recomputed):f}"
    yield from _check_transfers(connection, organization_id)
    usable = burn_down.usable((records.read_grant(grant) for grant in grants), account["last_posted_at"])
    if debt > 0 and usable:
        yield "debt", f"there is a debt of {from_micros(debt):f} and grant {usable[0].id} has credits left to pay it"


def _check_transfers(connection: Connection, organization_id: str) -> Iterator[tuple[str, str]]:
    for row in connection.execute(
        select(rows.c.seq)
        .select_from(
            rows.outerjoin(
                parts, and_(parts.c.organization_id == rows.c.organization_id, parts.c.transaction_id == rows.c.id)
            )
        )
        .where(rows.c.organization_id == organization_id, IS_TRANSFER)
        .group_by(rows.c.seq)
        .having(
            (func.count(parts.c.position) != 2)
            | (func.count(parts.c.grant_id) != 1)
            | (func.min(parts.c.amount_micros) != func.max(parts.c.amount_micros))
        )
        .order_by(rows.c.seq)
        .limit(MAX_EXAMPLES)
    ):
        yield "debt", f"row {row.seq} does not move one amount between a grant and the debt"
