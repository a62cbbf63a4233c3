"""What a block cost, without any framework: every booking inside it is a line, in threads and nested runs too."""

from __future__ import annotations

import contextvars
import json
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

from agentcredits import (
    InsufficientCreditsError,
    RequestContext,
    RunLog,
    SyncCreditService,
    at_place,
    consume_credits,
    current_place,
    use_context,
)

ACME = RequestContext("acme", run_id="r1")


def test_bookings_become_lines_at_their_place(service: SyncCreditService) -> None:
    """Charges, what was given back, refunds; outside of the block nothing; refusals are nobody's booking."""
    service.grant_credits("acme", 20)

    @consume_credits("Painter", "draw", estimate=5, service=service)
    def draw(prompt: str) -> str:
        if not prompt:
            raise ValueError("nothing to draw")
        return prompt

    log = RunLog("acme", "r1")
    with use_context(ACME):
        draw("before")
        with log.listening(), at_place(agent="painter", task="a wave"):
            with at_place(tool="draw"):
                draw("a wave")
                with pytest.raises(ValueError, match="nothing"):
                    draw("")
            charge = service.consume_credits(organization_id="acme", amount="2.5", action="extra")
            service.refund_credits(charge, 1)
            with pytest.raises(InsufficientCreditsError):
                service.consume_credits(organization_id="acme", amount=100)
        draw("after")
    assert current_place().agent is None
    summary = log.summary()
    assert [(line.kind, line.amount, line.tool, line.action) for line in summary.lines] == [
        ("charged", 5, "draw", "draw"),
        ("given_back", 5, "draw", "draw"),
        ("charged", Decimal("2.5"), None, "extra"),
        ("given_back", 1, None, "extra"),
    ]
    assert {(line.agent, line.task) for line in summary.lines} == {("painter", "a wave")}
    assert (summary.charged, summary.given_back, summary.total("denied")) == (Decimal("7.5"), 6, 0)
    assert summary.by("tool")["draw"] == {
        "calls": 2, "charged": 5, "given_back": 5, "dry_run": 0, "denied": 0, "pending": 0,
    }  # fmt: skip
    data = json.loads(json.dumps(summary.as_dict()))
    assert (data["charged"], data["run_id"], data["by_agent"]["painter"]["calls"]) == ("7.5", "r1", 4)


def test_an_inner_run_is_part_of_the_outer_one(service: SyncCreditService) -> None:
    """Its lines are both runs'; a copied context carries the log into threads."""
    service.grant_credits("acme", 20)

    def charge(amount: int) -> None:
        service.consume_credits(organization_id="acme", amount=amount)

    outer = RunLog("acme")
    inner = RunLog("acme", outer=outer)
    with use_context(ACME), outer.listening(), ThreadPoolExecutor(1) as pool:
        charge(1)
        with inner.listening():
            pool.submit(contextvars.copy_context().run, charge, 2).result()
        pool.submit(charge, 4).result()
    assert (inner.summary().charged, outer.summary().charged) == (2, 3)
