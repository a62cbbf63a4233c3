"""Steps: a service method written once, driven by any door.

A method is a generator that yields what it needs (a posting, a settlement, a read) and gets the answer sent back.
The blocking door, the coroutine door and the door onto the caller's own connection each drive the same generator.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection

from agentcredits.rules.operations import Commit, Operation, Release

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Post:
    """Post an operation; answered with its Outcome."""

    operation: Operation


@dataclass(frozen=True, slots=True)
class Settle:
    """Settle a handle; answered with an Outcome, a Deferred one when the store is away."""

    operation: Commit | Release


@dataclass(frozen=True, slots=True)
class Read:
    """Run a read; answered with what it returns.

    Coroutines of one loop that ask for reads of the same ``topic`` at the same time share one.
    """

    function: Callable[[Connection], Any]
    organization_id: str | None = None
    topic: Hashable = None


@dataclass(frozen=True, slots=True)
class Write:
    """Run a write that is no ledger operation (prices) in a transaction of its own."""

    function: Callable[[Connection], Any]
    organization_id: str | None = None


Effect = Post | Settle | Read | Write
Steps = Generator[Effect, Any, T]


def drive(steps: Steps[T], perform: Callable[[Effect], Any]) -> T:
    """Drive steps with a blocking performer."""
    try:
        effect = next(steps)
        while True:
            try:
                answer = perform(effect)
            except BaseException as error:  # noqa: BLE001 - the steps decide what an error means
                effect = steps.throw(error)
            else:
                effect = steps.send(answer)
    except StopIteration as stop:
        value: T = stop.value
        return value


async def adrive(steps: Steps[T], perform: Callable[[Effect], Awaitable[Any]]) -> T:
    """Drive steps with a coroutine performer."""
    try:
        effect = next(steps)
        while True:
            try:
                answer = await perform(effect)
            except BaseException as error:  # noqa: BLE001 - the steps decide what an error means
                effect = steps.throw(error)
            else:
                effect = steps.send(answer)
    except StopIteration as stop:
        value: T = stop.value
        return value
