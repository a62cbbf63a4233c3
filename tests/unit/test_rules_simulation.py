"""A replay on plain rows: prices to try, limits to try, refunds, and what cannot be told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from agentcredits.errors import CreditsError
from agentcredits.model import (
    LimitEffect,
    LimitMode,
    LimitScope,
    LimitUnit,
    NotRepriced,
    PlannedLimit,
    Pricing,
    SimulationLine,
    TransactionType,
)
from agentcredits.rules.price_rules import PriceRule
from agentcredits.rules.pricing import CostRow
from agentcredits.rules.simulation import RateCard, Recorded, Simulation
from agentcredits.rules.state import LimitState, Row

NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)
MIDNIGHT = datetime(2026, 1, 15, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
TICK = timedelta(microseconds=1)
CREDIT = 1_000_000
BY_PAGES = PriceRule.step("pages", size=1, credits=2).as_json()


def cost(
    credits: str, agent_type: str = "Writer", action: str = "draft", organization: str = "", **facts: Any
) -> CostRow:
    return CostRow(organization, agent_type, action, credits, **{"valid_from": MIDNIGHT - 9 * DAY} | facts)


def row(seq: int, amount: int, kind: TransactionType = TransactionType.DEBIT, at: datetime = NOON, **facts: Any) -> Row:
    """A row of some credits, of one draft of a writer."""
    named: dict[str, Any] = {"agent_type": "Writer", "action": "draft", "quantity": Decimal(1)}
    return Row(f"t{seq}", seq, kind, amount * CREDIT, 0, at, **named | facts)


def charge(seq: int, amount: int, at: datetime = NOON, *, back: int = 0, **facts: Any) -> Recorded:
    return Recorded(row(seq, -amount, at=at, **facts), at, back * CREDIT)


def refund(seq: int, amount: int, of: int, at: datetime = NOON) -> Recorded:
    return Recorded(row(seq, amount, TransactionType.REFUND, at, refund_of=f"t{of}"), at)


def replay(simulation: Simulation, *records: Recorded) -> None:
    for recorded in records:
        simulation.replay(recorded)


def numbers(simulation: Simulation) -> list[tuple[Any, ...]]:
    """Of each line charges, recorded, simulated, refused, and what those would have cost; in credits."""
    return [
        (
            line.charges,
            Decimal(line.recorded_micros) / CREDIT,
            Decimal(line.simulated_micros) / CREDIT,
            line.refused,
            Decimal(line.refused_micros) / CREDIT,
        )
        for line in simulation.lines()
    ]


def repriced(then: str, now: str) -> Simulation:
    return Simulation("acme", RateCard([cost(then)]), RateCard([cost(now)]))


# -- the price list ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "planned", "chosen"),
    [
        (["1 Writer draft", "2 Writer *", "3 * draft", "4 * *"], [], "1"),
        (["2 Writer *", "3 * draft", "4 * *"], [], "2"),
        (["3 * draft", "4 * *"], [], "3"),
        (["4 * *"], [], "4"),
        (["5 Writer edit", "6 Other draft"], [], None),
        # A planned price replaces those of its place, and of no other.
        (["1 Writer draft", "9 Writer *"], ["2 Writer draft"], "2"),
        (["1 Writer draft"], ["2 Writer *"], "1"),
        (["1 Writer *"], ["2 Writer draft"], "2"),
        (["1 Writer *"], ["2 Writer *"], "2"),
        (["1 * draft"], ["2 * draft"], "2"),
        (["1 * *"], ["2 * *"], "2"),
        ([], ["2 * *"], "2"),
        (["1 Writer draft"], ["2 Writer edit"], "1"),
    ],
)
def test_a_planned_price_stands_in_its_place_of_the_list(rows: list[str], planned: list[str], chosen: str) -> None:
    """The most exact name wins, as it does for charges."""

    def made(texts: list[str], **facts: Any) -> list[CostRow]:
        return [cost(*text.split(), **facts) for text in texts]

    # The rows of the database became valid later: they would win if they were not replaced.
    card = RateCard(made(rows, valid_from=MIDNIGHT), made(planned))
    found = card.choose("Writer", "draft", NOON)
    assert (None if found is None else found.cost) == chosen


def test_a_planned_default_stands_behind_an_own_price() -> None:
    """It replaces only rows of the same organization, while it is in force."""
    rows = [cost("1", organization="acme"), cost("2")]
    assert RateCard(rows, [cost("9")]).choose("Writer", "draft", NOON) is rows[0]
    planned = cost("9", organization="acme", valid_from=NOON, valid_until=NOON + HOUR)
    card = RateCard(rows, [planned])
    found = [card.choose("Writer", "draft", at) for at in (NOON - TICK, NOON, NOON + HOUR - TICK, NOON + HOUR)]
    assert found == [rows[0], planned, planned, rows[0]]


def test_a_price_is_that_of_its_moment() -> None:
    """Also of those in the database."""
    rows = [cost("1", valid_until=NOON), cost("2", valid_from=NOON)]
    card = RateCard(rows)
    assert [card.amount(row(1, -1), at) for at in (NOON - TICK, NOON)] == [CREDIT, 2 * CREDIT]


def test_a_recorded_action_costs_its_quantity_and_dimensions() -> None:
    """By the flat cost or the rule of the list; unpriced and free ones cost nothing."""
    card = RateCard([cost("1.5"), cost("", action="scan", rule=BY_PAGES), cost("0", action="ping", free=True)])
    assert card.amount(row(1, -1, quantity=Decimal(3)), NOON) == 4_500_000
    scan = row(2, -1, action="scan", quantity=Decimal(2), dimensions='{"pages": 4}')
    assert card.amount(scan, NOON) == 16 * CREDIT
    assert card.amount(row(3, 0, action="ping"), NOON) == 0
    assert card.amount(row(4, 0, action="none", pricing=Pricing.UNPRICED), NOON) == 0
    with pytest.raises(CreditsError, match=r"Writer\.none"):
        card.amount(row(5, 0, action="none"), NOON)
    with pytest.raises(CreditsError, match="pages"):
        card.amount(row(6, -1, action="scan"), NOON)


def test_a_line_of_a_table_counts_in_its_own_time() -> None:
    """Up to its end."""
    rows = [{"model": "m", "credits": 3, "valid_until": "2026-01-15"}, {"model": "m", "credits": 4}]
    card = RateCard([cost("", rule=PriceRule.table(["model"], rows).as_json())])
    told = row(1, -3, dimensions='{"model": "m"}')
    assert [card.amount(told, at) for at in (MIDNIGHT - TICK, MIDNIGHT)] == [3 * CREDIT, 4 * CREDIT]


@pytest.mark.parametrize("missing", ["agent_type", "action", "quantity"])
def test_a_charge_that_names_no_action_has_no_price(missing: str) -> None:
    """Its amount was given."""
    with pytest.raises(CreditsError, match="names no action") as refusal:
        RateCard([cost("1", "*", "*")]).amount(row(1, -1, **{missing: None}), NOON)
    assert refusal.value.reason == "amount_given"


# -- prices to try -------------------------------------------------------------------------------------------------


def test_charges_are_replayed_at_the_prices_to_try() -> None:
    """By action, in the order in which each came first."""
    simulation = Simulation(
        "acme",
        RateCard([cost("2"), cost("5", action="edit")]),
        RateCard([cost("3"), cost("4", action="edit")]),
    )
    replay(simulation, charge(1, 5, action="edit"), charge(2, 2), charge(3, 2))
    assert simulation.lines() == [
        SimulationLine("acme", "Writer", "edit", 1, 5 * CREDIT, 4 * CREDIT, 0, 0),
        SimulationLine("acme", "Writer", "draft", 2, 4 * CREDIT, 6 * CREDIT, 0, 0),
    ]
    assert (simulation.effects(), simulation.not_repriced()) == ([], [])


def test_other_rows_and_observed_charges_change_nothing() -> None:
    """Only what was charged or given back is replayed."""
    simulation = repriced("2", "3")
    others = [kind for kind in TransactionType if kind not in (TransactionType.DEBIT, TransactionType.REFUND)]
    replay(simulation, *(Recorded(row(seq, 2, kind), NOON) for seq, kind in enumerate(others)))
    replay(simulation, charge(9, 2, pricing=Pricing.OBSERVED))
    assert simulation.lines() == []


def test_without_prices_to_try_every_charge_keeps_its_amount() -> None:
    """And none of them is a charge that could not be priced."""
    simulation = Simulation("acme", RateCard([]))
    replay(simulation, charge(1, 7), charge(2, 3))
    assert numbers(simulation) == [(2, 10, 10, 0, 0)]
    assert simulation.not_repriced() == []


def test_a_price_is_that_of_the_moment_at_which_it_was_looked_up() -> None:
    """When it was held, not when it was settled; then and here."""
    then = RateCard([cost("2", valid_until=NOON), cost("7", valid_from=NOON)])
    card = RateCard([cost("3", valid_until=NOON), cost("8", valid_from=NOON)])
    simulation = Simulation("acme", then, card)
    replay(simulation, Recorded(row(1, -2, at=NOON), NOON - TICK), Recorded(row(2, -7, at=NOON), NOON))
    assert numbers(simulation) == [(2, 9, 11, 0, 0)]
    assert simulation.not_repriced() == []


@pytest.mark.parametrize(("price", "taken"), [("4", 4), ("7", 7), ("9", 7), ("20", 7)])
def test_a_charge_that_took_all_there_was_takes_no_more(price: str, taken: int) -> None:
    """At a lower price it is paid in full."""
    simulation = repriced("10", price)
    replay(simulation, charge(1, 7, uncollected_micros=3 * CREDIT))
    assert numbers(simulation) == [(1, 7, taken, 0, 0)]
    assert simulation.not_repriced() == []


def test_a_charge_that_collected_all_is_not_cut() -> None:
    """It may cost more here than it took."""
    simulation = repriced("10", "20")
    replay(simulation, charge(1, 10))
    assert numbers(simulation) == [(1, 10, 20, 0, 0)]


def test_what_the_prices_of_then_do_not_explain_keeps_its_amount() -> None:
    """By action and reason, with the sentence about the first."""
    then = RateCard([cost("2"), cost("", action="scan", rule=BY_PAGES)])
    card = RateCard([cost("3", "*", "*")])
    simulation = Simulation("acme", then, card)
    replay(
        simulation,
        charge(1, 2),
        # Another amount than the price of then; no price then.
        charge(2, 5),
        charge(3, 4),
        charge(4, 9, action="edit"),
        # Without what the rule needs.
        charge(5, 8, action="scan"),
        charge(6, 1, action="scan", quantity=None),
        # With it, and another amount.
        charge(7, 5, action="scan", dimensions='{"pages": 4}'),
        charge(8, 6, agent_type=None, action=None, quantity=None),
        charge(9, 8, action="scan", dimensions='{"pages": 4}'),
    )
    given, missing = "its amount does not come from the price list of then.", "the ledger does not tell what"
    kept = simulation.not_repriced()
    assert [(one.agent_type, one.action, one.reason, one.charges, one.recorded_micros // CREDIT) for one in kept] == [
        ("Writer", "draft", "amount_given", 2, 9),
        ("Writer", "edit", "amount_given", 1, 9),
        ("Writer", "scan", "dimensions_missing", 2, 9),
        ("Writer", "scan", "amount_given", 1, 5),
        (None, None, "amount_given", 1, 6),
    ]
    assert {one.organization_id for one in kept} == {"acme"}
    assert [one.message.startswith(missing, len("Writer.scan: ")) for one in kept] == [False, False, True, False, False]
    assert [one.message for one in kept if one.reason == "amount_given"] == [
        f"Writer.draft: {given}",
        f"Writer.edit: {given}",
        f"Writer.scan: {given}",
        f"a charge without an action: {given}",
    ]
    lines = {
        line.action: (line.recorded_micros // CREDIT, line.simulated_micros // CREDIT) for line in simulation.lines()
    }
    assert lines == {"draft": (11, 12), "edit": (9, 9), "scan": (22, 17), None: (6, 6)}


@pytest.mark.parametrize("missing", ["agent_type", "action"])
def test_a_charge_with_half_a_name_is_told_as_one_without(missing: str) -> None:
    """Even where a rule stands for every action."""
    simulation = Simulation("acme", RateCard([cost("", "*", "*", rule=BY_PAGES)]), RateCard([]))
    replay(simulation, charge(1, 2, **{missing: None}))
    (kept,) = simulation.not_repriced()
    assert (kept.reason, kept.message.split(":")[0]) == ("amount_given", "a charge without an action")


def test_what_has_no_price_in_the_list_to_try_keeps_its_amount() -> None:
    """With the reason and the sentence of the refusal."""
    simulation = Simulation("acme", RateCard([cost("2")]), RateCard([]))
    replay(simulation, charge(1, 2), charge(2, 2))
    assert numbers(simulation) == [(2, 4, 4, 0, 0)]
    (kept,) = simulation.not_repriced()
    assert kept == NotRepriced("acme", "Writer", "draft", "unpriced_action", kept.message, 2, 4 * CREDIT)
    assert "Writer.draft has no price" in kept.message


# -- refunds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("price", "left"), [("0.000001", (1, 1, 0)), ("9", (6 * CREDIT, 3 * CREDIT, 0))])
def test_the_same_part_is_given_back_here_as_there(price: str, left: tuple[int, ...]) -> None:
    """In whole micros of the sum so far, so that what was given back in full is given back in full."""
    simulation = repriced("3", price)
    replay(simulation, charge(1, 3, back=3))
    seen = []
    for seq in (2, 3, 4):
        simulation.replay(refund(seq, 1, 1))
        seen.append((simulation.lines()[0].recorded_micros // CREDIT, simulation.lines()[0].simulated_micros))
    assert seen == list(zip((2, 1, 0), left, strict=True))


def test_a_part_that_is_given_back_is_worth_what_its_charge_costs_here() -> None:
    """Half of it is half of it, charge by charge."""
    simulation = Simulation("acme", RateCard([cost("4"), cost("2", action="edit")]), RateCard([cost("10", "*", "*")]))
    replay(simulation, charge(1, 4, back=3), charge(2, 2, back=1, action="edit"))
    replay(simulation, refund(3, 2, 1), refund(4, 1, 2), refund(5, 1, 1))
    assert numbers(simulation) == [(1, 1, Decimal("2.5"), 0, 0), (1, 1, 5, 0, 0)]


def test_a_refund_of_a_charge_that_is_not_replayed_is_left_out() -> None:
    """Of one before the time that is looked at, or of none."""
    simulation = repriced("4", "10")
    replay(simulation, charge(1, 4), refund(2, 4, 9), Recorded(row(3, 4, TransactionType.REFUND), NOON))
    assert numbers(simulation) == [(1, 4, 10, 0, 0)]


def test_a_charge_is_forgotten_when_all_that_goes_back_went_back() -> None:
    """Memory grows with open refunds, not with rows; a refund beyond what was announced is not replayed."""
    simulation = repriced("4", "8")
    replay(simulation, charge(1, 4, back=3), refund(2, 2, 1), refund(3, 1, 1), refund(4, 1, 1))
    assert numbers(simulation) == [(1, 1, 2, 0, 0)]
    assert simulation._refundable == {}
    replay(simulation, charge(5, 4))
    assert simulation._refundable == {}


# -- limits to try -------------------------------------------------------------------------------------------------


def planned(id_: str, amount: int, **facts: Any) -> tuple[LimitState, PlannedLimit]:
    """A limit for the organization's day, in credits unless it says otherwise."""
    unit = facts.get("unit", LimitUnit.CREDITS)
    state: dict[str, Any] = {
        "scope": LimitScope.ORGANIZATION,
        "scope_id": "",
        "unit": unit,
        "window_text": "day UTC",
        "mode": LimitMode.HARD,
        "created_at": NOON,
    }
    micros = amount * CREDIT if unit is LimitUnit.CREDITS else amount
    return LimitState(id=id_, amount=micros, **state | facts), PlannedLimit(amount, f"the window of {id_}")


def limited(*limits: tuple[LimitState, PlannedLimit], price: str | None = None) -> Simulation:
    card = None if price is None else RateCard([cost(price)])
    return Simulation("acme", RateCard([cost("4")]), card, limits)


def test_a_limit_refuses_what_the_ledger_would_have_refused() -> None:
    """At the prices to try; what is refused takes no room, and tomorrow is another day."""
    day = planned("day", 10)
    simulation = limited(day, price="6")
    replay(simulation, charge(1, 4), charge(2, 4, NOON + HOUR), charge(3, 4, NOON + 2 * HOUR), charge(4, 4, NOON + DAY))
    assert numbers(simulation) == [(4, 16, 12, 2, 12)]
    assert simulation.effects() == [LimitEffect("acme", day[1], 2, 12 * CREDIT, NOON + HOUR, 0)]
    # The plan itself stays as it was.
    assert day[0].bounds is None
    simulation = limited(planned("day", 12), price="6")
    replay(simulation, charge(1, 4), charge(2, 4))
    assert numbers(simulation) == [(2, 8, 12, 0, 0)]
    assert simulation.effects() == []


def test_effects_are_told_in_the_order_in_which_limits_were_planned() -> None:
    """Those that did something; a charge counts for the limit that stands in its way longest."""
    limits = [
        planned("each user", 3, scope=LimitScope.USER),
        planned("idle", 900),
        planned("calls", 2, unit=LimitUnit.COUNT, window_text="month UTC"),
        planned("an action", 1, scope=LimitScope.ACTION, scope_id="Writer.draft", window_text="week UTC"),
    ]
    simulation = limited(*limits)
    replay(
        simulation,
        charge(1, 2, action="edit", user_id="ann"),
        charge(2, 2, NOON + HOUR, action="edit", user_id="ann"),
        charge(3, 4, NOON + 2 * HOUR, user_id="bob"),
        charge(4, 1, NOON + 3 * HOUR, action="edit", user_id="bob"),
        charge(5, 1, NOON + 4 * HOUR, action="edit"),
    )
    assert [
        (effect.limit, effect.refused, effect.refused_micros // CREDIT, effect.first_at)
        for effect in simulation.effects()
    ] == [
        (limits[0][1], 1, 2, NOON + HOUR),
        (limits[2][1], 1, 1, NOON + 4 * HOUR),
        (limits[3][1], 1, 4, NOON + 2 * HOUR),
    ]
    assert numbers(simulation) == [(4, 6, 3, 2, 3), (1, 4, 0, 1, 4)]


def test_a_soft_limit_is_gone_beyond_once_in_each_window() -> None:
    """It refuses nothing; told is when it first happened."""
    soft = planned("soft", 5, mode=LimitMode.SOFT)
    simulation = limited(soft)
    hours = (0, 1, 2, 3, 24, 25, 26)
    replay(simulation, *(charge(seq, 4, NOON + hour * HOUR) for seq, hour in enumerate(hours, 1)))
    assert numbers(simulation) == [(7, 28, 28, 0, 0)]
    assert simulation.effects() == [LimitEffect("acme", soft[1], 0, 0, NOON + HOUR, 2)]


def test_a_refund_makes_room_for_later_charges() -> None:
    """As much as is given back here; a refused charge gives nothing back."""
    simulation = limited(planned("day", 10), price="8")
    replay(
        simulation,
        charge(1, 4, back=2),
        charge(2, 4, back=4),
        refund(3, 4, 2),
        charge(4, 4),
        refund(5, 2, 1),
        charge(6, 4),
        charge(7, 1, action="edit"),
        charge(8, 5, action="edit"),
    )
    # 8, less 4 that are given back, leave 6 of the 10: the last draft is refused as the second and the third were.
    assert numbers(simulation) == [(4, 10, 4, 3, 24), (2, 6, 6, 0, 0)]


def test_a_refund_of_a_charge_of_another_window_makes_no_room() -> None:
    """Room comes back where it was used."""
    simulation = limited(planned("day", 4))
    replay(simulation, charge(1, 4, back=4), charge(2, 4, NOON + DAY), refund(3, 4, 1, NOON + DAY))
    replay(simulation, charge(4, 1, NOON + DAY, action="edit"))
    assert [line.refused for line in simulation.lines()] == [0, 1]
