"""When a provider may be asked again: from headers, from fields of the body, from the sentence itself.

All functions are pure: they take ``now`` and return an aware time in UTC, or None.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

#: A provider that asks for more patience than this is not believed.
LONGEST: Final = timedelta(days=366)

#: Headers that say when, the most binding first; names in lower case.
_DELAY_HEADERS: Final = ("retry-after-ms", "retry-after", "x-ms-retry-after-ms")
_RESET_HEADERS: Final = (
    "x-ratelimit-reset",
    "ratelimit-reset",
    "x-rate-limit-reset",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
    "anthropic-ratelimit-requests-reset",
    "anthropic-ratelimit-tokens-reset",
    "anthropic-ratelimit-input-tokens-reset",
    "anthropic-ratelimit-output-tokens-reset",
)

#: The headers that this module reads; the others need not be kept.
HEADERS: Final = frozenset((*_DELAY_HEADERS, *_RESET_HEADERS, "ratelimit"))

#: Fields of a body that hold a delay or a time, in lower case without separators.
FIELDS: Final = frozenset(
    (
        "retrydelay",
        "retryafter",
        "retryafterms",
        "retryafterseconds",
        "retryin",
        "resetat",
        "resetsat",
        "resettime",
        "retryat",
        "nextresettime",
        "estimatedtime",
        "xratelimitreset",
    )
)

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])")
_DURATION: Final = re.compile(r"(?:\d{1,9}(?:\.\d{1,9})?(?:ms|[smhd])){1,5}")
_NUMBER: Final = re.compile(r"\d{1,16}(?:\.\d{1,12})?")

#: ``try again in 9m38.016s``, ``retry after 86400 seconds``, ``resets in ~30s``, ``available in 10 minutes``.
_SENTENCE: Final = re.compile(
    r"(?:again|retry(?:ing)?|resets?|available|wait)[ a-z]{0,20}?(?:in|after|:|wait)\W{0,3}"
    r"(\d{1,9}(?:\.\d{1,12})?) ?(ms|milliseconds?|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?)"
    r"((?:\d{1,6}(?:\.\d{1,9})?(?:ms|[smh])){0,4})(?![a-z0-9])"
)
#: ``regain access on 2026-08-01 at 00:00 UTC``.
_DATE: Final = re.compile(
    r"(?:access|again|resets?|until|after) (?:on |at )?(\d{4}-\d\d-\d\d)(?:[t ](?:at )?(\d\d:\d\d(?::\d\d)?))?"
)
_DATE_LIKE: Final = re.compile(r"^\d{4}-\d\d-\d\d|[A-Za-z]{3} ")
_LIMIT_T: Final = re.compile(r"(?:^|[;,\s])t=(\d{1,9})")


def retry_time(
    *, headers: Mapping[str, str], fields: Iterable[tuple[str, object]], text: str, now: datetime
) -> datetime | None:
    """The time from which a request can succeed again, if the provider said so.

    Args:
        headers: Response headers, names in lower case.
        fields: (name, value) of the body's fields whose names are in ``FIELDS``.
        text: The message, in lower case.
        now: The current time, aware.

    Returns:
        An aware time in UTC, never before ``now`` and at most a year after it; None when nothing was said.
    """
    for name in _DELAY_HEADERS if headers else ():
        found = _moment(headers.get(name), now, milliseconds=name.endswith("ms"))
        if found is not None:
            return found
    for name, value in fields:
        found = _moment(value, now, milliseconds=name.endswith("ms"))
        if found is not None:
            return found
    found = _in_sentence(text, now)
    if found is not None:
        return found
    if not headers:
        return None
    resets = [found for name in _RESET_HEADERS if (found := _moment(headers.get(name), now)) is not None]
    if resets:
        return max(resets)
    limit = _LIMIT_T.search(headers.get("ratelimit", ""))
    return _after(float(limit[1]), now) if limit else None


def _in_sentence(text: str, now: datetime) -> datetime | None:
    found = _SENTENCE.search(text)
    if found is not None:
        unit = found[2]
        factor = _UNITS["ms" if unit.startswith(("ms", "milli")) else unit[0]]
        return _after(float(found[1]) * factor + _seconds(found[3]), now)
    dated = _DATE.search(text)
    if dated is None:
        return None
    return _moment(f"{dated[1]}T{dated[2] or '00:00'}+00:00", now)


def _moment(value: object, now: datetime, *, milliseconds: bool = False) -> datetime | None:
    """A delay in seconds, a duration such as ``6m0s``, an epoch in seconds or milliseconds, or a date."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = str(value).strip()[:100]
    if _NUMBER.fullmatch(text):
        number = float(text)
        if number >= 1e11:
            return _at_epoch(number / 1_000, now)
        if number >= 1e9:
            return _at_epoch(number, now)
        return _after(number / 1_000 if milliseconds else number, now)
    if _DURATION.fullmatch(text):
        return _after(_seconds(text), now)
    return _at_date(text, now) if _DATE_LIKE.search(text) else None


def _at_date(text: str, now: datetime) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        try:
            moment = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
    try:
        return _within(moment if moment.tzinfo else moment.replace(tzinfo=UTC), now)
    except (ValueError, OverflowError):
        return None


def _seconds(duration: str) -> float:
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(duration))


def _at_epoch(seconds: float, now: datetime) -> datetime | None:
    try:
        return _within(datetime.fromtimestamp(seconds, UTC), now)
    except (OverflowError, OSError, ValueError):
        return None


def _after(seconds: float, now: datetime) -> datetime | None:
    return _within(now + timedelta(seconds=seconds), now) if seconds <= LONGEST.total_seconds() else None


def _within(moment: datetime, now: datetime) -> datetime | None:
    moment = moment.astimezone(UTC)
    return max(moment, now.astimezone(UTC)) if moment - now <= LONGEST else None
