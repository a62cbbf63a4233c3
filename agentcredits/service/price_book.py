"""The process's memory of prices."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from agentcredits.clock import Clock
from agentcredits.rules.pricing import CostRow, Price

Place = tuple[str, str, str]
"""Organization, agent type, action."""


@dataclass(frozen=True, slots=True)
class _Entry:
    rows: tuple[CostRow, ...]
    read_at: datetime
    #: When it was read, by the monotonic clock.
    started: float
    #: See ``PriceBook.steady``.
    steady: dict[int, Price] | None


class PriceBook:
    """Prices of one process, each at most ``max_age_seconds`` old, so that plain SQL on the table works.

    From half that age on one asker reads the price again while all others go on with what is known: if it simply
    ran out, every caller of that moment would read it.
    """

    def __init__(self, max_age_seconds: float) -> None:
        self._max_age_seconds = max_age_seconds
        #: Grows when everything is forgotten.
        self.generation = 0
        self._entries: dict[Place, _Entry] = {}
        #: Since when (monotonic) somebody reads a price again.
        self._renewed_since: dict[Place, float] = {}

    def get(self, place: Place, clock: Clock | None) -> tuple[tuple[CostRow, ...], datetime] | None:
        """The candidate rows and the time now; None when the caller is to read them (and ``put`` them here)."""
        known, entry = self.fresh(place, clock), self._entries.get(place)
        if known is not None or entry is None:
            return known
        age_seconds = time.monotonic() - entry.started
        if age_seconds >= self._max_age_seconds or self._renewed_since.get(place, 0.0) <= entry.started:
            self._renewed_since[place] = entry.started + age_seconds
            return None
        return entry.rows, _now(clock, entry.read_at, age_seconds)

    def fresh(self, place: Place, clock: Clock | None) -> tuple[tuple[CostRow, ...], datetime] | None:
        """What ``get`` answers while nobody is to read again yet; None: ask ``get``."""
        entry = self._entries.get(place)
        if entry is None:
            return None
        age_seconds = time.monotonic() - entry.started
        if age_seconds >= self._max_age_seconds / 2:
            return None
        return entry.rows, _now(clock, entry.read_at, age_seconds)

    def steady(self, place: Place) -> dict[int, Price] | None:
        """Prices by quantity, for whoever finds one out to note and all others to use, while ``fresh`` answers and no
        row begins or ends; None where that is not so.

        Not for a clock that can be moved.
        """
        entry = self._entries.get(place)
        if entry is None or time.monotonic() - entry.started >= self._max_age_seconds / 2:
            return None
        return entry.steady

    def put(self, place: Place, rows: tuple[CostRow, ...], read_at: datetime, started: float, generation: int) -> None:
        """Remember rows that were read by a statement which began at ``started`` (monotonic), in ``generation``."""
        if generation != self.generation:
            # A price was set while they were read.
            return
        if len(self._entries) > 10_000:
            self.clear()
        until = read_at + timedelta(seconds=self._max_age_seconds)
        is_steady = all(_is_steady(row, read_at, until) for row in rows)
        self._entries[place] = _Entry(rows, read_at, started, {} if is_steady else None)

    def clear(self) -> None:
        """Forget everything (a price was set here)."""
        self.generation += 1
        self._entries.clear()
        self._renewed_since.clear()


def _is_steady(row: CostRow, since: datetime, until: datetime) -> bool:
    """Whether a price is the same all the time; lines of a rule may have an end as well."""
    if row.rule is not None or row.problem is not None:
        return False
    return not any(moment is not None and since < moment <= until for moment in (row.valid_from, row.valid_until))


def _now(clock: Clock | None, read_at: datetime, age_seconds: float) -> datetime:
    return clock.now() if clock is not None else read_at + timedelta(seconds=age_seconds)
