"""When the windows of days, weeks, months and anniversaries begin, as a calendar on the wall says it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

from agentcredits.rules.windows import Window

#: Longer than any of these windows: what has begun before a year begins.
MARGIN = timedelta(days=40)


def wall_windows(name: str, year: int) -> Iterator[Window]:
    """Windows of a zone that follow the date, anniversaries on days that short months do not have among them."""
    for unit in ("day", "week", "month"):
        yield Window.calendar(unit, name)  # type: ignore[arg-type]  # one of its four
    for day, hour, minute in ((31, 0, 0), (30, 2, 30), (29, 0, 0), (1, 0, 1), (5, 23, 45)):
        yield Window.anniversary(datetime(year + 1, 1, day, hour, minute, tzinfo=ZoneInfo(name)), name)


def walls(window: Window, since: datetime, until: datetime) -> Iterator[datetime]:
    """The local times at which windows of days, weeks, months and anniversaries begin; every day is looked at."""
    assert window.kind in ("day", "week", "month", "anniversary")
    anchor = None if window.anchor is None else window.anchor.astimezone(ZoneInfo(window.tz)).replace(tzinfo=None)
    day = since.date()
    while day <= until.date():
        tomorrow = day + timedelta(days=1)
        if anchor is not None:
            begins = day.day == anchor.day or (day.day < anchor.day and tomorrow.day == 1)
        else:
            begins = (
                window.kind == "day"
                or (window.kind == "week" and day.strftime("%A") == "Monday")
                or (window.kind == "month" and day.day == 1)
            )
        if begins:
            yield datetime.combine(day, time(0) if anchor is None else anchor.time())
        day = tomorrow
