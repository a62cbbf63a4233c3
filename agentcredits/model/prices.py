"""Prices as operators and callers see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Literal

from agentcredits.amounts import from_micros
from agentcredits.model.records import MicrosAsCredits


@dataclass(frozen=True, slots=True)
class ActionCost(MicrosAsCredits):
    """One row of ``agent_action_costs``. ``organization_id`` '' is the default for all.

    ``cost`` is in credits for one; None where a ``rule`` prices the action (its document, see ``PriceRule``), or where
    ``problem`` says what of the row cannot be used (the action is refused then). ``as_of`` is the day on which the
    price was known to be right.
    """

    organization_id: str
    agent_type: str
    action: str
    cost: Decimal | None
    valid_from: datetime
    valid_until: datetime | None = None
    free: bool = False
    source: str | None = None
    created_at: datetime | None = None
    rule: Mapping[str, Any] | None = None
    as_of: date | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class PriceStep:
    """One line of a price's arithmetic: a sentence, and the amount that it arrives at (None: it only chooses)."""

    text: str
    amount: Decimal | None = None
    unit: Literal["credits", "usd"] | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class PriceExplanation(MicrosAsCredits):
    """What an action costs now, and how that comes about.

    ``usd`` is what the price list says in US dollars, where it does; ``price`` is the row that applies.
    """

    organization_id: str
    agent_type: str
    action: str
    quantity: Decimal
    amount_micros: int
    price: ActionCost
    dimensions: Mapping[str, Any] = field(default_factory=dict)
    usd: Decimal | None = None
    steps: tuple[PriceStep, ...] = ()

    @property
    def amount(self) -> Decimal:
        """Credits."""
        return from_micros(self.amount_micros)


@dataclass(frozen=True, slots=True)
class PriceChange:
    """What importing one price does.

    ``status``: "new", "changed", "same" (nothing is written), "over" (its ``valid_until`` is past: nothing is written)
    or, in a comparison, "only_in_database". ``details`` are sentences on what differs.
    """

    organization_id: str
    agent_type: str
    action: str
    status: Literal["new", "changed", "same", "over", "only_in_database"]
    before: ActionCost | None = None
    after: ActionCost | None = None
    details: tuple[str, ...] = ()
