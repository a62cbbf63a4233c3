"""Helpers for the tests of those who use agentcredits."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine

from agentcredits.clock import as_utc
from agentcredits.runner.registry import Database, resolve
from agentcredits.settings import load_settings
from agentcredits.store import upgrade
from agentcredits.store.dialects import make_engine

START = datetime(2026, 1, 1, tzinfo=UTC)


class FakeClock:
    """A clock that stands still until it is moved; honoured everywhere, expiry included.

    Args:
        start: An aware datetime.
    """

    def __init__(self, start: datetime = START) -> None:
        self._now = as_utc(start, name="start")
        self._lock = threading.Lock()

    def now(self) -> datetime:
        """The time it shows."""
        return self._now

    def advance(self, by: timedelta) -> datetime:
        """Move it forwards (or back) and return the new time."""
        with self._lock:
            self._now += by
            return self._now

    def set(self, to: datetime) -> datetime:
        """Set it to an aware datetime."""
        with self._lock:
            self._now = as_utc(to, name="to")
            return self._now


def reset(database: Database) -> None:
    """Empty a database of everything that agentcredits keeps in it, and bring it to the newest schema.

    For tests only: the append-only rows go too. Close services on it first.
    """
    settings = load_settings()
    target = resolve(database, settings)
    if isinstance(target, Engine):
        _reset(target)
        return
    engine = make_engine(
        target,
        pool_size=1,
        lock_timeout_seconds=settings.lock_timeout_seconds,
        sqlite_synchronous=settings.sqlite_synchronous,
    )
    try:
        _reset(engine)
    finally:
        engine.dispose()


def _reset(engine: Engine) -> None:
    with engine.connect() as connection:
        upgrade.drop_everything(connection)
        connection.commit()
    upgrade.upgrade_database(engine)
