"""Recurring grants: made, cancelled, booked period by period, and the rest of a period carried over."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from agentcredits.amounts import MAX_TOTAL_MICROS
from agentcredits.errors import InvalidInputError, RecurringGrantNotFoundError
from agentcredits.ids import derived_id
from agentcredits.model import Allocation, GrantStatus, RecurringStatus, TransactionType
from agentcredits.rules import accounts, refusals
from agentcredits.rules import operations as ops
from agentcredits.rules.entries import (
    GRANT_ROW_TYPE,
    account_of,
    add_grant,
    cancel_recurring,
    note_next_refill,
    write_row,
)
from agentcredits.rules.keys import is_other_call, remember, stored_answer
from agentcredits.rules.outcomes import Outcome, known_account
from agentcredits.rules.periods import end_of, periods
from agentcredits.rules.state import GrantState, Ledger, RecurringState
from agentcredits.rules.windows import Window

#: Each of them is looked at whenever one of them is due.
MAX_ACTIVE: Final = 50


def create(ledger: Ledger, operation: ops.CreateRecurring, now: datetime) -> Outcome:
    """Grant the period that is running at the later of anchor and now, and every one after it."""
    known = stored_answer(ledger, operation)
    if known is not None:
        return Outcome(ledger.recurring[known.result_id], replayed=is_other_call(known, operation))
    account = account_of(ledger)
    accounts.refuse_if_closed(account)
    if sum(one.is_active for one in ledger.recurring.values()) >= MAX_ACTIVE:
        raise InvalidInputError(
            f"organization {ledger.organization_id} has {MAX_ACTIVE} recurring grants: cancel one first.",
            reason="too_many_recurring_grants",
        )
    anchor = operation.anchor or now
    begin = max(anchor, now)
    if operation.ends_at is not None and operation.ends_at <= begin:
        raise InvalidInputError(
            "ends_at must be later than anchor and later than now.",
            reason="ends_in_the_past",
            context={"parameter": "ends_at", "ends_at": operation.ends_at, "now": now},
        )
    if account.granted_micros + operation.amount_micros > MAX_TOTAL_MICROS:
        raise refusals.total_too_large(account)
    recurring = RecurringState(
        id=operation.id,
        status=RecurringStatus.ACTIVE,
        amount_micros=operation.amount_micros,
        category=operation.category,
        priority=operation.priority,
        window_text=str(periods(operation.every, anchor, operation.tz)),
        starts_at=begin,
        next_at=begin,
        created_at=now,
        ends_at=operation.ends_at,
        expires_after=operation.expires_after,
        rollover=operation.rollover,
        only_for=operation.only_for,
        unit_cost=operation.unit_cost,
        currency=operation.currency,
        source=operation.source,
    )
    ledger.recurring[recurring.id] = recurring
    ledger.changes.new_recurring.add(recurring.id)
    if begin <= now:
        refill(ledger, recurring, now)
    note_next_refill(ledger)
    remember(ledger, operation, now)
    return Outcome(recurring)


def cancel(ledger: Ledger, operation: ops.CancelRecurring, now: datetime) -> Outcome:
    """Grant no further period; what was granted stays until its own end and is not carried over."""
    known_account(ledger)
    recurring = ledger.recurring.get(operation.recurring_id)
    if recurring is None:
        raise RecurringGrantNotFoundError(
            f"organization {ledger.organization_id} has no recurring grant {operation.recurring_id}.",
            context={"recurring_id": operation.recurring_id},
        )
    if not recurring.is_active:
        return Outcome(recurring, replayed=True)
    cancel_recurring(ledger, recurring, now)
    note_next_refill(ledger)
    return Outcome(recurring)


def refill(ledger: Ledger, recurring: RecurringState, now: datetime) -> GrantState | None:
    """Book the grant of the period that ``next_at`` lies in. It counts as made at ``next_at``, whenever it is booked.

    None: this period was granted before, or the account cannot count more credits (that ends the recurring grant).
    """
    account = account_of(ledger)
    ledger.touch_recurring(recurring)
    at = recurring.next_at
    start, end = Window.parse(recurring.window_text).bounds(at)
    is_new = recurring.last_start is None or start > recurring.last_start
    if is_new and account.granted_micros + recurring.amount_micros > MAX_TOTAL_MICROS:
        recurring.status = RecurringStatus.ENDED
        return None
    recurring.next_at = end
    if recurring.ends_at is not None and end >= recurring.ends_at:
        recurring.status = RecurringStatus.ENDED
    if not is_new:
        return None
    recurring.last_start = start
    made = GrantState(
        id=derived_id(recurring.id, start.isoformat()),
        status=GrantStatus.ACTIVE,
        amount_micros=recurring.amount_micros,
        category=recurring.category,
        priority=recurring.priority,
        effective_at=at,
        created_at=at,
        expires_at=end_of(recurring.expires_after, at, end),
        source=recurring.source,
        only_for=recurring.only_for,
        unit_cost=recurring.unit_cost,
        currency=recurring.currency,
        recurring_id=recurring.id,
        period_start=start,
    )
    add_grant(ledger, made)
    write_row(
        ledger,
        GRANT_ROW_TYPE[made.category],
        made.amount_micros,
        now,
        (Allocation(made.id, made.amount_micros),),
        grant_id=made.id,
        reason=made.source,
    )
    return made


def carry_over(ledger: Ledger, grant: GrantState, now: datetime) -> GrantState | None:
    """Move what a period's grant has left into a rollover, as far as its terms go; before the grant's end is booked.

    Only where another period follows: not after the last one, nor after a cancellation.
    """
    recurring = ledger.recurring.get(grant.recurring_id or "")
    if recurring is None or recurring.rollover is None or grant.rolled_from is not None:
        return None
    at = grant.expires_at
    if at is None or not recurring.is_active or recurring.next_at != at:
        return None
    account = account_of(ledger)
    earlier = sum(
        one.remaining_micros + one.held_micros
        for one in ledger.grants.values()
        if one.recurring_id == recurring.id
        and one.rolled_from is not None
        and one.status is GrantStatus.ACTIVE
        and (one.expires_at is None or one.expires_at > at)
    )
    carried = recurring.rollover.carried_micros(grant.remaining_micros, earlier)
    carried = min(carried, MAX_TOTAL_MICROS - account.granted_micros)
    if carried <= 0:
        return None
    ledger.touch_grant(grant.id).voided_micros += carried
    account.voided_micros += carried
    write_row(
        ledger,
        TransactionType.ADJUST,
        -carried,
        now,
        (Allocation(grant.id, carried),),
        grant_id=grant.id,
        reason="carried over into the next period",
    )
    made = GrantState(
        id=derived_id(grant.id, "rollover"),
        status=GrantStatus.ACTIVE,
        amount_micros=carried,
        category=grant.category,
        priority=grant.priority,
        effective_at=at,
        created_at=at,
        expires_at=end_of(recurring.rollover.expires_after, at, Window.parse(recurring.window_text).bounds(at)[1]),
        source=grant.source,
        only_for=grant.only_for,
        unit_cost=grant.unit_cost,
        currency=grant.currency,
        recurring_id=recurring.id,
        rolled_from=grant.id,
    )
    add_grant(ledger, made)
    write_row(
        ledger,
        TransactionType.ADJUST,
        carried,
        now,
        (Allocation(made.id, carried),),
        grant_id=made.id,
        reason="carried over from the period before",
    )
    return made
