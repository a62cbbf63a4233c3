"""The rules of the ledger: decide one operation on the loaded state of one account. Pure.

A refusal raises before the first change, so it touches nothing but what was due (``rules.due`` books that first).
README.md beside this file states the rules in words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from agentcredits.errors import CreditsError
from agentcredits.rules import accounts, alike, charges, grants, holds, limits, overdraft, recurring, runs
from agentcredits.rules import operations as ops
from agentcredits.rules.entries import account_of
from agentcredits.rules.outcomes import Outcome, known_account
from agentcredits.rules.state import Ledger


def decide_next(ledger: Ledger, operations: Sequence[ops.Operation], start: int, now: datetime) -> list[Outcome]:
    """Answer the operation at ``start``, and those after it that are decided with it."""
    together = _TOGETHER.get(type(operations[start]))
    outcomes = [] if together is None else together(ledger, operations, start, now)
    return outcomes or [decide(ledger, operations[start], now)]


def decide(ledger: Ledger, operation: ops.Operation, now: datetime) -> Outcome:
    """Answer one operation on the state that its predecessors left; what is due must be booked already."""
    changes = ledger.changes
    before = len(changes.crossings), len(changes.denials)
    try:
        outcome = _DECIDERS[type(operation)](ledger, operation, now)
    except CreditsError as error:
        return Outcome(error=error)
    crossings, denials = tuple(changes.crossings[before[0] :]), tuple(changes.denials[before[1] :])
    if crossings or denials:
        outcome = replace(outcome, crossings=crossings, denials=denials)
    if not outcome.replayed:
        overdraft.repay(ledger, now, now)
        if changes.account:
            account_of(ledger).last_posted_at = now
    return outcome


def _expire(ledger: Ledger, operation: ops.Expire, now: datetime) -> Outcome:
    account = known_account(ledger)
    account.last_posted_at = now
    return Outcome(account)


_TOGETHER: dict[type[ops.Operation], Callable[[Ledger, Sequence[ops.Operation], int, datetime], list[Outcome]]] = {
    ops.Consume: alike.consume,
    ops.Reserve: alike.reserve,
    ops.Commit: alike.commit,
}

_DECIDERS: dict[type[ops.Operation], Callable[[Ledger, Any, datetime], Outcome]] = {
    ops.CreateAccount: grants.create_account,
    ops.Grant: grants.grant,
    ops.VoidGrant: grants.void_grant,
    ops.Consume: charges.consume,
    ops.Reserve: holds.reserve,
    ops.Commit: holds.commit,
    ops.Release: holds.release,
    ops.Extend: holds.extend,
    ops.MarkUnknown: holds.mark_unknown,
    ops.Refund: charges.refund,
    ops.Adjust: grants.adjust,
    ops.SetStatus: accounts.set_status,
    ops.SetOverdraft: accounts.set_overdraft,
    ops.CreateRecurring: recurring.create,
    ops.CancelRecurring: recurring.cancel,
    ops.SetLimit: limits.set_limit,
    ops.RemoveLimit: limits.remove_limit,
    ops.OpenRun: runs.open_run,
    ops.EndRun: runs.end_run,
    ops.Expire: _expire,
}

__all__ = ["Outcome", "decide", "decide_next"]
