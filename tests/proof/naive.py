"""Tills as one would write them at first. Each harness must find what is wrong with them, or its figure says nothing.

A number for the balance and a row for each charge, as in so many tutorials:

| till | what is wrong |
|---|---|
| SelectThenUpdate | reads the balance, then writes what it worked out; the row in a transaction of its own |
| NoKey | one right transaction, done again when its answer is lost, and nothing that knows the call again |
| PlainBegin | SQLite's deferred BEGIN: a reader that wants to write is told "database is locked" at once |
| FloatAmounts | keys, locks and transactions are right; amounts are binary fractions |
| AnswerFirst | answers, then writes: a queue in memory |
| all of them | take the credits before the work, and never look again at work that died |
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from agentcredits.store.dialects import normalise_url
from tests.proof.books import Books, Call
from tests.proof.tills import GRANTED_MICROS, Refused


class _Naive:
    """The tables, and a transaction that locks as it should; each till spoils one thing."""

    begin = "BEGIN IMMEDIATE"
    unit = "BIGINT"

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self.engine = create_engine(normalise_url(url), pool_size=8, connect_args=_patience(url))
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _begin_by_hand)
            event.listen(self.engine, "begin", lambda connection: connection.exec_driver_sql(self.begin))

    def do(self, call: Call) -> str:
        if call.effect_micros:
            self._book(call)
        return call.key

    def _book(self, call: Call) -> None:
        with self.engine.begin() as connection:
            if not _is_known(connection, call):
                self._move(connection, call)

    def _move(self, connection: Connection, call: Call) -> None:
        connection.execute(text("UPDATE naive_account SET balance = balance + :change"), {"change": self._change(call)})
        _insert_row(connection, call)

    def _change(self, call: Call) -> Any:
        return call.effect_micros

    @contextmanager
    def working(self, call: Call) -> Iterator[None]:
        """Take the credits, then work: what fails is given back, what dies is not."""
        self.do(call)
        try:
            yield
        except Exception:
            self.do(Call("refund", f"{call.key}-back", call.micros))
            raise

    def close(self) -> bool:
        self.engine.dispose()
        return True

    @classmethod
    def prepare(cls, url: str) -> None:
        engine = create_engine(normalise_url(url), connect_args=_patience(url))
        sqlite = engine.dialect.name == "sqlite"
        number = "INTEGER PRIMARY KEY" if sqlite else "BIGSERIAL PRIMARY KEY"
        with engine.begin() as connection:
            for name in ("naive_account", "naive_rows"):
                connection.execute(text(f"DROP TABLE IF EXISTS {name}"))
            connection.execute(text(f"CREATE TABLE naive_account (balance {cls.unit} NOT NULL)"))
            connection.execute(
                text(f"CREATE TABLE naive_rows (id {number}, key TEXT NOT NULL, micros BIGINT NOT NULL)")
            )
            connection.execute(text("CREATE INDEX naive_keys ON naive_rows (key)"))
            connection.execute(text("INSERT INTO naive_account VALUES (:granted)"), {"granted": GRANTED_MICROS})
        engine.dispose()

    @classmethod
    def read_books(cls, url: str) -> Books:
        engine = create_engine(normalise_url(url), connect_args=_patience(url))
        with engine.connect() as connection:
            rows = [(str(key), int(micros)) for key, micros in connection.execute(text(_ROWS))]
            balance = connection.execute(text("SELECT balance FROM naive_account")).scalar_one()
        engine.dispose()
        expected = GRANTED_MICROS + sum(micros for _, micros in rows)
        return Books(rows, [] if cls._micros(balance) == expected else [f"balance {balance} instead of {expected}"])

    @staticmethod
    def held_micros(url: str) -> int:
        return 0

    @staticmethod
    def _micros(balance: Any) -> Decimal:
        return Decimal(balance)


_ROWS = "SELECT key, micros FROM naive_rows"


def _patience(url: str) -> dict[str, Any]:
    return {"timeout": 10} if url.startswith("sqlite") else {"connect_timeout": 5}


def _begin_by_hand(connection: Any, _record: object) -> None:
    connection.isolation_level = None


def _is_known(connection: Connection, call: Call) -> bool:
    # The lock first: two callers with one key must not both find nothing.
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT balance FROM naive_account FOR UPDATE"))
    return connection.execute(text(f"{_ROWS} WHERE key = :key"), {"key": call.key}).first() is not None


def _insert_row(connection: Connection, call: Call) -> None:
    connection.execute(
        text("INSERT INTO naive_rows (key, micros) VALUES (:key, :micros)"),
        {"key": call.key, "micros": call.effect_micros},
    )


class SelectThenUpdate(_Naive):
    """Check, then act."""

    begin = "BEGIN"

    def _book(self, call: Call) -> None:
        with self.engine.begin() as connection:
            if connection.execute(text(f"{_ROWS} WHERE key = :key"), {"key": call.key}).first() is not None:
                return
            balance = connection.execute(text("SELECT balance FROM naive_account")).scalar_one()
        with self.engine.begin() as connection:
            connection.execute(text("UPDATE naive_account SET balance = :new"), {"new": balance + call.effect_micros})
        with self.engine.begin() as connection:
            _insert_row(connection, call)


class NoKey(_Naive):
    """Tries again when the connection is lost. Its answers travel for some milliseconds, as they do over a network."""

    def _book(self, call: Call) -> None:
        for _ in range(200):
            try:
                with self.engine.begin() as connection:
                    self._move(connection, call)
            except DBAPIError:
                time.sleep(0.02)
            else:
                time.sleep(0.005)
                return
        raise Refused


class PlainBegin(_Naive):
    """What the standard library does by itself."""

    begin = "BEGIN"


class FloatAmounts(_Naive):
    """Credits as floats: 0.1 + 0.2."""

    unit = "DOUBLE PRECISION"

    def _change(self, call: Call) -> Any:
        return call.effect_micros / 10**6

    @classmethod
    def prepare(cls, url: str) -> None:
        super().prepare(url)
        engine = create_engine(normalise_url(url), connect_args=_patience(url))
        with engine.begin() as connection:
            connection.execute(text("UPDATE naive_account SET balance = :granted"), {"granted": GRANTED_MICROS / 1e6})
        engine.dispose()

    @staticmethod
    def _micros(balance: Any) -> Decimal:
        return Decimal(balance) * 10**6


class AnswerFirst(_Naive):
    """Fast: the caller does not wait for the database."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        super().__init__(url, options)
        self._queue: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()

    def _book(self, call: Call) -> None:
        self._queue.put(call)

    def _write(self) -> None:
        while (call := self._queue.get()) is not None:
            super()._book(call)

    def close(self) -> bool:
        self._queue.put(None)
        self._writer.join()
        return super().close()
