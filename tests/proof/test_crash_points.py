"""Processes that die at named points: the work is charged exactly when it was done, and once when it is repeated."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy import make_url

from tests.proof.books import Call, audit, read_journals
from tests.proof.deaths import DIED, POINTS, die_at
from tests.proof.load import TILLS, start_process
from tests.proof.report import Record

pytestmark = pytest.mark.proof

#: How many processes are on their way to their deaths at once.
AT_ONCE = 4


def crash(
    till: str, url: str, folder: Path, *, rounds: int, seed: int, points: Sequence[str] = tuple(POINTS)
) -> dict[str, int]:
    """Let processes die at every point, look at the ledger, then repeat what they were at; counts what is wrong."""
    dice = random.Random(seed)
    place = TILLS[till]
    place.prepare(url)
    journal = folder / "journal"
    expected: dict[str, bool] = {}
    calls: list[Call] = []
    waiting = [(point, number) for point in points for number in range(rounds)]
    dice.shuffle(waiting)
    while waiting:
        batch, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
        processes = []
        for point, number in batch:
            kind = "charge" if "charge" in point else "hold"
            call = Call(kind, f"{point} {number}", dice.randint(1, 5_000_000))  # type: ignore[arg-type]
            calls.append(call)
            expected[call.key] = POINTS[point]
            processes.append(start_process(die_at, point, till, url, call, journal))
        for process, (point, _) in zip(processes, batch, strict=True):
            process.join(120)
            assert process.exitcode == DIED, f"a process ended with {process.exitcode} instead of at {point!r}"
    booked = {key for key, _ in place.read_books(url).entries}
    end = time.monotonic() + 10
    while (held := place.held_micros(url)) and time.monotonic() < end:
        time.sleep(0.05)
    again = place(url, {})
    for call in calls:
        again.do(call)
    again.close()
    books = place.read_books(url)
    findings = audit(read_journals([journal]), books)
    return {
        "charged without work": sum(key in booked and not due for key, due in expected.items()),
        "work not charged": sum(key not in booked and due for key, due in expected.items()),
        "charged twice": len(findings.duplicated),
        "not charged at last": len(expected.keys() - {key for key, _ in books.entries}),
        "drifted": len(findings.drifted),
        "micros still held": held,
    }


@pytest.mark.timeout(1_200)
def test_deaths_at_every_point(database_url: str, proof: str, seed: int, record: Record, tmp_path: Path) -> None:
    """Before the commit's COMMIT nothing is charged and the hold ends by itself; after it, it is charged, for good."""
    rounds = 200 if proof == "long" else 10
    wrong = crash("credits", database_url, tmp_path, rounds=rounds, seed=seed)
    record(
        f"crash points ({len(POINTS)} × {rounds})",
        database=make_url(database_url).get_backend_name(),
        count=rounds * len(POINTS),
        unit="deaths",
        seed=seed,
        wrong=wrong,
    )


@pytest.mark.timeout(300)
def test_the_harness_finds_what_a_naive_till_does(sqlite_url: str, seed: int, tmp_path: Path) -> None:
    """It takes the credits before the work, and takes them again when the call is repeated."""
    points = ("between the reserve's COMMIT and its answer", "during the work", "after the commit")
    wrong = crash("no_key", sqlite_url, tmp_path, rounds=1, seed=seed, points=points)
    assert wrong["charged without work"] == 2
    assert wrong["charged twice"] == 3
