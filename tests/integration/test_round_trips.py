"""What a posting costs the database: counted on the wire (PostgreSQL) and by SQLite itself, for one charge and many."""

from __future__ import annotations

import asyncio
import os
import re
import uuid
from pathlib import Path
from typing import Any

import pytest
from psycopg import pq
from sqlalchemy import Engine, event

from agentcredits import CreditService, PlannedAction, SyncCreditService, Window
from agentcredits.settings import Settings
from agentcredits.store.dialects import make_engine, normalise_url
from agentcredits.store.prices import read_candidates
from agentcredits.store.sqlite import MOST_ROWS
from agentcredits.store.tables import metadata

WARM = 2  # after the first, every statement is prepared, and it is known whether the account has limits


async def _charge(service: CreditService, many: int, *, keyed: bool = False) -> None:
    """At once. A poster that still ends the batch before would take the first of them alone, so it is waited for."""
    lanes = service._core.runner._lanes
    while lanes._idle < len(lanes._threads) or not lanes._calls.empty():  # noqa: ASYNC110  # another thread
        await asyncio.sleep(0.001)
    await asyncio.gather(
        *(
            service.consume_credits(
                organization_id="acme",
                amount=1,
                department_id="sales",
                idempotency_key=str(uuid.uuid4()) if keyed else None,
            )
            for _ in range(many)
        )
    )


class Wire:
    """The messages that libpq sends, by its own trace."""

    def __init__(self, engine: Engine, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        event.listen(engine, "connect", self._trace)
        self._read = 0

    def _trace(self, connection: Any, _record: object) -> None:
        connection.pgconn.trace(self._file)
        connection.pgconn.set_trace_flags(pq.Trace.SUPPRESS_TIMESTAMPS)

    def counts(self) -> dict[str, int]:
        """Statements executed, round trips and commits since the last call."""
        text = self._path.read_text(errors="replace")
        new, self._read = text[self._read :], len(text)
        return {
            "statements": len(re.findall(r"^F\t\d+\tExecute", new, re.MULTILINE)),
            "round trips": len(re.findall(r"^B\t\d+\tReadyForQuery", new, re.MULTILINE)),
            "commits": len(re.findall(r'CommandComplete\t "COMMIT"', new)),
        }

    def close(self) -> None:
        """End the trace's file."""
        os.close(self._file)


@pytest.mark.postgres
@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("keyed", [False, True])
async def test_a_posting_takes_two_round_trips_however_many_operations_it_books(
    postgresql_url: str, tmp_path: Path, limited: bool, keyed: bool
) -> None:
    """BEGIN, the lock and the loads; all writes and COMMIT. Limits are one statement more, and so are callers' keys."""
    engine = make_engine(normalise_url(postgresql_url), pool_size=1, lock_timeout_seconds=5, sqlite_synchronous="FULL")
    wire = Wire(engine, tmp_path / "wire.txt")
    async with CreditService(engine) as service:
        await service.grant_credits("acme", 100_000)
        if limited:
            await service.set_limit("acme", amount=50_000, window=Window.calendar("month"))
            await service.set_limit(
                "acme", scope="department", scope_id="sales", amount=50_000, window=Window.calendar("month")
            )
        for _ in range(WARM):
            await _charge(service, 1, keyed=keyed)
            await _charge(service, 64, keyed=keyed)
        wire.counts()
        await _charge(service, 1, keyed=keyed)
        one = wire.counts()
        await _charge(service, 64, keyed=keyed)
        many = wire.counts()
    engine.dispose()
    wire.close()
    assert one == many
    assert one == {"statements": 5 + limited + keyed, "round trips": 2, "commits": 1}


@pytest.mark.postgres
def test_a_price_that_is_not_known_takes_one_round_trip(postgresql_url: str, tmp_path: Path) -> None:
    """The rows come with the database's clock; only where there is none is the clock asked for."""
    engine = make_engine(normalise_url(postgresql_url), pool_size=1, lock_timeout_seconds=5, sqlite_synchronous="FULL")
    wire = Wire(engine, tmp_path / "wire.txt")
    with SyncCreditService(engine, settings=Settings(price_cache_seconds=0)) as service:
        service.set_cost("WriterAgent", "write", 5)
        for _ in range(2 * WARM):
            assert service.quote("acme", [PlannedAction("WriterAgent", "write")]).total == 5
        wire.counts()
        read = service._core.runner.read
        rows, _ = read(lambda connection: read_candidates(connection, "acme", "WriterAgent", "write", None))
        priced = wire.counts()
        none, _ = read(lambda connection: read_candidates(connection, "acme", "WriterAgent", "draw", None))
        unpriced = wire.counts()
        with engine.connect() as connection:
            assert not connection.connection.dbapi_connection.autocommit  # type: ignore[union-attr]
    engine.dispose()
    wire.close()
    assert (len(rows), none) == (1, ())
    assert (priced["round trips"], unpriced["round trips"]) == (1, 2)


@pytest.mark.parametrize("keyed", [False, True])
async def test_sqlite_sees_as_many_kinds_of_statements_for_one_charge_as_for_many(sqlite_url: str, keyed: bool) -> None:
    """One transaction, a statement for each table and up to 32 rows; every row arrives. Callers' keys are read once."""
    engine = make_engine(normalise_url(sqlite_url), pool_size=1, lock_timeout_seconds=5, sqlite_synchronous="FULL")
    seen: list[str] = []
    event.listen(engine, "connect", lambda connection, _record: connection.set_trace_callback(seen.append))
    async with CreditService(engine) as service:
        await service.grant_credits("acme", 100_000)
        await _charge(service, 1, keyed=keyed)
        kinds = []
        for many, insertions in ((1, 1), (64, 2), (77, 5)):
            seen.clear()
            await _charge(service, many, keyed=keyed)
            kinds.append(list(dict.fromkeys(_kind(sql) for sql in seen if not sql.startswith("PRAGMA"))))
            assert sum(sql.startswith("COMMIT") for sql in seen) == 1
            assert sum(sql.startswith("INSERT INTO credit_transactions ") for sql in seen) == insertions
        assert (await service.get_balance("acme")).available == 100_000 - 1 - 1 - 64 - 77
        report = await service.verify("acme")
    engine.dispose()
    assert report.ok
    assert kinds[0] == kinds[1] == kinds[2]
    assert len(kinds[0]) == 9 + 2 * keyed, kinds[0]


def test_no_insertion_has_more_parameters_than_any_sqlite_takes() -> None:
    """999 before SQLite 3.32."""
    widest = max(len(table.columns) for table in metadata.tables.values())
    assert widest * MOST_ROWS <= 999


def test_sqlite_is_told_once_not_to_wait_by_itself(sqlite_url: str) -> None:
    """A connection that posters keep is set once; a charge begins with BEGIN."""
    with SyncCreditService(sqlite_url) as service:
        service.grant_credits("acme", 100)
        runner = service._core.runner
        seen: list[str] = []
        (kept,) = runner._spare._idle
        raw: Any = kept.connection.dbapi_connection
        raw.set_trace_callback(seen.append)
        for _ in range(3):
            service.consume_credits(amount=1, organization_id="acme")
        raw.set_trace_callback(None)
    assert not [sql for sql in seen if sql.startswith("PRAGMA")]
    assert sum(sql.startswith("BEGIN IMMEDIATE") for sql in seen) == 3


def _kind(sql: str) -> str:
    """A statement without its values."""
    return " ".join(sql.split()[:3])
