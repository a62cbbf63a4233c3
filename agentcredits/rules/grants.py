"""Accounts and grants: opened, granted, voided."""

from __future__ import annotations

from datetime import datetime

from agentcredits.amounts import MAX_TOTAL_MICROS
from agentcredits.errors import (
    GrantNotFoundError,
    InvalidInputError,
)
from agentcredits.model import (
    Allocation,
    GrantCategory,
    GrantStatus,
    TransactionType,
)
from agentcredits.rules import accounts, burn_down, refusals
from agentcredits.rules import operations as ops
from agentcredits.rules.entries import (
    ENDED,
    GRANT_ROW_TYPE,
    account_of,
    add_grant,
    end_if_over,
    grant_of,
    write_row,
)
from agentcredits.rules.keys import is_other_call, remember, stored_answer
from agentcredits.rules.outcomes import Outcome, known_account
from agentcredits.rules.state import GrantState, Ledger, Row


def create_account(ledger: Ledger, operation: ops.CreateAccount, now: datetime) -> Outcome:
    """The row is made by the store; there is nothing to decide."""
    account = account_of(ledger)
    account.last_posted_at = now
    return Outcome(account)


def grant(ledger: Ledger, operation: ops.Grant, now: datetime) -> Outcome:
    """Add a block of credits: its whole amount is granted at once, and scheduled until it takes effect."""
    known = stored_answer(ledger, operation)
    if known is not None:
        return Outcome(ledger.grants[known.result_id], replayed=is_other_call(known, operation))
    made, _ = _add(ledger, operation, now)
    remember(ledger, operation, now)
    return Outcome(made)


def _add(ledger: Ledger, operation: ops.Grant, now: datetime, *, row_id: str | None = None) -> tuple[GrantState, Row]:
    account = account_of(ledger)
    accounts.refuse_if_closed(account)
    effective_at = operation.effective_at or now
    if operation.expires_at is not None and operation.expires_at <= max(effective_at, now):
        raise InvalidInputError(
            "expires_at must be later than effective_at and later than now.",
            reason="expires_in_the_past",
            context={"parameter": "expires_at", "expires_at": operation.expires_at, "now": now},
        )
    if account.granted_micros + operation.amount_micros > MAX_TOTAL_MICROS:
        raise refusals.total_too_large(account)
    scheduled = effective_at > now
    grant = GrantState(
        id=operation.id,
        status=GrantStatus.SCHEDULED if scheduled else GrantStatus.ACTIVE,
        amount_micros=operation.amount_micros,
        category=operation.category,
        priority=operation.priority,
        effective_at=effective_at,
        created_at=now,
        expires_at=operation.expires_at,
        source=operation.source,
        only_for=operation.only_for,
        unit_cost=operation.unit_cost,
        currency=operation.currency,
    )
    add_grant(ledger, grant)
    account.scheduled_micros += grant.amount_micros if scheduled else 0
    row = write_row(
        ledger,
        GRANT_ROW_TYPE[grant.category],
        grant.amount_micros,
        now,
        (Allocation(grant.id, grant.amount_micros),),
        grant_id=grant.id,
        idempotency_key=operation.key,
        reason=operation.source,
        metadata=operation.metadata_json,
        id=row_id,
    )
    return grant, row


def adjust(ledger: Ledger, operation: ops.Adjust, now: datetime) -> Outcome:
    """Give by a grant, or take back from what can be spent, restricted or not, in burn-down order."""
    known = stored_answer(ledger, operation)
    if known is not None:
        return Outcome(ledger.rows[known.result_id], replayed=is_other_call(known, operation))
    amount = operation.amount_micros
    if amount > 0:
        _, row = _add(
            ledger,
            ops.Grant(
                organization_id=operation.organization_id,
                id=operation.grant_id,
                key=operation.key,
                fingerprint=operation.fingerprint,
                amount_micros=amount,
                category=GrantCategory.ADJUSTMENT,
                source=operation.reason,
            ),
            now,
            row_id=operation.id,
        )
    else:
        account = known_account(ledger)
        usable = burn_down.usable(ledger.grants.values(), now)
        available = sum(grant.remaining_micros for grant in usable)
        if -amount > available:
            raise refusals.insufficient(account, available, -amount, ops.Activity(action="the adjustment"))
        allocations = burn_down.take(usable, -amount)
        for allocation in allocations:
            ledger.touch_grant(grant_of(allocation)).voided_micros += allocation.amount_micros
        account.voided_micros -= amount
        row = write_row(
            ledger,
            TransactionType.ADJUST,
            amount,
            now,
            allocations,
            id=operation.id,
            idempotency_key=operation.key,
            reason=operation.reason,
        )
    remember(ledger, operation, now)
    return Outcome(row)


def void_grant(ledger: Ledger, operation: ops.VoidGrant, now: datetime) -> Outcome:
    """Take back what is left; what is held stays with its hold and is breakage when it comes back.

    With ``unreserved_only`` the grant lives on, and what comes back can be spent.
    """
    account = known_account(ledger)
    grant = ledger.grants.get(operation.grant_id)
    if grant is None:
        raise GrantNotFoundError(
            f"organization {ledger.organization_id} has no grant {operation.grant_id}.",
            context={"grant_id": operation.grant_id},
        )
    end_if_over(ledger, grant, now)
    amount = grant.remaining_micros
    # Nothing can be held of a scheduled grant: without what is taken there is nothing left of it to keep.
    keeps = operation.unreserved_only and grant.status is GrantStatus.ACTIVE
    if grant.status in ENDED or (keeps and not amount):
        return Outcome(grant, replayed=True)
    ledger.touch_grant(grant.id)
    if grant.status is GrantStatus.SCHEDULED:
        account.scheduled_micros -= grant.amount_micros
    if not keeps:
        grant.status = GrantStatus.VOIDED
        grant.voided_at = now
    if amount > 0:
        grant.voided_micros += amount
        account.voided_micros += amount
        write_row(
            ledger,
            TransactionType.ADJUST,
            -amount,
            now,
            (Allocation(grant.id, amount),),
            grant_id=grant.id,
            reason=operation.reason,
        )
    ledger.changes.account = True
    return Outcome(grant)
