"""Charging inside your own AsyncSession: your row and the charge commit together, or neither does.

python examples/session_charge_async.py [DATABASE_URL]

Without an argument it is AGENTCREDITS_DATABASE_URL, else a SQLite file in a temporary folder. A PostgreSQL database
needs its schema first: agentcredits db upgrade. Your engine keeps its own driver (aiosqlite, asyncpg, psycopg); the
service uses a blocking one for what it does outside your session. The same with a Session: session_charge.py.
"""

from __future__ import annotations

import asyncio
import os
import sys
from tempfile import TemporaryDirectory

from sqlalchemy import URL, make_url, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from agentcredits import CreditService, InsufficientCreditsError

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}


class Base(DeclarativeBase):
    pass


class Video(Base):
    __tablename__ = "videos"

    id: Mapped[int] = mapped_column(primary_key=True)
    organization_id: Mapped[str]
    title: Mapped[str]
    state: Mapped[str] = mapped_column(default="published")


async def add_video(session: AsyncSession, service: CreditService, video: Video) -> None:
    """Write the row, charge for it on the same connection. Who began the transaction ends it, and soon.

    Until then the organization's other charges wait: no call of a model between here and the commit.
    """
    session.add(video)
    await session.flush()  # a write comes first: on SQLite a transaction that has only read may not become the writer
    await service.consume_credits(
        organization_id=video.organization_id,
        agent_type="VideoAgent",
        action="generate_video",  # 10 credits
        metadata={"title": video.title},
        session=session,
    )


async def show(what: str, engine: AsyncEngine, service: CreditService) -> None:
    async with AsyncSession(engine) as session:
        rows = await session.scalars(select(Video).order_by(Video.id))
        videos = [f"{video.title} ({video.state})" for video in rows]
    print(f"{what}: {', '.join(videos)}; {(await service.get_balance('acme')).available} credits left")


async def main(database: str) -> None:
    engine = create_async_engine(own_url(database))
    async with CreditService(database) as service, AsyncSession(engine) as session:
        await service.grant_credits("acme", 25)  # before create_all: an empty SQLite file gets its credit tables here
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)

        async with session.begin():
            await add_video(session, service, Video(organization_id="acme", title="the tide"))
        await show("committed", engine, service)

        try:
            async with session.begin():
                await add_video(session, service, Video(organization_id="acme", title="a storm"))
                raise ConnectionError("the upload broke off")  # after the charge
        except ConnectionError as error:
            await show(f"{error}, both rolled back", engine, service)

        async with session.begin():
            await add_video(session, service, Video(organization_id="acme", title="a storm"))
        await show("second try", engine, service)

        async with session.begin():
            draft = Video(organization_id="acme", title="the moon")
            try:
                await add_video(session, service, draft)
            except InsufficientCreditsError as error:
                draft.state = "draft"  # only the charge was undone: the same transaction goes on and keeps the row
                print("refused:", error)
        await show("kept as a draft", engine, service)

        for charge in await service.list_transactions("acme", type="debit"):
            print("charged", charge.charged, "for", charge.metadata["title"])
    await engine.dispose()


def own_url(database: str) -> URL:
    """The same database with the application's own asynchronous driver."""
    url = make_url(database)
    return url.set(drivername=DRIVERS[url.get_backend_name()])


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("AGENTCREDITS_DATABASE_URL")
        asyncio.run(main(given or f"sqlite:///{folder}/credits.db"))
