"""What the reference model is made of."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
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


def subtract(takes: Takes, amount: int) -> Takes:
    """``takes`` without its first ``amount``."""
    rest: Takes = []
    for grant, part in takes:
        cut = min(part, amount)
        amount -= cut
        if part > cut:
            rest.append((grant, part - cut))
    return rest
