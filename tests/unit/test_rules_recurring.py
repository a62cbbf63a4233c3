"""Recurring grants on plain state: what the database and the service cannot bring about in a test."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agentcredits.amounts import MAX_TOTAL_MICROS
from agentcredits.errors import InvalidAmountError
from agentcredits.model import RecurringStatus
from agentcredits.rules.due import book_due
from agentcredits.rules.operations import CreateRecurring
from agentcredits.rules.periods import RolloverTerms
from agentcredits.rules.posting import decide
from agentcredits.rules.state import AccountState, Ledger, RecurringState

NOW = datetime(2026, 1, 31, 9, tzinfo=UTC)
HOUR = timedelta(hours=1)


def made(**changes: Any) -> tuple[Ledger, RecurringState]:
    """An account with one recurring grant of 10 micros, made now."""
    ledger = Ledger("acme", AccountState("acme", NOW, NOW))
    facts = {"organization_id": "acme", "id": "r", "key": "k", "fingerprint": "f"}
    arguments: dict[str, Any] = {"amount_micros": 10, "every": "day", "tz": "Europe/Berlin"} | changes
    assert decide(ledger, CreateRecurring(**facts, **arguments), NOW).error is None
    return ledger, ledger.recurring["r"]


def periods(ledger: Ledger) -> list[datetime | None]:
    return [grant.period_start for grant in ledger.grants.values()]


@pytest.mark.parametrize("early", [True, False], ids=["moved back", "moved on"])
def test_a_boundary_that_a_government_moves_grants_no_period_twice_and_none_never(early: bool) -> None:
    """The moment that was computed under the old rules of the zone lies before or after the period's new start."""
    ledger, one = made()
    boundary = one.next_at
    account = ledger.account
    assert account is not None
    account.next_refill_at = account.next_due_at = one.next_at = boundary - HOUR if early else boundary + HOUR
    assert book_due(ledger, boundary + 2 * HOUR)
    assert periods(ledger) == [boundary - timedelta(days=1), boundary]
    assert one.next_at == boundary + timedelta(days=1)


def test_an_account_that_can_count_no_more_is_granted_no_more() -> None:
    """What comes by time ends; what is asked for is refused, and nothing changes."""
    ledger, one = made()
    assert ledger.account is not None
    ledger.account.granted_micros = MAX_TOTAL_MICROS - 9
    assert book_due(ledger, NOW + timedelta(days=3))
    assert (one.status, len(ledger.grants)) == (RecurringStatus.ENDED, 1)
    assert ledger.account.next_refill_at is None
    facts = {"organization_id": "acme", "id": "s", "key": "l", "fingerprint": "f"}
    operation = CreateRecurring(**facts, amount_micros=10, every="day", tz="UTC")
    error = decide(ledger, operation, NOW + timedelta(days=3)).error
    assert isinstance(error, InvalidAmountError)
    assert set(ledger.recurring) == {"r"}


def test_a_bounded_booking_stops_between_two_refills_and_goes_on() -> None:
    """In the order of time; the account stays due until all of it is booked, and the whole is the same."""
    at_once, _ = made()
    assert book_due(at_once, NOW + timedelta(days=10))
    bit_by_bit, one = made()
    assert not book_due(bit_by_bit, NOW + timedelta(days=10), most_refills=4)
    assert len(bit_by_bit.grants) == 5
    assert bit_by_bit.account is not None
    assert bit_by_bit.account.next_due_at == one.next_at
    assert not book_due(bit_by_bit, NOW + timedelta(days=10), most_refills=4)
    assert book_due(bit_by_bit, NOW + timedelta(days=10), most_refills=4)
    assert list(bit_by_bit.grants.values()) == list(at_once.grants.values())
    assert bit_by_bit.account == at_once.account


@pytest.mark.parametrize(
    ("terms", "remaining", "earlier", "carried"),
    [
        (RolloverTerms(None, 0, "period"), 7, 100, 7),
        (RolloverTerms(5, 0, "period"), 7, 0, 5),
        (RolloverTerms(5, 0, "period"), 7, 3, 2),
        (RolloverTerms(5, 0, "period"), 7, 6, 0),
        (RolloverTerms(5, 7, "period"), 7, 0, 5),
        (RolloverTerms(5, 8, "period"), 7, 0, 0),
        (RolloverTerms(5, 3, "period"), 0, 0, 0),
    ],
)
def test_what_is_carried_over_is_never_more_than_there_is(
    terms: RolloverTerms, remaining: int, earlier: int, carried: int
) -> None:
    """The minimum is a threshold, the maximum is for all rollovers together."""
    assert terms.carried_micros(remaining, earlier) == carried
