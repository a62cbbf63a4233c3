"""The overdraft line: what is charged beyond the grants, and how it is paid back before anything else is spent.

A charge from the line is an allocation without a grant. Paying back moves credits between a grant and the debt: a row
of type ADJUST and amount 0 with two allocations, the first of which pays the second. Nothing that was written before
is changed, and every counter is a sum over allocations.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from agentcredits.model import Allocation, Overage, TransactionType
from agentcredits.rules import burn_down
from agentcredits.rules.entries import ENDED, account_of, book_breakage, end_if_over, next_event, write_row
from agentcredits.rules.state import AccountState, GrantState, Ledger

REPAID = "overdraft paid back"
GIVEN_BACK = "a refund of what was paid back before"


def take(
    account: AccountState, usable: Sequence[GrantState], wanted_micros: int, overage: Overage
) -> tuple[Allocation, ...]:
    """What there is of an amount: from the usable grants in their order, then (OVERDRAFT) from the account's line."""
    part = min(wanted_micros, sum(grant.remaining_micros for grant in usable))
    taken = burn_down.take(usable, part)
    if overage is not Overage.OVERDRAFT:
        return taken
    line = min(wanted_micros - part, account.overdraft_micros - account.overdrawn_micros)
    return (*taken, Allocation(None, line)) if line > 0 else taken


def spend(ledger: Ledger, allocations: Sequence[Allocation]) -> int:
    """Book what was taken on the grants, or as debt; returns micro-credits in all."""
    total = 0
    for allocation in allocations:
        total += allocation.amount_micros
        if allocation.grant_id is None:
            account_of(ledger).overdrawn_micros += allocation.amount_micros
            ledger.changes.standing = True
        else:
            ledger.touch_grant(allocation.grant_id).spent_micros += allocation.amount_micros
    return total


def repay(ledger: Ledger, at: datetime, now: datetime) -> None:
    """Let what is usable ``at`` that moment pay the debt, in burn-down order; then there is no debt, or nothing usable.

    Called after everything that can make credits usable: each operation, and each thing that falls due. Restricted
    grants pay no debt: they are kept for their actions.
    """
    account = account_of(ledger)
    if account.overdrawn_micros <= 0:
        return
    for grant in burn_down.usable_for(ledger.grants.values(), at, None, None):
        part = min(grant.remaining_micros, account.overdrawn_micros)
        if part > 0:
            account.overdrawn_micros -= part
            _move(ledger, grant, part, now, (Allocation(grant.id, part), Allocation(None, part)), REPAID)


def give_back(ledger: Ledger, now: datetime) -> None:
    """A refund gave back more than there is debt: the rest goes to the grants that had paid it, the newest first."""
    account = account_of(ledger)
    if account.overdrawn_micros >= 0:
        return
    payers = sorted((grant for grant in ledger.grants.values() if grant.repaid_micros > 0), key=_age, reverse=True)
    for grant in payers:
        part = min(grant.repaid_micros, -account.overdrawn_micros)
        if part <= 0:
            return
        end_if_over(ledger, grant, now)
        account.overdrawn_micros += part
        _move(ledger, grant, -part, now, (Allocation(None, part), Allocation(grant.id, part)), GIVEN_BACK)
        if grant.status in ENDED:
            book_breakage(ledger, grant, part, now)
        else:
            account.note_due(next_event(grant))


def _move(
    ledger: Ledger,
    grant: GrantState,
    paid_micros: int,
    now: datetime,
    allocations: tuple[Allocation, Allocation],
    reason: str,
) -> None:
    ledger.touch_grant(grant.id)
    grant.spent_micros += paid_micros
    grant.repaid_micros += paid_micros
    ledger.changes.repaid.add(grant.id)
    ledger.changes.standing = True
    write_row(ledger, TransactionType.ADJUST, 0, now, allocations, grant_id=grant.id, reason=reason)


def _age(grant: GrantState) -> tuple[datetime, str]:
    """Since when it could pay."""
    return max(grant.effective_at, grant.created_at), grant.id
