"""Trees of runs on plain state: what is left in a tree, who stands in the way, and where each counter goes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from agentcredits.errors import (
    AccountNotFoundError,
    CreditLimitExceededError,
    CreditsError,
    InvalidInputError,
    RunEndedError,
    RunNotFoundError,
)
from agentcredits.model import LimitMode, LimitScope, LimitUnit, Overage, Pricing, RunStatus, Scopes
from agentcredits.rules import operations as ops
from agentcredits.rules import runs
from agentcredits.rules.due import book_due
from agentcredits.rules.posting import decide
from agentcredits.rules.state import AccountState, Changes, HoldState, Ledger, Row, RunState
from agentcredits.testing import START as NOW

ACME = "acme"
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
MICRO = Decimal("0.000001")


class Tree:
    """An account of 1,000 micros, a clock, and short names for what is done in runs; ids are counted."""

    def __init__(self) -> None:
        self.ledger = Ledger(ACME, AccountState(ACME, NOW, NOW))
        self.now = NOW
        self._count = 0
        self.do(ops.Grant(**self._facts(), amount_micros=1_000))

    def _facts(self) -> dict[str, str]:
        self._count += 1
        return {"organization_id": ACME, "id": f"id{self._count}", "key": f"k{self._count}", "fingerprint": "f"}

    def do(self, operation: ops.Operation) -> Any:
        book_due(self.ledger, self.now)
        runs.book_due(self.ledger, self.now)
        outcome = decide(self.ledger, operation, self.now)
        if outcome.error is not None:
            raise outcome.error
        return outcome.record

    def open(self, run_id: str, cap: int | None = None, parent: str | None = None, **how: Any) -> RunState:
        operation = ops.OpenRun(organization_id=ACME, run_id=run_id, cap_micros=cap, parent_run_id=parent, **how)
        made: RunState = self.do(operation)
        return made

    def end(self, run_id: str, reason: str | None = None) -> RunState:
        ended: RunState = self.do(ops.EndRun(organization_id=ACME, run_id=run_id, reason=reason))
        return ended

    def activity(self, run_id: str, cap: int | None = None) -> ops.Activity:
        return ops.Activity(action="act", scopes=Scopes(run_id=run_id, run_max_micros=cap))

    def spend(self, run_id: str, amount: int, *, cap: int | None = None, **how: Any) -> Row:
        activity = self.activity(run_id, cap)
        made: Row = self.do(ops.Consume(**self._facts(), amount_micros=amount, activity=activity, **how))
        return made

    def hold(self, run_id: str, amount: int, *, ttl: timedelta = HOUR, **how: Any) -> HoldState:
        activity = self.activity(run_id)
        made: HoldState = self.do(ops.Reserve(**self._facts(), amount_micros=amount, activity=activity, ttl=ttl, **how))
        return made

    def commit(self, hold: HoldState, amount: int, **how: Any) -> HoldState:
        facts = {"organization_id": ACME, "reservation_id": hold.id, "transaction_id": f"t{hold.id}"}
        done: HoldState = self.do(ops.Commit(**facts, amount_micros=amount, **how))
        return done

    def release(self, hold: HoldState) -> None:
        self.do(ops.Release(organization_id=ACME, reservation_id=hold.id))

    def refund(self, charge: Row, amount: int) -> None:
        self.do(ops.Refund(**self._facts(), transaction_id=charge.id, amount_micros=amount))

    def __getitem__(self, run_id: str) -> RunState:
        return self.ledger.runs[run_id]

    def numbers(self, run_id: str) -> tuple[int, int, int, int]:
        """(spent, held, carved, what was charged in the runs inside)."""
        run = self[run_id]
        return run.spent_micros, run.held_micros, run.carved_micros, run.inner_spent_micros

    def room(self, run_id: str) -> int | None:
        return runs.room(self.ledger, self[run_id])


@pytest.fixture
def tree() -> Tree:
    return Tree()


def refused(call: Callable[[], object]) -> CreditLimitExceededError:
    with pytest.raises(CreditLimitExceededError) as refusal:
        call()
    return refusal.value


def told(error: CreditsError, *names: str) -> list[Any]:
    """What an error's context says, micro-credits as whole numbers."""
    values = [error.context[name] for name in names]
    return [int(value / MICRO) if isinstance(value, Decimal) else value for value in values]


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


# -- opened --------------------------------------------------------------------------------------------------------


def test_a_run_inside_another_is_a_carve_out_of_it(tree: Tree) -> None:
    """It ends a day after the last that happened in it, unless somebody says otherwise."""
    tree.open("a", 10, ttl=HOUR)
    tree.spend("a", 1)
    tree.now += MINUTE
    inner = tree.open("b", 4, "a")
    assert (inner.root_run_id, inner.parent_run_id, inner.depth, inner.borrows) == ("a", "a", 2, False)
    assert (inner.created_at, inner.expires_at) == (tree.now, tree.now + DAY)
    assert (inner.ttl_seconds, inner.counts_from_seq) == (24 * 3600, 2)
    assert (tree["a"].open_children, tree["a"].expires_at) == (1, tree.now + HOUR)
    assert tree.numbers("a") == (1, 0, 4, 0)
    assert tree.open("c", 1, "b", borrows=True, ttl=timedelta(seconds=1.6)).ttl_seconds == 2
    assert (tree["c"].root_run_id, tree["c"].depth, tree["c"].borrows) == ("a", 3, True)


def test_a_carve_out_is_what_is_asked_for_or_with_partial_what_is_left(tree: Tree) -> None:
    """Refused when the run around has less; of a run without a bound any."""
    tree.open("a", 10)
    tree.hold("a", 7)
    before = copy.deepcopy(tree.ledger)
    error = refused(lambda: tree.open("b", 4, "a"))
    assert told(error, "run_id", "limit", "required", "amount", "action") == ["a", 10, 4, 4, "run b"]
    assert error.context["organization_id"] == ACME
    assert tree.ledger == before
    assert tree.open("b", 4, "a", partial=True).cap_micros == 3
    assert tree.open("c", 1, "a", partial=True).cap_micros == 0
    tree.open("free")
    assert tree.open("d", 5_000, "free").cap_micros == 5_000
    tree.open("shared", None, "a")
    error = refused(lambda: tree.open("e", 2, "shared"))
    assert told(error, "run_id", "limit", "required") == ["a", 10, 2]
    tree.open("zero", 0)
    assert told(refused(lambda: tree.open("h", 1, "zero")), "run_id", "limit", "required") == ["zero", 0, 1]
    tree.open("f", 3, "d", borrows=True)
    assert tree.open("g", 3, "f").cap_micros == 3


def test_a_run_is_carved_whole_out_of_what_is_left_to_the_micro(tree: Tree) -> None:
    """All of it, and nothing more."""
    tree.open("a", 10)
    assert tree.open("b", 10, "a").cap_micros == 10
    assert tree.room("a") == 0


def test_opening_again_changes_what_is_said_and_nothing_else(tree: Tree) -> None:
    """Cap, borrowing and time-to-live, each for itself; it is a use of the run and of those around it."""
    tree.open("a", 10, ttl=HOUR)
    tree.open("b", 4, "a", borrows=True, ttl=HOUR)
    tree.ledger.changes = Changes()
    tree.now += MINUTE
    same = tree.open("b")
    assert (same.cap_micros, same.borrows, same.ttl_seconds) == (4, True, 3600)
    assert [tree[name].expires_at for name in "ab"] == [tree.now + HOUR] * 2
    assert tree.ledger.changes.runs == {"a", "b"}
    other = tree.open("b", 6, "a", borrows=False, ttl=timedelta(seconds=89.5))
    assert (other.cap_micros, other.borrows, other.ttl_seconds) == (6, False, 90)
    assert other.expires_at == tree.now + timedelta(seconds=90)
    assert tree.numbers("a") == (0, 0, 6, 0)


def test_another_cap_moves_the_claim_in_the_run_around(tree: Tree) -> None:
    """More needs room there, or gets what there is; less gives back, down to what is used."""
    tree.open("a", 20)
    tree.open("b", 4, "a")
    tree.spend("a", 10)
    error = refused(lambda: tree.open("b", 11))
    assert told(error, "run_id", "required") == ["a", 7]
    assert (tree["b"].cap_micros, tree.numbers("a")) == (4, (10, 0, 4, 0))
    assert tree.open("b", 10).cap_micros == 10
    assert tree.numbers("a") == (10, 0, 10, 0)
    assert tree.open("b", 11, partial=True).cap_micros == 10
    tree.spend("b", 3)
    assert tree.open("b", 1).cap_micros == 1
    assert tree.numbers("a") == (10, 0, 3, 3)
    assert tree.open("b", 2).cap_micros == 2
    assert tree.numbers("a") == (10, 0, 3, 3)
    assert tree.open("b", 9, partial=True).cap_micros == 9
    assert tree.open("b", 99, partial=True).cap_micros == 10
    assert tree.open("a", 2).cap_micros == 2
    assert tree.room("a") == 0


def test_a_borrower_that_gets_a_larger_cap_pays_only_for_what_it_did_not_borrow(tree: Tree) -> None:
    """What it uses already is claimed already."""
    tree.open("a", 10)
    tree.open("b", 2, "a", borrows=True)
    tree.spend("b", 7)
    assert tree.numbers("a") == (0, 0, 7, 7)
    assert tree.open("b", 9).cap_micros == 9
    assert tree.numbers("a") == (0, 0, 9, 7)
    assert tree.open("b", 50, partial=True).cap_micros == 10


def test_a_run_without_a_cap_gets_one(tree: Tree) -> None:
    """Its claim rises from what it uses to its cap."""
    tree.open("a", 10)
    tree.open("b", None, "a")
    tree.spend("b", 3)
    assert tree.open("b", 5).cap_micros == 5
    assert tree.numbers("a") == (0, 0, 5, 3)


# -- refusals ------------------------------------------------------------------------------------------------------


def test_a_run_is_opened_only_where_it_can_stand(tree: Tree) -> None:
    """Each refusal says what is wrong, with the names that it is about; nothing changes."""
    tree.open("a", 10)
    tree.open("b", 4, "a")
    tree.open("other", 4)
    before = copy.deepcopy(tree.ledger)
    wrong: list[tuple[type[CreditsError], str, dict[str, Any], str, dict[str, Any]]] = [
        (
            InvalidInputError,
            "run b is open already, and not inside run other",
            {"run_id": "b", "parent": "other"},
            "other_parent",
            {"run_id": "b", "parent_run_id": "a"},
        ),
        (
            InvalidInputError,
            "run a is open already, and not inside run other",
            {"run_id": "a", "parent": "other"},
            "other_parent",
            {"run_id": "a", "parent_run_id": None},
        ),
        (
            InvalidInputError,
            "run a has no run around it to borrow from",
            {"run_id": "a", "borrows": True},
            "invalid_input",
            {"parameter": "borrow", "run_id": "a"},
        ),
        (
            InvalidInputError,
            "run new has no run around it to borrow from",
            {"run_id": "new", "borrows": True},
            "invalid_input",
            {"parameter": "borrow", "run_id": "new"},
        ),
        (
            RunNotFoundError,
            "organization acme has no run nowhere",
            {"run_id": "new", "parent": "nowhere"},
            "run_not_found",
            {"organization_id": ACME, "run_id": "nowhere"},
        ),
    ]
    for error, words, arguments, reason, context in wrong:
        with pytest.raises(error, match=f"^{words}") as refusal:
            tree.open(**arguments)
        assert (refusal.value.reason, dict(refusal.value.context)) == (reason, context)
        assert tree.ledger == before


def test_runs_stand_inside_each_other_32_deep(tree: Tree) -> None:
    """And not deeper."""
    tree.open("1")
    for depth in range(2, 33):
        assert tree.open(str(depth), None, str(depth - 1)).depth == depth
    with pytest.raises(InvalidInputError, match="run 33 would be too deep: at most 32 runs") as refusal:
        tree.open("33", None, "32")
    assert refusal.value.reason == "too_deep"
    assert dict(refusal.value.context) == {"run_id": "33", "parent_run_id": "32", "maximum": 32}


def test_an_ended_run_takes_nothing_new(tree: Tree) -> None:
    """No charge, hold, run inside it, or change; its refusal says when and why it ended."""
    tree.open("r", 10)
    tree.spend("r", 3)
    tree.now += MINUTE
    tree.end("r", "done")
    calls: list[Callable[[], object]] = [
        lambda: tree.spend("r", 1),
        lambda: tree.spend("r", 1, cap=50),
        lambda: tree.spend("r", 9, overage=Overage.CAP),
        lambda: tree.hold("r", 1),
        lambda: tree.open("r"),
        lambda: tree.open("inner", 1, "r"),
    ]
    for call in calls:
        with pytest.raises(
            RunEndedError, match=r"^run r of organization acme ended at 2026-01-01T00:01:00\+00:00"
        ) as r:
            call()
    assert r.value.message.endswith("(done): it takes nothing new.")
    assert dict(r.value.context) == {
        "organization_id": ACME,
        "scope": "run",
        "scope_id": "r",
        "run_id": "r",
        "ended_at": NOW + MINUTE,
        "spent": 3 * MICRO,
    }
    assert "new run_id" in r.value.suggestions[0]
    tree.open("plain")
    tree.end("plain")
    with pytest.raises(RunEndedError, match=r"\+00:00: it takes nothing new\.$"):
        tree.spend("plain", 1)


def test_nobody_without_an_account_has_runs() -> None:
    """Nor ends any."""
    ledger = Ledger("nobody")
    for operation in (
        ops.OpenRun(organization_id="nobody", run_id="r"),
        ops.EndRun(organization_id="nobody", run_id="r"),
    ):
        assert isinstance(decide(ledger, operation, NOW).error, AccountNotFoundError)


# -- ended ---------------------------------------------------------------------------------------------------------


def test_the_end_of_a_run_ends_those_inside_it(tree: Tree) -> None:
    """What none of them used goes back; those that ended before keep their end, and the second end is a replay."""
    tree.open("a", 20)
    tree.open("b", 10, "a")
    tree.open("c", 4, "b")
    tree.open("d", 2, "b")
    tree.spend("c", 1)
    tree.end("d", "early")
    assert (tree["b"].open_children, tree["a"].open_children) == (1, 1)
    tree.now += MINUTE
    tree.ledger.changes = Changes()
    run = tree.end("b", "done")
    assert tree.ledger.changes.runs == {"a", "b", "c"}
    assert (run.status, run.ended_at, run.reason, run.open_children) == (RunStatus.ENDED, tree.now, "done", 0)
    assert (tree["c"].reason, tree["c"].ended_at) == ("run b around it ended", tree.now)
    assert (tree["d"].reason, tree["d"].ended_at) == ("early", NOW)
    assert (tree["a"].open_children, tree.numbers("a"), tree.numbers("b")) == (0, (0, 0, 1, 1), (0, 0, 1, 1))
    assert tree["a"].expires_at == tree.now + 30 * DAY
    tree.now += MINUTE
    outcome = decide(tree.ledger, ops.EndRun(organization_id=ACME, run_id="b", reason="again"), tree.now)
    assert (outcome.record, outcome.replayed, run.reason) == (run, True, "done")
    outcome = decide(tree.ledger, ops.EndRun(organization_id=ACME, run_id="a"), tree.now)
    assert (outcome.record, outcome.replayed) == (tree["a"], False)
    with pytest.raises(RunNotFoundError) as refusal:
        tree.end("nowhere")
    assert "open_run(...)" in refusal.value.suggestions[0]


def test_a_hold_outlives_its_run(tree: Tree) -> None:
    """It stays claimed until it settles; more than it holds comes from the run around."""
    tree.open("a", 20)
    tree.open("b", 10, "a")
    held = tree.hold("b", 4)
    tree.end("b")
    assert tree.numbers("a") == (0, 0, 4, 0)
    done = tree.commit(held, 6, overage=Overage.CAP)
    assert done.charged_micros == 6
    assert tree.numbers("a") == (0, 0, 6, 6)


# -- ended by time -------------------------------------------------------------------------------------------------


def due(tree: Tree, at: timedelta) -> dict[str, timedelta]:
    """What has ended when somebody looks at a moment, and when it ended; both from the start on."""
    tree.now = NOW + at
    book_due(tree.ledger, tree.now)
    runs.book_due(tree.ledger, tree.now)
    return {name: run.ended_at - NOW for name, run in tree.ledger.runs.items() if run.ended_at is not None}


def test_a_run_in_which_nothing_happens_ends_exactly_at_its_time(tree: Tree) -> None:
    """And says why."""
    tree.open("r", 10, ttl=HOUR)
    assert due(tree, HOUR - timedelta(microseconds=1)) == {}
    assert due(tree, HOUR) == {"r": HOUR}
    assert (tree["r"].status, tree["r"].reason) == (RunStatus.ENDED, "time-to-live ended")


def test_the_end_of_one_is_a_use_of_the_one_around(tree: Tree) -> None:
    """From the moment at which it ended, however late somebody looks; one around that had ended is not ended twice."""
    tree.open("a", 10, ttl=HOUR)
    tree.open("b", 4, "a", ttl=2 * HOUR)
    tree.open("c", 1, "b", ttl=4 * HOUR)
    tree.open("d", 1, "a", ttl=HOUR)
    assert due(tree, 2 * HOUR) == {"d": HOUR}
    assert tree.numbers("a") == (0, 0, 4, 0)
    assert due(tree, 7 * HOUR - MINUTE) == {"d": HOUR, "c": 4 * HOUR, "b": 6 * HOUR}
    assert tree.numbers("a") == (0, 0, 0, 0)
    assert due(tree, 7 * HOUR) == {"d": HOUR, "c": 4 * HOUR, "b": 6 * HOUR, "a": 7 * HOUR}


def test_one_late_look_ends_what_many_looks_end(tree: Tree) -> None:
    """A whole tree, in the order of time."""
    tree.open("a", 10, ttl=HOUR)
    tree.open("b", 4, "a", ttl=2 * HOUR)
    tree.open("c", 1, "b", ttl=4 * HOUR)
    tree.open("d", 1, "a", ttl=6 * HOUR)
    assert due(tree, 7 * HOUR) == {"c": 4 * HOUR, "b": 6 * HOUR, "d": 6 * HOUR, "a": 7 * HOUR}


def test_a_run_does_not_end_while_something_is_held_in_it(tree: Tree) -> None:
    """It lives on from the moment at which its last hold ended."""
    tree.open("r", 10, ttl=HOUR)
    held = tree.hold("r", 2, ttl=5 * HOUR)
    tree.hold("r", 2, ttl=2 * HOUR)
    assert due(tree, 4 * HOUR) == {}
    assert due(tree, 6 * HOUR - MINUTE) == {}
    assert held.state == "expired"
    assert due(tree, 6 * HOUR) == {"r": 6 * HOUR}


def test_a_run_is_ended_once_where_plain_sql_lost_count_of_those_inside(tree: Tree) -> None:
    """At its own time, put off by the end of the one inside; others that are due come after it."""
    tree.open("a", 10, ttl=HOUR)
    tree.open("b", 4, "a", ttl=HOUR - MINUTE)
    tree.open("c", 1, ttl=3 * HOUR)
    tree["a"].open_children = 0
    assert due(tree, DAY) == {"b": HOUR - MINUTE, "a": 2 * HOUR - MINUTE, "c": 3 * HOUR}


def test_a_use_puts_its_end_off(tree: Tree) -> None:
    """A charge at the last moment counts."""
    tree.open("r", 10, ttl=HOUR)
    tree.now += HOUR - MINUTE
    tree.spend("r", 1)
    assert due(tree, 2 * HOUR - 2 * MINUTE) == {}
    assert due(tree, 2 * HOUR - MINUTE) == {"r": 2 * HOUR - MINUTE}
