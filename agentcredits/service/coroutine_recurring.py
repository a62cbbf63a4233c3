"""What operators use, on the coroutine face: grants that come again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from agentcredits.amounts import Amount
from agentcredits.model import RecurringGrant, Rollover
from agentcredits.service.coroutine_prices import PriceMethods

Id = str | UUID


class RecurringMethods(PriceMethods):
    """Grants that come again; a part of :class:`CreditService`."""

    async def create_recurring_grant(
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

        Nothing depends on a timer: each posting and each read counts what has come due, exactly and once.

        Args:
            organization_id: Who gets them.
            amount: Credits of each period.
            every: "month" from the anchor's day and time of day (days 29 to 31 become the last day of a shorter month
                and come back after it), or the calendar's "week" (from Monday) or "day".
            anchor: When the first grant comes, if that is not past; None: now.
            tz: A name of the tz database, in which months, weeks and days are counted.
            ends_at: No period that begins then or later is granted; None: without end.
            category: As in ``grant_credits``.
            priority: As in ``grant_credits``.
            expires_after: How long each grant can be used: "period" (to its period's end), a time, or None (for ever).
            rollover: What of a period's rest is carried over into the next one; None: nothing.
            only_for: As in ``grant_credits``.
            unit_cost: As in ``grant_credits``.
            currency: As in ``grant_credits``.
            source: Where they come from, such as a subscription's id.
            idempotency_key: The same key and payload answer the same recurring grant.

        Raises:
            InvalidAmountError: no amount.
            InvalidInputError: a naive time, an unknown zone or category, an end that is past, a rollover of grants
                that do not last for their period, more than 50 active ones.
            IdempotencyMismatchError: the key was used for another recurring grant.
        """
        return await self._core.arun(
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

    async def list_recurring_grants(
        self,
        organization_id: Id,
    ) -> tuple[RecurringGrant, ...]:
        """Every recurring grant of the organization as it is now, oldest first; those that have ended too."""
        return await self._core.arun(self._core.list_recurring_grants(organization_id))

    async def cancel_recurring_grant(
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
        return await self._core.arun(self._core.cancel_recurring_grant(recurring, organization_id=organization_id))
