"""Prices: looked up in ``agent_action_costs``, at most a moment old, and set there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from agentcredits.amounts import Amount, from_micros, to_micros
from agentcredits.clock import as_utc
from agentcredits.errors import (
    InvalidInputError,
    UnpricedActionError,
)
from agentcredits.ids import check_text, scope_id
from agentcredits.model import ActionCost, Pricing
from agentcredits.rules import operations as ops
from agentcredits.rules import pricing as price_rules
from agentcredits.rules.pricing import CostRow, Price
from agentcredits.runner.steps import Read, Steps, Write
from agentcredits.service import session
from agentcredits.service.doors import Doors
from agentcredits.store import prices


class Prices(Doors):
    """What actions cost."""

    def price(
        self,
        *,
        organization_id: str,
        agent_type: str,
        action: str,
        quantity: Any = 1,
        dimensions: Mapping[str, Any] | None = None,
        unpriced: Literal["deny", "record"] = "deny",
    ) -> Steps[Price]:
        """What an action costs now.

        Raises:
            UnpricedActionError: the action has no usable price.
            InvalidAmountError: the quantity is none.
        """
        amount = price_rules.parse_quantity(quantity)
        if self.mode == "off":
            return Price(0, Pricing.FREE)
        row = yield from self._cost_row(organization_id, agent_type, action)
        try:
            return price_rules.price(
                row, agent_type=agent_type, action=action, quantity=amount, record_unpriced=unpriced == "record"
            )
        except UnpricedActionError as error:
            if self.mode != "observe":
                raise
            return Price(0, Pricing.UNPRICED, error)

    def _cost_row(self, organization_id: str, agent_type: str, action: str) -> Steps[CostRow | None]:
        place = (
            organization_id,
            check_text(agent_type, name="agent_type"),
            check_text(action, name="action"),
        )
        known = self._prices.get(place, self.clock)
        if known is None:
            started = time.monotonic()
            known = yield Read(lambda connection: prices.read_candidates(connection, *place, self.clock))
            rows, now = known
            if not session.is_charging():
                # What the caller's open transaction sees may never be committed.
                self._prices.put(place, rows, now, started)
        rows, now = known
        return price_rules.choose(rows, now)

    def set_cost(
        self,
        agent_type: str,
        action: str,
        cost: Amount,
        *,
        organization_id: object = None,
        valid_from: datetime | None = None,
        valid_until: datetime | None = None,
        free: bool = False,
        source: str | None = None,
    ) -> Steps[ActionCost]:
        """Set a flat price; ``*`` matches any agent type or action. Cost 0 needs ``free=True``."""
        micros = to_micros(cost, name="cost", allow_zero=free)
        if free and micros:
            raise InvalidInputError("a free action costs 0: pass cost 0 or leave free out.", reason="free_with_cost")
        owner = (
            price_rules.DEFAULT_ORGANIZATION
            if organization_id is None
            else scope_id(organization_id, name="organization_id")
        )
        check_text(agent_type, name="agent_type")
        check_text(action, name="action")
        start = None if valid_from is None else as_utc(valid_from, name="valid_from")
        end = None if valid_until is None else as_utc(valid_until, name="valid_until")
        if start is not None and end is not None and end <= start:
            raise InvalidInputError("valid_until must be later than valid_from.", context={"parameter": "valid_until"})
        if source is not None:
            check_text(source, name="source")
        if owner:
            yield from self._post(ops.CreateAccount(organization_id=owner))
        made: ActionCost = yield Write(
            lambda connection: prices.set_cost(
                connection,
                organization_id=owner,
                agent_type=agent_type,
                action=action,
                cost=from_micros(micros),
                valid_from=start,
                valid_until=end,
                free=free,
                source=source,
                clock=self.clock,
            )
        )
        self._prices.clear()
        return made

    def get_cost(self, agent_type: str, action: str, *, organization_id: object = None) -> Steps[ActionCost]:
        """The price that applies to an action now.

        Raises:
            UnpricedActionError: none does.
        """
        owner = "" if organization_id is None else scope_id(organization_id, name="organization_id")
        row = yield from self._cost_row(owner, agent_type, action)
        if row is None:
            price_rules.price(None, agent_type=agent_type, action=action, quantity=Decimal(1), record_unpriced=False)
            raise UnpricedActionError
        return prices.public_cost(row)

    def list_costs(
        self, organization_id: object = None, *, all_versions: bool = False
    ) -> Steps[tuple[ActionCost, ...]]:
        """Prices in force or to come: the defaults, and an organization's own."""
        owner = None if organization_id is None else scope_id(organization_id, name="organization_id")
        found: tuple[ActionCost, ...] = yield Read(
            lambda connection: prices.list_costs(connection, owner, self.clock, all_versions=all_versions)
        )
        return found

    def amount_for(
        self,
        *,
        organization_id: str,
        amount: Amount | None,
        agent_type: str | None,
        action: str | None,
        quantity: Any,
        dimensions: Mapping[str, Any] | None,
    ) -> Steps[Price]:
        """The amount given, or the price of the action.

        Raises:
            InvalidInputError: neither an amount nor both agent_type and action.
        """
        if amount is not None:
            price_rules.parse_quantity(quantity)
            return Price(to_micros(amount))
        if agent_type is None or action is None:
            raise InvalidInputError("pass amount=, or agent_type= and action= to look the price up.")
        return (
            yield from self.price(
                organization_id=organization_id,
                agent_type=agent_type,
                action=action,
                quantity=quantity,
                dimensions=dimensions,
            )
        )
