"""A price that is to be set is checked when it is made: who, what, how much and from where."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from agentcredits.errors import CreditsError, InvalidAmountError, InvalidInputError
from agentcredits.rules.price_entries import PriceEntry
from agentcredits.rules.price_rules import PriceRule

PER_SECOND = PriceRule.flat("0.1", per="duration")


@pytest.mark.parametrize(
    ("cost", "flat", "rule"),
    [
        ("1.50", Decimal("1.5"), None),
        (2, Decimal(2), None),
        (0.1, Decimal("0.1"), None),
        (PER_SECOND, Decimal(0), PER_SECOND),
        ({"kind": "flat", "credits": "0.1", "per": "duration"}, Decimal(0), PER_SECOND),
    ],
)
def test_a_cost_is_a_number_of_credits_or_a_rule_or_its_document(cost: Any, flat: Decimal, rule: Any) -> None:
    """A flat cost and no rule, or a rule and a flat cost of 0."""
    entry = PriceEntry("Agent", "act", cost)
    assert (entry.flat, entry.rule) == (flat, rule)
    assert entry.cost == (flat if rule is None else rule)


def test_a_price_of_zero_is_said_to_be_free() -> None:
    """Both have to be said."""
    assert PriceEntry("Agent", "act", 0, free=True).flat == 0
    with pytest.raises(InvalidAmountError) as caught:
        PriceEntry("Agent", "act", 0)
    assert (caught.value.reason, caught.value.context) == ("zero", {"parameter": "cost"})
    with pytest.raises(InvalidInputError, match=r"^a free action costs 0: pass cost 0") as contradiction:
        PriceEntry("Agent", "act", 3, free=True)
    assert contradiction.value.reason == "free_with_cost"


@pytest.mark.parametrize(
    ("changes", "parameter", "reason"),
    [
        ({"agent_type": ""}, "agent_type", "empty"),
        ({"action": ""}, "action", "empty"),
        ({"source": ""}, "source", "empty"),
        ({"source": "x" * 256}, "source", "too_long"),
        ({"as_of": "2026-01-01"}, "as_of", None),
        ({"as_of": datetime(2026, 1, 1, tzinfo=UTC)}, "as_of", None),
        ({"cost": {}}, "cost", "not_a_number"),
        ({"cost": {"credits": 5}}, "cost", "not_a_number"),
        ({"cost": [5]}, "cost", "not_a_number"),
        ({"cost": -1}, "cost", "negative"),
    ],
)
def test_a_field_that_cannot_be_used_is_named(changes: dict[str, Any], parameter: str, reason: str | None) -> None:
    """When the entry is made, not when it is set."""
    arguments: dict[str, Any] = {"agent_type": "Agent", "action": "act", "cost": 1, "source": None} | changes
    with pytest.raises(CreditsError) as caught:
        PriceEntry(**arguments)
    assert isinstance(caught.value, InvalidAmountError | InvalidInputError)
    assert caught.value.context["parameter"] == parameter
    assert caught.value.reason == (reason or InvalidInputError.code)
    assert caught.value.message.startswith(f"{parameter} ")


def test_a_mapping_without_a_kind_is_told_what_a_cost_may_be() -> None:
    """It is read as a rule only where it says which."""
    with pytest.raises(
        InvalidAmountError, match=r"^cost must be a number of credits, or a price rule with its kind\.$"
    ):
        PriceEntry("Agent", "act", {"credits": 5})


def test_a_rule_in_dollars_needs_a_rate() -> None:
    """Nothing is sold at a guessed rate, whether it comes as a rule or as a document."""
    for cost in (PriceRule.usd(1), {"kind": "usd", "usd": 1}):
        with pytest.raises(InvalidInputError) as caught:
            PriceEntry("Agent", "act", cost)
        assert caught.value.context == {"field": "credits_per_usd"}


def test_an_entry_with_other_fields_is_another_entry() -> None:
    """What is not changed stays; what is changed is checked as the first was."""
    entry = PriceEntry("Agent", "act", 5, source="contract", as_of=date(2026, 1, 1))
    assert entry.changed(cost=7, source=None) == PriceEntry("Agent", "act", 7, as_of=date(2026, 1, 1))
    assert entry.cost == 5
    with pytest.raises(InvalidAmountError):
        entry.changed(cost=-1)
