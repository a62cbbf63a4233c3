"""Processes that write one SQLite file without a pause: nobody is told that it is locked, and every charge counts.

Run as a program it is one of the processes: ``python -m tests.proof.test_writers <json arguments of write>``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from agentcredits.service import SyncCreditService
from tests.concurrency import workers
from tests.proof.conftest import Record
from tests.proof.naive_races import PlainBegin

ACME = "acme"


class Real:
    """The ledger: charges, and every fifth time a hold that is settled."""

    def __init__(self, url: str) -> None:
        self._service = SyncCreditService(url)

    def charge(self, name: str, number: int) -> None:
        if number % 5:
            self._service.consume_credits(organization_id=name, amount=1)
        else:
            with self._service.reserve_credits(organization_id=name, amount=2) as hold:
                hold.commit(1)

    def close(self) -> None:
        self._service.close()


def write(url: str, charges: int, own: str, naive: bool) -> dict[str, int]:
    """Charge one credit at a time, in turn from the account of all and from one's own; gives errors by their text."""
    writer: Any = PlainBegin(str(make_url(url).database)) if naive else Real(url)
    errors: Counter[str] = Counter()
    for number in range(charges):
        try:
            writer.charge(ACME if number % 2 else own, number)
        except Exception as error:  # noqa: BLE001  # every error is an answer here
            errors["locked" if "locked" in f"{error} {error.__cause__}" else repr(error)] += 1
    writer.close()
    return errors


def run(url: str, processes: int, charges: int, *, naive: bool) -> Counter[str]:
    """The errors of all processes together."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.proof.test_writers", json.dumps([url, charges, f"own-{number}", naive])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for number in range(processes)
    ]
    return sum(map(Counter, workers.finish_all(started, timeout=1_700)), Counter())


@pytest.mark.proof
@pytest.mark.timeout(1_800)
def test_many_processes_write_one_file(sqlite_url: str, proof: str, record: Record) -> None:
    """8 processes × 5,000 charges; short: 4 × 500. No error at all, and every account has spent what was charged."""
    processes, charges = (8, 5_000) if proof == "long" else (4, 500)
    with SyncCreditService(sqlite_url) as service:
        accounts = [ACME, *(f"own-{number}" for number in range(processes))]
        for account in accounts:
            service.grant_credits(account, 1_000_000)
        errors = run(sqlite_url, processes, charges, naive=False)
        expected = {account: charges // 2 * (processes if account == ACME else 1) for account in accounts}
        spent = {account: int(service.get_balance(account).spent) for account in accounts}
        problems = service.verify().problems
    record(
        "SQLite writers",
        count=processes * charges,
        unit=f"charges by {processes} processes",
        seed=None,
        wrong={
            "locked": errors["locked"],
            "other errors": sum(errors.values()) - errors["locked"],
            "credits lost or charged twice": sum(abs(spent[account] - expected[account]) for account in accounts),
            "verify": len(problems),
        },
        database="sqlite",
    )


def test_the_harness_sees_that_a_plain_begin_is_locked_out(sqlite_url: str) -> None:
    """A transaction that reads first and then wants to write is refused at once, whatever time-out was asked for."""
    # Processes that a busy machine runs one after the other are in nobody's way: they may try again.
    assert any(run(sqlite_url, 4, 500, naive=True)["locked"] for _ in range(5))


if __name__ == "__main__":
    print(json.dumps(write(*json.loads(sys.argv[1]))))  # noqa: T201  # the answer to the process that asked
