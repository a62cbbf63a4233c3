"""Media tools: charged when they succeed, a plan when nothing can be generated, the caller's own error otherwise."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from agentcredits import (
    InsufficientCreditsError,
    MediaPlan,
    ProviderUnavailableError,
    RequestContext,
    SyncCreditService,
    media_tool,
    use_context,
)
from agentcredits.media import ChargePolicy, open_breakers
from agentcredits.service import core_of
from agentcredits.testing import FakeClock
from tests.integration.media_fakes import (
    ACME,
    KEY,
    LINK,
    PRICE,
    FakeProvider,
    FakeProviderError,
    FakeTimeoutError,
    Tool,
    exhausted,
    limited,
    locked,
    quota,
    refused,
    spent,
    trouble,
)

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
