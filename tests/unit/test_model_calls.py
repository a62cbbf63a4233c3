"""The usage of a model's call, counted while other threads look."""

from __future__ import annotations

from typing import Any, cast

from agentcredits import ModelCall, Place


def test_an_answer_is_counted_in_one_step() -> None:
    """Whoever settles the call from another thread sees all of an answer or nothing of it."""
    call = ModelCall(cast(Any, None), Place())
    assert not call.was_answered
    call.add({"total_tokens": 10, "successful_requests": 1})
    seen = call.usage
    call.add({"total_tokens": 5, "successful_requests": 1, "cached_prompt_tokens": 2})
    assert seen == {"total_tokens": 10, "successful_requests": 1}
    assert call.usage == {"total_tokens": 15, "successful_requests": 2, "cached_prompt_tokens": 2}
    assert call.was_answered
