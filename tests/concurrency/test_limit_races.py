"""Limits under contention: 64 threads and 4 processes never use a credit more than any of them allows.

Run as a program it is one of the processes: ``python -m tests.concurrency.test_limit_races <json arguments>``.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

import pytest
from sqlalchemy import create_engine, text

from agentcredits.errors import ConfigurationError, CreditLimitExceededError, CreditsError, LimitNotFoundError
from agentcredits.model import LimitUnit, TransactionType
from agentcredits.service import CreditService, SyncCreditService
from tests.concurrency import workers
from tests.concurrency.test_ledger_races import race

ACME = "acme"
DEPARTMENTS = [f"d{number}" for number in range(8)]
USERS = [f"u{number}" for number in range(20)]
CAPS = {department: 60 if department == "d0" else 100 for department in DEPARTMENTS}
TTL = timedelta(minutes=5)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def services(database_url: str) -> Iterator[list[SyncCreditService]]:
    """Two services with an engine and a runner each, as two processes would have."""
    engines = [workers.own_engine(database_url) for _ in range(2)]
    made = [SyncCreditService(engine) for engine in engines]
    yield made
    for service in made:
        service.close()
    for engine in engines:
        engine.dispose()


# -- the storm -----------------------------------------------------------------------------------------------------


def prepare(service: SyncCreditService) -> None:
    """10,000 credits; 500 for the organization, 100 for each department, 30 for each user."""
    service.grant_credits(ACME, 10_000)
    service.set_limit(ACME, amount=500, window="month")
    service.set_limit(ACME, amount=100, window="month", scope="department")
    service.set_limit(ACME, amount=30, window="month", scope="user")
    service.set_limit(ACME, amount=60, window="month", scope="department", scope_id=DEPARTMENTS[0])


def act(service: SyncCreditService, dice: random.Random, charged: Counter[str]) -> None:
    """One charge, or a hold that is committed (in part, or above) or given back; what was charged is added up."""
    user, department = dice.choice(USERS), dice.choice(DEPARTMENTS)
    scopes: dict[str, Any] = {"organization_id": ACME, "user_id": user, "department_id": department}
    kind, amount, actual = dice.random(), dice.randint(1, 3), dice.randint(0, 4)
    try:
        if kind < 0.5:
            got = service.consume_credits(amount=amount, **scopes).charged
        else:
            hold = service.reserve_credits(amount=amount, ttl=TTL, **scopes)
            got = hold.release().charged if kind < 0.7 else hold.commit(actual).charged
    except CreditLimitExceededError:
        return
    for name in (ACME, user, department):
        charged[name] += int(got)


def storm(service: SyncCreditService, threads: int, attempts: int, seed: int) -> Counter[str]:
    """What each thread's calls were told was charged, together."""

    def work(place: int) -> Counter[str]:
        dice = random.Random(seed * 1_000 + place)
        charged: Counter[str] = Counter()
        for _ in range(attempts):
            act(service, dice, charged)
        return charged

    return sum(race(threads, work), Counter())


def check_books(service: SyncCreditService, told: Counter[str]) -> None:
    """What was told, the ledger's rows, the limits' counters and verify agree; nothing is beyond its limit."""
    rows: Counter[str] = Counter()
    cursor = None
    while True:
        page = service.list_transactions(ACME, type="debit", cursor=cursor, limit=1_000)
        for row in page.items:
            for name in (ACME, str(row.user_id), str(row.department_id)):
                rows[name] += int(row.charged)
        cursor = page.next_cursor
        if cursor is None:
            break
    rows, told = +rows, +told
    assert rows == told
    counters = {line.scope_id or ACME: line for one in service.list_limits(ACME) for line in one.usage}
    assert {name: line.spent for name, line in counters.items() if line.spent} == rows
    assert {line.held for line in counters.values()} == {0}
    assert rows[ACME] <= 500
    assert max(rows[user] for user in USERS) <= 30
    assert all(rows[department] <= cap for department, cap in CAPS.items())
    assert service.verify(ACME).problems == ()


def fill_up(service: SyncCreditService, told: Counter[str]) -> None:
    """Charge what each user and department has left, not a credit less, until all are refused: at exactly 500."""
    for user in USERS:
        for department in DEPARTMENTS:
            scopes = {"organization_id": ACME, "user_id": user, "department_id": department}
            room = min(500 - told[ACME], 30 - told[user], CAPS[department] - told[department])
            if room:
                assert service.consume_credits(amount=room, **scopes).charged == room  # type: ignore[arg-type]
                told.update({ACME: room, user: room, department: room})
        with pytest.raises(CreditLimitExceededError):
            service.consume_credits(amount=1, **scopes)  # type: ignore[arg-type]


class Watcher:
    """Looks at the counters over and over while others work: the most that was ever beyond a limit."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.beyond: list[int] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._engine.dispose()

    def _watch(self) -> None:
        statement = text(
            "SELECT u.spent + u.held - CAST(l.amount AS INTEGER) * 1000000 FROM credit_limit_usage u"
            " JOIN credit_limits l ON l.id = u.limit_id WHERE l.scope_id <> '' OR NOT EXISTS (SELECT 1 FROM"
            " credit_limits own WHERE own.scope = l.scope AND own.scope_id = u.scope_id AND u.scope_id <> '')"
        )
        while not self._stop.wait(0.005):
            with self._engine.connect() as connection:
                self.beyond += [max(connection.execute(statement).scalars(), default=0)]


def test_64_threads_stay_within_every_limit(database_url: str, services: list[SyncCreditService]) -> None:
    """Charges and holds of random users and departments on two engines, watched; then filled up to exactly 500."""
    prepare(services[0])
    with Watcher(database_url) as watcher:

        def work(place: int) -> Counter[str]:
            dice = random.Random(place)
            charged: Counter[str] = Counter()
            for _ in range(12):
                act(services[place % 2], dice, charged)
            return charged

        told = sum(race(64, work), Counter[str]())
    assert watcher.beyond
    assert max(watcher.beyond) <= 0
    fill_up(services[1], told)
    assert told[ACME] == 500
    check_books(services[0], told)


def test_4_processes_stay_within_every_limit(database_url: str) -> None:
    """16 threads in each; together they charge what the ledger says, and what is left fills up to exactly 500."""
    with SyncCreditService(database_url) as service:
        prepare(service)
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.concurrency.test_limit_races", json.dumps([database_url, 16, 12, seed])],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            for seed in range(4)
        ]
        told = sum(map(Counter, workers.finish_all(processes)), Counter[str]())
        assert told[ACME] > 100
        fill_up(service, told)
        assert told[ACME] == 500
        check_books(service, told)


def test_the_same_harness_catches_a_limit_that_is_only_looked_at(services: list[SyncCreditService]) -> None:
    """Reading what remains and then charging (a soft limit refuses nothing) goes beyond it."""
    services[0].grant_credits(ACME, 1_000)
    limit = services[0].set_limit(ACME, amount=20, window="month", mode="soft")

    def charge(place: int) -> None:
        service = services[place % 2]
        for _ in range(5):
            (found,) = service.list_limits(ACME)
            if found.usage[0].remaining:
                service.consume_credits(organization_id=ACME, amount=1)

    race(32, charge)
    (found,) = services[0].list_limits(ACME)
    assert found.id == limit.id
    assert found.usage[0].spent > 20


# -- one batch ----------------------------------------------------------------------------------------------------


async def test_one_batch_of_coroutines_stays_within_a_limit(database_url: str) -> None:
    """200 charges of one loop's turn share a batch: 37 pass, those of another department are not held up."""
    async with CreditService(database_url) as service:
        await service.grant_credits(ACME, 1_000)
        await service.set_limit(ACME, amount=37, window="month", scope="department")

        async def charge(number: int) -> str:
            department = "video" if number % 10 else "audio"
            try:
                await service.consume_credits(organization_id=ACME, amount=1, department_id=department)
            except CreditLimitExceededError:
                return f"{department} refused"
            return department

        found = Counter(await asyncio.gather(*(charge(number) for number in range(200))))
        assert found == {"video": 37, "video refused": 143, "audio": 20}
        assert (await service.verify(ACME)).problems == ()


# -- limits that are changed meanwhile -----------------------------------------------------------------------------


def test_one_limit_set_at_once_is_one_limit(services: list[SyncCreditService]) -> None:
    """16 threads name the same place: one id; the account comes into being once."""
    made = race(16, lambda place: services[place % 2].set_limit(ACME, amount=place, window="month", scope="user"))
    assert len({limit.id for limit in made}) == 1
    (listed,) = services[0].list_limits(ACME)
    assert listed.amount in range(16)
    assert services[0].verify(ACME).ok


def test_limits_are_set_and_removed_while_others_charge(services: list[SyncCreditService]) -> None:
    """Raised, lowered, removed and made anew with what is there: callers get typed answers, counters stay exact."""
    services[0].grant_credits(ACME, 10_000)
    answers: Counter[str] = Counter()

    def work(place: int) -> None:
        dice, service = random.Random(place), services[place % 2]
        for _ in range(10):
            if place < 2:
                limit = service.set_limit(
                    ACME, amount=dice.randint(0, 60), window="month", scope="user", include_existing=dice.random() < 0.5
                )
                if dice.random() < 0.5:
                    try:
                        service.remove_limit(limit)
                    except LimitNotFoundError:
                        answers["gone already"] += 1
            else:
                act(service, dice, answers)

    race(32, work)
    assert answers[ACME] > 0
    assert services[0].verify(ACME).problems == ()
    services[0].set_limit(ACME, amount=10_000, window="month", include_existing=True)
    (whole,) = services[0].list_limits(ACME, scope="organization")
    assert (whole.unit, whole.usage[0].spent) == (LimitUnit.CREDITS, services[0].get_balance(ACME).spent)


def test_an_operator_types_while_others_charge(database_url: str, services: list[SyncCreditService]) -> None:
    """Plain UPDATEs of amount and mode, also to what cannot be read: typed answers, and no counter is lost."""
    services[0].grant_credits(ACME, 10_000)
    limit = services[0].set_limit(ACME, amount=40, window="month", unit="count", scope="user")
    engine = create_engine(database_url, connect_args={"timeout": 30} if "sqlite" in database_url else {})
    unreadable: Counter[str] = Counter()

    def work(place: int) -> None:
        dice = random.Random(place)
        for number in range(10):
            if place == 0:
                amount = Decimal(["0.5", "3", "40", "1"][number % 4])
                with engine.begin() as connection:
                    connection.execute(
                        text("UPDATE credit_limits SET amount = :amount, mode = 'hard'"),
                        {"amount": str(amount) if "sqlite" in database_url else amount},
                    )
            else:
                try:
                    act(services[place % 2], dice, unreadable)
                except ConfigurationError:
                    unreadable["refused"] += 1

    race(24, work)
    engine.dispose()
    services[0].set_limit(ACME, amount=1_000, window="month", unit="count", scope="user")
    assert services[0].verify(ACME).problems == ()
    (found,) = services[0].list_limits(ACME)
    assert found.id == limit.id
    rows = services[0].list_transactions(ACME, type="debit", limit=1_000).items
    assert {row.type for row in rows} == {TransactionType.DEBIT}
    assert {line.scope_id: line.spent for line in found.usage if line.spent} == Counter(row.user_id for row in rows)


def main() -> None:
    """One of the processes of the storm."""
    url, threads, attempts, seed = json.loads(sys.argv[1])
    with SyncCreditService(url) as service:
        try:
            charged = storm(service, threads, attempts, seed)
        except CreditsError as error:
            sys.exit(f"{error!r}")
    workers.say(charged)


if __name__ == "__main__":
    main()
