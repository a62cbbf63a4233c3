"""Runs on plain state: how they are opened and changed, what is refused, and how they end."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from agentcredits.errors import (
    AccountNotFoundError,
    CreditsError,
    InvalidInputError,
    RunEndedError,
    RunNotFoundError,
)
from agentcredits.model import Overage, RunStatus
from agentcredits.rules import operations as ops
from agentcredits.rules import runs
from agentcredits.rules.due import book_due
from agentcredits.rules.posting import decide
from agentcredits.rules.state import Changes, Ledger
from agentcredits.testing import START as NOW
from tests.unit.run_tree import ACME, DAY, HOUR, MICRO, MINUTE, Tree, refused, told


@pytest.fixture
def tree() -> Tree:
    return Tree()


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


def test_an_earlier_end_inside_takes_nothing_from_a_later_use(tree: Tree) -> None:
    """One late look books the hold's end before that of the run inside, which was earlier."""
    tree.open("a", 10, ttl=HOUR)
    tree.open("b", 4, "a", ttl=MINUTE)
    tree.hold("a", 1, ttl=5 * MINUTE)
    assert due(tree, DAY) == {"b": MINUTE, "a": HOUR + 5 * MINUTE}


def test_a_shorter_time_to_live_counts_from_now(tree: Tree) -> None:
    """Opening again is a use; what the run had left before is over."""
    tree.open("r", 10, ttl=DAY)
    tree.now += MINUTE
    tree.open("r", ttl=HOUR)
    assert due(tree, HOUR) == {}
    assert due(tree, HOUR + MINUTE) == {"r": HOUR + MINUTE}


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
