"""Price rules under any document and any call: a price or a typed refusal, never zero, never less for more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agentcredits.errors import CreditsError, InvalidAmountError, InvalidInputError, UnpricedActionError
from agentcredits.model import Pricing
from agentcredits.rules.price_rules import PriceRule
from agentcredits.rules.pricing import CostRow, price
from agentcredits.testing import START as NOW

#: Numbers of a rule above zero.
NUMBERS = st.decimals(min_value=Decimal("1e-6"), max_value=10_000, places=6).filter(bool).map(str)
DIMENSIONS = ("model", "resolution", "duration")
VALUES = st.sampled_from(["a", "A", "b", "1080P", 6, "6", 10])
FIELDS = [
    "kind", "version", "credits", "usd", "per", "each", "dimension", "dimensions", "rows", "rule", "size", "bands",
    "from", "up_to", "currency", "input", "output", "cached_input", "cache_creation_input", "estimate",
    "credits_per_usd", "fee", "rounding", "round_to", "valid_until", *DIMENSIONS,
]  # fmt: skip
KINDS = ["flat", "usd", "table", "step", "cost_plus", "tokens"]


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


FIXED = st.builds(
    lambda unit, amount, per: {"kind": "flat" if unit == "credits" else "usd", unit: amount, "per": per},
    st.sampled_from(["credits", "usd"]),
    NUMBERS,
    optional(st.just("duration")),
)
STEPS = st.builds(
    lambda size, amount: {"kind": "step", "dimension": "duration", "size": size, "credits": amount}, NUMBERS, NUMBERS
)
TOKENS = st.builds(
    lambda paid, made, cached, created: {
        "kind": "tokens", "currency": "usd", "input": paid, "output": made, "cached_input": cached,
        "cache_creation_input": created,
    },
    NUMBERS,
    NUMBERS,
    optional(NUMBERS),
    optional(NUMBERS),
)  # fmt: skip
COST_PLUS = st.builds(
    lambda usd, rate, rounding, to: {
        "kind": "cost_plus", "usd": usd, "credits_per_usd": rate, "rounding": rounding, "round_to": to,
    },
    NUMBERS,
    NUMBERS,
    st.sampled_from(["up", "half_up", "down"]),
    NUMBERS,
)  # fmt: skip
PARTS = FIXED | STEPS | TOKENS | COST_PLUS
ROWS = st.lists(
    st.builds(
        lambda model, resolution, part: {"model": model, "resolution": resolution, "rule": part},
        VALUES,
        optional(VALUES),
        PARTS,
    ),
    min_size=1,
    max_size=5,
)
TABLES = st.builds(lambda rows: {"kind": "table", "dimensions": list(DIMENSIONS), "rows": rows}, ROWS)
RULES = st.builds(lambda rule, rate: {**rule, "credits_per_usd": rate}, FIXED | TOKENS | TABLES, optional(NUMBERS))
CALLS = st.fixed_dictionaries(
    {},
    optional={
        "model": VALUES,
        "resolution": VALUES,
        "duration": st.integers(-5, 100) | st.floats() | st.decimals() | st.text(max_size=5),
        "input_tokens": st.integers(-1, 10**7),
        "output_tokens": st.integers(0, 10**7),
        "cached_tokens": st.integers(0, 10**6),
        "cache_creation_tokens": st.integers(0, 10**6),
    },
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(KINDS) | NUMBERS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=6),
    max_leaves=20,
)


def answer(document: object, dimensions: Any, quantity: str = "1") -> tuple[int, CreditsError | None]:
    """The price in micros of a row that holds this rule, as a charge finds it, or the refusal."""
    row = CostRow("", "A", "b", 0, NOW, rule=json.dumps(document))
    try:
        found = price(
            row,
            agent_type="A",
            action="b",
            quantity=Decimal(quantity),
            dimensions=dimensions,
            at=NOW,
            record_unpriced=False,
        )
    except CreditsError as refusal:
        return 0, refusal
    assert found.pricing is Pricing.PRICED
    return found.amount_micros, None


def parsed(document: Any) -> tuple[PriceRule | None, CreditsError | None]:
    """The rule of a document, or why it is none."""
    try:
        return PriceRule(document), None
    except CreditsError as refusal:
        return None, refusal


@settings(max_examples=300, deadline=None)
@given(RULES | STEPS | COST_PLUS, CALLS, st.sampled_from(["1", "0.000001", "3.5"]))
def test_a_call_has_a_price_above_zero_or_a_typed_refusal(
    document: Mapping[str, Any], dimensions: Mapping[str, Any], quantity: str
) -> None:
    """No price of these rules is zero, so no charge is, however small the quantity; nothing untyped comes out."""
    micros, refusal = answer(document, dimensions, quantity)
    if refusal is None:
        assert micros >= 1
    else:
        assert isinstance(refusal, UnpricedActionError | InvalidAmountError)
        assert "A.b" in refusal.message or isinstance(refusal, InvalidAmountError)


@settings(max_examples=300, deadline=None)
@given(JSON, CALLS | JSON)
def test_any_json_is_a_rule_or_a_typed_refusal(document: Any, dimensions: Any) -> None:
    """In the table and at set_cost alike; what is taken is taken again in its own words."""
    _, refusal = answer(document, dimensions)
    assert refusal is None or isinstance(refusal, UnpricedActionError | InvalidInputError)
    rule, problem = parsed(document)
    if rule is None:
        assert isinstance(problem, InvalidInputError)
        assert "field" in problem.context
    else:
        assert PriceRule.from_json(rule.as_json()) == rule


@given(NUMBERS, NUMBERS, st.decimals(min_value=1, max_value=10_000, places=3), st.decimals(0, 10_000, places=3))
def test_a_step_never_costs_less_for_more(size: str, credits: str, units: Decimal, more: Decimal) -> None:
    """Every started unit is charged: monotone, and within one step of the linear price."""
    rule = PriceRule.step("duration", size=size, credits=credits)
    low = rule.evaluate({"duration": units}, NOW).amount
    high = rule.evaluate({"duration": units + more}, NOW).amount
    assert low <= high
    linear = Decimal(credits) * units / Decimal(size)
    assert float(linear) <= float(low) * 1.000001 <= float(linear + Decimal(credits)) * 1.00001


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.sampled_from(["up", "half_up", "down"]), NUMBERS)
def test_cost_plus_never_costs_less_for_a_dearer_provider(
    usd: str, more: str, rate: str, fee: str, rounding: Any, round_to: str
) -> None:
    """Whatever is rounded how; "up" never sells below the exact sum, "down" never above it but for the least unit."""

    def plus(provider: Decimal) -> Any:
        rule = PriceRule.cost_plus(provider, credits_per_usd=rate, fee=fee, rounding=rounding, round_to=round_to)
        return rule.evaluate({}, NOW).amount

    cheap, dear = Decimal(usd), Decimal(usd) + Decimal(more)
    assert plus(cheap) <= plus(dear)
    exact = cheap * Decimal(rate) + Decimal(fee)
    if rounding == "up":
        assert plus(cheap) >= exact
    if rounding == "down":
        assert plus(cheap) <= max(exact, Decimal(round_to))
