"""Credited crews of a scripted model and one paid tool, and streams that are read to their end."""

from __future__ import annotations

from typing import Any

from crew_fakes import FakeLLM, crew, llm, use
from crewai.tools import tool

from agentcredits import SyncCreditService
from agentcredits_crewai import credited, meter

INPUTS = {"topic": "tea"}


@tool("draw")
def draw(prompt: str) -> str:
    """Draws."""
    return f"picture of {prompt}"


def model_of(native: bool, runs: int = 1) -> FakeLLM:
    end: Any = "fin" if native else "Thought: I know.\nFinal Answer: fin"
    return llm(*[use("draw", '{"prompt": "tea"}', native=native), end] * runs, native=native)


def paid_crew(ledger: SyncCreditService, native: bool = True, runs: int = 1, **how: Any) -> tuple[Any, FakeLLM]:
    model = model_of(native, runs)
    terms = {name: how.pop(name) for name in ("context", "max_credits", "on_run", "rate") if name in how}
    made = crew(model, meter(draw, "draw", service=ledger), **how)
    return credited(made, llm_action="llm_call", service=ledger, **terms), model


def consume(stream: Any) -> Any:
    for _chunk in stream:
        pass
    return stream.result
