"""Holds: how each ends, what a settlement takes beyond it, and what is refused when it is over."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from agentcredits.errors import (
    CreditLimitExceededError,
    CreditsError,
    OverageRejectedError,
    ReservationAlreadySettledError,
    ReservationExpiredError,
    ReservationUnknownError,
)
from agentcredits.model import GrantStatus, LimitMode, LimitScope, LimitUnit, Overage, Pricing, ReservationState, Scopes
from agentcredits.rules import operations as ops
from agentcredits.rules.state import Changes, HoldState
from agentcredits.testing import START as NOW
from tests.unit.test_rules_posting import ACME, DAY, TTL, Book, parts

TICK = timedelta(microseconds=1)
IN_RUN = ops.Activity(agent_type="A", action="b", scopes=Scopes(run_id="r1"))
ACTIVE, UNKNOWN, COMMITTED = ReservationState.ACTIVE, ReservationState.UNKNOWN, ReservationState.COMMITTED
RELEASED, EXPIRED = ReservationState.RELEASED, ReservationState.EXPIRED


@pytest.fixture
def book() -> Book:
    return Book()


def mark(book: Book, hold: HoldState, **arguments: Any) -> Any:
    fields: dict[str, Any] = {"provider": "fal", "provider_reference": "job-1", "ttl": DAY} | arguments
    return book.decide(ops.MarkUnknown(organization_id=ACME, reservation_id=hold.id, **fields))


def extend(book: Book, hold: HoldState, ttl: timedelta = DAY) -> Any:
    return book.decide(ops.Extend(organization_id=ACME, reservation_id=hold.id, ttl=ttl))


def refusal(book: Book, hold: HoldState, **arguments: Any) -> CreditsError:
    with pytest.raises(CreditsError) as caught:
        book.commit(hold, **arguments)
    return caught.value


def open_run(book: Book, run_id: str, cap: int | None, **arguments: Any) -> Any:
    return book.do(ops.OpenRun(organization_id=ACME, run_id=run_id, cap_micros=cap, **arguments))


def limit(book: Book, amount: int) -> None:
    place = {"scope": LimitScope.ORGANIZATION, "scope_id": "", "unit": LimitUnit.CREDITS, "window_text": "day UTC"}
    book.do(ops.SetLimit(organization_id=ACME, id="l", amount=amount, mode=LimitMode.HARD, **place))


# -- the states a hold can be in -----------------------------------------------------------------------------------


def in_state(book: Book, state: str) -> HoldState:
    """A hold of 10 micros that ended in some way, or has not."""
    hold = book.reserve(10)
    if state == "awaited":
        mark(book, hold)
    elif state == "settled":
        book.commit(hold, 4)
    elif state == "released":
        book.release(hold)
    elif state == "forced":
        book.release(hold, forced=True, reason="lost")
    elif state in ("expired", "settled late"):
        book.now += TTL
        book.do(ops.Expire(organization_id=ACME))
        if state == "settled late":
            book.commit(hold, 4, late=True, overage=Overage.CAP)
    return hold


REFUSED = "refused"
GONE = "expired"
ALONE = "left alone"


@pytest.mark.parametrize(
    ("state", "commit", "late", "automatic", "release", "at_end", "extended"),
    [
        ("held", COMMITTED, COMMITTED, COMMITTED, RELEASED, RELEASED, ACTIVE),
        ("awaited", COMMITTED, COMMITTED, ALONE, RELEASED, ALONE, "awaited"),
        ("settled", REFUSED, REFUSED, ALONE, REFUSED, ALONE, REFUSED),
        ("settled late", REFUSED, REFUSED, ALONE, REFUSED, ALONE, REFUSED),
        ("released", REFUSED, REFUSED, ALONE, ALONE, ALONE, REFUSED),
        ("forced", REFUSED, RELEASED, RELEASED, ALONE, ALONE, REFUSED),
        ("expired", GONE, EXPIRED, EXPIRED, ALONE, ALONE, GONE),
    ],
)
def test_what_becomes_of_a_hold_in_each_state(
    state: str, commit: Any, late: Any, automatic: Any, release: Any, at_end: Any, extended: Any
) -> None:
    """By an explicit commit, a handle's, the end of its block, a release, one at the end of a block, an extension."""

    def of(make: Any) -> Any:
        book = Book()
        book.grant(100)
        hold = in_state(book, state)
        book.ledger.changes = Changes()
        outcome = book.decide(make(hold))
        if isinstance(outcome.error, ReservationAlreadySettledError):
            assert hold.id in outcome.error.message
            return REFUSED
        if isinstance(outcome.error, ReservationExpiredError):
            assert outcome.error.context == {"reservation_id": hold.id, "expires_at": NOW + TTL}
            assert outcome.error.message.startswith(f"reservation {hold.id} expired at {hold.expires_at.isoformat()}")
            return GONE
        if isinstance(outcome.error, ReservationUnknownError):
            assert outcome.error.context == {"reservation_id": hold.id}
            return "awaited"
        assert outcome.record is hold
        assert book.ledger.changes.holds == (set() if outcome.replayed else {hold.id})
        return ALONE if outcome.replayed else hold.state

    def commits(**arguments: Any) -> Any:
        return of(
            lambda hold: ops.Commit(
                organization_id=ACME, reservation_id=hold.id, transaction_id="t", amount_micros=3, **arguments
            )
        )

    def releases(**arguments: Any) -> Any:
        return of(lambda hold: ops.Release(organization_id=ACME, reservation_id=hold.id, **arguments))

    assert commits() == commit
    assert commits(late=True) == late
    assert commits(late=True, automatic=True) == automatic
    assert releases() == release
    assert releases(automatic=True) == at_end
    assert of(lambda hold: ops.Extend(organization_id=ACME, reservation_id=hold.id, ttl=DAY)) == extended


def test_a_repeated_settlement_answers_only_the_same_amount(book: Book) -> None:
    """``replayed`` unless it is the very try whose answer was lost."""
    book.grant(100)
    hold = book.reserve(10)
    book.commit(hold, 4)
    assert hold.transaction_id is not None

    def again(amount: int | None, transaction_id: str) -> Any:
        return book.decide(
            ops.Commit(
                organization_id=ACME, reservation_id=hold.id, transaction_id=transaction_id, amount_micros=amount
            )
        )

    assert [again(4, "x").replayed, again(4, hold.transaction_id).replayed] == [True, False]
    assert isinstance(again(5, "x").error, ReservationAlreadySettledError)
    assert isinstance(again(None, "x").error, ReservationAlreadySettledError)


def test_what_an_operator_gave_back_is_charged_late_when_its_work_ends(book: Book) -> None:
    """From what there is now, once; the reason stays."""
    book.grant(10)
    hold = book.reserve(8)
    book.release(hold, forced=True, reason="lost")
    assert (hold.state, hold.reason, hold.forced, hold.settled_at) == (RELEASED, "lost", True, NOW)
    book.consume(5)
    book.now += TICK
    book.commit(hold, 8, late=True, overage=Overage.CAP)
    assert (hold.state, hold.late, hold.forced) == (RELEASED, True, True)
    assert (hold.charged_micros, hold.uncollected_micros, hold.settled_at) == (5, 3, NOW + TICK)
    row = book.ledger.changes.rows[-1]
    assert (row.late, row.amount_micros, row.uncollected_micros, row.reservation_id) == (True, -5, 3, hold.id)
    assert (book.account.reserved_micros, book.account.available_micros) == (0, 0)


@pytest.mark.parametrize(("after", "refused"), [(2 * TICK, False), (3 * TICK, True)])
def test_a_commit_comes_in_time_within_the_grace(book: Book, after: timedelta, refused: bool) -> None:
    """Not at its end."""
    book.grant(10)
    hold = book.reserve(4)
    book.now = hold.expires_at + after
    if refused:
        error = refusal(book, hold, grace=3 * TICK)
        assert isinstance(error, ReservationExpiredError)
        assert "went back" in error.message
        assert error.suggestions == ("Reserve again, or pass a longer ttl.",)
    else:
        book.commit(hold, grace=3 * TICK)
        assert (hold.state, hold.late, hold.charged_micros) == (EXPIRED, True, 4)


# -- prolonged, awaited --------------------------------------------------------------------------------------------


def test_a_hold_lives_from_now_on_for_as_long_as_it_is_told(book: Book) -> None:
    """Never counted from its old end; the account knows when it falls due."""
    book.grant(10)
    hold = book.reserve(4)
    assert (hold.created_at, hold.expires_at, book.account.next_due_at) == (NOW, NOW + TTL, NOW + TTL)
    book.now += TTL - TICK
    book.ledger.changes = Changes()
    book.account.next_due_at = None
    outcome = extend(book, hold)
    assert (outcome.record, outcome.replayed) == (hold, False)
    assert hold.expires_at == book.account.next_due_at == book.now + DAY
    assert book.ledger.changes == Changes(account=True, holds={hold.id})


def test_a_hold_that_awaits_a_verdict_knows_of_whom(book: Book) -> None:
    """It is kept for another time, and marked once."""
    book.grant(10)
    hold = book.reserve(4)
    book.now += TICK
    book.ledger.changes = Changes()
    book.account.next_due_at = None
    outcome = mark(book, hold)
    assert (outcome.record, outcome.replayed) == (hold, False)
    assert (hold.state, hold.provider, hold.provider_reference) == (UNKNOWN, "fal", "job-1")
    assert hold.expires_at == book.account.next_due_at == NOW + TICK + DAY
    assert book.ledger.changes == Changes(account=True, holds={hold.id})
    again = mark(book, hold, provider="other")
    assert (again.record, again.replayed, hold.provider) == (hold, True, "fal")
    error = extend(book, hold).error
    assert isinstance(error, ReservationUnknownError)
    assert "awaits the verdict of fal" in error.message


# -- beyond the hold -----------------------------------------------------------------------------------------------


def test_a_commit_above_the_hold_is_refused_unless_it_may_be_cut(book: Book) -> None:
    """The hold stays; the refusal says how much it has."""
    book.grant(100)
    hold = book.reserve(10)
    error = refusal(book, hold, amount=11)
    assert isinstance(error, OverageRejectedError)
    numbers = {name: int(error.context[name] * 1_000_000) for name in ("reserved", "requested")}
    assert (numbers, error.context["reservation_id"]) == ({"reserved": 10, "requested": 11}, hold.id)
    assert [(fix["param"], int(fix["value"] * 1_000_000)) for fix in error.fixes] == [("amount", 10)]
    assert (hold.state, book.account.reserved_micros) == (ACTIVE, 10)
    book.commit(hold, 11, overage=Overage.CAP)
    assert hold.charged_micros == 11


@pytest.mark.parametrize(
    ("limited", "cap", "charged"),
    [(None, None, 35), (30, None, 30), (None, 25, 25), (20, 25, 20), (10, None, 10), (5, None, 10)],
    ids=["credits", "a limit", "a run", "both", "no more than was held", "lowered below what was held"],
)
def test_what_a_settlement_takes_beyond_its_hold(
    book: Book, limited: int | None, cap: int | None, charged: int
) -> None:
    """As much as credits, limits and its run leave; never less than was held."""
    book.grant(35)
    if cap is not None:
        open_run(book, "r1", cap)
    hold = book.reserve(10, activity=IN_RUN)
    if limited is not None:
        limit(book, limited)
    book.commit(hold, 50, overage=Overage.CAP)
    assert (hold.charged_micros, hold.uncollected_micros) == (charged, 50 - charged)
    assert (book.account.reserved_micros, book.account.spent_micros) == (0, charged)
    if cap is not None:
        run = book.ledger.runs["r1"]
        assert (run.spent_micros, run.held_micros) == (charged, 0)


def test_a_settlement_takes_what_the_run_around_leaves(book: Book) -> None:
    """Also where its own run has no bound."""
    book.grant(90)
    open_run(book, "r1", 20)
    open_run(book, "r2", None, parent_run_id="r1")
    hold = book.reserve(10, activity=ops.Activity(scopes=Scopes(run_id="r2")))
    book.commit(hold, 50, overage=Overage.CAP)
    assert hold.charged_micros == 20


def test_a_settlement_beyond_the_grants_is_lent_by_the_line(book: Book) -> None:
    """After the hold and what is usable."""
    grant = book.grant(10)
    book.account.overdraft_micros = 5
    hold = book.reserve(4)
    book.commit(hold, 20, overage=Overage.OVERDRAFT)
    assert parts(book.ledger.changes.rows[-1]) == [(grant.id, 10), (None, 5)]
    assert (hold.charged_micros, hold.uncollected_micros, book.account.overdrawn_micros) == (15, 5, 5)


def test_what_is_not_used_goes_back_newest_first(book: Book) -> None:
    """To each grant its part; to one that has ended as breakage."""
    first, second, third = (book.grant(10, priority=priority) for priority in (1, 2, 3))
    hold = book.reserve(25)
    book.do(ops.VoidGrant(organization_id=ACME, grant_id=second.id))
    book.commit(hold, 5)
    assert [grant.held_micros for grant in (first, second, third)] == [0, 0, 0]
    assert [grant.remaining_micros for grant in (first, second, third)] == [5, 0, 10]
    assert (second.status, second.expired_micros, book.rows[-1]) == (GrantStatus.VOIDED, 10, ("expire", -10, 15))
    assert book.account.reserved_micros == 0


def test_what_comes_back_to_an_ended_grant_is_gone(book: Book) -> None:
    """At the time of the release."""
    grant = book.grant(10)
    hold = book.reserve(4)
    book.do(ops.VoidGrant(organization_id=ACME, grant_id=grant.id))
    book.now += TICK
    book.release(hold)
    row = book.ledger.changes.rows[-1]
    assert (row.type.value, row.amount_micros, row.created_at) == ("expire", -4, NOW + TICK)


def test_a_hold_opens_the_run_whose_cap_it_brings_along(book: Book) -> None:
    """Unless it is refused."""
    book.grant(100)
    capped = ops.Activity(scopes=Scopes(run_id="r1", run_max_micros=10))
    with pytest.raises(CreditLimitExceededError):
        book.reserve(11, activity=capped)
    assert book.ledger.runs == {}
    book.reserve(10, activity=capped)
    run = book.ledger.runs["r1"]
    assert (run.cap_micros, run.held_micros, run.created_at) == (10, 10, NOW)
    assert book.ledger.changes.new_runs == {"r1"}


def test_a_released_hold_makes_room_in_its_run(book: Book) -> None:
    """And what its commit does not use."""
    book.grant(100)
    open_run(book, "r1", 10)
    hold = book.reserve(10, activity=IN_RUN)
    assert (book.ledger.runs["r1"].held_micros, hold.limits) == (10, ("run",))
    book.release(hold)
    assert book.ledger.runs["r1"].held_micros == 0
    book.commit(book.reserve(10, activity=IN_RUN), 4)
    assert (book.ledger.runs["r1"].held_micros, book.ledger.runs["r1"].spent_micros) == (0, 4)
    assert book.consume(6, activity=IN_RUN).run_id == "r1"


# -- observed, free ------------------------------------------------------------------------------------------------


def test_an_observed_hold_settles_for_nothing(book: Book) -> None:
    """What it would have cost is uncollected: what it asked for, or what its commit says, more than that included."""
    book.grant(1)
    whole, more = (book.reserve(20, observe=True) for _ in range(2))
    assert (whole.amount_micros, whole.uncollected_micros, whole.observed) == (0, 20, True)
    book.commit(whole)
    book.commit(more, 30)
    for hold, asked in ((whole, 20), (more, 30)):
        assert (hold.charged_micros, hold.requested_micros, hold.uncollected_micros) == (0, asked, asked)
    for row, asked in zip(book.ledger.changes.rows[-2:], (20, 30), strict=True):
        assert (row.pricing, row.amount_micros, row.uncollected_micros) == (Pricing.OBSERVED, 0, asked)
    assert book.account.available_micros == 1


@pytest.mark.parametrize(
    ("pricing", "amount", "written"),
    [(Pricing.PRICED, 0, False), (Pricing.PRICED, 1, True), (Pricing.FREE, 0, True), (Pricing.UNPRICED, 0, True)],
)
def test_a_settlement_for_nothing_writes_a_row_only_where_that_was_the_price(
    book: Book, pricing: Pricing, amount: int, written: bool
) -> None:
    """The hold says in any case what became of it."""
    book.grant(10)
    hold = book.reserve(1, activity=ops.Activity(pricing=pricing))
    before = len(book.rows)
    book.commit(hold, amount, metadata_json='{"n":1}')
    assert len(book.rows) - before == written
    assert (hold.transaction_id is not None) is written
    assert (hold.state, hold.requested_micros, hold.charged_micros) == (COMMITTED, amount, amount)
    if written:
        row = book.ledger.changes.rows[-1]
        assert (row.id, row.metadata, row.pricing) == (hold.transaction_id, '{"n":1}', pricing)


# -- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "lives"),
    [
        ("held", True),
        ("awaited", True),
        ("settled", True),
        ("settled late", True),
        ("released", False),
        ("forced", False),
        ("expired", False),
    ],
)
def test_a_key_belongs_to_a_living_attempt(book: Book, state: str, lives: bool) -> None:
    """It answers with the hold while that lives or was charged; after that it makes a new one."""
    book.grant(100)
    hold = in_state(book, state)
    outcome = book.decide(book.keyed("reserve", amount_micros=10, ttl=TTL, key=hold.idempotency_key))
    assert outcome.error is None
    assert (outcome.record is hold, outcome.replayed) == (lives, lives)


def test_the_very_call_whose_hold_ended_unseen_is_told_so(book: Book) -> None:
    """And how to go on."""
    book.grant(10)
    call = book.keyed("reserve", amount_micros=4, ttl=TTL)
    hold = book.do(call)
    book.now += TTL
    error = book.decide(call).error
    assert isinstance(error, ReservationExpiredError)
    assert error.context == {"reservation_id": hold.id, "expires_at": NOW + TTL}
    assert error.suggestions == ("Reserve again: the same key makes a new hold.", "Pass a longer ttl.")
    assert error.retryable
