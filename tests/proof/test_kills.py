"""kill -9 of workers under load: nothing that was told is lost, nothing is booked twice, every sum is right."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from sqlalchemy import make_url

from tests.proof.books import Findings
from tests.proof.load import Load
from tests.proof.report import Record

pytestmark = pytest.mark.proof


def kill_workers(till: str, url: str, folder: Path, *, kills: int, seed: int) -> Findings:
    """Kill one of three workers at a time, in the middle of whatever it does; each is succeeded at once."""
    dice = random.Random(seed)
    with Load(till, url, folder, seed=seed, workers=3) as load:
        for _ in range(kills):
            place = dice.randrange(load.workers)
            load.wait_for_calls(place, dice.randint(1, 12))
            # Not always just after an answer: anywhere in the next calls.
            time.sleep(dice.uniform(0, 0.006))
            load.kill(place)
        return load.finish()


@pytest.mark.timeout(1_200)
def test_kill_9_under_load(database_url: str, proof: str, seed: int, record: Record, tmp_path: Path) -> None:
    """Whatever a killed process was told is booked, once; its successor repeats the rest and nothing happens twice."""
    kills = 1_000 if proof == "long" else 60
    findings = kill_workers("credits", database_url, tmp_path, kills=kills, seed=seed)
    assert findings.calls > 3 * kills
    record(
        "kill -9 of workers under load",
        database=make_url(database_url).get_backend_name(),
        count=kills,
        unit="kills",
        seed=seed,
        wrong=findings.wrong,
        details=findings,
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("till", "finds"),
    [
        ("select_then_update", "drifted"),
        ("no_key", "duplicated"),
        ("float_amounts", "drifted"),
        ("answer_first", "lost"),
        ("plain_begin", "broken"),
    ],
)
def test_the_harness_finds_what_naive_tills_do_wrong(
    till: str, finds: str, sqlite_url: str, seed: int, tmp_path: Path
) -> None:
    """Killed a few times, each of them shows its own defect."""
    findings = kill_workers(till, sqlite_url, tmp_path, kills=12, seed=seed)
    assert findings.wrong[finds], str(findings)


@pytest.mark.timeout(300)
@pytest.mark.postgres
@pytest.mark.parametrize(("till", "finds"), [("select_then_update", "drifted"), ("no_key", "duplicated")])
def test_the_harness_finds_it_on_postgresql_too(
    till: str, finds: str, postgresql_url: str, seed: int, tmp_path: Path
) -> None:
    """A server's transactions alone do not help."""
    findings = kill_workers(till, postgresql_url, tmp_path, kills=12, seed=seed)
    assert findings.wrong[finds], str(findings)
