"""Reservations: held, settled, given back, prolonged."""

from __future__ import annotations

from datetime import datetime

from agentcredits.amounts import from_micros
from agentcredits.errors import (
    OverageRejectedError,
    ReservationExpiredError,
    ReservationUnknownError,
)
from agentcredits.model import (
    Allocation,
    Overage,
    Pricing,
    ReservationState,
    TransactionType,
)
from agentcredits.rules import burn_down, limits, overdraft, refusals, runs
from agentcredits.rules import operations as ops
from agentcredits.rules.charges import admit, merge, refuse_unpriced, usable_by
from agentcredits.rules.entries import (
    account_of,
    give_back,
    grant_of,
    write_row,
)
from agentcredits.rules.keys import is_other_call, remember, stored_answer
from agentcredits.rules.outcomes import Outcome, known_account
from agentcredits.rules.state import OPEN_STATES, HoldState, Ledger


def reserve(ledger: Ledger, operation: ops.Reserve, now: datetime) -> Outcome:
    """Hold an amount, in burn-down order; the hold remembers what it took from each grant."""
    known = stored_answer(ledger, operation)
    if known is not None:
        hold = ledger.holds[known.result_id]
        # A key belongs to a living attempt: after RELEASED or EXPIRED the same key makes a new hold.
        if hold.state in OPEN_STATES or _is_charged(hold):
            return Outcome(hold, replayed=is_other_call(known, operation))
        if not is_other_call(known, operation):
            raise _ended_unseen(hold)
    refuse_unpriced(operation)
    account = known_account(ledger)
    amount = operation.amount_micros
    usable = usable_by(ledger, operation.activity, now) if amount else []
    counters = limits.of_spending(ledger, operation.activity, now)
    pool = runs.of_spending(ledger, operation.activity, now)
    observed = admit(ledger, operation, counters, pool, usable, now)
    allocations = () if observed else burn_down.take(usable, amount)
    held = sum(allocation.amount_micros for allocation in allocations)
    for allocation in allocations:
        ledger.touch_grant(grant_of(allocation)).held_micros += allocation.amount_micros
    account.reserved_micros += held
    activity = operation.activity
    hold = HoldState(
        id=operation.id,
        state=ReservationState.ACTIVE,
        amount_micros=held,
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
        observed=observed,
        uncollected_micros=amount - held,
    )
    if not observed:
        limits.keep(ledger, counters)
        runs.keep(ledger, pool)
        hold.limits = limits.hold(ledger, counters, held) + runs.hold(ledger, pool, held, now)
    ledger.holds[hold.id] = hold
    ledger.changes.new_holds.add(hold.id)
    account.note_due(hold.expires_at)
    ledger.changes.account = True
    remember(ledger, operation, now)
    return Outcome(hold)


def _ended_unseen(hold: HoldState) -> ReservationExpiredError:
    """This very call made the hold, its answer was lost, and the hold ended before the call could look it up."""
    return ReservationExpiredError(
        f"reservation {hold.id} ended before its answer could be had; nothing is held.",
        retryable=True,
        context={"reservation_id": hold.id, "expires_at": hold.expires_at},
        suggestions=("Reserve again: the same key makes a new hold.", "Pass a longer ttl."),
    )


def commit(ledger: Ledger, operation: ops.Commit, now: datetime) -> Outcome:
    """Settle a hold: in time, late (once, with CAP), or as a replay; see the state table."""
    hold = _known_hold(ledger, operation.reservation_id)
    requested = operation.amount_micros
    if requested is None:
        requested = hold.uncollected_micros if hold.observed else hold.amount_micros
    if operation.automatic and _is_left_alone(hold):
        return Outcome(hold, replayed=True)
    if _is_charged(hold):
        if hold.requested_micros == requested:
            return Outcome(hold, replayed=hold.transaction_id != operation.transaction_id)
        raise refusals.already_settled(hold)
    if hold.state is ReservationState.RELEASED and not (hold.forced and operation.late):
        raise refusals.already_settled(hold)
    late = hold.state not in OPEN_STATES
    if late and not operation.late and now >= hold.expires_at + operation.grace:
        raise ReservationExpiredError(
            f"reservation {hold.id} expired at {hold.expires_at.isoformat()}; its"
            f" {from_micros(hold.amount_micros):f} credits went back.",
            context={"reservation_id": hold.id, "expires_at": hold.expires_at},
            suggestions=("Reserve again, or pass a longer ttl.",),
        )
    if requested > hold.amount_micros and operation.overage is Overage.REJECT and not hold.observed:
        raise OverageRejectedError(
            f"reservation {hold.id} holds {from_micros(hold.amount_micros):f} credits, the commit asks for"
            f" {from_micros(requested):f}; the hold stays.",
            context={
                "reservation_id": hold.id,
                "reserved": from_micros(hold.amount_micros),
                "requested": from_micros(requested),
            },
            suggestions=('Commit at most the reserved amount, or pass overage="cap" or "overdraft".',),
            fixes=({"param": "amount", "value": from_micros(hold.amount_micros)},),
        )
    _settle(ledger, operation, hold, requested, late, now)
    return Outcome(hold)


def _settle(ledger: Ledger, operation: ops.Commit, hold: HoldState, requested: int, late: bool, now: datetime) -> None:
    """Charge ``requested``: from the hold, then (CAP) from what is available, then (OVERDRAFT) from the account's line;
    the rest stays uncollected.
    """
    account = account_of(ledger)
    held = () if late else hold.allocations
    used, rest = burn_down.split(held, requested)
    charged = sum(allocation.amount_micros for allocation in used)
    for allocation in used:
        grant = ledger.touch_grant(grant_of(allocation))
        grant.held_micros -= allocation.amount_micros
        grant.spent_micros += allocation.amount_micros
        account.reserved_micros -= allocation.amount_micros
    if not late:
        limits.let_go(ledger, hold)
        runs.let_go(ledger, hold, now)
    extra: tuple[Allocation, ...] = ()
    if requested > charged and not hold.observed:
        usable = burn_down.usable_for(ledger.grants.values(), now, hold.agent_type, hold.action)
        wanted = requested - charged
        run = runs.of_record(ledger, hold)
        most = runs.least(
            limits.room(limits.counters_of_record(ledger, hold, now)),
            None if run is None else runs.room(ledger, run),
        )
        if most is not None:
            wanted = min(wanted, max(0, most - charged))
        extra = overdraft.take(account, usable, wanted, operation.overage)
        charged += overdraft.spend(ledger, extra)
    account.spent_micros += charged
    ledger.touch_hold(hold)
    if requested > 0 or hold.pricing is not Pricing.PRICED:
        row = write_row(
            ledger,
            TransactionType.DEBIT,
            -charged,
            now,
            merge((*used, *extra)),
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
            pricing=Pricing.OBSERVED if hold.observed else hold.pricing,
            late=late,
            dimensions=hold.dimensions,
            metadata=operation.metadata_json or hold.metadata,
        )
        hold.transaction_id = row.id
        limits.book(ledger, row, now)
        runs.book(ledger, row, now)
    hold.requested_micros = requested
    hold.charged_micros = charged
    hold.uncollected_micros = requested - charged
    hold.settled_at = now
    hold.late = late
    if not late:
        # A late settlement leaves the state: that the hold ran out, or was forced back, stays a fact of the ledger.
        hold.state = ReservationState.COMMITTED
    give_back(ledger, rest, now)


def release(ledger: Ledger, operation: ops.Release, now: datetime) -> Outcome:
    """Give a hold back, newest allocation first."""
    hold = _known_hold(ledger, operation.reservation_id)
    if operation.automatic and _is_left_alone(hold):
        return Outcome(hold, replayed=True)
    if _is_charged(hold):
        raise refusals.already_settled(hold)
    if hold.state not in OPEN_STATES:
        return Outcome(hold, replayed=True)
    give_back(ledger, tuple(reversed(hold.allocations)), now)
    limits.let_go(ledger, hold)
    runs.let_go(ledger, hold, now)
    ledger.touch_hold(hold)
    hold.state = ReservationState.RELEASED
    hold.settled_at = now
    hold.reason = operation.reason
    hold.forced = operation.forced
    return Outcome(hold)


def extend(ledger: Ledger, operation: ops.Extend, now: datetime) -> Outcome:
    """Let a living hold end at now + ttl."""
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


def mark_unknown(ledger: Ledger, operation: ops.MarkUnknown, now: datetime) -> Outcome:
    """Keep a living hold until the provider's verdict is known."""
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
    """Committed, in time or late (a late settlement leaves the state EXPIRED, or RELEASED by force)."""
    return hold.requested_micros is not None


def _is_left_alone(hold: HoldState) -> bool:
    """What the end of a block finds settled already, or handed over to wait for the provider's verdict.

    Not what an operator forced back: the block did not know of it.
    """
    released = hold.state is ReservationState.RELEASED and not hold.forced
    return _is_charged(hold) or released or hold.state is ReservationState.UNKNOWN
