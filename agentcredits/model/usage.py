"""What was used, by day and by whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal

from agentcredits.amounts import from_micros
from agentcredits.model.records import MicrosAsCredits


@dataclass(frozen=True, slots=True)
class UsageLine(MicrosAsCredits):
    """One line of a usage report.

    Args:
        group: The names asked for in ``group_by`` and their values; None where a charge had none.
        bucket: First day of the bucket (day, ISO week or month, UTC); None without buckets.
        charges: How many charges.
        charged_micros: What they took.
        refunded_micros: What was given back in the period, whenever it was charged.
        uncollected_micros: What over-runs could not collect.
        paid_micros: The part of the net that paid grants bore.
        promotional_micros: The same of promotional grants.
        plan_micros: The same of a plan's grants.
        adjustment_micros: The same of adjustments.
    """

    group: Mapping[str, str | None]
    bucket: date | None
    charges: int
    charged_micros: int
    refunded_micros: int
    uncollected_micros: int
    paid_micros: int = 0
    promotional_micros: int = 0
    plan_micros: int = 0
    adjustment_micros: int = 0

    @property
    def charged(self) -> Decimal:
        """Credits taken."""
        return from_micros(self.charged_micros)

    @property
    def refunded(self) -> Decimal:
        """Credits given back."""
        return from_micros(self.refunded_micros)

    @property
    def uncollected(self) -> Decimal:
        """Credits that over-runs could not collect."""
        return from_micros(self.uncollected_micros)

    @property
    def paid(self) -> Decimal:
        """Credits of paid grants, net of refunds."""
        return from_micros(self.paid_micros)

    @property
    def promotional(self) -> Decimal:
        """Credits of promotional grants, net of refunds."""
        return from_micros(self.promotional_micros)

    @property
    def plan(self) -> Decimal:
        """Credits of a plan's grants, net of refunds."""
        return from_micros(self.plan_micros)

    @property
    def adjustment(self) -> Decimal:
        """Credits of adjustments, net of refunds."""
        return from_micros(self.adjustment_micros)

    @property
    def net_micros(self) -> int:
        """Charged less refunded, in micros."""
        return self.charged_micros - self.refunded_micros

    @property
    def net(self) -> Decimal:
        """Charged less refunded, in credits."""
        return from_micros(self.net_micros)

    def keys(self) -> tuple[str, ...]:
        """Names for mapping access."""
        return (*MicrosAsCredits.keys(self), "net", "net_micros")


@dataclass(frozen=True, slots=True)
class UsageReport:
    """The answer of ``get_usage``: lines by bucket, then by what was charged (most first).

    Args:
        organization_id: Whose.
        since: First day, UTC; None: from the beginning.
        until: The day after the last one, UTC; None: to the end.
        group_by: What the lines are grouped by.
        bucket: "day", "week", "month" or None.
        lines: The lines.
    """

    organization_id: str
    since: date | None
    until: date | None
    group_by: tuple[str, ...]
    bucket: str | None
    lines: tuple[UsageLine, ...] = field(default_factory=tuple)

    def __iter__(self) -> Iterator[UsageLine]:
        return iter(self.lines)

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def total(self) -> UsageLine:
        """All lines together."""
        return UsageLine(
            group={},
            bucket=None,
            charges=sum(line.charges for line in self.lines),
            charged_micros=sum(line.charged_micros for line in self.lines),
            refunded_micros=sum(line.refunded_micros for line in self.lines),
            uncollected_micros=sum(line.uncollected_micros for line in self.lines),
            paid_micros=sum(line.paid_micros for line in self.lines),
            promotional_micros=sum(line.promotional_micros for line in self.lines),
            plan_micros=sum(line.plan_micros for line in self.lines),
            adjustment_micros=sum(line.adjustment_micros for line in self.lines),
        )
