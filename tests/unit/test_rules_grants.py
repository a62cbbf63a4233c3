"""Grants: what they keep and tell of themselves, who may use them, what taking them back leaves."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from agentcredits.amounts import MAX_TOTAL_MICROS
from agentcredits.errors import InsufficientCreditsError, InvalidAmountError, InvalidInputError
from agentcredits.model import Allocation, GrantCategory, GrantStatus, Overage
from agentcredits.rules import operations as ops
from agentcredits.rules.entries import next_event
from agentcredits.rules.state import Changes, GrantState
from agentcredits.testing import START as NOW
from tests.unit.test_rules_posting import ACME, DAY, Book, parts

TICK = timedelta(microseconds=1)
VIDEO = ops.Activity(agent_type="VideoAgent", action="generate_video")
IMAGE = ops.Activity(agent_type="ImageAgent", action="generate_image")
FOR_VIDEO = ("VideoAgent.*",)


@pytest.fixture
def book() -> Book:
    return Book()


def adjust(book: Book, amount: int, **arguments: Any) -> Any:
    facts = {"organization_id": ACME, "id": "a", "key": "a", "fingerprint": "a", "grant_id": "made"}
    return book.do(ops.Adjust(**facts, amount_micros=amount, **arguments))


def void(book: Book, grant: GrantState, **arguments: Any) -> Any:
    return book.decide(ops.VoidGrant(organization_id=ACME, grant_id=grant.id, **arguments))


# -- granted -------------------------------------------------------------------------------------------------------


def test_every_part_of_a_row_tells_where_its_credits_come_from_and_what_they_cost(book: Book) -> None:
    """Of each grant that it names; what an overdraft line lent comes from none."""
    bought = book.grant(4, priority=1, unit_cost=Decimal("0.01"), currency="EUR", source="order 1")
    assert (bought.unit_cost, bought.currency, bought.source) == (Decimal("0.01"), "EUR", "order 1")
    given = book.grant(3, category=GrantCategory.PROMOTIONAL)
    book.account.overdraft_micros = 10
    row = book.consume(9, overage=Overage.OVERDRAFT)

    def told(part: Allocation) -> tuple[Any, ...]:
        return part.grant_id, part.amount_micros, part.category, part.unit_cost, part.currency

    of_bought = (bought.id, 4, GrantCategory.PAID, Decimal("0.01"), "EUR")
    assert [told(part) for part in row.allocations] == [
        of_bought,
        (given.id, 3, GrantCategory.PROMOTIONAL, None, None),
        (None, 2, None, None, None),
    ]
    assert [told(part) for part in book.ledger.changes.rows[0].allocations] == [of_bought]


@pytest.mark.parametrize(
    ("starts", "ends", "allowed"),
    [(None, TICK, True), (None, 0 * TICK, False), (DAY, DAY + TICK, True), (DAY, DAY, False), (-DAY, 0 * TICK, False)],
)
def test_a_grant_lasts_for_a_moment_at_least(
    book: Book, starts: timedelta | None, ends: timedelta, allowed: bool
) -> None:
    """From now, or from when it takes effect, if that is later."""
    effective_at = None if starts is None else NOW + starts
    operation = book.keyed("grant", amount_micros=1, effective_at=effective_at, expires_at=NOW + ends)
    error = book.decide(operation).error
    assert (error is None) is allowed
    if error is not None:
        assert isinstance(error, InvalidInputError)
        assert (error.reason, error.context["parameter"]) == ("expires_in_the_past", "expires_at")


def test_a_grant_counts_from_its_first_instant(book: Book) -> None:
    """One that takes effect now is not scheduled; one a moment later is."""
    now = book.grant(5, effective_at=NOW)
    later = book.grant(7, effective_at=NOW + TICK)
    assert (now.status, later.status) == (GrantStatus.ACTIVE, GrantStatus.SCHEDULED)
    assert (book.account.granted_micros, book.account.scheduled_micros, book.account.available_micros) == (12, 7, 5)
    assert book.account.next_due_at == NOW + TICK


def test_the_account_knows_that_some_grants_are_restricted(book: Book) -> None:
    """From the first one on; said to the store once."""
    book.grant(5)
    assert (book.account.has_restricted, book.ledger.changes.account_features) == (False, False)
    restricted = book.grant(5, only_for=FOR_VIDEO)
    assert restricted.only_for == FOR_VIDEO
    assert (book.account.has_restricted, book.ledger.changes.account_features) == (True, True)
    book.ledger.changes = Changes()
    book.grant(5, only_for=FOR_VIDEO)
    assert (book.account.has_restricted, book.ledger.changes.account_features) == (True, False)


def test_an_account_takes_the_last_micro_credit_that_it_can_count(book: Book) -> None:
    """By an adjustment too, and not one more."""
    book.grant(5)
    book.account.granted_micros = MAX_TOTAL_MICROS - 1
    with pytest.raises(InvalidAmountError):
        adjust(book, 2)
    assert adjust(book, 1).grant_id == "made"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (GrantStatus.SCHEDULED, NOW),
        (GrantStatus.ACTIVE, NOW + DAY),
        (GrantStatus.EXPIRED, None),
        (GrantStatus.VOIDED, None),
    ],
)
def test_what_happens_next_to_a_grant(status: GrantStatus, expected: Any) -> None:
    """It starts, it ends, or nothing by time alone."""
    grant = GrantState("g", status, 1, GrantCategory.PAID, 50, NOW, NOW, expires_at=NOW + DAY)
    assert next_event(grant) == expected


# -- restricted ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["VideoAgent.*", "*.generate_video", "VideoAgent.generate_video"])
def test_a_restricted_grant_pays_for_its_actions_only_and_first(book: Book, name: str) -> None:
    """At once, by a hold, and when a hold is over-run."""
    restricted, free = book.grant(20, only_for=(name,)), book.grant(10)
    hold, over_run = book.reserve(1, activity=IMAGE), book.reserve(1, activity=VIDEO)
    book.commit(over_run, 10, overage=Overage.CAP)
    assert parts(book.ledger.changes.rows[-1]) == [(restricted.id, 10)]
    assert [part.grant_id for part in hold.allocations] == [free.id]
    assert [part.grant_id for part in book.reserve(1, activity=VIDEO).allocations] == [restricted.id]
    assert [part.grant_id for part in book.consume(11, activity=VIDEO).allocations] == [restricted.id, free.id]
    book.commit(hold, 99, overage=Overage.CAP)
    assert hold.charged_micros == 1 + 7
    assert restricted.remaining_micros == 0


@pytest.mark.parametrize("name", ["VideoAgent.*", "*.generate_video", "VideoAgent.generate_video"])
def test_who_may_not_use_what_is_there_is_told_so(book: Book, name: str) -> None:
    """The credits of other actions are no room, and holds of them no reason to wait."""
    book.grant(100, only_for=(name,))
    book.grant(10)
    book.reserve(30, activity=VIDEO)
    book.reserve(4, activity=IMAGE)
    with pytest.raises(InsufficientCreditsError) as caught:
        book.consume(20, activity=IMAGE)
    numbers = {name: int(caught.value.context[name] * 1_000_000) for name in ("available", "restricted", "reserved")}
    assert numbers == {"available": 6, "restricted": 70, "reserved": 34}
    assert (caught.value.reason, caught.value.retryable) == ("credits_restricted", False)
    with pytest.raises(InsufficientCreditsError) as caught:
        book.consume(10, activity=IMAGE)
    assert (caught.value.reason, caught.value.retryable) == ("credits_held", True)
    with pytest.raises(InsufficientCreditsError) as caught:
        book.consume(110, activity=VIDEO)
    assert (caught.value.reason, caught.value.retryable) == ("credits_held", True)
    assert "restricted" not in caught.value.context


def test_what_is_held_of_a_grant_that_ended_comes_back_to_nobody(book: Book) -> None:
    """It is no reason to wait."""
    ended = book.grant(10, only_for=FOR_VIDEO)
    book.reserve(8, activity=VIDEO)
    void(book, ended)
    book.grant(3)
    with pytest.raises(InsufficientCreditsError) as caught:
        book.consume(5, activity=VIDEO)
    assert (caught.value.reason, caught.value.retryable) == ("insufficient_credits", False)


def test_a_debt_is_no_credit_of_others(book: Book) -> None:
    """What is restricted is told without what the account owes."""
    book.grant(100, only_for=FOR_VIDEO)
    book.account.overdraft_micros = 50
    book.consume(20, activity=IMAGE, overage=Overage.OVERDRAFT)
    with pytest.raises(InsufficientCreditsError) as caught:
        book.consume(10, activity=IMAGE)
    told = {name: int(caught.value.context[name] * 1_000_000) for name in ("available", "shortfall", "restricted")}
    assert told == {"available": -20, "shortfall": 30, "restricted": 100}


# -- taken back ----------------------------------------------------------------------------------------------------


def test_an_adjustment_takes_from_whatever_can_be_spent(book: Book) -> None:
    """Restricted or not, in burn-down order; not what is held."""
    restricted, free = book.grant(10, only_for=FOR_VIDEO), book.grant(10)
    book.reserve(4, activity=IMAGE)
    row = adjust(book, -12, reason="twice")
    assert [(part.grant_id, part.amount_micros) for part in row.allocations] == [(restricted.id, 10), (free.id, 2)]
    assert (row.amount_micros, row.reason, row.idempotency_key) == (-12, "twice", "a")
    assert (restricted.voided_micros, free.voided_micros, book.account.voided_micros) == (10, 2, 12)
    assert (
        book.decide(
            ops.Adjust(organization_id=ACME, id="b", key="b", fingerprint="b", amount_micros=-5, grant_id="-")
        ).error
        is not None
    )
    assert (
        book.decide(
            ops.Adjust(organization_id=ACME, id="c", key="c", fingerprint="c", amount_micros=-4, grant_id="-")
        ).error
        is None
    )


def test_a_void_of_what_is_not_held_lets_the_grant_live_on(book: Book) -> None:
    """What its holds give back can be spent; a second void takes that, or finds nothing."""
    grant = book.grant(10)
    hold, settled = book.reserve(4), book.reserve(1)
    outcome = void(book, grant, unreserved_only=True, reason="half")
    assert (outcome.record, outcome.replayed) == (grant, False)
    assert (grant.status, grant.voided_at, grant.voided_micros, grant.held_micros) == (GrantStatus.ACTIVE, None, 5, 5)
    row = book.ledger.changes.rows[-1]
    assert (row.amount_micros, row.grant_id, row.reason) == (-5, grant.id, "half")
    assert void(book, grant, unreserved_only=True).replayed
    book.commit(settled)
    book.release(hold)
    assert book.account.available_micros == 4
    book.consume(1)
    assert not void(book, grant, unreserved_only=True).replayed
    assert (grant.remaining_micros, grant.voided_micros, book.account.available_micros) == (0, 8, 0)


def test_a_void_of_all_ends_the_grant(book: Book) -> None:
    """Also one that is used up; once. What it gives back to nobody is not told as a row."""
    grant = book.grant(10)
    book.consume(10)
    count = len(book.rows)
    book.ledger.changes = Changes()
    book.now += DAY
    assert not void(book, grant).replayed
    assert (grant.status, grant.voided_at) == (GrantStatus.VOIDED, NOW + DAY)
    assert (book.ledger.changes.grants, book.ledger.changes.account, book.rows) == ({grant.id}, True, [])
    assert void(book, grant).replayed
    assert count == 2


def test_the_last_micro_credit_of_a_grant_is_booked_as_all_others(book: Book) -> None:
    """Taken back, or gone with the end of its time."""
    voided, ended = book.grant(1), book.grant(1, expires_at=NOW + DAY)
    void(book, voided)
    book.now += DAY
    book.do(ops.Expire(organization_id=ACME))
    assert (voided.voided_micros, ended.expired_micros, book.account.ledger_balance_micros) == (1, 1, 0)
    assert book.rows[-2:] == [("adjust", -1, 1), ("expire", -1, 0)]


@pytest.mark.parametrize("unreserved_only", [True, False])
def test_a_void_of_what_has_not_started_ends_it(book: Book, unreserved_only: bool) -> None:
    """Nothing can be held of it: there is nothing to keep, and nothing starts later."""
    grant = book.grant(10, effective_at=NOW + DAY)
    void(book, grant, unreserved_only=unreserved_only)
    assert (grant.status, grant.voided_at, grant.remaining_micros) == (GrantStatus.VOIDED, NOW, 0)
    assert (book.account.scheduled_micros, book.account.voided_micros, book.account.available_micros) == (0, 10, 0)
    book.now += 2 * DAY
    book.do(ops.Expire(organization_id=ACME))
    assert grant.status is GrantStatus.VOIDED
    assert book.rows[-1] == ("adjust", -10, 0)
