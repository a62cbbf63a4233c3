"""The periods of recurring grants, and what becomes of a period's credits at its end. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from agentcredits.model import Lasting
from agentcredits.rules.windows import Window

Every = Literal["day", "week", "month"]


@dataclass(frozen=True, slots=True)
class RolloverTerms:
    """What of a period's grant is carried over; see :class:`agentcredits.Rollover`."""

    maximum_micros: int | None
    minimum_micros: int
    expires_after: Lasting

    def carried_micros(self, remaining_micros: int, earlier_micros: int) -> int:
        """How much of what remains is carried over, when earlier rollovers still have ``earlier_micros``."""
        if remaining_micros < self.minimum_micros:
            return 0
        if self.maximum_micros is None:
            return remaining_micros
        return max(0, min(remaining_micros, self.maximum_micros - earlier_micros))


def periods(every: Every, anchor: datetime, tz: str) -> Window:
    """Months from the anchor's day and time; days and weeks (from Monday) as the calendar of the zone has them."""
    return Window.anniversary(anchor, tz) if every == "month" else Window.calendar(every, tz)


def end_of(lasting: Lasting, start: datetime, period_end: datetime) -> datetime | None:
    """When credits end that can be used from ``start`` on, in a period that ends at ``period_end``."""
    return start + lasting if isinstance(lasting, timedelta) else period_end if lasting == "period" else None
