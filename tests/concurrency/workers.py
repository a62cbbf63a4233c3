"""Programs that the concurrency tests run in processes of their own: ``python workers.py <name> <json arguments>``.

Each prints JSON lines; :func:`start` and :func:`finish` are the tests' side.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, cast

from sqlalchemy import Engine

from agentcredits.errors import CreditsError, InsufficientCreditsError
from agentcredits.service import CreditService, SyncCreditService
from agentcredits.store.dialects import make_engine, normalise_url

# -- the tests' side ---------------------------------------------------------------------------------------------


def own_engine(url: str) -> Engine:
    """An engine as the library makes it, but not shared with anybody: a service on it has a runner of its own."""
    return make_engine(normalise_url(url), pool_size=5, lock_timeout_seconds=5, sqlite_synchronous="FULL")


def start(name: str, **arguments: Any) -> subprocess.Popen[str]:
    """Start a worker; its standard output carries JSON lines."""
    return subprocess.Popen(
        [sys.executable, str(Path(__file__)), name, json.dumps(arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _kill_with_children(process: subprocess.Popen[str]) -> tuple[str, str]:
    """End the worker and what it forked; gives what they said."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate(timeout=30)


def next_line(process: subprocess.Popen[str]) -> Any:
    """Wait for the worker's next line."""
    line = cast(IO[str], process.stdout).readline()
    if not line:
        _, errors = _kill_with_children(process)
        raise AssertionError(f"the worker ended without an answer:\n{errors}")
    return json.loads(line)


def finish(process: subprocess.Popen[str], *, timeout: float = 120) -> Any:
    """Wait for the worker's end; gives its last line. A hang or a crash fails with the worker's own traceback."""
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        _, errors = _kill_with_children(process)
        raise AssertionError(f"the worker hung:\n{errors}") from None
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


def finish_all(processes: Sequence[subprocess.Popen[str]], *, timeout: float = 120) -> list[Any]:
    """``finish`` all, beside each other: a worker whose warnings nobody reads stands still once its pipe is full."""
    with ThreadPoolExecutor(len(processes)) as threads:
        return list(threads.map(lambda process: finish(process, timeout=timeout), processes))


def kill(process: subprocess.Popen[str]) -> None:
    """``kill -9``."""
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)


# -- the workers -------------------------------------------------------------------------------------------------


def say(value: Any) -> None:
    """One JSON line, at once."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def charge_until_refused(url: str, organization: str, coroutines: int) -> None:
    """Coroutines that charge one credit each until the account is empty."""

    async def charge(service: CreditService) -> int:
        charged = 0
        while True:
            try:
                await service.consume_credits(organization_id=organization, amount=1)
            except InsufficientCreditsError:
                return charged
            charged += 1

    async def run() -> list[int]:
        async with CreditService(url) as service:
            return list(await asyncio.gather(*[charge(service) for _ in range(coroutines)]))

    say({"charged": asyncio.run(run())})


def send_duplicates(url: str, organization: str, coroutines: int, charges: list[str]) -> None:
    """For each charge a round of a charge, a hold, a grant and a refund, each sent by all coroutines with one key."""

    async def send(service: CreditService, number: int, charge: str) -> dict[str, list[tuple[str, bool]]]:
        calls: dict[str, Any] = {
            "consume": lambda key: service.consume_credits(organization_id=organization, amount=3, idempotency_key=key),
            "reserve": lambda key: service.reserve_credits(organization_id=organization, amount=2, idempotency_key=key),
            "grant": lambda key: service.grant_credits(organization, 4, idempotency_key=key),
            "refund": lambda key: service.refund_credits(charge, 1, organization_id=organization, idempotency_key=key),
        }
        found: dict[str, list[tuple[str, bool]]] = {}
        for name, call in calls.items():
            key = f"{name} {number}"
            answers: list[Any] = await asyncio.gather(*[_awaited(call(key)) for _ in range(coroutines)])
            records = [getattr(answer, "record", answer) for answer in answers]
            found[key] = [(record.id, record.replayed) for record in records]
        return found

    async def run() -> dict[str, list[tuple[str, bool]]]:
        async with CreditService(url) as service:
            return {
                key: answers
                for number, charge in enumerate(charges)
                for key, answers in (await send(service, number, charge)).items()
            }

    say({"answers": asyncio.run(run())})


async def _awaited(call: Any) -> Any:
    return await call


def die_in_body(url: str, organization: str, ttl: float) -> None:
    """Reserve with a heart-beat, say so, and work until somebody kills the process."""
    service = SyncCreditService(url)
    with service.reserve_credits(organization_id=organization, amount=10, ttl=timedelta(seconds=ttl)) as hold:
        say({"id": hold.id})
        time.sleep(600)


def lock_sqlite(path: str, seconds: float) -> None:
    """Hold the file's only write lock for a while, and on until ``finish`` closes the standard input."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA busy_timeout = 10000")
    connection.execute("BEGIN EXCLUSIVE")
    say({"locked": True})
    time.sleep(seconds)
    sys.stdin.read()
    connection.execute("ROLLBACK")
    say({"locked": False})


class Interrupted(BaseException):
    """What the timer's handler raises, as KeyboardInterrupt or a soft time limit would be."""


class NaiveLeader:
    """A plain leader/follower queue whose leader serves one batch and hands on, but not when it is interrupted.

    It is what must be caught. Every caller leads in its turn, so the interrupted one is sure to.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: list[_Turn] = []
        self._busy = False

    def consume_credits(self, **_: object) -> None:
        turn = _Turn()
        with self._lock:
            if self._busy:
                self._queue.append(turn)
            else:
                self._busy = turn.leads = True
        if not turn.leads:
            turn.come.wait()
        if not turn.leads:
            return
        with self._lock:
            served, self._queue = self._queue, []
        time.sleep(0.002)
        for other in served:
            other.come.set()
        with self._lock:
            self._busy = bool(self._queue)
            if self._busy:
                following = self._queue.pop(0)
                following.leads = True
                following.come.set()


class _Turn:
    """A caller of ``NaiveLeader``: served when ``come`` is set, or the next that ``leads``."""

    def __init__(self) -> None:
        self.come = threading.Event()
        self.leads = False


def _be_interrupted(service: Any, organization: str, count: int, patience: float, holds_too: bool) -> dict[str, Any]:
    """Charge until ``count`` timer interrupts were raised in it; a call that outlasts ``patience`` seconds hangs."""

    def on_alarm(*_: object) -> None:
        raise Interrupted

    def hold_and_work() -> None:
        with service.reserve_credits(organization_id=organization, amount=3, ttl=timedelta(seconds=1.5)):
            pass

    signal.signal(signal.SIGALRM, on_alarm)
    dice = random.Random(0)
    interrupted = calls = holds = 0
    try:
        while interrupted < count:
            hold = holds_too and (interrupted + calls) % 4 == 3
            holds += hold
            calls += not hold
            key = f"main-{calls}"
            try:
                signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.0001, 0.006))
                if hold:
                    hold_and_work()
                else:
                    service.consume_credits(organization_id=organization, amount=1, idempotency_key=key)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupted:
                interrupted += 1
            signal.setitimer(signal.ITIMER_REAL, patience)
            if not hold:
                service.consume_credits(organization_id=organization, amount=1, idempotency_key=key)
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Interrupted:
        return {"calls": calls, "holds": holds, "main_hung": True}
    return {"calls": calls, "holds": holds, "main_hung": False}


def interrupts(url: str, organization: str, count: int, followers: int, patience: float, naive: bool = False) -> None:
    """A main thread that is interrupted in its charges by a timer, while other threads charge undisturbed.

    Each interrupted charge is repeated under its key, and every fourth call is a hold instead.
    """
    faulthandler.dump_traceback_later(800, exit=True)
    service: Any = NaiveLeader() if naive else SyncCreditService(url)
    stop = threading.Event()
    charged = [0] * followers
    failures: list[str] = []

    def follow(place: int) -> None:
        dice = random.Random(place)
        while not stop.is_set():
            try:
                service.consume_credits(organization_id=organization, amount=1)
            except BaseException as error:
                failures.append(repr(error))
                raise
            charged[place] += 1
            time.sleep(dice.random() * 0.01)

    threads = [threading.Thread(target=follow, args=(place,), daemon=True) for place in range(followers)]
    for thread in threads:
        thread.start()
    report = _be_interrupted(service, organization, count, patience, holds_too=not naive)
    stop.set()
    end = time.monotonic() + patience
    for thread in threads:
        thread.join(timeout=max(0.0, end - time.monotonic()))
    if not naive and not report["main_hung"]:
        service.flush()
    say(
        {
            **report,
            "followers": sum(charged),
            "slowest": min(charged),
            "hanging": sum(thread.is_alive() for thread in threads),
            "failures": failures,
        }
    )
    faulthandler.cancel_dump_traceback_later()
    os._exit(0)


def _child(work: Any) -> int:
    """Fork; the child does ``work`` and ends with 0 when it went well. Gives the child's pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.alarm(40)  # ends a child that hangs; faulthandler's watchdog does not survive a fork
        work()
    except BaseException as error:  # noqa: BLE001  # a child never returns into the parent's code
        sys.stderr.write(f"the child failed: {error!r}\n")
        os._exit(1)
    os._exit(0)


def _wait(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def fork_after_use(url: str, organization: str, children: int) -> None:
    """Fork again and again while four threads charge; every child charges by both doors."""
    faulthandler.dump_traceback_later(240, exit=True)
    service = SyncCreditService(url)
    service.consume_credits(organization_id=organization, amount=1)

    async def warm_up() -> None:
        await CreditService(url).consume_credits(organization_id=organization, amount=1)

    asyncio.run(warm_up())
    stop = threading.Event()
    charged = [0] * 4

    def work(place: int) -> None:
        while not stop.is_set():
            service.consume_credits(organization_id=organization, amount=1)
            charged[place] += 1

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()

    def in_child(number: int) -> None:
        service.consume_credits(organization_id=organization, amount=1, idempotency_key=f"sync-{number}")

        async def run() -> None:
            face = CreditService(url)
            await face.consume_credits(organization_id=organization, amount=1, idempotency_key=f"async-{number}")

        asyncio.run(run())

    exits = []
    for number in range(children):
        time.sleep(0.02)
        exits.append(_wait(_child(lambda number=number: in_child(number))))
    stop.set()
    for thread in threads:
        thread.join()
    service.consume_credits(organization_id=organization, amount=1)
    say({"exits": exits, "charged": 3 + sum(charged) + 2 * children})


def fork_in_body(url: str, organization: str, ttl: float) -> None:
    """Fork inside a held body: the child leaves the block too, the parent works on for three times the ttl."""
    faulthandler.dump_traceback_later(100, exit=True)
    service = SyncCreditService(url)
    with service.reserve_credits(organization_id=organization, amount=5, ttl=timedelta(seconds=ttl)) as hold:

        def in_child() -> None:
            try:
                hold.__exit__(None, None, None)
            except CreditsError as error:
                sys.stderr.write(f"the child was told: {error}\n")
            service.flush()

        exit_code = _wait(_child(in_child))
        say({"exit": exit_code, "id": hold.id})
        time.sleep(3 * ttl)
    say({"exit": exit_code, "id": hold.id})


def orphan_of_a_body(url: str, organization: str, ttl: float) -> None:
    """Fork inside a held body, then the parent dies by kill -9: the child lives on and must not keep the hold."""
    service = SyncCreditService(url)
    with service.reserve_credits(organization_id=organization, amount=5, ttl=timedelta(seconds=ttl)) as hold:

        def in_child() -> None:
            service.consume_credits(organization_id=organization, amount=1)
            say({"child": os.getpid(), "id": hold.id})
            time.sleep(4 * ttl)

        _child(in_child)
        time.sleep(0.5 * ttl)
        os.kill(os.getpid(), signal.SIGKILL)


WORKERS = {
    worker.__name__: worker
    for worker in (
        charge_until_refused,
        send_duplicates,
        die_in_body,
        lock_sqlite,
        interrupts,
        fork_after_use,
        fork_in_body,
        orphan_of_a_body,
    )
}

if __name__ == "__main__":
    WORKERS[sys.argv[1]](**json.loads(sys.argv[2]))
