"""Charges, holds, their settlement by id, and refunds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from agentcredits.amounts import Amount, to_micros
from agentcredits.ids import check_text, encode_json, new_id, scope_id
from agentcredits.model import (
    Overage,
    ReservationRecord,
    ReservationState,
    Scopes,
    Transaction,
)
from agentcredits.reservation import Hold
from agentcredits.rules import operations as ops
from agentcredits.rules.pricing import Price
from agentcredits.runner.steps import Post, Read, Steps
from agentcredits.service import arguments
from agentcredits.service.prices import Prices
from agentcredits.store import queries


class Charges(Prices):
    """Everything that takes credits or gives them back."""

    def consume(
        self,
        *,
        organization_id: str,
        price: Price,
        agent_type: str | None,
        action: str | None,
        quantity: Any = 1,
        dimensions: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        scopes: Scopes | None = None,
        idempotency_key: str | None = None,
        overage: Overage = Overage.REJECT,
        explicit_amount: bool = False,
    ) -> Steps[Transaction]:
        """Charge at once."""
        activity = self._activity(agent_type, action, quantity, dimensions, metadata, scopes, price.pricing)
        record_id, key, generated = arguments.identity(idempotency_key)
        if self._dry_run(organization_id):
            return arguments.dry_transaction(organization_id, price.amount_micros, activity, key)
        operation = ops.Consume(
            organization_id=organization_id,
            id=record_id,
            key=key,
            key_generated=generated,
            fingerprint=arguments.fingerprint(
                "consume", organization_id, price.amount_micros, activity, explicit_amount, overage
            ),
            amount_micros=price.amount_micros,
            activity=activity,
            overage=overage,
            observe=self.mode == "observe",
            would_refuse=self._would_refuse(activity.scopes, price.refusal),
        )
        outcome = self._answered(organization_id, (yield Post(operation)))
        transaction = self._transaction(organization_id, outcome)
        if not outcome.replayed:
            self._tell_transaction("charged", transaction)
        return transaction

    def consume_credits(
        self,
        *,
        organization_id: object,
        amount: Amount | None = None,
        agent_type: str | None = None,
        action: str | None = None,
        quantity: Any = 1,
        dimensions: Mapping[str, Any] | None = None,
        project_id: object = None,
        department_id: object = None,
        user_id: object = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        overage: str | Overage | None = None,
    ) -> Steps[Transaction]:
        """Charge at once; the public method."""
        owner = scope_id(organization_id, name="organization_id")
        scopes = self._scopes(owner, project_id, department_id, user_id)
        price = None if amount is not None else self.known_price(owner, agent_type, action, quantity, dimensions)
        if price is None:
            price = yield from self.amount_for(
                organization_id=owner,
                amount=amount,
                agent_type=agent_type,
                action=action,
                quantity=quantity,
                dimensions=dimensions,
                idempotency_key=idempotency_key,
            )
        return (
            yield from self.consume(
                organization_id=owner,
                price=price,
                agent_type=agent_type,
                action=action,
                quantity=quantity,
                dimensions=dimensions,
                metadata=self._with_context(owner, metadata),
                scopes=scopes,
                idempotency_key=idempotency_key,
                overage=arguments.overage(overage, Overage.REJECT),
                explicit_amount=amount is not None,
            )
        )

    def reserve(
        self,
        *,
        organization_id: str,
        price: Price,
        agent_type: str | None,
        action: str | None,
        quantity: Any = 1,
        dimensions: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        scopes: Scopes | None = None,
        ttl: timedelta | None = None,
        idempotency_key: str | None = None,
        explicit_amount: bool = False,
        overage: Overage = Overage.CAP,
        handle: type[Hold] = Hold,
    ) -> Steps[Hold]:
        """Hold an amount; ``overage`` is what the handle's settlement does above it."""
        activity = self._activity(agent_type, action, quantity, dimensions, metadata, scopes, price.pricing)
        record_id, key, generated = arguments.identity(idempotency_key)
        live = self.settings.reservation_ttl if ttl is None else arguments.ttl(ttl)
        if self._dry_run(organization_id):
            return handle(
                self,
                arguments.dry_reservation(organization_id, price.amount_micros, activity, key, live),
                ttl=live,
                overage=overage,
                dry_run=True,
            )
        operation = ops.Reserve(
            organization_id=organization_id,
            id=record_id,
            key=key,
            key_generated=generated,
            fingerprint=arguments.fingerprint(
                "reserve", organization_id, price.amount_micros, activity, explicit_amount, None
            ),
            amount_micros=price.amount_micros,
            ttl=live,
            activity=activity,
            observe=self.mode == "observe",
            would_refuse=self._would_refuse(activity.scopes, price.refusal),
        )
        outcome = self._answered(organization_id, (yield Post(operation)))
        return handle(self, self.reservation_record(organization_id, outcome), ttl=live, overage=overage)

    def reserve_credits(
        self,
        *,
        organization_id: object,
        amount: Amount | None = None,
        agent_type: str | None = None,
        action: str | None = None,
        quantity: Any = 1,
        dimensions: Mapping[str, Any] | None = None,
        project_id: object = None,
        department_id: object = None,
        user_id: object = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        ttl: timedelta | None = None,
        overage: str | Overage | None = None,
        handle: type[Hold] = Hold,
    ) -> Steps[Hold]:
        """Hold an amount; the public method."""
        policy = arguments.overrun(overage)
        owner = scope_id(organization_id, name="organization_id")
        scopes = self._scopes(owner, project_id, department_id, user_id)
        price = None if amount is not None else self.known_price(owner, agent_type, action, quantity, dimensions)
        if price is None:
            price = yield from self.amount_for(
                organization_id=owner,
                amount=amount,
                agent_type=agent_type,
                action=action,
                quantity=quantity,
                dimensions=dimensions,
                idempotency_key=idempotency_key,
            )
        return (
            yield from self.reserve(
                organization_id=owner,
                price=price,
                agent_type=agent_type,
                action=action,
                quantity=quantity,
                dimensions=dimensions,
                metadata=self._with_context(owner, metadata),
                scopes=scopes,
                ttl=ttl,
                idempotency_key=idempotency_key,
                explicit_amount=amount is not None,
                overage=policy,
                handle=handle,
            )
        )

    def commit_reservation(
        self,
        reservation: object,
        amount: Amount | None = None,
        *,
        organization_id: object = None,
        overage: str | Overage | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Steps[ReservationRecord]:
        """Settle a hold by id: REJECT is the default, and an expired hold is an error."""
        operation = ops.Commit(
            organization_id=self.organization(organization_id, reservation),
            reservation_id=self.id_of(reservation, name="reservation_id"),
            transaction_id=new_id(),
            amount_micros=None if amount is None else to_micros(amount, allow_zero=True),
            overage=arguments.overage(overage, Overage.REJECT),
            grace=timedelta(seconds=self.settings.commit_grace_seconds),
            metadata_json=encode_json(metadata, name="metadata"),
        )
        return (yield from self._settled_by_id(operation, reservation))

    def release_reservation(
        self,
        reservation: object,
        reason: str | None = None,
        *,
        organization_id: object = None,
        force: bool = False,
    ) -> Steps[ReservationRecord]:
        """Give a hold back by id."""
        operation = ops.Release(
            organization_id=self.organization(organization_id, reservation),
            reservation_id=self.id_of(reservation, name="reservation_id"),
            reason=None if reason is None and not force else arguments.reason(reason),
            forced=bool(force),
        )
        return (yield from self._settled_by_id(operation, reservation))

    def _settled_by_id(self, operation: ops.Commit | ops.Release, handle: object) -> Steps[ReservationRecord]:
        if isinstance(handle, Hold) and handle.dry_run:
            return handle.record
        outcome = yield from self._post(operation)
        record = self.reservation_record(operation.organization_id, outcome)
        if isinstance(handle, Hold):
            handle.record = record
        if not outcome.replayed:
            self.tell_settled(record)
        return record

    def extend_reservation(
        self, reservation: object, ttl: timedelta, *, organization_id: object = None
    ) -> Steps[ReservationRecord]:
        """Let a hold live until now + ttl."""
        owner = self.organization(organization_id, reservation)
        outcome = yield from self._post(
            ops.Extend(
                organization_id=owner,
                reservation_id=self.id_of(reservation, name="reservation_id"),
                ttl=arguments.ttl(ttl),
            )
        )
        return self.reservation_record(owner, outcome)

    def mark_unknown(
        self,
        reservation: object,
        provider: str,
        provider_reference: str | None = None,
        *,
        organization_id: object = None,
        ttl: timedelta | None = None,
    ) -> Steps[ReservationRecord]:
        """The provider's verdict is awaited: keep the hold for ``unknown_ttl``."""
        owner = self.organization(organization_id, reservation)
        outcome = yield from self._post(
            ops.MarkUnknown(
                organization_id=owner,
                reservation_id=self.id_of(reservation, name="reservation_id"),
                provider=check_text(provider, name="provider"),
                provider_reference=None
                if provider_reference is None
                else check_text(provider_reference, name="provider_reference"),
                ttl=timedelta(seconds=self.settings.unknown_ttl_seconds) if ttl is None else arguments.ttl(ttl),
            )
        )
        return self.reservation_record(owner, outcome)

    def get_reservation(self, reservation: object, *, organization_id: object = None) -> Steps[ReservationRecord]:
        """One reservation as it is now."""
        owner = self.organization(organization_id, reservation)
        place = self.id_of(reservation, name="reservation_id")
        found: ReservationRecord = yield Read(
            lambda connection: queries.get_reservation(connection, owner, place, self.clock), owner
        )
        return found

    def list_reservations(
        self, organization_id: object, *, states: Sequence[str] = (), limit: int = 50, unresolved: bool = False
    ) -> Steps[tuple[ReservationRecord, ...]]:
        """Reservations, newest first."""
        owner = scope_id(organization_id, name="organization_id")
        wanted = tuple(
            arguments.choice(ReservationState, state, name="state")
            for state in arguments.items(states, str, name="states")
        )
        size = arguments.page_size(limit)
        found: tuple[ReservationRecord, ...] = yield Read(
            lambda connection: queries.list_reservations(
                connection, owner, self.clock, states=wanted, limit=size, unresolved=unresolved
            ),
            owner,
        )
        return found

    def refund_credits(
        self,
        transaction: object,
        amount: Amount | None = None,
        reason: str | None = None,
        *,
        organization_id: object = None,
        idempotency_key: str | None = None,
    ) -> Steps[Transaction]:
        """Give back a charge or a part of it."""
        owner = self.organization(organization_id, transaction)
        place = self.id_of(transaction, name="transaction_id")
        micros = None if amount is None else to_micros(amount)
        key, generated = arguments.key(idempotency_key)
        outcome = yield from self._post(
            ops.Refund(
                organization_id=owner,
                id=new_id(),
                key=key,
                key_generated=generated,
                fingerprint=ops.fingerprint("refund", owner, place, micros),
                transaction_id=place,
                amount_micros=micros,
                reason=None if reason is None else check_text(reason, name="reason", max_length=arguments.MAX_REASON),
            )
        )
        refund = self._transaction(owner, outcome)
        if not outcome.replayed:
            self._tell_transaction("refunded", refund)
        return refund
