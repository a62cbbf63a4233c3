"""The process's memory of prices."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

from agentcredits.clock import Clock
from agentcredits.rules.pricing import CostRow


class PriceBook:
    """Prices of one process, each at most ``max_age_seconds`` old, so that plain SQL on the table works."""

    def __init__(self, max_age_seconds: float) -> None:
        self._max_age_seconds = max_age_seconds
        self._entries: dict[tuple[str, str, str], tuple[tuple[CostRow, ...], datetime, float]] = {}

    def get(self, place: tuple[str, str, str], clock: Clock | None) -> tuple[tuple[CostRow, ...], datetime] | None:
        """The candidate rows and the time now, or None when they are not known or too old."""
        entry = self._entries.get(place)
        if entry is None:
            return None
        rows, read_at, read_monotonic = entry
        age_seconds = time.monotonic() - read_monotonic
        if age_seconds >= self._max_age_seconds:
            return None
        return rows, clock.now() if clock is not None else read_at + timedelta(seconds=age_seconds)

    def put(self, place: tuple[str, str, str], rows: tuple[CostRow, ...], read_at: datetime, started: float) -> None:
        """Remember rows that were read by a statement which began at ``started`` (monotonic)."""
        if len(self._entries) > 10_000:
            self._entries.clear()
        self._entries[place] = (rows, read_at, started)

    def clear(self) -> None:
        """Forget everything (a price was set here)."""
        self._entries.clear()
