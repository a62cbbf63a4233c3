"""The hooks of a credited run. Whatever goes wrong in one stops the crew: nothing runs without being paid for."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from crewai.hooks.dispatch import (
    HookAborted,
    InterceptionPoint,
    _scoped_hooks_var,
    get_hooks,
    register,
    scoped_hooks,
)

from agentcredits import Place, require_context, set_place, use_context
from agentcredits_crewai import usage
from agentcredits_crewai.errors import CrewMissingContext
from agentcredits_crewai.runs import CALL, Run, Subject, run_here
from agentcredits_crewai.tools import action_of, is_metered, meter_tools

logger = logging.getLogger("agentcredits")

_required = False


def require_credits(required: bool = True) -> None:
    """From now on, every crew, flow and ``Agent.kickoff`` of this process that is not credited is refused."""
    global _required
    _required = required
    ensure_guard()


def ensure_guard() -> None:
    """Register the guard; again, if somebody cleared CrewAI's global hooks."""
    if _guard not in get_hooks(InterceptionPoint.EXECUTION_START):
        register(InterceptionPoint.EXECUTION_START, _guard)


def _guard(ctx: Any) -> None:
    run = run_here()
    subject = ctx.crew if ctx.crew is not None else ctx.flow
    if run is None:
        if _required or getattr(subject, "_agentcredits", None) is not None:
            raise CrewMissingContext(
                f"this {type(subject).__name__} started without its credits: call kickoff on what credited() returned."
            )
    elif _pre_model not in (_scoped_hooks_var.get() or {}).get(InterceptionPoint.PRE_MODEL_CALL, ()):
        raise HookAborted(
            "scoped_hooks(...) inside a credited run hides the hooks that charge: credit the inner crew too.",
            "agentcredits",
        )


def _closed(hook: Callable[[Run, Any], None]) -> Callable[[Any], None]:
    """Fail closed: CrewAI swallows every error of a hook but HookAborted, and goes on for free."""

    @functools.wraps(hook)
    def closed(ctx: Any) -> None:
        run = run_here()
        if run is None:
            raise CrewMissingContext
        try:
            hook(run, ctx)
        except HookAborted:
            raise
        except Exception as error:
            raise run.deny(error) from error

    return closed


def _place(ctx: Any, **more: Any) -> Place:
    role = getattr(ctx.agent, "role", None)
    task = getattr(ctx.task, "name", None) or (getattr(ctx.task, "description", None) or "").strip()[:60]
    return Place(agent=role.strip() if isinstance(role, str) else None, task=task or None, **more)


@_closed
def _execution_start(run: Run, ctx: Any) -> None:
    run.check()
    if run.terms.tools is not None and ctx.crew is not None:
        workers = (*ctx.crew.agents, ctx.crew.manager_agent, *(task.agent for task in ctx.crew.tasks))
        for member in (*ctx.crew.tasks, *(worker for worker in workers if worker is not None)):
            member.tools = meter_tools(
                member.tools, run.terms.tools, on_denied=run.terms.on_denied, service=run.terms.service
            )


@_closed
def _between_steps(run: Run, ctx: Any) -> None:
    del ctx
    run.check()


@_closed
def _pre_model(run: Run, ctx: Any) -> None:
    CALL.set(None)
    # An earlier call of the same loop that had no POST_MODEL: it was answered with tool calls, or it failed.
    if ctx.executor is not None:
        run.settle_earlier(
            lambda subject: subject.executor is ctx.executor and subject.task is ctx.task, len(ctx.messages)
        )
    run.check()
    if run.terms.llm_action is None:
        return
    usage.watch(ctx.llm)
    model = getattr(ctx.llm, "model", None) or type(ctx.llm).__name__
    CALL.set(
        run.calls.hold(
            require_context().organization_id,
            _place(ctx, llm=str(model)),
            Subject(ctx.executor, ctx.agent, ctx.task, ctx.crew, len(ctx.messages)),
        )
    )


@_closed
def _post_model(run: Run, ctx: Any) -> None:
    del ctx
    call = CALL.get()
    if call is not None:
        run.calls.settle(call, answered=True)


@_closed
def _pre_tool(run: Run, ctx: Any) -> None:
    set_place(_place(ctx))
    run.settle_answered(ctx.agent, ctx.task)
    run.check()
    tool = getattr(ctx.tool, "_original_tool", None) or ctx.tool
    if run.terms.tools is not None and action_of(tool, run.terms.tools) is not None and not is_metered(tool):
        raise RuntimeError(f"tools= names {ctx.tool_name}, which came too late to be metered: wrap it in meter().")


def _execution_end(ctx: Any) -> None:
    """Sweep what this execution still holds. The work is over: a problem here must not cost its result."""
    run = run_here()
    if run is None:
        return
    try:
        run.settle_earlier(
            lambda subject: (
                (ctx.crew is not None and subject.crew is ctx.crew) or subject.executor is ctx.flow is not None
            )
        )
    except Exception:
        logger.exception("agentcredits: the holds of an execution that ended are not settled yet")


_HOOKS: dict[InterceptionPoint, Callable[[Any], None]] = {
    InterceptionPoint.EXECUTION_START: _execution_start,
    InterceptionPoint.PRE_STEP: _between_steps,
    InterceptionPoint.PRE_MODEL_CALL: _pre_model,
    InterceptionPoint.POST_MODEL_CALL: _post_model,
    InterceptionPoint.PRE_TOOL_CALL: _pre_tool,
    InterceptionPoint.POST_TOOL_CALL: _between_steps,
    InterceptionPoint.EXECUTION_END: _execution_end,
}


@contextmanager
def scope(run: Run) -> Iterator[None]:
    """What a run's threads and tasks see: who pays, the run, and its hooks beside those of an outer scope."""
    ensure_guard()
    hooks = {point: list(found) for point, found in (_scoped_hooks_var.get() or {}).items()}
    for point, hook in _HOOKS.items():
        present = hooks.setdefault(point, [])
        if hook not in present:
            present.append(hook)
    call = CALL.set(None)
    try:
        with use_context(run.context), run.listening(), scoped_hooks(hooks):
            try:
                yield
            except BaseException:
                run.finish()
                raise
    finally:
        CALL.reset(call)


ensure_guard()
