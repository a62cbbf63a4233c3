"""Fixtures of several files: the command line, limits and usage, media tools and batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine

from agentcredits import CreditEvent, Settings, SyncCreditService, add_hook, media_tool, remove_hook
from agentcredits.media.batch import MediaBatch
from agentcredits.testing import FakeClock
from tests.integration.cli_calls import Answer, Call, caller
from tests.integration.limit_book import ACME, NOON, Book
from tests.integration.media_fakes import KEY, PRICE, FakeProvider, Tool
from tests.integration.media_jobs import Start


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Call:
    """The command line."""
    return caller(capsys)


@pytest.fixture
def on(capsys: pytest.CaptureFixture[str], database_url: str) -> Call:
    """The command line on a fresh database of either kind."""
    return caller(capsys, "--database", database_url)


@pytest.fixture
def bulk(on: Call) -> Call:
    """`agentcredits bulk … --key k --json` on both databases."""

    def call(*words: object, key: str = "k") -> Answer:
        return on("bulk", *words, "--key", key, "--json")

    return call


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes lines to a file."""

    def put(*lines: str, name: str = "file.csv") -> Path:
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return put


@pytest.fixture
def acme(service: SyncCreditService) -> SyncCreditService:
    """An organization with 1,000 credits."""
    service.grant_credits("acme", 1_000)
    return service


@pytest.fixture
def past(database_url: str) -> Iterator[Callable[[datetime], SyncCreditService]]:
    """Services whose clock stands in the past."""
    opened: list[SyncCreditService] = []

    def at(moment: datetime) -> SyncCreditService:
        opened.append(SyncCreditService(database_url, clock=FakeClock(moment)))
        return opened[-1]

    yield at
    for one in opened:
        one.close()


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


@pytest.fixture
def ledger(database_url: str, clock: FakeClock) -> Iterator[SyncCreditService]:
    """100 credits of acme; a picture costs ``media_fakes.PRICE``."""
    with SyncCreditService(database_url, clock=clock) as service:
        service.grant_credits("acme", 100)
        service.set_cost("ImageAgent", "generate_image", PRICE)
        yield service


@pytest.fixture
def provider() -> FakeProvider:
    """What the media tools of ``make`` call."""
    return FakeProvider()


@pytest.fixture(params=["function", "coroutine"])
def make(request: pytest.FixtureRequest, ledger: SyncCreditService, provider: FakeProvider) -> Callable[..., Tool]:
    """Makes a media tool of either colour, that is called like a function."""

    def made(**options: Any) -> Tool:
        options = {"provider": "fal", "agent_type": "ImageAgent", "service": ledger} | options
        if request.param == "function":
            return media_tool("generate_image", **options)(provider.generate)

        async def generate(prompt: str, seconds: int = 5, api_key: str = KEY, client: object = None) -> object:
            await asyncio.sleep(0)
            return provider.generate(prompt, seconds, api_key, client)

        tool = media_tool("generate_image", **options)(generate)
        return lambda *args, **kwargs: asyncio.run(tool(*args, **kwargs))

    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a media batch puts its files."""
    made = tmp_path / "out"
    made.mkdir()
    return made


@pytest.fixture
def start(acme: SyncCreditService) -> Iterator[Start]:
    """Makes media batches of acme, whose pictures cost 5; whatever a test did, the ledger's counters are what its rows
    say.
    """
    acme.set_cost("ImageAgent", "generate_image", 5)

    def make(lines: Any, generate: Any, **options: Any) -> MediaBatch:
        return MediaBatch(acme, lines, generate, **{"organization_id": ACME, **options})

    yield make
    assert acme.verify().problems == ()
