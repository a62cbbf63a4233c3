"""Never another tenant's context: shared agents, threads, tasks and executors, fifty tenants at once."""

from __future__ import annotations

import asyncio
import contextvars
import random
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from agentcredits import (
    BaseCrew,
    MissingContextError,
    RequestContext,
    SyncCreditService,
    bind,
    configure,
    consume_credits,
    current_context,
    track_agent_usage,
    use_context,
)

TENANTS = 50


@track_agent_usage("Shared")
class SharedAgent(BaseCrew):
    """One module-level agent that serves every request, as under a web framework."""

    agent_type = "Shared"

    async def write(self, tenant: str) -> str | None:
        await asyncio.sleep(random.random() * 0.01)
        inside = current_context()
        await self.consume_credits_for_action("explicit")
        return None if inside is None else inside.organization_id

    def draw(self, tenant: str) -> str | None:
        inside = current_context()
        self.consume_credits_for_action_sync("explicit")
        return None if inside is None else inside.organization_id

    async def stream(self, tenant: str) -> Any:
        for _ in range(3):
            await asyncio.sleep(random.random() * 0.005)
            inside = current_context()
            yield None if inside is None else inside.organization_id


@pytest.fixture
def fifty(service: SyncCreditService, database_url: str) -> Iterator[SyncCreditService]:
    """Fifty tenants with ten credits each; every action costs one."""
    configure(database_url)
    service.set_cost("Shared", "*", 1)
    for number in range(TENANTS):
        service.grant_credits(f"tenant-{number}", 10)
    yield service
    configure()


def spent(service: SyncCreditService) -> dict[str, int]:
    assert service.flush()
    return {f"tenant-{n}": int(service.get_balance(f"tenant-{n}").spent) for n in range(TENANTS)}


def each(amount: int) -> dict[str, int]:
    return {f"tenant-{n}": amount for n in range(TENANTS)}


@pytest.mark.parametrize("how", ["set_context", "use_context"])
async def test_two_requests_share_one_agent(fifty: SyncCreditService, how: str) -> None:
    """The race of everyday web code: set, await, somebody else sets, go on. Each pays for itself."""
    agent = SharedAgent()
    wrong: list[tuple[str, Any]] = []

    async def request(tenant: str) -> None:
        context = RequestContext(tenant)
        await asyncio.sleep(random.random() * 0.01)
        if how == "set_context":
            agent.set_context(context)
            await asyncio.sleep(random.random() * 0.01)
            seen = [await agent.write(tenant), *[item async for item in agent.stream(tenant)]]
        else:
            async with use_context(context):
                await asyncio.sleep(random.random() * 0.01)
                seen = [await agent.write(tenant), *[item async for item in agent.stream(tenant)]]
        wrong.extend((tenant, organization) for organization in seen if organization != tenant)

    names = [f"tenant-{number}" for number in range(TENANTS)] * 2
    random.shuffle(names)
    await asyncio.gather(*(request(tenant) for tenant in names))
    assert wrong == []
    # Two requests each: write and its explicit charge, and stream.
    assert spent(fifty) == each(6)
    assert fifty.verify()


def test_two_requests_share_one_agent_in_threads(fifty: SyncCreditService) -> None:
    """The same in a thread pool whose threads serve one tenant after the other."""
    agent = SharedAgent()
    barrier = threading.Barrier(10)

    def request(tenant: str) -> str | None:
        agent.set_context(RequestContext(tenant))
        barrier.wait(60)
        return agent.draw(tenant)

    names = [f"tenant-{number}" for number in range(TENANTS)]
    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(request, names)) == names
    assert spent(fifty) == each(2)


async def test_sync_work_in_executors_and_threads_needs_its_own_context(fifty: SyncCreditService) -> None:
    """to_thread copies the context; a bare executor does not and is refused; bind carries it."""
    agent = SharedAgent()
    loop = asyncio.get_running_loop()

    async def request(tenant: str) -> None:
        agent.set_context(RequestContext(tenant))
        await asyncio.sleep(random.random() * 0.01)
        assert await asyncio.to_thread(agent.draw, tenant) == tenant
        with use_context(RequestContext(tenant)):
            assert await loop.run_in_executor(pool, bind(agent.draw), tenant) == tenant

    def bare(tenant: str) -> None:
        with pytest.raises(MissingContextError, match="several organizations"):
            agent.draw(tenant)

    with ThreadPoolExecutor(8) as pool:
        await asyncio.gather(*(request(f"tenant-{number}") for number in range(TENANTS)))
        await asyncio.gather(*(loop.run_in_executor(pool, bare, f"tenant-{number}") for number in range(TENANTS)))
    assert spent(fifty) == each(4)


async def test_tasks_keep_the_context_they_were_started_with(fifty: SyncCreditService) -> None:
    """A task started in one block and finished in another charges the first."""

    @consume_credits("Shared", "late")
    async def late(go_on: asyncio.Event) -> str | None:
        await go_on.wait()
        inside = current_context()
        return None if inside is None else inside.organization_id

    go_on = asyncio.Event()
    tasks = []
    for number in range(TENANTS):
        with use_context(organization_id=f"tenant-{number}"):
            tasks.append(asyncio.create_task(late(go_on)))
    with use_context(organization_id="tenant-0"):
        await asyncio.sleep(0.01)
        go_on.set()
        assert await asyncio.gather(*tasks) == [f"tenant-{number}" for number in range(TENANTS)]
    assert spent(fifty) == each(1)


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads that take turns as often as Python can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_the_first_set_context_of_many_threads_at_once_loses_nobody() -> None:
    """A hundred races for an agent's very first binding: each thread sees its own, a stranger gets the error."""
    for _ in range(100):
        agent = BaseCrew()
        barrier = threading.Barrier(4)

        def request(
            number: int, agent: BaseCrew = agent, barrier: threading.Barrier = barrier
        ) -> RequestContext | None:
            context = RequestContext(f"tenant-{number}")
            barrier.wait(30)
            agent.set_context(context)
            seen = agent.get_context()
            return None if seen is context else seen

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(request, range(4))) == [None] * 4
        with pytest.raises(MissingContextError, match="several"):
            contextvars.Context().run(agent.get_context)
