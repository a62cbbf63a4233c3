"""PostgreSQL: one account's row lock for each transaction, few round trips, all writes in one statement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, Literal, cast

from sqlalchemy import (
    BigInteger,
    Boolean,
    Connection,
    Integer,
    String,
    Table,
    TextClause,
    and_,
    bindparam,
    func,
    literal_column,
    select,
    text,
)
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg as psycopg_dialect
from sqlalchemy.exc import DBAPIError

from agentcredits.errors import ConfigurationError
from agentcredits.store import tenancy
from agentcredits.store.columns import ExactNumeric, UtcDateTime
from agentcredits.store.dialects import (
    ACCOUNT,
    HAS_LIMITS,
    HAS_RUNS,
    Opened,
    RowLike,
    StoreDialect,
    Write,
    on_conflict_add,
)
from agentcredits.store.faults import READ_ONLY_STATE
from agentcredits.store.tables import credit_accounts, credit_grants


class PostgreSQLDialect(StoreDialect):
    """PostgreSQL: READ COMMITTED and the account's row lock."""

    name = "postgresql"
    mixes_accounts = False

    def begin_write(self, connection: Connection, timeout_seconds: float) -> None:
        """Own transactions never wait longer than the time-out for a lock."""
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(timeout_seconds * 1000)}")

    def begin_posting(self, connection: Connection, timeout_seconds: float) -> None:
        """Nothing to send: the statement that locks the account begins, and also sets how long it waits."""
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

    def open_account(self, connection: Connection, organization_id: str, timeout_seconds: float | None) -> Opened:
        """Two statements: the lock, and what starts after it was got, so that its clock and its snapshot are new.

        ``timeout_seconds`` None leaves the lock's time-out alone (the transaction is the caller's). An own one sends
        both, and its BEGIN, in one round trip.
        """
        place = {"organization": organization_id}
        account: RowLike | None
        rows: Sequence[RowLike]
        if timeout_seconds is None:
            tenancy.enter(connection, organization_id)
            account = connection.execute(_ACCOUNT_LOCKED, place).mappings().first()
            rows = connection.execute(_OPEN_GRANTS_AND_CLOCK, place).mappings().all()
        else:
            timed = {**place, "timeout": str(round(timeout_seconds * 1000))}
            tenant = ((tenancy.SET_TENANT_SQL, place),) if tenancy.applies(connection) else ()
            *_, locked, rows = run_raw(connection, *tenant, (_LOCK_SQL, timed), (_LOADS_SQL, place))
            account = locked[0] if locked else None
        first = rows[0]
        grants = [row for row in rows if row["id"] is not None]
        return Opened(account, grants, first["read_at"].astimezone(UTC), first["has_limits"], first["has_runs"])

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
            forms: list[tuple[str, _Form, str]] = []
            for name, column in entry.columns.items():
                parameter = _parameter(place, name)
                value = column[0]
                if column.count(value) < len(column):
                    parameter = arrays.setdefault((_array_type(entry.table, name), tuple(column)), parameter)
                    parameters[parameter] = column
                    forms.append((name, "array", parameter))
                elif value is None:
                    forms.append((name, "null", ""))
                else:
                    parameters[parameter] = value
                    forms.append((name, "value", parameter))
            shape.append((entry.table, entry.keys, entry.adds, tuple(forms)))
        if is_own(connection):
            # The same statement without SQLAlchemy's own work on fifty parameters.
            for parameter in arrays.values():
                parameters[parameter] = _array_literal(parameters[parameter])
            run_raw(connection, (_write_sql(tuple(shape), "%({})s"), parameters), last=last)
        else:
            for parameter in arrays.values():
                parameters[parameter] = list(parameters[parameter])
            connection.execute(_write_statement(tuple(shape)), parameters)


def _array_literal(column: Sequence[Any]) -> Any:
    """An array as the text that PostgreSQL reads, where that is simple: psycopg looks at every single element."""
    first = column[0]
    if type(first) is str and None not in column:
        elements = '","'.join(column)
        if "\\" not in elements and elements.count('"') == 2 * (len(column) - 1):
            return f'{{"{elements}"}}'
    elif type(first) is int and None not in column:
        return f"{{{','.join(map(str, column))}}}"
    return list(column)


_Form = Literal["null", "value", "array"]
_Part = tuple[Table, tuple[str, ...], tuple[str, ...], tuple[tuple[str, _Form, str], ...]]
"""Table, key columns (none: insert), columns to add to, and how and as which parameter each column is sent."""


@lru_cache(maxsize=1024)
def _write_statement(shape: tuple[_Part, ...]) -> TextClause:
    return text(_write_sql(shape, ":{}"))


@lru_cache(maxsize=1024)
def _write_sql(shape: tuple[_Part, ...], placeholder: str) -> str:
    """Data-modifying CTEs: the parts never touch the same row, so that their order does not matter."""
    parts = [_write_part(table, keys, adds, forms, placeholder) for table, keys, adds, forms in shape]
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
    forms: tuple[tuple[str, _Form, str], ...],
    placeholder: str,
) -> str:
    arrays = [name for name, form, _ in forms if form == "array"]
    sent = {name: placeholder.format(parameter) for name, _, parameter in forms}
    terms = {name: {"null": "NULL", "value": sent[name], "array": f"v.{name}"}[form] for name, form, _ in forms}
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
    condition = " AND ".join(f"t.{key} = {terms[key]}" for key in keys)
    return f"UPDATE {table.name} AS t SET {assignments}{source} WHERE {condition}"  # noqa: S608


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


def run_raw(
    connection: Connection, *statements: tuple[str, Mapping[str, Any]], last: bool = False
) -> list[list[dict[str, Any]]]:
    """Run statements on psycopg's own connection, in one round trip where libpq can; rows as mappings, times in UTC.

    SQLAlchemy's part costs more than a statement of ours does. Its errors and its handling of lost connections stay.
    With ``last`` the transaction is committed in the same round trip where that can be done; the caller commits anyway.

    Raises:
        DBAPIError: as ``Connection.execute`` would.
    """
    import psycopg

    raw: Any = connection.connection.dbapi_connection
    if not connection.in_transaction():
        # psycopg begins by itself; SQLAlchemy has to know that there is something to end.
        connection.begin()
    try:
        if not (last or len(statements) > 1) or not psycopg.Pipeline.is_supported():
            cursors = [raw.execute(sql, parameters) for sql, parameters in statements]
        else:
            with raw.pipeline():
                cursors = [raw.execute(sql, parameters) for sql, parameters in statements]
                if last:
                    raw.execute("COMMIT", prepare=False)  # commit() would wait for an answer of its own
        return [_rows(sql, cursor) for (sql, _), cursor in zip(statements, cursors, strict=True)]
    except psycopg.Error as error:
        # After a fail-over a connection to the old primary may live on: kept, it would refuse every write from now on.
        lost = connection.dialect.is_disconnect(cast("Any", error), raw, None) or error.sqlstate == READ_ONLY_STATE
        if lost:
            connection.invalidate(error)
        raise DBAPIError.instance(
            statements[0][0],
            None,
            error,
            psycopg.Error,
            hide_parameters=True,
            connection_invalidated=lost,
            dialect=connection.dialect,
        ) from error


#: The columns of our few reading statements: psycopg describes them anew with every result.
_names: Final[dict[str, list[str]]] = {}


def _rows(sql: str, cursor: Any) -> list[dict[str, Any]]:
    if not cursor.pgresult.nfields:
        return []
    names = _names.get(sql)
    if names is None:
        names = _names[sql] = [column.name for column in cursor.description]
    return [
        {
            name: value.astimezone(UTC) if isinstance(value, datetime) else value
            for name, value in zip(names, row, strict=True)
        }
        for row in cursor.fetchall()
    ]


def is_own(connection: Connection) -> bool:
    """Whether psycopg's own connection can be used: not in a session of the caller's, which may run another driver."""
    return connection.dialect.driver == "psycopg" and not connection.in_nested_transaction()


_ACCOUNT_LOCKED: Final = ACCOUNT.with_for_update(key_share=True)
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
_ONE: Final = select(literal_column("1").label("one")).subquery("one")
_OPEN_GRANTS_AND_CLOCK: Final = select(
    func.clock_timestamp().label("read_at"),
    HAS_LIMITS.label("has_limits"),
    HAS_RUNS.label("has_runs"),
    credit_grants,
).select_from(
    _ONE.outerjoin(
        credit_grants, and_(credit_grants.c.organization_id == bindparam("organization"), credit_grants.c.is_open)
    )
)


# As psycopg takes them.
_PSYCOPG: Final = psycopg_dialect()  # type: ignore[no-untyped-call]
_LOCK_SQL: Final = str(_ACCOUNT_LOCKED_IN_TIME.compile(dialect=_PSYCOPG))
_LOADS_SQL: Final = str(_OPEN_GRANTS_AND_CLOCK.compile(dialect=_PSYCOPG))
