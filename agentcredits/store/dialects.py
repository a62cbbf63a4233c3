"""What differs between the databases, in few methods: connecting, beginning, locking, telling the time, bulk writes.

One driver per database: the standard library's sqlite3, and psycopg 3. ``session=`` may bring aiosqlite or asyncpg
connections; the statements here run on those too.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    RowMapping,
    Table,
    TextClause,
    and_,
    bindparam,
    create_engine,
    event,
    exists,
    insert,
    make_url,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import ConnectionPoolEntry, StaticPool

from agentcredits.amounts import MAX_TOTAL_MICROS
from agentcredits.clock import host_now
from agentcredits.errors import ConfigurationError
from agentcredits.store.limit_tables import credit_limit_usage, credit_limits
from agentcredits.store.tables import credit_accounts, credit_grants, credit_reservations, credit_runs, idempotency_keys

Rows = Sequence[Mapping[str, Any]]
Columns = Mapping[str, Sequence[Any]]
#: A row as SQLAlchemy or a driver of its own gives it (a RowMapping is not a Mapping to type checkers).
RowLike = RowMapping | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Write:
    """Rows to insert, or (with ``keys``) to update by those columns; all rows have the same columns in one order.

    The rows come one by one, or (where there are many) as columns of equal length; there is at least one. With ``adds``
    a row that is there already is not replaced: these columns are added to it.
    """

    table: Table
    rows: Rows | Columns
    keys: tuple[str, ...] = ()
    adds: tuple[str, ...] = ()

    @property
    def columns(self) -> Columns:
        """The rows as columns."""
        if isinstance(self.rows, Mapping):
            return self.rows
        columns = zip(*(row.values() for row in self.rows), strict=True)
        return dict(zip(self.rows[0], columns, strict=True))


@dataclass(frozen=True, slots=True)
class Ask:
    """What operations name, known before anything is read: scopes with their ids, holds, and keys with their kinds."""

    places: frozenset[tuple[str, str]] = frozenset()
    hold_ids: tuple[str, ...] = ()
    keys: frozenset[tuple[str, str]] = frozenset()


NOTHING: Final = Ask()


@dataclass(frozen=True, slots=True)
class Opened:
    """A locked account: its row (None: there is none), its open grants, the time after it was locked, and whether it
    has any limits and runs.

    Where it saved a round trip, also the named ``holds``, the ``limits`` over the named places and those of the holds,
    with their counters, and the ``keys``; None: they were not read.
    """

    account: RowLike | None
    grants: Sequence[RowLike]
    now: datetime
    has_limits: bool
    has_runs: bool
    holds: Sequence[RowLike] | None = None
    limits: Sequence[RowLike] | None = None
    keys: Sequence[RowLike] | None = None


#: The counters of a credit_limit_usage row.
LIMIT_COUNTERS: Final = ("held", "spent", "window_start", "window_end", "warned", "warned_amount")

#: The most that a total may hold: MAX_TOTAL_MICROS fits a signed 64-bit counter with room to spare.
_MOST: Final = MAX_TOTAL_MICROS

#: How long to wait for one of our own connections when all are in use.
POOL_TIMEOUT_SECONDS: Final = 10.0

#: What is remembered of a connection of our own; on others nothing is prepared.
KNOWN: Final = "agentcredits_known"

#: In what is remembered of one of our own connections to a SQLite file: whether SQLite's waiting is switched off until
#: it goes back to the pool.
IMPATIENT: Final = "agentcredits_impatient"

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
        def _prepare(connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
            cursor = connection.cursor()
            if not memory and _use_wal(cursor, lock_timeout_seconds):
                record.info[IMPATIENT] = False
            cursor.execute(f"PRAGMA synchronous={sqlite_synchronous}")
            cursor.execute("PRAGMA foreign_keys=ON")
            cursor.close()

        @event.listens_for(engine, "checkin")
        def _be_patient(connection: sqlite3.Connection | None, record: ConnectionPoolEntry) -> None:
            if connection is not None and record.info.get(IMPATIENT):
                connection.execute(f"PRAGMA busy_timeout = {round(lock_timeout_seconds * 1000)}")
                record.info[IMPATIENT] = False

        return engine
    try:
        engine = create_engine(
            url,
            hide_parameters=True,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=POOL_TIMEOUT_SECONDS,
            pool_pre_ping=False,
            # psycopg would drop all prepared statements, ours too, with every rollback.
            connect_args={"connect_timeout": max(1, round(lock_timeout_seconds)), "prepare_threshold": None},
        )
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            'PostgreSQL needs its driver: pip install "agentcredits[postgres]".', context={"module": error.name}
        ) from error

    from agentcredits.store.libpq import Known

    @event.listens_for(engine, "connect")
    def _allow_preparing(_connection: object, record: ConnectionPoolEntry) -> None:
        record.info[KNOWN] = Known()

    @event.listens_for(engine, "before_cursor_execute")
    def _catch_up(connection: Connection, *_: object) -> None:
        if known := connection.info.get(KNOWN):
            known.catch_up()

    return engine


def _use_wal(cursor: sqlite3.Cursor, timeout_seconds: float) -> bool:
    """Write-ahead logging lets readers and the writer work at once; switching needs the file for a moment.

    Whether it is used now: not every file system can.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            (mode,) = cursor.execute("PRAGMA journal_mode=WAL").fetchone()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() >= deadline:
                raise
            time.sleep(0.005)
        else:
            return bool(mode == "wal")


class StoreDialect:
    """What the store needs of a database."""

    name: str
    #: Whether one transaction may book several accounts (SQLite has one writer anyway).
    mixes_accounts: bool

    def begin_write(self, connection: Connection, timeout_seconds: float) -> None:
        """Begin an own write transaction that waits at most ``timeout_seconds`` for a lock."""
        raise ConfigurationError(f"{type(self).__name__} cannot write")

    def begin_posting(self, connection: Connection, timeout_seconds: float, meanwhile: Callable[[], None]) -> None:
        """Begin the transaction of a posting; ``meanwhile`` can be done while the database works, or at once."""
        meanwhile()
        self.begin_write(connection, timeout_seconds)

    def begin_read(self, connection: Connection) -> None:
        """Begin a transaction whose statements all see the same moment."""
        raise ConfigurationError(f"{type(self).__name__} cannot read")

    def now(self, connection: Connection) -> datetime:
        """The database's clock, read now (not at the transaction's start)."""
        return host_now()

    def open_account(
        self, connection: Connection, organization_id: str, timeout_seconds: float | None, ask: Ask = NOTHING
    ) -> Opened:
        """Lock the account until the transaction ends, then read its open grants and the clock, and perhaps more."""
        place = {"organization": organization_id}
        account = connection.execute(ACCOUNT, place).mappings().first()
        grants = connection.execute(OPEN_GRANTS, place).mappings().all()
        has_limits, has_runs = connection.execute(USES, place).one()
        return Opened(account, grants, self.now(connection), bool(has_limits), bool(has_runs))

    def read_holds(self, connection: Connection, organization_id: str, ids: Collection[str]) -> Sequence[RowLike]:
        """The named reservations."""
        table = credit_reservations
        statement = select(table).where(table.c.organization_id == organization_id, table.c.id.in_(sorted(ids)))
        return connection.execute(statement).mappings().all()

    def read_keys(
        self, connection: Connection, organization_id: str, places: Collection[tuple[str, str]]
    ) -> Sequence[RowLike]:
        """The idempotency keys with these kinds and names; perhaps more of the same names."""
        kinds, names = zip(*places, strict=True)
        asked = {"organization": organization_id, "kinds": sorted(set(kinds)), "names": sorted(set(names))}
        return connection.execute(_KEYS, asked).mappings().all()

    def read_limits(
        self,
        connection: Connection,
        organization_id: str,
        places: Collection[tuple[str, str]],
        ids: Collection[str],
    ) -> Sequence[RowLike]:
        """Limits over places, those for each included, and those with these ids; with the places' counters."""
        table, usage = credit_limits, credit_limit_usage
        statement = (
            select(table, usage.c.scope_id.label("counted_id"), *(usage.c[name] for name in LIMIT_COUNTERS))
            .select_from(
                table.outerjoin(
                    usage,
                    and_(
                        usage.c.organization_id == table.c.organization_id,
                        usage.c.limit_id == table.c.id,
                        usage.c.scope_id.in_(sorted({scope_id for _, scope_id in places})),
                    ),
                )
            )
            .where(
                table.c.organization_id == organization_id,
                or_(
                    table.c.scope_id == "",
                    tuple_(table.c.scope, table.c.scope_id).in_(sorted(places)),
                    table.c.id.in_(sorted(ids)),
                ),
            )
        )
        return connection.execute(statement).mappings().all()

    def write(self, connection: Connection, writes: Sequence[Write], *, last: bool = False) -> None:
        """Do all the writes of a posting, in order.

        Args:
            connection: In the posting's transaction.
            writes: What to write.
            last: Whether the caller commits next, so that COMMIT may go out together with the writes.
        """
        for entry in writes:
            columns = entry.columns
            names = tuple(columns)
            if entry.adds:
                statement: Any = _add_by_key(entry.table, names, entry.keys, entry.adds)
            elif entry.keys:
                statement = _update_by_key(entry.table, names, entry.keys)
                names = tuple(f"b_{name}" for name in names)
            else:
                statement = insert(entry.table)
            connection.execute(
                statement, [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            )


@lru_cache(maxsize=64)
def _add_by_key(table: Table, names: tuple[str, ...], keys: tuple[str, ...], adds: tuple[str, ...]) -> TextClause:
    return text(
        f"INSERT INTO {table.name} AS t ({', '.join(names)}) VALUES ({', '.join(f':{name}' for name in names)})"  # noqa: S608
        + on_conflict_add(keys, adds)
    )


def on_conflict_add(keys: tuple[str, ...], adds: tuple[str, ...]) -> str:
    """The end of an INSERT that adds to the row that is there."""
    # A total stays at the top instead of running over (over-runs that nobody pays add up without end). Both sides may
    # be negative (what refunds take from a category): no difference here runs over either.
    sums = ", ".join(
        f"{name} = CASE WHEN t.{name} > 0 THEN"
        f" CASE WHEN excluded.{name} > {_MOST} - t.{name} THEN {_MOST} ELSE t.{name} + excluded.{name} END"
        f" ELSE t.{name} + excluded.{name} END"
        for name in adds
    )
    return f" ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {sums}"


@lru_cache(maxsize=64)
def _update_by_key(table: Table, names: tuple[str, ...], keys: tuple[str, ...]) -> Any:
    # SQLAlchemy keeps the columns' own names for what it sets.
    statement = update(table).values({name: bindparam(f"b_{name}") for name in names if name not in keys})
    for key in keys:
        statement = statement.where(table.c[key] == bindparam(f"b_{key}"))
    return statement


ACCOUNT: Final = select(credit_accounts).where(credit_accounts.c.organization_id == bindparam("organization"))
OPEN_GRANTS: Final = select(credit_grants).where(
    credit_grants.c.organization_id == bindparam("organization"), credit_grants.c.is_open
)
HAS_LIMITS: Final = exists().where(credit_limits.c.organization_id == bindparam("organization"))
HAS_RUNS: Final = exists().where(credit_runs.c.organization_id == bindparam("organization"))
USES: Final = select(HAS_LIMITS, HAS_RUNS)
_KEYS: Final = select(idempotency_keys).where(
    idempotency_keys.c.organization_id == bindparam("organization"),
    # Not as pairs: SQLite would look at every key of the account.
    idempotency_keys.c.kind.in_(bindparam("kinds", expanding=True)),
    idempotency_keys.c.key.in_(bindparam("names", expanding=True)),
)


def dialect_of(connection: Connection | Engine) -> StoreDialect:
    """The store's dialect for a connection.

    Raises:
        ConfigurationError: neither SQLite nor PostgreSQL.
    """
    name = connection.dialect.name
    known = _DIALECTS.get(name)
    if known is not None:
        return known
    # Each is imported by whoever uses it.
    if name == "sqlite":
        from agentcredits.store.sqlite import SQLiteDialect

        return _DIALECTS.setdefault(name, SQLiteDialect())
    if name == "postgresql":
        from agentcredits.store.postgresql import PostgreSQLDialect

        return _DIALECTS.setdefault(name, PostgreSQLDialect())
    raise ConfigurationError(f"the database {name!r} is not supported: use SQLite or PostgreSQL.")


_DIALECTS: Final[dict[str, StoreDialect]] = {}
