"""What differs between the databases, in few methods: connecting, beginning, locking, telling the time, bulk writes.

One driver per database: the standard library's sqlite3, and psycopg 3. ``session=`` may bring aiosqlite or asyncpg
connections; the statements here run on those too.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

from sqlalchemy import (
    URL,
    BigInteger,
    Boolean,
    Connection,
    Engine,
    Integer,
    String,
    Table,
    TextClause,
    and_,
    bindparam,
    create_engine,
    event,
    func,
    insert,
    literal_column,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import StaticPool

from agentcredits.clock import host_now
from agentcredits.errors import ConfigurationError
from agentcredits.store.tables import ExactNumeric, UtcDateTime, credit_accounts, credit_grants

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Write:
    """Rows to insert, or (with ``keys``) to update by those columns; all rows have the same columns."""

    table: Table
    rows: Rows
    keys: tuple[str, ...] = ()


#: How long to wait for one of our own connections when all are in use.
POOL_TIMEOUT_SECONDS: Final = 10.0

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
        if str(parsed.database).startswith("file:"):
            return parsed
        parsed = parsed.set(database=str(path.absolute()))
    return parsed


def is_memory(url: URL) -> bool:
    """Whether the URL names a SQLite database that lives in this process only."""
    if url.get_backend_name() != "sqlite":
        return False
    name = (url.database or ":memory:").removeprefix("file:")
    return name == ":memory:" or "mode=memory" in name or url.query.get("mode") == "memory"


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
                max_overflow=pool_size,
                pool_timeout=POOL_TIMEOUT_SECONDS,
                connect_args={"timeout": lock_timeout_seconds},
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
            max_overflow=pool_size,
            pool_timeout=POOL_TIMEOUT_SECONDS,
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

    def begin_posting(self, connection: Connection, timeout_seconds: float) -> None:
        """Begin the transaction of a posting."""
        self.begin_write(connection, timeout_seconds)

    def begin_read(self, connection: Connection) -> None:
        """Begin a transaction whose statements all see the same moment."""
        raise ConfigurationError(f"{type(self).__name__} cannot read")

    def now(self, connection: Connection) -> datetime:
        """The database's clock, read now (not at the transaction's start)."""
        return host_now()

    def lock_account(self, connection: Connection, organization_id: str, timeout_seconds: float | None) -> Any:
        """The account's row, locked until the transaction ends; None when there is none."""
        return connection.execute(_ACCOUNT, {"organization": organization_id}).mappings().first()

    def load_open_grants(self, connection: Connection, organization_id: str) -> tuple[Sequence[Any], datetime]:
        """The account's open grants, and the time after its row was locked."""
        rows = connection.execute(_OPEN_GRANTS, {"organization": organization_id}).mappings().all()
        return rows, self.now(connection)

    def write(self, connection: Connection, writes: Sequence[Write]) -> None:
        """Do all the writes of a posting, in order."""
        for entry in writes:
            if entry.keys:
                values = [name for name in entry.rows[0] if name not in entry.keys]
                connection.execute(
                    _update_by_key(entry.table, entry.keys, tuple(values)),
                    [
                        {(f"k_{name}" if name in entry.keys else f"v_{name}"): value for name, value in row.items()}
                        for row in entry.rows
                    ],
                )
            else:
                connection.execute(insert(entry.table), list(entry.rows))


@lru_cache(maxsize=64)
def _update_by_key(table: Table, keys: tuple[str, ...], values: tuple[str, ...]) -> Any:
    statement = update(table).values({name: bindparam(f"v_{name}") for name in values})
    for key in keys:
        statement = statement.where(table.c[key] == bindparam(f"k_{key}"))
    return statement


class SQLiteDialect(StoreDialect):
    """SQLite: one writer at a time, BEGIN IMMEDIATE for every write."""

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
        cursor = raw.cursor()
        (own_waiting_ms,) = cursor.execute("PRAGMA busy_timeout").fetchone()
        cursor.execute("PRAGMA busy_timeout = 0")
        deadline = time.monotonic() + timeout_seconds
        try:
            while time.monotonic() < deadline:
                try:
                    cursor.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError as error:
                    if "locked" not in str(error):
                        break
                    time.sleep(random.uniform(0.00005, 0.0006))
                else:
                    return
            # Once more through SQLAlchemy, so that the error comes out as every other one does.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        finally:
            cursor.execute(f"PRAGMA busy_timeout = {own_waiting_ms}")
            cursor.close()

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

    def begin_posting(self, connection: Connection, timeout_seconds: float) -> None:
        """Nothing to send: the statement that locks the account also sets how long it waits."""

    def begin_read(self, connection: Connection) -> None:
        """REPEATABLE READ: READ COMMITTED would give each statement its own moment."""
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def now(self, connection: Connection) -> datetime:
        """``clock_timestamp()``: ``now()`` would be the transaction's start."""
        value: datetime = connection.exec_driver_sql("SELECT clock_timestamp()").scalar_one()
        return value.astimezone(UTC)

    def lock_account(self, connection: Connection, organization_id: str, timeout_seconds: float | None) -> Any:
        """One statement sets the lock time-out for this transaction and locks the row.

        ``timeout_seconds`` None leaves the setting alone (the transaction is the caller's). The joined CTE is read
        before the row is locked, so that the setting is in force when the wait begins.
        """
        if timeout_seconds is None:
            return connection.execute(_ACCOUNT_LOCKED, {"organization": organization_id}).mappings().first()
        return (
            connection.execute(
                _ACCOUNT_LOCKED_IN_TIME,
                {"organization": organization_id, "timeout": str(round(timeout_seconds * 1000))},
            )
            .mappings()
            .first()
        )

    def load_open_grants(self, connection: Connection, organization_id: str) -> tuple[Sequence[Any], datetime]:
        """One statement for both; it starts after the lock was got, so that its clock and its snapshot are new."""
        rows = connection.execute(_OPEN_GRANTS_AND_CLOCK, {"organization": organization_id}).mappings().all()
        return [row for row in rows if row["id"] is not None], rows[0]["read_at"].astimezone(UTC)

    def write(self, connection: Connection, writes: Sequence[Write]) -> None:
        """All writes of a posting in one statement, however many rows.

        What is the same in all rows of a table is sent once, as a plain value; what differs as an array.
        """
        if not writes:
            return
        shape: list[_Part] = []
        parameters: dict[str, Any] = {}
        for place, entry in enumerate(writes):
            first, *others = entry.rows
            forms: list[tuple[str, _Form]] = []
            for name, value in first.items():
                if all(row[name] == value for row in others):
                    forms.append((name, "null" if value is None else "value"))
                    if value is not None:
                        parameters[_parameter(place, name)] = value
                else:
                    forms.append((name, "array"))
                    parameters[_parameter(place, name)] = [row[name] for row in entry.rows]
            shape.append((entry.table, entry.keys, tuple(forms)))
        if connection.dialect.driver == "psycopg":
            # The same statement without SQLAlchemy's own work on fifty parameters.
            connection.exec_driver_sql(_write_sql(tuple(shape), "%({})s"), parameters)
        else:
            connection.execute(_write_statement(tuple(shape)), parameters)


_Form = Literal["null", "value", "array"]
_Part = tuple[Table, tuple[str, ...], tuple[tuple[str, _Form], ...]]
"""Table, key columns (none: insert), and how each column is sent."""


@lru_cache(maxsize=1024)
def _write_statement(shape: tuple[_Part, ...]) -> TextClause:
    return text(_write_sql(shape, ":{}"))


@lru_cache(maxsize=1024)
def _write_sql(shape: tuple[_Part, ...], placeholder: str) -> str:
    """Data-modifying CTEs: the parts never touch the same row, so that their order does not matter."""
    parts = [_write_part(place, table, keys, forms, placeholder) for place, (table, keys, forms) in enumerate(shape)]
    if len(parts) == 1:
        return parts[0]
    return "WITH " + ", ".join(f"w{place} AS ({part})" for place, part in enumerate(parts)) + " SELECT 1"


def _parameter(place: int, name: str) -> str:
    # One posting names one account: its id is sent once.
    return name if name == "organization_id" else f"p{place}_{name}"


# The names below come from the declared tables and never from a caller; values are parameters (S608).
def _write_part(
    place: int, table: Table, keys: tuple[str, ...], forms: tuple[tuple[str, _Form], ...], placeholder: str
) -> str:
    arrays = [name for name, form in forms if form == "array"]
    sent = {name: placeholder.format(_parameter(place, name)) for name, _ in forms}
    terms = {name: {"null": "NULL", "value": sent[name], "array": f"v.{name}"}[form] for name, form in forms}
    source = ""
    if arrays:
        columns = ", ".join(f"CAST({sent[name]} AS {_array_type(table, name)})" for name in arrays)
        source = f" FROM unnest({columns}) AS v({', '.join(arrays)})"
        terms |= {
            name: f"CAST({term} AS {_array_type(table, name).removesuffix('[]')})"
            for name, term in terms.items()
            if name not in arrays
        }
    if not keys:
        values = ", ".join(terms.values())
        rows = f"SELECT {values}{source}" if arrays else f"VALUES ({values})"
        return f"INSERT INTO {table.name} ({', '.join(terms)}) {rows}"
    assignments = ", ".join(f"{name} = {term}" for name, term in terms.items() if name not in keys)
    condition = " AND ".join(f"t.{key} = {terms[key]}" for key in keys)
    return f"UPDATE {table.name} AS t SET {assignments}{source} WHERE {condition}"  # noqa: S608


def _array_type(table: Table, name: str) -> str:
    column_type = table.c[name].type
    for kind, word in _ARRAY_TYPES:
        if isinstance(column_type, kind):
            return f"{word}[]"
    raise AssertionError(f"{table.name}.{name} has a type that no array is known for")


#: Spelled out, so that PostgreSQL's dialect is imported only where it is used.
_ARRAY_TYPES: Final = (
    (UtcDateTime, "TIMESTAMP WITH TIME ZONE"),
    (ExactNumeric, "NUMERIC"),
    (String, "TEXT"),
    (BigInteger, "BIGINT"),
    (Integer, "INTEGER"),
    (Boolean, "BOOLEAN"),
)

_ACCOUNT: Final = select(credit_accounts).where(credit_accounts.c.organization_id == bindparam("organization"))
_ACCOUNT_LOCKED: Final = _ACCOUNT.with_for_update(key_share=True)
_TIMEOUT: Final = (
    select(
        func.set_config(literal_column("'lock_timeout'"), bindparam("timeout"), literal_column("true")).label(
            "lock_timeout"
        )
    )
    .cte("timeout_setting")
    .prefix_with("MATERIALIZED")
)
_ACCOUNT_LOCKED_IN_TIME: Final = (
    select(credit_accounts)
    .select_from(credit_accounts.join(_TIMEOUT, _TIMEOUT.c.lock_timeout.is_not(None)))
    .where(credit_accounts.c.organization_id == bindparam("organization"))
    .with_for_update(key_share=True, of=credit_accounts)
)
_OPEN_GRANTS: Final = select(credit_grants).where(
    credit_grants.c.organization_id == bindparam("organization"), credit_grants.c.is_open
)
_ONE: Final = select(literal_column("1").label("one")).subquery("one")
_OPEN_GRANTS_AND_CLOCK: Final = select(func.clock_timestamp().label("read_at"), credit_grants).select_from(
    _ONE.outerjoin(
        credit_grants, and_(credit_grants.c.organization_id == bindparam("organization"), credit_grants.c.is_open)
    )
)


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
