"""Real media clients in a crew, on accounts that are empty: the run ends with a plan instead of an error."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from crew_fakes import ACME, agent, left, llm, use
from crewai import Crew, Task
from crewai.tools import tool

from agentcredits import SyncCreditService, use_context
from agentcredits_crewai import credited, meter

EXAMPLES = Path(__file__).parents[3] / "examples"
OUT_OF_CREDIT = {
    "error": {
        "message": "You have no credits remaining. Add credits to continue using the API at"
        " https://platform.openai.com/settings/organization/billing/.",
        "type": "insufficient_quota",
        "code": "credit_balance_exhausted",
    }
}


class FakeEmptyOpenAI(ThreadingHTTPServer):
    """Answers every request as OpenAI does when the account is empty, and counts them."""

    def __init__(self) -> None:
        self.asked = 0
        super().__init__(("127.0.0.1", 0), self._handler())

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                server.asked += 1
                self.rfile.read(int(self.headers["Content-Length"]))
                text = json.dumps(OUT_OF_CREDIT).encode()
                self.send_response(429)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        return Handler


@pytest.fixture
def openai(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEmptyOpenAI]:
    with FakeEmptyOpenAI() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "no-key")
        yield server
        server.shutdown()


@pytest.fixture
def fal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import fal_client

    spec = importlib.util.spec_from_file_location("fake_fal", EXAMPLES / "fake_fal.py")
    assert spec is not None
    assert spec.loader is not None
    fake_fal = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fake_fal", fake_fal)
    spec.loader.exec_module(fake_fal)
    monkeypatch.setenv("FAL_KEY", "fake-key")
    with fake_fal.FakeFal(balance=1) as server:
        fake_fal.use(fal_client, server)
        yield server


def test_dalle_and_a_fal_tool_on_empty_accounts(
    ledger: SyncCreditService, native: bool, openai: FakeEmptyOpenAI, fal: Any
) -> None:
    """One video is made, then fal is empty; OpenAI always was. Each is asked once more at most; nobody is charged."""
    import fal_client
    from crewai_tools import DallETool

    @tool("video")
    def video(prompt: str) -> str:
        """Makes a video."""
        result = fal_client.submit("fal-ai/video", {"prompt": prompt}).get(interval=0.01)
        return str(result["images"][0]["url"])

    plans: list[Any] = []

    def planned(plan: Any) -> str:
        plans.append(plan)
        return str(plan)

    ledger.set_cost("DallETool", "picture", 5)
    ledger.set_cost("Tool", "video", 20)
    tools = [
        meter(DallETool(), "picture", service=ledger, provider="openai", fallback=planned),
        meter(video, "video", service=ledger, provider="fal", fallback=planned),
    ]
    picture = tools[0].name if native else "Dall-E Tool"
    steps = [
        use("video", '{"prompt": "the sea"}', native=native),
        use("video", '{"prompt": "the shore"}', native=native),
        use("video", '{"prompt": "the tide"}', native=native),
        use(picture if not native else "dall_e_tool", '{"image_description": "a wave"}', native=native),
        use(picture if not native else "dall_e_tool", '{"image_description": "a cliff"}', native=native),
    ]
    model = llm(*steps, native=native)
    who = agent(model, *tools)
    made = Crew(agents=[who], tasks=[Task(description="make a film", expected_output="text", agent=who)], tracing=False)
    paid = credited(made, service=ledger)
    with use_context(ACME):
        assert str(paid.kickoff()) == "fin"
    assert [(plan.action, plan.prompt, plan.amount, plan.reason) for plan in plans] == [
        ("video", "the shore", 20, "provider_exhausted"),
        ("video", "the tide", 20, "provider_exhausted"),
        ("picture", "a wave", 5, "provider_exhausted"),
        ("picture", "a cliff", 5, "provider_exhausted"),
    ]
    assert (len(fal.accepted), fal.refused) == (1, 1)
    assert openai.asked == 3  # one call: OpenAI's own client tries a 429 three times
    assert "platform.openai.com" not in model.text()
    assert "fal.ai" not in model.text()
    assert left(ledger) == 80
    assert paid.run.summary().total("dry_run") == 50
