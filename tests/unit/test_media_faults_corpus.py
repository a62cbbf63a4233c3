"""Provider faults on real messages: the corpus, each provider without its own rules, and the messages set aside.

``tests/data/provider_messages/README.md`` says where the messages are from and what the figures mean.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from agentcredits.media import FaultCategory, FaultRules, ProviderFault, classify_provider_error, load_fault_rules

FOLDER = Path(__file__).parents[1] / "data/provider_messages"
HOLDOUTS = [FOLDER / "holdout.jsonl", FOLDER / "holdout2.jsonl"]

#: Without its own rule this message cannot be told from OpenAI's sentence and code for used-up credit.
UNDECIDABLE = {"dashscope-07"}


#: What is still wrong in the messages set aside; both figures of the first, unseen runs are in the folder's README.
MISSED = {
    "holdout": {"holdout-various-11"},  # a full job list, told by a number alone: nothing in the value says it failed
    "holdout2": {
        "holdout2-bedrock-02",  # a printed JavaScript error: neither its name nor its metadata look like an answer
        "holdout2-elevenlabs-01",  # labelled as bad input; the corpus calls an unknown voice configuration
        "holdout2-elevenlabs-03",  # "quota is exceeded or your API key is invalid"
        "holdout2-various-08",  # a refused key that is worded as an invalid response
        "holdout2-various-22",  # 503 of a relay that has no channel for the model
    },
}


class FakeClientError(Exception):
    """An exception of a client that says everything in one sentence."""


def read(path: Path) -> list[dict[str, Any]]:
    return [{"provider": path.stem, **json.loads(line)} for line in path.read_text(encoding="utf-8").splitlines()]


CORPUS = [entry for path in sorted(FOLDER.glob("*.jsonl")) if path not in HOLDOUTS for entry in read(path)]
SET_ASIDE = {path.stem: read(path) for path in HOLDOUTS}
ALL_MESSAGES = [*CORPUS, *(entry for entries in SET_ASIDE.values() for entry in entries)]
PROVIDERS = sorted({entry["provider"] for entry in CORPUS})


@pytest.fixture(scope="module")
def rules() -> FaultRules:
    return load_fault_rules(entry_points=False)


def classify(entry: dict[str, Any], rules: FaultRules) -> ProviderFault:
    """As an application would: a text with a status is a body, one without is an exception's message."""
    given = {name: entry[name] for name in ("status", "headers", "body", "value") if name in entry}
    exception = None
    if "text" in entry and "status" in entry:
        given["body"] = entry["text"]
    elif "text" in entry:
        exception = FakeClientError(entry["text"])
    return classify_provider_error(exception, provider=entry["provider"], rules=rules, **given)


def answer(entry: dict[str, Any]) -> str:
    """What was seen of the answer, to compare messages by."""
    return json.dumps({name: entry.get(name) for name in ("body", "value", "text")}, sort_keys=True)


def wrong(entries: Iterable[dict[str, Any]], rules: FaultRules) -> dict[str, tuple[str, str, str]]:
    """Id → (expected, found, rule) of the entries that are not classified as expected."""
    found = ((entry, classify(entry, rules)) for entry in entries)
    return {
        entry["id"]: (entry["expect"], fault.category.value, fault.rule)
        for entry, fault in found
        if fault.category != entry["expect"]
    }


def test_the_corpus_is_large_real_and_mostly_negative() -> None:
    """At least 250 messages over the providers that are promised, each with a public source, most no exhaustion."""
    promised = {
        *("fal", "replicate", "openai", "google", "runway", "luma", "stability", "bfl", "minimax", "elevenlabs"),
        *("together", "huggingface", "beatoven", "anthropic", "deepseek", "openrouter"),
    }
    assert promised <= set(PROVIDERS)
    assert len(CORPUS) >= 250
    assert len({entry["id"] for entry in CORPUS}) == len(CORPUS)
    assert all(entry["source"].startswith("https://") for entry in CORPUS)
    assert {entry["expect"] for entry in CORPUS} == set(FaultCategory)
    negatives = sum(entry["expect"] != FaultCategory.CREDITS_EXHAUSTED for entry in CORPUS)
    assert negatives / len(CORPUS) >= 0.55


@pytest.mark.parametrize("provider", PROVIDERS)
def test_each_message_of_the_corpus_is_understood(provider: str, rules: FaultRules) -> None:
    """With all rules, every message gets its category."""
    assert wrong((entry for entry in CORPUS if entry["provider"] == provider), rules) == {}


def test_a_provider_is_understood_without_rules_of_its_own(rules: FaultRules) -> None:
    """Leave one provider out at a time: the other rules alone are right on 98 %, and take nothing for exhaustion."""
    misses: dict[str, tuple[str, str, str]] = {}
    sys.stdout.write(f"\n{'provider':14} messages  right\n")
    for provider in PROVIDERS:
        entries = [entry for entry in CORPUS if entry["provider"] == provider]
        missed = wrong(entries, rules.without(provider))
        sys.stdout.write(f"{provider:14} {len(entries):8}  {len(entries) - len(missed):5}\n")
        misses |= missed
    sys.stdout.write(
        f"{'together':14} {len(CORPUS):8}  {len(CORPUS) - len(misses):5}  ({1 - len(misses) / len(CORPUS):.1%})\n"
    )
    assert len(misses) / len(CORPUS) <= 0.02, misses
    assert {name for name, (_, found, _) in misses.items() if found == FaultCategory.CREDITS_EXHAUSTED} <= UNDECIDABLE


def test_leaving_a_provider_out_removes_its_rules(rules: FaultRules) -> None:
    """The measure above is not made with the rules that it claims to do without."""
    for provider in ("fal", "minimax", "openai"):
        assert not any(provider in rule.providers for rule in rules.without(provider).rules)
        assert any(provider in rule.providers for rule in rules.rules)


@pytest.mark.parametrize(("name", "right_at_first"), [("holdout", 58), ("holdout2", 57)])
def test_messages_set_aside_stay_understood(name: str, right_at_first: int, rules: FaultRules) -> None:
    """The messages gathered after the rules were written: never worse than in the first, unseen run, misses named."""
    entries = SET_ASIDE[name]
    missed = wrong(entries, rules)
    assert len(entries) - len(missed) >= right_at_first, missed
    assert set(missed) == MISSED[name]


def test_the_messages_set_aside_are_new_real_and_mostly_negative() -> None:
    """Nobody counts a message twice: not an id, and not the same answer under another id."""
    assert len({entry["id"] for entry in ALL_MESSAGES}) == len(ALL_MESSAGES)
    seen = {answer(entry) for entry in CORPUS}
    for entries in SET_ASIDE.values():
        answers = {answer(entry) for entry in entries}
        assert len(entries) >= 60
        assert len(answers) == len(entries)
        assert not answers & seen
        assert all(entry["source"].startswith("https://") for entry in entries)
        negatives = sum(entry["expect"] != FaultCategory.CREDITS_EXHAUSTED for entry in entries)
        assert negatives / len(entries) >= 0.55
        seen |= answers


def test_no_refusal_lock_or_limit_is_taken_for_exhaustion(rules: FaultRules) -> None:
    """What the dry-run fallback and the sticky breaker hang on, over all messages; with and without the provider."""
    for entry in ALL_MESSAGES:
        if entry["expect"] == FaultCategory.CREDITS_EXHAUSTED:
            continue
        assert classify(entry, rules).category != FaultCategory.CREDITS_EXHAUSTED, entry["id"]
        if entry["id"] not in UNDECIDABLE:
            unnamed = classify({**entry, "provider": None}, rules)
            assert unnamed.category != FaultCategory.CREDITS_EXHAUSTED, (entry["id"], unnamed.rule)


def test_no_customer_message_names_a_supplier_or_an_address(rules: FaultRules) -> None:
    """Two wallets: over all real messages, customers read our sentences and nothing of the raw message."""
    names = {word.lower() for provider in rules.providers.values() for word in (provider.name, provider.title)}
    seen: Counter[str] = Counter()
    for entry in ALL_MESSAGES:
        fault = classify(entry, rules)
        seen[fault.customer_message] += 1
    assert len(seen) <= len(FaultCategory)
    for sentence in seen:
        assert "://" not in sentence
        assert not any(name in sentence.lower().split() for name in names), sentence
