"""Documents of price rules: what is read as what, where the limits lie, and the place that each refusal names."""

from __future__ import annotations

import re
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any

import pytest

from agentcredits import InvalidInputError, PriceRule
from agentcredits.rules.price_parsing import MAX_BANDS, MAX_DEPTH, MAX_DOCUMENT_CHARACTERS
from agentcredits.testing import START as NOW

FLAT = {"kind": "flat", "credits": 1}
ROW = {"m": "a", "credits": 1}


def table(*rows: Any, **more: Any) -> dict[str, Any]:
    return {"kind": "table", "dimensions": ["m"], "rows": list(rows), **more}


def step(**fields: Any) -> dict[str, Any]:
    return {"kind": "step", "dimension": "d", **fields}


def tokens(**fields: Any) -> dict[str, Any]:
    return {"kind": "tokens", "input": 1, **fields}


def inside_cost_plus(rule: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "cost_plus", "credits_per_usd": 1, "rule": rule}


def nested(depth: int) -> dict[str, Any]:
    """A flat price inside so many tables."""
    rule: dict[str, Any] = FLAT
    for _ in range(depth):
        rule = table({"m": "a", "rule": rule})
    return rule


def assert_refused(problem: InvalidInputError, field: str, words: str) -> None:
    """The place and, as whole words, what is wrong with it."""
    assert problem.context == {"field": field}
    place = re.escape(f"{field}: " if field else "")
    assert re.match(rf"the price rule cannot be used: {place}.*(?<!\w){re.escape(words)}(?!\w)", problem.message)
    assert not problem.message.endswith("..")


# -- JSON text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (7, "it must be JSON text, not int"),
        (None, "it must be JSON text, not NoneType"),
        ("{", "it is no JSON (JSONDecodeError: Expecting property name"),
        ("[" * 100_000, "it is no JSON (RecursionError"),
        ('{"kind":"flat","credits":NaN}', "NaN is no number"),
        ('{"kind":"flat","credits":1,"credits":2}', "it has 'credits' twice"),
        (" " * MAX_DOCUMENT_CHARACTERS + "1", "it is longer than 4,000,000 characters"),
        ("[]", "it must be an object with named fields"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_text_that_is_no_document_is_refused_as_a_whole(text: Any, words: str) -> None:
    """No field is to blame; the sentence says what was found instead."""
    with pytest.raises(InvalidInputError) as caught:
        PriceRule.from_json(text)
    assert caught.value.reason == "bad_price_rule"
    assert_refused(caught.value, "", words)


def test_the_longest_text_is_read() -> None:
    """Four million characters."""
    text = '{"kind":"flat","credits":1}'
    assert PriceRule.from_json(text.ljust(MAX_DOCUMENT_CHARACTERS)) == PriceRule.flat(1)


def test_a_number_of_json_never_becomes_a_float() -> None:
    """21 digits are more than a float holds."""
    rule = PriceRule.from_json('{"kind":"flat","credits":123456789012.123456789}')
    assert rule.evaluate({}, NOW).amount == Fraction("123456789012.123456789")


@pytest.mark.parametrize(
    ("document", "field", "words"),
    [
        ({**FLAT, "version": 2}, "version", "this version of agentcredits knows version 1"),
        ({**FLAT, "version": True}, "version", "this version of agentcredits knows version 1"),
        ({"kind": "auction"}, "kind", "it must be one of flat, usd, table, step, cost_plus, tokens"),
        (table({"m": "a", "rule": {"kind": "auction"}}), "rows[0].rule.kind", "it must be one of flat"),
    ],
)
def test_what_a_later_version_wrote_is_told_by_its_place(document: Any, field: str, words: str) -> None:
    """The version or the kind, with those that are known."""
    with pytest.raises(InvalidInputError) as caught:
        PriceRule(document)
    assert caught.value.reason == "unknown_price_rule"
    assert_refused(caught.value, field, words)


# -- what is read --------------------------------------------------------------------------------------------------


class Resolution(Enum):
    FULL = "1080P"


def test_fields_that_are_left_out_have_their_default() -> None:
    """Also those that are there and null."""
    least = {"kind": "cost_plus", "usd": "0.0000015", "credits_per_usd": 1}
    assert PriceRule(least) == PriceRule.cost_plus("0.0000015", credits_per_usd=1)
    assert PriceRule(least).document == {
        "version": 1,
        "kind": "cost_plus",
        "usd": "0.0000015",
        "credits_per_usd": "1",
        "fee": "0",
        "rounding": "up",
        "round_to": "0.000001",
    }
    assert PriceRule({**least, "fee": None, "rule": None, "extra": None}) == PriceRule(least)
    assert PriceRule({**FLAT, "per": "d", "each": 1}) == PriceRule({**FLAT, "per": "d"})


def test_values_of_a_table_are_kept_as_they_were_written_and_numbers_in_one_way() -> None:
    """An Enum is its value; one value stands alone."""
    rows = [
        {"m": [6.0, " 7.50 ", Decimal("1e2"), "Model  A", Resolution.FULL], "credits": 1},
        {"m": "+8", "credits": 2},
    ]
    kept = PriceRule(table(*rows)).document["rows"]
    assert [row["m"] for row in kept] == [["6", "7.5", "100", "Model  A", "1080P"], "8"]


@pytest.mark.parametrize(
    ("bands", "prices"),
    [
        ([{"from": 0, "up_to": 5, "credits": 1}, {"from": 5, "up_to": 9, "credits": 2}], {"0.1": 1, "5": 1, "5.1": 2}),
        ([{"from": 4, "up_to": 4, "credits": 3}, {"from": 6, "credits": 4}], {"4": 3, "6": 4}),
    ],
)
def test_bands_may_touch_and_may_be_one_number(bands: list[dict[str, Any]], prices: dict[str, int]) -> None:
    """What two bands share belongs to the lower."""
    rule = PriceRule(step(bands=bands))
    assert {units: rule.evaluate({"d": units}, NOW).amount for units in prices} == prices


# -- limits --------------------------------------------------------------------------------------------------------


def test_the_largest_rules_are_read_and_larger_ones_refused() -> None:
    """Depth, dimensions, bands; the place that is too large is named."""
    assert PriceRule(nested(MAX_DEPTH)).evaluate({"m": "a"}, NOW).amount == 1
    with pytest.raises(InvalidInputError) as caught:
        PriceRule(nested(MAX_DEPTH + 1))
    assert_refused(caught.value, ".".join(["rows[0].rule"] * (MAX_DEPTH + 1)), "rules are nested more than 4 deep")

    names = list("abcdefg")
    assert PriceRule({**table({"a": 1, "credits": 1}), "dimensions": names[:6]}).evaluate({"a": 1}, NOW).amount == 1
    with pytest.raises(InvalidInputError) as caught:
        PriceRule({**table({"a": 1, "credits": 1}), "dimensions": names})
    assert_refused(caught.value, "dimensions", "it has 7 entries; at most 6 are allowed")

    bands = [{"up_to": number + 1, "credits": number} for number in range(MAX_BANDS + 1)]
    assert PriceRule(step(bands=bands[:MAX_BANDS])).evaluate({"d": MAX_BANDS}, NOW).amount == MAX_BANDS - 1
    with pytest.raises(InvalidInputError) as caught:
        PriceRule(step(bands=bands))
    assert_refused(caught.value, "bands", "it has 1,001 entries; at most 1,000 are allowed")


def test_a_table_prices_at_most_50_000_combinations() -> None:
    """However few rows say them."""
    many = {"a": list(range(250)), "b": list(range(200)), "credits": 1}
    document = {"kind": "table", "dimensions": ["a", "b"], "rows": [many]}
    assert PriceRule(document).evaluate({"a": 249, "b": 199}, NOW).amount == 1
    with pytest.raises(InvalidInputError) as caught:
        PriceRule({**document, "rows": [many, {"credits": 2}]})
    assert_refused(caught.value, "rows", "it prices more than 50,000 combinations")


# -- places --------------------------------------------------------------------------------------------------------

IN_CREDITS = [
    FLAT,
    step(size=1, credits=1),
    step(bands=[{"credits": 1}]),
    tokens(currency="credits"),
    {"kind": "cost_plus", "usd": 1, "credits_per_usd": 1},
]
WITH_A_RATE = [
    {"kind": "usd", "usd": 1},
    step(size=1, usd=1),
    step(bands=[{"usd": 1}]),
    tokens(currency="usd"),
    table({"m": "a", "usd": 1}),
]


def name_of(rule: dict[str, Any]) -> str:
    return " ".join(str(rule[field]) for field in ("kind", "bands") if field in rule)


@pytest.mark.parametrize("rule", IN_CREDITS, ids=name_of)
def test_inside_cost_plus_nothing_is_in_credits(rule: dict[str, Any]) -> None:
    """Directly and in the rows of a table; the rule that is to blame is named."""
    with pytest.raises(InvalidInputError) as caught:
        PriceRule(inside_cost_plus(rule))
    assert_refused(caught.value, "rule", "inside cost_plus prices are in usd")
    with pytest.raises(InvalidInputError) as caught:
        PriceRule(inside_cost_plus(table({"m": "a", "rule": rule})))
    assert_refused(caught.value, "rule.rows[0].rule", "inside cost_plus prices are in usd")


@pytest.mark.parametrize("rule", WITH_A_RATE, ids=name_of)
def test_inside_cost_plus_nothing_has_a_rate_of_its_own(rule: dict[str, Any]) -> None:
    """The rate of cost_plus is the only one; outside of it each of these may have one."""
    assert not PriceRule({**rule, "credits_per_usd": 2}).needs_rate
    assert PriceRule(inside_cost_plus(rule)).kind == "cost_plus"
    with pytest.raises(InvalidInputError) as caught:
        PriceRule(inside_cost_plus({**rule, "credits_per_usd": 2}))
    assert_refused(caught.value, "rule.credits_per_usd", "inside cost_plus the rate is cost_plus's own")


@pytest.mark.parametrize(
    "rule", [step(size=1, credits=1), step(bands=[{"credits": 1}]), tokens(currency="credits")], ids=name_of
)
def test_a_price_in_credits_has_no_rate(rule: dict[str, Any]) -> None:
    """It would be ignored."""
    with pytest.raises(InvalidInputError) as caught:
        PriceRule({**rule, "credits_per_usd": 2})
    assert_refused(caught.value, "credits_per_usd", "the price is in credits already")


@pytest.mark.parametrize(
    ("document", "field", "words"),
    [
        ({**FLAT, "x" * 100: 1}, "x" * 60, "there is no such field"),
        ({"kind": "cost_plus", "usd": 1, "credits_per_usd": 0}, "credits_per_usd", "must be above zero"),
        (step(bands=[]), "bands", "it must be a list that is not empty"),
        (step(bands=[{"up_to": 1, "credits": 1}, 5]), "bands[1]", "it must be an object with named fields"),
        (step(bands=[{"up_to": 0, "credits": 1}]), "bands[0].up_to", "must be above zero"),
        (step(bands=[{"up_to": 1, "credits": -1}]), "bands[0].credits", "must not be negative"),
        (step(bands=[{"up_to": 5, "credits": 1}, {"from": 4, "credits": 1}]), "bands[1].from", "it must lie above"),
        (step(size=1, credits=1, usd=1), "", "it needs either credits or usd"),
        (table({**ROW, "source": 5}), "rows[0].source", "it must be a text, not int"),
        (table({**ROW, "source": ""}), "rows[0].source", "it must not be empty"),
        (table({**ROW, "source": "s" * 256}), "rows[0].source", "it is 256 characters long; at most 255 are allowed"),
        (table({**ROW, "m": "a\x00"}), "rows[0].m", "it contains a NUL character: remove it"),
        (table({**ROW, "m": ["b", "\ud800"]}), "rows[0].m", "it contains a lone surrogate"),
        (table({**ROW, "m": "0.1234567890123"}), "rows[0].m", "has more than 12 decimals"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_the_place_of_a_slip_is_named(document: Any, field: str, words: str) -> None:
    """Beside the slips of test_price_slips: where the place and the sentence are less plain."""
    with pytest.raises(InvalidInputError) as caught:
        PriceRule(document)
    assert caught.value.reason == "bad_price_rule"
    assert_refused(caught.value, field, words)
