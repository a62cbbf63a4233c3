"""Secrets are taken out of what providers say, and nothing else is."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcredits.media import (
    classify_provider_error,
    redact,
)

NOW = datetime(2027, 1, 31, 12, 0, tzinfo=UTC)


# -- secrets -------------------------------------------------------------------------------------------------------

SECRETS = {
    "Authorization: Bearer abcDEFghijklmnop": "abcDEFghijklmnop",
    "Authorization: Key 0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f:0123456789abcdef0123456789abcdef": "0123456789abcdef",
    "Incorrect API key provided: sk-proj-abc123DEF456ghi789.": "abc123DEF456",
    "https://user:hunter22@example.com/path": "hunter22",
    "GET https://example.com/v1?key=AIzaSyA-1234567890abcdefghijklmnopqrstu&x=1": "AIzaSyA",
    "https://example.com/v1?X-Amz-Signature=deadbeefdeadbeef&a=b": "deadbeef",
    '{"api_key": "v3ryS3cret!", "prompt": "x"}': "v3ryS3cret",
    "xi-api-key: 0123456789abcdef0123456789abcdef01234567": "0123456789abcdef",
    "token r8_AbCdEfGhIjKlMnOp1234 rejected": "AbCdEfGh",
    "hf_abcdefGHIJKL1234 is not allowed": "abcdefGHIJKL",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl": "eyJzdWIi",
    "aws AKIAIOSFODNN7EXAMPLE": "AKIAIOSFODNN7",
    "password=hunter2222 next": "hunter2222",
}


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_are_taken_out(text: str) -> None:
    """Whatever shape they have; doing it twice changes nothing."""
    cleaned = redact(text)
    assert SECRETS[text] not in cleaned
    assert "[redacted]" in cleaned
    assert redact(cleaned) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "Key limit exceeded (total limit).",
        "Limit 40000 tokens, requested token count 39485.",
        "Top up your balance at https://fal.ai/dashboard/billing?tab=credits.",
        "Request id 021787385003028709, job b68e1d8f-31a3-4a04-aa41-bf442d857ccd",
        "The key to this is a longer prompt; basic settings do.",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    """A redacted message must still tell what happened."""
    assert redact(text) == text


def test_a_fault_keeps_no_secret_and_no_long_message() -> None:
    """Message, code and guidance are fit to be stored."""
    body = {
        "error": {
            "message": "Incorrect API key provided: sk-proj-abc123DEF456ghi789. " + "x" * 5_000,
            "code": "hf_abcdefGHIJKL1234",
        }
    }
    fault = classify_provider_error(status=401, body=body, now=NOW)
    assert "abc123DEF456" not in str(fault)
    assert "GHIJKL1234" not in str(fault)
    assert len(fault.message) <= 500


@given(st.text(max_size=400))
def test_redacting_is_total_and_settles(text: str) -> None:
    """Any text; the second time finds nothing more."""
    once = redact(text)
    assert redact(once) == once
