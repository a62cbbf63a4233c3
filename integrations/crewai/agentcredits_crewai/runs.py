"""One run of a credited crew: who pays, what is held for its LLM calls, what was refused, and what it cost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from agentcredits import ModelCall, ModelCalls, RequestContext, RunLog, RunPool, SyncCreditService, current_run
from agentcredits_crewai.errors import aborting

logger = logging.getLogger("agentcredits")

#: The LLM call in flight here: set before it, read when its usage is known and after it.
CALL: ContextVar[ModelCall | None] = ContextVar("agentcredits_crewai_call", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What ``credited()`` was told; copies of a crew share them."""

    context: RequestContext | Callable[[Mapping[str, Any]], RequestContext | None] | None
    captured: RequestContext | None
    max_credits: Any
    llm_action: str | None
    agent_type: str
    tools: Mapping[str, str] | str | None
    on_denied: str
    rate: Callable[..., Any] | None
    service: SyncCreditService
    on_run: Callable[[Run], object] | None
    #: The newest run of the crew or of a copy of it.
    runs: list[Run] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What CrewAI knows an LLM call by."""

    executor: object
    agent: object
    task: object
    crew: object
    messages: int


class Run(RunLog):
    """One kickoff of a credited crew or flow.

    Args:
        owner: The crew or flow that was started.
        terms: What it is charged by.
        context: Who pays.
        outer: The credited run around it.
    """

    is_over = property(lambda self: self.pool.is_over)

    def __init__(self, owner: object, terms: Terms, context: RequestContext, outer: Run | None) -> None:
        self.pool = RunPool(terms.service, context, terms.max_credits, getattr(outer, "pool", None))
        super().__init__(context.organization_id, self.pool.context.run_id, outer=outer)
        self.owner, self.terms, self.context = owner, terms, self.pool.context
        self._ends = ["once"]
        self.calls = ModelCalls(
            self, terms.service, agent_type=terms.agent_type, action=terms.llm_action, rate=terms.rate
        )

    def stopping(self, error: Exception) -> Exception:
        """CrewAI lets nothing else out of a hook."""
        return aborting(error)

    def settle_answered(self, agent: object, task: object) -> None:
        """An agent calls a tool: the LLM call that asked for it was answered (there is no POST_MODEL then)."""
        self.calls.settle_asking(lambda subject: subject.agent is agent and subject.task is task)

    def settle_earlier(self, chosen: Callable[[Subject], bool], messages: int = 0) -> None:
        """Settle the open calls that match: charged if they were answered (a longer talk tells), else given back."""
        for call in self.calls.open(chosen):
            self.calls.settle(call, answered=call.was_answered or messages > call.subject.messages)

    def finish(self) -> None:
        """The execution ended: give back what is still held, and tell ``on_run``; once."""
        try:
            self._ends.pop()
        except IndexError:
            return
        self.settle_earlier(lambda _subject: True)
        self.pool.end()
        if self.terms.on_run is not None:
            try:
                self.terms.on_run(self)
            except Exception:
                logger.exception("agentcredits: on_run= failed; what was booked stands")


def run_here() -> Run | None:
    """The credited run that this thread or task works for."""
    log = current_run()
    while log is not None and not isinstance(log, Run):
        log = log.outer
    return log
