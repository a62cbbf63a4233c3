"""PostgreSQL: one account's row lock for each transaction, few round trips, all writes in one statement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, cast

from sqlalchemy import (
    BigInteger,
    Boolean,
    Connection,
    Integer,
    String,
    Table,
    TextClause,
    text,
)
from sqlalchemy.exc import DBAPIError

from agentcredits.errors import ConfigurationError
from agentcredits.store import postgresql_reads as reads
from agentcredits.store import tenancy
from agentcredits.store.columns import ExactNumeric, UtcDateTime
from agentcredits.store.dialects import (
    KNOWN,
    NOTHING,
    Ask,
    Opened,
    RowLike,
    StoreDialect,
    Write,
    on_conflict_add,
)
from agentcredits.store.faults import NOT_PREPARED_STATES, READ_ONLY_STATE

if TYPE_CHECKING:
    from agentcredits.store.libpq import Statement

#: Accounts of which it is remembered that they have limits.
MAX_REMEMBERED: Final = 10_000

#: Up to so many rows an update joins them; more are looked up one by one.
FEW: Final = 8


class PostgreSQLDialect(StoreDialect):
    """PostgreSQL: READ COMMITTED and the account's row lock."""

    name = "postgresql"
    mixes_accounts = False

    def __init__(self) -> None:
        #: Accounts that had limits when they were opened last: these are asked for in the first round trip.
        self._limited: set[str] = set()

    def begin_write(self, connection: Connection, timeout_seconds: float) -> None:
        """Own transactions never wait longer than the time-out for a lock."""
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(timeout_seconds * 1000)}")

    def begin_posting(self, connection: Connection, timeout_seconds: float, meanwhile: Callable[[], None]) -> None:
        """Nothing to send: the statement that locks the account begins, and also sets how long it waits."""
        if known := connection.info.get(KNOWN):
            known.meanwhile = meanwhile
        else:
            meanwhile()
        if connection.connection.dbapi_connection.autocommit:  # type: ignore[union-attr]  # psycopg's
            raise ConfigurationError(
                "the engine is in autocommit mode: locks would not last. Create it without isolation_level=AUTOCOMMIT."
            )

    def begin_read(self, connection: Connection) -> None:
        """REPEATABLE READ: READ COMMITTED would give each statement its own moment."""
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        tenancy.apply(connection)

    def now(self, connection: Connection) -> datetime:
        """``clock_timestamp()``: ``now()`` would be the transaction's start."""
        value: datetime = connection.exec_driver_sql("SELECT clock_timestamp()").scalar_one()
        return value.astimezone(UTC)

    def open_account(
        self, connection: Connection, organization_id: str, timeout_seconds: float | None, ask: Ask = NOTHING
    ) -> Opened:
        """Two statements: the lock, and what starts after it was got, so that its clock and its snapshot are new.

        ``timeout_seconds`` None leaves the lock's time-out alone (the transaction is the caller's). An own one sends
        both, its BEGIN, and what the operations name, in one round trip.
        """
        place: dict[str, Any] = {"organization": organization_id}
        if timeout_seconds is None or not is_psycopg(connection):
            tenancy.enter(connection, organization_id)
            if timeout_seconds is not None:
                place["timeout"] = str(round(timeout_seconds * 1000))
            statement = reads.ACCOUNT_LOCKED if timeout_seconds is None else reads.ACCOUNT_LOCKED_IN_TIME
            account: RowLike | None = connection.execute(statement, place).mappings().first()
            rows: Sequence[RowLike] = connection.execute(reads.OPEN_GRANTS_AND_CLOCK, place).mappings().all()
            return _opened(account, rows)
        from agentcredits.store import libpq

        place |= {
            "timeout": str(round(timeout_seconds * 1000)),
            "holds": ask.hold_ids,
            "scopes": [scope for scope, _ in ask.places],
            "scope_ids": [scope_id for _, scope_id in ask.places],
            "kinds": [kind for kind, _ in ask.keys],
            "keys": [key for _, key in ask.keys],
        }
        tenant = (tenancy.SET_TENANT_SQL,) if tenancy.applies(connection) else ()
        holds = (reads.HOLDS,) if ask.hold_ids else ()
        limits = (reads.LIMITS_OF_HOLDS if ask.hold_ids else reads.LIMITS,) if organization_id in self._limited else ()
        keys = (reads.KEYS,) if ask.keys else ()
        texts = (*tenant, reads.LOCK, reads.LOADS, *holds, *limits, *keys)
        begin = libpq.begin(connection.connection.dbapi_connection)
        found = run_own(
            connection, *((statement, {}) for statement in begin), *((libpq.numbered(text), place) for text in texts)
        )
        locked, grants, *named = found[len(begin) + len(tenant) :]
        opened = _opened(locked[0] if locked else None, grants)
        self._note_limited(organization_id, opened.has_limits)
        return replace(
            opened,
            holds=named.pop(0) if holds else None,
            limits=named.pop(0) if limits else None,
            keys=named.pop(0) if keys else None,
        )

    def _note_limited(self, organization_id: str, has_limits: bool) -> None:
        if has_limits != (organization_id in self._limited):
            if len(self._limited) >= MAX_REMEMBERED:
                self._limited.clear()
            (self._limited.add if has_limits else self._limited.discard)(organization_id)

    def write(self, connection: Connection, writes: Sequence[Write], *, last: bool = False) -> None:
        """All writes of a posting in one statement, however many rows; with ``last``, COMMIT goes out with it.

        What is the same in all rows of a table is sent once, as a plain value; what differs as an array, and an array
        that several columns have in common (ids, keys) once for all of them.
        """
        if not writes:
            return
        shape: list[_Part] = []
        parameters: dict[str, Any] = {}
        arrays: dict[tuple[str, tuple[Any, ...]], str] = {}
        for place, entry in enumerate(writes):
            columns = entry.columns
            sent: list[str | None] = []
            for name, column in columns.items():
                value = column[0]
                if len(column) > 1 and column.count(value) < len(column):
                    parameter = arrays.setdefault(
                        (_array_type(entry.table, name), tuple(column)), f"{_ARRAY}{_parameter(place, name)}"
                    )
                    parameters[parameter] = column
                    sent.append(parameter)
                elif value is None:
                    sent.append(None)
                else:
                    parameter = _parameter(place, name)
                    parameters[parameter] = value
                    sent.append(parameter)
            # Only where rows are looked for: an insert is the same whatever their number.
            many = bool(entry.keys) and not entry.adds and len(column) > FEW
            shape.append((entry.table, entry.keys, entry.adds, tuple(columns), tuple(sent), many))
        if last and is_psycopg(connection):
            from agentcredits.store import libpq

            statement = libpq.numbered(_write_sql(tuple(shape), "%({})s"))
            # commit() would wait for an answer of its own.
            run_own(connection, (statement, parameters), (libpq.COMMIT, {}))
        else:
            for parameter in arrays.values():
                parameters[parameter] = list(parameters[parameter])
            connection.execute(_write_statement(tuple(shape)), parameters)


def _opened(account: RowLike | None, rows: Sequence[RowLike]) -> Opened:
    first = rows[0]
    grants = [row for row in rows if row["id"] is not None]
    return Opened(account, grants, first["read_at"].astimezone(UTC), first["has_limits"], first["has_runs"])


_Part = tuple[Table, tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str | None, ...], bool]
"""Table, key columns (none: insert), columns to add to, all columns, the parameter that each is sent as (None: it is
NULL in all rows), and whether more than a few rows are changed.
"""

#: How the names of parameters begin that have a value for each row.
_ARRAY: Final = "a_"


@lru_cache(maxsize=1024)
def _write_statement(shape: tuple[_Part, ...]) -> TextClause:
    return text(_write_sql(shape, ":{}"))


@lru_cache(maxsize=1024)
def _write_sql(shape: tuple[_Part, ...], placeholder: str) -> str:
    """Data-modifying CTEs: the parts never touch the same row, so that their order does not matter."""
    parts = [_write_part(*part, placeholder) for part in shape]
    if len(parts) == 1:
        return parts[0]
    return "WITH " + ", ".join(f"w{place} AS ({part})" for place, part in enumerate(parts)) + " SELECT"


def _parameter(place: int, name: str) -> str:
    # One posting names one account: its id is sent once.
    return name if name == "organization_id" else f"p{place}_{name}"


# The names below come from the declared tables and never from a caller; values are parameters (S608).
def _write_part(
    table: Table,
    keys: tuple[str, ...],
    adds: tuple[str, ...],
    names: tuple[str, ...],
    parameters: tuple[str | None, ...],
    many: bool,
    placeholder: str,
) -> str:
    by_name = dict(zip(names, parameters, strict=True))
    arrays = [name for name, parameter in by_name.items() if parameter is not None and parameter.startswith(_ARRAY)]
    sent = {name: "NULL" if parameter is None else placeholder.format(parameter) for name, parameter in by_name.items()}
    terms = {name: f"v.{name}" if name in arrays else term for name, term in sent.items()}
    source = ""
    if arrays:
        columns = ", ".join(f"CAST({sent[name]} AS {_array_type(table, name)})" for name in arrays)
        source = f" FROM unnest({columns}) AS v({', '.join(arrays)})"
        terms |= {
            name: f"CAST({term} AS {_array_type(table, name).removesuffix('[]')})"
            for name, term in terms.items()
            if name not in arrays
        }
    if adds or not keys:
        values = ", ".join(terms.values())
        rows = f"SELECT {values}{source}" if arrays else f"VALUES ({values})"
        insertion = f"INSERT INTO {table.name} AS t ({', '.join(terms)}) {rows}"
        return insertion + on_conflict_add(keys, adds) if adds else insertion
    assignments = ", ".join(f"{name} = {term}" for name, term in terms.items() if name not in keys)
    changed = f"UPDATE {table.name} AS t SET {assignments}"  # noqa: S608
    if not arrays or not many:
        # Said twice, so that the rows are found by their keys whatever PostgreSQL believes of the table's size.
        found = [f"t.{key} = ANY(CAST({sent[key]} AS {_array_type(table, key)}))" for key in keys if key in arrays]
        return f"{changed}{source} WHERE {' AND '.join([*(f't.{key} = {terms[key]}' for key in keys), *found])}"
    # Each row is looked up by its key, which takes longer to begin with than a join; but that compares every row with
    # every other one. The account is locked, so that no row moves meanwhile.
    place = f"SELECT k.ctid AS place FROM {table.name} AS k"  # noqa: S608
    place += f" WHERE {' AND '.join(f'k.{key} = {terms[key]}' for key in keys)} OFFSET 0"
    return f"{changed} FROM (SELECT k.place, v.*{source} CROSS JOIN LATERAL ({place}) AS k) AS v WHERE t.ctid = v.place"


@lru_cache(maxsize=256)
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


def run_own(connection: Connection, *statements: tuple[Statement, Mapping[str, Any]]) -> list[list[dict[str, Any]]]:
    """Run statements of our own transaction in one round trip; rows as mappings, times in UTC.

    SQLAlchemy's part costs more than a statement of ours does. Its errors and its handling of lost connections stay.

    Raises:
        DBAPIError: as ``Connection.execute`` would.
    """
    import psycopg

    from agentcredits.store import libpq

    raw: Any = connection.connection.dbapi_connection
    if not connection.in_transaction():
        # The transaction begins with what is sent; SQLAlchemy has to know that there is something to end.
        connection.begin()
    try:
        return libpq.run(raw, connection.info.get(KNOWN), *statements)
    except psycopg.Error as error:
        if error.sqlstate in NOT_PREPARED_STATES:
            # A pooler gives each transaction another server connection.
            connection.info.pop(KNOWN, None)
        # After a fail-over a connection to the old primary may live on: kept, it would refuse every write from now on.
        lost = connection.dialect.is_disconnect(cast("Any", error), raw, None) or error.sqlstate == READ_ONLY_STATE
        if lost:
            connection.invalidate(error)
        raise DBAPIError.instance(
            statements[0][0].sql.decode(),
            None,
            error,
            psycopg.Error,
            hide_parameters=True,
            connection_invalidated=lost,
            dialect=connection.dialect,
        ) from error


def is_psycopg(connection: Connection) -> bool:
    """Whether psycopg's own connection can be used."""
    return connection.dialect.driver == "psycopg"
