"""Metered tools: reserved before the body, charged when it succeeds, given back when it fails.

Charged inside the tool, not in hooks: hooks also fire for cache hits, wrong arguments and unknown tools, and CrewAI
runs a failing tool up to six times.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar, cast

from crewai.tools.base_tool import _TOOL_TYPE_REGISTRY, BaseTool, Tool
from crewai.tools.tool_failure import ToolFailure
from crewai.utilities.string_utils import sanitize_tool_name
from pydantic import PrivateAttr

from agentcredits import (
    ConfigurationError,
    CreditLimitExceededError,
    CreditsError,
    CreditService,
    DryRunResult,
    InsufficientCreditsError,
    SyncCreditService,
    consume_credits,
    current_context,
)
from agentcredits_crewai.runs import RUN, WHERE, inside

T = TypeVar("T", BaseTool, type[BaseTool])
OnDenied = Literal["fallback", "tool_failure", "stop"]
ON_DENIED = ("fallback", "tool_failure", "stop")
_MARK = "__agentcredits_metering__"


class _Undone(Exception):  # noqa: N818  # never seen outside: it carries a failed tool's result past the charge
    """The tool said that it failed."""


@dataclass(slots=True, eq=False)
class Metering:
    """How one tool is charged; see :func:`meter`."""

    agent_type: str
    action: str
    cost: Any
    dimensions: Any
    fallback: Callable[[DryRunResult], Any] | None
    is_failure: Callable[[Any], bool] | None
    on_denied: str
    service: CreditService | SyncCreditService | None
    #: What came back instead of results, lately: never cached.
    undone: deque[Any] = field(default_factory=lambda: deque(maxlen=64))

    def wrap(self, run: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function of the tool of that name, charged."""

        async def charged_coroutine(*args: Any, **kwargs: Any) -> Any:
            with _Attempt(self, run, name) as attempt:
                attempt.result = await attempt.charged(attempt.coroutine)(*args, **kwargs)
            return attempt.result

        def charged(*args: Any, **kwargs: Any) -> Any:
            with _Attempt(self, run, name) as attempt:
                attempt.result = attempt.charged(attempt.function)(*args, **kwargs)
            return attempt.result

        return charged_coroutine if inspect.iscoroutinefunction(run) else charged

    def may_cache(self, original: Callable[..., bool], arguments: Any = None, result: Any = None) -> bool:
        """The tool's ``cache_function``, but never for what came back instead of a result."""
        return not any(result is entry for entry in self.undone) and bool(original(arguments, result))


class _Attempt:
    """One call of a metered tool; as a block it turns a refusal into what the framework gets."""

    def __init__(self, metering: Metering, run: Callable[..., Any], name: str) -> None:
        self.metering, self.tool, self.name = metering, run, name
        self.run = RUN.get()
        #: Whether the tool (or its fallback) began: what is raised from then on is its own.
        self.has_begun = False
        self.result: Any = None

    def __enter__(self) -> Self:
        if self.run is not None:
            self.run.check()
        self._token = WHERE.set(inside(tool=self.name))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> bool:
        WHERE.reset(self._token)
        if isinstance(error, _Undone):
            self.result = error.args[0]
            self.metering.undone.append(self.result)
            return True
        if not isinstance(error, CreditsError) or self.has_begun or self.run is None:
            return False
        # Nobody can pay, or the backend is away: the run stops at the next hook, which is right after this.
        if isinstance(error, InsufficientCreditsError | CreditLimitExceededError):
            self.run.refused(error, self.metering.action, inside(tool=self.name))
        self.run.deny(error)
        self.result = ToolFailure(message=_sentence(self.name, error.reason), code=error.reason)
        return True

    def charged(self, body: Callable[..., Any]) -> Callable[..., Any]:
        metering, context = self.metering, current_context()
        stops = metering.on_denied == "stop" and not (context is not None and context.dry_run)

        decorate: Any = consume_credits(
            metering.agent_type,
            metering.action,
            estimate=metering.cost,
            dimensions=metering.dimensions,
            on_exhausted="raise" if stops else self.instead,
            service=metering.service,
            metadata=WHERE.get().metadata,
        )
        return cast(Callable[..., Any], decorate(_signed(body, self.tool)))

    def function(self, *args: Any, **kwargs: Any) -> Any:
        self.has_begun = True
        result = self.tool(*args, **kwargs)
        return self.checked(asyncio.run(result) if inspect.iscoroutine(result) else result)

    async def coroutine(self, *args: Any, **kwargs: Any) -> Any:
        self.has_begun = True
        return self.checked(await self.tool(*args, **kwargs))

    def checked(self, result: Any) -> Any:
        is_failure = self.metering.is_failure
        if isinstance(result, ToolFailure) or (is_failure is not None and is_failure(result)):
            raise _Undone(result)
        return result

    def instead(self, plan: DryRunResult) -> Any:
        """Nothing runs: a dry run, or not enough credits."""
        self.has_begun = True
        denied = self.metering.on_denied == "tool_failure" and plan.reason != "dry_run"
        if self.run is not None:
            self.run.record("denied" if denied else "dry_run", plan.amount, action=plan.action, reason=plan.reason)
        sentence = _sentence(self.name, plan.reason, f" ({plan.amount:f} credits)")
        if denied:
            return ToolFailure(message=sentence, code=plan.reason)
        result = sentence if self.metering.fallback is None else self.metering.fallback(plan)
        self.metering.undone.append(result)
        return result


def _signed(body: Callable[..., Any], tool: Callable[..., Any]) -> Callable[..., Any]:
    """The body under the tool's own signature, so that a plan names the tool's arguments."""
    signed: Any = functools.partial(body)
    signed.__signature__ = inspect.signature(tool)
    return cast(Callable[..., Any], signed)


def _sentence(name: str, reason: str, price: str = "") -> str:
    why = "a credit limit is reached" if reason.startswith("limit") else "there are not enough credits for it"
    if reason == "dry_run":
        why = "this is a dry run"
    return f"{name} was not run because {why}{price}: go on without it, and say in your answer what is missing."


def meter(
    tool: T,
    action: str,
    *,
    agent_type: str | None = None,
    cost: Any = None,
    dimensions: Any = None,
    fallback: Callable[[DryRunResult], Any] | None = None,
    is_failure: Callable[[Any], bool] | None = None,
    on_denied: OnDenied = "fallback",
    service: CreditService | SyncCreditService | None = None,
) -> T:
    """A tool that charges each call which succeeds; the one given stays as it is.

    An exception, a ``ToolFailure`` and what ``is_failure`` finds are given back; cache hits cost nothing.

    Args:
        tool: A ``BaseTool`` class or instance, or what ``@tool`` made.
        action: Of the price.
        agent_type: Of the price; the tool's class name when None (``Tool`` for ``@tool`` functions).
        cost: Credits instead of the price, or a function of the tool's arguments.
        dimensions: What else the price depends on, or a function of the tool's arguments.
        fallback: Function of the DryRunResult (prompt, parameters, price, reason) whose answer comes back when the
            tool cannot be paid, and in a dry run; one sentence for the LLM when None.
        is_failure: Whether a result means that the tool failed (many tools return error texts).
        on_denied: Too few credits or a limit: ``"fallback"``; ``"tool_failure"``, which CrewAI's failure policy
            handles; or ``"stop"``: the credited crew stops with the error (without a credited crew it is raised).
        service: Who pays; the default service when None.

    Raises:
        ConfigurationError: no tool, one that is metered already, or an unknown ``on_denied``.
    """
    given: Any = tool
    cls: Any = given if isinstance(given, type) else type(given)
    if not issubclass(cls, BaseTool) or is_metered(given):
        state = "is metered already" if issubclass(cls, BaseTool) else "is no CrewAI tool"
        raise ConfigurationError(f"meter() takes tools that are not metered yet; {given!r} {state}.")
    if on_denied not in ON_DENIED:
        raise ConfigurationError(f"on_denied must be one of {', '.join(ON_DENIED)}, not {on_denied!r}.")
    metering = Metering(agent_type or cls.__name__, action, cost, dimensions, fallback, is_failure, on_denied, service)
    consume_credits(metering.agent_type, action, estimate=cost, dimensions=dimensions)(lambda: None)  # checks them now
    if given is cls:
        return cast(T, _metered_class(cls, lambda: metering))
    new = given.model_copy()
    if isinstance(new, Tool):
        # Its run() calls the function and never _run.
        new.func = functools.wraps(new.func)(metering.wrap(new.func, new.name))
        setattr(new.func, _MARK, True)
    else:
        new.__pydantic_private__ = {**(new.__pydantic_private__ or {}), "_agentcredits": metering}
        object.__setattr__(new, "__class__", _metered_class(cls, _no_metering))
    new.cache_function = functools.partial(metering.may_cache, new.cache_function)
    return cast(T, new)


def _no_metering() -> None:
    return None


def is_metered(tool: object) -> bool:
    """Whether :func:`meter` made this tool or class."""
    return hasattr(tool, _MARK) or hasattr(getattr(tool, "func", None), _MARK)


def action_of(tool: object, named: Mapping[str, str] | str) -> str | None:
    """The action that ``tools=`` of ``credited()`` names for a tool; ``"all"`` names all but CrewAI's own."""
    name = sanitize_tool_name(getattr(tool, "name", ""))
    if isinstance(named, str):
        own = type(tool).__module__.startswith("crewai.") and not isinstance(tool, Tool)
        return name if isinstance(tool, BaseTool) and not own else None
    return next((action for key, action in named.items() if sanitize_tool_name(key) == name), None)


def meter_tools(tools: Sequence[Any] | None, named: Mapping[str, str] | str, **how: Any) -> list[Any]:
    """The tools of an agent or task with those metered that are named."""
    found = []
    for tool in tools or ():
        action = action_of(tool, named)
        usable = action is not None and isinstance(tool, BaseTool) and not is_metered(tool)
        found.append(meter(tool, action, **how) if usable else tool)  # type: ignore[arg-type]  # then it is a str
    return found


@functools.lru_cache(maxsize=512)
def _metered_class(cls: Any, default: Callable[[], Metering | None]) -> Any:
    """A subclass that charges, under the name of the class it stands for.

    ``default`` gives the metering of its instances, or None when each instance brings its own.
    """

    def charged(name: str) -> Any:
        original = getattr(cls, name)

        @functools.wraps(original)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return self._agentcredits.wrap(original.__get__(self), self.name)(*args, **kwargs)

        return call

    def model_post_init(self: Any, context: Any, /) -> None:
        super(made, self).model_post_init(context)
        if self._agentcredits is not None:
            self.cache_function = functools.partial(self._agentcredits.may_cache, self.cache_function)

    namespace: dict[str, Any] = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    namespace |= {
        "__annotations__": {"_agentcredits": Any},
        "_agentcredits": PrivateAttr(default_factory=default),
        _MARK: True,
        "_run": charged("_run"),
        "model_post_init": model_post_init,
    }
    if issubclass(cls, Tool) or cls._arun is not BaseTool._arun:
        namespace["_arun"] = charged("_arun")
    key = f"{cls.__module__}.{cls.__qualname__}"
    known = _TOOL_TYPE_REGISTRY.get(key)
    made = type(cls)(cls.__name__, (cls,), namespace)
    if known is not None:
        _TOOL_TYPE_REGISTRY[key] = known  # checkpoints restore the tool's own class
    return made
