"""One run of a credited crew: who pays, what is held for its LLM calls, what was refused, and what it cost."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from typing import Any

from agentcredits import (
    CreditEvent,
    CreditLimitExceededError,
    CreditsError,
    InsufficientCreditsError,
    RequestContext,
    SyncCreditService,
    SyncReservation,
    add_hook,
)
from agentcredits_crewai.errors import aborting
from agentcredits_crewai.summary import Kind, RunSummary, SummaryLine

logger = logging.getLogger("agentcredits")

Rate = Callable[[Mapping[str, int]], Any]


@dataclass(frozen=True, slots=True)
class Where:
    """In whose hands something is charged."""

    agent: str | None = None
    task: str | None = None
    tool: str | None = None
    llm: str | None = None

    @property
    def metadata(self) -> dict[str, str]:
        """What is known of it, for the ledger's row."""
        return {name: value for name, value in asdict(self).items() if value is not None}


#: The run that this thread or task works for, and the innermost place in it.
RUN: ContextVar[Run | None] = ContextVar("agentcredits_crewai_run", default=None)
WHERE: ContextVar[Where] = ContextVar("agentcredits_crewai_where", default=Where())  # noqa: B039  # it is frozen
#: The LLM call in flight here: set before it, read when its usage is known and after it.
CALL: ContextVar[LLMCall | None] = ContextVar("agentcredits_crewai_call", default=None)


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
    rate: Rate | None
    service: SyncCreditService
    on_run: Callable[[Run], object] | None
    #: The newest run of the crew or of a copy of it.
    runs: list[Run] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class LLMCall:
    """An LLM call that credits are held for."""

    hold: SyncReservation
    where: Where
    executor: object
    agent: object
    task: object
    crew: object
    messages: int
    usage: dict[str, int] = field(default_factory=dict)
    #: Of an answer that was read and not counted (yet).
    unparsed: dict[str, int] = field(default_factory=dict)
    is_tracking: bool = False
    was_released: bool = False

    @property
    def was_answered(self) -> bool:
        """Whether the provider answered; what it answered may be of no use."""
        return bool(self.usage or self.unparsed)

    def add(self, usage: Mapping[str, int]) -> None:
        """Another answer of the provider within this call (a retry, a follow-up)."""
        for name, count in usage.items():
            self.usage[name] = self.usage.get(name, 0) + count


class Run:
    """One kickoff of a credited crew or flow.

    Args:
        owner: The crew or flow that was started.
        terms: What it is charged by.
        context: Who pays; carries the run's cap.
        parent: The credited run around it.
    """

    def __init__(self, owner: object, terms: Terms, context: RequestContext, parent: Run | None) -> None:
        self.owner = owner
        self.terms = terms
        self.context = context
        self.parent = parent
        self.is_over = False
        self._denied: Exception | None = None
        self._lock = threading.Lock()
        self._open: list[LLMCall] = []
        self._lines: list[SummaryLine] = []

    def summary(self) -> RunSummary:
        """What the run cost so far, runs inside it included."""
        with self._lock:
            return RunSummary(self.context.organization_id, self.context.run_id, tuple(self._lines))

    def record(self, kind: Kind, amount: Decimal, **facts: Any) -> None:
        """Write a line of the summary, in the hands of whoever works now."""
        where = facts.pop("where", None) or WHERE.get()
        line = SummaryLine(kind, amount, agent=where.agent, task=where.task, tool=where.tool, llm=where.llm, **facts)
        run: Run | None = self
        while run is not None:
            with run._lock:
                run._lines.append(line)
            run = run.parent

    def refused(self, error: CreditsError, action: str | None, where: Where) -> None:
        """Write a refusal's line of the summary."""
        self.record(
            "denied", Decimal(error.context.get("required") or 0), action=action, reason=error.reason, where=where
        )

    # -- refusals --------------------------------------------------------------------------------------------

    def deny(self, error: Exception) -> Exception:
        """Stop the run: from now on every model and tool call of it is refused with this error."""
        with self._lock:
            if self._denied is None:
                self._denied = aborting(error)
            return self._denied

    def check(self) -> None:
        """Refuse whatever comes after a refusal; CrewAI swallows errors of delegated work, so once is not enough."""
        run: Run | None = self
        while run is not None:
            if run._denied is not None:
                raise run._denied.with_traceback(None)
            run = run.parent

    # -- LLM calls -------------------------------------------------------------------------------------------

    def hold(self, organization_id: str, **about: Any) -> LLMCall:
        """Reserve the price of one LLM call.

        Raises:
            InsufficientCreditsError: too few credits (also CreditLimitExceededError, UnpricedActionError …).
        """
        where: Where = about["where"]
        action = self.terms.llm_action
        try:
            hold = self.terms.service.reserve_credits(
                organization_id=organization_id,
                agent_type=self.terms.agent_type,
                action=action,
                metadata=where.metadata,
            )
        except (InsufficientCreditsError, CreditLimitExceededError) as error:
            self.refused(error, action, where)
            raise
        hold.begin()
        call = LLMCall(hold, **about)
        with self._lock:
            self._open.append(call)
        return call

    def settle(self, call: LLMCall, *, answered: bool) -> None:
        """Charge or give back an LLM call; once, but an answer that comes after the sweep is charged late."""
        with self._lock:
            if call in self._open:
                self._open.remove(call)
            elif not (answered and call.was_released):
                return
            late, call.was_released = call.was_released, not answered
        call.add(call.unparsed)
        place, outer = WHERE.set(call.where), CALL.set(call)
        try:
            metadata = {**call.where.metadata, "usage": dict(call.usage)}
            if late:
                self.terms.service.consume_credits(
                    organization_id=call.hold.organization_id,
                    amount=self._amount(call) or call.hold.amount,
                    agent_type=self.terms.agent_type,
                    action=self.terms.llm_action,
                    metadata=metadata,
                    overage="cap",
                )
            elif answered:
                call.hold.commit(self._amount(call), metadata=metadata)
            else:
                call.hold.release("the LLM call failed")
        finally:
            CALL.reset(outer)
            WHERE.reset(place)

    def settle_answered(self, agent: object, task: object) -> None:
        """An agent calls a tool: the LLM call that asked for it was answered (there is no POST_MODEL then)."""
        with self._lock:
            calls = [call for call in self._open if call.agent is agent and call.task is task]
        for call in calls:
            if call.was_answered or len(calls) == 1:
                self.settle(call, answered=True)

    def settle_earlier(self, chosen: Callable[[LLMCall], bool], answered: Callable[[LLMCall], bool]) -> None:
        """Settle the open calls that match: those that were answered are charged, the others failed."""
        with self._lock:
            calls = [call for call in self._open if chosen(call)]
        for call in calls:
            self.settle(call, answered=answered(call))

    def _amount(self, call: LLMCall) -> Any:
        if self.terms.rate is None or not call.usage:
            return None
        try:
            return self.terms.rate(dict(call.usage))
        except Exception:
            logger.exception("agentcredits: rate= failed; the price that was held is charged")
            return None

    def finish(self) -> None:
        """The execution ended: give back what is still held, and tell ``on_run``; once."""
        with self._lock:
            if self.is_over:
                return
            self.is_over = True
        self.settle_earlier(lambda _call: True, lambda call: call.was_answered)
        if self.terms.on_run is not None:
            try:
                self.terms.on_run(self)
            except Exception:
                logger.exception("agentcredits: on_run= failed; what was booked stands")


@add_hook
def _listen(event: CreditEvent) -> None:
    """Every booking of a run, whoever made it, becomes a line of its summary."""
    run = RUN.get()
    if run is None:
        return
    call = CALL.get()
    if event.reservation is not None and event.name in ("settled", "settlement_deferred"):
        record = event.reservation
        usage = dict(call.usage) if call is not None and call.hold.id == record.id else {}
        facts: dict[str, Any] = {"action": record.action, "usage": usage}
        if event.name == "settlement_deferred":
            run.record("pending", record.amount, **facts)
        elif record.state == "committed":
            run.record("charged", record.charged, **facts)
        else:
            run.record("given_back", record.amount, reason=record.reason, **facts)
    elif event.transaction is not None and event.name in ("charged", "refunded"):
        kind: Kind = "charged" if event.name == "charged" else "given_back"
        run.record(kind, abs(event.transaction.amount), action=event.transaction.action)


def inside(**place: Any) -> Where:
    """The current place with something more known about it."""
    return replace(WHERE.get(), **place)
