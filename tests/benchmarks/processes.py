"""Several processes that charge one hot account at the same time: how fast together, and whether fairly.

Run as a program it is one of the processes: it writes "ready", then charges on every line that it reads (a number of
seconds) and answers with its callers' counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.contestants import crowd
from tests.benchmarks.databases import CHECKOUT
from tests.benchmarks.figures import Beside, Goal, Row, Sample, fairness
from tests.benchmarks.hot_account import Floor, Turns
from tests.benchmarks.minimal import FLOOR
from tests.benchmarks.ours import OursLimited

PROCESSES = 4
CALLERS = 32


@dataclass
class Together:
    """What the processes did in each round: against the floor, and how evenly."""

    entries: list[Beside] = field(default_factory=list)
    between_processes: list[float] = field(default_factory=list)
    between_callers: list[float] = field(default_factory=list)

    def add(self, beside: Beside, counts: Sequence[Sequence[int]]) -> None:
        """Add a round: the rate beside the floor, and each process's counts by caller."""
        self.entries.append(beside)
        self.between_processes.append(fairness([sum(some) for some in counts]))
        self.between_callers.append(fairness([count for some in counts for count in some]))

    def rows(self, database: str) -> list[Row]:
        """The goals."""
        what = f"{database}: {PROCESSES} processes × {CALLERS} callers, full charge"
        fair = Goal(0.9)
        return [
            Row(f"{what}, rate, against the {FLOOR}", [entry.rate for entry in self.entries], Goal(8, 15)),
            Row(f"{what}, fairness between processes (Jain's index)", self.between_processes, fair, ""),
            Row(f"{what}, fairness between callers (Jain's index)", self.between_callers, fair, ""),
        ]


async def measure(url: str, turns: Turns, seconds: float) -> Together:
    """All processes at once, a slice a round, the floor before and after each."""
    found = Together()
    player = OursLimited(url)
    await player.start()
    async with Floor(url, turns) as floor:
        with _workers(url) as workers:
            for _ in range(turns.rounds):
                await floor.begin()
                for worker in workers:
                    _say(worker, str(seconds))
                answers = [json.loads(_hear(worker)) for worker in workers]
                total = sum(sum(answer["counts"]) for answer in answers)
                sample = Sample(total / max(answer["seconds"] for answer in answers))
                found.add(await floor.end(sample), [answer["counts"] for answer in answers])
    await player.stop()
    return found


@contextlib.contextmanager
def _workers(url: str) -> Iterator[list[subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "tests.benchmarks.processes", url]
    with contextlib.ExitStack() as stack:
        workers = []
        for _ in range(PROCESSES):
            worker = subprocess.Popen(
                command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
            stack.callback(_end, worker)
            workers.append(worker)
        for worker in workers:
            _hear(worker)
        yield workers


def _say(worker: subprocess.Popen[str], line: str) -> None:
    assert worker.stdin is not None
    worker.stdin.write(line + "\n")
    worker.stdin.flush()


def _hear(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError("a worker of the benchmark ended early; its error stands above")
    return line


def _end(worker: subprocess.Popen[str]) -> None:
    """The end of its input ends a worker."""
    with contextlib.suppress(subprocess.TimeoutExpired), worker:
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait(timeout=30)
        return
    worker.kill()


async def _work(url: str) -> None:
    player = OursLimited(url)
    await player.run(1, 0.05)
    print("ready", flush=True)
    for line in sys.stdin:
        found = await crowd(player.charge, CALLERS, float(line))
        answer: dict[str, Any] = {"counts": found.counts, "seconds": found.seconds}
        print(json.dumps(answer), flush=True)
    await player.stop()


if __name__ == "__main__":
    asyncio.run(_work(sys.argv[1]))
