"""Recurring and restricted grants in accounts that are in debt, frozen or closed, or wait for a verdict."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from agentcredits import (
    AccountClosedError,
    CreditEvent,
    CreditGrant,
    InsufficientCreditsError,
    RecurringStatus,
    Rollover,
    SyncCreditService,
    Transaction,
    add_hook,
    remove_hook,
)
from agentcredits.store.posting import MAX_REFILLS
from agentcredits.testing import FakeClock

ACME = "acme"
START = datetime(2026, 1, 31, 9, tzinfo=UTC)
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(START)


@pytest.fixture
def lent(database_url: str, clock: FakeClock) -> Iterator[SyncCreditService]:
    """An account without credits and with a line of 20; verified in the end."""
    with SyncCreditService(database_url, clock=clock) as made:
        made.create_account(ACME)
        made.set_overdraft(ACME, 20)
        yield made
        assert made.verify().problems == ()


def overdraw(service: SyncCreditService, amount: int, **arguments: str) -> Transaction:
    return service.consume_credits(organization_id=ACME, amount=amount, overage="overdraft", **arguments)  # type: ignore[arg-type]  # names and texts


def grants(service: SyncCreditService) -> list[CreditGrant]:
    return list(service.list_grants(ACME))


# -- restricted credits and debt -----------------------------------------------------------------------------------


def test_restricted_credits_pay_no_debt(lent: SyncCreditService) -> None:
    """They stay for their actions, in debt too; the balance is signed, and the debt is told beside it."""
    overdraw(lent, 5)
    lent.grant_credits(ACME, 12, only_for=["VideoAgent"])
    balance, account = lent.get_balance(ACME), lent.get_account(ACME)
    assert (balance.available, balance.restricted, balance.debt) == (7, 12, 5)
    assert (account.available, account.debt) == (7, 5)
    charge = lent.consume_credits(organization_id=ACME, amount=4, agent_type="VideoAgent", action="a")
    assert (charge.amount, charge.overdraft) == (-4, 0)
    with pytest.raises(InsufficientCreditsError) as refusal:
        lent.consume_credits(organization_id=ACME, amount=1)
    # Were they for every action they would pay the debt of 5 and leave 3.
    assert (refusal.value.reason, refusal.value.context["restricted"]) == ("credits_restricted", 8)
    lent.grant_credits(ACME, 6)
    balance = lent.get_balance(ACME)
    assert (balance.available, balance.restricted, balance.debt) == (9, 8, 0)


def test_an_action_takes_its_restricted_credits_before_the_line(lent: SyncCreditService) -> None:
    """What the grants of the action lack comes from the line; other grants are not touched."""
    kept = lent.grant_credits(ACME, 6, only_for=["VoiceAgent"])
    used = lent.grant_credits(ACME, 3, only_for=["VideoAgent"])
    row = overdraw(lent, 8, agent_type="VideoAgent", action="a")
    assert [(part.grant_id, part.amount) for part in row.allocations] == [(used.id, 3), (None, 5)]
    assert {grant.id: grant.remaining for grant in grants(lent)} == {kept.id: 6, used.id: 0}
    assert lent.get_usage(ACME).total.paid == 3


def test_what_a_restricted_grant_gets_back_pays_nothing(lent: SyncCreditService) -> None:
    """Neither what its hold gives back, nor its refund."""
    grant = lent.grant_credits(ACME, 10, only_for=["VideoAgent"])
    charge = lent.consume_credits(organization_id=ACME, amount=4, agent_type="VideoAgent", action="a")
    hold = lent.reserve_credits(organization_id=ACME, amount=6, agent_type="VideoAgent", action="a")
    overdraw(lent, 5)
    hold.release()
    lent.refund_credits(charge)
    (same,) = grants(lent)
    assert (same.id, same.remaining, same.repaid) == (grant.id, 10, 0)
    assert lent.get_account(ACME).debt == 5


# -- what comes again and debt -------------------------------------------------------------------------------------


def test_each_refill_pays_the_debt_at_its_moment(lent: SyncCreditService, clock: FakeClock) -> None:
    """Seen by a read, and booked later, the same: each period pays what it can before the next one."""
    lent.create_recurring_grant(ACME, 4, every="day", anchor=START + HOUR, idempotency_key="daily")
    overdraw(lent, 10)
    clock.advance(HOUR)
    seen = lent.get_balance(ACME)
    assert (seen.available, seen.debt) == (-6, 6)
    clock.advance(2 * DAY)
    seen = lent.get_balance(ACME)
    assert (seen.available, seen.debt, seen.expired) == (2, 0, 0)
    lent.sweep(ACME)
    assert lent.get_balance(ACME) == seen
    assert [int(grant.repaid) for grant in grants(lent)] == [4, 4, 2]


def test_a_refill_at_its_making_pays_too(lent: SyncCreditService) -> None:
    """The running period is granted at once."""
    overdraw(lent, 10)
    lent.create_recurring_grant(ACME, 12)
    assert (lent.get_balance(ACME).available, lent.get_account(ACME).debt) == (2, 0)


def test_a_rollover_pays_the_debt(lent: SyncCreditService, clock: FakeClock) -> None:
    """What a hold gives back as its period ends can pay nothing; carried over, it can."""
    lent.create_recurring_grant(ACME, 10, every="day", rollover=Rollover(), source="plan")
    (first,) = grants(lent)
    assert first.expires_at is not None
    lent.reserve_credits(organization_id=ACME, amount=10, ttl=first.expires_at - clock.now())
    overdraw(lent, 17)
    clock.set(first.expires_at)
    lent.sweep(ACME)
    old, *made = sorted(grants(lent), key=lambda grant: grant.rolled_from is not None or grant.id != first.id)
    assert (old.repaid, old.voided) == (0, 10)
    assert sorted((grant.rolled_from == old.id, int(grant.repaid)) for grant in made) == [(False, 7), (True, 10)]
    assert (lent.get_balance(ACME).available, lent.get_account(ACME).debt) == (3, 0)


# -- frozen and closed ---------------------------------------------------------------------------------------------


def test_a_frozen_account_is_granted_again_and_a_closed_one_is_not(lent: SyncCreditService, clock: FakeClock) -> None:
    """Closing books what was due and cancels the rest; reopening brings nothing back and makes nothing up."""
    one = lent.create_recurring_grant(ACME, 5, every="day", expires_after=None)
    lent.freeze_account(ACME, "unpaid")
    clock.advance(2 * DAY)
    assert lent.get_balance(ACME).available == 15
    lent.close_account(ACME, "left")
    (found,) = lent.list_recurring_grants(ACME)
    assert (found.status, found.cancelled_at, found.next_at) == (RecurringStatus.CANCELLED, clock.now(), None)
    clock.advance(3 * DAY)
    assert lent.get_balance(ACME).available == 15
    with pytest.raises(AccountClosedError):
        lent.create_recurring_grant(ACME, 5)
    lent.reopen_account(ACME, "back")
    clock.advance(3 * DAY)
    assert lent.get_balance(ACME).available == 15
    assert lent.cancel_recurring_grant(one.id, organization_id=ACME).replayed
    assert lent.create_recurring_grant(ACME, 5).status is RecurringStatus.ACTIVE


def test_a_key_of_a_closed_account_answers_what_it_made(lent: SyncCreditService) -> None:
    """The key comes before the status, as for every grant."""
    one = lent.create_recurring_grant(ACME, 5, idempotency_key="plan")
    lent.close_account(ACME, "left")
    again = lent.create_recurring_grant(ACME, 5, idempotency_key="plan")
    assert (again.id, again.replayed, again.status) == (one.id, True, RecurringStatus.CANCELLED)


# -- many refills at once ------------------------------------------------------------------------------------------


def test_who_books_the_refills_of_years_is_told_of_a_verdict_that_never_came(
    lent: SyncCreditService, clock: FakeClock
) -> None:
    """The hold ends in the first of several transactions, the call is decided in the last."""
    told: list[CreditEvent] = []
    add_hook(told.append)
    lent.create_recurring_grant(ACME, 1, every="day", expires_after=None)
    hold = lent.reserve_credits(organization_id=ACME, amount=1)
    lent.mark_unknown(hold.id, organization_id=ACME, provider="fal", provider_reference="job")
    clock.advance((2 * MAX_REFILLS + 1) * DAY)
    try:
        row = lent.consume_credits(organization_id=ACME, amount=2 * MAX_REFILLS)
    finally:
        remove_hook(told.append)
    ended = [event.reservation.id for event in told if event.name == "unknown_expired" and event.reservation]
    assert (row.amount, ended) == (-2 * MAX_REFILLS, [hold.id])
