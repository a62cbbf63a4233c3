"""What one decorated function costs, and who pays for a call of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, ClassVar, Literal

from agentcredits._call import Call
from agentcredits.amounts import Amount, to_micros
from agentcredits.base_crew import BaseCrew
from agentcredits.context import current_context
from agentcredits.errors import ConfigurationError, DryRunNotSupportedError, MissingContextError
from agentcredits.execution import current_execution
from agentcredits.ids import check_text, encode_json
from agentcredits.model import DryRunResult
from agentcredits.rules.pricing import parse_quantity
from agentcredits.service import CreditService, SyncCreditService, core_of

Service = CreditService | SyncCreditService
Colour = Literal["function", "coroutine", "generator", "async generator"]

#: The attribute under which a wrapper carries its meter; functools.wraps hands it on to decorators around it.
MARK = "__agentcredits_meter__"


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

    #: What one call of the function is.
    call_type: ClassVar[type[Call]] = Call

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
        charge: Literal["every_call", "once_per_args"] = "every_call",
        key: Callable[..., object] | None = None,
        service: Service | None = None,
        ttl: timedelta | None = None,
        overage: Literal["cap", "overdraft"] = "cap",
    ) -> None:
        self.function = function
        self.original = inspect.unwrap(function)
        self.name: str = getattr(self.original, "__name__", type(function).__name__)
        self.colour = colour_of(function)
        self.takes_instance = _takes_instance(self.original)
        #: A bound method brings its agent along.
        self.bound_to: object | None = getattr(function, "__self__", None)
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
        self.charge = charge
        self.key = key
        self.service = service
        self.ttl = ttl
        self.overage = overage
        self._check()

    def _check(self) -> None:
        if self.agent_type is None and not self.takes_instance and self.bound_to is None:
            raise ConfigurationError(
                f'{self.name} is no method, so no class gives it an agent_type: pass agent_type="...".'
            )
        _one_of("nested", self.nested, ("charge", "included"))
        _one_of("on_close", self.on_close, ("estimate", "actual", "release"))
        _one_of("overage", self.overage, ("cap", "overdraft"))
        _one_of("unpriced", self.unpriced, ("record", "deny"))
        _one_of("charge", self.charge, ("every_call", "once_per_args"))
        if self.key is not None and not callable(self.key):
            raise ConfigurationError("key must be a function of the arguments: key=lambda ...: ...")
        if self.key is not None and self.charge != "once_per_args":
            raise ConfigurationError('key goes with charge="once_per_args".')
        if self.actual is not None and not callable(self.actual):
            raise ConfigurationError("actual must be a function of the result: actual=lambda result: ...")
        if self.on_close == "actual" and self.actual is None:
            raise ConfigurationError('on_close="actual" needs actual=, which prices the number of items yielded.')
        if not callable(self.on_exhausted):
            _one_of("on_exhausted", self.on_exhausted, ("raise", "dry_run"))
        elif inspect.iscoroutinefunction(self.on_exhausted) and self.colour in ("function", "generator"):
            raise ConfigurationError(f"{self.name} is not async, so its on_exhausted must not be async either.")
        self._check_values()

    def _check_values(self) -> None:
        if self.quantity is not None and not callable(self.quantity):
            parse_quantity(self.quantity)
        if self.estimate is not None and not callable(self.estimate):
            to_micros(self.estimate, name="estimate", allow_zero=True)
        if not callable(self.metadata):
            encode_json(self.metadata, name="metadata")
        if not callable(self.dimensions):
            encode_json(self.dimensions, name="dimensions")

    def instance_of(self, args: tuple[Any, ...]) -> object | None:
        """The agent that a method is called on (a class for class methods); None for plain functions."""
        return args[0] if self.takes_instance and args else self.bound_to

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
        return self.call_type(self, core, context, agent_type, instance, args, kwargs)

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


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigurationError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}.")
