"""Flows: steps of the service with calls of the caller's own functions in between, written once for both colours."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from agentcredits.errors import ConfigurationError
from agentcredits.runner.steps import Effect, Steps, adrive, drive
from agentcredits.service.core import ServiceCore

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ask:
    """Call a function of the caller's; in coroutines an awaitable that it gives is awaited."""

    function: Callable[[], Any]
    name: str


Flow = Generator[Effect | Ask, Any, T]
Surround = Callable[[], AbstractContextManager[Any]]


def run(core: ServiceCore, flow: Flow[T], surround: Surround = nullcontext) -> T:
    """Drive a flow with the blocking door; the caller's functions run inside ``surround()``.

    Raises:
        ConfigurationError: a function gave an awaitable, which nobody here can wait for.
    """

    def perform(effect: Effect | Ask) -> Any:
        if not isinstance(effect, Ask):
            return core.run(_only(effect))
        with surround():
            return refuse_awaitable(effect.function(), effect.name)

    return drive(cast(Steps[T], flow), cast(Callable[[Effect], Any], perform))


async def arun(core: ServiceCore, flow: Flow[T], surround: Surround = nullcontext) -> T:
    """Drive a flow with the coroutine door."""

    async def perform(effect: Effect | Ask) -> Any:
        if not isinstance(effect, Ask):
            return await core.arun(_only(effect))
        with surround():
            value = effect.function()
            return await value if inspect.isawaitable(value) else value

    return await adrive(cast(Steps[T], flow), cast(Any, perform))


def refuse_awaitable(value: Any, name: str) -> Any:
    """The value, unless it is one that has to be awaited: taken as it is, it would count as a yes.

    Raises:
        ConfigurationError: it is awaitable.
    """
    if not inspect.isawaitable(value):
        return value
    if inspect.iscoroutine(value):
        value.close()
    raise ConfigurationError(f"{name} gave an awaitable, and nobody waits here: make the metered function async too.")


def _only(effect: Effect) -> Steps[Any]:
    return (yield effect)
