"""SQLite: one writer at a time, and statements on sqlite3's own cursor, where SQLAlchemy's part would cost the most."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain
from typing import Any, Final, cast

from sqlalchemy import BindParameter, Boolean, Connection, Select, Table, and_, bindparam, exists, select, text
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite as sqlite3_dialect
from sqlalchemy.exc import DBAPIError

from agentcredits.store.columns import ExactNumeric, UtcDateTime
from agentcredits.store.dialects import (
    ACCOUNT,
    IMPATIENT,
    LIMIT_COUNTERS,
    NOTHING,
    OPEN_GRANTS,
    Ask,
    Opened,
    RowLike,
    StoreDialect,
    Write,
    on_conflict_add,
)
from agentcredits.store.limit_tables import credit_limit_usage, credit_limits
from agentcredits.store.tables import credit_accounts, credit_reservations, credit_runs, idempotency_keys

#: Rows of one INSERT at most: with all their columns not more parameters than any SQLite takes.
MOST_ROWS: Final = 32


class SQLiteDialect(StoreDialect):
    """SQLite: BEGIN IMMEDIATE for every write."""

    name = "sqlite"
    mixes_accounts = True

    def begin_write(self, connection: Connection, timeout_seconds: float) -> None:
        """BEGIN IMMEDIATE, tried again at short random intervals.

        SQLite's own waiting sleeps longer and longer, so that a process which writes without a pause starves all
        others; a short look finds the gap between two of its transactions.
        """
        raw: Any = connection.connection.dbapi_connection
        if raw.in_transaction:
            # An engine of the user's may begin (deferred) by itself; nothing has happened in it yet.
            raw.rollback()
        impatient = connection.info.get(IMPATIENT)
        if impatient is not None:
            # Our own: what has the write lock of a file with a write-ahead log waits for nothing any more.
            if not impatient:
                raw.execute("PRAGMA busy_timeout = 0")
                connection.info[IMPATIENT] = True
            _begin_immediate(connection, raw, timeout_seconds)
            return
        (own_waiting_ms,) = raw.execute("PRAGMA busy_timeout").fetchone()
        raw.execute("PRAGMA busy_timeout = 0")
        try:
            _begin_immediate(connection, raw, timeout_seconds)
        finally:
            raw.execute(f"PRAGMA busy_timeout = {own_waiting_ms}")

    def begin_read(self, connection: Connection) -> None:
        """A deferred transaction: the first SELECT fixes what all of them see."""
        raw: Any = connection.connection.dbapi_connection
        if not raw.in_transaction:
            connection.exec_driver_sql("BEGIN")

    def open_account(
        self, connection: Connection, organization_id: str, timeout_seconds: float | None, ask: Ask = NOTHING
    ) -> Opened:
        """The transaction has the lock already."""
        if not is_own(connection):
            return super().open_account(connection, organization_id, timeout_seconds)
        accounts = _read(connection, _ACCOUNT_AND_USES, (organization_id,))
        if not accounts:
            return Opened(None, (), self.now(connection), has_limits=False, has_runs=False)
        grants = _read(connection, _GRANTS, (organization_id,))
        account = accounts[0]
        return Opened(account, grants, self.now(connection), account["has_limits"], account["has_runs"])

    def read_holds(self, connection: Connection, organization_id: str, ids: Collection[str]) -> Sequence[RowLike]:
        """The named reservations."""
        if not is_own(connection):
            return super().read_holds(connection, organization_id, ids)
        return _read(connection, _HOLDS, (organization_id, *sorted(ids)), f"({_marks(len(ids))})")

    def read_keys(
        self, connection: Connection, organization_id: str, places: Collection[tuple[str, str]]
    ) -> Sequence[RowLike]:
        """The idempotency keys with these kinds and names; perhaps more of the same names."""
        if not is_own(connection):
            return super().read_keys(connection, organization_id, places)
        kinds, names = (sorted(set(column)) for column in zip(*places, strict=True))
        values = (organization_id, *kinds, *names)
        return _read(connection, _KEYS, values, _marks(len(kinds)), _marks(len(names)))

    def read_limits(
        self,
        connection: Connection,
        organization_id: str,
        places: Collection[tuple[str, str]],
        ids: Collection[str],
    ) -> Sequence[RowLike]:
        """The limits over places, those for each included, and those with these ids; with the places' counters."""
        if not is_own(connection):
            return super().read_limits(connection, organization_id, places, ids)
        counted = sorted({scope_id for _, scope_id in places})
        values = (*counted, organization_id, *chain.from_iterable(sorted(places)), *sorted(ids))
        marks = (_marks(len(counted)), ", ".join(["(?, ?)"] * len(places)), _marks(len(ids)))
        return _read(connection, _LIMITS, values, *marks)

    def write(self, connection: Connection, writes: Sequence[Write], *, last: bool = False) -> None:
        """All writes of a posting, a statement for each table; there are no round trips to save."""
        if not is_own(connection):
            super().write(connection, writes)
            return
        for entry in writes:
            columns = entry.columns
            names = tuple(columns)
            if entry.keys and not entry.adds:
                # The key comes last, as in the statement.
                names = (*(name for name in names if name not in entry.keys), *entry.keys)
            stored = [columns[name] for name in names]
            for place, to_text in _conversions(entry.table, names):
                # Most of a posting's times and quantities are the same.
                known = {value: to_text(value) for value in set(stored[place]) if value is not None}
                stored[place] = [known.get(value) for value in stored[place]]
            rows = list(zip(*stored, strict=True))
            if entry.keys and not entry.adds:
                run_raw(connection, _update_sql(entry.table, names, entry.keys), rows, many=True)
                continue
            for some in _portions(rows):
                sql = _insert_sql(entry.table, names, entry.keys, entry.adds, len(some))
                run_raw(connection, sql, tuple(chain.from_iterable(some)))


def _begin_immediate(connection: Connection, raw: Any, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        try:
            raw.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                break
            time.sleep(random.uniform(0.00005, 0.0006))
        else:
            return
    # Once more through SQLAlchemy, so that the error comes out as every other one does.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def is_own(connection: Connection) -> bool:
    """Whether sqlite3's own cursor can be used: not in a session of the caller's, which may run another driver."""
    return connection.dialect.driver == "pysqlite" and not connection.in_nested_transaction()


def run_raw(connection: Connection, sql: str, parameters: Sequence[Any], *, many: bool = False) -> list[Any]:
    """Run a statement on sqlite3's own cursor; SQLAlchemy's errors stay.

    Raises:
        DBAPIError: as ``Connection.execute`` would.
    """
    if not connection.in_transaction():
        # SQLAlchemy has to know that there is something to end.
        connection.begin()
    raw: Any = connection.connection.dbapi_connection
    try:
        if many:
            raw.executemany(sql, parameters)
            return []
        return cast("list[Any]", raw.execute(sql, parameters).fetchall())
    except sqlite3.Error as error:
        raise DBAPIError.instance(
            sql, None, error, sqlite3.Error, hide_parameters=True, dialect=connection.dialect
        ) from error


def _portions(rows: Sequence[tuple[Any, ...]]) -> Iterator[Sequence[tuple[Any, ...]]]:
    """All rows, 32, 16, 8, 4, 2 or 1 at a time: few statements, and few different ones.

    sqlite3 lets go of the interpreter for each row of ``executemany``, and every time the callers may take it.
    """
    place, size = 0, MOST_ROWS
    while place < len(rows):
        while size > len(rows) - place:
            size //= 2
        yield rows[place : place + size]
        place += size


# The names below come from the declared tables and never from a caller; values are parameters (S608).
@lru_cache(maxsize=256)
def _update_sql(table: Table, names: tuple[str, ...], keys: tuple[str, ...]) -> str:
    values = ", ".join(f"{name} = ?" for name in names if name not in keys)
    return f"UPDATE {table.name} SET {values} WHERE {' AND '.join(f'{key} = ?' for key in keys)}"  # noqa: S608


@lru_cache(maxsize=256)
def _insert_sql(table: Table, names: tuple[str, ...], keys: tuple[str, ...], adds: tuple[str, ...], count: int) -> str:
    rows = ", ".join([f"({_marks(len(names))})"] * count)
    insertion = f"INSERT INTO {table.name} AS t ({', '.join(names)}) VALUES {rows}"  # noqa: S608
    return insertion + on_conflict_add(keys, adds) if adds else insertion


# -- values, as SQLAlchemy's types store them --------------------------------------------------------------------


@lru_cache(maxsize=256)
def _conversions(table: Table, names: tuple[str, ...]) -> list[tuple[int, Callable[[Any], str]]]:
    """The columns that are stored as texts: where they stand, and how."""
    found: list[tuple[int, Callable[[Any], str]]] = []
    for place, name in enumerate(names):
        kind = table.c[name].type
        if isinstance(kind, UtcDateTime):
            found.append((place, _time_text))
        elif isinstance(kind, ExactNumeric):
            found.append((place, "{:f}".format))
    return found


def _time_text(value: datetime) -> str:
    return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


class _Reading:
    """A statement on one table, as sqlite3 takes it, and what its columns are."""

    def __init__(self, statement: Select[Any], condition: str = "") -> None:
        self.sql = str(statement.compile(dialect=_SQLITE3)) + condition
        self.names = [column.name for column in statement.selected_columns]
        kinds = [column.type for column in statement.selected_columns]
        self.times = [name for name, kind in zip(self.names, kinds, strict=True) if isinstance(kind, UtcDateTime)]
        self.flags = [name for name, kind in zip(self.names, kinds, strict=True) if isinstance(kind, Boolean)]

    def rows(self, found: Sequence[Sequence[Any]]) -> Iterator[Mapping[str, Any]]:
        """The rows that sqlite3 gave, as SQLAlchemy would give them."""
        for values in found:
            row = dict(zip(self.names, values, strict=True))
            for name in self.times:
                if row[name] is not None:
                    row[name] = _time(row[name])
            for name in self.flags:
                row[name] = bool(row[name])
            yield row


def _read(connection: Connection, reading: _Reading, values: Sequence[Any], *marks: str) -> list[Mapping[str, Any]]:
    return list(reading.rows(run_raw(connection, reading.sql.format(*marks), values)))


def _marks(count: int) -> str:
    return ", ".join("?" * count)


_SQLITE3: Final = sqlite3_dialect(paramstyle="qmark")
_ACCOUNT_AND_USES: Final = _Reading(
    ACCOUNT.add_columns(
        *(
            exists().where(table.c.organization_id == credit_accounts.c.organization_id).label(name)
            for table, name in ((credit_limits, "has_limits"), (credit_runs, "has_runs"))
        )
    )
)
_GRANTS: Final = _Reading(OPEN_GRANTS)
_OWNER: Final[BindParameter[str]] = bindparam("organization")
_HOLDS: Final = _Reading(
    select(credit_reservations).where(credit_reservations.c.organization_id == _OWNER),
    # How many ids there are.
    f" AND {credit_reservations.name}.id IN {{}}",
)
_KEYS: Final = _Reading(
    select(idempotency_keys).where(idempotency_keys.c.organization_id == _OWNER),
    f" AND {idempotency_keys.name}.kind IN ({{}}) AND {idempotency_keys.name}.key IN ({{}})",
)
_LIMITS: Final = _Reading(
    select(
        credit_limits,
        credit_limit_usage.c.scope_id.label("counted_id"),
        *(credit_limit_usage.c[name] for name in LIMIT_COUNTERS),
    )
    .select_from(
        credit_limits.outerjoin(
            credit_limit_usage,
            and_(
                credit_limit_usage.c.organization_id == credit_limits.c.organization_id,
                credit_limit_usage.c.limit_id == credit_limits.c.id,
                text(f"{credit_limit_usage.name}.scope_id IN ({{}})"),
            ),
        )
    )
    .where(credit_limits.c.organization_id == _OWNER),
    f" AND ({credit_limits.name}.scope_id = '' OR ({credit_limits.name}.scope, {credit_limits.name}.scope_id) IN"
    f" (VALUES {{}}) OR {credit_limits.name}.id IN ({{}}))",
)
