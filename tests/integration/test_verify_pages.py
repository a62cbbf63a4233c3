"""verify reads in pages while the ledger grows: no false alarm, nothing overlooked, and no memory for the rows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from agentcredits import SyncCreditService, VerifyProgress
from agentcredits.store import ledger_pages, verification
from agentcredits.store.dialects import dialect_of
from agentcredits.testing import FakeClock
from tests.benchmarks.ledgers import fill

ACME = "acme"


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_pages, "PAGE_ROWS", 3)


@pytest.fixture
def service(database_url: str, clock: FakeClock) -> Iterator[SyncCreditService]:
    with SyncCreditService(database_url, clock=clock) as made:
        made.grant_credits(ACME, 10_000)
        made.set_limit(ACME, amount=5_000, window="hour")
        made.set_limit(ACME, scope="user", amount=5_000, window="lifetime")
        made.set_limit(ACME, scope="user", amount=5_000, unit="count", window="day")
        for number in range(12):
            _work(made, number)
            clock.advance(timedelta(minutes=40))
        yield made


def _work(service: SyncCreditService, number: int) -> None:
    charge = service.consume_credits(organization_id=ACME, amount=3 + number, user_id=f"user{number % 3}", action="a")
    if number % 2:
        service.refund_credits(charge, 1)
    hold = service.reserve_credits(organization_id=ACME, amount=2, user_id="ada", ttl=timedelta(hours=2))
    if number % 3:
        hold.commit(1)


def meanwhile(service: SyncCreditService, clock: FakeClock, times: int = 25) -> Callable[[VerifyProgress], None]:
    """What happens between two pages: charges, refunds, windows and days that end, new limits, limits taken away."""
    seen: list[VerifyProgress] = []

    def happen(progress: VerifyProgress) -> None:
        seen.append(progress)
        number = len(seen)
        if number > times:
            return
        clock.advance(timedelta(minutes=47))
        _work(service, number)
        if number == 5:
            service.set_limit(ACME, amount=4_000, window="month", include_existing=True)
            service.set_limit(ACME, scope="user", amount=4_000, window="week")
        if number == 9:
            service.remove_limit(service.list_limits(ACME, scope="user")[0])
            service.grant_credits(ACME, 5, expires_at=clock.now() + timedelta(minutes=50))

    return happen


def test_a_ledger_that_grows_while_it_is_read_is_clean(service: SyncCreditService, clock: FakeClock) -> None:
    """Each account is compared as of one moment, whatever happened between its pages."""
    report = service.verify(progress=meanwhile(service, clock))
    assert report.problems == ()
    assert report.transactions == service.list_transactions(ACME, limit=1).items[0].seq
    assert service.verify()


def test_rows_that_come_after_the_last_page_are_read_in_the_snapshot(
    service: SyncCreditService, clock: FakeClock, database_url: str
) -> None:
    """Also those of a day and of windows that had not begun when the reading did."""
    engine = create_engine(database_url, poolclass=NullPool)
    account = verification.AccountVerification(ACME)
    with engine.connect() as connection:
        account.walk(connection, lambda _rows: None)
        connection.rollback()
        for number in range(5):
            clock.advance(timedelta(hours=7))
            _work(service, number)
        dialect_of(connection).begin_read(connection)
        account.finish(connection)
        connection.rollback()
    assert account.problems == []


TAMPERED = {
    "limit": "UPDATE credit_limit_usage SET spent = spent + 1",
    "usage": "UPDATE usage_rollups SET uncollected_micros = 1",
    "spent": "UPDATE credit_accounts SET spent_micros = spent_micros + 1",
    "grant": "UPDATE credit_grants SET held_micros = held_micros + 1",
    "settlement": "UPDATE credit_reservations SET charged_micros = 7 WHERE state = 'committed'",
}


@pytest.mark.parametrize("check", TAMPERED)
def test_a_difference_is_found_though_the_ledger_grows(
    service: SyncCreditService, clock: FakeClock, database_url: str, check: str
) -> None:
    """What was wrong before the first page is named at the end."""
    engine = create_engine(database_url, poolclass=NullPool)
    with engine.begin() as connection:
        assert connection.exec_driver_sql(TAMPERED[check]).rowcount
    report = service.verify(progress=meanwhile(service, clock))
    assert check in {problem.check for problem in report.problems}


def test_progress_counts_every_row_once(service: SyncCreditService) -> None:
    """Rows read only grow, up to the rows there are; accounts are counted when they are done."""
    service.grant_credits("globex", 1)
    seen: list[VerifyProgress] = []
    report = service.verify(progress=seen.append)
    assert [one.rows_read for one in seen] == sorted(one.rows_read for one in seen)
    assert (seen[-1].rows_read, seen[-1].rows) == (report.transactions, report.transactions)
    assert {(one.organization_id, one.accounts_done, one.accounts) for one in seen} == {(ACME, 0, 2), ("globex", 1, 2)}


# -- memory ------------------------------------------------------------------------------------------------------

_VERIFY = """
import sys
from agentcredits import SyncCreditService
from agentcredits.store import ledger_pages
if sys.argv[2] != "paged":
    ledger_pages.PAGE_ROWS = 10**9
with SyncCreditService(sys.argv[1]) as service:
    report = service.verify()
# Not getrusage's ru_maxrss: at first that is the peak of the process that started this one.
with open("/proc/self/status") as status:
    (peak,) = (line.split()[1] for line in status if line.startswith("VmHWM"))
print(report.ok, report.transactions, peak)
"""


def megabytes(url: str, rows: int, how: str = "paged") -> float:
    """The peak memory of a process that verifies a clean ledger of so many rows."""
    done = subprocess.run([sys.executable, "-c", _VERIFY, url, how], capture_output=True, text=True, check=True)
    ok, transactions, peak = done.stdout.split()
    assert (ok, transactions) == ("True", str(rows))
    return int(peak) * 1024 / 1e6


@pytest.mark.proof
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from Linux")
@pytest.mark.timeout(7_200)
def test_memory_does_not_grow_with_the_ledger(tmp_path: Path, proof: str) -> None:
    """Short: four times the rows, and no more memory (reading them at once takes it). Long: 10^7 rows in 300 MB."""
    small, large = (10_000, 40_000) if proof == "short" else (100_000, 10_000_000)
    urls = [f"sqlite:///{tmp_path}/{rows}.db" for rows in (small, large)]
    for url, rows in zip(urls, (small, large), strict=True):
        fill(url, rows - 1)
    peaks = [megabytes(url, rows) for url, rows in zip(urls, (small, large), strict=True)]
    sys.stdout.write(f"verify: {peaks[0]:.0f} MB at {small:,} rows, {peaks[1]:.0f} MB at {large:,} rows\n")
    assert peaks[1] < 300
    assert peaks[1] - peaks[0] < 12
    if proof == "short":
        assert megabytes(urls[1], large, "at once") - peaks[1] > 12
