"""What people write by hand: AsyncSession, SELECT … FOR UPDATE, one transaction per charge."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, ForeignKey, Integer, String, event, make_url, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.benchmarks.contestants import DEPARTMENT, HOT, HOT_LIMITED, PLENTY, Coroutine


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


class OrmLimit(Base):
    """A limit of one month with its counter; department '' is the organization's own."""

    __tablename__ = "orm_limits"
    account_id: Mapped[str] = mapped_column(ForeignKey("orm_accounts.id"), primary_key=True)
    department: Mapped[str] = mapped_column(String(64), primary_key=True)
    month: Mapped[str] = mapped_column(String(7), primary_key=True)
    used: Mapped[int] = mapped_column(BigInteger)
    most: Mapped[int] = mapped_column(BigInteger)


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
    """Price, balance, key, ledger row (aiosqlite or asyncpg)."""

    name = "hand-written ORM"
    callers: tuple[int, ...] = (1, 128)
    account = HOT

    def __init__(self, url: str) -> None:
        driver = "sqlite+aiosqlite" if url.startswith("sqlite") else "postgresql+asyncpg"
        self._url = make_url(url).set(drivername=driver)
        self._engine: AsyncEngine

    async def start(self) -> None:
        # Callers queue for a connection: with 512 of them, longer than the pool's 30 seconds on a slow machine.
        waiting = {"pool_size": 10, "max_overflow": 0, "pool_timeout": 300}
        if self._url.drivername.startswith("sqlite"):
            self._engine = create_async_engine(self._url, connect_args={"timeout": 60}, **waiting)

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
            self._engine = create_async_engine(self._url, **waiting)
        async with self._engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with AsyncSession(self._engine) as session, session.begin():
            await session.merge(OrmPrice(action="generate_content", cost=1))
            await session.merge(OrmAccount(id=self.account, balance=PLENTY))
            await session.flush()
            for limit in self._limits(this_month()):
                await session.merge(limit)

    def _limits(self, month: str) -> Sequence[OrmLimit]:
        return ()

    async def stop(self) -> None:
        await self._engine.dispose()

    async def charge(self) -> None:
        key = str(uuid.uuid4())
        async with AsyncSession(self._engine) as session, session.begin():
            price = (await session.scalars(select(OrmPrice).where(OrmPrice.action == "generate_content"))).one()
            account = (
                await session.scalars(select(OrmAccount).where(OrmAccount.id == self.account).with_for_update())
            ).one()
            if (await session.scalars(select(OrmEntry).where(OrmEntry.key == key))).first() is not None:
                return
            await self._count(session, price.cost)
            if account.balance < price.cost:
                raise RuntimeError("not enough credits")
            account.balance -= price.cost
            session.add(
                OrmEntry(
                    account_id=self.account,
                    key=key,
                    action="generate_content",
                    amount=-price.cost,
                    balance_after=account.balance,
                    at=datetime.now(UTC),
                )
            )

    async def _count(self, session: AsyncSession, cost: int) -> None:
        """No limits."""


class HandWrittenLimited(HandWritten):
    """The same with two limits for the month, counted in rows under the account's lock."""

    name = "hand-written ORM, two limits"
    callers = (1, 8, 32, 128, 512)
    account = HOT_LIMITED

    def _limits(self, month: str) -> Sequence[OrmLimit]:
        return [
            OrmLimit(account_id=self.account, department=department, month=month, used=0, most=PLENTY)
            for department in ("", DEPARTMENT)
        ]

    async def _count(self, session: AsyncSession, cost: int) -> None:
        limits = await session.scalars(
            select(OrmLimit).where(
                OrmLimit.account_id == self.account,
                OrmLimit.department.in_(["", DEPARTMENT]),
                OrmLimit.month == this_month(),
            )
        )
        for limit in limits:
            if limit.used + cost > limit.most:
                raise RuntimeError("limit reached")
            limit.used += cost


def this_month() -> str:
    """The month that counts."""
    return datetime.now(UTC).strftime("%Y-%m")
