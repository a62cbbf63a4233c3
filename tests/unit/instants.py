"""Instants, as the tests of windows write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

INSTANT = timedelta(microseconds=1)


def utc(text: str) -> datetime:
    """``"2026-03-29 01:00"`` in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
