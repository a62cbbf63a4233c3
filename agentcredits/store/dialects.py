"""What differs between the databases, in few methods: connecting, beginning, locking, telling the time, bulk writes.

One driver per database: the standard library's sqlite3, and psycopg 3. ``session=`` may bring aiosqlite or asyncpg
connections; the statements here run on those too.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, Table, bindparam, create_engine, event, insert, make_url, text, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.pool import StaticPool

from agentcredits.clock import host_now
from agentcredits.errors import ConfigurationError
from agentcredits.store.tables import UtcDateTime

Rows = Sequence[Mapping[str, Any]]

_DRIVERS: Final = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "sqlite+aiosqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
    "postgresql+psycopg_async": "postgresql+psycopg",
    "postgresql+psycopg2": "postgresql+psycopg",
    "postgresql+asyncpg": "postgresql+psycopg",
}


def normalise_url(url: str | URL) -> URL:
    """The URL with the one driver that agentcredits uses; SQLite files become absolute.

    Raises:
        ConfigurationError: not a database URL, or a database that is not supported.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigurationError(
            "the database must be a URL such as sqlite:///credits.db or postgresql://host/name."
        ) from error
    drivername = _DRIVERS.get(parsed.drivername)
    if drivername is None:
        raise ConfigurationError(
            f"the database {parsed.drivername!r} is not supported: use sqlite:// or postgresql://.",
            context={"driver": parsed.drivername},
        )
    parsed = parsed.set(drivername=drivername)
    if drivername == "sqlite" and not is_memory(parsed):
        path = Path(str(parsed.database)).expanduser()
        parsed = parsed.set(database=str(path.absolute()))
    return parsed


def is_memory(url: URL) -> bool:
    """Whether the URL names a SQLite database that lives in this process only."""
    return url.get_backend_name() == "sqlite" and (
        not url.database or url.database == ":memory:" or "mode=memory" in url.database
    )


def make_engine(url: URL, *, pool_size: int, lock_timeout_seconds: float, sqlite_synchronous: str) -> Engine:
    """An engine of our own for a normalised URL. Never prints parameters: they may hold prompts and keys."""
    if url.get_backend_name() == "sqlite":
        memory = is_memory(url)
        if memory:
            engine = create_engine(
                url, hide_parameters=True, poolclass=StaticPool, connect_args={"check_same_thread": False}
            )
        else:
            engine = create_engine(
                url,
                hide_parameters=True,
                pool_size=pool_size,
                max_overflow=-1,
                connect_args={"timeout": min(0.05, lock_timeout_seconds)},
            )

        @event.listens_for(engine, "connect")
        def _prepare(connection: sqlite3.Connection, _record: object) -> None:
            cursor = connection.cursor()
            if not memory:
                _use_wal(cursor, lock_timeout_seconds)
            cursor.execute(f"PRAGMA synchronous={sqlite_synchronous}")
            cursor.execute("PRAGMA foreign_keys=ON")
            cursor.close()

        return engine
    try:
        return create_engine(
            url,
            hide_parameters=True,
            pool_size=pool_size,
            max_overflow=-1,
            pool_pre_ping=False,
            connect_args={"connect_timeout": max(1, round(lock_timeout_seconds))},
        )
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            'PostgreSQL needs its driver: pip install "agentcredits[postgres]".', context={"module": error.name}
        ) from error


def _use_wal(cursor: sqlite3.Cursor, timeout_seconds: float) -> None:
    """Write-ahead logging lets readers and the writer work at once; switching needs the file for a moment."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() >= deadline:
                raise
            time.sleep(0.005)
        else:
            return


class StoreDialect:
    """What the store needs of a database."""

    name: str
    #: Whether one transaction may book several accounts (SQLite has one writer anyway).
    mixes_accounts: bool

    def begin_write(self, connection: Connection, timeout_seconds: float) -> None:
        """Begin an own write transaction that waits at most ``timeout_seconds`` for a lock."""
        raise ConfigurationError(f"{type(self).__name__} cannot write")

    def begin_read(self, connection: Connection) -> None:
        """Begin a transaction whose statements all see the same moment."""
        raise ConfigurationError(f"{type(self).__name__} cannot read")

    def lock_suffix(self) -> str:
        """What a SELECT of the account's row ends with to lock it."""
        return ""

    def now(self, connection: Connection) -> datetime:
        """The database's clock, read now (not at the transaction's start)."""
        return host_now()

    def insert(self, connection: Connection, table: Table, rows: Rows) -> None:
        """Insert rows that all have the same columns."""
        if rows:
            connection.execute(insert(table), list(rows))

    def update(self, connection: Connection, table: Table, keys: Sequence[str], rows: Rows) -> None:
        """Update rows by their key columns; all rows have the same columns."""
        if not rows:
            return
        values = [name for name in rows[0] if name not in keys]
        statement = update(table).values({name: bindparam(f"v_{name}") for name in values})
        for key in keys:
            statement = statement.where(table.c[key] == bindparam(f"k_{key}"))
        connection.execute(
            statement,
            [{(f"k_{name}" if name in keys else f"v_{name}"): value for name, value in row.items()} for row in rows],
        )


class SQLiteDialect(StoreDialect):
    """SQLite: one writer at a time, BEGIN IMMEDIATE for every write."""

    name = "sqlite"
    mixes_accounts = True

    def begin_write(self, connection: Connection, timeout_seconds: float) -> None:
        """BEGIN IMMEDIATE, tried again with small random pauses: SQLite's own waiting is unfair under load."""
        raw: Any = connection.connection.dbapi_connection
        if raw.in_transaction:
            # An engine of the user's may begin (deferred) by itself; nothing has happened in it yet.
            raw.rollback()
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            except OperationalError as error:
                if "locked" not in str(error.orig) or time.monotonic() >= deadline:
                    raise
                time.sleep(random.uniform(0.0005, 0.01))
            else:
                return

    def begin_read(self, connection: Connection) -> None:
        """A deferred transaction: the first SELECT fixes what all of them see."""
        raw: Any = connection.connection.dbapi_connection
        if not raw.in_transaction:
            connection.exec_driver_sql("BEGIN")


class PostgreSQLDialect(StoreDialect):
    """PostgreSQL: READ COMMITTED and the account's row lock."""

    name = "postgresql"
    mixes_accounts = False

    def begin_write(self, connection: Connection, timeout_seconds: float) -> None:
        """Own transactions never wait longer than the time-out for a lock."""
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(timeout_seconds * 1000)}")

    def begin_read(self, connection: Connection) -> None:
        """REPEATABLE READ: READ COMMITTED would give each statement its own moment."""
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def lock_suffix(self) -> str:
        """NO KEY: a host application's table with a foreign key to ours must not block."""
        return " FOR NO KEY UPDATE"

    def now(self, connection: Connection) -> datetime:
        """``clock_timestamp()``: ``now()`` would be the transaction's start."""
        value: datetime = connection.exec_driver_sql("SELECT clock_timestamp()").scalar_one()
        return value

    def insert(self, connection: Connection, table: Table, rows: Rows) -> None:
        """One statement with array parameters, however many rows."""
        if rows:
            names = tuple(rows[0])
            connection.execute(_insert_arrays(table, names), _columns(table, names, rows))

    def update(self, connection: Connection, table: Table, keys: Sequence[str], rows: Rows) -> None:
        """One statement with array parameters, however many rows."""
        if rows:
            names = tuple(rows[0])
            connection.execute(_update_arrays(table, tuple(keys), names), _columns(table, names, rows))


def _columns(table: Table, names: Sequence[str], rows: Rows) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in names}


def _unnest(table: Table, names: Sequence[str]) -> str:
    arrays = ", ".join(f"CAST(:{name} AS {_array_type(table, name)})" for name in names)
    return f"unnest({arrays}) AS v({', '.join(names)})"


def _array_type(table: Table, name: str) -> str:
    column_type = table.c[name].type
    if isinstance(column_type, UtcDateTime):
        return "TIMESTAMP WITH TIME ZONE[]"
    return f"{column_type.compile(dialect=_POSTGRESQL)}[]"


_POSTGRESQL: Final = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped


@lru_cache(maxsize=64)
def _insert_arrays(table: Table, names: tuple[str, ...]) -> Any:
    columns = ", ".join(names)
    return text(f"INSERT INTO {table.name} ({columns}) SELECT {columns} FROM {_unnest(table, names)}")


@lru_cache(maxsize=64)
def _update_arrays(table: Table, keys: tuple[str, ...], names: tuple[str, ...]) -> Any:
    assignments = ", ".join(f"{name} = v.{name}" for name in names if name not in keys)
    condition = " AND ".join(f"t.{key} = v.{key}" for key in keys)
    return text(f"UPDATE {table.name} AS t SET {assignments} FROM {_unnest(table, names)} WHERE {condition}")


_DIALECTS: Final[dict[str, StoreDialect]] = {"sqlite": SQLiteDialect(), "postgresql": PostgreSQLDialect()}


def dialect_of(connection: Connection | Engine) -> StoreDialect:
    """The store's dialect for a connection.

    Raises:
        ConfigurationError: neither SQLite nor PostgreSQL.
    """
    try:
        return _DIALECTS[connection.dialect.name]
    except KeyError:
        raise ConfigurationError(
            f"the database {connection.dialect.name!r} is not supported: use SQLite or PostgreSQL."
        ) from None
