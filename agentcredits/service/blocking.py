"""The blocking face of the credit service."""

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
from agentcredits.reservation import Hold, SyncReservation
from agentcredits.service.blocking_operators import SyncOperatorMethods

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

Id = str | UUID
OverageName = Literal["reject", "cap", "overdraft"]
OverrunName = Literal["cap", "overdraft"]


class SyncCreditService(SyncOperatorMethods):
    """The same service for blocking code: same methods, same arguments, same errors.

    See :class:`CreditService` for the arguments.
    """

    def get_balance(
        self,
        organization_id: Id,
    ) -> Balance:
        """The account's balance now; ``balance["available"]`` and ``balance.available`` are the same.

        Blocking form of :meth:`CreditService.get_balance`: same arguments, results and errors.
        """
        return self._core.run(self._core.get_balance(organization_id))

    def check_credits(
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

        Blocking form of :meth:`CreditService.check_credits`: same arguments, results and errors.
        """
        return self._core.run(
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

    def quote(
        self,
        organization_id: Id,
        actions: Sequence[PlannedAction],
    ) -> Quote:
        """Price a whole plan before the start, and say whether the account could pay it.

        Blocking form of :meth:`CreditService.quote`: same arguments, results and errors.
        """
        return self._core.run(self._core.quote(organization_id, actions))

    def consume_credits(
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
        session: Session | Connection | None = None,
    ) -> Transaction:
        """Charge at once.

        Blocking form of :meth:`CreditService.consume_credits`: same arguments, results and errors.
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
            return self._core.run_in_session(steps, session)
        return self._core.run(steps)

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
    ) -> SyncReservation:
        """Hold credits before the work.

        Blocking form of :meth:`CreditService.reserve_credits`: same arguments, results and errors.
        """
        return cast(
            SyncReservation,
            self._core.run(
                self._core.reserve_credits(
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
                    handle=SyncReservation,
                )
            ),
        )

    def commit_reservation(
        self,
        reservation: str | Hold | ReservationRecord,
        amount: Amount | None = None,
        *,
        organization_id: Id | None = None,
        overage: OverageName | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> ReservationRecord:
        """Charge a hold; what is not charged goes back to the grants it came from.

        Blocking form of :meth:`CreditService.commit_reservation`: same arguments, results and errors.
        """
        return self._core.run(
            self._core.commit_reservation(
                reservation, amount, organization_id=organization_id, overage=overage, metadata=metadata
            )
        )

    def confirm(
        self,
        reservation: str | Hold | ReservationRecord,
        amount: Amount | None = None,
        *,
        organization_id: Id | None = None,
        overage: OverageName | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> ReservationRecord:
        """Alias of ``commit_reservation``."""
        return self._core.run(
            self._core.commit_reservation(
                reservation, amount, organization_id=organization_id, overage=overage, metadata=metadata
            )
        )

    def release_reservation(
        self,
        reservation: str | Hold | ReservationRecord,
        reason: str | None = None,
        *,
        organization_id: Id | None = None,
        force: bool = False,
    ) -> ReservationRecord:
        """Give a hold back; releasing twice is harmless.

        Blocking form of :meth:`CreditService.release_reservation`: same arguments, results and errors.
        """
        return self._core.run(
            self._core.release_reservation(reservation, reason, organization_id=organization_id, force=force)
        )

    def rollback(
        self,
        reservation: str | Hold | ReservationRecord,
        reason: str | None = None,
        *,
        organization_id: Id | None = None,
        force: bool = False,
    ) -> ReservationRecord:
        """Alias of ``release_reservation``."""
        return self._core.run(
            self._core.release_reservation(reservation, reason, organization_id=organization_id, force=force)
        )

    def extend_reservation(
        self,
        reservation: str | Hold | ReservationRecord,
        ttl: timedelta,
        *,
        organization_id: Id | None = None,
    ) -> ReservationRecord:
        """Let a hold live until now + ``ttl`` (never relative to its old end).

        Blocking form of :meth:`CreditService.extend_reservation`: same arguments, results and errors.
        """
        return self._core.run(self._core.extend_reservation(reservation, ttl, organization_id=organization_id))

    def mark_unknown(
        self,
        reservation: str | Hold | ReservationRecord,
        provider: str,
        provider_reference: str | None = None,
        *,
        organization_id: Id | None = None,
        ttl: timedelta | None = None,
    ) -> ReservationRecord:
        """The provider's verdict is awaited (a poll time-out is not a failure): keep the hold for ``ttl`` (7 days).

        Blocking form of :meth:`CreditService.mark_unknown`: same arguments, results and errors.
        """
        return self._core.run(
            self._core.mark_unknown(reservation, provider, provider_reference, organization_id=organization_id, ttl=ttl)
        )

    def get_reservation(
        self,
        reservation: str | Hold | ReservationRecord,
        *,
        organization_id: Id | None = None,
    ) -> ReservationRecord:
        """One reservation as it is now.

        Blocking form of :meth:`CreditService.get_reservation`: same arguments, results and errors.
        """
        return self._core.run(self._core.get_reservation(reservation, organization_id=organization_id))

    def list_reservations(
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
        return self._core.run(
            self._core.list_reservations(organization_id, states=states, limit=limit, unresolved=unresolved)
        )

    def refund_credits(
        self,
        transaction: str | Transaction,
        amount: Amount | None = None,
        reason: str | None = None,
        *,
        organization_id: Id | None = None,
        idempotency_key: str | None = None,
        session: Session | Connection | None = None,
    ) -> Transaction:
        """Give a charge, or a part of it, back to the grants it came from (newest allocation first).

        Blocking form of :meth:`CreditService.refund_credits`: same arguments, results and errors.
        """
        steps = self._core.refund_credits(
            transaction, amount, reason, organization_id=organization_id, idempotency_key=idempotency_key
        )
        if session is not None:
            return self._core.run_in_session(steps, session)
        return self._core.run(steps)

    def list_transactions(
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
        return self._core.run(
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

    def flush(self, within: timedelta = timedelta(seconds=10)) -> bool:
        """Wait until settlements made in the background are booked; False when the store is still away."""
        return self._core.runner.flush(within.total_seconds())

    def close(self) -> None:
        """Book what is queued and, when this was the last service on its database, close the connections."""
        self._core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
