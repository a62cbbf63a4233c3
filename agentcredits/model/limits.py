"""Limits, what was used of them, and what they (would have) said."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from agentcredits.amounts import from_micros
from agentcredits.model.records import MicrosAsCredits
from agentcredits.model.words import LimitMode, LimitScope, LimitUnit


@dataclass(frozen=True, slots=True)
class LimitUsage:
    """What one counter of a limit stands at, in the limit's unit.

    Args:
        scope_id: Whose counter; '' for the organization.
        spent: Charged in the current window, net of refunds within it.
        held: In open reservations, whatever window they were made in.
        remaining: What can still be used; never below 0.
        window_start: When the current window began; None for a lifetime.
        resets_at: When it ends; None for a lifetime.
    """

    scope_id: str
    spent: Decimal
    held: Decimal
    remaining: Decimal
    window_start: datetime | None
    resets_at: datetime | None


@dataclass(frozen=True, slots=True)
class Limit:
    """How much may be used in a scope and window.

    Args:
        organization_id: Whose.
        id: The limit's id.
        scope: What it is for.
        scope_id: Which department, project, user, agent type or action (``"VideoAgent.generate_video"``); '' is the
            organization itself, or each department, each user …
        unit: Credits, or charges.
        window: The window as text, such as ``"month UTC"``; see :class:`agentcredits.Window`.
        amount: How much, in the unit; 0 allows nothing.
        mode: Whether it refuses.
        warn_at: Fractions of the amount whose crossing is recorded.
        created_at: Since when it counts (unless it was made to count what was there).
        usage: Counters, the most used first; at most 20.
    """

    organization_id: str
    id: str
    scope: LimitScope
    scope_id: str
    unit: LimitUnit
    window: str
    amount: Decimal
    mode: LimitMode
    warn_at: tuple[Decimal, ...]
    created_at: datetime
    usage: tuple[LimitUsage, ...] = ()

    @property
    def is_each(self) -> bool:
        """Whether it is a default for every department, user … that has no limit of its own."""
        return not self.scope_id and self.scope is not LimitScope.ORGANIZATION


@dataclass(frozen=True, slots=True)
class LimitCrossing:
    """A soft limit or warn threshold that was reached, recorded once in a window.

    Args:
        organization_id: Whose.
        id: The record's id.
        limit_id: The limit; '' where it is the cap of a run.
        scope: Its scope.
        scope_id: Whose counter.
        unit: Its unit.
        window: Its window as text.
        window_start: When the window began; None for a lifetime.
        threshold: The fraction of the amount that was reached; 1 for a soft limit that was gone beyond.
        limit_amount: The limit's amount then, in its unit.
        spent: What the counter stood at afterwards, in the unit.
        created_at: When.
        transaction_id: The charge that did it.
    """

    organization_id: str
    id: str
    limit_id: str
    scope: LimitScope
    scope_id: str
    unit: LimitUnit
    window: str
    window_start: datetime | None
    threshold: Decimal
    limit_amount: Decimal
    spent: Decimal
    created_at: datetime
    transaction_id: str | None = None


@dataclass(frozen=True, slots=True)
class Denial(MicrosAsCredits):
    """What mode "observe" let pass and "enforce" would have refused.

    Args:
        organization_id: Whose.
        id: The record's id.
        created_at: When.
        code: The error's code, such as ``"insufficient_credits"``.
        reason: The error's reason.
        limit_source: What would have said no.
        message: The error's sentence.
        required_micros: What the action costs.
        agent_type: Of the action.
        action: Of the action.
        project_id: Of the request.
        department_id: Of the request.
        user_id: Of the request.
        run_id: Of the request.
    """

    organization_id: str
    id: str
    created_at: datetime
    code: str
    reason: str
    limit_source: str | None
    message: str
    required_micros: int
    agent_type: str | None = None
    action: str | None = None
    project_id: str | None = None
    department_id: str | None = None
    user_id: str | None = None
    run_id: str | None = None

    @property
    def required(self) -> Decimal:
        """Credits that the action costs."""
        return from_micros(self.required_micros)


@dataclass(frozen=True, slots=True)
class DenialGroup(MicrosAsCredits):
    """Would-be refusals of one kind: how many, of how many credits, first and last."""

    organization_id: str
    reason: str
    limit_source: str | None
    agent_type: str | None
    action: str | None
    count: int
    required_micros: int
    first_at: datetime
    last_at: datetime

    @property
    def required(self) -> Decimal:
        """Credits of all of them."""
        return from_micros(self.required_micros)
