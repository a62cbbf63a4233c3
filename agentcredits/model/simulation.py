"""What recorded usage would have cost at other prices and under other limits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from agentcredits.amounts import Amount, from_micros
from agentcredits.model.records import MicrosAsCredits


@dataclass(frozen=True, slots=True)
class PlannedLimit:
    """A limit to try out with ``simulate``; checked there, as ``set_limit`` checks one.

    Args:
        amount: How much, in the unit; 0 allows nothing.
        window: Its window as text, such as ``"month"`` or ``"day Europe/Berlin"``.
        scope: What it is for: organization, department, project, user, agent_type, action or run.
        scope_id: Which department, user …; None: the organization, or each that has no limit of its own here.
        unit: "credits" or "count".
        mode: "hard" refuses; "soft" only counts how often it would have been gone beyond.
        organization_id: Whose; None: every organization's.
    """

    amount: Amount
    window: str
    scope: str = "organization"
    scope_id: str | None = None
    unit: str = "credits"
    mode: str = "hard"
    organization_id: str | None = None


@dataclass(frozen=True, slots=True)
class SimulationLine(MicrosAsCredits):
    """The charges of one action, recorded and simulated; amounts in micro-credits, net of refunds.

    Args:
        organization_id: Whose.
        agent_type: Of the action; None where the charge named none.
        action: The action; None where the charge named none.
        charges: How many were recorded.
        recorded_micros: What they took.
        simulated_micros: What they would have taken, without those that would have been refused.
        refused: How many a limit would have refused.
        refused_micros: What those would have cost, at the simulated prices.
    """

    organization_id: str
    agent_type: str | None
    action: str | None
    charges: int
    recorded_micros: int
    simulated_micros: int
    refused: int
    refused_micros: int

    @property
    def difference_micros(self) -> int:
        """Simulated less recorded, in micros."""
        return self.simulated_micros - self.recorded_micros

    @property
    def recorded(self) -> Decimal:
        """Credits that were taken."""
        return from_micros(self.recorded_micros)

    @property
    def simulated(self) -> Decimal:
        """Credits that would have been taken."""
        return from_micros(self.simulated_micros)

    @property
    def difference(self) -> Decimal:
        """Simulated less recorded, in credits."""
        return from_micros(self.difference_micros)

    @property
    def refused_credits(self) -> Decimal:
        """Credits of the charges that a limit would have refused."""
        return from_micros(self.refused_micros)

    def keys(self) -> tuple[str, ...]:
        """Names for mapping access; ``refused`` is a count, its credits are ``refused_credits``."""
        return (*MicrosAsCredits.keys(self), "difference", "difference_micros", "refused_credits")


@dataclass(frozen=True, slots=True)
class LimitEffect(MicrosAsCredits):
    """What one planned limit would have done to one organization.

    Args:
        organization_id: Whose charges.
        limit: The limit.
        refused: How many charges it would have refused (each counts for the limit that stands in its way longest).
        refused_micros: What those would have cost.
        first_at: When it would first have refused, or (soft) been gone beyond.
        crossed: How often a soft limit would have been gone beyond, once in each window.
    """

    organization_id: str
    limit: PlannedLimit
    refused: int
    refused_micros: int
    first_at: datetime
    crossed: int = 0

    @property
    def refused_credits(self) -> Decimal:
        """Credits of the charges that it would have refused."""
        return from_micros(self.refused_micros)

    def keys(self) -> tuple[str, ...]:
        """Names for mapping access; ``refused`` is a count, its credits are ``refused_credits``."""
        return (*MicrosAsCredits.keys(self), "refused_credits")


@dataclass(frozen=True, slots=True)
class NotRepriced(MicrosAsCredits):
    """Charges that keep their recorded amount in the simulation, and why.

    Args:
        organization_id: Whose.
        agent_type: Of the action.
        action: The action.
        reason: ``"amount_given"``: the price list of then does not explain the amount (the caller gave it, or the
            price was edited in place); ``"dimensions_missing"``: what the price depends on is not in the ledger (never
            told, or erased); else the reason for which the simulated price list has no price.
        message: A sentence about the first of them.
        charges: How many.
        recorded_micros: What they took, refunds not counted.
    """

    organization_id: str
    agent_type: str | None
    action: str | None
    reason: str
    message: str
    charges: int
    recorded_micros: int

    @property
    def recorded(self) -> Decimal:
        """Credits that they took."""
        return from_micros(self.recorded_micros)


@dataclass(frozen=True, slots=True)
class SimulationReport:
    """The answer of ``simulate``: recorded usage against other prices and limits, by action, biggest change first.

    Args:
        since: First moment of the charges; None: from the beginning.
        until: First moment after them.
        lines: By organization and action.
        limits: What planned limits would have done, where they would have done something.
        not_repriced: Charges that keep their amount, and why; empty without other prices.
    """

    since: datetime | None
    until: datetime
    lines: tuple[SimulationLine, ...]
    limits: tuple[LimitEffect, ...] = ()
    not_repriced: tuple[NotRepriced, ...] = ()

    @property
    def total(self) -> SimulationLine:
        """All lines together."""
        return self._sum("", self.lines)

    @property
    def organizations(self) -> tuple[SimulationLine, ...]:
        """One line for each organization, in the order of their ids."""
        names = sorted({line.organization_id for line in self.lines})
        return tuple(
            self._sum(name, tuple(line for line in self.lines if line.organization_id == name)) for name in names
        )

    @staticmethod
    def _sum(organization_id: str, lines: tuple[SimulationLine, ...]) -> SimulationLine:
        return SimulationLine(
            organization_id,
            None,
            None,
            sum(line.charges for line in lines),
            sum(line.recorded_micros for line in lines),
            sum(line.simulated_micros for line in lines),
            sum(line.refused for line in lines),
            sum(line.refused_micros for line in lines),
        )
