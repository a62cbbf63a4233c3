"""One account of the reference model: balances by summing, everything due by scanning."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from tests.property.reference.values import (
    Answer,
    Grant,
    Hold,
    Limit,
    Recurring,
    Refused,
    Row,
    Run,
    Scopes,
    Takes,
    end_of,
    merge,
    subtract,
    sum_of,
    take,
)


class Account:
    """One organization's books."""

    def __init__(self, now: datetime) -> None:
        self.grants: list[Grant] = []
        self.recurring: list[Recurring] = []
        self.holds: list[Hold] = []
        self.rows: list[Row] = []
        self.limits: list[Limit] = []
        self.runs: dict[str, Run] = {}
        self.keys: dict[tuple[str, str], tuple[tuple[Any, ...], Any]] = {}
        self.last_posted_at = now
        self.line = 0
        self.debt = 0
        self.status = "open"

    # -- reading -------------------------------------------------------------------------------------------------

    def total(self, name: str) -> int:
        return sum(getattr(grant, name) for grant in self.grants)

    def terms(self) -> dict[str, int]:
        """The terms of the balance, in micros."""
        found = {
            "granted": self.total("amount"),
            "scheduled": sum(grant.remaining for grant in self.grants if grant.status == "scheduled"),
            "spent": self.total("spent") + self.debt,
            "reserved": sum(hold.amount for hold in self.holds if hold.open),
            "expired": self.total("expired"),
            "voided": self.total("voided"),
        }
        found["available"] = found["granted"] - sum(value for name, value in found.items() if name != "granted")
        return found

    def usable(self) -> Takes:
        """What can be taken now, in burn-down order."""
        active = [grant for grant in self.grants if grant.status == "active" and grant.remaining > 0]
        return [(grant, grant.remaining) for grant in sorted(active, key=Grant.burn_key)]

    def usable_for(self, action: str | None) -> Takes:
        """What an action can take now."""
        return [(grant, room) for grant, room in self.usable() if grant.allows(action)]

    def restricted(self) -> int:
        """The part of it that is kept for certain actions."""
        return sum(room for grant, room in self.usable() if grant.only_for)

    # -- limits --------------------------------------------------------------------------------------------------

    def spent(self, limit: Limit, who: str) -> int:
        """In the window of now: charges after the limit was made, less refunds of them."""
        now = limit.window_of(self.last_posted_at)
        total = 0
        for row in self.rows:
            charge = row.refund_of if row.type == "refund" else row if row.type == "debit" else None
            if charge is None or charge.seq <= limit.rows_before or limit.counts_for(charge.scopes) != who:
                continue
            if limit.window_of(row.at) == now == limit.window_of(charge.at):
                total += limit.units(-row.amount) if row is charge or limit.unit == "credits" else 0
        return total

    def held(self, limit: Limit, who: str) -> int:
        """By the open holds that were made while it was there."""
        return sum(
            limit.units(hold.amount)
            for hold in self.holds
            if hold.open and limit in hold.limits and limit.counts_for(hold.scopes) == who
        )

    def counting(self, scopes: Scopes) -> list[Limit]:
        return [limit for limit in self.limits if limit.counts_for(scopes) is not None]

    def speaking(self, scopes: Scopes) -> list[Limit]:
        """Hard limits, defaults left out for which there is a more certain one."""
        counting = self.counting(scopes)
        certain = {(one.scope, one.unit, one.window) for one in counting if one.scope_id}
        return [
            limit
            for limit in counting
            if limit.hard and (limit.scope_id or (limit.scope, limit.unit, limit.window) not in certain)
        ]

    def left(self, limit: Limit, scopes: Scopes, *, without: Hold | None = None) -> int:
        who = limit.counts_for(scopes)
        assert who is not None
        own = limit.units(without.amount) if without is not None and without.open and limit in without.limits else 0
        return limit.amount - self.spent(limit, who) - self.held(limit, who) + own

    def check(self, scopes: Scopes, amount: int, *, capped: bool = False) -> None:
        for limit in self.speaking(scopes):
            units = limit.units(amount)
            if units > self.left(limit, scopes) and not (capped and limit.unit == "credits"):
                raise Refused("credit_limit_exceeded")

    def limit_room(self, scopes: Scopes, *, without: Hold | None = None) -> int:
        of_credits = [limit for limit in self.speaking(scopes) if limit.unit == "credits"]
        return min((max(0, self.left(limit, scopes, without=without)) for limit in of_credits), default=10**18)

    # -- runs ----------------------------------------------------------------------------------------------------

    def run_spent(self, run: Run) -> int:
        """Charges in it, less refunds of them."""
        charges = ((row, row.refund_of if row.type == "refund" else row) for row in self.rows)
        return sum(
            -row.amount
            for row, charge in charges
            if charge is not None and charge.type == "debit" and charge.run == run.id and charge.seq > run.rows_before
        )

    def run_held(self, run: Run) -> int:
        return sum(hold.amount for hold in self.holds if hold.open and hold.pool is run)

    def inside(self, run: Run) -> list[Run]:
        return [one for one in self.runs.values() if one.parent is run]

    def carved(self, run: Run) -> int:
        return sum(self.claim(one) for one in self.inside(run))

    def used(self, run: Run) -> int:
        return self.run_spent(run) + self.run_held(run) + self.carved(run)

    def claim(self, run: Run) -> int:
        return self.used(run) if run.ended_at is not None else max(run.cap or 0, self.used(run))

    def inner_spent(self, run: Run) -> int:
        return sum(self.run_spent(one) + self.inner_spent(one) for one in self.inside(run))

    def bears(self, run: Run, amount: int) -> bool:
        """Whether the run, and those around it, can use so much more."""
        if run.cap is not None and not (run.borrow and run.parent) and amount > max(0, run.cap - self.used(run)):
            return False
        if run.parent is None:
            return True
        if run.ended_at is not None:
            return self.bears(run.parent, amount)
        covered = max(0, (run.cap or 0) - self.used(run))
        return amount <= covered or self.bears(run.parent, amount - covered)

    def run_room(self, run: Run) -> int:
        """The most that it bears, found by trying."""
        low, high = 0, 10**12
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.bears(run, middle) else (low, middle - 1)
        return low

    def run_of(self, run: str | None, cap: int | None) -> Run | None:
        """The run as an action that brings this cap would leave it; not kept yet."""
        known = None if run is None else self.runs.get(run)
        if known is not None and known.parent is None and cap is not None:
            return dataclasses.replace(known, cap=cap)
        if known is None and run is not None and cap is not None:
            return Run(run, None, cap, False, timedelta(days=30), len(self.rows), self.last_posted_at)
        return known

    def run_left(self, run: Run | None, cap: int | None) -> int:
        if run is None:
            return 10**18
        # A cap that an action brings into a run inside another bounds this action only.
        own = 10**18 if cap is None else max(0, cap - self.used(self.runs.get(run.id, run)))
        with self.as_if(run):
            return min(own, self.run_room(run))

    @contextmanager
    def as_if(self, run: Run) -> Iterator[None]:
        """With this run in the place of the one that is there."""
        known = self.runs.get(run.id)
        if known is run:
            yield
            return
        for hold in self.holds:
            hold.pool = run if hold.pool is known and known is not None else hold.pool
        for one in self.inside(known) if known is not None else []:
            one.parent = run
        self.runs[run.id] = run
        yield
        for hold in self.holds:
            hold.pool = known if hold.pool is run else hold.pool
        for one in self.inside(run):
            one.parent = known
        if known is None:
            del self.runs[run.id]
        else:
            self.runs[run.id] = known

    def check_run(self, run: Run | None, cap: int | None, amount: int, *, capped: bool = False) -> None:
        if run is not None and run.ended_at is not None:
            raise Refused("run_ended")
        if not capped and amount > self.run_left(run, cap):
            raise Refused("credit_limit_exceeded")

    def keep_run(self, run: Run | None) -> Run | None:
        if run is None:
            return None
        known = self.runs.setdefault(run.id, run)
        known.cap = run.cap
        return known

    def touch_run(self, name: str | None, at: datetime) -> None:
        if name in self.runs:
            self.runs[name].touch(at)

    def run_ends(self, run: Run) -> datetime | None:
        """When it ends by time alone."""
        busy = self.run_held(run) or any(one.ended_at is None for one in self.inside(run))
        return None if busy or run.ended_at is not None else run.touched_at + run.ttl

    def end_run(self, run: Run, at: datetime) -> None:
        for one in self.inside(run):
            if one.ended_at is None:
                self.end_run(one, at)
        run.ended_at = at
        if run.parent is not None:
            run.parent.touch(at)

    def due_times(self) -> Iterator[datetime]:
        for hold in self.holds:
            if hold.open:
                yield hold.expires_at
        for grant in self.grants:
            if grant.status == "scheduled":
                yield grant.effective_at
            if grant.status in ("scheduled", "active") and grant.expires_at is not None:
                yield grant.expires_at
        for run in self.runs.values():
            if (end := self.run_ends(run)) is not None:
                yield end
        for one in self.recurring:
            if one.status == "active":
                yield one.next_at

    # -- booking -------------------------------------------------------------------------------------------------

    def add_row(self, kind: str, amount: int, **facts: Any) -> Row:
        after = self.total("amount") - self.total("spent") - self.total("expired") - self.total("voided") - self.debt
        row = Row(len(self.rows) + 1, kind, amount, after, at=self.last_posted_at, **facts)
        self.rows.append(row)
        return row

    def breakage(self, grant: Grant, amount: int, hold: Hold | None = None) -> None:
        grant.expired += amount
        self.add_row("expire", -amount, grant=grant, hold=hold)

    def give_back(self, hold: Hold, takes: Takes) -> None:
        """Return what a hold did not use: the caller has already made the hold's end known."""
        broken = []
        for grant, amount in reversed(takes):
            grant.held -= amount
            if grant.status in ("expired", "voided"):
                broken.append((grant, amount))
        for grant, amount in broken:
            self.breakage(grant, amount, hold)

    def repay(self, at: datetime) -> None:
        """What is usable at a moment pays the debt; what is kept for certain actions does not."""
        for grant, room in self.usable_for(None):
            part = min(room, self.debt)
            if part and (grant.expires_at is None or at < grant.expires_at):
                self.move(grant, part)

    def move(self, grant: Grant, part: int) -> None:
        """A grant pays a part of the debt, or (negative) gets it back."""
        grant.spent += part
        grant.repaid += part
        self.debt -= part
        self.add_row("adjust", 0, grant=grant, moved=part)

    def book_due(self, clock: datetime) -> datetime:
        """Book everything due; returns the account's now, which never runs backwards."""
        now = self.last_posted_at = max(clock, self.last_posted_at)
        while due := [time for time in self.due_times() if time <= now]:
            instant = min(due)
            for hold in self.holds:
                if hold.open and hold.expires_at == instant:
                    hold.state = "expired"
                    self.give_back(hold, hold.takes)
                    self.repay(instant)
                    if hold.pool is not None:
                        hold.pool.touch(instant)
            for run in list(self.runs.values()):
                if self.run_ends(run) == instant:
                    self.end_run(run, instant)
            self.grants_at(instant)
        return now

    def grants_at(self, instant: datetime) -> None:
        """Those that start, then those that end, then those that come again."""
        for grant in self.grants:
            if grant.status == "scheduled" and grant.effective_at == instant:
                grant.status = "active"
                self.repay(instant)
        for grant in sorted(self.grants, key=lambda grant: grant.id):
            if grant.status == "active" and grant.expires_at == instant:
                self.carry_over(grant, instant)
                grant.status = "expired"
                if grant.remaining:
                    self.breakage(grant, grant.remaining)
                self.repay(instant)
        for one in sorted(self.recurring, key=lambda one: one.id):
            if one.status == "active" and one.next_at == instant:
                self.refill(one, instant)
                self.repay(instant)

    def refill(self, one: Recurring, at: datetime) -> None:
        start, end = one.period(at)
        one.next_at = end
        if one.ends_at is not None and end >= one.ends_at:
            one.status = "ended"
        expires_at = end_of(one.expires_after, at, end)
        grant = Grant(one.amount, one.category, one.priority, at, expires_at, at, only_for=one.only_for)
        grant.recurring, grant.period_start = one, start
        grant.name()
        one.grants.append(grant)
        self.grants.append(grant)
        self.add_row({"paid": "purchase", "adjustment": "adjust"}.get(one.category, "credit"), one.amount, grant=grant)

    def carry_over(self, grant: Grant, at: datetime) -> None:
        """What a period's grant has left goes on, as far as the terms allow, if another period follows."""
        one = grant.recurring
        if one is None or one.rollover is None or grant.rolled_from or one.status != "active" or one.next_at != at:
            return
        maximum, minimum, lasting = one.rollover
        earlier = sum(
            other.remaining + other.held
            for other in self.grants
            if other.rolled_from is not None
            and other.recurring is one
            and other.status == "active"
            and (other.expires_at is None or other.expires_at > at)
        )
        carried = grant.remaining if maximum is None else min(grant.remaining, maximum - earlier)
        if grant.remaining < minimum or carried <= 0:
            return
        grant.voided += carried
        self.add_row("adjust", -carried, grant=grant)
        expires_at = end_of(lasting, at, one.period(at)[1])
        made = Grant(carried, grant.category, grant.priority, at, expires_at, at, only_for=grant.only_for)
        made.recurring, made.rolled_from = one, grant
        made.name()
        self.grants.append(made)
        self.add_row("adjust", carried, grant=made)

    # -- what the operations share -----------------------------------------------------------------------------------

    def replay(self, kind: str, key: str, payload: tuple[Any, ...]) -> Answer | None:
        stored = self.keys.get((kind, key))
        if stored is None:
            return None
        if stored[0] != payload:
            raise Refused("idempotency_mismatch")
        record = stored[1]
        if isinstance(record, Hold) and not record.open and not record.charged_once:
            return None
        return Answer(record, replayed=True)

    def refuse_unless_open(self) -> None:
        if self.status != "open":
            raise Refused(f"account_{self.status}")

    def lend(self, missing: int, overage: str) -> int:
        """What the line gives of what is missing."""
        return max(0, min(missing, self.line - self.debt)) if overage == "overdraft" else 0

    def debit(
        self,
        takes: Takes,
        amount: int,
        scopes: Scopes,
        run: str | None,
        hold: Hold | None = None,
        late: bool = False,
        lent: int = 0,
    ) -> Row:
        for grant, part in takes:
            grant.spent += part
        self.debt += lent
        charged = sum_of(takes) + lent
        self.touch_run(run, self.last_posted_at)
        return self.add_row(
            "debit",
            -charged,
            takes=takes,
            overdraft=lent,
            hold=hold,
            uncollected=max(0, amount - charged),
            late=late,
            scopes=scopes,
            run=run,
        )

    def settle(self, hold: Hold, wanted: int, overage: str) -> None:
        hold.late = not hold.open
        held = [] if hold.late else hold.takes
        used = take(held, wanted)
        limited = self.limit_room(hold.scopes, without=None if hold.late else hold) - sum_of(used)
        usable = self.usable_for(hold.action)
        if not hold.late:
            hold.state = "committed"
            if hold.pool is not None:
                hold.pool.touch(self.last_posted_at)
        left = self.run_left(self.run_of(hold.run, None), None) - sum_of(used)
        room = min(wanted - sum_of(used), max(0, min(limited, left)))
        extra = take(usable, room)
        for grant, part in used:
            grant.held -= part
        hold.requested = wanted
        if wanted:
            lent = self.lend(room - sum_of(extra), overage)
            hold.row = self.debit(merge(used + extra), wanted, hold.scopes, hold.run, hold, hold.late, lent)
            hold.charged = -hold.row.amount
            hold.uncollected = hold.row.uncollected
        self.give_back(hold, subtract(held, wanted))
        self.repay(self.last_posted_at)
