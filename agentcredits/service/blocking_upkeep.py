"""What operators do with what was recorded, on the blocking face: simulations, retention, erasure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

from agentcredits.model import PlannedLimit, SimulationReport
from agentcredits.rules.price_entries import PriceEntry
from agentcredits.service.blocking_prices import SyncPriceMethods

Id = str | UUID


class SyncUpkeepMethods(SyncPriceMethods):
    """Simulations, retention, erasure; a part of :class:`SyncCreditService`."""

    def simulate(
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

        Blocking form of :meth:`CreditService.simulate`: same arguments, results and errors.
        """
        return self._core.run(
            self._core.simulate(
                organization_id, costs=costs, limits=limits, since=since, until=until, own_prices=own_prices
            )
        )
