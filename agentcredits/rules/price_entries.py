"""A price that is to be set: checked when it is made, its times when it is set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from agentcredits.amounts import Amount, from_micros, to_micros
from agentcredits.errors import InvalidAmountError, InvalidInputError
from agentcredits.ids import check_text
from agentcredits.rules.price_rules import PriceRule, usable


@dataclass(frozen=True, slots=True)
class PriceEntry:
    """What an action shall cost; for ``import_costs``.

    Args:
        agent_type: Or ``"*"``: every agent type.
        action: Or ``"*"``: every action.
        cost: Credits for one, or a :class:`PriceRule` (or its document); 0 only with ``free=True``.
        free: A price of 0 is meant.
        source: Where the price comes from.
        as_of: The day on which it was known to be right.
        valid_from: From when; None: from the import on.
        valid_until: Until when (exclusive); None: until replaced.

    Raises:
        InvalidInputError: one of them cannot be used.
    """

    agent_type: str
    action: str
    cost: Amount | PriceRule | Mapping[str, Any]
    free: bool = False
    source: str | None = None
    as_of: date | None = None
    valid_from: datetime | None = None
    valid_until: datetime | None = None

    def __post_init__(self) -> None:
        check_text(self.agent_type, name="agent_type")
        check_text(self.action, name="action")
        object.__setattr__(self, "cost", _cost(self.cost, free=self.free))
        if self.source is not None:
            check_text(self.source, name="source")
        day: object = self.as_of
        if day is not None and (not isinstance(day, date) or isinstance(day, datetime)):
            raise InvalidInputError("as_of must be a date.", context={"parameter": "as_of"})

    @property
    def rule(self) -> PriceRule | None:
        """The rule; None for a flat cost."""
        return self.cost if isinstance(self.cost, PriceRule) else None

    @property
    def flat(self) -> Decimal:
        """Credits for one; 0 where a rule prices it."""
        return self.cost if isinstance(self.cost, Decimal) else Decimal(0)

    def changed(self, **changes: Any) -> PriceEntry:
        """The same with other fields."""
        return replace(self, **changes)


def _cost(given: object, *, free: bool) -> Decimal | PriceRule:
    if isinstance(given, Mapping) and "kind" not in given:
        raise InvalidAmountError(
            "cost must be a number of credits, or a price rule with its kind.",
            reason="not_a_number",
            context={"parameter": "cost"},
        )
    if isinstance(given, PriceRule | Mapping):
        return usable(given if isinstance(given, PriceRule) else PriceRule(given))
    micros = to_micros(given, name="cost", allow_zero=free)
    if free and micros:
        raise InvalidInputError("a free action costs 0: pass cost 0 or leave free out.", reason="free_with_cost")
    return from_micros(micros)
