"""The rules of limits one by one: who counts, and who refuses.

test_limits.py tries them all together against a model.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

from agentcredits.errors import (
    ConfigurationError,
    CreditLimitExceededError,
    InsufficientCreditsError,
)
from agentcredits.model import LimitMode, LimitScope, LimitUnit, Overage, Pricing, Scopes
from agentcredits.rules import limits
from agentcredits.rules import operations as ops
from agentcredits.rules.state import Changes, LimitState, UsageState
from agentcredits.testing import START as NOW
from tests.unit.test_rules_posting import ACME, Book

HARD, SOFT = LimitMode.HARD, LimitMode.SOFT
CREDITS, COUNT = LimitUnit.CREDITS, LimitUnit.COUNT
LIFETIME = limits.LIFETIME
USER = ops.Activity(scopes=Scopes(user_id="u1"))
RUN = ops.Activity(scopes=Scopes(run_id="r1"))


class LimitBook(Book):
    """A book with plenty of credits, whose earlier changes are written."""

    def __init__(self) -> None:
        super().__init__()
        self.grant(1_000_000)
        self.write()

    def write(self) -> None:
        """The next operations are another batch."""
        self.ledger.changes = Changes()

    def limit(self, amount: int, **arguments: Any) -> LimitState:
        fields: dict[str, Any] = {
            "id": self._new("l"),
            "scope": LimitScope.USER,
            "scope_id": "u1",
            "unit": CREDITS,
            "window_text": "day UTC",
            "mode": HARD,
        }
        made: LimitState = self.do(ops.SetLimit(organization_id=ACME, amount=amount, **fields | arguments))
        return made

    def remove(self, limit: LimitState) -> None:
        self.do(ops.RemoveLimit(organization_id=ACME, limit_id=limit.id))

    def usage(self, limit: LimitState, scope_id: str = "u1") -> tuple[int, int] | None:
        """What is spent and held, where the ledger keeps a counter."""
        found = self.ledger.usage.get((limit.id, scope_id))
        return None if found is None else (found.spent, found.held)

    def refusal(self, amount: int, **arguments: Any) -> CreditLimitExceededError:
        with pytest.raises(CreditLimitExceededError) as caught:
            self.consume(amount, **{"activity": USER} | arguments)
        return caught.value

    @property
    def crossed(self) -> list[tuple[int, int]]:
        return [(one.threshold, one.spent) for one in self.ledger.changes.crossings]


@pytest.fixture
def book() -> LimitBook:
    return LimitBook()


# -- who counts ----------------------------------------------------------------------------------------------------


FULL = ops.Activity(
    agent_type="A",
    action="b",
    scopes=Scopes(project_id="p", department_id="d", user_id="u", run_id="r"),
)


@pytest.mark.parametrize(
    ("activity", "places"),
    [
        (ops.Activity(), {"organization": ""}),
        (ops.Activity(agent_type="A"), {"organization": "", "agent_type": "A"}),
        (ops.Activity(action="b"), {"organization": ""}),
        (
            FULL,
            {
                "organization": "",
                "department": "d",
                "project": "p",
                "user": "u",
                "agent_type": "A",
                "action": "A.b",
                "run": "r",
            },
        ),
    ],
    ids=["nothing named", "an agent", "an action of nobody", "all"],
)
def test_the_scopes_of_an_action_are_those_of_its_hold_and_row(
    book: LimitBook, activity: ops.Activity, places: dict[str, str]
) -> None:
    """What an action counts in, its settlement and its refund find again."""
    assert {scope.value: id_ for scope, id_ in limits.places_of_activity(activity)} == places
    for record in (book.reserve(1, activity=activity), book.consume(1, activity=activity)):
        assert limits.places_of_record(record) == limits.places_of_activity(activity)


def test_a_limit_for_each_counts_everyone_apart(book: LimitBook) -> None:
    """And nobody where the action names none."""
    each = book.limit(10, scope_id="")
    book.consume(7, activity=USER)
    book.consume(8, activity=ops.Activity(scopes=Scopes(user_id="u2")))
    book.consume(11)
    assert [book.usage(each, id_) for id_ in ("u1", "u2", "")] == [(7, 0), (8, 0), None]


@pytest.mark.parametrize(
    ("own", "speaks"),
    [
        ({}, False),
        ({"unit": COUNT}, True),
        ({"window_text": "month UTC"}, True),
        ({"scope_id": "u2"}, True),
    ],
    ids=["the same unit and window", "another unit", "another window", "another user"],
)
def test_a_limit_of_ones_own_stands_in_for_the_one_for_each(book: LimitBook, own: dict[str, Any], speaks: bool) -> None:
    """Of the same unit and window: the other counts on, but neither refuses nor warns."""
    each = book.limit(10, scope_id="", warn_at=(5_000,))
    book.limit(1_000, **own)
    book.write()
    if speaks:
        assert book.refusal(11).context["limit_id"] == each.id
    else:
        book.consume(11, activity=USER)
        assert book.usage(each) == (11, 0)
        assert book.crossed == []


def test_limits_that_come_and_go_are_found_at_once(book: LimitBook) -> None:
    """Also where the same action was asked for just before."""
    book.consume(1, activity=USER)
    limit = book.limit(10)
    assert book.refusal(11)
    book.remove(limit)
    book.consume(11, activity=USER)


# -- who refuses ---------------------------------------------------------------------------------------------------


def test_a_limit_gives_exactly_what_it_says(book: LimitBook) -> None:
    """What is held counts as what is spent."""
    limit = book.limit(10)
    book.consume(4, activity=USER)
    book.reserve(3, activity=USER)
    error = book.refusal(4)
    assert [int(error.context[name] * 1_000_000) for name in ("spent", "held", "left", "required")] == [4, 3, 3, 4]
    book.consume(3, activity=USER)
    assert book.usage(limit) == (7, 3)


def test_what_costs_nothing_uses_no_credits_but_is_a_call(book: LimitBook) -> None:
    """A limit of credits that was gone beyond lets free work pass; one of calls does not."""
    book.limit(10, mode=SOFT)
    calls = book.limit(2, unit=COUNT)
    free = ops.Activity(scopes=USER.scopes, pricing=Pricing.FREE)
    book.consume(30, activity=USER)
    book.limit(10)
    book.consume(0, activity=free)
    error = book.refusal(0, activity=free)
    assert (error.context["limit_id"], error.context["required"]) == (calls.id, 1)


def test_a_soft_limit_never_refuses_not_even_one_that_cannot_be_read(book: LimitBook) -> None:
    """It only counts."""
    limit = book.limit(10, mode=SOFT)
    limit.unusable = "no amount"
    book.consume(11, activity=USER)
    assert book.usage(limit) == (11, 0)


def test_nothing_runs_under_a_hard_limit_that_cannot_be_read(book: LimitBook) -> None:
    """Whatever the amount, capped or not; set again it works again."""
    limit = book.limit(10)
    limit.unusable = "no amount"
    for overage in (Overage.REJECT, Overage.CAP):
        with pytest.raises(ConfigurationError, match="cannot be read: no amount"):
            book.consume(1, activity=USER, overage=overage)
    book.limit(10)
    assert limit.unusable is None
    book.consume(1, activity=USER)


def test_the_limit_that_stands_in_the_way_longest_is_named_and_the_others_are_counted_up(book: LimitBook) -> None:
    """One without a window stands for ever."""
    day = book.limit(5)
    month = book.limit(5, window_text="month UTC")
    book.limit(6, window_text="hour UTC")
    error = book.refusal(6)
    assert (error.context["limit_id"], error.context["also_refused_by"]) == (month.id, [day.id])
    ever = book.limit(5, window_text=LIFETIME)
    error = book.refusal(6)
    assert (error.context["limit_id"], error.context["also_refused_by"]) == (ever.id, [day.id, month.id])


def test_a_capped_charge_is_cut_to_the_smallest_room(book: LimitBook) -> None:
    """Of hard limits of credits; a count cannot be cut and refuses."""
    book.limit(30, window_text="hour UTC")
    day = book.limit(20)
    book.limit(1, window_text=LIFETIME, mode=SOFT)
    calls = book.limit(2, unit=COUNT)
    cut = book.consume(50, activity=USER, overage=Overage.CAP)
    assert (cut.amount_micros, cut.uncollected_micros) == (-20, 30)
    day.amount = 5
    nothing = book.consume(50, activity=USER, overage=Overage.CAP)
    assert (nothing.amount_micros, nothing.uncollected_micros) == (0, 50)
    # A charge of nothing is counted as a call all the same.
    assert book.usage(calls) == (2, 0)
    error = book.refusal(50, overage=Overage.CAP)
    assert (error.context["limit_id"], error.context["also_refused_by"]) == (calls.id, [])


def test_an_amount_is_not_cut_unless_it_is_said_to_be(book: LimitBook) -> None:
    """Who only asks is told what a charge would be told."""
    book.limit(10)
    found = limits.of_spending(book.ledger, USER, book.now)
    limits.check(book.ledger, found, 10, USER)
    with pytest.raises(CreditLimitExceededError):
        limits.check(book.ledger, found, 11, USER)
    limits.check(book.ledger, found, 11, USER, capped=True)


def test_room_asks_only_limits_that_can_say_no() -> None:
    """No bound where none does; never less than nothing."""

    def counter(amount: int, spent: int = 0, *, speaks: bool = True, **changes: Any) -> limits.Counter:
        fields: dict[str, Any] = {"unit": CREDITS, "mode": HARD} | changes
        limit = LimitState("l", LimitScope.USER, "u", window_text="day UTC", amount=amount, created_at=NOW, **fields)
        return limits.Counter(limit, UsageState("l", "u", spent=spent), speaks)

    mute = [
        counter(1, speaks=False),
        counter(2, mode=SOFT),
        counter(3, unit=COUNT),
        counter(4, unusable="no window"),
    ]
    assert limits.room([]) is limits.room(mute) is None
    assert limits.room([*mute, counter(9, 3), counter(7)]) == 6
    assert limits.room([counter(9, 10)]) == 0


def test_credits_are_asked_for_after_limits(book: LimitBook) -> None:
    """Who is short of both learns of the limit first."""
    book.limit(10)
    assert book.refusal(2_000_000)
    with pytest.raises(InsufficientCreditsError):
        book.consume(2_000_000)


# -- the cap that a run brings along, where it is a limit ------------------------------------------------------------


def capped(most: int) -> ops.Activity:
    return ops.Activity(scopes=Scopes(run_id="r1", run_max_micros=most))


def test_a_cap_that_a_run_brings_along_changes_its_limit_when_the_charge_goes_through(book: LimitBook) -> None:
    """A refusal leaves it as it was; so does a charge with the same cap."""
    of_run = {"scope": LimitScope.RUN, "scope_id": "r1", "window_text": LIFETIME}
    others = [book.limit(99, **of_run | {"unit": COUNT}), book.limit(99, **of_run | {"window_text": "day UTC"})]
    limit = book.limit(10, **of_run)
    book.write()
    assert limits.cap_of(book.ledger, "r1") is limit
    assert limits.cap_of(book.ledger, "r2") is None
    changes = copy.deepcopy(book.ledger.changes)

    error = book.refusal(6, activity=capped(5))
    assert (error.context["limit_id"], int(error.context["limit"] * 1_000_000)) == (limit.id, 5)
    assert (limit.amount, limit.mode) == (10, HARD)
    assert book.ledger.changes == changes
    book.consume(6, activity=capped(10))
    book.consume(1, activity=RUN)
    assert book.ledger.changes.limits == set()

    book.consume(13, activity=capped(20))
    assert (limit.amount, limit.mode, book.usage(limit, "r1")) == (20, HARD, (20, 0))
    assert book.ledger.limits[limit.id] is limit
    assert book.ledger.changes.limits == {limit.id}
    assert [one.amount for one in others] == [99, 99]
    assert book.refusal(1, activity=RUN).context["limit_id"] == limit.id


def test_a_cap_makes_a_soft_limit_of_its_run_refuse(book: LimitBook) -> None:
    """A cap is hard; and a hold brings it as a charge does. A limit of this batch is new, not changed."""
    limit = book.limit(10, scope=LimitScope.RUN, scope_id="r1", window_text=LIFETIME, mode=SOFT)
    book.reserve(6, activity=capped(10))
    assert limit.mode is HARD
    assert (book.ledger.changes.new_limits, book.ledger.changes.limits) == ({limit.id}, set())
    assert book.refusal(5, activity=RUN).context["limit_id"] == limit.id
