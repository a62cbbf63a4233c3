"""What an action costs: which row of ``agent_action_costs`` applies, and how it becomes an amount. Pure.

An organization's own row beats the default (``organization_id`` ''), an exact name beats ``*`` (agent type before
action), and of the rows in force the one that became valid last wins.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from agentcredits.amounts import from_micros, multiply_up, parse_decimal, to_micros
from agentcredits.errors import InvalidAmountError, UnpricedActionError
from agentcredits.model import Pricing

ANY: Final = "*"
DEFAULT_ORGANIZATION: Final = ""
MAX_QUANTITY: Final = 10**9


@dataclass(frozen=True, slots=True)
class CostRow:
    """A row of ``agent_action_costs`` as read; ``cost`` is whatever an operator typed."""

    organization_id: str
    agent_type: str
    action: str
    cost: Any
    valid_from: datetime
    valid_until: datetime | None = None
    rule: str | None = None
    free: bool = False
    source: str | None = None
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Price:
    """What an action costs and how that came about."""

    amount_micros: int
    pricing: Pricing = Pricing.PRICED
    #: What mode "enforce" would have raised.
    refusal: UnpricedActionError | None = None

    @property
    def amount(self) -> Decimal:
        """Credits."""
        return from_micros(self.amount_micros)


def choose(rows: Iterable[CostRow], now: datetime) -> CostRow | None:
    """The row that applies at ``now`` (valid_from <= now < valid_until), or None."""
    valid = [row for row in rows if row.valid_from <= now and (row.valid_until is None or now < row.valid_until)]
    return max(valid, key=_precedence, default=None)


def _precedence(row: CostRow) -> tuple[bool, bool, bool, datetime]:
    return (
        row.organization_id != DEFAULT_ORGANIZATION,
        row.agent_type != ANY,
        row.action != ANY,
        row.valid_from,
    )


def price(row: CostRow | None, *, agent_type: str, action: str, quantity: Decimal, record_unpriced: bool) -> Price:
    """The amount for ``quantity`` of an action.

    Args:
        row: The row that applies; None: the action has no price.
        agent_type: For the message.
        action: For the message.
        quantity: How often or how much; above zero.
        record_unpriced: Answer an unpriced action with 0 to be recorded, instead of refusing it.

    Raises:
        UnpricedActionError: no row, a row with a rule that this version does not know, a cost that is no amount,
            or a cost of 0 that is not marked ``free``.
    """
    context = {"agent_type": agent_type, "action": action}
    if row is None:
        if record_unpriced:
            return Price(0, Pricing.UNPRICED)
        raise UnpricedActionError(
            f"{agent_type}.{action} has no price in agent_action_costs; it did not run.",
            context=context,
            suggestions=(f"Set one, for example: agentcredits costs set {agent_type} {action} 1",),
            fixes=({"action": "set_cost", "agent_type": agent_type, "action_name": action},),
        )
    if row.rule is not None:
        raise UnpricedActionError(
            f"the price of {agent_type}.{action} has a rule that this version cannot compute; it did not run.",
            reason="unknown_price_rule",
            context=context,
        )
    try:
        cost_micros = to_micros(row.cost, name="cost", allow_zero=True)
    except InvalidAmountError as error:
        raise UnpricedActionError(
            f"the cost {row.cost!r} of {agent_type}.{action} in agent_action_costs is not an amount of credits"
            f" ({error.message}); it did not run.",
            reason="unusable_price",
            context=context,
            suggestions=(f"Set it again, for example: agentcredits costs set {agent_type} {action} 1",),
        ) from error
    if cost_micros == 0 and not row.free:
        raise UnpricedActionError(
            f"the cost of {agent_type}.{action} is 0 but the row is not marked free; it did not run.",
            reason="zero_price_not_free",
            context=context,
            suggestions=("If it shall cost nothing, set the row's column free to true (set_cost(..., free=True)).",),
        )
    if cost_micros == 0:
        return Price(0, Pricing.FREE)
    return Price(multiply_up(cost_micros, quantity))


def parse_quantity(value: Any) -> Decimal:
    """A quantity above zero, with at most 6 decimals.

    Raises:
        InvalidAmountError: not a number, not finite, zero, negative, too fine or beyond ``MAX_QUANTITY``.
    """
    if type(value) is int and 0 < value <= MAX_QUANTITY:
        return Decimal(value)
    number = parse_decimal(value, name="quantity")
    if number <= 0 or number > MAX_QUANTITY:
        raise InvalidAmountError(
            f"quantity must be above zero and at most {MAX_QUANTITY:,}, not {number}.",
            reason="out_of_range",
            context={"parameter": "quantity", "value": number},
        )
    exponent = number.normalize().as_tuple().exponent
    if isinstance(exponent, int) and exponent < -6:
        raise InvalidAmountError(
            "quantity has more than 6 decimals.", reason="too_many_decimals", context={"parameter": "quantity"}
        )
    return number
