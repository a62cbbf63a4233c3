"""One call of a metered function: price, reserve, run, settle.

The order of things is written once here, as steps that the wrappers of every colour drive through their own door.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from agentcredits._once import key_of_call
from agentcredits.amounts import to_micros
from agentcredits.context import RequestContext, Surroundings, merge_metadata, surround
from agentcredits.errors import (
    AgentCreditsWarning,
    CreditLimitExceededError,
    InsufficientCreditsError,
    SettlementFailedError,
)
from agentcredits.execution import Execution, charged_execution, current_execution
from agentcredits.model import DryRunResult, Overage, Pricing
from agentcredits.reservation import Hold
from agentcredits.rules.pricing import Price
from agentcredits.runner.steps import Steps
from agentcredits.service.core import ServiceCore

if TYPE_CHECKING:
    from agentcredits._meter import Meter

logger = logging.getLogger("agentcredits")

#: Actions whose missing price was already warned about.
_warned_unpriced: set[tuple[str, str]] = set()


class Offer(NamedTuple):
    """What one call would cost, and what that price is made of."""

    price: Price
    quantity: Any
    dimensions: Mapping[str, Any] | None
    #: The amount was said by ``estimate``, not looked up.
    estimated: bool


class Call:
    """One call of a metered function, from the price to the settlement.

    The wrappers use it so: ``admit()`` → a plan (nothing runs), or None: then ``begin()``, the body inside
    ``surroundings``, ``succeed(result)`` or ``fail(error)``, and ``end()`` in any case. ``a…`` are the same for
    coroutines.
    """

    __slots__ = (
        "_agent_type",
        "_args",
        "_context",
        "_core",
        "_hold",
        "_instance",
        "_kwargs",
        "_mark",
        "_meter",
        "_outer",
        "_settled_micros",
        "_state",
        "items",
        "surroundings",
    )

    surroundings: Surroundings

    def __init__(
        self,
        meter: Meter,
        core: ServiceCore,
        context: RequestContext,
        agent_type: str,
        instance: object | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._meter = meter
        self._agent_type = agent_type
        self._instance = instance
        self._args = args
        self._kwargs = kwargs
        self._outer = current_execution()
        self._mark: Execution | None = None
        #: "open" → "finished" (the body succeeded) → "over" (the settlement was handed over).
        self._state: Literal["open", "finished", "over"] = "open"
        self._settled_micros: int | None = None
        self._core = core
        self._context = context
        self._hold: Hold | None = None
        #: How many items a generator has yielded.
        self.items = 0

    # -- before the body -------------------------------------------------------------------------------------

    def admit(self) -> DryRunResult | None:
        """Price and reserve; a plan when the action runs dry, None when its body may run.

        Raises:
            UnpricedActionError: the action has no price.
            InsufficientCreditsError: not enough credits, and no fallback declared.
            StoreUnavailableError: the store is away; nothing was charged and nothing runs.
        """
        return None if self._is_included() else self._core.run(self._admission())

    async def aadmit(self) -> DryRunResult | None:
        """:meth:`admit` for coroutines; cancelled while it waits, the hold is released by the runner."""
        return None if self._is_included() else await self._core.arun(self._admission())

    def _is_included(self) -> bool:
        context = self._context
        return (
            self._meter.nested == "included"
            and not context.dry_run
            and charged_execution(context.organization_id) is not None
        )

    def _admission(self) -> Steps[DryRunResult | None]:
        offer = yield from self._offer()
        if self._context.dry_run:
            return self._plan(offer, "dry_run")
        return (yield from self._reservation(offer))

    def _offer(self) -> Steps[Offer]:
        """What the call would cost."""
        meter, core, context = self._meter, self._core, self._context
        quantity = self._value(meter.quantity, 1)
        dimensions: Mapping[str, Any] | None = self._value(meter.dimensions, None)
        estimate = self._value(meter.estimate, None)
        if estimate is not None:
            price = Price(to_micros(estimate, name="estimate", allow_zero=True))
        else:
            price = yield from core.price(
                organization_id=context.organization_id,
                agent_type=self._agent_type,
                action=meter.action,
                quantity=quantity,
                dimensions=dimensions,
                unpriced=meter.unpriced,
            )
        return Offer(price, quantity, dimensions, estimate is not None)

    def _reservation(self, offer: Offer) -> Steps[DryRunResult | None]:
        """Hold what the call costs; a plan when that cannot be paid and a fallback is declared."""
        meter, core, context = self._meter, self._core, self._context
        price = offer.price
        metadata = merge_metadata(context, self._metadata())
        if price.pricing is Pricing.UNPRICED:
            _warn_unpriced(self._agent_type, meter.action)
        once = meter.charge == "once_per_args"
        key = key_of_call(meter, context, self._agent_type, self._args, self._kwargs) if once else None
        try:
            self._hold = yield from core.reserve(
                organization_id=context.organization_id,
                price=price,
                agent_type=self._agent_type,
                action=meter.action,
                quantity=offer.quantity,
                dimensions=offer.dimensions,
                metadata=metadata,
                scopes=context.scopes,
                ttl=meter.ttl,
                # Of a call that was charged before, the price no longer matters.
                explicit_amount=offer.estimated and not once,
                overage=Overage(meter.overage),
                idempotency_key=key,
            )
        except (InsufficientCreditsError, CreditLimitExceededError) as refusal:
            if meter.on_exhausted == "raise":
                raise
            return self._plan(offer, refusal.reason, refusal.fixes)
        return None

    def _metadata(self) -> Mapping[str, Any] | None:
        """What is written beside the charge, on top of the context's."""
        return self._value(self._meter.metadata, None)  # type: ignore[no-any-return]  # checked when it is encoded

    def _value(self, given: Any, default: Any) -> Any:
        """A decorator argument: a value, or a function of the call's own arguments."""
        if given is None:
            return default
        return given(*self._args, **self._kwargs) if callable(given) else given

    def _plan(self, offer: Offer, reason: str, fixes: tuple[dict[str, Any], ...] = ()) -> DryRunResult:
        """What comes back instead of a result."""
        parameters = self._parameters()
        prompt = prompt_in(parameters)
        return DryRunResult(
            agent_type=self._agent_type,
            action=self._meter.action,
            amount_micros=offer.price.amount_micros,
            reason=reason,
            prompt=prompt,
            parameters=parameters,
            dimensions=offer.dimensions or {},
            fixes=fixes,
        )

    def _parameters(self) -> dict[str, Any]:
        """The call's arguments by name, without the instance."""
        try:
            bound = inspect.signature(self._meter.original).bind(*self._args, **self._kwargs)
        except TypeError:
            # A decorator below ours changed the arguments; the names given are still worth showing.
            return dict(self._kwargs)
        bound.apply_defaults()
        parameters: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            if bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                parameters |= value
            else:
                parameters[name] = value
        if self._meter.takes_instance:
            del parameters[next(iter(parameters))]
        return parameters

    # -- instead of the body ---------------------------------------------------------------------------------

    def fallback(self, plan: DryRunResult) -> Any:
        """What the caller of a blocking function gets when nothing runs."""
        fallback = self._meter.on_exhausted
        if not callable(fallback):
            return plan
        with surround(self._context, self._outer):
            return fallback(plan)

    async def afallback(self, plan: DryRunResult) -> Any:
        """What the caller of a coroutine gets when nothing runs."""
        fallback = self._meter.on_exhausted
        if not callable(fallback):
            return plan
        with surround(self._context, self._outer):
            value = fallback(plan)
            return await value if inspect.isawaitable(value) else value

    # -- around the body -------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Right before the body: from here on the hold is renewed, and what runs inside sees the open charge."""
        hold = self._hold
        self._mark = Execution(
            organization_id=self._context.organization_id,
            agent_type=self._agent_type,
            action=self._meter.action,
            instance=self._instance,
            function=self._meter.original,
            layer=self._meter,
            # What was charged before (once_per_args) includes nothing now.
            charged=hold is not None and hold.pricing is not Pricing.UNPRICED and not hold.replayed,
            parent=self._outer,
        )
        self.surroundings = surround(self._context, self._mark)
        if hold is not None:
            hold.begin()

    def succeed(self, result: Any) -> Any:
        """After a successful body: charge. The result is never lost to a settlement that fails.

        Returns:
            What the caller gets: the result.

        Raises:
            SettlementFailedError: only with ``on_settlement_failure="raise"``; carries the result.
        """
        if self._finish(result):
            self._core.run(self._settlement(result))
        return result

    async def asucceed(self, result: Any) -> Any:
        """:meth:`succeed` for coroutines; cancelled while it waits, the charge is booked all the same."""
        if self._finish(result):
            await self._core.arun(self._settlement(result))
        return result

    def _finish(self, result: Any) -> bool:
        """The body is done: what does it cost? False when there is nothing to settle."""
        self._close_mark()
        if self._hold is None:
            return False
        self._settled_micros = self._actual_micros(self.items if "generator" in self._meter.colour else result)
        self._state = "finished"
        return True

    def _settlement(self, result: Any) -> Steps[None]:
        if self._hold is None:
            return
        try:
            yield from self._hold.settle(self._settled_micros)
        except SettlementFailedError as error:
            self._state = "over"
            error.result = result
            raise
        except Exception as error:
            self._state = "over"
            name = f"{self._agent_type}.{self._meter.action}"
            if self._core.settings.on_settlement_failure == "raise":
                raise SettlementFailedError(f"{name} is done, but its charge failed: {error}", result=result) from error
            # The work is done: nothing that goes wrong in the ledger may cost its result.
            logger.exception("agentcredits: %s is done, but its charge failed", name)
        self._state = "over"

    def fail(self, error: BaseException) -> tuple[Any] | None:
        """After a failed body: give back. A problem with that is noted on the body's own error.

        Returns:
            None: the error goes on to the caller; else what the caller gets instead (of functions and coroutines).
        """
        self._close_mark()
        if self._hold is not None and self._state == "open":
            self._core.run(self._release(self._hold, error))
        return None

    async def afail(self, error: BaseException) -> tuple[Any] | None:
        """:meth:`fail` for coroutines."""
        self._close_mark()
        if self._hold is not None and self._state == "open":
            await self._core.arun(self._release(self._hold, error))
        return None

    def _release(self, hold: Hold, error: BaseException) -> Steps[None]:
        try:
            yield from hold.give_back(self._failure_reason(error))
        except Exception as problem:  # noqa: BLE001  # whatever it is, the caller needs the body's own error
            error.add_note(f"agentcredits: the reserved credits were not given back yet: {problem}")
        self._state = "over"

    def _failure_reason(self, error: BaseException) -> str:
        """What the ledger keeps of why the hold was given back."""
        return _reason(error)

    def closed_early(self) -> None:
        """A generator was closed by its consumer or the garbage collector: hand over by policy, without waiting."""
        self._close_mark()
        hold, policy = self._hold, self._meter.on_close
        if hold is None:
            return
        if policy == "release":
            hold.give_back_in_background("closed early")
        else:
            hold.settle_in_background(self._actual_micros(self.items) if policy == "actual" else None)
        self._state = "over"

    def end(self) -> None:
        """In any case, last: whatever interrupted the wrapper, the hold is not renewed for ever."""
        self._close_mark()
        if self._hold is None or self._state == "over":
            return
        if self._state == "finished":
            self._hold.settle_in_background(self._settled_micros)
        else:
            self._hold.give_back_in_background("interrupted")
        self._state = "over"

    def __del__(self) -> None:
        # Interrupted in the wrapper itself, or an async generator that Python drops in the middle of a step without
        # running its finally: a hold that nobody settles would be renewed for as long as the process lives.
        with suppress(Exception):
            self.end()

    def _close_mark(self) -> None:
        if self._mark is not None:
            self._mark.close()

    def _actual_micros(self, outcome: Any) -> int | None:
        """What ``actual`` says; the whole hold (None) when there is none or it fails."""
        if self._meter.actual is None:
            return None
        try:
            return to_micros(self._meter.actual(outcome), name="actual", allow_zero=True)
        except Exception:
            logger.exception(
                "agentcredits: actual= of %s.%s failed; the reserved amount is charged",
                self._agent_type,
                self._meter.action,
            )
            return None


class Bare:
    """A call that is not charged: mode "off", or ``super()`` inside a charged call."""

    def __init__(self) -> None:
        self.items = 0
        self.surroundings = nullcontext()

    async def aadmit(self) -> None:
        """Nothing to reserve."""

    async def afallback(self, plan: DryRunResult) -> DryRunResult:
        """Never asked for: there is no plan."""
        return plan

    def begin(self) -> None:
        """Nothing to renew."""

    async def asucceed(self, result: Any) -> None:
        """Nothing to charge."""

    async def afail(self, error: BaseException) -> None:
        """Nothing to give back."""

    def closed_early(self) -> None:
        """Nothing to settle."""

    def end(self) -> None:
        """Nothing is left."""


def prompt_in(parameters: Mapping[str, Any]) -> str | None:
    """The argument of that name, else the only text among the arguments."""
    if isinstance(parameters.get("prompt"), str):
        return str(parameters["prompt"])
    texts = [value for value in parameters.values() if isinstance(value, str)]
    return texts[0] if len(texts) == 1 and "prompt" not in parameters else None


def _reason(error: BaseException) -> str:
    name = type(error).__name__
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  # an exception class of the caller's that cannot even be printed
        return name
    return f"{name}: {text}" if text else name


def _warn_unpriced(agent_type: str, action: str) -> None:
    if (agent_type, action) not in _warned_unpriced:
        _warned_unpriced.add((agent_type, action))
        warnings.warn(
            f"{agent_type}.{action} has no price: it is recorded and charged 0 credits. Set one with "
            f'set_cost("{agent_type}", "{action}", ...), or pass unpriced="deny".',
            AgentCreditsWarning,
            stacklevel=2,
        )
