"""Rules: the package's, those of files and distributions, and what a malformed one says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentcredits.errors import ConfigurationError
from agentcredits.media import (
    classify_provider_error,
    load_fault_rules,
)
from agentcredits.media.rules import alternatives, required_letters

NOW = datetime(2027, 1, 31, 12, 0, tzinfo=UTC)


def answer(status: int, body: object, url: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
    return httpx.Response(status, json=body, headers=headers, request=httpx.Request("POST", url))


# -- rules of one's own --------------------------------------------------------------------------------------------

OWN = """
[[providers]]
name = "acme"
title = "Acme Media"
aliases = ["acme_media"]
hosts = ["acme.example"]
billing_url = "https://acme.example/billing"

[[rules]]
id = "acme.empty"
provider = "acme"
category = "credits_exhausted"
text = ['purse is empty']
customer_message = "Closed for today."
"""


def test_rules_of_a_file_come_first(tmp_path: Path) -> None:
    """A provider that the package does not know, by name, alias and address."""
    path = tmp_path / "acme.toml"
    path.write_text(OWN, encoding="utf-8")
    rules = load_fault_rules(path)
    body = {"error": "The purse is empty"}
    assert (
        classify_provider_error(provider="Acme Media", status=429, body=body, rules=rules, now=NOW).rule == "acme.empty"
    )
    response = answer(429, body, "https://api.acme.example/v1")
    fault = classify_provider_error(value=response, rules=rules, now=NOW)
    assert (fault.provider, fault.customer_message) == ("acme", "Closed for today.")
    assert "https://acme.example/billing" in fault.guidance
    assert classify_provider_error(provider="acme", status=429, body=body, now=NOW).category == "rate_limited"


def test_a_later_source_gives_way_to_an_earlier_one() -> None:
    """A mapping works like a file; of several, the first decides."""
    lenient = {"rules": [{"id": "mine", "category": "rate_limited", "status": [402]}]}
    strict = {"rules": [{"id": "theirs", "category": "account_locked", "status": [402]}]}
    assert classify_provider_error(status=402, rules=load_fault_rules([lenient, strict]), now=NOW).rule == "mine"
    assert classify_provider_error(status=402, rules=load_fault_rules([strict, lenient]), now=NOW).rule == "theirs"


def test_installed_distributions_add_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an entry point: a mapping, a path or a function that returns one."""

    class FakeEntryPoint:
        name = "acme"

        def load(self) -> Callable[[], dict[str, Any]]:
            return lambda: {"rules": [{"id": "plugged", "category": "transient", "status": [402]}]}

    monkeypatch.setattr("importlib.metadata.entry_points", lambda *, group: [FakeEntryPoint()])
    assert classify_provider_error(status=402, rules=load_fault_rules(), now=NOW).rule == "plugged"
    assert load_fault_rules(entry_points=False).rule("plugged") is None
    monkeypatch.setattr(FakeEntryPoint, "load", lambda _: 1 / 0)
    with pytest.raises(ConfigurationError, match="entry point acme"):
        load_fault_rules()


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"category": "other", "status": [402]}, ["rule 1", "id is missing"]),
        ({"id": "a", "status": [402]}, ["a: category is missing"]),
        ({"id": "a", "category": "broke", "status": [402]}, ["a: category is 'broke'", "credits_exhausted"]),
        ({"id": "a", "category": "other"}, ["a: text is missing"]),
        ({"id": "a", "category": "other", "status": ["often"]}, ["a: status has 'often'"]),
        ({"id": "a", "category": "other", "status": [True]}, ["a: status has True"]),
        ({"id": "a", "category": "other", "text": ["("]}, ["a: text has '('", "regular expression"]),
        ({"id": "a", "category": "other", "text": ["x*"]}, ["a: text has 'x*'", "matches every text"]),
        ({"id": "a", "category": "other", "text": [1]}, ["a: text must be a list of texts"]),
        ({"id": "a", "category": "other", "codes": ["x"], "scope": "galaxy"}, ["a: scope is 'galaxy'"]),
        ({"id": "a", "category": "other", "codes": ["x"], "retryable": "no"}, ["a: retryable must be true or false"]),
        ({"id": "a", "category": "other", "codes": ["x"], "colour": "red"}, ["a: colour is not known"]),
        ({"id": "a", "category": "other", "codes": ["x"], "guidance": "{nobody}"}, ["a: guidance has braces"]),
        (
            {"id": "a", "category": "other", "codes": ["x"], "customer_message": "Pay at https://fal.ai"},
            ["a: customer_message has an address"],
        ),
    ],
)
def test_a_malformed_rule_names_the_rule_and_the_field(rule: dict[str, Any], words: list[str]) -> None:
    """The operator sees at once what to mend."""
    with pytest.raises(ConfigurationError) as caught:
        load_fault_rules({"rules": [rule]}, entry_points=False)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"rules": [{"id": "content", "category": "other", "status": [402]}]}, "content: its id is used twice"),
        ({"rule": []}, "rule is not known"),
        ({"rules": "all"}, "must be a list of tables"),
        ({"providers": [{"title": "x"}]}, "provider 1: name is missing"),
        ("missing.toml", "missing.toml cannot be read"),
        (17, "neither a path nor a mapping"),
    ],
)
def test_a_malformed_source_is_named(source: Any, words: str) -> None:
    """Files, shapes and ids."""
    with pytest.raises(ConfigurationError, match=words):
        load_fault_rules([source], entry_points=False)


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    """With the parser's own place in the file."""
    path = tmp_path / "broken.toml"
    path.write_text("[[rules]\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"broken\.toml is not TOML"):
        load_fault_rules(path)


def test_every_rule_of_the_package_says_why() -> None:
    """`agentcredits detect` shows it; rules of one provider name their source."""
    for rule in load_fault_rules(entry_points=False).rules:
        assert rule.why, rule.id
        assert rule.source or not rule.providers, rule.id


@pytest.mark.parametrize(
    ("pattern", "letters"),
    [
        ("insufficient (?:credits|funds)", "insufficient "),
        ("top.?up your balance", "up your balance"),
        (r"per\s?day", "per"),
        ("credits?", "credit"),
        ("a{0,3}bc", "bc"),
        ("[xyz]abc[0-9]", "abc"),
        ("(?:a|b)", ""),
    ],
)
def test_the_letters_looked_for_first_are_in_every_match(pattern: str, letters: str) -> None:
    """A wrong one would silently switch a rule off."""
    assert required_letters(pattern) == letters


@pytest.mark.parametrize(
    ("pattern", "parts"),
    [
        ("a|b(?:c|d)", ["a", "b(?:c|d)"]),
        ("(?:a|b) c", ["a c", "b c"]),
        ("(?:a|b)? c", ["(?:a|b)? c"]),
        (r"\(x\)|[|]y", [r"\(x\)", "[|]y"]),
    ],
)
def test_alternatives_are_the_same_pattern_in_parts(pattern: str, parts: list[str]) -> None:
    """So are the parts of a pattern."""
    assert alternatives(pattern) == parts
