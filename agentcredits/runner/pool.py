"""A bounded pool for long calls: its owner deals the work out, and hears of each end, in his own thread."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def run_bounded(
    items: Iterable[T],
    work: Callable[[T], R],
    *,
    workers: int,
    beat: Callable[[], object],
    every_seconds: float,
) -> Iterator[R]:
    """Do ``work`` on every item, at most ``workers`` at once; yields what it returns as it comes.

    When the iteration ends early (an error, an interrupt, a closed generator) nothing new begins, and what is under way
    is waited for: a call to a provider cannot be taken back.

    Args:
        items: The next one is asked for only when a worker is free.
        work: Runs in a thread, in a copy of the caller's context.
        workers: Threads.
        beat: Called in the caller's thread every ``every_seconds``, also when nothing ends.
        every_seconds: See ``beat``.
    """
    executor = ThreadPoolExecutor(workers, thread_name_prefix="agentcredits-media")
    running: set[Future[R]] = set()
    waiting = iter(items)
    beat_at = time.monotonic() + every_seconds
    try:
        while True:
            for item in islice(waiting, workers - len(running)):
                running.add(executor.submit(contextvars.copy_context().run, work, item))
            if not running:
                return
            finished, running = wait(running, max(0.0, beat_at - time.monotonic()), FIRST_COMPLETED)
            if time.monotonic() >= beat_at:
                beat()
                beat_at = time.monotonic() + every_seconds
            for future in finished:
                yield future.result()
    finally:
        # no more are dealt out than there are workers: what was dealt out has begun, or begins now
        executor.shutdown(wait=True)


def finish(value: Any) -> Any:
    """What a function returned; a coroutine's result (it runs on a loop of its own in this thread)."""
    if not inspect.isawaitable(value):
        return value

    async def result() -> Any:
        return await value

    return asyncio.run(result())
