"""What an action costs: which row of ``agent_action_costs`` applies, and how it becomes an amount. Pure.

An organization's own row beats the default (``organization_id`` ''), an exact name beats ``*`` (agent type before
action), and of the rows in force the one that became valid last wins. A row has a flat cost, or a price rule
(``price_rules``) that depends on the dimensions of the call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final

from agentcredits.amounts import MICROS_PER_CREDIT, from_micros, multiply_up, parse_decimal, to_micros
from agentcredits.errors import InvalidAmountError, InvalidInputError, UnpricedActionError
from agentcredits.model import PriceStep, Pricing
from agentcredits.rules.price_rules import Evaluation, stored_rule, usable
from agentcredits.rules.price_values import as_decimal, money

ANY: Final = "*"
DEFAULT_ORGANIZATION: Final = ""
MAX_QUANTITY: Final = 10**9
MAX_QUANTITY_DECIMALS: Final = 6


@dataclass(frozen=True, slots=True)
class CostRow:
    """A row of ``agent_action_costs`` as read; ``cost`` and ``rule`` are whatever an operator typed."""

    organization_id: str
    agent_type: str
    action: str
    cost: Any
    valid_from: datetime
    valid_until: datetime | None = None
    rule: Any = None
    free: bool = False
    source: str | None = None
    created_at: datetime | None = None
    as_of: date | None = None
    #: Why its times cannot be told. It counts as in force and latest then, so that the action is refused.
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Price:
    """What an action costs and how that came about."""

    amount_micros: int
    pricing: Pricing = Pricing.PRICED
    #: What mode "enforce" would have raised.
    refusal: UnpricedActionError | None = None
    #: The arithmetic, where a rule made the price.
    steps: tuple[PriceStep, ...] = ()
    #: What the price list says in US dollars, where it does.
    usd: Decimal | None = None
    #: When the price was known to be right: its own day, or the day on which it was set.
    as_of: date | None = None

    @property
    def amount(self) -> Decimal:
        """Credits."""
        return from_micros(self.amount_micros)


def choose(rows: Iterable[CostRow], now: datetime) -> CostRow | None:
    """The row that applies at ``now`` (valid_from <= now < valid_until), or None."""
    candidates = [row for row in rows if in_force(row, now)]
    if len(candidates) > 1:
        return max(candidates, key=_precedence)
    return candidates[0] if candidates else None


def in_force(row: CostRow, now: datetime) -> bool:
    """Whether a row counts at ``now``."""
    if row.problem is not None:
        return True
    return row.valid_from <= now and (row.valid_until is None or now < row.valid_until)


def _precedence(row: CostRow) -> tuple[bool, bool, bool, bool, datetime]:
    return (
        row.organization_id != DEFAULT_ORGANIZATION,
        row.agent_type != ANY,
        row.action != ANY,
        row.problem is not None,
        row.valid_from,
    )


def price(
    row: CostRow | None,
    *,
    agent_type: str,
    action: str,
    quantity: Decimal,
    dimensions: Mapping[str, Any] | None,
    at: datetime,
    record_unpriced: bool,
) -> Price:
    """The amount for ``quantity`` of an action.

    Args:
        row: The row that applies; None: the action has no price.
        agent_type: For the message.
        action: For the message.
        quantity: How often or how much; above zero.
        dimensions: What a rule may depend on.
        at: When; lines of a table may have an end.
        record_unpriced: Answer an unpriced action with 0 to be recorded, instead of refusing it.

    Raises:
        UnpricedActionError: no row, a row that cannot be used (its cost, rule or times), dimensions that the rule has
            no price for, or a price of 0 that is not marked ``free``.
        InvalidAmountError: the price is larger than an amount may be.
        InvalidInputError: the dimensions are no mapping.
    """
    name = f"{agent_type}.{action}"
    context = {"agent_type": agent_type, "action": action}
    if row is None:
        if record_unpriced:
            return Price(0, Pricing.UNPRICED)
        raise UnpricedActionError(
            f"{name} has no price in agent_action_costs; it did not run.",
            context=context,
            suggestions=(f"Set one, for example: agentcredits costs set {agent_type} {action} 1",),
            fixes=({"action": "set_cost", "agent_type": agent_type, "action_name": action},),
        )
    if row.problem is not None:
        raise UnpricedActionError(
            f"the price of {name} in agent_action_costs cannot be used: {row.problem}; it did not run.",
            reason="unusable_price",
            context=context,
            suggestions=(f"Set it again, for example: agentcredits costs set {agent_type} {action} 1",),
        )
    dated = row.as_of or (None if row.created_at is None else row.created_at.date())
    if row.rule is not None:
        return _by_rule(row, name, context, quantity, dimensions, at, dated)
    try:
        cost_micros = _cost_micros(row.cost)
    except InvalidAmountError as error:
        raise UnpricedActionError(
            f"the cost {row.cost!r} of {name} in agent_action_costs is not an amount of credits"
            f" ({error.message.removesuffix('.')}); it did not run.",
            reason="unusable_price",
            context=context,
            suggestions=(f"Set it again, for example: agentcredits costs set {agent_type} {action} 1",),
        ) from error
    if cost_micros == 0:
        return _free(row, name, context)
    return _flat(cost_micros, quantity, dated)


@lru_cache(maxsize=1024)
def _flat(cost_micros: int, quantity: Decimal, as_of: date | None) -> Price:
    return Price(multiply_up(cost_micros, quantity), as_of=as_of)


@lru_cache(maxsize=1024, typed=True)
def _cost_micros(cost: Any) -> int:
    """A flat cost as it was read; remembered, because every charge of the action asks again."""
    return to_micros(cost, name="cost", allow_zero=True)


def _by_rule(
    row: CostRow,
    name: str,
    context: Mapping[str, Any],
    quantity: Decimal,
    dimensions: Mapping[str, Any] | None,
    at: datetime,
    dated: date | None,
) -> Price:
    try:
        found = usable(stored_rule(row.rule)).evaluate(dimensions, at)
    except UnpricedActionError as error:
        raise UnpricedActionError(
            f"{name}: {error.message}; it did not run.", reason=error.reason, context={**context, **error.context}
        ) from None
    except InvalidInputError as error:
        if "field" not in error.context:
            raise
        raise UnpricedActionError(
            f"{name}: {error.message.removesuffix('.')}; it did not run.",
            reason="unknown_price_rule" if error.reason == "unknown_price_rule" else "unusable_price",
            context={**context, **error.context},
            suggestions=("Correct the column rule of its row in agent_action_costs, or set the price again.",),
        ) from error
    if not found.amount:
        return _free(row, name, context, found)
    exact = found.amount * Fraction(quantity)
    micros = to_micros(from_micros(-(-exact * MICROS_PER_CREDIT // 1)), name="price × quantity")
    return Price(
        micros,
        steps=(*found.steps, *_last_steps(found.amount, quantity, exact, micros)),
        usd=None if found.usd is None else as_decimal(found.usd * Fraction(quantity)),
        as_of=found.as_of or dated,
    )


def _last_steps(amount: Fraction, quantity: Decimal, exact: Fraction, micros: int) -> list[PriceStep]:
    steps = []
    if quantity != 1:
        text = f"{money(amount, 'credits')} × quantity {quantity:,f} = {money(exact, 'credits')}"
        steps.append(PriceStep(text, as_decimal(exact), "credits"))
    rounded = Fraction(micros, MICROS_PER_CREDIT)
    if rounded != exact:
        text = f"rounded up to the micro-credit: {money(rounded, 'credits')}"
        steps.append(PriceStep(text, as_decimal(rounded), "credits"))
    return steps


def _free(row: CostRow, name: str, context: Mapping[str, Any], found: Evaluation | None = None) -> Price:
    """A price of 0, where the row says that it is meant."""
    if row.free:
        return Price(0, Pricing.FREE, steps=() if found is None else found.steps)
    raise UnpricedActionError(
        f"the cost of {name} is 0 but the row is not marked free; it did not run.",
        reason="zero_price_not_free",
        context=context,
        suggestions=("If it shall cost nothing, set the row's column free to true (set_cost(..., free=True)).",),
    )


def explain_flat(amount: Price, quantity: Decimal, cost_micros: int) -> tuple[PriceStep, ...]:
    """The arithmetic of a flat price."""
    one = Fraction(cost_micros, MICROS_PER_CREDIT)
    first = PriceStep(f"{money(one, 'credits')} each", as_decimal(one), "credits")
    return (first, *_last_steps(one, quantity, one * Fraction(quantity), amount.amount_micros))


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
    # By fractions: decimal arithmetic would round to the caller's context first. The size comes before them, because
    # they would take forever for 1e-999999999.
    fine = number.adjusted() < -MAX_QUANTITY_DECIMALS
    if fine or (Fraction(number) * 10**MAX_QUANTITY_DECIMALS).denominator != 1:
        raise InvalidAmountError(
            f"quantity has more than {MAX_QUANTITY_DECIMALS} decimals.",
            reason="too_many_decimals",
            context={"parameter": "quantity"},
        )
    return number
