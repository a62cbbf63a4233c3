"""Charging inside your own SQLAlchemy transaction: your row and the charge commit together, or neither does.

python examples/session_charge.py [DATABASE_URL]

Without an argument it is AGENTCREDITS_DATABASE_URL, else a SQLite file in a temporary folder. A PostgreSQL database
needs its schema first: agentcredits db upgrade. The same with an AsyncSession: session_charge_async.py.
"""

from __future__ import annotations

import os
import sys
from tempfile import TemporaryDirectory

from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from agentcredits import InsufficientCreditsError, SyncCreditService


class Base(DeclarativeBase):
    pass


class Video(Base):
    __tablename__ = "videos"

    id: Mapped[int] = mapped_column(primary_key=True)
    organization_id: Mapped[str]
    title: Mapped[str]
    state: Mapped[str] = mapped_column(default="published")


def add_video(session: Session, service: SyncCreditService, video: Video) -> None:
    """Write the row, charge for it on the same connection. Who began the transaction ends it, and soon.

    Until then the organization's other charges wait: no call of a model between here and the commit.
    """
    session.add(video)
    session.flush()  # a write comes first: on SQLite a transaction that has only read may not become the writer
    service.consume_credits(
        organization_id=video.organization_id,
        agent_type="VideoAgent",
        action="generate_video",  # 10 credits
        metadata={"title": video.title},
        session=session,
    )


def show(what: str, engine: Engine, service: SyncCreditService) -> None:
    with Session(engine) as session:
        videos = [f"{video.title} ({video.state})" for video in session.scalars(select(Video).order_by(Video.id))]
    print(f"{what}: {', '.join(videos)}; {service.get_balance('acme').available} credits left")


def main(database: str) -> None:
    engine = create_engine(database)
    with SyncCreditService(database) as service, Session(engine) as session:
        service.grant_credits("acme", 25)  # before create_all: an empty SQLite file gets its credit tables here
        Base.metadata.create_all(engine)

        with session.begin():
            add_video(session, service, Video(organization_id="acme", title="the tide"))
        show("committed", engine, service)

        try:
            with session.begin():
                add_video(session, service, Video(organization_id="acme", title="a storm"))
                raise ConnectionError("the upload broke off")  # after the charge
        except ConnectionError as error:
            show(f"{error}, both rolled back", engine, service)

        with session.begin():
            add_video(session, service, Video(organization_id="acme", title="a storm"))
        show("second try", engine, service)

        with session.begin():
            draft = Video(organization_id="acme", title="the moon")
            try:
                add_video(session, service, draft)
            except InsufficientCreditsError as error:
                draft.state = "draft"  # only the charge was undone: the same transaction goes on and keeps the row
                print("refused:", error)
        show("kept as a draft", engine, service)

        for charge in service.list_transactions("acme", type="debit"):
            print("charged", charge.charged, "for", charge.metadata["title"])
    engine.dispose()


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("AGENTCREDITS_DATABASE_URL")
        main(given or f"sqlite:///{folder}/credits.db")
