"""What operators do with what was recorded, on the blocking face: simulations, retention, erasure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from uuid import UUID

from agentcredits.model import ErasureReport, PlannedLimit, PurgeReport, SimulationReport
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

    def purge(
        self,
        organization_id: Id | None = None,
        *,
        older_than: timedelta | None = None,
        keys: bool = True,
        details: bool = False,
        denials: bool = False,
        crossings: bool = False,
        dry_run: bool = False,
    ) -> PurgeReport:
        """Let go of what is old: idempotency keys, and on demand free text and records; no amount changes.

        Blocking form of :meth:`CreditService.purge`: same arguments, results and errors.
        """
        return self._core.run(
            self._core.purge(
                organization_id,
                older_than=older_than,
                keys=keys,
                details=details,
                denials=denials,
                crossings=crossings,
                dry_run=dry_run,
            )
        )

    def erase_user_details(self, organization_id: Id, user_id: Id) -> ErasureReport:
        """Erase a user: its id, and the free text of its actions; no amount changes, and ``verify`` stays clean.

        Blocking form of :meth:`CreditService.erase_user_details`: same arguments, results and errors.
        """
        return self._core.run(self._core.erase_user_details(organization_id, user_id))
