"""Price rules as documents: what the constructors write, what two rules say otherwise, how a rule is shown."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from agentcredits.errors import InvalidInputError
from agentcredits.rules.price_rules import PriceRule, token_dimensions, usable

NOW = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.mark.parametrize(
    ("make", "document"),
    [
        (lambda: PriceRule.flat(1), {"kind": "flat", "credits": "1"}),
        (lambda: PriceRule.flat(1, per="d", each=3), {"kind": "flat", "credits": "1", "per": "d", "each": "3"}),
        (
            lambda: PriceRule.usd("0.1", per="d", each=5, credits_per_usd=7),
            {"kind": "usd", "usd": "0.1", "per": "d", "each": "5", "credits_per_usd": "7"},
        ),
        (
            lambda: PriceRule.step("d", size=15, usd=2, credits_per_usd=7),
            {"kind": "step", "dimension": "d", "size": "15", "usd": "2", "credits_per_usd": "7"},
        ),
        (
            lambda: PriceRule.step("d", size=15, credits=2),
            {"kind": "step", "dimension": "d", "size": "15", "credits": "2"},
        ),
        (
            lambda: PriceRule.tokens(
                input=1,
                output=2,
                cached_input="0.5",
                cache_creation_input="1.25",
                credits_per_usd=7,
                estimate={"input_tokens": 3, "cache_creation_tokens": 2},
            ),
            {
                "kind": "tokens",
                "currency": "usd",
                "input": "1",
                "output": "2",
                "cached_input": "0.5",
                "cache_creation_input": "1.25",
                "estimate": {"input_tokens": "3", "cache_creation_tokens": "2"},
                "credits_per_usd": "7",
            },
        ),
        (
            lambda: PriceRule.table(["m"], [{"m": "a", "rule": PriceRule.usd(1, per="d")}], credits_per_usd=7),
            {
                "kind": "table",
                "dimensions": ["m"],
                "rows": [{"m": "a", "rule": {"kind": "usd", "usd": "1", "per": "d"}}],
                "credits_per_usd": "7",
            },
        ),
        (
            lambda: PriceRule.cost_plus("0.1", credits_per_usd=7, fee=2, rounding="down", round_to=5),
            {
                "kind": "cost_plus",
                "usd": "0.1",
                "credits_per_usd": "7",
                "fee": "2",
                "rounding": "down",
                "round_to": "5",
            },
        ),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_a_constructor_writes_every_one_of_its_fields(make: Callable[[], PriceRule], document: dict[str, Any]) -> None:
    """And its version."""
    assert make().document == {"version": 1, **document}


def test_the_stored_text_is_compact_and_readable() -> None:
    """Names in any script are stored as they are read; the same rule has the same text."""
    rule = PriceRule.table(["m"], [{"m": "Bücher", "credits": 1}])
    assert rule.as_json() == ('{"version":1,"kind":"table","dimensions":["m"],"rows":[{"m":"Bücher","credits":"1"}]}')


def test_values_of_a_row_are_not_read_as_rules() -> None:
    """Only the field "rule" holds one."""
    with pytest.raises(InvalidInputError) as caught:
        PriceRule.table(["m"], [{"m": PriceRule.flat(1), "credits": 1}])
    assert caught.value.context == {"field": "rows[0].m"}


def test_equal_rules_are_found_in_a_set() -> None:
    """By what they say, and not equal to anything else that says it."""
    rule = PriceRule.flat(1)
    assert len({rule, PriceRule.flat("1.0"), PriceRule.flat(2)}) == 2
    assert hash(rule) != hash(PriceRule.flat(2))
    assert (rule == rule.as_json(), rule == PriceRule.flat(2)) == (False, False)


def test_a_rule_is_shown_whole_while_it_is_short() -> None:
    """Up to 200 characters; else what kind it is."""

    def wide(characters: int) -> PriceRule:
        empty = PriceRule.table(["m"], [{"m": "a", "credits": 1}])
        return PriceRule.table(["m"], [{"m": "a" * (characters - len(empty.as_json()) + 1), "credits": 1}])

    whole, long = wide(200), wide(201)
    assert len(whole.as_json()) == 200
    assert repr(whole) == f"PriceRule({whole.as_json()})"
    assert repr(long) == "PriceRule(table of 1 over m)"


# -- what two rules say otherwise ----------------------------------------------------------------------------------


def lines(*rows: dict[str, Any], **more: Any) -> PriceRule:
    return PriceRule.table(["m"], rows, **more)


A, B = {"m": "a", "credits": 1}, {"m": "b", "credits": 2}


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (
            lines({"m": "a", "usd": "0.1"}, A | {"m": "c"}, credits_per_usd=10),
            lines({"m": "a", "usd": "0.2"}, A | {"m": "c"}, credits_per_usd=20),
            ("another credits_per_usd", "m=a: 0.1 usd → 0.2 usd"),
        ),
        (lines(A, B), lines(B, A), ("other rows or another order of them",)),
        (
            lines(A),
            lines(A | {"valid_until": "2027-01-01", "as_of": "2026-01-01", "source": "shop"}),
            ("m=a: 1 credits → 1 credits, valid_until 2027-01-01, as_of 2026-01-01, source shop",),
        ),
        (
            lines(A),
            lines({"m": "a", "rule": PriceRule.table(["q"], [{"q": "für", "credits": 1}])}),
            ('m=a: 1 credits → {"kind": "table", "dimensions": ["q"], "rows": [{"q": "für", "credits": "1"}]}',),
        ),
        (
            lines(A | {"valid_until": "2027-01-01"}, A | {"credits": 2}, B),
            lines(A | {"valid_until": "2027-01-01", "credits": 9}, A | {"credits": 2}, B | {"credits": 3}),
            (
                "m=a: 1 credits, valid_until 2027-01-01, then 2 credits"
                " → 9 credits, valid_until 2027-01-01, then 2 credits",
                "m=b: 2 credits → 3 credits",
            ),
        ),
    ],
)
def test_tables_are_compared_row_by_row(before: PriceRule, after: PriceRule, told: tuple[str, ...]) -> None:
    """Rate, price, end, day, source and inner rule; rows that follow one another are compared one by one too."""
    assert before.differences(after) == told


def test_tables_over_other_dimensions_are_not_compared_row_by_row() -> None:
    """Nor a table with a rule of another kind."""
    other = PriceRule.table(["m", "q"], [A])
    assert lines(A).differences(other) == ("other numbers",)
    assert PriceRule.flat(1).differences(lines(A)) == ("flat → table of 1 over m",)


# -- arguments -----------------------------------------------------------------------------------------------------


def test_dimensions_that_are_no_mapping_are_named() -> None:
    """With the type that was given."""
    with pytest.raises(InvalidInputError, match=r"^dimensions must be a mapping, not list\.$") as caught:
        PriceRule.flat(1).evaluate(["duration"], NOW)  # type: ignore[arg-type]
    assert caught.value.context == {"parameter": "dimensions"}


def test_a_rule_in_dollars_is_not_usable_without_a_rate() -> None:
    """The refusal says what is missing, and where."""
    with pytest.raises(InvalidInputError, match="the price is in USD: say what a dollar is worth") as caught:
        usable(PriceRule.usd(1))
    assert caught.value.context == {"field": "credits_per_usd"}


@pytest.mark.parametrize(
    ("usage", "parameter"),
    [
        ({"prompt_tokens": -1}, "prompt_tokens"),
        ({"completion_tokens": 1.5}, "completion_tokens"),
        ({"cached_tokens": True}, "cached_tokens"),
        ({"cached_prompt_tokens": "1"}, "cached_prompt_tokens"),
        ({"cache_creation_input_tokens": -1}, "cache_creation_input_tokens"),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": "2"}}, "prompt_tokens_details.cached_tokens"),
    ],
)
def test_a_count_that_is_none_is_named(usage: dict[str, Any], parameter: str) -> None:
    """In the provider's word."""
    with pytest.raises(InvalidInputError, match=rf"^{parameter} must be a whole number") as caught:
        token_dimensions(usage)
    assert caught.value.context == {"parameter": parameter}


def test_an_input_that_came_wholly_from_the_cache_is_counted_once() -> None:
    """Cached tokens are added only where the input cannot have them already."""
    assert token_dimensions({"prompt_tokens": 5, "cached_prompt_tokens": 5})["input_tokens"] == 5
    assert token_dimensions({"prompt_tokens": 5, "cached_prompt_tokens": 6})["input_tokens"] == 11


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        # CrewAI counts all parts in the input.
        ({"prompt_tokens": 100, "cached_prompt_tokens": 60, "cache_creation_tokens": 30}, (100, 60, 30)),
        # Anthropic counts none of them.
        ({"input_tokens": 100, "cache_read_input_tokens": 60, "cache_creation_input_tokens": 30}, (190, 60, 30)),
        ({"input_tokens": 100, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 30}, (130, 0, 30)),
        ({"input_tokens": 100, "cache_read_input_tokens": 60, "cache_creation_input_tokens": None}, (160, 60, None)),
        # LiteLLM's usage has Anthropic's names beside an input with everything in it.
        ({"prompt_tokens": 100, "cache_read_input_tokens": 60, "cache_creation_input_tokens": 30}, (100, 60, 30)),
        # OpenAI's two APIs.
        ({"prompt_tokens": 100, "prompt_tokens_details": {"cached_tokens": 60, "audio_tokens": 0}}, (100, 60, None)),
        ({"input_tokens": 100, "input_tokens_details": {"cached_tokens": 60}}, (100, 60, None)),
        ({"prompt_tokens": 100, "prompt_tokens_details": None, "cached_tokens": 60}, (100, 60, None)),
        ({"input_tokens": 9, "input_tokens_details": {"cached_tokens": 1}, "cached_prompt_tokens": 2}, (9, 2, None)),
        # The dimensions themselves.
        ({"input_tokens": 100, "cached_tokens": 60, "cache_creation_tokens": 30}, (100, 60, 30)),
        # An input that cannot have them already.
        ({"prompt_tokens": 80, "cached_prompt_tokens": 60, "cache_creation_tokens": 30}, (170, 60, 30)),
    ],
)
def test_every_token_of_the_input_is_counted_once(usage: dict[str, Any], counted: tuple[int | None, ...]) -> None:
    """Whether a provider counts what it cached as a part of its input, or beside it."""
    found = token_dimensions(usage)
    assert tuple(map(found.get, ("input_tokens", "cached_tokens", "cache_creation_tokens"))) == counted
