"""The refusals that carry numbers: one place for each sentence."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from agentcredits.amounts import MAX_TOTAL_MICROS, from_micros
from agentcredits.errors import (
    AccountClosedError,
    AccountFrozenError,
    AccountNotFoundError,
    CreditLimitExceededError,
    IdempotencyMismatchError,
    InsufficientCreditsError,
    InvalidAmountError,
    ReservationAlreadySettledError,
    ReservationNotFoundError,
)
from agentcredits.model import AccountStatus, LimitScope, LimitUnit
from agentcredits.rules.operations import Activity, KeyedOperation
from agentcredits.rules.state import AccountState, HoldState, LimitState, RunState, UsageState


def account_not_found(organization_id: str) -> AccountNotFoundError:
    """The organization was never granted anything."""
    return AccountNotFoundError(
        f"organization {organization_id} has no credit account: grant credits first.",
        context={"organization_id": organization_id},
        suggestions=(f"Grant credits first, for example: agentcredits grant {organization_id} 100",),
    )


def account_not_open(account: AccountState) -> AccountFrozenError:
    """An operator froze or closed it; the reason he gave is for operators: in ``context``, not in the sentence."""
    owner = account.organization_id
    closed = account.status is AccountStatus.CLOSED
    kind, command = (AccountClosedError, "reopen") if closed else (AccountFrozenError, "unfreeze")
    return kind(
        f"the credit account of organization {owner} is {account.status.value}.",
        context={
            "organization_id": owner,
            "status": account.status.value,
            "status_reason": account.status_reason,
            "status_at": account.status_at,
        },
        suggestions=(f"An operator can {command} it: agentcredits accounts {command} {owner}",),
    )


def insufficient(
    account: AccountState,
    available_micros: int,
    required_micros: int,
    activity: Activity,
    *,
    held_micros: int | None = None,
    restricted_micros: int = 0,
) -> InsufficientCreditsError:
    """Not enough credits; tells apart an empty account from one whose credits are only held at the moment.

    Of an account in debt what it says is negative: the debt has to be paid before anything else.

    Args:
        account: Whose.
        available_micros: What the activity may use now.
        required_micros: What it needs.
        activity: What for.
        held_micros: What open holds have of grants that it may use; None: all that is reserved.
        restricted_micros: What is available, but only to other actions.
    """
    available_micros -= account.overdrawn_micros
    what = activity.action or "the charge"
    short = required_micros - available_micros
    held_micros = account.reserved_micros if held_micros is None else held_micros
    held_in_the_way = available_micros + held_micros >= required_micros
    available, required, shortfall = (from_micros(micros) for micros in (available_micros, required_micros, short))
    message = (
        f"organization {account.organization_id} has {_count(available, 'credit')} available,"
        f" {what} needs {required:f}; short by {shortfall:f}."
    )
    if restricted_micros:
        restricted = from_micros(restricted_micros)
        message += f" {_count(restricted, 'more credit')} may only be used for other actions."
    suggestions: tuple[str, ...]
    if held_in_the_way:
        suggestions = (
            f"Work that is still running holds {_count(from_micros(held_micros), 'credit')}:"
            " wait until it ends, then try again.",
        )
    else:
        suggestions = (f"Add at least {_count(shortfall, 'credit')} to organization {account.organization_id}.",)
    if available_micros > 0:
        suggestions += ("Choose a smaller or cheaper action.",)
    return InsufficientCreditsError(
        message,
        reason="credits_held"
        if held_in_the_way
        else "credits_restricted"
        if restricted_micros >= short
        else "insufficient_credits",
        retryable=held_in_the_way,
        context={
            "organization_id": account.organization_id,
            "agent_type": activity.agent_type,
            "action": activity.action,
            "available": available,
            "required": required,
            "shortfall": shortfall,
            "reserved": from_micros(account.reserved_micros),
            **({"restricted": from_micros(restricted_micros)} if restricted_micros else {}),
        },
        suggestions=suggestions,
        fixes=() if held_in_the_way else ({"action": "add_credits", "amount": shortfall},),
    )


def total_too_large(account: AccountState) -> InvalidAmountError:
    """All grants together would be more than an account can count."""
    return InvalidAmountError(
        f"organization {account.organization_id} cannot be granted more than"
        f" {from_micros(MAX_TOTAL_MICROS):,f} credits in all.",
        reason="total_too_large",
    )


def limit_exceeded(
    organization_id: str,
    limit: LimitState,
    usage: UsageState,
    needed: int,
    activity: Activity,
    *,
    others: Sequence[str] = (),
) -> CreditLimitExceededError:
    """A limit refuses: which one, what is left of it, and when it rolls.

    Args:
        organization_id: Whose.
        limit: The limit that stands in the way longest.
        usage: Its counter.
        needed: What the action counts, in the limit's unit.
        activity: What for.
        others: Ids of other limits that refuse it too.
    """
    left = max(0, limit.amount - usage.spent - usage.held)
    held_in_the_way = usage.held > 0 and needed <= limit.amount - usage.spent
    rolls = usage.window_end is not None and needed <= limit.amount
    who = f"organization {organization_id}" if limit.scope is LimitScope.ORGANIZATION else ""
    who = who or f"{limit.scope.value.replace('_', ' ')} {usage.scope_id} of organization {organization_id}"
    window = limit.window_text
    resets_at = None if usage.window_end is None else usage.window_end.isoformat()
    suggestions = []
    if held_in_the_way:
        suggestions.append(
            f"Work that is still running holds {_units(limit, usage.held)}: wait until it ends, then try again."
        )
    if rolls:
        suggestions.append(f"Wait until {resets_at}, when the limit's window rolls.")
    if left and limit.unit is LimitUnit.CREDITS:
        suggestions.append("Choose a smaller or cheaper action.")
    suggestions.append(f"Raise the limit of {who}.")
    return CreditLimitExceededError(
        f"{who} may use {_units(limit, limit.amount)} ({window}): {_units(limit, usage.spent)} are used,"
        f" {_units(limit, usage.held)} held, {_units(limit, left)} left; {activity.action or 'the charge'} needs"
        f" {_units(limit, needed)}." + (f" It resets at {resets_at}." if resets_at else ""),
        reason="limit_held" if held_in_the_way else "limit_reached",
        limit_source=limit.scope.value,
        retryable=held_in_the_way or rolls,
        context={
            "organization_id": organization_id,
            "agent_type": activity.agent_type,
            "action": activity.action,
            "limit_id": limit.id,
            "scope": limit.scope.value,
            "scope_id": usage.scope_id,
            "unit": limit.unit.value,
            "window": window,
            "window_start": usage.window_start,
            "resets_at": usage.window_end,
            "limit": in_unit(limit.unit, limit.amount),
            "spent": in_unit(limit.unit, usage.spent),
            "held": in_unit(limit.unit, usage.held),
            "left": in_unit(limit.unit, left),
            "required": in_unit(limit.unit, needed),
            "also_refused_by": list(others),
        },
        suggestions=suggestions,
        fixes=(
            *(({"action": "wait", "until": usage.window_end},) if rolls and not held_in_the_way else ()),
            {
                "action": "raise_limit",
                "limit_id": limit.id,
                "amount": in_unit(limit.unit, usage.spent + usage.held + needed),
            },
        ),
    )


def run_exceeded(
    organization_id: str, run: RunState, cap_micros: int, needed_micros: int, amount_micros: int, activity: Activity
) -> CreditLimitExceededError:
    """A run's pool refuses: what it used, holds and gave to the runs inside it.

    Args:
        organization_id: Whose.
        run: The run that stands in the way: the action's own, or one around it.
        cap_micros: Its cap.
        needed_micros: What it would have to bear.
        amount_micros: What the action needs (more, when runs inside bear a part of it).
        activity: What for.
    """
    left = max(0, cap_micros - run.used_micros)
    held_in_the_way = needed_micros <= cap_micros - run.spent_micros - run.inner_spent_micros
    suggestions = []
    if held_in_the_way:
        suggestions.append(
            f"Work that is still running holds {_count(from_micros(run.held_micros), 'credit')}, and the runs inside"
            f" claim {_count(from_micros(run.carved_micros), 'credit')}: wait until they end, then try again."
        )
    if left:
        suggestions.append("Choose a smaller or cheaper action.")
    suggestions.append(f"Raise max_credits of run {run.run_id}.")
    spent, held, carved, cap = map(from_micros, (run.spent_micros, run.held_micros, run.carved_micros, cap_micros))
    return CreditLimitExceededError(
        f"run {run.run_id} of organization {organization_id} may use {_count(cap, 'credit')}: {spent:f} are spent,"
        f" {held:f} held, {carved:f} claimed by the runs inside it, {from_micros(left):f} left;"
        f" {activity.action or 'the charge'} needs {from_micros(needed_micros):f}.",
        reason="limit_held" if held_in_the_way else "limit_reached",
        limit_source=LimitScope.RUN.value,
        retryable=held_in_the_way,
        context={
            "organization_id": organization_id,
            "agent_type": activity.agent_type,
            "action": activity.action,
            "limit_id": None,
            "scope": LimitScope.RUN.value,
            "scope_id": run.run_id,
            "run_id": run.run_id,
            "unit": LimitUnit.CREDITS.value,
            "window": "lifetime",
            "window_start": None,
            "resets_at": None,
            "limit": cap,
            "spent": spent,
            "held": held,
            "carved": carved,
            "left": from_micros(left),
            "required": from_micros(needed_micros),
            "amount": from_micros(amount_micros),
            "also_refused_by": [],
        },
        suggestions=suggestions,
        fixes=(
            {
                "action": "raise_max_credits",
                "run_id": run.run_id,
                "amount": from_micros(run.used_micros + needed_micros),
            },
        ),
    )


def in_unit(unit: LimitUnit, number: int) -> Decimal:
    """Micro-credits as credits, a count as it is."""
    return from_micros(number) if unit is LimitUnit.CREDITS else Decimal(number)


def _units(limit: LimitState, number: int) -> str:
    return _count(in_unit(limit.unit, number), "credit" if limit.unit is LimitUnit.CREDITS else "charge")


def _count(number: Decimal, word: str) -> str:
    return f"{number:f} {word}" if number == 1 else f"{number:f} {word}s"


def key_mismatch(operation: KeyedOperation) -> IdempotencyMismatchError:
    """The key stands for another payload."""
    return IdempotencyMismatchError(
        f"idempotency key {operation.key!r} of organization {operation.organization_id} was used before for another"
        f" {operation.key_kind}: use a new key for a new call.",
        context={
            "organization_id": operation.organization_id,
            "kind": operation.key_kind,
            "idempotency_key": operation.key,
        },
        suggestions=("Use a new idempotency key, or repeat the call with the same arguments.",),
    )


def reservation_not_found(organization_id: str, reservation_id: str) -> ReservationNotFoundError:
    """An unknown id, or another organization's."""
    return ReservationNotFoundError(
        f"organization {organization_id} has no reservation {reservation_id}.",
        context={"organization_id": organization_id, "reservation_id": reservation_id},
    )


def already_settled(hold: HoldState) -> ReservationAlreadySettledError:
    """Committed (with another amount) or released before."""
    how = (
        f"charged {from_micros(hold.charged_micros):f} credits"
        if hold.requested_micros is not None
        else f"{hold.state.value}"
    )
    return ReservationAlreadySettledError(
        f"reservation {hold.id} is already settled: {how}.",
        context={
            "reservation_id": hold.id,
            "state": hold.state.value,
            "charged": from_micros(hold.charged_micros),
            "transaction_id": hold.transaction_id,
        },
    )
