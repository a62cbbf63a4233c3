"""Windows: what the machine must not change, and what the refusals say."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from itertools import pairwise
from typing import Any

import pytest

from agentcredits.errors import InvalidInputError
from agentcredits.rules import windows
from agentcredits.rules.windows import MAX_DURATION, MIN_DURATION, Window
from tests.unit.instants import INSTANT, utc

ANCHOR = datetime(2026, 1, 1, tzinfo=UTC)


# -- the machine ---------------------------------------------------------------------------------------------------


@pytest.fixture
def machine_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets the time zone of the machine; the names are those of POSIX, whose signs are the other way round."""

    def to(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield to
    monkeypatch.undo()
    time.tzset()


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="this system does not let a process change its zone")
@pytest.mark.parametrize("machine", ["UTC", "<+1400>-14", "<-1200>12", "<+0530>-5:30", "<-0230>2:30"])
@pytest.mark.parametrize(
    ("text", "boundaries"),
    [
        ("day Etc/GMT+12", ("2026-01-09 12:00", "2026-01-10 12:00", "2026-01-11 12:00")),
        ("day Pacific/Kiritimati", ("2026-01-09 10:00", "2026-01-10 10:00", "2026-01-11 10:00")),
        ("day America/Havana", ("2015-03-07 05:00", "2015-03-08 05:00", "2015-03-09 04:00")),
        ("hour America/St_Johns", ("2010-11-07 01:30", "2010-11-07 02:30", "2010-11-07 02:31", "2010-11-07 03:30")),
        ("month Europe/Berlin", ("2026-01-31 23:00", "2026-02-28 23:00", "2026-03-31 22:00")),
        ("anniversary 2026-01-31T09:00:00+01:00 Europe/Berlin", ("2026-01-31 08:00", "2026-02-28 08:00")),
        ("fixed 5h 2026-01-01T05:30:00+05:30", ("2026-01-01 00:00", "2026-01-01 05:00")),
    ],
)
def test_the_zone_of_the_machine_does_not_matter(
    machine_zone: Callable[[str], None], machine: str, text: str, boundaries: tuple[str, ...]
) -> None:
    """Machines that share a ledger count in the same windows, and in UTC, wherever they stand."""
    machine_zone(machine)
    window = Window.parse(text)
    for start, end in pairwise(utc(boundary) for boundary in boundaries):
        for at in (start, start + (end - start) / 2, end - INSTANT):
            found = window.bounds(at.astimezone(timezone(timedelta(hours=-7))))
            assert found == (start, end)
            assert [bound.tzinfo for bound in found] == [UTC, UTC]


def test_utc_needs_no_time_zone_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slim container has none; the windows in UTC count all the same."""
    monkeypatch.setattr(windows, "_zone_names", frozenset)
    assert Window.calendar("day").bounds(utc("2026-01-01 12:00")) == (ANCHOR, ANCHOR + timedelta(days=1))
    with pytest.raises(InvalidInputError):
        Window.calendar("day", "Europe/Berlin")


class _Stamp(datetime):
    """A datetime of some library."""


@pytest.mark.parametrize(
    "anchor",
    [
        _Stamp(2026, 1, 1, tzinfo=UTC),
        datetime(2026, 1, 1, tzinfo=UTC, fold=1),
        _Stamp.fromisoformat("2026-01-01T05:30:00+05:30"),
    ],
)
def test_an_anchor_is_kept_as_a_plain_time_in_utc(anchor: datetime) -> None:
    """Whatever it came as: the fields of equal windows are equal in every respect."""
    kept = Window.fixed(timedelta(hours=1), anchor).anchor
    assert kept is not None
    assert (kept, type(kept), kept.tzinfo, kept.fold) == (ANCHOR, datetime, UTC, 0)


# -- what the refusals say -----------------------------------------------------------------------------------------


class _Nowhere(tzinfo):
    """A zone that does not know its offset: by Python's rules the time is naive."""

    def utcoffset(self, _at: datetime | None, /) -> timedelta | None:
        return None


def refused(make: Callable[[], object], words: str) -> InvalidInputError:
    """The refusal; it says the words, as whole words."""
    with pytest.raises(InvalidInputError, match=rf"(?<!\w){re.escape(words)}(?!\w)") as caught:
        make()
    return caught.value


@pytest.mark.parametrize(
    ("at", "words", "reason"),
    [
        ("today", "at must be a datetime with a time zone, not str.", "invalid_input"),
        (None, "at must be a datetime with a time zone, not NoneType.", "invalid_input"),
        (datetime(2026, 1, 1), "at has no time zone: give one, as in 2026-01-31T09:00:00+01:00.", "naive_datetime"),  # noqa: DTZ001
        (datetime(2026, 1, 1, tzinfo=_Nowhere()), "at has no time zone", "naive_datetime"),
        (datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))), "at lies outside the calendar", "out_of_range"),
    ],
)
def test_the_refusal_of_a_time_names_it_and_what_is_wrong(at: Any, words: str, reason: str) -> None:
    """A person can tell from the sentence what to pass instead."""
    assert refused(lambda: Window.calendar("day").bounds(at), words).reason == reason


@pytest.mark.parametrize(
    ("duration", "words"),
    [
        ("5h", "duration must be a timedelta, not str."),
        (3600, "duration must be a timedelta, not int."),
        (timedelta(seconds=1.5), "duration must be whole seconds."),
        (timedelta(0), "duration must be 1 second to 3660 days."),
        (MAX_DURATION + MIN_DURATION, "duration must be 1 second to 3660 days."),
    ],
)
def test_the_refusal_of_a_duration_says_what_it_may_be(duration: Any, words: str) -> None:
    """The type, the unit and the range."""
    refused(lambda: Window.fixed(duration, ANCHOR), words)


def test_the_range_of_durations_is_there_for_programs() -> None:
    """In whole seconds, beside the sentence; both ends are allowed."""
    context = refused(lambda: Window.fixed(timedelta(0), ANCHOR), "duration").context
    assert context == {"parameter": "duration", "minimum_seconds": 1, "maximum_seconds": 316_224_000}
    assert type(context["maximum_seconds"]) is int
    for duration in (MIN_DURATION, MAX_DURATION):
        assert Window.fixed(duration, ANCHOR).bounds(ANCHOR) == (ANCHOR, ANCHOR + duration)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "lifetime", "tz": "Europe/Berlin"}, "A window of kind lifetime has no tz: leave it out."),
        ({"kind": "month", "anchor": ANCHOR}, "A window of kind month has no anchor: leave it out."),
        (
            {"kind": "anniversary", "anchor": ANCHOR, "duration": timedelta(1)},
            "A window of kind anniversary has no duration: leave it out.",
        ),
    ],
)
def test_a_field_that_a_kind_does_not_use_is_to_be_left_out(fields: dict[str, Any], words: str) -> None:
    """The sentence names the kind and the field."""
    assert refused(lambda: Window(**fields), words).reason == "unused"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("anniversary 31.1.2026", "anchor '31.1.2026' is not a time: write for example 2026-01-31T09:00:00+01:00."),
        ("fixed 5x 2026-01-01T00:00:00Z", "duration '5x' cannot be read: write for example 90s, 30m, 5h or 1d12h."),
    ],
)
def test_a_part_of_a_text_that_cannot_be_read_is_shown(text: str, words: str) -> None:
    """With examples of what can."""
    refused(lambda: Window.parse(text), words)


def test_a_zone_is_corrected_only_where_one_is_near() -> None:
    """For a person and for a program; else the sentence has an example and there is nothing to apply."""
    near = refused(lambda: Window.calendar("day", "europe/berlin"), "did you mean Europe/Berlin?")
    assert near.suggestions == ("Use Europe/Berlin.",)
    far = refused(lambda: Window.calendar("day", "Nowhere/Atlantis-22"), "database: use a name such as Europe/Berlin.")
    assert (far.suggestions, far.fixes) == ((), ())
