"""Price rules as documents that are read again the same, and every slip in one refused with its place."""

from __future__ import annotations

import json
import pickle
import re
from decimal import Decimal
from typing import Any

import pytest

from agentcredits import InvalidInputError, PriceRule
from tests.unit.price_examples import MODELS, TOKENS

# -- documents -----------------------------------------------------------------------------------------------------


EVERY_KIND = [
    PriceRule.flat(1),
    PriceRule.flat("0.5", per="duration", each=2),
    PriceRule.usd("0.05", credits_per_usd=100),
    MODELS,
    PriceRule.step("duration", size=15, usd=1, credits_per_usd="0.5"),
    PriceRule.step("duration", bands=[{"up_to": 5, "credits": 25}, {"from": 8, "credits": 50}]),
    PriceRule.cost_plus("0.05", credits_per_usd=2000, fee=120, rounding="half_up", round_to=1),
    PriceRule.cost_plus(PriceRule.usd(1, per="provider_usd"), credits_per_usd=1),
    TOKENS,
    PriceRule.tokens(input=1, output=2, currency="credits", estimate={"input_tokens": 5}),
    PriceRule.table(
        ["m"],
        [
            {
                "m": ["a", 2],
                "rule": PriceRule.tokens(input=1),
                "valid_until": "2027-01-01",
                "as_of": "2026-01-01",
                "source": "s",
            }
        ],
        credits_per_usd=3,
    ),
]


@pytest.mark.parametrize("rule", EVERY_KIND, ids=lambda rule: rule.kind)
def test_a_rule_is_its_document(rule: PriceRule) -> None:
    """Through JSON, a mapping and a pickle it stays the same rule; every number in it is a text."""
    assert PriceRule.from_json(rule.as_json()) == rule
    assert PriceRule(rule.document) == rule
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert hash(PriceRule(rule.document)) == hash(rule)
    assert rule.document["version"] == 1
    assert rule.kind == rule.document["kind"]
    assert rule.summary
    numbers = json.loads(rule.as_json(), parse_float=lambda text: pytest.fail(f"a float: {text}"))
    assert numbers == rule.document


def test_a_document_typed_by_hand_is_the_rule_of_the_constructor() -> None:
    """Without a version, with JSON numbers, in any order of fields."""
    typed = '{"credits": 1, "size": 15.0, "dimension": "duration", "kind": "step"}'
    assert PriceRule.from_json(typed) == PriceRule.step("duration", size=15, credits=1)
    assert PriceRule.from_json('{"kind":"flat","credits":0.1}') == PriceRule.flat("0.1")


def test_what_two_rules_say_otherwise_is_told_row_by_row() -> None:
    """For two tables over the same dimensions; else only what kind they are."""
    before = PriceRule.table(["m"], [{"m": "a", "credits": 1}, {"m": "b", "credits": 2}])
    after = PriceRule.table(["m"], [{"m": "a", "credits": 3}, {"m": "c", "credits": 2}])
    assert before.differences(after) == (
        "m=a: 1 credits → 3 credits",
        "m=b: 2 credits → none",
        "m=c: none → 2 credits",
    )
    assert before.differences(TOKENS) == ("table of 2 over m → by tokens",)
    assert TOKENS.differences(PriceRule.tokens(input=1)) == ("other numbers",)


# -- slips ---------------------------------------------------------------------------------------------------------


FLAT = {"kind": "flat", "credits": 1}
ROW = {"m": "a", "credits": 1}


def table(*rows: Any, **more: Any) -> dict[str, Any]:
    return {"kind": "table", "dimensions": ["m"], "rows": list(rows), **more}


@pytest.mark.parametrize(
    ("document", "field", "words"),
    [
        ([], "", "object with named fields"),
        ({1: 2}, "", "object with named fields"),
        ({**FLAT, "extra": 1}, "extra", "no such field"),
        ({"kind": "flat"}, "credits", "missing"),
        ({"kind": "flat", "credits": -1}, "credits", "not be negative"),
        ({"kind": "flat", "credits": "NaN"}, "credits", "decimal number"),
        ({"kind": "flat", "credits": float("inf")}, "credits", "decimal number"),
        ({"kind": "flat", "credits": True}, "credits", "decimal number"),
        ({"kind": "flat", "credits": "1,5"}, "credits", "decimal number"),
        ({"kind": "flat", "credits": "1e13"}, "credits", "above"),
        ({"kind": "flat", "credits": "1e-13"}, "credits", "decimals"),
        ({"kind": "flat", "credits": Decimal("1e-999999")}, "credits", "decimals"),
        ({"kind": "flat", "credits": Decimal("1e999999")}, "credits", "above"),
        ({"kind": "flat", "credits": [1]}, "credits", "decimal number"),
        ({**FLAT, "each": 2}, "each", "goes with per"),
        ({**FLAT, "per": "duration", "each": 0}, "each", "above zero"),
        ({**FLAT, "per": "my duration"}, "per", "it must name a dimension"),
        ({**FLAT, "credits_per_usd": 1}, "credits_per_usd", "no such field"),
        ({"kind": "usd", "usd": 1, "credits_per_usd": 0}, "credits_per_usd", "above zero"),
        (table(), "rows", "not empty"),
        (table("a"), "rows[0]", "object with named fields"),
        (table({"m": "a"}), "rows[0]", "exactly one of credits, usd and rule"),
        (table({**ROW, "usd": 1}), "rows[0]", "exactly one of credits, usd and rule"),
        (table(ROW, {**ROW, "credits": -2}), "rows[1].credits", "not be negative"),
        (table({**ROW, "resolution": "x"}), "rows[0].resolution", "no such field"),
        (table({**ROW, "m": []}), "rows[0].m", "it must be a text"),
        (table({**ROW, "m": ["a", "*"]}), "rows[0].m", "it must be a text"),
        (table({**ROW, "m": " "}), "rows[0].m", "it must be a text"),
        (table({**ROW, "m": {"x": 1}}), "rows[0].m", "it must be a text"),
        (table({**ROW, "m": ["a", "A"]}), "rows[0]", "the same value twice"),
        (table(ROW, {"m": "A", "credits": 2}), "rows[1]", "never reached: rows[0] comes first"),
        (table({"credits": 1}, ROW), "rows[1]", "never reached: rows[0] comes first"),
        (table({**ROW, "valid_until": "soon"}), "rows[0].valid_until", "it must be a day"),
        (table({**ROW, "rule": None}, credits_per_usd=-1), "credits_per_usd", "above zero"),
        (table({"m": "a", "rule": {"kind": "flat"}}), "rows[0].rule.credits", "missing"),
        ({**table(ROW), "dimensions": ["m", "m"]}, "dimensions", "twice"),
        ({**table(ROW), "dimensions": []}, "dimensions", "not empty"),
        ({**table(ROW), "dimensions": "m"}, "dimensions", "a list"),
        ({**table(ROW), "dimensions": ["credits"]}, "dimensions[0]", "it must name a dimension"),
        ({**table(ROW), "dimensions": list("abcdefg")}, "dimensions", "at most 6"),
        ({"kind": "step", "dimension": "d", "credits": 1}, "", "either size or bands"),
        ({"kind": "step", "dimension": "d", "size": 0, "credits": 1}, "size", "above zero"),
        ({"kind": "step", "dimension": "d", "size": 1}, "", "either credits or usd"),
        (
            {"kind": "step", "dimension": "d", "size": 1, "credits": 1, "credits_per_usd": 1},
            "credits_per_usd",
            "already",
        ),
        (
            {"kind": "step", "dimension": "d", "bands": [{"up_to": 5, "credits": 1}, {"up_to": 5, "credits": 2}]},
            "bands[1]",
            "above the band before it",
        ),
        (
            {"kind": "step", "dimension": "d", "bands": [{"credits": 1}, {"up_to": 5, "credits": 2}]},
            "bands[1]",
            "above the band before it",
        ),
        (
            {"kind": "step", "dimension": "d", "bands": [{"from": 6, "up_to": 5, "credits": 2}]},
            "bands[0].from",
            "not above up_to",
        ),
        (
            {"kind": "step", "dimension": "d", "bands": [{"up_to": 5, "credits": 1}, {"up_to": 6, "usd": 2}]},
            "bands[1]",
            "all bands",
        ),
        ({"kind": "cost_plus", "usd": 1}, "credits_per_usd", "missing"),
        ({"kind": "cost_plus", "credits_per_usd": 1}, "", "either usd or rule"),
        ({"kind": "cost_plus", "rule": FLAT, "credits_per_usd": 1}, "rule", "prices are in usd"),
        (
            {"kind": "cost_plus", "rule": table(ROW), "credits_per_usd": 1},
            "rule.rows[0]",
            "prices are in usd",
        ),
        (
            {"kind": "cost_plus", "rule": {"kind": "usd", "usd": 1, "credits_per_usd": 2}, "credits_per_usd": 1},
            "rule.credits_per_usd",
            "cost_plus's own",
        ),
        ({"kind": "cost_plus", "usd": 1, "credits_per_usd": 1, "rounding": "odd"}, "rounding", "up, half_up, down"),
        ({"kind": "cost_plus", "usd": 1, "credits_per_usd": 1, "round_to": "1e-7"}, "round_to", "the smallest amount"),
        ({"kind": "cost_plus", "usd": 1, "credits_per_usd": 1, "round_to": 0}, "round_to", "above zero"),
        ({"kind": "tokens", "input": 1}, "currency", "missing"),
        ({"kind": "tokens", "currency": "eur", "input": 1}, "currency", "credits or usd"),
        ({"kind": "tokens", "currency": "usd"}, "input", "missing"),
        ({"kind": "tokens", "currency": "usd", "input": 1, "estimate": {"x": 1}}, "estimate.x", "no such field"),
        (
            {"kind": "tokens", "currency": "usd", "input": 1, "estimate": {"input_tokens": "0.5"}},
            "estimate.input_tokens",
            "whole number",
        ),
    ],
)
def test_a_slip_in_a_rule_is_refused_with_its_place(document: Any, field: str, words: str) -> None:
    """The field is named as a path, and nothing is guessed."""
    with pytest.raises(InvalidInputError) as caught:
        PriceRule(document)
    assert (caught.value.reason, caught.value.context["field"]) == ("bad_price_rule", field)
    assert re.search(rf"(?<!\w){re.escape(words)}(?!\w)", caught.value.message)


@pytest.mark.parametrize(
    "document",
    [{}, {"kind": "auction"}, {"kind": None}, {"kind": ["flat"]}, {**FLAT, "version": 2}, {**FLAT, "version": "1"}],
)
def test_a_kind_or_version_of_later_is_told_apart(document: Any) -> None:
    """A database that a later version prices is not a typing error."""
    with pytest.raises(InvalidInputError) as caught:
        PriceRule(document)
    assert caught.value.reason == "unknown_price_rule"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "5",
        "[]",
        '"flat"',
        "{",
        '{"kind":"flat","credits":NaN}',
        '{"kind":"flat","credits":Infinity}',
        '{"kind":"flat","credits":1e999999999999999999999}',
        '{"kind":"flat","credits":1,"credits":2}',
        "[" * 100_000,
        '{"kind":"flat","credits":' + "9" * 5000 + "}",
        '{"kind":"flat","credits":0.' + "1" * 5000 + "}",
        '{"kind":"cost_plus","credits_per_usd":1,"rule":' * 50 + "1" + "}" * 50,
        None,
        b"{}",
        7,
    ],
    ids=lambda text: ascii(text)[:30],
)
def test_text_that_is_no_rule_is_refused_and_nothing_else_is_raised(text: Any) -> None:
    """Whatever an operator's SQL leaves in the column."""
    with pytest.raises(InvalidInputError) as caught:
        PriceRule.from_json(text)
    assert caught.value.reason in ("bad_price_rule", "unknown_price_rule")
