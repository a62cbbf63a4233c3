"""Times are aware and in UTC, or refused."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcredits.clock import as_utc, host_now
from agentcredits.errors import InvalidInputError


def test_the_hosts_clock_is_aware_and_in_utc() -> None:
    """host_now never gives a naive or local time."""
    before = datetime.now(UTC)
    now = host_now()
    assert before <= now <= datetime.now(UTC)
    assert now.tzinfo is UTC


def test_a_naive_datetime_is_refused_with_what_to_do() -> None:
    """No guess about the zone; the sentence shows the cure."""
    with pytest.raises(InvalidInputError, match=r"timezone\.utc") as caught:
        as_utc(datetime(2026, 1, 1), name="expires_at")  # noqa: DTZ001  # the naive datetime is the point
    assert (caught.value.reason, caught.value.context["parameter"]) == ("naive_datetime", "expires_at")


@pytest.mark.parametrize("value", [None, 0, 1.5, "2026-01-01T00:00:00Z", date(2026, 1, 1), timedelta(1), object()])
def test_what_is_no_datetime_is_refused(value: Any) -> None:
    """Texts, numbers and dates are not converted."""
    with pytest.raises(InvalidInputError) as caught:
        as_utc(value, name="effective_at")
    assert caught.value.context["parameter"] == "effective_at"


@pytest.mark.parametrize(
    "value",
    [
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-12))),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
    ],
)
def test_a_time_that_utc_cannot_hold_is_refused(value: datetime) -> None:
    """The ends of the calendar in a far zone give the typed error, not an OverflowError."""
    with pytest.raises(InvalidInputError):
        as_utc(value, name="expires_at")


@given(
    st.datetimes(
        min_value=datetime(1, 1, 3),  # noqa: DTZ001  # hypothesis takes naive bounds
        max_value=datetime(9999, 12, 29),  # noqa: DTZ001  # hypothesis takes naive bounds
        timezones=st.sampled_from(
            [UTC, ZoneInfo("Asia/Kolkata"), ZoneInfo("America/New_York"), ZoneInfo("Pacific/Apia")]
        ),
    )
)
def test_any_aware_datetime_becomes_the_same_instant_in_utc(value: datetime) -> None:
    """Zones, odd offsets and both folds of a clock change keep their instant."""
    converted = as_utc(value, name="expires_at")
    assert converted.tzinfo is UTC
    assert converted.timestamp() == pytest.approx(value.timestamp(), abs=1e-3)
    assert converted - value.astimezone(UTC) == timedelta(0)
