"""What type checkers must see in code that uses agentcredits. Checked by test_types.py, never run.

``assert_type`` lines must hold; every line that ends in ``# error: <code>`` must give exactly that mypy error, and no
other line may give one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from decimal import Decimal
from typing import Any, assert_type
from uuid import UUID

from agentcredits import (
    BaseCrew,
    Decision,
    DryRunResult,
    RequestContext,
    Reservation,
    SyncReservation,
    Transaction,
    bind,
    consume_credits,
    current_context,
    require_context,
    track_agent_usage,
    use_context,
)

# -- signatures and results stay -------------------------------------------------------------------------------------


@consume_credits("Agent", "work")
def function(topic: str, *, length: int = 1) -> list[str]:
    return [topic] * length


@consume_credits("Agent", "work")
async def coroutine(topic: str) -> int:
    return len(topic)


@consume_credits("Agent", "work", quantity=lambda topic: len(topic) + 1, estimate="2.5", actual=lambda result: 1)
def generator(topic: str) -> Generator[int, str, bytes]:
    received = yield 1
    return received.encode()


@consume_credits("Agent", "work", on_close="release", nested="included", metadata={"a": 1})
async def async_generator(topic: str) -> AsyncGenerator[int, str]:
    yield 1


assert_type(function("tea", length=2), list[str])
pending: list[object] = [assert_type(coroutine("tea"), Coroutine[Any, Any, int])]
assert_type(generator("tea"), Generator[int, str, bytes])
assert_type(async_generator("tea"), AsyncGenerator[int, str])


@consume_credits("Agent", "work", charge="once_per_args", key=lambda topic, size: [topic, str(size)])
def once(topic: str, size: Decimal) -> list[str]:
    return [topic]


@consume_credits("Agent", "work", charge="once_per_args", on_exhausted="dry_run")
async def once_or_plan(topic: str) -> int:
    return 1


assert_type(once("tea", Decimal(1)), list[str])
pending.append(assert_type(once_or_plan("tea"), Coroutine[Any, Any, int | DryRunResult]))
once("tea", 1)  # error: arg-type
consume_credits("Agent", "work", charge="once")  # error: call-overload

function(1)  # error: arg-type
function("tea", 2)  # error: call-arg
function("tea", size=2)  # error: call-arg
function("tea").append(3)  # error: arg-type
function()  # error: call-arg
coroutine("tea") + 1  # error: operator
wrong: int = function("tea")  # error: assignment


async def awaits() -> None:
    assert_type(await coroutine("tea"), int)
    async for item in async_generator("tea"):
        assert_type(item, int)


# -- methods ---------------------------------------------------------------------------------------------------------


@track_agent_usage("Agent", unpriced="deny", include=["tracked"])
class Agent(BaseCrew):
    agent_type = "Agent"

    @consume_credits(agent_type=None, action="method")
    def method(self, topic: str) -> bytes:
        return topic.encode()

    @consume_credits("Agent", "method")
    async def amethod(self, topic: str) -> bytes:
        return topic.encode()

    @classmethod
    @consume_credits("Agent", "made")
    def made(cls, number: int) -> str:
        return "x" * number

    @staticmethod
    @consume_credits("Agent", "static")
    def static(number: int) -> str:
        return "x" * number

    def tracked(self, topic: str) -> float:
        return 1.0


agent = Agent()
assert_type(agent, Agent)
assert_type(agent.set_context(RequestContext("acme")), Agent)
assert_type(agent.get_context(), RequestContext | None)
assert_type(agent.method("tea"), bytes)
pending.append(assert_type(agent.amethod("tea"), Coroutine[Any, Any, bytes]))
assert_type(Agent.made(2), str)
assert_type(agent.static(2), str)
assert_type(agent.tracked("tea"), float)
agent.method(1)  # error: arg-type
agent.tracked()  # error: call-arg
agent.agent_type = 3  # error: assignment
agent.set_context("acme")  # error: arg-type


# -- on_exhausted widens the result ----------------------------------------------------------------------------------


@consume_credits("Agent", "work", on_exhausted="dry_run")
def dry_function(topic: str) -> dict[str, str]:
    return {"url": topic}


@consume_credits("Agent", "work", on_exhausted="dry_run")
async def dry_coroutine(topic: str) -> dict[str, str]:
    return {"url": topic}


@consume_credits("Agent", "work", on_exhausted="dry_run")
def dry_generator(topic: str) -> Generator[int, str, bytes]:
    yield 1
    return b""


@consume_credits("Agent", "work", on_exhausted="dry_run")
def dry_iterator(topic: str) -> Iterator[int]:
    yield 1


@consume_credits("Agent", "work", on_exhausted="dry_run")
async def dry_async_generator(topic: str) -> AsyncGenerator[int, str]:
    yield 1


@consume_credits("Agent", "work", on_exhausted="dry_run")
async def dry_async_iterator(topic: str) -> AsyncIterator[int]:
    yield 1


assert_type(dry_function("tea"), dict[str, str] | DryRunResult)
pending.append(assert_type(dry_coroutine("tea"), Coroutine[Any, Any, dict[str, str] | DryRunResult]))
assert_type(dry_generator("tea"), Generator[int | DryRunResult, str, bytes | None])
assert_type(dry_iterator("tea"), Iterator[int | DryRunResult])
assert_type(dry_async_generator("tea"), AsyncGenerator[int | DryRunResult, str])
assert_type(dry_async_iterator("tea"), AsyncIterator[int | DryRunResult])
len(dry_function("tea"))  # error: arg-type
dry_function(1)  # error: arg-type


async def awaits_dry() -> None:
    len(await dry_coroutine("tea"))  # error: arg-type
    result = await dry_coroutine("tea")
    if not isinstance(result, DryRunResult):
        assert_type(result, dict[str, str])


def fallback(plan: DryRunResult) -> None:
    assert_type(plan.amount, Decimal)


async def afallback(plan: DryRunResult) -> bytes:
    return b""


@consume_credits("Agent", "work", on_exhausted=fallback)
def falls_back(topic: str) -> int:
    return 1


@consume_credits("Agent", "work", on_exhausted=afallback)
async def falls_back_async(topic: str) -> int:
    return 1


class DryAgent:
    @consume_credits("Agent", "work", on_exhausted="dry_run")
    def method(self, topic: str) -> int:
        return 1


assert_type(falls_back("tea"), int | None)
pending.append(assert_type(falls_back_async("tea"), Coroutine[Any, Any, int | bytes]))
assert_type(DryAgent().method("tea"), int | DryRunResult)
DryAgent().method(1)  # error: arg-type

consume_credits("Agent", "work", on_exhausted="ignore")  # error: call-overload
consume_credits("Agent", "work", nested="free")  # error: call-overload
consume_credits("Agent")  # error: call-overload
track_agent_usage("Agent", unpriced="free")  # error: arg-type
track_agent_usage("Agent")(function)  # error: type-var

# -- contexts --------------------------------------------------------------------------------------------------------

context = RequestContext(UUID(int=1), project_id=UUID(int=2), user_id="u", metadata={"a": 1})
assert_type(context.organization_id, str)
assert_type(context.project_id, str | None)
assert_type(current_context(), RequestContext | None)
assert_type(require_context(), RequestContext)
context.user_id = "v"  # error: misc
RequestContext(3)  # error: arg-type
RequestContext()  # error: call-arg
use_context("acme")  # error: call-overload
use_context(organization=3)  # error: call-overload

with use_context(context) as active, use_context(organization_id=UUID(int=1), dry_run=True):
    assert_type(active, RequestContext)


async def blocks() -> None:
    async with use_context(context) as inside:
        assert_type(inside, RequestContext)


def work(topic: str) -> int:
    return 1


async def awork(topic: str) -> int:
    return 1


assert_type(bind(work)("tea"), int)
pending.append(assert_type(bind(awork)("tea"), Coroutine[Any, Any, int]))
bind(work)(1)  # error: arg-type
callback: Callable[[str], int] = bind(work)


# -- BaseCrew --------------------------------------------------------------------------------------------------------


async def credits_of(crew: Agent) -> None:
    assert_type(await crew.check_credits_available("work"), Decision)
    assert_type(await crew.consume_credits_for_action("work", {"a": 1}, 2), Transaction)
    assert_type(crew.consume_credits_for_action_sync("work", quantity="2.5"), Transaction)
    async with crew.reserve_credits_for_action("work", amount=0.5) as hold:
        assert_type(hold, Reservation)
    assert_type(await crew.reserve_credits_for_action("work"), Reservation)
    with crew.reserve_credits_for_action_sync("work") as held:
        assert_type(held, SyncReservation)
    await crew.consume_credits_for_action()  # error: call-arg
    await crew.consume_credits_for_action("work", metadata="tea")  # error: arg-type
