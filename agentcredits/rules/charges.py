"""Charges at once, and refunds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from agentcredits.amounts import from_micros
from agentcredits.errors import (
    ConfigurationError,
    CreditLimitExceededError,
    InsufficientCreditsError,
    RefundExceedsChargeError,
    TransactionNotFoundError,
)
from agentcredits.ids import new_id
from agentcredits.model import (
    Allocation,
    Overage,
    Pricing,
    TransactionType,
)
from agentcredits.rules import burn_down, limits, refusals
from agentcredits.rules import operations as ops
from agentcredits.rules.entries import (
    ENDED,
    account_of,
    book_breakage,
    end_if_over,
    grant_of,
    next_event,
    write_row,
)
from agentcredits.rules.outcomes import Outcome, is_other_call, known_account, remember, stored_answer
from agentcredits.rules.state import Denied, GrantState, Ledger, Row


def consume(ledger: Ledger, operation: ops.Consume, now: datetime) -> Outcome:
    """Charge at once, in burn-down order; short of credits it is refused, or (CAP) takes what is there."""
    known = stored_answer(ledger, operation)
    if known is not None:
        return Outcome(ledger.rows[known.result_id], replayed=is_other_call(known, operation))
    refuse_unpriced(operation)
    account = known_account(ledger)
    amount = operation.amount_micros
    usable = usable_by(ledger, operation.activity, now) if amount else []
    capped = operation.overage is Overage.CAP
    counters = limits.of_spending(ledger, operation.activity, now)
    observed = admit(ledger, operation, counters, usable, now, capped=capped)
    charged = 0 if observed else min(amount, sum(grant.remaining_micros for grant in usable))
    most = limits.room(counters)
    if most is not None and charged > most:
        # Only a capped charge gets here: any other was refused.
        charged = most
    allocations = burn_down.take(usable, charged)
    for allocation in allocations:
        ledger.touch_grant(grant_of(allocation)).spent_micros += allocation.amount_micros
    account.spent_micros += charged
    activity = operation.activity
    row = write_row(
        ledger,
        TransactionType.DEBIT,
        -charged,
        now,
        allocations,
        id=operation.id,
        agent_type=activity.agent_type,
        action=activity.action,
        quantity=activity.quantity,
        project_id=activity.scopes.project_id,
        department_id=activity.scopes.department_id,
        user_id=activity.scopes.user_id,
        run_id=activity.scopes.run_id,
        request_id=activity.scopes.request_id,
        idempotency_key=operation.key,
        uncollected_micros=amount - charged,
        pricing=Pricing.OBSERVED if observed else activity.pricing,
        dimensions=activity.dimensions_json,
        metadata=activity.metadata_json,
    )
    if not observed:
        limits.keep(ledger, counters)
        limits.book(ledger, row, now)
    remember(ledger, operation, now)
    return Outcome(row)


def usable_by(ledger: Ledger, activity: ops.Activity, now: datetime) -> list[GrantState]:
    """The grants that an activity may use, in burn-down order."""
    return burn_down.usable_for(ledger.grants.values(), now, activity.agent_type, activity.action)


def refuse_unpriced(operation: ops.Spending) -> None:
    """What was found before posting is raised when the key has no answer, unless mode "observe" lets it pass.

    Raises:
        CreditsError: that refusal.
    """
    if operation.would_refuse is not None and not operation.observe:
        raise operation.would_refuse


def admit(
    ledger: Ledger,
    operation: ops.Spending,
    counters: Sequence[limits.Counter],
    usable: Sequence[GrantState],
    now: datetime,
    *,
    capped: bool = False,
) -> bool:
    """Whether limits, then credits allow it; True: no, but mode "observe" lets it pass and records why.

    Raises:
        CreditLimitExceededError: a limit refuses it.
        InsufficientCreditsError: the usable grants are short of it (unless ``capped``).
    """
    amount = operation.amount_micros
    error = operation.would_refuse
    if error is None:
        try:
            limits.check(ledger, counters, amount, operation.activity, capped=capped)
            available = sum(grant.remaining_micros for grant in usable)
            if amount > available and not capped:
                raise short_of(ledger, available, amount, operation.activity)
        except (CreditLimitExceededError, InsufficientCreditsError, ConfigurationError) as refusal:
            if not operation.observe:
                raise
            error = refusal
    if error is None:
        return False
    ledger.changes.denials.append(Denied(new_id(), now, error, operation.activity, amount))
    return True


def short_of(
    ledger: Ledger, available_micros: int, required_micros: int, activity: ops.Activity
) -> InsufficientCreditsError:
    """The refusal of an activity that may use ``available_micros``; tells what is there, but not for it."""
    account = account_of(ledger)
    if not account.has_restricted:
        return refusals.insufficient(account, available_micros, required_micros, activity)
    held = sum(
        grant.held_micros
        for grant in ledger.grants.values()
        if grant.status not in ENDED
        and (not grant.only_for or burn_down.allows(grant.only_for, activity.agent_type, activity.action))
    )
    restricted = max(0, account.available_micros - available_micros)
    return refusals.insufficient(
        account, available_micros, required_micros, activity, held_micros=held, restricted_micros=restricted
    )


def refund(ledger: Ledger, operation: ops.Refund, now: datetime) -> Outcome:
    """Give credits back to the grants they came from, newest allocation first, never above the charge."""
    known = stored_answer(ledger, operation)
    if known is not None:
        return Outcome(ledger.rows[known.result_id], replayed=is_other_call(known, operation))
    account = known_account(ledger)
    charge = ledger.rows.get(operation.transaction_id)
    if charge is None or charge.type is not TransactionType.DEBIT:
        raise TransactionNotFoundError(
            f"organization {ledger.organization_id} has no charge {operation.transaction_id}.",
            context={"transaction_id": operation.transaction_id},
        )
    earlier = ledger.refunds.get(charge.id, [])
    left = -charge.amount_micros - sum(row.amount_micros for row in earlier)
    amount = left if operation.amount_micros is None else operation.amount_micros
    if amount > left or left == 0:
        raise RefundExceedsChargeError(
            f"transaction {charge.id} charged {from_micros(-charge.amount_micros):f} credits,"
            f" {from_micros(left):f} of them can still be refunded.",
            context={
                "transaction_id": charge.id,
                "charged": from_micros(-charge.amount_micros),
                "refundable": from_micros(left),
                "requested": from_micros(amount),
            },
            fixes=({"param": "amount", "value": from_micros(left)},) if left else (),
        )
    allocations = _newest_first(charge, earlier, amount)
    for allocation in allocations:
        end_if_over(ledger, ledger.grants[grant_of(allocation)], now)
    account.spent_micros -= amount
    for allocation in allocations:
        ledger.touch_grant(grant_of(allocation)).spent_micros -= allocation.amount_micros
    row = write_row(
        ledger,
        TransactionType.REFUND,
        amount,
        now,
        allocations,
        id=operation.id,
        agent_type=charge.agent_type,
        action=charge.action,
        project_id=charge.project_id,
        department_id=charge.department_id,
        user_id=charge.user_id,
        run_id=charge.run_id,
        refund_of=charge.id,
        idempotency_key=operation.key,
        reason=operation.reason,
    )
    limits.unbook(ledger, charge, amount, now)
    ledger.refunds.setdefault(charge.id, []).append(row)
    for allocation in allocations:
        grant = ledger.grants[grant_of(allocation)]
        if grant.status in ENDED:
            book_breakage(ledger, grant, allocation.amount_micros, now)
        else:
            account.note_due(next_event(grant))
    remember(ledger, operation, now)
    return Outcome(row)


def merge(allocations: tuple[Allocation, ...]) -> tuple[Allocation, ...]:
    """Neighbouring parts of the same grant as one."""
    merged: list[Allocation] = []
    for allocation in allocations:
        if merged and merged[-1].grant_id == allocation.grant_id:
            merged[-1] = Allocation(allocation.grant_id, merged[-1].amount_micros + allocation.amount_micros)
        else:
            merged.append(allocation)
    return tuple(merged)


def _newest_first(charge: Row, earlier: list[Row], amount_micros: int) -> tuple[Allocation, ...]:
    """What a refund gives back to which grant: the charge's last allocation first, less earlier refunds."""
    returned: dict[str | None, int] = {}
    for row in earlier:
        for allocation in row.allocations:
            returned[allocation.grant_id] = returned.get(allocation.grant_id, 0) + allocation.amount_micros
    parts: list[Allocation] = []
    missing = amount_micros
    for allocation in reversed(charge.allocations):
        already = min(returned.get(allocation.grant_id, 0), allocation.amount_micros)
        if already:
            returned[allocation.grant_id] -= already
        part = min(missing, allocation.amount_micros - already)
        if part > 0:
            parts.append(Allocation(allocation.grant_id, part))
            missing -= part
    return merge(tuple(parts))
