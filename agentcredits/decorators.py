"""``@consume_credits`` and ``@track_agent_usage``: the work of a function is reserved before it and charged after it.

Success charges, any exception or cancellation gives back, a generator that is closed early is charged by policy. The
decorated function keeps its signature, its types and its colour (plain, coroutine, generator, async generator).
"""

from __future__ import annotations

import functools
import types
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from datetime import timedelta
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, overload

from agentcredits._meter import MARK, Meter, Service
from agentcredits._wrappers import wrap
from agentcredits.amounts import Amount
from agentcredits.base_crew import BaseCrew
from agentcredits.errors import ConfigurationError
from agentcredits.model import DryRunResult

P = ParamSpec("P")
R = TypeVar("R")
Y = TypeVar("Y")
S = TypeVar("S")
F = TypeVar("F")
F_co = TypeVar("F_co", covariant=True)
C = TypeVar("C", bound=type[Any])

Counted = Amount | Callable[..., Amount]
Facts = Mapping[str, Any] | Callable[..., Mapping[str, Any] | None]

#: What crewai puts on methods that it calls by itself.
_FRAMEWORK_MARKERS = (
    "is_agent",
    "is_task",
    "is_tool",
    "is_llm",
    "is_callback",
    "is_cache_handler",
    "is_before_kickoff",
    "is_after_kickoff",
    "is_kickoff",
    "is_crew",
    "is_output_json",
    "is_output_pydantic",
    "is_before_llm_call_hook",
    "is_after_llm_call_hook",
    "is_before_tool_call_hook",
    "is_after_tool_call_hook",
    "_interception_point",
)
_FRAMEWORKS = ("crewai", "pydantic")


class Charged(Protocol):
    """A decorator that leaves the type as it is."""

    def __call__(self, function: Callable[P, R], /) -> Callable[P, R]:
        """Decorate."""
        ...


class ChargedOrElse(Protocol[F_co]):
    """A decorator whose functions may give something else instead of their result."""

    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> Callable[P, Coroutine[Any, Any, R | F_co]]: ...

    @overload
    def __call__(self, function: Callable[P, AsyncGenerator[Y, S]], /) -> Callable[P, AsyncGenerator[Y | F_co, S]]: ...

    @overload
    def __call__(self, function: Callable[P, AsyncIterator[Y]], /) -> Callable[P, AsyncIterator[Y | F_co]]: ...

    @overload
    def __call__(
        self, function: Callable[P, Generator[Y, S, R]], /
    ) -> Callable[P, Generator[Y | F_co, S, R | None]]: ...

    @overload
    def __call__(self, function: Callable[P, Iterator[Y]], /) -> Callable[P, Iterator[Y | F_co]]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> Callable[P, R | F_co]: ...

    def __call__(self, function: Callable[..., Any], /) -> Callable[..., Any]:
        """Decorate."""
        ...


@overload
def consume_credits(
    agent_type: str | None,
    action: str,
    *,
    quantity: Counted | None = None,
    dimensions: Facts | None = None,
    estimate: Counted | None = None,
    actual: Callable[[Any], Amount] | None = None,
    metadata: Facts | None = None,
    nested: Literal["charge", "included"] = "charge",
    on_exhausted: Literal["raise"] = "raise",
    on_close: Literal["estimate", "actual", "release"] = "estimate",
    charge: Literal["every_call", "once_per_args"] = "every_call",
    key: Callable[..., object] | None = None,
    service: Service | None = None,
    ttl: timedelta | None = None,
    overage: Literal["cap", "overdraft"] = "cap",
) -> Charged: ...


@overload
def consume_credits(
    agent_type: str | None,
    action: str,
    *,
    quantity: Counted | None = None,
    dimensions: Facts | None = None,
    estimate: Counted | None = None,
    actual: Callable[[Any], Amount] | None = None,
    metadata: Facts | None = None,
    nested: Literal["charge", "included"] = "charge",
    on_exhausted: Literal["dry_run"],
    on_close: Literal["estimate", "actual", "release"] = "estimate",
    charge: Literal["every_call", "once_per_args"] = "every_call",
    key: Callable[..., object] | None = None,
    service: Service | None = None,
    ttl: timedelta | None = None,
    overage: Literal["cap", "overdraft"] = "cap",
) -> ChargedOrElse[DryRunResult]: ...


@overload
def consume_credits(
    agent_type: str | None,
    action: str,
    *,
    quantity: Counted | None = None,
    dimensions: Facts | None = None,
    estimate: Counted | None = None,
    actual: Callable[[Any], Amount] | None = None,
    metadata: Facts | None = None,
    nested: Literal["charge", "included"] = "charge",
    on_exhausted: Callable[[DryRunResult], Awaitable[F]],
    on_close: Literal["estimate", "actual", "release"] = "estimate",
    charge: Literal["every_call", "once_per_args"] = "every_call",
    key: Callable[..., object] | None = None,
    service: Service | None = None,
    ttl: timedelta | None = None,
    overage: Literal["cap", "overdraft"] = "cap",
) -> ChargedOrElse[F]: ...


@overload
def consume_credits(
    agent_type: str | None,
    action: str,
    *,
    quantity: Counted | None = None,
    dimensions: Facts | None = None,
    estimate: Counted | None = None,
    actual: Callable[[Any], Amount] | None = None,
    metadata: Facts | None = None,
    nested: Literal["charge", "included"] = "charge",
    on_exhausted: Callable[[DryRunResult], F],
    on_close: Literal["estimate", "actual", "release"] = "estimate",
    charge: Literal["every_call", "once_per_args"] = "every_call",
    key: Callable[..., object] | None = None,
    service: Service | None = None,
    ttl: timedelta | None = None,
    overage: Literal["cap", "overdraft"] = "cap",
) -> ChargedOrElse[F]: ...


def consume_credits(
    agent_type: str | None,
    action: str,
    *,
    quantity: Counted | None = None,
    dimensions: Facts | None = None,
    estimate: Counted | None = None,
    actual: Callable[[Any], Amount] | None = None,
    metadata: Facts | None = None,
    nested: Literal["charge", "included"] = "charge",
    on_exhausted: Literal["raise", "dry_run"] | Callable[[DryRunResult], Any] = "raise",
    on_close: Literal["estimate", "actual", "release"] = "estimate",
    charge: Literal["every_call", "once_per_args"] = "every_call",
    key: Callable[..., object] | None = None,
    service: Service | None = None,
    ttl: timedelta | None = None,
    overage: Literal["cap", "overdraft"] = "cap",
) -> Any:
    """Charge every call of the decorated function or method.

    The credits are reserved before the body (for generators: at the first step), renewed while it runs, charged when
    it succeeds and given back when it raises or is cancelled. The caller's result is never lost to a settlement that
    fails. Arguments that say "or a function" take a function of the call's own arguments (``self`` included).

    Args:
        agent_type: Of the price; None: ``BaseCrew.agent_type``, else the name of the instance's class.
        action: Of the price.
        quantity: How many of the action, or a function; 1 when left out.
        dimensions: What else the price depends on, or a function.
        estimate: Credits to hold instead of price × quantity, or a function.
        actual: Function of the result (generators: of the number of items yielded) that says what is charged, in
            credits; the whole hold when left out. Above the hold, what is available is taken too.
        metadata: Written beside the charge, or a function; on top of the context's own metadata.
        nested: What this action does inside a charged call of the same organization: pay too, or be included.
        on_exhausted: When this action's own reserve finds too few credits, no account yet or a limit reached (never
            for what the body raises): raise, return (generators: yield) a priced ``DryRunResult``, or return what a
            function of that plan returns (awaited in async functions). Anything but "raise" also lets
            ``RequestContext(dry_run=True)`` run the action dry.
        on_close: What a generator that is closed early is charged: the hold, ``actual`` of the items, or nothing.
        charge: ``"once_per_args"`` charges the first call with the same arguments in a run (``run_id`` of the context)
            and no other, in whatever process. It removes the charge, not the call: every call runs, and costs what it
            costs at a provider. The arguments (without ``self``) must be JSON. A first call that failed was given
            back, so the next one is charged; one that was refunded stays charged.
        key: With ``"once_per_args"``: a function of the arguments that gives JSON to tell calls apart by instead.
        service: Who pays; ``BaseCrew.credit_service``, else ``default_service()`` when left out.
        ttl: How long the hold lives without being renewed; the setting's when left out.
        overage: What ``actual`` above the hold takes: what is available, or what the account's line lends too.

    Raises:
        ConfigurationError: arguments that do not fit the function.

    The decorated function raises:
        MissingContextError: nobody says who pays, or ("once_per_args") in which run.
        UnpricedActionError: no price and no ``estimate``.
        ReservationInUseError: "once_per_args", and a call with the same arguments is still running.
        InvalidInputError: "once_per_args", and the arguments are no JSON.
        InsufficientCreditsError: too few credits.
        DryRunNotSupportedError: the context asks for a dry run that this action does not declare.
        StoreUnavailableError: the store is away; the body did not run.
        SettlementFailedError: only with the setting ``on_settlement_failure="raise"``; carries ``result``.
    """

    def decorate(function: Any) -> Any:
        if isinstance(function, staticmethod | classmethod):
            return type(function)(decorate(function.__func__))
        if isinstance(function, type) or not callable(function):
            raise ConfigurationError(
                f"@consume_credits decorates functions, not {function!r}: for a class use @track_agent_usage."
            )
        if not isinstance(function, types.FunctionType | types.MethodType | functools.partial):
            raise ConfigurationError(
                f"@consume_credits cannot see how {type(function).__name__} objects run: "
                "put it on the function inside, below the other decorators."
            )
        return wrap(
            Meter(
                function,
                agent_type=agent_type,
                action=action,
                quantity=quantity,
                dimensions=dimensions,
                estimate=estimate,
                actual=actual,
                metadata=metadata,
                nested=nested,
                on_exhausted=on_exhausted,
                on_close=on_close,
                charge=charge,
                key=key,
                service=service,
                ttl=ttl,
                overage=overage,
            )
        )

    return decorate


def track_agent_usage(
    agent_type: str | None,
    *,
    unpriced: Literal["record", "deny"] = "record",
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    service: Service | None = None,
) -> Callable[[C], C]:
    """Charge every public method that a class itself defines, under the method's name as the action.

    Left alone: inherited and private methods, static and class methods, properties, methods that are decorated
    already, ``BaseCrew``'s own, and what a framework injects or calls by itself (``@agent``, ``@task``, ``@crew`` …).
    Goes over or under ``@CrewBase``. A method that calls ``super()`` is one charge.

    Args:
        agent_type: Of the price; None: ``BaseCrew.agent_type``, else the class's name.
        unpriced: What a method without a price does: run, be recorded as a charge of 0 and warn once (the one
            exception to "unpriced is refused"), or be refused.
        include: Only these methods; may name private ones.
        exclude: Not these methods.
        service: Who pays; see ``consume_credits``.

    Raises:
        ConfigurationError: a name in include or exclude that is no method which can be charged.
    """
    chosen = None if include is None else _names(include)
    left_out = frozenset() if exclude is None else _names(exclude)

    def decorate(cls: C) -> C:
        if not isinstance(cls, type):
            raise ConfigurationError(
                f"@track_agent_usage decorates classes, not {cls!r}: for a function use @consume_credits."
            )
        methods = {name: member for name, member in vars(cls).items() if _is_own_method(name, member)}
        for name in sorted((chosen or frozenset()) | left_out):
            if name not in methods:
                raise ConfigurationError(
                    f"{cls.__name__} defines no method {name} that can be charged.",
                    context={"class": cls.__name__, "name": name},
                    suggestions=(f"It can charge: {', '.join(sorted(methods)) or 'nothing'}.",),
                )
        for name, method in methods.items():
            if name in left_out or (name.startswith("_") if chosen is None else name not in chosen):
                continue
            if hasattr(method, MARK):
                continue
            setattr(
                cls, name, wrap(Meter(method, agent_type=agent_type, action=name, unpriced=unpriced, service=service))
            )
        return cls

    return decorate


def _names(given: Iterable[str]) -> frozenset[str]:
    return frozenset((given,) if isinstance(given, str) else given)


def _is_own_method(name: str, member: object) -> bool:
    """A plain function that the class's author wrote, which no framework calls by itself."""
    if not isinstance(member, types.FunctionType) or (name.startswith("__") and name.endswith("__")):
        return False
    module = str(member.__globals__.get("__name__", ""))
    if module.partition(".")[0] in _FRAMEWORKS or hasattr(BaseCrew, name):
        return False
    return not any(hasattr(member, marker) for marker in _FRAMEWORK_MARKERS)
