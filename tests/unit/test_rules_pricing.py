"""Which row of agent_action_costs prices an action, and what it comes to."""

from __future__ import annotations

import decimal
import itertools
import random
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest

from agentcredits.amounts import MAX_AMOUNT_MICROS, from_micros
from agentcredits.errors import InvalidAmountError, InvalidInputError, UnpricedActionError
from agentcredits.model import Pricing
from agentcredits.rules.price_rules import PriceRule
from agentcredits.rules.pricing import MAX_QUANTITY, CostRow, choose, explain_flat, parse_quantity, price
from agentcredits.testing import START as NOW

DAY = timedelta(days=1)
TICK = timedelta(microseconds=1)


def row(organization_id: str = "", agent_type: str = "Agent", action: str = "act", **changes: Any) -> CostRow:
    arguments: dict[str, Any] = {"cost": "1", "valid_from": NOW - DAY} | changes
    return CostRow(organization_id, agent_type, action, **arguments)


def priced(found: CostRow | None, quantity: str = "1", *, record_unpriced: bool = False, dimensions: Any = None) -> Any:
    return price(
        found,
        agent_type="Agent",
        action="act",
        quantity=Decimal(quantity),
        dimensions=dimensions,
        at=NOW,
        record_unpriced=record_unpriced,
    )


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


SUGGESTED = "agentcredits costs set Agent act 1"
FREE = "If it shall cost nothing, set the row's column free to true"
ZERO = PriceRule.flat(0).as_json()


@pytest.mark.parametrize(
    ("found", "reason", "words", "suggestion"),
    [
        (None, "unpriced_action", "Agent.act has no price in agent_action_costs", f"Set one, for example: {SUGGESTED}"),
        (
            row(problem="x"),
            "unusable_price",
            "the price of Agent.act in agent_action",
            f"Set it again, for example: {SUGGESTED}",
        ),
        (
            row(cost="ten"),
            "unusable_price",
            "the cost 'ten' of Agent.act in agent_",
            f"Set it again, for example: {SUGGESTED}",
        ),
        (row(cost=0), "zero_price_not_free", "the cost of Agent.act is 0 but", FREE),
        (row(rule=ZERO), "zero_price_not_free", "the cost of Agent.act is 0 but", FREE),
        (row(rule="{}"), "unknown_price_rule", "Agent.act: the price rule cannot be used", "Correct the column rule"),
    ],
)
def test_a_refusal_names_the_action_says_that_it_did_not_run_and_what_to_do(
    found: CostRow | None, reason: str, words: str, suggestion: str
) -> None:
    """One sentence with one full stop; agent type and action stand beside it for programs."""
    with pytest.raises(UnpricedActionError) as caught:
        priced(found)
    error = caught.value
    assert error.reason == reason
    assert error.message.startswith(words)
    assert error.message.endswith("; it did not run.")
    assert ".;" not in error.message
    assert ".)" not in error.message
    assert {"agent_type": "Agent", "action": "act"}.items() <= error.context.items()
    (told,) = error.suggestions
    assert told.startswith(suggestion)


def test_the_fix_for_a_missing_price_can_be_applied_by_a_program() -> None:
    """It names the call and its arguments."""
    with pytest.raises(UnpricedActionError) as caught:
        priced(None)
    assert caught.value.fixes == ({"action": "set_cost", "agent_type": "Agent", "action_name": "act"},)


# -- rules ---------------------------------------------------------------------------------------------------------

PER_SECOND = PriceRule.flat("0.1", per="duration")


def ruled(rule: PriceRule, **changes: Any) -> CostRow:
    return row(cost=0, rule=rule.as_json(), **changes)


@pytest.mark.parametrize(
    ("duration", "quantity", "micros"),
    [(5, "1", 500_000), (5, "3", 1_500_000), ("0.000015", "1", 2), (1, "0.000001", 1)],
)
def test_a_rule_is_evaluated_times_the_quantity_and_rounded_up_once(duration: Any, quantity: str, micros: int) -> None:
    """0.1 credits per second; what is not zero never becomes zero."""
    assert priced(ruled(PER_SECOND), quantity, dimensions={"duration": duration}).amount_micros == micros


def test_the_last_steps_tell_the_quantity_and_the_rounding() -> None:
    """So that the arithmetic ends at what is charged."""
    found = priced(ruled(PER_SECOND), "0.333333", dimensions={"duration": "0.00005"})
    assert [str(step) for step in found.steps] == [
        "0.1 credits per duration × 0.00005 = 0.000005 credits",
        "0.000005 credits × quantity 0.333333 = 0.000001666665 credits",
        "rounded up to the micro-credit: 0.000002 credits",
    ]
    assert [(step.amount, step.unit) for step in found.steps] == [
        (Decimal("0.000005"), "credits"),
        (Decimal("0.000001666665"), "credits"),
        (found.amount, "credits"),
    ]


@pytest.mark.parametrize(
    ("cost", "quantity", "told"),
    [
        ("5", "1", ["5 credits each: 5"]),
        ("1", "2", ["1 credit each: 1", "1 credit × quantity 2 = 2 credits: 2"]),
        ("0.5", "2", ["0.5 credits each: 0.5", "0.5 credits × quantity 2 = 1 credit: 1"]),
        (
            "0.000001",
            "1500.5",
            [
                "0.000001 credits each: 0.000001",
                "0.000001 credits × quantity 1,500.5 = 0.0015005 credits: 0.0015005",
                "rounded up to the micro-credit: 0.001501 credits: 0.001501",
            ],
        ),
    ],
)
def test_the_arithmetic_of_a_flat_cost_is_told(cost: str, quantity: str, told: list[str]) -> None:
    """What one costs, times the quantity, rounded up: each step only where it does something."""
    found = priced(row(cost=cost), quantity)
    steps = explain_flat(found, Decimal(quantity), int(Decimal(cost) * 1_000_000))
    assert [f"{step}: {step.amount:f}" for step in steps] == told
    assert {step.unit for step in steps} == {"credits"}
    assert steps[-1].amount == found.amount


def test_dollars_and_the_day_are_handed_on() -> None:
    """What the list says in USD, times the quantity; the row's day, or the one on which it was set."""
    rule = PriceRule.usd("0.05", credits_per_usd=100)
    found = priced(ruled(rule, as_of=date(2026, 1, 1)), "3")
    assert (found.amount, found.usd, found.as_of) == (15, Decimal("0.15"), date(2026, 1, 1))
    assert priced(ruled(rule, created_at=NOW)).as_of == NOW.date()
    assert priced(row(as_of=date(2026, 1, 1))).as_of == date(2026, 1, 1)


def test_a_refusal_of_a_rule_names_the_action_and_the_dimension() -> None:
    """The rule knows dimensions, the row knows whose price it is: the error has both."""
    with pytest.raises(
        UnpricedActionError, match=r"^Agent\.act: the price depends on the dimension duration"
    ) as refusal:
        priced(ruled(PER_SECOND))
    assert refusal.value.reason == "missing_dimension"
    assert refusal.value.context == {"agent_type": "Agent", "action": "act", "dimension": "duration"}


@pytest.mark.parametrize(
    ("rule", "reason", "words"),
    [
        ('{"kind":"flat","credits":-1}', "unusable_price", "credits: -1 must not be negative"),
        ('{"kind":"usd","usd":1}', "unusable_price", "credits_per_usd: it is missing"),
        ("nonsense", "unusable_price", "no JSON"),
        (b"{}", "unusable_price", "JSON text, not bytes"),
        (5, "unusable_price", "JSON text, not int"),
        ('{"kind":"flat","credits":1,"version":2}', "unknown_price_rule", "version"),
    ],
)
def test_a_rule_that_cannot_be_used_refuses_its_action(rule: Any, reason: str, words: str) -> None:
    """Fail closed: the flat cost beside it is not charged instead."""
    with pytest.raises(UnpricedActionError, match=r"Agent\.act") as refusal:
        priced(row(cost=5, rule=rule))
    assert refusal.value.reason == reason
    assert words in refusal.value.message
    assert refusal.value.context.keys() == {"agent_type", "action", "field"}


def test_a_rule_that_comes_to_zero_is_free_only_where_the_row_says_so() -> None:
    """As a flat 0."""
    rule = PriceRule.table(["m"], [{"m": "a", "credits": 0}, {"m": "b", "credits": 1}])
    with pytest.raises(UnpricedActionError) as refusal:
        priced(ruled(rule), dimensions={"m": "a"})
    assert refusal.value.reason == "zero_price_not_free"
    free = priced(ruled(rule, free=True), dimensions={"m": "a"})
    assert (free.pricing, [str(step) for step in free.steps]) == (Pricing.FREE, ["line m=a", "0 credits each"])
    assert priced(row(cost=0, free=True)).steps == ()
    assert priced(ruled(rule, free=True), dimensions={"m": "b"}).amount_micros == 1_000_000


def test_a_rule_beyond_an_amount_is_refused() -> None:
    """Never wrapped, never clamped."""
    with pytest.raises(InvalidAmountError) as refusal:
        priced(ruled(PriceRule.flat(10**12, per="duration")), dimensions={"duration": 10**12})
    assert (refusal.value.reason, refusal.value.context["parameter"]) == ("too_large", "price × quantity")


def test_dimensions_that_are_no_mapping_are_refused() -> None:
    """Not a matter of prices: a wrong argument."""
    with pytest.raises(InvalidInputError, match="dimensions must be a mapping"):
        priced(ruled(PER_SECOND), dimensions=["duration", 5])


def test_a_row_whose_times_cannot_be_told_refuses_its_action() -> None:
    """It may be the one in force: charging another row would be a guess. Others' rows are not touched by it."""
    broken = row("acme", valid_from=NOW + DAY, problem="valid_from 'soon' is no time")
    older, default = row("acme"), row("")
    assert choose([older, broken, default], NOW) is broken
    assert choose([default, row("", "*", "*", problem="x")], NOW) is default
    with pytest.raises(UnpricedActionError, match="'soon' is no time") as refusal:
        priced(broken)
    assert refusal.value.reason == "unusable_price"


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
    assert refusal.value.message.startswith("quantity ")


@pytest.mark.parametrize("given", [0, "-2.5", MAX_QUANTITY + 1, Decimal("1e999999999")])
def test_a_quantity_out_of_range_is_handed_back_with_the_refusal(given: Any) -> None:
    """As the number that was read."""
    with pytest.raises(InvalidAmountError, match=r"must be above zero and at most 1,000,000,000, not ") as refusal:
        parse_quantity(given)
    assert (refusal.value.reason, refusal.value.context["value"]) == ("out_of_range", Decimal(given))


@pytest.mark.parametrize("given", ["1.0000001", "1." + 30 * "0" + "1", Decimal("1e-999999999")])
def test_a_quantity_with_more_than_six_decimals_is_refused(given: Any) -> None:
    """At once, wherever its last digit stands, whatever precision the caller works with."""
    for digits in (3, 28):
        with decimal.localcontext(prec=digits), pytest.raises(InvalidAmountError, match="more than 6 dec") as refusal:
            parse_quantity(given)
        assert (refusal.value.reason, refusal.value.context) == ("too_many_decimals", {"parameter": "quantity"})


def test_whole_quantities_are_plain_decimals_and_zeros_are_no_decimals() -> None:
    """A Decimal for every type of number; 2.50000000 has one decimal."""
    for given in (1, 7, MAX_QUANTITY, "2.50000000", Decimal(MAX_QUANTITY)):
        assert type(parse_quantity(given)) is Decimal
