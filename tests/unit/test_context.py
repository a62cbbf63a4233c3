"""Who pays: RequestContext, use_context, bind."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import dataclasses
import gc
import inspect
import pickle
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest

from agentcredits import (
    BaseCrew,
    InvalidInputError,
    MissingContextError,
    RequestContext,
    bind,
    current_context,
    require_context,
    use_context,
)
from agentcredits.context import surround
from agentcredits.execution import Execution, charged_execution, current_execution

A = RequestContext("a")
B = RequestContext("b")


def active() -> str | None:
    context = current_context()
    return None if context is None else context.organization_id


# -- the record ------------------------------------------------------------------------------------------------------


def test_uuids_and_texts_name_the_same_organization() -> None:
    """UUIDs become lower-case text, other texts stay as they are."""
    upper = "9F0C1B3E-0D5A-4C3E-9E0A-7B1B2C3D4E5F"
    context = RequestContext(UUID(upper), project_id=upper, user_id="Bob Smith ")
    assert context.organization_id == context.project_id == upper.lower()
    assert context.user_id == "Bob Smith "
    assert context.department_id is None


def test_every_context_gets_its_own_request_id_unless_one_is_given() -> None:
    """Rows of two requests can be told apart without anybody naming them."""
    assert RequestContext("a").request_id != RequestContext("a").request_id
    assert RequestContext("a", request_id="r-1").request_id == "r-1"


@pytest.mark.parametrize("bad", ["", None, 7, "x" * 256, "a\x00b", "\ud800"])
def test_ids_that_no_ledger_can_store_are_refused(bad: Any) -> None:
    """A context never carries what a charge could not write."""
    with pytest.raises(InvalidInputError):
        RequestContext(bad)


@pytest.mark.parametrize("bad", ["false", 0, 1, None])
def test_dry_run_takes_nothing_but_a_bool(bad: Any) -> None:
    """A text like "false" must not decide by its truth value whether credits are spent."""
    with pytest.raises(InvalidInputError, match="dry_run"):
        RequestContext("a", dry_run=bad)


def test_metadata_is_a_copy_that_cannot_be_changed() -> None:
    """Neither the caller's dict nor the context's users can change it afterwards."""
    given = {"plan": "pro"}
    context = RequestContext("a", metadata=given)
    given["plan"] = "free"
    assert dict(context.metadata) == {"plan": "pro"}
    with pytest.raises(TypeError):
        context.metadata["plan"] = "free"  # type: ignore[index]  # the point of the test
    with pytest.raises(InvalidInputError, match="mapping"):
        RequestContext("a", metadata=["plan"])  # type: ignore[arg-type]  # the point of the test


def test_a_context_is_frozen_comparable_and_travels_to_other_processes() -> None:
    """Frozen, hashable, equal by value, and the same after pickle, deepcopy and dataclasses.replace."""
    context = RequestContext("a", user_id="u", metadata={"k": [1]})
    with pytest.raises(dataclasses.FrozenInstanceError):
        context.organization_id = "b"  # type: ignore[misc]  # the point of the test
    assert pickle.loads(pickle.dumps(context)) == context == copy.deepcopy(context)
    assert hash(context) == hash(copy.deepcopy(context))
    assert dataclasses.replace(context, user_id="v").user_id == "v"
    assert dataclasses.asdict(context)["organization_id"] == "a"


def test_scopes_are_the_ids_below_the_organization() -> None:
    """The ledger gets project, department, user, run and request."""
    scopes = RequestContext("a", "p", "d", "u", request_id="r", run_id="n").scopes
    assert (scopes.project_id, scopes.department_id, scopes.user_id) == ("p", "d", "u")
    assert (scopes.request_id, scopes.run_id) == ("r", "n")


# -- use_context -----------------------------------------------------------------------------------------------------


def fail_inside(context: RequestContext) -> None:
    with use_context(context):
        assert active() == context.organization_id
        raise ZeroDivisionError


def test_blocks_nest_and_end_in_any_way() -> None:
    """The innermost block wins; after an exception the outer one is back."""
    assert active() is None
    with use_context(A) as given:
        assert given is A
        with pytest.raises(ZeroDivisionError):
            fail_inside(B)
        assert active() == "a"
    assert active() is None


def test_fields_make_a_context() -> None:
    """use_context(organization_id=...) needs no RequestContext; both at once is an error, so is neither."""
    with use_context(organization_id="a", user_id="u") as context:
        assert current_context() is context
        assert context.user_id == "u"
    with pytest.raises(InvalidInputError):
        use_context(A, organization_id="b")  # type: ignore[call-overload]  # the point of the test
    with pytest.raises(InvalidInputError):
        use_context("a")  # type: ignore[call-overload]  # the point of the test


def test_one_block_object_can_be_entered_again() -> None:
    """Nested and repeated, and by several threads at once."""
    block = use_context(A)
    with block, use_context(B), block:
        assert active() == "a"
    assert active() is None
    barrier = threading.Barrier(8)

    def enter() -> str | None:
        with block:
            barrier.wait(10)
            return active()

    with ThreadPoolExecutor(8) as pool:
        assert [future.result() for future in [pool.submit(enter) for _ in range(8)]] == ["a"] * 8


def test_blocks_that_end_out_of_order_leave_nothing_behind() -> None:
    """Ending the outer block first must not bring its context back when the inner one ends."""
    outer, inner = use_context(A), use_context(B)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert active() == "b"
    inner.__exit__(None, None, None)
    assert active() is None


async def test_coroutines_use_the_same_block() -> None:
    """``async with`` is ``with``."""
    async with use_context(A):
        assert active() == "a"
        async with use_context(B):
            await asyncio.sleep(0)
            assert active() == "b"
        assert active() == "a"
    assert active() is None


def test_a_block_that_ends_in_another_context_changes_nothing_there() -> None:
    """A suspended generator that is closed elsewhere neither fails nor touches what is active there."""

    def inside() -> Generator[None, None, None]:
        with use_context(A):
            yield

    generator = inside()
    contextvars.copy_context().run(next, generator)
    with use_context(B):
        generator.close()
        assert active() == "b"


def test_a_call_that_was_interrupted_inside_a_block_leaves_nothing_active() -> None:
    """An interrupt may keep a call from putting back what it found; the block does, at the latest."""
    with use_context(A):
        surround(B, None).__enter__()
        assert active() == "b"
    assert active() is None
    outer, inner = use_context(A), use_context(B)
    outer.__enter__()
    surround(A, None).__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert active() == "b"
    inner.__exit__(None, None, None)
    assert active() is None


def test_require_context_names_what_to_do() -> None:
    """Without an active context there is an error, never a guess."""
    with pytest.raises(MissingContextError, match="use_context"):
        require_context()
    with use_context(A):
        assert require_context() is A


def test_a_new_thread_starts_without_a_context() -> None:
    """Nothing is inherited by accident."""
    seen: list[str | None] = []
    with use_context(A):
        thread = threading.Thread(target=lambda: seen.append(active()))
        thread.start()
        thread.join()
    assert seen == [None]


# -- bind ------------------------------------------------------------------------------------------------------------


def test_bound_functions_carry_the_context_into_threads() -> None:
    """Arguments and results pass; the binding is that of the bind() call, not of the call."""

    def work(number: int, *, plus: int = 0) -> tuple[str | None, int]:
        return active(), number + plus

    with use_context(A):
        bound = bind(work)
    with ThreadPoolExecutor(1) as pool, use_context(B):
        assert pool.submit(bound, 1, plus=2).result() == ("a", 3)
        assert bound(1) == ("a", 1)
        assert active() == "b"
        assert pool.submit(active).result() is None
    assert inspect.signature(bound) == inspect.signature(work)


def test_one_bound_function_runs_in_many_threads_at_once() -> None:
    """copy_context().run refuses a second entry; a bound function does not."""
    barrier = threading.Barrier(16)

    def work() -> str | None:
        barrier.wait(10)
        return active()

    with use_context(A):
        bound = bind(work)
    with ThreadPoolExecutor(16) as pool:
        assert {future.result() for future in [pool.submit(bound) for _ in range(16)]} == {"a"}


async def test_bound_coroutine_functions_stay_coroutine_functions() -> None:
    """They run with the context in any task, and leave it there unchanged."""

    async def work() -> str | None:
        await asyncio.sleep(0)
        return active()

    with use_context(A):
        bound = bind(work)
    assert inspect.iscoroutinefunction(bound)
    with use_context(B):
        assert await asyncio.gather(bound(), bound(), work()) == ["a", "a", "b"]
        assert await bound() == "a"
        assert active() == "b"


def test_binding_nothing_is_an_error_at_once() -> None:
    """The mistake shows where it was made, not later in a thread."""
    with pytest.raises(MissingContextError, match="bind"):
        contextvars.Context().run(bind, active)


def test_generator_functions_are_refused() -> None:
    """Their body runs outside the call: binding the call would bind nothing."""

    def numbers() -> Iterator[int]:
        yield 1

    async def anumbers() -> AsyncIterator[int]:
        yield 1

    with use_context(A):
        for function in (numbers, anumbers):
            with pytest.raises(InvalidInputError, match="generator"):
                bind(function)


def test_other_context_variables_stay_the_threads_own() -> None:
    """What bind carries is who pays, not the caller's tracing or locale."""
    other = contextvars.ContextVar("other", default="unset")
    other.set("caller")
    with use_context(A):
        bound = bind(other.get)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(bound).result() == "unset"


def test_bind_carries_what_set_context_bound() -> None:
    """An agent's own context reaches the user's threads too, also after the agent served somebody else."""

    class Agent(BaseCrew):
        pass

    agent = Agent()

    def payer() -> str | None:
        context = agent.get_context()
        return None if context is None else context.organization_id

    def request(context: RequestContext) -> Any:
        agent.set_context(context)
        return bind(payer)

    bound = [contextvars.copy_context().run(request, context) for context in (A, B)]
    with ThreadPoolExecutor(1) as pool:
        assert [pool.submit(function).result() for function in bound] == ["a", "b"]
        with pytest.raises(MissingContextError, match="several organizations"):
            pool.submit(payer).result()


def test_a_dropped_coroutine_leaves_the_collecting_thread_alone() -> None:
    """The garbage collector may close a bound coroutine in any context: that context keeps its own."""

    class Forever:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def work() -> None:
        await Forever()

    with use_context(A):
        coroutine = bind(work)()
    contextvars.copy_context().run(coroutine.send, None)
    with use_context(B):
        del coroutine
        gc.collect()
        assert active() == "b"


# -- the mark of an open charge --------------------------------------------------------------------------------------


def _execution(organization_id: str, parent: Execution | None = None, *, charged: bool = True) -> Execution:
    return Execution(organization_id=organization_id, agent_type="Agent", action="work", charged=charged, parent=parent)


def test_closed_marks_are_unlinked() -> None:
    """Tasks that start their successors hand over hand do not grow a chain."""
    first = mark = _execution("a")
    for _ in range(1_000):
        successor = _execution("a", mark)
        mark.close()
        mark = successor
    assert not first.is_open
    length = 0
    link: Execution | None = mark
    while link is not None:
        link, length = link._parent, length + 1
    assert length <= 3
    assert mark.parent is None


def test_nothing_is_open_outside() -> None:
    """No mark, no charge around the caller."""
    assert current_execution() is None
    assert charged_execution("a") is None
