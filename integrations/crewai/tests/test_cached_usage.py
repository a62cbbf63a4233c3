"""Prompt caching: what a provider read from its cache and wrote there is counted once, each at its own price."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from crew_fakes import ACME, crew, left
from crewai import LLM

from agentcredits import PlannedAction, PriceRule, SyncCreditService, token_dimensions, use_context
from agentcredits.testing import START
from agentcredits_crewai import credited
from agentcredits_crewai.usage import normalised

#: As Anthropic counts: the three parts of the input stand beside each other.
USAGE = {
    "input_tokens": 1_000,
    "cache_read_input_tokens": 6_000,
    "cache_creation_input_tokens": 3_000,
    "output_tokens": 100,
}
PRICES = PriceRule.tokens(
    input=3, output=15, cached_input="0.3", cache_creation_input="3.75", credits_per_usd=1000,
    estimate={"input_tokens": 10_000, "output_tokens": 100},
)  # fmt: skip
#: (1,000 x 3 + 6,000 x 0.3 + 3,000 x 3.75 + 100 x 15) / 10^6 USD x 1,000.
COST = Decimal("17.55")


@pytest.fixture
def anthropic_url() -> Iterator[str]:
    """A server on 127.0.0.1 that answers as Anthropic does."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answer = {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "claude-sonnet-4-5",
                "content": [{"type": "text", "text": "fin"}],
                "stop_reason": "end_turn",
                "stop_sequence": None,
                "usage": USAGE,
            }
            text = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_an_llm_call_is_charged_for_what_it_cached(ledger: SyncCreditService, anthropic_url: str) -> None:
    """Through CrewAI's own Anthropic client."""
    ledger.set_cost("Crew", "llm_call", PRICES)

    def rate(usage: Any) -> Decimal:
        planned = PlannedAction("Crew", "llm_call", dimensions=token_dimensions(usage))
        return ledger.quote("acme", [planned]).total

    model = LLM(model="anthropic/claude-sonnet-4-5", base_url=anthropic_url, api_key="key")
    with use_context(ACME):
        credited(crew(model), llm_action="llm_call", rate=rate, service=ledger).kickoff(inputs={"topic": "tea"})
    (row,) = ledger.list_transactions("acme", type="debit")
    assert -row.amount == COST
    assert row.metadata is not None
    assert row.metadata["usage"]["prompt_tokens"] == 10_000
    assert left(ledger) == int(100 - COST)


@pytest.mark.parametrize(
    "usage",
    [
        USAGE,
        # As CrewAI's Anthropic client tells it.
        {
            "input_tokens": 10_000, "output_tokens": 100, "total_tokens": 10_100, "cached_prompt_tokens": 6_000,
            "cache_creation_tokens": 3_000,
        },
        # Amazon Bedrock, in two spellings.
        {
            "inputTokens": 1_000, "outputTokens": 100, "totalTokens": 10_100, "cacheReadInputTokens": 6_000,
            "cacheWriteInputTokens": 3_000,
        },
        {
            "inputTokens": 1_000, "outputTokens": 100, "cacheReadInputTokenCount": 6_000,
            "cacheWriteInputTokenCount": 3_000,
        },
        # LiteLLM.
        {
            "prompt_tokens": 10_000, "completion_tokens": 100, "total_tokens": 10_100,
            "cache_read_input_tokens": 6_000, "cache_creation_input_tokens": 3_000,
        },
    ],
    ids=["anthropic", "crewai", "bedrock", "bedrock, counts", "litellm"],
)  # fmt: skip
def test_every_provider_s_usage_has_one_price(usage: dict[str, int]) -> None:
    """Whether it counts the cached tokens as a part of its input or beside it; read by CrewAI first, or not."""
    for found in (normalised(usage), normalised(normalised(usage))):
        assert PRICES.evaluate(token_dimensions(found), START).amount == COST
    if "inputTokens" not in usage:
        assert PRICES.evaluate(token_dimensions(usage), START).amount == COST
