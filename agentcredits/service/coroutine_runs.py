"""Runs, on the coroutine face: opened, ended, looked at, tidied."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal
from uuid import UUID

from agentcredits.amounts import Amount
from agentcredits.model import RunRecord
from agentcredits.service.coroutine_prices import PriceMethods
from agentcredits.service.runs import RETENTION

Id = str | UUID


class RunMethods(PriceMethods):
    """Trees of runs; a part of :class:`CreditService`."""

    async def open_run(
        self,
        organization_id: Id,
        run_id: Id | None = None,
        *,
        max_credits: Amount | None = None,
        parent_run_id: Id | None = None,
        borrow: bool | None = None,
        partial: bool = False,
        ttl: timedelta | None = None,
    ) -> RunRecord:
        """Open a run, or change the one that is open under this id: a pool that all charges with its ``run_id`` share.

        A run inside another gets its ``max_credits`` carved out of that one's pool: nobody else can use them while it
        is open, and what it did not use goes back when it ends. Without ``max_credits`` it uses the other's pool.

        Args:
            organization_id: Whose account; it must be there.
            run_id: Its id; a new one when left out.
            max_credits: Its cap in credits; 0 allows nothing. None: none of its own, or as it is.
            parent_run_id: The run around it, which must be open. At most 32 runs may stand inside each other.
            borrow: Whether it goes on from the free part of the pool around when its own is used up. None: no, or as
                it is.
            partial: Open it with what the pool around has left, when that is less than ``max_credits``; else such a
                run is refused.
            ttl: It ends when nothing happened in it and in the runs inside for so long; at least a second. None: 24
                hours inside another run (whose pool it keeps from others), else 30 days; or as it is.

        Raises:
            AccountNotFoundError: the organization was never granted anything.
            RunNotFoundError: no such ``parent_run_id``.
            RunEndedError: it, or the run around it, has ended.
            CreditLimitExceededError: the pool around has less left; names the run that stands in the way.
            InvalidInputError: an argument cannot be used, the run stands inside another one already, or too deep.
            InvalidAmountError: ``max_credits`` is no amount.
        """
        return await self._core.arun(
            self._core.open_run(
                organization_id,
                run_id,
                max_credits=max_credits,
                parent_run_id=parent_run_id,
                borrow=borrow,
                partial=partial,
                ttl=ttl,
            )
        )

    async def end_run(
        self,
        run: Id | RunRecord,
        *,
        organization_id: Id | None = None,
        reason: str | None = None,
    ) -> RunRecord:
        """End a run and those inside it: what it did not use goes back to the run around it.

        Nothing new begins in it; open reservations settle as before. Ending it again is harmless.

        Raises:
            RunNotFoundError: unknown, or another organization's.
            MissingContextError: nothing says whose run is meant.
        """
        return await self._core.arun(self._core.end_run(run, organization_id=organization_id, reason=reason))

    async def get_run(
        self,
        run: Id | RunRecord,
        *,
        organization_id: Id | None = None,
    ) -> RunRecord:
        """One run as it is now, whose time may just have ended.

        Raises:
            RunNotFoundError: unknown, or another organization's; also one that never had a cap and was never opened.
            MissingContextError: nothing says whose run is meant.
        """
        return await self._core.arun(self._core.get_run(run, organization_id=organization_id))

    async def list_runs(
        self,
        organization_id: Id,
        *,
        status: Literal["open", "ended"] | None = None,
        parent_run_id: Id | None = None,
        limit: int = 50,
    ) -> tuple[RunRecord, ...]:
        """The organization's runs as they are now, newest first.

        Args:
            organization_id: Whose.
            status: Only open or only ended ones.
            parent_run_id: Only those right inside this run.
            limit: How many at most.

        Raises:
            AccountNotFoundError: the organization has no account.
        """
        return await self._core.arun(
            self._core.list_runs(organization_id, status=status, parent_run_id=parent_run_id, limit=limit)
        )

    async def purge_runs(
        self,
        organization_id: Id | None = None,
        *,
        older_than: timedelta = RETENTION,
    ) -> int:
        """Remove runs that ended long ago, whole trees at a time; the ledger keeps their charges.

        A removed run's id may be opened again, and then starts at nothing.

        Args:
            organization_id: Whose; None: of all organizations.
            older_than: How long ago the outermost run must have ended.

        Returns:
            How many runs were removed.
        """
        return await self._core.arun(self._core.purge_runs(organization_id, older_than=older_than))
