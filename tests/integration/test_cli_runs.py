"""The command line of runs: listed, shown, ended, purged."""

from __future__ import annotations

import pytest

from agentcredits import RequestContext, SyncCreditService, use_context
from tests.integration.cli_calls import Call


@pytest.fixture
def acme(service: SyncCreditService) -> SyncCreditService:
    """A run of 20 credits with one of 5 inside; 3 and 2 are charged."""
    service.grant_credits("acme", 100)
    service.open_run("acme", "outer", max_credits=20)
    service.open_run("acme", "inner", max_credits=5, parent_run_id="outer")
    for run_id, amount in (("outer", 3), ("inner", 2)):
        with use_context(RequestContext("acme", run_id=run_id)):
            service.consume_credits(organization_id="acme", amount=amount)
    return service


def test_runs_are_listed_and_shown(on: Call, acme: SyncCreditService) -> None:
    """As a table and as JSON; what is left, and what runs inside keep."""
    text = on("runs", "list", "acme").out
    assert text.index("inner") < text.index("outer")
    items = on("runs", "list", "acme", "--json").data["items"]
    assert [(one["run_id"], one["cap"], one["spent"], one["remaining"]) for one in items] == [
        ("inner", 5, 2, 3),
        ("outer", 20, 3, 12),
    ]
    assert [one["run_id"] for one in on("runs", "list", "acme", "--inside", "outer", "--json").data["items"]] == [
        "inner"
    ]
    assert "has no such runs" in on("runs", "list", "acme", "--status", "ended").out
    shown = on("runs", "show", "acme", "outer")
    assert "3, in runs inside 2" in shown.out
    assert "ends if idle" not in shown.out
    data = on("runs", "show", "acme", "outer", "--json").data
    assert (data["carved"], [one["run_id"] for one in data["children"]]) == (5, ["inner"])


def test_a_run_is_ended_with_those_inside(on: Call, acme: SyncCreditService) -> None:
    """Again is harmless; an unknown one is an error; charges in it exit with an error."""
    answer = on("runs", "end", "acme", "outer", "--reason", "it loops")
    assert answer.out == "Run outer is ended; 5 credits were charged in it.\n"
    assert on("runs", "end", "acme", "outer", "--json").data["reason"] == "it loops"
    assert {one["status"] for one in on("runs", "list", "acme", "--json").data["items"]} == {"ended"}
    assert "(it loops)" in on("runs", "show", "acme", "outer").out
    wrong = on("runs", "end", "acme", "nothing")
    assert (wrong.code, wrong.err.splitlines()[0]) == (2, "organization acme has no run nothing.")


def test_ended_runs_are_purged(on: Call, acme: SyncCreditService) -> None:
    """Whole trees; only those that ended as long ago as was said."""
    acme.end_run("outer", organization_id="acme")
    assert on("runs", "purge", "acme", "--json").data == {"removed": 0}
    assert on("runs", "purge", "--days", "0").out == "Removed 2 runs.\n"
    assert on("runs", "list", "acme", "--json").data["items"] == []
