"""Charges, holds and settlements that differ in nothing but ids, keys and amounts, decided together: the answers of
``rules.charges`` and ``rules.holds`` to each in turn, in a quarter of the time.

That is what a busy account gets: the same action for the same owner, many times in one batch. Only those are taken in
whose way nothing can stand: one grant pays for all of them, no limit refuses or warns before the last, nothing is done
in a run, no key is known. Whatever else there is, is left to the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import islice
from typing import Final, TypeVar

from agentcredits.amounts import MAX_TOTAL_MICROS
from agentcredits.model import AccountStatus, Allocation, LimitUnit, ReservationState, TransactionType
from agentcredits.rules import limits
from agentcredits.rules import operations as ops
from agentcredits.rules.burn_down import usable_for
from agentcredits.rules.entries import account_of
from agentcredits.rules.keys import is_known, remember
from agentcredits.rules.limits import Counter
from agentcredits.rules.outcomes import Outcome
from agentcredits.rules.state import GrantState, HoldState, Ledger, Row

S = TypeVar("S", bound=ops.Spending)

#: Operations that one batch never has.
_ANY: Final = 1 << 30


def consume(ledger: Ledger, operations: Sequence[ops.Operation], start: int, now: datetime) -> list[Outcome]:
    """Decide the operations from ``start`` on, as far as they are plain charges like the first; none: nothing changed.

    Args:
        ledger: The account; what is due must be booked already.
        operations: A batch for it.
        start: The first that has no answer; a charge.
        now: The batch's moment.
    """
    found = _plain(ops.Consume, ledger, operations, start, now, _left_quietly)
    if found is None:
        return []
    alike, grant, counters = found
    account = account_of(ledger)
    seq, balance, spent = account.last_seq, account.ledger_balance_micros, 0
    parts = _Parts(grant)
    outcomes: list[Outcome] = []
    for operation in alike:
        amount, activity = operation.amount_micros, operation.activity
        spent += amount
        seq += 1
        scopes = activity.scopes
        row = Row(
            id=operation.id,
            seq=seq,
            type=TransactionType.DEBIT,
            amount_micros=-amount,
            balance_after_micros=balance - spent,
            created_at=now,
            allocations=parts.told(amount),
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
        ledger.rows[row.id] = row
        ledger.changes.rows.append(row)
        remember(ledger, operation, now)
        outcomes.append(Outcome(row))
    account.last_seq = seq
    account.spent_micros += spent
    ledger.touch_grant(grant.id).spent_micros += spent
    _count(ledger, counters, spent, len(outcomes))
    return _posted(ledger, outcomes, now)


def reserve(ledger: Ledger, operations: Sequence[ops.Operation], start: int, now: datetime) -> list[Outcome]:
    """The same for holds."""
    found = _plain(ops.Reserve, ledger, operations, start, now, limits.left)
    if found is None:
        return []
    alike, grant, counters = found
    account, counted = account_of(ledger), tuple(counter.limit.id for counter in counters)
    parts = _Parts(grant)
    held = 0
    outcomes: list[Outcome] = []
    for operation in alike:
        amount, activity = operation.amount_micros, operation.activity
        held += amount
        scopes = activity.scopes
        hold = HoldState(
            id=operation.id,
            state=ReservationState.ACTIVE,
            amount_micros=amount,
            allocations=parts.plain(amount),
            created_at=now,
            expires_at=now + operation.ttl,
            idempotency_key=operation.key,
            pricing=activity.pricing,
            agent_type=activity.agent_type,
            action=activity.action,
            quantity=activity.quantity,
            project_id=scopes.project_id,
            department_id=scopes.department_id,
            user_id=scopes.user_id,
            request_id=scopes.request_id,
            dimensions=activity.dimensions_json,
            metadata=activity.metadata_json,
            limits=counted,
        )
        ledger.holds[hold.id] = hold
        ledger.changes.new_holds.add(hold.id)
        account.note_due(hold.expires_at)
        remember(ledger, operation, now)
        outcomes.append(Outcome(hold))
    account.reserved_micros += held
    ledger.touch_grant(grant.id).held_micros += held
    for counter in counters:
        counter.usage.held += held if counter.limit.unit is LimitUnit.CREDITS else len(outcomes)
        ledger.touch_usage(counter.usage)
    return _posted(ledger, outcomes, now)


def commit(ledger: Ledger, operations: Sequence[ops.Operation], start: int, now: datetime) -> list[Outcome]:
    """The same for settlements of what is held, to the full amount."""
    first = _whole(ledger, operations[start])
    if first is None:
        return []
    names, (part,) = limits.names_of_record(first), first.allocations
    grant = ledger.grants.get(part.grant_id or "")
    counters = limits.counters_of_record(ledger, first, now)
    room = _least(counters, limits.quiet)
    if grant is None or room is None:
        return []
    account = account_of(ledger)
    seq, balance, spent = account.last_seq, account.ledger_balance_micros, 0
    parts = _Parts(grant)
    outcomes: list[Outcome] = []
    for operation in islice(operations, start, start + room[1]):
        hold = _whole(ledger, operation)
        if hold is None or not isinstance(operation, ops.Commit) or spent + hold.amount_micros > room[0]:
            break
        if hold.allocations[0].grant_id != grant.id:
            break
        if hold is not first and (limits.names_of_record(hold) != names or hold.limits != first.limits):
            break
        amount = hold.amount_micros
        spent += amount
        seq += 1
        row = Row(
            id=operation.transaction_id,
            seq=seq,
            type=TransactionType.DEBIT,
            amount_micros=-amount,
            balance_after_micros=balance - spent,
            created_at=now,
            allocations=parts.told(amount),
            agent_type=hold.agent_type,
            action=hold.action,
            quantity=hold.quantity,
            project_id=hold.project_id,
            department_id=hold.department_id,
            user_id=hold.user_id,
            request_id=hold.request_id,
            reservation_id=hold.id,
            idempotency_key=hold.idempotency_key,
            pricing=hold.pricing,
            dimensions=hold.dimensions,
            metadata=operation.metadata_json or hold.metadata,
        )
        ledger.rows[row.id] = row
        ledger.changes.rows.append(row)
        ledger.touch_hold(hold)
        hold.state = ReservationState.COMMITTED
        hold.requested_micros = hold.charged_micros = amount
        hold.uncollected_micros = 0
        hold.transaction_id, hold.settled_at, hold.late = row.id, now, False
        outcomes.append(Outcome(hold))
    if not outcomes:
        return outcomes
    account.last_seq = seq
    account.spent_micros += spent
    account.reserved_micros -= spent
    ledger.touch_grant(grant.id).spent_micros += spent
    grant.held_micros -= spent
    limits.let_go(ledger, first, spent, len(outcomes))
    _count(ledger, counters, spent, len(outcomes))
    return _posted(ledger, outcomes, now)


def _left_quietly(counter: Counter) -> int:
    return min(limits.left(counter), limits.quiet(counter))


def _plain(
    kind: type[S],
    ledger: Ledger,
    operations: Sequence[ops.Operation],
    start: int,
    now: datetime,
    room_in: Callable[[Counter], int],
) -> tuple[list[S], GrantState, list[Counter]] | None:
    """The operations that are like the first, the grant that pays for them, and the counters that they move."""
    account, first = ledger.account, operations[start]
    if account is None or account.status is not AccountStatus.OPEN or not isinstance(first, kind):
        return None
    activity = first.activity
    if first.would_refuse is not None or first.amount_micros <= 0 or activity.scopes.run_id is not None:
        return None
    if is_known(ledger, first):
        return None
    grants = usable_for(ledger.grants.values(), now, activity.agent_type, activity.action)
    counters = limits.of_spending(ledger, activity, now)
    room = _least(counters, room_in)
    if not grants or room is None:
        return None
    micros, count = min(grants[0].remaining_micros, room[0]), room[1]
    names, taken = limits.names_of_activity(activity), 0
    keys: set[str] = set()
    alike: list[S] = []
    for operation in islice(operations, start, start + count):
        if not isinstance(operation, kind):
            break
        amount, key = operation.amount_micros, operation.key
        taken += amount
        if amount <= 0 or taken > micros or operation.would_refuse is not None:
            break
        if key in keys or is_known(ledger, operation):
            break
        if operation.activity is not activity and limits.names_of_activity(operation.activity) != names:
            break
        keys.add(key)
        alike.append(operation)
    return (alike, grants[0], counters) if alike else None


def _whole(ledger: Ledger, operation: ops.Operation) -> HoldState | None:
    """The living hold of one grant that this operation settles to the full amount; None: it is something else."""
    if not isinstance(operation, ops.Commit):
        return None
    hold = ledger.holds.get(operation.reservation_id)
    if hold is None or hold.state is not ReservationState.ACTIVE or hold.run_id is not None:
        return None
    whole = operation.amount_micros in (None, hold.amount_micros)
    return hold if whole and len(hold.allocations) == 1 else None


def _least(counters: Sequence[Counter], room_in: Callable[[Counter], int]) -> tuple[int, int] | None:
    """How many micro-credits and how many operations pass before any counter has a say; None: one cannot be read."""
    micros, count = MAX_TOTAL_MICROS, _ANY
    for counter in counters:
        if counter.limit.unusable is not None:
            return None
        if counter.limit.unit is LimitUnit.CREDITS:
            micros = min(micros, room_in(counter))
        else:
            count = min(count, room_in(counter))
    return micros, count


def _count(ledger: Ledger, counters: Sequence[Counter], spent: int, count: int) -> None:
    for counter in counters:
        counter.usage.spent += spent if counter.limit.unit is LimitUnit.CREDITS else count
        ledger.touch_usage(counter.usage)


def _posted(ledger: Ledger, outcomes: list[Outcome], now: datetime) -> list[Outcome]:
    account_of(ledger).last_posted_at = now
    ledger.changes.account = True
    return outcomes


class _Parts:
    """The one part that an amount is taken in; made once for equal amounts."""

    def __init__(self, grant: GrantState) -> None:
        self._grant = grant
        self._told: tuple[Allocation, ...] = ()
        self._plain: tuple[Allocation, ...] = ()

    def told(self, amount_micros: int) -> tuple[Allocation, ...]:
        """With what the grant says of it, as ledger rows have it."""
        if not self._told or self._told[0].amount_micros != amount_micros:
            grant = self._grant
            self._told = (Allocation(grant.id, amount_micros, grant.category, grant.unit_cost, grant.currency),)
        return self._told

    def plain(self, amount_micros: int) -> tuple[Allocation, ...]:
        """As holds have it."""
        if not self._plain or self._plain[0].amount_micros != amount_micros:
            self._plain = (Allocation(self._grant.id, amount_micros),)
        return self._plain
