"""What operators use, on the coroutine face: grants, prices, limits, usage, reports, upkeep."""

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
from agentcredits.service.coroutine_accounts import AccountMethods
from agentcredits.service.coroutine_recurring import RecurringMethods
from agentcredits.service.coroutine_runs import RunMethods
from agentcredits.service.coroutine_upkeep import UpkeepMethods

Id = str | UUID
ScopeName = Literal["organization", "department", "project", "user", "agent_type", "action", "run"]
GroupName = Literal["agent_type", "action", "department", "project", "user"]


class OperatorMethods(AccountMethods, RunMethods, UpkeepMethods, RecurringMethods):
    """Grants, prices, limits, usage, reports, upkeep; a part of :class:`CreditService`."""

    async def set_limit(
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

        A limit is known by (scope, scope_id, unit, window): setting it again changes amount, mode and thresholds and
        keeps its counters.

        Args:
            organization_id: Whose account.
            amount: How much, in the unit; 0 allows nothing.
            window: A :class:`Window`, or its text, such as ``"month"`` or ``"day Europe/Berlin"``.
            scope: What the limit is for.
            scope_id: Which department, project, user, agent type, action (``"VideoAgent.generate_video"``) or run;
                None: the organization, or a default for each department, user … without a limit of its own.
            unit: Credits, or the number of charges and holds.
            mode: "hard" refuses; "soft" only records that it was gone beyond.
            warn_at: Fractions of the amount whose crossing is recorded once in a window, such as ``(0.8, 0.95)``.
            include_existing: Count what was charged in the present window before; else a new limit starts at 0.

        Raises:
            InvalidInputError: an argument cannot be used.
            InvalidAmountError: negative, no number, or (count) no whole number.
        """
        return await self._core.arun(
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

    async def list_limits(
        self,
        organization_id: Id,
        *,
        scope: ScopeName | None = None,
        scope_id: Id | None = None,
    ) -> tuple[Limit, ...]:
        """The organization's limits with what was used of them; limits of runs only when ``scope`` is "run".

        Args:
            organization_id: Whose.
            scope: Only limits of this scope.
            scope_id: Only what this department, user … is under, defaults for each included, with its counters.

        Raises:
            AccountNotFoundError: the organization has no account.
        """
        return await self._core.arun(self._core.list_limits(organization_id, scope=scope, scope_id=scope_id))

    async def remove_limit(
        self,
        limit: str | Limit,
        *,
        organization_id: Id | None = None,
    ) -> Limit:
        """Remove a limit and its counters; holds that were counted in it are not touched.

        Raises:
            LimitNotFoundError: the organization has no such limit.
            MissingContextError: nothing says whose limit is meant.
        """
        return await self._core.arun(self._core.remove_limit(limit, organization_id=organization_id))

    async def list_limit_crossings(
        self,
        organization_id: Id,
        *,
        limit: int = 50,
    ) -> tuple[LimitCrossing, ...]:
        """Soft limits and warn thresholds that were reached, newest first."""
        return await self._core.arun(self._core.list_limit_crossings(organization_id, limit=limit))

    async def adjust_credits(
        self,
        organization_id: Id,
        amount: Amount,
        *,
        reason: str | None = None,
        idempotency_key: str | None = None,
    ) -> Transaction:
        """Correct an account: a positive amount is granted (category "adjustment"), a negative one is taken back.

        Taken back in burn-down order, never more than is available.

        Args:
            organization_id: Whose account; a positive adjustment opens it.
            amount: Signed credits; not 0.
            reason: Why; kept with the ledger row.
            idempotency_key: Makes the call repeatable: the same key and arguments answer the stored row.

        Raises:
            InsufficientCreditsError: less is available than is to be taken.
            IdempotencyMismatchError: the key was used for something else.
        """
        return await self._core.arun(
            self._core.adjust_credits(organization_id, amount, reason=reason, idempotency_key=idempotency_key)
        )

    async def get_usage(
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

        Args:
            organization_id: Whose.
            since: First day; usage is kept by UTC day, so a datetime counts from the start of its day.
            until: Day after the last one; a datetime in the middle of a day includes that day.
            group_by: One line for each combination of these.
            bucket: One line for each UTC day, ISO week or month.
            agent_type: Only of this agent type.
            action: Only of this action.
            project_id: Only of this project.
            department_id: Only of this department.
            user_id: Only of this user.

        Raises:
            AccountNotFoundError: the organization has no account.
            InvalidInputError: a naive datetime, an unknown name in ``group_by`` or ``bucket``.
        """
        return await self._core.arun(
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

    async def list_denials(
        self,
        organization_id: Id | None = None,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 50,
    ) -> tuple[Denial, ...]:
        """What mode "observe" let pass and "enforce" would have refused, newest first; None: of all organizations."""
        return await self._core.arun(self._core.list_denials(organization_id, since=since, until=until, limit=limit))

    async def observe_report(
        self,
        organization_id: Id | None = None,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> tuple[DenialGroup, ...]:
        """Would-be refusals counted by organization, reason, source and action, the most frequent first."""
        return await self._core.arun(self._core.observe_report(organization_id, since=since, until=until))

    async def grant_credits(
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

        Args:
            organization_id: Who gets them.
            amount: Credits.
            category: ``"paid"``, ``"promotional"``, ``"plan"`` or ``"adjustment"``.
            priority: Lower burns first.
            effective_at: From when they can be spent; None: now.
            expires_at: Until when (exclusive); None: for ever.
            source: Where they come from, such as a payment's id.
            only_for: The actions that may use them: an agent type (``"VideoAgent"``), an action of it
                (``"VideoAgent.generate_video"``) or an action of all agent types (``"*.generate_video"``); None: every
                action. Restricted credits are of no use to a charge that names no action.
            unit_cost: What one credit cost the customer, at most 6 decimals; told again with every charge of it.
            currency: Of ``unit_cost``, such as ``"USD"``; both or neither.
            metadata: Stored beside the row.
            idempotency_key: The same key and payload answer the same grant.

        Raises:
            InvalidAmountError: no amount.
            InvalidInputError: a naive time, an unknown category, an end before the start.
            IdempotencyMismatchError: the key was used for another grant.
        """
        return await self._core.arun(
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

    async def void_grant(
        self,
        grant: str | CreditGrant,
        *,
        organization_id: Id | None = None,
        mode: Literal["remaining", "unreserved"] = "remaining",
        reason: str | None = None,
    ) -> CreditGrant:
        """Take back what is left of a grant.

        Args:
            grant: Its id, or the grant.
            organization_id: Whose; None: the grant's, else the current context's.
            mode: "remaining" ends the grant: what is held stays with its hold, and is breakage when it comes back.
                "unreserved" takes only what is not held now: the grant lives on, and what comes back can be spent.
            reason: Why; kept with the ledger row.

        Raises:
            GrantNotFoundError: unknown, or another organization's.
        """
        return await self._core.arun(
            self._core.void_grant(grant, organization_id=organization_id, mode=mode, reason=reason)
        )

    async def list_grants(
        self,
        organization_id: Id,
    ) -> tuple[CreditGrant, ...]:
        """Every grant of the organization as it is now, oldest first."""
        return await self._core.arun(self._core.list_grants(organization_id))

    async def create_account(
        self,
        organization_id: Id,
    ) -> Balance:
        """Open an account without credits; nothing happens when it is there."""
        return await self._core.arun(self._core.create_account(organization_id))

    async def sweep(
        self,
        organization_id: Id | None = None,
    ) -> SweepReport:
        """Book what is due everywhere; tidiness only, correctness never depends on it."""
        return await self._core.arun(self._core.sweep(organization_id))

    async def verify(
        self,
        organization_id: Id | None = None,
        *,
        progress: Callable[[VerifyProgress], object] | None = None,
    ) -> VerifyReport:
        """Recompute every counter from the rows that it counts and report any difference.

        Reads in pages while charges go on; memory does not grow with the ledger. Each account is compared as of one
        moment. Changes nothing.

        Args:
            organization_id: Whose account; None: all.
            progress: Called after every page of ledger rows, in the thread that reads.
        """
        return await self._core.arun(self._core.verify(organization_id, progress=progress))

    async def repair(
        self,
        organization_id: Id | None = None,
        *,
        dry_run: bool = True,
        progress: Callable[[VerifyProgress], object] | None = None,
    ) -> RepairReport:
        """Make derived counters equal to what the append-only ledger says; without ``dry_run=False`` only list how.

        Counters are those of accounts, grants, settled holds, limits, and the usage totals. Ledger rows are never
        changed. Each account is repaired in one transaction under its lock and compared again in it; when it would not
        be clean, or something in it cannot be repaired (a missing ledger row), the account is left as it is. A call
        that was cut short may be made again.

        Args:
            organization_id: Whose account; None: all.
            dry_run: Only list the changes.
            progress: Called after every page of ledger rows, in the thread that reads.

        Raises:
            StoreUnavailableError: an account was locked for longer than the time-out.
        """
        return await self._core.arun(self._core.repair(organization_id, dry_run=dry_run, progress=progress))
