"""session= with the async sessions that applications use: on aiosqlite, psycopg and asyncpg."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from agentcredits import (
    AccountLockedError,
    ConfigurationError,
    CreditEvent,
    CreditService,
    InsufficientCreditsError,
    InvalidInputError,
    SyncCreditService,
    Transaction,
    add_hook,
    remove_hook,
)

ACME, ZETA = "acme", "zeta"
INSERT_ORDER = text("INSERT INTO orders (id) VALUES (:id)")
AT_ONCE_SECONDS = 1.0
DRIVERS = [
    "sqlite+aiosqlite",
    pytest.param("postgresql+psycopg", marks=pytest.mark.postgres),
    pytest.param("postgresql+asyncpg", marks=pytest.mark.postgres),
]


@pytest.fixture
def events() -> Iterator[list[CreditEvent]]:
    """What the hooks heard of."""
    heard: list[CreditEvent] = []
    hook = add_hook(heard.append)
    yield heard
    remove_hook(hook)


@contextmanager
def at_once() -> Iterator[None]:
    """What happens inside does not wait for a lock."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < AT_ONCE_SECONDS


@dataclass
class AsyncApp:
    """The coroutine face, and the application's own async engine on the same database."""

    service: CreditService
    engine: AsyncEngine
    blocking: SyncCreditService

    def open(self) -> AsyncSession:
        return AsyncSession(self.engine, expire_on_commit=False)

    async def charge(self, amount: int, organization_id: str = ACME, **arguments: Any) -> Transaction:
        return await self.service.consume_credits(organization_id=organization_id, amount=amount, **arguments)

    async def available(self, organization_id: str = ACME) -> Decimal:
        return (await self.service.get_balance(organization_id)).available

    async def orders(self) -> list[str]:
        async with self.engine.connect() as connection:
            return list((await connection.exec_driver_sql("SELECT id FROM orders ORDER BY id")).scalars())


@pytest.fixture(params=DRIVERS)
async def async_app(request: pytest.FixtureRequest) -> AsyncIterator[AsyncApp]:
    """Each async driver that applications use."""
    driver = request.param
    url = str(request.getfixturevalue(f"{driver.split('+')[0]}_url"))
    engine = create_async_engine(make_url(url).set(drivername=driver))
    async with engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE orders (id TEXT PRIMARY KEY)")
    async with CreditService(url) as service:
        with SyncCreditService(url) as blocking:
            for place in (ACME, ZETA):
                blocking.grant_credits(place, 10)
            yield AsyncApp(service, engine, blocking)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("DROP TABLE orders")
    await engine.dispose()


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_an_async_session_commits_or_rolls_back_both(
    async_app: AsyncApp, end: str, events: list[CreditEvent]
) -> None:
    """Charge and row share their fate; hooks hear of it after COMMIT only."""
    async with async_app.open() as session:
        await session.execute(INSERT_ORDER, {"id": "o1"})
        transaction = await async_app.charge(3, session=session)
        assert events == []
        await getattr(session, end)()
    assert await async_app.orders() == (["o1"] if end == "commit" else [])
    assert await async_app.available() == (7 if end == "commit" else 10)
    assert [heard.transaction for heard in events] == ([transaction] if end == "commit" else [])
    assert await async_app.service.verify()


async def test_an_async_connection_works_too(async_app: AsyncApp, events: list[CreditEvent]) -> None:
    """A bare AsyncConnection commits both; its hook comes a moment after COMMIT."""
    async with async_app.engine.connect() as connection:
        await connection.execute(INSERT_ORDER, {"id": "o1"})
        await async_app.charge(3, session=connection)
        await connection.commit()
    assert await async_app.orders() == ["o1"]
    assert await async_app.available() == 7
    for _ in range(300):
        if events:
            break
        await asyncio.sleep(0.01)
    assert [heard.name for heard in events] == ["charged"]


async def test_a_refusal_leaves_an_async_session_usable(async_app: AsyncApp) -> None:
    """The savepoint around the charge ends with the refusal; rows before and after it stand."""
    async with async_app.open() as session:
        await session.execute(INSERT_ORDER, {"id": "before"})
        with pytest.raises(InsufficientCreditsError):
            await async_app.charge(11, session=session)
        await session.execute(INSERT_ORDER, {"id": "then"})
        await async_app.service.consume_credits(
            organization_id=ACME, agent_type="QAAgent", action="answer_question", session=session
        )
        await session.commit()
    assert await async_app.orders() == ["before", "then"]
    assert await async_app.available() == Decimal("9.5")
    assert await async_app.service.verify()


async def test_an_async_savepoint_that_is_rolled_back_undoes_its_charge(
    async_app: AsyncApp, events: list[CreditEvent]
) -> None:
    """The charge is gone, and only what stayed is told."""
    async with async_app.open() as session:
        await async_app.charge(1, session=session)
        savepoint = await session.begin_nested()
        await async_app.charge(5, session=session)
        await savepoint.rollback()
        await session.commit()
    assert await async_app.available() == 9
    assert [heard.transaction.charged for heard in events if heard.transaction] == [1]
    assert await async_app.service.verify()


async def test_an_async_refund_takes_part_in_the_transaction(async_app: AsyncApp) -> None:
    """refund_credits(session=) with an AsyncSession."""
    charge = await async_app.charge(4)
    async with async_app.open() as session:
        await async_app.service.refund_credits(charge, session=session)
        await session.rollback()
        assert await async_app.available() == 6
        await async_app.service.refund_credits(charge, 1, session=session)
        await session.commit()
    assert await async_app.available() == 7
    assert await async_app.service.verify()


async def test_a_coroutine_that_would_wait_for_itself_is_refused_at_once(async_app: AsyncApp) -> None:
    """In the same task, in a task made from it and in a thread; after COMMIT all is free again."""
    async with async_app.open() as session:
        await async_app.charge(1, session=session)
        with at_once():
            with pytest.raises(AccountLockedError):
                await async_app.charge(1)
            with pytest.raises(AccountLockedError):
                await async_app.service.reserve_credits(organization_id=ACME, amount=1)
            with pytest.raises(AccountLockedError):
                await asyncio.create_task(async_app.charge(1))
            with pytest.raises(AccountLockedError):
                await asyncio.to_thread(async_app.blocking.grant_credits, ACME, 1)
        await session.commit()
        await async_app.charge(1)
    assert await async_app.available() == 8


async def test_a_task_that_did_not_open_the_transaction_waits_for_it(async_app: AsyncApp) -> None:
    """Another request's charge is not refused: it is booked once the transaction ends."""
    ready, go_on = asyncio.Event(), asyncio.Event()

    async def holder() -> None:
        async with async_app.open() as session:
            await async_app.charge(1, session=session)
            ready.set()
            await go_on.wait()
            await session.commit()

    holding = asyncio.create_task(holder())
    await ready.wait()
    waiting = asyncio.create_task(async_app.charge(1))
    done, _ = await asyncio.wait({waiting}, timeout=0.1)
    assert not done
    go_on.set()
    await asyncio.gather(holding, waiting)
    assert await async_app.available() == 8


async def test_organizations_ascend_in_an_async_session_as_well(async_app: AsyncApp) -> None:
    """The order is kept for every kind of session."""
    async with async_app.open() as session:
        await async_app.charge(1, ZETA, session=session)
        with pytest.raises(InvalidInputError, match="ascending order"):
            await async_app.charge(1, session=session)
        await session.commit()
    assert (await async_app.available(), await async_app.available(ZETA)) == (10, 9)


async def test_an_async_session_is_refused_by_the_blocking_face(async_app: AsyncApp) -> None:
    """It says which face to use; nothing is charged."""
    async with async_app.open() as session:
        target: Any = session
        with pytest.raises(ConfigurationError, match="AsyncSession needs the coroutine face"):
            async_app.blocking.consume_credits(organization_id=ACME, amount=1, session=target)
    assert await async_app.available() == 10


async def test_a_plain_session_given_to_the_coroutine_face_commits_both(
    database_url: str, aservice: CreditService
) -> None:
    """Its statements run in a private thread, so that the loop goes on; the lock is known all the same."""
    await aservice.grant_credits(ACME, 10)
    engine = create_engine(database_url)
    with Session(engine) as session:
        await aservice.consume_credits(organization_id=ACME, amount=1, session=session)
        await aservice.consume_credits(organization_id=ACME, amount=2, session=session)
        with at_once(), pytest.raises(AccountLockedError):
            await aservice.consume_credits(organization_id=ACME, amount=3)
        session.commit()
    engine.dispose()
    assert (await aservice.get_balance(ACME)).available == 7
