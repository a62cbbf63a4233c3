"""@track_agent_usage: which methods of a class are charged, and which are left alone."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, PrivateAttr, field_validator

from agentcredits import (
    BaseCrew,
    ConfigurationError,
    CreditService,
    RequestContext,
    SyncCreditService,
    configure,
    consume_credits,
    track_agent_usage,
    use_context,
)
from agentcredits._meter import MARK

ACME = RequestContext("acme")


@pytest.fixture
def service(service: SyncCreditService) -> SyncCreditService:
    """The service on both databases, with credits and a price for everything that Tracked does."""
    service.grant_credits("acme", 1_000)
    service.set_cost("Tracked", "*", 1)
    return service


def charged(service: SyncCreditService) -> list[str | None]:
    """The actions charged so far, oldest first."""
    return [row.action for row in reversed(list(service.list_transactions("acme", type="debit")))]


def charged_methods(cls: type[Any]) -> set[str]:
    return {name for name, member in vars(cls).items() if hasattr(member, MARK)}


def test_public_methods_are_charged_under_their_own_name(service: SyncCreditService) -> None:
    """Plain, coroutine and generator methods; private ones, properties, class and static methods are not."""

    @track_agent_usage("Tracked", service=service)
    class Agent:
        attribute = 1
        callback = staticmethod(len)

        def __init__(self) -> None:
            self.made = True

        def __call__(self) -> str:
            return "called"

        def plain(self) -> str:
            return self._private()

        async def coroutine(self) -> str:
            return "coroutine"

        def generator(self) -> Iterator[str]:
            yield "generator"

        def _private(self) -> str:
            return "plain"

        @property
        def prop(self) -> str:
            return "prop"

        @functools.cached_property
        def cached(self) -> str:
            return "cached"

        @classmethod
        def made_by(cls) -> str:
            return cls.__name__

        @staticmethod
        def static() -> str:
            return "static"

        class Nested:
            def method(self) -> None: ...

    agent = Agent()
    with use_context(ACME):
        assert agent.plain() == "plain"
        assert asyncio.run(agent.coroutine()) == "coroutine"
        assert list(agent.generator()) == ["generator"]
        assert (agent.prop, agent.cached, agent.static(), agent.made_by(), agent()) == (
            "prop",
            "cached",
            "static",
            "Agent",
            "called",
        )
        agent.Nested().method()
    assert charged(service) == ["plain", "coroutine", "generator"]
    assert charged_methods(Agent) == {"plain", "coroutine", "generator"}


def test_the_class_itself_comes_back(service: SyncCreditService) -> None:
    """No subclass, no proxy: isinstance, pickling and metaclasses keep working."""

    class Agent:
        def work(self) -> None: ...

    assert track_agent_usage("Tracked", service=service)(Agent) is Agent


def test_inherited_methods_belong_to_the_class_that_defines_them(service: SyncCreditService) -> None:
    """Decorating a child charges what the child defines, nothing of its parents."""

    class Parent:
        def inherited(self) -> str:
            return "parent"

    @track_agent_usage("Tracked", service=service)
    class Child(Parent):
        def own(self) -> str:
            return "child"

    with use_context(ACME):
        child = Child()
        assert (child.inherited(), child.own()) == ("parent", "child")
    assert charged(service) == ["own"]
    assert charged_methods(Parent) == set()


def test_decorated_methods_keep_their_own_price(service: SyncCreditService) -> None:
    """A method with @consume_credits is charged once, under its own action."""
    service.set_cost("Own", "special", 7)

    def logged(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            return function(*args)

        return wrapper

    @track_agent_usage("Tracked", service=service)
    class Agent:
        @consume_credits("Own", "special", service=service)
        def work(self) -> None: ...

        @logged
        @consume_credits("Own", "special", service=service)
        def under_another_decorator(self) -> None: ...

    with use_context(ACME):
        Agent().work()
        Agent().under_another_decorator()
    assert [row.charged for row in service.list_transactions("acme", type="debit")] == [7, 7]


def test_a_class_decorated_twice_is_charged_once(service: SyncCreditService) -> None:
    """The inner decoration stays."""

    @track_agent_usage("Other", service=service)
    @track_agent_usage("Tracked", service=service)
    class Agent:
        def work(self) -> None: ...

    with use_context(ACME):
        Agent().work()
    assert [row.agent_type for row in service.list_transactions("acme", type="debit")] == ["Tracked"]


def test_base_crews_own_methods_are_not_charged(service: SyncCreditService) -> None:
    """Also where a class overrides them: asking who pays must not cost anything."""

    @track_agent_usage("Tracked")
    class Agent(BaseCrew):
        credit_service = service

        def get_context(self) -> RequestContext | None:
            return super().get_context() or ACME

        def work(self) -> None: ...

    Agent().work()
    assert charged(service) == ["work"]


def test_what_frameworks_put_into_a_class_is_not_charged() -> None:
    """Pydantic's own functions and crewai's markers stay as they are."""

    def marked(function: Any) -> Any:
        function.is_task = True
        return function

    @track_agent_usage("Tracked")
    class Model(BaseModel):
        topic: str
        _secret: str = PrivateAttr(default="x")

        @field_validator("topic")
        @classmethod
        def check_topic(cls, value: str) -> str:
            return value

        @marked
        def task_of_crewai(self) -> None: ...

        def work(self) -> str:
            return self.topic

    assert charged_methods(Model) == {"work"}
    assert Model(topic="tea").topic == "tea"


def test_include_and_exclude_choose_methods() -> None:
    """Both name methods; include may name private methods; a plain text is one name."""

    def make() -> type[Any]:
        class Agent:
            def one(self) -> None: ...

            def two(self) -> None: ...

            def _three(self) -> None: ...

        return Agent

    assert charged_methods(track_agent_usage("T", include=["one", "_three"])(make())) == {"one", "_three"}
    assert charged_methods(track_agent_usage("T", include="two")(make())) == {"two"}
    assert charged_methods(track_agent_usage("T", exclude=("two",))(make())) == {"one"}
    assert charged_methods(track_agent_usage("T", include=["one", "two"], exclude=["two"])(make())) == {"one"}
    assert charged_methods(track_agent_usage("T", include=[])(make())) == set()


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize("name", ["missing", "attribute", "prop", "inherited", "__init__"])
def test_names_that_are_no_own_method_are_refused(option: str, name: str) -> None:
    """A typing mistake must not leave a method free or charged by accident."""

    class Parent:
        def inherited(self) -> None: ...

    class Agent(Parent):
        attribute = 1

        def __init__(self) -> None: ...

        @property
        def prop(self) -> int:
            return 1

        def work(self) -> None: ...

    with pytest.raises(ConfigurationError, match=name) as raised:
        track_agent_usage("T", **{option: [name]})(Agent)  # type: ignore[arg-type]  # built from parameters
    assert "work" in raised.value.suggestions[0]
    assert charged_methods(Agent) == set()


def test_functions_are_refused() -> None:
    """The class decorator on a function says which one was meant."""
    with pytest.raises(ConfigurationError, match="consume_credits"):
        track_agent_usage("T")(len)  # type: ignore[type-var]  # the point of the test
    with pytest.raises(ConfigurationError, match="unpriced"):
        track_agent_usage("T", unpriced="free")(type("Agent", (), {"work": lambda self: None}))  # type: ignore[arg-type]  # the point of the test


# -- mode "off" ------------------------------------------------------------------------------------------------------


@pytest.fixture
def switched_off() -> Iterator[CreditService]:
    """A process in which configure(mode="off") was called."""
    with pytest.warns(match="switched off"):
        service = configure("sqlite:////nowhere/at/all.db", mode="off")
    yield service
    configure()


def test_switched_off_everything_runs_bare(switched_off: CreditService) -> None:
    """No context, no price, no database, no charge: every colour just runs."""
    charge = consume_credits("Agent", "work")

    @charge
    def function() -> int:
        return 1

    @charge
    async def coroutine() -> int:
        return 2

    @charge
    def generator() -> Any:
        received = yield 3
        return received

    @charge
    async def async_generator() -> Any:
        received = yield 4
        yield received

    async def main() -> list[int]:
        items = async_generator()
        return [await coroutine(), await anext(items), await items.asend(5)]

    assert function() == 1
    assert asyncio.run(main()) == [2, 4, 5]
    steps = generator()
    assert next(steps) == 3
    with pytest.raises(StopIteration) as stop:
        steps.send("sent")
    assert stop.value.value == "sent"
