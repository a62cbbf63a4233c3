"""``credited(crew)``: the crew carries its credits into whatever thread, task or stream it runs in."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar

from crewai import Crew
from crewai.flow.flow import Flow
from pydantic import PrivateAttr

from agentcredits import (
    BaseCrew,
    ConfigurationError,
    DryRunNotSupportedError,
    MissingContextError,
    RequestContext,
    SyncCreditService,
    agreed_context,
    current_context,
)
from agentcredits_crewai import hooks
from agentcredits_crewai.runs import Run, Terms, run_here

T = TypeVar("T", bound=Crew | Flow[Any])

_STARTS = ("kickoff", "kickoff_async", "akickoff", "replay", "resume", "resume_async", "stream_events", "astream")
_BATCHES = ("kickoff_for_each_async", "akickoff_for_each")


def credited(
    crew: T,
    *,
    max_credits: Any = None,
    llm_action: str | None = None,
    tools: Mapping[str, str] | Literal["all"] | None = None,
    on_denied: Literal["stop", "fallback", "tool_failure"] = "stop",
    agent_type: str | None = None,
    rate: Callable[[Mapping[str, int]], Any] | None = None,
    context: RequestContext | Callable[[Mapping[str, Any]], RequestContext | None] | None = None,
    service: SyncCreditService | None = None,
    on_run: Callable[[Run], object] | None = None,
) -> T:
    """Let a crew or flow carry its credits; returns it, or a copy of a crew that is credited already.

    Who pays: ``context``, else the context that is active here, else the one that is active at kickoff. When another
    organization's context is active at kickoff, the kickoff is refused.

    Args:
        crew: The crew or flow. Started in any other way than its own methods, it is refused.
        max_credits: The most that one run may cost. Inside another credited run they are carved out of its pool (what
            it has left, if that is less), and what is not used goes back at the end.
        llm_action: The action that each LLM call is charged as (``"llm_call"``); None: LLM calls are free.
        tools: ``{"tool name": "action"}`` or ``"all"``: tools of its agents and tasks to :func:`meter`.
        on_denied: What those tools do when they cannot be paid; see :func:`meter`.
        agent_type: Of the price of LLM calls; the class's name when None.
        rate: Function of an LLM call's usage (``{"prompt_tokens": …}``) that says what it costs, in credits; None:
            the price that was held. Above it, what is available is taken too.
        context: Who pays, or a function of the kickoff's inputs that says so (``kickoff_for_each`` with an
            organization for each input).
        service: Who books; None: a service on the default database.
        on_run: Told each run when it is over: ``on_run(run)``, ``run.summary()``.

    Raises:
        ConfigurationError: no crew or flow, or a flow that is credited already.
    """
    if not isinstance(crew, Crew | Flow):
        raise ConfigurationError(f"credited() takes a crew or a flow, not {type(crew).__name__}.")
    if service is not None and not isinstance(service, SyncCreditService):
        raise ConfigurationError("CrewAI's hooks block: pass credited() a SyncCreditService on the same database.")
    if not (tools is None or tools == "all" or isinstance(tools, Mapping)):
        raise ConfigurationError(f'tools must be {{"tool name": "action"}}, "all" or None, not {tools!r}.')
    if on_denied not in ("stop", "fallback", "tool_failure"):
        raise ConfigurationError(f'on_denied must be "stop", "fallback" or "tool_failure", not {on_denied!r}.')
    if max_credits is not None:
        RequestContext("check", max_credits=max_credits)
    hooks.ensure_guard()
    if terms_of(crew) is not None:
        if isinstance(crew, Flow):
            raise ConfigurationError("this flow is credited already: make a new one for each run.")
        crew = crew.model_copy()
    return _adopt(
        crew,
        Terms(
            context=context,
            captured=current_context(),
            max_credits=max_credits,
            llm_action=llm_action,
            agent_type=agent_type or getattr(crew, "agent_type", None) or type(crew).__name__,
            tools=dict(tools) if isinstance(tools, Mapping) else tools,
            on_denied=on_denied,
            rate=rate,
            service=SyncCreditService() if service is None else service,
            on_run=on_run,
        ),
    )


class CreditedCrew(BaseCrew):
    """A mixin for ``@CrewBase`` classes: ``return self.credited(Crew(...))`` in the ``@crew`` method.

    The agent's own context (``set_context``) pays where none is active.
    """

    def credited(self, crew: T, **terms: Any) -> T:
        """:func:`credited` with this class's ``agent_type``, ``credit_service`` and context; same arguments."""
        known: dict[str, Any] = {"agent_type": self.agent_type or type(self).__name__}
        if "context" not in terms:
            known["context"] = lambda _inputs: self.get_context()
        if isinstance(self.credit_service, SyncCreditService):
            known["service"] = self.credit_service
        return credited(crew, **{**known, **terms})


def terms_of(crew: object) -> Terms | None:
    """What a credited crew was told; None for any other."""
    return getattr(crew, "_agentcredits", None)


def _adopt(crew: T, terms: Terms) -> T:
    crew.__pydantic_private__ = {**(crew.__pydantic_private__ or {}), "_agentcredits": terms}
    if not hasattr(type(crew), "__agentcredits__"):
        cls: Any = type(crew)
        object.__setattr__(crew, "__class__", _credited_class(cls))
    return crew


@functools.lru_cache(maxsize=512)
def _credited_class(cls: Any) -> Any:
    """A subclass whose starts enter the run's scope, and whose copies are credited."""
    namespace: dict[str, Any] = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    namespace |= {"__annotations__": {"_agentcredits": Any}, "_agentcredits": PrivateAttr(default=None)}
    namespace |= {"__agentcredits__": True, "run": property(_newest_run)}
    for name in (*_STARTS, *_BATCHES):
        if hasattr(cls, name):
            namespace[name] = (_start if name in _STARTS else _batch)(getattr(cls, name))
    if issubclass(cls, Crew):
        namespace["copy"] = lambda self: _adopt(cls.copy(self), self._agentcredits)
    return type(cls)(cls.__name__, (cls,), namespace)


def _newest_run(crew: Any) -> Run | None:
    """The newest run of this crew or of a copy of it."""
    runs = crew._agentcredits.runs
    return runs[-1] if runs else None


def _begin(crew: Any, inputs: Any) -> Run | None:
    """A new run; None when the crew calls its own start inside a run."""
    outer = run_here()
    if outer is not None and outer.owner is crew and not outer.is_over:
        return None
    terms: Terms = crew._agentcredits
    context = _payer(terms, dict(inputs or {}))
    if context.dry_run and terms.llm_action is not None:
        raise DryRunNotSupportedError(
            f"the context asks for a dry run, and the LLM calls of this {type(crew).__name__} would be charged.",
            context={"action": terms.llm_action},
        )
    run = Run(crew, terms, context, outer)
    terms.runs[:] = [*terms.runs[-7:], run]
    return run


def _payer(terms: Terms, inputs: Mapping[str, Any]) -> RequestContext:
    if not callable(terms.context):
        return agreed_context(terms.context, terms.captured)
    chosen = terms.context(inputs)
    if chosen is None:
        raise MissingContextError("context= of credited() names nobody who pays for these inputs.")
    return chosen


def _start(original: Callable[..., Any]) -> Callable[..., Any]:
    """A method that starts the crew: its context is looked up when it is called, not when it is awaited."""

    @functools.wraps(original)
    def start(self: Any, *args: Any, **kwargs: Any) -> Any:
        run = _begin(self, kwargs.get("inputs", args[0] if args and isinstance(args[0], Mapping) else None))
        if run is None:
            return original(self, *args, **kwargs)
        if inspect.iscoroutinefunction(original):
            return _run_async(run, original(self, *args, **kwargs))
        with hooks.scope(run):
            return _over(original(self, *args, **kwargs), run)

    return start


async def _run_async(run: Run, started: Any) -> Any:
    with hooks.scope(run):
        return _over(await started, run)


def _over(result: Any, run: Run) -> Any:
    """The run is over, unless it streams: then it is when its stream is."""
    if _is_stream(result):
        return _carry(result, contextvars.copy_context(), run)
    run.finish()
    return result


def _batch(original: Callable[..., Any]) -> Callable[..., Any]:
    """A method that starts copies: each is a run of its own, also when they stream."""

    @functools.wraps(original)
    async def start(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = await original(self, *args, **kwargs)
        return _carry(result, contextvars.copy_context(), None) if _is_stream(result) else result

    return start


def _is_stream(result: object) -> bool:
    return hasattr(result, "_sync_iterator") and hasattr(result, "_async_iterator")


def _carry(stream: Any, context: contextvars.Context, run: Run | None) -> Any:
    """Let each step of a streaming result run in the run's own context, whoever iterates it, wherever."""
    if stream._sync_iterator is not None:
        stream._sync_iterator = _steps(stream._sync_iterator, context, run)
    if stream._async_iterator is not None:
        stream._async_iterator = _async_steps(stream._async_iterator, context, run)
    return stream


def _steps(steps: Any, context: contextvars.Context, run: Run | None) -> Iterator[Any]:
    end = object()
    try:
        while (item := context.run(next, steps, end)) is not end:
            yield item
    finally:
        context.run(steps.close)
        if run is not None:
            context.run(run.finish)


async def _async_steps(steps: Any, context: contextvars.Context, run: Run | None) -> AsyncIterator[Any]:
    loop = asyncio.get_running_loop()

    async def step() -> Any:
        return await anext(steps)

    try:
        while True:
            try:
                item = await loop.create_task(step(), context=context)
            except StopAsyncIteration:
                return
            yield item
    finally:
        await loop.create_task(steps.aclose(), context=context)
        if run is not None:
            context.run(run.finish)
