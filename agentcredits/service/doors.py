"""The doors into the service: how steps are driven, and what every part of it needs."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from agentcredits import hooks
from agentcredits.clock import Clock
from agentcredits.context import current_context, merge_metadata
from agentcredits.errors import (
    CreditsError,
    MissingContextError,
    ServiceClosedError,
)
from agentcredits.ids import check_text, encode_json, optional_scope_id, record_id, scope_id
from agentcredits.model import (
    CreditGrant,
    Pricing,
    ReservationRecord,
    Scopes,
    Transaction,
)
from agentcredits.rules import operations as ops
from agentcredits.rules import pricing as price_rules
from agentcredits.rules.posting import Outcome
from agentcredits.rules.state import GrantState, HoldState, Row
from agentcredits.runner.registry import Database, Lease
from agentcredits.runner.runner import Runner
from agentcredits.runner.steps import Effect, Post, Read, Settle, Steps, Write, adrive, drive
from agentcredits.service import session
from agentcredits.service.price_book import PriceBook
from agentcredits.store import limit_records, records

if TYPE_CHECKING:
    from agentcredits.settings import Settings

T = TypeVar("T")

_NO_SCOPES: Final = Scopes()


def _activity(
    agent_type: str | None,
    action: str | None,
    quantity: Any,
    dimensions: Mapping[str, Any] | None,
    metadata: Mapping[str, Any] | None,
    scopes: Scopes,
    pricing: Pricing,
) -> ops.Activity:
    return ops.Activity(
        agent_type=None if agent_type is None else check_text(agent_type, name="agent_type"),
        action=None if action is None else check_text(action, name="action"),
        quantity=None if quantity is None else price_rules.parse_quantity(quantity),
        dimensions_json=encode_json(dimensions, name="dimensions"),
        metadata_json=encode_json(metadata, name="metadata"),
        scopes=scopes,
        pricing=pricing,
    )


_same_activity = lru_cache(maxsize=4096)(_activity)


def _given_scopes(project_id: object, department_id: object, user_id: object, known: Scopes) -> Scopes:
    return Scopes(
        project_id=optional_scope_id(project_id, name="project_id") or known.project_id,
        department_id=optional_scope_id(department_id, name="department_id") or known.department_id,
        user_id=optional_scope_id(user_id, name="user_id") or known.user_id,
        run_id=known.run_id,
        request_id=known.request_id,
        run_max_micros=known.run_max_micros,
    )


_same_scopes = lru_cache(maxsize=4096)(_given_scopes)
_PLAIN: Final = (str, type(None))


class Doors:
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
        self.mode: Literal["enforce", "observe", "off"] = settings.mode
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
            raise ServiceClosedError
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

    def arun(self, steps: Steps[T]) -> Awaitable[T]:
        """Coroutine door; the event loop is never blocked."""
        return adrive(steps, self._aperform)

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
                session.refuse_if_locked(self.lease.url, operation.organization_id)
                return runner.post(operation)
            case Settle(operation):
                return runner.settle(operation)
            case Read(function, organization_id):
                return runner.read(function, organization_id=organization_id)
            case Write(function, organization_id):
                session.refuse_if_locked(self.lease.url, None)
                return runner.write(function, organization_id=organization_id)

    def _aperform(self, effect: Effect) -> Awaitable[Any]:
        lease = self.lease
        runner = lease.runner
        match effect:
            case Post(operation):
                session.refuse_if_locked(lease.url, operation.organization_id)
                return runner.apost(operation)
            case Settle(operation):
                return runner.asettle(operation)
            case Read(function, organization_id, topic):
                return runner.aread(function, organization_id=organization_id, topic=topic)
            case Write():
                return runner.acall(lambda: self._perform(effect))

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
        """Whether nothing is to be booked: the context asks for a dry run, or agentcredits is switched off."""
        if self.mode == "off":
            return True
        context = current_context()
        return context is not None and context.dry_run and context.organization_id == organization_id

    # -- helpers ---------------------------------------------------------------------------------------------

    def _post(self, operation: ops.Operation) -> Steps[Outcome]:
        return self._answered(operation.organization_id, (yield Post(operation)))

    def _answered(self, organization_id: str, outcome: Outcome) -> Outcome:
        """The answer, if it is no refusal."""
        self.tell_beside(organization_id, outcome)
        if outcome.error is not None:
            raise outcome.error
        return outcome

    @staticmethod
    def tell_beside(organization_id: str, outcome: Outcome) -> None:
        """Fire the hooks of what was booked beside its record: crossings, denials, verdicts that never came."""
        if not outcome.crossings and not outcome.denials and not outcome.unanswered:
            return
        events = [
            hooks.CreditEvent(
                "unknown_expired", organization_id, reservation=records.public_hold(organization_id, ended)
            )
            for ended in outcome.unanswered
        ]
        events += [
            hooks.CreditEvent(
                "limit_crossed", organization_id, crossing=limit_records.public_crossing(organization_id, crossed)
            )
            for crossed in outcome.crossings
        ]
        events += [
            hooks.CreditEvent(
                "would_refuse", organization_id, denial=limit_records.public_denial(organization_id, denied)
            )
            for denied in outcome.denials
        ]
        session.tell(events)

    def _would_refuse(self, scopes: Scopes, refusal: CreditsError | None) -> CreditsError | None:
        """What mode "observe" only records; any other mode refuses a charge that lacks a required scope.

        Raises:
            MissingContextError: a scope of ``require_scopes`` is missing.
        """
        if refusal is not None:
            return refusal
        for name in self.settings.require_scopes:
            if getattr(scopes, f"{name}_id") is None:
                error = MissingContextError(
                    f"every charge needs a {name} here (setting require_scopes): add {name}_id to the RequestContext.",
                    reason="scope_required",
                    context={"scope": name},
                    suggestions=(f"Add {name}_id to the RequestContext, or pass {name}_id=.",),
                )
                if self.mode != "observe":
                    raise error
                return error
        return None

    def _scopes(self, owner: str, project_id: object, department_id: object, user_id: object) -> Scopes:
        """The scopes given; what is not given comes from the current context, if it is of the same organization."""
        context = current_context()
        known = context.scopes if context is not None and context.organization_id == owner else _NO_SCOPES
        if project_id is None and department_id is None and user_id is None:
            return known
        plain = type(project_id) in _PLAIN and type(department_id) in _PLAIN and type(user_id) in _PLAIN
        if plain and known.request_id is known.run_id is None:
            # As with activities.
            return _same_scopes(project_id, department_id, user_id, known)
        return _given_scopes(project_id, department_id, user_id, known)

    @staticmethod
    def _with_context(owner: str, metadata: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """The metadata on top of the current context's, if that is of the same organization."""
        context = current_context()
        return merge_metadata(context, metadata) if context and context.organization_id == owner else metadata

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
        scopes = scopes or _NO_SCOPES
        plain = type(agent_type) is type(action) is str and type(quantity) is int and dimensions is metadata is None
        if plain and scopes.request_id is scopes.run_id is None:
            # Nearly every charge of a process is like one before; with ids of a request or run no two are alike.
            return _same_activity(agent_type, action, quantity, None, None, scopes, pricing)
        return _activity(agent_type, action, quantity, dimensions, metadata, scopes, pricing)

    def reservation_record(self, organization_id: str, outcome: Outcome) -> ReservationRecord:
        """The public record of a hold's outcome."""
        if not isinstance(outcome.record, HoldState):
            raise TypeError("a hold was expected")
        return records.public_hold(organization_id, outcome.record, replayed=outcome.replayed)

    @staticmethod
    def _transaction(organization_id: str, outcome: Outcome) -> Transaction:
        if not isinstance(outcome.record, Row):
            raise TypeError("a ledger row was expected")
        return records.public_row(organization_id, outcome.record, replayed=outcome.replayed)

    @staticmethod
    def _grant(organization_id: str, outcome: Outcome) -> CreditGrant:
        if not isinstance(outcome.record, GrantState):
            raise TypeError("a grant was expected")
        return records.public_grant(organization_id, outcome.record, replayed=outcome.replayed)

    def _tell_transaction(self, name: Literal["charged", "refunded"], transaction: Transaction) -> None:
        uncollected = transaction.uncollected_micros and transaction.pricing is not Pricing.OBSERVED
        if not uncollected and not hooks.listening():
            return
        events = [hooks.CreditEvent(name, transaction.organization_id, transaction=transaction)]
        if uncollected:
            events.append(hooks.CreditEvent("uncollected", transaction.organization_id, transaction=transaction))
        session.tell(events)

    def tell_settled(self, record: ReservationRecord) -> None:
        """Fire the hooks of a settled hold."""
        if not record.uncollected_micros and not hooks.listening():
            return
        hooks.fire(hooks.CreditEvent("settled", record.organization_id, reservation=record))
        if record.uncollected_micros and record.pricing is not Pricing.OBSERVED:
            hooks.fire(hooks.CreditEvent("uncollected", record.organization_id, reservation=record))
