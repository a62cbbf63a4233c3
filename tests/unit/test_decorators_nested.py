"""Charged actions inside charged actions: nested=, super(), stacked decorators, tasks that outlive their caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from agentcredits import (
    BaseCrew,
    InsufficientCreditsError,
    RequestContext,
    SyncCreditService,
    _call,
    bind,
    consume_credits,
    track_agent_usage,
    use_context,
)

ACME = RequestContext("acme")
OTHER = RequestContext("other")


@pytest.fixture(autouse=True)
def _accounts(service: SyncCreditService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_call, "_warned_unpriced", set())
    for organization in ("acme", "other"):
        service.grant_credits(organization, 1_000)
    service.set_cost("Agent", "outer", 100)
    service.set_cost("Agent", "inner", 10)
    service.set_cost("Agent", "work", 1)
    service.set_cost("Agent", "free", 0, free=True)


def spent(service: SyncCreditService, organization: str = "acme") -> int:
    assert service.flush()
    return int(service.get_balance(organization).spent)


# -- nested= ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("nested", "total"), [("charge", 110), ("included", 100)])
def test_nested_says_what_the_inner_action_does(service: SyncCreditService, nested: Any, total: int) -> None:
    """By default both pay; an inner action that says so is included in an outer charge."""

    @consume_credits("Agent", "inner", service=service, nested=nested)
    def inner() -> str:
        return "inner"

    @consume_credits("Agent", "outer", service=service)
    def outer() -> str:
        return inner()

    with use_context(ACME):
        assert outer() == "inner"
        assert spent(service) == total
        inner()
    assert spent(service) == total + 10, "outside of a charged call it pays for itself"


@pytest.mark.parametrize("colour", ["coroutine", "generator", "async generator"])
def test_included_works_in_every_colour(service: SyncCreditService, colour: str) -> None:
    """The mark reaches through awaits and steps, and is gone between them."""
    charge_inner = consume_credits("Agent", "inner", service=service, nested="included")
    charge_outer = consume_credits("Agent", "outer", service=service)

    @charge_inner
    async def coroutine() -> int:
        await asyncio.sleep(0)
        return 1

    @charge_inner
    def generator() -> Iterator[int]:
        yield 1

    @charge_inner
    async def async_generator() -> AsyncIterator[int]:
        await asyncio.sleep(0)
        yield 1

    @charge_outer
    async def outer() -> object:
        if colour == "coroutine":
            return [await coroutine()]
        if colour == "generator":
            return list(generator())
        return [item async for item in async_generator()]

    with use_context(ACME):
        assert asyncio.run(outer()) == [1]
    assert spent(service) == 100


def test_calls_between_the_steps_of_a_generator_are_outside_of_it(service: SyncCreditService) -> None:
    """The consumer's own actions are not included in what it iterates over."""

    @consume_credits("Agent", "inner", service=service, nested="included")
    def inner() -> None: ...

    @consume_credits("Agent", "outer", service=service)
    def outer() -> Iterator[int]:
        inner()
        yield 1
        inner()

    with use_context(ACME):
        for _ in outer():
            inner()
    assert spent(service) == 110


def test_included_means_the_same_organization(service: SyncCreditService) -> None:
    """Work for somebody else inside a charged call is paid by somebody else."""

    @consume_credits("Agent", "inner", service=service, nested="included")
    def inner() -> None: ...

    @consume_credits("Agent", "outer", service=service)
    def outer() -> None:
        with use_context(OTHER):
            inner()
            with use_context(ACME):
                inner()

    with use_context(ACME):
        outer()
    assert (spent(service), spent(service, "other")) == (100, 10)


def test_only_a_charged_call_includes_others(service: SyncCreditService) -> None:
    """A method that was merely recorded without a price pays for nobody; one that is explicitly free does."""

    @consume_credits("Agent", "inner", service=service, nested="included")
    def inner() -> None: ...

    @track_agent_usage("NestedRecorded", service=service)
    class Recorded:
        def outer(self) -> None:
            inner()

    @consume_credits("Agent", "free", service=service)
    def free() -> None:
        inner()

    with use_context(ACME):
        with pytest.warns(match="NestedRecorded.outer has no price"):
            Recorded().outer()
        assert spent(service) == 10
        free()
    assert spent(service) == 10


async def test_a_task_that_outlives_its_caller_pays_again(service: SyncCreditService) -> None:
    """A background loop started inside an included call is not free for ever."""
    go_on = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    @consume_credits("Agent", "inner", service=service, nested="included")
    async def inner() -> None: ...

    async def background() -> None:
        await inner()
        await go_on.wait()
        await inner()

    @consume_credits("Agent", "outer", service=service)
    async def outer() -> None:
        tasks.append(asyncio.create_task(background()))
        await asyncio.sleep(0.01)

    with use_context(ACME):
        await outer()
    assert spent(service) == 100
    go_on.set()
    await tasks[0]
    assert spent(service) == 110


def test_the_mark_reaches_bound_threads(service: SyncCreditService) -> None:
    """bind() carries the open charge too."""

    @consume_credits("Agent", "inner", service=service, nested="included")
    def inner() -> None: ...

    @consume_credits("Agent", "outer", service=service)
    def outer() -> None:
        with ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(bind(inner)), pool.submit(bind(inner))]:
                future.result()

    with use_context(ACME):
        outer()
    assert spent(service) == 100


def test_an_included_action_needs_no_price_and_no_credits(service: SyncCreditService) -> None:
    """It is paid for already."""

    @consume_credits("Agent", "unpriced", service=service, nested="included", estimate=5_000)
    def inner() -> str:
        return "inner"

    @consume_credits("Agent", "outer", service=service)
    def outer() -> str:
        return inner()

    with use_context(ACME):
        assert outer() == "inner"
        with pytest.raises(InsufficientCreditsError):
            inner()
    assert spent(service) == 100


# -- super() and stacked decorators ----------------------------------------------------------------------------------


def test_parent_and_child_tracked_is_one_charge(service: SyncCreditService) -> None:
    """``super().work()`` re-enters the same action of the same agent."""

    @track_agent_usage("Agent", service=service)
    class Parent:
        def work(self) -> list[str]:
            return ["parent"]

    @track_agent_usage("Agent", service=service)
    class Child(Parent):
        def work(self) -> list[str]:
            return [*super().work(), "child", *super().work()]

    @track_agent_usage("Agent", service=service)
    class Grandchild(Child):
        def work(self) -> list[str]:
            return [*super().work(), "grandchild"]

    with use_context(ACME):
        assert Grandchild().work() == ["parent", "child", "parent", "grandchild"]
        assert spent(service) == 1
        Parent().work()
    assert spent(service) == 2


def test_super_is_one_charge_in_every_colour(service: SyncCreditService) -> None:
    """Coroutines, generators and async generators, agent types by class name."""
    service.set_cost("Child", "*", 1)

    @track_agent_usage(None, service=service)
    class Parent:
        async def coroutine(self) -> list[int]:
            await asyncio.sleep(0)
            return [1]

        def generator(self) -> Iterator[int]:
            yield 1

        async def async_generator(self) -> AsyncIterator[int]:
            yield 1
            await asyncio.sleep(0)
            yield 2

    @track_agent_usage(None, service=service)
    class Child(Parent):
        async def coroutine(self) -> list[int]:
            return [*(await super().coroutine()), 2]

        def generator(self) -> Iterator[int]:
            yield from super().generator()
            yield 2

        async def async_generator(self) -> AsyncIterator[int]:
            async for item in super().async_generator():
                yield item

    child = Child()

    async def collect() -> list[int]:
        return [item async for item in child.async_generator()]

    with use_context(ACME):
        assert asyncio.run(child.coroutine()) == [1, 2]
        assert list(child.generator()) == [1, 2]
        assert asyncio.run(collect()) == [1, 2]
    assert [row.agent_type for row in service.list_transactions("acme", type="debit")] == ["Child"] * 3


def test_a_bare_layer_passes_values_and_errors_through(service: SyncCreditService) -> None:
    """asend, athrow and aclose reach the parent's async generator through the uncharged layer."""
    closed: list[bool] = []

    class Parent:
        @consume_credits("Agent", "work", service=service)
        async def work(self) -> Any:
            try:
                received = yield "first"
                try:
                    yield received
                except ValueError:
                    yield "caught"
            finally:
                closed.append(True)

    class Child(Parent):
        @consume_credits("Agent", "work", service=service)
        async def work(self) -> Any:
            parent = super().work()
            try:
                yield await anext(parent)
                yield await parent.asend("sent")
                yield await parent.athrow(ValueError())
            finally:
                await parent.aclose()

    async def main() -> list[str]:
        return [item async for item in Child().work()]

    with use_context(ACME):
        assert asyncio.run(main()) == ["first", "sent", "caught"]
    assert closed == [True]
    assert spent(service) == 1


def test_recursion_is_no_super(service: SyncCreditService) -> None:
    """An agent that calls itself pays for every round, also when each round goes through super()."""

    @track_agent_usage("Agent", service=service)
    class Parent:
        def work(self, rounds: int) -> int:
            return self.work(rounds - 1) if rounds else 0

    @track_agent_usage("Agent", service=service)
    class Child(Parent):
        def work(self, rounds: int) -> int:
            return super().work(rounds)

    with use_context(ACME):
        Parent().work(2)
        assert spent(service) == 3
        Child().work(2)
    assert spent(service) == 6


def test_other_instances_and_other_actions_pay(service: SyncCreditService) -> None:
    """One charge means the same agent and the same action, not the same class."""

    class Parent:
        @consume_credits("Agent", "work", service=service)
        def work(self) -> None: ...

        @consume_credits("Agent", "inner", service=service)
        def other(self) -> None: ...

    class Child(Parent):
        @consume_credits("Agent", "work", service=service)
        def work(self) -> None:
            Parent().work()
            self.other()
            super().work()

        @consume_credits("Agent", "work", service=service)
        def same_action_by_another_method(self) -> None:
            self.work()

    with use_context(ACME):
        Child().work()
        assert spent(service) == 1 + 1 + 10
        Child().same_action_by_another_method()
    assert spent(service) == 12 + 1 + 12


def test_stacked_decorators_of_one_action_are_one_charge(service: SyncCreditService) -> None:
    """On functions and methods; two actions on one function are two charges."""
    charge = consume_credits("Agent", "work", service=service)

    @charge
    @charge
    def function() -> None: ...

    @consume_credits("Agent", "inner", service=service)
    @charge
    def both() -> None: ...

    @track_agent_usage("Agent", service=service)
    class Agent:
        @charge
        def work(self) -> None: ...

    with use_context(ACME):
        function()
        assert spent(service) == 1
        both()
        assert spent(service) == 12
        Agent().work()
    assert spent(service) == 13


def test_two_functions_with_one_price_both_pay(service: SyncCreditService) -> None:
    """Plain functions that share an action are different work."""
    charge = consume_credits("Agent", "work", service=service)

    @charge
    def first() -> None: ...

    @charge
    def second() -> None:
        first()

    with use_context(ACME):
        second()
    assert spent(service) == 2


def test_super_under_another_organization_pays(service: SyncCreditService) -> None:
    """The same agent, but somebody else's money."""

    class Parent(BaseCrew):
        credit_service = service

        @consume_credits("Agent", "work")
        def work(self) -> None: ...

    class Child(Parent):
        @consume_credits("Agent", "work")
        def work(self) -> None:
            with use_context(OTHER):
                super().work()

    with use_context(ACME):
        Child().work()
    assert (spent(service), spent(service, "other")) == (1, 1)


def test_an_explicit_charge_inside_a_decorated_method_stands_for_itself(service: SyncCreditService) -> None:
    """consume_credits_for_action is the developer's own charge; it is never swallowed."""

    class Agent(BaseCrew):
        agent_type = "Agent"
        credit_service = service

        @consume_credits(None, "work")
        def work(self) -> None:
            self.consume_credits_for_action_sync("work")

    Agent().set_context(ACME).work()
    assert spent(service) == 2
