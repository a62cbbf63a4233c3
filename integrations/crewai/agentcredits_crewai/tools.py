"""Metered tools: a subclass of the tool's own class, or a wrapped ``@tool`` function, that charges inside."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, cast

from crewai.tools.base_tool import _TOOL_TYPE_REGISTRY, BaseTool, Tool
from crewai.tools.tool_failure import ToolFailure
from crewai.utilities.string_utils import sanitize_tool_name
from pydantic import PrivateAttr

from agentcredits import ConfigurationError, CreditService, DryRunResult, SyncCreditService, ToolMeter

T = TypeVar("T", BaseTool, type[BaseTool])
OnDenied = Literal["fallback", "tool_failure", "stop"]
_MARK = "__agentcredits_metering__"


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
    provider: str | None = None,
    account: str = "",
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
        provider: Of a media tool, the provider that it calls: when the operator's account there is exhausted or
            locked, the tool falls back too, without asking the provider again and again.
        account: Your label of the provider's account, when you have several.

    Raises:
        ConfigurationError: no tool, one that is metered already, or an unknown ``on_denied``.
    """
    given: Any = tool
    cls: Any = given if isinstance(given, type) else type(given)
    if not issubclass(cls, BaseTool) or is_metered(given):
        state = "is metered already" if issubclass(cls, BaseTool) else "is no CrewAI tool"
        raise ConfigurationError(f"meter() takes tools that are not metered yet; {given!r} {state}.")
    metering = ToolMeter(
        action,
        agent_type=agent_type or cls.__name__,
        cost=cost,
        dimensions=dimensions,
        fallback=fallback,
        is_failure=lambda result: isinstance(result, ToolFailure) or bool(is_failure and is_failure(result)),
        on_denied=on_denied,
        failure=lambda sentence, code: ToolFailure(message=sentence, code=code),
        service=service,
        provider=provider,
        account=account,
    )
    if given is cls:
        return cast(T, _metered_class(cls, lambda: metering))
    new = given.model_copy()
    if isinstance(new, Tool):
        # Its run() calls the function and never _run.
        new.func = functools.wraps(new.func)(metering.wrap(_waited_for(new.func), new.name))
        setattr(new.func, _MARK, True)
    else:
        new.__pydantic_private__ = {**(new.__pydantic_private__ or {}), "_agentcredits": metering}
        object.__setattr__(new, "__class__", _metered_class(cls, cast(Any, type(None))))
    new.cache_function = functools.partial(_may_cache, metering, new.cache_function)
    return cast(T, new)


def _may_cache(metering: ToolMeter, original: Callable[..., bool], arguments: Any = None, result: Any = None) -> bool:
    """The tool's ``cache_function``, but never for what came back instead of a result."""
    return metering.may_cache(result) and bool(original(arguments, result))


def _waited_for(run: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function may give a coroutine: the charge is for what it comes to."""
    if inspect.iscoroutinefunction(run):
        return run

    @functools.wraps(run)
    def waited_for(*args: Any, **kwargs: Any) -> Any:
        result = run(*args, **kwargs)
        return asyncio.run(result) if inspect.iscoroutine(result) else result

    return waited_for


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
def _metered_class(cls: Any, default: Callable[[], ToolMeter | None]) -> Any:
    """A subclass that charges, under the name of the class it stands for.

    ``default`` gives the metering of its instances, or None when each instance brings its own.
    """

    def charged(name: str) -> Any:
        original = getattr(cls, name)

        @functools.wraps(original)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return self._agentcredits.wrap(_waited_for(original.__get__(self)), self.name)(*args, **kwargs)

        return call

    def model_post_init(self: Any, context: Any, /) -> None:
        super(made, self).model_post_init(context)
        if self._agentcredits is not None:
            self.cache_function = functools.partial(_may_cache, self._agentcredits, self.cache_function)

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
