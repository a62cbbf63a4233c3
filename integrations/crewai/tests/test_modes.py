"""A credited crew carries its credits: every way to run it, in whatever thread, task or stream."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import Any

import pytest
from crew_fakes import ACME, GLOBEX, charged, crew, left, llm, on_both
from paid_crews import INPUTS, consume, draw, model_of, paid_crew

from agentcredits import MissingContextError, RequestContext, SyncCreditService, use_context
from agentcredits_crewai import Run, credited, meter

MODES: dict[str, Callable[[Any], Any]] = {
    "kickoff": lambda it: it.kickoff(inputs=INPUTS),
    "kickoff_async": lambda it: asyncio.run(it.kickoff_async(inputs=INPUTS)),
    "akickoff": lambda it: asyncio.run(it.akickoff(inputs=INPUTS)),
    "kickoff_for_each": lambda it: it.kickoff_for_each(inputs=[INPUTS])[0],
    "kickoff_for_each_async": lambda it: asyncio.run(it.kickoff_for_each_async(inputs=[INPUTS]))[0],
    "akickoff_for_each": lambda it: asyncio.run(it.akickoff_for_each(inputs=[INPUTS]))[0],
    "copy": lambda it: it.copy().kickoff(inputs=INPUTS),
}

STREAMS: dict[str, Callable[[Any], Any]] = {
    "kickoff": lambda it: it.kickoff(inputs=INPUTS),
    "kickoff_for_each": lambda it: it.kickoff_for_each(inputs=[INPUTS])[0],
}


@on_both
@pytest.mark.parametrize("mode", MODES)
def test_every_way_to_run_charges_the_model_and_the_tool(ledger: SyncCreditService, native: bool, mode: str) -> None:
    """Two LLM calls at 1 and a tool at 10."""
    paid, model = paid_crew(ledger, native)
    with use_context(ACME):
        assert str(MODES[mode](paid)) == "fin"
    assert model.calls == 2
    assert charged(ledger) == ["llm_call", "draw", "llm_call"]
    assert left(ledger) == 88
    assert paid.run.is_over
    assert paid.run.summary().charged == 12


@pytest.mark.parametrize("mode", STREAMS)
@pytest.mark.parametrize("where", ["inside", "after the block", "in another thread"])
def test_a_stream_is_charged_wherever_it_is_iterated(ledger: SyncCreditService, mode: str, where: str) -> None:
    """Each step runs in the run's own context."""
    runs: list[Run] = []
    paid, model = paid_crew(ledger, stream=True, on_run=runs.append)
    with use_context(ACME):
        stream = STREAMS[mode](paid)
        if where == "inside":
            consume(stream)
    if where == "after the block":
        consume(stream)
    if where == "in another thread":
        with ThreadPoolExecutor() as pool:
            pool.submit(consume, stream).result()
    assert str(stream.result) == "fin"
    assert model.calls == 2
    assert runs == [paid.run]
    assert charged(ledger) == ["llm_call", "draw", "llm_call"]
    assert left(ledger) == 88
    assert paid.run.is_over


@pytest.mark.parametrize("mode", ["kickoff_async", "akickoff", "kickoff_for_each_async", "akickoff_for_each"])
def test_an_async_stream_is_charged_in_any_task(ledger: SyncCreditService, mode: str) -> None:
    """Iterated by a task that inherited nothing."""
    paid, model = paid_crew(ledger, stream=True)
    inputs = [INPUTS] if "each" in mode else INPUTS

    async def main() -> None:
        with use_context(ACME):
            stream = await getattr(paid, mode)(inputs=inputs)

        async def iterate() -> None:
            async for _chunk in stream:
                pass

        await asyncio.get_running_loop().create_task(iterate(), context=Context())

    asyncio.run(main())
    assert model.calls == 2
    assert charged(ledger) == ["llm_call", "draw", "llm_call"]
    assert left(ledger) == 88


def test_a_task_that_outlives_the_block_keeps_its_holds(ledger: SyncCreditService) -> None:
    """Also a coroutine that is made inside the block and awaited after it."""
    paid, _model = paid_crew(ledger, runs=2)

    async def main() -> None:
        with use_context(ACME):
            task = asyncio.create_task(paid.kickoff_async(inputs=INPUTS))
            later = paid.copy().kickoff_async(inputs=INPUTS)
        await task
        await later

    asyncio.run(main())
    assert sorted(map(str, charged(ledger))) == ["draw"] * 2 + ["llm_call"] * 4
    assert left(ledger) == 76


def test_users_own_threads(ledger: SyncCreditService) -> None:
    """Credited where a context is active, a crew pays from it in any thread; else a thread without one is refused."""
    with use_context(ACME):
        paid, model = paid_crew(ledger)
    late, other = paid_crew(ledger)
    with ThreadPoolExecutor() as pool:
        assert str(pool.submit(paid.kickoff, inputs=INPUTS).result()) == "fin"
        with use_context(ACME), pytest.raises(MissingContextError):
            pool.submit(late.kickoff, inputs=INPUTS).result()
    assert (model.calls, other.calls) == (2, 0)
    assert left(ledger) == 88


@pytest.mark.parametrize("mode", MODES)
def test_without_a_context_nothing_starts(ledger: SyncCreditService, mode: str) -> None:
    """No model call, no tool call; the error says what to do."""
    paid, model = paid_crew(ledger)
    with pytest.raises(MissingContextError, match="use_context"):
        MODES[mode](paid)
    assert model.calls == 0
    assert charged(ledger) == []


def test_two_organizations_for_one_kickoff_are_refused(ledger: SyncCreditService) -> None:
    """Neither wins in silence: not the explicit, not the captured, not the active one."""
    explicit, model = paid_crew(ledger, context=ACME)
    with use_context(ACME):
        captured, other = paid_crew(ledger)
    with use_context(GLOBEX):
        for paid in (explicit, captured):
            with pytest.raises(MissingContextError, match=r"globex.*acme"):
                paid.kickoff(inputs=INPUTS)
    assert model.calls == other.calls == 0
    with use_context(RequestContext("acme", user_id="eve")):
        captured.kickoff(inputs=INPUTS)
    assert {row.user_id for row in ledger.list_transactions("acme", type="debit")} == {"eve"}


def test_kickoff_for_each_with_another_organization_for_each_input(ledger: SyncCreditService) -> None:
    """context= as a function of the inputs; each has its own run and bill."""
    runs: list[Run] = []
    paid, _model = paid_crew(ledger, runs=2, context=lambda inputs: RequestContext(inputs["org"]), on_run=runs.append)
    paid.kickoff_for_each(inputs=[{"topic": "a", "org": "acme"}, {"topic": "b", "org": "globex"}])
    assert (left(ledger), left(ledger, "globex")) == (88, 88)
    assert [(run.context.organization_id, run.summary().charged) for run in runs] == [("acme", 12), ("globex", 12)]


def test_crediting_a_crew_again_leaves_the_first_terms_alone(ledger: SyncCreditService) -> None:
    """A crew of the module, credited in each request: nobody pays for another."""
    base = crew(model_of(True, 2), meter(draw, "draw", service=ledger))
    with use_context(ACME):
        first = credited(base, llm_action="llm_call", service=ledger)
    with use_context(GLOBEX):
        second = credited(base, service=ledger)
    first.kickoff(inputs=INPUTS)
    second.kickoff(inputs=INPUTS)
    assert (left(ledger), left(ledger, "globex")) == (88, 90)
    assert first is base
    assert second is not base


def test_many_tenants_at_once_in_threads_and_tasks(ledger: SyncCreditService) -> None:
    """Each pays for its own."""

    def work(organization: str) -> None:
        with use_context(RequestContext(organization)):
            paid, _model = paid_crew(ledger)
            paid.kickoff(inputs=INPUTS)

    async def tasks() -> None:
        async def one(organization: str) -> None:
            with use_context(RequestContext(organization)):
                paid, _model = paid_crew(ledger)
                await paid.akickoff(inputs=INPUTS)

        await asyncio.gather(*(one(name) for name in ("acme", "globex") * 2))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, ("acme", "globex") * 2))
    asyncio.run(tasks())
    assert (left(ledger), left(ledger, "globex")) == (52, 52)


def test_async_tasks_and_parallel_tool_calls(ledger: SyncCreditService) -> None:
    """Task(async_execution=True), and three calls of one answer at once."""
    model = llm([("draw", f'{{"prompt": "{n}"}}') for n in range(3)], native=True)
    made = crew(model, meter(draw, "draw", service=ledger))
    made.tasks[0].async_execution = True
    with use_context(ACME):
        assert str(credited(made, llm_action="llm_call", service=ledger).kickoff(inputs=INPUTS)) == "fin"
    assert sorted(map(str, charged(ledger))) == ["draw"] * 3 + ["llm_call"] * 2
    assert left(ledger) == 68


def test_a_replay_costs_what_it_does_again(ledger: SyncCreditService) -> None:
    """The second of two tasks: one more LLM call, in a run of its own."""
    model = llm("one", "two", "again", native=True)
    made = crew(model, tasks=2)
    made.tasks[1].description = "check {topic}"
    paid = credited(made, llm_action="llm_call", service=ledger)
    with use_context(ACME):
        paid.kickoff(inputs=INPUTS)
        first = paid.run
        assert str(paid.replay(str(paid.tasks[1].id), INPUTS)) == "again"
    assert paid.run is not first
    assert (first.summary().charged, paid.run.summary().charged) == (2, 1)
    assert left(ledger) == 97
    assert model.calls == 3


def test_two_threads_share_nothing(ledger: SyncCreditService) -> None:
    """A run that is stopped does not stop another one of the same crew's copies."""
    ledger.consume_credits(organization_id="globex", amount=100)
    errors: list[BaseException] = []
    paid, _model = paid_crew(ledger, runs=1, context=lambda inputs: RequestContext(inputs["org"]))

    def work(copy: Any, organization: str) -> None:
        try:
            copy.kickoff(inputs={"topic": "a", "org": organization})
        except Exception as error:  # noqa: BLE001  # looked at below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(paid.copy(), name)) for name in ("globex", "acme")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [type(error).__name__ for error in errors] == ["CrewInsufficientCredits"]
    assert left(ledger) < 100
