"""One call of a media tool: price, confirm, breaker, reserve, run, judge, settle."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from agentcredits._call import Call, Offer, prompt_in
from agentcredits.context import Surroundings, surround
from agentcredits.errors import (
    CreditLimitExceededError,
    CreditsError,
    ProviderUnavailableError,
    SettlementFailedError,
)
from agentcredits.media import flows
from agentcredits.media.breaker import TERMINAL, Breakers, breakers_of
from agentcredits.media.faults import ProviderFault
from agentcredits.media.flows import Ask, Flow
from agentcredits.media.plans import DRY_RUN, OVER_THRESHOLD, PROVIDER_REASONS, MediaPlan, advice, plain
from agentcredits.media.rules import FaultCategory, rules_of
from agentcredits.media.verdicts import Verdict, judge
from agentcredits.model import DryRunResult
from agentcredits.reservation import Hold
from agentcredits.runner.steps import Steps

if TYPE_CHECKING:
    from agentcredits.media.tool import MediaMeter

logger = logging.getLogger("agentcredits")

T = TypeVar("T")


class MediaCall(Call):
    """A call whose provider is asked for nothing while its account cannot be used, and whose outcome is judged."""

    __slots__ = ("_offered",)

    _meter: MediaMeter

    @property
    def _breakers(self) -> Breakers:
        return breakers_of(self._core)

    def _surround(self) -> Surroundings:
        """The caller's own functions run as the caller."""
        return surround(self._context, self._outer)

    def _run(self, flow: Flow[T]) -> T:
        return flows.run(self._core, flow, self._surround)

    async def _arun(self, flow: Flow[T]) -> T:
        return await flows.arun(self._core, flow, self._surround)

    # -- before the body -------------------------------------------------------------------------------------

    def admit(self) -> DryRunResult | None:
        """Price, confirm, look at the breaker, reserve; a plan when nothing is to run."""
        return self._run(self._admitting())

    async def aadmit(self) -> DryRunResult | None:
        """:meth:`admit` for coroutines."""
        return await self._arun(self._admitting())

    def _admitting(self) -> Flow[DryRunResult | None]:
        meter = self._meter
        self._offered: Offer = yield from self._offer()
        if self._context.dry_run:
            return self._plan(self._offered, DRY_RUN)
        if meter.threshold_micros is not None and self._offered.price.amount_micros > meter.threshold_micros:
            plan = self._plan(self._offered, OVER_THRESHOLD)
            if meter.confirm is None or not (yield Ask(partial(meter.confirm, plan), "confirm")):
                return self._or_raise(plan)
        opened = yield from self._breakers.may_call(meter.provider, meter.account)
        if opened is not None and (yield from self._balance_is_back()):
            opened = yield from self._breakers.probe(meter.provider, meter.account)
        if opened is not None:
            return self._unavailable(opened.category, opened.probe_at)
        try:
            plan_instead = yield from self._reservation(self._offered)
        except Exception:
            yield from self._booked(self._breakers.give_up(meter.provider, meter.account))
            raise
        if plan_instead is not None:
            yield from self._booked(self._breakers.give_up(meter.provider, meter.account))
        return plan_instead

    def _balance_is_back(self) -> Flow[bool]:
        """Whether the operator's own look at the account says that there is something in it."""
        meter = self._meter
        if meter.balance_probe is None or not self._breakers.may_ask_balance(meter.provider, meter.account):
            return False
        try:
            return bool((yield Ask(meter.balance_probe, "balance_probe")) > 0)
        except Exception:
            logger.exception("agentcredits: balance_probe= of %s failed", meter.action)
            return False

    def _metadata(self) -> Mapping[str, Any] | None:
        given = super()._metadata()
        own = {"provider": self._meter.provider, "model": self._model()}
        told = {name: value for name, value in own.items() if value is not None}
        return {**told, **({} if given is None else plain(given))}

    def _model(self) -> str | None:
        model = (self._offered.dimensions or {}).get("model")
        return model if isinstance(model, str) else None

    # -- plans -----------------------------------------------------------------------------------------------

    def _plan(self, offer: Offer, reason: str, fixes: tuple[dict[str, Any], ...] = ()) -> MediaPlan:
        parameters = self._parameters()
        model = (offer.dimensions or {}).get("model")
        return MediaPlan(
            agent_type=self._agent_type,
            action=self._meter.action,
            amount_micros=offer.price.amount_micros,
            reason=reason,
            prompt=_prompt(parameters, self._meter.prompt),
            parameters=plain(parameters),
            dimensions=plain(offer.dimensions or {}),
            fixes=fixes,
            model=model if isinstance(model, str) else None,
            what_to_do=advice(reason),
        )

    def _unavailable(
        self, category: str, retry_at: datetime | None, fault: ProviderFault | None = None, cause: object = None
    ) -> MediaPlan:
        """The plan in place of a call whose provider does not serve; raised as an error when so declared.

        Raises:
            ProviderUnavailableError: with ``on_exhausted="raise"``.
        """
        reason = PROVIDER_REASONS[category]
        told_at = retry_at if category == FaultCategory.QUOTA_WINDOW else None
        if self._meter.on_exhausted != "raise":
            plan = self._plan(self._offered, reason)
            return replace(plan, retry_at=retry_at, what_to_do=advice(reason, retry_at=told_at))
        sentence = fault.customer_message if fault is not None else advice(reason, retry_at=told_at)
        error = ProviderUnavailableError(
            sentence,
            reason=reason,
            retryable=category == FaultCategory.QUOTA_WINDOW,
            context={"provider": self._meter.provider, "category": category, "retry_at": retry_at},
        )
        raise error from (cause if isinstance(cause, BaseException) else None)

    def _or_raise(self, plan: MediaPlan) -> MediaPlan:
        if self._meter.on_exhausted != "raise":
            return plan
        raise CreditLimitExceededError(
            f"{plan.action} costs {plan.amount:f} credits, which nobody confirmed.",
            reason=OVER_THRESHOLD,
            limit_source="threshold",
            context={"required": plan.amount},
            suggestions=(plan.what_to_do,),
        )

    # -- instead of the body ---------------------------------------------------------------------------------

    def fallback(self, plan: DryRunResult) -> Any:
        """What the caller of a blocking function gets when nothing runs."""
        return self._run(self._handed_back(plan))

    async def afallback(self, plan: DryRunResult) -> Any:
        """What the caller of a coroutine gets when nothing runs."""
        return await self._arun(self._handed_back(plan))

    def _handed_back(self, plan: DryRunResult) -> Flow[Any]:
        enhance, on_exhausted = self._meter.enhance, self._meter.on_exhausted
        if enhance is not None and plan.prompt is not None and isinstance(plan, MediaPlan):
            try:
                better = yield Ask(partial(enhance, plan.prompt), "enhance")
                plan = replace(plan, enhanced_prompt=better if isinstance(better, str) else None)
            except Exception:
                # It only makes a plan nicer.
                logger.exception("agentcredits: enhance= of %s failed", self._meter.action)
        return (yield Ask(partial(on_exhausted, plan), "on_exhausted")) if callable(on_exhausted) else plan

    # -- after the body --------------------------------------------------------------------------------------

    def succeed(self, result: Any) -> Any:
        """After a body that returned: judge what it returned, then charge or give back."""
        flows.refuse_awaitable(result, self._meter.name)
        return self._run(self._returned(result))

    async def asucceed(self, result: Any) -> Any:
        """:meth:`succeed` for coroutines."""
        return await self._arun(self._returned(result))

    def fail(self, error: BaseException) -> tuple[Any] | None:
        """After a body that raised: give back, charge or keep for the provider's verdict."""
        return self._run(self._raised(error))

    async def afail(self, error: BaseException) -> tuple[Any] | None:
        """:meth:`fail` for coroutines."""
        return await self._arun(self._raised(error))

    def _judge(self, **outcome: Any) -> Verdict:
        rules = rules_of(self._core.settings.fault_rules)
        return judge(provider=self._meter.provider, policy=self._meter.policy, rules=rules, **outcome)

    def _returned(self, result: Any) -> Flow[Any]:
        verdict = self._judge(result=result)
        fault = verdict.fault
        if verdict.settle == "charge":
            if self._finish(result):
                yield from self._settlement(result)
        else:
            self._close_mark()
            yield from self._given_back(_said(fault))
        yield from self._reported(fault)
        if fault is None or verdict.settle == "charge" or fault.category not in TERMINAL:
            return result
        return (yield from self._handed_back(self._unavailable(fault.category.value, fault.retry_at, fault)))

    def _raised(self, error: BaseException) -> Flow[tuple[Any] | None]:
        self._close_mark()
        if not isinstance(error, Exception):
            # Cancelled or interrupted: nobody knows how it would have ended.
            yield from self._given_back(type(error).__name__, error)
            yield from self._booked(self._breakers.give_up(self._meter.provider, self._meter.account))
            return None
        verdict = self._judge(error=error)
        fault = verdict.fault
        if verdict.settle == "unknown":
            yield from self._kept(error, verdict)
            yield from self._booked(self._breakers.give_up(self._meter.provider, self._meter.account))
            return None
        if verdict.settle == "charge":
            yield from self._charged_all_the_same(error)
        else:
            yield from self._given_back(_said(fault, error), error)
        if fault is None:
            yield from self._booked(self._breakers.give_up(self._meter.provider, self._meter.account))
            return None
        yield from self._reported(fault)
        if fault.category not in TERMINAL:
            return None
        plan = self._unavailable(fault.category.value, fault.retry_at, fault, error)
        return ((yield from self._handed_back(plan)),)

    def _given_back(self, reason: str, error: BaseException | None = None) -> Steps[None]:
        if self._hold is None or self._state != "open":
            return
        try:
            yield from self._hold.give_back(reason)
        except Exception as problem:  # noqa: BLE001  # whatever it is, the caller needs the body's own outcome
            note = f"agentcredits: the reserved credits were not given back yet: {problem}"
            logger.warning(note) if error is None else error.add_note(note)
        self._state = "over"

    def _charged_all_the_same(self, error: BaseException) -> Steps[None]:
        """The provider charges for this failure."""
        if self._hold is None or self._state != "open":
            return
        self._settled_micros = None
        self._state = "finished"
        try:
            yield from self._settlement(None)
        except SettlementFailedError as problem:
            error.add_note(f"agentcredits: the provider charges for this, and the charge is not booked yet: {problem}")

    def _kept(self, error: BaseException, verdict: Verdict) -> Steps[None]:
        """The job may still succeed: the hold waits for the provider's verdict."""
        hold, provider = self._hold, self._meter.provider
        if hold is None or self._state != "open":
            return
        try:
            yield from self._core.mark_unknown(
                hold.id, provider, verdict.reference, organization_id=hold.organization_id
            )
        except CreditsError as problem:
            error.add_note(f"agentcredits: reservation {hold.id} could not be kept for the verdict: {problem}")
        else:
            error.add_note(
                f"agentcredits: job {verdict.reference} may still succeed, so reservation {hold.id} keeps its"
                f" {hold.amount:f} credits. When the outcome is known: agentcredits.media.resolve_unknown(service,"
                f' ("{provider}", "{verdict.reference}"), outcome="succeeded" or "failed"); or reconcile(...).'
            )
            yield from self._end_renewal(hold)
        self._state = "over"

    def _end_renewal(self, hold: Hold) -> Steps[None]:
        """An automatic release leaves alone what waits for a verdict, and ends the handle's work."""
        try:
            yield from hold.give_back(None)
        except CreditsError:
            logger.exception("agentcredits: reservation %s is still being renewed", hold.id)

    def _reported(self, fault: ProviderFault | None) -> Steps[None]:
        yield from self._booked(self._breakers.report(self._meter.provider, self._meter.account, fault))

    def _booked(self, steps: Steps[None]) -> Steps[None]:
        """What is written about the provider's account never costs the caller anything."""
        try:
            yield from steps
        except CreditsError:
            logger.exception("agentcredits: the state of the account at %s was not kept", self._meter.provider)


def _said(fault: ProviderFault | None, error: BaseException | None = None) -> str:
    """What the ledger keeps of a failure: its kind, none of the provider's words."""
    kind = "failed" if fault is None else f"{fault.category.value} ({fault.rule})"
    return kind if error is None else f"{type(error).__name__}: {kind}"


def _prompt(parameters: Mapping[str, Any], name: str) -> str | None:
    """The argument of that name, or the entry of that name in one (fal's ``arguments``, Replicate's ``input``).

    Else what every plan takes for the prompt.
    """
    for holder in (parameters, *_mappings(parameters)):
        value = holder.get(name)
        if isinstance(value, str):
            return value
    return prompt_in(parameters)


def _mappings(parameters: Mapping[str, Any]) -> Generator[Mapping[str, Any], None, None]:
    for value in parameters.values():
        if isinstance(value, Mapping):
            yield value
            yield from (inner for inner in value.values() if isinstance(inner, Mapping))
