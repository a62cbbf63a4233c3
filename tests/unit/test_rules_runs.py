"""Trees of runs on plain state: what is left in a tree, who stands in the way, and where each counter goes."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from agentcredits.model import LimitMode, LimitScope, LimitUnit, Overage, Pricing, RunStatus
from agentcredits.rules import operations as ops
from agentcredits.rules import runs
from agentcredits.rules.state import Changes, Ledger, RunState
from agentcredits.testing import START as NOW
from tests.unit.run_tree import ACME, DAY, HOUR, MINUTE, Tree, refused, told


@pytest.fixture
def tree() -> Tree:
    return Tree()


# -- what is left --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outer", "inner", "room"),
    [
        ({"cap": None}, None, None),
        ({"cap": 10}, None, 10),
        ({"cap": 10, "spent": 2, "held": 3, "carved": 4}, None, 1),
        ({"cap": 10, "spent": 12}, None, 0),
        ({"cap": 0}, None, 0),
        # A carve-out is its own, whatever is left around it.
        ({"cap": 5, "carved": 5}, {"cap": 5, "spent": 1}, 4),
        ({"cap": None}, {"cap": 5, "spent": 1}, 4),
        # Without a cap it uses the pool around it.
        ({"cap": 10, "spent": 7}, {"cap": None, "spent": 1}, 3),
        ({"cap": None}, {"cap": None}, None),
        # One that borrows has both.
        ({"cap": 10, "carved": 4}, {"cap": 4, "spent": 1, "borrows": True}, 9),
        ({"cap": 10, "carved": 4}, {"cap": None, "borrows": True}, 6),
        ({"cap": None}, {"cap": 4, "borrows": True}, None),
        # An ended one gave back what it did not use: more comes from around it, but not beyond its own cap.
        ({"cap": 10, "carved": 8}, {"cap": 9, "spent": 1, "open": False}, 2),
        ({"cap": 10, "carved": 1}, {"cap": 4, "spent": 1, "open": False}, 3),
        ({"cap": None}, {"cap": 4, "spent": 1, "open": False}, 3),
        ({"cap": 10, "carved": 1}, {"cap": 4, "spent": 1, "open": False, "borrows": True}, 9),
        ({"cap": 10, "carved": 1}, {"cap": None, "spent": 1, "open": False}, 9),
    ],
)
def test_how_much_more_a_run_may_use(outer: dict[str, Any], inner: dict[str, Any] | None, room: int | None) -> None:
    """Its own pool, the one around it, or both: by cap, borrowing, and whether it is still open."""
    ledger = Ledger(ACME)

    def run(name: str, parent: str | None, facts: dict[str, Any]) -> RunState:
        made = RunState(name, "outer", NOW, NOW, 60, parent, cap_micros=facts["cap"])
        made.borrows = facts.get("borrows", False)
        made.status = RunStatus.OPEN if facts.get("open", True) else RunStatus.ENDED
        made.spent_micros, made.held_micros = facts.get("spent", 0), facts.get("held", 0)
        made.carved_micros = facts.get("carved", 0)
        ledger.runs[name] = made
        return made

    asked = run("outer", None, outer)
    if inner is not None:
        asked = run("inner", "outer", inner)
    assert runs.room(ledger, asked) == room


def test_what_an_ended_run_needs_more_comes_from_all_that_is_around_it(tree: Tree) -> None:
    """Through a run that shares the pool around it."""
    tree.open("a", 10)
    tree.open("b", None, "a")
    tree.open("c", 8, "b")
    tree.hold("c", 3)
    tree.end("c")
    tree.spend("a", 2)
    assert tree.room("c") == 5


@pytest.mark.parametrize(
    ("most", "spent", "room"), [(None, 3, 7), (5, 3, 2), (5, 6, 0), (50, 3, 7), (10, 3, 7), (0, 0, 0)]
)
def test_a_cap_of_the_action_bounds_what_its_run_leaves(tree: Tree, most: int | None, spent: int, room: int) -> None:
    """The smaller of both counts; what the run uses counts against each."""
    tree.open("outer", 20)
    inner = tree.open("inner", 10, "outer")
    if spent:
        tree.spend("inner", spent)
    assert runs.Pool(inner, most).room(tree.ledger) == min(room, 10 - spent)


# -- who stands in the way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run_id", "amount", "run", "limit", "required"),
    [
        ("a", 4, "a", 10, 4),
        ("b", 3, "b", 3, 3),
        # c's own one micro bears a part of it; the rest would be b's.
        ("c", 5, "b", 3, 4),
        # e has no pool of its own: all of it would be a's.
        ("e", 4, "a", 10, 4),
        # d has 1 of its 4 left, the rest would be a's.
        ("d", 5, "a", 10, 4),
    ],
)
def test_a_refusal_names_the_run_that_stands_in_the_way(
    tree: Tree, run_id: str, amount: int, run: str, limit: int, required: int
) -> None:
    """The innermost of those that cannot bear it, and what it would have to bear; nothing is changed by it."""
    tree.open("a", 10)
    tree.open("b", 3, "a")
    tree.open("c", 1, "b", borrows=True)
    tree.open("d", 4, "a", borrows=True)
    tree.open("e", None, "a")
    tree.spend("d", 3)
    assert [tree.room(name) for name in "abcde"] == [3, 2, 3, 4, 3]
    before = copy.deepcopy(tree.ledger)
    error = refused(lambda: tree.spend(run_id, amount))
    assert told(error, "run_id", "limit", "required", "amount") == [run, limit, required, amount]
    assert (error.context["organization_id"], error.context["action"]) == (ACME, "act")
    assert refused(lambda: tree.hold(run_id, amount)).context == error.context
    assert tree.ledger == before
    left = tree.room(run_id)
    assert left is not None
    tree.spend(run_id, left)
    assert tree.room(run_id) == 0


def test_a_refusal_by_the_actions_own_cap_names_its_run(tree: Tree) -> None:
    """And that cap, not the run's; where the run itself has less, the run's."""
    tree.open("outer", 20)
    tree.open("inner", 10, "outer")
    tree.spend("inner", 2)
    error = refused(lambda: tree.spend("inner", 4, cap=5))
    assert told(error, "run_id", "limit", "required", "left") == ["inner", 5, 4, 3]
    tree.spend("inner", 3, cap=5)
    error = refused(lambda: tree.spend("inner", 6, cap=50))
    assert told(error, "run_id", "limit", "required") == ["inner", 10, 6]
    error = refused(lambda: tree.spend("inner", 6, cap=11))
    assert told(error, "limit", "required") == [10, 6]
    error = refused(lambda: tree.spend("inner", 1, cap=0))
    assert told(error, "limit", "left") == [0, 0]


def test_a_capped_charge_takes_what_the_tree_leaves(tree: Tree) -> None:
    """What it could not take stands on its row."""
    tree.open("outer", 10)
    tree.open("inner", 4, "outer", borrows=True)
    tree.spend("outer", 5)
    row = tree.spend("inner", 9, overage=Overage.CAP)
    assert (row.amount_micros, row.uncollected_micros) == (-5, 4)
    row = tree.spend("inner", 9, overage=Overage.CAP)
    assert (row.amount_micros, row.uncollected_micros) == (0, 9)


# -- where the counters go -----------------------------------------------------------------------------------------


def test_what_is_used_inside_is_claimed_of_every_run_around(tree: Tree) -> None:
    """A carve-out is claimed as a whole; beyond it what was borrowed, and in a shared pool each micro."""
    tree.open("a", 100)
    tree.open("b", 10, "a", borrows=True)
    tree.open("c", None, "b")
    assert [tree.numbers(name) for name in "abc"] == [(0, 0, 10, 0), (0, 0, 0, 0), (0, 0, 0, 0)]
    charge = tree.spend("c", 8)
    assert [tree.numbers(name) for name in "abc"] == [(0, 0, 10, 8), (0, 0, 8, 8), (8, 0, 0, 0)]
    held = tree.hold("c", 7)
    assert [tree.numbers(name) for name in "abc"] == [(0, 0, 15, 8), (0, 0, 15, 8), (8, 7, 0, 0)]
    tree.commit(held, 3)
    assert [tree.numbers(name) for name in "abc"] == [(0, 0, 11, 11), (0, 0, 11, 11), (11, 0, 0, 0)]
    tree.refund(charge, 5)
    assert [tree.numbers(name) for name in "abc"] == [(0, 0, 10, 6), (0, 0, 6, 6), (6, 0, 0, 0)]
    tree.end("b", "done")
    assert [tree.numbers(name) for name in "abc"] == [(0, 0, 6, 6), (0, 0, 6, 6), (6, 0, 0, 0)]
    tree.refund(charge, 3)
    assert [tree.numbers(name) for name in "abc"] == [(0, 0, 3, 3), (0, 0, 3, 3), (3, 0, 0, 0)]


def test_a_hold_that_ends_makes_room_again(tree: Tree) -> None:
    """Released or run out of time; a run that took holds before it was opened counts only those that came later."""
    early = tree.hold("r", 5)
    tree.open("r", 20)
    released, over = tree.hold("r", 6), tree.hold("r", 7)
    assert (early.limits, released.limits) == ((), (runs.POOL,))
    tree.release(early)
    assert tree.numbers("r") == (0, 13, 0, 0)
    tree.release(released)
    assert tree.numbers("r") == (0, 7, 0, 0)
    tree.now += HOUR
    tree.do(ops.Expire(organization_id=ACME))
    assert (over.state, tree.numbers("r")) == ("expired", (0, 0, 0, 0))


def test_charges_from_before_a_run_was_opened_and_observed_ones_are_not_in_its_pool(tree: Tree) -> None:
    """Neither as spent, nor when they are given back."""
    early = tree.spend("r", 5)
    run = tree.open("r", 3)
    assert run.counts_from_seq == early.seq
    tree.spend("r", 2)
    tree.refund(early, 4)
    observed = tree.spend("r", 9, observe=True)
    assert (observed.pricing, observed.amount_micros) == (Pricing.OBSERVED, 0)
    assert tree.hold("r", 9, observe=True).limits == ()
    assert tree.numbers("r") == (2, 0, 0, 0)


def test_an_observed_row_moves_no_pool(tree: Tree) -> None:
    """Whatever amount it says."""
    tree.open("r", 10)
    row = tree.spend("r", 4)
    row.pricing = Pricing.OBSERVED
    runs.book(tree.ledger, row, NOW)
    runs.unbook(tree.ledger, row, 1, NOW)
    assert tree.numbers("r") == (4, 0, 0, 0)


def test_a_settlement_goes_through_where_plain_sql_lowered_the_counters(tree: Tree) -> None:
    """No counter goes below 0, in the run and in those around it."""
    tree.open("outer", 50)
    inner = tree.open("inner", None, "outer")
    charge = tree.spend("inner", 9)
    held = tree.hold("inner", 8)
    inner.spent_micros, inner.held_micros = 2, 3
    tree["outer"].inner_spent_micros, tree["outer"].carved_micros = 1, 4
    tree.refund(charge, 9)
    tree.release(held)
    assert tree.numbers("inner") == (0, 0, 0, 0)
    assert tree.numbers("outer") == (0, 0, 0, 0)


def test_what_was_touched_is_written_and_lives_on(tree: Tree) -> None:
    """A run and those around it, and no other; the end of an ended one stays."""
    for name, parent in (("a", None), ("b", "a"), ("c", "b"), ("d", "a")):
        tree.open(name, None if parent else 100, parent, ttl=HOUR)
    assert tree.ledger.changes.new_runs == {"a", "b", "c", "d"}
    assert tree.ledger.changes.runs == set()
    charge = tree.spend("c", 1)
    assert tree.ledger.changes.runs == set()
    tree.end("c")
    tree.ledger.changes = Changes()
    tree.now += MINUTE
    tree.refund(charge, 1)
    assert tree.ledger.changes.runs == {"a", "b", "c"}
    later = NOW + MINUTE + HOUR
    assert [tree[name].expires_at for name in "abcd"] == [later, later, NOW + HOUR, NOW + HOUR]


# -- caps that an action brings ------------------------------------------------------------------------------------


def test_an_action_without_a_run_or_a_cap_opens_none(tree: Tree) -> None:
    """A run that nobody opened has no pool."""
    tree.do(ops.Consume(**tree._facts(), amount_micros=1))
    tree.spend("r", 1)
    tree.hold("r", 1)
    assert tree.ledger.runs == {}
    assert tree.ledger.changes.new_runs == tree.ledger.changes.runs == set()


def test_the_first_cap_opens_a_run_when_its_charge_goes_through(tree: Tree) -> None:
    """An outermost one that ends thirty days after the last that happened in it; a refused charge opens none."""
    error = refused(lambda: tree.spend("r", 6, cap=5))
    assert told(error, "run_id", "limit", "required") == ["r", 5, 6]
    assert tree.ledger.runs == {}
    row = tree.spend("r", 4, cap=5)
    run = tree["r"]
    assert (run.root_run_id, run.parent_run_id, run.depth, run.cap_micros, run.borrows) == ("r", None, 1, 5, False)
    assert (run.created_at, run.expires_at, run.ttl_seconds) == (NOW, NOW + 30 * DAY, 30 * 24 * 3600)
    assert run.counts_from_seq == row.seq - 1
    assert tree.numbers("r") == (4, 0, 0, 0)
    assert tree.ledger.changes.new_runs == {"r"}


def test_a_cap_of_zero_opens_a_run_that_takes_only_what_is_free(tree: Tree) -> None:
    """0 is a cap."""
    assert refused(lambda: tree.spend("r", 1, cap=0)).context["run_id"] == "r"
    tree.spend("r", 0, cap=0)
    assert tree["r"].cap_micros == 0


def test_another_cap_changes_an_outermost_run_when_its_charge_goes_through(tree: Tree) -> None:
    """Not one inside another, and not the run that a refusal names."""
    tree.open("r", 10)
    tree.open("inner", 5, "r")
    tree.ledger.changes = Changes()
    refused(lambda: tree.spend("r", 5, cap=9))
    assert tree["r"].cap_micros == 10
    tree.spend("r", 3, cap=9)
    assert tree["r"].cap_micros == 9
    assert tree.numbers("r") == (3, 0, 5, 0)
    tree.spend("inner", 1, cap=2)
    assert tree["inner"].cap_micros == 5
    tree.spend("r", 1, cap=None)
    assert tree["r"].cap_micros == 9
    assert tree.ledger.changes.runs == {"r", "inner"}


def test_a_changed_cap_alone_is_written(tree: Tree) -> None:
    """Also with a charge that moves no counter."""
    run = tree.open("r", 10)
    tree.ledger.changes = Changes()
    pool = runs.of_spending(tree.ledger, tree.activity("r", 7), NOW)
    assert pool is not None
    assert (run.cap_micros, pool.run.cap_micros) == (10, 7)
    runs.keep(tree.ledger, pool)
    assert pool.run is run
    assert run.cap_micros == 7
    assert tree.ledger.changes.runs == {"r"}
    tree.ledger.changes = Changes()
    runs.keep(tree.ledger, runs.of_spending(tree.ledger, tree.activity("r", 7), NOW))
    runs.keep(tree.ledger, None)
    assert tree.ledger.changes == Changes()


def test_a_run_that_is_capped_by_a_limit_keeps_that(tree: Tree) -> None:
    """As all caps were before there were runs: no pool is opened beside it."""
    cap = {"scope": LimitScope.RUN, "scope_id": "r", "unit": LimitUnit.CREDITS, "window_text": "lifetime"}
    tree.do(ops.SetLimit(organization_id=ACME, id="l", amount=5, mode=LimitMode.HARD, **cap))
    tree.spend("r", 4, cap=5)
    assert tree.ledger.runs == {}
    assert refused(lambda: tree.spend("r", 2, cap=5)).context["limit_id"] == "l"


# -- warnings ------------------------------------------------------------------------------------------------------


def crossings(tree: Tree) -> list[tuple[str, int, int, int]]:
    return [(one.scope_id, one.threshold, one.spent, one.limit_amount) for one in tree.ledger.changes.crossings]


def test_a_cap_warns_at_half_and_at_four_fifths(tree: Tree) -> None:
    """In the run and in those around it, once; a free charge warns of nothing."""
    tree.open("outer", 20)
    tree.open("inner", 10, "outer")
    tree.spend("inner", 4)
    tree.spend("outer", 1)
    assert crossings(tree) == []
    row = tree.spend("inner", 1)
    tree.spend("inner", 0)
    tree.spend("inner", 4)
    tree.spend("outer", 1)
    assert crossings(tree) == [("inner", 5_000, 5, 10), ("inner", 8_000, 9, 10), ("outer", 5_000, 10, 20)]
    first = tree.ledger.changes.crossings[0]
    assert (first.limit_id, first.scope, first.unit, first.window_text, first.window_start) == (
        "",
        "run",
        "credits",
        "lifetime",
        None,
    )
    assert (first.at, first.transaction_id) == (NOW, row.id)
    assert [tree[name].warned for name in ("outer", "inner")] == [5_000, 8_000]
    assert tree["inner"].warned_micros == 10


def test_a_raised_cap_can_be_crossed_again(tree: Tree) -> None:
    """At the thresholds that the raise put back above what is spent; at the others not."""
    tree.open("r", 10)
    tree.spend("r", 8)
    tree.open("r", 16)
    tree.spend("r", 4)
    tree.spend("r", 1)
    assert crossings(tree) == [("r", 5_000, 8, 10), ("r", 8_000, 8, 10), ("r", 8_000, 13, 16)]


def test_a_cap_that_was_lowered_warns_at_its_thresholds_only(tree: Tree) -> None:
    """Also where more is spent than it allows now: it is no soft limit."""
    tree.open("outer", 30)
    tree.open("inner", 10, "outer")
    tree.spend("outer", 9)
    tree.open("outer", 10)
    tree.spend("inner", 3)
    assert crossings(tree) == [("outer", 5_000, 12, 10), ("outer", 8_000, 12, 10)]


def test_a_refund_and_another_charge_do_not_warn_twice(tree: Tree) -> None:
    """What is crossed stays crossed while the cap is the same."""
    tree.open("r", 10)
    charge = tree.spend("r", 5)
    tree.refund(charge, 5)
    tree.spend("r", 6)
    assert crossings(tree) == [("r", 5_000, 5, 10)]
    tree.open("none")
    tree.spend("none", 9)
    tree.open("zero", 0)
    tree.spend("zero", 0)
    assert len(crossings(tree)) == 1
