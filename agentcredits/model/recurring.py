"""Grants that come again each period, and what of a period's rest is carried over."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal

from agentcredits.amounts import Amount, from_micros
from agentcredits.model.records import MicrosAsCredits
from agentcredits.model.words import GrantCategory, RecurringStatus

Lasting = timedelta | Literal["period"] | None
"""How long credits can be used: a time, to the end of the period, or (None) for ever."""


@dataclass(frozen=True, slots=True)
class Rollover:
    """What of a period's grant is carried over into the next period, when there is one.

    Args:
        maximum: The most credits that the rollovers of the recurring grant may have together; None: no bound.
        minimum: Fewer than this are not carried over. It never adds credits.
        expires_after: How long what was carried over can be used, counted from the end of its period.
    """

    maximum: Amount | None = None
    minimum: Amount = 0
    expires_after: Lasting = "period"


@dataclass(frozen=True, slots=True)
class RecurringGrant(MicrosAsCredits):
    """A grant that comes again each period.

    Args:
        organization_id: Whose.
        id: Its own.
        status: Whether it still grants.
        amount_micros: Of each period's grant.
        category: Of each period's grant.
        priority: Of each period's grant.
        window: The periods, as the text of a :class:`Window`.
        starts_at: When the first grant came or comes.
        next_at: When the next one comes; None: none does.
        ends_at: No period that begins then or later is granted; None: without end.
        expires_after: How long each period's grant can be used.
        rollover: What is carried over at a period's end; None: nothing.
        only_for: As :attr:`CreditGrant.only_for`.
        unit_cost: As :attr:`CreditGrant.unit_cost`.
        currency: Of ``unit_cost``.
        source: Of each period's grant.
        created_at: When it was made.
        cancelled_at: When it was cancelled.
        replayed: Whether this is a stored answer.
    """

    organization_id: str
    id: str
    status: RecurringStatus
    amount_micros: int
    category: GrantCategory
    priority: int
    window: str
    starts_at: datetime
    created_at: datetime
    next_at: datetime | None = None
    ends_at: datetime | None = None
    expires_after: Lasting = "period"
    rollover: Rollover | None = None
    only_for: tuple[str, ...] = ()
    unit_cost: Decimal | None = None
    currency: str | None = None
    source: str | None = None
    cancelled_at: datetime | None = None
    replayed: bool = False

    @property
    def amount(self) -> Decimal:
        """Credits of each period's grant."""
        return from_micros(self.amount_micros)
