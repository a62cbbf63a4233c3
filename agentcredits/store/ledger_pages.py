"""The ledger read in pages, each with its own short statement: memory and transactions stay small at any size.

Ledger rows are append-only and gapless, so pages that are read one after the other add up to one consistent whole
although charges go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Column, ColumnElement, Connection, Row, Select, and_, bindparam, select

from agentcredits.rules.recount import Entry, Part
from agentcredits.store import tenancy
from agentcredits.store.tables import (
    credit_grants,
    credit_transaction_allocations,
    credit_transaction_details,
    credit_transactions,
)

#: Rows in a page: a few megabytes.
PAGE_ROWS: Final = 5_000

_rows, _parts, _details = credit_transactions, credit_transaction_allocations, credit_transaction_details
_page: Final = (
    select(_rows)
    .where(_rows.c.organization_id == bindparam("organization"), _rows.c.seq > bindparam("after"))
    .order_by(_rows.c.seq)
    .limit(bindparam("size"))
    .subquery("page")
)
_charge: Final = _rows.alias("charge")
#: In the order of Entry's fields; _PARTS: in that of Part's.
_ENTRIES: Final = (
    select(
        *(_page.c[name] for name in ("seq", "type", "amount_micros", "balance_after_micros", "uncollected_micros")),
        *(_page.c[name] for name in ("created_at", "pricing", "agent_type", "action", "department_id", "project_id")),
        _details.c.user_id,
        _page.c.run_id,
        _charge.c.seq.label("charge_seq"),
        _charge.c.created_at.label("charge_at"),
        _charge.c.pricing.label("charge_pricing"),
    )
    .select_from(
        _page.outerjoin(
            _details,
            and_(_details.c.organization_id == _page.c.organization_id, _details.c.transaction_id == _page.c.id),
        ).outerjoin(
            _charge, and_(_charge.c.organization_id == _page.c.organization_id, _charge.c.id == _page.c.refund_of)
        )
    )
    .order_by(_page.c.seq)
)
_PARTS: Final = (
    select(_rows.c.seq, _parts.c.position, _parts.c.grant_id, _parts.c.amount_micros, credit_grants.c.category)
    .select_from(
        _rows.join(
            _parts, and_(_parts.c.organization_id == _rows.c.organization_id, _parts.c.transaction_id == _rows.c.id)
        ).outerjoin(
            credit_grants,
            and_(credit_grants.c.organization_id == _parts.c.organization_id, credit_grants.c.id == _parts.c.grant_id),
        )
    )
    .where(
        _rows.c.organization_id == bindparam("organization"),
        _rows.c.seq > bindparam("after"),
        _rows.c.seq <= bindparam("up_to"),
    )
)


def entries_after(connection: Connection, organization_id: str, seq: int) -> list[Entry]:
    """The next page of ledger rows after ``seq``; empty at the end."""
    place = {"organization": organization_id, "after": seq, "size": PAGE_ROWS}
    rows: Sequence[Any] = connection.execute(_ENTRIES, place).all()
    return [Entry(*row) for row in rows]


def parts_between(connection: Connection, organization_id: str, after: int, up_to: int) -> dict[int, list[Part]]:
    """Every allocation of the rows after ``after`` and up to ``up_to``, by the row's seq."""
    found: dict[int, list[Part]] = {}
    for row in connection.execute(_PARTS, {"organization": organization_id, "after": after, "up_to": up_to}):
        part = Part(*row)
        found.setdefault(part.seq, []).append(part)
    return found


class Paged:
    """A statement on a table, read in pages by a column of its primary key; each page ends its transaction.

    Built once for all accounts: that takes longer than to read a small one.

    Args:
        statement: What to read of each row.
        column: By which the pages are told apart, and their rows are in order.
        mine: Which rows; its parameters are given to :meth:`rows`.
    """

    def __init__(self, statement: Select[Any], column: Column[Any], mine: ColumnElement[bool]) -> None:
        self._column = column
        self._statement = statement.where(mine).order_by(column)
        self._ends = select(column).where(mine).order_by(column).limit(1).offset(bindparam("others"))
        self._built: dict[tuple[bool, bool], tuple[Select[Any], Select[Any]]] = {}

    def rows(self, connection: Connection, **parameters: object) -> Iterator[Any]:
        """The rows that the statement finds, page by page."""
        after: Any = None
        while True:
            ends, _ = self._between(after is not None, False)
            given = parameters | {"after": after}
            up_to = connection.execute(ends, given | {"others": PAGE_ROWS - 1}).scalar()
            _, page = self._between(after is not None, up_to is not None)
            yield from connection.execute(page, given | {"up_to": up_to})
            tenancy.renew(connection)
            if up_to is None:
                return
            after = up_to

    def _between(self, from_there: bool, to_there: bool) -> tuple[Select[Any], Select[Any]]:
        """What finds a page's end, and its rows; the first begins anywhere, and the last one ends anywhere."""
        built = self._built.get((from_there, to_there))
        if built is None:
            column, ends, page = self._column, self._ends, self._statement
            if from_there:
                later = column > bindparam("after", type_=column.type)
                ends, page = ends.where(later), page.where(later)
            if to_there:
                page = page.where(column <= bindparam("up_to", type_=column.type))
            built = self._built[from_there, to_there] = ends, page
        return built


def stream(connection: Connection, statement: Select[Any], **parameters: object) -> Iterator[Row[Any]]:
    """The rows of a statement, fetched a few at a time (PostgreSQL: through a server-side cursor)."""
    yield from connection.execute(statement, parameters, execution_options={"yield_per": 1_000})
