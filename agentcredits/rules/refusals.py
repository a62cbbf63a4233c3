"""The refusals that carry numbers: one place for each sentence."""

from __future__ import annotations

from agentcredits.amounts import from_micros
from agentcredits.errors import (
    AccountNotFoundError,
    IdempotencyMismatchError,
    InsufficientCreditsError,
    ReservationAlreadySettledError,
    ReservationNotFoundError,
)
from agentcredits.rules.operations import Activity, KeyedOperation
from agentcredits.rules.state import AccountState, HoldState


def account_not_found(organization_id: str) -> AccountNotFoundError:
    """The organization was never granted anything."""
    return AccountNotFoundError(
        f"organization {organization_id} has no credit account: grant credits first.",
        context={"organization_id": organization_id},
        suggestions=(f"Grant credits first, for example: agentcredits grant {organization_id} 100",),
    )


def insufficient(
    account: AccountState, available_micros: int, required_micros: int, activity: Activity
) -> InsufficientCreditsError:
    """Not enough credits; tells apart an empty account from one whose credits are only held at the moment."""
    what = activity.action or "the charge"
    short = required_micros - available_micros
    held_in_the_way = available_micros + account.reserved_micros >= required_micros
    available, required, shortfall = (from_micros(micros) for micros in (available_micros, required_micros, short))
    message = (
        f"organization {account.organization_id} has {available:f} credits available, {what} needs {required:f};"
        f" short by {shortfall:f}."
    )
    suggestions: tuple[str, ...]
    if held_in_the_way:
        suggestions = (
            f"{from_micros(account.reserved_micros):f} credits are held by work that is still running:"
            " wait until it ends, then try again.",
        )
    else:
        suggestions = (f"Add at least {shortfall:f} credits to organization {account.organization_id}.",)
    if available_micros > 0:
        suggestions += ("Choose a smaller or cheaper action.",)
    return InsufficientCreditsError(
        message,
        reason="credits_held" if held_in_the_way else "insufficient_credits",
        retryable=held_in_the_way,
        context={
            "organization_id": account.organization_id,
            "agent_type": activity.agent_type,
            "action": activity.action,
            "available": available,
            "required": required,
            "shortfall": shortfall,
            "reserved": from_micros(account.reserved_micros),
        },
        suggestions=suggestions,
        fixes=() if held_in_the_way else ({"action": "add_credits", "amount": shortfall},),
    )


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
