"""Calls of language models: held before, charged when the provider answered, given back when it did not.

For adapters of agent frameworks, whose hooks come before a call, after it, or only sometimes after it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agentcredits.amounts import Amount
from agentcredits.errors import CreditLimitExceededError, InsufficientCreditsError
from agentcredits.reservation import SyncReservation
from agentcredits.run_log import Place, RunLog, at_place
from agentcredits.service import SyncCreditService

logger = logging.getLogger("agentcredits")

#: What a call costs, in credits, by its usage.
Rate = Callable[[Mapping[str, int]], Amount]


@dataclass(slots=True, eq=False)
class ModelCall:
    """A call that credits are held for; ``subject`` is whatever the framework knows it by."""

    hold: SyncReservation
    place: Place
    subject: Any = None
    usage: dict[str, int] = field(default_factory=dict)
    #: Of an answer that was read and not counted (yet).
    unparsed: dict[str, int] = field(default_factory=dict)
    #: A counter is at work: one that it calls must not count again.
    is_counting: bool = False

    @property
    def was_answered(self) -> bool:
        """Whether the provider answered; what it answered may be of no use."""
        return bool(self.usage or self.unparsed)

    def add(self, usage: Mapping[str, int]) -> None:
        """Another answer of the provider within this call (a retry, a follow-up)."""
        # In one step: whoever settles the call from another thread sees all of it or none.
        self.usage = self.usage | {name: self.usage.get(name, 0) + count for name, count in usage.items()}


class ModelCalls:
    """The calls of one run.

    Args:
        run: Whose summary tells of them.
        service: Who books; frameworks' hooks block.
        agent_type: Of the price.
        action: Of the price.
        rate: What a call costs by its usage; None: the price that was held.
    """

    def __init__(
        self, run: RunLog, service: SyncCreditService, *, agent_type: str, action: str | None, rate: Rate | None = None
    ) -> None:
        self._run = run
        self._service = service
        self._price: dict[str, Any] = {"agent_type": agent_type, "action": action}
        self._rate = rate
        # By identity, and changed in single steps of the interpreter: hooks run in many threads.
        self._open: dict[int, ModelCall] = {}
        self._given_back: dict[int, ModelCall] = {}
        #: The models whose usage is known when they ask for tools.
        self._counting: set[str | None] = set()

    def hold(self, organization_id: str, place: Place, subject: Any = None) -> ModelCall:
        """Reserve the price of a call.

        Raises:
            InsufficientCreditsError: too few credits (also CreditLimitExceededError, UnpricedActionError …).
        """
        try:
            hold = self._service.reserve_credits(
                organization_id=organization_id, metadata=place.metadata, **self._price
            )
        except (InsufficientCreditsError, CreditLimitExceededError) as error:
            self._run.refused(error, action=self._price["action"], place=place)
            raise
        hold.begin()
        call = ModelCall(hold, place, subject)
        self._open[id(call)] = call
        return call

    def open(self, chosen: Callable[[Any], bool] = lambda _subject: True) -> list[ModelCall]:
        """The calls in flight whose subject is chosen."""
        return [call for call in list(self._open.values()) if chosen(call.subject)]

    def settle(self, call: ModelCall, *, answered: bool) -> None:
        """Charge or give back; once, but an answer that comes after its call was given back is charged late."""
        if not answered:
            self._given_back[id(call)] = call
        late = False
        if self._open.pop(id(call), None) is None:
            late = self._given_back.pop(id(call), None) is not None and answered
            if not late:
                return
        call.add(call.unparsed)
        usage = dict(call.usage)
        metadata = {**call.place.metadata, "usage": usage}
        with at_place(**{name: getattr(call.place, name) for name in ("agent", "task", "tool", "llm")}, usage=usage):
            if late:
                self._service.consume_credits(
                    organization_id=call.hold.organization_id,
                    amount=self._amount(usage) or call.hold.amount,
                    metadata=metadata,
                    overage="cap",
                    **self._price,
                )
            elif answered:
                call.hold.commit(self._amount(usage), metadata=metadata)
            else:
                call.hold.release("the LLM call failed")

    def settle_asking(self, chosen: Callable[[Any], bool]) -> None:
        """A tool is called, for frameworks that tell no more: charge the open call of its agent that asked for it.

        The agent may be at work elsewhere as well, on a call that is not answered yet.
        """
        calls = self.open(chosen)
        for call in calls:
            if call.was_answered:
                self._counting.add(call.place.llm)
            if call.was_answered or (len(calls) == 1 and call.place.llm not in self._counting):
                self.settle(call, answered=True)

    def _amount(self, usage: Mapping[str, int]) -> Amount | None:
        if self._rate is None or not usage:
            return None
        try:
            return self._rate(usage)
        except Exception:
            logger.exception("agentcredits: rate= failed; the price that was held is charged")
            return None
