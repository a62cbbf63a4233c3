"""The coroutine face of the credit service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, cast
from uuid import UUID

from agentcredits.amounts import Amount
from agentcredits.model import (
    Balance,
    Decision,
    Page,
    PlannedAction,
    Quote,
    ReservationRecord,
    Transaction,
)
from agentcredits.reservation import Hold, Reservation, ReservationRequest
from agentcredits.service.coroutine_operators import OperatorMethods

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

Id = str | UUID
OverageName = Literal["reject", "cap", "overdraft"]
OverrunName = Literal["cap", "overdraft"]


class CreditService(OperatorMethods):
    """Credits for AI agents in your own database; every method is a coroutine.

    Constructing one is free: services on the same database share one engine and one queue in a process. A cancelled
    call means "not started, or finished": pass an ``idempotency_key`` where it matters.

    Args:
        database: A URL (``sqlite:///…``, ``postgresql://…``), a SQLAlchemy Engine, or None for
            AGENTCREDITS_DATABASE_URL, else this user's default SQLite file.
        settings: None: from the environment.
        clock: Replaces the database's clock everywhere, expiry included (for tests).
    """

    async def get_balance(
        self,
        organization_id: Id,
    ) -> Balance:
        """The account's balance now; ``balance["available"]`` and ``balance.available`` are the same.

        Raises:
            AccountNotFoundError: the organization was never granted anything.
            StoreUnavailableError: the database is away.
        """
        return await self._core.arun(self._core.get_balance(organization_id))

    async def check_credits(
        self,
        organization_id: Id,
        *,
        agent_type: str | None = None,
        action: str | None = None,
        quantity: Amount = 1,
        dimensions: Mapping[str, Any] | None = None,
        amount: Amount | None = None,
        project_id: Id | None = None,
        department_id: Id | None = None,
        user_id: Id | None = None,
    ) -> Decision:
        """Whether an action (or ``amount`` credits) could be charged now; nothing is held, so another may be faster.

        Raises:
            UnpricedActionError: the action has no price.
        """
        return await self._core.arun(
            self._core.check_credits(
                organization_id,
                agent_type=agent_type,
                action=action,
                quantity=quantity,
                dimensions=dimensions,
                amount=amount,
                project_id=project_id,
                department_id=department_id,
                user_id=user_id,
            )
        )

    async def quote(
        self,
        organization_id: Id,
        actions: Sequence[PlannedAction],
    ) -> Quote:
        """Price a whole plan before the start, and say whether the account could pay it.

        Raises:
            UnpricedActionError: one of the actions has no price.
        """
        return await self._core.arun(self._core.quote(organization_id, actions))

    async def consume_credits(
        self,
        *,
        organization_id: Id,
        amount: Amount | None = None,
        agent_type: str | None = None,
        action: str | None = None,
        quantity: Amount = 1,
        dimensions: Mapping[str, Any] | None = None,
        project_id: Id | None = None,
        department_id: Id | None = None,
        user_id: Id | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        overage: OverageName | None = None,
        session: Session | Connection | AsyncSession | AsyncConnection | None = None,
    ) -> Transaction:
        """Charge at once.

        Args:
            organization_id: Whose account pays.
            amount: Credits; None: the price of ``agent_type`` and ``action`` times ``quantity``.
            agent_type: Of the action.
            action: What was done.
            quantity: How often or how much.
            dimensions: What a price rule may look at (model, resolution, duration …); stored.
            project_id: Scope below the organization; None: the current context's.
            department_id: Likewise.
            user_id: Likewise.
            metadata: Stored beside the row; at most 8 KiB of JSON.
            idempotency_key: The same key and payload answer the same transaction, flagged ``replayed``.
            overage: ``"reject"`` (default), ``"cap"``: charge what is there, or ``"overdraft"``: that, and what the
                account's line lends. The rest stands on the row as ``uncollected``.
            session: Charge inside this transaction of yours; it commits or rolls back with your own rows.

        Returns:
            The DEBIT row.

        Raises:
            InsufficientCreditsError: fewer credits available than needed; nothing was charged.
            AccountFrozenError: an operator froze or closed the account.
            UnpricedActionError: the action has no price.
            IdempotencyMismatchError: the key was used for another payload.
            StoreUnavailableError: the database is away; carries the key for a safe retry.
        """
        steps = self._core.consume_credits(
            organization_id=organization_id,
            amount=amount,
            agent_type=agent_type,
            action=action,
            quantity=quantity,
            dimensions=dimensions,
            project_id=project_id,
            department_id=department_id,
            user_id=user_id,
            metadata=metadata,
            idempotency_key=idempotency_key,
            overage=overage,
        )
        if session is not None:
            return await self._core.arun_in_session(steps, session)
        return await self._core.arun(steps)

    def reserve_credits(
        self,
        *,
        organization_id: Id,
        amount: Amount | None = None,
        agent_type: str | None = None,
        action: str | None = None,
        quantity: Amount = 1,
        dimensions: Mapping[str, Any] | None = None,
        project_id: Id | None = None,
        department_id: Id | None = None,
        user_id: Id | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        ttl: timedelta | None = None,
        overage: OverrunName | None = None,
    ) -> ReservationRequest[Reservation]:
        """Hold credits before the work.

        Use the handle as a context manager: it renews the hold while the body runs, charges it at the end and gives it
        back when the body raises. Arguments are those of ``consume_credits``; ``ttl`` (None: 5 minutes unless set
        otherwise) is how long the hold lives without being renewed. ``overage`` is what the handle takes when its work
        costs more than the hold: ``"cap"`` (default) what is available, ``"overdraft"`` what the account's line lends
        too.

        Raises:
            InsufficientCreditsError: fewer credits available than needed; nothing is held.
            AccountFrozenError: an operator froze or closed the account.
            UnpricedActionError: the action has no price.
            IdempotencyMismatchError: the key was used for another payload.
        """
        steps = self._core.reserve_credits(
            organization_id=organization_id,
            amount=amount,
            agent_type=agent_type,
            action=action,
            quantity=quantity,
            dimensions=dimensions,
            project_id=project_id,
            department_id=department_id,
            user_id=user_id,
            metadata=metadata,
            idempotency_key=idempotency_key,
            ttl=ttl,
            overage=overage,
            handle=Reservation,
        )

        async def make() -> Reservation:
            return cast(Reservation, await self._core.arun(steps))

        return ReservationRequest(make)

    async def commit_reservation(
        self,
        reservation: str | Hold | ReservationRecord,
        amount: Amount | None = None,
        *,
        organization_id: Id | None = None,
        overage: OverageName | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> ReservationRecord:
        """Charge a hold; what is not charged goes back to the grants it came from.

        Args:
            reservation: Its id, or the handle or record itself.
            amount: Credits; None: the whole hold. 0 charges nothing.
            organization_id: Whose; None: the object's, else the current context's.
            overage: What an amount above the hold does: ``"reject"`` (default; the hold stays), ``"cap"``: what is
                available is taken, or ``"overdraft"``: and what the account's line lends.
            metadata: Replaces the hold's metadata on the row.

        Raises:
            ReservationNotFoundError: unknown, or another organization's.
            ReservationExpiredError: its time-to-live ended (and the grace setting with it).
            ReservationAlreadySettledError: released, or committed with another amount.
            OverageRejectedError: more than the hold, with ``"reject"``.
        """
        return await self._core.arun(
            self._core.commit_reservation(
                reservation, amount, organization_id=organization_id, overage=overage, metadata=metadata
            )
        )

    async def confirm(
        self,
        reservation: str | Hold | ReservationRecord,
        amount: Amount | None = None,
        *,
        organization_id: Id | None = None,
        overage: OverageName | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> ReservationRecord:
        """Alias of ``commit_reservation``."""
        return await self._core.arun(
            self._core.commit_reservation(
                reservation, amount, organization_id=organization_id, overage=overage, metadata=metadata
            )
        )

    async def release_reservation(
        self,
        reservation: str | Hold | ReservationRecord,
        reason: str | None = None,
        *,
        organization_id: Id | None = None,
        force: bool = False,
    ) -> ReservationRecord:
        """Give a hold back; releasing twice is harmless.

        Args:
            reservation: Its id, or the handle or record itself.
            reason: Why; ``force`` needs one.
            organization_id: Whose; None: the object's, else the current context's.
            force: For an operator, of work that seems lost: should it finish after all, its handle charges it late,
                once, from what is available then. Without ``force`` that work is free.

        Raises:
            InvalidInputError: ``force`` without a reason.
            ReservationNotFoundError: unknown, or another organization's.
            ReservationAlreadySettledError: it was committed.
        """
        return await self._core.arun(
            self._core.release_reservation(reservation, reason, organization_id=organization_id, force=force)
        )

    async def rollback(
        self,
        reservation: str | Hold | ReservationRecord,
        reason: str | None = None,
        *,
        organization_id: Id | None = None,
        force: bool = False,
    ) -> ReservationRecord:
        """Alias of ``release_reservation``."""
        return await self._core.arun(
            self._core.release_reservation(reservation, reason, organization_id=organization_id, force=force)
        )

    async def extend_reservation(
        self,
        reservation: str | Hold | ReservationRecord,
        ttl: timedelta,
        *,
        organization_id: Id | None = None,
    ) -> ReservationRecord:
        """Let a hold live until now + ``ttl`` (never relative to its old end).

        Raises:
            ReservationExpiredError: it is too late.
            ReservationAlreadySettledError: there is nothing to extend.
        """
        return await self._core.arun(self._core.extend_reservation(reservation, ttl, organization_id=organization_id))

    async def mark_unknown(
        self,
        reservation: str | Hold | ReservationRecord,
        provider: str,
        provider_reference: str | None = None,
        *,
        organization_id: Id | None = None,
        ttl: timedelta | None = None,
    ) -> ReservationRecord:
        """The provider's verdict is awaited (a poll time-out is not a failure): keep the hold for ``ttl`` (7 days).

        Raises:
            ReservationExpiredError: it is too late.
            ReservationAlreadySettledError: it is settled.
        """
        return await self._core.arun(
            self._core.mark_unknown(reservation, provider, provider_reference, organization_id=organization_id, ttl=ttl)
        )

    async def get_reservation(
        self,
        reservation: str | Hold | ReservationRecord,
        *,
        organization_id: Id | None = None,
    ) -> ReservationRecord:
        """One reservation as it is now.

        Raises:
            ReservationNotFoundError: unknown, or another organization's.
        """
        return await self._core.arun(self._core.get_reservation(reservation, organization_id=organization_id))

    async def list_reservations(
        self,
        organization_id: Id,
        *,
        states: Sequence[str] = (),
        limit: int = 50,
        unresolved: bool = False,
    ) -> tuple[ReservationRecord, ...]:
        """Reservations as they are now, newest first; ``states`` narrows (``"active"``, ``"unknown"`` …).

        ``unresolved``: only those whose provider's verdict has not come: UNKNOWN, or EXPIRED after waiting for it and
        not charged since; see ``media.resolve_unknown``.
        """
        return await self._core.arun(
            self._core.list_reservations(organization_id, states=states, limit=limit, unresolved=unresolved)
        )

    async def refund_credits(
        self,
        transaction: str | Transaction,
        amount: Amount | None = None,
        reason: str | None = None,
        *,
        organization_id: Id | None = None,
        idempotency_key: str | None = None,
        session: Session | Connection | AsyncSession | AsyncConnection | None = None,
    ) -> Transaction:
        """Give a charge, or a part of it, back to the grants it came from (newest allocation first).

        Args:
            transaction: The charge, or its id.
            amount: Credits; None: all that was not refunded yet.
            reason: Stored with the refund.
            organization_id: Whose; None: the object's, else the current context's.
            idempotency_key: The same key and payload answer the same refund: a lost answer can be asked for again.
            session: Refund inside this transaction of yours.

        Raises:
            TransactionNotFoundError: unknown, no charge, or another organization's.
            RefundExceedsChargeError: more than is left of the charge.
        """
        steps = self._core.refund_credits(
            transaction, amount, reason, organization_id=organization_id, idempotency_key=idempotency_key
        )
        if session is not None:
            return await self._core.arun_in_session(steps, session)
        return await self._core.arun(steps)

    async def list_transactions(
        self,
        organization_id: Id,
        *,
        cursor: int | None = None,
        limit: int = 50,
        type: str | None = None,
        agent_type: str | None = None,
        action: str | None = None,
        project_id: Id | None = None,
        department_id: Id | None = None,
        user_id: Id | None = None,
        run_id: Id | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Page[Transaction]:
        """The history, newest first; ``cursor`` is the last page's ``next_cursor``, ``until`` is exclusive."""
        return await self._core.arun(
            self._core.list_transactions(
                organization_id,
                cursor=cursor,
                limit=limit,
                type=type,
                agent_type=agent_type,
                action=action,
                project_id=project_id,
                department_id=department_id,
                user_id=user_id,
                run_id=run_id,
                since=since,
                until=until,
            )
        )

    async def flush(self, within: timedelta = timedelta(seconds=10)) -> bool:
        """Wait until settlements made in the background are booked; False when the store is still away."""
        return await self._core.runner.acall(lambda: self._core.runner.flush(within.total_seconds()))

    async def aclose(self) -> None:
        """Book what is queued and, when this was the last service on its database, close the connections."""
        await self._close_in_thread()

    def close(self) -> None:
        """Like :meth:`aclose`, blocking."""
        self._core.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
