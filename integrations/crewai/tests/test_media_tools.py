"""A crew's own tool around a media tool: the model reads the plan's sentence when nothing can be generated."""

from __future__ import annotations

from typing import Any

import pytest
from crew_fakes import ACME, charged, crew, left, llm, use
from crewai.tools import BaseTool

from agentcredits import MediaPlan, SyncCreditService, media_tool, use_context

KEY = "sk-live-1234567890abcdef1234567890"


class FakeExhaustedError(Exception):
    """fal's answer when the operator's balance is used up."""

    status_code = 403
    body = {"detail": f"User is locked. Reason: Exhausted balance. Top up at fal.ai/dashboard/billing. key={KEY}"}  # noqa: RUF012


@pytest.mark.parametrize("place", ["inside", "on _run"])
def test_the_model_reads_the_plan(ledger: SyncCreditService, native: bool, place: str) -> None:
    """The first picture is made, the second finds the account empty, the third asks nobody; the crew goes on."""
    ledger.set_cost("ImageAgent", "generate_image", 5)
    asked: list[str] = []
    charge = media_tool("generate_image", agent_type="ImageAgent", provider="fal", service=ledger)

    def generate(prompt: str) -> object:
        asked.append(prompt)
        if len(asked) > 1:
            raise FakeExhaustedError
        return "https://files/1.png"

    paint = charge(generate)

    class Inside(BaseTool):
        name: str = "paint"
        description: str = "Paints."

        def _run(self, prompt: str) -> Any:
            return paint(prompt)

    class Decorated(BaseTool):
        name: str = "paint"
        description: str = "Paints."

        @charge
        def _run(self, prompt: str) -> Any:
            return generate(prompt)

    tool = Inside() if place == "inside" else Decorated()
    with use_context(ACME):
        words = [use("paint", f'{{"prompt": "{name}"}}', native=native) for name in ("a", "b", "c")]
        model = llm(*words, native=native)
        crew(model, tool).kickoff(inputs={"topic": "tea"})
        plan = tool.run(prompt="d")
    assert isinstance(plan, MediaPlan)
    assert (asked, charged(ledger)) == (["a", "b"], ["generate_image"])
    read = model.text()
    assert "https://files/1.png" in read
    assert read.count("generate_image was not performed, nothing was generated.") == 2
    for secret in (KEY, "fal.ai", "Exhausted balance"):
        assert secret not in read
    assert ledger.get_balance("acme").spent == 5
    assert left(ledger) == ledger.get_balance("acme").available
