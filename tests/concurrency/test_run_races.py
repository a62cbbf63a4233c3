"""Runs under contention: 64 callers of one pool, never a credit above its cap; carve-outs never overlap."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from agentcredits import CreditLimitExceededError, CreditService, RequestContext, use_context, use_run
from agentcredits.service import SyncCreditService
from tests.concurrency import workers
from tests.concurrency.test_ledger_races import race

ACME = "acme"
THREADS = 64


@pytest.fixture
def services(database_url: str) -> Iterator[list[SyncCreditService]]:
    """Two services with an engine and a runner each, as two processes would have; 10,000 credits."""
    engines = [workers.own_engine(database_url) for _ in range(2)]
    made = [SyncCreditService(engine) for engine in engines]
    made[0].grant_credits(ACME, 10_000)
    yield made
    for service in made:
        service.close()
    for engine in engines:
        engine.dispose()


def test_64_callers_of_one_pool_never_use_more_than_its_cap(services: list[SyncCreditService]) -> None:
    """By charges and holds of 3, from two services, under a cap of 100: 33 get through, and the first use is a race."""

    def work(place: int) -> int:
        service = services[place % 2]
        with use_context(RequestContext(ACME, run_id="shared", max_credits=100)):
            try:
                if place % 3:
                    return int(service.consume_credits(organization_id=ACME, amount=3).charged)
                return int(service.reserve_credits(organization_id=ACME, amount=3).commit().charged)
            except CreditLimitExceededError:
                return 0

    charged = race(THREADS, work)
    run = services[0].get_run("shared", organization_id=ACME)
    assert (sum(charged), run.spent, run.held) == (99, 99, 0)
    assert services[0].verify(ACME).ok


def test_64_runs_inside_one_pool_share_its_cap(services: list[SyncCreditService]) -> None:
    """Each opens a run of 5 in a pool of 100, uses a part of it, borrows or not, and ends it: never above 100."""
    services[0].open_run(ACME, "outer", max_credits=100)
    outcome: Counter[str] = Counter()

    def work(place: int) -> int:
        service, dice = services[place % 2], random.Random(place)
        spent = 0
        try:
            with (
                use_context(RequestContext(ACME, run_id="outer")),
                use_run(max_credits=5, borrow=dice.random() < 0.3, service=service),
            ):
                for _ in range(dice.randint(1, 6)):
                    spent += int(service.consume_credits(organization_id=ACME, amount=2).charged)
        except CreditLimitExceededError:
            outcome["refused"] += 1
        return spent

    told = sum(race(THREADS, work))
    run = services[0].get_run("outer", organization_id=ACME)
    assert outcome["refused"] > 0
    assert (run.inner_spent, run.carved, run.remaining) == (told, told, 100 - told)
    assert 0 < told <= 100
    assert services[0].verify(ACME).ok


async def test_blocks_of_coroutines_give_back_what_they_did_not_use(database_url: str) -> None:
    """32 at once, one after another inside each other; the pool around is whole again at the end."""
    async with CreditService(database_url) as service:
        await service.grant_credits(ACME, 1_000)

        async def work(number: int) -> None:
            async with use_run(max_credits=2, service=service) as outer, use_run(max_credits=1, service=service) as own:
                assert own.run_id != outer.run_id
                if number % 2:
                    await service.consume_credits(organization_id=ACME, amount=1)

        with use_context(RequestContext(ACME, run_id="all", max_credits=64)):
            await asyncio.gather(*(work(number) for number in range(32)))
        run = await service.get_run("all", organization_id=ACME)
        assert (run.inner_spent, run.carved, run.remaining) == (16, 16, 48)
        assert (await service.verify(ACME)).ok
