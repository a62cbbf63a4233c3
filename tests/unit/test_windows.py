"""Windows: each rule with its instants written out.

Clock changes are those of past years: governments change the ones to come, and with them the tz database.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Literal
from zoneinfo import ZoneInfo

import pytest

from agentcredits.errors import InvalidInputError
from agentcredits.rules.windows import Window
from tests.unit.instants import INSTANT, utc

Unit = Literal["hour", "day", "week", "month"]


def assert_windows(window: Window, *boundaries: str) -> None:
    """The windows between these instants are exactly these, from the first instant of each to its last."""
    instants = [utc(text) for text in boundaries]
    for start, end in pairwise(instants):
        for at in (start, start + (end - start) / 2, end - INSTANT):
            assert window.bounds(at) == (start, end), at


# -- calendar ----------------------------------------------------------------------------------------------------


def test_calendar_windows_in_utc() -> None:
    """Hours, days, weeks from Monday, months of every length."""
    assert_windows(Window.calendar("hour"), "2026-07-14 09:00", "2026-07-14 10:00", "2026-07-14 11:00")
    assert_windows(Window.calendar("day"), "2026-12-31 00:00", "2027-01-01 00:00", "2027-01-02 00:00")
    assert_windows(Window.calendar("week"), "2025-12-29 00:00", "2026-01-05 00:00", "2026-01-12 00:00")
    assert_windows(Window.calendar("month"), "2025-12-01 00:00", "2026-01-01 00:00", "2026-02-01 00:00")


def test_february_of_a_leap_year_has_29_days() -> None:
    """Also by the rule of the centuries."""
    month = Window.calendar("month")
    assert_windows(month, "2024-02-01 00:00", "2024-03-01 00:00")
    assert_windows(month, "2026-02-01 00:00", "2026-03-01 00:00")
    assert_windows(month, "2000-02-01 00:00", "2000-03-01 00:00")
    assert month.bounds(utc("2100-02-28 12:00"))[1] == utc("2100-03-01 00:00")
    assert_windows(Window.calendar("day"), "2024-02-28 00:00", "2024-02-29 00:00", "2024-03-01 00:00")


def test_days_weeks_and_months_follow_the_local_midnight_of_berlin() -> None:
    """The day of a clock change has 23 or 25 hours; the month over it is shorter or longer by one."""
    assert_windows(Window.calendar("day", "Europe/Berlin"), "2015-03-27 23:00", "2015-03-28 23:00", "2015-03-29 22:00")
    assert_windows(Window.calendar("day", "Europe/Berlin"), "2015-10-23 22:00", "2015-10-24 22:00", "2015-10-25 23:00")
    assert_windows(Window.calendar("week", "Europe/Berlin"), "2015-03-15 23:00", "2015-03-22 23:00", "2015-03-29 22:00")
    assert_windows(
        Window.calendar("month", "Europe/Berlin"), "2015-01-31 23:00", "2015-02-28 23:00", "2015-03-31 22:00"
    )


def test_days_and_months_of_new_york() -> None:
    """West of UTC the local day begins later; November 2015 begins on the day of the clock change."""
    assert_windows(
        Window.calendar("day", "America/New_York"), "2015-03-07 05:00", "2015-03-08 05:00", "2015-03-09 04:00"
    )
    assert_windows(
        Window.calendar("month", "America/New_York"), "2015-10-01 04:00", "2015-11-01 04:00", "2015-12-01 05:00"
    )


@pytest.mark.parametrize(
    ("zone", "boundaries"),
    [
        ("America/Havana", ("2015-03-07 05:00", "2015-03-08 05:00", "2015-03-09 04:00")),
        ("America/Sao_Paulo", ("2018-11-03 03:00", "2018-11-04 03:00", "2018-11-05 02:00")),
        ("Africa/Cairo", ("2025-04-23 22:00", "2025-04-24 22:00", "2025-04-25 21:00")),
        ("Asia/Beirut", ("2022-03-25 22:00", "2022-03-26 22:00", "2022-03-27 21:00")),
        pytest.param("America/Toronto", ("1919-03-30 05:00", "1919-03-31 04:30", "1919-04-01 04:00"), id="23:30-00:30"),
    ],
)
def test_where_midnight_is_skipped_the_day_begins_at_the_clock_change(zone: str, boundaries: tuple[str, ...]) -> None:
    """00:00 becomes 01:00; in Toronto in 1919 23:30 became 00:30."""
    assert_windows(Window.calendar("day", zone), *boundaries)


def test_where_midnight_comes_twice_the_day_begins_at_the_first() -> None:
    """Havana goes from 01:00 back to 00:00 on November 1, also the first day of its month."""
    boundaries = ("2015-10-31 04:00", "2015-11-01 04:00", "2015-11-02 05:00")
    assert_windows(Window.calendar("day", "America/Havana"), *boundaries)
    assert Window.calendar("month", "America/Havana").bounds(utc("2015-11-01 05:30"))[0] == utc("2015-11-01 04:00")


def test_a_clock_that_goes_back_at_midnight_makes_the_day_before_longer() -> None:
    """00:00 becomes 23:00: the old day's last hour comes twice, the new day begins at the only midnight."""
    assert_windows(
        Window.calendar("day", "America/Sao_Paulo"), "2018-02-17 02:00", "2018-02-18 03:00", "2018-02-19 03:00"
    )
    assert_windows(Window.calendar("day", "Africa/Cairo"), "2025-10-29 21:00", "2025-10-30 22:00", "2025-10-31 22:00")


def test_a_clock_that_goes_back_over_midnight_does_not_reopen_the_day_before() -> None:
    """St. John's went from 00:01 back to 23:01: the new day, or month, had begun at the midnight before."""
    assert_windows(
        Window.calendar("day", "America/St_Johns"), "2010-11-06 02:30", "2010-11-07 02:30", "2010-11-08 03:30"
    )
    repeated = utc("2009-11-01 02:45")
    assert repeated.astimezone(ZoneInfo("America/St_Johns")).date() == date(2009, 10, 31)
    assert_windows(
        Window.calendar("month", "America/St_Johns"), "2009-10-01 02:30", "2009-11-01 02:30", "2009-12-01 03:30"
    )
    november = (utc("2009-11-01 02:30"), utc("2009-12-01 03:30"))
    assert Window.calendar("month", "America/St_Johns").bounds(repeated) == november
    assert_windows(
        Window.calendar("day", "America/St_Johns"), "2010-03-13 03:30", "2010-03-14 03:30", "2010-03-15 02:30"
    )


def test_a_day_that_a_zone_left_out_has_no_window() -> None:
    """Apia had no December 30, 2011: its week has six days, its December thirty."""
    boundaries = ("2011-12-28 10:00", "2011-12-29 10:00", "2011-12-30 10:00", "2011-12-31 10:00")
    assert_windows(Window.calendar("day", "Pacific/Apia"), *boundaries)
    assert_windows(Window.calendar("week", "Pacific/Apia"), "2011-12-26 10:00", "2012-01-01 10:00", "2012-01-08 10:00")
    assert_windows(Window.calendar("month", "Pacific/Apia"), "2011-12-01 10:00", "2011-12-31 10:00", "2012-01-31 10:00")


# -- hours -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "boundaries"),
    [
        pytest.param(
            "Europe/Berlin",
            ("2015-03-28 23:00", "2015-03-29 00:00", "2015-03-29 01:00", "2015-03-29 02:00"),
            id="02:00-03:00",
        ),
        pytest.param(
            "Europe/Berlin",
            ("2015-10-25 00:00", "2015-10-25 01:00", "2015-10-25 02:00"),
            id="the hour from 02:00 twice",
        ),
        pytest.param("Asia/Kolkata", ("2015-07-13 23:30", "2015-07-14 00:30", "2015-07-14 01:30"), id="+05:30"),
        pytest.param("Asia/Kathmandu", ("2015-07-13 23:15", "2015-07-14 00:15", "2015-07-14 01:15"), id="+05:45"),
        pytest.param(
            "Australia/Lord_Howe",
            ("2015-04-04 14:00", "2015-04-04 15:00", "2015-04-04 15:30", "2015-04-04 16:30"),
            id="02:00-01:30",
        ),
        pytest.param(
            "Australia/Lord_Howe",
            ("2015-10-03 14:30", "2015-10-03 15:30", "2015-10-03 16:00", "2015-10-03 17:00"),
            id="02:00-02:30",
        ),
        pytest.param(
            "America/St_Johns",
            ("2010-11-07 01:30", "2010-11-07 02:30", "2010-11-07 02:31", "2010-11-07 03:30", "2010-11-07 04:30"),
            id="00:01-23:01",
        ),
        pytest.param(
            "Africa/Monrovia",
            ("1972-01-06 23:44:30", "1972-01-07 00:44:30", "1972-01-07 01:00", "1972-01-07 02:00"),
            id="-00:44:30-00:00",
        ),
    ],
)
def test_an_hour_begins_at_minute_0_and_at_each_clock_change(zone: str, boundaries: tuple[str, ...]) -> None:
    """No window lasts longer than 60 minutes; a repeated hour is two windows."""
    assert_windows(Window.calendar("hour", zone), *boundaries)


# -- anniversary -------------------------------------------------------------------------------------------------


def test_day_31_is_clamped_in_short_months_and_comes_back() -> None:
    """The local time stays over clock changes; months before the anchor are reckoned the same way."""
    window = Window.anniversary(datetime.fromisoformat("2015-01-31T09:00:00+01:00"), "Europe/Berlin")
    assert_windows(
        window,
        "2014-11-30 08:00",
        "2014-12-31 08:00",
        "2015-01-31 08:00",
        "2015-02-28 08:00",
        "2015-03-31 07:00",
        "2015-04-30 07:00",
        "2015-05-31 07:00",
    )
    assert_windows(window, "2012-01-31 08:00", "2012-02-29 08:00", "2012-03-31 07:00")
    assert_windows(window, "2016-01-31 08:00", "2016-02-29 08:00", "2016-03-31 07:00")


def test_an_anchor_on_february_29() -> None:
    """The 29th of each month, the 28th of February in common years."""
    window = Window.anniversary(utc("2024-02-29 12:00"))
    assert_windows(window, "2024-01-29 12:00", "2024-02-29 12:00", "2024-03-29 12:00")
    assert_windows(window, "2025-01-29 12:00", "2025-02-28 12:00", "2025-03-29 12:00")
    assert_windows(window, "2028-01-29 12:00", "2028-02-29 12:00", "2028-03-29 12:00")


def test_an_anchor_far_away_never_drifts() -> None:
    """Forty years of months: each boundary has the anchor's time and its day, or the month's last."""
    zone = ZoneInfo("America/New_York")
    window = Window.anniversary(utc("2015-08-31 03:59:59.999999"), "America/New_York")  # August 30, 23:59:59.999999
    at, seen = utc("1996-08-01 00:00"), 0
    while at < utc("2036-08-01 00:00"):
        start, at = window.bounds(at)
        local = start.astimezone(zone)
        last = (local.replace(day=1) + timedelta(days=32)).replace(day=1) - timedelta(days=1)
        assert local.day == min(30, last.day)
        assert local.time().isoformat() == "23:59:59.999999"
        seen += 1
    assert seen == 481


def test_an_anchor_in_the_future_fixes_day_and_time() -> None:
    """It need not have come."""
    window = Window.anniversary(utc("2031-05-15 06:30"))
    assert_windows(window, "2026-01-15 06:30", "2026-02-15 06:30", "2026-03-15 06:30")


def test_an_anniversary_at_a_local_time_that_is_skipped_or_comes_twice() -> None:
    """Skipped: the clock change; twice: the first, also where the anchor itself is the second."""
    berlin = "Europe/Berlin"
    skipped = Window.anniversary(datetime.fromisoformat("2015-01-29T02:30:00.000001+01:00"), berlin)
    assert_windows(skipped, "2015-02-28 01:30:00.000001", "2015-03-29 01:00", "2015-04-29 00:30:00.000001")
    first = Window.anniversary(datetime.fromisoformat("2015-09-25T02:30:00+02:00"), berlin)
    assert_windows(first, "2015-09-25 00:30", "2015-10-25 00:30", "2015-11-25 01:30")
    second = Window.anniversary(utc("2015-10-25 01:30"), berlin)
    assert second.anchor == utc("2015-10-25 01:30")
    assert_windows(second, "2015-09-25 00:30", "2015-10-25 00:30", "2015-11-25 01:30")
    with_zone = datetime(2015, 10, 25, 2, 30, tzinfo=ZoneInfo(berlin), fold=1)
    assert Window.anniversary(with_zone, berlin) == second


def test_an_anniversary_on_a_day_that_a_zone_left_out() -> None:
    """Apia's December 30, 2011, 09:00 never came: the next instant is December 31, 00:00."""
    window = Window.anniversary(datetime.fromisoformat("2011-10-30T09:00:00-10:00"), "Pacific/Apia")
    assert_windows(window, "2011-11-30 19:00", "2011-12-30 10:00", "2012-01-29 19:00")


def test_an_anniversary_over_which_the_clock_goes_back() -> None:
    """Begun at 00:00:30 on November 1, it is not left again when the clock shows October 31 once more."""
    window = Window.anniversary(datetime.fromisoformat("2009-09-01T00:00:30-02:30"), "America/St_Johns")
    assert_windows(window, "2009-10-01 02:30:30", "2009-11-01 02:30:30", "2009-12-01 03:30:30")
    assert window.bounds(utc("2009-11-01 02:45")) == (utc("2009-11-01 02:30:30"), utc("2009-12-01 03:30:30"))


# -- fixed and lifetime ------------------------------------------------------------------------------------------


def test_fixed_windows_are_counted_from_the_anchor_in_both_directions() -> None:
    """In real time: clock changes do not matter."""
    window = Window.fixed(timedelta(hours=5), utc("2026-01-01 00:00:00.5"))
    assert_windows(
        window,
        "2025-12-31 14:00:00.5",
        "2025-12-31 19:00:00.5",
        "2026-01-01 00:00:00.5",
        "2026-01-01 05:00:00.5",
        "2026-01-01 10:00:00.5",
    )
    assert window == Window.fixed(timedelta(hours=5), datetime.fromisoformat("2026-01-01T05:30:00.5+05:30"))
    assert_windows(Window.fixed(timedelta(days=3660), utc("2026-01-01 00:00")), "2026-01-01 00:00", "2036-01-09 00:00")


def test_a_lifetime_window_never_ends() -> None:
    """Its bounds are the ends of the calendar, and nothing resets it."""
    window = Window.lifetime()
    everything = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
    assert [window.bounds(at) for at in (*everything, utc("2026-01-01 00:00"))] == [everything] * 3
    assert window.is_lifetime
    assert window.resets_at(utc("2026-01-01 00:00")) is None


def test_resets_at_is_the_end() -> None:
    """Of the window that the instant lies in."""
    window = Window.calendar("month", "Europe/Berlin")
    assert not window.is_lifetime
    assert window.resets_at(utc("2015-03-31 21:59")) == utc("2015-03-31 22:00")
    assert window.resets_at(utc("2015-03-31 22:00")) == utc("2015-04-30 22:00")


@pytest.mark.parametrize("unit", ["hour", "day", "week", "month"])
def test_the_calendar_begins_where_nothing_overflows(unit: Unit) -> None:
    """In UTC the first windows of the year 1 are answered; the last of 9999 would end in the year 10000."""
    first = datetime.min.replace(tzinfo=UTC)
    assert Window.calendar(unit).bounds(first)[0] == first
    with pytest.raises(InvalidInputError, match="1 to 9999"):
        Window.calendar(unit).bounds(datetime.max.replace(tzinfo=UTC))
