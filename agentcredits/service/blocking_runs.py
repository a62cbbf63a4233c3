"""Runs, on the blocking face: opened, ended, looked at, tidied."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal
from uuid import UUID

from agentcredits.amounts import Amount
from agentcredits.model import RunRecord
from agentcredits.service.blocking_prices import SyncPriceMethods
from agentcredits.service.runs import RETENTION

Id = str | UUID


class SyncRunMethods(SyncPriceMethods):
    """Trees of runs; a part of :class:`SyncCreditService`."""

    def open_run(
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

        Blocking form of :meth:`CreditService.open_run`: same arguments, results and errors.
        """
        return self._core.run(
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

    def end_run(
        self,
        run: Id | RunRecord,
        *,
        organization_id: Id | None = None,
        reason: str | None = None,
    ) -> RunRecord:
        """End a run and those inside it: what it did not use goes back to the run around it.

        Nothing new begins in it; open reservations settle as before. Ending it again is harmless.

        Blocking form of :meth:`CreditService.end_run`: same arguments, results and errors.
        """
        return self._core.run(self._core.end_run(run, organization_id=organization_id, reason=reason))

    def get_run(
        self,
        run: Id | RunRecord,
        *,
        organization_id: Id | None = None,
    ) -> RunRecord:
        """One run as it is now, whose time may just have ended.

        Blocking form of :meth:`CreditService.get_run`: same arguments, results and errors.
        """
        return self._core.run(self._core.get_run(run, organization_id=organization_id))

    def list_runs(
        self,
        organization_id: Id,
        *,
        status: Literal["open", "ended"] | None = None,
        parent_run_id: Id | None = None,
        limit: int = 50,
    ) -> tuple[RunRecord, ...]:
        """The organization's runs as they are now, newest first.

        Blocking form of :meth:`CreditService.list_runs`: same arguments, results and errors.
        """
        return self._core.run(
            self._core.list_runs(organization_id, status=status, parent_run_id=parent_run_id, limit=limit)
        )

    def purge_runs(
        self,
        organization_id: Id | None = None,
        *,
        older_than: timedelta = RETENTION,
    ) -> int:
        """Remove runs that ended long ago, whole trees at a time; the ledger keeps their charges.

        A removed run's id may be opened again, and then starts at nothing.

        Blocking form of :meth:`CreditService.purge_runs`: same arguments, results and errors.
        """
        return self._core.run(self._core.purge_runs(organization_id, older_than=older_than))
