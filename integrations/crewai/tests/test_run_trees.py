"""A crew inside a credited run: its cap is a part of the pool around it, and what it does not use comes back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from crew_fakes import ACME, crew, left, llm, on_both, use
from crewai.flow.flow import Flow, listen, start
from crewai.tools import tool

from agentcredits import CreditLimitExceededError, RequestContext, SyncCreditService, use_context
from agentcredits_crewai import Run, credited, meter

INPUTS = {"topic": "tea"}


@tool("draw")
def draw(prompt: str) -> str:
    """Draws."""
    return f"picture of {prompt}"


def inner(ledger: SyncCreditService, seen: list[Run] | None = None, **terms: Any) -> Any:
    """A crew of 12 credits: two LLM calls of 1, a tool of 10 that falls back when it cannot be paid."""
    model = llm(use("draw", '{"prompt": "tea"}', native=True), "fin", native=True)
    made = crew(model, meter(draw, "draw", service=ledger))
    on_run = None if seen is None else seen.append
    return credited(made, llm_action="llm_call", service=ledger, on_run=on_run, **terms)


def flow_of(ledger: SyncCreditService, *crews: Any, seen: list[Run] | None = None, **terms: Any) -> Any:
    class Two(Flow[Any]):
        @start()
        def first(self) -> str:
            return str(crews[0].kickoff(inputs=INPUTS))

        @listen(first)
        def second(self, _first: str) -> str:
            return str(crews[-1].kickoff(inputs=INPUTS))

    on_run = None if seen is None else seen.append
    return credited(Two(), agent_type="Flow", service=ledger, on_run=on_run, **terms)


@on_both
def test_crews_inside_a_flow_share_its_pool(ledger: SyncCreditService) -> None:
    """20 for the flow: the first crew's 15 are its own, 3 of them come back; the second gets the 8 that are left."""
    seen: list[Run] = []
    flow = flow_of(ledger, inner(ledger, max_credits=15), inner(ledger, max_credits=15), seen=seen, max_credits=20)
    with use_context(ACME):
        flow.kickoff()
    assert left(ledger) == 100 - 14
    second, first, outer = ledger.list_runs("acme")
    assert [(one.cap, one.spent, one.status) for one in (outer, first, second)] == [
        (20, 0, "ended"),
        (15, 12, "ended"),
        (8, 2, "ended"),
    ]
    assert {first.parent_run_id, second.parent_run_id} == {outer.run_id}
    assert (outer.total_spent, outer.carved) == (14, 14)
    summary = seen[0].summary()
    assert (summary.charged, [child.charged for child in summary.children]) == (14, [12, 2])
    assert [child["run_id"] for child in summary.as_dict()["children"]] == [first.run_id, second.run_id]
    assert ledger.verify("acme").ok


def test_the_pool_around_is_not_touched_by_a_cap_inside(ledger: SyncCreditService) -> None:
    """A cap of 2 inside a flow of 30 stops the crew inside, not the flow."""
    flow = flow_of(ledger, inner(ledger, max_credits=2), inner(ledger, max_credits=12), max_credits=30)
    with use_context(ACME):
        flow.kickoff()
    assert left(ledger) == 100 - 2 - 12
    assert [one.cap for one in ledger.list_runs("acme")] == [12, 2, 30]


def test_a_crew_without_a_cap_works_in_the_pool_around_it(ledger: SyncCreditService) -> None:
    """The same run, and no other row: the flow's cap stops the second crew before its first LLM call."""
    flow = flow_of(ledger, inner(ledger), inner(ledger), max_credits=12)
    with use_context(ACME), pytest.raises(CreditLimitExceededError):
        flow.kickoff()
    (run,) = ledger.list_runs("acme")
    assert (left(ledger), run.spent, run.status) == (88, 12, "ended")


def test_a_flow_without_a_cap_gives_its_crews_theirs(ledger: SyncCreditService) -> None:
    """Nothing bounds the flow; its crews have 12 each, and its run ends with it. Also when it is awaited."""
    flow = flow_of(ledger, inner(ledger, max_credits=12), inner(ledger, max_credits=12))
    with use_context(ACME):
        asyncio.run(flow.kickoff_async())
    assert left(ledger) == 100 - 24
    runs = ledger.list_runs("acme")
    assert [(one.cap, one.status) for one in runs] == [(12, "ended"), (12, "ended"), (None, "ended")]


def test_a_run_of_the_callers_own_goes_on_after_a_kickoff(ledger: SyncCreditService) -> None:
    """The context named it: two kickoffs share its cap, and neither ends it."""
    paid = inner(ledger, max_credits=14)
    with use_context(RequestContext("acme", run_id="mine")):
        paid.kickoff(inputs=INPUTS)
        paid.kickoff(inputs=INPUTS)
    (run,) = ledger.list_runs("acme")
    assert (run.run_id, run.cap, run.spent, run.status) == ("mine", 14, 13, "open")


def test_a_crew_that_was_never_charged_ends_without_a_run(ledger: SyncCreditService) -> None:
    """Its cap made no row, and nothing complains about that."""
    paid = credited(crew(llm("fin", native=True)), max_credits=5, service=ledger)
    with use_context(ACME):
        paid.kickoff(inputs=INPUTS)
    assert ledger.list_runs("acme") == ()
