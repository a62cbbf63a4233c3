"""What operators do with what was recorded, on the coroutine face: simulations, retention, erasure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

from agentcredits.model import PlannedLimit, SimulationReport
from agentcredits.rules.price_entries import PriceEntry
from agentcredits.service.coroutine_prices import PriceMethods

Id = str | UUID


class UpkeepMethods(PriceMethods):
    """Simulations, retention, erasure; a part of :class:`CreditService`."""

    async def simulate(
        self,
        organization_id: Id | None = None,
        *,
        costs: Iterable[PriceEntry] | None = None,
        limits: Iterable[PlannedLimit] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        own_prices: bool = False,
    ) -> SimulationReport:
        """Replay recorded usage against other prices and limits; writes nothing.

        Each charge is priced anew as of the moment at which it was held, and tested against the limits at the time of
        its ledger row; a limit counts from ``since`` on. A refund gives back the same part of what its charge costs
        here; refunds of charges before ``since`` are left out, and so is what mode "observe" let pass. Balances are
        not simulated: what a charge could not collect then, it cannot collect here. Memory does not grow with the
        number of charges.

        Args:
            organization_id: Whose usage; None: everybody's.
            costs: Prices to try, as ``import_costs`` takes them; without a ``valid_from`` from the beginning on. An
                action that they do not name keeps its price. None: every charge keeps its amount.
            limits: Limits to try, instead of those that are set; None: none refuses.
            since: First moment of the charges; None: from the beginning.
            until: First moment after them; None: now.
            own_prices: The prices are tried as each organization's own, before those it has; else as the default.

        Returns:
            What was recorded and what it would have been, by action; what limits would have refused; which charges
            keep their amount, and why.

        Raises:
            InvalidInputError: neither ``costs`` nor ``limits``, one of them cannot be used, or nothing lies between
                ``since`` and ``until``.
            AccountNotFoundError: the organization has no account.
        """
        return await self._core.arun(
            self._core.simulate(
                organization_id, costs=costs, limits=limits, since=since, until=until, own_prices=own_prices
            )
        )
