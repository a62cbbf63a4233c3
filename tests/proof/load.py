"""Load: worker processes, several threads each, that charge and keep journals; they can be killed and succeeded.

They are forked from a warm process (multiprocessing's fork server) that has imported everything and opened nothing,
so that a new one costs milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Self

from tests.proof import naive, tills
from tests.proof.books import Call, Findings, Journal, audit, read_journals

TILLS: dict[str, type[tills.Till]] = {
    "credits": tills.CreditsTill,
    "select_then_update": naive.SelectThenUpdate,
    "no_key": naive.NoKey,
    "plain_begin": naive.PlainBegin,
    "float_amounts": naive.FloatAmounts,
    "answer_first": naive.AnswerFirst,
}

THREADS = 3
_CONTEXT = multiprocessing.get_context("forkserver")
#: Whatever else is imported on first use takes longer than a worker lives.
_CONTEXT.set_forkserver_preload(
    [
        "tests.proof.load",
        "tests.proof.deaths",
        "tests.concurrency.media_worker",
        "agentcredits.store.postgresql",
        "psycopg",
        "tenacity",
    ]
)


def start_process(target: Callable[..., None], *arguments: object, **named: object) -> ForkServerProcess:
    """A process of its own, from the warm one."""
    process = _CONTEXT.Process(target=target, args=arguments, kwargs=named)
    process.start()
    return process


class Load:
    """Workers that charge one account until they are stopped.

    Args:
        till: A name in TILLS.
        url: The database.
        folder: Where the journals are kept.
        seed: What the workers' dice start from.
        workers: Processes at once.
        options: Settings of the till.
    """

    def __init__(
        self,
        till: str,
        url: str,
        folder: Path,
        *,
        seed: int,
        workers: int = 2,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._till, self._url, self._folder, self._seed = till, url, folder, seed
        self._options = dict(options or {})
        self._stop_file = folder / "stop"
        self._lives = 0
        self._processes: list[ForkServerProcess] = []
        self.workers = workers

    def __enter__(self) -> Self:
        TILLS[self._till].prepare(self._url)
        self._processes = [self._start(place) for place in range(self.workers)]
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def journal(self, place: int) -> Path:
        """The journal of all workers that ever had this place."""
        return self._folder / f"journal-{place}"

    def _start(self, place: int) -> ForkServerProcess:
        self._lives += 1
        return start_process(
            work,
            self._till,
            self._url,
            self._options,
            journal=self.journal(place),
            stop=self._stop_file,
            name=f"{place}-{self._lives}",
            seed=f"{self._seed}-{self._lives}",
        )

    def wait_for_calls(self, place: int, calls: int, *, patience_seconds: float = 60) -> None:
        """Wait until the journal of a place has grown by so many answers."""
        end = time.monotonic() + patience_seconds
        with self.journal(place).open("ab+") as journal:
            done = 0
            while (done := done + journal.read().count(b'"done"')) < calls:
                process = self._processes[place]
                assert process.exitcode is None, f"worker {place} ended by itself with {process.exitcode}"
                assert time.monotonic() < end, f"worker {place} made no progress in {patience_seconds} seconds"
                time.sleep(0.001)

    def kill(self, place: int) -> None:
        """``kill -9``; a successor takes the place and repeats what had no answer, under its key."""
        process = self._processes[place]
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"worker {place} ended by itself with {process.exitcode}"
        self._processes[place] = self._start(place)

    def finish(self) -> Findings:
        """Let the workers end in good order, and compare their journals with the ledger."""
        self._stop_file.touch()
        for process in self._processes:
            process.join(120)
            assert process.exitcode == 0, f"a worker ended with {process.exitcode}"
        told = read_journals(self.journal(place) for place in range(self.workers))
        return audit(told, TILLS[self._till].read_books(self._url))


def work(till: str, url: str, options: Mapping[str, Any], *, journal: Path, stop: Path, name: str, seed: str) -> None:
    """A worker process."""
    signal.alarm(1_500)  # nobody outlives the proof
    left = read_journals([journal]).unanswered
    place = TILLS[till](url, options)
    notes = Journal(journal)
    threads = [
        threading.Thread(
            target=_Clerk(place, notes, f"{name}-{number}", random.Random(f"{seed}-{number}"), stop).run,
            args=(left[number::THREADS],),
        )
        for number in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(0 if place.close() else 3)


class _Clerk:
    """One thread: a call after the other, and those without an answer again."""

    def __init__(self, till: tills.Till, journal: Journal, name: str, dice: random.Random, stop: Path) -> None:
        self._till, self._journal, self._name, self._dice, self._stop = till, journal, name, dice, stop
        self._refundable: list[tuple[str, int]] = []

    def run(self, left: list[Call]) -> None:
        number = 0
        while not self._stop.exists():
            number += 1
            call = self._next(f"{self._name}-{number}")
            self._journal.begin(call)
            first_try = [] if self._is_answered(call) else [call]
            left = [*(again for again in left if not self._is_answered(again, repeated=True)), *first_try]
        end = time.monotonic() + 20
        while left and time.monotonic() < end:
            left = [again for again in left if not self._is_answered(again, repeated=True)]
            time.sleep(0.01)

    def _next(self, key: str) -> Call:
        kind = self._dice.choices(("charge", "hold", "release", "refund"), (6, 3, 1, 1))[0]
        if kind == "refund" and self._refundable:
            of, micros = self._refundable.pop()
            return Call("refund", key, self._dice.randint(1, micros), of)
        # Tenths and thousandths: what floats cannot hold.
        micros = self._dice.choice((100_000, 700_000, 1_100_000, self._dice.randint(1, 3_000_000)))
        return Call("charge" if kind == "refund" else kind, key, micros)  # type: ignore[arg-type]

    def _is_answered(self, call: Call, *, repeated: bool = False) -> bool:
        try:
            booked = self._till.do(call)
        except (tills.Refused, tills.Unknown) as error:
            # That a repetition was not started says nothing of the first try.
            unknown = repeated or isinstance(error, tills.Unknown)
            self._journal.note("unknown" if unknown else "refused", call.key)
            return not unknown
        except Exception as error:  # noqa: BLE001  # what nobody was promised is what is looked for
            self._journal.note("broken", call.key, error=f"{error!r} because of {error.__cause__}"[:500])
        else:
            self._journal.note("done", call.key)
            if call.kind == "charge":
                self._refundable.append((booked, call.micros))
        return True
