"""BaseCrew: the framework-free mixin that gives an agent class a context and credits.

A plain class that needs no ``__init__`` and no metaclass, so that it goes in front of ``@CrewBase`` classes, Flows,
Crews and anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast
from weakref import ref

from agentcredits.amounts import Amount
from agentcredits.context import RequestContext, _bindings, current_context, merge_metadata, surround
from agentcredits.errors import InvalidInputError, MissingContextError
from agentcredits.execution import current_execution
from agentcredits.model import Decision, Transaction
from agentcredits.reservation import Hold, Reservation, ReservationRequest, SyncReservation
from agentcredits.runner.steps import Steps
from agentcredits.service import CreditService, SyncCreditService, core_of
from agentcredits.service.core import ServiceCore

T = TypeVar("T")
H = TypeVar("H", bound=Hold)


class _Identity:
    """One agent instance, however it compares, hashes, copies or pickles."""

    __slots__ = ("latest", "organizations", "owner")

    def __init__(self, owner: object) -> None:
        key = id(owner)
        self.owner = ref(owner, lambda _: _identities.pop(key, None))
        self.latest: RequestContext | None = None
        #: Every organization that the instance was ever given; entries are only added.
        self.organizations: set[str] = set()


#: By id(); an entry leaves before its id can be given to another object. Kept beside the instances and not on them:
#: a copy of an agent must not share its tenant, and pydantic models and pickles stay as they are.
_identities: dict[int, _Identity] = {}


def _identity(instance: object) -> _Identity | None:
    identity = _identities.get(id(instance))
    return identity if identity is not None and identity.owner() is instance else None


class BaseCrew:
    """Mixin for agents and crews that use credits.

    Attributes:
        agent_type: The name under which the actions are priced; the class's own name when None.
        credit_service: The service that pays for this class or instance; ``default_service()`` when None.
    """

    # Annotated for type checkers only: pydantic would make fields of annotations that it finds on a mixin.
    if TYPE_CHECKING:
        agent_type: str | None
        credit_service: CreditService | SyncCreditService | None
    else:
        agent_type = None
        credit_service = None

    # -- who pays --------------------------------------------------------------------------------------------

    def set_context(self, context: RequestContext | None) -> Self:
        """Say for whom this agent works from here on, in this thread or task and what it starts.

        Two requests that share one agent each keep their own. Other threads fall back to the latest context, until
        the agent was given a second organization; from then on they need ``use_context`` or ``bind``. None forgets.
        A copy of an agent starts without a context.

        Returns:
            The agent itself.

        Raises:
            InvalidInputError: not a RequestContext.
        """
        if context is not None and not isinstance(context, RequestContext):
            raise InvalidInputError(f"set_context takes a RequestContext, not {type(context).__name__}.")
        identity = _identity(self) or _identities.setdefault(id(self), _Identity(self))
        if context is not None:
            # Before the fallback is set: a reader that sees the new one also sees that there are two organizations.
            identity.organizations.add(context.organization_id)
        identity.latest = context
        known = {bound: value for bound, value in _bindings.get().items() if bound.owner() is not None}
        _bindings.set({**known, identity: context})
        return self

    def get_context(self) -> RequestContext | None:
        """The context that a charge would use now: the active one, else the agent's own, else None.

        Raises:
            MissingContextError: the active context and ``set_context`` name two organizations, or this thread would
                have to guess between the organizations that the agent serves.
        """
        active = current_context()
        identity = _identity(self)
        if identity is None:
            return active
        bindings = _bindings.get()
        if identity in bindings:
            own = bindings[identity]
            if active is not None and own is not None and own.organization_id != active.organization_id:
                raise MissingContextError(
                    f"use_context is active for organization {active.organization_id}, but set_context of this "
                    f"{type(self).__name__} names {own.organization_id}: decide for one of them.",
                    reason="conflicting_contexts",
                    context={"active": active.organization_id, "bound": own.organization_id},
                )
            return active if active is not None else own
        if active is not None:
            return active
        latest = identity.latest
        if len(identity.organizations) > 1:
            raise MissingContextError(
                "this agent serves several organizations: use use_context() (or bind()) in this thread.",
                reason="several_organizations",
            )
        return latest

    # -- credits ---------------------------------------------------------------------------------------------

    async def check_credits_available(
        self,
        action: str,
        quantity: Amount = 1,
        *,
        dimensions: Mapping[str, Any] | None = None,
        amount: Amount | None = None,
    ) -> Decision:
        """Whether the action could be charged now; the answer is truthy when it could.

        Args:
            action: The action, priced under the agent's type.
            quantity: How many of it.
            dimensions: What else the price depends on.
            amount: Credits, instead of the price.

        Raises:
            MissingContextError: nobody says who pays.
            UnpricedActionError: the action has no price.
        """
        return await self._check(action, quantity, dimensions, amount).soon()

    def check_credits_available_sync(
        self,
        action: str,
        quantity: Amount = 1,
        *,
        dimensions: Mapping[str, Any] | None = None,
        amount: Amount | None = None,
    ) -> Decision:
        """Blocking :meth:`check_credits_available`."""
        return self._check(action, quantity, dimensions, amount).now()

    async def consume_credits_for_action(
        self,
        action: str,
        metadata: Mapping[str, Any] | None = None,
        quantity: Amount = 1,
        *,
        dimensions: Mapping[str, Any] | None = None,
        amount: Amount | None = None,
        idempotency_key: str | None = None,
    ) -> Transaction:
        """Charge the action at once.

        An explicit charge stands for itself: a decorated method that also calls this charges twice.

        Args:
            action: The action, priced under the agent's type.
            metadata: Written beside the charge, on top of the context's own.
            quantity: How many of it.
            dimensions: What else the price depends on.
            amount: Credits, instead of the price.
            idempotency_key: The same key charges once.

        Raises:
            MissingContextError: nobody says who pays.
            UnpricedActionError: the action has no price.
            InsufficientCreditsError: not enough credits; nothing was charged.
            StoreUnavailableError: the store is away; see its ``outcome``.
        """
        return await self._consume(action, metadata, quantity, dimensions, amount, idempotency_key).soon()

    def consume_credits_for_action_sync(
        self,
        action: str,
        metadata: Mapping[str, Any] | None = None,
        quantity: Amount = 1,
        *,
        dimensions: Mapping[str, Any] | None = None,
        amount: Amount | None = None,
        idempotency_key: str | None = None,
    ) -> Transaction:
        """Blocking :meth:`consume_credits_for_action`."""
        return self._consume(action, metadata, quantity, dimensions, amount, idempotency_key).now()

    def reserve_credits_for_action(
        self,
        action: str,
        metadata: Mapping[str, Any] | None = None,
        quantity: Amount = 1,
        *,
        dimensions: Mapping[str, Any] | None = None,
        amount: Amount | None = None,
        idempotency_key: str | None = None,
        ttl: timedelta | None = None,
    ) -> ReservationRequest[Reservation]:
        """Hold the action's credits: ``async with agent.reserve_credits_for_action(...) as hold:``, or await it.

        The block commits at its end and gives back when it fails; see :class:`~agentcredits.Reservation`. Arguments
        and errors as :meth:`consume_credits_for_action`; ``ttl`` is how long the hold lives without being renewed.
        """
        return ReservationRequest(
            self._reserve(Reservation, action, metadata, quantity, dimensions, amount, idempotency_key, ttl).soon
        )

    def reserve_credits_for_action_sync(
        self,
        action: str,
        metadata: Mapping[str, Any] | None = None,
        quantity: Amount = 1,
        *,
        dimensions: Mapping[str, Any] | None = None,
        amount: Amount | None = None,
        idempotency_key: str | None = None,
        ttl: timedelta | None = None,
    ) -> SyncReservation:
        """Blocking :meth:`reserve_credits_for_action`: ``with agent.reserve_credits_for_action_sync(...) as hold:``."""
        return self._reserve(
            SyncReservation, action, metadata, quantity, dimensions, amount, idempotency_key, ttl
        ).now()

    # -- how -------------------------------------------------------------------------------------------------

    def _payer(self) -> RequestContext:
        context = self.get_context()
        if context is None:
            raise MissingContextError(
                f"no RequestContext says who pays for this {type(self).__name__}: enter use_context(...) or call "
                "set_context(...) on it."
            )
        return context

    def _action(self, action: str) -> dict[str, Any]:
        return {"agent_type": self.agent_type or type(self).__name__, "action": action}

    def _check(
        self, action: str, quantity: Amount, dimensions: Mapping[str, Any] | None, amount: Amount | None
    ) -> Credits[Decision]:
        core, context, named = core_of(self.credit_service), self._payer(), self._action(action)

        def steps() -> Steps[Decision]:
            price = yield from core.amount_for(
                organization_id=context.organization_id,
                amount=amount,
                quantity=quantity,
                dimensions=dimensions,
                **named,
            )
            return (
                yield from core.check(
                    organization_id=context.organization_id,
                    amount_micros=price.amount_micros,
                    scopes=context.scopes,
                    refusal=price.refusal,
                    **named,
                )
            )

        return Credits(core, context, steps)

    def _consume(
        self,
        action: str,
        metadata: Mapping[str, Any] | None,
        quantity: Amount,
        dimensions: Mapping[str, Any] | None,
        amount: Amount | None,
        idempotency_key: str | None,
    ) -> Credits[Transaction]:
        core, context, named = core_of(self.credit_service), self._payer(), self._action(action)
        facts = {"quantity": quantity, "dimensions": dimensions, **named}

        def steps() -> Steps[Transaction]:
            price = yield from core.amount_for(organization_id=context.organization_id, amount=amount, **facts)
            return (
                yield from core.consume(
                    organization_id=context.organization_id,
                    price=price,
                    metadata=merge_metadata(context, metadata),
                    scopes=context.scopes,
                    idempotency_key=idempotency_key,
                    explicit_amount=amount is not None,
                    **facts,
                )
            )

        return Credits(core, context, steps)

    def _reserve(
        self,
        handle: type[H],
        action: str,
        metadata: Mapping[str, Any] | None,
        quantity: Amount,
        dimensions: Mapping[str, Any] | None,
        amount: Amount | None,
        idempotency_key: str | None,
        ttl: timedelta | None,
    ) -> Credits[H]:
        core, context, named = core_of(self.credit_service), self._payer(), self._action(action)
        facts = {"quantity": quantity, "dimensions": dimensions, **named}

        def steps() -> Steps[H]:
            price = yield from core.amount_for(organization_id=context.organization_id, amount=amount, **facts)
            hold = yield from core.reserve(
                organization_id=context.organization_id,
                price=price,
                metadata=merge_metadata(context, metadata),
                scopes=context.scopes,
                ttl=ttl,
                idempotency_key=idempotency_key,
                explicit_amount=amount is not None,
                handle=handle,
                **facts,
            )
            return cast(H, hold)

        return Credits(core, context, steps)


class Credits(Generic[T]):
    """One thing to do for a context, through either door; the context is active while it is done (dry runs)."""

    def __init__(self, core: ServiceCore, context: RequestContext, steps: Callable[[], Steps[T]]) -> None:
        self._core = core
        self._context = context
        self._steps = steps

    def now(self) -> T:
        """Blocking."""
        with surround(self._context, current_execution()):
            return self._core.run(self._steps())

    async def soon(self) -> T:
        """In a coroutine."""
        with surround(self._context, current_execution()):
            return await self._core.arun(self._steps())
