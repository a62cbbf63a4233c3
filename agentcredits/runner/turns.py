"""Turns at the connections: who came first goes first.

A pool wakes one of those who wait, yet gives what came back to whoever asks before the woken one runs; under many
threads some wait until they time out while others go twice.
"""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType

from sqlalchemy.exc import TimeoutError as PoolTimeoutError


class Turns:
    """So many at once as there are places; a place that becomes free is handed to whoever has waited longest.

    Args:
        places: How many may be inside at once.
        timeout_seconds: How long somebody waits at most.
    """

    def __init__(self, places: int, timeout_seconds: float) -> None:
        self._places = places
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._inside: set[Turn] = set()
        #: Nobody waits while a place is free.
        self._waiting: deque[Turn] = deque()

    def take(self) -> Turn:
        """A turn, for one ``with``."""
        return Turn(self)

    def come(self, turn: Turn) -> None:
        """Wait for a place.

        Raises:
            sqlalchemy.exc.TimeoutError: none became free, as from a pool.
        """
        with self._lock:
            if len(self._inside) < self._places:
                self._inside.add(turn)
                return
            turn.called.acquire()
            self._waiting.append(turn)
        if not turn.called.acquire(timeout=self._timeout_seconds):
            raise PoolTimeoutError(
                f"{self._places} connections were in use for {self._timeout_seconds:g} s (AGENTCREDITS_POOL_SIZE)"
            )

    def leave(self, turn: Turn) -> None:
        """Give a place back, or wait no longer."""
        with self._lock:
            if turn in self._inside:
                self._inside.remove(turn)
            elif turn in self._waiting:
                self._waiting.remove(turn)
            while self._waiting and len(self._inside) < self._places:
                following = self._waiting.popleft()
                self._inside.add(following)
                following.called.release()


class Turn:
    """One caller's place, or his wait for one."""

    __slots__ = ("_turns", "called")

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.called = threading.Lock()

    def __enter__(self) -> None:
        try:
            self._turns.come(self)
        except BaseException:
            # Interrupted or too late; a place may have been handed over in the meantime.
            self._turns.leave(self)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._turns.leave(self)
