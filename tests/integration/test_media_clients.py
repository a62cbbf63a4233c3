"""The providers' own clients as media tools, against a loopback server that answers as the providers do."""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from typing import Any

import pytest

from agentcredits import MediaPlan, RequestContext, SyncCreditService, use_context
from agentcredits.media import media_tool, resolve_unknown, wrap
from agentcredits.testing import FakeClock
from tests.integration.media_loopback import Loopback

PRICE = 10
KEY = "sk-test-1234567890abcdef1234567890"
ACME = RequestContext("acme")


def client(name: str) -> Any:
    """A client's module; missing, the test is skipped, and fails where all must be there."""
    try:
        return importlib.import_module(name)
    except ImportError:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is not installed: install the dev extra")
        pytest.skip(f"{name} is not installed: this client is NOT tested")


@pytest.fixture
def server() -> Iterator[Loopback]:
    with Loopback() as made:
        yield made


@pytest.fixture
def ledger(sqlite_url: str, clock: FakeClock) -> Iterator[SyncCreditService]:
    with SyncCreditService(sqlite_url, clock=clock) as service:
        service.grant_credits("acme", 100)
        service.set_cost("ImageAgent", "generate_image", PRICE)
        yield service


class Bench:
    """What a client's tool is built with."""

    def __init__(self, server: Loopback, service: SyncCreditService, patch: pytest.MonkeyPatch, end: ExitStack) -> None:
        self.server, self.patch, self.end = server, patch, end
        self.options: dict[str, Any] = {"agent_type": "ImageAgent", "service": service}

    def fal(self) -> Any:
        """The module, sent to the loopback server; it tries ten times, here without waiting."""
        module = client("fal_client.client")
        self.patch.setattr(module, "QUEUE_URL_FORMAT", self.server.url("fal") + "/")
        self.patch.setattr(module, "_get_retry_delay", lambda *args: 0)
        return module


def fal(bench: Bench) -> Callable[..., Any]:
    """``subscribe``: submit, poll, fetch."""
    made = bench.fal().SyncClient(key=KEY)
    bench.end.callback(made._client.close)
    tool = wrap(made.subscribe, "generate_image", provider="fal", **bench.options)
    return lambda **options: tool("fal-ai/flux/dev", arguments={"prompt": "a cat"}, **options)


def async_fal(bench: Bench) -> Callable[..., Any]:
    """The same with coroutines."""
    module = bench.fal()

    async def call() -> Any:
        made = module.AsyncClient(key=KEY)
        tool = wrap(made.subscribe, "generate_image", provider="fal", **bench.options)
        async with await made._client:
            return await tool("fal-ai/flux/dev", arguments={"prompt": "a cat"})

    return lambda: asyncio.run(call())


def replicate(bench: Bench) -> Callable[..., Any]:
    """``run`` of a model."""
    made = client("replicate").Client(api_token=KEY, base_url=bench.server.url("replicate"))
    bench.end.callback(made._client.close)
    tool = wrap(made.run, "generate_image", provider="replicate", **bench.options)
    return lambda: tool("acme/painter", input={"prompt": "a cat"})


def openai(bench: Bench) -> Callable[..., Any]:
    """Images; the client itself sends a 429 three times."""
    made = bench.end.enter_context(client("openai").OpenAI(api_key=KEY, base_url=bench.server.url("openai")))
    tool = wrap(made.images.generate, "generate_image", provider="openai", **bench.options)
    return lambda: tool(model="gpt-image-2", prompt="a cat")


def async_openai(bench: Bench) -> Callable[..., Any]:
    """Its async method does not look like one to ``inspect`` until it is unwrapped."""
    module = client("openai")

    async def call() -> Any:
        async with module.AsyncOpenAI(api_key=KEY, base_url=bench.server.url("openai")) as made:
            tool = wrap(made.images.generate, "generate_image", provider="openai", **bench.options)
            return await tool(model="gpt-image-2", prompt="a cat")

    return lambda: asyncio.run(call())


def runway(bench: Bench) -> Callable[..., Any]:
    """Create a task and wait for it, in one tool."""
    polling = client("runwayml.lib.polling")
    bench.patch.setattr(polling, "POLL_TIME", 0)
    bench.patch.setattr(polling, "POLL_JITTER", 0)
    made = bench.end.enter_context(client("runwayml").RunwayML(api_key=KEY, base_url=bench.server.url("runway")))

    @media_tool("generate_image", provider="runway", **bench.options)
    def generate(prompt: str, timeout: float = 60) -> Any:
        task = made.text_to_image.create(model="gen4_image", prompt_text=prompt, ratio="1920:1080")
        return task.wait_for_task_output(timeout=timeout)

    return lambda **options: generate("a cat", **options)


def elevenlabs(bench: Bench) -> Callable[..., Any]:
    """Speech comes in pieces: the tool is the function that collects them."""
    http = bench.end.enter_context(client("httpx").Client())
    made = client("elevenlabs.client").ElevenLabs(
        api_key=KEY, base_url=bench.server.url("elevenlabs"), httpx_client=http
    )

    @media_tool("generate_image", provider="elevenlabs", **bench.options)
    def speak(prompt: str) -> bytes:
        return b"".join(made.text_to_speech.convert("voice", text=prompt))

    return lambda: speak("a cat")


def google(bench: Bench) -> Callable[..., Any]:
    """Images of the Developer API come from ``generate_content``."""
    made = client("google.genai").Client(api_key=KEY, http_options={"base_url": bench.server.url("google")})
    bench.end.callback(made.close)

    @media_tool("generate_image", provider="google", **bench.options)
    def generate(prompt: str) -> Any:
        return made.models.generate_content(model="gemini-2.5-flash-image", contents=prompt)

    return lambda: generate("a cat")


Make = Callable[[Bench], Callable[..., Any]]
CLIENTS: tuple[Make, ...] = (fal, async_fal, replicate, openai, async_openai, runway, elevenlabs, google)


@pytest.fixture
def bench(server: Loopback, ledger: SyncCreditService, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with ExitStack() as end:
        yield Bench(server, ledger, monkeypatch, end)


@pytest.fixture(params=CLIENTS, ids=lambda make: make.__name__)
def call(request: pytest.FixtureRequest, bench: Bench) -> Callable[[], Any]:
    """Calls the media tool that is made of a client."""
    make: Make = request.param
    tool = make(bench)

    def called() -> Any:
        with use_context(ACME):
            return tool()

    return called


def spent(ledger: SyncCreditService) -> Decimal:
    balance = ledger.get_balance("acme")
    assert balance.reserved == 0
    return balance.spent


def test_a_success_is_charged(call: Callable[[], Any], ledger: SyncCreditService, server: Loopback) -> None:
    """What the client returned comes back, whatever it is made of."""
    result = call()
    assert result
    assert not isinstance(result, MediaPlan)
    assert spent(ledger) == PRICE
    assert server.asked


def test_an_empty_account_gives_a_plan_and_is_left_alone(
    call: Callable[[], Any], ledger: SyncCreditService, server: Loopback
) -> None:
    """Every provider says it in its own way; the next call sends no request at all."""
    server.matter = "exhausted"
    first = call()
    assert isinstance(first, MediaPlan)
    assert (first.reason, first.amount, first.prompt) == ("provider_exhausted", PRICE, "a cat")
    sent = len(server.asked)
    assert sent >= 1
    server.matter = None
    second = call()
    assert isinstance(second, MediaPlan)
    assert second.reason == "provider_exhausted"
    assert (len(server.asked) - sent, spent(ledger)) == (0, 0)
    shown = f"{first!r}{first}{second!r}{ledger.list_reservations('acme')}"
    for secret in (KEY, "billing", "http", "credit to run", "ai.studio"):
        assert secret not in shown


@pytest.mark.parametrize("matter", ["limited", "refused", "trouble"])
def test_other_failures_are_the_clients_own_error(
    call: Callable[[], Any], ledger: SyncCreditService, server: Loopback, matter: str
) -> None:
    """Given back, raised as the client raised it, and the next call reaches the provider."""
    server.matter = matter
    with pytest.raises(Exception) as caught:
        call()
    assert not type(caught.value).__module__.startswith("agentcredits")
    assert spent(ledger) == 0
    server.matter = None
    sent = len(server.asked)
    assert call()
    assert len(server.asked) > sent
    assert spent(ledger) == PRICE


@pytest.mark.parametrize(
    ("make", "options", "error", "reference"),
    [
        (fal, {"client_timeout": 0.2}, "FalClientTimeoutError", "job-1"),
        (runway, {"timeout": 0}, "TaskTimeoutError", "17f20503-6c24-4c16-946b-35dbbce2af2f"),
    ],
)
def test_a_job_that_goes_on_keeps_its_hold_until_the_verdict(
    bench: Bench, ledger: SyncCreditService, make: Make, options: dict[str, Any], error: str, reference: str
) -> None:
    """The client's time-out; the webhook that comes later charges."""
    tool = make(bench)
    if make is fal:
        bench.patch.setattr(client("fal_client._headers"), "MIN_REQUEST_TIMEOUT_SECONDS", 0)
    bench.server.job = "running"
    with use_context(ACME), pytest.raises(Exception) as caught:
        tool(**options)
    bench.server.job = "done"
    assert type(caught.value).__name__ == error
    assert ledger.get_balance("acme").reserved == PRICE
    resolve_unknown(ledger, (make.__name__, reference), outcome="succeeded")
    assert spent(ledger) == PRICE
