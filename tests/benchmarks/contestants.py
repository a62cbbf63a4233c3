"""Those who charge: what every one of them can do, and how one slice of it is measured.

Every contestant charges one credit to one hot account per call and keeps a ledger row. The minimal transaction
(minimal.py) does nothing else; the hand-written version (hand_written.py) does what agentcredits (ours.py) does for the
caller: price, idempotency key and, in its full form, two limits.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.figures import Sample

HOT = "hot"
#: The same with limits in force: one for the organization's month, one for the department's.
HOT_LIMITED = "hot-limited"
DEPARTMENT = "content"
PLENTY = 1_000_000_000


class Contestant(ABC):
    """Something that can charge.

    Attributes:
        name: As the tables show it.
        callers: The numbers of callers that it is measured with.
    """

    name: str
    callers: tuple[int, ...]

    @abstractmethod
    async def start(self) -> None:
        """Connect, and make what is charged."""

    @abstractmethod
    async def stop(self) -> None:
        """Disconnect."""

    @abstractmethod
    async def run(self, callers: int, seconds: float) -> Sample:
        """Charge for a while."""


class Blocking(Contestant):
    """A contestant whose charge is a plain function: one caller."""

    callers = (1,)

    @abstractmethod
    def charge(self) -> None:
        """One charge."""

    async def run(self, callers: int, seconds: float) -> Sample:
        return run_blocking(self.charge, seconds)


class Coroutine(Contestant):
    """A contestant whose charge is a coroutine function: any number of callers at once."""

    @abstractmethod
    def charge(self) -> Awaitable[Any]:
        """One charge."""

    async def run(self, callers: int, seconds: float) -> Sample:
        return (await crowd(self.charge, callers, seconds)).sample()


def run_blocking(charge: Callable[[], object], seconds: float) -> Sample:
    """One caller, at least one charge."""
    times: list[float] = []
    now = started = time.perf_counter()
    while not times or now - started < seconds:
        charge()
        before, now = now, time.perf_counter()
        times.append(now - before)
    return Sample(len(times) / (now - started), statistics.median(times) * 1e3)


@dataclass(frozen=True)
class Crowd:
    """What callers did together.

    Attributes:
        counts: Charges of each caller.
        times: Seconds of each charge.
        seconds: From the first start to the last end.
    """

    counts: list[int]
    times: list[float]
    seconds: float

    def sample(self) -> Sample:
        """Rate and median time."""
        return Sample(len(self.times) / self.seconds, statistics.median(self.times) * 1e3)


async def crowd(charge: Callable[[], Awaitable[Any]], callers: int, seconds: float) -> Crowd:
    """That many callers at once, each charging until the time is over, once at least; all charges are waited for."""
    times: list[float] = []
    started = time.perf_counter()

    async def caller() -> int:
        count = 0
        now = time.perf_counter()
        while count == 0 or now - started < seconds:
            await charge()
            before, now = now, time.perf_counter()
            times.append(now - before)
            count += 1
        return count

    counts = await asyncio.gather(*[caller() for _ in range(callers)])
    return Crowd(counts, times, time.perf_counter() - started)
