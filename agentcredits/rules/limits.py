"""Limits: who counts, what is left, and what one charge, hold, settlement or refund does to the counters. Pure.

A limit has two counters for each scope id: ``held``, which has no window, and ``spent``, which belongs to one. Every
limit that an action falls under counts it; of a default "for each" and a limit of the same unit and window for the very
department or user, only the latter refuses and warns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from operator import attrgetter
from typing import Protocol

from agentcredits.amounts import MAX_TOTAL_MICROS
from agentcredits.errors import ConfigurationError, InvalidInputError, LimitNotFoundError
from agentcredits.ids import new_id
from agentcredits.model import LimitMode, LimitScope, LimitUnit, Pricing, TransactionType
from agentcredits.rules import operations as ops
from agentcredits.rules import refusals
from agentcredits.rules.burn_down import NEVER
from agentcredits.rules.entries import account_of
from agentcredits.rules.outcomes import Outcome, known_account
from agentcredits.rules.state import Crossed, HoldState, Ledger, LimitState, Row, UsageState
from agentcredits.rules.windows import Window

#: Thresholds are parts of this.
WHOLE = 10_000

#: The text of the window of a run's cap.
LIFETIME = str(Window.lifetime())

Place = tuple[LimitScope, str]
"""A scope and the id that an action has in it."""


class Scoped(Protocol):
    """What has scopes: a hold, a ledger row."""

    @property
    def agent_type(self) -> str | None: ...  # noqa: D102
    @property
    def action(self) -> str | None: ...  # noqa: D102
    @property
    def project_id(self) -> str | None: ...  # noqa: D102
    @property
    def department_id(self) -> str | None: ...  # noqa: D102
    @property
    def user_id(self) -> str | None: ...  # noqa: D102
    @property
    def run_id(self) -> str | None: ...  # noqa: D102


@dataclass(slots=True)
class Counter:
    """One counter that an action moves; ``speaks``: no more specific limit stands in for its limit."""

    limit: LimitState
    usage: UsageState
    speaks: bool = True

    @property
    def left(self) -> int:
        """What can still be used, in the limit's unit; negative when it was gone beyond."""
        return self.limit.amount - self.usage.spent - self.usage.held

    def counts(self, now: datetime) -> bool:
        """Whether it stands in the window of ``now``: not for sure where plain SQL made the window unreadable."""
        return self.limit.unusable is None or self.usage.window_end is None or now < self.usage.window_end

    @property
    def refuses(self) -> bool:
        """Whether it can say no."""
        return self.speaks and self.limit.mode is LimitMode.HARD

    def units(self, amount_micros: int) -> int:
        """What a charge of this amount counts."""
        return amount_micros if self.limit.unit is LimitUnit.CREDITS else 1


# -- who counts --------------------------------------------------------------------------------------------------


names_of_activity = attrgetter(
    "agent_type", "action", "scopes.project_id", "scopes.department_id", "scopes.user_id", "scopes.run_id"
)
names_of_record = attrgetter("agent_type", "action", "project_id", "department_id", "user_id", "run_id")


def places_of_activity(activity: ops.Activity) -> list[Place]:
    """The scopes that an action is in."""
    return _places(*names_of_activity(activity))


def places_of_record(record: Scoped) -> list[Place]:
    """The scopes that a hold or ledger row is in."""
    return _places(*names_of_record(record))


def _places(
    agent_type: str | None,
    action: str | None,
    project_id: str | None,
    department_id: str | None,
    user_id: str | None,
    run_id: str | None,
) -> list[Place]:
    places = [(LimitScope.ORGANIZATION, "")]
    for scope, scope_id in (
        (LimitScope.DEPARTMENT, department_id),
        (LimitScope.PROJECT, project_id),
        (LimitScope.USER, user_id),
        (LimitScope.AGENT_TYPE, agent_type),
        (LimitScope.ACTION, action_id(agent_type, action)),
        (LimitScope.RUN, run_id),
    ):
        if scope_id is not None:
            places.append((scope, scope_id))
    return places


def action_id(agent_type: str | None, action: str | None) -> str | None:
    """How limits name an action: ``"VideoAgent.generate_video"``."""
    return None if agent_type is None or action is None else f"{agent_type}.{action}"


def counters_of_activity(ledger: Ledger, activity: ops.Activity, now: datetime) -> list[Counter]:
    """Every counter that an action moves, in its window of ``now``."""
    return _counters(ledger, names_of_activity(activity), now)


def counters_of_record(ledger: Ledger, record: Scoped, now: datetime) -> list[Counter]:
    """Every counter that a hold or ledger row moves, in its window of ``now``."""
    return _counters(ledger, names_of_record(record), now)


def _counters(ledger: Ledger, names: tuple[str | None, ...], now: datetime) -> list[Counter]:
    over = ledger.limits_over.get(names)
    if over is None:
        # The same for most operations of a batch.
        over = ledger.limits_over[names] = _limits_over(ledger, _places(*names))
    return [Counter(limit, _usage(ledger, limit, scope_id, now), speaks) for limit, scope_id, speaks in over]


def _limits_over(ledger: Ledger, places: Sequence[Place]) -> list[tuple[LimitState, str, bool]]:
    """The limits over these scopes, the id that each counts by, and whether no more specific one stands in for it."""
    found = []
    for scope, scope_id in places:
        own = ledger.limits_at.get((scope, scope_id), [])
        found += [(limit, scope_id, True) for limit in own]
        for limit in ledger.limits_at.get((scope, ""), []) if scope_id else ():
            replaced = any(one.unit is limit.unit and one.window_text == limit.window_text for one in own)
            found.append((limit, scope_id, not replaced))
    return found


def _usage(ledger: Ledger, limit: LimitState, scope_id: str, now: datetime) -> UsageState:
    """The counter as it stands in the window of ``now``; a new one is kept only when it is moved."""
    usage = ledger.usage.get((limit.id, scope_id)) or UsageState(limit.id, scope_id)
    try:
        roll(limit, usage, now)
    except InvalidInputError:
        # A window that cannot be read: the counter stays in the one that it has.
        return usage
    return usage


def roll(limit: LimitState, usage: UsageState, now: datetime) -> None:
    """Bring a counter into the window of ``now``: nothing is spent in a new one; what is held stays.

    A window that has begun stands until it ends: a machine with another edition of the time zones must not start it
    afresh.
    """
    if usage.window_start is not None and usage.window_end is not None and usage.window_start <= now < usage.window_end:
        return
    start, end = window_of(limit, now)
    if usage.window_start != start:
        usage.spent = usage.warned = usage.warned_amount = 0
    usage.window_start, usage.window_end = start, end


def window_of(limit: LimitState, now: datetime) -> tuple[datetime | None, datetime | None]:
    """The window of ``now``; (None, None) for a lifetime."""
    if limit.bounds is None or not limit.bounds[0] <= now < limit.bounds[1]:
        window = Window.parse(limit.window_text)
        if window.is_lifetime:
            return None, None
        limit.bounds = window.bounds(now)
    return limit.bounds


# -- what is left ------------------------------------------------------------------------------------------------


def of_spending(ledger: Ledger, activity: ops.Activity, now: datetime) -> list[Counter]:
    """The counters that a charge or hold moves.

    A cap that its run brings along changes the limit of that run, where it has one: caps were limits before runs had
    pools. Nothing is kept before ``keep``: a refusal leaves no trace.
    """
    cap, run_id = activity.scopes.run_max_micros, activity.scopes.run_id
    found = counters_of_activity(ledger, activity, now) if ledger.limits else []
    if cap is None or run_id is None:
        return found
    known = cap_of(ledger, run_id)
    for counter in found:
        if counter.limit is known and (known.amount, known.mode) != (cap, LimitMode.HARD):
            counter.limit = replace(known, amount=cap, mode=LimitMode.HARD)
    return found


def cap_of(ledger: Ledger, run_id: str) -> LimitState | None:
    """The limit that caps a run, where it has one."""
    for limit in ledger.limits_at.get((LimitScope.RUN, run_id), []):
        if limit.unit is LimitUnit.CREDITS and limit.window_text == LIFETIME:
            return limit
    return None


def check(
    ledger: Ledger, found: Sequence[Counter], amount_micros: int, activity: ops.Activity, *, capped: bool = False
) -> None:
    """Refuse what would go beyond a hard limit: ``spent + held + amount <= limit``, all limits at once.

    Args:
        ledger: For whose account.
        found: The counters.
        amount_micros: How much.
        activity: What for.
        capped: The amount will be cut to what the credit limits leave: only counts can refuse.

    Raises:
        CreditLimitExceededError: names the limit that stands in the way longest.
        ConfigurationError: a limit was edited so that it cannot be read; nothing runs under it.
    """
    blocking = []
    for counter in found:
        if not counter.refuses:
            continue
        limit = counter.limit
        if limit.unusable is not None:
            raise ConfigurationError(
                f"limit {limit.id} of organization {ledger.organization_id} cannot be read: {limit.unusable};"
                " the action did not run.",
                reason="unusable_limit",
                limit_source=limit.scope.value,
                context={"limit_id": limit.id},
                suggestions=("Set or remove the limit again, for example: agentcredits limits list",),
            )
        need = counter.units(amount_micros)
        if need and need > counter.left and not (capped and limit.unit is LimitUnit.CREDITS):
            blocking.append(counter)
    if blocking:
        worst = max(blocking, key=lambda counter: counter.usage.window_end or NEVER)
        raise refusals.limit_exceeded(
            ledger.organization_id,
            worst.limit,
            worst.usage,
            worst.units(amount_micros),
            activity,
            others=[counter.limit.id for counter in blocking if counter is not worst],
        )


def room(found: Sequence[Counter]) -> int | None:
    """How many micro-credits the hard limits leave; None: there is none of credits."""
    return min(
        (
            max(0, counter.left)
            for counter in found
            if counter.refuses and counter.limit.unit is LimitUnit.CREDITS and counter.limit.unusable is None
        ),
        default=None,
    )


# -- what moves the counters -------------------------------------------------------------------------------------


def keep(ledger: Ledger, found: Sequence[Counter]) -> None:
    """Keep the cap that a run brought along, now that its charge or hold goes through."""
    for counter in found:
        known = ledger.limits[counter.limit.id]
        if known is not counter.limit:
            known.amount, known.mode = counter.limit.amount, counter.limit.mode
            counter.limit = known
            _note_changed(ledger, known)


def hold(ledger: Ledger, found: Sequence[Counter], amount_micros: int) -> tuple[str, ...]:
    """Count a hold; the ids of the limits that do."""
    for counter in found:
        units = counter.units(amount_micros)
        if units:
            counter.usage.held += units
            ledger.touch_usage(counter.usage)
    return tuple(counter.limit.id for counter in found)


def let_go(ledger: Ledger, record: HoldState, amount_micros: int | None = None, count: int = 1) -> None:
    """A hold ends: lower the limits that it was counted in, and no others.

    ``count`` holds that were counted like it end together: ``amount_micros`` is what they held.
    """
    amount = record.amount_micros if amount_micros is None else amount_micros
    if not record.limits:
        return
    places = dict(places_of_record(record))
    for limit_id in record.limits:
        limit = ledger.limits.get(limit_id)
        if limit is None:
            continue
        usage = ledger.usage.get((limit_id, places.get(limit.scope, "")))
        if usage is not None:
            # Never below 0, also where plain SQL removed the counter meanwhile: a settlement must go through.
            usage.held = max(0, usage.held - (amount if limit.unit is LimitUnit.CREDITS else count))
            ledger.touch_usage(usage)


def book(ledger: Ledger, row: Row, now: datetime, found: Sequence[Counter] | None = None) -> None:
    """Count a charge in the window of ``now``, and record the thresholds that it reached.

    ``found``: the counters of its action, if they are known.
    """
    if not ledger.limits or row.pricing is Pricing.OBSERVED:
        return
    for counter in counters_of_record(ledger, row, now) if found is None else found:
        units = counter.units(-row.amount_micros)
        if not units or not counter.counts(now):
            continue
        before = counter.usage.spent
        counter.usage.spent += units
        ledger.touch_usage(counter.usage)
        if counter.speaks and counter.limit.unusable is None:
            record_crossings(ledger, counter, before, row, now)


def unbook(ledger: Ledger, charge: Row, amount_micros: int, now: datetime) -> None:
    """A refund makes room again, while the window of its charge is current; never for a count."""
    if not ledger.limits:
        return
    for counter in counters_of_record(ledger, charge, now):
        limit, usage = counter.limit, counter.usage
        if limit.unit is not LimitUnit.CREDITS or not counter.counts(now):
            continue
        in_window = usage.window_start is None or charge.created_at >= usage.window_start
        if in_window and charge.seq > limit.counts_from_seq and (limit.id, usage.scope_id) in ledger.usage:
            usage.spent = max(0, usage.spent - amount_micros)
            ledger.touch_usage(usage)


def record_crossings(ledger: Ledger, counter: Counter, before: int, row: Row, now: datetime) -> None:
    """Record the thresholds that a counter reached on its way from ``before``."""
    limit, usage = counter.limit, counter.usage
    lines = _lines(limit)
    if not lines:
        return
    if limit.amount > usage.warned_amount:
        # Raised since: what the raise put back above the counter can be crossed again.
        reached = [line for line in lines if line <= usage.warned and _reaches(before, line, limit.amount)]
        usage.warned = max(reached, default=0)
    usage.warned_amount = limit.amount
    for line in lines:
        if line > usage.warned and _reaches(usage.spent, line, limit.amount):
            usage.warned = line
            ledger.changes.crossings.append(
                Crossed(
                    id=new_id(),
                    limit_id=limit.id,
                    scope=limit.scope,
                    scope_id=usage.scope_id,
                    unit=limit.unit,
                    window_text=limit.window_text,
                    window_start=usage.window_start,
                    threshold=min(line, WHOLE),
                    limit_amount=limit.amount,
                    spent=usage.spent,
                    at=now,
                    transaction_id=row.id,
                )
            )


def left(counter: Counter) -> int:
    """How much more passes before the limit refuses, in its unit."""
    return max(0, counter.left) if counter.refuses else MAX_TOTAL_MICROS


def quiet(counter: Counter) -> int:
    """How much more can be spent before a threshold is reached, in the limit's unit; 0: at once, or the thresholds are
    to be looked at anew first.
    """
    limit, usage = counter.limit, counter.usage
    lines = _lines(limit) if counter.speaks else ()
    if lines and usage.warned_amount != limit.amount:
        return 0
    for line in lines:
        if line > usage.warned:
            # The last sum that does not reach it.
            last = limit.amount if line > WHOLE else -(-line * limit.amount // WHOLE) - 1
            return max(0, last - usage.spent)
    return MAX_TOTAL_MICROS


def _lines(limit: LimitState) -> tuple[int, ...]:
    """The thresholds of a limit, in parts of 10,000: of one that refuses nothing also the one past the whole."""
    return limit.warn_at if limit.mode is LimitMode.HARD else (*limit.warn_at, WHOLE + 1)


def _reaches(spent: int, line: int, amount: int) -> bool:
    """``line`` parts of 10,000 are reached; the one past the whole: gone beyond it."""
    return spent > amount if line > WHOLE else spent * WHOLE >= line * amount


# -- set and removed ---------------------------------------------------------------------------------------------


def set_limit(ledger: Ledger, operation: ops.SetLimit, now: datetime) -> Outcome:
    """Make a limit, or change the one in its place; counters stay."""
    account = account_of(ledger)
    for limit in ledger.limits_at.get((operation.scope, operation.scope_id), []):
        if (limit.scope, limit.scope_id, limit.unit, limit.window_text) == operation.place:
            limit.amount, limit.mode, limit.warn_at = operation.amount, operation.mode, operation.warn_at
            limit.unusable = None
            _note_changed(ledger, limit)
            ledger.changes.account = True
            return Outcome(limit)
    limit = new_limit(operation, now, 0 if operation.include_existing else account.last_seq)
    ledger.add_limit(limit)
    ledger.changes.new_limits.add(limit.id)
    ledger.changes.account = True
    if operation.include_existing:
        _count_existing(ledger, operation, limit, now)
    return Outcome(limit)


def new_limit(operation: ops.SetLimit, now: datetime, counts_from_seq: int) -> LimitState:
    """The limit that an operation makes."""
    return LimitState(
        id=operation.id,
        scope=operation.scope,
        scope_id=operation.scope_id,
        unit=operation.unit,
        window_text=operation.window_text,
        amount=operation.amount,
        mode=operation.mode,
        warn_at=operation.warn_at,
        created_at=now,
        counts_from_seq=counts_from_seq,
    )


def _note_changed(ledger: Ledger, limit: LimitState) -> None:
    if limit.id not in ledger.changes.new_limits:
        ledger.changes.limits.add(limit.id)


def _count_existing(ledger: Ledger, operation: ops.SetLimit, limit: LimitState, now: datetime) -> None:
    """What the ledger knows of the present window, and what this batch has added to it."""
    for scope_id, spent in ledger.existing.get(operation.place, {}).items():
        usage = _usage(ledger, limit, scope_id, now)
        usage.spent = spent
        ledger.touch_usage(usage)
    for row in ledger.changes.rows:
        charge = ledger.rows.get(row.refund_of) if row.refund_of is not None else row
        if charge is None or charge.type is not TransactionType.DEBIT or charge.pricing is Pricing.OBSERVED:
            continue
        for counter in counters_of_record(ledger, charge, now):
            in_window = counter.usage.window_start is None or charge.created_at >= counter.usage.window_start
            if counter.limit is limit and in_window:
                refund_of_count = row is not charge and limit.unit is LimitUnit.COUNT
                counter.usage.spent += 0 if refund_of_count else counter.units(-row.amount_micros)
                ledger.touch_usage(counter.usage)


def remove_limit(ledger: Ledger, operation: ops.RemoveLimit, now: datetime) -> Outcome:
    """Remove a limit with its counters; the holds that it counted settle without it."""
    known_account(ledger)
    limit = ledger.limits.get(operation.limit_id)
    if limit is None:
        raise LimitNotFoundError(
            f"organization {ledger.organization_id} has no limit {operation.limit_id}.",
            context={"limit_id": operation.limit_id},
        )
    ledger.drop_limit(limit)
    for place in [place for place in ledger.usage if place[0] == limit.id]:
        del ledger.usage[place]
        ledger.changes.new_usage.discard(place)
        ledger.changes.usage.discard(place)
    ledger.changes.limits.discard(limit.id)
    if limit.id in ledger.changes.new_limits:
        ledger.changes.new_limits.discard(limit.id)
    else:
        ledger.changes.removed_limits.add(limit.id)
    ledger.changes.account = True
    return Outcome(limit)
