"""What can be a media tool: functions, methods and options that are taken, those that are refused, its settings."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any

import pytest

from agentcredits import (
    ConfigurationError,
    CreditService,
    MediaPlan,
    RequestContext,
    Settings,
    SyncCreditService,
    UnpricedActionError,
    consume_credits,
    media_tool,
    use_context,
)
from agentcredits.media import load_charge_policy, open_breakers, wrap
from tests.integration.media_fakes import ACME, KEY, PRICE, FakeProvider, FakeProviderError, exhausted, spent


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
