"""Scripted models (named as fakes), crews of them, and what the ledger says."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from crewai import Agent, BaseLLM, Crew, Task
from pydantic import Field, PrivateAttr

from agentcredits import RequestContext, SyncCreditService

FINAL = "Thought: I know.\nFinal Answer: fin"
ACME = RequestContext("acme")
GLOBEX = RequestContext("globex")

#: On a SQLite file and on PostgreSQL.
on_both = pytest.mark.parametrize(
    "ledger_url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)


class FakeLLM(BaseLLM):
    """A scripted model: ``script`` says its lines in turn, the last one for ever.

    A line is a text (react: ``Action:``; native: the answer), a list of ``(tool, arguments)`` (native tool calls), an
    exception, or a function of the messages that gives one of these. Counts its calls; tracks usage of 10 tokens a
    call when ``counts`` is set.
    """

    script: list[Any] = Field(default_factory=lambda: [FINAL])
    native: bool = False
    counts: bool = True
    seen: list[Any] = Field(default_factory=list)
    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)

    def supports_function_calling(self) -> bool:
        return self.native

    def call(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            self.seen.append(messages if isinstance(messages, str) else [dict(entry) for entry in messages])
            line = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if callable(line) and not isinstance(line, type):
            line = line(messages)
        if isinstance(line, Exception):
            raise line
        if self.counts:
            self._track_token_usage_internal({"prompt_tokens": 7, "completion_tokens": 3})
        if isinstance(line, list):
            return [
                {"id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": arguments}}
                for n, (name, arguments) in enumerate(line)
            ]
        return line

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)

    def get_input_tokens_count(self, *args: Any, **kwargs: Any) -> int:
        return 0

    @property
    def calls(self) -> int:
        return len(self.seen)

    def text(self) -> str:
        """Everything that the model was told in its last call."""
        return str(self.seen[-1])


def use(tool: str, arguments: str = "{}", *, native: bool) -> Any:
    """The line that calls a tool."""
    if native:
        return [(tool, arguments)]
    return f"Thought: use it.\nAction: {tool}\nAction Input: {arguments}\n"


def llm(*script: Any, native: bool = False, **more: Any) -> FakeLLM:
    return FakeLLM(model="fake", script=[*script, "fin" if native else FINAL], native=native, **more)


def agent(model: Any, *tools: Any, **more: Any) -> Agent:
    return Agent(**{"role": "writer", "goal": "g", "backstory": "b", "llm": model, "tools": list(tools), **more})


def crew(model: Any, *tools: Any, tasks: int = 1, **more: Any) -> Crew:
    """A sequential crew of one agent."""
    about = {name: more.pop(name) for name in ("max_retry_limit",) if name in more}
    who = agent(model, *tools, **about)
    work = [
        Task(name=f"task {n}", description="write about {topic}", expected_output="text", agent=who)
        for n in range(tasks)
    ]
    return Crew(agents=[who], tasks=work, tracing=False, **more)


def price(ledger: SyncCreditService) -> None:
    """Two organizations with 100 credits each; an LLM call costs 1, a draw 10."""
    for organization in ("acme", "globex"):
        ledger.grant_credits(organization, 100)
    ledger.set_cost("Crew", "llm_call", 1)
    ledger.set_cost("Flow", "llm_call", 1)
    ledger.set_cost("*", "draw", 10)


def charged(ledger: SyncCreditService, organization: str = "acme") -> list[str | None]:
    """The actions charged, oldest first."""
    return [row.action for row in reversed(list(ledger.list_transactions(organization, type="debit", limit=500)))]


def left(ledger: SyncCreditService, organization: str = "acme") -> int:
    """Credits that are left; nothing is held and the books are right."""
    balance = ledger.get_balance(organization)
    assert balance.reserved == 0
    assert ledger.verify()
    return int(balance.available)
