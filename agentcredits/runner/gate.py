"""The gate through which every use of a connection goes, so that a fork never happens in the middle of one.

SQLite keeps its locks in a table of the process. A child that inherits an open connection believes for ever that
its own process holds the lock, or writes into a log that the parent has removed. So a fork waits until no connection
is in use, and the idle ones are closed before it.
"""

from __future__ import annotations

import logging
import threading
from types import TracebackType

logger = logging.getLogger("agentcredits")

WAIT_SECONDS = 30.0


class Gate:
    """Counts who is inside; can be closed while nobody is."""

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.Lock())
        self._inside = 0
        self._closed = False

    def __enter__(self) -> None:
        with self._condition:
            while self._closed:
                self._condition.wait()
            self._inside += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._condition:
            self._inside -= 1
            if not self._inside:
                self._condition.notify_all()

    def close(self) -> None:
        """Let nobody in any more, and wait until nobody is inside."""
        with self._condition:
            self._closed = True
            if not self._condition.wait_for(lambda: not self._inside, WAIT_SECONDS):
                logger.warning("agentcredits: forking while a connection to the credits database is in use")

    def open(self) -> None:
        """Let everybody in again."""
        with self._condition:
            self._closed = False
            self._condition.notify_all()
