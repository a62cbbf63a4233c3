"""What actions cost, on the coroutine face: setting, importing, explaining."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, datetime
from typing import Any
from uuid import UUID

from agentcredits.amounts import Amount
from agentcredits.model import ActionCost, PriceChange, PriceExplanation
from agentcredits.rules.price_entries import PriceEntry
from agentcredits.rules.price_rules import PriceRule
from agentcredits.service.base import BaseService

Id = str | UUID


class PriceMethods(BaseService):
    """Prices; a part of :class:`CreditService`."""

    async def set_cost(
        self,
        agent_type: str,
        action: str,
        cost: Amount | PriceRule | Mapping[str, Any],
        *,
        organization_id: Id | None = None,
        valid_from: datetime | None = None,
        valid_until: datetime | None = None,
        free: bool = False,
        source: str | None = None,
        as_of: date | None = None,
    ) -> ActionCost:
        """Set what an action costs from now or later on; history keeps its prices.

        Args:
            agent_type: Or ``"*"``: every agent type.
            action: Or ``"*"``: every action.
            cost: Credits for one, or a :class:`PriceRule` (or its document) where it depends on dimensions; 0 only with
                ``free=True``.
            organization_id: Only for this organization; None: the default for all.
            valid_from: From when; None: now.
            valid_until: Until when (exclusive), after which the price before is in force again; None: until replaced.
            free: The action costs nothing, on purpose.
            source: Where the price comes from.
            as_of: The day on which it was known to be right; the setting ``price_max_age_days`` warns by it.

        Raises:
            InvalidAmountError: no amount.
            InvalidInputError: a rule that cannot be used, or one in USD that does not say what a dollar is worth.
        """
        return await self._core.arun(
            self._core.set_cost(
                agent_type,
                action,
                cost,
                organization_id=organization_id,
                valid_from=valid_from,
                valid_until=valid_until,
                free=free,
                source=source,
                as_of=as_of,
            )
        )

    async def get_cost(
        self,
        agent_type: str,
        action: str,
        *,
        organization_id: Id | None = None,
    ) -> ActionCost:
        """The price that applies to an action now.

        Raises:
            UnpricedActionError: none does.
        """
        return await self._core.arun(self._core.get_cost(agent_type, action, organization_id=organization_id))

    async def list_costs(
        self,
        organization_id: Id | None = None,
        *,
        all_versions: bool = False,
    ) -> tuple[ActionCost, ...]:
        """Prices in force or to come: the defaults, and the organization's own."""
        return await self._core.arun(self._core.list_costs(organization_id, all_versions=all_versions))

    async def explain_cost(
        self,
        agent_type: str,
        action: str,
        *,
        organization_id: Id | None = None,
        quantity: Amount = 1,
        dimensions: Mapping[str, Any] | None = None,
    ) -> PriceExplanation:
        """What an action costs now, with every step of the arithmetic.

        Args:
            agent_type: Of the price.
            action: Of the price.
            organization_id: Who would pay; None: the default price.
            quantity: How many, or how much.
            dimensions: What the price may depend on, such as ``{"model": "gen4_turbo", "duration": 10}``.

        Raises:
            UnpricedActionError: there is no price, or none for these dimensions.
        """
        return await self._core.arun(
            self._core.explain_cost(
                agent_type, action, organization_id=organization_id, quantity=quantity, dimensions=dimensions
            )
        )

    async def import_costs(
        self, entries: Iterable[PriceEntry], *, organization_id: Id | None = None
    ) -> tuple[PriceChange, ...]:
        """Set the prices that differ from those in force; all of them or, on any error, none.

        What is the same is not written again, so importing twice changes nothing. A price that is in force and not
        among the entries stays.

        Args:
            entries: At most 10,000, each action once; ``PriceList.read(path).entries`` for instance.
            organization_id: Only for this organization; None: the defaults for all.

        Returns:
            One change for each entry, in their order.

        Raises:
            InvalidInputError: an entry cannot be used.
        """
        return await self._core.arun(self._core.import_costs(entries, organization_id=organization_id))

    async def diff_costs(
        self, entries: Iterable[PriceEntry], *, organization_id: Id | None = None
    ) -> tuple[PriceChange, ...]:
        """What ``import_costs`` would do, and which prices in force are not among the entries; nothing is written."""
        return await self._core.arun(self._core.diff_costs(entries, organization_id=organization_id))
