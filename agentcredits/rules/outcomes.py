"""The answer to an operation."""

from __future__ import annotations

from dataclasses import dataclass

from agentcredits.errors import (
    CreditsError,
)
from agentcredits.rules import refusals
from agentcredits.rules.state import (
    AccountState,
    Crossed,
    Denied,
    GrantState,
    HoldState,
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


def known_account(ledger: Ledger) -> AccountState:
    """The account.

    Raises:
        AccountNotFoundError: the organization was never granted anything.
    """
    if ledger.account is None:
        raise refusals.account_not_found(ledger.organization_id)
    return ledger.account
