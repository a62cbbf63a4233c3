"""PostgreSQL restarted, its backends terminated, its answers lost: callers get an answer that is true."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from tests.concurrency.workers import own_engine
from tests.proof.books import Findings
from tests.proof.load import Load
from tests.proof.proxy import CuttingProxy
from tests.proof.report import Record
from tests.proof.servers import restart_immediately

pytestmark = [pytest.mark.proof, pytest.mark.postgres]

#: Gives up before the server is back, so that callers meet the outage too.
IMPATIENT = {"retry_seconds": 0.05, "lock_timeout_seconds": 2.0}


def restart_server(till: str, url: str, folder: Path, server: Any, *, restarts: int, seed: int) -> Findings:
    """Stop the server in the middle of everything, again and again (``-m immediate``: as a crash would)."""
    dice = random.Random(seed)
    with Load(till, url, folder, seed=seed, workers=2, options=IMPATIENT) as load:
        for _ in range(restarts):
            load.wait_for_calls(dice.randrange(2), dice.randint(1, 20))
            restart_immediately(server)
        load.wait_for_calls(0, 1)
        return load.finish()


def terminate_backends(till: str, url: str, folder: Path, *, terminations: int, seed: int) -> Findings:
    """End one backend of the load at a time, whatever it does."""
    with (
        Load(till, url, folder, seed=seed, workers=2) as load,
        psycopg.connect(libpq_url(url), autocommit=True) as operator,
    ):
        ended = 0
        while ended < terminations:
            ended += operator.execute(TERMINATE_ONE).rowcount
            load.wait_for_calls(ended % 2, 1)
        return load.finish()


TERMINATE_ONE = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
    ORDER BY state = 'idle', random() LIMIT 1
"""


def cut_commits(till: str, url: str, folder: Path, *, cuts: int, seed: int) -> Findings:
    """Cut connections just when COMMIT went out: three of four reach the server, one does not."""
    dice = random.Random(seed)
    with CuttingProxy(url) as proxy, Load(till, proxy.url, folder, seed=seed, workers=2) as load:
        for number in range(cuts):
            load.wait_for_calls(number % 2, 1)
            proxy.arm(dice.choice(("answer lost", "answer lost", "answer lost", "never arrived")))
            proxy.wait_until_cut()
        assert proxy.cuts == cuts
        return load.finish()


def libpq_url(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


@pytest.mark.timeout(1_200)
def test_immediate_restarts_under_load(
    own_url: str, own_server: Any, proof: str, seed: int, record: Record, tmp_path: Path
) -> None:
    """Success or StoreUnavailableError, and what it says of the outcome is true."""
    restarts = 150 if proof == "long" else 10
    findings = restart_server("credits", own_url, tmp_path, own_server, restarts=restarts, seed=seed)
    record(
        "immediate restarts under load",
        database="postgresql",
        count=restarts,
        unit="restarts",
        seed=seed,
        wrong=findings.wrong,
        details=findings,
    )


@pytest.fixture
def own_url(own_server: Any) -> str:
    """A migrated database on a server that may be restarted."""
    from agentcredits.store.upgrade import upgrade_database

    name = f"proof_{time.time_ns()}"
    own_server.psql(f"CREATE DATABASE {name};")
    url = str(own_server.get_uri(database=name, driver="psycopg"))
    engine = own_engine(url)
    upgrade_database(engine)
    engine.dispose()
    return url


@pytest.mark.timeout(1_200)
@pytest.mark.parametrize(
    ("what", "harness", "unit"),
    [
        ("backends terminated under load", terminate_backends, "terminations"),
        ("connections cut after COMMIT went out", cut_commits, "cuts"),
    ],
)
def test_lost_connections_under_load(
    postgresql_url: str,
    proof: str,
    seed: int,
    record: Record,
    tmp_path: Path,
    what: str,
    harness: Callable[..., Findings],
    unit: str,
) -> None:
    """Nobody notices: each call is found again under its key and booked once."""
    count = 2_000 if proof == "long" else 100
    findings = harness("credits", postgresql_url, tmp_path, **{unit: count}, seed=seed)
    record(what, database="postgresql", count=count, unit=unit, seed=seed, wrong=findings.wrong, details=findings)


@pytest.mark.timeout(300)
def test_the_restarts_find_what_a_naive_till_loses(own_url: str, own_server: Any, seed: int, tmp_path: Path) -> None:
    """It answers before it has written; its writer dies with the server."""
    findings = restart_server("answer_first", own_url, tmp_path, own_server, restarts=1, seed=seed)
    assert findings.lost


@pytest.mark.timeout(300)
def test_the_terminations_find_what_a_naive_till_tells(postgresql_url: str, seed: int, tmp_path: Path) -> None:
    """Its callers get the driver's errors, and a balance without its row."""
    findings = terminate_backends("select_then_update", postgresql_url, tmp_path, terminations=20, seed=seed)
    assert findings.broken
    assert findings.drifted


@pytest.mark.timeout(300)
def test_the_cuts_find_what_a_naive_till_books_twice(postgresql_url: str, seed: int, tmp_path: Path) -> None:
    """It tries again, as it should, without a key."""
    findings = cut_commits("no_key", postgresql_url, tmp_path, cuts=10, seed=seed)
    assert findings.duplicated
