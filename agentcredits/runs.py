"""Runs of programs and frameworks: ``use_run`` for a block, ``RunPool`` for adapters of agent frameworks."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta
from types import TracebackType
from uuid import UUID

from agentcredits.amounts import Amount
from agentcredits.context import RequestContext, require_context, use_context
from agentcredits.errors import AccountNotFoundError, CreditsError, InvalidInputError, RunNotFoundError
from agentcredits.ids import new_id, optional_scope_id
from agentcredits.runner.steps import Steps
from agentcredits.service import CreditService, SyncCreditService, core_of
from agentcredits.service.core import ServiceCore

logger = logging.getLogger("agentcredits")


class use_run:  # noqa: N801  # reads as a statement: ``with use_run(max_credits=5):``
    """Do a block's work in a run of its own: ``with use_run(max_credits=5):`` or ``async with use_run(...):``.

    Inside a context with a ``run_id`` the new run stands inside that one, and ``max_credits`` are carved out of its
    pool; what is not used goes back when the block ends. The block gets the new context as its ``as`` value. For one
    block at a time.

    Args:
        max_credits: The most that the block may cost; None: what the pool around allows.
        borrow: Whether it goes on from the free part of the pool around when its own is used up.
        partial: Begin with what the pool around has left, when that is less; else the block is refused.
        run_id: The new run's id; a new one when left out.
        ttl: The run ends by itself when nothing happened in it for so long (its process died, say).
        context: Whose run; the active context when left out.
        service: Who books; the default service when left out.

    Entering raises:
        MissingContextError: no context.
        CreditLimitExceededError: the pool around has less left.
        RunEndedError: the run, or the one around, has ended.
        AccountNotFoundError: the organization was never granted anything.
    """

    def __init__(
        self,
        *,
        max_credits: Amount | None = None,
        borrow: bool = False,
        partial: bool = False,
        run_id: str | UUID | None = None,
        ttl: timedelta | None = None,
        context: RequestContext | None = None,
        service: CreditService | SyncCreditService | None = None,
    ) -> None:
        self._run_id = optional_scope_id(run_id, name="run_id") or new_id()
        self._max_credits = max_credits
        self._borrow = borrow
        self._partial = partial
        self._ttl = ttl
        self._context = context
        self._service = service
        self._core: ServiceCore | None = None
        self._active: use_context | None = None

    def _begin(self) -> tuple[ServiceCore, Steps[None]]:
        if self._active is not None:
            raise InvalidInputError("this use_run() is in use: make one for each block.")
        outer = self._context or require_context()
        self._core = core_of(self._service)
        self._active = use_context(replace(outer, run_id=self._run_id, max_credits=None))
        return self._core, self._opening(self._core, outer)

    def _opening(self, core: ServiceCore, outer: RequestContext) -> Steps[None]:
        if core.mode == "off" or outer.dry_run:
            return
        around = None if outer.run_id == self._run_id else outer.run_id
        try:
            if around is not None:
                # The run around may be nothing but an id so far, or a cap that nothing was charged under yet.
                yield from core.open_run(outer.organization_id, around, max_credits=outer.max_credits)
            yield from core.open_run(
                outer.organization_id,
                self._run_id,
                max_credits=self._max_credits,
                parent_run_id=around,
                borrow=self._borrow,
                partial=self._partial,
                ttl=self._ttl,
            )
        except BaseException:
            self._active = None
            raise

    def _ending(self, core: ServiceCore, context: RequestContext) -> Steps[None]:
        """End the run; the work is done, so a problem here must not cost its result: the time-to-live ends it then."""
        if core.mode == "off" or context.dry_run:
            return
        try:
            yield from core.end_run(self._run_id, organization_id=context.organization_id)
        except CreditsError:
            logger.exception("agentcredits: run %s was not ended; it ends by itself", self._run_id)

    def _leave(self) -> tuple[ServiceCore, Steps[None]] | None:
        core, active, self._active = self._core, self._active, None
        if core is None or active is None:
            return None
        active.__exit__(None, None, None)
        return core, self._ending(core, active.context)

    def _activate(self) -> RequestContext:
        if self._active is None:
            raise AssertionError("the block was left while it was being entered")
        return self._active.__enter__()

    def __enter__(self) -> RequestContext:
        """Open the run, and make its context active."""
        core, opening = self._begin()
        core.run(opening)
        return self._activate()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the run: what it did not use goes back."""
        leave = self._leave()
        if leave is not None:
            core, ending = leave
            core.run(ending)

    async def __aenter__(self) -> RequestContext:
        """Open the run, and make its context active; the event loop is never blocked."""
        core, opening = self._begin()
        await core.arun(opening)
        return self._activate()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the run: what it did not use goes back."""
        leave = self._leave()
        if leave is not None:
            core, ending = leave
            await core.arun(ending)


class RunPool:
    """The pool of one run of an agent framework: for adapters, which say when it is over.

    With a cap inside the pool of another run it is carved out of that one's (what it has left, if that is less);
    without one it is that one's. Outside of any, the first charge opens it.

    Args:
        service: Who books; a blocking face.
        context: Who pays. Its own ``run_id`` is kept, and such a run is never ended here.
        max_credits: The most that the run may cost; None: what ``context`` says.
        around: The pool of the run around it, if there is one.

    Raises:
        RunEndedError: the run around has ended.
        StoreUnavailableError: the store is away.
        InvalidAmountError: ``max_credits`` is no amount.
    """

    def __init__(
        self, service: SyncCreditService, context: RequestContext, max_credits: Amount | None, around: RunPool | None
    ) -> None:
        #: The context that the run's work is to be done in.
        self.context: RequestContext = context.capped(max_credits)
        #: Whether :meth:`end` was called.
        self.is_over = False
        self._service = service
        self._named = context.run_id is not None
        self._ends = max_credits is not None and not self._named
        if around is None or around.is_over or around.context.run_id != context.run_id:
            return
        if max_credits is None or context.dry_run:
            self.context = context
            return
        owner = context.organization_id
        service.open_run(owner, context.run_id, max_credits=context.max_credits)
        # The run around has a row now, if it had none.
        around._ends = around._ends or not around._named
        inner = service.open_run(owner, max_credits=max_credits, parent_run_id=context.run_id, partial=True)
        self.context = replace(context, run_id=inner.run_id, max_credits=None)
        self._ends = True

    def end(self) -> None:
        """The run is over: what it did not use goes back. Never raises: the work is done, and it ends by itself too."""
        self.is_over = True
        if not self._ends or self.context.run_id is None:
            return
        try:
            self._service.end_run(self.context.run_id, organization_id=self.context.organization_id)
        except (AccountNotFoundError, RunNotFoundError):
            logger.debug("agentcredits: nothing was charged in run %s", self.context.run_id)
        except CreditsError:
            logger.exception("agentcredits: run %s was not ended; it ends by itself", self.context.run_id)
