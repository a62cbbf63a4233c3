"""Which row of agent_action_costs prices an action, and what it comes to."""

from __future__ import annotations

import itertools
import random
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from agentcredits.amounts import MAX_AMOUNT_MICROS, from_micros
from agentcredits.errors import InvalidAmountError, UnpricedActionError
from agentcredits.model import Pricing
from agentcredits.rules.pricing import MAX_QUANTITY, CostRow, choose, parse_quantity, price
from agentcredits.testing import START as NOW

DAY = timedelta(days=1)
TICK = timedelta(microseconds=1)


def row(organization_id: str = "", agent_type: str = "Agent", action: str = "act", **changes: Any) -> CostRow:
    arguments: dict[str, Any] = {"cost": "1", "valid_from": NOW - DAY} | changes
    return CostRow(organization_id, agent_type, action, **arguments)


def priced(found: CostRow | None, quantity: str = "1", *, record_unpriced: bool = False) -> Any:
    return price(found, agent_type="Agent", action="act", quantity=Decimal(quantity), record_unpriced=record_unpriced)


# -- which row -----------------------------------------------------------------------------------------------------

#: Each row beats the ones after it.
PRECEDENCE = [
    row("acme", "Agent", "act", valid_from=NOW),
    row("acme", "Agent", "act"),
    row("acme", "Agent", "*", valid_from=NOW),
    row("acme", "*", "act", valid_from=NOW),
    row("acme", "*", "*", valid_from=NOW),
    row("", "Agent", "act", valid_from=NOW),
    row("", "Agent", "*", valid_from=NOW),
    row("", "*", "act", valid_from=NOW),
    row("", "*", "*", valid_from=NOW),
    row("", "*", "*"),
]


@pytest.mark.parametrize(("better", "worse"), list(itertools.combinations(range(len(PRECEDENCE)), 2)))
def test_a_row_beats_every_row_below_it(better: int, worse: int) -> None:
    """Own before default, exact agent type before exact action, exact before `*`, the latest start last of all."""
    pair = [PRECEDENCE[worse], PRECEDENCE[better]]
    assert choose(pair, NOW) is choose(reversed(pair), NOW) is PRECEDENCE[better]


def test_the_choice_does_not_depend_on_the_order_of_the_rows() -> None:
    """Databases return rows in any order."""
    mixed = random.Random(7)
    for _ in range(20):
        assert choose(mixed.sample(PRECEDENCE, len(PRECEDENCE)), NOW) is PRECEDENCE[0]


@pytest.mark.parametrize(
    ("valid_from", "valid_until", "counts"),
    [
        (NOW, None, True),
        (NOW + TICK, None, False),
        (NOW - DAY, NOW + TICK, True),
        (NOW - DAY, NOW, False),
        (NOW - DAY, NOW - TICK, False),
    ],
)
def test_a_row_counts_from_its_start_up_to_its_end(valid_from: Any, valid_until: Any, counts: bool) -> None:
    """valid_from <= now < valid_until; one that is out of force hides no other."""  # a column
    candidate = row("acme", valid_from=valid_from, valid_until=valid_until)
    default = row("", "*", "*")
    assert choose([candidate], NOW) is (candidate if counts else None)
    assert choose([candidate, default], NOW) is (candidate if counts else default)


def test_without_rows_there_is_no_price() -> None:
    """None, for the caller to refuse."""
    assert choose([], NOW) is None


# -- what it comes to ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cost", "quantity", "micros"),
    [
        ("1", "1", 1_000_000),
        (Decimal("0.5"), "3", 1_500_000),
        (2.5, "1", 2_500_000),
        (7, "2", 14_000_000),
        ("0.000001", "0.000001", 1),
        ("0.333333", "0.333333", 111_111),
        ("0.1", "0.000015", 2),
        ("0.000001", "1000000000", 1_000_000_000),
    ],
)
def test_a_price_times_a_quantity_rounds_up_to_the_micro(cost: Any, quantity: str, micros: int) -> None:
    """Whatever type the database gave; what is not zero never becomes zero."""
    found = priced(row(cost=cost), quantity)
    assert (found.amount_micros, found.pricing) == (micros, Pricing.PRICED)
    assert found.amount == from_micros(micros)


def test_a_price_beyond_an_amount_is_refused() -> None:
    """Never wrapped, never clamped."""
    largest = from_micros(MAX_AMOUNT_MICROS)
    assert priced(row(cost=largest)).amount_micros == MAX_AMOUNT_MICROS
    with pytest.raises(InvalidAmountError) as refusal:
        priced(row(cost=largest), "1.000001")
    assert refusal.value.reason == "too_large"


@pytest.mark.parametrize(
    "cost", ["ten", "", " 1", "1,5", None, True, b"1", "NaN", "-1", "0.0000001", "1e25", float("inf")]
)
def test_a_cost_that_is_no_amount_is_unusable(cost: Any) -> None:
    """The refusal names the action and what stands there, and keeps the reason as its cause."""
    with pytest.raises(UnpricedActionError, match=r"Agent\.act") as refusal:
        priced(row(cost=cost))
    assert refusal.value.reason == "unusable_price"
    assert repr(cost) in refusal.value.message
    assert isinstance(refusal.value.__cause__, InvalidAmountError)
    assert refusal.value.suggestions


@pytest.mark.parametrize("zero", ["0", 0, Decimal("0.000000"), "0.0"])
def test_zero_is_free_only_where_the_row_says_so(zero: Any) -> None:
    """A 0 by itself is a typing error until somebody says that it is meant."""
    with pytest.raises(UnpricedActionError) as refusal:
        priced(row(cost=zero))
    assert refusal.value.reason == "zero_price_not_free"
    assert (priced(row(cost=zero, free=True), "5").amount_micros, priced(row(cost=zero, free=True)).pricing) == (
        0,
        Pricing.FREE,
    )
    assert priced(row(cost=3, free=True)).amount_micros == 3_000_000


def test_an_action_without_a_row_is_refused_unless_it_is_to_be_recorded() -> None:
    """The one exception to fail closed has to be asked for, and is marked."""
    with pytest.raises(UnpricedActionError, match="has no price") as refusal:
        priced(None)
    assert refusal.value.context == {"agent_type": "Agent", "action": "act"}
    assert refusal.value.fixes[0]["action"] == "set_cost"
    recorded = priced(None, record_unpriced=True)
    assert (recorded.amount_micros, recorded.pricing) == (0, Pricing.UNPRICED)


@pytest.mark.parametrize("record_unpriced", [False, True])
def test_recording_is_for_actions_without_a_row_only(record_unpriced: bool) -> None:
    """A row that cannot be used is an operator's mistake: it is refused in either case."""
    for broken in (row(cost="ten"), row(cost=0), row(rule='{"per": "second"}')):
        with pytest.raises(UnpricedActionError):
            priced(broken, record_unpriced=record_unpriced)


def test_a_rule_that_is_not_known_is_not_charged_by_the_flat_cost() -> None:
    """A database that a later version prices must not sell cheap here."""
    with pytest.raises(UnpricedActionError) as refusal:
        priced(row(cost=5, rule="{}"))
    assert refusal.value.reason == "unknown_price_rule"


# -- quantities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [1, "2.5", Decimal("0.000001"), 0.1, MAX_QUANTITY, "1E+3"])
def test_a_quantity_is_read_exactly(given: Any) -> None:
    """As amounts are: ints, texts, decimals, floats by what they show."""
    assert parse_quantity(given) == Decimal(str(given))


@pytest.mark.parametrize(
    "given", [0, -1, "-0.5", 0.0, MAX_QUANTITY + 1, "0.0000001", "NaN", "inf", "", "x", None, True, []]
)
def test_what_is_no_quantity_is_refused(given: Any) -> None:
    """Zero, negative, too fine, too large, not a number."""
    with pytest.raises(InvalidAmountError) as refusal:
        parse_quantity(given)
    assert refusal.value.context["parameter"] == "quantity"
