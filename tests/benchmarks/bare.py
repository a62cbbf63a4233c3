"""The ceiling: charges that wait together share one transaction, and Python decides nothing.

What batching alone gives on this machine, with as little of it in Python as there can be: a call is a future and a new
key, a batch is one round trip that takes the sum from one balance and adds it to two counters (guarded by CHECKs) and
inserts the rows. No price, no grants, no repeated keys, no refusal that says why, no cancellation, no fork, no retry:
one call that is refused fails its whole batch.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import uuid
from abc import abstractmethod
from collections.abc import Awaitable, Sequence
from typing import Any

import psycopg
from sqlalchemy import make_url

from tests.benchmarks.contestants import DEPARTMENT, HOT_LIMITED, PLENTY, Coroutine
from tests.benchmarks.minimal import driverless

CEILING = "bare batches"

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS bare_accounts (id TEXT PRIMARY KEY, balance BIGINT NOT NULL CHECK (balance >= 0))",
    "CREATE TABLE IF NOT EXISTS bare_limits (account TEXT NOT NULL, scope TEXT NOT NULL, used BIGINT NOT NULL,"
    " most BIGINT NOT NULL, PRIMARY KEY (account, scope), CHECK (used <= most))",
    "CREATE TABLE IF NOT EXISTS bare_ledger (key TEXT PRIMARY KEY, account TEXT NOT NULL, department TEXT NOT NULL,"
    " action TEXT NOT NULL, amount BIGINT NOT NULL, at {time} NOT NULL)",
    f"INSERT INTO bare_accounts VALUES ('{HOT_LIMITED}', {PLENTY}) ON CONFLICT DO NOTHING",
    f"INSERT INTO bare_limits VALUES ('{HOT_LIMITED}', '', 0, {PLENTY}), ('{HOT_LIMITED}', '{DEPARTMENT}', 0, {PLENTY})"
    " ON CONFLICT DO NOTHING",
)
TAKE = f"UPDATE bare_accounts SET balance = balance - {{count}} WHERE id = '{HOT_LIMITED}'"
COUNT = (
    f"UPDATE bare_limits SET used = used + {{count}} WHERE account = '{HOT_LIMITED}' AND scope IN ('', '{DEPARTMENT}')"
)
ROW = f"'{HOT_LIMITED}', '{DEPARTMENT}', 'generate_content', -1, {{now}}"

Waiting = tuple[str, asyncio.AbstractEventLoop, asyncio.Future[None]]


class Bare(Coroutine):
    """A thread that books whatever waits; the callers' loop is woken once for each batch."""

    name = CEILING
    callers = (1, 8, 32, 128, 512)

    def __init__(self, url: str) -> None:
        self._url = url
        self._waiting: list[Waiting] = []
        self._calls: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve)

    async def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        self._calls.put(False)
        self._thread.join()

    def charge(self) -> Awaitable[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append((uuid.uuid4().hex, loop, future))
        if len(self._waiting) == 1:
            loop.call_soon(self._calls.put, True)
        return future

    @abstractmethod
    def connect(self) -> None:
        """Connect, and make what is charged."""

    @abstractmethod
    def book(self, keys: Sequence[str]) -> None:
        """One transaction for these charges."""

    @abstractmethod
    def close(self) -> None:
        """Disconnect."""

    def _serve(self) -> None:
        self.connect()
        while self._calls.get():
            batch, self._waiting = self._waiting, []
            if batch:
                error = None
                try:
                    self.book([key for key, _, _ in batch])
                except (psycopg.Error, sqlite3.Error) as refusal:
                    error = refusal
                batch[0][1].call_soon_threadsafe(_answer, batch, error)
        self.close()


def _answer(batch: Sequence[Waiting], error: Exception | None) -> None:
    for _, _, future in batch:
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


class BarePostgres(Bare):
    """psycopg's pipeline: BEGIN, one statement and COMMIT in one round trip."""

    def connect(self) -> None:
        self._connection = psycopg.connect(driverless(self._url))
        for statement in SCHEMA:
            self._connection.execute(statement.format(time="TIMESTAMPTZ").encode())
        self._connection.commit()
        take, count = TAKE.format(count="%(count)s"), COUNT.format(count="%(count)s")
        row = ROW.format(now="clock_timestamp()")
        self._statement = (
            f"WITH taken AS ({take}), counted AS ({count})"
            f" INSERT INTO bare_ledger SELECT key, {row} FROM unnest(%(keys)s::text[]) AS key"
        ).encode()

    def book(self, keys: Sequence[str]) -> None:
        with self._connection.pipeline():
            self._connection.execute(self._statement, {"count": len(keys), "keys": keys}, prepare=True)
            self._connection.commit()

    def close(self) -> None:
        self._connection.close()


class BareSqlite(Bare):
    """sqlite3, BEGIN IMMEDIATE, WAL, ``synchronous=FULL``."""

    def connect(self) -> None:
        self._connection = sqlite3.connect(str(make_url(self._url).database), isolation_level=None)
        for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL"):
            self._connection.execute(statement)
        for statement in SCHEMA:
            self._connection.execute(statement.format(time="TEXT"))
        self._row = f"INSERT INTO bare_ledger VALUES (?, {ROW.format(now='CURRENT_TIMESTAMP')})"

    def book(self, keys: Sequence[str]) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        execute(TAKE.format(count="?"), (len(keys),))
        execute(COUNT.format(count="?"), (len(keys),))
        self._connection.executemany(self._row, [(key,) for key in keys])
        execute("COMMIT")

    def close(self) -> None:
        self._connection.close()


def make_ceiling(url: str) -> Bare:
    """The ceiling of this database."""
    return BareSqlite(url) if url.startswith("sqlite") else BarePostgres(url)
