"""Statements on libpq's own pipeline: one round trip for all of them, and hardly any work in Python for each.

psycopg's cursors parse, convert and describe every statement anew, which takes longer than PostgreSQL takes to run it.
Here a statement is prepared once for each connection, parameters go out as texts (PostgreSQL finds their types in the
statement), and psycopg reads the results. Only for connections and transactions that nobody else uses meanwhile.
"""

from __future__ import annotations

import hashlib
import re
import select
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property, lru_cache
from typing import Any, Final

from psycopg import OperationalError, pq
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result

#: Statements that one connection keeps prepared; further ones are parsed each time.
MAX_PREPARED: Final = 64

#: How long statements are waited for before anything else is done: longer than it takes to read an account that nobody
#: has locked.
PATIENCE_MS: Final = 2

_PARAMETER = re.compile(r"%\((\w+)\)s")
_GOOD: Final = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)


@dataclass(frozen=True)
class Statement:
    """A statement with numbered parameters, and their names in that order."""

    sql: bytes
    names: tuple[str, ...] = ()

    @cached_property
    def name(self) -> bytes:
        """Its name once it is prepared: never that of another statement, whoever shares the connection."""
        return b"agentcredits_" + hashlib.md5(self.sql, usedforsecurity=False).hexdigest().encode()


@lru_cache(maxsize=1024)
def numbered(sql: str) -> Statement:
    """A statement with parameters such as ``%(name)s``, as PostgreSQL itself takes it."""
    names: dict[str, int] = {}
    text = _PARAMETER.sub(lambda found: f"${names.setdefault(found[1], len(names) + 1)}", sql)
    return Statement(text.replace("%%", "%").encode(), tuple(names))


COMMIT: Final = Statement(b"COMMIT")


@dataclass(slots=True)
class Known:
    """What is remembered of one connection.

    Attributes:
        prepared: The names of what is prepared on it.
        readers: How the rows of a statement are read.
        meanwhile: What whoever uses it can do while the server works.
    """

    prepared: set[bytes] = field(default_factory=set)
    readers: dict[bytes, Any] = field(default_factory=dict)
    meanwhile: Callable[[], None] | None = None

    def catch_up(self) -> None:
        """Do now what can be done meanwhile."""
        work, self.meanwhile = self.meanwhile, None
        if work is not None:
            work()


def begin(raw: Any) -> tuple[Statement, ...]:
    """BEGIN as the connection was told to; nothing, where it has begun."""
    if raw.pgconn.transaction_status != pq.TransactionStatus.IDLE:
        return ()
    level = raw.isolation_level
    if level is None:
        return (_BEGIN,)
    return (Statement(f"BEGIN ISOLATION LEVEL {level.name.replace('_', ' ')}".encode()),)


_BEGIN: Final = Statement(b"BEGIN")


def run(raw: Any, known: Known | None, *statements: tuple[Statement, Mapping[str, Any]]) -> list[list[dict[str, Any]]]:
    """Run statements in order, in one round trip; their rows, times in UTC.

    Args:
        raw: A psycopg connection that nobody else uses meanwhile.
        known: What is remembered of it, changed here; None: nothing may be prepared on it.
        statements: With their parameters.

    Raises:
        psycopg.Error: of the first statement that failed; those after it were not run. Other errors than those of the
            database leave the connection unusable: it is closed.
    """
    pgconn, encoding = raw.pgconn, raw.info.encoding
    prepared = None if known is None else known.prepared
    sent = [
        (statement, [to_text(parameters[name], encoding) for name in statement.names])
        for statement, parameters in statements
    ]
    new: list[bytes] = []
    try:
        pgconn.enter_pipeline_mode()
        for statement, values in sent:
            if not values or prepared is None:
                pgconn.send_query_params(statement.sql, values)
                continue
            if statement.name not in prepared and statement.name not in new:
                if len(prepared) + len(new) >= MAX_PREPARED:
                    pgconn.send_query_params(statement.sql, values)
                    continue
                new.append(statement.name)
                pgconn.send_prepare(statement.name, statement.sql)
            pgconn.send_query_prepared(statement.name, values)
        pgconn.pipeline_sync()
        # COMMIT always takes its time.
        results = _results(pgconn, known, 0 if statements[-1][0] is COMMIT else PATIENCE_MS)
        pgconn.exit_pipeline_mode()
    except BaseException:
        # In mid-pipeline nothing is known of the connection any more.
        pgconn.finish()
        raise
    answers = iter(results)
    executed = []
    failed = None
    for statement, _ in statements:
        if prepared is not None and statement.name in new:
            new.remove(statement.name)
            result = next(answers)
            if result.status in _GOOD:
                # It stays, whatever becomes of the transaction.
                prepared.add(statement.name)
            failed = failed or _failure(result)
        executed.append(next(answers))
        failed = failed or _failure(executed[-1])
    if failed is not None:
        raise error_from_result(failed, encoding=encoding)
    return [_rows(raw, known, statement, result) for (statement, _), result in zip(statements, executed, strict=True)]


def _failure(result: Any) -> Any:
    return None if result.status in _GOOD else result


def _results(pgconn: Any, known: Known | None, patience_ms: int) -> list[Any]:
    """Send what is queued and read up to the end of the pipeline; the results without the ends between them.

    What can be done meanwhile is done when nothing has come after ``patience_ms``.
    """
    poll = select.poll()
    poll.register(pgconn.socket, select.POLLIN)
    if pgconn.flush():
        _send(pgconn)
    found: list[Any] = []
    try:
        while True:
            while pgconn.is_busy():
                if known is not None and known.meanwhile is not None and not poll.poll(patience_ms):
                    known.catch_up()
                poll.poll()
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:
                # The end of one statement's results.
                _refuse_broken(pgconn)
            elif result.status == pq.ExecStatus.PIPELINE_SYNC:
                return found
            else:
                found.append(result)
    except OperationalError:
        # The server's last words say more than that it is gone.
        if found and found[-1].status == pq.ExecStatus.FATAL_ERROR:
            raise error_from_result(found[-1]) from None
        raise


def _refuse_broken(pgconn: Any) -> None:
    if pgconn.status != pq.ConnStatus.OK:
        raise OperationalError(pgconn.get_error_message() or "the connection was lost")


def _send(pgconn: Any) -> None:
    """A large batch: read meanwhile, so that neither side waits for the other for ever."""
    poll = select.poll()
    poll.register(pgconn.socket, select.POLLIN | select.POLLOUT)
    while pgconn.flush():
        if any(events & ~select.POLLOUT for _, events in poll.poll()):
            pgconn.consume_input()


#: The columns of our few reading statements, and which of them are times.
_columns: Final[dict[bytes, tuple[tuple[str, ...], tuple[int, ...]]]] = {}
_TIMESTAMPTZ: Final = 1184


def _rows(raw: Any, known: Known | None, statement: Statement, result: Any) -> list[dict[str, Any]]:
    if not result.nfields:
        return []
    columns = _columns.get(statement.sql)
    if columns is None:
        places = range(result.nfields)
        names = tuple(result.fname(place).decode() for place in places)
        columns = names, tuple(place for place in places if result.ftype(place) == _TIMESTAMPTZ)
        _columns[statement.sql] = columns
    names, times = columns
    transformer = None if known is None else known.readers.get(statement.sql)
    if transformer is None:
        transformer = Transformer(raw)
        transformer.set_pgresult(result)
        if known is not None:
            known.readers[statement.sql] = transformer
    else:
        # How its columns are read was found out when it came first.
        transformer.set_pgresult(result, set_loaders=False)
    found = []
    for values in transformer.load_rows(0, result.ntuples, list):
        for place in times:
            if values[place] is not None:
                values[place] = values[place].astimezone(UTC)
        found.append(dict(zip(names, values, strict=True)))
    return found


# -- values ------------------------------------------------------------------------------------------------------


def to_text(value: Any, encoding: str) -> bytes | None:
    """A value as PostgreSQL reads it."""
    if value is None:
        return None
    text: str = _TEXTS.get(type(value), _text)(value)
    return text.encode(encoding)


def _text(value: Any) -> str:
    """Also of what is derived from the plain types."""
    for kind, text in _TEXTS.items():
        if isinstance(value, kind):
            return text(value)
    raise TypeError(f"{type(value).__name__} is not a value of this schema")


def array_text(column: Sequence[Any]) -> str:
    """An array as PostgreSQL reads it."""
    first = column[0] if column else None
    if type(first) is str and None not in column:
        elements = '","'.join(column)
        if "\\" not in elements and elements.count('"') == 2 * (len(column) - 1):
            return f'{{"{elements}"}}'
    elif type(first) is int and None not in column:
        return f"{{{','.join(map(str, column))}}}"
    return f"{{{','.join(map(_element, column))}}}"


def _element(value: Any) -> str:
    if value is None:
        return "NULL"
    text = _TEXTS.get(type(value), _text)(value)
    if not isinstance(value, str | datetime):
        return text
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}"'


_TEXTS: Final[dict[type, Callable[[Any], str]]] = {
    str: str,
    bool: lambda value: "t" if value else "f",
    int: str,
    datetime: datetime.isoformat,
    Decimal: "{:f}".format,
    tuple: array_text,
    list: array_text,
}
