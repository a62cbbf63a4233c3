"""Which grant burns first, and how an amount is taken from grants and given back."""

from __future__ import annotations

import itertools
import random
from datetime import timedelta
from typing import Any

import pytest

from agentcredits.model import Allocation, GrantCategory, GrantStatus
from agentcredits.rules.burn_down import order_key, split, take, usable
from agentcredits.rules.state import GrantState
from agentcredits.testing import START as NOW

DAY = timedelta(days=1)
TICK = timedelta(microseconds=1)


def grant(name: str = "g", amount: int = 10, **changes: Any) -> GrantState:
    arguments: dict[str, Any] = {
        "status": GrantStatus.ACTIVE,
        "category": GrantCategory.PAID,
        "priority": 50,
        "effective_at": NOW - DAY,
        "created_at": NOW - DAY,
    } | changes
    return GrantState(id=name, amount_micros=amount, **arguments)


#: Each grant burns before the next one, for the reason named.
IN_ORDER = [
    grant("lower priority number", priority=1),
    grant("expires first", expires_at=NOW + DAY),
    grant("expires later, promotional", expires_at=NOW + 2 * DAY, category=GrantCategory.PROMOTIONAL),
    grant("expires later, plan", expires_at=NOW + 2 * DAY, category=GrantCategory.PLAN),
    grant("expires later, adjustment", expires_at=NOW + 2 * DAY, category=GrantCategory.ADJUSTMENT),
    grant("expires later, paid", expires_at=NOW + 2 * DAY),
    grant("never, promotional", category=GrantCategory.PROMOTIONAL),
    grant("never, effective earlier", effective_at=NOW - 9 * DAY),
    grant("never, made earlier", created_at=NOW - 2 * DAY),
    grant("never, smaller id"),
    grant("never, the bigger id"),
    grant("higher priority number", priority=51, expires_at=NOW + TICK, category=GrantCategory.PROMOTIONAL),
]


@pytest.mark.parametrize(("first", "second"), list(itertools.pairwise(IN_ORDER)), ids=lambda entry: entry.id)
def test_each_part_of_the_order_decides_where_those_before_it_are_equal(first: GrantState, second: GrantState) -> None:
    """Priority, end, category, start, age, id."""
    assert order_key(first) < order_key(second)


def test_the_order_does_not_depend_on_how_grants_were_loaded() -> None:
    """Databases return rows in any order; the id makes it total."""
    mixed = random.Random(7)
    for _ in range(50):
        shuffled = mixed.sample(IN_ORDER, len(IN_ORDER))
        assert [entry.id for entry in usable(shuffled, NOW)] == [entry.id for entry in IN_ORDER]
    assert len({order_key(entry) for entry in IN_ORDER}) == len(IN_ORDER)


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, True),
        ({"effective_at": NOW}, True),
        ({"effective_at": NOW + TICK}, False),
        ({"expires_at": NOW + TICK}, True),
        ({"expires_at": NOW}, False),
        ({"expires_at": NOW - TICK}, False),
        ({"status": GrantStatus.SCHEDULED}, False),
        ({"status": GrantStatus.EXPIRED}, False),
        ({"status": GrantStatus.VOIDED}, False),
        ({"spent_micros": 9}, True),
        ({"spent_micros": 4, "held_micros": 3, "expired_micros": 2, "voided_micros": 1}, False),
    ],
)
def test_a_grant_counts_while_it_is_in_force_and_has_something_left(changes: dict[str, Any], counts: bool) -> None:
    """effective_at <= now < expires_at; spent, held, expired and voided are not left."""  # a column
    assert bool(usable([grant(**changes)], NOW)) is counts


def test_an_amount_is_taken_grant_by_grant() -> None:
    """The first ones are emptied, the last one gives the rest; what was taken before is left out."""
    grants = [grant("a", 10, spent_micros=4), grant("b", 3), grant("c", 10)]
    assert take(grants, 11) == (Allocation("a", 6), Allocation("b", 3), Allocation("c", 2))
    assert take(grants, 6) == (Allocation("a", 6),)
    assert take(grants, 19) == (Allocation("a", 6), Allocation("b", 3), Allocation("c", 10))
    assert take(grants, 0) == ()
    assert take([], 0) == ()


def test_taking_more_than_there_is_fails_loudly() -> None:
    """It is a mistake of the caller's, who must have looked: never an account below zero."""
    with pytest.raises(AssertionError, match="short of 1 micros"):
        take([grant("a", 10)], 11)


@pytest.mark.parametrize(
    ("amount", "used", "rest"),
    [
        (0, [], [("c", 2), ("b", 3), ("a", 5)]),
        (5, [("a", 5)], [("c", 2), ("b", 3)]),
        (6, [("a", 5), ("b", 1)], [("c", 2), ("b", 2)]),
        (10, [("a", 5), ("b", 3), ("c", 2)], []),
        (99, [("a", 5), ("b", 3), ("c", 2)], []),
    ],
)
def test_a_hold_is_used_in_its_order_and_the_rest_goes_back_newest_first(
    amount: int, used: list[tuple[str, int]], rest: list[tuple[str, int]]
) -> None:
    """Nothing is lost between the two parts."""
    allocations = (Allocation("a", 5), Allocation("b", 3), Allocation("c", 2))
    found = split(allocations, amount)
    assert [[(part.grant_id, part.amount_micros) for part in side] for side in found] == [used, rest]
