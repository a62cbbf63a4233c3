"""What actions cost, on the blocking face: setting, importing, explaining."""

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


class SyncPriceMethods(BaseService):
    """Prices; a part of :class:`SyncCreditService`."""

    def set_cost(
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

        Blocking form of :meth:`CreditService.set_cost`: same arguments, results and errors.
        """
        return self._core.run(
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

    def get_cost(
        self,
        agent_type: str,
        action: str,
        *,
        organization_id: Id | None = None,
    ) -> ActionCost:
        """The price that applies to an action now.

        Blocking form of :meth:`CreditService.get_cost`: same arguments, results and errors.
        """
        return self._core.run(self._core.get_cost(agent_type, action, organization_id=organization_id))

    def list_costs(
        self,
        organization_id: Id | None = None,
        *,
        all_versions: bool = False,
    ) -> tuple[ActionCost, ...]:
        """Prices in force or to come: the defaults, and the organization's own."""
        return self._core.run(self._core.list_costs(organization_id, all_versions=all_versions))

    def explain_cost(
        self,
        agent_type: str,
        action: str,
        *,
        organization_id: Id | None = None,
        quantity: Amount = 1,
        dimensions: Mapping[str, Any] | None = None,
    ) -> PriceExplanation:
        """What an action costs now, with every step of the arithmetic.

        Blocking form of :meth:`CreditService.explain_cost`: same arguments, results and errors.
        """
        return self._core.run(
            self._core.explain_cost(
                agent_type, action, organization_id=organization_id, quantity=quantity, dimensions=dimensions
            )
        )

    def import_costs(
        self, entries: Iterable[PriceEntry], *, organization_id: Id | None = None
    ) -> tuple[PriceChange, ...]:
        """Set the prices that differ from those in force; all of them or, on any error, none.

        Blocking form of :meth:`CreditService.import_costs`: same arguments, results and errors.
        """
        return self._core.run(self._core.import_costs(entries, organization_id=organization_id))

    def diff_costs(
        self, entries: Iterable[PriceEntry], *, organization_id: Id | None = None
    ) -> tuple[PriceChange, ...]:
        """What ``import_costs`` would do, and which prices in force are not among the entries; nothing is written.

        Blocking form of :meth:`CreditService.diff_costs`: same arguments, results and errors.
        """
        return self._core.run(self._core.diff_costs(entries, organization_id=organization_id))
