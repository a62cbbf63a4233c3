"""The keeper: one thread per runner that renews live holds and books settlements that found the store away.

A hold is renewed every third of its time-to-live while its body runs, to now + ttl (never relative to its old end).
A dead process renews nothing, so its holds end by themselves and the time-to-live may stay short.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from agentcredits.rules.operations import Commit, Extend, Operation, Release

logger = logging.getLogger("agentcredits")

FIRST_RETRY_SECONDS = 0.25
LONGEST_RETRY_SECONDS = 5.0


@dataclass(slots=True)
class _Live:
    organization_id: str
    reservation_id: str
    ttl_seconds: float
    renew_at: float
    handle: weakref.ref[object]


@dataclass(slots=True)
class _Deferred:
    operation: Commit | Release
    retry_at: float
    delay_seconds: float
    under_way: bool = False


class Keeper:
    """Renews and retries.

    Args:
        submit: Queues an operation without waiting; settlements are answered to ``settled`` or ``defer``.
    """

    def __init__(self, submit: Callable[[Operation], None]) -> None:
        self._submit = submit
        self._live: dict[str, _Live] = {}
        self._deferred: dict[str, _Deferred] = {}
        self._wake: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._planned = float("inf")
        self._thread: threading.Thread | None = None
        self._start_lock = threading.RLock()

    # -- live holds ------------------------------------------------------------------------------------------

    def begin(self, handle: object, organization_id: str, reservation_id: str, ttl: timedelta) -> None:
        """Renew this hold from now on, as long as somebody has its handle."""
        seconds = ttl.total_seconds()
        renew_at = time.monotonic() + seconds / 3
        live = _Live(organization_id, reservation_id, seconds, renew_at, weakref.ref(handle))
        self._live[reservation_id] = live
        self._look_at(live.renew_at)

    def end(self, reservation_id: str) -> None:
        """The hold is settled, or gone."""
        self._live.pop(reservation_id, None)
        self._deferred.pop(reservation_id, None)

    def end_renewal(self, reservation_id: str) -> None:
        """The hold cannot be renewed any more; a settlement that is kept for it stays."""
        self._live.pop(reservation_id, None)

    @property
    def live_count(self) -> int:
        """How many holds are being renewed."""
        return len(self._live)

    # -- settlements that must not be lost -------------------------------------------------------------------

    def defer(self, operation: Commit | Release) -> None:
        """The store was away: try again until it is booked, at growing intervals."""
        known = self._deferred.get(operation.reservation_id)
        delay = FIRST_RETRY_SECONDS if known is None else min(known.delay_seconds * 2, LONGEST_RETRY_SECONDS)
        at = time.monotonic() + delay
        self._deferred[operation.reservation_id] = _Deferred(operation, at, delay)
        if known is None:
            logger.warning(
                "agentcredits: the store is away; the settlement of reservation %s of organization %s is kept"
                " and tried again",
                operation.reservation_id,
                operation.organization_id,
            )
        self._look_at(at)

    @property
    def deferred(self) -> list[Commit | Release]:
        """Settlements that are still to be booked."""
        return [entry.operation for entry in list(self._deferred.values())]

    # -- the thread ------------------------------------------------------------------------------------------

    def stop(self, timeout_seconds: float) -> None:
        """End the thread; what is deferred stays listed."""
        thread = self._thread
        if thread is not None:
            self._wake.put(False)
            thread.join(timeout_seconds)
            self._thread = None

    def _look_at(self, at: float) -> None:
        if self._thread is None:
            with self._start_lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="agentcredits-keeper", daemon=True)
                    self._thread.start()
        if at < self._planned:
            self._wake.put(True)

    def _run(self) -> None:
        while True:
            self._planned = self._next_at()
            wait = None if self._planned == float("inf") else max(0.0, self._planned - time.monotonic())
            try:
                if not self._wake.get(timeout=wait):
                    return
                # Somebody has something earlier, or several have: one look serves them all.
                while True:
                    if not self._wake.get_nowait():
                        return
            except queue.Empty:
                self._work()

    def _next_at(self) -> float:
        times = [live.renew_at for live in list(self._live.values())]
        times += [entry.retry_at for entry in list(self._deferred.values()) if not entry.under_way]
        return min(times, default=float("inf"))

    def _work(self) -> None:
        now = time.monotonic()
        for live in list(self._live.values()):
            if live.handle() is None and live.reservation_id not in self._deferred:
                # Dropped unsettled (an interrupt at the wrong moment): it ends with its time-to-live.
                self._live.pop(live.reservation_id, None)
            elif live.renew_at <= now:
                live.renew_at = now + live.ttl_seconds / 3
                self._submit(
                    Extend(
                        organization_id=live.organization_id,
                        reservation_id=live.reservation_id,
                        ttl=timedelta(seconds=live.ttl_seconds),
                    )
                )
        for entry in list(self._deferred.values()):
            if entry.retry_at <= now and not entry.under_way:
                entry.under_way = True
                self._submit(entry.operation)
