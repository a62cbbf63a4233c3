"""Nothing runs free: refusals, backends that go away, and what CrewAI does with exceptions."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pickle
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from crew_fakes import ACME, FakeLLM, agent, charged, crew, left, llm, price, use
from crewai import Crew, Process, Task
from crewai.hooks.dispatch import HookAborted
from crewai.tools import tool
from rich.console import Console
from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import OperationalError

from agentcredits import (
    CreditLimitExceededError,
    InsufficientCreditsError,
    RequestContext,
    Settings,
    SyncCreditService,
    UnpricedActionError,
    Window,
    use_context,
)
from agentcredits.store.upgrade import upgrade_database
from agentcredits_crewai import CrewCreditLimitExceeded, CrewInsufficientCredits, credited, meter

INPUTS = {"topic": "tea"}
RAN: list[str] = []


@tool("draw")
def draw(prompt: str) -> str:
    """Draws."""
    RAN.append(prompt)
    return f"picture of {prompt}"


@tool("broken")
def broken(prompt: str) -> str:
    """Always fails."""
    RAN.append(prompt)
    raise RuntimeError("no paint")


@pytest.fixture(autouse=True)
def _ran() -> None:
    RAN.clear()


def start(made: Crew, ledger: SyncCreditService, how: str = "kickoff", **terms: Any) -> Any:
    paid = credited(made, service=ledger, **{"llm_action": "llm_call", **terms})
    with use_context(ACME):
        if how == "kickoff":
            return paid.kickoff(inputs=INPUTS)
        return asyncio.run(getattr(paid, how)(inputs=INPUTS))


@pytest.mark.parametrize("how", ["kickoff", "kickoff_async", "akickoff"])
@pytest.mark.parametrize("shape", ["plain", "max_execution_time", "async task"])
def test_no_credits_no_model_call(ledger: SyncCreditService, native: bool, how: str, shape: str) -> None:
    """Our own error with its numbers, in one attempt, and it pickles."""
    ledger.consume_credits(organization_id="acme", amount=100)
    model = llm(native=native)
    made = crew(model)
    if shape == "max_execution_time":
        made.agents[0].max_execution_time = 30
    made.tasks[0].async_execution = shape == "async task"
    with pytest.raises(InsufficientCreditsError) as caught:
        start(made, ledger, how)
    error = caught.value
    assert isinstance(error, CrewInsufficientCredits)
    assert isinstance(error, HookAborted)
    assert (error.context["required"], error.context["available"], error.http_status) == (1, 0, 402)
    assert model.calls == 0
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.context) == (CrewInsufficientCredits, str(error), error.context)
    assert ledger.list_reservations("acme") == ()


def test_a_limit_stops_with_its_twin(ledger: SyncCreditService) -> None:
    """The second call meets the organization's limit."""
    ledger.set_limit("acme", amount=1, window=Window.lifetime())
    model = llm(use("draw", '{"prompt": "x"}', native=True), native=True)
    with pytest.raises(CreditLimitExceededError) as caught:
        start(crew(model, draw), ledger)
    assert isinstance(caught.value, CrewCreditLimitExceeded)
    assert model.calls == 1
    assert left(ledger) == 99


def test_an_unpriced_llm_action_stops(ledger: SyncCreditService) -> None:
    """Any other error of a hook would be swallowed by CrewAI: it becomes a HookAborted that says what it was."""
    model = llm(native=True)
    with pytest.raises(HookAborted, match="UnpricedActionError") as caught:
        start(crew(model), ledger, llm_action="no_such_action")
    assert isinstance(caught.value.__cause__, UnpricedActionError)
    assert model.calls == 0


def test_a_bug_in_our_hooks_stops(ledger: SyncCreditService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even our own mistakes run free."""
    model = llm(native=True)
    monkeypatch.setattr("agentcredits_crewai.hooks.usage.watch", lambda llm: 1 / 0)
    with pytest.raises(HookAborted, match="ZeroDivisionError"):
        start(crew(model), ledger)
    assert model.calls == 0
    assert left(ledger) == 100


def test_a_refusal_in_delegated_work_stops_the_manager_too(ledger: SyncCreditService) -> None:
    """CrewAI hands the coworker's refusal to the manager as a tool result: it gets no further call."""
    ledger.consume_credits(organization_id="acme", amount=99)
    order = '{"task": "t", "context": "c", "coworker": "writer"}'
    boss = llm(use("delegate_work_to_coworker", order, native=True), native=True)
    worker = llm(native=True)
    made = Crew(
        agents=[agent(worker)],
        tasks=[Task(description="d", expected_output="e")],
        process=Process.hierarchical,
        manager_agent=agent(boss, role="boss", allow_delegation=True),
        tracing=False,
    )
    with pytest.raises(InsufficientCreditsError):
        start(made, ledger)
    assert (boss.calls, worker.calls) == (1, 0)
    assert left(ledger) == 0


def test_a_tool_that_swallows_everything_does_not_hide_a_refusal(ledger: SyncCreditService) -> None:
    """Like a tool with an LLM of its own and a bare except."""
    ledger.consume_credits(organization_id="acme", amount=99)
    inner = llm(native=True)

    @tool("ask")
    def ask(prompt: str) -> str:
        """Asks another agent."""
        try:
            return str(agent(inner).kickoff(prompt))
        except Exception as error:  # noqa: BLE001  # that is the point
            return f"An error occurred: {error}"

    model = llm(use("ask", '{"prompt": "x"}', native=True), native=True)
    with pytest.raises(InsufficientCreditsError):
        start(crew(model, ask), ledger)
    assert (model.calls, inner.calls) == (1, 0)


@pytest.mark.parametrize("on_denied", ["fallback", "tool_failure", "stop"])
def test_a_denied_tool(ledger: SyncCreditService, native: bool, on_denied: Any) -> None:
    """Stop ends the run after one LLM call; the others go on, and the summary tells which it was."""
    ledger.consume_credits(organization_id="acme", amount=92)
    model = llm(use("draw", '{"prompt": "x"}', native=native), native=native)
    paid = credited(
        crew(model, meter(draw, "draw", service=ledger, on_denied=on_denied)), llm_action="llm_call", service=ledger
    )
    with use_context(ACME):
        if on_denied == "stop":
            with pytest.raises(CrewInsufficientCredits, match="draw needs 10"):
                paid.kickoff(inputs=INPUTS)
        else:
            assert str(paid.kickoff(inputs=INPUTS)) == "fin"
    assert RAN == []
    assert model.calls == (1 if on_denied == "stop" else 2)
    assert left(ledger) == 8 - model.calls
    kind = "dry_run" if on_denied == "fallback" else "denied"
    assert paid.run is not None
    assert paid.run.summary().by("tool")["draw"][kind] == 10


class LockedFile:
    """Another connection holds the SQLite file's write lock."""

    def __init__(self, path: Path) -> None:
        self.url = f"sqlite:///{path}"
        self._lock = sqlite3.connect(path, check_same_thread=False, isolation_level=None)

    def begin(self) -> None:
        self._lock.execute("BEGIN IMMEDIATE")

    def end(self) -> None:
        assert self._lock.in_transaction
        self._lock.rollback()
        self._lock.close()


class KilledServer:
    """A PostgreSQL server killed without a word to its clients, and started again."""

    def __init__(self, server: Any) -> None:
        name = f"killed_{time.time_ns()}"
        server.psql(f"CREATE DATABASE {name};")
        self.url: str = server.get_uri(database=name, driver="psycopg")
        self._server = server
        self._engine = create_engine(self.url, poolclass=NullPool)
        upgrade_database(self._engine)

    def begin(self) -> None:
        os.kill(self._server.get_pid(), signal.SIGQUIT)
        while self.is_there():
            time.sleep(0.01)

    def end(self) -> None:
        assert not self.is_there()
        self._server.ensure_postgres_running()

    def is_there(self) -> bool:
        try:
            with self._engine.connect():
                return True
        except OperationalError:
            return False


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def outage(request: pytest.FixtureRequest, sqlite_url: str) -> LockedFile | KilledServer:
    if request.param == "sqlite":
        return LockedFile(Path(sqlite_url.removeprefix("sqlite:///")))
    return KilledServer(request.getfixturevalue("own_server"))


@pytest.mark.parametrize("when", ["before the first call", "before the tool", "before the second call"])
def test_a_database_that_goes_away(outage: LockedFile | KilledServer, native: bool, when: str) -> None:
    """No model or tool call afterwards; the error says why; when it is back, the books are right."""

    @tool("free")
    def free(prompt: str) -> str:
        """Costs nothing."""
        RAN.append(prompt)
        if when == "before the second call":
            outage.begin()
        return prompt

    call = use("free" if when == "before the second call" else "draw", '{"prompt": "x"}', native=native)
    model = llm((lambda _messages: outage.begin() or call) if when == "before the tool" else call, native=native)
    settings = Settings(lock_timeout_seconds=0.05, retry_seconds=0.05)
    with SyncCreditService(outage.url, settings=settings) as impatient:
        price(impatient)
        if when == "before the first call":
            outage.begin()
        with pytest.raises(HookAborted, match="StoreUnavailableError"):
            start(crew(model, meter(draw, "draw", service=impatient), free), impatient)
        assert model.calls == (0 if when == "before the first call" else 1)
        assert (["x"] if when == "before the second call" else []) == RAN
        outage.end()
    with SyncCreditService(outage.url) as after_restart:
        assert left(after_restart) == 100 - model.calls


# -- what is charged twice, and what is not ----------------------------------------------------------------------


def run(
    ledger: SyncCreditService, model: FakeLLM, *tools: Any, on_error: type[Exception] | None = None, **how: Any
) -> int:
    """Run a crew with charged LLM calls and a metered draw; the credits it took."""
    before = left(ledger)
    paid = [meter(entry, "draw", service=ledger) for entry in tools or (draw,)]
    made = crew(model, *paid, **how)
    if on_error is None:
        start(made, ledger)
    else:
        with pytest.raises(on_error):
            start(made, ledger)
    return before - left(ledger)


def calls(native: bool, *prompts: str, name: str = "draw") -> list[Any]:
    return [use(name, f'{{"prompt": "{prompt}"}}', native=native) for prompt in prompts]


@pytest.mark.parametrize("counts", [True, False], ids=["usage", "no usage"])
def test_the_double_charge_table(ledger: SyncCreditService, native: bool, counts: bool) -> None:
    """Credits that each scenario takes: LLM calls at 1, tool runs at 10; with models that count tokens and without."""
    about = {"native": native, "counts": counts}
    assert run(ledger, llm(*calls(native, "a"), **about)) == 12
    assert run(ledger, llm(*calls(native, "a", "b", "a"), **about)) == 34
    assert run(ledger, llm(*calls(native, "a", "b", "a"), **about), cache=True) == 24
    assert run(ledger, llm(*calls(native, "a", name="broken"), **about), broken) == 2
    assert run(ledger, llm(*calls(native, "a", name="unknown"), **about)) == 2


def test_native_only_scenarios(ledger: SyncCreditService) -> None:
    """Wrong arguments, arguments that are no JSON, more than max_usage_count, three calls at once."""
    assert run(ledger, llm(use("draw", '{"wrong": 1}', native=True), native=True)) == 2
    for counts in (True, False):
        assert run(ledger, llm(use("draw", "{no json", native=True), native=True, counts=counts)) == 2
    once = draw.model_copy()
    once.max_usage_count = 1
    assert run(ledger, llm(*calls(True, "a", "b"), native=True), once) == 13
    assert run(ledger, llm([("draw", '{"prompt": "a"}')] * 3, native=True)) == 32


def test_a_tool_result_that_is_the_answer(ledger: SyncCreditService) -> None:
    """No further model call tells that the first was answered: the tool call does."""
    final = draw.model_copy(update={"result_as_answer": True})
    for counts in (True, False):
        assert run(ledger, llm(*calls(True, "a"), native=True, counts=counts), final) == 11


def test_a_model_that_always_fails_costs_nothing(ledger: SyncCreditService, native: bool) -> None:
    """Each attempt's hold is given back before the next one reserves."""
    held: list[int] = []

    def fail(_messages: Any) -> Exception:
        held.append(int(ledger.get_balance("acme").reserved))
        return RuntimeError("the model is down")

    assert run(ledger, FakeLLM(model="fake", script=[fail], native=native), on_error=RuntimeError) == 0
    assert held == [1, 1, 1]


def test_a_task_that_starts_again_pays_for_what_ran(ledger: SyncCreditService) -> None:
    """The LLM fails after the tool ran: CrewAI restarts the task, and the tool runs and costs again."""
    call = calls(True, "a")[0]
    model = llm(call, RuntimeError("once"), call, native=True)
    assert run(ledger, model) == 23
    assert RAN == ["a", "a"]


def test_a_guardrail_that_fails_twice(ledger: SyncCreditService) -> None:
    """Three rounds ran, three rounds are paid."""
    rounds = iter([False, False, True])
    call = calls(True, "a")[0]
    model = llm(call, "fin", call, "fin", call, native=True)
    made = crew(model, meter(draw, "draw", service=ledger))
    made.tasks[0].guardrail = lambda output: (next(rounds), output.raw)
    made.tasks[0].ensure_guardrail_is_callable()
    start(made, ledger)
    assert left(ledger) == 64


def test_a_refused_run_does_not_stop_the_next_one(ledger: SyncCreditService) -> None:
    """A refusal is sticky for its run, not for the crew."""
    ledger.consume_credits(organization_id="acme", amount=100)
    model = llm(native=True)
    paid = credited(crew(model), llm_action="llm_call", service=ledger)
    with use_context(ACME):
        with pytest.raises(InsufficientCreditsError):
            paid.kickoff(inputs=INPUTS)
        ledger.grant_credits("acme", 5)
        paid.kickoff(inputs=INPUTS)
    assert left(ledger) == 4


def test_the_summary_and_its_json(ledger: SyncCreditService) -> None:
    """Charged, given back, by agent, task, tool and LLM; plain data; a table."""
    model = llm(*calls(True, "a", name="broken"), *calls(True, "a"), native=True)
    paid = credited(
        crew(model, meter(broken, "draw", service=ledger), meter(draw, "draw", service=ledger)),
        llm_action="llm_call",
        service=ledger,
        rate=lambda usage: usage["total_tokens"] / 5,
    )
    with use_context(RequestContext("acme", run_id="r1")):
        paid.kickoff(inputs=INPUTS)
    assert paid.run is not None
    found = paid.run.summary()
    assert (found.charged, found.given_back, found.run_id) == (16, 10, "r1")
    assert found.by("tool")["broken"] == {
        "calls": 1,
        "charged": 0,
        "given_back": 10,
        "dry_run": 0,
        "denied": 0,
        "pending": 0,
    }
    assert found.by("llm")["fake"]["charged"] == 6
    assert found.by("task")["task 0"]["calls"] == found.by("agent")["writer"]["calls"] == 5
    data = json.loads(json.dumps(found.as_dict()))
    assert (data["charged"], data["by_action"]["draw"]["given_back"]) == ("16", "10")
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(found)
    assert "given back (RuntimeError: no paint)" in console.export_text()
    rows = ledger.list_transactions("acme", type="debit", run_id="r1")
    assert {row.metadata["agent"] for row in rows if row.metadata} == {"writer"}
    usages = [row.metadata["usage"] for row in rows if row.action == "llm_call" and row.metadata]
    assert [usage["total_tokens"] for usage in usages] == [10] * 3
    assert charged(ledger).count("llm_call") == 3
