"""The service, written once: every method is steps (see ``runner.steps``) that any door can drive."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from agentcredits import hooks, session
from agentcredits.amounts import Amount, from_micros, to_micros
from agentcredits.clock import Clock, as_utc, host_now
from agentcredits.context import current_context
from agentcredits.errors import (
    AccountNotFoundError,
    CreditsError,
    InvalidInputError,
    MissingContextError,
    ServiceClosedError,
    UnpricedActionError,
)
from agentcredits.ids import check_text, encode_json, new_id, optional_scope_id, record_id, scope_id
from agentcredits.model import (
    ActionCost,
    Balance,
    CreditGrant,
    Decision,
    GrantCategory,
    Overage,
    Page,
    PlannedAction,
    Pricing,
    Quote,
    QuoteLine,
    ReservationRecord,
    ReservationState,
    Scopes,
    SweepReport,
    Transaction,
    TransactionType,
    VerifyReport,
)
from agentcredits.reservation import Hold
from agentcredits.rules import operations as ops
from agentcredits.rules import pricing as price_rules
from agentcredits.rules import refusals
from agentcredits.rules.posting import Outcome
from agentcredits.rules.pricing import CostRow, Price
from agentcredits.rules.state import GrantState, HoldState, Row
from agentcredits.runner.registry import Database, Lease
from agentcredits.runner.runner import Runner
from agentcredits.runner.steps import Effect, Post, Read, Settle, Steps, Write, adrive, drive
from agentcredits.store import prices, queries, records, verification

if TYPE_CHECKING:
    from agentcredits.settings import Settings

T = TypeVar("T")
MAX_PAGE = 1_000
MAX_REASON = 1_000


class PriceBook:
    """Prices of one process, each at most ``max_age_seconds`` old, so that plain SQL on the table works."""

    def __init__(self, max_age_seconds: float) -> None:
        self._max_age_seconds = max_age_seconds
        self._entries: dict[tuple[str, str, str], tuple[tuple[CostRow, ...], datetime, float]] = {}

    def get(self, place: tuple[str, str, str], clock: Clock | None) -> tuple[tuple[CostRow, ...], datetime] | None:
        """The candidate rows and the time now, or None when they are not known or too old."""
        entry = self._entries.get(place)
        if entry is None:
            return None
        rows, read_at, read_monotonic = entry
        age_seconds = time.monotonic() - read_monotonic
        if age_seconds >= self._max_age_seconds:
            return None
        return rows, clock.now() if clock is not None else read_at + timedelta(seconds=age_seconds)

    def put(self, place: tuple[str, str, str], rows: tuple[CostRow, ...], read_at: datetime, started: float) -> None:
        """Remember rows that were read by a statement which began at ``started`` (monotonic)."""
        if len(self._entries) > 10_000:
            self._entries.clear()
        self._entries[place] = (rows, read_at, started)

    def clear(self) -> None:
        """Forget everything (a price was set here)."""
        self._entries.clear()


class ServiceCore:
    """What both public faces, the decorators and the adapters use.

    Args:
        database: URL, Engine, or None for the settings' or the default file.
        settings: None: from the environment.
        clock: Replaces the database's clock everywhere, expiry included.
    """

    def __init__(
        self, database: Database | None = None, *, settings: Settings | None = None, clock: Clock | None = None
    ) -> None:
        if settings is None:
            from agentcredits.settings import load_settings

            settings = load_settings()
        self.settings = settings
        self.clock = clock
        self.mode: Literal["enforce", "off"] = settings.mode
        self._database = database
        self._lease: Lease | None = None
        self._lock = threading.RLock()
        self._closed = False
        self._prices = PriceBook(settings.price_cache_seconds)
        if database is not None:
            from agentcredits.runner.registry import resolve

            resolve(database, settings)

    # -- doors -----------------------------------------------------------------------------------------------

    @property
    def lease(self) -> Lease:
        """The service's share of the process's runner.

        Raises:
            ServiceClosedError: the service was closed.
        """
        if self._closed:
            raise ServiceClosedError()
        if self._lease is None:
            with self._lock:
                if self._lease is None:
                    self._lease = Lease(self._database, self.settings, self.clock)
        return self._lease

    @property
    def runner(self) -> Runner:
        """The process's runner for this database."""
        return self.lease.runner

    def run(self, steps: Steps[T]) -> T:
        """Blocking door."""
        return drive(steps, self._perform)

    async def arun(self, steps: Steps[T]) -> T:
        """Coroutine door; the event loop is never blocked."""
        return await adrive(steps, self._aperform)

    def run_in_session(self, steps: Steps[T], target: session.Target) -> T:
        """Drive steps on the caller's own connection; see ``session``."""
        return session.run(self, steps, target)

    async def arun_in_session(self, steps: Steps[T], target: session.Target) -> T:
        """Drive steps on the caller's own (async) connection; see ``session``."""
        return await session.arun(self, steps, target)

    def _perform(self, effect: Effect) -> Any:
        runner = self.runner
        match effect:
            case Post(operation):
                session.refuse_if_locked(self.lease.url, runner, operation.organization_id)
                return runner.post(operation)
            case Settle(operation):
                return runner.settle(operation)
            case Read(function, organization_id):
                return runner.read(function, organization_id=organization_id)
            case Write(function):
                with runner.write_connection() as connection:
                    return function(connection)

    async def _aperform(self, effect: Effect) -> Any:
        runner = self.runner
        match effect:
            case Post(operation):
                session.refuse_if_locked(self.lease.url, runner, operation.organization_id)
                return await runner.apost(operation)
            case Settle(operation):
                return await runner.asettle(operation)
            case Read(function, organization_id):
                return await runner.aread(function, organization_id=organization_id)
            case Write():
                return await runner.acall(lambda: self._perform(effect))

    def close(self) -> None:
        """Give the share of the runner back; the last service to close books what is queued."""
        with self._lock:
            self._closed = True
            lease, self._lease = self._lease, None
        if lease is not None:
            lease.close()

    # -- identity --------------------------------------------------------------------------------------------

    def organization(self, organization_id: object, source: object = None) -> str:
        """Whose record an id-method means: the argument, else the object passed, else the current context.

        Raises:
            MissingContextError: none of them says.
        """
        if organization_id is not None:
            return scope_id(organization_id, name="organization_id")
        named = getattr(source, "organization_id", None)
        if named is not None:
            return scope_id(named, name="organization_id")
        context = current_context()
        if context is None:
            raise MissingContextError(
                "whose record is it? Pass organization_id=, or enter use_context(RequestContext(organization_id=...))."
            )
        return context.organization_id

    @staticmethod
    def id_of(thing: object, *, name: str) -> str:
        """The id of a record, or the id itself."""
        return record_id(thing if isinstance(thing, str) else getattr(thing, "id", thing), name=name)

    def _dry_run(self, organization_id: str) -> bool:
        context = current_context()
        return context is not None and context.dry_run and context.organization_id == organization_id

    # -- prices ----------------------------------------------------------------------------------------------

    def price(
        self,
        *,
        organization_id: str,
        agent_type: str,
        action: str,
        quantity: Any = 1,
        dimensions: Mapping[str, Any] | None = None,
        unpriced: Literal["deny", "record"] = "deny",
    ) -> Steps[Price]:
        """What an action costs now.

        Raises:
            UnpricedActionError: the action has no usable price.
            InvalidAmountError: the quantity is none.
        """
        amount = price_rules.parse_quantity(quantity)
        row = yield from self._cost_row(organization_id, agent_type, action)
        return price_rules.price(
            row, agent_type=agent_type, action=action, quantity=amount, record_unpriced=unpriced == "record"
        )

    def _cost_row(self, organization_id: str, agent_type: str, action: str) -> Steps[CostRow | None]:
        place = (organization_id, agent_type, action)
        known = self._prices.get(place, self.clock)
        if known is None:
            for name, value in zip(("agent_type", "action"), place[1:], strict=True):
                check_text(value, name=name)
            started = time.monotonic()
            known = yield Read(lambda connection: prices.read_candidates(connection, *place, self.clock))
            rows, now = known
            self._prices.put(place, rows, now, started)
        rows, now = known
        return price_rules.choose(rows, now)

    def set_cost(
        self,
        agent_type: str,
        action: str,
        cost: Amount,
        *,
        organization_id: object = None,
        valid_from: datetime | None = None,
        valid_until: datetime | None = None,
        free: bool = False,
        source: str | None = None,
    ) -> Steps[ActionCost]:
        """Set a flat price; ``*`` matches any agent type or action. Cost 0 needs ``free=True``."""
        micros = to_micros(cost, name="cost", allow_zero=free)
        if free and micros:
            raise InvalidInputError("a free action costs 0: pass cost 0 or leave free out.", reason="free_with_cost")
        owner = (
            price_rules.DEFAULT_ORGANIZATION
            if organization_id is None
            else scope_id(organization_id, name="organization_id")
        )
        check_text(agent_type, name="agent_type")
        check_text(action, name="action")
        start = None if valid_from is None else as_utc(valid_from, name="valid_from")
        end = None if valid_until is None else as_utc(valid_until, name="valid_until")
        if start is not None and end is not None and end <= start:
            raise InvalidInputError("valid_until must be later than valid_from.", context={"parameter": "valid_until"})
        if source is not None:
            check_text(source, name="source")
        if owner:
            yield from self._post(ops.CreateAccount(organization_id=owner))
        made: ActionCost = yield Write(
            lambda connection: prices.set_cost(
                connection,
                organization_id=owner,
                agent_type=agent_type,
                action=action,
                cost=from_micros(micros),
                valid_from=start,
                valid_until=end,
                free=free,
                source=source,
                clock=self.clock,
            )
        )
        self._prices.clear()
        return made

    def get_cost(self, agent_type: str, action: str, *, organization_id: object = None) -> Steps[ActionCost]:
        """The price that applies to an action now.

        Raises:
            UnpricedActionError: none does.
        """
        owner = "" if organization_id is None else scope_id(organization_id, name="organization_id")
        row = yield from self._cost_row(owner, agent_type, action)
        if row is None:
            price_rules.price(None, agent_type=agent_type, action=action, quantity=Decimal(1), record_unpriced=False)
            raise UnpricedActionError()
        return prices.public_cost(row)

    def list_costs(
        self, organization_id: object = None, *, all_versions: bool = False
    ) -> Steps[tuple[ActionCost, ...]]:
        """Prices in force or to come: the defaults, and an organization's own."""
        owner = None if organization_id is None else scope_id(organization_id, name="organization_id")
        found: tuple[ActionCost, ...] = yield Read(
            lambda connection: prices.list_costs(connection, owner, self.clock, all_versions=all_versions)
        )
        return found

    def amount_for(
        self,
        *,
        organization_id: str,
        amount: Amount | None,
        agent_type: str | None,
        action: str | None,
        quantity: Any,
        dimensions: Mapping[str, Any] | None,
    ) -> Steps[Price]:
        """The amount given, or the price of the action.

        Raises:
            InvalidInputError: neither an amount nor both agent_type and action.
        """
        if amount is not None:
            price_rules.parse_quantity(quantity)
            return Price(to_micros(amount))
        if agent_type is None or action is None:
            raise InvalidInputError("pass amount=, or agent_type= and action= to look the price up.")
        return (
            yield from self.price(
                organization_id=organization_id,
                agent_type=agent_type,
                action=action,
                quantity=quantity,
                dimensions=dimensions,
            )
        )

    # -- charging --------------------------------------------------------------------------------------------

    def consume(
        self,
        *,
        organization_id: str,
        amount_micros: int,
        pricing: Pricing = Pricing.PRICED,
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
        activity = self._activity(agent_type, action, quantity, dimensions, metadata, scopes, pricing)
        key, generated = _key(idempotency_key)
        if self._dry_run(organization_id):
            return _dry_transaction(organization_id, amount_micros, activity, key)
        operation = ops.Consume(
            organization_id=organization_id,
            id=new_id(),
            key=key,
            key_generated=generated,
            fingerprint=_fingerprint("consume", organization_id, amount_micros, activity, explicit_amount, overage),
            amount_micros=amount_micros,
            activity=activity,
            overage=overage,
        )
        outcome = yield from self._post(operation)
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
        price = yield from self.amount_for(
            organization_id=owner,
            amount=amount,
            agent_type=agent_type,
            action=action,
            quantity=quantity,
            dimensions=dimensions,
        )
        return (
            yield from self.consume(
                organization_id=owner,
                amount_micros=price.amount_micros,
                pricing=price.pricing,
                agent_type=agent_type,
                action=action,
                quantity=quantity,
                dimensions=dimensions,
                metadata=metadata,
                scopes=scopes,
                idempotency_key=idempotency_key,
                overage=_overage(overage, Overage.REJECT),
                explicit_amount=amount is not None,
            )
        )

    def reserve(
        self,
        *,
        organization_id: str,
        amount_micros: int,
        pricing: Pricing = Pricing.PRICED,
        agent_type: str | None,
        action: str | None,
        quantity: Any = 1,
        dimensions: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        scopes: Scopes | None = None,
        ttl: timedelta | None = None,
        idempotency_key: str | None = None,
        explicit_amount: bool = False,
        handle: type[Hold] = Hold,
    ) -> Steps[Hold]:
        """Hold an amount."""
        activity = self._activity(agent_type, action, quantity, dimensions, metadata, scopes, pricing)
        key, generated = _key(idempotency_key)
        live = self.settings.reservation_ttl if ttl is None else _ttl(ttl)
        if self._dry_run(organization_id):
            return handle(
                self, _dry_reservation(organization_id, amount_micros, activity, key, live), ttl=live, dry_run=True
            )
        outcome = yield from self._post(
            ops.Reserve(
                organization_id=organization_id,
                id=new_id(),
                key=key,
                key_generated=generated,
                fingerprint=_fingerprint("reserve", organization_id, amount_micros, activity, explicit_amount, None),
                amount_micros=amount_micros,
                ttl=live,
                activity=activity,
            )
        )
        return handle(self, self.reservation_record(organization_id, outcome), ttl=live)

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
        handle: type[Hold] = Hold,
    ) -> Steps[Hold]:
        """Hold an amount; the public method."""
        owner = scope_id(organization_id, name="organization_id")
        scopes = self._scopes(owner, project_id, department_id, user_id)
        price = yield from self.amount_for(
            organization_id=owner,
            amount=amount,
            agent_type=agent_type,
            action=action,
            quantity=quantity,
            dimensions=dimensions,
        )
        return (
            yield from self.reserve(
                organization_id=owner,
                amount_micros=price.amount_micros,
                pricing=price.pricing,
                agent_type=agent_type,
                action=action,
                quantity=quantity,
                dimensions=dimensions,
                metadata=metadata,
                scopes=scopes,
                ttl=ttl,
                idempotency_key=idempotency_key,
                explicit_amount=amount is not None,
                handle=handle,
            )
        )

    # -- reservations by id ----------------------------------------------------------------------------------

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
            overage=_overage(overage, Overage.REJECT),
            grace=timedelta(seconds=self.settings.commit_grace_seconds),
            metadata_json=encode_json(metadata, name="metadata"),
        )
        return (yield from self._settled_by_id(operation, reservation))

    def release_reservation(
        self, reservation: object, reason: str | None = None, *, organization_id: object = None
    ) -> Steps[ReservationRecord]:
        """Give a hold back by id."""
        operation = ops.Release(
            organization_id=self.organization(organization_id, reservation),
            reservation_id=self.id_of(reservation, name="reservation_id"),
            reason=None if reason is None else check_text(reason, name="reason", max_length=MAX_REASON),
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
                organization_id=owner, reservation_id=self.id_of(reservation, name="reservation_id"), ttl=_ttl(ttl)
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
                ttl=timedelta(seconds=self.settings.unknown_ttl_seconds) if ttl is None else _ttl(ttl),
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
        self, organization_id: object, *, states: Sequence[str] = (), limit: int = 50
    ) -> Steps[tuple[ReservationRecord, ...]]:
        """Reservations, newest first."""
        owner = scope_id(organization_id, name="organization_id")
        wanted = tuple(_choice(ReservationState, state, name="state") for state in states)
        size = _page_size(limit)
        found: tuple[ReservationRecord, ...] = yield Read(
            lambda connection: queries.list_reservations(connection, owner, self.clock, states=wanted, limit=size),
            owner,
        )
        return found

    # -- refunds and grants ----------------------------------------------------------------------------------

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
        key, generated = _key(idempotency_key)
        outcome = yield from self._post(
            ops.Refund(
                organization_id=owner,
                id=new_id(),
                key=key,
                key_generated=generated,
                fingerprint=ops.fingerprint("refund", owner, place, micros),
                transaction_id=place,
                amount_micros=micros,
                reason=None if reason is None else check_text(reason, name="reason", max_length=MAX_REASON),
            )
        )
        refund = self._transaction(owner, outcome)
        if not outcome.replayed:
            self._tell_transaction("refunded", refund)
        return refund

    def grant_credits(
        self,
        organization_id: object,
        amount: Amount,
        *,
        category: str = "paid",
        priority: int = 50,
        effective_at: datetime | None = None,
        expires_at: datetime | None = None,
        source: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Steps[CreditGrant]:
        """Add a block of credits; opens the account."""
        owner = scope_id(organization_id, name="organization_id")
        micros = to_micros(amount)
        kind = _choice(GrantCategory, category, name="category")
        if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority <= 1_000_000:
            raise InvalidInputError(
                "priority must be a whole number from 0 to 1,000,000.", context={"parameter": "priority"}
            )
        start = None if effective_at is None else as_utc(effective_at, name="effective_at")
        end = None if expires_at is None else as_utc(expires_at, name="expires_at")
        if source is not None:
            check_text(source, name="source")
        key, generated = _key(idempotency_key)
        outcome = yield from self._post(
            ops.Grant(
                organization_id=owner,
                id=new_id(),
                key=key,
                key_generated=generated,
                fingerprint=ops.fingerprint("grant", owner, micros, kind, priority, start, end, source),
                amount_micros=micros,
                category=kind,
                priority=priority,
                effective_at=start,
                expires_at=end,
                source=source,
                metadata_json=encode_json(metadata, name="metadata"),
            )
        )
        return self._grant(owner, outcome)

    def void_grant(
        self, grant: object, *, organization_id: object = None, reason: str | None = None
    ) -> Steps[CreditGrant]:
        """Take back what is left of a grant."""
        owner = self.organization(organization_id, grant)
        outcome = yield from self._post(
            ops.VoidGrant(
                organization_id=owner,
                grant_id=self.id_of(grant, name="grant_id"),
                reason=None if reason is None else check_text(reason, name="reason", max_length=MAX_REASON),
            )
        )
        return self._grant(owner, outcome)

    def list_grants(self, organization_id: object) -> Steps[tuple[CreditGrant, ...]]:
        """Every grant of the organization, oldest first."""
        owner = scope_id(organization_id, name="organization_id")
        found: tuple[CreditGrant, ...] = yield Read(
            lambda connection: queries.list_grants(connection, owner, self.clock), owner
        )
        return found

    def create_account(self, organization_id: object) -> Steps[Balance]:
        """Open an account without credits; nothing happens when it is there."""
        owner = scope_id(organization_id, name="organization_id")
        yield from self._post(ops.CreateAccount(organization_id=owner))
        return (yield from self.get_balance(owner))

    # -- reading ---------------------------------------------------------------------------------------------

    def get_balance(self, organization_id: object) -> Steps[Balance]:
        """The balance now."""
        owner = scope_id(organization_id, name="organization_id")
        found: Balance = yield Read(lambda connection: queries.get_balance(connection, owner, self.clock), owner)
        return found

    def check(
        self,
        *,
        organization_id: str,
        amount_micros: int,
        agent_type: str | None = None,
        action: str | None = None,
    ) -> Steps[Decision]:
        """Whether an amount could be charged now."""
        try:
            account = yield Read(
                lambda connection: queries.get_account(connection, organization_id, self.clock), organization_id
            )
        except AccountNotFoundError as error:
            return _denied(organization_id, amount_micros, 0, error)
        available = account.available_micros
        if amount_micros > available:
            refusal = refusals.insufficient(
                account, available, amount_micros, ops.Activity(agent_type=agent_type, action=action)
            )
            return _denied(organization_id, amount_micros, available, refusal)
        return Decision(organization_id, True, amount_micros, available)

    def check_credits(
        self,
        organization_id: object,
        *,
        agent_type: str | None = None,
        action: str | None = None,
        quantity: Any = 1,
        dimensions: Mapping[str, Any] | None = None,
        amount: Amount | None = None,
    ) -> Steps[Decision]:
        """Whether an action could be charged now; the public method."""
        owner = scope_id(organization_id, name="organization_id")
        price = yield from self.amount_for(
            organization_id=owner,
            amount=amount,
            agent_type=agent_type,
            action=action,
            quantity=quantity,
            dimensions=dimensions,
        )
        return (
            yield from self.check(
                organization_id=owner, amount_micros=price.amount_micros, agent_type=agent_type, action=action
            )
        )

    def quote(self, organization_id: object, actions: Sequence[PlannedAction]) -> Steps[Quote]:
        """Price a whole plan before the start."""
        owner = scope_id(organization_id, name="organization_id")
        lines = []
        for planned in actions:
            price = yield from self.price(
                organization_id=owner,
                agent_type=planned.agent_type,
                action=planned.action,
                quantity=planned.quantity,
                dimensions=planned.dimensions,
            )
            quantity = price_rules.parse_quantity(planned.quantity)
            lines.append(QuoteLine(planned.agent_type, planned.action, quantity, price.amount_micros))
        total = sum(line.amount_micros for line in lines)
        decision = yield from self.check(organization_id=owner, amount_micros=total, action="the plan")
        return Quote(owner, tuple(lines), decision)

    def list_transactions(
        self,
        organization_id: object,
        *,
        cursor: int | None = None,
        limit: int = 50,
        type: str | None = None,
        agent_type: str | None = None,
        action: str | None = None,
    ) -> Steps[Page[Transaction]]:
        """A page of the history, newest first."""
        owner = scope_id(organization_id, name="organization_id")
        if cursor is not None and (isinstance(cursor, bool) or not isinstance(cursor, int) or cursor < 0):
            raise InvalidInputError("cursor must be a page's next_cursor.", context={"parameter": "cursor"})
        kind = None if type is None else _choice(TransactionType, type, name="type")
        size = _page_size(limit)
        page: Page[Transaction] = yield Read(
            lambda connection: queries.list_transactions(
                connection, owner, cursor=cursor, limit=size, type=kind, agent_type=agent_type, action=action
            ),
            owner,
        )
        return page

    # -- upkeep ----------------------------------------------------------------------------------------------

    def sweep(self, organization_id: object = None) -> Steps[SweepReport]:
        """Book what is due everywhere; tidiness only, correctness never depends on it."""
        owner = None if organization_id is None else scope_id(organization_id, name="organization_id")
        due: list[str] = yield Read(lambda connection: queries.accounts_due(connection, self.clock, owner))
        holds, grants = 0, 0
        unknown: list[str] = []
        for place in due:
            before = yield Read(lambda connection, place=place: queries.due_summary(connection, place, self.clock))
            yield from self._post(ops.Expire(organization_id=place))
            holds += before.holds
            grants += before.grants
            unknown += before.unknown
        return SweepReport(len(due), holds, grants, tuple(unknown))

    def verify(self, organization_id: object = None) -> Steps[VerifyReport]:
        """Recompute every counter from the rows and report any difference."""
        owner = None if organization_id is None else scope_id(organization_id, name="organization_id")
        report: VerifyReport = yield Read(lambda connection: verification.verify(connection, owner), owner)
        return report

    # -- helpers ---------------------------------------------------------------------------------------------

    def _post(self, operation: ops.Operation) -> Steps[Outcome]:
        outcome: Outcome = yield Post(operation)
        if outcome.error is not None:
            raise outcome.error
        return outcome

    def _scopes(self, owner: str, project_id: object, department_id: object, user_id: object) -> Scopes:
        """The scopes given; what is not given comes from the current context, if it is of the same organization."""
        context = current_context()
        known = context.scopes if context is not None and context.organization_id == owner else Scopes()
        return Scopes(
            project_id=optional_scope_id(project_id, name="project_id") or known.project_id,
            department_id=optional_scope_id(department_id, name="department_id") or known.department_id,
            user_id=optional_scope_id(user_id, name="user_id") or known.user_id,
            run_id=known.run_id,
            request_id=known.request_id,
        )

    @staticmethod
    def _activity(
        agent_type: str | None,
        action: str | None,
        quantity: Any,
        dimensions: Mapping[str, Any] | None,
        metadata: Mapping[str, Any] | None,
        scopes: Scopes | None,
        pricing: Pricing,
    ) -> ops.Activity:
        return ops.Activity(
            agent_type=None if agent_type is None else check_text(agent_type, name="agent_type"),
            action=None if action is None else check_text(action, name="action"),
            quantity=None if quantity is None else price_rules.parse_quantity(quantity),
            dimensions_json=encode_json(dimensions, name="dimensions"),
            metadata_json=encode_json(metadata, name="metadata"),
            scopes=scopes or Scopes(),
            pricing=pricing,
        )

    def reservation_record(self, organization_id: str, outcome: Outcome) -> ReservationRecord:
        """The public record of a hold's outcome."""
        if not isinstance(outcome.record, HoldState):
            raise AssertionError("a hold was expected")
        return records.public_hold(organization_id, outcome.record, replayed=outcome.replayed)

    @staticmethod
    def _transaction(organization_id: str, outcome: Outcome) -> Transaction:
        if not isinstance(outcome.record, Row):
            raise AssertionError("a ledger row was expected")
        return records.public_row(organization_id, outcome.record, replayed=outcome.replayed)

    @staticmethod
    def _grant(organization_id: str, outcome: Outcome) -> CreditGrant:
        if not isinstance(outcome.record, GrantState):
            raise AssertionError("a grant was expected")
        return records.public_grant(organization_id, outcome.record, replayed=outcome.replayed)

    def _tell_transaction(self, name: Literal["charged", "refunded"], transaction: Transaction) -> None:
        events = [hooks.CreditEvent(name, transaction.organization_id, transaction=transaction)]
        if transaction.uncollected_micros:
            events.append(hooks.CreditEvent("uncollected", transaction.organization_id, transaction=transaction))
        session.tell(events)

    def tell_settled(self, record: ReservationRecord) -> None:
        """Fire the hooks of a settled hold."""
        hooks.fire(hooks.CreditEvent("settled", record.organization_id, reservation=record))
        if record.uncollected_micros:
            hooks.fire(hooks.CreditEvent("uncollected", record.organization_id, reservation=record))


def _key(idempotency_key: str | None) -> tuple[str, bool]:
    if idempotency_key is None:
        return new_id(), True
    return check_text(idempotency_key, name="idempotency_key"), False


def _fingerprint(
    kind: str,
    organization_id: str,
    amount_micros: int,
    activity: ops.Activity,
    explicit_amount: bool,
    overage: Overage | None,
) -> str:
    """By amount where the caller gave one, by action where the price was looked up (it may change between tries)."""
    scopes = activity.scopes
    return ops.fingerprint(
        kind,
        organization_id,
        scopes.project_id,
        scopes.department_id,
        scopes.user_id,
        amount_micros if explicit_amount else None,
        activity.agent_type,
        activity.action,
        None if activity.quantity is None else f"{activity.quantity.normalize():f}",
        activity.dimensions_json,
        overage,
    )


def _ttl(ttl: timedelta) -> timedelta:
    if not isinstance(ttl, timedelta):
        raise InvalidInputError("ttl must be a timedelta.", context={"parameter": "ttl"})
    if not timedelta(0) < ttl <= timedelta(days=366):
        raise InvalidInputError("ttl must be above zero and at most 366 days.", context={"parameter": "ttl"})
    return ttl


def _overage(value: str | Overage | None, default: Overage) -> Overage:
    return default if value is None else _choice(Overage, value, name="overage")


C = TypeVar("C", GrantCategory, Overage, ReservationState, TransactionType)


def _choice(kind: type[C], value: object, *, name: str) -> C:
    try:
        return kind(str(value).lower())
    except ValueError:
        raise InvalidInputError(
            f"{name} must be one of {', '.join(member.value for member in kind)}, not {value!r}.",
            context={"parameter": name},
        ) from None


def _page_size(limit: int) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_PAGE:
        raise InvalidInputError(f"limit must be a whole number from 1 to {MAX_PAGE:,}.", context={"parameter": "limit"})
    return limit


def _denied(organization_id: str, required: int, available: int, error: CreditsError) -> Decision:
    return Decision(
        organization_id,
        False,
        required,
        available,
        reason=error.reason,
        limit_source=error.limit_source,
        retryable=error.retryable,
        message=error.message,
        suggestions=error.suggestions,
        fixes=error.fixes,
    )


def _dry_transaction(organization_id: str, amount_micros: int, activity: ops.Activity, key: str) -> Transaction:
    return Transaction(
        organization_id=organization_id,
        id="",
        seq=0,
        type=TransactionType.DEBIT,
        amount_micros=-amount_micros,
        balance_after_micros=0,
        created_at=host_now(),
        agent_type=activity.agent_type,
        action=activity.action,
        quantity=activity.quantity,
        idempotency_key=key,
        pricing=activity.pricing,
        dry_run=True,
    )


def _dry_reservation(
    organization_id: str, amount_micros: int, activity: ops.Activity, key: str, ttl: timedelta
) -> ReservationRecord:
    return ReservationRecord(
        organization_id=organization_id,
        id="",
        state=ReservationState.ACTIVE,
        amount_micros=amount_micros,
        created_at=host_now(),
        expires_at=host_now() + ttl,
        agent_type=activity.agent_type,
        action=activity.action,
        quantity=activity.quantity,
        idempotency_key=key,
        pricing=activity.pricing,
    )
