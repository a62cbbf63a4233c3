"""What operators use, on the blocking face: grants that come again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from agentcredits.amounts import Amount
from agentcredits.model import RecurringGrant, Rollover
from agentcredits.service.blocking_prices import SyncPriceMethods

Id = str | UUID


class SyncRecurringMethods(SyncPriceMethods):
    """Grants that come again; a part of :class:`SyncCreditService`."""

    def create_recurring_grant(
        self,
        organization_id: Id,
        amount: Amount,
        *,
        every: Literal["day", "week", "month"] = "month",
        anchor: datetime | None = None,
        tz: str = "UTC",
        ends_at: datetime | None = None,
        category: str = "plan",
        priority: int = 50,
        expires_after: timedelta | Literal["period"] | None = "period",
        rollover: Rollover | None = None,
        only_for: Sequence[str] | None = None,
        unit_cost: Amount | None = None,
        currency: str | None = None,
        source: str | None = None,
        idempotency_key: str | None = None,
    ) -> RecurringGrant:
        """Grant credits again each period, the running one included; opens the organization's account.

        Blocking form of :meth:`CreditService.create_recurring_grant`: same arguments, results and errors.
        """
        return self._core.run(
            self._core.create_recurring_grant(
                organization_id,
                amount,
                every=every,
                anchor=anchor,
                tz=tz,
                ends_at=ends_at,
                category=category,
                priority=priority,
                expires_after=expires_after,
                rollover=rollover,
                only_for=only_for,
                unit_cost=unit_cost,
                currency=currency,
                source=source,
                idempotency_key=idempotency_key,
            )
        )

    def list_recurring_grants(
        self,
        organization_id: Id,
    ) -> tuple[RecurringGrant, ...]:
        """Every recurring grant of the organization as it is now, oldest first; those that have ended too."""
        return self._core.run(self._core.list_recurring_grants(organization_id))

    def cancel_recurring_grant(
        self,
        recurring: str | RecurringGrant,
        *,
        organization_id: Id | None = None,
    ) -> RecurringGrant:
        """Grant no further period; what was granted stays until its own end, and is not carried over.

        Raises:
            RecurringGrantNotFoundError: unknown, or another organization's.
            MissingContextError: nothing says whose is meant.
        """
        return self._core.run(self._core.cancel_recurring_grant(recurring, organization_id=organization_id))
