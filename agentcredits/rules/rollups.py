"""Usage by day: what ledger rows add to the totals that usage reports read. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter

from agentcredits.model import GrantCategory, Pricing, TransactionType
from agentcredits.rules.state import Row

#: What usage can be grouped by, in the order that ``bucket`` hashes them.
GROUPED = ("agent_type", "action", "department_id", "project_id", "user_id")

Place = tuple[str, tuple[str, ...]]
"""UTC day, and the values of ``GROUPED`` ('' where there is none)."""


@dataclass(slots=True)
class Totals:
    """What is added to one line of usage."""

    charges: int = 0
    charged_micros: int = 0
    refunded_micros: int = 0
    uncollected_micros: int = 0
    #: Charged less refunded, by the category of the grants.
    net_micros: dict[GrantCategory, int] = field(default_factory=dict)

    def plus(self, other: Totals) -> Totals:
        """Both together."""
        return Totals(
            self.charges + other.charges,
            self.charged_micros + other.charged_micros,
            self.refunded_micros + other.refunded_micros,
            self.uncollected_micros + other.uncollected_micros,
            {
                category: self.net_micros.get(category, 0) + other.net_micros.get(category, 0)
                for category in {*self.net_micros, *other.net_micros}
            },
        )

    def negated(self) -> Totals:
        """What takes them off again."""
        return Totals(
            -self.charges,
            -self.charged_micros,
            -self.refunded_micros,
            -self.uncollected_micros,
            {category: -micros for category, micros in self.net_micros.items()},
        )


_grouped = attrgetter(*GROUPED)


def totals(rows: Iterable[Row]) -> dict[Place, Totals]:
    """What charges and refunds add, by place."""
    lines: dict[tuple[datetime, tuple[str | None, ...]], Totals] = {}
    for row in rows:
        is_charge = row.type is TransactionType.DEBIT
        if not is_charge and row.type is not TransactionType.REFUND:
            continue
        if row.pricing is Pricing.OBSERVED:
            # No charge: what mode "observe" let pass is told by its own report.
            continue
        key = row.created_at, _grouped(row)
        line = lines.get(key)
        if line is None:
            line = lines[key] = Totals()
        if is_charge:
            line.charges += 1
            line.charged_micros -= row.amount_micros
            line.uncollected_micros += row.uncollected_micros
        else:
            line.refunded_micros += row.amount_micros
        net = line.net_micros
        for part in row.allocations:
            if part.category is not None:
                net[part.category] = net.get(part.category, 0) + (
                    part.amount_micros if is_charge else -part.amount_micros
                )
    # All rows of a posting have one time: its text is made once for each line.
    found: dict[Place, Totals] = {}
    for (at, values), line in lines.items():
        place = day_of(at), tuple(value or "" for value in values)
        found[place] = line if place not in found else found[place].plus(line)
    return found


def day_of(at: datetime) -> str:
    """The UTC day as text, ``2026-01-31``."""
    return at.astimezone(UTC).date().isoformat()


@lru_cache(maxsize=4096)
def bucket(values: tuple[str, ...]) -> str:
    """A short key for the values of ``GROUPED``: together they may be too long for an index."""
    text = "".join(f"{len(value)}:{value}" for value in values)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
