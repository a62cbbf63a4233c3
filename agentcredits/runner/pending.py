"""An operation on its way through the runner, and the three ways of waiting for its answer."""

from __future__ import annotations

import _thread
from typing import TYPE_CHECKING, Any

from agentcredits.rules.operations import Operation
from agentcredits.rules.posting import Outcome

if TYPE_CHECKING:
    import asyncio

Answer = Outcome | BaseException
"""An outcome of the rules, or what kept the operation from being booked."""


class Pending:
    """One operation and whoever waits for it.

    ``_claim`` holds one token: whoever takes it first decides whether the answer was delivered (the poster) or
    given up on (the caller); ``bytearray.pop`` is atomic and re-entrant, so that signal handlers cannot dead-lock, and
    the garbage collector has nothing to look at.
    """

    __slots__ = ("_claim", "answer", "lock", "operation", "settlement", "started")

    def __init__(self, operation: Operation, *, settlement: bool = False) -> None:
        self._prepare(operation, settlement)
        self.lock = _thread.allocate_lock()
        self.lock.acquire()

    def _prepare(self, operation: Operation, settlement: bool) -> None:
        self.operation = operation
        #: A hold's settlement is never dropped, whoever waits for it, and is retried when the store is away.
        self.settlement = settlement
        self.started = False
        self.answer: Answer | None = None
        self._claim = bytearray(1)

    def claim(self) -> bool:
        """Take the token; True for the first who asks."""
        try:
            self._claim.pop()
        except IndexError:
            return False
        return True

    @property
    def abandoned(self) -> bool:
        """Whether the caller is gone (only meaningful while unanswered)."""
        return self.answer is None and not self._claim

    def wake(self) -> None:
        """Let a blocking waiter go on; called once."""
        self.lock.release()


class AsyncPending(Pending):
    """An operation that a coroutine waits for."""

    __slots__ = ("future", "loop")

    def __init__(self, operation: Operation, loop: asyncio.AbstractEventLoop, *, settlement: bool = False) -> None:
        self._prepare(operation, settlement)
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()

    def wake(self) -> None:
        """Its loop is told once for the whole batch: see ``resolve``."""


def resolve(pendings: list[AsyncPending]) -> None:
    """Runs in the event loop, once per batch: hand every answer to its coroutine."""
    for pending in pendings:
        if not pending.future.done():
            pending.future.set_result(pending.answer)
