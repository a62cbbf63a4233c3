"""Turns: who came first goes first, and a place is never lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from agentcredits import StoreUnavailableError, SyncCreditService
from agentcredits.runner import runner as runner_module
from agentcredits.runner.runner import Runner
from agentcredits.runner.turns import Turn, Turns
from agentcredits.settings import Settings


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


def waiting(turns: Turns) -> int:
    return len(turns._waiting)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as made:
        yield made


def test_a_free_place_goes_to_whoever_has_waited_longest(pool: ThreadPoolExecutor) -> None:
    turns, order = Turns(1, 20), list[int]()

    def go(number: int) -> None:
        with turns.take():
            order.append(number)

    with turns.take():
        for number in range(8):
            pool.submit(go, number)
            until(lambda number=number: waiting(turns) == number + 1)  # type: ignore[misc]
        assert order == []
    until(lambda: len(order) == 8)
    assert order == list(range(8))


def test_no_more_are_inside_than_there_are_places(pool: ThreadPoolExecutor) -> None:
    turns, inside, most = Turns(3, 20), set[int](), list[int]()

    def go(number: int) -> None:
        for _ in range(50):
            with turns.take():
                inside.add(number)
                most.append(len(inside))
                time.sleep(0)
                inside.remove(number)

    list(pool.map(go, range(16)))
    assert max(most) == 3
    assert len(most) == 16 * 50


def test_who_comes_back_waits_behind_those_who_wait(pool: ThreadPoolExecutor) -> None:
    """A pool would let the thread that runs in again and again."""
    turns, order = Turns(1, 20), list[str]()

    def wait() -> None:
        with turns.take():
            order.append("waits")

    with turns.take():
        waits = pool.submit(wait)
        until(lambda: waiting(turns) == 1)
        order.append("runs")
    for _ in range(100):
        with turns.take():
            order.append("runs")
    waits.result(20)
    assert order[:2] == ["runs", "waits"]


def test_who_waits_too_long_is_told_so_and_takes_no_place() -> None:
    turns = Turns(1, 0.05)
    with turns.take():
        with pytest.raises(PoolTimeoutError, match=r"1 connections were in use for 0\.05 s"), turns.take():
            pass
        assert waiting(turns) == 0
    with turns.take():
        pass


def test_a_place_that_comes_as_its_taker_gives_up_is_handed_on(pool: ThreadPoolExecutor) -> None:
    """Between the end of the wait and the leaving, the place arrives."""
    turns = Turns(1, 20)

    class Interrupted(BaseException):
        pass

    class Unlucky(Turns):
        def come(self, turn: Turn) -> None:
            super().come(turn)
            raise Interrupted

    unlucky = Unlucky(1, 20)
    with pytest.raises(Interrupted), unlucky.take():
        pass
    assert unlucky._inside == set()

    entered = pool.submit(turns.take().__enter__)
    entered.result(20)
    (holder,) = turns._inside
    second, third = turns.take(), turns.take()
    for turn in (second, third):
        pool.submit(turn.__enter__)
        until(lambda: turn in turns._waiting)  # noqa: B023
    turns.leave(holder)
    assert turns._inside == {second}
    turns.leave(second)
    assert turns._inside == {third}
    turns.leave(third)
    turns.leave(third)
    assert turns._inside == set()


@contextmanager
def service_with_one_connection(url: str) -> Iterator[tuple[SyncCreditService, Runner]]:
    with SyncCreditService(url, settings=Settings(pool_size=1)) as service:
        service.grant_credits("acme", 1)
        yield service, service._core.runner


@pytest.mark.parametrize("kind", ["read", "write"])
def test_reads_take_turns(database_url: str, pool: ThreadPoolExecutor, kind: str) -> None:
    """One thread reads on and on; another one, that reads or sets prices, is next nevertheless."""
    order: list[str] = []
    going, go = threading.Event(), threading.Event()

    def first(_connection: Connection) -> None:
        order.append("on and on")
        going.set()
        go.wait(20)

    with service_with_one_connection(database_url) as (_service, runner):

        def on_and_on() -> None:
            for _ in range(100):
                runner.read(first)

        steady = pool.submit(on_and_on)
        assert going.wait(20)
        other = pool.submit(getattr(runner, kind), lambda _connection: order.append("once"))
        until(lambda: waiting(runner._turns) == 1)
        go.set()
        other.result(20)
        steady.result(20)
    assert order[:2] == ["on and on", "once"]


def test_readers_leave_the_posters_their_connections(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All places taken by reads: a read is told that it found none, a charge goes on."""
    monkeypatch.setattr(runner_module, "POOL_TIMEOUT_SECONDS", 0.1)
    with ExitStack() as stack:
        service, runner = stack.enter_context(service_with_one_connection(database_url))
        stack.enter_context(runner._turns.take())
        with pytest.raises(StoreUnavailableError, match="all connections to the credits database are in use") as caught:
            service.get_balance("acme")
        assert (caught.value.reason, caught.value.outcome) == ("away", "not_started")
        assert service.consume_credits(organization_id="acme", amount=1).amount == -1
    with SyncCreditService(database_url) as service:
        assert service.get_balance("acme").available == 0
