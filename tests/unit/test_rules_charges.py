"""Charges and refunds: what stops one, what observe records, what is cut to what there is, where a refund goes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from agentcredits.errors import (
    AccountFrozenError,
    CreditLimitExceededError,
    CreditsError,
    InsufficientCreditsError,
    RefundExceedsChargeError,
    TransactionNotFoundError,
    UnpricedActionError,
)
from agentcredits.model import (
    AccountStatus,
    Allocation,
    GrantStatus,
    LimitMode,
    LimitScope,
    LimitUnit,
    Overage,
    Pricing,
    Scopes,
)
from agentcredits.rules import operations as ops
from agentcredits.rules.charges import merge
from agentcredits.rules.state import Changes
from agentcredits.testing import START as NOW
from tests.unit.test_rules_posting import ACME, DAY, TTL, Book, parts

IN_RUN = ops.Activity(agent_type="A", action="b", scopes=Scopes(run_id="r1"))


@pytest.fixture
def book() -> Book:
    return Book()


def open_run(book: Book, cap: int | None, **arguments: Any) -> Any:
    return book.do(ops.OpenRun(organization_id=ACME, cap_micros=cap, **{"run_id": "r1"} | arguments))


def limit(book: Book, amount: int) -> None:
    place = {"scope": LimitScope.ORGANIZATION, "scope_id": "", "unit": LimitUnit.CREDITS, "window_text": "day UTC"}
    book.do(ops.SetLimit(organization_id=ACME, id="l", amount=amount, mode=LimitMode.HARD, **place))


def freeze(book: Book) -> None:
    book.account.status = AccountStatus.FROZEN


# -- what stops a charge -------------------------------------------------------------------------------------------


def test_the_account_is_asked_first_then_the_run_then_limits_then_credits(book: Book) -> None:
    """Who is stopped by all of them learns of the one that an operator set."""

    def refusal() -> CreditsError | None:
        return book.decide(book.keyed("consume", amount_micros=100, activity=IN_RUN)).error

    assert isinstance(refusal(), InsufficientCreditsError)
    limit(book, 50)
    error = refusal()
    assert isinstance(error, CreditLimitExceededError)
    assert error.limit_source == "organization"
    open_run(book, 20)
    error = refusal()
    assert isinstance(error, CreditLimitExceededError)
    assert error.limit_source == "run"
    freeze(book)
    assert isinstance(refusal(), AccountFrozenError)


@pytest.mark.parametrize("kind", ["consume", "reserve"])
@pytest.mark.parametrize("hindrance", ["credits", "limit", "run", "frozen", "unreadable limit", "unpriced"])
def test_mode_observe_lets_pass_what_would_be_refused_and_records_why(book: Book, kind: str, hindrance: str) -> None:
    """With the refusal that everybody else gets; nothing is charged, held or counted."""
    book.grant(10)
    amount, expected = 20, "insufficient_credits"
    arguments: dict[str, Any] = {}
    if hindrance != "credits":
        book.grant(90)
    if hindrance == "limit":
        limit(book, 15)
        expected = "limit_reached"
    if hindrance == "run":
        open_run(book, 15)
        expected = "limit_reached"
    if hindrance == "frozen":
        freeze(book)
        expected = "account_frozen"
    if hindrance == "unreadable limit":
        limit(book, 100)
        book.ledger.limits["l"].unusable = "no amount"
        expected = "unusable_limit"
    if hindrance == "unpriced":
        arguments["would_refuse"] = UnpricedActionError("no price")
        expected = "unpriced_action"
    if kind == "reserve":
        arguments["ttl"] = TTL
    operation = book.keyed(kind, amount_micros=amount, activity=IN_RUN, **arguments)
    error = book.decide(operation).error
    assert error is not None
    assert error.reason == expected
    assert book.ledger.changes.denials == []

    outcome = book.decide(book.keyed(kind, amount_micros=amount, activity=IN_RUN, observe=True, **arguments))
    record: Any = outcome.record
    (denied,) = outcome.denials
    assert (type(denied.error), denied.error.reason) == (type(error), expected)
    assert (denied.at, denied.activity, denied.required_micros) == (NOW, IN_RUN, 20)
    assert denied.id
    assert (record.allocations, record.uncollected_micros) == ((), 20)
    assert record.pricing is Pricing.OBSERVED if kind == "consume" else record.observed
    assert (book.account.spent_micros, book.account.reserved_micros) == (0, 0)
    assert book.ledger.usage == {}
    assert all(run.used_micros == 0 for run in book.ledger.runs.values())


def test_mode_observe_changes_nothing_for_what_is_allowed(book: Book) -> None:
    """It is charged as ever."""
    book.grant(10)
    outcome = book.decide(book.keyed("consume", amount_micros=10, observe=True))
    assert (outcome.denials, book.ledger.changes.denials) == ((), [])
    assert book.account.spent_micros == 10


# -- cut to what there is ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("credits_there", "limited", "cap", "charged"),
    [
        (30, None, None, 30),
        (90, 40, None, 40),
        (90, None, 45, 45),
        (90, 40, 35, 35),
        (30, 40, 35, 30),
        (90, 60, 55, 50),
    ],
    ids=["credits", "a limit", "a run", "the smaller of both", "credits after all", "nothing"],
)
def test_a_capped_charge_takes_the_least_of_what_allows_it(
    book: Book, credits_there: int, limited: int | None, cap: int | None, charged: int
) -> None:
    """The rest is uncollected."""
    book.grant(credits_there)
    if limited is not None:
        limit(book, limited)
    if cap is not None:
        open_run(book, cap)
    row = book.consume(50, overage=Overage.CAP, activity=IN_RUN)
    assert (row.amount_micros, row.uncollected_micros) == (-charged, 50 - charged)
    if cap is not None:
        assert book.ledger.runs["r1"].spent_micros == charged
        assert row.run_id == "r1"


def test_a_capped_charge_takes_what_the_run_around_leaves(book: Book) -> None:
    """Also where its own run has no bound."""
    book.grant(90)
    open_run(book, 20)
    open_run(book, None, run_id="r2", parent_run_id="r1")
    inner = ops.Activity(scopes=Scopes(run_id="r2"))
    assert book.consume(50, overage=Overage.CAP, activity=inner).amount_micros == -20


def test_a_charge_beyond_the_grants_is_lent_by_the_line(book: Book) -> None:
    """Up to it; what it lends is a debt, in the same row."""
    grant = book.grant(10)
    book.account.overdraft_micros = 5
    with pytest.raises(InsufficientCreditsError):
        book.consume(11)
    row = book.consume(20, overage=Overage.OVERDRAFT)
    assert parts(row) == [(grant.id, 10), (None, 5)]
    assert (row.amount_micros, row.uncollected_micros, row.balance_after_micros) == (-15, 5, -5)
    assert (book.account.overdrawn_micros, book.ledger.changes.standing) == (5, True)


# -- refunds -------------------------------------------------------------------------------------------------------


def test_a_refund_tells_what_it_is_of(book: Book) -> None:
    """The scopes of its charge and its reason; not its request, price or quantity."""
    book.grant(10)
    scopes = Scopes(project_id="p", department_id="d", user_id="u", run_id="r", request_id="q")
    charge = book.consume(10, activity=ops.Activity(agent_type="A", action="b", scopes=scopes))
    refund = book.refund(charge, 4, reason="half", key="k")
    assert (refund.refund_of, refund.reason, refund.idempotency_key, refund.amount_micros) == (
        charge.id,
        "half",
        "k",
        4,
    )
    names = ("agent_type", "action", "project_id", "department_id", "user_id", "run_id")
    assert [getattr(refund, name) for name in names] == ["A", "b", "p", "d", "u", "r"]
    assert (refund.request_id, refund.created_at, refund.balance_after_micros) == (None, NOW, 4)
    assert book.ledger.refunds == {charge.id: [refund]}
    again = book.decide(book.keyed("refund", transaction_id=charge.id, amount_micros=4, reason="half", key="k"))
    assert (again.record, again.replayed) == (refund, True)


@pytest.mark.parametrize(("asked", "fixes"), [(7, [{"param": "amount", "value": 6}]), (None, [])])
def test_more_than_the_charge_is_never_given_back(book: Book, asked: int | None, fixes: list[Any]) -> None:
    """The refusal says how much is left; with nothing left there is nothing to ask for."""
    book.grant(10)
    charge = book.consume(10)
    book.refund(charge, 4)
    if asked is None:
        book.refund(charge)
    with pytest.raises(RefundExceedsChargeError) as caught:
        book.refund(charge, asked)
    left = 6 if fixes else 0
    context = {
        name: number if isinstance(number, str) else int(number * 1_000_000)
        for name, number in caught.value.context.items()
    }
    assert context == {"transaction_id": charge.id, "charged": 10, "refundable": left, "requested": asked or 0}
    assert [fix | {"value": int(fix["value"] * 1_000_000)} for fix in caught.value.fixes] == fixes
    assert charge.id in caught.value.message


def test_a_charge_of_nothing_has_nothing_to_refund(book: Book) -> None:
    """Not even nothing."""
    book.grant(1)
    charge = book.consume(0, activity=ops.Activity(pricing=Pricing.FREE))
    with pytest.raises(RefundExceedsChargeError) as caught:
        book.refund(charge)
    assert caught.value.fixes == ()


def test_who_asks_for_another_charge_learns_that_it_is_not_there(book: Book) -> None:
    """By its id."""
    book.grant(1)
    with pytest.raises(TransactionNotFoundError, match="organization acme has no charge t9") as caught:
        book.do(book.keyed("refund", transaction_id="t9"))
    assert caught.value.context == {"transaction_id": "t9"}


def test_a_refund_pays_the_line_back_before_the_grants(book: Book) -> None:
    """The newest part first: what was lent last."""
    grant = book.grant(10)
    book.account.overdraft_micros = 5
    charge = book.consume(15, overage=Overage.OVERDRAFT)
    book.ledger.changes = Changes()
    refund = book.refund(charge, 3)
    assert parts(refund) == [(None, 3)]
    assert (book.account.overdrawn_micros, book.account.spent_micros, grant.spent_micros) == (2, 12, 10)
    assert (book.ledger.changes.standing, book.ledger.changes.grants) == (True, set())
    refund = book.refund(charge, 4)
    assert parts(refund) == [(None, 2), (grant.id, 2)]
    assert (book.account.overdrawn_micros, grant.spent_micros) == (0, 8)
    book.ledger.changes = Changes()
    book.refund(charge, 1)
    assert (book.ledger.changes.standing, book.ledger.changes.grants) == (False, {grant.id})


def test_a_refund_of_a_debt_that_was_paid_goes_to_the_grant_that_paid_it(book: Book) -> None:
    """And lives with it: nobody is left with less than nothing of a debt."""
    book.grant(10)
    book.account.overdraft_micros = 5
    charge = book.consume(15, overage=Overage.OVERDRAFT)
    payer = book.grant(20)
    assert (book.account.overdrawn_micros, payer.repaid_micros) == (0, 5)
    book.refund(charge, 5)
    assert (book.account.overdrawn_micros, payer.repaid_micros, payer.spent_micros) == (0, 0, 0)
    assert [row.created_at for row in book.ledger.changes.rows[-2:]] == [NOW, NOW]
    assert book.account.available_micros == 20


def test_a_refund_makes_room_in_its_run(book: Book) -> None:
    """As much as is given back."""
    book.grant(100)
    open_run(book, 10)
    charge = book.consume(10, activity=IN_RUN)
    book.refund(charge, 4)
    assert book.ledger.runs["r1"].spent_micros == 6
    book.consume(4, activity=IN_RUN)


def test_what_is_refunded_to_an_ended_grant_is_gone(book: Book) -> None:
    """Its end is booked first, if it was not yet; nothing falls due for it."""
    grant = book.grant(10, expires_at=NOW + DAY)
    charge = book.consume(10)
    book.now = NOW + DAY + timedelta(hours=1)
    book.account.next_due_at = None
    book.refund(charge, 4)
    assert grant.status is GrantStatus.EXPIRED
    assert book.rows[-2:] == [("refund", 4, 4), ("expire", -4, 0)]
    assert book.ledger.changes.rows[-1].created_at == book.now
    assert book.account.next_due_at is None


def test_neighbouring_parts_of_a_grant_become_one() -> None:
    """Only neighbours: the order of parts is the order of refunds."""
    one, two = Allocation("a", 1), Allocation("b", 2)
    assert merge(()) == ()
    assert merge((one, one, two, one, two, two)) == (
        Allocation("a", 2),
        two,
        one,
        Allocation("b", 4),
    )
