"""What operators do with what was recorded, on the coroutine face: simulations, retention, erasure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from uuid import UUID

from agentcredits.model import ErasureReport, PlannedLimit, PurgeReport, SimulationReport
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

    async def purge(
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

        Works page by page in short transactions of one organization each, and can be stopped and done again at any
        moment. A purged key protects no more: a second try with it is a new charge, hold or (within what its charge
        has left) refund. Settlements need no key and stay unique. Keys of grants and adjustments, and of reservations
        that are open, are never purged.

        Args:
            organization_id: Whose; None: everybody's.
            older_than: The age of what may go, at least one day; None: the setting ``idempotency_retention_days``,
                which is also the least age of keys.
            keys: Idempotency keys of charges, reservations and refunds.
            details: Reason, request, dimensions and metadata of ledger rows and ended reservations. The user stays:
                see ``erase_user_details``.
            denials: Records of what mode "observe" let pass.
            crossings: Records of thresholds of limits that were reached.
            dry_run: Only count.

        Raises:
            InvalidInputError: no age, one below a day or below the setting, or nothing chosen.
            AccountNotFoundError: the organization has no account.
        """
        return await self._core.arun(
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

    async def erase_user_details(self, organization_id: Id, user_id: Id) -> ErasureReport:
        """Erase a user: its id, and the free text of its actions; no amount changes, and ``verify`` stays clean.

        Ledger rows lose their details, reservations (open ones too) their user, request, dimensions, metadata and
        reason; the user's usage goes to "no user", its counters of limits start at 0. An open reservation stays and
        can be settled. Done in short transactions; done again after it was stopped, it goes on. Idempotency keys stay:
        they hold a hash of the call. A key's own text and run, request, project and department ids of ledger rows are
        append-only: put no personal data there.

        Args:
            organization_id: Whose user.
            user_id: The user.

        Returns:
            What was erased, and what still names the user: limits that are set for it, batches that are not finished.

        Raises:
            AccountNotFoundError: the organization has no account.
        """
        return await self._core.arun(self._core.erase_user_details(organization_id, user_id))
