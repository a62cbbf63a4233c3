"""Tables of prices: which line is told, how lines are stored, and which dimension is to blame when none fits."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest

from agentcredits.errors import UnpricedActionError
from agentcredits.rules.price_rules import PriceRule

NOW = datetime(2026, 11, 21, tzinfo=UTC)
OVER = "2026-11-01"


def first_step(row: dict[str, Any], **dimensions: Any) -> str:
    """The sentence that tells which line was used."""
    return str(PriceRule.table(["model", "quality"], [row]).evaluate(dimensions, NOW).steps[0])


def refusal(rule: PriceRule, **dimensions: Any) -> UnpricedActionError:
    with pytest.raises(UnpricedActionError) as caught:
        rule.evaluate(dimensions, NOW)
    return caught.value


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({}, "line every call"),
        ({"model": "Veo"}, "line model=Veo"),
        ({"model": ["Veo", "Sora"], "quality": "high"}, "line model=Veo or Sora, quality=high"),
        ({"as_of": "2026-06-01"}, "line every call, as of 2026-06-01"),
        ({"source": "shop"}, "line every call (shop)"),
        ({"source": "shop", "as_of": "2026-06-01"}, "line every call (shop, as of 2026-06-01)"),
    ],
)
def test_the_line_that_was_used_is_told_with_its_source_and_day(row: dict[str, Any], told: str) -> None:
    """As the operator wrote it, whatever the caller's spelling."""
    assert first_step({"credits": 1, **row}, model="VEO", quality="High") == told


def test_the_day_of_an_inner_line_beats_the_outer_one() -> None:
    """The closest source is the one that was read."""
    inner = {"credits": 2, "as_of": "2026-07-01"}
    for line, day in ((inner, date(2026, 7, 1)), ({"credits": 2}, date(2026, 6, 1))):
        rule = PriceRule.table(["m"], [{"rule": PriceRule.table(["q"], [line]), "as_of": "2026-06-01"}])
        assert rule.evaluate({}, NOW).as_of == day


@pytest.mark.parametrize(
    "row",
    [
        {"credits": "1"},
        {"m": "a", "usd": "0.05"},
        {"m": ["a", "2"], "credits": "3"},
        {"rule": {"kind": "flat", "credits": "1", "per": "duration"}},
        {"rule": {"kind": "usd", "usd": "1", "credits_per_usd": "2"}},
        {"m": "a", "credits": "3", "valid_until": "2027-01-01", "as_of": "2026-01-01", "source": "s"},
    ],
)
def test_a_line_is_stored_as_it_is_written(row: dict[str, Any]) -> None:
    """An amount beside its values; only what is more than an amount is a rule of its own."""
    assert PriceRule.table(["m"], [row]).document["rows"] == [row]


def test_a_price_that_is_over_is_told_with_its_day_and_the_dimension_to_blame() -> None:
    """The latest line for the same call, and only lines for it."""
    rule = PriceRule.table(
        ["model", "quality"],
        [
            {"model": "old", "credits": 1, "valid_until": "2026-10-01"},
            {"model": "old", "credits": 2, "valid_until": OVER},
            {"model": "older", "quality": "high", "credits": 3, "valid_until": "2026-09-01"},
            {"model": "new", "credits": 4},
        ],
    )
    error = refusal(rule, model="OLD", quality="high")
    assert error.message == f"the price for model=old ended on {OVER}"
    assert (error.reason, error.context) == ("price_over", {"dimension": "model", "valid_until": OVER})
    assert refusal(rule, model="older", quality="low").reason == "unknown_dimension"
    assert refusal(rule, model="older", quality="low").context["known"] == ("new",)


def test_a_table_of_which_every_line_is_over_knows_nothing_else() -> None:
    """No value is offered that could not be bought."""
    rule = PriceRule.table(["model"], [{"model": "old", "credits": 1, "valid_until": OVER}])
    assert refusal(rule, model="x").message == "there is no price for model 'x': known are none"
    assert refusal(rule).message == "the price depends on the dimension model, which is missing"


def test_values_are_offered_for_the_dimension_that_leaves_no_line() -> None:
    """Those of the lines that fit so far; a line for any value offers none."""
    rule = PriceRule.table(
        ["model", "quality", "size"],
        [
            {"model": "a", "quality": ["low", "high"], "size": 1, "credits": 1},
            {"model": "a", "size": 2, "credits": 2},
            {"model": "b", "quality": "best", "credits": 3},
        ],
    )
    assert refusal(rule, model="a", quality="low", size=3).context["known"] == ("1", "2")
    assert refusal(rule, model="b", quality="worst").context["known"] == ("best",)
    assert "missing: pass one of 2" in refusal(rule, model="a", quality="none").message
