"""Callers that are interrupted or cancelled: nobody hangs, nothing is half-booked or stays held or checked out."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

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


async def test_a_hold_whose_answer_came_as_its_caller_left_is_released(database_url: str) -> None:
    """The answer is on its way to a loop that is busy, and the task is cancelled before the loop sees it."""

    async def reserve(service: CreditService) -> None:
        await service.reserve_credits(organization_id=ACME, amount=1, ttl=timedelta(minutes=10))

    engine = workers.own_engine(database_url)

    def holds() -> int:
        with engine.connect() as connection:
            return int(connection.execute(text("SELECT count(*) FROM credit_reservations")).scalar_one())

    async with CreditService(database_url) as service:
        await service.grant_credits(ACME, 100)
        for number in range(8):
            task = asyncio.create_task(reserve(service))
            for _ in range(3):
                await asyncio.sleep(0)
            end = time.monotonic() + 30
            while holds() <= number and time.monotonic() < end:
                time.sleep(0.002)  # noqa: ASYNC251  # keeping the loop from the answer is the point
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await service.flush()
        page = await service.list_reservations(ACME)
        assert len(page) == 8, "the holds should have been made"
        assert (await service.get_balance(ACME)).reserved == 0
        assert (await service.verify(ACME)).ok
    engine.dispose()


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
