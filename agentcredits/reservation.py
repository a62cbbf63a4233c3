"""The handle of a hold: charge it when the work is done, give it back when it failed.

``with hold:`` and ``async with hold:`` renew the hold while the body runs, commit it at the end (the whole hold, or
what :meth:`commit` was given inside) and release it when the body raises or is cancelled. Settlement never costs the
caller his result: an over-run takes what is there, a hold that ran out is settled late, and when the store is away
the settlement is kept and retried.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Generator, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from agentcredits import hooks
from agentcredits.amounts import Amount, to_micros
from agentcredits.errors import CreditsError, ReservationInUseError, SettlementFailedError
from agentcredits.ids import encode_json, new_id
from agentcredits.model import Overage, Pricing, ReservationRecord, ReservationState
from agentcredits.rules.operations import Commit, Release
from agentcredits.rules.state import OPEN_STATES
from agentcredits.runner.runner import Deferred
from agentcredits.runner.steps import Settle, Steps

if TYPE_CHECKING:
    from agentcredits.service.charges import Charges

T = TypeVar("T")


class Hold:
    """What decorators, adapters and the public handles share.

    Args:
        core: The service's core.
        record: The reservation as it was booked or replayed.
        ttl: Its time-to-live; renewed every third of it.
        overage: What a settlement above the hold takes: what is available (CAP), or the account's line too (OVERDRAFT).
        dry_run: Nothing was booked, and nothing will be.
    """

    def __init__(
        self,
        core: Charges,
        record: ReservationRecord,
        *,
        ttl: timedelta,
        overage: Overage = Overage.CAP,
        dry_run: bool = False,
    ) -> None:
        self._core = core
        self._pid = os.getpid()
        self._settled = False
        self.record = record
        self.ttl = ttl
        self._overage = overage
        self.dry_run = dry_run

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.record.state.value} {self.amount} credits>"

    @property
    def id(self) -> str:
        """The reservation's id."""
        return self.record.id

    @property
    def organization_id(self) -> str:
        """Whose credits are held."""
        return self.record.organization_id

    @property
    def amount_micros(self) -> int:
        """Micro-credits held."""
        return self.record.amount_micros

    @property
    def amount(self) -> Decimal:
        """Credits held."""
        return self.record.amount

    @property
    def state(self) -> ReservationState:
        """The state as far as this handle knows."""
        return self.record.state

    @property
    def expires_at(self) -> datetime:
        """When the hold ends if nobody renews it, as far as this handle knows."""
        return self.record.expires_at

    @property
    def pricing(self) -> Pricing:
        """How the amount came about."""
        return self.record.pricing

    @property
    def replayed(self) -> bool:
        """Whether an earlier call with the same key made this hold."""
        return self.record.replayed

    @property
    def _inert(self) -> bool:
        """Nothing to settle: a dry run, somebody else's hold, settled already, or inherited through a fork."""
        return self.dry_run or self.replayed or self._settled or self._pid != os.getpid()

    def begin(self) -> None:
        """Renew the hold from now on, until it is settled.

        Raises:
            ReservationInUseError: the hold belongs to another attempt with the same key that is still running.
        """
        if self.replayed and self.record.state in OPEN_STATES:
            raise ReservationInUseError(
                f"reservation {self.id} belongs to another attempt with the same key that is still running.",
                context={"reservation_id": self.id, "idempotency_key": self.record.idempotency_key},
                suggestions=("Wait until the other attempt ends, then try again.",),
            )
        if not self._inert:
            self._core.runner.begin(self, self.organization_id, self.id, self.ttl)

    def settle(
        self, amount_micros: int | None = None, *, metadata: Mapping[str, Any] | None = None
    ) -> Steps[ReservationRecord | None]:
        """Charge the hold after the work succeeded; ``amount_micros`` None is the whole hold.

        Returns:
            The settled reservation, or None when there was nothing to settle or the store is away (the settlement
            is kept and retried).

        Raises:
            SettlementFailedError: only with ``on_settlement_failure="raise"``.
        """
        if self._inert:
            return None
        return (yield from self._settle(self._commit_operation(amount_micros, metadata, automatic=True), strict=False))

    def give_back(self, reason: str | None) -> Steps[ReservationRecord | None]:
        """Release the hold after the work failed; never raises for a store that is away."""
        if self._inert:
            return None
        return (yield from self._settle(self._release_operation(reason, automatic=True), strict=False))

    def settle_in_background(
        self, amount_micros: int | None = None, *, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Charge the hold without waiting; safe in finalizers."""
        if not self._inert:
            self._settled = True
            self._core.runner.settle_in_background(self._commit_operation(amount_micros, metadata, automatic=True))

    def give_back_in_background(self, reason: str | None) -> None:
        """Release the hold without waiting; safe in finalizers."""
        if not self._inert:
            self._settled = True
            self._core.runner.settle_in_background(self._release_operation(reason, automatic=True))

    def _commit_operation(
        self, amount_micros: int | None, metadata: Mapping[str, Any] | None, *, automatic: bool = False
    ) -> Commit:
        return Commit(
            organization_id=self.organization_id,
            reservation_id=self.id,
            transaction_id=new_id(),
            amount_micros=amount_micros,
            overage=self._overage,
            late=True,
            automatic=automatic,
            metadata_json=encode_json(metadata, name="metadata"),
        )

    def _release_operation(self, reason: str | None, *, automatic: bool = False) -> Release:
        return Release(
            organization_id=self.organization_id,
            reservation_id=self.id,
            automatic=automatic,
            reason=None if reason is None else reason.replace("\x00", "").encode(errors="replace").decode()[:500],
        )

    def _settle(self, operation: Commit | Release, *, strict: bool) -> Steps[ReservationRecord | None]:
        self._settled = True
        try:
            outcome = yield Settle(operation)
        except BaseException:
            # Interrupted, perhaps before it was queued: whoever has the handle settles again (the ledger books once).
            self._settled = False
            raise
        problem: CreditsError | None
        if isinstance(outcome, Deferred):
            hooks.fire(hooks.CreditEvent("settlement_deferred", self.organization_id, reservation=self.record))
            problem = outcome.cause
            retrying = True
        else:
            problem = outcome.error
            retrying = False
            self._core.tell_beside(self.organization_id, outcome)
        if problem is None:
            self.record = self._core.reservation_record(self.organization_id, outcome)
            if not outcome.replayed:
                self._core.tell_settled(self.record)
            return self.record
        if strict and not retrying:
            raise problem
        if isinstance(operation, Commit) and self._core.settings.on_settlement_failure == "raise":
            raise SettlementFailedError(
                f"the work is done, but reservation {self.id} is not settled"
                f" ({problem.message}){'; it is being retried' if retrying else ''}.",
                retryable=False,
                context={"reservation_id": self.id, "organization_id": self.organization_id, "retrying": retrying},
            ) from problem
        return None

    # -- blocks ----------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._core.run(self.settle())
            return
        try:
            self._core.run(self.give_back(_reason(error)))
        except Exception as problem:  # noqa: BLE001 - whatever it is, the user's own error comes first
            error.add_note(f"agentcredits: reservation {self.id} was not given back: {problem}")

    async def __aenter__(self) -> Self:
        self.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            await self._core.arun(self.settle())
            return
        try:
            await self._core.arun(self.give_back(_reason(error)))
        except Exception as problem:  # noqa: BLE001 - whatever it is, the user's own error comes first
            error.add_note(f"agentcredits: reservation {self.id} was not given back: {problem}")

    def _explicit(self, operation: Commit | Release) -> Steps[ReservationRecord]:
        if self.dry_run or self._pid != os.getpid():
            return self.record
        return (yield from self._settle(operation, strict=True)) or self.record

    def _explicit_commit(self, amount: Amount | None, metadata: Mapping[str, Any] | None) -> Steps[ReservationRecord]:
        micros = None if amount is None else to_micros(amount, allow_zero=True)
        return self._explicit(self._commit_operation(micros, metadata))


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


class SyncReservation(Hold):
    """The blocking handle: ``with service.reserve_credits(...) as hold: …``."""

    def commit(self, amount: Amount | None = None, *, metadata: Mapping[str, Any] | None = None) -> ReservationRecord:
        """Charge ``amount`` credits (None: the whole hold); an over-run takes what is there.

        Raises:
            InvalidAmountError: no amount.
            ReservationAlreadySettledError: released, or committed with another amount.
        """
        return self._core.run(self._explicit_commit(amount, metadata))

    def release(self, reason: str | None = None) -> ReservationRecord:
        """Give the hold back.

        Raises:
            ReservationAlreadySettledError: it was committed.
        """
        return self._core.run(self._explicit(self._release_operation(reason)))

    def extend(self, ttl: timedelta) -> ReservationRecord:
        """Let the hold live until now + ``ttl``."""
        self.record = self._core.run(self._core.extend_reservation(self.id, ttl, organization_id=self.organization_id))
        return self.record


class Reservation(Hold):
    """The coroutine handle: ``async with service.reserve_credits(...) as hold: …``."""

    async def commit(
        self, amount: Amount | None = None, *, metadata: Mapping[str, Any] | None = None
    ) -> ReservationRecord:
        """Charge ``amount`` credits (None: the whole hold); an over-run takes what is there.

        Raises:
            InvalidAmountError: no amount.
            ReservationAlreadySettledError: released, or committed with another amount.
        """
        return await self._core.arun(self._explicit_commit(amount, metadata))

    async def release(self, reason: str | None = None) -> ReservationRecord:
        """Give the hold back.

        Raises:
            ReservationAlreadySettledError: it was committed.
        """
        return await self._core.arun(self._explicit(self._release_operation(reason)))

    async def extend(self, ttl: timedelta) -> ReservationRecord:
        """Let the hold live until now + ``ttl``."""
        self.record = await self._core.arun(
            self._core.extend_reservation(self.id, ttl, organization_id=self.organization_id)
        )
        return self.record


class ReservationRequest(Generic[T]):
    """What ``reserve_credits`` of the coroutine face returns: await it for the handle, or enter it."""

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self._make = make
        self._handle: T | None = None

    def __await__(self) -> Generator[Any, None, T]:
        return self._make().__await__()

    async def __aenter__(self) -> T:
        handle = await self._make()
        self._handle = handle
        await handle.__aenter__()  # type: ignore[attr-defined]  # T is always a Hold
        return handle

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._handle.__aexit__(kind, error, traceback)  # type: ignore[union-attr]  # entered before
