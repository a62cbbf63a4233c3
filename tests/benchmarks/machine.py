"""What machine was measured: how fast its Python and its disk are, and how much of its time went to others."""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

_AWAITS, _SYNCS = 20_000, 50
_sync = getattr(os, "fdatasync", os.fsync)
_BLOCK = bytes(8_192)
#: Linux's own account of what its processors did, in ticks.
_STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Ticks:
    """What all processors together have spent since the machine began."""

    whole: int
    stolen: int


def ticks(stat: Path = _STAT) -> Ticks | None:
    """Now; None where nobody counts."""
    if not stat.exists():
        return None
    spent = [int(count) for count in stat.read_text(encoding="ascii").splitlines()[0].split()[1:9]]
    return Ticks(whole=sum(spent), stolen=spent[7])


def stolen(before: Ticks | None, after: Ticks | None) -> float | None:
    """The share of the time between that the machine had work for and did not get; None where nobody counts."""
    if before is None or after is None or after.whole <= before.whole:
        return None
    return (after.stolen - before.stolen) / (after.whole - before.whole)


async def _nothing() -> None:
    pass


async def _await_micros() -> float:
    started = time.perf_counter_ns()
    for _ in range(_AWAITS):
        await _nothing()
    return (time.perf_counter_ns() - started) / _AWAITS / 1e3


def await_micros() -> float:
    """A bare ``await`` in µs, the median of 5."""
    return statistics.median(asyncio.run(_await_micros()) for _ in range(5))


def sync_millis(folder: Path) -> float:
    """Writing 8 KiB through to the disk, in ms, the median of 50."""
    times = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(_SYNCS):
            file.write(_BLOCK)
            started = time.perf_counter_ns()
            _sync(file.fileno())
            times.append((time.perf_counter_ns() - started) / 1e6)
    return statistics.median(times)


def told(folder: Path, share: float | None) -> str:
    """The machine in a sentence; ``share`` is what was stolen while it was measured."""
    speed = f"a bare `await` takes {await_micros():.2f} µs"
    lost = "" if share is None else f", of whose time other machines took {share:.0%}"
    return (
        f"Python {platform.python_version()} ({speed}), {os.cpu_count()} cores{lost};"
        f" 8 KiB are on the disk in {sync_millis(folder):.2f} ms."
    )
