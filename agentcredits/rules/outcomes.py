"""The answer to an operation, and what idempotency keys make of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from agentcredits.errors import (
    CreditsError,
)
from agentcredits.rules import operations as ops
from agentcredits.rules import refusals
from agentcredits.rules.state import (
    AccountState,
    Crossed,
    Denied,
    GrantState,
    HoldState,
    KeyState,
    Ledger,
    LimitState,
    RecurringState,
    Row,
    RunState,
)

Record = AccountState | GrantState | HoldState | LimitState | RecurringState | Row | RunState


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to one operation: the record that it made or found, or the error that refuses it.

    ``crossings`` and ``denials`` are what it brought about beside it; ``unanswered`` are holds that time alone ended
    before it, refused or not, and whose provider's verdict never came. ``undecided``: so much was due that only a part
    of it is booked; the operation itself is to be posted again in the next transaction.
    """

    record: Record | None = None
    error: CreditsError | None = None
    replayed: bool = False
    crossings: tuple[Crossed, ...] = ()
    denials: tuple[Denied, ...] = ()
    unanswered: tuple[HoldState, ...] = ()
    undecided: bool = False


def stored_answer(ledger: Ledger, operation: ops.KeyedOperation) -> KeyState | None:
    """The stored answer of this key, when there is one.

    Raises:
        IdempotencyMismatchError: the key stands for another payload.
    """
    known = ledger.keys.get((operation.key_kind, operation.key))
    if known is not None and known.fingerprint != operation.fingerprint:
        raise refusals.key_mismatch(operation)
    return known


def is_other_call(known: KeyState, operation: ops.KeyedOperation) -> bool:
    """Whether another call stored this answer; not so when our own first try arrived and only its answer was lost."""
    return known.result_id != operation.id


def remember(ledger: Ledger, operation: ops.KeyedOperation, now: datetime) -> None:
    """Let the key stand for what this operation makes."""
    place = (operation.key_kind, operation.key)
    if place in ledger.keys and place not in ledger.changes.new_keys:
        ledger.changes.keys.add(place)
    else:
        ledger.changes.new_keys.add(place)
    ledger.keys[place] = KeyState(*place, operation.fingerprint, operation.id, now)


def known_account(ledger: Ledger) -> AccountState:
    """The account.

    Raises:
        AccountNotFoundError: the organization was never granted anything.
    """
    if ledger.account is None:
        raise refusals.account_not_found(ledger.organization_id)
    return ledger.account
