"""Price rules: every kind computed by hand, calls without a price refused, nothing ever rounded to zero."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any

import pytest

from agentcredits import InvalidInputError, PriceRule, UnpricedActionError, token_dimensions
from agentcredits.testing import START as NOW
from tests.unit.price_examples import MODELS, TOKENS


def amount(rule: PriceRule, at: datetime = NOW, **dimensions: Any) -> Decimal:
    """What one call costs, as exactly as a Decimal can say it."""
    found = rule.evaluate(dimensions, at).amount
    return Decimal(found.numerator) / Decimal(found.denominator)


def refusal(rule: PriceRule, **dimensions: Any) -> UnpricedActionError:
    with pytest.raises(UnpricedActionError) as caught:
        rule.evaluate(dimensions, NOW)
    return caught.value


# -- every kind, by hand -------------------------------------------------------------------------------------------


def test_flat_is_for_one_call_or_for_units_of_a_dimension() -> None:
    """2.5 credits; 2 credits per second; 1 credit for every 1,000 characters, linear."""
    assert amount(PriceRule.flat("2.5"), model="any") == Decimal("2.5")
    assert amount(PriceRule.flat(2, per="duration"), duration="7.5") == 15
    assert amount(PriceRule.flat(1, per="characters", each=1000), characters=1) == Decimal("0.001")


def test_usd_becomes_credits_by_its_rate() -> None:
    """0.18 USD per 1,000 characters × 2,500 × 100; without a rate it stays in USD and says so."""
    rule = PriceRule.usd("0.18", per="characters", each=1000, credits_per_usd=100)
    assert amount(rule, characters=2500) == 45
    found = rule.evaluate({"characters": 2500}, NOW)
    assert (found.unit, found.usd) == ("credits", Fraction(45, 100))
    bare = PriceRule.usd("0.05")
    assert (bare.needs_rate, bare.evaluate(None, NOW).unit, amount(bare)) == (True, "usd", Decimal("0.05"))
    assert amount(bare.with_rate(20)) == 1
    assert rule.with_rate(7) is rule


def test_a_table_has_the_price_of_the_row_that_matches() -> None:
    """Values are compared without case and by number; a row without a dimension is for any of it."""
    assert amount(MODELS, model="hailuo", resolution="1080p", duration=6.0) == 1100
    assert amount(MODELS, model=" HAILUO ", resolution="512P", duration="6.00") == 320
    assert amount(MODELS, model="Director-I") == 980
    assert amount(MODELS, model="Director-T", resolution="8K", duration=99) == 980
    assert amount(MODELS, model="Turbo", duration=Decimal(10)) == 20


class Resolution(Enum):
    FULL = "1080P"


@pytest.mark.parametrize("duration", [6, 6.0, "6", "6.0", Decimal("6.00"), "+6"])
@pytest.mark.parametrize("resolution", ["1080P", "1080p", Resolution.FULL])
def test_a_value_may_come_in_any_spelling(resolution: object, duration: object) -> None:
    """6 is 6, however the caller's code has it; an Enum is its value."""
    assert amount(MODELS, model="Hailuo", resolution=resolution, duration=duration) == 1100


def test_the_first_row_that_matches_wins_and_the_star_is_the_rest() -> None:
    """Exact rows come first; a row of stars prices what no other row does, missing dimensions included."""
    rule = PriceRule.table(
        ["model", "quality"],
        [
            {"model": "a", "quality": "high", "credits": 3},
            {"model": "a", "credits": 2},
            {"model": "*", "quality": "*", "credits": 1},
        ],
    )
    assert [amount(rule, model="a", quality="high"), amount(rule, model="a"), amount(rule, model="a", quality="x")] == [
        3,
        2,
        2,
    ]
    assert [amount(rule, model="b"), amount(rule)] == [1, 1]
    others = [{"model": f"m{number}", "credits": 9} for number in range(6)]
    crossing = [{"quality": "high", "credits": 1}, {"model": "a", "credits": 2}]
    for first, second in (crossing, crossing[::-1]):
        both = PriceRule.table(["model", "quality"], [{"model": "x", "credits": 9}, first, *others, second])
        assert amount(both, model="a", quality="high") == first["credits"]


def test_a_row_ends_on_its_day_and_its_successor_takes_over() -> None:
    """Exclusive, midnight UTC; the refusal of a model without a successor says when it ended."""
    rule = PriceRule.table(
        ["model"],
        [
            {"model": "a", "credits": 1, "valid_until": "2027-01-01"},
            {"model": "a", "credits": 2},
            {"model": "old", "credits": 3, "valid_until": date(2027, 1, 1)},
        ],
    )
    end = datetime(2027, 1, 1, tzinfo=UTC)
    tick = timedelta(microseconds=1)
    assert [amount(rule, at, model="a") for at in (end - tick, end)] == [1, 2]
    assert amount(rule, end - tick, model="old") == 3
    with pytest.raises(UnpricedActionError, match=r"model=old ended on 2027-01-01") as caught:
        rule.evaluate({"model": "old"}, end)
    assert caught.value.reason == "price_over"


@pytest.mark.parametrize(("seconds", "credits"), [("0.000001", 1), (15, 1), ("15.000001", 2), (30, 2), (47, 4)])
def test_a_step_charges_every_started_unit(seconds: Any, credits: int) -> None:
    """1 credit per 15 seconds, rounded up."""
    assert amount(PriceRule.step("duration", size=15, credits=1), duration=seconds) == credits


def test_bands_have_their_own_price_and_may_leave_gaps() -> None:
    """Up to 5 seconds 25, from 8 to 10 seconds 50; nothing between and nothing above."""
    rule = PriceRule.step("duration", bands=[{"up_to": 5, "credits": 25}, {"from": 8, "up_to": 10, "credits": 50}])
    assert [amount(rule, duration=seconds) for seconds in (1, 5, 8, "9.5", 10)] == [25, 25, 50, 50, 50]
    for seconds in ("5.01", 6, 7, "10.01", 60):
        assert refusal(rule, duration=seconds).context["known"] == ("up to 5", "8 to 10")
    without_end = PriceRule.step("duration", bands=[{"up_to": 5, "credits": 25}, {"credits": 50}])
    assert [amount(without_end, duration=seconds) for seconds in (5, "5.01", 10**9)] == [25, 50, 50]
    in_usd = PriceRule.step("mp", bands=[{"up_to": 1, "usd": "0.014"}], credits_per_usd=1000)
    assert amount(in_usd, mp=1) == 14


def test_cost_plus_is_the_providers_price_times_the_rate_plus_a_fee() -> None:
    """0.49 USD × 2,000 + 120 = 1,100; the provider's price may be a rule, or what the caller paid."""
    assert amount(PriceRule.cost_plus("0.49", credits_per_usd=2000, fee=120)) == 1100
    per_second = PriceRule.cost_plus(PriceRule.usd("0.05", per="duration"), credits_per_usd=2000, fee=120)
    assert [amount(per_second, duration=seconds) for seconds in (5, 10)] == [620, 1120]
    paid = PriceRule.cost_plus(PriceRule.usd(1, per="provider_usd"), credits_per_usd=100, fee=1)
    assert amount(paid, provider_usd="0.034") == Decimal("4.4")
    assert paid.evaluate({"provider_usd": "0.034"}, NOW).usd == Fraction(34, 1000)


@pytest.mark.parametrize(
    ("rounding", "round_to", "credits"),
    [
        ("up", 1, 4),
        ("half_up", 1, 3),
        ("down", 1, 3),
        ("up", "0.01", "3.34"),
        ("half_up", "0.5", "3.5"),
        ("down", 5, 5),
    ],
)
def test_cost_plus_rounds_as_it_is_told_and_never_to_zero(rounding: Any, round_to: Any, credits: Any) -> None:
    """3.333 credits, to whole ones, to cents, to halves; "down" to fives would be 0, and is 5."""
    rule = PriceRule.cost_plus("0.03333", credits_per_usd=100, rounding=rounding, round_to=round_to)
    assert amount(rule) == Decimal(credits)


@pytest.mark.parametrize(("exact", "credits"), [("2.5", 3), ("2.4999", 2), ("3.5", 4)])
def test_half_up_takes_the_half_up(exact: str, credits: int) -> None:
    """2.5 is 3, and so is no banker's rounding."""
    assert amount(PriceRule.cost_plus(exact, credits_per_usd=1, rounding="half_up", round_to=1)) == credits


def test_tokens_cost_by_the_million_and_cached_ones_are_a_part_of_the_input() -> None:
    """(1,000 × 2.5 + 200 × 1.25 + 300 × 10) / 10^6 USD × 1,000."""
    assert amount(TOKENS, input_tokens=1200, output_tokens=300, cached_tokens=200) == Decimal("5.75")
    assert amount(TOKENS, input_tokens=1200, output_tokens=300) == Decimal("6.0")
    assert amount(TOKENS, input_tokens=0, output_tokens=1) == Decimal("0.01")
    same = PriceRule.tokens(input=3, output=4, currency="credits")
    assert amount(same, input_tokens=10, output_tokens=10, cached_tokens=10) == Decimal("0.00007")


def test_without_counts_the_estimate_of_the_rule_is_priced() -> None:
    """What is held before an LLM call; a count that is given is never mixed with it."""
    rule = PriceRule.tokens(
        input=1, output=2, currency="credits", estimate={"input_tokens": 1_000_000, "output_tokens": 500_000}
    )
    assert amount(rule) == amount(rule, model="x") == 2
    assert amount(rule, input_tokens=1_000_000, output_tokens=0) == 1
    assert refusal(rule, input_tokens=5).context["dimension"] == "output_tokens"


@pytest.mark.parametrize(
    ("usage", "dimensions"),
    [
        ({"prompt_tokens": 12, "completion_tokens": 3, "cached_prompt_tokens": 5, "total_tokens": 15}, (12, 3, 5)),
        ({"prompt_tokens": 12, "completion_tokens": 3, "cached_prompt_tokens": None}, (12, 3, 0)),
        ({"input_tokens": 2, "output_tokens": 1, "cached_tokens": 1}, (2, 1, 1)),
        ({"prompt_tokens": 10, "cached_prompt_tokens": 90}, (100, 0, 90)),
        ({}, (0, 0, 0)),
    ],
)
def test_usage_becomes_the_dimensions_of_a_tokens_rule(usage: Any, dimensions: tuple[int, ...]) -> None:
    """CrewAI's and OpenAI's names; a provider that counts cached tokens apart from its input has them added to it."""
    assert tuple(token_dimensions(usage).values()) == dimensions
    assert set(token_dimensions(usage)) == {"input_tokens", "output_tokens", "cached_tokens"}


@pytest.mark.parametrize("count", [-1, 1.5, "3", True])
def test_usage_that_is_no_count_is_refused(count: Any) -> None:
    """A provider's slip must not become a price."""
    with pytest.raises(InvalidInputError, match="prompt_tokens"):
        token_dimensions({"prompt_tokens": count})


# -- calls without a price -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "dimensions", "reason", "dimension", "words"),
    [
        (MODELS, {"model": "nope"}, "unknown_dimension", "model", "'nope': known are Hailuo, Director-T, Director-I"),
        (MODELS, {}, "missing_dimension", "model", "missing: pass one of Hailuo"),
        (MODELS, {"model": None}, "missing_dimension", "model", "missing"),
        (MODELS, {"model": "Hailuo", "duration": 6}, "missing_dimension", "resolution", "pass one of 512P, 1080P"),
        (
            MODELS,
            {"model": "Hailuo", "resolution": "4K", "duration": 6},
            "unknown_dimension",
            "resolution",
            "'4K': known are 512P, 1080P",
        ),
        (
            MODELS,
            {"model": "Hailuo", "resolution": "512P", "duration": -6},
            "unknown_dimension",
            "duration",
            "-6: known are 6",
        ),
        (MODELS, {"model": ["Hailuo"]}, "bad_dimension", "model", "a list"),
        (MODELS, {"model": "x" * 300}, "bad_dimension", "model", "xxx..."),
        (MODELS, {"model": float("nan")}, "bad_dimension", "model", "nan"),
        (MODELS, {"model": "Turbo"}, "missing_dimension", "duration", "missing"),
        (MODELS, {"model": "Turbo", "duration": -5}, "bad_dimension", "duration", "above zero"),
        (MODELS, {"model": "Turbo", "duration": 0}, "bad_dimension", "duration", "above zero"),
        (MODELS, {"model": "Turbo", "duration": "long"}, "bad_dimension", "duration", "must be a number, not 'long'"),
        (MODELS, {"model": "Turbo", "duration": True}, "bad_dimension", "duration", "must be a number"),
        (MODELS, {"model": "Turbo", "duration": 10**5000}, "bad_dimension", "duration", "a number beyond"),
        (MODELS, {"model": "Turbo", "duration": Decimal("1e20")}, "bad_dimension", "duration", "at most"),
        (MODELS, {"model": "Turbo", "duration": Decimal("Infinity")}, "bad_dimension", "duration", "finite"),
        (TOKENS, {"input_tokens": 1}, "missing_dimension", "output_tokens", "missing"),
        (TOKENS, {"input_tokens": -1, "output_tokens": 1}, "bad_dimension", "input_tokens", "not be negative"),
        (TOKENS, {"input_tokens": "1.5", "output_tokens": 1}, "bad_dimension", "input_tokens", "a whole number"),
        (
            TOKENS,
            {"input_tokens": 5, "output_tokens": 1, "cached_tokens": 6},
            "bad_dimension",
            "cached_tokens",
            "more than input_tokens",
        ),
        (
            PriceRule.tokens(input=1, currency="credits"),
            {"input_tokens": 1, "output_tokens": 1},
            "unknown_dimension",
            "output_tokens",
            "no price for output tokens",
        ),
    ],
)
def test_a_call_without_a_price_is_refused_by_the_dimension_to_blame(
    rule: PriceRule, dimensions: Mapping[str, Any], reason: str, dimension: str, words: str
) -> None:
    """Its name, what was given and what is known stand in the sentence and, for programs, beside it."""
    error = refusal(rule, **dimensions)
    assert (error.reason, error.context["dimension"]) == (reason, dimension)
    assert words in error.message


def test_a_long_table_names_the_closest_values_first_and_ten_at_most() -> None:
    """A slip in a model's name is answered with the name that was meant."""
    rule = PriceRule.table(["model"], [{"model": f"model-{number}", "credits": 1} for number in range(3000)])
    error = refusal(rule, model="Model-2O17")
    assert error.context["known"][0] in ("model-2017", "model-2217", "model-217")
    assert len(error.context["known"]) == 10
    assert "and 2,990 more" in error.message


# -- the arithmetic in words ---------------------------------------------------------------------------------------


def told(rule: PriceRule, **dimensions: Any) -> list[str]:
    return [str(step) for step in rule.evaluate(dimensions, NOW).steps]


def test_every_step_is_told() -> None:
    """Line, provider's price, rate, fee, rounding; with the numbers for programs."""
    rule = PriceRule.cost_plus(
        PriceRule.table(
            ["model"],
            [{"model": "a", "rule": PriceRule.usd("0.05", per="duration"), "source": "shop", "as_of": "2026-06-01"}],
        ),
        credits_per_usd=33,
        fee=2,
        round_to=1,
    )
    assert told(rule, model="A", duration=5) == [
        "line model=a (shop, as of 2026-06-01)",
        "0.05 USD per duration × 5 = 0.25 USD",
        "0.25 USD × 33 credits per USD + 2 = 10.25 credits",
        "rounded up, to 1: 11 credits",
    ]
    found = rule.evaluate({"model": "a", "duration": 5}, NOW)
    assert [(step.amount, step.unit) for step in found.steps][1:] == [
        (Decimal("0.25"), "usd"),
        (Decimal("10.25"), "credits"),
        (Decimal(11), "credits"),
    ]
    assert found.as_of == date(2026, 6, 1)


def test_tokens_steps_and_bands_are_told() -> None:
    """One line for each pool of tokens, and what a step or band makes of the units."""
    assert told(TOKENS, input_tokens=1200, output_tokens=300, cached_tokens=200) == [
        "1,000 input tokens × 2.5 USD per million = 0.0025 USD",
        "200 cached input tokens × 1.25 USD per million = 0.00025 USD",
        "300 output tokens × 10 USD per million = 0.003 USD",
        "0.00575 USD × 1,000 credits per USD = 5.75 credits",
    ]
    assert told(PriceRule.step("duration", size=15, credits=1), duration=47) == [
        "duration 47 ÷ 15, rounded up = 4 × 1 credit = 4 credits"
    ]
    assert told(PriceRule.step("duration", bands=[{"up_to": 5, "credits": 25}]), duration=5) == [
        "duration 5 is in the band up to 5: 25 credits"
    ]
