"""Charges that differ in nothing but id, key and amount, decided together: the answers of ``rules.charges`` to each in
turn, in a quarter of the time.

That is what a busy account gets: the same action for the same owner, many times in one batch. Only charges in whose way
nothing can stand are taken: one grant pays for all of them, no limit refuses or warns before the last of them, nothing
is done in a run, no key is known. Whatever else there is, is left to the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import islice

from agentcredits.model import AccountStatus, Allocation, LimitUnit, TransactionType
from agentcredits.rules import limits
from agentcredits.rules import operations as ops
from agentcredits.rules.burn_down import usable_for
from agentcredits.rules.outcomes import Outcome
from agentcredits.rules.state import GrantState, KeyState, Ledger, Row


def consume(ledger: Ledger, operations: Sequence[ops.Operation], start: int, now: datetime) -> list[Outcome]:
    """Decide the operations from ``start`` on, as far as they are plain charges like the first; none: nothing changed.

    Args:
        ledger: The account; what is due must be booked already.
        operations: A batch for it.
        start: The first that has no answer.
        now: The batch's moment.
    """
    account, first, kind = ledger.account, operations[start], ops.Consume.key_kind
    if account is None or account.status is not AccountStatus.OPEN:
        return []
    if not isinstance(first, ops.Consume) or first.would_refuse is not None or first.amount_micros <= 0:
        return []
    if first.activity.scopes.run_id is not None or (kind, first.key) in ledger.keys:
        return []
    activity = first.activity
    names = limits.names_of_activity(activity)
    grants = usable_for(ledger.grants.values(), now, activity.agent_type, activity.action)
    counters = limits.of_spending(ledger, activity, now)
    room = _room(grants, counters, now)
    if room is None:
        return []
    micros, count = room
    grant = grants[0]
    keys, rows, new_keys, new_rows = ledger.keys, ledger.rows, ledger.changes.new_keys, ledger.changes.rows
    seq, balance = account.last_seq, account.ledger_balance_micros
    spent = each = 0
    told: tuple[Allocation, ...] = ()
    outcomes: list[Outcome] = []
    for operation in islice(operations, start, start + count):
        if not isinstance(operation, ops.Consume) or operation.would_refuse is not None:
            break
        amount, activity, place = operation.amount_micros, operation.activity, (kind, operation.key)
        if amount <= 0 or spent + amount > micros or place in keys:
            break
        if activity is not first.activity and limits.names_of_activity(activity) != names:
            break
        spent += amount
        seq += 1
        if amount != each:
            each = amount
            told = (Allocation(grant.id, amount, grant.category, grant.unit_cost, grant.currency),)
        scopes = activity.scopes
        row = Row(
            id=operation.id,
            seq=seq,
            type=TransactionType.DEBIT,
            amount_micros=-amount,
            balance_after_micros=balance - spent,
            created_at=now,
            allocations=told,
            agent_type=activity.agent_type,
            action=activity.action,
            quantity=activity.quantity,
            project_id=scopes.project_id,
            department_id=scopes.department_id,
            idempotency_key=operation.key,
            pricing=activity.pricing,
            user_id=scopes.user_id,
            request_id=scopes.request_id,
            dimensions=activity.dimensions_json,
            metadata=activity.metadata_json,
        )
        rows[row.id] = row
        new_rows.append(row)
        keys[place] = KeyState(kind, operation.key, operation.fingerprint, operation.id, now)
        new_keys.add(place)
        outcomes.append(Outcome(row))
    if not outcomes:
        return outcomes
    account.last_seq, account.last_posted_at = seq, now
    account.spent_micros += spent
    ledger.changes.account = True
    ledger.touch_grant(grant.id).spent_micros += spent
    for counter in counters:
        counter.usage.spent += spent if counter.limit.unit is LimitUnit.CREDITS else len(outcomes)
        ledger.touch_usage(counter.usage)
    return outcomes


def _room(grants: Sequence[GrantState], counters: Sequence[limits.Counter], now: datetime) -> tuple[int, int] | None:
    """How many micro-credits and how many charges pass before anything but the first grant and the counters has a say;
    None: not one.
    """
    if not grants:
        return None
    micros, count = grants[0].remaining_micros, _ANY
    for counter in counters:
        if counter.limit.unusable is not None or not counter.counts(now):
            return None
        quiet = limits.quiet(counter)
        if counter.limit.unit is LimitUnit.CREDITS:
            micros = min(micros, quiet)
        else:
            count = min(count, quiet)
    return (micros, count) if micros > 0 and count > 0 else None


#: More than a batch has.
_ANY = 1 << 30
