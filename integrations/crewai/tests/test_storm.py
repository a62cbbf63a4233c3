"""Many tenants' crews at once, in threads and tasks: each tenant's ledger equals what the server served it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from crew_fakes import crew, on_both
from crewai.tools import tool
from served import Server, booked

from agentcredits import RequestContext, SyncCreditService, use_context
from agentcredits_crewai import credited, meter

#: Tenants and crews of each.
SIZES = {"short": (10, 4), "long": (50, 20)}


@tool("draw")
def draw(prompt: str) -> str:
    """Draws; every third picture fails."""
    if int(prompt) % 3 == 0:
        raise RuntimeError("no paint")
    return f"picture {prompt}"


@on_both
@pytest.mark.proof
@pytest.mark.timeout(1800)
def test_tenants_crews_at_once(ledger: SyncCreditService, server: Server, proof: str) -> None:
    """Half of each tenant's crews in threads and half in tasks; every third tool call fails and is given back."""
    tenants, crews = SIZES[proof]
    names = [f"tenant-{number}" for number in range(tenants)]
    for name in names:
        ledger.grant_credits(name, 10_000)
    models = {name: server.llm(name) for name in names}

    painter = meter(draw, "draw", service=ledger)

    def answer(body: dict[str, object]) -> object:
        messages = body["messages"]
        assert isinstance(messages, list)
        if any(message["role"] == "tool" for message in messages):
            return "fin"
        number = str(messages).split("number ")[1].split()[0]
        return [("draw", f'{{"prompt": "{number}"}}')]

    server.answer = answer

    def made(name: str, number: int) -> object:
        one = crew(models[name], painter)
        one.tasks[0].description = f"draw number {number} for {name}"
        return credited(one, llm_action="llm_call", service=ledger)

    def in_a_thread(job: tuple[str, int]) -> None:
        with use_context(RequestContext(job[0], user_id=f"user-{job[1]}")):
            made(*job).kickoff()  # type: ignore[attr-defined]  # a crew

    async def in_tasks(jobs: list[tuple[str, int]]) -> None:
        async def one(job: tuple[str, int]) -> None:
            with use_context(RequestContext(job[0], user_id=f"user-{job[1]}")):
                await made(*job).akickoff()  # type: ignore[attr-defined]  # a crew

        await asyncio.gather(*map(one, jobs))

    jobs = [(name, number) for number in range(crews) for name in names]
    with ThreadPoolExecutor(16) as pool:
        threads = [pool.submit(in_a_thread, job) for job in jobs if job[1] % 2]
        asyncio.run(in_tasks([job for job in jobs if job[1] % 2 == 0]))
        for thread in threads:
            thread.result()

    drawn = sum(1 for number in range(crews) if number % 3)
    for name in names:
        assert booked(ledger, name) == {**server.served[name], "charges": 2 * crews}
        balance = ledger.get_balance(name)
        assert (balance.spent, balance.reserved) == (2 * crews + 10 * drawn, 0)
        assert ledger.list_reservations(name, states=["active", "unknown"]) == ()
        assert {row.user_id for row in ledger.list_transactions(name, type="debit", limit=500)} == {
            f"user-{number}" for number in range(crews)
        }
    assert ledger.verify()
