"""Through CrewAI's real OpenAI client: the ledger's usage equals what a loopback server served and counted."""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from crew_fakes import ACME, agent, crew, left, on_both
from crewai import Crew, Task
from crewai.flow.flow import Flow, start
from crewai.llms.providers.openai import completion
from crewai.tools import tool
from pydantic import BaseModel
from served import Server, booked, draws_once

from agentcredits import RequestContext, SyncCreditService, use_context
from agentcredits_crewai import credited, meter

INPUTS = {"topic": "tea"}
pytestmark = on_both


@tool("draw")
def draw(prompt: str) -> str:
    """Draws."""
    return f"picture of {prompt}"


def paid(made: Any, ledger: SyncCreditService, **terms: Any) -> Any:
    return credited(made, llm_action="llm_call", service=ledger, **terms)


@pytest.mark.parametrize("how", ["kickoff", "kickoff_async", "akickoff"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_native_streaming_and_async(ledger: SyncCreditService, server: Server, how: str, stream: bool) -> None:
    """Two requests, two charges, to the token; a second kickoff counts only its own."""
    made = paid(crew(server.llm(stream=stream), meter(draw, "draw", service=ledger)), ledger)
    with use_context(ACME):
        for _round in range(2):
            if how == "kickoff":
                made.kickoff(inputs=INPUTS)
            else:
                asyncio.run(getattr(made, how)(inputs=INPUTS))
    assert server.requests == 4
    assert booked(ledger) == {**server.served["acme"], "charges": 4}
    assert left(ledger) == 100 - 4 - 20


def test_a_streaming_crew(ledger: SyncCreditService, server: Server) -> None:
    """Crew(stream=True), iterated after the block."""
    made = paid(crew(server.llm(), meter(draw, "draw", service=ledger), stream=True), ledger)
    with use_context(ACME):
        stream = made.kickoff(inputs=INPUTS)
    assert "".join(chunk.content for chunk in stream)
    assert booked(ledger) == {**server.served["acme"], "charges": 2}
    assert left(ledger) == 88


def test_parallel_tool_calls_and_a_shared_llm(ledger: SyncCreditService, server: Server) -> None:
    """Two agents with one LLM object (CrewAI reports its tokens twice), three tool calls in one answer."""

    def thrice(body: dict[str, Any]) -> Any:
        found = draws_once(body)
        return found * 3 if isinstance(found, list) else found

    server.answer = thrice
    model = server.llm()
    tools = [meter(draw, "draw", service=ledger)]
    who = [agent(model, *tools, role=role) for role in ("writer", "editor")]
    tasks = [Task(description=f"do {one.role}", expected_output="text", agent=one) for one in who]
    made = paid(Crew(agents=who, tasks=tasks, tracing=False), ledger)
    with use_context(ACME):
        out = made.kickoff(inputs=INPUTS)
    truth = server.served["acme"]
    assert out.token_usage.total_tokens == 2 * truth["tokens"]
    assert booked(ledger) == {**truth, "charges": 4}
    assert {line.agent for line in made.run.summary().lines} == {"writer", "editor"}
    assert left(ledger) == 100 - 4 - 60


def test_crews_at_once_with_one_llm(ledger: SyncCreditService, server: Server) -> None:
    """Ten crews of two tenants in threads: each tenant's ledger equals what its key was served."""
    models = {name: server.llm(name) for name in ("acme", "globex")}

    def work(name: str) -> None:
        with use_context(RequestContext(name)):
            paid(crew(models[name], draw), ledger).kickoff(inputs=INPUTS)

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(work, ["acme", "globex", "acme"] * 4))
    assert booked(ledger) == {**server.served["acme"], "charges": 16}
    assert booked(ledger, "globex") == {**server.served["globex"], "charges": 8}
    assert (left(ledger), left(ledger, "globex")) == (84, 92)


def test_retry_after_an_http_error(ledger: SyncCreditService, server: Server) -> None:
    """The client asks again by itself: one call, one charge, and only what was served."""
    errors = iter([500])
    server.answer = lambda body: next(errors, None) or draws_once(body)
    with use_context(ACME):
        paid(crew(server.llm(), draw), ledger).kickoff(inputs=INPUTS)
    assert server.requests == 3
    assert booked(ledger) == {"requests": 2, "tokens": server.served["acme"]["tokens"], "charges": 2}
    assert left(ledger) == 98


def test_requests_that_are_refused_cost_nothing(ledger: SyncCreditService, server: Server) -> None:
    """HTTP 400 on every attempt: each hold is given back."""
    server.answer = lambda _body: 400
    with use_context(ACME), pytest.raises(Exception, match="broken"):
        paid(crew(server.llm(), draw), ledger).kickoff(inputs=INPUTS)
    assert server.requests >= 1
    assert booked(ledger) == {"requests": 0, "tokens": 0, "charges": 0}
    assert left(ledger) == 100


needs_the_body = pytest.mark.skipif(
    not hasattr(completion, "_raise_for_upstream_error"), reason="this CrewAI does not look at the body of an answer"
)


class Poem(BaseModel):
    title: str
    lines: int


@needs_the_body
@pytest.mark.parametrize("text", ['{"title": "Tea", "lines": 3}', '{"title": "Tea"}', "no JSON"])
def test_structured_output_that_does_and_does_not_parse(ledger: SyncCreditService, server: Server, text: str) -> None:
    """An answer that cannot be parsed was served all the same: it is charged, with its tokens."""
    server.answer = lambda _body: text

    class Story(Flow[Any]):
        @start()
        def write(self) -> Any:
            return agent(server.llm(), max_retry_limit=0).kickoff("write", response_format=Poem)

    flow = paid(Story(), ledger, agent_type="Flow")
    with use_context(ACME):
        try:
            flow.kickoff()
        except Exception:  # noqa: BLE001  # whether CrewAI gives up is its own affair
            assert text != '{"title": "Tea", "lines": 3}'
    truth = server.served["acme"]
    assert booked(ledger)["requests"] == truth["requests"]
    assert booked(ledger)["tokens"] == truth["tokens"]
    assert left(ledger) == 100 - booked(ledger)["charges"]


@needs_the_body
def test_a_structured_call_that_fails_to_parse(ledger: SyncCreditService, server: Server) -> None:
    """The provider's own parse: the client raises before anybody counts tokens."""
    server.answer = lambda _body: '{"title": "Tea"}'

    class Story(Flow[Any]):
        @start()
        def write(self) -> Any:
            return server.llm().call("write", response_model=Poem)

    with use_context(ACME), pytest.raises(Exception, match="lines"):
        paid(Story(), ledger, agent_type="Flow").kickoff()
    assert booked(ledger) == {**server.served["acme"], "charges": 1}
    assert left(ledger) == 99


def test_a_rate_prices_the_tokens(ledger: SyncCreditService, server: Server) -> None:
    """A function of the usage; above the hold, what is there is taken too."""
    made = paid(crew(server.llm(), draw), ledger, rate=lambda usage: usage["total_tokens"] / 100)
    with use_context(ACME):
        made.kickoff(inputs=INPUTS)
    tokens = server.served["acme"]["tokens"]
    assert made.run.summary().charged == ledger.get_balance("acme").spent
    assert float(made.run.summary().charged) == pytest.approx(tokens / 100)


def test_planning_and_reasoning_are_part_of_the_run(ledger: SyncCreditService, server: Server) -> None:
    """CrewAI's own agents plan and reason with the same credits."""
    plan = '{"list_of_plans_per_task": [{"task_number": 1, "task": "write", "plan": "write it"}]}'
    server.answer = lambda body: plan if "PlannerTask" in json.dumps(body) else draws_once(body)
    made = crew(server.llm(), draw, planning=True, planning_llm=server.llm())
    made.agents[0].reasoning = True
    with use_context(ACME):
        paid(made, ledger).kickoff(inputs=INPUTS)
    found = booked(ledger)
    assert {"requests": found["requests"], "tokens": found["tokens"]} == server.served["acme"]
    assert server.requests > 2
    assert left(ledger) == 100 - found["charges"]


def test_a_model_that_runs_the_tool_itself(ledger: SyncCreditService, server: Server) -> None:
    """llm.call(available_functions=...): no usage in any event, and still exact."""

    class Story(Flow[Any]):
        @start()
        def write(self) -> Any:
            schema = {"type": "function", "function": {"name": "draw", "description": "d", "parameters": {}}}
            return server.llm().call("draw", tools=[schema], available_functions={"draw": lambda prompt: prompt})

    with use_context(ACME):
        assert paid(Story(), ledger, agent_type="Flow").kickoff() == "tea"
    assert booked(ledger) == {**server.served["acme"], "charges": 1}
    assert left(ledger) == 99


def test_several_tasks_at_once(ledger: SyncCreditService, server: Server) -> None:
    """Async tasks of agents that share an LLM; every call is charged."""
    model = server.llm()
    who = [agent(model, draw, role=f"writer {n}") for n in range(4)]
    tasks = [
        Task(description=f"do {n}", expected_output="text", agent=one, async_execution=n < 3)
        for n, one in enumerate(who)
    ]
    with use_context(ACME):
        paid(Crew(agents=who, tasks=tasks, tracing=False), ledger).kickoff(inputs=INPUTS)
    assert booked(ledger) == {**server.served["acme"], "charges": server.requests}
    assert left(ledger) == 100 - server.requests


def test_agents_at_once_in_a_flow(ledger: SyncCreditService, server: Server) -> None:
    """The same agent object, three kickoffs gathered."""
    who = agent(server.llm(), draw)

    class Story(Flow[Any]):
        @start()
        async def write(self) -> Any:
            return await asyncio.gather(*(who.kickoff_async(f"draw {n}") for n in range(3)))

    with use_context(ACME):
        paid(Story(), ledger, agent_type="Flow").kickoff()
    assert booked(ledger) == {**server.served["acme"], "charges": server.requests}
    assert left(ledger) == 100 - server.requests


def test_tools_settle_no_call_of_the_same_agent_elsewhere(ledger: SyncCreditService, server: Server) -> None:
    """The same agent object, twice at work: one's answer asks for two tools while the other one's call goes wrong."""
    asked, drawn = threading.Event(), threading.Event()

    def answer(body: dict[str, Any]) -> Any:
        if "goes wrong" in json.dumps(body["messages"]):
            asked.set()
            drawn.wait(20)
            return 400
        found = draws_once(body)
        return found * 2 if isinstance(found, list) else found

    server.answer = answer
    who = agent(server.llm(), draw)

    class Story(Flow[Any]):
        @start()
        async def write(self) -> Any:
            wrong = asyncio.create_task(who.kickoff_async("goes wrong"))
            await asyncio.to_thread(asked.wait, 20)
            await who.kickoff_async("draw")
            drawn.set()
            with pytest.raises(Exception, match="broken"):
                await wrong

    with use_context(ACME):
        paid(Story(), ledger, agent_type="Flow").kickoff()
    assert booked(ledger) == {**server.served["acme"], "charges": 2}
    assert left(ledger) == 98


def test_an_answer_that_comes_after_its_run_failed(ledger: SyncCreditService, server: Server) -> None:
    """Another task's failure ended the run while the provider was still working: what was served is charged."""
    asked, ended = threading.Event(), threading.Event()

    def slow(body: dict[str, Any]) -> Any:
        asked.set()
        ended.wait(20)
        return "fin"

    server.answer = slow

    class Story(Flow[Any]):
        @start()
        def write(self) -> Any:
            context = contextvars.copy_context()
            self.late = threading.Thread(target=context.run, args=(server.llm().call, "write"))
            self.late.start()
            assert asked.wait(20)
            raise RuntimeError("another task failed")

    flow = Story()
    with use_context(ACME), pytest.raises(RuntimeError, match="another"):
        paid(flow, ledger, agent_type="Flow").kickoff()
    assert left(ledger) == 100
    ended.set()
    flow.late.join()
    assert booked(ledger) == {**server.served["acme"], "charges": 1}
    assert left(ledger) == 99
