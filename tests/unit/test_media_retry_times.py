"""When a provider may be asked again: headers, fields of the body, sentences."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from agentcredits.errors import InvalidInputError
from agentcredits.media import (
    classify_provider_error,
)

NOW = datetime(2027, 1, 31, 12, 0, tzinfo=UTC)


# -- when to come back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "body", "wait"),
    [
        ({"Retry-After": "30"}, None, timedelta(seconds=30)),
        ({"retry-after-ms": "1500"}, None, timedelta(seconds=1.5)),
        ({"Retry-After": "Sun, 31 Jan 2027 12:05:00 GMT"}, None, timedelta(minutes=5)),
        ({"Retry-After": "Sun, 31 Jan 2027 11:00:00 GMT"}, None, timedelta(0)),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m0s"}, None, timedelta(minutes=6)),
        ({"X-RateLimit-Reset": str(int(NOW.timestamp()) + 60)}, None, timedelta(seconds=60)),
        ({"X-RateLimit-Reset": str(int(NOW.timestamp() * 1000) + 60_000)}, None, timedelta(seconds=60)),
        ({"anthropic-ratelimit-requests-reset": "2027-01-31T12:00:40Z"}, None, timedelta(seconds=40)),
        ({"RateLimit": '"daily";r=0;t=3600'}, None, timedelta(hours=1)),
        ({}, {"error": {"details": [{"@type": "RetryInfo", "retryDelay": "45s"}]}}, timedelta(seconds=45)),
        ({}, {"detail": "Slow down", "retry_after": 5}, timedelta(seconds=5)),
        ({}, {"error": {"message": "Please try again in 9m38.016s."}}, timedelta(minutes=9, seconds=38.016)),
        ({}, {"error": {"message": "Please try again in 408ms."}}, timedelta(milliseconds=408)),
        ({}, {"detail": "Request was throttled. Your rate limit resets in ~30s."}, timedelta(seconds=30)),
        ({}, {"message": "Please retry after 86400 seconds."}, timedelta(days=1)),
        ({"Retry-After": "soon"}, {"retry_after": True}, None),
        ({"Retry-After": "99999999999"}, {"retry_after": float("nan")}, None),
        ({"Retry-After": "-5"}, {"retry_after": "1" * 400}, None),
        ({}, None, None),
    ],
)
def test_when_to_come_back_is_read_wherever_it_stands(
    headers: dict[str, str], body: object, wait: timedelta | None
) -> None:
    """Headers, fields and sentences; nonsense, and more than a year, count as not said."""
    fault = classify_provider_error(status=429, headers=headers, body=body, now=NOW)
    assert fault.category == "rate_limited"
    assert fault.retry_at == (None if wait is None else NOW + wait)


def test_a_window_ends_when_the_sentence_says() -> None:
    """Not retryable before, and the operator reads when."""
    sentence = "You have reached your specified API usage limits. You will regain access on 2027-02-01 at 00:00 UTC."
    body = {"error": {"message": sentence}}
    fault = classify_provider_error(provider="anthropic", status=400, body=body, now=NOW)
    assert (fault.category, fault.retryable) == ("quota_window", False)
    assert fault.retry_at == datetime(2027, 2, 1, tzinfo=UTC)
    assert "2027-02-01 00:00 UTC" in fault.guidance


def test_an_empty_balance_has_no_time_to_come_back() -> None:
    """A Retry-After beside it would only make clients hammer."""
    fault = classify_provider_error(
        status=402, headers={"Retry-After": "3"}, body={"error": "Insufficient credits"}, now=NOW
    )
    assert (fault.retryable, fault.retry_at) == (False, None)


def test_now_must_have_a_zone() -> None:
    """The one argument that is the caller's own mistake."""
    with pytest.raises(InvalidInputError, match="now has no time zone"):
        classify_provider_error(status=429, now=datetime(2027, 1, 1))  # noqa: DTZ001  # what is refused
