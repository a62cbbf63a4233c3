"""Processes that die and bodies that outlive their hold: credits come back, finished work is charged once."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from agentcredits.errors import ReservationExpiredError
from agentcredits.model import ReservationState, TransactionType
from agentcredits.service import CreditService, SyncCreditService
from tests.concurrency import workers

ACME = "acme"
TTL = 0.9


@pytest.fixture
def service(database_url: str) -> Iterator[SyncCreditService]:
    """A service on the wall clock with 1,000 credits of acme."""
    with SyncCreditService(database_url) as made:
        made.grant_credits(ACME, 1_000)
        yield made


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll ``condition``; whether it came true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def debits(service: SyncCreditService) -> list[tuple[int, bool]]:
    """The charges of acme as (micros, late)."""
    page = service.list_transactions(ACME, limit=50, type=TransactionType.DEBIT)
    return [(-row.amount_micros, row.late) for row in page]


def test_a_body_of_three_times_the_ttl_is_charged_once(service: SyncCreditService, database_url: str) -> None:
    """The heart-beat keeps the hold alive while the body runs; another process sees it active all the time."""
    states = set()
    with SyncCreditService(database_url) as observer:
        with service.reserve_credits(organization_id=ACME, amount=7, ttl=timedelta(seconds=TTL)) as hold:
            end = time.monotonic() + 3 * TTL
            while time.monotonic() < end:
                states.add(observer.get_reservation(hold.id, organization_id=ACME).state)
                assert observer.get_balance(ACME).reserved == 7
                time.sleep(0.1)
        assert states == {ReservationState.ACTIVE}
        assert debits(observer) == [(7_000_000, False)]
        assert observer.get_reservation(hold.id, organization_id=ACME).state is ReservationState.COMMITTED
        assert observer.verify(ACME).ok


async def test_a_coroutine_body_of_three_times_the_ttl_is_charged_once(database_url: str) -> None:
    """The same for ``async with``, eight bodies at once on one loop."""

    async def body(service: CreditService) -> None:
        async with service.reserve_credits(organization_id=ACME, amount=7, ttl=timedelta(seconds=TTL)):
            await asyncio.sleep(3 * TTL)

    async with CreditService(database_url) as service:
        await service.grant_credits(ACME, 100)
        await asyncio.gather(*[body(service) for _ in range(8)])
        balance = await service.get_balance(ACME)
        page = await service.list_transactions(ACME, limit=50, type=TransactionType.DEBIT)
        assert [(row.amount_micros, row.late) for row in page] == [(-7_000_000, False)] * 8
        assert (balance.spent, balance.reserved) == (56, 0)
        assert (await service.verify(ACME)).ok


def test_a_body_that_blocks_the_loop_is_charged_once(database_url: str) -> None:
    """The heart-beat does not live on the caller's event loop: a body that blocks the loop keeps its hold."""

    async def body() -> ReservationState:
        async with CreditService(database_url) as service:
            await service.grant_credits(ACME, 10)
            async with service.reserve_credits(organization_id=ACME, amount=7, ttl=timedelta(seconds=TTL)) as hold:
                time.sleep(2.5 * TTL)  # noqa: ASYNC251  # blocking the loop is the point
            record = await service.get_reservation(hold.id, organization_id=ACME)
            assert not record.late
            return record.state

    assert asyncio.run(body()) is ReservationState.COMMITTED


def test_without_a_body_nothing_renews_a_hold(service: SyncCreditService) -> None:
    """The control for the tests above: a hold that no block keeps alive ends with its ttl, and a commit is refused."""
    hold = service.reserve_credits(organization_id=ACME, amount=7, ttl=timedelta(seconds=TTL))
    time.sleep(1.2 * TTL)
    with pytest.raises(ReservationExpiredError):
        service.commit_reservation(hold.id, organization_id=ACME)
    assert service.get_reservation(hold.id, organization_id=ACME).state is ReservationState.EXPIRED
    assert service.get_balance(ACME).available == 1_000
    assert debits(service) == []


def test_kill_9_between_reserve_and_commit_gives_the_credits_back(
    service: SyncCreditService, database_url: str
) -> None:
    """A dead process renews nothing: its hold stands until its ttl is over, then the credits are back, unasked."""
    worker = workers.start("die_in_body", url=database_url, organization=ACME, ttl=TTL)
    hold = workers.next_line(worker)["id"]
    time.sleep(1.5 * TTL)
    assert service.get_balance(ACME).reserved == 10, "the living process should have renewed the hold"
    workers.kill(worker)
    assert service.get_balance(ACME).reserved == 10, "the hold should stand until its ttl is over"
    assert wait_until(lambda: service.get_balance(ACME).available == 1_000, 2 * TTL)
    assert service.get_reservation(hold, organization_id=ACME).state is ReservationState.EXPIRED
    assert debits(service) == []
    report = service.sweep(ACME)
    assert report.expired_reservations in (0, 1)
    assert service.verify(ACME).ok


def test_the_workers_really_die(database_url: str, service: SyncCreditService) -> None:
    """The control: the killed worker was killed by signal 9 inside its body, it did not end by itself."""
    worker = workers.start("die_in_body", url=database_url, organization=ACME, ttl=TTL)
    workers.next_line(worker)
    assert isinstance(worker, subprocess.Popen)
    workers.kill(worker)
    assert worker.returncode == -9
    assert service.get_balance(ACME).reserved == 10
