"""The database goes away for some seconds: finished work costs its caller nothing and is settled afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from agentcredits.errors import SettlementFailedError, StoreUnavailableError
from agentcredits.model import ReservationState, TransactionType
from agentcredits.service import CreditService, SyncCreditService
from agentcredits.settings import Settings
from agentcredits.store.upgrade import upgrade_database
from tests.concurrency import workers
from tests.proof.proxy import CuttingProxy

ACME = "acme"


class SqliteOutage:
    """Another process holds the file's write lock, until it is told to end."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._worker: Any = None

    def begin(self, seconds: float) -> None:
        path = make_url(self.url).database
        self._worker = workers.start("lock_sqlite", path=path, seconds=seconds)
        assert workers.next_line(self._worker) == {"locked": True}

    def end(self) -> None:
        assert workers.finish(self._worker) == {"locked": False}


class PostgresOutage:
    """The server is stopped and started again."""

    def __init__(self, url: str, server: Any) -> None:
        self.url = url
        self._server = server
        self._until = 0.0

    def begin(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self._server.stop()

    def end(self) -> None:
        time.sleep(max(0.0, self._until - time.monotonic()))
        self._server.ensure_postgres_running()


@pytest.fixture(params=["sqlite", "postgresql"])
def outage(request: pytest.FixtureRequest, tmp_path: Path) -> SqliteOutage | PostgresOutage:
    """A database with its schema, and the way to take it away."""
    if request.param == "sqlite":
        made: SqliteOutage | PostgresOutage = SqliteOutage(f"sqlite:///{tmp_path / 'ledger.db'}")
    else:
        server = request.getfixturevalue("own_server")
        name = f"away_{time.time_ns()}"
        server.psql(f"CREATE DATABASE {name};")
        made = PostgresOutage(server.get_uri(database=name, driver="psycopg"), server)
    engine = workers.own_engine(made.url)
    upgrade_database(engine)
    engine.dispose()
    return made


def impatient(**changes: Any) -> Settings:
    """Settings that give up quickly."""
    return Settings(lock_timeout_seconds=0.15, retry_seconds=0.15, **changes)


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll; whether the condition came true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


@pytest.mark.timeout(120)
def test_a_store_that_is_away_at_commit_costs_the_caller_nothing(outage: SqliteOutage | PostgresOutage) -> None:
    """One outage, everything that can end in it.

    A finished body keeps its result, a failed body keeps its own exception, a new charge is refused with the key
    under which it can be repeated; once the store is back, each is booked exactly once.
    """
    with SyncCreditService(outage.url, settings=impatient()) as service:
        service.grant_credits(ACME, 100)
        ttl = timedelta(seconds=60)
        done = service.reserve_credits(organization_id=ACME, amount=7, ttl=ttl)
        failed = service.reserve_credits(organization_id=ACME, amount=11, ttl=ttl)

        def work() -> str:
            with done:
                outage.begin(3.0)
                return "the finished video"

        assert work() == "the finished video"
        with pytest.raises(KeyError, match="the body's own error"), failed:
            raise KeyError("the body's own error")
        with pytest.raises(StoreUnavailableError) as refused:
            service.consume_credits(organization_id=ACME, amount=1, idempotency_key="mine")
        with pytest.raises(StoreUnavailableError) as generated:
            service.consume_credits(organization_id=ACME, amount=2)
        assert refused.value.idempotency_key == "mine"
        assert refused.value.retryable
        assert generated.value.idempotency_key

        outage.end()
        assert wait_until(service.flush, 15), "the settlements were not retried"
        states = [service.get_reservation(hold.id, organization_id=ACME) for hold in (done, failed)]
        assert [record.state for record in states] == [ReservationState.COMMITTED, ReservationState.RELEASED]
        for key, amount in (("mine", 1), (generated.value.idempotency_key, 2)):
            for _ in range(2):
                service.consume_credits(organization_id=ACME, amount=amount, idempotency_key=key)
        page = service.list_transactions(ACME, type=TransactionType.DEBIT)
        assert sorted(row.charged for row in page) == [1, 2, 7]
        balance = service.get_balance(ACME)
        assert (balance.available, balance.spent, balance.reserved) == (90, 10, 0)
        assert service.verify(ACME).ok


@pytest.mark.timeout(120)
async def test_coroutines_keep_their_results_too(outage: SqliteOutage | PostgresOutage) -> None:
    """Eight ``async with`` bodies that end while the store is away: no exception, all charged once afterwards.

    The holds' ttl is shorter than the outage: those that ran out meanwhile are settled late, not lost.
    """
    async with CreditService(outage.url, settings=impatient()) as service:
        await service.grant_credits(ACME, 100)
        away, all_inside = asyncio.Event(), asyncio.Event()
        inside = 0

        async def body(number: int) -> int:
            nonlocal inside
            ttl = timedelta(seconds=0.9 if number % 2 else 60)
            async with service.reserve_credits(organization_id=ACME, amount=3, ttl=ttl):
                inside += 1
                if inside == 8:
                    all_inside.set()
                await away.wait()
                return number

        tasks = [asyncio.create_task(body(number)) for number in range(8)]
        await asyncio.wait_for(all_inside.wait(), timeout=30)
        await asyncio.to_thread(outage.begin, 1.5)
        away.set()
        assert await asyncio.wait_for(asyncio.gather(*tasks), timeout=30) == list(range(8))
        await asyncio.to_thread(outage.end)
        for _ in range(300):
            if await service.flush():
                break
            await asyncio.sleep(0.05)
        balance = await service.get_balance(ACME)
        assert (balance.spent, balance.reserved, balance.available) == (24, 0, 76)
        page = await service.list_transactions(ACME, type=TransactionType.DEBIT)
        assert [row.charged for row in page] == [3] * 8
        assert (await service.verify(ACME)).ok


@pytest.mark.timeout(120)
def test_who_wants_to_know_is_told_and_it_is_settled_all_the_same(outage: SqliteOutage | PostgresOutage) -> None:
    """``on_settlement_failure="raise"``: SettlementFailedError at the end of the block, one charge afterwards."""
    with SyncCreditService(outage.url, settings=impatient(on_settlement_failure="raise")) as service:
        service.grant_credits(ACME, 100)
        hold = service.reserve_credits(organization_id=ACME, amount=7, ttl=timedelta(seconds=60))
        with pytest.raises(SettlementFailedError) as caught, hold:
            outage.begin(1.2)
        assert isinstance(caught.value.__cause__, StoreUnavailableError)
        outage.end()
        assert wait_until(service.flush, 15)
        assert service.get_reservation(hold.id, organization_id=ACME).state is ReservationState.COMMITTED
        assert service.get_balance(ACME).spent == 7
        assert service.verify(ACME).ok


@pytest.mark.timeout(120)
def test_nothing_starts_while_the_store_is_away(outage: SqliteOutage | PostgresOutage) -> None:
    """Fail closed: no reservation, no body. The service recovers by itself."""
    with SyncCreditService(outage.url, settings=impatient()) as service:
        service.grant_credits(ACME, 100)
        outage.begin(1.2)
        ran = False
        with pytest.raises(StoreUnavailableError), service.reserve_credits(organization_id=ACME, amount=7):
            ran = True
        assert not ran
        outage.end()
        assert wait_until(lambda: works(service), 15)
        assert service.verify(ACME).ok
        assert service.get_balance(ACME).reserved == 0


def works(service: SyncCreditService) -> bool:
    """Whether a charge goes through."""
    try:
        service.consume_credits(organization_id=ACME, amount=1)
    except StoreUnavailableError:
        return False
    return True


@pytest.fixture
def proxy(postgresql_url: str) -> Iterator[CuttingProxy]:
    """The way to a database on which the answer of a COMMIT can be lost."""
    with CuttingProxy(postgresql_url) as made:
        yield made


@pytest.mark.postgres
def test_a_lost_answer_of_a_commit_is_found_again(proxy: CuttingProxy) -> None:
    """The connection dies between COMMIT and its answer: the call is tried again under its key, books nothing twice,
    and its caller is told what the first try did, as its own work and not as somebody else's.
    """
    ttl = timedelta(minutes=5)
    with SyncCreditService(proxy.url) as service:
        service.grant_credits(ACME, 1_000)
        for _ in range(6):
            proxy.arm()
            charge = service.consume_credits(organization_id=ACME, amount=5)
            proxy.wait_until_cut()
            assert not charge.replayed
            proxy.arm()
            refund = service.refund_credits(charge.id, 2, organization_id=ACME)
            assert not refund.replayed
            proxy.arm()
            with service.reserve_credits(organization_id=ACME, amount=3, ttl=ttl) as hold:
                assert not hold.replayed
                proxy.arm()
            assert hold.state is ReservationState.COMMITTED
            given_back = service.reserve_credits(organization_id=ACME, amount=3, ttl=ttl)
            proxy.arm()
            assert service.release_reservation(given_back.id, organization_id=ACME).state is ReservationState.RELEASED
            proxy.arm()
            service.grant_credits(ACME, 1)
        proxy.wait_until_cut()
        assert proxy.cuts == 6 * 6
        balance = service.get_balance(ACME)
        assert (balance.granted, balance.spent, balance.reserved) == (1_006, 6 * (5 - 2 + 3), 0)
        assert service.verify(ACME).ok


@pytest.mark.postgres
def test_a_lost_commit_that_cannot_be_looked_up_is_unknown(proxy: CuttingProxy) -> None:
    """COMMIT went out and then nobody answers any more: the caller is not told that nothing was booked."""
    with SyncCreditService(proxy.url, settings=impatient()) as service:
        service.grant_credits(ACME, 10)
        proxy.arm()
        proxy.lock_door()
        with pytest.raises(StoreUnavailableError, match="whether it was booked is unknown") as refusal:
            service.consume_credits(organization_id=ACME, amount=4)
    assert (refusal.value.outcome, refusal.value.reason) == ("unknown", "away")


@pytest.mark.postgres
async def test_a_lost_answer_reaches_every_coroutine_of_the_batch(proxy: CuttingProxy) -> None:
    """64 charges wait for batches whose answers are lost now and then: each is booked once and answered."""
    async with CreditService(proxy.url) as service:
        await service.grant_credits(ACME, 1_000)

        async def charge(number: int) -> str:
            if number % 8 == 0:
                proxy.arm()
            transaction = await service.consume_credits(organization_id=ACME, amount=1)
            return transaction.id

        ids = await asyncio.gather(*[charge(number) for number in range(64)])
        assert len(set(ids)) == 64
        assert proxy.cuts >= 1
        assert (await service.get_balance(ACME)).spent == 64
        assert (await service.verify(ACME)).ok
