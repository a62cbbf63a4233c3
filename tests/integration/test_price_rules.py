"""Price rules in the database: charged by dimensions at every door, imported whole or not at all, wrong ones alone."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from agentcredits import (
    CreditService,
    InvalidInputError,
    PlannedAction,
    PriceEntry,
    PriceList,
    PriceRule,
    RequestContext,
    StoreError,
    SyncCreditService,
    UnpricedActionError,
    consume_credits,
    token_dimensions,
    use_context,
)
from agentcredits.settings import Settings
from agentcredits.testing import FakeClock

ACME = "acme"
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
    with SyncCreditService(database_url, settings=Settings(price_cache_seconds=0)) as made:
        made.grant_credits(ACME, 100_000)
        yield made


def sql(url: str, statement: str, **parameters: Any) -> None:
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            connection.execute(text(statement), parameters)
    finally:
        engine.dispose()


def rows(url: str) -> list[tuple[Any, ...]]:
    """The whole table of prices."""
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            statement = text(
                "SELECT * FROM agent_action_costs ORDER BY organization_id, agent_type, action, valid_from"
            )
            return [tuple(row) for row in connection.execute(statement)]
    finally:
        engine.dispose()


def charge(service: SyncCreditService, **dimensions: Any) -> Decimal:
    return service.consume_credits(
        organization_id=ACME, agent_type="VideoAgent", action="generate_video", dimensions=dimensions
    ).charged


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


# -- importing -----------------------------------------------------------------------------------------------------


def statuses(changes: Any) -> dict[str, str]:
    return {f"{change.agent_type}.{change.action}": change.status for change in changes}


def test_a_list_is_imported_once_and_twice_changes_nothing(service: SyncCreditService, database_url: str) -> None:
    """The second run writes no row; the comparison says the same before and after."""
    entries = PriceList.shipped("studio-models").entries
    before = rows(database_url)
    compared = statuses(service.diff_costs(entries))
    assert rows(database_url) == before
    assert {name: status for name, status in compared.items() if status != "only_in_database"} == {
        "VideoAgent.generate_video": "changed",
        "ImageAgent.generate_image": "new",
        "MusicAgent.generate_music": "new",
    }
    assert sum(status == "only_in_database" for status in compared.values()) == 7
    changes = service.import_costs(entries)
    assert [change.status for change in changes] == ["changed", "new", "new"]
    assert changes[0].before is not None
    assert changes[0].before.cost == 10
    assert changes[0].after == service.get_cost("VideoAgent", "generate_video")
    assert charge(service, model="MiniMax-Hailuo-02", resolution="1080P", duration=6) == 1100
    imported = rows(database_url)
    assert set(statuses(service.import_costs(entries)).values()) == {"same"}
    assert rows(database_url) == imported


@pytest.mark.parametrize("name", ["studio-models", "studio-models-cost-plus", "media-types", "agent-actions"])
def test_the_lists_that_ship_charge_what_they_say(service: SyncCreditService, name: str) -> None:
    """From the file through the database to the ledger."""
    service.import_costs(PriceList.shipped(name).entries)
    places: dict[str, tuple[dict[str, Any], int]] = {
        "studio-models": ({"model": "S2V-01"}, 1420),
        "studio-models-cost-plus": ({"model": "Gen-4 Aleph", "duration": 10}, 3120),
        "media-types": ({"duration": 8}, 50),
        "agent-actions": ({}, 10),
    }
    dimensions, credits_ = places[name]
    assert charge(service, **dimensions) == credits_


def test_what_differs_is_told(service: SyncCreditService) -> None:
    """Rows of a table, source and day; an operator's broken row is mended by an import."""
    service.import_costs([PriceEntry("A", "b", PriceRule.table(["m"], [{"m": "a", "credits": 1}]))])
    newer = PriceEntry(
        "A", "b", PriceRule.table(["m"], [{"m": "a", "credits": 2}]), source="contract", as_of=date(2026, 1, 2)
    )
    (change,) = service.import_costs([newer])
    assert change.details == ("m=a: 1 credits → 2 credits", "source: none → contract", "as_of: none → 2026-01-02")
    assert [row.as_of for row in service.list_costs(all_versions=True) if row.agent_type == "A"] == [
        None,
        date(2026, 1, 2),
    ]


def test_an_import_is_all_or_nothing(service: SyncCreditService, database_url: str) -> None:
    """The database refuses the last price: the first ones are not there either."""
    before = rows(database_url)
    if "postgresql" in database_url:
        sql(database_url, "ALTER TABLE agent_action_costs ADD CONSTRAINT no_last CHECK (action <> 'last')")
    else:
        sql(
            database_url,
            "CREATE TRIGGER no_last BEFORE INSERT ON agent_action_costs WHEN NEW.action = 'last'"
            " BEGIN SELECT RAISE(ABORT, 'no'); END",
        )
    with pytest.raises(StoreError):
        service.import_costs([PriceEntry("VideoAgent", "generate_video", 1), PriceEntry("A", "last", 1)])
    assert rows(database_url) == before
    with pytest.raises(InvalidInputError, match=r"A\.first twice"):
        service.import_costs([PriceEntry("A", "first", 1), PriceEntry("A", "first", 2)])
    assert rows(database_url) == before


def test_prices_are_checked_before_any_is_written() -> None:
    """An entry that cannot be used cannot be made."""
    for wrong in (
        {"agent_type": ""},
        {"action": "a\x00"},
        {"cost": -1},
        {"cost": 0},
        {"cost": 1, "free": True},
        {"cost": {"kind": "flat"}},
        {"source": ""},
        {"as_of": "2026-01-01"},
        {"as_of": datetime(2026, 1, 1, tzinfo=UTC)},
    ):
        with pytest.raises(InvalidInputError):
            PriceEntry(**{"agent_type": "A", "action": "b", "cost": 1, **wrong})  # type: ignore[arg-type]


def test_planned_and_past_prices_of_a_list(database_url: str, clock: FakeClock) -> None:
    """A price for later is written once; one that is over is told and not written; a sale lies over the base price."""
    with SyncCreditService(database_url, clock=clock, settings=Settings(price_cache_seconds=0)) as service:
        day = timedelta(days=1)
        entries = [
            PriceEntry("A", "later", 2, valid_from=clock.now() + day),
            PriceEntry("A", "over", 2, valid_until=clock.now() - day),
            PriceEntry("A", "sale", 2, valid_until=clock.now() + day),
        ]
        service.set_cost("A", "sale", 5)
        clock.advance(timedelta(hours=1))
        assert [change.status for change in service.import_costs(entries)] == ["new", "over", "changed"]
        written = rows(database_url)
        assert [change.status for change in service.import_costs(entries)] == ["same", "over", "same"]
        assert rows(database_url) == written
        assert service.get_cost("A", "sale").cost == 2
        clock.advance(day)
        assert (service.get_cost("A", "sale").cost, service.get_cost("A", "later").cost) == (5, 2)


def test_an_organizations_own_list_leaves_the_defaults_alone(service: SyncCreditService) -> None:
    """It is compared with the organization's own prices only."""
    entries = PriceList.shipped("agent-actions").entries
    assert set(statuses(service.diff_costs(entries)).values()) == {"same"}
    assert set(statuses(service.import_costs(entries, organization_id="globex")).values()) == {"new"}
    assert set(statuses(service.diff_costs(entries, organization_id="globex")).values()) == {"same"}
    assert len([row for row in service.list_costs("globex") if row.organization_id]) == 8
    assert len(service.list_costs()) == 8


def test_two_imports_at_once_write_each_price_once(database_url: str) -> None:
    """The second waits and finds everything the same."""
    entries = PriceList.shipped("studio-models").entries
    found: list[Any] = []
    barrier = threading.Barrier(4)

    def run() -> None:
        with SyncCreditService(database_url) as service:
            barrier.wait()
            found.append(statuses(service.import_costs(entries)))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert sum(set(statuses_.values()) == {"same"} for statuses_ in found) == 3
    assert len(rows(database_url)) == 8 + 3


async def test_the_coroutine_face_does_the_same(aservice: CreditService) -> None:
    """Importing, comparing, explaining."""
    entries = PriceList.shipped("media-types").entries
    assert "new" in statuses(await aservice.diff_costs(entries)).values()
    assert "new" in statuses(await aservice.import_costs(entries)).values()
    found = await aservice.explain_cost("LipsyncAgent", "generate_lipsync", dimensions={"duration": 11})
    assert found.amount == 40
