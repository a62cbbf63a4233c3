"""Tools of agent frameworks, charged: for the adapters, and for frameworks that have none yet.

A tool is charged inside its own function, never in a framework's hooks: hooks also fire for cache hits, wrong
arguments and unknown tools, and frameworks try a failing tool again.
"""

from __future__ import annotations

import functools
import inspect
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self, cast, get_args

from agentcredits.amounts import Amount
from agentcredits.context import current_context
from agentcredits.decorators import consume_credits
from agentcredits.errors import (
    ConfigurationError,
    CreditLimitExceededError,
    CreditsError,
    InsufficientCreditsError,
    ProviderUnavailableError,
)
from agentcredits.media.tool import media_tool
from agentcredits.model import DryRunResult
from agentcredits.run_log import at_place, current_place, current_run
from agentcredits.service import CreditService, SyncCreditService

OnDenied = Literal["fallback", "tool_failure", "stop"]


class _Undone(Exception):  # noqa: N818  # never seen outside: it carries a failed tool's result past the charge
    """The tool said that it failed."""


class ToolMeter:
    """How one tool is charged: each call that succeeds; what fails is given back.

    Inside a run (:class:`RunLog`) a refusal that the tool cannot get round is told to the run (``deny``), and the
    framework gets a failure; without one, the error is raised.

    Args:
        action: Of the price.
        agent_type: Of the price.
        cost: Credits instead of the price, or a function of the tool's arguments.
        dimensions: What else the price depends on, or a function of the tool's arguments.
        fallback: Function of the DryRunResult (prompt, parameters, price, reason) whose answer comes back when the
            tool cannot be paid, and in a dry run; one sentence for the LLM when None.
        is_failure: Whether a result means that the tool failed (many tools return error texts).
        on_denied: Too few credits or a limit: ``"fallback"``; ``"tool_failure"``, what ``failure`` makes; or
            ``"stop"``: the run stops with the error.
        failure: Makes the framework's own failed result of a sentence and a code.
        service: Who books; the default service when None.
        provider: Of a media tool, the provider that it calls ("fal", "replicate" …): its faults are understood (see
            ``media_tool``). When the operator's account there is exhausted or locked, the tool falls back too, and
            later calls do not ask the provider until it is probed.
        account: Your label of the provider's account, when you have several.

    Raises:
        ConfigurationError: an unknown ``on_denied``, or arguments that do not fit together.
        InvalidInputError: a text or amount that cannot be used.
    """

    def __init__(
        self,
        action: str,
        *,
        agent_type: str,
        cost: Amount | Callable[..., Amount] | None = None,
        dimensions: Mapping[str, Any] | Callable[..., Mapping[str, Any] | None] | None = None,
        fallback: Callable[[DryRunResult], Any] | None = None,
        is_failure: Callable[[Any], bool] | None = None,
        on_denied: OnDenied = "fallback",
        failure: Callable[[str, str], Any] = lambda sentence, _code: sentence,
        service: CreditService | SyncCreditService | None = None,
        provider: str | None = None,
        account: str = "",
    ) -> None:
        if on_denied not in get_args(OnDenied):
            raise ConfigurationError(f"on_denied must be one of {', '.join(get_args(OnDenied))}, not {on_denied!r}.")
        self.action = action
        self.fallback = fallback
        self.is_failure = is_failure
        self.on_denied = on_denied
        self.failure = failure
        price: dict[str, Any] = {"estimate": cost, "dimensions": dimensions, "service": service}
        self._charge: Any = functools.partial(consume_credits, agent_type, action, **price)
        if provider is not None:
            self._charge = functools.partial(
                media_tool, action, agent_type=agent_type, provider=provider, account=account, **price
            )
        self._instead: deque[Any] = deque(maxlen=64)
        self._charge()(lambda: None)  # checks them now

    def wrap(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function of the tool of that name, charged; of the same colour."""

        async def charged_coroutine(*args: Any, **kwargs: Any) -> Any:
            with _Attempt(self, function, name) as attempt:
                attempt.result = await attempt.charged(attempt.coroutine)(*args, **kwargs)
            return attempt.result

        def charged(*args: Any, **kwargs: Any) -> Any:
            with _Attempt(self, function, name) as attempt:
                attempt.result = attempt.charged(attempt.function)(*args, **kwargs)
            return attempt.result

        return charged_coroutine if inspect.iscoroutinefunction(function) else charged

    def may_cache(self, result: object) -> bool:
        """Whether this is a result, and not what came back (lately) instead of one."""
        return not any(result is entry for entry in self._instead)

    def decorate(self, body: Callable[..., Any], tool: Callable[..., Any], instead: Callable[..., Any]) -> Any:
        """The body, charged, under the tool's own signature, so that a plan names the tool's arguments."""
        context = current_context()
        stops = self.on_denied == "stop" and not (context is not None and context.dry_run)
        signed: Any = functools.partial(body)
        signed.__signature__ = inspect.signature(tool)
        return self._charge(on_exhausted="raise" if stops else instead, metadata=current_place().metadata)(signed)

    def came_instead(self, result: Any) -> Any:
        """Remember that this is no result."""
        self._instead.append(result)
        return result


class _Attempt:
    """One call of a metered tool; as a block it turns a refusal into what the framework gets."""

    def __init__(self, meter: ToolMeter, tool: Callable[..., Any], name: str) -> None:
        self.meter, self.tool, self.name = meter, tool, name
        self.run = current_run()
        self._at_tool = at_place(tool=name)
        #: Whether the tool (or its fallback) began: what is raised from then on is its own.
        self.has_begun = False
        self.result: Any = None

    def __enter__(self) -> Self:
        if self.run is not None:
            self.run.check()
        self._at_tool.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> bool:
        place = current_place()
        self._at_tool.__exit__(None, None, None)
        if isinstance(error, _Undone):
            self.result = self.meter.came_instead(error.args[0])
            return True
        is_refusal = not self.has_begun or isinstance(error, ProviderUnavailableError)
        if not isinstance(error, CreditsError) or not is_refusal or self.run is None:
            return False
        # Nobody can pay, or the store is away: the run stops at the next step, which is right after this.
        if isinstance(error, InsufficientCreditsError | CreditLimitExceededError):
            self.run.refused(error, action=self.meter.action, place=place)
        self.run.deny(error)
        self.result = self.meter.failure(_sentence(self.name, error.reason), error.reason)
        return True

    def charged(self, body: Callable[..., Any]) -> Callable[..., Any]:
        return cast(Callable[..., Any], self.meter.decorate(body, self.tool, self.instead))

    def function(self, *args: Any, **kwargs: Any) -> Any:
        self.has_begun = True
        return self.checked(self.tool(*args, **kwargs))

    async def coroutine(self, *args: Any, **kwargs: Any) -> Any:
        self.has_begun = True
        return self.checked(await self.tool(*args, **kwargs))

    def checked(self, result: Any) -> Any:
        if self.meter.is_failure is not None and self.meter.is_failure(result):
            raise _Undone(result)
        return result

    def instead(self, plan: DryRunResult) -> Any:
        """Nothing runs: a dry run, or not enough credits."""
        self.has_begun = True
        denied = self.meter.on_denied == "tool_failure" and plan.reason != "dry_run"
        if self.run is not None:
            self.run.record("denied" if denied else "dry_run", plan.amount, action=plan.action, reason=plan.reason)
        sentence = _sentence(self.name, plan.reason, f" ({plan.amount:f} credits)")
        if denied:
            return self.meter.failure(sentence, plan.reason)
        return self.meter.came_instead(sentence if self.meter.fallback is None else self.meter.fallback(plan))


def _sentence(name: str, reason: str, price: str = "") -> str:
    why = "there are not enough credits for it"
    if reason.startswith("limit"):
        why = "a credit limit is reached"
    elif reason.startswith("provider"):
        why = "its provider cannot be used at the moment"
    elif reason == "dry_run":
        why = "this is a dry run"
    return f"{name} was not run because {why}{price}: go on without it, and say in your answer what is missing."
