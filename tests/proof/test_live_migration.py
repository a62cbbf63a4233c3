"""A migration of a large ledger, killed twice: PostgreSQL's callers charge on meanwhile, SQLite is offline."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self, cast

import pytest
from sqlalchemy import create_engine, text

from agentcredits.errors import CreditsError
from agentcredits.service import SyncCreditService
from tests.benchmarks.ledgers import CREDIT, fill
from tests.migration.databases import HEAD
from tests.proof import next_version
from tests.proof.conftest import Record

LIVE = "live"
CHARGES_A_SECOND = 50
THREADS = 5
STALL_SECONDS = 5.0


class Load:
    """Fifty charges a second in ``with``; what was answered, what was refused, and the longest wait."""

    def __init__(self, service: SyncCreditService) -> None:
        self._service = service
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.waits: list[float] = []
        self.errors: list[CreditsError] = []

    def __enter__(self) -> Self:
        self._stop.clear()
        self._threads = [threading.Thread(target=self._charge) for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _charge(self) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due += THREADS / CHARGES_A_SECOND
            began = time.monotonic()
            try:
                self._service.consume_credits(organization_id=LIVE, amount=1)
            except CreditsError as error:
                self.errors.append(error)
            else:
                self.waits.append(time.monotonic() - began)

    def go_on(self, charges: int) -> None:
        """Wait until so many more charges were answered, or 30 s."""
        enough, end = len(self.waits) + charges, time.monotonic() + 30
        while len(self.waits) < enough and time.monotonic() < end:
            self._stop.wait(0.01)


def await_place(process: subprocess.Popen[str], place: str) -> None:
    """Read on to where the migration says that it is at ``place``, and tell it to go on from those before."""
    while (line := cast(IO[str], process.stdout).readline().strip()) != place:
        assert line, process.communicate()[1]
        tell(process)


def tell(process: subprocess.Popen[str]) -> None:
    stdin = cast(IO[str], process.stdin)
    stdin.write("go on\n")
    stdin.flush()


def kill_at(url: str, versions: Path, place: str) -> None:
    """``kill -9`` of a migration that has come to ``place``, or just went on from it ("filling")."""
    process = next_version.start(url, versions)
    await_place(process, place)
    if place == "filling":
        tell(process)
    process.kill()
    process.communicate(timeout=60)


def migrate(url: str, versions: Path, load: Load | None) -> None:
    """The migration to its end; charges go on while it has summed up and not yet changed the table."""
    process = next_version.start(url, versions)
    await_place(process, "filled")
    if load is not None:
        load.go_on(10)
    tell(process)
    await_place(process, "switched")
    _, errors = process.communicate("go on\n", timeout=600)
    assert process.returncode == 0, errors


def ask(url: str, *queries: str) -> list[Any]:
    engine = create_engine(url)
    with engine.connect() as connection:
        answers = [connection.execute(text(query)).scalar() for query in queries]
    engine.dispose()
    return answers


VERSION = "SELECT version_num FROM agentcredits_alembic_version"
#: By how much the new totals are off what the ledger held at the moment of the switch.
OFF = "SELECT (SELECT SUM(total_micros) FROM next_totals) - (SELECT total_micros FROM next_truth)"


@pytest.fixture
def rows(proof: str) -> int:
    return 1_000_000 if proof == "long" else 20_000


@pytest.fixture
def on_postgresql(postgresql_url: str, rows: int) -> Iterator[SyncCreditService]:
    yield from filled(postgresql_url, rows)


@pytest.fixture
def on_sqlite(sqlite_url: str, rows: int) -> Iterator[SyncCreditService]:
    yield from filled(sqlite_url, rows)


def filled(url: str, rows: int) -> Iterator[SyncCreditService]:
    """A service of this version on a ledger of so many rows; it stays open while the next version comes."""
    with SyncCreditService(url) as before:
        before.grant_credits(LIVE, 1_000_000)
    # Nobody else may have a SQLite file open that is filled without a journal.
    fill(url, rows)
    with SyncCreditService(url) as made:
        yield made


def wrong(url: str, service: SyncCreditService, load: Load, version_before: str) -> dict[str, int]:
    """What is wrong once the migration is through and charges have gone on."""
    version, off = ask(url, VERSION, OFF)
    return {
        "half a migration": int(version_before != HEAD) + int(version != "9000"),
        "totals off": abs(int(off)),
        "refused": len(load.errors),
        "stalls over 5 s": sum(wait > STALL_SECONDS for wait in load.waits),
        "charges lost": abs(len(load.waits) - int(service.get_balance(LIVE).spent)),
        "verify": len(service.verify().problems),
    }


@pytest.mark.postgres
@pytest.mark.proof
@pytest.mark.timeout(1_800)
def test_postgresql_is_migrated_while_callers_charge(
    on_postgresql: SyncCreditService, postgresql_url: str, rows: int, tmp_path: Path, record: Record
) -> None:
    """A million rows under 50 charges a second; short: 20,000. Killed while it sums up, and once more while it holds
    the lock: no charge fails or waits for more than 5 s, and the new totals are those of the ledger.
    """
    versions = next_version.write_revision(tmp_path / "versions")
    with Load(on_postgresql) as load:
        load.go_on(10)
        kill_at(postgresql_url, versions, "filling")
        load.go_on(10)
        kill_at(postgresql_url, versions, "switched")
        load.go_on(10)
        version_before = ask(postgresql_url, VERSION)[0]
        migrate(postgresql_url, versions, load)
        load.go_on(50)
    note(record, rows, load, wrong(postgresql_url, on_postgresql, load, version_before), "postgresql")


@pytest.mark.proof
@pytest.mark.timeout(1_800)
def test_sqlite_is_migrated_offline(
    on_sqlite: SyncCreditService, sqlite_url: str, rows: int, tmp_path: Path, record: Record
) -> None:
    """The same without callers: killed while it sums up and after it rebuilt the table, nothing has changed."""
    versions = next_version.write_revision(tmp_path / "versions")
    with Load(on_sqlite) as load:
        load.go_on(10)
    kill_at(sqlite_url, versions, "filling")
    kill_at(sqlite_url, versions, "switched")
    version_before = ask(sqlite_url, VERSION)[0]
    migrate(sqlite_url, versions, None)
    with load:
        load.go_on(10)
    note(record, rows, load, wrong(sqlite_url, on_sqlite, load, version_before), "sqlite")


def note(record: Record, rows: int, load: Load, found: dict[str, int], database: str) -> None:
    unit = f"rows, killed twice, longest wait {max(load.waits):.2f} s"
    record("live migration", count=rows, unit=unit, seed=None, wrong=found, database=database)


@pytest.mark.postgres
def test_the_harness_sees_charges_that_a_migration_forgot(
    on_postgresql: SyncCreditService, postgresql_url: str, tmp_path: Path
) -> None:
    """The naive variant sums up first and switches later, and nobody adds what was charged in between."""
    versions = next_version.write_revision(tmp_path / "versions", catches_up=False)
    with Load(on_postgresql) as load:
        migrate(postgresql_url, versions, load)
    found = wrong(postgresql_url, on_postgresql, load, HEAD)
    assert found.pop("totals off") >= 10 * CREDIT
    assert not any(found.values())
