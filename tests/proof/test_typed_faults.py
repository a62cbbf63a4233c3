"""Disks that are full, files that are read-only, pools that are used up, loops that are closed, processes that fork.

Each ends in a typed error or in success; nothing is half-written; the same service works again afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, event, make_url
from sqlalchemy.exc import OperationalError

from agentcredits import CreditService, SyncCreditService
from agentcredits.errors import StoreUnavailableError
from agentcredits.settings import Settings
from tests.concurrency.workers import own_engine
from tests.proof.books import Call
from tests.proof.forking import charge_in_forks
from tests.proof.load import start_process
from tests.proof.naive import SelectThenUpdate
from tests.proof.report import Record
from tests.proof.test_server_faults import libpq_url
from tests.proof.tills import ORGANIZATION, CreditsTill

pytestmark = pytest.mark.proof

IMPATIENT = Settings(retry_seconds=0.1, lock_timeout_seconds=1)


def spend(service: SyncCreditService, name: str, *, up_to: int) -> tuple[set[str], list[StoreUnavailableError]]:
    """Charge, hold and refund until the store gives up, or ``up_to`` times; the keys of charges that were answered."""
    answered: set[str] = set()
    for number in range(up_to):
        key = f"{name}-{number}"
        try:
            charge = service.consume_credits(
                organization_id=ORGANIZATION, amount=1, idempotency_key=key, metadata={"note": "x" * 2_000}
            )
            answered.add(key)
            with service.reserve_credits(organization_id=ORGANIZATION, amount=2, idempotency_key=f"hold-{key}"):
                pass
            service.refund_credits(charge.id, 1, organization_id=ORGANIZATION)
        except StoreUnavailableError as error:
            return answered, [error]
    return answered, []


def wrong_in(url: str, answered: set[str], errors: list[StoreUnavailableError]) -> dict[str, int]:
    """What a fault did to the ledger: compared with what was answered, and recomputed."""
    books = CreditsTill.read_books(url)
    booked = {key for key, _ in books.entries}
    misled = [error for error in errors if error.outcome == "not_started" and error.idempotency_key in booked]
    return {"lost": len(answered - booked), "drifted": len(books.problems), "misled": len(misled)}


# -- the disk --------------------------------------------------------------------------------------------------------


def limit_pages(engine: Engine, more: list[int]) -> None:
    """Let the file grow by ``more[0]`` pages beyond what it has now, and no further; [] lifts the limit."""
    with engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()

    @event.listens_for(engine, "checkout")
    def _limit(connection: Any, _record: object, _proxy: object) -> None:
        most = pages + more[0] if more else 2**30
        connection.execute(f"PRAGMA max_page_count = {most}")


def test_a_sqlite_file_that_may_not_grow(sqlite_url: str, proof: str, seed: int, record: Record) -> None:
    """SQLITE_FULL, at whatever statement of a transaction the page is missing."""
    rounds = 200 if proof == "long" else 20
    CreditsTill.prepare(sqlite_url)
    engine = own_engine(sqlite_url)
    room = [0]
    limit_pages(engine, room)
    answered: set[str] = set()
    errors: list[StoreUnavailableError] = []
    with SyncCreditService(engine, settings=IMPATIENT) as service:
        for number in range(rounds):
            room[:] = [2 * number]
            done, failed = spend(service, f"full-{number}", up_to=1_000)
            assert failed, "the disk was never full"
            answered |= done
            errors += failed
        room.clear()
        done, failed = spend(service, "after", up_to=3)
        assert (len(done), failed) == (3, [])
        assert service.flush()
    engine.dispose()
    wrong = wrong_in(sqlite_url, answered | done, errors)
    record("disk full (max_page_count)", database="sqlite", count=rounds, unit="faults", seed=seed, wrong=wrong)


def test_the_full_disk_finds_what_a_naive_till_leaves_half_written(sqlite_url: str) -> None:
    """The balance fits, its row does not."""
    SelectThenUpdate.prepare(sqlite_url)
    till = SelectThenUpdate(sqlite_url, {})
    limit_pages(till.engine, [0])
    with pytest.raises(OperationalError):
        _charge_without_end(till)
    till.close()
    assert SelectThenUpdate.read_books(sqlite_url).problems


def _charge_without_end(till: SelectThenUpdate) -> None:
    for number in itertools.count():
        till.do(Call("charge", f"{number:0100}", 1_000))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB, where the system lets us mount one."""
    place = tmp_path / "small"
    place.mkdir()
    if not _mounted("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)):
        pytest.skip("file systems cannot be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def _mounted(*arguments: str) -> bool:
    if shutil.which("mount") is None:
        return False
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_small_disk(small_disk: Path, sqlite_url: str, fault: str, record: Record) -> None:
    """A disk without space, and one that the system has made read-only; then more space, or writes again."""
    path = small_disk / "credits.db"
    shutil.copyfile(str(make_url(sqlite_url).database), path)
    url = f"sqlite:///{path}"
    CreditsTill.prepare(url)
    if fault == "read-only":
        assert _mounted("-o", "remount,ro", str(small_disk))
    with SyncCreditService(url, settings=IMPATIENT) as service:
        answered, errors = spend(service, "fault", up_to=5_000)
        assert errors, "the disk was never full"
        assert all(isinstance(error, StoreUnavailableError) and error.retryable for error in errors)
        assert _mounted("-o", "remount,rw,size=32m", str(small_disk))
        after, none = spend(service, "after", up_to=3)
        assert (len(after), none) == (3, [])
        assert service.flush()
    wrong = wrong_in(url, answered | after, errors)
    record(f"disk {fault} (tmpfs)", database="sqlite", count=1, unit="fault", seed=None, wrong=wrong)


@pytest.mark.postgres
def test_a_server_that_takes_no_writes(postgresql_url: str, record: Record) -> None:
    """As after a fail-over that left connections to the old primary: none is kept once a write was refused on it."""
    CreditsTill.prepare(postgresql_url)
    with psycopg.connect(libpq_url(postgresql_url), autocommit=True) as operator:
        name = operator.info.dbname
        operator.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        with SyncCreditService(postgresql_url, settings=IMPATIENT) as service:
            answered, errors = spend(service, "read-only", up_to=1)
            assert [error.reason for error in errors] == ["away"]
            operator.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
            after, none = spend(service, "after", up_to=3)
            assert (len(after), none) == (3, [])
    wrong = wrong_in(postgresql_url, answered | after, errors)
    record("read-only server", database="postgresql", count=1, unit="fault", seed=None, wrong=wrong)


# -- the process -----------------------------------------------------------------------------------------------------


def test_a_pool_that_is_used_up(database_url: str, record: Record) -> None:
    """The application's own engine has no connection left: not started, and the next call works."""
    CreditsTill.prepare(database_url)
    engine = own_engine(database_url)
    pool: Any = engine.pool
    pool._timeout = 0.2
    with SyncCreditService(engine, settings=IMPATIENT) as service:
        first, none = spend(service, "before", up_to=1)
        assert not none
        with contextlib.ExitStack() as taken:
            for _ in range(10):
                taken.enter_context(engine.connect())
            answered, errors = spend(service, "used-up", up_to=1)
            assert [(error.outcome, error.reason) for error in errors] == [("not_started", "away")]
        after, none = spend(service, "after", up_to=3)
        assert (len(after), none) == (3, [])
    assert pool.checkedout() == 0
    engine.dispose()
    wrong = wrong_in(database_url, first | answered | after, errors)
    backend = make_url(database_url).get_backend_name()
    record("pool exhausted", database=backend, count=1, unit="fault", seed=None, wrong=wrong)


@pytest.mark.timeout(600)
def test_event_loops_closed_in_mid_call(database_url: str, proof: str, seed: int, record: Record) -> None:
    """Nobody will ever take the answers: charges are whole or not there, holds are given back at once.

    A caller that had its hold before the loop was closed owns it; dropped, it ends with its time-to-live.
    """
    rounds = 1_000 if proof == "long" else 300
    owned: list[str] = []
    CreditsTill.prepare(database_url)
    engine = own_engine(database_url)
    pool: Any = engine.pool
    dice = random.Random(seed)
    with SyncCreditService(engine) as observer:
        service = CreditService(engine)
        for number in range(rounds):
            _leave_in_mid_call(service, number, dice.choice((0, 0, 0.0005, 0.001, 0.003)), owned)
        assert asyncio.run(_charge(service, "after")) == "done"
        # A task that nobody knows any more ends when Python collects it.
        gc.collect()
        end = time.monotonic() + 20
        while (held := observer.get_balance(ORGANIZATION).reserved - len(owned)) and time.monotonic() < end:
            time.sleep(0.02)
        service.close()
        assert observer.flush()
    books = CreditsTill.read_books(database_url)
    keys = [key for key, _ in books.entries]
    wrong = {
        "half-booked": sum(micros != -(10**6) for _, micros in books.entries) + len(books.problems),
        "booked twice": len(keys) - len(set(keys)),
        "credits still held": int(held),
        "leaked connections": pool.checkedout(),
    }
    engine.dispose()
    backend = make_url(database_url).get_backend_name()
    record("event loop closed in mid-call", database=backend, count=rounds, unit="loops", seed=seed, wrong=wrong)


async def _charge(service: CreditService, key: str) -> str:
    await service.consume_credits(organization_id=ORGANIZATION, amount=1, idempotency_key=key)
    return "done"


async def _hold(service: CreditService, key: str, owned: list[str]) -> None:
    await service.reserve_credits(organization_id=ORGANIZATION, amount=1, idempotency_key=key)
    owned.append(key)
    await asyncio.Event().wait()


def _leave_in_mid_call(service: CreditService, number: int, seconds: float, owned: list[str]) -> None:
    """Close a loop on which eight charges and eight holds are waiting."""
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(_charge(service, f"charge-{number}-{place}")) for place in range(8)]
    tasks += [loop.create_task(_hold(service, f"hold-{number}-{place}", owned)) for place in range(8)]
    loop.run_until_complete(asyncio.sleep(seconds))
    loop.close()
    for task in tasks:
        # What an abandoned task says at its end is Python's, not ours.
        task._log_destroy_pending = False  # type: ignore[attr-defined]


@pytest.mark.timeout(600)
def test_forked_workers_of_a_parent_that_used_the_service(
    database_url: str, proof: str, record: Record, tmp_path: Path
) -> None:
    """As a server that loads the application first: four workers at once, by both doors, and the parent goes on."""
    rounds = 30 if proof == "long" else 2
    CreditsTill.prepare(database_url)
    told = tmp_path / "told"
    process = start_process(charge_in_forks, database_url, told, rounds=rounds, forks=4, charges=20)
    process.join(500)
    assert process.exitcode == 0
    answered = told.read_text().split()
    books = CreditsTill.read_books(database_url)
    keys = [key for key, _ in books.entries]
    wrong = {
        "lost": len(set(answered) - set(keys)),
        "duplicated": len(keys) - len(set(keys)),
        "drifted": len(books.problems) + len(set(keys) - set(answered)),
    }
    backend = make_url(database_url).get_backend_name()
    assert len(answered) == rounds * (4 * 2 * 20 + 1) + 1
    record("fork after use", database=backend, count=4 * rounds, unit="workers", seed=None, wrong=wrong)
