"""A small reference model of the ledger, written from the design alone.

It shares nothing with ``agentcredits.rules``: no imports, no tables, no counters. Balances are summed from the
grants and holds each time, and everything due is looked for by scanning. What it knows:

* a grant is usable when effective_at <= now < expires_at and it is not voided; burn-down order is priority,
  rollovers first, expires_at (never-ending last), restricted first, category, effective_at, created_at, id;
* what is due is booked in the order of time (holds before grants at one instant) before anything is decided, and
  stays booked when the call is refused;
* a hold remembers what it took from each grant: a commit uses that in burn-down order, the rest goes back newest
  first; what goes back to a grant that has ended is breakage (an EXPIRE row), not balance;
* an explicit commit of an expired hold is refused; its handle settles it late, once, from what is available;
* a refund goes to the grants that paid, newest allocation first, and never exceeds the charge;
* a limit counts what was charged in its window after it was made (or, if it was told so, before too), less what was
  given back in the same window, and the open holds that it was there for; a hard one refuses what would go beyond;
  one for a certain department or user stands in for the default of its unit and window;
* a charge with overage "overdraft" takes what is missing from the account's line; whatever becomes usable pays that
  debt first, and a refund lowers it first: what it gives back beyond it goes to the grants that had paid, newest first;
* a frozen account is charged and held nothing new, a closed one is granted nothing either; all else goes on;
* a hold that was released by force is settled late by its handle, like an expired one;
* a run used what was charged in it after it had a row, what its open holds hold, and what the runs inside claim: an
  open one at least its cap, an ended one what it used; it ends with the one around it, or when nothing happened in it
  for its time-to-live;
* a recurring grant grants each period once, at its start, after the grants that end then; the rest of the period
  before is carried over, as far as its terms go, into a grant that burns before the others of its priority;
* a restricted grant is usable for its actions only, and pays no debt; closing an account cancels what comes again;
* a key belongs to (account, kind of call); the same payload is answered again, another one is a mismatch; the key
  of a released or expired hold may be used for a new hold.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

CATEGORY_ORDER = ("promotional", "plan", "adjustment", "paid")
UNKNOWN_TTL = timedelta(days=7)
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


class Refused(Exception):  # noqa: N818  # an answer, not an error
    """The model says no; ``code`` is the public error's code."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(eq=False)
class Grant:
    """A block of credits."""

    amount: int
    category: str
    priority: int
    effective_at: datetime
    expires_at: datetime | None
    created_at: datetime
    status: str = "active"
    spent: int = 0
    held: int = 0
    expired: int = 0
    voided: int = 0
    repaid: int = 0
    only_for: tuple[str, ...] = ()
    recurring: Recurring | None = None
    period_start: datetime | None = None
    rolled_from: Grant | None = None
    id: str = ""

    @property
    def remaining(self) -> int:
        return self.amount - self.spent - self.held - self.expired - self.voided

    def burn_key(self) -> tuple[Any, ...]:
        never = self.expires_at is None
        end = 0.0 if self.expires_at is None else self.expires_at.timestamp()
        category = CATEGORY_ORDER.index(self.category)
        rolled, restricted = self.rolled_from is not None, bool(self.only_for)
        first = (self.priority, not rolled, never, end, not restricted, category)
        return (*first, self.effective_at, self.created_at, self.id)

    def allows(self, action: str | None) -> bool:
        """Every action of the tests is Maker's."""
        return not self.only_for or (
            action is not None and bool({"Maker", f"Maker.{action}", f"*.{action}"} & {*self.only_for})
        )

    def name(self) -> None:
        """What time makes has an id that follows from what it is made of."""
        if not self.id and self.rolled_from is not None:
            self.id = derived(self.rolled_from.id, "rollover")
        elif not self.id and self.recurring is not None and self.period_start is not None and self.recurring.id:
            self.id = derived(self.recurring.id, self.period_start.isoformat())


def derived(*parts: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, "\n".join(parts)))


Lasting = timedelta | str | None
"""A time, "period", or for ever."""


@dataclass(eq=False)
class Recurring:
    """A grant that comes again; ``rollover`` is (maximum or None, minimum, how long it lasts)."""

    amount: int
    category: str
    priority: int
    every: str
    anchor: datetime
    next_at: datetime
    ends_at: datetime | None
    expires_after: Lasting
    rollover: tuple[int | None, int, Lasting] | None
    only_for: tuple[str, ...]
    grants: list[Grant] = field(default_factory=list)
    status: str = "active"
    id: str = ""

    def starts(self) -> Iterator[datetime]:
        """Of every period from one before the anchor's on, in UTC."""
        if self.every == "month":
            for number in itertools.count(self.anchor.year * 12 + self.anchor.month - 2):
                year, month = divmod(number, 12)
                day = min(self.anchor.day, 29 if month == 1 and year % 4 == 0 else DAYS[month])
                yield self.anchor.replace(year=year, month=month + 1, day=day)
        first = self.anchor.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=7)
        step = timedelta(days=1 if self.every == "day" else 7)
        while self.every == "week" and first.weekday() != 0:
            first += timedelta(days=1)
        for number in itertools.count():
            yield first + number * step

    def period(self, at: datetime) -> tuple[datetime, datetime]:
        start = next(self.starts())
        for end in self.starts():
            if end > at:
                return start, end
            start = end
        raise AssertionError("periods never end")


#: Of each month.
DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def end_of(lasting: Lasting, start: datetime, period_end: datetime) -> datetime | None:
    if isinstance(lasting, timedelta):
        return start + lasting
    return period_end if lasting == "period" else None


Takes = list[tuple[Grant, int]]


Scopes = tuple[str | None, str | None, str | None]
"""Project, department, user."""


@dataclass(eq=False)
class Limit:
    """How much may be used by whom in which window."""

    scope: str
    scope_id: str
    unit: str
    window: str
    amount: int
    hard: bool
    #: Rows that were there before it and do not count.
    rows_before: int
    id: str = ""

    @property
    def place(self) -> tuple[str, str, str, str]:
        return (self.scope, self.scope_id, self.unit, self.window)

    def counts_for(self, scopes: Scopes) -> str | None:
        """By whom it counts something in these scopes; None: it does not."""
        who = "" if self.scope == "organization" else scopes[("project", "department", "user").index(self.scope)]
        return who if who is not None and self.scope_id in ("", who) else None

    def window_of(self, at: datetime) -> object:
        """Equal for two moments in one window."""
        return {
            "hour UTC": (at.date(), at.hour),
            "day UTC": at.date(),
            "fixed 10m 2026-01-01T00:00:00+00:00": (at - datetime(2026, 1, 1, tzinfo=UTC)) // timedelta(minutes=10),
            "lifetime": None,
        }[self.window]

    def units(self, amount: int) -> int:
        return amount if self.unit == "credits" else 1


@dataclass(eq=False)
class Run:
    """A pool, or a part of the pool of the run around it."""

    id: str
    parent: Run | None
    cap: int | None
    borrow: bool
    ttl: timedelta
    #: Rows that were there before it and do not count.
    rows_before: int
    touched_at: datetime
    ended_at: datetime | None = None

    def touch(self, at: datetime) -> None:
        """Something happened in it: its time begins anew, and that of the runs around it."""
        self.touched_at = at
        if self.parent is not None:
            self.parent.touch(at)


@dataclass(eq=False)
class Row:
    """A ledger row."""

    seq: int
    type: str
    amount: int
    balance_after: int
    takes: Takes = field(default_factory=list)
    hold: Hold | None = None
    grant: Grant | None = None
    refund_of: Row | None = None
    uncollected: int = 0
    late: bool = False
    refunded: int = 0
    #: What of a charge or refund belongs to the line, and what a transfer moved.
    overdraft: int = 0
    moved: int = 0
    at: datetime = LONG_AGO
    scopes: Scopes = (None, None, None)
    run: str | None = None
    id: str = ""


@dataclass(eq=False)
class Hold:
    """A reservation."""

    amount: int
    takes: Takes
    created_at: datetime
    expires_at: datetime
    state: str = "active"
    requested: int | None = None
    charged: int = 0
    uncollected: int = 0
    late: bool = False
    forced: bool = False
    row: Row | None = None
    scopes: Scopes = (None, None, None)
    limits: list[Limit] = field(default_factory=list)
    run: str | None = None
    #: The run whose pool counts it.
    pool: Run | None = None
    action: str | None = None
    id: str = ""

    @property
    def open(self) -> bool:
        return self.state in ("active", "unknown")

    @property
    def charged_once(self) -> bool:
        """Committed, or settled late by its handle; the latter stays expired, both facts are kept."""
        return self.requested is not None


@dataclass
class Answer:
    """What a call gives: the record it made or found, and whether it was only repeated."""

    record: Any
    replayed: bool = False


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


def take(takes: Takes, amount: int) -> Takes:
    """The first ``amount`` of ``takes``."""
    taken: Takes = []
    for grant, room in takes:
        part = min(room, amount)
        if part:
            taken.append((grant, part))
            amount -= part
    return taken


def merge(takes: Takes) -> Takes:
    """Neighbouring parts of one grant as one."""
    merged: Takes = []
    for grant, part in takes:
        if merged and merged[-1][0] is grant:
            merged[-1] = (grant, merged[-1][1] + part)
        else:
            merged.append((grant, part))
    return merged


def sum_of(takes: Takes) -> int:
    return sum(amount for _, amount in takes)


class Ledger:
    """The whole model; its methods mirror the service's, with amounts in micros and ids as the service gave them."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._clock = now
        self.accounts: dict[str, Account] = {}

    def _open(self, organization_id: str) -> tuple[Account, datetime]:
        account = self.accounts.get(organization_id)
        if account is None:
            raise Refused("account_not_found")
        return account, account.book_due(self._clock())

    def view(self, organization_id: str) -> Account:
        """The account as it is now, without booking anything."""
        account = self.accounts.get(organization_id)
        if account is None:
            raise Refused("account_not_found")
        now = self._clock()
        # Where nothing is due only the copy's time moves; a deep copy takes longer than the service itself.
        due = any(time <= max(now, account.last_posted_at) for time in account.due_times())
        seen = copy.deepcopy(account) if due else copy.copy(account)
        seen.book_due(now)
        return seen

    @staticmethod
    def _replay(account: Account, kind: str, key: str, payload: tuple[Any, ...]) -> Answer | None:
        stored = account.keys.get((kind, key))
        if stored is None:
            return None
        if stored[0] != payload:
            raise Refused("idempotency_mismatch")
        record = stored[1]
        if isinstance(record, Hold) and not record.open and not record.charged_once:
            return None
        return Answer(record, replayed=True)

    # -- operations ----------------------------------------------------------------------------------------------

    def create_account(self, organization_id: str) -> Answer:
        account = self.accounts.setdefault(organization_id, Account(self._clock()))
        account.book_due(self._clock())
        return Answer(None)

    def grant_credits(
        self,
        organization_id: str,
        amount: int,
        *,
        category: str,
        priority: int,
        effective_at: datetime | None,
        expires_at: datetime | None,
        source: str | None,
        only_for: tuple[str, ...] | None,
        idempotency_key: str,
    ) -> Answer:
        self.create_account(organization_id)
        account, now = self._open(organization_id)
        payload = (amount, category, priority, effective_at, expires_at, source, only_for)
        if (replay := self._replay(account, "grant", idempotency_key, payload)) is not None:
            return replay
        if account.status == "closed":
            raise Refused("account_closed")
        start = now if effective_at is None else effective_at
        if expires_at is not None and expires_at <= max(start, now):
            raise Refused("invalid_input")
        grant = Grant(amount, category, priority, start, expires_at, now, "scheduled" if start > now else "active")
        grant.only_for = only_for or ()
        account.grants.append(grant)
        account.add_row({"paid": "purchase", "adjustment": "adjust"}.get(category, "credit"), amount, grant=grant)
        account.repay(now)
        account.keys["grant", idempotency_key] = (payload, grant)
        return Answer(grant)

    def create_recurring_grant(
        self,
        organization_id: str,
        amount: int,
        *,
        every: str,
        anchor: datetime | None,
        ends_at: datetime | None,
        category: str,
        priority: int,
        expires_after: Lasting,
        rollover: tuple[int | None, int, Lasting] | None,
        only_for: tuple[str, ...] | None,
        idempotency_key: str,
    ) -> Answer:
        self.create_account(organization_id)
        account, now = self._open(organization_id)
        payload = (amount, every, anchor, ends_at, category, priority, expires_after, rollover, only_for)
        if (replay := self._replay(account, "recurring", idempotency_key, payload)) is not None:
            return replay
        if account.status == "closed":
            raise Refused("account_closed")
        begin = max(anchor or now, now)
        if ends_at is not None and ends_at <= begin:
            raise Refused("invalid_input")
        terms = (category, priority, every, anchor or now, begin, ends_at, expires_after, rollover, only_for or ())
        one = Recurring(amount, *terms)
        account.recurring.append(one)
        if begin <= now:
            account.refill(one, now)
            account.repay(now)
        account.keys["recurring", idempotency_key] = (payload, one)
        return Answer(one)

    def cancel_recurring_grant(self, organization_id: str, recurring_id: str) -> Answer:
        account, _ = self._open(organization_id)
        one = next((one for one in account.recurring if one.id == recurring_id), None)
        if one is None:
            raise Refused("recurring_grant_not_found")
        if one.status != "active":
            return Answer(one, replayed=True)
        one.status = "cancelled"
        return Answer(one)

    def void_grant(self, organization_id: str, grant_id: str, mode: str) -> Answer:
        account, _ = self._open(organization_id)
        grant = next((one for one in account.grants if one.id == grant_id), None)
        if grant is None:
            raise Refused("grant_not_found")
        lives_on = mode == "unreserved" and grant.status == "active"
        if grant.status in ("voided", "expired") or (lives_on and not grant.remaining):
            return Answer(grant, replayed=True)
        if not lives_on:
            grant.status = "voided"
        if taken := grant.remaining:
            grant.voided += taken
            account.add_row("adjust", -taken, grant=grant)
        return Answer(grant)

    def consume_credits(
        self,
        organization_id: str,
        amount: int,
        *,
        overage: str,
        scopes: tuple[Any, ...],
        action: str | None,
        idempotency_key: str,
        run: str | None = None,
        run_cap: int | None = None,
    ) -> Answer:
        account, _ = self._open(organization_id)
        payload = (amount, overage, scopes, action)
        if (replay := self._replay(account, "consume", idempotency_key, payload)) is not None:
            return replay
        self._refuse_unless_open(account)
        pool = account.run_of(run, run_cap)
        account.check_run(pool, run_cap, amount, capped=overage != "reject")
        account.check(scopes, amount, capped=overage != "reject")
        room = min(amount, account.limit_room(scopes), account.run_left(pool, run_cap))
        takes = take(account.usable_for(action), room)
        if sum_of(takes) < amount and overage == "reject":
            raise Refused("insufficient_credits")
        account.keep_run(pool)
        row = self._debit(account, takes, amount, scopes, run, lent=self._lend(account, room - sum_of(takes), overage))
        account.keys["consume", idempotency_key] = (payload, row)
        return Answer(row)

    @staticmethod
    def _refuse_unless_open(account: Account) -> None:
        if account.status != "open":
            raise Refused(f"account_{account.status}")

    @staticmethod
    def _lend(account: Account, missing: int, overage: str) -> int:
        """What the line gives of what is missing."""
        return max(0, min(missing, account.line - account.debt)) if overage == "overdraft" else 0

    @staticmethod
    def _debit(
        account: Account,
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
        account.debt += lent
        charged = sum_of(takes) + lent
        account.touch_run(run, account.last_posted_at)
        return account.add_row(
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

    def reserve_credits(
        self,
        organization_id: str,
        amount: int,
        *,
        ttl: timedelta,
        scopes: tuple[Any, ...],
        action: str | None,
        idempotency_key: str,
        run: str | None = None,
        run_cap: int | None = None,
    ) -> Answer:
        account, now = self._open(organization_id)
        payload = (amount, scopes, action)
        if (replay := self._replay(account, "reserve", idempotency_key, payload)) is not None:
            return replay
        self._refuse_unless_open(account)
        wanted = account.run_of(run, run_cap)
        account.check_run(wanted, run_cap, amount)
        account.check(scopes, amount)
        takes = take(account.usable_for(action), amount)
        if sum_of(takes) < amount:
            raise Refused("insufficient_credits")
        for grant, part in takes:
            grant.held += part
        pool = account.keep_run(wanted)
        account.touch_run(run, now)
        hold = Hold(amount, takes, now, now + ttl, scopes=scopes, limits=account.counting(scopes), run=run, pool=pool)
        hold.action = action
        account.holds.append(hold)
        account.keys["reserve", idempotency_key] = (payload, hold)
        return Answer(hold)

    def _hold(self, organization_id: str, reservation_id: str) -> tuple[Account, Hold, datetime]:
        account = self.accounts.get(organization_id)
        if account is None:
            raise Refused("reservation_not_found")
        now = account.book_due(self._clock())
        hold = next((one for one in account.holds if one.id == reservation_id), None)
        if hold is None:
            raise Refused("reservation_not_found")
        return account, hold, now

    def commit_reservation(
        self, organization_id: str, reservation_id: str, amount: int | None, *, overage: str, late: bool = False
    ) -> Answer:
        account, hold, _ = self._hold(organization_id, reservation_id)
        wanted = hold.amount if amount is None else amount
        if hold.charged_once:
            if hold.requested == wanted:
                return Answer(hold, replayed=True)
            raise Refused("reservation_already_settled")
        if hold.state == "released" and not (hold.forced and late):
            raise Refused("reservation_already_settled")
        if hold.state == "expired" and not late:
            raise Refused("reservation_expired")
        if wanted > hold.amount and overage == "reject" and not late:
            raise Refused("overage_rejected")
        self._settle(account, hold, wanted, overage)
        return Answer(hold)

    def _settle(self, account: Account, hold: Hold, wanted: int, overage: str) -> None:
        hold.late = not hold.open
        held = [] if hold.late else hold.takes
        used = take(held, wanted)
        limited = account.limit_room(hold.scopes, without=None if hold.late else hold) - sum_of(used)
        usable = account.usable_for(hold.action)
        if not hold.late:
            hold.state = "committed"
            if hold.pool is not None:
                hold.pool.touch(account.last_posted_at)
        left = account.run_left(account.run_of(hold.run, None), None) - sum_of(used)
        room = min(wanted - sum_of(used), max(0, min(limited, left)))
        extra = take(usable, room)
        for grant, part in used:
            grant.held -= part
        hold.requested = wanted
        if wanted:
            lent = self._lend(account, room - sum_of(extra), overage)
            hold.row = self._debit(account, merge(used + extra), wanted, hold.scopes, hold.run, hold, hold.late, lent)
            hold.charged = -hold.row.amount
            hold.uncollected = hold.row.uncollected
        account.give_back(hold, subtract(held, wanted))
        account.repay(account.last_posted_at)

    def release_reservation(self, organization_id: str, reservation_id: str, *, force: bool = False) -> Answer:
        account, hold, now = self._hold(organization_id, reservation_id)
        if hold.charged_once:
            raise Refused("reservation_already_settled")
        if not hold.open:
            return Answer(hold, replayed=True)
        hold.state = "released"
        hold.forced = force
        if hold.pool is not None:
            hold.pool.touch(account.last_posted_at)
        account.give_back(hold, hold.takes)
        account.repay(now)
        return Answer(hold)

    @staticmethod
    def _refuse_settled(hold: Hold) -> None:
        if hold.charged_once or hold.state == "released":
            raise Refused("reservation_already_settled")
        if hold.state == "expired":
            raise Refused("reservation_expired")

    def extend_reservation(self, organization_id: str, reservation_id: str, ttl: timedelta) -> Answer:
        _, hold, now = self._hold(organization_id, reservation_id)
        self._refuse_settled(hold)
        if hold.state == "unknown":
            raise Refused("reservation_unknown")
        hold.expires_at = now + ttl
        return Answer(hold)

    def mark_unknown(self, organization_id: str, reservation_id: str) -> Answer:
        _, hold, now = self._hold(organization_id, reservation_id)
        self._refuse_settled(hold)
        if hold.state == "unknown":
            return Answer(hold, replayed=True)
        hold.state = "unknown"
        hold.expires_at = now + UNKNOWN_TTL
        return Answer(hold)

    def refund_credits(
        self, organization_id: str, transaction_id: str, amount: int | None, *, idempotency_key: str
    ) -> Answer:
        account, now = self._open(organization_id)
        payload = (transaction_id, amount)
        if (replay := self._replay(account, "refund", idempotency_key, payload)) is not None:
            return replay
        charge = next((row for row in account.rows if row.id == transaction_id), None)
        if charge is None or charge.type != "debit":
            raise Refused("transaction_not_found")
        left = -charge.amount - charge.refunded
        wanted = left if amount is None else amount
        if wanted > left or wanted == 0:
            raise Refused("refund_exceeds_charge")
        # The line was the charge's last resort: it is the first to be given back.
        returned = min(wanted, max(0, charge.overdraft - charge.refunded))
        newest_first = list(reversed(charge.takes))
        given = take(subtract(newest_first, max(0, charge.refunded - charge.overdraft)), wanted - returned)
        charge.refunded += wanted
        account.debt -= returned
        for grant, part in given:
            grant.spent -= part
        row = account.add_row("refund", wanted, takes=given, overdraft=returned, refund_of=charge)
        if charge.run in account.runs and charge.seq > account.runs[charge.run].rows_before:
            account.touch_run(charge.run, row.at)
        for grant, part in given:
            if grant.status in ("expired", "voided"):
                account.breakage(grant, part)
        for grant in sorted(account.grants, key=lambda one: (max(one.effective_at, one.created_at), one.id))[::-1]:
            part = min(grant.repaid, max(0, -account.debt))
            if part:
                account.move(grant, -part)
                if grant.status in ("expired", "voided"):
                    account.breakage(grant, part)
        account.repay(now)
        account.keys["refund", idempotency_key] = (payload, row)
        return Answer(row)

    def adjust_credits(self, organization_id: str, amount: int, *, idempotency_key: str) -> Answer:
        if amount > 0:
            self.create_account(organization_id)
        account, now = self._open(organization_id)
        if (replay := self._replay(account, "adjust", idempotency_key, (amount,))) is not None:
            return replay
        if amount > 0:
            if account.status == "closed":
                raise Refused("account_closed")
            grant = Grant(amount, "adjustment", 50, now, None, now)
            account.grants.append(grant)
            row = account.add_row("adjust", amount, grant=grant)
            account.repay(now)
        else:
            takes = take(account.usable(), -amount)
            if sum_of(takes) < -amount:
                raise Refused("insufficient_credits")
            for one, part in takes:
                one.voided += part
            row = account.add_row("adjust", amount, takes=takes)
        account.keys["adjust", idempotency_key] = ((amount,), row)
        return Answer(row)

    def set_overdraft(self, organization_id: str, amount: int) -> Answer:
        account, _ = self._open(organization_id)
        before, account.line = account.line, amount
        return Answer(None, replayed=before == amount)

    def set_status(self, organization_id: str, change: str) -> Answer:
        account, _ = self._open(organization_id)
        status, before = {
            "freeze": ("frozen", ("open",)),
            "unfreeze": ("open", ("frozen",)),
            "close": ("closed", ("open", "frozen")),
            "reopen": ("open", ("closed",)),
        }[change]
        if account.status not in (status, *before):
            raise Refused(f"account_{account.status}")
        same = account.status == status
        account.status = status
        if status == "closed":
            for one in account.recurring:
                one.status = "cancelled" if one.status == "active" else one.status
        return Answer(None, replayed=same)

    def set_limit(
        self,
        organization_id: str,
        *,
        scope: str,
        scope_id: str,
        unit: str,
        window: str,
        amount: int,
        hard: bool,
        include_existing: bool,
    ) -> Answer:
        self.create_account(organization_id)
        account, _ = self._open(organization_id)
        before = 0 if include_existing else len(account.rows)
        limit = Limit(scope, scope_id, unit, window, amount, hard, before)
        for known in account.limits:
            if known.place == limit.place:
                known.amount, known.hard = amount, hard
                return Answer(known)
        account.limits.append(limit)
        return Answer(limit)

    def remove_limit(self, organization_id: str, limit_id: str) -> Answer:
        account, _ = self._open(organization_id)
        limit = next((one for one in account.limits if one.id == limit_id), None)
        if limit is None:
            raise Refused("limit_not_found")
        account.limits.remove(limit)
        return Answer(limit)

    def open_run(
        self,
        organization_id: str,
        run_id: str,
        *,
        parent_run_id: str | None,
        amount: int | None,
        borrow: bool | None,
        partial: bool,
        ttl: timedelta | None,
    ) -> Answer:
        account, now = self._open(organization_id)
        parent = None if parent_run_id is None else self._run(account, parent_run_id)
        known = account.runs.get(run_id)
        place = known.parent if known is not None else parent
        if known is not None and known.ended_at is not None:
            raise Refused("run_ended")
        if known is not None and parent is not None and known.parent is not parent:
            raise Refused("invalid_input")
        if borrow and place is None:
            raise Refused("invalid_input")
        if known is None and parent is not None and parent.ended_at is not None:
            raise Refused("run_ended")
        cap = amount if amount is not None or known is None else known.cap
        if place is not None and cap is not None:
            claimed = 0 if known is None else account.claim(known)
            least = 0 if known is None else account.used(known)
            more = max(0, max(cap, least) - claimed)
            given = more if account.bears(place, more) else account.run_room(place)
            if given < more and not partial:
                raise Refused("credit_limit_exceeded")
            cap -= more - given
        if known is None:
            lasts = ttl or timedelta(days=30 if place is None else 1)
            known = Run(run_id, place, cap, bool(borrow), lasts, len(account.rows), now)
            account.runs[run_id] = known
        known.cap = cap
        known.borrow = known.borrow if borrow is None else borrow
        known.ttl = ttl or known.ttl
        known.touch(now)
        return Answer(None)

    @staticmethod
    def _run(account: Account, run_id: str) -> Run:
        if run_id not in account.runs:
            raise Refused("run_not_found")
        return account.runs[run_id]

    def end_run(self, organization_id: str, run_id: str) -> Answer:
        account, now = self._open(organization_id)
        run = self._run(account, run_id)
        if run.ended_at is None:
            account.end_run(run, now)
        return Answer(None)

    def sweep(self, organization_id: str) -> Answer:
        self._open(organization_id)
        return Answer(None)

    def purge(self, organization_id: str, older_than: timedelta) -> int:
        """Forget the keys of old calls; those that gave, and those of open holds, are kept."""
        account, before = self.accounts[organization_id], self._clock() - older_than
        old = [
            (kind, key)
            for (kind, key), (_, record) in account.keys.items()
            if kind in ("consume", "refund", "reserve")
            and (record.created_at if isinstance(record, Hold) else record.at) < before
            and not (isinstance(record, Hold) and record.open)
        ]
        for place in old:
            del account.keys[place]
        return len(old)


def subtract(takes: Takes, amount: int) -> Takes:
    """``takes`` without its first ``amount``."""
    rest: Takes = []
    for grant, part in takes:
        cut = min(part, amount)
        amount -= cut
        if part > cut:
            rest.append((grant, part - cut))
    return rest
