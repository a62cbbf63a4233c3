"""Windows as texts and values: what is read and written, what is asked of them, and what is refused."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from agentcredits.errors import InvalidInputError
from agentcredits.rules import windows
from agentcredits.rules.windows import MAX_WINDOW_LENGTH, Window, WindowKind
from tests.unit.instants import utc


@pytest.fixture(autouse=True)
def _nothing_was_read_before() -> None:
    """Reading is cached: each test reads its texts itself."""
    windows._parse.cache_clear()


# -- what is asked of a window -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "hour Asia/Kolkata",
        "day Asia/Kolkata",
        "month",
        "anniversary 2026-01-31T09:00:00+00:00 Asia/Kolkata",
        "fixed 5h 2026-01-01T00:00:00+00:00",
        "lifetime",
    ],
)
def test_bounds_are_plain_datetimes_in_utc_whatever_is_asked(text: str) -> None:
    """Another zone, the second of two equal local times and a subclass name the same instant."""

    class Stamp(datetime):
        pass

    window = Window.parse(text)
    expected = window.bounds(utc("2015-10-25 01:30"))
    for at in (
        datetime(2015, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
        datetime(2015, 10, 25, 1, 30, tzinfo=UTC, fold=1),
        datetime(2015, 10, 25, 1, 30, tzinfo=ZoneInfo("UTC")),
        Stamp(2015, 10, 25, 1, 30, tzinfo=UTC),
    ):
        found = window.bounds(at)
        assert found == expected
        assert [(type(bound), bound.tzinfo, bound.fold) for bound in found] == [(datetime, UTC, 0)] * 2


@pytest.mark.parametrize("at", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
@pytest.mark.parametrize(
    "text",
    [
        "hour Asia/Tokyo",
        "hour America/New_York",
        "day Asia/Tokyo",
        "day America/New_York",
        "week Europe/Berlin",
        "month Europe/Berlin",
        "anniversary 2026-01-31T09:00:00+00:00 Europe/Berlin",
        "fixed 5h 2026-01-01T03:00:00+00:00",
    ],
)
def test_a_window_that_reaches_beyond_the_calendar_is_refused(text: str, at: datetime) -> None:
    """With the typed error, not an OverflowError; two months further in is answered."""
    window = Window.parse(text)
    with pytest.raises(InvalidInputError, match="1 to 9999") as caught:
        window.bounds(at)
    assert (caught.value.reason, caught.value.context["parameter"]) == ("out_of_range", "at")
    inside = at + timedelta(days=62) if at.year == 1 else at - timedelta(days=62)
    start, end = window.bounds(inside)
    assert start <= inside < end


# -- texts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "window", "canonical"),
    [
        ("hour", Window.calendar("hour"), "hour UTC"),
        ("day UTC", Window.calendar("day"), "day UTC"),
        ("week Asia/Kolkata", Window.calendar("week", "Asia/Kolkata"), "week Asia/Kolkata"),
        ("month", Window.calendar("month"), "month UTC"),
        (" month  Europe/Berlin ", Window.calendar("month", "Europe/Berlin"), "month Europe/Berlin"),
        (
            "anniversary 2026-01-31T09:00:00+01:00 Europe/Berlin",
            Window.anniversary(utc("2026-01-31 08:00"), "Europe/Berlin"),
            "anniversary 2026-01-31T08:00:00+00:00 Europe/Berlin",
        ),
        (
            "anniversary 2026-01-31T08:00:00.25Z",
            Window.anniversary(utc("2026-01-31 08:00:00.25")),
            "anniversary 2026-01-31T08:00:00.250000+00:00 UTC",
        ),
        (
            "fixed 5h 2026-01-01T00:00:00+00:00",
            Window.fixed(timedelta(hours=5), utc("2026-01-01 00:00")),
            "fixed 5h 2026-01-01T00:00:00+00:00",
        ),
        ("lifetime", Window.lifetime(), "lifetime"),
    ],
)
def test_a_text_is_read_and_written(text: str, window: Window, canonical: str) -> None:
    """The canonical text always has the zone, and the anchor in UTC; reading it gives the same window."""
    assert Window.parse(text) == window
    assert str(window) == canonical
    assert Window.parse(canonical) == window


def test_the_longest_canonical_text_is_short_enough_to_store() -> None:
    """And to be read again."""
    anchor = utc("2026-01-31 08:00:00.123456")
    texts = [
        str(Window.anniversary(anchor, "America/Argentina/ComodRivadavia")),
        str(Window.fixed(timedelta(days=3659, seconds=86399), anchor)),
    ]
    assert max(map(len, texts)) <= MAX_WINDOW_LENGTH
    assert [str(Window.parse(text)) for text in texts] == texts


@pytest.mark.parametrize(
    ("text", "duration", "canonical"),
    [
        ("1s", timedelta(seconds=1), "1s"),
        ("90s", timedelta(seconds=90), "90s"),
        ("1m30s", timedelta(seconds=90), "90s"),
        ("60s", timedelta(minutes=1), "1m"),
        ("90m", timedelta(minutes=90), "1h30m"),
        ("36h", timedelta(hours=36), "1d12h"),
        ("1d12h", timedelta(hours=36), "1d12h"),
        ("1d1s", timedelta(days=1, seconds=1), "86401s"),
        ("1d0h05m0s", timedelta(days=1, minutes=5), "1d5m"),
        ("3660d", timedelta(days=3660), "3660d"),
        ("316223999s", timedelta(days=3660, seconds=-1), "316223999s"),
    ],
)
def test_durations_are_read_and_written(text: str, duration: timedelta, canonical: str) -> None:
    """Whole minutes in days, hours and minutes, anything else in seconds."""
    window = Window.parse(f"fixed {text} 2026-01-01T00:00:00+00:00")
    assert window.duration == duration
    assert str(window) == f"fixed {canonical} 2026-01-01T00:00:00+00:00"
    assert Window.parse(str(window)) == window


def test_a_window_is_a_plain_value() -> None:
    """Equal, hashable, copied and pickled by its fields; parse gives a window back as it is."""
    window = Window.anniversary(datetime.fromisoformat("2026-01-31T09:00:00+01:00"), "Europe/Berlin")
    assert Window.parse(window) is window
    assert {window: 1}[Window.parse(str(window))] == 1
    assert pickle.loads(pickle.dumps(window)) == copy.deepcopy(window) == window
    assert Window("month", "UTC") == Window(WindowKind.MONTH)  # type: ignore[arg-type]  # a text is taken too
    assert window != Window.anniversary(utc("2026-01-31 08:00"), "Europe/Paris")
    with pytest.raises(AttributeError):
        window.tz = "UTC"  # type: ignore[misc]  # the refusal is the point


# -- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "near"),
    [
        ("Europe/Berln", "Europe/Berlin"),
        ("europe/berlin", "Europe/Berlin"),
        ("Berlin", "Europe/Berlin"),
        ("America/New York", "America/New_York"),
    ],
)
def test_an_unknown_zone_is_refused_with_the_one_that_is_near(zone: str, near: str) -> None:
    """For a person and for a program."""
    with pytest.raises(InvalidInputError, match=f"did you mean {near}") as caught:
        Window.calendar("month", zone)
    assert caught.value.reason == "unknown_time_zone"
    assert caught.value.context == {"parameter": "tz", "value": zone}
    assert caught.value.fixes == ({"param": "tz", "value": near},)


@pytest.mark.parametrize(
    ("zone", "reason"),
    [
        ("Nowhere/Atlantis-22", "unknown_time_zone"),
        ("../../etc/passwd", "unknown_time_zone"),
        ("/usr/share/zoneinfo/Europe/Berlin", "unknown_time_zone"),
        ("Europe/../Europe/Berlin", "unknown_time_zone"),
        ("Europe\\Berlin", "unknown_time_zone"),
        ("Europe/Berlin\n", "unknown_time_zone"),
        ("Europe", "unknown_time_zone"),
        ("posix/Europe/Berlin", "unknown_time_zone"),
        ("tzdata.zi", "unknown_time_zone"),
        ("utc", "unknown_time_zone"),
        ("+01:00", "unknown_time_zone"),
        pytest.param("localtime", "unknown_time_zone", id="another zone on each machine"),
        ("Europe/Berlin\x00", "nul_character"),
        ("", "empty"),
        ("x" * 65, "too_long"),
        (None, "invalid_input"),
        (UTC, "invalid_input"),
        (ZoneInfo("Europe/Berlin"), "invalid_input"),
    ],
)
def test_what_is_no_zone_is_refused(zone: Any, reason: str) -> None:
    """Nothing but a name of the tz database reaches the file system."""
    for make in (lambda: Window.calendar("day", zone), lambda: Window.anniversary(utc("2026-01-01 00:00"), zone)):
        with pytest.raises(InvalidInputError) as caught:
            make()
        assert (caught.value.reason, caught.value.context["parameter"]) == (reason, "tz")


@pytest.mark.parametrize("unit", ["year", "Month", "", "fixed", "lifetime", "anniversary", None, 1, [], timedelta(1)])
def test_an_unknown_unit_is_refused(unit: Any) -> None:
    """The sentence names those there are."""
    with pytest.raises(InvalidInputError, match="hour, day, week, month") as caught:
        Window.calendar(unit)
    assert (caught.value.reason, caught.value.context["parameter"]) == ("unknown_unit", "unit")


@pytest.mark.parametrize(
    ("duration", "reason"),
    [
        (timedelta(0), "out_of_range"),
        (timedelta(seconds=-1), "out_of_range"),
        (timedelta(days=3660, seconds=1), "out_of_range"),
        (timedelta.max, "fraction"),
        (timedelta(milliseconds=1), "fraction"),
        (timedelta(seconds=1.5), "fraction"),
        (None, "invalid_input"),
        (3600, "invalid_input"),
        ("5h", "invalid_input"),
    ],
)
def test_a_duration_that_cannot_be_is_refused(duration: Any, reason: str) -> None:
    """Whole seconds, 1 second to 3660 days."""
    with pytest.raises(InvalidInputError) as caught:
        Window.fixed(duration, utc("2026-01-01 00:00"))
    assert (caught.value.reason, caught.value.context["parameter"]) == (reason, "duration")


@pytest.mark.parametrize(
    ("moment", "reason"),
    [
        (datetime(2026, 1, 1), "naive_datetime"),  # noqa: DTZ001  # the naive datetime is the point
        (datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))), "out_of_range"),
        (datetime.min.replace(tzinfo=ZoneInfo("Asia/Tokyo")), "out_of_range"),
        (date(2026, 1, 1), "invalid_input"),
        ("2026-01-01T00:00:00Z", "invalid_input"),
        (None, "invalid_input"),
        (0, "invalid_input"),
    ],
)
def test_a_time_that_cannot_be_is_refused(moment: Any, reason: str) -> None:
    """As an anchor and as the instant that is asked for, whatever the kind of window."""
    for make in (lambda: Window.anniversary(moment), lambda: Window.fixed(timedelta(hours=1), moment)):
        with pytest.raises(InvalidInputError) as caught:
            make()
        assert (caught.value.reason, caught.value.context["parameter"]) == (reason, "anchor")
    for text in ("hour", "month Europe/Berlin", "fixed 5h 2026-01-01T00:00:00Z", "lifetime"):
        for ask in (Window.parse(text).bounds, Window.parse(text).resets_at):
            with pytest.raises(InvalidInputError) as caught:
                ask(moment)
            assert (caught.value.reason, caught.value.context["parameter"]) == (reason, "at")


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"kind": "lifetime", "tz": "Europe/Berlin"}, "tz"),
        ({"kind": "fixed", "tz": "Europe/Berlin", "anchor": utc("2026-01-01 00:00"), "duration": timedelta(1)}, "tz"),
        ({"kind": "month", "anchor": utc("2026-01-01 00:00")}, "anchor"),
        ({"kind": "lifetime", "anchor": utc("2026-01-01 00:00")}, "anchor"),
        ({"kind": "anniversary", "anchor": utc("2026-01-01 00:00"), "duration": timedelta(1)}, "duration"),
        ({"kind": "anniversary"}, "anchor"),
        ({"kind": "fixed", "duration": timedelta(1)}, "anchor"),
        ({"kind": "fixed", "anchor": utc("2026-01-01 00:00")}, "duration"),
        ({"kind": "year"}, "kind"),
        ({"kind": None}, "kind"),
    ],
)
def test_fields_that_do_not_belong_together_are_refused(fields: dict[str, Any], parameter: str) -> None:
    """No Window exists whose text would lose a field."""
    with pytest.raises(InvalidInputError) as caught:
        Window(**fields)
    assert caught.value.context["parameter"] == parameter


@pytest.mark.parametrize(
    ("text", "reason", "parameter"),
    [
        ("", "empty", "window"),
        (" ", "unknown_window", "window"),
        ("year", "unknown_window", "window"),
        ("mnoth", "unknown_window", "window"),
        ("MONTH", "unknown_window", "window"),
        ("month UTC UTC", "unknown_window", "window"),
        ("lifetime UTC", "unknown_window", "window"),
        ("anniversary", "unknown_window", "window"),
        ("anniversary 2026-01-31 09:00:00+01:00 Europe/Berlin", "unknown_window", "window"),
        ("fixed 5h", "unknown_window", "window"),
        ("fixed 5h 2026-01-01T00:00:00Z UTC", "unknown_window", "window"),
        ("month\x00", "nul_character", "window"),
        ("month \ud800", "lone_surrogate", "window"),
        ("month " + "x" * 123, "too_long", "window"),
        ("month Mars/Phobos", "unknown_time_zone", "tz"),
        ("month ../../etc/passwd", "unknown_time_zone", "tz"),
        ("anniversary 31.1.2026", "not_a_time", "anchor"),
        ("anniversary 2026-02-30T00:00:00Z", "not_a_time", "anchor"),
        ("anniversary 2026-01-31T09:00:00", "naive_datetime", "anchor"),
        ("anniversary 2026-01-31 Europe/Berlin", "naive_datetime", "anchor"),
        ("anniversary 0001-01-01T00:00:00+01:00", "out_of_range", "anchor"),
        ("fixed h 2026-01-01T00:00:00Z", "not_a_duration", "duration"),
        ("fixed 5 2026-01-01T00:00:00Z", "not_a_duration", "duration"),
        ("fixed 5x 2026-01-01T00:00:00Z", "not_a_duration", "duration"),
        ("fixed 1h1d 2026-01-01T00:00:00Z", "not_a_duration", "duration"),
        ("fixed 0.5s 2026-01-01T00:00:00Z", "not_a_duration", "duration"),
        ("fixed -5h 2026-01-01T00:00:00Z", "not_a_duration", "duration"),
        ("fixed 999999999d999999999h 2026-01-01T00:00:00Z", "not_a_duration", "duration"),
        ("fixed \u0665h 2026-01-01T00:00:00Z", "not_a_duration", "duration"),
        ("fixed 0s 2026-01-01T00:00:00Z", "out_of_range", "duration"),
        ("fixed 3661d 2026-01-01T00:00:00Z", "out_of_range", "duration"),
        ("fixed 99999999d999999999h999999999m999999999s 2026-01-01T00:00:00Z", "out_of_range", "duration"),
        (None, "invalid_input", "window"),
        (b"month", "invalid_input", "window"),
        (WindowKind, "invalid_input", "window"),
        (timedelta(hours=5), "invalid_input", "window"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused(text: Any, reason: str, parameter: str) -> None:
    """Each with what is wrong, and twice alike (reading is cached)."""
    for _ in range(2):
        with pytest.raises(InvalidInputError) as caught:
            Window.parse(text)
        assert (caught.value.reason, caught.value.context["parameter"]) == (reason, parameter)


def test_the_refusal_of_a_text_says_what_to_write() -> None:
    """The kind that is near, or one example of each."""
    with pytest.raises(InvalidInputError, match="did you mean month"):
        Window.parse("mnoth Europe/Berlin")
    with pytest.raises(InvalidInputError, match="fixed 5h 2026-01-01T00:00:00"):
        Window.parse("fixed")
