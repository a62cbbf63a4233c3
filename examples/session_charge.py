"""A charge inside the application's own SQLAlchemy session: the row and the charge stand or fall together."""

from __future__ import annotations

from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from agentcredits import InsufficientCreditsError, SyncCreditService

DATABASE = "sqlite:///credits.db"


class Base(DeclarativeBase):
    pass


class Video(Base):
    __tablename__ = "videos"

    id: Mapped[int] = mapped_column(primary_key=True)
    organization_id: Mapped[str]
    title: Mapped[str]


def publish(session: Session, service: SyncCreditService, organization_id: str, title: str) -> None:
    """Write the row, charge last, commit."""
    session.add(Video(organization_id=organization_id, title=title))
    session.flush()  # on SQLite a transaction has to begin with a write
    service.consume_credits(
        organization_id=organization_id, agent_type="VideoAgent", action="generate_video", session=session
    )
    session.commit()


def main() -> None:
    engine = create_engine(DATABASE)
    with SyncCreditService(DATABASE) as service:
        service.grant_credits("acme", 15)
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            publish(session, service, "acme", "the tide comes in")
            try:
                publish(session, service, "acme", "the tide goes out")
            except InsufficientCreditsError as error:
                session.rollback()
                print("refused:", error)
            print("videos:", session.scalar(select(func.count()).select_from(Video)))
        print("left:", service.get_balance("acme").available)
    engine.dispose()


if __name__ == "__main__":
    main()
