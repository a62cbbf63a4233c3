"""An account's status and its overdraft line, as an operator sets them."""

from __future__ import annotations

from datetime import datetime

from agentcredits.model import AccountStatus
from agentcredits.rules import operations as ops
from agentcredits.rules import refusals
from agentcredits.rules.entries import cancel_recurring, note_next_refill
from agentcredits.rules.outcomes import Outcome, known_account
from agentcredits.rules.state import AccountState, Ledger


def refuse_unless_open(account: AccountState) -> None:
    """Nothing new is charged to, or held of, an account that is frozen or closed.

    Raises:
        AccountFrozenError: it is frozen.
        AccountClosedError: it is closed.
    """
    if account.status is not AccountStatus.OPEN:
        raise refusals.account_not_open(account)


def refuse_if_closed(account: AccountState) -> None:
    """Nothing is granted to a closed account.

    Raises:
        AccountClosedError: it is closed.
    """
    if account.status is AccountStatus.CLOSED:
        raise refusals.account_not_open(account)


def set_status(ledger: Ledger, operation: ops.SetStatus, now: datetime) -> Outcome:
    """Freeze, unfreeze, close, reopen. An account that is there already keeps its reason, and who gave it when.

    Closing cancels what would be granted again: all active recurring grants must be loaded.
    """
    account = known_account(ledger)
    if account.status is not operation.status and account.status not in operation.before:
        raise refusals.account_not_open(account)
    # The answer is as of now, also where nothing changes.
    account.last_posted_at = now
    if account.status is operation.status:
        return Outcome(account, replayed=True)
    account.status = operation.status
    account.status_reason, account.status_by, account.status_at = operation.reason, operation.by, now
    if account.status is AccountStatus.CLOSED:
        for recurring in ledger.recurring.values():
            if recurring.is_active:
                cancel_recurring(ledger, recurring, now)
        note_next_refill(ledger)
    ledger.changes.account = ledger.changes.standing = True
    return Outcome(account)


def set_overdraft(ledger: Ledger, operation: ops.SetOverdraft, now: datetime) -> Outcome:
    """Set the line; a line below the debt takes nothing back, it only lends no more."""
    account = known_account(ledger)
    account.last_posted_at = now
    if account.overdraft_micros == operation.amount_micros:
        return Outcome(account, replayed=True)
    account.overdraft_micros = operation.amount_micros
    ledger.changes.account = ledger.changes.standing = True
    return Outcome(account)
