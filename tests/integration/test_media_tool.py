"""Media tools: charged when they succeed, a plan when nothing can be generated, the caller's own error otherwise."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from agentcredits import (
    ConfigurationError,
    CreditLimitExceededError,
    CreditService,
    DryRunNotSupportedError,
    InsufficientCreditsError,
    MediaPlan,
    ProviderUnavailableError,
    RequestContext,
    Settings,
    StoreUnavailableError,
    SyncCreditService,
    UnpricedActionError,
    consume_credits,
    media_tool,
    use_context,
)
from agentcredits.media import ChargePolicy, close_breaker, load_charge_policy, open_breakers, wrap
from agentcredits.service import core_of
from agentcredits.testing import FakeClock

KEY = "sk-live-1234567890abcdef1234567890"
LINK = "fal.ai/dashboard/billing"
ACME = RequestContext("acme")
PRICE = 10


class FakeProviderError(Exception):
    """What a client raises for an HTTP answer, as far as anybody looks at it."""

    def __init__(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        super().__init__(json.dumps(body))
        self.status_code = status
        self.body = body
        self.headers = headers or {}


class FakeTimeoutError(TimeoutError):
    """A client that stopped waiting for a job."""

    def __init__(self, request_id: str) -> None:
        super().__init__("timed out")
        self.request_id = request_id


def exhausted() -> Exception:
    return FakeProviderError(
        403, {"detail": f"User is locked. Reason: Exhausted balance. Top up your balance at {LINK}. key={KEY}"}
    )


def locked() -> Exception:
    return FakeProviderError(403, {"detail": "User is locked. Reason: Admin lock. Please contact support@fal.ai"})


def quota() -> Exception:
    return FakeProviderError(429, {"detail": "Daily limit reached"}, {"retry-after": "3600"})


def limited() -> Exception:
    return FakeProviderError(429, {"detail": "Too many", "error_type": "concurrent_requests_limit"})


def refused() -> Exception:
    return FakeProviderError(422, {"detail": [{"msg": "content policy", "type": "content_policy_violation"}]})


def trouble() -> Exception:
    return FakeProviderError(503, {"detail": "Service unavailable"})


class FakeProvider:
    """Raises or returns what it is told, and counts the calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.answers: list[object] = []

    def generate(self, prompt: str, seconds: int = 5, api_key: str = KEY, client: object = None) -> object:
        self.calls.append(prompt)
        answer = self.answers.pop(0) if self.answers else {"url": "https://files/1.png"}
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.fixture
def ledger(database_url: str, clock: FakeClock) -> Iterator[SyncCreditService]:
    with SyncCreditService(database_url, clock=clock) as service:
        service.grant_credits("acme", 100)
        service.set_cost("ImageAgent", "generate_image", PRICE)
        yield service


@pytest.fixture
def provider() -> FakeProvider:
    return FakeProvider()


Tool = Callable[..., Any]


@pytest.fixture(params=["function", "coroutine"])
def make(request: pytest.FixtureRequest, ledger: SyncCreditService, provider: FakeProvider) -> Callable[..., Tool]:
    """Makes a media tool of either colour, that is called like a function."""

    def made(**options: Any) -> Tool:
        options = {"provider": "fal", "agent_type": "ImageAgent", "service": ledger} | options
        if request.param == "function":
            return media_tool("generate_image", **options)(provider.generate)

        async def generate(prompt: str, seconds: int = 5, api_key: str = KEY, client: object = None) -> object:
            await asyncio.sleep(0)
            return provider.generate(prompt, seconds, api_key, client)

        tool = media_tool("generate_image", **options)(generate)
        return lambda *args, **kwargs: asyncio.run(tool(*args, **kwargs))

    return made


def spent(ledger: SyncCreditService) -> Decimal:
    balance = ledger.get_balance("acme")
    assert balance.reserved == 0
    assert ledger.verify().problems == ()
    return balance.spent


# -- what happens to the credits -----------------------------------------------------------------------------------


def test_a_success_is_charged(make: Callable[..., Tool], ledger: SyncCreditService) -> None:
    """The result comes back as it is; the row says which provider and model."""
    tool = make(model="flux", metadata={"campaign": "spring"})
    with use_context(ACME):
        assert tool("a cat") == {"url": "https://files/1.png"}
    assert spent(ledger) == PRICE
    (row, *_) = ledger.list_transactions("acme", type="debit")
    assert row.metadata == {"provider": "fal", "model": "flux", "campaign": "spring"}


def test_the_cost_that_the_provider_reports_is_charged(
    make: Callable[..., Tool], ledger: SyncCreditService, provider: FakeProvider
) -> None:
    """BFL says what a call cost."""
    provider.answers = [{"id": "1", "cost": 4}]
    with use_context(ACME):
        make(actual=lambda result: result["cost"])("a cat")
    assert spent(ledger) == 4


@pytest.mark.parametrize(
    ("error", "reason", "category"),
    [
        (exhausted, "provider_exhausted", "credits_exhausted"),
        (locked, "provider_locked", "account_locked"),
        (quota, "provider_quota", "quota_window"),
    ],
)
def test_an_unusable_account_gives_a_plan_and_is_not_asked_again(
    make: Callable[..., Tool],
    ledger: SyncCreditService,
    provider: FakeProvider,
    clock: FakeClock,
    error: Callable[[], Exception],
    reason: str,
    category: str,
) -> None:
    """Nothing is charged; the next call does not reach the provider; the probe does, and closes."""
    provider.answers = [error()]
    tool = make()
    with use_context(ACME):
        first = tool("a cat")
        second = tool("a dog")
    assert isinstance(first, MediaPlan)
    assert isinstance(second, MediaPlan)
    assert (first.reason, second.reason, first.amount, first.prompt) == (reason, reason, PRICE, "a cat")
    assert not first
    assert (provider.calls, spent(ledger)) == (["a cat"], 0)
    (opened,) = open_breakers(ledger)
    assert (opened.provider, opened.category) == ("fal", category)
    assert second.retry_at == opened.probe_at
    clock.set(opened.probe_at)
    with use_context(ACME):
        assert tool("a bird")
    assert (provider.calls, spent(ledger), open_breakers(ledger)) == (["a cat", "a bird"], PRICE, ())


@pytest.mark.parametrize("error", [limited, refused, trouble, lambda: ValueError("a bug of ours")])
def test_other_failures_reach_the_caller_untouched(
    make: Callable[..., Tool], ledger: SyncCreditService, provider: FakeProvider, error: Callable[[], Exception]
) -> None:
    """The very same exception; the hold is given back and no breaker opens."""
    raised = error()
    provider.answers = [raised]
    tool = make()
    with use_context(ACME):
        with pytest.raises(type(raised)) as caught:
            tool("a cat")
        assert caught.value is raised
        assert not hasattr(raised, "__notes__")
        assert tool("a dog")
    assert (spent(ledger), open_breakers(ledger), len(provider.calls)) == (PRICE, (), 2)


def test_a_failure_inside_an_answer_counts_as_one(
    make: Callable[..., Tool], ledger: SyncCreditService, provider: FakeProvider
) -> None:
    """MiniMax answers 200 and says in the body that the balance is used up, or that the content was refused."""
    poor = {"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}
    rude = {"base_resp": {"status_code": 1026, "status_msg": "input new_sensitive"}}
    provider.answers = [rude, poor]
    tool = make(provider="minimax")
    with use_context(ACME):
        assert tool("a cat") is rude
        plan = tool("a cat")
    assert isinstance(plan, MediaPlan)
    assert plan.reason == "provider_exhausted"
    assert spent(ledger) == 0


def test_a_failure_that_the_provider_charges_for_is_charged(
    make: Callable[..., Tool], ledger: SyncCreditService, provider: FakeProvider
) -> None:
    """Runway takes the price of a moderated generation; the caller gets the error all the same."""
    error = FakeProviderError(
        400, {"failureCode": "SAFETY.INPUT.TEXT", "failure": "Content moderation", "status": "FAILED"}
    )
    provider.answers = [error, error]
    tool = make(provider="runway")
    with use_context(ACME), pytest.raises(FakeProviderError):
        tool("a cat")
    assert spent(ledger) == PRICE
    with use_context(ACME), pytest.raises(FakeProviderError):
        make(provider="runway", policy=ChargePolicy())("a cat")
    assert spent(ledger) == PRICE


def test_too_few_credits_of_the_customer_are_no_matter_of_the_provider(
    make: Callable[..., Tool], ledger: SyncCreditService, provider: FakeProvider
) -> None:
    """The plan says so, the provider is not called, and no breaker opens, also when the body runs out of credits."""
    ledger.set_cost("ImageAgent", "generate_image", 1000)
    with use_context(ACME):
        plan = make()("a cat")
    assert (plan.reason, provider.calls) == ("insufficient_credits", [])
    assert "add credits" in plan.what_to_do
    ledger.set_cost("ImageAgent", "generate_image", 1)
    provider.answers = [InsufficientCreditsError("organization acme has insufficient credits: top up your balance")]
    with use_context(ACME), pytest.raises(InsufficientCreditsError):
        make()("a cat")
    assert (spent(ledger), open_breakers(ledger)) == (0, ())


def test_a_probe_that_cannot_be_paid_leaves_the_turn_to_others(
    make: Callable[..., Tool], ledger: SyncCreditService, provider: FakeProvider, clock: FakeClock
) -> None:
    """The one caller who was let through had no credits: the next one probes."""
    provider.answers = [exhausted()]
    tool = make()
    with use_context(ACME):
        tool("a cat")
        clock.set(open_breakers(ledger)[0].probe_at)
        ledger.grant_credits("globex", 1)
        with use_context(RequestContext("globex")):
            assert tool("a dog").reason == "insufficient_credits"
            with pytest.raises(InsufficientCreditsError):
                make(on_exhausted="raise")("a dog")
        assert tool("a bird") == {"url": "https://files/1.png"}


def test_a_cancelled_call_gives_back_and_opens_nothing(ledger: SyncCreditService) -> None:
    """Nobody knows how it would have ended."""

    @media_tool("generate_image", agent_type="ImageAgent", provider="fal", service=ledger)
    async def generate(prompt: str) -> str:
        started.set()
        await asyncio.Event().wait()
        return "never"

    async def cancelled() -> None:
        task = asyncio.ensure_future(generate("a cat"))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    started = asyncio.Event()
    with use_context(ACME):
        asyncio.run(cancelled())
    assert (spent(ledger), open_breakers(ledger)) == (0, ())


def test_a_job_that_may_still_succeed_keeps_its_hold(
    make: Callable[..., Tool], ledger: SyncCreditService, provider: FakeProvider
) -> None:
    """The time-out is raised, and says how to get on; the hold waits with the provider's id of the job."""
    provider.answers = [FakeTimeoutError("req-1")]
    with use_context(ACME), pytest.raises(FakeTimeoutError) as caught:
        make()("a cat")
    (hold,) = ledger.list_reservations("acme", states=("unknown",))
    assert (hold.provider, hold.provider_reference, hold.amount) == ("fal", "req-1", PRICE)
    assert "resolve_unknown" in caught.value.__notes__[0]
    assert "req-1" in caught.value.__notes__[0]
    assert core_of(ledger).runner._keeper.live_count == 0


# -- who may call --------------------------------------------------------------------------------------------------


def test_a_dry_run_calls_nobody(make: Callable[..., Tool], ledger: SyncCreditService, provider: FakeProvider) -> None:
    """A plan with everything that is known before."""
    with use_context(RequestContext("acme", dry_run=True)):
        plan = make(model="flux", dimensions=lambda prompt, seconds=5, **_: {"seconds": seconds})("a cat", seconds=7)
        with pytest.raises(DryRunNotSupportedError):
            make(on_exhausted="raise")("a cat")
    assert isinstance(plan, MediaPlan)
    assert (plan.reason, plan.model, plan.dimensions) == ("dry_run", "flux", {"model": "flux", "seconds": 7})
    assert plan.parameters == {"prompt": "a cat", "seconds": 7, "api_key": "[redacted]", "client": None}
    assert (provider.calls, ledger.list_reservations("acme")) == ([], ())


def test_above_the_threshold_somebody_confirms(
    make: Callable[..., Tool], ledger: SyncCreditService, provider: FakeProvider
) -> None:
    """Exactly at it nobody is asked; without anybody to ask it is a plan."""
    asked: list[MediaPlan] = []
    with use_context(ACME):
        assert make(threshold=PRICE, confirm=asked.append)("at it")
        assert asked == []
        no = make(threshold="9.999999", confirm=asked.append)("no")
        assert make(threshold="9.999999", confirm=lambda plan: plan.amount == PRICE)("yes")
        alone = make(threshold=1)("nobody")
        with pytest.raises(CreditLimitExceededError) as caught:
            make(threshold=1, on_exhausted="raise")("nobody")
    assert [plan.reason for plan in (no, alone, asked[0])] == ["over_threshold"] * 3
    assert caught.value.reason == "over_threshold"
    assert (provider.calls, spent(ledger)) == (["at it", "yes"], 2 * PRICE)


def test_an_answer_that_must_be_awaited_is_no_yes(ledger: SyncCreditService, provider: FakeProvider) -> None:
    """A coroutine is true in Python; nobody has confirmed anything."""

    async def confirm(plan: MediaPlan) -> bool:
        return False

    tool = media_tool(
        "generate_image",
        agent_type="ImageAgent",
        provider="fal",
        service=ledger,
        threshold=1,
        confirm=functools.partial(lambda plan: confirm(plan)),  # noqa: PLW0108  # a coroutine in disguise
    )(provider.generate)
    with use_context(ACME), pytest.raises(ConfigurationError, match="awaitable"):
        tool("a cat")
    assert (provider.calls, spent(ledger)) == ([], 0)


def test_async_functions_may_be_asked_in_async_tools(ledger: SyncCreditService, provider: FakeProvider) -> None:
    """confirm, enhance, balance_probe and the fallback are awaited."""

    async def no(plan: MediaPlan) -> bool:
        return False

    async def better(prompt: str) -> str:
        return f"{prompt}, better"

    async def instead(plan: MediaPlan) -> str:
        return f"{plan.reason}: {plan.enhanced_prompt}"

    async def generate(prompt: str) -> object:
        return provider.generate(prompt)

    tool = media_tool(
        "generate_image",
        agent_type="ImageAgent",
        provider="fal",
        service=ledger,
        threshold=1,
        confirm=no,
        enhance=better,
        on_exhausted=instead,
    )(generate)
    with use_context(ACME):
        assert asyncio.run(tool("a cat")) == "over_threshold: a cat, better"


def test_a_positive_balance_lets_one_call_try(
    make: Callable[..., Tool], ledger: SyncCreditService, provider: FakeProvider, clock: FakeClock
) -> None:
    """It is asked once a minute while the account is unusable; what it raises counts as nothing."""
    balances: list[Any] = [0, RuntimeError("away"), Decimal("3.5")]
    asked: list[str] = []

    def probe() -> Any:
        asked.append("balance")
        balance = balances.pop(0)
        if isinstance(balance, Exception):
            raise balance
        return balance

    provider.answers = [exhausted()]
    tool = make(balance_probe=probe)
    with use_context(ACME):
        assert not tool("1")
        assert [bool(tool("2")), bool(tool("2"))] == [False, False]
        assert len(asked) == 1
        clock.advance(timedelta(minutes=1))
        assert not tool("3")
        clock.advance(timedelta(minutes=1))
        assert tool("4")
    assert (provider.calls, len(asked), open_breakers(ledger)) == (["1", "4"], 3, ())


def test_an_operator_opens_the_way_again(
    make: Callable[..., Tool], ledger: SyncCreditService, provider: FakeProvider, database_url: str, clock: FakeClock
) -> None:
    """Topped up: the next call reaches the provider, without waiting for the probe; the async face can do it too."""
    provider.answers = [exhausted(), exhausted()]
    tool = make()

    async def close() -> list[bool]:
        async with CreditService(database_url, clock=clock) as service:
            assert len(await open_breakers(service)) == 1
            return [await close_breaker(service, "fal"), await close_breaker(service, "fal")]

    with use_context(ACME):
        assert not tool("1")
        assert close_breaker(ledger, "fal") is True
        assert not tool("2")
        assert asyncio.run(close()) == [True, False]
        clock.advance(timedelta(seconds=1))
        assert tool("3")
    assert provider.calls == ["1", "2", "3"]


def test_an_account_of_its_own_has_a_breaker_of_its_own(make: Callable[..., Tool], provider: FakeProvider) -> None:
    """One empty account does not stop the other."""
    provider.answers = [exhausted()]
    with use_context(ACME):
        assert not make(account="first")("a cat")
        assert make(account="second")("a cat")
        assert not make(account="first")("a cat")
    assert len(provider.calls) == 2


def test_when_the_ledger_is_away_the_provider_is_not_called(
    make: Callable[..., Tool], ledger: SyncCreditService, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the call it fails closed; after it, the caller keeps the result."""

    def away(*args: object, **kwargs: object) -> None:
        raise StoreUnavailableError

    with monkeypatch.context() as patch, use_context(ACME):
        patch.setattr(core_of(ledger).runner, "read", away)
        with pytest.raises(StoreUnavailableError):
            make()("a cat")
    assert provider.calls == []
    provider.answers = [exhausted()]
    with monkeypatch.context() as patch, use_context(ACME):
        patch.setattr(core_of(ledger).runner, "write", away)
        assert make()("a cat").reason == "provider_exhausted"
    assert spent(ledger) == 0


# -- plans, errors, fallbacks --------------------------------------------------------------------------------------


def test_two_wallets_are_kept_apart(
    make: Callable[..., Tool], ledger: SyncCreditService, provider: FakeProvider, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing that a customer sees has the supplier's link, its words or a key; the operator's log has the link."""
    caplog.set_level(logging.INFO)
    provider.answers = [exhausted(), exhausted()]
    shown: list[object] = []
    with use_context(ACME):
        for account in ("a", "b"):
            plan = make(account=account, metadata={"note": f"api_key={KEY}"})("a cat", api_key=KEY)
            shown += [str(plan), plan.as_dict(), plan]
        for account in ("a", "c"):
            provider.answers = [exhausted()]
            with pytest.raises(ProviderUnavailableError) as caught:
                make(account=account, on_exhausted="raise")("a cat", api_key=KEY)
            shown += [str(caught.value), caught.value.as_dict()]
        make(account="d", metadata={"note": f"api_key={KEY}", "nested": {"token": KEY}})("a cat")
    shown += [ledger.list_reservations("acme"), ledger.list_transactions("acme").items]
    text = repr(shown)
    for secret in (KEY, "fal.ai", "Exhausted balance", "Top up"):
        assert secret not in text
    assert "cannot be used at the moment" in text
    assert LINK in caplog.text
    assert KEY not in caplog.text
    assert KEY not in repr(open_breakers(ledger))


def test_the_error_says_what_is_the_matter_and_keeps_its_cause(
    make: Callable[..., Tool], ledger: SyncCreditService, provider: FakeProvider
) -> None:
    """503; the customer's sentence; the client's own error behind it, where there was a call."""
    raised = exhausted()
    provider.answers = [raised]
    tool = make(on_exhausted="raise")
    errors = []
    with use_context(ACME):
        for _ in range(2):
            with pytest.raises(ProviderUnavailableError) as caught:
                tool("a cat")
            errors.append(caught.value)
    assert [error.__cause__ for error in errors] == [raised, None]
    for error in errors:
        assert (error.code, error.http_status) == ("provider_unavailable", 503)
        assert (error.provider, error.category, error.reason) == ("fal", "credits_exhausted", "provider_exhausted")
    assert (len(provider.calls), spent(ledger)) == (1, 0)


def test_a_plan_reads_as_a_sentence(make: Callable[..., Tool], provider: FakeProvider) -> None:
    """Fit to be read by an LLM; falsy, so that it is not taken for a result."""
    provider.answers = [exhausted()]
    with use_context(ACME):
        plan = make()("a cat")
    assert str(plan) == (
        "generate_image was not performed, nothing was generated. It would cost 10 credits."
        " The provider's account cannot be used at the moment; nothing was charged. Try again later."
    )
    assert not plan


def test_the_enhancer_is_only_for_plans_and_free_to_fail(
    make: Callable[..., Tool], ledger: SyncCreditService, provider: FakeProvider
) -> None:
    """It is not asked when the work is done, and what it raises costs nothing."""
    asked: list[str] = []

    def enhance(prompt: str) -> str:
        asked.append(prompt)
        if prompt == "bad":
            raise RuntimeError("away")
        return f"{prompt}, golden hour"

    provider.answers = [{"url": "1"}, exhausted()]
    tool = make(enhance=enhance)
    with use_context(ACME):
        assert tool("a cat")
        assert asked == []
        plans = [tool("a cat"), tool("bad")]
    assert [plan.enhanced_prompt for plan in plans] == ["a cat, golden hour", None]
    assert [plan.prompt for plan in plans] == ["a cat", "bad"]
    assert spent(ledger) == PRICE


def test_a_fallback_may_give_something_else(make: Callable[..., Tool], provider: FakeProvider) -> None:
    """For the first failure and for the open breaker alike, None included."""
    provider.answers = [exhausted(), exhausted()]
    with use_context(ACME):
        for _ in range(2):
            assert make(on_exhausted=lambda plan: plan.reason)("a cat") == "provider_exhausted"
            assert make(account="second", on_exhausted=lambda plan: None)("a cat") is None
    assert len(provider.calls) == 2


# -- what can be a media tool --------------------------------------------------------------------------------------


def test_generators_are_refused(ledger: SyncCreditService) -> None:
    """They are charged by what they return, and return nothing."""

    def generator(prompt: str) -> Iterator[int]:
        yield 1

    async def async_generator(prompt: str) -> AsyncIterator[int]:
        yield 1

    class Client:
        def convert(self, prompt: str) -> Iterator[int]:
            yield 1

    for function in (generator, async_generator, functools.partial(generator), Client().convert):
        with pytest.raises(ConfigurationError, match=r"generator|pieces"):
            wrap(function, "generate_image", agent_type="ImageAgent", provider="fal")


@pytest.mark.parametrize(
    "options",
    [
        {"provider": ""},
        {"threshold": -1},
        {"threshold": float("nan")},
        {"confirm": print},
        {"threshold": 1, "confirm": "yes"},
        {"enhance": "better"},
        {"balance_probe": 5},
        {"account": KEY},
        {"on_exhausted": "stop"},
        {"agent_type": None},
        {"actual": 5},
        {"prompt": ""},
    ],
)
def test_arguments_that_make_no_sense_are_refused_at_once(options: dict[str, Any], provider: FakeProvider) -> None:
    """Not at the first call."""
    with pytest.raises((ConfigurationError, ValueError)):
        wrap(provider.generate, "generate_image", **({"agent_type": "ImageAgent", "provider": "fal"} | options))


def test_async_helpers_of_plain_functions_are_refused(provider: FakeProvider) -> None:
    """Nobody would wait for them."""

    async def helper(*args: object) -> bool:
        return True

    for options in ({"threshold": 1, "confirm": helper}, {"enhance": helper}, {"balance_probe": helper}):
        with pytest.raises(ConfigurationError, match="async"):
            wrap(provider.generate, "generate_image", agent_type="ImageAgent", provider="fal", **options)


def test_a_wrapped_method_keeps_its_signature_and_finds_its_prompt(
    ledger: SyncCreditService, provider: FakeProvider
) -> None:
    """Positional, by name, or inside an argument as clients of fal and Replicate take it."""

    def subscribe(application: str, arguments: dict[str, object]) -> object:
        return provider.generate(str(arguments["prompt"]))

    options: dict[str, Any] = {"agent_type": "ImageAgent", "provider": "fal", "service": ledger}
    generate = wrap(provider.generate, "generate_image", **options)
    assert inspect.signature(generate) == inspect.signature(provider.generate)
    assert generate.__name__ == "generate"
    with use_context(RequestContext("acme", dry_run=True)):
        plans = [
            generate("a cat"),
            generate(prompt="a cat"),
            wrap(subscribe, "generate_image", **options)("fal-ai/flux", arguments={"prompt": "a cat"}),
        ]
    assert [plan.prompt for plan in plans] == ["a cat"] * 3  # type: ignore[attr-defined]


def test_a_plain_function_that_gives_a_coroutine_is_not_charged(ledger: SyncCreditService) -> None:
    """It has not run yet: charging it would be charging for nothing."""

    async def later() -> str:
        return "done"

    tool = wrap(lambda prompt: later(), "generate_image", agent_type="ImageAgent", provider="fal", service=ledger)
    with use_context(ACME), pytest.raises(ConfigurationError, match="awaitable"):
        tool("a cat")
    assert spent(ledger) == 0


def test_an_unpriced_tool_does_not_run(provider: FakeProvider, ledger: SyncCreditService) -> None:
    """As everywhere."""
    tool = wrap(provider.generate, "unheard_of", agent_type="ImageAgent", provider="fal", service=ledger)
    with use_context(ACME), pytest.raises(UnpricedActionError):
        tool("a cat")
    assert provider.calls == []


def test_methods_and_the_async_face_work(database_url: str, provider: FakeProvider) -> None:
    """agent_type from the class; charged through the coroutine service."""

    class ImageAgent:
        @media_tool("generate_image", provider="fal")
        async def generate(self, prompt: str) -> object:
            return provider.generate(prompt)

    async def main() -> tuple[object, Decimal]:
        async with CreditService(database_url) as service:
            await service.grant_credits("acme", 100)
            await service.set_cost("ImageAgent", "generate_image", PRICE)
            tool = media_tool("generate_image", provider="fal", service=service)(ImageAgent.generate.__wrapped__)  # type: ignore[attr-defined]
            with use_context(ACME):
                result = await tool(ImageAgent(), "a cat")
            return result, (await service.get_balance("acme")).spent

    assert asyncio.run(main()) == ({"url": "https://files/1.png"}, PRICE)


def test_a_charge_policy_is_read_strictly() -> None:
    """The caller's entries come first; what is not understood is refused with its place."""
    policy = load_charge_policy({"charges": [{"provider": "runway", "charged": False, "rule": "runway.safety"}]})
    assert policy.rules[0].charged is False
    assert all(rule.source and rule.as_of for rule in load_charge_policy().rules)
    for entry in (
        {"provider": "fal"},
        {"charged": True},
        {"provider": "fal", "charged": 1},
        {"provider": "fal", "charged": True, "if": 1},
        5,
    ):
        with pytest.raises(ConfigurationError, match="entry 1"):
            load_charge_policy({"charges": [entry]})


def test_consume_credits_is_as_it_was(ledger: SyncCreditService) -> None:
    """The hook in the machinery changes nothing for others: results, None and errors pass through."""

    @consume_credits("ImageAgent", "generate_image", service=ledger)
    def nothing(fail: bool = False) -> None:
        if fail:
            raise exhausted()

    with use_context(ACME):
        assert nothing() is None  # type: ignore[func-returns-value]
        with pytest.raises(FakeProviderError):
            nothing(fail=True)
    assert (spent(ledger), open_breakers(ledger)) == (PRICE, ())


def test_the_settings_rules_are_asked_first(database_url: str, tmp_path: Any) -> None:
    """An operator's own words for an empty account, from the file that the setting names."""
    rules = tmp_path / "ours.toml"
    rules.write_text(
        '[[rules]]\nid = "house-empty"\ncategory = "credits_exhausted"\ntext = ["cupboard is bare"]\n', encoding="utf-8"
    )
    asked: list[str] = []
    with SyncCreditService(database_url, settings=Settings(fault_rules=rules)) as service:
        service.grant_credits("acme", 100)

        @media_tool("draw", agent_type="Painter", provider="house", estimate=PRICE, service=service)
        def draw(prompt: str) -> str:
            asked.append(prompt)
            raise FakeProviderError(400, {"detail": "The cupboard is bare."})

        with use_context(ACME):
            plans = [draw("a"), draw("b")]
        assert [plan.reason for plan in plans if isinstance(plan, MediaPlan)] == ["provider_exhausted"] * 2
        assert asked == ["a"]
        assert service.get_balance("acme").available == 100
        (opened,) = open_breakers(service)
        assert opened.rule == "house-empty"
