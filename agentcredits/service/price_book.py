"""The process's memory of prices."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

from agentcredits.clock import Clock
from agentcredits.rules.pricing import CostRow

Place = tuple[str, str, str]
"""Organization, agent type, action."""


class PriceBook:
    """Prices of one process, each at most ``max_age_seconds`` old, so that plain SQL on the table works.

    From half that age on one asker reads the price again while all others go on with what is known: if it simply
    ran out, every caller of that moment would read it.
    """

    def __init__(self, max_age_seconds: float) -> None:
        self._max_age_seconds = max_age_seconds
        #: Grows when everything is forgotten.
        self.generation = 0
        self._entries: dict[Place, tuple[tuple[CostRow, ...], datetime, float]] = {}
        #: Since when (monotonic) somebody reads a price again.
        self._renewed_since: dict[Place, float] = {}

    def get(self, place: Place, clock: Clock | None) -> tuple[tuple[CostRow, ...], datetime] | None:
        """The candidate rows and the time now; None when the caller is to read them (and ``put`` them here)."""
        known, entry = self.fresh(place, clock), self._entries.get(place)
        if known is not None or entry is None:
            return known
        rows, read_at, read_monotonic = entry
        age_seconds = time.monotonic() - read_monotonic
        if age_seconds >= self._max_age_seconds or self._renewed_since.get(place, 0.0) <= read_monotonic:
            self._renewed_since[place] = read_monotonic + age_seconds
            return None
        return rows, _now(clock, read_at, age_seconds)

    def fresh(self, place: Place, clock: Clock | None) -> tuple[tuple[CostRow, ...], datetime] | None:
        """What ``get`` answers while nobody is to read again yet; None: ask ``get``."""
        entry = self._entries.get(place)
        if entry is None:
            return None
        rows, read_at, read_monotonic = entry
        age_seconds = time.monotonic() - read_monotonic
        if age_seconds >= self._max_age_seconds / 2:
            return None
        return rows, _now(clock, read_at, age_seconds)

    def put(self, place: Place, rows: tuple[CostRow, ...], read_at: datetime, started: float, generation: int) -> None:
        """Remember rows that were read by a statement which began at ``started`` (monotonic), in ``generation``."""
        if generation != self.generation:
            # A price was set while they were read.
            return
        if len(self._entries) > 10_000:
            self.clear()
        self._entries[place] = (rows, read_at, started)

    def clear(self) -> None:
        """Forget everything (a price was set here)."""
        self.generation += 1
        self._entries.clear()
        self._renewed_since.clear()


def _now(clock: Clock | None, read_at: datetime, age_seconds: float) -> datetime:
    return clock.now() if clock is not None else read_at + timedelta(seconds=age_seconds)
