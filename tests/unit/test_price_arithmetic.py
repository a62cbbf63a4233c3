"""The arithmetic of each kind of price: every step in words, with its number and unit for programs."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from agentcredits import PriceRule, UnpricedActionError
from agentcredits.testing import START as NOW

Told = tuple[str, Decimal | None, str | None]


def step(text: str, amount: Any = None, unit: str | None = None) -> Told:
    """One step; the amount as a decimal text."""
    return text, None if amount is None else Decimal(amount), unit


def assert_priced(rule: PriceRule, dimensions: dict[str, Any], credits: str, usd: str | None, *steps: Told) -> None:
    """The price in credits, what of it the price list says in USD, and exactly these steps."""
    found = rule.evaluate(dimensions, NOW)
    assert (found.amount, found.unit) == (Fraction(credits), "credits")
    assert found.usd == (None if usd is None else Fraction(usd))
    assert [(told.text, told.amount, told.unit) for told in found.steps] == list(steps)


def test_a_fixed_price_for_one_call() -> None:
    """In credits as it is; in USD times the rate."""
    assert_priced(PriceRule.flat("2.5"), {}, "2.5", None, step("2.5 credits each", "2.5", "credits"))
    assert_priced(PriceRule.flat(1), {}, "1", None, step("1 credit each", 1, "credits"))
    assert_priced(
        PriceRule.usd("0.05", credits_per_usd=2000),
        {},
        "100",
        "0.05",
        step("0.05 USD each", "0.05", "usd"),
        step("0.05 USD × 2,000 credits per USD = 100 credits", 100, "credits"),
    )


def test_a_fixed_price_for_units() -> None:
    """How many units one price is for is said only where it is not one."""
    assert_priced(
        PriceRule.flat(2, per="duration"),
        {"duration": "7.5"},
        "15",
        None,
        step("2 credits per duration × 7.5 = 15 credits", 15, "credits"),
    )
    assert_priced(
        PriceRule.usd("0.18", per="characters", each=1000, credits_per_usd=100),
        {"characters": 2500},
        "45",
        "0.45",
        step("0.18 USD per 1,000 characters × 2,500 = 0.45 USD", "0.45", "usd"),
        step("0.45 USD × 100 credits per USD = 45 credits", 45, "credits"),
    )


def test_started_units() -> None:
    """47 seconds are four started quarters of a minute."""
    assert_priced(
        PriceRule.step("duration", size=15, credits="0.25"),
        {"duration": 47},
        "1",
        None,
        step("duration 47 ÷ 15, rounded up = 4 × 0.25 credits = 1 credit", 1, "credits"),
    )
    assert_priced(
        PriceRule.step("duration", size=15, usd="0.5", credits_per_usd=10),
        {"duration": 47},
        "20",
        "2",
        step("duration 47 ÷ 15, rounded up = 4 × 0.5 USD = 2 USD", 2, "usd"),
        step("2 USD × 10 credits per USD = 20 credits", 20, "credits"),
    )


BANDS = PriceRule.step("mp", bands=[{"up_to": 1, "usd": "0.01"}, {"from": 2, "usd": "0.03"}], credits_per_usd=1000)


@pytest.mark.parametrize(
    ("rule", "units", "credits", "usd", "band"),
    [
        (BANDS, 1, "10", "0.01", "up to 1: 0.01 USD"),
        (BANDS, 7, "30", "0.03", "2 and more: 0.03 USD"),
        (PriceRule.step("mp", bands=[{"from": 1, "up_to": 2, "credits": 4}]), 2, "4", None, "1 to 2: 4 credits"),
        (PriceRule.step("mp", bands=[{"up_to": 1, "credits": 1}, {"credits": 4}]), 2, "4", None, "any: 4 credits"),
    ],
)
def test_a_band_is_told_by_its_ends(rule: PriceRule, units: int, credits: str, usd: str | None, band: str) -> None:
    """And has its price, in credits or in USD."""
    found = rule.evaluate({"mp": units}, NOW)
    assert (found.amount, found.unit) == (Fraction(credits), "credits")
    assert found.usd == (None if usd is None else Fraction(usd))
    assert found.steps[0].text == f"mp {units} is in the band {band}"
    listed = Decimal(credits if usd is None else usd)
    assert (found.steps[0].amount, found.steps[0].unit) == (listed, "credits" if usd is None else "usd")


def test_units_between_the_bands_are_refused_with_the_bands_there_are() -> None:
    """In the sentence, and beside it."""
    with pytest.raises(UnpricedActionError, match=r"no price for mp 1\.5: known are up to 1, 2 and more") as caught:
        BANDS.evaluate({"mp": Decimal("1.50")}, NOW)
    assert caught.value.context == {"dimension": "mp", "given": "1.5", "known": ("up to 1", "2 and more")}


TOKENS = PriceRule.tokens(input=3, output=10, cached_input=1, credits_per_usd=1000)


def test_each_pool_of_tokens_has_its_line() -> None:
    """A pool without tokens has none."""
    assert_priced(
        TOKENS,
        {"input_tokens": 1500, "output_tokens": 0, "cached_tokens": 500},
        "3.5",
        "0.0035",
        step("1,000 input tokens × 3 USD per million = 0.003 USD", "0.003", "usd"),
        step("500 cached input tokens × 1 USD per million = 0.0005 USD", "0.0005", "usd"),
        step("0.0035 USD × 1,000 credits per USD = 3.5 credits", "3.5", "credits"),
    )
    assert_priced(
        PriceRule.tokens(input=3, output=10, currency="credits"),
        {"input_tokens": 1_000_000, "output_tokens": 100_000},
        "4",
        None,
        step("1,000,000 input tokens × 3 credits per million = 3 credits", 3, "credits"),
        step("100,000 output tokens × 10 credits per million = 1 credit", 1, "credits"),
    )


CACHING = PriceRule.tokens(input=3, output=15, cached_input="0.3", cache_creation_input="3.75", credits_per_usd=1000)


def test_what_was_written_to_the_cache_has_a_price_of_its_own() -> None:
    """Anthropic's prices: a part of the input is read from the cache, another is written there."""
    usage = {"input_tokens": 10_000, "output_tokens": 0, "cached_tokens": 6_000, "cache_creation_tokens": 3_000}
    assert_priced(
        CACHING,
        usage,
        "16.05",
        "0.01605",
        step("1,000 input tokens × 3 USD per million = 0.003 USD", "0.003", "usd"),
        step("6,000 cached input tokens × 0.3 USD per million = 0.0018 USD", "0.0018", "usd"),
        step("3,000 cache creation tokens × 3.75 USD per million = 0.01125 USD", "0.01125", "usd"),
        step("0.01605 USD × 1,000 credits per USD = 16.05 credits", "16.05", "credits"),
    )
    plain = PriceRule.tokens(input=3, output=15, cached_input="0.3", credits_per_usd=1000)
    assert plain.evaluate(usage, NOW).amount == Fraction(4_000 * 3 + 6_000 * Fraction(3, 10), 1_000), "as other input"


@pytest.mark.parametrize(("cached", "created", "refused"), [(6, 4, None), (6, 5, True), (0, 11, True), (10, 0, None)])
def test_the_parts_of_the_input_are_not_more_than_the_input(cached: int, created: int, refused: bool | None) -> None:
    """Each token is a part of one pool."""
    usage = {"input_tokens": 10, "output_tokens": 0, "cached_tokens": cached, "cache_creation_tokens": created}
    if not refused:
        assert CACHING.evaluate(usage, NOW).steps
        return
    with pytest.raises(UnpricedActionError) as caught:
        CACHING.evaluate(usage, NOW)
    assert caught.value.message == (
        f"dimension cache_creation_tokens is {created} and cached_tokens {cached}, together more than input_tokens"
        " (10), of which both are parts"
    )
    assert caught.value.context["dimension"] == "cache_creation_tokens"


def test_a_model_without_output_needs_only_its_input() -> None:
    """Cached tokens are counted all the same; output tokens have no price."""
    embedding = PriceRule.tokens(input=2, cached_input=1, currency="credits")
    assert embedding.evaluate({"input_tokens": 1_000_000}, NOW).amount == 2
    assert embedding.evaluate({"input_tokens": 1_000_000, "cached_tokens": 500_000}, NOW).amount == Fraction(3, 2)
    with pytest.raises(UnpricedActionError) as caught:
        embedding.evaluate({"input_tokens": 1, "output_tokens": 1}, NOW)
    assert caught.value.message == "there is no price for output tokens"


def test_the_estimate_is_told_and_is_0_for_what_it_leaves_out() -> None:
    """The hold before an LLM call, when no count is known."""
    assert_priced(
        PriceRule.tokens(input=1, output=2, cached_input=1, currency="credits", estimate={"input_tokens": 2_000_000}),
        {},
        "2",
        None,
        step("no tokens are counted yet: the rule's estimate is used"),
        step("2,000,000 input tokens × 1 credit per million = 2 credits", 2, "credits"),
    )


@pytest.mark.parametrize(
    ("rounding", "words", "credits"),
    [("up", "rounded up", "3"), ("half_up", "rounded to the nearest", "2"), ("down", "rounded down", "2")],
)
def test_cost_plus_tells_how_it_rounded(rounding: Any, words: str, credits: str) -> None:
    """2.25 credits, to whole ones."""
    assert_priced(
        PriceRule.cost_plus("0.01", credits_per_usd=125, fee=1, rounding=rounding, round_to=1),
        {},
        credits,
        "0.01",
        step("0.01 USD each", "0.01", "usd"),
        step("0.01 USD × 125 credits per USD + 1 = 2.25 credits", "2.25", "credits"),
        step(f"{words}, to 1: {credits} credits", credits, "credits"),
    )


@pytest.mark.parametrize("rounding", ["up", "half_up", "down"])
def test_cost_plus_without_a_fee_or_a_rest_has_one_line(rounding: Any) -> None:
    """And what costs the provider nothing costs nothing."""
    assert_priced(
        PriceRule.cost_plus("0.02", credits_per_usd=50, rounding=rounding, round_to=1),
        {},
        "1",
        "0.02",
        step("0.02 USD each", "0.02", "usd"),
        step("0.02 USD × 50 credits per USD = 1 credit", 1, "credits"),
    )
    assert PriceRule.cost_plus(0, credits_per_usd=50, rounding=rounding, round_to=1).evaluate({}, NOW).amount == 0
