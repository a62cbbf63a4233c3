"""Lanes: operations that wait at the same time for the same account are booked in one transaction (group commit).

Private poster threads do all the posting, so that no signal, time-out or debugger of the user's threads can
interrupt a batch between COMMIT and its answers. On PostgreSQL each account has a lane of its own, served first come
first served by at most ``pool_size`` posters: one tenant's open transaction stops nobody else. SQLite, which has one
writer anyway, has one lane. An idle runner posts at once; it never waits to fill a batch.

Who is busy hands the answers of one batch out while the database works on the next one: earlier, the callers would
take the interpreter from him just when he has something to send.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from agentcredits.rules.operations import Operation, Release, Reserve
from agentcredits.rules.posting import Outcome
from agentcredits.rules.state import HoldState
from agentcredits.runner.pending import Answer, AsyncPending, Pending, resolve

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger("agentcredits")

#: How long a process that writes without end leaves a SQLite file to others between two transactions.
PAUSE_SECONDS = 0.0002

PostBatch = Callable[[Sequence[Operation], Callable[[], None]], list[Answer]]
"""Books a batch in one transaction with retries; never raises. The second is done while the database works, if that
takes long enough; it may be called at any time and more than once.
"""


@dataclass(slots=True, eq=False)
class _Lane:
    name: str
    waiting: deque[Pending] = field(default_factory=deque)
    busy: bool = False


class _Answers:
    """The answers of a batch (or of none), handed out once: by whoever calls this first."""

    __slots__ = ("_hand_out",)

    def __init__(self, *hand_out: Callable[[], None]) -> None:
        self._hand_out = list(hand_out)

    def __call__(self) -> None:
        try:
            hand_out = self._hand_out.pop()
        except IndexError:
            return
        hand_out()


class Lanes:
    """The queue in front of the ledger and the threads that serve it.

    Args:
        post_batch: Books operations that may share a transaction.
        shared: One lane for all accounts (SQLite).
        posters: How many threads may post at once.
        batch_size: Operations in one transaction at most.
        on_answer: Sees every answer before it is handed out, and may replace it.
    """

    def __init__(
        self,
        post_batch: PostBatch,
        *,
        shared: bool,
        posters: int,
        batch_size: int,
        on_answer: Callable[[Pending, Answer], Answer],
    ) -> None:
        self._post_batch = post_batch
        self._shared = shared
        self._max_posters = 1 if shared else posters
        self._batch_size = batch_size
        self._on_answer = on_answer
        #: deque.append and SimpleQueue.put are re-entrant: finalizers and signal handlers may come at any moment.
        self._arrivals: deque[Pending] = deque()
        #: True wakes an idle poster, False ends one.
        self._calls: queue.SimpleQueue[bool] = queue.SimpleQueue()
        #: Event loops that will wake a poster when their present turn is over.
        self._turns: set[asyncio.AbstractEventLoop] = set()
        self._lock = threading.Lock()
        self._start_lock = threading.RLock()
        self._lanes: dict[str, _Lane] = {}
        self._ready: deque[_Lane] = deque()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._stopping = False

    # -- callers' side ---------------------------------------------------------------------------------------

    def put(self, pending: Pending) -> None:
        """Queue an operation; never blocks, safe in finalizers once the runner has been used."""
        self._arrivals.append(pending)
        self._calls.put(True)

    def put_in_turn(self, pending: AsyncPending) -> None:
        """Queue an operation from its event loop: all coroutines that run in this turn of the loop get one batch.

        A poster woken by the first of them would take it alone, and fight with the loop for the interpreter.
        """
        self._arrivals.append(pending)
        loop = pending.loop
        if loop not in self._turns:
            for other in tuple(self._turns):
                if other.is_closed():
                    # Its turn never ended.
                    self._turns.discard(other)
            self._turns.add(loop)
            loop.call_soon(self._end_of_turn, loop)

    def _end_of_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._turns.discard(loop)
        self._calls.put(True)

    def ensure_started(self) -> None:
        """Start the first poster; further ones start when several accounts wait."""
        if not self._threads:
            with self._start_lock:
                if not self._threads and not self._stopping:
                    self._spawn()

    @property
    def alive(self) -> bool:
        """Whether somebody is there to answer."""
        return any(thread.is_alive() for thread in self._threads)

    @property
    def current_is_poster(self) -> bool:
        """Whether the calling thread is one of the posters (which must never wait for themselves)."""
        return threading.current_thread() in self._threads

    def stop(self, timeout_seconds: float) -> None:
        """Book what is queued, then end the threads."""
        with self._start_lock:
            self._stopping = True
            threads = list(self._threads)
            for _ in threads:
                self._calls.put(False)
        for thread in threads:
            thread.join(timeout_seconds)
        self._threads = [thread for thread in threads if thread.is_alive()]
        self._serve_leftovers()
        self._stopping = False

    # -- posters' side ---------------------------------------------------------------------------------------

    def _spawn(self) -> None:
        thread = threading.Thread(target=self._serve, name=f"agentcredits-poster-{len(self._threads) + 1}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            go_on = self._calls.get()
            with self._lock:
                self._idle -= 1
                self._drain()
                lane = self._next_lane()
            answers = _Answers()
            while lane is not None:
                with self._lock:
                    batch = [lane.waiting.popleft() for _ in range(min(len(lane.waiting), self._batch_size))]
                answers = self._post(batch, answers)
                if self._shared:
                    answers()
                    if lane.waiting:
                        # The file has one writer at a time: leave a gap that another process can find.
                        time.sleep(PAUSE_SECONDS)
                with self._lock:
                    self._drain()
                    lane.busy = False
                    if lane.waiting:
                        self._ready.append(lane)
                    elif self._lanes.get(lane.name) is lane:
                        del self._lanes[lane.name]
                    lane = self._next_lane()
            answers()
            if not go_on:
                return

    def _sort(self, pending: Pending) -> None:
        name = "" if self._shared else pending.operation.organization_id
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = _Lane(name)
        if not lane.busy and not lane.waiting:
            self._ready.append(lane)
        lane.waiting.append(pending)

    def _drain(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._sort(self._arrivals.popleft())

    def _next_lane(self) -> _Lane | None:
        if not self._ready:
            return None
        lane = self._ready.popleft()
        lane.busy = True
        listening = self._idle > 0
        if not listening and len(self._threads) < self._max_posters and not self._stopping:
            # While this one posts (and perhaps waits for a lock) another one must listen.
            self._spawn()
            listening = True
        if self._ready and listening:
            self._calls.put(True)
        return lane

    def _post(self, batch: list[Pending], earlier: _Answers) -> _Answers:
        """Post a batch, hand out earlier answers meanwhile, and return its own."""
        living: list[Pending] = []
        for pending in batch:
            if pending.abandoned and not pending.settlement:
                # The caller left before anything happened: "not started".
                continue
            pending.started = True
            living.append(pending)
        if not living:
            return earlier
        try:
            answers = self._post_batch([pending.operation for pending in living], earlier)
        except BaseException as error:  # a poster must answer whatever happens, or its callers wait for ever
            logger.exception("agentcredits: posting failed unexpectedly")
            answers = [error] * len(living)
        earlier()
        return _Answers(partial(self._answer, living, answers))

    def _answer(self, pendings: list[Pending], answers: Sequence[Answer]) -> None:
        loops: dict[int, list[AsyncPending]] = {}
        for pending, raw in zip(pendings, answers, strict=True):
            answer = self._on_answer(pending, raw)
            pending.answer = answer
            delivered = pending.claim()
            if not delivered:
                self._undo(pending, answer)
            if isinstance(pending, AsyncPending):
                loops.setdefault(id(pending.loop), []).append(pending)
            pending.wake()
        for waiting in loops.values():
            try:
                waiting[0].loop.call_soon_threadsafe(resolve, waiting)
            except RuntimeError:
                # The loop is closed: nobody will ever take these answers.
                for pending in waiting:
                    if pending.answer is not None:
                        self._undo(pending, pending.answer)

    def _undo(self, pending: Pending, answer: Answer) -> None:
        release = release_of(pending.operation, answer)
        if release is not None:
            self.put(Pending(release, settlement=True))

    def _serve_leftovers(self) -> None:
        """Whatever came in while the threads ended is booked here."""
        leftovers: list[Pending] = []
        with self._lock:
            self._drain()
            with contextlib.suppress(queue.Empty):
                while True:
                    self._calls.get_nowait()
            for lane in self._lanes.values():
                leftovers.extend(lane.waiting)
                lane.waiting.clear()
            self._lanes.clear()
            self._ready.clear()
        for pending in leftovers:
            self._post([pending], _Answers())()


def release_of(operation: Operation, answer: Answer) -> Release | None:
    """The operation that undoes a hold which nobody waits for any more; None when there is nothing to undo."""
    if (
        isinstance(operation, Reserve)
        and isinstance(answer, Outcome)
        and isinstance(answer.record, HoldState)
        and not answer.replayed
    ):
        return Release(
            organization_id=operation.organization_id,
            reservation_id=answer.record.id,
            reason="the caller was cancelled",
        )
    return None
