"""What one decorated function costs and how one call of it is charged; decorators.py holds the public faces.

A :class:`Meter` belongs to a decorated function, a :class:`Call` to one call of it. The decisions and the order of
things are written once here, as steps that the blocking and the coroutine wrappers drive through their own door.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Literal

from agentcredits.amounts import Amount, parse_decimal, to_micros
from agentcredits.base_crew import BaseCrew, merge_metadata
from agentcredits.context import RequestContext, Surroundings, current_context, surround
from agentcredits.errors import (
    AgentCreditsWarning,
    ConfigurationError,
    CreditLimitExceededError,
    DryRunNotSupportedError,
    InsufficientCreditsError,
    MissingContextError,
    SettlementFailedError,
)
from agentcredits.execution import Execution, charged_execution, current_execution
from agentcredits.ids import check_text, encode_json
from agentcredits.model import DryRunResult, Pricing
from agentcredits.reservation import Hold
from agentcredits.runner.steps import Steps
from agentcredits.service import CreditService, SyncCreditService, core_of
from agentcredits.service_core import ServiceCore

logger = logging.getLogger("agentcredits")

Service = CreditService | SyncCreditService
Colour = Literal["function", "coroutine", "generator", "async generator"]

#: The attribute under which a wrapper carries its meter; functools.wraps hands it on to decorators around it.
MARK = "__agentcredits_meter__"

#: Actions whose missing price was already warned about.
_warned_unpriced: set[tuple[str, str]] = set()


def colour_of(function: Callable[..., Any]) -> Colour:
    """How a function runs, as ``inspect`` tells it."""
    if inspect.isasyncgenfunction(function):
        return "async generator"
    if inspect.iscoroutinefunction(function):
        return "coroutine"
    if inspect.isgeneratorfunction(function):
        return "generator"
    return "function"


class Meter:
    """How one decorated function is charged; see ``consume_credits`` for the arguments.

    Raises:
        ConfigurationError: arguments that do not fit together or the function.
        InvalidInputError: a text, amount, metadata or dimensions that cannot be used.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        agent_type: str | None,
        action: str,
        quantity: Amount | Callable[..., Amount] | None = None,
        dimensions: Mapping[str, Any] | Callable[..., Mapping[str, Any] | None] | None = None,
        estimate: Amount | Callable[..., Amount] | None = None,
        actual: Callable[[Any], Amount] | None = None,
        metadata: Mapping[str, Any] | Callable[..., Mapping[str, Any] | None] | None = None,
        nested: Literal["charge", "included"] = "charge",
        on_exhausted: Literal["raise", "dry_run"] | Callable[[DryRunResult], Any] = "raise",
        on_close: Literal["estimate", "actual", "release"] = "estimate",
        unpriced: Literal["deny", "record"] = "deny",
        service: Service | None = None,
        ttl: timedelta | None = None,
    ) -> None:
        self.function = function
        self.original = inspect.unwrap(function)
        self.name: str = getattr(self.original, "__name__", type(function).__name__)
        self.colour = colour_of(function)
        self.takes_instance = _takes_instance(self.original)
        self.agent_type = None if agent_type is None else check_text(agent_type, name="agent_type")
        self.action = check_text(action, name="action")
        self.quantity = quantity
        self.dimensions = dimensions
        self.estimate = estimate
        self.actual = actual
        self.metadata = metadata
        self.nested = nested
        self.on_exhausted = on_exhausted
        self.on_close = on_close
        self.unpriced = unpriced
        self.service = service
        self.ttl = ttl
        self._check()

    def _check(self) -> None:
        if self.agent_type is None and not self.takes_instance:
            raise ConfigurationError(
                f"{self.name} is no method, so no class gives it an agent_type: pass agent_type=\"...\"."
            )
        if self.nested not in ("charge", "included"):
            raise ConfigurationError(f'nested must be "charge" or "included", not {self.nested!r}.')
        if self.on_close not in ("estimate", "actual", "release"):
            raise ConfigurationError(f'on_close must be "estimate", "actual" or "release", not {self.on_close!r}.')
        if self.unpriced not in ("deny", "record"):
            raise ConfigurationError(f'unpriced must be "record" or "deny", not {self.unpriced!r}.')
        if self.on_close == "actual" and self.actual is None:
            raise ConfigurationError('on_close="actual" needs actual=, which prices the number of items yielded.')
        if self.actual is not None and not callable(self.actual):
            raise ConfigurationError("actual must be a function of the result: actual=lambda result: ...")
        if callable(self.on_exhausted):
            if inspect.iscoroutinefunction(self.on_exhausted) and self.colour in ("function", "generator"):
                raise ConfigurationError(f"{self.name} is not async, so its on_exhausted must not be async either.")
        elif self.on_exhausted not in ("raise", "dry_run"):
            raise ConfigurationError('on_exhausted must be "raise", "dry_run" or a function of the plan.')
        if self.quantity is not None and not callable(self.quantity):
            parse_decimal(self.quantity, name="quantity")
        if self.estimate is not None and not callable(self.estimate):
            to_micros(self.estimate, name="estimate", allow_zero=True)
        if not callable(self.metadata):
            encode_json(self.metadata, name="metadata")
        if not callable(self.dimensions):
            encode_json(self.dimensions, name="dimensions")

    def instance_of(self, args: tuple[Any, ...]) -> object | None:
        """The agent that a method is called on (a class for class methods); None for plain functions."""
        return args[0] if self.takes_instance and args else None

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """Open one call; None when the function simply runs: mode "off", or ``super()`` inside a charged call.

        Raises:
            MissingContextError: nobody says who pays.
            DryRunNotSupportedError: the context asks for a dry run and the action declares none.
        """
        instance = self.instance_of(args)
        service = self.service
        if service is None and isinstance(instance, BaseCrew):
            service = instance.credit_service
        core = core_of(service)
        if core.mode == "off":
            return None
        context = instance.get_context() if isinstance(instance, BaseCrew) else current_context()
        if context is None:
            raise MissingContextError(_no_context(self, instance))
        agent_type = self.agent_type or _agent_type_of(instance)
        if self._is_reentry(context.organization_id, agent_type, instance):
            return None
        if context.dry_run and self.on_exhausted == "raise":
            raise DryRunNotSupportedError(
                f"the context asks for a dry run, and {agent_type}.{self.action} declares none: "
                'pass on_exhausted="dry_run" or a function to its decorator.',
                context={"agent_type": agent_type, "action": self.action},
            )
        return Call(self, core, context, agent_type, instance, args, kwargs)

    def _is_reentry(self, organization_id: str, agent_type: str, instance: object | None) -> bool:
        """Whether this is the same action of the same agent, entered again through ``super()`` or a second decorator.

        Calling itself (the same layer) is no re-entry: a recursive agent pays for every round.
        """
        mark = current_execution()
        while mark is not None:
            if (
                mark.agent_type == agent_type
                and mark.action == self.action
                and mark.instance is instance
                and mark.organization_id == organization_id
                and (
                    mark.function is self.original
                    or (instance is not None and getattr(mark.function, "__name__", None) == self.name)
                )
            ):
                return mark.layer is not self
            mark = mark.parent
        return False


class Call:
    """One call of a metered function, from the price to the settlement.

    The wrappers use it so: ``charges`` → drive ``admit()`` → a ``plan`` (nothing runs), or ``begin()``, the body inside
    ``surroundings``, then ``settlement(result)`` or ``give_back(error)``, and ``end()`` in any case.
    """

    __slots__ = (
        "_agent_type",
        "_args",
        "_instance",
        "_kwargs",
        "_mark",
        "_meter",
        "_outer",
        "_settled_micros",
        "_state",
        "charges",
        "context",
        "core",
        "hold",
        "items",
        "plan",
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
        self.core = core
        self.context = context
        self.hold: Hold | None = None
        self.plan: DryRunResult | None = None
        #: How many items a generator has yielded.
        self.items = 0
        self.charges = not (
            meter.nested == "included"
            and charged_execution(context.organization_id) is not None
            and not context.dry_run
        )

    # -- before the body -------------------------------------------------------------------------------------

    def admit(self) -> Steps[None]:
        """Price and reserve; leaves a hold, or a plan when the action runs dry.

        Raises:
            UnpricedActionError: the action has no price.
            InsufficientCreditsError: not enough credits, and no fallback declared.
            StoreUnavailableError: the store is away; nothing was charged and nothing runs.
        """
        meter, core, context = self._meter, self.core, self.context
        quantity = parse_decimal(self._value(meter.quantity, 1), name="quantity")
        dimensions: Mapping[str, Any] | None = self._value(meter.dimensions, None)
        pricing = Pricing.PRICED
        estimate = self._value(meter.estimate, None)
        if estimate is not None:
            amount_micros = to_micros(estimate, name="estimate", allow_zero=True)
        else:
            price = yield from core.price(
                organization_id=context.organization_id,
                agent_type=self._agent_type,
                action=meter.action,
                quantity=quantity,
                dimensions=dimensions,
                unpriced=meter.unpriced,
            )
            amount_micros, pricing = price.amount_micros, price.pricing
        if context.dry_run:
            self.plan = self._plan(amount_micros, "dry_run", dimensions)
            return
        metadata = merge_metadata(context, self._value(meter.metadata, None))
        if pricing is Pricing.UNPRICED:
            _warn_unpriced(self._agent_type, meter.action)
        try:
            hold = yield from core.reserve(
                organization_id=context.organization_id,
                amount_micros=amount_micros,
                pricing=pricing,
                agent_type=self._agent_type,
                action=meter.action,
                quantity=quantity,
                dimensions=dimensions,
                metadata=metadata,
                scopes=context.scopes,
                ttl=meter.ttl,
                explicit_amount=estimate is not None,
            )
        except (InsufficientCreditsError, CreditLimitExceededError) as refusal:
            if meter.on_exhausted == "raise":
                raise
            self.plan = self._plan(amount_micros, refusal.reason, dimensions, refusal.fixes)
            return
        self.hold = hold

    def _value(self, given: Any, default: Any) -> Any:
        """A decorator argument: a value, or a function of the call's own arguments."""
        if given is None:
            return default
        return given(*self._args, **self._kwargs) if callable(given) else given

    def _plan(
        self,
        amount_micros: int,
        reason: str,
        dimensions: Mapping[str, Any] | None,
        fixes: tuple[dict[str, Any], ...] = (),
    ) -> DryRunResult:
        bound = inspect.signature(self._meter.original).bind(*self._args, **self._kwargs)
        bound.apply_defaults()
        parameters = dict(bound.arguments)
        if self._instance is not None:
            del parameters[next(iter(parameters))]
        prompt = parameters.get("prompt", self._kwargs.get("prompt"))
        return DryRunResult(
            agent_type=self._agent_type,
            action=self._meter.action,
            amount_micros=amount_micros,
            reason=reason,
            prompt=prompt if isinstance(prompt, str) else None,
            parameters=parameters,
            dimensions=dimensions or {},
            fixes=fixes,
        )

    # -- instead of the body ---------------------------------------------------------------------------------

    def fallback(self) -> Any:
        """What the caller of a blocking function gets when nothing runs."""
        fallback = self._meter.on_exhausted
        assert self.plan is not None
        if not callable(fallback):
            return self.plan
        with surround(self.context, self._outer):
            return fallback(self.plan)

    async def afallback(self) -> Any:
        """What the caller of a coroutine gets when nothing runs."""
        fallback = self._meter.on_exhausted
        assert self.plan is not None
        if not callable(fallback):
            return self.plan
        with surround(self.context, self._outer):
            value = fallback(self.plan)
            return await value if inspect.isawaitable(value) else value

    # -- around the body -------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Right before the body: from here on the hold is renewed, and what runs inside sees the open charge."""
        hold = self.hold
        self._mark = Execution(
            organization_id=self.context.organization_id,
            agent_type=self._agent_type,
            action=self._meter.action,
            instance=self._instance,
            function=self._meter.original,
            layer=self._meter,
            charged=hold is not None and hold.pricing is not Pricing.UNPRICED,
            parent=self._outer,
        )
        self.surroundings = surround(self.context, self._mark)
        if hold is not None:
            hold.begin()

    def settlement(self, result: Any) -> Steps[None]:
        """After a successful body: charge. The result is never lost to a settlement that fails."""
        self._close_mark()
        hold = self.hold
        if hold is None:
            return
        self._settled_micros = self._actual_micros(self.items if "generator" in self._meter.colour else result)
        self._state = "finished"
        try:
            yield from hold.settle(self._settled_micros)
        except SettlementFailedError as error:
            self._state = "over"
            error.result = result
            raise
        except Exception as error:  # noqa: BLE001  # the work is done: nothing of the ledger may cost its result
            self._state = "over"
            if self.core.settings.on_settlement_failure == "raise":
                raise SettlementFailedError(
                    f"{self._agent_type}.{self._meter.action} is done, but its charge failed: {error}", result=result
                ) from error
            logger.exception("agentcredits: %s.%s is done, but its charge failed", self._agent_type, self._meter.action)
        self._state = "over"

    def give_back(self, error: BaseException) -> Steps[None]:
        """After a failed body: release. A problem with that is noted on the body's own error."""
        self._close_mark()
        hold = self.hold
        if hold is None:
            return
        try:
            yield from hold.give_back(_reason(error))
        except Exception as problem:  # noqa: BLE001  # whatever went wrong here, the caller needs the body's own error
            error.add_note(f"agentcredits: the reserved credits were not given back yet: {problem}")
        self._state = "over"

    def closed_early(self) -> None:
        """A generator was closed by its consumer or the garbage collector: hand over by policy, without waiting."""
        self._close_mark()
        hold, policy = self.hold, self._meter.on_close
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
        if self.hold is None or self._state == "over":
            return
        if self._state == "finished":
            self.hold.settle_in_background(self._settled_micros)
        else:
            self.hold.give_back_in_background("interrupted")
        self._state = "over"

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


def _takes_instance(function: Callable[..., Any]) -> bool:
    try:
        first = next(iter(inspect.signature(function).parameters), None)
    except (TypeError, ValueError):
        return False
    return first in ("self", "cls")


def _agent_type_of(instance: object | None) -> str:
    owner = instance if isinstance(instance, type) else type(instance)
    declared = getattr(instance, "agent_type", None) if issubclass(owner, BaseCrew) else None
    return declared if isinstance(declared, str) and declared else owner.__name__


def _no_context(meter: Meter, instance: object | None) -> str:
    message = f"{meter.name} is metered, but no RequestContext is active: enter use_context(RequestContext(...))"
    return f"{message}, or call set_context(...) on the agent." if isinstance(instance, BaseCrew) else f"{message}."


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
