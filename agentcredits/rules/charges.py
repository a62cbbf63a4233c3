"""Charges at once, and refunds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from agentcredits.amounts import from_micros
from agentcredits.errors import (
    AccountFrozenError,
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
from agentcredits.rules import accounts, burn_down, limits, overdraft, refusals, runs
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
from agentcredits.rules.keys import is_other_call, remember, stored_answer
from agentcredits.rules.outcomes import Outcome, known_account
from agentcredits.rules.state import Denied, GrantState, Ledger, Row


def consume(ledger: Ledger, operation: ops.Consume, now: datetime) -> Outcome:
    """Charge at once, in burn-down order; short of credits it is refused, or takes what is there (OVERDRAFT: and what
    the account's line lends).
    """
    known = stored_answer(ledger, operation)
    if known is not None:
        return Outcome(ledger.rows[known.result_id], replayed=is_other_call(known, operation))
    refuse_unpriced(operation)
    account = known_account(ledger)
    amount = operation.amount_micros
    usable = usable_by(ledger, operation.activity, now) if amount else []
    capped = operation.overage is not Overage.REJECT
    counters = limits.of_spending(ledger, operation.activity, now)
    pool = runs.of_spending(ledger, operation.activity, now)
    observed = admit(ledger, operation, counters, pool, usable, now, capped=capped)
    wanted = 0 if observed else amount
    most = runs.least(limits.room(counters), None if pool is None else pool.room(ledger))
    if most is not None:
        # Cuts a capped charge only: any other was refused.
        wanted = min(wanted, most)
    allocations = overdraft.take(account, usable, wanted, operation.overage)
    charged = overdraft.spend(ledger, allocations)
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
        runs.keep(ledger, pool)
        limits.book(ledger, row, now, counters)
        runs.book(ledger, row, now)
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
    pool: runs.Pool | None,
    usable: Sequence[GrantState],
    now: datetime,
    *,
    capped: bool = False,
) -> bool:
    """Whether the account's status, its run, limits, then credits allow it; True: no, but mode "observe" lets it pass
    and records why.

    Raises:
        AccountFrozenError: the account is frozen or closed.
        CreditLimitExceededError: its run or a limit refuses it.
        InsufficientCreditsError: the usable grants are short of it (unless ``capped``).
    """
    amount = operation.amount_micros
    error = operation.would_refuse
    if error is None:
        try:
            accounts.refuse_unless_open(account_of(ledger))
            runs.check(ledger, pool, amount, operation.activity, capped=capped)
            limits.check(ledger, counters, amount, operation.activity, capped=capped)
            available = sum(grant.remaining_micros for grant in usable)
            if amount > available and not capped:
                raise short_of(ledger, available, amount, operation.activity)
        except (
            AccountFrozenError,
            CreditLimitExceededError,
            InsufficientCreditsError,
            ConfigurationError,
        ) as refusal:
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
    restricted = max(0, account.available_micros + account.overdrawn_micros - available_micros)
    return refusals.insufficient(
        account, available_micros, required_micros, activity, held_micros=held, restricted_micros=restricted
    )


def refund(ledger: Ledger, operation: ops.Refund, now: datetime) -> Outcome:
    """Give credits back to the grants they came from, newest allocation first, never above the charge.

    What came from the overdraft line lowers the debt; where grants have paid that since, they get it back.
    """
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
    allocations = _newest_first(charge, -charge.amount_micros - left, amount)
    to_grants = [allocation for allocation in allocations if allocation.grant_id is not None]
    for allocation in to_grants:
        end_if_over(ledger, ledger.grants[grant_of(allocation)], now)
    account.spent_micros -= amount
    for allocation in to_grants:
        ledger.touch_grant(grant_of(allocation)).spent_micros -= allocation.amount_micros
    from_line = amount - sum(allocation.amount_micros for allocation in to_grants)
    if from_line:
        account.overdrawn_micros -= from_line
        ledger.changes.standing = True
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
    runs.unbook(ledger, charge, amount, now)
    ledger.refunds.setdefault(charge.id, []).append(row)
    for allocation in to_grants:
        grant = ledger.grants[grant_of(allocation)]
        if grant.status in ENDED:
            book_breakage(ledger, grant, allocation.amount_micros, now)
        else:
            account.note_due(next_event(grant))
    overdraft.give_back(ledger, now)
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


def _newest_first(charge: Row, refunded_micros: int, amount_micros: int) -> tuple[Allocation, ...]:
    """What a refund gives back to which grant: the charge's last allocation first, less earlier refunds."""
    _, left = burn_down.split(tuple(reversed(charge.allocations)), refunded_micros)
    parts, _ = burn_down.split(tuple(reversed(left)), amount_micros)
    return merge(parts)
