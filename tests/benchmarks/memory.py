"""Whether a process that makes a million charges grows.

Run as a program it is that process: it charges one hot account from 128 coroutines and prints its resident memory after
the first fifth (when caches and pools are full) and at the end.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.databases import CHECKOUT
from tests.benchmarks.figures import Goal, Row
from tests.benchmarks.ours import OursLimited

CALLERS = 128
MB = 1024 * 1024


@dataclass(frozen=True)
class Growth:
    """Resident memory in bytes after some charges and after all of them."""

    wanted: int
    first_charges: int
    first_bytes: int
    charges: int
    last_bytes: int

    def row(self, database: str) -> Row:
        """The goal holds for all the charges that were wanted; cut short, the figure is only shown."""
        grown = (self.last_bytes - self.first_bytes) / MB
        what = f"{database}: memory of a process, growth from {self.first_charges:,} to {self.charges:,} charges"
        complete = self.charges >= self.wanted
        return Row(
            what, [grown], Goal(5, at_most=True) if complete else None, " MB", "" if complete else " (cut short)"
        )


def start(url: str, charges: int, most_seconds: float) -> subprocess.Popen[str]:
    """Begin in a process of its own; :func:`finish` waits for it."""
    command = [sys.executable, "-m", "tests.benchmarks.memory", url, str(charges), str(most_seconds)]
    return subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> Growth:
    """Wait for the figures."""
    output, _ = process.communicate()
    if process.returncode != 0:
        raise RuntimeError("the process whose memory is measured failed; its error stands above")
    return Growth(**json.loads(output))


def resident_bytes() -> int:
    """What the process holds in memory now."""
    gc.collect()
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    command = ["ps", "-o", "rss=", "-p", str(os.getpid())]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 1024


async def _work(url: str, wanted: int, most_seconds: float) -> Growth:
    player = OursLimited(url)
    await player.start()
    ends = time.monotonic() + most_seconds

    async def charge(count: int) -> int:
        left = iter(range(count))
        made = 0

        async def caller() -> None:
            nonlocal made
            for _ in left:
                await player.charge()
                made += 1
                if time.monotonic() > ends:
                    return

        await asyncio.gather(*[caller() for _ in range(CALLERS)])
        return made

    first = await charge(wanted // 5)
    first_bytes = resident_bytes()
    charges = first + await charge(wanted - wanted // 5)
    last_bytes = resident_bytes()
    await player.stop()
    return Growth(wanted, first, first_bytes, charges, last_bytes)


def main(arguments: Sequence[str]) -> None:
    """Charge, print the figures as JSON."""
    url, charges, most_seconds = arguments
    growth = asyncio.run(_work(url, int(charges), float(most_seconds)))
    print(json.dumps(growth.__dict__))


if __name__ == "__main__":
    main(sys.argv[1:])
