"""Trees of runs: pools with a cap, carve-outs inside them, and what one charge, hold or end does to both. Pure.

A run uses ``spent + held + carved`` of its pool; ``carved`` is the sum of the claims of the runs inside it. An open run
claims its whole cap (its carve-out), or what it uses when it borrowed more; an ended one only what it used. So giving
back what a run did not use is nothing but its claim falling, and the counters of a tree can be added up from its rows.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from agentcredits.amounts import from_micros
from agentcredits.errors import InvalidInputError, RunEndedError, RunNotFoundError
from agentcredits.model import LimitMode, LimitScope, LimitUnit, Pricing, RunStatus
from agentcredits.rules import limits, refusals
from agentcredits.rules import operations as ops
from agentcredits.rules.entries import account_of
from agentcredits.rules.outcomes import Outcome, known_account
from agentcredits.rules.state import HoldState, Ledger, LimitState, Row, RunState, UsageState

#: How many runs may stand inside each other.
MAX_DEPTH = 32

#: How long nothing may happen in a run until it ends: an outermost one locks nothing, a carve-out should come back.
OUTER_TTL = timedelta(days=30)
INNER_TTL = timedelta(hours=24)

#: A cap warns when half, and when four fifths of it are spent.
WARN_AT = (5_000, 8_000)

#: Stands among the limits of a hold that its run's pool counts (their ids are UUIDs).
POOL = "run"


@dataclass(slots=True)
class Pool:
    """The run that an action is done in, as it will be when the action goes through; ``most``: a cap of the action's.

    Nothing is kept before :func:`keep`: a refusal leaves no trace.
    """

    run: RunState
    most_micros: int | None = None

    def room(self, ledger: Ledger) -> int | None:
        """How many micro-credits the run and those around it leave; None: no bound."""
        own = None if self.most_micros is None else max(0, self.most_micros - self.run.used_micros)
        return least(own, room(ledger, self.run))


def least(*bounds: int | None) -> int | None:
    """The smallest bound; None is none."""
    return min((bound for bound in bounds if bound is not None), default=None)


# -- what is left ------------------------------------------------------------------------------------------------


def room(ledger: Ledger, run: RunState) -> int | None:
    """How much more the run may use, what it can borrow included; None: no bound.

    An ended run (its holds still settle) has given back what it did not use: more comes from the runs around it.
    """
    own = None if run.cap_micros is None else max(0, run.cap_micros - run.used_micros)
    parent = _parent(ledger, run)
    if parent is None:
        return own
    shares = run.borrows or own is None
    if not run.is_open:
        return least(None if shares else own, room(ledger, parent))
    if not shares:
        return own
    around = room(ledger, parent)
    return None if around is None else (own or 0) + around


def _in_the_way(ledger: Ledger, run: RunState, needed: int) -> tuple[RunState, int]:
    """The innermost run of those that cannot bear it, and what it would have to bear."""
    parent = _parent(ledger, run)
    if parent is None or not (run.borrows or run.cap_micros is None):
        return run, needed
    return _in_the_way(ledger, parent, needed - max(0, (run.cap_micros or 0) - run.used_micros))


def _parent(ledger: Ledger, run: RunState) -> RunState | None:
    return None if run.parent_run_id is None else ledger.runs[run.parent_run_id]


def check(ledger: Ledger, pool: Pool | None, amount_micros: int, activity: ops.Activity, *, capped: bool) -> None:
    """Refuse what an ended run, or the room in the run and those around it, does not allow.

    Args:
        ledger: For whose account.
        pool: The run; None: nothing to check.
        amount_micros: How much.
        activity: What for.
        capped: The amount will be cut to what there is.

    Raises:
        RunEndedError: the run takes nothing new.
        CreditLimitExceededError: names the run that stands in the way.
    """
    if pool is None:
        return
    if not pool.run.is_open:
        raise _ended(ledger, pool.run)
    left = pool.room(ledger)
    if capped or left is None or amount_micros <= left:
        return
    run, needed, most = pool.run, amount_micros, pool.most_micros
    if most is None or amount_micros <= most - run.used_micros:
        run, needed = _in_the_way(ledger, run, amount_micros)
        most = run.cap_micros
    raise refusals.run_exceeded(ledger.organization_id, run, most or 0, needed, amount_micros, activity)


# -- charges and holds -------------------------------------------------------------------------------------------


def of_spending(ledger: Ledger, activity: ops.Activity, now: datetime) -> Pool | None:
    """The run that a charge or hold is done in; a cap that it brings along opens the run, or changes an outermost one.

    The carve-out of a run inside another is changed by ``open_run`` alone: there a smaller cap is a bound of this
    action. A run that has a limit (as all caps were before there were runs) keeps that.
    """
    cap, run_id = activity.scopes.run_max_micros, activity.scopes.run_id
    if run_id is None:
        return None
    run = ledger.runs.get(run_id)
    if run is None:
        if cap is None or limits.cap_of(ledger, run_id) is not None:
            return None
        return Pool(_new(ledger, run_id, now, cap_micros=cap))
    if run.parent_run_id is not None or cap in (None, run.cap_micros):
        return Pool(run, cap)
    return Pool(replace(run, cap_micros=cap))


def _new(
    ledger: Ledger,
    run_id: str,
    now: datetime,
    *,
    cap_micros: int | None,
    parent: RunState | None = None,
    borrows: bool = False,
    ttl: timedelta | None = None,
) -> RunState:
    lasts = ttl or (OUTER_TTL if parent is None else INNER_TTL)
    return RunState(
        run_id=run_id,
        root_run_id=run_id if parent is None else parent.root_run_id,
        created_at=now,
        expires_at=now + lasts,
        ttl_seconds=round(lasts.total_seconds()),
        parent_run_id=None if parent is None else parent.run_id,
        depth=1 if parent is None else parent.depth + 1,
        cap_micros=cap_micros,
        borrows=borrows,
        counts_from_seq=account_of(ledger).last_seq,
    )


def keep(ledger: Ledger, pool: Pool | None) -> None:
    """Keep the run, or its new cap, now that the charge or hold goes through."""
    if pool is None:
        return
    there = ledger.runs.get(pool.run.run_id)
    if there is None:
        _add(ledger, pool.run)
    elif there is not pool.run:
        there.cap_micros = pool.run.cap_micros
        pool.run = there
        _touch(ledger, there)


def _add(ledger: Ledger, run: RunState) -> None:
    ledger.runs[run.run_id] = run
    ledger.changes.new_runs.add(run.run_id)


def _touch(ledger: Ledger, run: RunState) -> None:
    if run.run_id not in ledger.changes.new_runs:
        ledger.changes.runs.add(run.run_id)


def _move(
    ledger: Ledger, run: RunState | None, at: datetime, *, spent: int = 0, held: int = 0, carved: int = 0
) -> None:
    """Change a run's counters, and with its claim those of the runs around it; all of them have been used at ``at``."""
    inner = 0
    while run is not None:
        before = run.claim_micros
        # Never below 0, also where plain SQL changed a counter meanwhile: a settlement must go through.
        spent, inner = max(spent, -run.spent_micros), max(inner, -run.inner_spent_micros)
        run.spent_micros += spent
        run.held_micros = max(0, run.held_micros + held)
        run.carved_micros = max(0, run.carved_micros + carved)
        run.inner_spent_micros += inner
        if run.is_open:
            # What falls due late comes in no order: an earlier use takes nothing away from a later one.
            run.expires_at = max(run.expires_at, at + timedelta(seconds=run.ttl_seconds))
        _touch(ledger, run)
        inner += spent
        spent, held, carved = 0, 0, run.claim_micros - before
        run = _parent(ledger, run)


def hold(ledger: Ledger, pool: Pool | None, amount_micros: int, now: datetime) -> tuple[str, ...]:
    """Count a hold; what its ``limits`` say of it."""
    if pool is None:
        return ()
    _move(ledger, pool.run, now, held=amount_micros)
    return (POOL,)


def of_record(ledger: Ledger, record: HoldState | Row) -> RunState | None:
    """The run that a hold or ledger row is in, where it has a row."""
    return None if record.run_id is None else ledger.runs.get(record.run_id)


def let_go(ledger: Ledger, record: HoldState, at: datetime) -> None:
    """A hold ends: lower the pool that counts it."""
    run = of_record(ledger, record)
    if run is not None and POOL in record.limits:
        _move(ledger, run, at, held=-record.amount_micros)


def book(ledger: Ledger, row: Row, now: datetime) -> None:
    """Count a charge, and record the thresholds that it reached in its run and those around it."""
    run = of_record(ledger, row)
    if run is None or row.pricing is Pricing.OBSERVED:
        return
    _move(ledger, run, now, spent=-row.amount_micros)
    place: RunState | None = run
    while place is not None:
        _warn(ledger, place, row, now)
        place = _parent(ledger, place)


def unbook(ledger: Ledger, charge: Row, amount_micros: int, now: datetime) -> None:
    """A refund makes room again."""
    run = of_record(ledger, charge)
    if run is not None and charge.seq > run.counts_from_seq and charge.pricing is not Pricing.OBSERVED:
        _move(ledger, run, now, spent=-amount_micros)


def _warn(ledger: Ledger, run: RunState, row: Row, now: datetime) -> None:
    """The thresholds of a cap, recorded as those of a limit; what was charged in the runs inside counts."""
    if not run.cap_micros or not row.amount_micros:
        return
    spent = run.spent_micros + run.inner_spent_micros
    usage = UsageState("", run.run_id, spent=spent, warned=run.warned, warned_amount=run.warned_micros)
    cap = LimitState(
        id="",
        scope=LimitScope.RUN,
        scope_id=run.run_id,
        unit=LimitUnit.CREDITS,
        window_text=limits.LIFETIME,
        amount=run.cap_micros,
        mode=LimitMode.HARD,
        created_at=run.created_at,
        warn_at=WARN_AT,
    )
    limits.record_crossings(ledger, limits.Counter(cap, usage), spent + row.amount_micros, row, now)
    run.warned, run.warned_micros = usage.warned, usage.warned_amount


# -- opened and ended --------------------------------------------------------------------------------------------


def open_run(ledger: Ledger, operation: ops.OpenRun, now: datetime) -> Outcome:
    """Open a run, or change the one that is open under this id."""
    known_account(ledger)
    parent = None
    if operation.parent_run_id is not None:
        parent = known(ledger, operation.parent_run_id)
    run = ledger.runs.get(operation.run_id)
    if run is None:
        return Outcome(_open_new(ledger, operation, parent, now))
    if not run.is_open:
        raise _ended(ledger, run)
    if parent is not None and run.parent_run_id != parent.run_id:
        raise InvalidInputError(
            f"run {run.run_id} is open already, and not inside run {parent.run_id}: a run cannot change its place.",
            reason="other_parent",
            context={"run_id": run.run_id, "parent_run_id": run.parent_run_id},
        )
    if operation.borrows and run.parent_run_id is None:
        raise _nothing_to_borrow(run.run_id)
    cap = run.cap_micros if operation.cap_micros is None else operation.cap_micros
    around = _parent(ledger, run)
    if around is not None and cap is not None:
        grows = max(cap, run.used_micros) - run.claim_micros
        cap -= max(0, grows) - _carve(ledger, around, max(0, grows), operation)
    before = run.claim_micros
    run.cap_micros = cap
    run.borrows = run.borrows if operation.borrows is None else operation.borrows
    if operation.ttl is not None:
        run.ttl_seconds = round(operation.ttl.total_seconds())
        # The new time-to-live, which may be shorter, counts from now.
        run.expires_at = now
    _move(ledger, run, now)
    # The move saw the new claim already: what it rose or fell by is the run around's to know.
    _move(ledger, around, now, carved=run.claim_micros - before)
    return Outcome(run)


def _open_new(ledger: Ledger, operation: ops.OpenRun, parent: RunState | None, now: datetime) -> RunState:
    if parent is None and operation.borrows:
        raise _nothing_to_borrow(operation.run_id)
    cap = operation.cap_micros
    if parent is not None:
        if not parent.is_open:
            raise _ended(ledger, parent)
        if parent.depth >= MAX_DEPTH:
            raise InvalidInputError(
                f"run {operation.run_id} would be too deep: at most {MAX_DEPTH} runs may stand inside each other.",
                reason="too_deep",
                context={"run_id": operation.run_id, "parent_run_id": parent.run_id, "maximum": MAX_DEPTH},
            )
        if cap is not None:
            cap = _carve(ledger, parent, cap, operation)
    run = _new(
        ledger,
        operation.run_id,
        now,
        cap_micros=cap,
        parent=parent,
        borrows=bool(operation.borrows),
        ttl=operation.ttl,
    )
    _add(ledger, run)
    if parent is not None:
        parent.open_children += 1
        _move(ledger, parent, now, carved=run.claim_micros)
    return run


def _carve(ledger: Ledger, parent: RunState, needed: int, operation: ops.OpenRun) -> int:
    """What the run around gives: what is needed, or (``partial``) what it has left.

    Raises:
        CreditLimitExceededError: less is left.
    """
    left = room(ledger, parent)
    if left is None or needed <= left:
        return needed
    if operation.partial:
        return left
    run, bears = _in_the_way(ledger, parent, needed)
    what = ops.Activity(action=f"run {operation.run_id}")
    raise refusals.run_exceeded(ledger.organization_id, run, run.cap_micros or 0, bears, needed, what)


def end_run(ledger: Ledger, operation: ops.EndRun, now: datetime) -> Outcome:
    """End a run and those inside it: what they did not use goes back to the run around."""
    known_account(ledger)
    run = known(ledger, operation.run_id)
    if not run.is_open:
        return Outcome(run, replayed=True)
    _end(ledger, run, now, operation.reason)
    return Outcome(run)


def _end(ledger: Ledger, run: RunState, at: datetime, reason: str | None) -> None:
    if run.open_children:
        for inner in [one for one in ledger.runs.values() if one.parent_run_id == run.run_id and one.is_open]:
            _end(ledger, inner, at, f"run {run.run_id} around it ended")
    before = run.claim_micros
    run.status, run.ended_at, run.reason = RunStatus.ENDED, at, reason
    _touch(ledger, run)
    parent = _parent(ledger, run)
    if parent is not None:
        parent.open_children = max(0, parent.open_children - 1)
        _move(ledger, parent, at, carved=run.claim_micros - before)


def book_due(ledger: Ledger, now: datetime) -> None:
    """End the loaded runs whose time-to-live is over, in the order of time; the end of one is use of the one around.

    Needs all due runs of a loaded tree loaded, and holds that ended booked before.
    """
    due = [(run.due_at, run.run_id) for run in ledger.runs.values() if run.due_at is not None and run.due_at <= now]
    heapq.heapify(due)
    while due:
        at, run_id = heapq.heappop(due)
        run = ledger.runs[run_id]
        if run.due_at != at:
            continue
        _end(ledger, run, at, "time-to-live ended")
        parent = _parent(ledger, run)
        if parent is not None and parent.due_at is not None and parent.due_at <= now:
            heapq.heappush(due, (parent.due_at, parent.run_id))


def known(ledger: Ledger, run_id: str) -> RunState:
    """The run.

    Raises:
        RunNotFoundError: the organization has none of this id.
    """
    run = ledger.runs.get(run_id)
    if run is None:
        raise RunNotFoundError(
            f"organization {ledger.organization_id} has no run {run_id}.",
            context={"organization_id": ledger.organization_id, "run_id": run_id},
            suggestions=("Open it first: open_run(...).",),
        )
    return run


def _ended(ledger: Ledger, run: RunState) -> RunEndedError:
    when = None if run.ended_at is None else run.ended_at.isoformat()
    return RunEndedError(
        f"run {run.run_id} of organization {ledger.organization_id} ended at {when}"
        + (f" ({run.reason})" if run.reason else "")
        + ": it takes nothing new.",
        context={
            "organization_id": ledger.organization_id,
            "scope": LimitScope.RUN.value,
            "scope_id": run.run_id,
            "run_id": run.run_id,
            "ended_at": run.ended_at,
            "spent": from_micros(run.spent_micros),
        },
        suggestions=("Go on under a new run_id.",),
    )


def _nothing_to_borrow(run_id: str) -> InvalidInputError:
    return InvalidInputError(
        f"run {run_id} has no run around it to borrow from: pass parent_run_id, or leave out borrow.",
        context={"parameter": "borrow", "run_id": run_id},
    )
