"""Charged generators: reserved at the first step, charged at the end, by policy when closed early."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from typing import Any

import pytest

from agentcredits import (
    RequestContext,
    ReservationState,
    SyncCreditService,
    consume_credits,
    current_context,
    use_context,
)
from agentcredits.context import _active
from agentcredits.execution import current_execution

ACME = RequestContext("acme")
OTHER = RequestContext("other")


@pytest.fixture(autouse=True)
def _acme(service: SyncCreditService) -> None:
    service.grant_credits("acme", 100)
    service.grant_credits("other", 100)
    service.set_cost("Agent", "work", 10)


def state(service: SyncCreditService) -> tuple[list[ReservationState], object]:
    """The holds and what is available, everything in the background booked."""
    assert service.flush()
    return [hold.state for hold in service.list_reservations("acme")], service.get_balance("acme").available


def organization() -> str | None:
    context = current_context()
    return None if context is None else context.organization_id


def test_nothing_is_held_until_somebody_iterates(service: SyncCreditService) -> None:
    """Calling a generator function does no work, so it costs nothing; the context is that of the first step."""

    @consume_credits("Agent", "work", service=service)
    def work() -> Iterator[int]:
        yield 1

    generator = work()
    assert state(service) == ([], 100)
    with use_context(ACME):
        assert next(generator) == 1
        assert state(service) == ([ReservationState.ACTIVE], 90)
        assert list(generator) == []
    assert state(service) == ([ReservationState.COMMITTED], 90)


def test_a_generator_that_is_never_started_costs_nothing(service: SyncCreditService) -> None:
    """Closing or dropping it unstarted leaves no trace."""

    @consume_credits("Agent", "work", service=service)
    def work() -> Iterator[int]:
        yield 1

    with use_context(ACME):
        work().close()  # type: ignore[attr-defined]  # a generator by its colour
        del work
    assert state(service) == ([], 100)


def echo(log: list[Any]) -> Generator[Any, Any, str]:
    """Yields what it is sent; answers a thrown ValueError; ends on "stop"."""
    received: Any = "started"
    while received != "stop":
        try:
            received = yield received
        except ValueError as error:
            received = f"caught {error}"
        log.append(received)
    return "the end"


def test_send_throw_and_return_pass_through(service: SyncCreditService) -> None:
    """A charged generator talks like the bare one."""
    log: list[Any] = []
    charged = consume_credits("Agent", "work", service=service)(echo)

    def consumer() -> Generator[Any, Any, str]:
        return (yield from charged(log))

    with use_context(ACME):
        generator = consumer()
        assert next(generator) == "started"
        assert generator.send("one") == "one"
        assert generator.throw(ValueError("two")) == "caught two"
        with pytest.raises(StopIteration) as stop:
            generator.send("stop")
    assert stop.value.value == "the end"
    assert log == ["one", "caught two", "stop"]
    assert state(service) == ([ReservationState.COMMITTED], 90)


def test_a_thrown_error_that_the_body_does_not_catch_gives_back(service: SyncCreditService) -> None:
    """An exception thrown in is the body's failure, whatever was yielded before."""
    charged = consume_credits("Agent", "work", service=service)(echo)
    with use_context(ACME):
        generator = charged([])
        next(generator)
        with pytest.raises(KeyError):
            generator.throw(KeyError("x"))
        with pytest.raises(StopIteration):
            next(generator)
    assert state(service) == ([ReservationState.RELEASED], 100)


async def test_asend_and_athrow_pass_through(service: SyncCreditService) -> None:
    """The same for async generators."""

    @consume_credits("Agent", "work", service=service)
    async def aecho() -> AsyncGenerator[Any, Any]:
        received: Any = "started"
        while received != "stop":
            try:
                received = yield received
            except ValueError as error:
                received = f"caught {error}"

    with use_context(ACME):
        generator = aecho()
        assert await anext(generator) == "started"
        assert await generator.asend("one") == "one"
        assert await generator.athrow(ValueError("two")) == "caught two"
        with pytest.raises(StopAsyncIteration):
            await generator.asend("stop")
    assert state(service) == ([ReservationState.COMMITTED], 90)


# -- closed early ----------------------------------------------------------------------------------------------------

POLICIES = [("estimate", 90, ReservationState.COMMITTED), ("actual", 97, ReservationState.COMMITTED)]
POLICIES += [("release", 100, ReservationState.RELEASED)]


@pytest.mark.parametrize(("policy", "left", "final"), POLICIES)
@pytest.mark.parametrize("how", ["close", "drop"])
def test_closing_early_is_charged_by_policy(
    service: SyncCreditService, policy: Any, left: int, final: ReservationState, how: str
) -> None:
    """The hold, what the items yielded so far cost, or nothing: also when the generator is merely dropped."""
    cleaned: list[str | None] = []

    @consume_credits("Agent", "work", service=service, on_close=policy, actual=lambda items: items)
    def work() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            cleaned.append(organization())

    with use_context(ACME):
        generator = work()
        assert [next(generator) for _ in range(3)] == [0, 1, 2]
    if how == "close":
        generator.close()  # type: ignore[attr-defined]  # a generator by its colour
    del generator
    gc.collect()
    assert cleaned == ["acme"]
    assert state(service) == ([final], left)
    assert service.verify()


@pytest.mark.parametrize(("policy", "left", "final"), POLICIES)
@pytest.mark.parametrize("how", ["aclose", "drop"])
def test_closing_an_async_generator_early_is_charged_by_policy(
    service: SyncCreditService, policy: Any, left: int, final: ReservationState, how: str
) -> None:
    """The same for async generators; a dropped one is closed by its loop."""
    cleaned: list[str | None] = []

    @consume_credits("Agent", "work", service=service, on_close=policy, actual=lambda items: items)
    async def work() -> AsyncIterator[int]:
        try:
            for number in range(100):
                await asyncio.sleep(0)
                yield number
        finally:
            await asyncio.sleep(0)
            cleaned.append(organization())

    async def main() -> None:
        with use_context(ACME):
            generator = work()
            assert [await anext(generator) for _ in range(3)] == [0, 1, 2]
        if how == "aclose":
            await generator.aclose()  # type: ignore[attr-defined]  # a generator by its colour
        del generator
        await asyncio.sleep(0.05)

    asyncio.run(main())
    assert cleaned == ["acme"]
    assert state(service) == ([final], left)


def test_an_error_while_closing_early_does_not_make_the_items_free(service: SyncCreditService) -> None:
    """What was yielded was delivered: the policy stands, the error arrives."""

    @consume_credits("Agent", "work", service=service)
    def work() -> Iterator[int]:
        try:
            yield 1
        finally:
            raise ValueError("cleaning up failed")

    with use_context(ACME):
        generator = work()
        next(generator)
        with pytest.raises(ValueError, match="cleaning up"):
            generator.close()  # type: ignore[attr-defined]  # a generator by its colour
    assert state(service) == ([ReservationState.COMMITTED], 90)


def test_actual_counts_the_items_of_a_generator_that_ends(service: SyncCreditService) -> None:
    """actual= of a generator gets the number of items, not a result."""

    @consume_credits("Agent", "work", service=service, actual=lambda items: items * 2)
    def work() -> Iterator[str]:
        yield from ("a", "b", "c")

    with use_context(ACME):
        assert list(work()) == ["a", "b", "c"]
    assert state(service) == ([ReservationState.COMMITTED], 94)


def test_a_generator_in_a_cycle_is_settled_by_the_collector_in_any_thread(service: SyncCreditService) -> None:
    """The finalizer only queues: it neither waits nor changes what is active where it happens to run."""

    @consume_credits("Agent", "work", service=service)
    def work() -> Iterator[int]:
        yield 1
        yield 2

    class Holder:
        generator: Iterator[int]
        me: Holder

    gc.disable()
    try:
        with use_context(ACME):
            holder = Holder()
            holder.me, holder.generator = holder, work()
            next(holder.generator)
        del holder
        seen: list[str | None] = []

        def collect() -> None:
            with use_context(OTHER):
                gc.collect()
                seen.append(organization())

        thread = threading.Thread(target=collect)
        thread.start()
        thread.join(30)
    finally:
        gc.enable()
    assert seen == ["other"]
    assert state(service) == ([ReservationState.COMMITTED], 90)
    assert service.get_balance("other").available == 100


def test_an_async_generator_that_outlives_its_loop_is_settled(service: SyncCreditService) -> None:
    """Nobody is left to await its end: the charge is queued before anything else."""

    @consume_credits("Agent", "work", service=service)
    async def work() -> AsyncIterator[int]:
        yield 1
        yield 2

    loop = asyncio.new_event_loop()
    with use_context(ACME):
        generator = work()
        assert loop.run_until_complete(anext(generator)) == 1
    loop.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # asyncio complains that the loop is gone: that is the case under test
        del generator
        gc.collect()
    assert state(service) == ([ReservationState.COMMITTED], 90)


# -- contexts --------------------------------------------------------------------------------------------------------


def test_no_variable_stays_set_across_a_yield(service: SyncCreditService) -> None:
    """Between two steps the caller's context is untouched, and each step has the generator's own."""
    inside: list[tuple[str | None, bool]] = []

    @consume_credits("Agent", "work", service=service)
    def work() -> Iterator[int]:
        for number in range(3):
            inside.append((organization(), current_execution() is not None))
            yield number

    with use_context(ACME):
        generator = work()
        before = _active.get()
        next(generator)
        assert _active.get() is before
        assert current_execution() is None
    assert organization() is None
    with use_context(OTHER):
        next(generator)
        assert organization() == "other"
    list(generator)
    assert inside == [("acme", True)] * 3
    assert service.get_balance("other").available == 100


def test_a_context_that_the_body_enters_lasts_over_its_yields_and_never_leaks(service: SyncCreditService) -> None:
    """``with use_context(...)`` around a yield in the body: its own inside, the caller's outside."""
    inside: list[str | None] = []

    @consume_credits("Agent", "work", service=service)
    def work() -> Iterator[int]:
        with use_context(OTHER):
            inside.append(organization())
            yield 1
            inside.append(organization())
            yield 2
        inside.append(organization())
        yield 3

    with use_context(ACME):
        for _ in work():
            assert organization() == "acme"
    assert inside == ["other", "other", "acme"]


async def test_steps_of_an_async_generator_may_run_in_different_tasks(service: SyncCreditService) -> None:
    """Each step binds and unbinds in its own task; nothing is reset from another one."""
    inside: list[str | None] = []

    @consume_credits("Agent", "work", service=service)
    async def work() -> AsyncIterator[int]:
        for number in range(4):
            await asyncio.sleep(0)
            inside.append(organization())
            yield number

    with use_context(ACME):
        generator = work()
        await asyncio.create_task(anext(generator))  # type: ignore[arg-type]  # an awaitable is enough at run time
    with use_context(OTHER):
        await asyncio.create_task(anext(generator))  # type: ignore[arg-type]  # as above
        assert organization() == "other"
    await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]  # a generator by its colour
    assert inside == ["acme", "acme"]
    assert state(service) == ([ReservationState.COMMITTED], 90)


async def test_cancelling_a_step_gives_back(service: SyncCreditService) -> None:
    """Cancelled in the middle of the work: released, whatever was yielded before."""

    @consume_credits("Agent", "work", service=service)
    async def work() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(60)
        yield 2

    async def consume() -> None:
        async for _ in work():
            started.set()

    started = asyncio.Event()
    with use_context(ACME):
        task = asyncio.create_task(consume())
        await started.wait()
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert state(service) == ([ReservationState.RELEASED], 100)
