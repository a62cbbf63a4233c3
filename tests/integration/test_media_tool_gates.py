"""Media tools before the call: dry runs, thresholds, breakers and what opens them again, a ledger that is away."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from agentcredits import (
    ConfigurationError,
    CreditLimitExceededError,
    CreditService,
    DryRunNotSupportedError,
    MediaPlan,
    RequestContext,
    StoreUnavailableError,
    SyncCreditService,
    media_tool,
    use_context,
)
from agentcredits.media import close_breaker, open_breakers
from agentcredits.service import core_of
from agentcredits.testing import FakeClock
from tests.integration.media_fakes import ACME, PRICE, FakeProvider, Tool, exhausted, spent


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
