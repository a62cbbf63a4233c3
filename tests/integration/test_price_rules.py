"""Price rules in the database: charged by dimensions at every door, explained, wrong ones refused alone."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest

from agentcredits import (
    InvalidInputError,
    PlannedAction,
    PriceRule,
    RequestContext,
    SyncCreditService,
    UnpricedActionError,
    consume_credits,
    token_dimensions,
    use_context,
)
from agentcredits.settings import Settings
from agentcredits.testing import FakeClock
from tests.integration.price_book import ACME, charge, priced, rows, sql

VIDEO = PriceRule.table(
    ["model", "resolution", "duration"],
    [
        {"model": "Hailuo", "resolution": "1080P", "duration": 6, "credits": 1100},
        {
            "model": "Turbo",
            "rule": PriceRule.cost_plus(PriceRule.usd("0.05", per="duration"), credits_per_usd=2000, fee=120),
        },
    ],
)


@pytest.fixture
def service(database_url: str) -> Iterator[SyncCreditService]:
    """A service that reads every price anew, and an account with credits."""
    with priced(database_url, 100_000) as made:
        yield made


# -- charging ------------------------------------------------------------------------------------------------------


def test_every_door_charges_by_dimensions(service: SyncCreditService) -> None:
    """Check, quote, consume, reserve and the decorator find the same price; nothing about their calls is new."""
    service.set_cost("VideoAgent", "generate_video", VIDEO)
    place: dict[str, Any] = {"agent_type": "VideoAgent", "action": "generate_video"}
    dimensions = {"model": "turbo", "duration": 10}

    @consume_credits(
        "VideoAgent",
        "generate_video",
        dimensions=lambda model, duration: {"model": model, "duration": duration},
        service=service,
    )
    def generate(model: str, duration: int) -> str:
        return f"{model} {duration}"

    assert service.check_credits(ACME, **place, dimensions=dimensions).required == 1120
    (line,) = service.quote(ACME, [PlannedAction(**place, quantity=2, dimensions=dimensions)]).lines
    assert (line.amount, line.usd) == (2240, 1)
    assert [str(step) for step in line.steps] == [
        "line model=Turbo",
        "0.05 USD per duration × 10 = 0.5 USD",
        "0.5 USD × 2,000 credits per USD + 120 = 1,120 credits",
        "1,120 credits × quantity 2 = 2,240 credits",
    ]
    row = service.consume_credits(organization_id=ACME, **place, dimensions=dimensions)
    assert (row.charged, row.dimensions) == (1120, dimensions)
    with service.reserve_credits(organization_id=ACME, **place, dimensions=dimensions) as hold:
        assert hold.amount == 1120
    with use_context(RequestContext(ACME)):
        assert generate("Turbo", 5) == "Turbo 5"
    assert service.list_transactions(ACME, limit=1).items[0].charged == 620
    assert service.verify()


def test_a_document_is_taken_as_well_as_a_rule(service: SyncCreditService) -> None:
    """A mapping, as it stands in a price list; what is stored is what was meant."""
    made = service.set_cost(
        "A", "b", {"kind": "step", "dimension": "duration", "size": 15, "credits": 1}, as_of=date(2026, 5, 1)
    )
    assert made == service.get_cost("A", "b")
    assert (made.cost, made.as_of) == (None, date(2026, 5, 1))
    assert made.rule == PriceRule.step("duration", size=15, credits=1).document
    found = service.consume_credits(organization_id=ACME, agent_type="A", action="b", dimensions={"duration": 47})
    assert found.charged == 4


def test_an_llm_call_is_held_by_its_estimate_and_settled_by_its_tokens(service: SyncCreditService) -> None:
    """The usage names of CrewAI become the dimensions of the same price."""
    service.set_cost(
        "*",
        "llm_call",
        PriceRule.tokens(
            input="2.5", output=10, credits_per_usd=1000, estimate={"input_tokens": 4000, "output_tokens": 1000}
        ),
    )

    def rate(usage: dict[str, int]) -> Decimal:
        planned = PlannedAction("Crew", "llm_call", dimensions=token_dimensions(usage))
        return service.quote(ACME, [planned]).total

    hold = service.reserve_credits(organization_id=ACME, agent_type="Crew", action="llm_call")
    assert hold.amount == 20
    settled = hold.commit(rate({"prompt_tokens": 1200, "completion_tokens": 300, "total_tokens": 1500}))
    assert settled.charged == 6


@pytest.mark.parametrize(
    ("dimensions", "words"),
    [
        ({"model": "nope"}, "no price for model 'nope': known are Hailuo, Turbo"),
        ({"model": "Hailuo", "resolution": "1080P"}, "dimension duration, which is missing"),
        ({"model": "Hailuo", "resolution": "4K", "duration": 6}, "no price for resolution '4K'"),
        ({"model": "Turbo", "duration": -5}, "duration must be above zero"),
        (None, "dimension model, which is missing"),
    ],
)
def test_a_call_without_a_price_is_refused_at_every_door_and_charges_nothing(
    service: SyncCreditService, dimensions: Any, words: str
) -> None:
    """Unknown model, missing dimension, a resolution that is not sold, a negative duration."""
    service.set_cost("VideoAgent", "generate_video", VIDEO)
    ran: list[str] = []
    place: dict[str, Any] = {"agent_type": "VideoAgent", "action": "generate_video", "dimensions": dimensions}

    @consume_credits("VideoAgent", "generate_video", dimensions=dimensions, service=service)
    def generate() -> None:
        ran.append("generate")

    doors: list[Any] = [
        lambda: service.consume_credits(organization_id=ACME, **place),
        lambda: service.consume_credits(organization_id=ACME, **place, idempotency_key="k"),
        lambda: service.reserve_credits(organization_id=ACME, **place),
        lambda: service.check_credits(ACME, **place),
        lambda: service.quote(ACME, [PlannedAction(**place)]),
        lambda: service.explain_cost("VideoAgent", "generate_video", dimensions=dimensions),
        generate,
    ]
    with use_context(RequestContext(ACME)):
        for door in doors:
            with pytest.raises(UnpricedActionError, match=r"^VideoAgent\.generate_video: ") as refusal:
                door()
            assert words in refusal.value.message
            assert refusal.value.context["dimension"]
    assert ran == []
    assert service.get_balance(ACME).available == 100_000
    assert service.list_reservations(ACME) == ()


def test_in_mode_observe_a_missing_price_of_a_rule_is_only_recorded(database_url: str) -> None:
    """As for an action without any price."""
    with SyncCreditService(database_url, settings=Settings(mode="observe")) as service:
        service.grant_credits(ACME, 10)
        service.set_cost("VideoAgent", "generate_video", VIDEO)
        assert charge(service, model="nope") == 0
        (denial,) = service.list_denials(ACME)
        assert (denial.code, denial.reason) == ("unpriced_action", "unknown_dimension")


# -- plain SQL -----------------------------------------------------------------------------------------------------


def test_a_rule_that_another_process_wrote_is_used_within_a_second(database_url: str) -> None:
    """With default settings, and a price that this process already knows."""
    rule = json.dumps({"kind": "flat", "credits": 3, "per": "duration"})
    with SyncCreditService(database_url) as service:
        service.grant_credits(ACME, 1000)
        assert charge(service, duration=2) == 10
        sql(database_url, "UPDATE agent_action_costs SET rule = :rule WHERE action = 'generate_video'", rule=rule)
        deadline = time.monotonic() + 1
        while True:
            asked = time.monotonic()
            if (found := charge(service, duration=2)) == 6 or asked >= deadline:
                break
            time.sleep(0.02)
        assert found == 6


@pytest.mark.parametrize(
    ("typed", "reason", "field"),
    [
        ('{"kind":"flat","credits":"-1"}', "unusable_price", "credits"),
        ('{"kind":"flat","credits":"1","per":""}', "unusable_price", "per"),
        ('{"kind":"table","dimensions":["m"],"rows":[{"m":"a","credits":"NaN"}]}', "unusable_price", "rows[0].credits"),
        (
            '{"kind":"table","dimensions":["m"],"rows":[{"m":"a","credits":1,"source":5}]}',
            "unusable_price",
            "rows[0].source",
        ),
        ('{"kind":"usd","usd":"0.05"}', "unusable_price", "credits_per_usd"),
        ('{"kind":"flat","credits":1,"colour":"red"}', "unusable_price", "colour"),
        ('{"kind":"flat","credits":', "unusable_price", ""),
        ("", "unusable_price", ""),
        ('{"kind":"auction"}', "unknown_price_rule", "kind"),
        ('{"kind":"flat","credits":1,"version":2}', "unknown_price_rule", "version"),
    ],
)
def test_a_rule_that_an_operator_mistyped_refuses_its_own_action_only(
    service: SyncCreditService, database_url: str, typed: str, reason: str, field: str
) -> None:
    """The field is named; other prices are charged, and the list shows the row with its problem."""
    sql(database_url, "UPDATE agent_action_costs SET rule = :rule WHERE action = 'generate_video'", rule=typed)
    with pytest.raises(UnpricedActionError, match=r"VideoAgent\.generate_video") as refusal:
        charge(service, m="a")
    assert (refusal.value.reason, refusal.value.context["field"]) == (reason, field)
    other = service.consume_credits(organization_id=ACME, agent_type="QAAgent", action="answer_question")
    assert other.charged == Decimal("0.5")
    listed = {row.action: row for row in service.list_costs()}
    assert len(listed) == 8
    broken = listed.pop("generate_video")
    assert (broken.cost, broken.rule) == (None, None)
    assert broken.problem is not None
    assert field in broken.problem
    assert {row.problem for row in listed.values()} == {None}


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "flat"},
        {"kind": "usd", "usd": 1},
        {"kind": "auction"},
        {"kind": "flat", "credits": float("nan")},
        PriceRule.usd(1),
    ],
    ids=str,
)
def test_a_rule_that_cannot_be_used_is_not_set(service: SyncCreditService, database_url: str, wrong: Any) -> None:
    """The place is named and the table stays as it was."""
    before = rows(database_url)
    with pytest.raises(InvalidInputError) as refusal:
        service.set_cost("VideoAgent", "generate_video", wrong)
    assert refusal.value.context["field"]
    assert rows(database_url) == before


# -- effective dates and age ---------------------------------------------------------------------------------------


def test_a_rule_is_closed_by_the_next_price_and_history_keeps_it(database_url: str, clock: FakeClock) -> None:
    """A rule for a time lies over a flat cost, as flat prices do."""
    with SyncCreditService(database_url, clock=clock, settings=Settings(price_cache_seconds=0)) as service:
        service.grant_credits(ACME, 1000)
        service.set_cost("VideoAgent", "generate_video", 7)
        clock.advance(timedelta(days=1))
        service.set_cost(
            "VideoAgent",
            "generate_video",
            PriceRule.flat(2, per="duration"),
            valid_until=clock.now() + timedelta(days=1),
        )
        assert charge(service, duration=5) == 10
        clock.advance(timedelta(days=1))
        assert charge(service, duration=5) == 7
        kinds = [row.rule and row.rule["kind"] for row in service.list_costs(all_versions=True) if row.source is None]
        assert kinds == [None, "flat"]


def test_an_old_price_warns_once(
    database_url: str, clock: FakeClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older than the setting by its own day, by the line's of a table, or by the day on which it was set."""
    monkeypatch.setattr("agentcredits.service.prices._warned_old", set())
    today = clock.now().date()
    settings = Settings(price_max_age_days=30, price_cache_seconds=0)
    with SyncCreditService(database_url, clock=clock, settings=settings) as service:
        service.grant_credits(ACME, 1000)
        service.set_cost("Old", "dated", 1, as_of=today - timedelta(days=31))
        service.set_cost("Old", "fresh", 1, as_of=today - timedelta(days=30))
        line = {"m": "a", "credits": 1, "as_of": (today - timedelta(days=90)).isoformat()}
        service.set_cost("Old", "line", PriceRule.table(["m"], [line]), as_of=today)
        service.set_cost("Old", "undated", 1)

        def run() -> list[str]:
            caplog.clear()
            with caplog.at_level(logging.WARNING, logger="agentcredits"):
                for action in ("dated", "fresh", "line", "undated"):
                    service.consume_credits(
                        organization_id=ACME, agent_type="Old", action=action, dimensions={"m": "a"}
                    )
            return [record.getMessage() for record in caplog.records if "older than 30 days" in record.getMessage()]

        first = run()
        assert [words.split()[4] for words in first] == ["Old.dated", "Old.line"]
        assert f"of {today - timedelta(days=31)}" in first[0]
        assert run() == []
        clock.advance(timedelta(days=31))
        assert [words.split()[4] for words in run()] == ["Old.fresh", "Old.undated"]


def test_without_the_setting_nothing_is_old(service: SyncCreditService, caplog: pytest.LogCaptureFixture) -> None:
    """The default."""
    service.set_cost("VideoAgent", "generate_video", 1, as_of=date(1999, 1, 1))
    with caplog.at_level(logging.WARNING, logger="agentcredits"):
        charge(service)
    assert caplog.records == []


# -- explaining ----------------------------------------------------------------------------------------------------


def test_an_explanation_ends_at_the_charge(service: SyncCreditService) -> None:
    """Flat and by rule, with the row that applies and its source; an organization's own price first."""
    service.set_cost("VideoAgent", "generate_video", VIDEO, source="contract", as_of=date(2026, 1, 2))
    dimensions = {"model": "Hailuo", "resolution": "1080P", "duration": 6}
    found = service.explain_cost("VideoAgent", "generate_video", quantity="0.5", dimensions=dimensions)
    assert (found.amount, found.quantity, found.dimensions) == (550, Decimal("0.5"), dimensions)
    assert (found.price.source, found.price.as_of) == ("contract", date(2026, 1, 2))
    assert [str(step) for step in found.steps] == [
        "line model=Hailuo, resolution=1080P, duration=6",
        "1,100 credits each",
        "1,100 credits × quantity 0.5 = 550 credits",
    ]
    service.set_cost("VideoAgent", "generate_video", "0.3", organization_id=ACME)
    own = service.explain_cost("VideoAgent", "generate_video", organization_id=ACME, quantity="0.333333")
    assert own.amount == Decimal("0.1")
    assert [str(step) for step in own.steps] == [
        "0.3 credits each",
        "0.3 credits × quantity 0.333333 = 0.0999999 credits",
        "rounded up to the micro-credit: 0.1 credits",
    ]
    assert own.price.organization_id == ACME
