"""A hundred thousand calls of fifty tenants through one shared agent: nobody sees, or pays for, another."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from agentcredits import (
    BaseCrew,
    RequestContext,
    SyncCreditService,
    bind,
    configure,
    current_context,
    track_agent_usage,
    use_context,
)
from agentcredits.settings import Settings
from tests.proof.conftest import Record
from tests.proof.naive_races import GlobalContext
from tests.proof.racing import kind_of

TENANTS = [f"tenant-{number}" for number in range(50)]
AT_ONCE = 200

#: One way to make calls for a tenant; gives for whom each of them was made.
Way = Callable[[str], Coroutine[Any, Any, list[str | None]]]


def payer() -> str | None:
    inside = current_context()
    return None if inside is None else inside.organization_id


@track_agent_usage("Shared")
class SharedAgent(BaseCrew):
    """One module-level agent that serves every request, as under a web framework."""

    agent_type = "Shared"

    async def write(self) -> str | None:
        await asyncio.sleep(0)
        return payer()

    def draw(self) -> str | None:
        return payer()

    async def stream(self) -> AsyncIterator[str | None]:
        yield payer()
        await asyncio.sleep(0)


class RealWays:
    """The ways in which users' code is called: tasks, threads, executors, generators, contexts set and used."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._agent = SharedAgent()
        self._pool = pool

    def ways(self) -> Sequence[Way]:
        return (self.set_and_go_on, self.use_and_go_on, self.in_a_thread, self.in_an_executor, self.late, self.stream)

    async def set_and_go_on(self, tenant: str) -> list[str | None]:
        self._agent.set_context(RequestContext(tenant))
        await asyncio.sleep(0)
        return [await self._agent.write()]

    async def use_and_go_on(self, tenant: str) -> list[str | None]:
        async with use_context(RequestContext(tenant)):
            await asyncio.sleep(0)
            return [await self._agent.write()]

    async def in_a_thread(self, tenant: str) -> list[str | None]:
        with use_context(RequestContext(tenant)):
            return [await asyncio.to_thread(self._agent.draw)]

    async def in_an_executor(self, tenant: str) -> list[str | None]:
        """A bare executor does not copy the context; ``bind`` carries it."""
        with use_context(RequestContext(tenant)):
            bound = bind(self._agent.draw)
        return [await asyncio.get_running_loop().run_in_executor(self._pool, bound)]

    async def late(self, tenant: str) -> list[str | None]:
        """A task that was started for one tenant is awaited by another."""
        with use_context(RequestContext(tenant)):
            task = asyncio.create_task(self._agent.write())
        with use_context(RequestContext(TENANTS[0])):
            return [await task]

    async def stream(self, tenant: str) -> list[str | None]:
        async with use_context(RequestContext(tenant)):
            return [item async for item in self._agent.stream()]


async def call(ways: Sequence[Way], calls: int, seed: int) -> tuple[int, Counter[str]]:
    """Make the calls, ``AT_ONCE`` of them at a time; gives how many saw a wrong tenant, and each tenant's calls."""
    dice = random.Random(seed)
    numbers = iter(range(calls))
    made: Counter[str] = Counter()
    wrong = 0

    async def go_on() -> None:
        nonlocal wrong
        for number in numbers:
            tenant = dice.choice(TENANTS)
            # A task of its own for each, as a web server makes for each request.
            seen = await asyncio.create_task(ways[number % len(ways)](tenant))
            made[tenant] += len(seen)
            wrong += sum(who != tenant for who in seen)

    await asyncio.gather(*(go_on() for _ in range(AT_ONCE)))
    return wrong, made


@pytest.fixture
def fifty(database_url: str) -> Iterator[SyncCreditService]:
    """Fifty tenants with credits; every action costs one."""
    configure(database_url, sqlite_synchronous="NORMAL")
    with SyncCreditService(database_url, settings=Settings(sqlite_synchronous="NORMAL")) as service:
        service.set_cost("Shared", "*", 1)
        for tenant in TENANTS:
            service.grant_credits(tenant, 1_000_000)
        yield service
    configure()


@pytest.mark.proof
@pytest.mark.timeout(1_800)
async def test_no_call_is_made_for_another_tenant(
    fifty: SyncCreditService, database_url: str, proof: str, seed: int, record: Record
) -> None:
    """100,000 calls of 50 tenants; short: 5,000. Each sees its own tenant, and each tenant pays for its own calls."""
    calls = 100_000 if proof == "long" else 5_000
    with ThreadPoolExecutor(64) as pool:
        # The loop's own executor has few threads, and those of to_thread wait for the database too.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(64))
        wrong, made = await call(RealWays(pool).ways(), calls, seed)
    fifty.flush()
    assert sum(made.values()) == calls
    paid = {tenant: int(fifty.get_balance(tenant).spent) for tenant in TENANTS}
    record(
        "context isolation",
        count=calls,
        unit=f"calls × {len(TENANTS)} tenants",
        seed=seed,
        wrong={
            "saw another tenant": wrong,
            "paid wrongly": sum(abs(paid[tenant] - made[tenant]) for tenant in TENANTS),
            "verify": len(fifty.verify().problems),
        },
        database=kind_of(database_url),
    )


async def test_the_harness_sees_a_context_in_a_global(seed: int) -> None:
    """What everyday web code does: set the tenant in one place for all, await, go on."""
    wrong, made = await call(GlobalContext().ways(), 5_000, seed)
    assert sum(made.values()) == 5_000
    assert wrong > 0
