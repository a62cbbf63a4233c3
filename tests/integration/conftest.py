"""Fixtures of several files: the command line, limits and usage."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine

from agentcredits import CreditEvent, Settings, SyncCreditService, add_hook, remove_hook
from agentcredits.testing import FakeClock
from tests.integration.cli_calls import Call, caller
from tests.integration.limit_book import ACME, NOON, Book


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Call:
    """The command line."""
    return caller(capsys)


@pytest.fixture
def on(capsys: pytest.CaptureFixture[str], database_url: str) -> Call:
    """The command line on a fresh database of either kind."""
    return caller(capsys, "--database", database_url)


def _opened(url: str, clock: FakeClock) -> Iterator[Book]:
    clock.set(NOON)
    with SyncCreditService(url, clock=clock, settings=Settings(sqlite_synchronous="NORMAL")) as service:
        service.grant_credits(ACME, 1_000)
        yield Book(url, service, clock)


@pytest.fixture
def open_book(database_url: str, clock: FakeClock) -> Iterator[Book]:
    """1,000 credits at noon of a January day."""
    yield from _opened(database_url, clock)


@pytest.fixture
def book(open_book: Book) -> Iterator[Book]:
    """The same; whatever a test did, every counter and total must be what the rows say."""
    yield open_book
    assert open_book.service.verify().problems == ()


@pytest.fixture
def sqlite_book(sqlite_url: str, clock: FakeClock) -> Iterator[Book]:
    """The same on SQLite alone: for what is decided before any database is asked."""
    yield from _opened(sqlite_url, clock)


@pytest.fixture
def told() -> Iterator[list[CreditEvent]]:
    """What the hooks heard of."""
    heard: list[CreditEvent] = []
    hook = add_hook(heard.append)
    yield heard
    remove_hook(hook)


@pytest.fixture
def app_engine(database_url: str) -> Iterator[Engine]:
    """The application's own engine on the same database."""
    engine = create_engine(database_url)
    yield engine
    engine.dispose()
