"""The windows in which a limit counts: computed from an instant, half-open, without a reset job. Pure.

The windows of a :class:`Window` cover the time line without gap or overlap: ``start <= at < end``, and the end of one
is the start of the next. The rules of the zones come from Python's ``zoneinfo``: the system's tz database, else
``tzdata``. Machines that share a ledger need the same one, or they differ where a government changed its clocks.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from enum import StrEnum
from functools import cache, lru_cache
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo, available_timezones

from agentcredits.errors import InvalidInputError
from agentcredits.ids import check_text

#: The longest canonical text of a window, and the longest that is read.
MAX_WINDOW_LENGTH: Final = 128
MAX_ZONE_LENGTH: Final = 64
MIN_DURATION: Final = timedelta(seconds=1)
MAX_DURATION: Final = timedelta(days=3660)

_SECOND: Final = timedelta(seconds=1)
_HOUR: Final = timedelta(hours=1)
_FIRST: Final = datetime.min.replace(tzinfo=UTC)
_LAST: Final = datetime.max.replace(tzinfo=UTC)

_DURATION: Final = re.compile(r"(?:(\d{1,8})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", re.ASCII)
_FORMS: Final = (
    "month",
    "day Europe/Berlin",
    "anniversary 2026-01-31T09:00:00+01:00 Europe/Berlin",
    "fixed 5h 2026-01-01T00:00:00+00:00",
    "lifetime",
)


class WindowKind(StrEnum):
    """What a window follows: the calendar, a monthly anniversary, a fixed length, or nothing (it never ends)."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    ANNIVERSARY = "anniversary"
    FIXED = "fixed"
    LIFETIME = "lifetime"


_CALENDAR: Final = (WindowKind.HOUR, WindowKind.DAY, WindowKind.WEEK, WindowKind.MONTH)
_ZONED: Final = (*_CALENDAR, WindowKind.ANNIVERSARY)
_ANCHORED: Final = (WindowKind.ANNIVERSARY, WindowKind.FIXED)


@dataclass(frozen=True, slots=True)
class Window:
    """The time over which a limit counts. Make one with `calendar`, `anniversary`, `fixed`, `lifetime` or `parse`.

    ``str(window)`` is its canonical text (at most 128 characters), and ``Window.parse(str(window)) == window``.

    Raises:
        InvalidInputError: a field that cannot be, or that the kind has no use for.
    """

    kind: WindowKind
    #: A name of the tz database for calendar and anniversary windows; else "UTC".
    tz: str = "UTC"
    #: For anniversary and fixed windows: aware, kept in UTC.
    anchor: datetime | None = None
    #: For fixed windows: whole seconds, 1 second to 3660 days.
    duration: timedelta | None = None

    def __post_init__(self) -> None:
        kind = _check_kind(self.kind, name="kind", known=tuple(WindowKind))
        _refuse_unused(kind, "tz", used=kind in _ZONED or self.tz == "UTC")
        _refuse_unused(kind, "anchor", used=kind in _ANCHORED or self.anchor is None)
        _refuse_unused(kind, "duration", used=kind is WindowKind.FIXED or self.duration is None)
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "tz", _check_zone(self.tz))
        if kind in _ANCHORED:
            object.__setattr__(self, "anchor", _as_utc(self.anchor, name="anchor"))
        if kind is WindowKind.FIXED:
            object.__setattr__(self, "duration", _check_duration(self.duration))

    @classmethod
    def calendar(cls, unit: Literal["hour", "day", "week", "month"], tz: str = "UTC") -> Window:
        """Each hour, day, week (from Monday) or month of the calendar in a zone.

        A day begins at the first instant whose local date is that day: where midnight is skipped by a clock change, at
        the change; where it comes twice, at the first. A day that a zone left out has no window. An hour begins where
        the local clock shows minute 0 and at each clock change, so it never lasts longer than 60 minutes; the hour that
        a clock change repeats is two windows.

        Args:
            unit: ``"hour"``, ``"day"``, ``"week"`` or ``"month"``.
            tz: A name of the tz database, such as ``"Europe/Berlin"``.

        Raises:
            InvalidInputError: an unknown unit or zone.
        """
        return cls(_check_kind(unit, name="unit", known=_CALENDAR), tz)

    @classmethod
    def anniversary(cls, anchor: datetime, tz: str = "UTC") -> Window:
        """Each month from the anchor's day and local time; before the anchor too.

        Days 29 to 31 become the last day of a shorter month and come back after it. A local time that a clock change
        skips is the change itself; of one that comes twice, the first counts.

        Args:
            anchor: Aware; fixes the day of the month and the time of day in ``tz``.
            tz: A name of the tz database.

        Raises:
            InvalidInputError: a naive anchor, an unknown zone.
        """
        return cls(WindowKind.ANNIVERSARY, tz, anchor)

    @classmethod
    def fixed(cls, duration: timedelta, anchor: datetime) -> Window:
        """Each ``duration`` of real time counted from the anchor, in both directions.

        Args:
            duration: Whole seconds, 1 second to 3660 days.
            anchor: Aware; where one of the windows starts.

        Raises:
            InvalidInputError: a duration out of range, a naive anchor.
        """
        return cls(WindowKind.FIXED, anchor=anchor, duration=duration)

    @classmethod
    def lifetime(cls) -> Window:
        """One window without end."""
        return cls(WindowKind.LIFETIME)

    @classmethod
    def parse(cls, text: str | Window) -> Window:
        """Read the text of a window; a Window is given back as it is.

        Forms: ``month`` (in UTC), ``month Europe/Berlin``, the same with hour, day and week,
        ``anniversary 2026-01-31T09:00:00+01:00 Europe/Berlin``, ``fixed 5h 2026-01-01T00:00:00+00:00`` and
        ``lifetime``. Durations are written like ``90s``, ``5h`` or ``1d12h``.

        Raises:
            InvalidInputError: none of these, or a part of it cannot be used.
        """
        if isinstance(text, Window):
            return text
        return _parse(check_text(text, name="window", max_length=MAX_WINDOW_LENGTH))

    @property
    def is_lifetime(self) -> bool:
        """Whether the window never ends."""
        return self.kind is WindowKind.LIFETIME

    def bounds(self, at: datetime) -> tuple[datetime, datetime]:
        """Start and end of the window that ``at`` lies in, both aware and in UTC; ``start <= at < end``.

        A lifetime window answers with the first and the last datetime there is.

        Raises:
            InvalidInputError: ``at`` is naive, or its window reaches beyond the years 1 to 9999.
        """
        moment = _as_utc(at, name="at")
        if self.kind is WindowKind.LIFETIME:
            return _FIRST, _LAST
        try:
            if self.kind is WindowKind.FIXED:
                return _fixed_bounds(self, moment)
            if self.kind is WindowKind.HOUR:
                return _hour_bounds(_zone(self.tz), moment)
            return _local_bounds(self, moment)
        except (OverflowError, ValueError) as error:
            raise InvalidInputError(
                f"The {self.kind} window of {moment.isoformat()} reaches beyond the years 1 to 9999.",
                reason="out_of_range",
                context={"parameter": "at"},
            ) from error

    def resets_at(self, at: datetime) -> datetime | None:
        """When the window that ``at`` lies in ends, in UTC; None for a lifetime window.

        Raises:
            InvalidInputError: as `bounds`.
        """
        end = self.bounds(at)[1]
        return None if self.is_lifetime else end

    def __str__(self) -> str:
        parts = [self.kind.value]
        if self.duration is not None:
            parts.append(_write_duration(self.duration))
        if self.anchor is not None:
            parts.append(self.anchor.isoformat())
        if self.kind in _ZONED:
            parts.append(self.tz)
        return " ".join(parts)


# -- bounds ------------------------------------------------------------------------------------------------------


def _fixed_bounds(window: Window, at: datetime) -> tuple[datetime, datetime]:
    assert window.anchor is not None  # noqa: S101  # __post_init__ saw to it
    assert window.duration is not None  # noqa: S101  # as above
    start = window.anchor + (at - window.anchor) // window.duration * window.duration
    return start, start + window.duration


def _hour_bounds(zone: tzinfo, at: datetime) -> tuple[datetime, datetime]:
    local = at.astimezone(zone)
    start = at - timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
    end = start + _HOUR
    offset = local.utcoffset()
    if _offset(zone, end) != offset:
        end = _change(zone, at, end)
    if _offset(zone, start) != offset:
        start = _change(zone, start, at)
    return start, end


def _local_bounds(window: Window, at: datetime) -> tuple[datetime, datetime]:
    """Days, weeks, months and anniversaries: numbered, each from a local time on."""
    zone = _zone(window.tz)
    number = _number(window, at.astimezone(zone))
    start = _first_instant(zone, _wall(window, zone, number))
    if at < start:
        return _first_instant(zone, _wall(window, zone, number - 1)), start
    end = _first_instant(zone, _wall(window, zone, number + 1))
    while end <= at:  # a clock change took the local date back over the boundary: the window has begun all the same
        number += 1
        start, end = end, _first_instant(zone, _wall(window, zone, number + 1))
    return start, end


def _number(window: Window, local: datetime) -> int:
    if window.kind is WindowKind.DAY:
        return local.toordinal()
    if window.kind is WindowKind.WEEK:
        return (local.toordinal() - 1) // 7
    return local.year * 12 + local.month - 1


def _wall(window: Window, zone: tzinfo, number: int) -> datetime:
    """The local time, naive, from which on the window of this number counts."""
    if window.kind is WindowKind.DAY:
        return datetime.fromordinal(number)
    if window.kind is WindowKind.WEEK:
        return datetime.fromordinal(number * 7 + 1)
    year, month = number // 12, number % 12 + 1
    if window.anchor is None:
        return datetime(year, month, 1)  # noqa: DTZ001  # a time on the wall
    wanted = window.anchor.astimezone(zone)
    day = min(wanted.day, monthrange(year, month)[1])
    return wanted.replace(tzinfo=None, fold=0, year=year, month=month, day=day)


def _first_instant(zone: tzinfo, wall: datetime) -> datetime:
    """The first instant, in UTC, at which the clock of the zone shows ``wall`` or later."""
    instant = wall.replace(tzinfo=zone).astimezone(UTC)
    if instant.astimezone(zone).replace(tzinfo=None) == wall:
        return instant
    # Skipped: fold 0 is read with the offset before the change and lands after it, fold 1 the other way round.
    return _change(zone, wall.replace(tzinfo=zone, fold=1).astimezone(UTC), instant)


def _change(zone: tzinfo, before: datetime, after: datetime) -> datetime:
    """When the zone's offset changes, after the one and not after the other; it does so at whole seconds."""
    base = before.replace(microsecond=0)
    offset = _offset(zone, base)
    seconds = range((after - base) // _SECOND)
    return base + _SECOND * bisect_left(seconds, True, key=lambda n: _offset(zone, base + _SECOND * n) != offset)


def _offset(zone: tzinfo, at: datetime) -> timedelta | None:
    return at.astimezone(zone).utcoffset()


# -- zones -------------------------------------------------------------------------------------------------------


@cache
def _zone_names() -> frozenset[str]:
    return frozenset(available_timezones()) - {"localtime"}  # means another zone on each machine


@cache
def _zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else ZoneInfo(name)


def _check_zone(value: Any) -> str:
    name = check_text(value, name="tz", max_length=MAX_ZONE_LENGTH)
    if name == "UTC" or name in _zone_names():
        return name
    near = _near(name, _zone_names())
    hint = f"did you mean {near}?" if near else "use a name such as Europe/Berlin."
    raise InvalidInputError(
        f"tz {name!r} is not a time zone of the tz database: {hint}",
        reason="unknown_time_zone",
        context={"parameter": "tz", "value": name},
        suggestions=(f"Use {near}.",) if near else (),
        fixes=({"param": "tz", "value": near},) if near else (),
    )


def _near(text: str, known: frozenset[str]) -> str | None:
    """The known text that is most like this one in any case, if one is."""
    from difflib import get_close_matches

    folded = {item.casefold(): item for item in sorted(known)}
    return next((folded[match] for match in get_close_matches(text.casefold(), folded)), None)


# -- texts and checks --------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _parse(text: str) -> Window:
    match text.split():
        case [unit] if unit in _CALENDAR:
            return Window(WindowKind(unit))
        case [unit, tz] if unit in _CALENDAR:
            return Window(WindowKind(unit), tz)
        case ["anniversary", anchor]:
            return Window.anniversary(_parse_anchor(anchor))
        case ["anniversary", anchor, tz]:
            return Window.anniversary(_parse_anchor(anchor), tz)
        case ["fixed", duration, anchor]:
            return Window.fixed(_parse_duration(duration), _parse_anchor(anchor))
        case ["lifetime"]:
            return Window.lifetime()
        case [kind, *_] if kind not in tuple(WindowKind) and (near := _near(kind, frozenset(WindowKind))):
            hint = f"did you mean {near}?"
        case _:
            hint = f"write for example {'; '.join(_FORMS)}."
    raise InvalidInputError(
        f"window {text!r} cannot be read: {hint}", reason="unknown_window", context={"parameter": "window"}
    )


def _parse_anchor(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidInputError(
            f"anchor {text!r} is not a time: write for example 2026-01-31T09:00:00+01:00.",
            reason="not_a_time",
            context={"parameter": "anchor"},
        ) from error


def _parse_duration(text: str) -> timedelta:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise InvalidInputError(
            f"duration {text!r} cannot be read: write for example 90s, 30m, 5h or 1d12h.",
            reason="not_a_duration",
            context={"parameter": "duration"},
        )
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def _write_duration(duration: timedelta) -> str:
    """Whole minutes in days, hours and minutes; anything else in seconds: ``1d12h``, ``90s``."""
    total_seconds = duration // _SECOND
    if total_seconds % 60:
        return f"{total_seconds}s"
    hours, minutes = divmod(total_seconds // 60, 60)
    days, hours = divmod(hours, 24)
    return "".join(f"{count}{unit}" for count, unit in ((days, "d"), (hours, "h"), (minutes, "m")) if count)


def _check_kind(value: Any, *, name: str, known: tuple[WindowKind, ...]) -> WindowKind:
    if isinstance(value, str) and value in known:
        return WindowKind(value)
    raise InvalidInputError(
        f"{name} must be one of {', '.join(known)}.", reason="unknown_unit", context={"parameter": name}
    )


def _refuse_unused(kind: WindowKind, name: str, *, used: bool) -> None:
    if not used:
        raise InvalidInputError(
            f"A window of kind {kind} has no {name}: leave it out.", reason="unused", context={"parameter": name}
        )


def _check_duration(value: Any) -> timedelta:
    if not isinstance(value, timedelta):
        raise InvalidInputError(
            f"duration must be a timedelta, not {type(value).__name__}.", context={"parameter": "duration"}
        )
    duration = timedelta(value.days, value.seconds, value.microseconds)
    if duration.microseconds:
        raise InvalidInputError("duration must be whole seconds.", reason="fraction", context={"parameter": "duration"})
    if not MIN_DURATION <= duration <= MAX_DURATION:
        raise InvalidInputError(
            f"duration must be 1 second to {MAX_DURATION.days} days.",
            reason="out_of_range",
            context={"parameter": "duration", "minimum_seconds": 1, "maximum_seconds": MAX_DURATION // _SECOND},
        )
    return duration


def _as_utc(value: Any, *, name: str) -> datetime:
    """As clock.as_utc, which the rules may not import; always a plain datetime."""
    if type(value) is datetime and value.tzinfo is UTC and not value.fold:
        return value
    if not isinstance(value, datetime):
        raise InvalidInputError(
            f"{name} must be a datetime with a time zone, not {type(value).__name__}.", context={"parameter": name}
        )
    if value.tzinfo is None or value.utcoffset() is None:
        raise InvalidInputError(
            f"{name} has no time zone: give one, as in 2026-01-31T09:00:00+01:00.",
            reason="naive_datetime",
            context={"parameter": name},
        )
    try:
        moment = value.astimezone(UTC)
    except OverflowError as error:
        raise InvalidInputError(
            f"{name} lies outside the calendar once it is in UTC.", reason="out_of_range", context={"parameter": name}
        ) from error
    return datetime.combine(moment.date(), moment.time().replace(fold=0), UTC)
