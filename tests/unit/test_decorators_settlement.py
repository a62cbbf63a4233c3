"""Settlement never costs the caller his result, and nothing that interrupts it leaves a hold behind."""

from __future__ import annotations

import asyncio
import gc
import inspect
import random
import signal
import sqlite3
import statistics
import time
import timeit
import warnings
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from sqlalchemy import make_url

import agentcredits
from agentcredits import (
    RequestContext,
    ReservationState,
    SettlementFailedError,
    StoreUnavailableError,
    SyncCreditService,
    consume_credits,
    current_context,
    use_context,
)
from agentcredits.settings import load_settings

ACME = RequestContext("acme")


@pytest.fixture
def service(service: SyncCreditService) -> SyncCreditService:
    """The service on both databases, with credits and a price."""
    service.grant_credits("acme", 1_000)
    service.set_cost("Agent", "work", 1)
    return service


def states(service: SyncCreditService) -> list[ReservationState]:
    assert service.flush()
    return [hold.state for hold in service.list_reservations("acme", limit=500)]


def spent(service: SyncCreditService) -> Decimal:
    assert service.flush()
    return service.get_balance("acme").spent


# -- the store goes away ---------------------------------------------------------------------------------------------


@contextmanager
def store_away(service: SyncCreditService) -> Iterator[None]:
    """Somebody keeps the file locked: no transaction of ours can start."""
    connection = sqlite3.connect(str(make_url(service.database_url).database), isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def drain(items: Iterator[str]) -> str:
    """The first item of an iterator that is run to its end."""
    first, *_ = items
    return first


def impatient(url: str, **settings: Any) -> SyncCreditService:
    return SyncCreditService(url, settings=load_settings(lock_timeout_seconds=0.1, retry_seconds=0.1, **settings))


def wait_until_charged(service: SyncCreditService, amount: int) -> None:
    deadline = time.monotonic() + 20
    while service.get_balance("acme").spent != amount:
        assert time.monotonic() < deadline, "the settlement was never booked"
        time.sleep(0.05)


@pytest.fixture
def patient_and_impatient(sqlite_url: str) -> Iterator[Any]:
    """A service to look with, and a factory of services that give up on a locked file at once."""
    made: list[SyncCreditService] = []

    def make(**settings: Any) -> SyncCreditService:
        made.append(impatient(sqlite_url, **settings))
        made[-1].grant_credits("acme", 1_000)
        return made[-1]

    yield make
    for service in made:
        service.close()


@pytest.mark.parametrize("colour", ["function", "coroutine", "generator", "async generator"])
def test_a_store_that_is_away_at_the_end_costs_the_caller_nothing(patient_and_impatient: Any, colour: str) -> None:
    """The result is returned, the charge is kept and booked once the store is back, exactly once."""
    service: SyncCreditService = patient_and_impatient()
    away = store_away(service)
    charge = consume_credits("Agent", "work", service=service, estimate=1)

    @charge
    def function() -> str:
        away.__enter__()
        return "result"

    @charge
    async def coroutine() -> str:
        away.__enter__()
        return "result"

    @charge
    def generator() -> Iterator[str]:
        away.__enter__()
        yield "result"

    @charge
    async def async_generator() -> AsyncIterator[str]:
        away.__enter__()
        yield "result"

    async def collect() -> str:
        first, *_ = [item async for item in async_generator()]
        return first

    runs: dict[str, Any] = {
        "function": function,
        "coroutine": lambda: asyncio.run(coroutine()),
        "generator": lambda: drain(generator()),
        "async generator": lambda: asyncio.run(collect()),
    }
    try:
        with use_context(ACME):
            assert runs[colour]() == "result"
    finally:
        away.__exit__(None, None, None)
    wait_until_charged(service, 1)
    assert service.verify()


def test_the_raised_settlement_error_carries_the_result(patient_and_impatient: Any) -> None:
    """on_settlement_failure="raise" tells the caller, without losing what he paid for."""
    service: SyncCreditService = patient_and_impatient(on_settlement_failure="raise")
    away = store_away(service)

    @consume_credits("Agent", "work", service=service, estimate=1)
    def work() -> dict[str, str]:
        away.__enter__()
        return {"url": "https://example.org/video"}

    try:
        with use_context(ACME), pytest.raises(SettlementFailedError) as raised:
            work()
    finally:
        away.__exit__(None, None, None)
    assert raised.value.result == {"url": "https://example.org/video"}
    wait_until_charged(service, 1)


def test_a_store_that_is_away_at_the_start_stops_the_action(patient_and_impatient: Any) -> None:
    """Fail closed: without a hold the body does not run."""
    service: SyncCreditService = patient_and_impatient()
    ran: list[int] = []

    @consume_credits("Agent", "work", service=service, estimate=1, on_exhausted="dry_run")
    def work() -> None:
        ran.append(1)

    with store_away(service), use_context(ACME), pytest.raises(StoreUnavailableError):
        work()
    assert ran == []


def test_a_failed_body_keeps_its_own_exception_when_the_store_is_away(patient_and_impatient: Any) -> None:
    """The release waits for the store; the caller sees what went wrong in his code."""
    service: SyncCreditService = patient_and_impatient()
    away = store_away(service)

    @consume_credits("Agent", "work", service=service, estimate=1)
    def work() -> None:
        away.__enter__()
        raise KeyError("mine")

    try:
        with use_context(ACME), pytest.raises(KeyError, match="mine"):
            work()
    finally:
        away.__exit__(None, None, None)
    deadline = time.monotonic() + 20
    while service.get_balance("acme").reserved:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert service.get_balance("acme").spent == 0


def test_a_service_that_was_closed_under_the_body(sqlite_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Success: the result, and the problem in the log. Failure: the body's exception, the problem noted on it."""
    with SyncCreditService(sqlite_url) as keeper:
        keeper.grant_credits("acme", 1_000)
        first, second, third = (
            SyncCreditService(sqlite_url),
            SyncCreditService(sqlite_url),
            SyncCreditService(sqlite_url, settings=load_settings(on_settlement_failure="raise")),
        )

        @consume_credits("Agent", "work", service=first, estimate=1)
        def succeed() -> str:
            first.close()
            return "result"

        @consume_credits("Agent", "work", service=second, estimate=1)
        def fail() -> None:
            second.close()
            raise KeyError("mine")

        @consume_credits("Agent", "work", service=third, estimate=1)
        def tell() -> str:
            third.close()
            return "result"

        with use_context(ACME):
            assert succeed() == "result"
            assert "Agent.work is done, but its charge failed" in caplog.text
            with pytest.raises(KeyError) as raised:
                fail()
            with pytest.raises(SettlementFailedError) as told:
                tell()
        assert any("not given back" in note for note in raised.value.__notes__)
        assert told.value.result == "result"


# -- interruptions ---------------------------------------------------------------------------------------------------


async def test_a_cancelled_body_gives_back(service: SyncCreditService) -> None:
    """Cancellation is no success; when the task is over the credits are back."""

    @consume_credits("Agent", "work", service=service)
    async def work() -> None:
        started.set()
        await asyncio.sleep(60)

    started = asyncio.Event()
    with use_context(ACME):
        task = asyncio.create_task(work())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    (hold,) = service.list_reservations("acme")
    assert (hold.state, hold.reason) == (ReservationState.RELEASED, "CancelledError")


async def test_a_body_that_swallows_its_cancellation_is_charged(service: SyncCreditService) -> None:
    """What counts is how the body ends."""

    @consume_credits("Agent", "work", service=service)
    async def work() -> str:
        try:
            started.set()
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "saved"
        return "late"

    started = asyncio.Event()
    with use_context(ACME):
        task = asyncio.create_task(work())
        await started.wait()
        task.cancel()
        assert await task == "saved"
    assert spent(service) == 1


async def test_random_cancellations_leave_nothing_half_booked(service: SyncCreditService) -> None:
    """Cancelled before, in, or after the body: charged exactly when the body finished, and no hold stays open."""
    finished = 0
    chance = random.Random(7)

    @consume_credits("Agent", "work", service=service)
    async def work() -> None:
        nonlocal finished
        await asyncio.sleep(chance.random() * 0.01)
        finished += 1

    async def one() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(chance.random() * 0.04)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with use_context(ACME):
        for made in range(15, 300):
            await asyncio.gather(*(one() for _ in range(8)))
            if made >= 30 and finished:
                break
    assert await asyncio.to_thread(service.flush, timedelta(seconds=30))
    assert set(states(service)) <= {ReservationState.COMMITTED, ReservationState.RELEASED}
    assert spent(service) == finished
    assert 0 < finished < 8 * made
    assert service.verify()


def test_a_coroutine_that_nobody_drives_any_more_gives_back(service: SyncCreditService) -> None:
    """Closed by hand or by the garbage collector: it cannot wait, so the release is queued."""

    class Pause:
        def __await__(self) -> Generator[None, None, None]:
            yield

    @consume_credits("Agent", "work", service=service)
    async def work() -> None:
        loop.stop()
        await Pause()
        await asyncio.sleep(60)

    loop = asyncio.new_event_loop()
    with use_context(ACME):
        task = loop.create_task(work())
    loop.run_forever()
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's complaint is the case under test
    loop.close()
    del task
    gc.collect()
    assert states(service) == [ReservationState.RELEASED]


def test_an_async_generator_dropped_in_the_middle_of_a_step_gives_back(service: SyncCreditService) -> None:
    """The step was never finished and nobody can wait: the release is queued."""

    class Pause:
        def __await__(self) -> Generator[None, None, None]:
            yield

    @consume_credits("Agent", "work", service=service)
    async def work() -> AsyncIterator[int]:
        loop.stop()
        await Pause()
        await asyncio.sleep(60)
        yield 1

    async def consume() -> None:
        async for _ in work():
            pass

    loop = asyncio.new_event_loop()
    with use_context(ACME):
        task = loop.create_task(consume())
    loop.run_forever()
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's complaint is the case under test
    loop.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so is its complaint that the loop is gone
        del task
        gc.collect()
    assert states(service) == [ReservationState.RELEASED]


def test_timer_interrupts_leave_no_hold_that_lives_for_ever(service: SyncCreditService) -> None:
    """Interrupted at any instruction: every result that arrived is charged, nothing is renewed for ever."""
    finished = arrived = 0
    rounds = 150
    chance = random.Random(11)

    class TimesUp(BaseException):
        pass

    def interrupt(_: int, frame: FrameType | None) -> None:
        # Only where somebody can catch it: not in the test's own loop, not in a finalizer.
        callers = [entry.frame.f_code.co_name for entry in inspect.getouterframes(frame, 0)] if frame else []
        inside = frame is not None and (frame.f_code is body or package in frame.f_code.co_filename)
        if inside and "__del__" not in callers:
            raise TimesUp
        signal.setitimer(signal.ITIMER_REAL, 0.0002)

    @consume_credits("Agent", "work", service=service, ttl=timedelta(seconds=1.5))
    def work() -> None:
        nonlocal finished
        time.sleep(0.001)
        finished += 1

    body = inspect.unwrap(work).__code__
    package = str(Path(agentcredits.__file__).parent)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with use_context(ACME):
            took_seconds = statistics.median(timeit.repeat(work, number=1, repeat=7))
            for _ in range(rounds):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0005 + chance.random() * 3 * took_seconds)
                    work()
                    arrived += 1
                except TimesUp:
                    continue
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert current_context() is None
    time.sleep(2.5)
    assert service.flush()
    assert service.get_balance("acme").reserved == 0
    assert 7 + arrived <= spent(service) <= finished
    assert 0 < arrived < rounds
    assert service.verify()


def test_a_body_longer_than_its_time_to_live_is_charged_once(service: SyncCreditService) -> None:
    """The hold is renewed while the body runs."""

    @consume_credits("Agent", "work", service=service, ttl=timedelta(seconds=0.4))
    def work() -> str:
        time.sleep(1.3)
        return "done"

    with use_context(ACME):
        assert work() == "done"
    (row,) = service.list_transactions("acme", type="debit")
    assert (row.charged, row.late) == (1, False)
    assert states(service) == [ReservationState.COMMITTED]


def test_a_hold_settled_by_somebody_else_does_not_disturb_the_caller(service: SyncCreditService) -> None:
    """An operator who released the hold in the middle costs the charge, not the result."""

    @consume_credits("Agent", "work", service=service)
    def work() -> str:
        (hold,) = service.list_reservations("acme", states=["active"])
        service.release_reservation(hold)
        return "result"

    with use_context(ACME):
        assert work() == "result"
    assert spent(service) == 0
    assert states(service) == [ReservationState.RELEASED]
