"""Time. In production the database's clock decides; an injected Clock replaces it everywhere, expiry included."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Protocol

from agentcredits.errors import InvalidInputError


class Clock(Protocol):
    """Anything that tells the time as an aware datetime."""

    def now(self) -> datetime:
        """The current time, with a time zone."""
        ...


def host_now() -> datetime:
    """This machine's clock, in UTC (SQLite's database clock is the host's)."""
    return datetime.now(UTC)


def as_utc(value: datetime, *, name: str) -> datetime:
    """An aware datetime in UTC.

    Raises:
        InvalidInputError: not a datetime, or one without a time zone.
    """
    if not isinstance(value, datetime):
        raise InvalidInputError(
            f"{name} must be a datetime with a time zone, not {type(value).__name__}.", context={"parameter": name}
        )
    if value.tzinfo is None or value.utcoffset() is None:
        raise InvalidInputError(
            f"{name} has no time zone: pass for example datetime.now(timezone.utc).",
            reason="naive_datetime",
            context={"parameter": name},
        )
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise InvalidInputError(
            f"{name} lies outside the calendar once it is in UTC.", reason="out_of_range", context={"parameter": name}
        ) from error
