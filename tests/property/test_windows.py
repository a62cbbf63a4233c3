"""Windows cover the time line without gap or overlap in every zone, and begin where a clock on the wall says so.

The oracle never asks what instant a local time is: it reads the clock of the zone at one instant after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentcredits.rules.windows import MAX_DURATION, MAX_WINDOW_LENGTH, Window
from tests.property.walls import MARGIN, wall_windows, walls

CALENDAR = ("hour", "day", "week", "month")
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
INSTANT = timedelta(microseconds=1)
#: "localtime" is another zone on each machine, and is refused.
ZONES = sorted(available_timezones() - {"localtime"})

#: Zone and year.
SHORT = (
    ("Africa/Cairo", 2025),
    ("America/St_Johns", 2010),
    ("Australia/Lord_Howe", 2022),
    ("Pacific/Apia", 2011),
)


def long_form(proof: str) -> bool:
    return proof == "long"


def examples(proof: str, count: int) -> settings:
    """As many as wanted, the same ones in every run; the long form makes twenty times as many new ones."""
    return settings(
        max_examples=count * 20 if long_form(proof) else count,
        derandomize=not long_form(proof),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def walk(window: Window, since: datetime, until: datetime) -> Iterator[tuple[datetime, datetime]]:
    """The windows of a time, each found from the end of the one before; fails at a gap, an overlap or no progress."""
    start, end = window.bounds(since)
    assert start <= since < end
    while start < until:
        for at in (start, start + HOUR / 2, start + (end - start) / 2, end - INSTANT):
            assert at >= end or window.bounds(at) == (start, end)
        yield start, end
        following = window.bounds(end)
        assert following[0] == end < following[1]
        start, end = following


# -- the oracle --------------------------------------------------------------------------------------------------


def shown(zone: ZoneInfo, at: datetime) -> datetime:
    """What a clock on the wall of the zone shows."""
    return at.astimezone(zone).replace(tzinfo=None)


def first_minute(zone: ZoneInfo, wall: datetime) -> datetime:
    """The first minute in UTC at which the clock shows ``wall`` or later, read minute by minute.

    From 15 hours before ``wall`` was it in UTC to 13 hours after it: clocks are at most 14 hours ahead and 12 behind.
    """
    at = wall.replace(tzinfo=UTC) - 15 * HOUR
    assert shown(zone, at) < wall
    while shown(zone, at) < wall:
        at += MINUTE
    assert at < wall.replace(tzinfo=UTC) + 13 * HOUR
    return at


def hours(zone: ZoneInfo, since: datetime, until: datetime) -> Iterator[datetime]:
    """The minutes in UTC at which an hour begins: the clock shows minute 0, or jumps."""
    at, before = since, shown(zone, since - MINUTE)
    while at < until:
        now = shown(zone, at)
        if now.minute == 0 or now - before != MINUTE:
            yield at
        at, before = at + MINUTE, now


# -- whole years -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "year"), SHORT)
def test_windows_begin_where_the_clock_on_the_wall_says(name: str, year: int) -> None:
    """Days, weeks, months and anniversaries of one year; tests/proof/test_windows.py looks at many years and zones."""
    zone = ZoneInfo(name)
    since, until = datetime(year, 1, 1, tzinfo=UTC), datetime(year + 1, 1, 1, tzinfo=UTC)
    for window in wall_windows(name, year):
        expected = sorted({first_minute(zone, wall) for wall in walls(window, since - MARGIN, until + MARGIN)})
        begun = max(at for at in expected if at <= since)
        found = [start for start, _ in walk(window, since, until)]
        assert found == [at for at in expected if begun <= at < until], window
        assert len(found) >= 12


@pytest.mark.parametrize(("name", "year"), SHORT)
def test_hours_begin_where_the_clock_on_the_wall_says(name: str, year: int) -> None:
    """No window lasts longer than 60 minutes: every minute of the days around each clock change is read."""
    zone = ZoneInfo(name)
    window = Window.calendar("hour", name)
    days = [datetime(year, 1, 1, tzinfo=UTC) + timedelta(days=number) for number in range(365)]
    changes = [day for day in days if day.astimezone(zone).utcoffset() != (day + DAY).astimezone(zone).utcoffset()]
    assert changes
    for change in changes:
        since, until = change - DAY, change + 2 * DAY
        found = list(walk(window, since, until))
        assert [start for start, _ in found if start >= since] == list(hours(zone, since, until))
        assert max(end - start for start, end in found) <= HOUR


# -- every zone --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", CALENDAR)
def test_every_zone_has_its_windows(unit: str, proof: str) -> None:
    """In every zone of the tz database, also where clocks were off by odd seconds: the windows before, at and after an
    instant touch, and in the 25 hours before a start no clock shows its date.
    """
    instants = [
        datetime(1895, 6, 1, 11, 59, 59, 999_999, tzinfo=UTC),
        datetime(1942, 2, 9, 12, 30, tzinfo=UTC),
        datetime(1978, 12, 31, 23, 59, 59, tzinfo=UTC),
        datetime(2026, 3, 29, 1, tzinfo=UTC),
        datetime(2050, 11, 6, 6, 30, tzinfo=UTC),
    ]
    if long_form(proof):
        instants += [datetime(year, 1 + year % 12, 1 + year % 28, year % 24, tzinfo=UTC) for year in range(1850, 2100)]
    assert len(ZONES) > 400
    for name in ZONES:
        window = Window.calendar(unit, name)  # type: ignore[arg-type]  # one of its four
        zone = ZoneInfo(name)
        for at in instants:
            start, end = window.bounds(at)
            assert start <= at < end, (name, at)
            assert window.bounds(start) == window.bounds(end - INSTANT) == (start, end), (name, at)
            assert window.bounds(start - INSTANT)[1] == start, (name, at)
            assert window.bounds(end)[0] == end, (name, at)
            if unit == "hour":
                assert end - start <= HOUR, (name, at)
                continue
            for bound in (start, end):
                period = period_of(unit, shown(zone, bound))
                assert period > period_of(unit, shown(zone, bound - INSTANT)), (name, at)
                readings = (period_of(unit, shown(zone, bound - HOUR * number)) for number in range(1, 26))
                assert all(reading < period for reading in readings), (name, at)


def period_of(unit: str, wall: datetime) -> tuple[int, ...]:
    if unit == "day":
        return (wall.year, wall.month, wall.day)
    return tuple(wall.isocalendar())[:2] if unit == "week" else (wall.year, wall.month)


# -- any window, any instant -------------------------------------------------------------------------------------


def moments(first: int, last: int) -> st.SearchStrategy[datetime]:
    return st.datetimes(
        min_value=datetime(first, 1, 1),  # noqa: DTZ001  # hypothesis takes naive bounds
        max_value=datetime(last, 12, 31),  # noqa: DTZ001  # hypothesis takes naive bounds
        timezones=st.just(UTC),
    )


zones = st.sampled_from(ZONES)
durations = st.one_of(
    st.integers(1, 10**6),
    st.integers(1, 3660).map(lambda days: days * 86_400),
    st.just(MAX_DURATION // timedelta(seconds=1)),
).map(lambda seconds: timedelta(seconds=seconds))
windows = st.one_of(
    st.builds(Window.calendar, st.sampled_from(CALENDAR), zones),
    st.builds(Window.anniversary, moments(1900, 2100), zones),
    st.builds(Window.fixed, durations, moments(1900, 2100)),
    st.just(Window.lifetime()),
)


def test_a_text_means_the_same_window_wherever_it_is_read(proof: str) -> None:
    """parse(str(window)) is the window, its text is its own canonical form, short enough to store, and of one line."""

    @examples(proof, 500)
    @given(windows)
    def check(window: Window) -> None:
        text = str(window)
        assert Window.parse(text) == window
        assert hash(Window.parse(text)) == hash(window)
        assert str(Window.parse(text)) == text
        assert len(text) <= MAX_WINDOW_LENGTH
        assert text.isascii()
        assert text.isprintable()

    check()


def test_an_instant_lies_in_exactly_one_window(proof: str) -> None:
    """The bounds are those of their own first and last instant; the windows on both sides touch."""

    @examples(proof, 1_000)
    @given(windows, moments(1800, 2200))
    def check(window: Window, at: datetime) -> None:
        start, end = window.bounds(at)
        assert start <= at < end
        assert (start.tzinfo, end.tzinfo) == (UTC, UTC)
        if window.is_lifetime:
            return
        assert window.bounds(start) == window.bounds(end - INSTANT) == (start, end)
        assert window.bounds(start - INSTANT)[1] == start
        assert window.bounds(end)[0] == end

    check()


def test_a_later_instant_never_lies_in_an_earlier_window(proof: str) -> None:
    """Also when the two are close: a counter that was left behind stays behind."""

    @examples(proof, 500)
    @given(windows, moments(1800, 2200), st.integers(0, 10**11))
    def check(window: Window, at: datetime, microseconds: int) -> None:
        first, second = window.bounds(at), window.bounds(at + timedelta(microseconds=microseconds))
        assert first == second or first[1] <= second[0]

    check()


def test_the_zone_of_the_question_does_not_matter(proof: str) -> None:
    """An instant is the same in every zone, and so is its window; an anchor likewise."""
    to_window: list[Callable[[datetime], Window]] = [
        lambda anchor: Window.anniversary(anchor, "America/Havana"),
        lambda anchor: Window.fixed(timedelta(hours=5), anchor),
    ]

    @examples(proof, 300)
    @given(windows, moments(1900, 2100), zones)
    def check(window: Window, at: datetime, name: str) -> None:
        elsewhere = at.astimezone(ZoneInfo(name))
        assert window.bounds(elsewhere) == window.bounds(at)
        assert all(make(elsewhere) == make(at) and str(make(elsewhere)) == str(make(at)) for make in to_window)

    check()
