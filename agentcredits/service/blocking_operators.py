"""What operators use, on the blocking face: grants, prices, limits, usage, reports, upkeep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, Literal
from uuid import UUID

from agentcredits.amounts import Amount
from agentcredits.model import (
    Balance,
    CreditGrant,
    Denial,
    DenialGroup,
    Limit,
    LimitCrossing,
    RepairReport,
    SweepReport,
    Transaction,
    UsageReport,
    VerifyProgress,
    VerifyReport,
)
from agentcredits.rules.windows import Window
from agentcredits.service.blocking_accounts import SyncAccountMethods
from agentcredits.service.blocking_recurring import SyncRecurringMethods
from agentcredits.service.blocking_runs import SyncRunMethods
from agentcredits.service.blocking_upkeep import SyncUpkeepMethods

Id = str | UUID
ScopeName = Literal["organization", "department", "project", "user", "agent_type", "action", "run"]
GroupName = Literal["agent_type", "action", "department", "project", "user"]


class SyncOperatorMethods(SyncAccountMethods, SyncRunMethods, SyncUpkeepMethods, SyncRecurringMethods):
    """Grants, prices, limits, usage, reports, upkeep; a part of :class:`SyncCreditService`."""

    def set_limit(
        self,
        organization_id: Id,
        *,
        amount: Amount,
        window: Window | str,
        scope: ScopeName = "organization",
        scope_id: Id | None = None,
        unit: Literal["credits", "count"] = "credits",
        mode: Literal["hard", "soft"] = "hard",
        warn_at: Sequence[Amount] = (),
        include_existing: bool = False,
    ) -> Limit:
        """Limit what may be used in a scope and window; opens the account.

        Blocking form of :meth:`CreditService.set_limit`: same arguments, results and errors.
        """
        return self._core.run(
            self._core.set_limit(
                organization_id,
                amount=amount,
                window=window,
                scope=scope,
                scope_id=scope_id,
                unit=unit,
                mode=mode,
                warn_at=warn_at,
                include_existing=include_existing,
            )
        )

    def list_limits(
        self,
        organization_id: Id,
        *,
        scope: ScopeName | None = None,
        scope_id: Id | None = None,
    ) -> tuple[Limit, ...]:
        """The organization's limits with what was used of them; limits of runs only when ``scope`` is "run".

        Blocking form of :meth:`CreditService.list_limits`: same arguments, results and errors.
        """
        return self._core.run(self._core.list_limits(organization_id, scope=scope, scope_id=scope_id))

    def remove_limit(
        self,
        limit: str | Limit,
        *,
        organization_id: Id | None = None,
    ) -> Limit:
        """Remove a limit and its counters; holds that were counted in it are not touched.

        Blocking form of :meth:`CreditService.remove_limit`: same arguments, results and errors.
        """
        return self._core.run(self._core.remove_limit(limit, organization_id=organization_id))

    def list_limit_crossings(
        self,
        organization_id: Id,
        *,
        limit: int = 50,
    ) -> tuple[LimitCrossing, ...]:
        """Soft limits and warn thresholds that were reached, newest first."""
        return self._core.run(self._core.list_limit_crossings(organization_id, limit=limit))

    def adjust_credits(
        self,
        organization_id: Id,
        amount: Amount,
        *,
        reason: str | None = None,
        idempotency_key: str | None = None,
    ) -> Transaction:
        """Correct an account: a positive amount is granted (category "adjustment"), a negative one is taken back.

        Blocking form of :meth:`CreditService.adjust_credits`: same arguments, results and errors.
        """
        return self._core.run(
            self._core.adjust_credits(organization_id, amount, reason=reason, idempotency_key=idempotency_key)
        )

    def get_usage(
        self,
        organization_id: Id,
        *,
        since: date | datetime | None = None,
        until: date | datetime | None = None,
        group_by: Sequence[GroupName] | GroupName = (),
        bucket: Literal["day", "week", "month"] | None = None,
        agent_type: str | None = None,
        action: str | None = None,
        project_id: Id | None = None,
        department_id: Id | None = None,
        user_id: Id | None = None,
    ) -> UsageReport:
        """What was used, from totals that are kept with every charge: its cost does not grow with the ledger.

        Blocking form of :meth:`CreditService.get_usage`: same arguments, results and errors.
        """
        return self._core.run(
            self._core.get_usage(
                organization_id,
                since=since,
                until=until,
                group_by=group_by,
                bucket=bucket,
                agent_type=agent_type,
                action=action,
                project_id=project_id,
                department_id=department_id,
                user_id=user_id,
            )
        )

    def list_denials(
        self,
        organization_id: Id | None = None,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 50,
    ) -> tuple[Denial, ...]:
        """What mode "observe" let pass and "enforce" would have refused, newest first; None: of all organizations."""
        return self._core.run(self._core.list_denials(organization_id, since=since, until=until, limit=limit))

    def observe_report(
        self,
        organization_id: Id | None = None,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> tuple[DenialGroup, ...]:
        """Would-be refusals counted by organization, reason, source and action, the most frequent first."""
        return self._core.run(self._core.observe_report(organization_id, since=since, until=until))

    def grant_credits(
        self,
        organization_id: Id,
        amount: Amount,
        *,
        category: str = "paid",
        priority: int = 50,
        effective_at: datetime | None = None,
        expires_at: datetime | None = None,
        source: str | None = None,
        only_for: Sequence[str] | None = None,
        unit_cost: Amount | None = None,
        currency: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> CreditGrant:
        """Add a block of credits; opens the organization's account.

        Blocking form of :meth:`CreditService.grant_credits`: same arguments, results and errors.
        """
        return self._core.run(
            self._core.grant_credits(
                organization_id,
                amount,
                category=category,
                priority=priority,
                effective_at=effective_at,
                expires_at=expires_at,
                source=source,
                only_for=only_for,
                unit_cost=unit_cost,
                currency=currency,
                metadata=metadata,
                idempotency_key=idempotency_key,
            )
        )

    def void_grant(
        self,
        grant: str | CreditGrant,
        *,
        organization_id: Id | None = None,
        mode: Literal["remaining", "unreserved"] = "remaining",
        reason: str | None = None,
    ) -> CreditGrant:
        """Take back what is left of a grant.

        Blocking form of :meth:`CreditService.void_grant`: same arguments, results and errors.
        """
        return self._core.run(self._core.void_grant(grant, organization_id=organization_id, mode=mode, reason=reason))

    def list_grants(
        self,
        organization_id: Id,
    ) -> tuple[CreditGrant, ...]:
        """Every grant of the organization as it is now, oldest first."""
        return self._core.run(self._core.list_grants(organization_id))

    def create_account(
        self,
        organization_id: Id,
    ) -> Balance:
        """Open an account without credits; nothing happens when it is there."""
        return self._core.run(self._core.create_account(organization_id))

    def sweep(
        self,
        organization_id: Id | None = None,
    ) -> SweepReport:
        """Book what is due everywhere; tidiness only, correctness never depends on it."""
        return self._core.run(self._core.sweep(organization_id))

    def verify(
        self,
        organization_id: Id | None = None,
        *,
        progress: Callable[[VerifyProgress], object] | None = None,
    ) -> VerifyReport:
        """Recompute every counter from the rows that it counts and report any difference.

        Blocking form of :meth:`CreditService.verify`: same arguments and report.
        """
        return self._core.run(self._core.verify(organization_id, progress=progress))

    def repair(
        self,
        organization_id: Id | None = None,
        *,
        dry_run: bool = True,
        progress: Callable[[VerifyProgress], object] | None = None,
    ) -> RepairReport:
        """Make derived counters equal to what the append-only ledger says; without ``dry_run=False`` only list how.

        Blocking form of :meth:`CreditService.repair`: same arguments, report and errors.
        """
        return self._core.run(self._core.repair(organization_id, dry_run=dry_run, progress=progress))
