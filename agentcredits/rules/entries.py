"""The moves that every rule is made of: a ledger row, breakage, giving held credits back, a grant's end."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from agentcredits.ids import new_id
from agentcredits.model import Allocation, GrantCategory, GrantStatus, RecurringStatus, TransactionType
from agentcredits.rules.state import AccountState, GrantState, Ledger, RecurringState, Row

ENDED = frozenset({GrantStatus.EXPIRED, GrantStatus.VOIDED})

GRANT_ROW_TYPE: Final = {
    GrantCategory.PAID: TransactionType.PURCHASE,
    GrantCategory.PROMOTIONAL: TransactionType.CREDIT,
    GrantCategory.PLAN: TransactionType.CREDIT,
    GrantCategory.ADJUSTMENT: TransactionType.ADJUST,
}


def account_of(ledger: Ledger) -> AccountState:
    """The account; a rule that gets here has checked that it exists."""
    if ledger.account is None:
        raise AssertionError("the account was not loaded")
    return ledger.account


def grant_of(allocation: Allocation) -> str:
    """The grant that an allocation names; those of the overdraft name none, and nothing is held of it."""
    if allocation.grant_id is None:
        raise AssertionError("an allocation without a grant")
    return allocation.grant_id


def next_event(grant: GrantState) -> datetime | None:
    """When the next thing happens to a grant by time alone."""
    if grant.status is GrantStatus.SCHEDULED:
        return grant.effective_at
    return grant.expires_at if grant.status is GrantStatus.ACTIVE else None


def write_row(
    ledger: Ledger,
    row_type: TransactionType,
    amount_micros: int,
    now: datetime,
    allocations: tuple[Allocation, ...],
    **columns: Any,
) -> Row:
    """Append a row; the account's counters must already hold what the row says."""
    account = account_of(ledger)
    account.last_seq += 1
    row = Row(
        id=columns.pop("id", None) or new_id(),
        seq=account.last_seq,
        type=row_type,
        amount_micros=amount_micros,
        balance_after_micros=account.ledger_balance_micros,
        created_at=now,
        allocations=tuple(_told(ledger, allocation) for allocation in allocations),
        **columns,
    )
    ledger.rows[row.id] = row
    ledger.changes.rows.append(row)
    ledger.changes.account = True
    return row


def add_grant(ledger: Ledger, grant: GrantState) -> None:
    """Let a new grant count; its row is the caller's to write."""
    account = account_of(ledger)
    ledger.grants[grant.id] = grant
    ledger.changes.new_grants.add(grant.id)
    account.granted_micros += grant.amount_micros
    account.note_due(next_event(grant))
    if grant.only_for and not account.has_restricted:
        account.has_restricted = True
        ledger.changes.account_features = True


def cancel_recurring(ledger: Ledger, recurring: RecurringState, now: datetime) -> None:
    """Let a recurring grant come no more; the caller notes when the next one comes."""
    ledger.touch_recurring(recurring)
    recurring.status = RecurringStatus.CANCELLED
    recurring.cancelled_at = now


def note_next_refill(ledger: Ledger) -> None:
    """Let the account say when the next recurring grant comes; all active ones must be loaded."""
    account = account_of(ledger)
    next_at = min((one.next_at for one in ledger.recurring.values() if one.is_active), default=None)
    if next_at != account.next_refill_at:
        account.next_refill_at = next_at
        ledger.changes.account_features = True
    account.note_due(next_at)
    ledger.changes.account = True


def _told(ledger: Ledger, allocation: Allocation) -> Allocation:
    """The allocation with what its grant says of it: where the credits come from and what they cost."""
    if allocation.grant_id is None:
        return allocation
    grant = ledger.grants[allocation.grant_id]
    return Allocation(grant.id, allocation.amount_micros, grant.category, grant.unit_cost, grant.currency)


def book_breakage(ledger: Ledger, grant: GrantState, amount_micros: int, now: datetime) -> None:
    """Unused credits of an ended grant leave the account."""
    if amount_micros <= 0:
        return
    grant.expired_micros += amount_micros
    account_of(ledger).expired_micros += amount_micros
    write_row(
        ledger, TransactionType.EXPIRE, -amount_micros, now, (Allocation(grant.id, amount_micros),), grant_id=grant.id
    )


def end_grant(ledger: Ledger, grant: GrantState, now: datetime) -> None:
    """The grant's period is over: what is unused and not held is breakage."""
    ledger.touch_grant(grant.id)
    grant.status = GrantStatus.EXPIRED
    book_breakage(ledger, grant, grant.remaining_micros, now)


def end_if_over(ledger: Ledger, grant: GrantState, now: datetime) -> None:
    """Book the end of a grant that was used up before it ended: nothing was due then, so nothing was booked."""
    if grant.status is GrantStatus.ACTIVE and grant.expires_at is not None and grant.expires_at <= now:
        end_grant(ledger, grant, now)


def give_back(ledger: Ledger, allocations: tuple[Allocation, ...], now: datetime) -> None:
    """Return held credits to their grants; what belongs to an ended grant is breakage, not balance."""
    account = account_of(ledger)
    for allocation in allocations:
        account.reserved_micros -= allocation.amount_micros
        grant = ledger.touch_grant(grant_of(allocation))
        grant.held_micros -= allocation.amount_micros
        if grant.status in ENDED:
            book_breakage(ledger, grant, allocation.amount_micros, now)
    ledger.changes.account = True
