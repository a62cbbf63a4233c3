"""Callers that are interrupted or cancelled: nobody hangs, nothing is half-booked or stays held or checked out."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from agentcredits.model import TransactionType
from agentcredits.service import CreditService, SyncCreditService
from tests.concurrency import workers

ACME = "acme"


def run_interrupts(url: str, **arguments: Any) -> dict[str, Any]:
    report: dict[str, Any] = workers.finish(
        workers.start("interrupts", url=url, organization=ACME, followers=16, **arguments), timeout=900
    )
    return report


@pytest.mark.proof
@pytest.mark.timeout(1_000)
def test_200_interrupts_of_a_charging_main_thread_hang_nobody(database_url: str, proof: str) -> None:
    """A timer raises in the main thread's charges and holds while 16 threads charge.

    Each interrupted charge is repeated under its key, so exactly one charge per call must stand in the ledger; a hold
    is charged whole or not at all, and none is left.
    """
    with SyncCreditService(database_url) as service:
        service.grant_credits(ACME, 1_000_000)
        count = 5_000 if proof == "long" else 200
        report = run_interrupts(database_url, count=count, patience=40)
        assert (report["main_hung"], report["hanging"], report["failures"]) == (False, 0, [])
        assert report["calls"] + report["holds"] >= count
        assert report["slowest"] > 0
        end = time.monotonic() + 5
        while service.get_balance(ACME).reserved and time.monotonic() < end:
            time.sleep(0.05)
        balance = service.get_balance(ACME)
        assert balance.reserved == 0, "a hold is left"
        of_holds = balance.spent - report["calls"] - report["followers"]
        assert of_holds in range(0, 3 * report["holds"] + 1, 3)
        assert service.verify(ACME).ok


def test_the_harness_catches_a_leader_that_does_not_hand_on() -> None:
    """The control: with a plain leader/follower queue the first interrupts leave everybody hanging."""
    report = run_interrupts("", count=200, patience=1.5, naive=True)
    assert report["main_hung"]
    assert report["hanging"] == 16


class Tally:
    """What the cancelled calls saw."""

    def __init__(self) -> None:
        self.bodies_done = 0
        self.cancelled = 0
        self.loose: list[str] = []


async def charge(service: CreditService, number: int, tally: Tally) -> None:
    await service.consume_credits(organization_id=ACME, amount=1, idempotency_key=f"charge-{number}")


async def hold_a_body(service: CreditService, number: int, tally: Tally) -> None:
    """A body that yields to the loop now and then; it counts as done at its very last step."""
    async with service.reserve_credits(organization_id=ACME, amount=1, ttl=timedelta(minutes=10)):
        for _ in range(number % 3):
            await asyncio.sleep(0.0005)
        tally.bodies_done += 1


async def reserve_only(service: CreditService, number: int, tally: Tally) -> None:
    """A plain await of a reservation; one that was answered is the caller's to settle."""
    hold = await service.reserve_credits(organization_id=ACME, amount=1, ttl=timedelta(minutes=10))
    tally.loose.append(hold.id)


async def read(service: CreditService, number: int, tally: Tally) -> None:
    await service.get_balance(ACME)
    await service.list_transactions(ACME, limit=5)


def idle(engine: Engine) -> bool:
    """No connection is checked out of the pool, and the database holds no open transaction of ours."""
    checked_out = getattr(engine.pool, "checkedout", lambda: 0)()
    if checked_out:
        return False
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            query = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%' AND datname = current_database()"
            return connection.execute(text(query)).scalar_one() == 0
    return True


async def storm(service: CreditService, tally: Tally, count: int) -> None:
    """Start calls of all kinds and cancel each after a random moment of its life, 20 under way at a time."""
    dice = random.Random(count)
    calls: list[Any] = [charge, hold_a_body, reserve_only, reserve_only, read]
    began = time.perf_counter()
    await asyncio.gather(*[read(service, number, tally) for number in range(10)])
    life = (time.perf_counter() - began) / 2

    async def one(number: int) -> None:
        task = asyncio.create_task(calls[number % len(calls)](service, number, tally))
        await asyncio.sleep(dice.choice([0, dice.random() * life, dice.random() * life, dice.random() * 8 * life]))
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            tally.cancelled += 1

    for first in range(0, count, 20):
        await asyncio.gather(*[one(number) for number in range(first, first + 20)])


@pytest.mark.proof
@pytest.mark.timeout(1_000)
async def test_500_random_cancellations_leave_nothing_behind(database_url: str, proof: str) -> None:
    """Bodies that ended are charged, all others are not; keys that were tried are charged once when tried again."""
    engine = workers.own_engine(database_url)
    tally = Tally()
    count = 20_000 if proof == "long" else 500
    async with CreditService(engine) as service:
        await service.grant_credits(ACME, 10_000)
        await storm(service, tally, 500)
        assert tally.cancelled > 100
        await service.flush()
        for hold in tally.loose:
            await service.release_reservation(hold, organization_id=ACME)
        for _ in range(250):
            if not (await service.get_balance(ACME)).reserved:
                break
            await asyncio.sleep(0.02)
        balance = await service.get_balance(ACME)
        assert balance.reserved == 0, "a hold is left"
        rows: list[Any] = []
        cursor = None
        while True:
            page = await service.list_transactions(ACME, cursor=cursor, limit=100, type=TransactionType.DEBIT)
            rows += list(page)
            cursor = page.next_cursor
            if cursor is None:
                break
        assert sum(row.reservation_id is not None for row in rows) == tally.bodies_done
        assert tally.bodies_done > 0
        before = {row.idempotency_key for row in rows if row.reservation_id is None}
        for number in range(0, count, 5):
            key = f"charge-{number}"
            again = await service.consume_credits(organization_id=ACME, amount=1, idempotency_key=key)
            assert again.replayed == (key in before)
        assert (await service.get_balance(ACME)).spent == count / 5 + tally.bodies_done
        assert (await service.verify(ACME)).ok
        for _ in range(250):
            if idle(engine):
                break
            await asyncio.sleep(0.02)
        assert idle(engine), "a connection leaked"
    engine.dispose()


async def test_a_hold_whose_answer_came_as_its_caller_left_is_released(database_url: str) -> None:
    """The answer is on its way to a loop that is busy, and the task is cancelled before the loop sees it."""

    async def reserve(service: CreditService) -> None:
        await service.reserve_credits(organization_id=ACME, amount=1, ttl=timedelta(minutes=10))

    async with CreditService(database_url) as service:
        await service.grant_credits(ACME, 100)
        for _ in range(8):
            task = asyncio.create_task(reserve(service))
            for _ in range(3):
                await asyncio.sleep(0)
            time.sleep(0.03)  # noqa: ASYNC251  # keeping the loop from the answer is the point
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await service.flush()
        page = await service.list_reservations(ACME)
        assert len(page) == 8, "the holds should have been made"
        assert (await service.get_balance(ACME)).reserved == 0
        assert (await service.verify(ACME)).ok


async def test_a_cancelled_wait_for_a_busy_account_is_not_charged_twice(database_url: str) -> None:
    """``asyncio.timeout`` around a charge, retried under its key until it succeeds: one charge."""
    async with CreditService(database_url) as service:
        await service.grant_credits(ACME, 100)
        for number in range(20):
            for patience in (0.0, 0.0005, 0.002, 5.0):
                with suppress(TimeoutError):
                    async with asyncio.timeout(patience):
                        await service.consume_credits(
                            organization_id=ACME, amount=1, idempotency_key=f"patient-{number}"
                        )
        assert (await service.get_balance(ACME)).spent == 20
        assert (await service.verify(ACME)).ok


def test_a_loop_that_ends_with_calls_under_way_leaves_no_hold(database_url: str) -> None:
    """``asyncio.run`` cancels what is left when its main coroutine returns; the next loop finds everything in order."""

    async def leave_early() -> None:
        service = CreditService(database_url)

        async def body() -> None:
            async with service.reserve_credits(organization_id=ACME, amount=1, ttl=timedelta(minutes=10)):
                await asyncio.sleep(60)

        tasks = [asyncio.create_task(body()) for _ in range(20)]
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in tasks)

    with SyncCreditService(database_url) as service:
        service.grant_credits(ACME, 100)
        for _ in range(3):
            asyncio.run(leave_early())
        service.flush()
        end = time.monotonic() + 5
        while service.get_balance(ACME).reserved and time.monotonic() < end:
            time.sleep(0.02)
        balance = service.get_balance(ACME)
        assert (balance.available, balance.reserved, balance.spent) == (100, 0, 0)
        assert service.verify(ACME).ok
