"""The overdraft line: who may use it, how the debt is paid back, and what a refund of it gives to whom."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal

import pytest
from sqlalchemy import create_engine

from agentcredits import (
    AccountNotFoundError,
    Allocation,
    CreditGrant,
    CreditService,
    InsufficientCreditsError,
    InvalidAmountError,
    InvalidInputError,
    OverageRejectedError,
    RequestContext,
    SyncCreditService,
    Transaction,
    consume_credits,
    use_context,
)
from agentcredits.store.triggers import APPEND_ONLY
from agentcredits.testing import FakeClock

ACME = "acme"
CREDIT = 1_000_000
MINUTE = timedelta(minutes=1)


@pytest.fixture
def lent(database_url: str, clock: FakeClock) -> Iterator[SyncCreditService]:
    """10 credits and a line of 20, under a clock that is moved by hand; verified in the end."""
    with SyncCreditService(database_url, clock=clock) as made:
        made.grant_credits(ACME, 10)
        made.set_overdraft(ACME, 20)
        yield made
        assert made.verify().problems == ()


def overdraw(service: SyncCreditService, amount: object) -> Transaction:
    return service.consume_credits(organization_id=ACME, amount=amount, overage="overdraft")  # type: ignore[arg-type]


def rows(service: SyncCreditService) -> list[Transaction]:
    """The history, oldest first."""
    return list(service.list_transactions(ACME, limit=100))[::-1]


def grants(service: SyncCreditService) -> dict[str, CreditGrant]:
    return {grant.id: grant for grant in service.list_grants(ACME)}


def parts(row: Transaction) -> list[tuple[str | None, int]]:
    return [(part.grant_id, part.amount_micros // CREDIT) for part in row.allocations]


# -- who may use it ------------------------------------------------------------------------------------------------


def test_a_charge_takes_the_grants_then_the_line(lent: SyncCreditService) -> None:
    """The part from the line is an allocation without a grant; the balance is below zero, and that is the debt."""
    row = overdraw(lent, 25)
    grant = next(iter(grants(lent)))
    assert parts(row) == [(grant, 10), (None, 15)]
    assert (row.amount, row.balance_after, row.overdraft, row.uncollected) == (-25, -15, 15, 0)
    balance = lent.get_balance(ACME)
    assert (balance.available, balance.debt, balance.spent) == (-15, 15, 25)
    account = lent.get_account(ACME)
    assert (account.overdraft, account.debt, account.available) == (20, 15, -15)


def test_beyond_the_line_the_rest_is_not_collected(lent: SyncCreditService) -> None:
    """As with CAP: the work is done, what nobody lends stands on the row."""
    first, second = overdraw(lent, 45), overdraw(lent, 1)
    assert (first.charged, first.uncollected, second.charged, second.uncollected) == (30, 15, 0, 1)
    assert lent.get_balance(ACME).debt == 20


@pytest.mark.parametrize("overage", [None, "reject", "cap"])
def test_nothing_else_uses_the_line(lent: SyncCreditService, overage: str | None) -> None:
    """A plain charge beyond the credits is refused, or capped; a reservation is refused."""
    if overage == "cap":
        row = lent.consume_credits(organization_id=ACME, amount=11, overage="cap")
        assert (row.charged, row.uncollected) == (10, 1)
    else:
        with pytest.raises(InsufficientCreditsError):
            lent.consume_credits(organization_id=ACME, amount=11, overage=overage)  # type: ignore[arg-type]
    with pytest.raises(InsufficientCreditsError):
        lent.reserve_credits(organization_id=ACME, amount=11)
    assert lent.get_balance(ACME).debt == 0


def test_in_debt_new_work_is_refused_with_the_true_numbers(lent: SyncCreditService) -> None:
    """The debt has to be paid before anything can be spent: the sentence says how much is missing in all."""
    overdraw(lent, 15)
    with pytest.raises(InsufficientCreditsError, match=r"has -5 credits available.*needs 3; short by 8") as caught:
        lent.reserve_credits(organization_id=ACME, amount=3)
    assert caught.value.fixes == ({"action": "add_credits", "amount": Decimal(8)},)
    decision = lent.check_credits(ACME, amount=3)
    assert (decision.allowed, decision.available, decision.shortfall) == (False, -5, 8)
    assert decision.message == caught.value.message


def test_in_debt_what_is_free_still_runs(lent: SyncCreditService) -> None:
    """Amount 0 needs no credits, asked or done."""
    overdraw(lent, 15)
    lent.set_cost("Agent", "greet", 0, free=True)
    assert lent.check_credits(ACME, agent_type="Agent", action="greet").allowed
    assert lent.consume_credits(organization_id=ACME, agent_type="Agent", action="greet").amount == 0


def test_a_commit_takes_the_hold_then_what_is_available_then_the_line(lent: SyncCreditService) -> None:
    """With overage "overdraft"; with "reject" it is refused and the hold stays."""
    hold = lent.reserve_credits(organization_id=ACME, amount=4)
    with pytest.raises(OverageRejectedError):
        lent.commit_reservation(hold.id, 17, organization_id=ACME)
    settled = lent.commit_reservation(hold.id, 17, organization_id=ACME, overage="overdraft")
    grant = next(iter(grants(lent)))
    assert (settled.charged, settled.uncollected) == (17, 0)
    assert parts(rows(lent)[-1]) == [(grant, 10), (None, 7)]


def test_a_hard_limit_stands_above_the_line(lent: SyncCreditService) -> None:
    """What a limit does not leave is not collected, whatever the line would lend."""
    lent.set_limit(ACME, amount=14, window="day")
    row = overdraw(lent, 25)
    assert (row.charged, row.overdraft, row.uncollected) == (14, 4, 11)
    (limit,) = lent.list_limits(ACME)
    assert limit.usage[0].spent == 14


async def test_a_handle_may_use_the_line(database_url: str) -> None:
    """``reserve_credits(overage="overdraft")`` on both faces; a handle cannot reject, its work is done."""
    async with CreditService(database_url) as service:
        await service.grant_credits(ACME, 10)
        await service.set_overdraft(ACME, 20)
        async with service.reserve_credits(organization_id=ACME, amount=10, overage="overdraft") as hold:
            await hold.commit(12)
        assert (hold.record.charged, hold.record.uncollected) == (12, 0)
        with pytest.raises(InvalidInputError, match="would lose work that is done"):
            await service.reserve_credits(organization_id=ACME, amount=1, overage="reject")  # type: ignore[arg-type]
        assert (await service.get_balance(ACME)).debt == 2


@pytest.mark.parametrize(("overage", "charged"), [("cap", 10), ("overdraft", 13)])
def test_a_decorated_function_may_use_the_line(lent: SyncCreditService, overage: str, charged: int) -> None:
    """``@consume_credits(overage="overdraft")``: what ``actual`` says above the hold is collected from the line."""

    @consume_credits("Agent", "work", estimate=10, actual=lambda _: 13, service=lent, overage=overage)  # type: ignore[call-overload, untyped-decorator]  # a parametrised word
    def work() -> str:
        return "done"

    with use_context(RequestContext(ACME)):
        assert work() == "done"
    assert rows(lent)[-1].charged == charged


def test_a_late_settlement_may_use_the_line(lent: SyncCreditService, clock: FakeClock) -> None:
    """A handle whose hold ran out, and whose credits went elsewhere, still collects."""
    hold = lent.reserve_credits(organization_id=ACME, amount=10, ttl=MINUTE, overage="overdraft")
    clock.advance(2 * MINUTE)
    lent.consume_credits(organization_id=ACME, amount=10)
    settled = hold.commit()
    assert (settled.late, settled.charged, lent.get_balance(ACME).debt) == (True, 10, 10)


# -- paying back ---------------------------------------------------------------------------------------------------


def test_a_new_grant_pays_the_debt_first(lent: SyncCreditService) -> None:
    """A row of amount 0 moves it: nothing old changes, the chain of balances goes on."""
    overdraw(lent, 15)
    grant = lent.grant_credits(ACME, 12)
    assert (grant.repaid, grant.spent, grant.remaining) == (5, 5, 7)
    purchase, transfer = rows(lent)[-2:]
    assert (purchase.amount, purchase.balance_after, parts(purchase)) == (12, 7, [(grant.id, 12)])
    assert (transfer.type, transfer.amount, transfer.balance_after) == ("adjust", 0, 7)
    assert (parts(transfer), transfer.grant_id) == ([(grant.id, 5), (None, 5)], grant.id)
    balance = lent.get_balance(ACME)
    assert (balance.available, balance.debt, lent.get_account(ACME).debt) == (7, 0, 0)
    assert lent.consume_credits(organization_id=ACME, amount=7).charged == 7


def test_a_grant_smaller_than_the_debt_goes_to_it_whole(lent: SyncCreditService) -> None:
    """The rest of the debt stays; so does an adjustment's."""
    overdraw(lent, 25)
    assert lent.grant_credits(ACME, 4).remaining == 0
    lent.adjust_credits(ACME, 5)
    assert (lent.get_balance(ACME).debt, lent.get_account(ACME).debt) == (6, 6)


def test_a_scheduled_grant_pays_when_it_takes_effect(lent: SyncCreditService, clock: FakeClock) -> None:
    """Not before; by time alone, in a view as in the books; and before it ends, though nobody looked meanwhile."""
    overdraw(lent, 15)
    start = clock.now() + MINUTE
    grant = lent.grant_credits(ACME, 12, effective_at=start, expires_at=start + MINUTE)
    assert (lent.get_balance(ACME).debt, grant.repaid) == (5, 0)
    clock.advance(MINUTE)
    assert (lent.get_balance(ACME).available, lent.get_account(ACME).debt) == (7, 0)
    clock.advance(MINUTE)
    balance = lent.get_balance(ACME)
    assert (balance.available, balance.expired) == (0, 7)
    lent.sweep()
    assert grants(lent)[grant.id].repaid == 5
    assert [(row.type.value, row.amount) for row in rows(lent)[-2:]] == [("adjust", 0), ("expire", -7)]


def test_what_a_hold_gives_back_pays_the_debt(lent: SyncCreditService, clock: FakeClock) -> None:
    """Released, settled below its amount, or run out."""
    holds = [lent.reserve_credits(organization_id=ACME, amount=amount, ttl=MINUTE) for amount in (4, 3, 3)]
    overdraw(lent, 8)
    assert lent.get_balance(ACME).available == -8
    lent.release_reservation(holds[0])
    assert (lent.get_balance(ACME).available, lent.get_account(ACME).debt) == (-4, 4)
    lent.commit_reservation(holds[1], 1)
    assert lent.get_account(ACME).debt == 2
    clock.advance(2 * MINUTE)
    assert (lent.get_balance(ACME).available, lent.get_account(ACME).debt) == (1, 0)


def test_what_is_given_back_at_a_grants_end_pays_nothing(lent: SyncCreditService, clock: FakeClock) -> None:
    """A hold and its grant end at one instant: the credits end with the grant, the debt stays."""
    other = lent.grant_credits(ACME, 6, expires_at=clock.now() + MINUTE, priority=1)
    lent.reserve_credits(organization_id=ACME, amount=6, ttl=MINUTE)
    overdraw(lent, 15)
    clock.advance(MINUTE)
    balance = lent.get_balance(ACME)
    assert (balance.debt, balance.expired) == (5, 6)
    lent.sweep()
    assert grants(lent)[other.id].repaid == 0


def test_a_line_below_the_debt_takes_nothing_back(lent: SyncCreditService) -> None:
    """It lends no more."""
    overdraw(lent, 25)
    assert lent.set_overdraft(ACME, 5).debt == 15
    assert overdraw(lent, 1).charged == 0
    lent.grant_credits(ACME, 15)
    assert overdraw(lent, 9).charged == 5


# -- refunds -------------------------------------------------------------------------------------------------------


def test_a_refund_lowers_the_debt_first(lent: SyncCreditService) -> None:
    """The line was the charge's last resort: it is given back before the grants."""
    charge = overdraw(lent, 15)
    refund = lent.refund_credits(charge, 7)
    grant = next(iter(grants(lent)))
    assert parts(refund) == [(None, 5), (grant, 2)]
    balance = lent.get_balance(ACME)
    assert (balance.available, balance.debt, balance.spent) == (2, 0, 8)
    assert parts(lent.refund_credits(charge)) == [(grant, 8)]


def test_a_refund_of_paid_debt_goes_to_the_grants_that_paid_it(lent: SyncCreditService, clock: FakeClock) -> None:
    """The newest first, never more than each had paid: nothing is lost, nothing is there twice."""
    charge = overdraw(lent, 22)
    first = lent.grant_credits(ACME, 5)
    clock.advance(MINUTE)
    second = lent.grant_credits(ACME, 20)
    assert (grants(lent)[first.id].repaid, grants(lent)[second.id].repaid) == (5, 7)
    lent.refund_credits(charge, 9)
    state = grants(lent)
    assert (state[first.id].repaid, state[second.id].repaid) == (3, 0)
    assert (state[first.id].remaining, state[second.id].remaining) == (2, 20)
    assert [parts(row) for row in rows(lent)[-3:]] == [
        [(None, 9)],
        [(None, 7), (second.id, 7)],
        [(None, 2), (first.id, 2)],
    ]
    lent.refund_credits(charge)
    balance = lent.get_balance(ACME)
    assert (balance.available, balance.spent, balance.debt) == (35, 0, 0)


def test_what_goes_back_to_an_ended_grant_ends_at_once(lent: SyncCreditService, clock: FakeClock) -> None:
    """As every refund to an ended grant does."""
    charge = overdraw(lent, 15)
    payer = lent.grant_credits(ACME, 5, expires_at=clock.now() + MINUTE)
    clock.advance(2 * MINUTE)
    lent.refund_credits(charge, 5)
    assert [(row.type.value, row.amount) for row in rows(lent)[-3:]] == [("refund", 5), ("adjust", 0), ("expire", -5)]
    state = grants(lent)[payer.id]
    assert (state.repaid, state.expired, state.status, lent.get_balance(ACME).available) == (0, 5, "expired", 0)


def test_one_charges_refund_pays_another_charges_debt(lent: SyncCreditService) -> None:
    """Debt has no names: the refund of a charge that was paid lowers the debt of a later one before it gives back."""
    charge = overdraw(lent, 18)
    payer = lent.grant_credits(ACME, 8)
    later = overdraw(lent, 3)
    lent.refund_credits(charge, 8)
    assert (lent.get_account(ACME).debt, grants(lent)[payer.id].repaid) == (0, 3)
    lent.refund_credits(later)
    assert (lent.get_balance(ACME).available, grants(lent)[payer.id].repaid) == (8, 0)


def test_an_ordinary_refund_pays_the_debt_too(lent: SyncCreditService) -> None:
    """It goes back to its grant, which then pays."""
    charge = lent.consume_credits(organization_id=ACME, amount=6)
    overdraw(lent, 9)
    lent.refund_credits(charge)
    assert (lent.get_balance(ACME).available, lent.get_account(ACME).debt) == (1, 0)


# -- the rest ------------------------------------------------------------------------------------------------------


def test_the_line_is_checked(lent: SyncCreditService) -> None:
    """No negative line, no unknown account; the same line again changes nothing."""
    with pytest.raises(InvalidAmountError):
        lent.set_overdraft(ACME, -1)
    with pytest.raises(AccountNotFoundError):
        lent.set_overdraft("globex", 5)
    assert (lent.set_overdraft(ACME, 20).replayed, lent.set_overdraft(ACME, "0.5").replayed) == (True, False)
    assert lent.get_account(ACME).overdraft == Decimal("0.5")


def test_an_overdraft_in_the_callers_transaction(lent: SyncCreditService, database_url: str) -> None:
    """``session=``: rolled back with the caller's own rows."""
    engine = create_engine(database_url)
    with engine.connect() as connection:
        row = lent.consume_credits(organization_id=ACME, amount=12, overage="overdraft", session=connection)
        assert row.allocations[-1] == Allocation(None, 2 * CREDIT)
        connection.rollback()
    engine.dispose()
    assert lent.get_account(ACME).debt == 0


# -- verify --------------------------------------------------------------------------------------------------------

TAMPERED = {
    "debt": "UPDATE credit_accounts SET overdrawn_micros = overdrawn_micros - 1 WHERE organization_id = 'acme'",
    "what a grant paid": "UPDATE credit_grants SET repaid_micros = repaid_micros - 1 WHERE repaid_micros > 0",
    "transfer lost": "DELETE FROM credit_transaction_allocations WHERE grant_id IS NULL AND position = 1"
    " AND transaction_id IN (SELECT id FROM credit_transactions WHERE amount_micros = 0)",
    "transfer of two amounts": "UPDATE credit_transaction_allocations SET amount_micros = amount_micros + 1"
    " WHERE position = 0 AND transaction_id IN (SELECT id FROM credit_transactions WHERE amount_micros = 0)",
    "transfer the other way": "UPDATE credit_transaction_allocations SET grant_id = CASE WHEN grant_id IS NULL"
    " THEN (SELECT id FROM credit_grants WHERE repaid_micros > 0) END"
    " WHERE transaction_id IN (SELECT id FROM credit_transactions WHERE amount_micros = 0)",
    "line charged to nobody": "DELETE FROM credit_transaction_allocations WHERE grant_id IS NULL AND position = 1"
    " AND transaction_id IN (SELECT id FROM credit_transactions WHERE type = 'debit')",
}


@pytest.mark.parametrize("what", TAMPERED)
def test_verify_recomputes_the_debt(database_url: str, what: str) -> None:
    """Every counter of it from the allocations; a difference is named."""
    with SyncCreditService(database_url) as service:
        service.grant_credits(ACME, 10)
        service.set_overdraft(ACME, 20)
        overdraw(service, 22)
        service.grant_credits(ACME, 5)
        assert service.verify()
        assert tamper(database_url, TAMPERED[what]) > 0
        checks = {problem.check for problem in service.verify().problems}
        assert checks & {"debt", "grant", "allocations"}, checks


def test_verify_names_a_debt_that_could_be_paid(database_url: str) -> None:
    """Credits to spend beside a debt: neither is wrong by itself."""
    with SyncCreditService(database_url) as service:
        service.grant_credits(ACME, 10)
        service.set_overdraft(ACME, 20)
        overdraw(service, 22)
        grant = service.grant_credits(ACME, 5)
        tamper(database_url, "UPDATE credit_accounts SET overdrawn_micros = 12000000")
        tamper(database_url, f"UPDATE credit_grants SET repaid_micros = 0, spent_micros = 0 WHERE id = '{grant.id}'")
        messages = [problem.message for problem in service.verify().problems]
        assert any("has credits left to pay it" in message for message in messages)


def tamper(database_url: str, statement: str) -> int:
    """Run SQL with the append-only triggers out of the way."""
    engine = create_engine(database_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            for table in APPEND_ONLY:
                for event in ("update", "delete"):
                    connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {table}_no_{event}")
        else:
            connection.exec_driver_sql("SET session_replication_role = replica")
        changed = connection.exec_driver_sql(statement).rowcount
    engine.dispose()
    return int(changed)
