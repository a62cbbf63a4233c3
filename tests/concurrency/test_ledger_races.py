"""Many callers, one account: exactly what is there leaves, and everything is settled exactly once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from agentcredits.errors import (
    CreditsError,
    InsufficientCreditsError,
    RefundExceedsChargeError,
)
from agentcredits.model import Overage, TransactionType
from agentcredits.service import SyncCreditService
from tests.concurrency import workers

ACME = "acme"


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


def race(count: int, act: Callable[[int], Any]) -> list[Any]:
    """Run ``act(place)`` in ``count`` threads that start together; gives results and credit errors in order."""
    gate = threading.Barrier(count)
    results: list[Any] = [None] * count

    def run(place: int) -> None:
        gate.wait(timeout=30)
        try:
            results[place] = act(place)
        except CreditsError as error:
            results[place] = error
        except BaseException as error:  # noqa: BLE001  # raised again below, in the main thread
            results[place] = AssertionError(f"untyped error: {error!r}")

    threads = [threading.Thread(target=run, args=(place,)) for place in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads), "a caller hangs"
    for result in results:
        if isinstance(result, AssertionError):
            raise result
    return results


def drain(threads: int, attempts: int, charge: Callable[[int], bool]) -> int:
    """How many charges of one credit succeed when every thread tries ``attempts`` times."""
    counts = race(threads, lambda place: sum(charge(place) for _ in range(attempts)))
    for count in counts:
        if isinstance(count, CreditsError):
            raise count
    return sum(counts)


def test_64_threads_take_exactly_1000_of_1000_credits(services: list[SyncCreditService]) -> None:
    """1,280 attempts in 64 threads on two engines: 1,000 succeed, 280 are refused, nothing is left or overdrawn."""
    services[0].grant_credits(ACME, 1_000)
    refused = Counter[str]()

    def charge(place: int) -> bool:
        try:
            services[place % 2].consume_credits(organization_id=ACME, amount=1)
        except InsufficientCreditsError as error:
            refused[error.code] += 1
            return False
        return True

    assert drain(64, 20, charge) == 1_000
    assert refused == {"insufficient_credits": 280}
    balance = services[0].get_balance(ACME)
    assert (balance.available, balance.spent, balance.reserved) == (0, 1_000, 0)
    assert services[0].verify(ACME).ok


def test_the_same_harness_catches_select_then_update(database_url: str) -> None:
    """The naive variant (read, then write what was read minus one) lets more leave than there is."""
    engine = create_engine(database_url, pool_size=64)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE naive (credits INTEGER)"))
        connection.execute(text("INSERT INTO naive VALUES (100)"))

    def charge(_: int) -> bool:
        with engine.connect() as connection:
            left = connection.execute(text("SELECT credits FROM naive")).scalar_one()
        if left < 1:
            return False
        with engine.begin() as connection:
            connection.execute(text("UPDATE naive SET credits = :credits"), {"credits": left - 1})
        return True

    left = drain(32, 5, charge)
    engine.dispose()
    assert left > 100


def test_4_processes_of_32_coroutines_take_exactly_1000_of_1000_credits(database_url: str) -> None:
    """Nobody overdraws across processes, and nobody starves."""
    with SyncCreditService(database_url) as service:
        service.grant_credits(ACME, 1_000)
        processes = [
            workers.start("charge_until_refused", url=database_url, organization=ACME, coroutines=32) for _ in range(4)
        ]
        charged = [report["charged"] for report in workers.finish_all(processes)]
        assert sum(map(sum, charged)) == 1_000
        balance = service.get_balance(ACME)
        assert (balance.available, balance.spent) == (0, 1_000)
        assert service.verify(ACME).ok


def test_refunds_at_once_never_exceed_the_charge(services: list[SyncCreditService]) -> None:
    """Eight refunds of 4 of a charge of 10: two succeed, six are refused."""
    services[0].grant_credits(ACME, 100)
    for _ in range(8):
        charge = services[0].consume_credits(organization_id=ACME, amount=10)
        results = race(
            8, lambda place, charge=charge: services[place % 2].refund_credits(charge.id, 4, organization_id=ACME)
        )
        outcomes = Counter(type(result).__name__ for result in results)
        assert outcomes == {"Transaction": 2, RefundExceedsChargeError.__name__: 6}
    assert services[0].get_balance(ACME).spent == 8 * 2
    assert services[0].verify(ACME).ok


def test_one_refund_key_gives_back_once(services: list[SyncCreditService]) -> None:
    """A refund that is retried by 16 threads under one key is booked once and answered to all."""
    services[0].grant_credits(ACME, 100)
    charge = services[0].consume_credits(organization_id=ACME, amount=10)
    results = race(
        16,
        lambda place: services[place % 2].refund_credits(charge.id, 4, organization_id=ACME, idempotency_key="r-1"),
    )
    assert len({result.id for result in results}) == 1
    assert Counter(result.replayed for result in results) == {False: 1, True: 15}
    assert services[0].get_balance(ACME).spent == 6
    assert services[0].verify(ACME).ok


def test_one_key_charges_once_however_many_try(services: list[SyncCreditService]) -> None:
    """32 threads with the same key and payload: one charge, 31 repeated answers, the same transaction for all."""
    services[0].grant_credits(ACME, 100)
    for number in range(6):
        results = race(
            32,
            lambda place, number=number: services[place % 2].consume_credits(
                organization_id=ACME, amount=1, idempotency_key=f"key-{number}"
            ),
        )
        assert len({result.id for result in results}) == 1
        assert Counter(result.replayed for result in results) == {False: 1, True: 31}
    assert services[0].get_balance(ACME).spent == 6


def test_a_new_account_is_made_once(services: list[SyncCreditService]) -> None:
    """First grants of one new organization from 16 threads: one account with all of them."""
    race(16, lambda place: services[place % 2].grant_credits("newcomer", 1))
    assert services[0].get_balance("newcomer").granted == 16
    assert services[0].verify("newcomer").ok
    page = services[0].list_transactions("newcomer", limit=50)
    assert sorted(row.seq for row in page) == list(range(1, 17))


def test_capped_commits_at_once_never_go_below_zero(services: list[SyncCreditService]) -> None:
    """16 holds of 1 that all over-run to 10 on an account of 50: what leaves is 50, the rest stands as uncollected."""
    services[0].grant_credits(ACME, 50)
    holds = [services[0].reserve_credits(organization_id=ACME, amount=1).id for _ in range(16)]
    results = race(
        16,
        lambda place: services[place % 2].commit_reservation(
            holds[place], 10, organization_id=ACME, overage=Overage.CAP
        ),
    )
    assert sum(result.charged for result in results) == 50
    assert sum(result.uncollected for result in results) == 16 * 10 - 50
    balance = services[0].get_balance(ACME)
    assert (balance.available, balance.spent, balance.reserved) == (0, 50, 0)
    assert services[0].verify(ACME).ok


def test_history_is_gapless_and_adds_up_under_contention(services: list[SyncCreditService]) -> None:
    """After mixed work of 16 threads, seq has no gap and every balance_after is the one before plus the amount."""
    services[0].grant_credits(ACME, 500)

    def work(place: int) -> None:
        service = services[place % 2]
        for _ in range(5):
            charge = service.consume_credits(organization_id=ACME, amount=2)
            service.refund_credits(charge.id, 1, organization_id=ACME)
            with service.reserve_credits(organization_id=ACME, amount=3) as hold:
                hold.commit(1)

    race(16, work)
    rows = []
    cursor = None
    while True:
        page = services[0].list_transactions(ACME, cursor=cursor, limit=50)
        rows += list(page)
        cursor = page.next_cursor
        if cursor is None:
            break
    rows.reverse()
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    after = Decimal(0)
    for row in rows:
        after += row.amount
        assert row.balance_after == after
    kinds = Counter(row.type for row in rows)
    assert kinds == {TransactionType.PURCHASE: 1, TransactionType.DEBIT: 160, TransactionType.REFUND: 80}
    assert services[0].verify(ACME).ok
