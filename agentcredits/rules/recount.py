"""What an account's counters should be: recomputed from its ledger rows, one row after the other. Pure.

Memory grows with the counters (grants, limits and their scope ids, the usage lines of one day), never with the rows.
``store.verification`` feeds these in the order of ``seq`` and compares; ``store.repair`` writes what they say.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import Enum
from typing import NamedTuple

from agentcredits.model import GrantCategory, LimitScope, LimitUnit, Pricing
from agentcredits.rules import limits, rollups
from agentcredits.rules.rollups import Totals
from agentcredits.rules.state import LimitState

_OBSERVED = Pricing.OBSERVED.value
_CATEGORIES = {category.value: category for category in GrantCategory}

CounterPlace = tuple[str, str]
"""Limit id and scope id."""

Period = tuple[datetime | None, datetime | None]
"""The window of a counter; (None, None) for a lifetime."""


@dataclass(slots=True)
class Entry:
    """A ledger row as far as counters depend on it; ``charge_…``: of a refund, the charge that it gives back."""

    seq: int
    type: str
    amount_micros: int
    balance_after_micros: int
    uncollected_micros: int
    created_at: datetime
    pricing: str
    agent_type: str | None
    action: str | None
    department_id: str | None
    project_id: str | None
    user_id: str | None
    run_id: str | None
    charge_seq: int | None = None
    charge_at: datetime | None = None
    charge_pricing: str | None = None

    @property
    def is_transfer(self) -> bool:
        """Whether it moves credits between a grant and the debt: its two allocations are no change of the balance."""
        return self.type == "adjust" and self.amount_micros == 0


class Part(NamedTuple):
    """An allocation of a ledger row, and the category of its grant; without a grant it is debt."""

    seq: int
    position: int
    grant_id: str | None
    amount_micros: int
    category: str | None


class Break(Enum):
    """How a row does not follow from the row before."""

    ORDER = "order"
    """Its seq or its time."""
    BALANCE = "balance"
    """Its balance_after: the account's counters were wrong when it was written, or became right again."""


@dataclass(slots=True)
class GrantSums:
    """What the allocations of ledger rows say of one grant, in micro-credits."""

    amount: int = 0
    spent: int = 0
    expired: int = 0
    voided: int = 0
    repaid: int = 0


@dataclass(slots=True)
class AccountRecount:
    """The account's terms and its grants' (micro-credits), and whether each row follows from the one before."""

    rows: int = 0
    last_seq: int = 0
    balance: int = 0
    granted: int = 0
    spent: int = 0
    expired: int = 0
    voided: int = 0
    debt: int = 0
    grants: dict[str, GrantSums] = field(default_factory=dict)
    _said: int = 0
    _at: datetime | None = None

    def add(self, row: Entry) -> Break | None:
        """Count a row; how it does not follow from the row before, if it does not."""
        amount = row.amount_micros
        broken = None
        if row.seq != self.last_seq + 1 or (self._at is not None and row.created_at < self._at):
            broken = Break.ORDER
        elif row.balance_after_micros != self._said + amount:
            broken = Break.BALANCE
        self.rows += 1
        self.last_seq, self._said, self._at = row.seq, row.balance_after_micros, row.created_at
        self.balance += amount
        if row.type in ("debit", "refund"):
            self.spent -= amount
        elif row.type == "expire":
            self.expired -= amount
        elif row.type == "adjust" and amount < 0:
            self.voided -= amount
        else:
            self.granted += amount
        return broken

    def add_part(self, row: Entry, part: Part) -> None:
        """Count an allocation of a row."""
        grant_id, amount_micros = part.grant_id, part.amount_micros
        # The first allocation of a transfer pays the second.
        paid = amount_micros if part.position == 0 else -amount_micros
        if grant_id is None:
            self.debt += paid if row.is_transfer else amount_micros if row.type == "debit" else -amount_micros
            return
        sums = self.grants.get(grant_id)
        if sums is None:
            sums = self.grants[grant_id] = GrantSums()
        if row.type == "debit":
            sums.spent += amount_micros
        elif row.is_transfer:
            sums.spent += paid
            sums.repaid += paid
        elif row.type == "refund":
            sums.spent -= amount_micros
        elif row.type == "expire":
            sums.expired += amount_micros
        elif row.type == "adjust" and row.amount_micros < 0:
            sums.voided += amount_micros
        else:
            sums.amount += amount_micros

    @property
    def is_gapless(self) -> bool:
        """Whether the rows are numbered 1 to n."""
        return self.last_seq == self.rows


Day = tuple[str, dict[tuple[str, ...], Totals]]
"""A UTC day and its usage lines, by the values of ``rollups.GROUPED``."""


@dataclass(slots=True)
class UsageRecount:
    """The usage lines of one day after the other: rows never go back in time, so a day is over when the next begins."""

    day: str = ""
    lines: dict[tuple[str, ...], Totals] = field(default_factory=dict)
    _date: date | None = None

    def add(self, row: Entry, parts: Iterable[Part] = ()) -> Day | None:
        """Count a row with its allocations; the day before when the row is the first of a later one."""
        if row.type not in ("debit", "refund") or row.pricing == _OBSERVED:
            return None
        closed: Day | None = None
        today = row.created_at.date()
        if today != self._date:
            closed = (self.day, self.lines) if self.day else None
            self.day, self.lines = rollups.day_of(row.created_at), {}
            self._date = today
        key = (
            row.agent_type or "",
            row.action or "",
            row.department_id or "",
            row.project_id or "",
            row.user_id or "",
        )
        line = self.lines.get(key)
        if line is None:
            line = self.lines[key] = Totals()
        is_charge = row.type == "debit"
        if is_charge:
            line.charges += 1
            line.charged_micros -= row.amount_micros
            line.uncollected_micros += row.uncollected_micros
        else:
            line.refunded_micros += row.amount_micros
        for part in parts:
            if part.category is not None:
                category = _CATEGORIES[part.category]
                net = part.amount_micros if is_charge else -part.amount_micros
                line.net_micros[category] = line.net_micros.get(category, 0) + net
        return closed


class LimitRecount:
    """What was spent in the windows of counters, all limits in one pass.

    Args:
        known: The limits to recount, by id.
        windows: The window that each stored counter stands in.
        now: A counter that is not stored is recounted in the window of this moment.
    """

    def __init__(self, known: Mapping[str, LimitState], windows: Mapping[CounterPlace, Period], now: datetime) -> None:
        self.limits = known
        self.windows = windows
        self.spent: dict[CounterPlace, int] = {}
        self._at: dict[tuple[LimitScope, str], list[LimitState]] = {}
        self._present: dict[str, Period] = {}
        starts = [start for start, _ in windows.values()]
        for limit in known.values():
            if limit.unusable is None:
                self._at.setdefault((limit.scope, limit.scope_id), []).append(limit)
                self._present[limit.id] = limits.window_of(limit, now)
                starts.append(self._present[limit.id][0])
        #: Rows before this moment are in no window; None: all may be.
        self.starts_at = min((start for start in starts if start is not None), default=None)
        if None in starts:
            self.starts_at = None

    def add(self, row: Entry) -> None:
        """Count a charge, or take off a refund whose charge is in the same window."""
        if not self._at or (self.starts_at is not None and row.created_at < self.starts_at):
            return
        is_charge = row.type == "debit"
        if is_charge:
            charge_seq, charge_at, pricing = row.seq, row.created_at, row.pricing
        elif row.type == "refund" and row.charge_seq is not None and row.charge_at is not None:
            charge_seq, charge_at, pricing = row.charge_seq, row.charge_at, str(row.charge_pricing)
        else:
            return
        if pricing == _OBSERVED:
            return
        for scope, scope_id in limits.places_of_record(row):
            found = self._at.get((scope, scope_id), ())
            if scope_id:
                found = (*found, *self._at.get((scope, ""), ()))
            for limit in found:
                if charge_seq <= limit.counts_from_seq:
                    continue
                place = limit.id, scope_id
                start, end = self.windows.get(place) or self._present[limit.id]
                if (start is not None and charge_at < start) or (end is not None and row.created_at >= end):
                    continue
                units = -row.amount_micros if limit.unit is LimitUnit.CREDITS else int(is_charge)
                if units:
                    self.spent[place] = self.spent.get(place, 0) + units


@dataclass(slots=True)
class Marks:
    """Where in the ledger a moment is: (time, seq) of every so many rows, in order."""

    times: list[datetime] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)

    def add(self, at: datetime, seq: int) -> None:
        """Note a row."""
        self.times.append(at)
        self.seqs.append(seq)

    def seq_before(self, at: datetime) -> int:
        """A seq up to which all rows are earlier than ``at``; 0 when none is known."""
        place = bisect_left(self.times, at)
        return self.seqs[place - 1] if place else 0
