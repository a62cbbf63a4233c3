"""`agentcredits detect`: the category, the rule that hit, and what operator and customer read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentcredits.cli import main

LOCKED = "User is locked. Reason: Exhausted balance. Top up your balance at fal.ai/dashboard/billing."


def detect(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["detect", *words])
    streams = capsys.readouterr()
    return code, streams.out, streams.err


def test_it_says_what_the_error_means_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    """For a person: the rule with its reason, and one sentence for each reader."""
    code, out, err = detect(capsys, LOCKED, "--provider", "fal", "--status", "403")
    assert (code, err) == (0, "")
    assert "credits_exhausted" in out
    assert "fal.exhausted-balance (fal locks the user when the balance is used up)" in out
    operator, customer = out.strip().splitlines()[-2:]
    assert operator.startswith("Operator: ")
    assert "https://fal.ai/dashboard/billing" in operator
    assert customer == "Customer: This service is not available at the moment. Please try again later."


def test_json_holds_the_whole_fault(capsys: pytest.CaptureFixture[str]) -> None:
    """For a program."""
    _, out, _ = detect(capsys, '{"error": {"code": 429, "message": "Rate limit reached", "retry_after": 5}}', "--json")
    fault = json.loads(out)
    assert (fault["category"], fault["rule"], fault["status"], fault["retryable"]) == (
        "rate_limited",
        "rate",
        429,
        True,
    )
    assert fault["retry_at"] is not None
    assert fault["why"]


def test_the_same_words_of_another_provider_mean_something_else(capsys: pytest.CaptureFixture[str]) -> None:
    """The option decides between services that share a sentence."""
    sentence = "You exceeded your current quota"
    found = {
        provider: json.loads(detect(capsys, sentence, "--provider", provider, "--status", "429", "--json")[1])[
            "category"
        ]
        for provider in ("google", "dashscope")
    }
    assert found == {"google": "quota_window", "dashscope": "rate_limited"}


def test_an_unknown_text_is_said_to_be_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    """No guess; and no database is needed or made."""
    code, out, _ = detect(capsys, "the moon is made of cheese")
    assert code == 0
    assert "none (no rule applies)" in out


def test_secrets_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """A log line that is pasted here may be pasted on."""
    _, out, _ = detect(capsys, "Incorrect API key provided: sk-proj-abc123DEF456ghi789", "--status", "401")
    assert "abc123DEF456" not in out
    assert "[redacted]" in out


def test_own_rules_are_asked_first_and_checked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A file of rules is tried out here; a malformed one names the rule and the field."""
    path = tmp_path / "own.toml"
    path.write_text('[[rules]]\nid = "mine"\ncategory = "transient"\ntext = ["made of cheese"]\n', encoding="utf-8")
    assert "mine" in detect(capsys, "the moon is made of cheese", "--rules", str(path))[1]
    path.write_text('[[rules]]\nid = "mine"\ncategory = "cheesy"\ntext = ["cheese"]\n', encoding="utf-8")
    code, out, err = detect(capsys, "the moon", "--rules", str(path))
    assert (code, out) == (2, "")
    assert "own.toml: mine: category is 'cheesy'" in err
