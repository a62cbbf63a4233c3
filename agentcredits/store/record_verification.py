"""Checks of single records, page by page: each statement sees one moment, and so does each record."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

from sqlalchemy import BindParameter, Connection, Select, and_, bindparam, func, literal_column, or_, select

from agentcredits.store.findings import Change, Finding
from agentcredits.store.ledger_pages import Paged
from agentcredits.store.recurring_tables import recurring_grants
from agentcredits.store.tables import HOLDING, credit_grants, credit_reservations, credit_transactions, idempotency_keys


def check_refunds(connection: Connection, organization_id: str, after: int, up_to: int) -> Iterator[Finding]:
    """Charges that were refunded between two rows of the ledger, and more than they were."""
    place = {"organization_id": organization_id, "after": after, "up_to": up_to}
    for row in connection.execute(_refunded_too_much(), place):
        yield Finding("refunds", f"the refunds of transaction {row.refund_of} are larger than its charge")


def check_settlements(connection: Connection, organization_id: str) -> Iterator[Finding]:
    """Holds that do not agree with the row that settled them, or with themselves."""
    for id_, stored, wrong, found, expected in _settlements().rows(connection, organization_id=organization_id):
        if found > 1:
            yield Finding("settlement", f"reservation {id_} was settled {found} times")
        elif stored != expected:
            key = {"organization_id": organization_id, "id": id_}
            change = Change(credit_reservations, key, "charged_micros", stored, int(expected))
            message = f"reservation {id_} and its ledger row do not agree on what was charged"
            yield Finding("settlement", message, (change,) if found else ())
        if wrong:
            yield Finding("hold", f"the state of reservation {id_} and its settled_at do not agree")


#: What a key of each kind stands for.
_KEYED: Final = {
    "consume": credit_transactions,
    "refund": credit_transactions,
    "adjust": credit_transactions,
    "grant": credit_grants,
    "reserve": credit_reservations,
    "recurring": recurring_grants,
}


def check_keys(connection: Connection, organization_id: str) -> Iterator[Finding]:
    """Idempotency keys whose record is not there."""
    for kind in _KEYED:
        for row in _keys_of_nothing(kind).rows(connection, organization_id=organization_id, kind=kind):
            yield Finding("keys", f"the {kind} key {row.key!r} stands for a record that does not exist")


# -- what is asked -----------------------------------------------------------------------------------------------

_OWNER: Final[BindParameter[str]] = bindparam("organization_id")


@cache
def _refunded_too_much() -> Select[Any]:
    table = credit_transactions
    charge, refund = table.alias("charge"), table.alias("refund")
    named = (
        select(table.c.refund_of)
        .where(
            table.c.organization_id == _OWNER,
            table.c.seq > bindparam("after"),
            table.c.seq <= bindparam("up_to"),
            table.c.refund_of.is_not(None),
        )
        .distinct()
        .subquery()
    )
    return (
        select(named.c.refund_of)
        .select_from(
            named.join(
                refund, and_(refund.c.organization_id == _OWNER, refund.c.refund_of == named.c.refund_of)
            ).outerjoin(charge, and_(charge.c.organization_id == _OWNER, charge.c.id == named.c.refund_of))
        )
        .group_by(named.c.refund_of, charge.c.id, charge.c.amount_micros)
        .having(or_(charge.c.id.is_(None), func.sum(refund.c.amount_micros) > -charge.c.amount_micros))
        .order_by(named.c.refund_of)
    )


@cache
def _settlements() -> Paged:
    """Holds whose state, settlement or amount is wrong."""
    holds, rows = credit_reservations, credit_transactions
    # Spelled out: a parameter would keep the partial index on settlements from being used.
    is_settlement = and_(
        rows.c.organization_id == holds.c.organization_id,
        rows.c.reservation_id == holds.c.id,
        rows.c.reservation_id.is_not(None),
        rows.c.type == literal_column("'debit'"),
    )
    times = func.count(rows.c.seq)
    charged = func.coalesce(func.sum(-rows.c.amount_micros), 0)
    is_open = holds.c.state.in_(HOLDING)
    wrong_state = or_(and_(is_open, holds.c.settled_at.is_not(None)), and_(~is_open, holds.c.settled_at.is_(None)))
    statement = (
        select(holds.c.id, holds.c.charged_micros, wrong_state.label("wrong"), times, charged.label("expected"))
        .select_from(holds.outerjoin(rows, is_settlement))
        .group_by(holds.c.organization_id, holds.c.id)
        .having(or_(times > 1, charged != holds.c.charged_micros, wrong_state))
    )
    return Paged(statement, holds.c.id, holds.c.organization_id == _OWNER)


@cache
def _keys_of_nothing(kind: str) -> Paged:
    """Keys of one kind that stand for no record."""
    keys, table = idempotency_keys, _KEYED[kind]
    is_record = and_(table.c.organization_id == keys.c.organization_id, table.c.id == keys.c.result_id)
    statement = select(keys.c.key).select_from(keys.outerjoin(table, is_record)).where(table.c.id.is_(None))
    return Paged(statement, keys.c.key, and_(keys.c.organization_id == _OWNER, keys.c.kind == bindparam("kind")))
