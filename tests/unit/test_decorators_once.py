"""charge="once_per_args": the charge is made once for the same arguments in a run; the work is done every time."""

from __future__ import annotations

import enum
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from agentcredits import (
    ConfigurationError,
    InvalidInputError,
    MissingContextError,
    RequestContext,
    ReservationInUseError,
    SyncCreditService,
    consume_credits,
    use_context,
)
from agentcredits._once import once_key

RUN = RequestContext("acme", run_id="r1")


@pytest.fixture(autouse=True)
def _acme(service: SyncCreditService) -> None:
    service.grant_credits("acme", 100)
    service.set_cost("Agent", "work", 2)
    service.set_cost("Agent", "inner", 1)


def spent(service: SyncCreditService) -> int:
    return int(service.get_balance("acme").spent)


def test_the_same_arguments_are_charged_once_in_a_run(service: SyncCreditService) -> None:
    """By name or place, defaults filled in; another instance too. Every call runs. Another run pays again."""
    ran: list[str] = []

    class Agent:
        @consume_credits("Agent", "work", service=service, charge="once_per_args")
        def work(self, topic: str, *, length: int = 1) -> str:
            ran.append(topic)
            return topic * length

    with use_context(RUN):
        assert [Agent().work("tea"), Agent().work(topic="tea"), Agent().work("tea", length=1)] == ["tea"] * 3
        assert spent(service) == 2
        assert Agent().work("tea", length=2) == "teatea"
        assert spent(service) == 4
    with use_context(RequestContext("acme", run_id="r2", user_id="ann")):
        Agent().work("tea")
    assert spent(service) == 6
    assert len(ran) == 5
    assert service.get_balance("acme").reserved == 0


async def test_all_colours_are_charged_once(service: SyncCreditService) -> None:
    """Function, coroutine, generator and async generator, twice each, also when a generator is closed early."""
    once: Any = consume_credits("Agent", "work", service=service, charge="once_per_args")

    @once
    def function(kind: str) -> int:
        return 1

    @once
    async def coroutine(kind: str) -> int:
        return 1

    @once
    def generator(kind: str) -> Iterator[int]:
        yield 1
        yield 2

    @once
    async def async_generator(kind: str) -> AsyncIterator[int]:
        yield 1

    with use_context(RUN):
        for _ in range(2):
            assert function("f") == await coroutine("c") == 1
            assert list(generator("g")) == [1, 2]
            assert [item async for item in async_generator("a")] == [1]
            early = generator("g")
            next(early)
            early.close()
    assert spent(service) == 8
    assert service.get_balance("acme").reserved == 0


def test_a_second_call_while_the_first_is_open_is_refused(service: SyncCreditService) -> None:
    """It does not run, and the first one's hold stays; afterwards it is free."""
    ran: list[int] = []

    @consume_credits("Agent", "work", service=service, charge="once_per_args")
    def work(topic: str, depth_holder: tuple[int, ...] = ()) -> str:
        ran.append(1)
        if len(ran) == 1:
            with pytest.raises(ReservationInUseError):
                other(topic)
            assert service.get_balance("acme").reserved == 2
        return topic

    def plain(topic: str, depth_holder: tuple[int, ...] = ()) -> str:
        return work(topic, depth_holder)

    other = consume_credits("Agent", "work", service=service, charge="once_per_args")(plain)
    with use_context(RUN):
        assert work("tea") == "tea"
        assert work("tea") == "tea"
    assert (len(ran), spent(service)) == (2, 2)


def test_a_call_that_failed_is_charged_the_next_time(service: SyncCreditService) -> None:
    """Its credits went back; the key belongs to a living attempt."""
    tries: list[int] = []

    @consume_credits("Agent", "work", service=service, charge="once_per_args")
    def work(topic: str) -> int:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError
        return len(tries)

    with use_context(RUN):
        with pytest.raises(ValueError):
            work("tea")
        assert spent(service) == 0
        assert [work("tea"), work("tea")] == [2, 3]
    assert spent(service) == 2


def test_the_price_may_change_between_calls(service: SyncCreditService) -> None:
    """What was charged stays; an estimate that differs is no other payload."""

    @consume_credits("Agent", "work", service=service, charge="once_per_args", estimate=lambda topic: len(tries) + 1)
    def work(topic: str) -> int:
        tries.append(1)
        return 1

    tries: list[int] = []
    with use_context(RUN):
        work("tea")
        service.set_cost("Agent", "work", 9)
        work("tea")
    assert spent(service) == 1


def test_what_is_included_in_a_call_that_is_not_charged_pays(service: SyncCreditService) -> None:
    """The first outer call includes the inner one, the second is not charged, so nothing is included in it."""

    @consume_credits("Agent", "inner", service=service, nested="included")
    def inner() -> int:
        return 1

    @consume_credits("Agent", "work", service=service, charge="once_per_args")
    def work(topic: str) -> int:
        return inner()

    with use_context(RUN):
        work("tea")
        assert spent(service) == 2
        work("tea")
    assert spent(service) == 3


def test_arguments_that_are_no_json_need_a_key(service: SyncCreditService) -> None:
    """An object's print is not the same twice: refused before the body; ``key`` says what counts."""

    class Colour(enum.StrEnum):
        RED = "red"

    @consume_credits("Agent", "work", service=service, charge="once_per_args")
    def work(thing: object) -> int:
        return 1

    @consume_credits("Agent", "work", service=service, charge="once_per_args", key=lambda thing: [thing.name])
    def keyed(thing: Any) -> int:
        return 1

    with use_context(RUN):
        for odd in (object(), {1}, b"x", Colour.RED, float("nan"), [[object()]], {1: "a"}, {"a": {2: 3}}):
            with pytest.raises(InvalidInputError, match="key="):
                work(odd)
        with pytest.raises(InvalidInputError, match="missing a required argument"):
            work()  # type: ignore[call-arg]
        assert spent(service) == 0
        for fine in (None, True, 1, 1.5, "x", [1, {"a": [None]}], (1, 2)):
            work(fine)
            work(fine)
        assert spent(service) == 14
        keyed(Colour.RED)
        keyed(Colour.RED)
    assert spent(service) == 16


def test_one_true_and_one_point_zero_are_not_the_same() -> None:
    """Python says that they are equal; they are other arguments."""
    keys = {once_key("r", "A", "b", {"x": value}, name="x") for value in (1, True, 1.0, "1", None, [1], "\ud800")}
    assert len(keys) == 7
    assert once_key("r", "A", "b", {"x": (1,), "y": 2}, name="x") == once_key(
        "r", "A", "b", {"y": 2, "x": [1]}, name=""
    )


def test_the_key_is_the_same_in_another_process() -> None:
    """No addresses, no hash seed."""
    program = (
        "from agentcredits._once import once_key;"
        "print(once_key('r', 'A', 'b', {'z': [1, 'ü'], 'a': {'y': None, 'b': 2.5}}, name=''))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {once_key("r", "A", "b", {"a": {"b": 2.5, "y": None}, "z": [1, "ü"]}, name="")}


def test_it_needs_a_run(service: SyncCreditService) -> None:
    """Without a run it would be for ever."""

    @consume_credits("Agent", "work", service=service, charge="once_per_args")
    def work() -> int:
        return 1

    with use_context(RequestContext("acme")), pytest.raises(MissingContextError) as caught:
        work()
    assert caught.value.reason == "run_required"
    assert spent(service) == 0


def test_a_decorator_that_does_not_fit_is_refused_at_once() -> None:
    """An unknown word, a key that is none, a key without once_per_args."""
    for wrong in ({"charge": "once"}, {"charge": "once_per_args", "key": "topic"}, {"key": lambda: 1}):
        with pytest.raises(ConfigurationError):
            consume_credits("Agent", "work", **wrong)(lambda: None)  # type: ignore[call-overload]
