"""Letting go of what is only kept for a time: idempotency keys, details, records of denials and crossings.

Rows are looked for page by page without a lock, and removed in short transactions of one organization each, in which
the conditions are tested again. Stopped at any moment, what is left is found by the next run. Amounts, allocations and
settlements are never touched: what is charged or given back once stays so without its key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Connection, Table, and_, case, delete, exists, func, or_, select, tuple_, update

from agentcredits.store.limit_tables import credit_denials, credit_limit_crossings
from agentcredits.store.tables import (
    HOLDING,
    credit_accounts,
    credit_reservations,
    credit_transaction_details,
    credit_transactions,
    idempotency_keys,
)

Kind = Literal["keys", "details", "reservations", "denials", "crossings"]
Key = tuple[str, ...]

#: Keys that may go. Those of grants (recurring ones too) and adjustments stay: they are few, and one may stand for a
#: payment.
PURGED_KINDS: Final = ("consume", "refund", "reserve")

_holds, _details, _keys = credit_reservations, credit_transaction_details, idempotency_keys
_FREE_TEXT: Final = ("request_id", "reason", "dimensions", "metadata")


@dataclass(frozen=True, slots=True)
class Found:
    """A page of rows: those that may go, and where to go on (None: at the end)."""

    old: list[Key]
    after: Key | None


def lock_account(connection: Connection, organization_id: str) -> bool:
    """Keep the account's postings waiting until the transaction ends; False: there is no account.

    As postings lock it: a row of another table that refers to the account does not wait.
    """
    statement = select(credit_accounts.c.organization_id).where(credit_accounts.c.organization_id == organization_id)
    return connection.execute(statement.with_for_update(key_share=True)).first() is not None


def find(
    connection: Connection, kind: Kind, organization_id: str, before: datetime, after: Key | None, count: int
) -> Found:
    """The next rows by their primary key, and which of them are older than ``before`` and may go."""
    table, names, may_go = _PLACES[kind]
    columns = [table.c[name] for name in names]
    statement = select(*columns, case((may_go(before), 1), else_=0).label("may_go"))
    if kind == "details":
        statement = statement.join(
            credit_transactions,
            and_(
                credit_transactions.c.organization_id == table.c.organization_id,
                credit_transactions.c.id == table.c.transaction_id,
            ),
        )
    statement = statement.where(table.c.organization_id == organization_id)
    if after is not None:
        statement = statement.where(tuple_(*columns) > tuple_(*after) if len(names) > 1 else columns[0] > after[0])
    rows = connection.execute(statement.order_by(*columns).limit(count)).all()
    return Found(
        [tuple(row[: len(names)]) for row in rows if row.may_go],
        tuple(rows[-1][: len(names)]) if len(rows) == count else None,
    )


def remove(connection: Connection, kind: Kind, organization_id: str, before: datetime, old: Sequence[Key]) -> int:
    """Remove these rows, or what of them is only kept for a time; how many."""
    table, names, may_go = _PLACES[kind]
    mine = and_(table.c.organization_id == organization_id, _among(table, names, old))
    if kind == "details":
        # The user stays: totals and limits count by it. Erasing a user is another thing (``erasure``).
        cleared = connection.execute(update(table).where(mine).values(dict.fromkeys(_FREE_TEXT))).rowcount
        connection.execute(delete(table).where(mine, table.c.user_id.is_(None)))
        return cleared
    if kind == "reservations":
        changed = connection.execute(update(table).where(mine, may_go(before)).values(dict.fromkeys(_FREE_TEXT)))
        return changed.rowcount
    # A posting that is about to give the key a new hold must not find it gone when it writes.
    lock_account(connection, organization_id)
    return connection.execute(delete(table).where(mine, may_go(before))).rowcount


def _among(table: Table, names: Sequence[str], places: Sequence[Key]) -> ColumnElement[bool]:
    """Rows with one of the values of these places in each column, found by the primary key.

    Among pairs SQLite would compare every row of the account. A row may have the values of two places; it goes only if
    it may go itself.
    """
    columns = zip(*places, strict=True)
    return and_(*(table.c[name].in_(sorted(set(column))) for name, column in zip(names, columns, strict=True)))


def _key_may_go(before: datetime) -> ColumnElement[bool]:
    is_open = exists().where(
        _holds.c.organization_id == _keys.c.organization_id,
        _holds.c.id == _keys.c.result_id,
        _holds.c.state.in_(HOLDING),
    )
    # The key of a living attempt stays, however old: its second try must find the hold.
    return and_(_keys.c.kind.in_(PURGED_KINDS), _keys.c.created_at < before, or_(_keys.c.kind != "reserve", ~is_open))


def _has_free_text(table: Table) -> ColumnElement[bool]:
    return or_(*(table.c[name].is_not(None) for name in _FREE_TEXT))


def _detail_may_go(before: datetime) -> ColumnElement[bool]:
    return and_(credit_transactions.c.created_at < before, _has_free_text(_details))


def _reservation_may_go(before: datetime) -> ColumnElement[bool]:
    ended = func.coalesce(_holds.c.settled_at, _holds.c.expires_at) < before
    return and_(_holds.c.state.not_in(HOLDING), ended, _has_free_text(_holds))


def _by_age(table: Table) -> Any:
    return lambda before: table.c.created_at < before


_PLACES: Final[dict[Kind, tuple[Table, tuple[str, ...], Any]]] = {
    "keys": (idempotency_keys, ("kind", "key"), _key_may_go),
    "details": (credit_transaction_details, ("transaction_id",), _detail_may_go),
    "reservations": (credit_reservations, ("id",), _reservation_may_go),
    "denials": (credit_denials, ("id",), _by_age(credit_denials)),
    "crossings": (credit_limit_crossings, ("id",), _by_age(credit_limit_crossings)),
}
