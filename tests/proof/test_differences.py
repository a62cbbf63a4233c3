"""Hundreds of thousands of seeded steps: the service does what the reference model does."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentcredits.service import SyncCreditService
from agentcredits.settings import Settings
from agentcredits.testing import FakeClock
from tests.concurrency import workers
from tests.proof.conftest import Record
from tests.proof.naive_races import FloatAmounts, NoKeys, SelectThenUpdateSettlement
from tests.proof.racing import kind_of
from tests.property import storm
from tests.property.side_by_side import START

STEPS = {"sqlite": {"long": 500_000, "short": 20_000}, "postgresql": {"long": 50_000, "short": 2_000}}
PROCESSES = min(4, os.cpu_count() or 1)


@pytest.fixture
def urls(database_url: str) -> Iterator[list[str]]:
    """A database for each process: files of their own on SQLite, the one server on PostgreSQL."""
    if not database_url.startswith("sqlite"):
        yield [database_url] * PROCESSES
        return
    first = Path(database_url.removeprefix("sqlite:///"))
    others = [first.with_name(f"credits-{number}.db") for number in range(1, PROCESSES)]
    for other in others:
        shutil.copyfile(first, other)
    yield [f"sqlite:///{path}" for path in (first, *others)]


@pytest.mark.proof
@pytest.mark.timeout(3_600)
def test_the_service_does_what_the_reference_model_does(urls: list[str], proof: str, seed: int, record: Record) -> None:
    """500,000 steps on SQLite and 50,000 on PostgreSQL; short: 20,000 and 2,000. No difference at any of them."""
    database = kind_of(urls[0])
    steps = -(-STEPS[database][proof] // len(urls))
    processes = [
        storm.start(url, seed=seed * PROCESSES + number, steps=steps) for number, url in enumerate(urls, start=1)
    ]
    reports = workers.finish_all(processes, timeout=3_500)
    differences = [report["difference"] for report in reports if report["difference"]]
    calls: Counter[str] = sum((Counter(report["calls"]) for report in reports), Counter())
    assert differences == []
    assert min(calls.values()) > 10, calls
    assert len(calls) >= 14, calls
    done = sum(report["steps"] for report in reports)
    record("steps", count=done, unit="steps", seed=seed, wrong={"differences": 0}, database=database)


@pytest.mark.parametrize("naive", [NoKeys, FloatAmounts, SelectThenUpdateSettlement])
def test_the_harness_sees_what_a_naive_ledger_does_otherwise(naive: Any, database_url: str, seed: int) -> None:
    """Each of the naive variants differs from the model within the steps of the short form."""
    clock = FakeClock(START)
    with SyncCreditService(database_url, clock=clock, settings=Settings(sqlite_synchronous="NORMAL")) as service:

        def steps() -> None:
            for number in range(20):
                storm.episode(naive(service), clock, seed=seed + number, steps=storm.EPISODE)

        with pytest.raises(storm.DifferenceError, match="the model"):
            steps()
