"""@consume_credits on functions and methods: what is charged, to whom, and what is not."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

from agentcredits import (
    BaseCrew,
    CreditService,
    InsufficientCreditsError,
    MissingContextError,
    Pricing,
    RequestContext,
    ReservationState,
    SyncCreditService,
    Transaction,
    TransactionType,
    UnpricedActionError,
    configure,
    consume_credits,
    current_context,
    default_service,
    use_context,
)
from agentcredits.context import _active
from agentcredits.execution import current_execution

ACME = RequestContext("acme", "project-1", "department-1", "user-1", run_id="run-1", metadata={"channel": "web"})


@pytest.fixture(autouse=True)
def _acme(service: SyncCreditService) -> None:
    service.grant_credits("acme", 100)
    service.set_cost("Agent", "work", 2)


def available(service: SyncCreditService) -> Decimal:
    return service.get_balance("acme").available


def charges(service: SyncCreditService) -> list[Transaction]:
    return [row for row in service.list_transactions("acme") if row.type is TransactionType.DEBIT]


# -- the four colours ------------------------------------------------------------------------------------------------


def four_colours(
    service: SyncCreditService, body: Callable[[], object], *, action: str = "work", **options: Any
) -> dict[str, Any]:
    """One charged function of each colour around the same body, and how to run it to its end."""
    charge = consume_credits("Agent", action, service=service, **options)

    @charge
    def function() -> object:
        return body()

    @charge
    async def coroutine() -> object:
        await asyncio.sleep(0)
        return body()

    @charge
    def generator() -> Iterator[object]:
        yield body()
        yield "last"

    @charge
    async def async_generator() -> AsyncIterator[object]:
        yield body()
        await asyncio.sleep(0)
        yield "last"

    async def collect() -> object:
        first, *_ = [item async for item in async_generator()]
        return first

    return {
        "function": function,
        "coroutine": lambda: asyncio.run(coroutine()),
        "generator": lambda: drain(generator()),
        "async generator": lambda: asyncio.run(collect()),
    }


def drain(items: Iterator[object]) -> object:
    """The first item of an iterator that is run to its end."""
    first, *_ = items
    return first


COLOURS = ["function", "coroutine", "generator", "async generator"]


@pytest.mark.parametrize("colour", COLOURS)
def test_success_charges_once(service: SyncCreditService, colour: str) -> None:
    """The price leaves the account, one DEBIT row says for what and for whom, and the hold is committed."""
    run = four_colours(service, lambda: "result")[colour]
    with use_context(ACME):
        assert run() == "result"
    (row,) = charges(service)
    assert (row.amount, row.agent_type, row.action, row.pricing) == (Decimal(-2), "Agent", "work", Pricing.PRICED)
    assert (row.project_id, row.department_id, row.user_id) == ("project-1", "department-1", "user-1")
    assert (row.run_id, row.request_id) == ("run-1", ACME.request_id)
    (hold,) = service.list_reservations("acme")
    assert (hold.state, hold.charged) == (ReservationState.COMMITTED, Decimal(2))
    assert available(service) == 98
    assert service.verify()


@pytest.mark.parametrize("colour", COLOURS)
def test_failure_charges_nothing(service: SyncCreditService, colour: str) -> None:
    """The body's own exception arrives unchanged and the credits are back; the hold says why."""

    def body() -> object:
        raise ValueError("the provider is down")

    run = four_colours(service, body)[colour]
    with use_context(ACME), pytest.raises(ValueError, match="the provider is down") as raised:
        run()
    assert not getattr(raised.value, "__notes__", [])
    assert charges(service) == []
    (hold,) = service.list_reservations("acme")
    assert (hold.state, hold.reason) == (ReservationState.RELEASED, "ValueError: the provider is down")
    assert available(service) == 100


@pytest.mark.parametrize("colour", COLOURS)
def test_an_exception_that_is_no_error_gives_back_too(service: SyncCreditService, colour: str) -> None:
    """SystemExit, KeyboardInterrupt and the like end the work as well."""

    class Stop(BaseException):
        pass

    def body() -> object:
        raise Stop

    run = four_colours(service, body)[colour]
    with use_context(ACME), pytest.raises(Stop):
        run()
    assert available(service) == 100
    assert [hold.state for hold in service.list_reservations("acme")] == [ReservationState.RELEASED]


@pytest.mark.parametrize("colour", COLOURS)
def test_too_few_credits_stop_the_action_before_it_starts(service: SyncCreditService, colour: str) -> None:
    """The body never runs, the error says what is missing, nothing changes."""
    ran: list[int] = []
    run = four_colours(service, lambda: ran.append(1), estimate=101)[colour]
    with use_context(ACME), pytest.raises(InsufficientCreditsError) as raised:
        run()
    assert ran == []
    assert raised.value.http_status == 402
    assert service.list_reservations("acme") == ()
    assert available(service) == 100


@pytest.mark.parametrize("colour", COLOURS)
def test_without_a_context_nothing_runs(service: SyncCreditService, colour: str) -> None:
    """Nobody says who pays: the action is refused, not free."""
    ran: list[int] = []
    run = four_colours(service, lambda: ran.append(1))[colour]
    with pytest.raises(MissingContextError, match="use_context"):
        run()
    assert ran == []


@pytest.mark.parametrize("colour", COLOURS)
def test_an_action_without_a_price_does_not_run(service: SyncCreditService, colour: str) -> None:
    """Metered but unpriced is refused."""
    ran: list[int] = []
    run = four_colours(service, lambda: ran.append(1), action="nobody-priced-this")[colour]
    with use_context(ACME), pytest.raises(UnpricedActionError, match="nobody-priced-this"):
        run()
    assert ran == []


@pytest.mark.parametrize("colour", COLOURS)
def test_the_context_is_active_inside_and_unchanged_outside(service: SyncCreditService, colour: str) -> None:
    """The body sees its context and its open charge; the caller's variables are as before, to the object."""
    seen: list[object] = []

    def body() -> None:
        mark = current_execution()
        seen.extend((current_context(), mark is not None and (mark.organization_id, mark.action)))

    run = four_colours(service, body)[colour]
    with use_context(ACME):
        before = _active.get()
        run()
        assert _active.get() is before
        assert current_execution() is None
    assert seen == [ACME, ("acme", "work")]


# -- what a decorated function looks like ---------------------------------------------------------------------------


def test_functions_keep_their_looks_and_colours() -> None:
    """Name, docstring, signature and every answer of inspect are the original's."""

    def function(a: int, *, b: str = "x") -> str:
        """What it does."""
        return b * a

    async def coroutine(a: int) -> int:
        return a

    def generator(a: int) -> Iterator[int]:
        yield a

    async def async_generator(a: int) -> AsyncIterator[int]:
        yield a

    tests = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    for original in (function, coroutine, generator, async_generator):
        charged: Any = consume_credits("Agent", "work")(original)
        assert [test(charged) for test in tests] == [test(original) for test in tests]
        assert (charged.__name__, charged.__doc__) == (original.__name__, original.__doc__)
        assert charged.__wrapped__ is original
        assert inspect.signature(charged) == inspect.signature(original)


def test_methods_of_every_kind(service: SyncCreditService) -> None:
    """Methods, class methods and static methods, the decorator under them or over them."""
    charge = consume_credits("Agent", "work", service=service)

    class Agent:
        @charge
        def method(self, x: int) -> tuple[str, int]:
            return type(self).__name__, x

        @classmethod
        @charge
        def class_under(cls, x: int) -> tuple[str, int]:
            return cls.__name__, x

        @staticmethod
        @charge
        def static_under(x: int) -> int:
            return x

        @charge
        @classmethod
        def class_over(cls, x: int) -> tuple[str, int]:
            return cls.__name__, x

        @charge
        @staticmethod
        def static_over(x: int) -> int:
            return x

    agent = Agent()
    with use_context(ACME):
        assert agent.method(1) == agent.class_under(1) == agent.class_over(1) == ("Agent", 1)
        assert agent.static_under(1) == agent.static_over(1) == Agent.static_over(1) == 1
    assert len(charges(service)) == 6


def test_bound_methods_can_be_charged_from_outside(service: SyncCreditService) -> None:
    """Decorating somebody else's bound method keeps its agent: context and class name come from it."""

    class Agent(BaseCrew):
        def work(self, x: int) -> int:
            return x

    agent = Agent().set_context(ACME)
    charged = consume_credits(None, "work", service=service)(agent.work)
    assert charged(3) == 3
    assert [row.agent_type for row in charges(service)] == ["Agent"]


def test_partials_keep_their_colour(service: SyncCreditService) -> None:
    """functools.partial of a coroutine function is awaited before it is charged."""

    async def work(a: int, b: int) -> int:
        return a + b

    charged = consume_credits("Agent", "work", service=service)(functools.partial(work, 1))
    with use_context(ACME):
        assert asyncio.run(charged(2)) == 3
    assert len(charges(service)) == 1


def test_the_agent_type_is_given_or_the_agents_own_or_the_class_name(service: SyncCreditService) -> None:
    """Explicit beats BaseCrew.agent_type beats the class's name; never a role."""
    service.set_cost("Named", "work", 3)
    service.set_cost("Plain", "work", 4)
    charge = consume_credits(None, "work", service=service)

    class Crew(BaseCrew):
        agent_type = "Named"

        @charge
        def work(self) -> None: ...

        @classmethod
        @charge
        def shared(cls) -> None: ...

    class Plain:
        agent_type = "ignored: not a BaseCrew"

        @charge
        def work(self) -> None: ...

    with use_context(ACME):
        Crew().work()
        Crew.shared()
        Plain().work()
    assert [(row.agent_type, row.charged) for row in reversed(charges(service))] == [
        ("Named", 3),
        ("Named", 3),
        ("Plain", 4),
    ]


# -- which service ---------------------------------------------------------------------------------------------------


@pytest.fixture
def two_services(database_url: str, tmp_path: Any) -> Iterator[tuple[SyncCreditService, CreditService]]:
    """The default service of the process on the test's database, and another one."""
    configure(database_url)
    with SyncCreditService(f"sqlite:///{tmp_path / 'other.db'}") as other:
        other.grant_credits("acme", 50)
        other.set_cost("Agent", "work", 5)
        yield other, default_service()
    configure()


def test_the_service_is_given_or_the_agents_own_or_the_default(
    service: SyncCreditService, two_services: tuple[SyncCreditService, CreditService]
) -> None:
    """service= beats BaseCrew.credit_service beats default_service()."""
    other, default = two_services

    class Agent(BaseCrew):
        @consume_credits("Agent", "work")
        def work(self) -> None: ...

        @consume_credits("Agent", "work", service=default)
        def given(self) -> None: ...

    agent = Agent()
    with use_context(ACME):
        agent.work()
        assert (available(service), available(other)) == (98, 50)
        agent.credit_service = other
        agent.work()
        assert (available(service), available(other)) == (98, 45)
        agent.given()
        assert (available(service), available(other)) == (96, 45)
