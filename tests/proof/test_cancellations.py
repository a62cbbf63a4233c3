"""Coroutines that are cancelled at random moments: booked whole or not at all, nothing stays held or checked out."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from agentcredits.model import TransactionType
from agentcredits.service import CreditService
from tests.concurrency import workers
from tests.proof.conftest import Record
from tests.proof.naive_races import Unshielded
from tests.proof.racing import kind_of

ACME = "acme"
LONG_TTL = timedelta(hours=1)
SHORT_TTL = timedelta(seconds=1)
AT_ONCE = 20
#: How often the loop is busy just before a call is cancelled.
BUSY = 0.1

Call = Callable[[int], Coroutine[Any, Any, None]]


class RealCalls:
    """What is cancelled, and what its callers saw."""

    def __init__(self, service: CreditService, engine: Engine) -> None:
        self._service, self._engine = service, engine
        self.bodies_done = 0
        self.loose: list[str] = []

    def calls(self) -> Sequence[Call]:
        return (self.charge, self.hold_a_body, self.reserve_only, self.abandon, self.read)

    async def charge(self, number: int) -> None:
        await self._service.consume_credits(organization_id=ACME, amount=1, idempotency_key=f"charge-{number}")

    async def hold_a_body(self, number: int) -> None:
        """A body that yields to the loop now and then; it counts as done at its very last step."""
        async with self._service.reserve_credits(organization_id=ACME, amount=1, ttl=LONG_TTL):
            for _ in range(number % 3):
                await asyncio.sleep(0.0005)
            self.bodies_done += 1

    async def reserve_only(self, number: int) -> None:
        """A hold that was answered is the caller's to settle; one that was not must be released by itself."""
        hold = await self._service.reserve_credits(organization_id=ACME, amount=1, ttl=LONG_TTL)
        self.loose.append(hold.id)

    async def abandon(self, number: int) -> None:
        """Nobody settles this hold: its time-to-live must end it."""
        await self._service.reserve_credits(organization_id=ACME, amount=1, ttl=SHORT_TTL)

    async def read(self, number: int) -> None:
        await self._service.get_balance(ACME)
        await self._service.list_transactions(ACME, limit=5)

    async def wrong(self, count: int) -> dict[str, int]:
        """What is wrong after ``count`` cancelled calls, everybody having had the time to tidy up."""
        await self._service.flush()
        for hold in self.loose:
            await self._service.release_reservation(hold, organization_id=ACME)
        held = await settled_down(self._held, SHORT_TTL.total_seconds() + 5)
        rows = await self._charges()
        of_bodies = sum(row.reservation_id is not None for row in rows)
        before = {row.idempotency_key for row in rows if row.reservation_id is None}
        not_told = 0
        for number in range(0, count, len(self.calls())):
            key = f"charge-{number}"
            again = await self._service.consume_credits(organization_id=ACME, amount=1, idempotency_key=key)
            not_told += again.replayed != (key in before)
        spent = (await self._service.get_balance(ACME)).spent
        checked_out = await settled_down(self._checked_out, 5)
        return {
            "half-booked": abs(of_bodies - self.bodies_done)
            + not_told
            + int(spent != len(range(0, count, len(self.calls()))) + self.bodies_done)
            + len((await self._service.verify(ACME)).problems),
            "connections leaked": checked_out,
            "holds left": held,
        }

    async def _held(self) -> int:
        return int((await self._service.get_balance(ACME)).reserved)

    async def _checked_out(self) -> int:
        """Connections outside the pool, and transactions of ours that the database still has open."""
        out: int = getattr(self._engine.pool, "checkedout", lambda: 0)()
        if out or self._engine.dialect.name != "postgresql":
            return out
        query = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%' AND datname = current_database()"
        with self._engine.connect() as connection:
            return int(connection.execute(text(query)).scalar_one())

    async def _charges(self) -> list[Any]:
        rows: list[Any] = []
        cursor = None
        while True:
            page = await self._service.list_transactions(ACME, cursor=cursor, limit=1_000, type=TransactionType.DEBIT)
            rows += list(page)
            cursor = page.next_cursor
            if cursor is None:
                return rows


async def settled_down(left: Callable[[], Coroutine[Any, Any, int]], seconds: float) -> int:
    """``left()`` once it is 0, else as it is after so many seconds."""
    end = time.monotonic() + seconds
    while (found := await left()) and time.monotonic() < end:  # noqa: ASYNC110  # only the database knows
        await asyncio.sleep(0.02)
    return found


async def cancel_at_random(calls: Sequence[Call], count: int, seed: int) -> int:
    """Start ``count`` calls and cancel each after a random moment of its life; gives how many were cut short."""
    dice = random.Random(seed)
    began = time.perf_counter()
    await asyncio.gather(*[calls[-1](number) for number in range(10)])
    life = (time.perf_counter() - began) / 2
    cut: Counter[bool] = Counter()

    async def one(number: int) -> None:
        task = asyncio.create_task(calls[number % len(calls)](number))
        await asyncio.sleep(dice.choice([0, dice.random() * life, dice.random() * life, dice.random() * 8 * life]))
        if dice.random() < BUSY:
            # The answer comes while the loop is busy, and the task is cancelled before it sees it.
            time.sleep(life)  # noqa: ASYNC251  # a loop that is kept busy is the point
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            cut[True] += 1

    for first in range(0, count, AT_ONCE):
        await asyncio.gather(*[one(number) for number in range(first, first + AT_ONCE)])
    return cut[True]


@pytest.mark.proof
@pytest.mark.timeout(1_800)
async def test_random_cancellations_leave_nothing_behind(
    database_url: str, proof: str, seed: int, record: Record
) -> None:
    """10,000 calls of all kinds; short: 500. Bodies that ended are charged, all others are not; a key that was tried is
    charged once when it is tried again; holds that nobody settles end with their time-to-live.
    """
    count = 10_000 if proof == "long" else 500
    engine = workers.own_engine(database_url)
    async with CreditService(engine) as service:
        await service.grant_credits(ACME, 1_000_000)
        calls = RealCalls(service, engine)
        cut = await cancel_at_random(calls.calls(), count, seed)
        wrong = await calls.wrong(count)
        assert count / 5 < cut < count
        assert calls.bodies_done > 0
    engine.dispose()
    record("random cancellations", count=count, unit="calls", seed=seed, wrong=wrong, database=kind_of(database_url))


async def test_the_harness_sees_what_unshielded_calls_leave(database_url: str, seed: int) -> None:
    """Two transactions for one charge, a connection given back without ``finally``, a hold without a time-to-live."""
    naive = Unshielded(database_url)
    try:
        # Every third may leave a connection; a server of the usual 100 has room for all of them.
        await cancel_at_random(naive.calls(), 200, seed)
        wrong = await naive.wrong()
    finally:
        naive.close()
    assert min(wrong.values()) > 0, wrong
