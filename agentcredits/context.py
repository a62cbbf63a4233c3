"""Who pays: the RequestContext, how it becomes active, and how it reaches threads and callbacks.

Only :func:`use_context` and the decorators make a context active, and only for the block, call or generator step
that they surround. Nothing is ever read from another thread, task or request.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, field, replace
from decimal import Decimal
from types import MappingProxyType, TracebackType
from typing import Any, ParamSpec, TypeVar, cast, overload
from uuid import UUID

from agentcredits.amounts import Amount, from_micros, to_micros
from agentcredits.errors import InvalidInputError, MissingContextError
from agentcredits.execution import Execution, _innermost
from agentcredits.ids import new_id, optional_scope_id, scope_id
from agentcredits.model import Scopes

P = ParamSpec("P")
R = TypeVar("R")


class ReadOnlyMapping(Mapping[str, Any]):
    """A copied mapping that cannot be changed (and, unlike a mapping proxy, pickles and deep-copies)."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, Any]) -> None:
        self._items = MappingProxyType(dict(items))

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return repr(dict(self._items))

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (dict(self._items),))


@dataclass(frozen=True, slots=True, init=False)
class RequestContext:
    """Who an action is done for.

    Args:
        organization_id: Whose account pays; text or UUID.
        project_id: Text, UUID or None.
        department_id: Text, UUID or None.
        user_id: Text, UUID or None.
        request_id: Ties the ledger's rows to one request; a new id when left out.
        run_id: Ties several requests to one run.
        dry_run: Actions that declare a dry run return their priced plan, all others are refused before they start.
        metadata: Copied; written beside every charge, the charge's own metadata wins.
        max_credits: The most that the run may cost; a run's id is made when ``run_id`` is left out.

    Raises:
        InvalidInputError: an id that is no text or UUID, is empty, over 255 characters, or has a NUL character or a
            lone surrogate; ``dry_run`` that is no bool; ``metadata`` that is no mapping.
        InvalidAmountError: ``max_credits`` that is no amount.
    """

    organization_id: str
    project_id: str | None = None
    department_id: str | None = None
    user_id: str | None = None
    request_id: str = field(default_factory=new_id)
    run_id: str | None = None
    dry_run: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    max_credits: Decimal | None = None

    # Written out, because the attributes are texts while UUIDs may be passed.
    def __init__(
        self,
        organization_id: str | UUID,
        project_id: str | UUID | None = None,
        department_id: str | UUID | None = None,
        user_id: str | UUID | None = None,
        request_id: str | UUID | None = None,
        run_id: str | UUID | None = None,
        dry_run: bool = False,
        metadata: Mapping[str, Any] | None = None,
        max_credits: Amount | None = None,
    ) -> None:
        put = object.__setattr__
        put(self, "organization_id", scope_id(organization_id, name="organization_id"))
        put(self, "project_id", optional_scope_id(project_id, name="project_id"))
        put(self, "department_id", optional_scope_id(department_id, name="department_id"))
        put(self, "user_id", optional_scope_id(user_id, name="user_id"))
        put(self, "request_id", new_id() if request_id is None else scope_id(request_id, name="request_id"))
        cap_micros = None if max_credits is None else to_micros(max_credits, name="max_credits", allow_zero=True)
        put(self, "max_credits", None if cap_micros is None else from_micros(cap_micros))
        if run_id is None and cap_micros is not None:
            run_id = new_id()
        put(self, "run_id", optional_scope_id(run_id, name="run_id"))
        if not isinstance(dry_run, bool):
            # "false" and 0 from a query string must not decide by their truth value whether credits are spent.
            raise InvalidInputError(f"dry_run must be True or False, not {type(dry_run).__name__}.")
        put(self, "dry_run", dry_run)
        if metadata is not None and not isinstance(metadata, Mapping):
            raise InvalidInputError(f"metadata must be a mapping, not {type(metadata).__name__}.")
        put(self, "metadata", ReadOnlyMapping(metadata or {}))

    def capped(self, max_credits: Amount | None = None) -> RequestContext:
        """The same with a run's id and a cap; of two caps of one run the smaller one counts.

        Raises:
            InvalidAmountError: ``max_credits`` that is no amount.
        """
        given = replace(self, max_credits=max_credits).max_credits  # type: ignore[arg-type]  # __init__ takes amounts
        caps = [cap for cap in (self.max_credits, given) if cap is not None]
        return replace(self, run_id=self.run_id or new_id(), max_credits=min(caps, default=None))

    @property
    def scopes(self) -> Scopes:
        """The ids below the organization, as the ledger takes them."""
        return Scopes(
            project_id=self.project_id,
            department_id=self.department_id,
            user_id=self.user_id,
            run_id=self.run_id,
            request_id=self.request_id,
            run_max_micros=None if self.max_credits is None else to_micros(self.max_credits, allow_zero=True),
        )


class _Frame:
    """One entry of the stack of active contexts; ``owner`` is the block that pushed it, None for a call."""

    __slots__ = ("context", "outer", "owner")

    def __init__(self, context: RequestContext, owner: object, outer: _Frame | None) -> None:
        self.context = context
        self.owner = owner
        self.outer = outer


_active: ContextVar[_Frame | None] = ContextVar("agentcredits_context", default=None)

#: One context for each agent instance (by an identity that BaseCrew keeps); replaced, never changed in place.
Bindings = Mapping[Any, RequestContext | None]

#: What ``BaseCrew.set_context`` bound in this thread or task.
_bindings: ContextVar[Bindings] = ContextVar("agentcredits_bindings", default=MappingProxyType({}))


def _without(frame: _Frame | None, owner: object) -> _Frame | None:
    """The stack without the innermost entry of ``owner``; unchanged when it has none.

    What calls inside the block left above it goes too: an interrupt (a soft time limit, say) can end a call between
    any two instructions, and who pays must not last longer than the block that said so.
    """
    above: list[_Frame] = []
    cursor = frame
    while cursor is not None and cursor.owner is not owner:
        if cursor.owner is not None:
            above.append(cursor)
        cursor = cursor.outer
    if cursor is None:
        return frame
    rest = cursor.outer
    for entry in reversed(above):
        rest = _Frame(entry.context, entry.owner, rest)
    return rest


class use_context:  # noqa: N801  # reads as a statement: ``with use_context(ctx):``
    """Make a context active: ``with use_context(ctx):`` or ``async with use_context(ctx):``.

    Can be entered again, nested, and by several threads and tasks at once. ``use_context(organization_id="acme")``
    makes the RequestContext by itself. The block gets the context as its ``as`` value.
    """

    __slots__ = ("context",)

    @overload
    def __init__(self, context: RequestContext, /) -> None: ...

    @overload
    def __init__(
        self,
        /,
        *,
        organization_id: str | UUID,
        project_id: str | UUID | None = None,
        department_id: str | UUID | None = None,
        user_id: str | UUID | None = None,
        request_id: str | UUID | None = None,
        run_id: str | UUID | None = None,
        dry_run: bool = False,
        metadata: Mapping[str, Any] | None = None,
        max_credits: Amount | None = None,
    ) -> None: ...

    def __init__(self, context: RequestContext | None = None, /, **fields: Any) -> None:
        if context is None:
            context = RequestContext(**fields)
        elif fields:
            raise InvalidInputError("use_context takes a RequestContext or its fields, not both.")
        elif not isinstance(context, RequestContext):
            raise InvalidInputError(f"use_context takes a RequestContext, not {type(context).__name__}.")
        self.context = context

    def __enter__(self) -> RequestContext:
        _active.set(_Frame(self.context, self, _active.get()))
        return self.context

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Not ContextVar.reset: blocks that end in another order than they began would bring back a context whose
        # block is over, and a generator that the garbage collector closes elsewhere would fail.
        _active.set(_without(_active.get(), self))

    async def __aenter__(self) -> RequestContext:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)


def current_context() -> RequestContext | None:
    """The active context, or None."""
    frame = _active.get()
    return None if frame is None else frame.context


def require_context() -> RequestContext:
    """The active context.

    Raises:
        MissingContextError: none is active.
    """
    frame = _active.get()
    if frame is None:
        raise MissingContextError
    return frame.context


def agreed_context(given: RequestContext | None, captured: RequestContext | None) -> RequestContext:
    """Who pays for a run that was given a context, found one when it was set up, or finds one now.

    What was given wins, then what is active now, then what was captured; two organizations are never chosen from.

    Raises:
        MissingContextError: nobody pays, or two organizations would.
    """
    active = current_context()
    known = given or captured
    if known is not None and active is not None and known.organization_id != active.organization_id:
        raise MissingContextError(
            f"use_context is active for organization {active.organization_id}, but this run was set up for "
            f"{known.organization_id}: decide for one of them.",
            reason="conflicting_contexts",
            context={"active": active.organization_id, "given": known.organization_id},
        )
    context = given or active or captured
    if context is None:
        raise MissingContextError(
            "this run is charged, but no RequestContext is active: enter use_context(RequestContext(...)) around it."
        )
    return context


class Surroundings:
    """What is active for one call, or for the steps of one generator, whichever thread or task runs them.

    Each ``with`` exchanges the caller's state for its own and back, keeping what the body left active (a generator
    may be suspended inside ``with use_context(...)``): a ContextVar that stays set across a ``yield`` would leak into
    the caller. Not for two entries at a time.
    """

    __slots__ = ("_bindings", "_frame", "_mark", "_tokens")

    def __init__(self, frame: _Frame | None, mark: Execution | None, bindings: Bindings | None = None) -> None:
        self._frame = frame
        self._mark = mark
        #: None leaves the caller's bindings alone: an agent's own ``set_context`` inside its method is meant to last.
        self._bindings = bindings
        self._tokens: tuple[Token[_Frame | None], Token[Execution | None], Token[Bindings] | None] | None = None

    def __enter__(self) -> None:
        self._tokens = (
            _active.set(self._frame),
            _innermost.set(self._mark),
            None if self._bindings is None else _bindings.set(self._bindings),
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        tokens, self._tokens = self._tokens, None
        if tokens is None:
            return
        frame, mark, bindings = _active.get(), _innermost.get(), _bindings.get()
        try:
            _active.reset(tokens[0])
            _innermost.reset(tokens[1])
            if tokens[2] is not None:
                _bindings.reset(tokens[2])
        except ValueError:
            # A dropped coroutine is closed wherever the garbage collector runs: that context is not ours to change.
            return
        self._frame, self._mark = frame, mark
        if self._bindings is not None:
            self._bindings = bindings


def surround(context: RequestContext, mark: Execution | None) -> Surroundings:
    """Surroundings in which ``context`` is active on top of the caller's, and ``mark`` is the innermost open charge."""
    return Surroundings(_Frame(context, None, _active.get()), mark)


def bind(function: Callable[P, R]) -> Callable[P, R]:
    """Give a function that runs in another thread or callback the context that is active here.

    Carries the active context, what ``BaseCrew.set_context`` bound, and the open charge around the caller; other
    context variables stay the thread's own. Functions and coroutine functions; the result can be called by many
    threads at once.

    Raises:
        MissingContextError: nothing is active here.
        InvalidInputError: a generator function: its body runs when it is iterated, so enter ``use_context`` inside it.
    """
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidInputError(
            "bind() takes functions and coroutine functions: in a generator, enter use_context(...) inside its body."
        )
    frame, mark, bindings = _active.get(), _innermost.get(), _bindings.get()
    if frame is None and not any(bound is not None and agent.owner() is not None for agent, bound in bindings.items()):
        raise MissingContextError("bind() found no RequestContext here: call it inside use_context(...).")

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def bound_coroutine(*args: P.args, **kwargs: P.kwargs) -> Any:
            with Surroundings(frame, mark, bindings):
                return await function(*args, **kwargs)

        return cast(Callable[P, R], bound_coroutine)

    @functools.wraps(function)
    def bound(*args: P.args, **kwargs: P.kwargs) -> R:
        with Surroundings(frame, mark, bindings):
            return function(*args, **kwargs)

    return bound


def merge_metadata(context: RequestContext, metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """The context's metadata, and on top of it the charge's own.

    Raises:
        InvalidInputError: not a mapping.
    """
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InvalidInputError(f"metadata must be a mapping, not {type(metadata).__name__}.")
    return {**context.metadata, **(metadata or {})}
