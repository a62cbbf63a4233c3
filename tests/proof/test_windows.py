"""Windows of many years in 25 zones whose clocks did odd things: they begin where the clock on the wall says so.

The oracle knows a zone only as what its clock shows, hour by hour: the stretches of time between two changes. (That of
tests/property/test_windows.py reads the clock minute by minute, which takes too long for so many years.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from agentcredits.rules.windows import Window
from tests.proof.conftest import Record
from tests.proof.naive_races import CivilDay
from tests.property.walls import MARGIN, wall_windows, walls

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)
INSTANT = timedelta(microseconds=1)

#: Zone and first year.
ZONES = (
    ("Africa/Cairo", 2018),
    ("Africa/Casablanca", 2018),
    ("America/Anchorage", 1980),
    ("America/Asuncion", 2016),
    ("America/Caracas", 2006),
    ("America/Havana", 2020),
    ("America/New_York", 2020),
    ("America/Nuuk", 2018),
    ("America/Santiago", 2018),
    ("America/Sao_Paulo", 2012),
    ("America/Scoresbysund", 2019),
    ("America/St_Johns", 2003),
    ("America/Toronto", 1915),
    ("Antarctica/Casey", 2015),
    ("Antarctica/Troll", 2020),
    ("Asia/Amman", 2014),
    ("Asia/Beirut", 2018),
    ("Asia/Gaza", 2016),
    ("Asia/Kathmandu", 1981),
    ("Asia/Pyongyang", 2010),
    ("Asia/Tehran", 2016),
    ("Australia/Lord_Howe", 2022),
    ("Europe/Berlin", 2040),
    ("Europe/Dublin", 1965),
    ("Pacific/Apia", 2008),
)

Bounds = Callable[[datetime], tuple[datetime, datetime]]

#: From when, until when, and how far the clock is ahead of UTC meanwhile.
Stretch = tuple[datetime, datetime, timedelta]


def offset(zone: ZoneInfo, at: datetime) -> timedelta:
    """How far the clock on the wall is ahead."""
    return at.astimezone(zone).replace(tzinfo=None) - at.replace(tzinfo=None)


def stretches(zone: ZoneInfo, since: datetime, until: datetime) -> list[Stretch]:
    """The times between two changes of the clock; each change is found to the second between two looks."""
    found: list[Stretch] = []
    start, at, ahead = since, since, offset(zone, since)
    while at < until:
        before, at = at, at + HOUR
        if offset(zone, at) != ahead:
            low, high = before, at
            while high - low > SECOND:
                middle = low + ((high - low) // 2 // SECOND) * SECOND
                low, high = (middle, high) if offset(zone, middle) == ahead else (low, middle)
            found.append((start, high, ahead))
            start, ahead = high, offset(zone, high)
    return [*found, (start, until, ahead)]


def first_instant(known: list[Stretch], wall: datetime) -> datetime | None:
    """The first instant from 15 hours before on at which the clock shows ``wall`` or later."""
    utc = wall.replace(tzinfo=UTC)
    for start, end, ahead in known:
        if end > utc - 15 * HOUR and utc < end + ahead:
            return max(start, utc - ahead)
    return None


def hours(known: list[Stretch]) -> Iterator[datetime]:
    """An hour begins where the clock shows minute 0, or changes."""
    for number, (start, end, ahead) in enumerate(known):
        if number:
            yield start
        shown = start.replace(tzinfo=None) + ahead
        past = shown - shown.replace(minute=0, second=0, microsecond=0)
        at = start + HOUR - past if past or number else start
        while at < end:
            yield at
            at += HOUR


def differences(bounds: Bounds, starts: list[datetime]) -> int:
    """How many of the windows between these starts have other bounds, asked at four instants in each."""
    wrong = 0
    for start, end in pairwise(starts):
        middle = start + (end - start) / 2
        asked = (start, middle, end - INSTANT, min(start + HOUR / 2, middle))
        wrong += any(bounds(at) != (start, end) for at in asked)
    return wrong


def look(name: str, year: int, years: int, hours_at_most: int) -> tuple[int, int]:
    """The windows of one zone; gives how many there were and how many of them were wrong."""
    zone = ZoneInfo(name)
    since, until = datetime(year, 1, 1, tzinfo=UTC), datetime(year + years, 1, 1, tzinfo=UTC)
    known = stretches(zone, since - MARGIN, until + MARGIN)
    periods = wrong = 0
    for window in wall_windows(name, year):
        starts = sorted({at for wall in walls(window, since, until) if (at := first_instant(known, wall))})
        periods += len(starts) - 1
        wrong += differences(window.bounds, starts)
    starts = list(hours(known))[: hours_at_most + 1]
    return periods + len(starts) - 1, wrong + differences(Window.calendar("hour", name).bounds, starts)


@pytest.mark.proof
@pytest.mark.timeout(1_800)
def test_windows_begin_where_the_clock_on_the_wall_says(proof: str, record: Record) -> None:
    """100,000 hours, days, weeks, months and anniversaries in each of 25 zones; short: 5,000."""
    years, at_least = (12, 100_000) if proof == "long" else (1, 5_000)
    found = [look(name, year, years, at_least - 450 * years) for name, year in ZONES]
    assert min(periods for periods, _ in found) >= at_least
    periods, wrong = (sum(numbers) for numbers in zip(*found, strict=True))
    record("windows", count=periods, unit=f"periods in {len(ZONES)} zones", seed=None, wrong={"differences": wrong})


@pytest.mark.parametrize(("name", "year"), [("Africa/Cairo", 2025), ("America/Havana", 2020)])
def test_the_harness_sees_days_of_24_hours(name: str, year: int) -> None:
    """A day that begins at 0:00 and ends 24 hours later is wrong where clocks change at midnight, and elsewhere."""
    zone = ZoneInfo(name)
    since = datetime(year, 1, 1, tzinfo=UTC)
    known = stretches(zone, since - MARGIN, since + timedelta(days=366) + MARGIN)
    days = walls(Window.calendar("day", name), since, since + timedelta(days=366))
    starts = sorted({at for wall in days if (at := first_instant(known, wall))})
    assert differences(CivilDay(zone).bounds, starts) > 0
    assert differences(Window.calendar("day", name).bounds, starts) == 0
