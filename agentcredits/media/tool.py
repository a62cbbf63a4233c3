"""``@media_tool`` and ``wrap``: a call to a media provider that is charged when it succeeds, and a plan otherwise."""

from __future__ import annotations

import inspect
import types
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, ClassVar, Literal, ParamSpec, TypedDict, TypeVar, Unpack, overload

from agentcredits._call import Call
from agentcredits._meter import Meter, Service
from agentcredits._wrappers import wrap as wrap_meter
from agentcredits.amounts import Amount, to_micros
from agentcredits.decorators import Charged, ChargedOrElse, Counted, Facts
from agentcredits.errors import ConfigurationError
from agentcredits.ids import check_text
from agentcredits.media.breaker import place_of
from agentcredits.media.calls import MediaCall
from agentcredits.media.plans import MediaPlan
from agentcredits.media.verdicts import ChargePolicy

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F")

OnExhausted = Literal["raise", "dry_run"] | Callable[[Any], Any]


class MediaOptions(TypedDict, total=False):
    """What ``media_tool`` and ``wrap`` take beside the action; see there."""

    agent_type: str | None
    account: str
    model: str | Callable[..., str | None] | None
    dimensions: Facts | None
    quantity: Counted | None
    estimate: Counted | None
    actual: Callable[[Any], Amount] | None
    prompt: str
    enhance: Callable[[str], Any] | None
    threshold: Amount | None
    confirm: Callable[[MediaPlan], Any] | None
    balance_probe: Callable[[], Any] | None
    policy: ChargePolicy | None
    service: Service | None
    ttl: timedelta | None
    metadata: Facts | None


class MediaMeter(Meter):
    """How one media function is charged, and at which provider's account it works; see ``media_tool``.

    Raises:
        ConfigurationError: arguments that do not fit together or the function; a generator function.
        InvalidInputError: a text, amount, metadata or dimensions that cannot be used.
    """

    call_type: ClassVar[type[Call]] = MediaCall

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        agent_type: str | None = None,
        action: str,
        provider: str,
        account: str = "",
        model: str | Callable[..., str | None] | None = None,
        dimensions: Facts | None = None,
        quantity: Counted | None = None,
        estimate: Counted | None = None,
        actual: Callable[[Any], Amount] | None = None,
        prompt: str = "prompt",
        enhance: Callable[[str], Any] | None = None,
        threshold: Amount | None = None,
        confirm: Callable[[MediaPlan], Any] | None = None,
        on_exhausted: OnExhausted = "dry_run",
        balance_probe: Callable[[], Any] | None = None,
        policy: ChargePolicy | None = None,
        service: Service | None = None,
        ttl: timedelta | None = None,
        metadata: Facts | None = None,
    ) -> None:
        self.provider, self.account = place_of(provider, account)
        self.prompt = check_text(prompt, name="prompt")
        self.enhance = enhance
        self.threshold_micros = None if threshold is None else to_micros(threshold, name="threshold", allow_zero=True)
        self.confirm = confirm
        self.balance_probe = balance_probe
        self.policy = policy
        super().__init__(
            function,
            agent_type=agent_type,
            action=action,
            quantity=quantity,
            dimensions=_with_model(dimensions, model),
            estimate=estimate,
            actual=actual,
            metadata=metadata,
            on_exhausted=on_exhausted,
            service=service,
            ttl=ttl,
        )

    def _check(self) -> None:
        if "generator" in self.colour:
            raise ConfigurationError(
                f"{self.name} is a generator: a media tool is charged by what it returns, so collect the items inside"
                " it, or use @consume_credits."
            )
        super()._check()
        if self.confirm is not None and self.threshold_micros is None:
            raise ConfigurationError("confirm= is asked above threshold=: pass that too.")
        for name in ("enhance", "confirm", "balance_probe"):
            given = getattr(self, name)
            if given is not None and not callable(given):
                raise ConfigurationError(f"{name} must be a function, not {given!r}.")
            if self.colour == "function" and inspect.iscoroutinefunction(given):
                raise ConfigurationError(f"{self.name} is not async, so its {name} must not be async either.")


@overload
def media_tool(
    action: str, *, provider: str, on_exhausted: Literal["dry_run"] = "dry_run", **options: Unpack[MediaOptions]
) -> ChargedOrElse[MediaPlan]: ...


@overload
def media_tool(
    action: str, *, provider: str, on_exhausted: Literal["raise"], **options: Unpack[MediaOptions]
) -> Charged: ...


@overload
def media_tool(
    action: str,
    *,
    provider: str,
    on_exhausted: Callable[[MediaPlan], Awaitable[F]],
    **options: Unpack[MediaOptions],
) -> ChargedOrElse[F]: ...


@overload
def media_tool(
    action: str, *, provider: str, on_exhausted: Callable[[MediaPlan], F], **options: Unpack[MediaOptions]
) -> ChargedOrElse[F]: ...


def media_tool(
    action: str, *, provider: str, on_exhausted: OnExhausted = "dry_run", **options: Unpack[MediaOptions]
) -> Any:
    """Charge each call of a function or coroutine that has a media provider generate something.

    The credits are reserved before the call, charged when it succeeded, given back when it failed (a failure inside
    an answer counts as one), and kept when the client stopped waiting for a job that may still succeed. When the
    operator's account at the provider cannot be used, no call asks it again until it is probed (see ``Breakers``).
    Arguments that say "or a function" take a function of the call's own arguments (``self`` included).

    Args:
        action: Of the price.
        provider: The provider's name ("fal", "replicate" …).
        on_exhausted: When nothing can be generated because too few credits are left, a limit is reached, the price is
            over the threshold, or the provider's account is exhausted, locked or over its quota: return a
            ``MediaPlan``, raise, or return what a function of that plan returns (awaited in async functions).
            Anything but ``"raise"`` also lets ``RequestContext(dry_run=True)`` run the action dry.
        **options: As follows.
            agent_type: Of the price; None: ``BaseCrew.agent_type``, else the name of the instance's class.
            account: Your label of the provider's account or key, when you have several. Never the key itself.
            model: Dimension ``model`` of the price, or a function.
            dimensions: What else the price depends on, or a function.
            quantity: How many of the action, or a function; 1 when left out.
            estimate: Credits to hold instead of price × quantity, or a function.
            actual: Function of the result that says what is charged, in credits (for providers that report the
                cost); the whole hold when left out or when it fails.
            prompt: Name of the argument with the prompt, or of an entry in such an argument.
            enhance: Function of the prompt that gives a better one or None; for plans only, and free to fail.
            threshold: Credits above which somebody has to confirm.
            confirm: Function of the plan that says whether it may cost more than the threshold; nobody when None.
            balance_probe: Function that gives the balance of the provider's account, or whether it has one; while
                the account is known to be unusable it is asked once a minute, and a positive answer allows one call.
            policy: Which failures the provider charges for.
            service: Who pays; ``BaseCrew.credit_service``, else ``default_service()`` when left out.
            ttl: How long the hold lives without being renewed; the setting's when left out.
            metadata: Written beside the charge, secrets masked, or a function.

    Raises:
        ConfigurationError: arguments that do not fit the function.

    The decorated function raises:
        MissingContextError: nobody says who pays.
        UnpricedActionError: no price and no ``estimate``.
        StoreUnavailableError: the ledger is away; the provider was not called.
        ProviderUnavailableError: with ``on_exhausted="raise"``; so do InsufficientCreditsError and
            CreditLimitExceededError.
        Whatever the body raises that says nothing about the account: rate limits, refusals, trouble, time-outs.
    """

    def decorate(function: Any) -> Any:
        if isinstance(function, staticmethod | classmethod):
            return type(function)(decorate(function.__func__))
        if isinstance(function, type) or not callable(function):
            raise ConfigurationError(f"@media_tool decorates functions, not {function!r}.")
        if not isinstance(function, types.FunctionType):
            function = _as_function(function)
        return wrap_meter(MediaMeter(function, action=action, provider=provider, on_exhausted=on_exhausted, **options))

    return decorate


@overload
def wrap(
    function: Callable[P, Coroutine[Any, Any, R]],
    action: str,
    *,
    provider: str,
    on_exhausted: Literal["dry_run"] = "dry_run",
    **options: Unpack[MediaOptions],
) -> Callable[P, Coroutine[Any, Any, R | MediaPlan]]: ...


@overload
def wrap(
    function: Callable[P, R],
    action: str,
    *,
    provider: str,
    on_exhausted: Literal["dry_run"] = "dry_run",
    **options: Unpack[MediaOptions],
) -> Callable[P, R | MediaPlan]: ...


@overload
def wrap(
    function: Callable[P, R],
    action: str,
    *,
    provider: str,
    on_exhausted: Literal["raise"],
    **options: Unpack[MediaOptions],
) -> Callable[P, R]: ...


@overload
def wrap(
    function: Callable[P, Any],
    action: str,
    *,
    provider: str,
    on_exhausted: Callable[[MediaPlan], Any],
    **options: Unpack[MediaOptions],
) -> Callable[P, Any]: ...


def wrap(
    function: Callable[..., Any],
    action: str,
    *,
    provider: str,
    on_exhausted: OnExhausted = "dry_run",
    **options: Unpack[MediaOptions],
) -> Callable[..., Any]:
    """``media_tool`` for what a client offers: a function or bound method, plain or async.

    Example: ``generate = wrap(fal_client.subscribe, "generate_image", agent_type="ImageAgent", provider="fal")``.

    Args:
        function: What to call, ``client.images.generate`` for one. It has no class of yours, so pass ``agent_type``.
        action: Of the price.
        provider: The provider's name.
        on_exhausted: As in ``media_tool``.
        **options: As in ``media_tool``.

    Returns:
        A function of the same signature that is charged.

    Raises:
        ConfigurationError: arguments that do not fit the function.
    """
    decorated: Callable[..., Any] = media_tool(
        action,
        provider=provider,
        on_exhausted=on_exhausted,
        **options,
    )(function)
    return decorated


def _with_model(dimensions: Facts | None, model: str | Callable[..., str | None] | None) -> Facts | None:
    """The dimensions with the model among them; one that they name themselves wins."""
    if model is None:
        return dimensions
    if not callable(model) and not callable(dimensions):
        return {"model": check_text(model, name="model"), **(dimensions or {})}

    def both(*args: Any, **kwargs: Any) -> Mapping[str, Any]:
        name = model(*args, **kwargs) if callable(model) else model
        others = dimensions(*args, **kwargs) if callable(dimensions) else dimensions
        return {**({} if name is None else {"model": name}), **(others or {})}

    return both


def _as_function(target: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function of the same signature and colour as a bound method, partial or callable object."""
    unwrapped = inspect.unwrap(target)
    kinds = (target, unwrapped if inspect.isroutine(unwrapped) else type(unwrapped).__call__)
    if any(inspect.isgeneratorfunction(kind) or inspect.isasyncgenfunction(kind) for kind in kinds):
        raise ConfigurationError(
            f"{getattr(target, '__name__', target)!s} gives its result in pieces: collect them in a function of yours"
            " and make that one the media tool."
        )

    def call(*args: Any, **kwargs: Any) -> Any:
        return target(*args, **kwargs)

    async def acall(*args: Any, **kwargs: Any) -> Any:
        return await target(*args, **kwargs)

    made: Any = acall if any(map(inspect.iscoroutinefunction, kinds)) else call
    for name in ("__name__", "__qualname__", "__doc__", "__module__"):
        value = getattr(target, name, None)
        if isinstance(value, str):
            setattr(made, name, value)
    with suppress(TypeError, ValueError):
        made.__signature__ = inspect.signature(target)
    return made  # type: ignore[no-any-return]  # a function, of one colour or the other
