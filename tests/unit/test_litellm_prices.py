"""A litellm price map becomes tables over models; what cannot be a price is left out and said, never sold."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from agentcredits import InvalidInputError, PriceList, PriceRule, UnpricedActionError
from agentcredits.litellm_prices import read_litellm

TODAY = date(2026, 11, 21)
NOW = datetime(2026, 11, 21, tzinfo=UTC)
CHAT = {
    "litellm_provider": "openai",
    "mode": "chat",
    "input_cost_per_token": 2.5e-06,
    "output_cost_per_token": 1e-05,
    "cache_read_input_token_cost": 1.25e-06,
}


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def call(models: Any, **arguments: Any) -> PriceList:
        path = tmp_path / "map.json"
        path.write_text(models if isinstance(models, str) else json.dumps(models), encoding="utf-8")
        return read_litellm(path, **{"credits_per_usd": 1000, "today": TODAY} | arguments)

    return call


def rule(prices: PriceList, action: str) -> PriceRule:
    (found,) = [entry.rule for entry in prices.entries if entry.action == action]
    assert found is not None
    return found


def cost(prices: PriceList, action: str, **dimensions: Any) -> Decimal:
    found = rule(prices, action).evaluate(dimensions, NOW).amount
    return Decimal(found.numerator) / Decimal(found.denominator)


def test_tokens_are_priced_per_million_under_both_names(read: Any) -> None:
    """A bare key is known by its provider too; numbers are exact, not the binary floats of the map."""
    prices = read({"GPT-4o": CHAT, "noisy": {**CHAT, "input_cost_per_token": 4.0000000000000003e-07}})
    for model in ("gpt-4o", "openai/gpt-4o", "OpenAI/GPT-4o"):
        found = cost(prices, "llm_call", model=model, input_tokens=1200, output_tokens=300, cached_tokens=200)
        assert found == Decimal("5.75")
    rows = rule(prices, "llm_call").document["rows"]
    assert rows[0]["model"] == ["openai/gpt-4o", "gpt-4o"]
    assert rows[0]["rule"] == {
        "kind": "tokens", "currency": "usd", "input": "2.5", "output": "10", "cached_input": "1.25",
    }  # fmt: skip
    assert rows[1]["rule"]["input"] == "0.4"
    assert prices.skipped == ()


def test_what_is_written_to_the_cache_has_its_price(read: Any) -> None:
    """Anthropic's map entries; a price like that of other input is not repeated."""
    caching = {**CHAT, "cache_creation_input_token_cost": 3.125e-06}
    prices = read({"claude": caching, "as-input": {**CHAT, "cache_creation_input_token_cost": 2.5e-06}})
    usage = {"input_tokens": 1200, "output_tokens": 0, "cached_tokens": 200, "cache_creation_tokens": 400}
    assert cost(prices, "llm_call", model="claude", **usage) == 3  # 600 x 2.5 + 200 x 1.25 + 400 x 3.125
    rows = rule(prices, "llm_call").document["rows"]
    assert [row["rule"].get("cache_creation_input") for row in rows] == ["3.125", None]


@pytest.mark.parametrize(
    ("key", "provider", "name"),
    [
        ("azure/gpt-4o", "azure", "azure/gpt-4o"),
        ("gemini-pro", "vertex_ai-language-models", "vertex_ai/gemini-pro"),
        ("anthropic.claude", "bedrock_converse", "bedrock/anthropic.claude"),
    ],
)
def test_names_are_provider_and_model(read: Any, key: str, provider: str, name: str) -> None:
    """However the map spells its provider."""
    prices = read({key: {**CHAT, "litellm_provider": provider}})
    assert cost(prices, "llm_call", model=name, input_tokens=1, output_tokens=0) == Decimal("0.0025")


def test_the_spellings_of_media_prices_are_one(read: Any) -> None:
    """Per image in or out, per second with or without "video", by resolution, per character."""
    prices = read(
        {
            "fal/a": {"litellm_provider": "fal", "mode": "image_generation", "output_cost_per_image": 0.04},
            "fal/b": {"litellm_provider": "fal", "mode": "image_edit", "input_cost_per_image": 0.05},
            "r/turbo": {"litellm_provider": "r", "mode": "video_generation", "output_cost_per_video_per_second": 0.05},
            "v/veo": {
                "litellm_provider": "v",
                "mode": "video_generation",
                "output_cost_per_second": 0.4,
                "output_cost_per_second_720p": 0.2,
                "output_cost_per_second_4k": 0.6,
            },
            "e/v3": {"litellm_provider": "e", "mode": "audio_speech", "input_cost_per_character": 0.00018},
            "o/emb": {"litellm_provider": "o", "mode": "embedding", "input_cost_per_token": 2e-08},
        }
    )
    assert cost(prices, "generate_image", model="fal/a") == 40
    assert cost(prices, "generate_image", model="fal/b") == 50
    assert cost(prices, "generate_video", model="r/turbo", duration=10) == 500
    assert cost(prices, "generate_video", model="v/veo", resolution="4K", duration=2) == 1200
    with pytest.raises(UnpricedActionError, match="resolution"):
        cost(prices, "generate_video", model="v/veo", resolution="1080p", duration=2)
    assert cost(prices, "generate_voice", model="e/v3", characters=1000) == 180
    assert cost(prices, "embed", model="o/emb", input_tokens=1_000_000) == 20


def test_a_model_ends_on_its_day_and_a_retired_one_is_left_out(read: Any) -> None:
    """deprecation_date is the end of the price."""
    prices = read({"a": {**CHAT, "deprecation_date": "2026-12-01"}, "b": {**CHAT, "deprecation_date": "2026-11-21"}})
    (row,) = rule(prices, "llm_call").document["rows"]
    assert row["valid_until"] == "2026-12-01"
    assert prices.skipped == ("1 × was retired: b",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"output_cost_per_token": 1.5}, "output_cost_per_token is outside 1E-9 to 0.01 USD per token"),
        ({"input_cost_per_token": 1e-12}, "input_cost_per_token is outside"),
        ({"input_cost_per_token": -1e-06}, "input_cost_per_token is outside"),
        ({"input_cost_per_token": "2.5e-06"}, "is no number"),
        ({"input_cost_per_token": True}, "is no number"),
        ({"input_cost_per_token": [1]}, "is no number"),
        ({"input_cost_per_token": 0, "output_cost_per_token": 0}, "costs nothing"),
        ({"output_cost_per_token": None}, "costs nothing, or has no price per token"),
        ({"cache_read_input_token_cost": 5}, "cache_read_input_token_cost is outside"),
        ({"mode": "rerank"}, "mode rerank has no price here"),
        ({"mode": None}, "mode None has no price here"),
        ({"mode": ["chat"]}, "has no price here"),
        ({"litellm_provider": None}, "no litellm_provider"),
        ({"deprecation_date": "soon"}, "deprecation_date is no day"),
        ({"deprecation_date": 5}, "deprecation_date is no day"),
    ],
)
def test_a_model_with_a_hostile_value_is_left_out_and_named(read: Any, changes: Any, words: str) -> None:
    """The others are imported all the same."""
    prices = read({"good": CHAT, "bad": {**CHAT, **changes}})
    assert [row["model"] for row in rule(prices, "llm_call").document["rows"]] == [["openai/good", "good"]]
    (sentence,) = prices.skipped
    assert words in sentence
    assert sentence.endswith(": bad")


@pytest.mark.parametrize("bad", ["", "x" * 300, "a\x00b", "a\ud800b"])
def test_a_model_with_an_unusable_name_is_left_out(read: Any, bad: str) -> None:
    """Neither database could hold it."""
    prices = read({"good": CHAT, bad: CHAT, "list": [], "text": "x", "sample_spec": {"mode": "one of …"}})
    assert len(rule(prices, "llm_call").document["rows"]) == 1
    assert len(prices.skipped) == 2


def test_a_model_that_is_there_twice_keeps_its_first_price(read: Any) -> None:
    """By its provider's name and by its bare name: the same price once, another one is reported."""
    same = read({"gpt-4o": CHAT, "openai/gpt-4o": CHAT})
    assert (len(rule(same, "llm_call").document["rows"]), same.skipped) == (1, ())
    other = read({"gpt-4o": CHAT, "openai/gpt-4o": {**CHAT, "input_cost_per_token": 1e-06}})
    assert cost(other, "llm_call", model="openai/gpt-4o", input_tokens=1_000_000, output_tokens=0) == 2500
    assert "twice with other prices" in other.skipped[0]


def test_dearer_prices_for_long_prompts_are_said(read: Any) -> None:
    """The base price is imported, and nobody thinks that it is all."""
    prices = read({"a": {**CHAT, "input_cost_per_token_above_200k_tokens": 5e-06}})
    assert "higher prices for long prompts" in prices.skipped[0]


def test_patterns_choose_models(read: Any) -> None:
    """By either name; what is not chosen is not reported."""
    models = {"gpt-4o": CHAT, "azure/gpt-4o": {**CHAT, "litellm_provider": "azure"}, "other": {"mode": "ocr"}}
    prices = read(models, only=["OpenAI/*"], agent_type="Writer", as_of=date(2026, 10, 1))
    assert [row["model"] for row in rule(prices, "llm_call").document["rows"]] == [["openai/gpt-4o", "gpt-4o"]]
    (entry,) = prices.entries
    assert (entry.agent_type, entry.as_of, entry.source) == ("Writer", date(2026, 10, 1), "litellm price map map.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "no price that can be used"),
        ('{"a": {"mode": "chat", "litellm_provider": "x", "input_cost_per_token": NaN}}', "no price that can be used"),
    ],
    ids=lambda part: part[:20],
)
def test_a_file_that_is_no_price_map_is_refused(read: Any, text: str, words: str) -> None:
    """With its name."""
    with pytest.raises(InvalidInputError, match=r"map\.json") as caught:
        read(text)
    assert words in caught.value.message


def test_the_catalogue_that_crewai_ships_is_read_whole() -> None:
    """Thousands of models; every row in its band, and what is left out is counted."""
    crewai = find_spec("crewai")
    assert crewai is not None
    assert crewai.origin is not None
    path = Path(crewai.origin).parent / "llms" / "litellm_catalog" / "model_prices_and_context_window.json"
    prices = read_litellm(path, credits_per_usd=1, today=TODAY)
    lines = {entry.action: len(entry.rule.document["rows"]) for entry in prices.entries if entry.rule is not None}
    assert set(lines) == {"llm_call", "embed", "generate_image", "generate_video", "generate_voice"}
    assert lines["llm_call"] > 2000
    assert lines["generate_image"] > 200
    assert lines["generate_video"] > 80
    assert cost(prices, "llm_call", model="gpt-4o", input_tokens=1_000_000, output_tokens=0) == Decimal("2.5")
    assert cost(prices, "generate_video", model="runwayml/gen4_turbo", duration=10) == Decimal("0.5")
    assert any("input_cost_per_character is outside" in line for line in prices.skipped)
    assert not any("cannot be used" in line for line in prices.skipped)
    for entry in prices.entries:
        assert entry.rule is not None
        assert PriceRule.from_json(entry.rule.as_json()) == entry.rule
