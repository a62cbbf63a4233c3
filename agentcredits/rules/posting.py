"""The rules of the ledger: decide one operation on the loaded state of one account. Pure.

A refusal raises before the first change, so it touches nothing but what was due (``rules.due`` books that first).
README.md beside this file states the rules in words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agentcredits.amounts import MAX_TOTAL_MICROS, from_micros
from agentcredits.errors import (
    CreditsError,
    GrantNotFoundError,
    InvalidAmountError,
    InvalidInputError,
    OverageRejectedError,
    RefundExceedsChargeError,
    ReservationExpiredError,
    ReservationUnknownError,
    TransactionNotFoundError,
)
from agentcredits.model import (
    Allocation,
    GrantCategory,
    GrantStatus,
    Overage,
    Pricing,
    ReservationState,
    TransactionType,
)
from agentcredits.rules import burn_down, refusals
from agentcredits.rules import operations as ops
from agentcredits.rules.entries import (
    ENDED,
    account_of,
    book_breakage,
    end_if_over,
    give_back,
    grant_of,
    next_event,
    write_row,
)
from agentcredits.rules.state import OPEN_STATES, AccountState, GrantState, HoldState, KeyState, Ledger, Row

_GRANT_ROW_TYPE = {
    GrantCategory.PAID: TransactionType.PURCHASE,
    GrantCategory.PROMOTIONAL: TransactionType.CREDIT,
    GrantCategory.PLAN: TransactionType.CREDIT,
    GrantCategory.ADJUSTMENT: TransactionType.ADJUST,
}

Record = AccountState | GrantState | HoldState | Row


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to one operation: the record that it made or found, or the error that refuses it."""

    record: Record | None = None
    error: CreditsError | None = None
    replayed: bool = False


# -- deciding ----------------------------------------------------------------------------------------------------


def decide(ledger: Ledger, operation: ops.Operation, now: datetime) -> Outcome:
    """Answer one operation on the state that its predecessors left; what is due must be booked already."""
    try:
        outcome = _DECIDERS[type(operation)](ledger, operation, now)
    except CreditsError as error:
        return Outcome(error=error)
    if ledger.account is not None and not outcome.replayed:
        ledger.account.last_posted_at = now
    return outcome


def _keyed(ledger: Ledger, operation: ops.KeyedOperation) -> KeyState | None:
    """The stored answer of this key, when there is one.

    Raises:
        IdempotencyMismatchError: the key stands for another payload.
    """
    known = ledger.keys.get((operation.key_kind or "", operation.key))
    if known is not None and known.fingerprint != operation.fingerprint:
        raise refusals.key_mismatch(operation)
    return known


def _is_other_call(known: KeyState, operation: ops.KeyedOperation) -> bool:
    """Whether another call stored this answer; not so when our own first try arrived and only its answer was lost."""
    return known.result_id != operation.id


def _remember(ledger: Ledger, operation: ops.KeyedOperation, now: datetime) -> None:
    place = (operation.key_kind or "", operation.key)
    if place in ledger.keys and place not in ledger.changes.new_keys:
        ledger.changes.keys.add(place)
    else:
        ledger.changes.new_keys.add(place)
    ledger.keys[place] = KeyState(*place, operation.fingerprint, operation.id, now)


def _create_account(ledger: Ledger, operation: ops.CreateAccount, now: datetime) -> Outcome:
    return Outcome(account_of(ledger))


def _grant(ledger: Ledger, operation: ops.Grant, now: datetime) -> Outcome:
    known = _keyed(ledger, operation)
    if known is not None:
        return Outcome(ledger.grants[known.result_id], replayed=_is_other_call(known, operation))
    account = account_of(ledger)
    effective_at = operation.effective_at or now
    if operation.expires_at is not None and operation.expires_at <= max(effective_at, now):
        raise InvalidInputError(
            "expires_at must be later than effective_at and later than now.",
            reason="expires_in_the_past",
            context={"parameter": "expires_at", "expires_at": operation.expires_at, "now": now},
        )
    if account.granted_micros + operation.amount_micros > MAX_TOTAL_MICROS:
        raise InvalidAmountError(
            f"organization {account.organization_id} cannot be granted more than"
            f" {from_micros(MAX_TOTAL_MICROS):,f} credits in all.",
            reason="total_too_large",
        )
    scheduled = effective_at > now
    grant = GrantState(
        id=operation.id,
        status=GrantStatus.SCHEDULED if scheduled else GrantStatus.ACTIVE,
        amount_micros=operation.amount_micros,
        category=operation.category,
        priority=operation.priority,
        effective_at=effective_at,
        created_at=now,
        expires_at=operation.expires_at,
        source=operation.source,
    )
    ledger.grants[grant.id] = grant
    ledger.changes.new_grants.add(grant.id)
    account.granted_micros += grant.amount_micros
    account.scheduled_micros += grant.amount_micros if scheduled else 0
    account.note_due(next_event(grant))
    write_row(
        ledger,
        _GRANT_ROW_TYPE[grant.category],
        grant.amount_micros,
        now,
        (Allocation(grant.id, grant.amount_micros),),
        grant_id=grant.id,
        idempotency_key=operation.key,
        reason=operation.source,
        metadata=operation.metadata_json,
    )
    _remember(ledger, operation, now)
    return Outcome(grant)


def _void_grant(ledger: Ledger, operation: ops.VoidGrant, now: datetime) -> Outcome:
    account = _known_account(ledger)
    grant = ledger.grants.get(operation.grant_id)
    if grant is None:
        raise GrantNotFoundError(
            f"organization {ledger.organization_id} has no grant {operation.grant_id}.",
            context={"grant_id": operation.grant_id},
        )
    end_if_over(ledger, grant, now)
    if grant.status in ENDED:
        return Outcome(grant, replayed=True)
    ledger.touch_grant(grant.id)
    if grant.status is GrantStatus.SCHEDULED:
        account.scheduled_micros -= grant.amount_micros
    grant.status = GrantStatus.VOIDED
    grant.voided_at = now
    amount = grant.remaining_micros
    if amount > 0:
        grant.voided_micros += amount
        account.voided_micros += amount
        write_row(
            ledger,
            TransactionType.ADJUST,
            -amount,
            now,
            (Allocation(grant.id, amount),),
            grant_id=grant.id,
            reason=operation.reason,
        )
    ledger.changes.account = True
    return Outcome(grant)


def _consume(ledger: Ledger, operation: ops.Consume, now: datetime) -> Outcome:
    known = _keyed(ledger, operation)
    if known is not None:
        return Outcome(ledger.rows[known.result_id], replayed=_is_other_call(known, operation))
    account = _known_account(ledger)
    amount = operation.amount_micros
    usable = burn_down.usable(ledger.grants.values(), now) if amount else []
    room = sum(grant.remaining_micros for grant in usable)
    if amount > room:
        if operation.overage is Overage.REJECT:
            raise refusals.insufficient(account, room, amount, operation.activity)
        charged = room
    else:
        charged = amount
    allocations = burn_down.take(usable, charged)
    for allocation in allocations:
        ledger.touch_grant(grant_of(allocation)).spent_micros += allocation.amount_micros
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
        pricing=activity.pricing,
        dimensions=activity.dimensions_json,
        metadata=activity.metadata_json,
    )
    _remember(ledger, operation, now)
    return Outcome(row)


def _reserve(ledger: Ledger, operation: ops.Reserve, now: datetime) -> Outcome:
    known = _keyed(ledger, operation)
    if known is not None:
        hold = ledger.holds[known.result_id]
        # A key belongs to a living attempt: after RELEASED or EXPIRED the same key makes a new hold.
        if hold.state in OPEN_STATES or _is_charged(hold):
            return Outcome(hold, replayed=_is_other_call(known, operation))
    account = _known_account(ledger)
    amount = operation.amount_micros
    usable = burn_down.usable(ledger.grants.values(), now) if amount else []
    room = sum(grant.remaining_micros for grant in usable)
    if amount > room:
        raise refusals.insufficient(account, room, amount, operation.activity)
    allocations = burn_down.take(usable, amount)
    for allocation in allocations:
        ledger.touch_grant(grant_of(allocation)).held_micros += allocation.amount_micros
    account.reserved_micros += amount
    activity = operation.activity
    hold = HoldState(
        id=operation.id,
        state=ReservationState.ACTIVE,
        amount_micros=amount,
        allocations=allocations,
        created_at=now,
        expires_at=now + operation.ttl,
        idempotency_key=operation.key,
        pricing=activity.pricing,
        agent_type=activity.agent_type,
        action=activity.action,
        quantity=activity.quantity,
        project_id=activity.scopes.project_id,
        department_id=activity.scopes.department_id,
        user_id=activity.scopes.user_id,
        request_id=activity.scopes.request_id,
        run_id=activity.scopes.run_id,
        dimensions=activity.dimensions_json,
        metadata=activity.metadata_json,
    )
    ledger.holds[hold.id] = hold
    ledger.changes.new_holds.add(hold.id)
    account.note_due(hold.expires_at)
    ledger.changes.account = True
    _remember(ledger, operation, now)
    return Outcome(hold)


def _commit(ledger: Ledger, operation: ops.Commit, now: datetime) -> Outcome:
    hold = _known_hold(ledger, operation.reservation_id)
    requested = hold.amount_micros if operation.amount_micros is None else operation.amount_micros
    if operation.automatic and _is_left_alone(hold):
        return Outcome(hold, replayed=True)
    if _is_charged(hold):
        if hold.requested_micros == requested:
            return Outcome(hold, replayed=hold.transaction_id != operation.transaction_id)
        raise refusals.already_settled(hold)
    if hold.state is ReservationState.RELEASED:
        raise refusals.already_settled(hold)
    late = hold.state is ReservationState.EXPIRED
    if late and not operation.late and now >= hold.expires_at + operation.grace:
        raise ReservationExpiredError(
            f"reservation {hold.id} expired at {hold.expires_at.isoformat()}; its"
            f" {from_micros(hold.amount_micros):f} credits went back.",
            context={"reservation_id": hold.id, "expires_at": hold.expires_at},
            suggestions=("Reserve again, or pass a longer ttl.",),
        )
    if requested > hold.amount_micros and operation.overage is Overage.REJECT:
        raise OverageRejectedError(
            f"reservation {hold.id} holds {from_micros(hold.amount_micros):f} credits, the commit asks for"
            f" {from_micros(requested):f}; the hold stays.",
            context={
                "reservation_id": hold.id,
                "reserved": from_micros(hold.amount_micros),
                "requested": from_micros(requested),
            },
            suggestions=('Commit at most the reserved amount, or pass overage="cap".',),
            fixes=({"param": "amount", "value": from_micros(hold.amount_micros)},),
        )
    _settle(ledger, operation, hold, requested, late, now)
    return Outcome(hold)


def _settle(ledger: Ledger, operation: ops.Commit, hold: HoldState, requested: int, late: bool, now: datetime) -> None:
    """Charge ``requested``: first from the hold, then (CAP) from what is available; the rest stays uncollected."""
    account = account_of(ledger)
    held = () if late else hold.allocations
    used, rest = burn_down.split(held, requested)
    charged = sum(allocation.amount_micros for allocation in used)
    for allocation in used:
        grant = ledger.touch_grant(grant_of(allocation))
        grant.held_micros -= allocation.amount_micros
        grant.spent_micros += allocation.amount_micros
        account.reserved_micros -= allocation.amount_micros
    extra: tuple[Allocation, ...] = ()
    if requested > charged:
        usable = burn_down.usable(ledger.grants.values(), now)
        room = sum(grant.remaining_micros for grant in usable)
        extra = burn_down.take(usable, min(requested - charged, room))
        for allocation in extra:
            ledger.touch_grant(grant_of(allocation)).spent_micros += allocation.amount_micros
            charged += allocation.amount_micros
    account.spent_micros += charged
    ledger.changes.account = True
    ledger.touch_hold(hold)
    if requested > 0 or hold.pricing is not Pricing.PRICED:
        row = write_row(
            ledger,
            TransactionType.DEBIT,
            -charged,
            now,
            _merge((*used, *extra)),
            id=operation.transaction_id,
            agent_type=hold.agent_type,
            action=hold.action,
            quantity=hold.quantity,
            project_id=hold.project_id,
            department_id=hold.department_id,
            user_id=hold.user_id,
            run_id=hold.run_id,
            request_id=hold.request_id,
            reservation_id=hold.id,
            idempotency_key=hold.idempotency_key,
            uncollected_micros=requested - charged,
            pricing=hold.pricing,
            late=late,
            dimensions=hold.dimensions,
            metadata=operation.metadata_json or hold.metadata,
        )
        hold.transaction_id = row.id
    hold.requested_micros = requested
    hold.charged_micros = charged
    hold.uncollected_micros = requested - charged
    hold.settled_at = now
    hold.late = late
    if not late:
        # A late settlement leaves the state EXPIRED: that the hold ran out stays a fact of the ledger.
        hold.state = ReservationState.COMMITTED
    give_back(ledger, hold, rest, now)


def _release(ledger: Ledger, operation: ops.Release, now: datetime) -> Outcome:
    hold = _known_hold(ledger, operation.reservation_id)
    if operation.automatic and _is_left_alone(hold):
        return Outcome(hold, replayed=True)
    if _is_charged(hold):
        raise refusals.already_settled(hold)
    if hold.state not in OPEN_STATES:
        return Outcome(hold, replayed=True)
    give_back(ledger, hold, tuple(reversed(hold.allocations)), now)
    ledger.touch_hold(hold)
    hold.state = ReservationState.RELEASED
    hold.settled_at = now
    hold.reason = operation.reason
    return Outcome(hold)


def _extend(ledger: Ledger, operation: ops.Extend, now: datetime) -> Outcome:
    hold = _living_hold(ledger, operation.reservation_id)
    if hold.state is ReservationState.UNKNOWN:
        raise ReservationUnknownError(
            f"reservation {hold.id} awaits the verdict of {hold.provider}: commit or release it instead.",
            context={"reservation_id": hold.id},
        )
    ledger.touch_hold(hold)
    hold.expires_at = now + operation.ttl
    account_of(ledger).note_due(hold.expires_at)
    ledger.changes.account = True
    return Outcome(hold)


def _mark_unknown(ledger: Ledger, operation: ops.MarkUnknown, now: datetime) -> Outcome:
    hold = _living_hold(ledger, operation.reservation_id)
    if hold.state is ReservationState.UNKNOWN:
        return Outcome(hold, replayed=True)
    ledger.touch_hold(hold)
    hold.state = ReservationState.UNKNOWN
    hold.provider = operation.provider
    hold.provider_reference = operation.provider_reference
    hold.expires_at = now + operation.ttl
    account_of(ledger).note_due(hold.expires_at)
    ledger.changes.account = True
    return Outcome(hold)


def _refund(ledger: Ledger, operation: ops.Refund, now: datetime) -> Outcome:
    known = _keyed(ledger, operation)
    if known is not None:
        return Outcome(ledger.rows[known.result_id], replayed=_is_other_call(known, operation))
    account = _known_account(ledger)
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
    allocations = _newest_first(charge, earlier, amount)
    for allocation in allocations:
        end_if_over(ledger, ledger.grants[grant_of(allocation)], now)
    account.spent_micros -= amount
    for allocation in allocations:
        ledger.touch_grant(grant_of(allocation)).spent_micros -= allocation.amount_micros
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
    ledger.refunds.setdefault(charge.id, []).append(row)
    for allocation in allocations:
        grant = ledger.grants[grant_of(allocation)]
        if grant.status in ENDED:
            book_breakage(ledger, grant, allocation.amount_micros, now)
        else:
            account.note_due(next_event(grant))
    _remember(ledger, operation, now)
    return Outcome(row)


def _expire(ledger: Ledger, operation: ops.Expire, now: datetime) -> Outcome:
    return Outcome(_known_account(ledger))


_DECIDERS: dict[type[ops.Operation], Callable[[Ledger, Any, datetime], Outcome]] = {
    ops.CreateAccount: _create_account,
    ops.Grant: _grant,
    ops.VoidGrant: _void_grant,
    ops.Consume: _consume,
    ops.Reserve: _reserve,
    ops.Commit: _commit,
    ops.Release: _release,
    ops.Extend: _extend,
    ops.MarkUnknown: _mark_unknown,
    ops.Refund: _refund,
    ops.Expire: _expire,
}


# -- helpers -----------------------------------------------------------------------------------------------------


def _known_account(ledger: Ledger) -> AccountState:
    if ledger.account is None:
        raise refusals.account_not_found(ledger.organization_id)
    return ledger.account


def _known_hold(ledger: Ledger, reservation_id: str) -> HoldState:
    hold = ledger.holds.get(reservation_id)
    if hold is None:
        raise refusals.reservation_not_found(ledger.organization_id, reservation_id)
    return hold


def _living_hold(ledger: Ledger, reservation_id: str) -> HoldState:
    hold = _known_hold(ledger, reservation_id)
    if _is_charged(hold) or hold.state is ReservationState.RELEASED:
        raise refusals.already_settled(hold)
    if hold.state is ReservationState.EXPIRED:
        raise ReservationExpiredError(
            f"reservation {hold.id} expired at {hold.expires_at.isoformat()}.",
            context={"reservation_id": hold.id, "expires_at": hold.expires_at},
        )
    return hold


def _is_charged(hold: HoldState) -> bool:
    """Committed, in time or late (a late settlement leaves the state EXPIRED)."""
    return hold.requested_micros is not None


def _is_left_alone(hold: HoldState) -> bool:
    """What the end of a block finds settled already, or handed over to wait for the provider's verdict."""
    return _is_charged(hold) or hold.state in (ReservationState.RELEASED, ReservationState.UNKNOWN)


def _merge(allocations: tuple[Allocation, ...]) -> tuple[Allocation, ...]:
    """Neighbouring parts of the same grant as one."""
    merged: list[Allocation] = []
    for allocation in allocations:
        if merged and merged[-1].grant_id == allocation.grant_id:
            merged[-1] = Allocation(allocation.grant_id, merged[-1].amount_micros + allocation.amount_micros)
        else:
            merged.append(allocation)
    return tuple(merged)


def _newest_first(charge: Row, earlier: list[Row], amount_micros: int) -> tuple[Allocation, ...]:
    """What a refund gives back to which grant: the charge's last allocation first, less earlier refunds."""
    returned: dict[str | None, int] = {}
    for row in earlier:
        for allocation in row.allocations:
            returned[allocation.grant_id] = returned.get(allocation.grant_id, 0) + allocation.amount_micros
    parts: list[Allocation] = []
    missing = amount_micros
    for allocation in reversed(charge.allocations):
        already = min(returned.get(allocation.grant_id, 0), allocation.amount_micros)
        if already:
            returned[allocation.grant_id] -= already
        part = min(missing, allocation.amount_micros - already)
        if part > 0:
            parts.append(Allocation(allocation.grant_id, part))
            missing -= part
    return _merge(tuple(parts))
