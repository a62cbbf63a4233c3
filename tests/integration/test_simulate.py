"""simulate: recorded usage against other prices and limits, and nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from agentcredits import (
    AccountNotFoundError,
    CreditLimitExceededError,
    CreditService,
    InvalidInputError,
    PlannedLimit,
    PriceEntry,
    SimulationReport,
    SyncCreditService,
    read_limits,
)
from agentcredits.testing import FakeClock
from tests.integration.cli_calls import Call
from tests.integration.limit_book import ACME, DAY, HOUR, MINUTE, NOON, Book

VIDEO = {"agent_type": "VideoAgent", "action": "generate_video"}
QA = {"agent_type": "QAAgent", "action": "answer_question"}
BY_SECONDS = {
    "kind": "table",
    "dimensions": ["model"],
    "rows": [
        {"model": "fast", "rule": {"kind": "step", "dimension": "seconds", "size": 5, "credits": "1.5"}},
        {"model": "fine", "rule": {"kind": "step", "dimension": "seconds", "size": 5, "credits": "4"}},
    ],
}


def current(service: SyncCreditService, organization: str | None = None) -> list[PriceEntry]:
    """The prices in force now, as a list to import."""
    return [
        PriceEntry(price.agent_type, price.action, price.rule or price.cost or 0, price.free)
        for price in service.list_costs(organization)
        if price.organization_id == (organization or "")
    ]


def limits_now(service: SyncCreditService, organization: str = ACME) -> list[PlannedLimit]:
    """The limits that are set, as limits to try."""
    return [
        PlannedLimit(limit.amount, limit.window, limit.scope, limit.scope_id or None, limit.unit, limit.mode)
        for limit in service.list_limits(organization)
    ]


def difference(report: SimulationReport) -> Decimal:
    assert report.total.difference == sum(line.difference for line in report.lines)
    return report.total.difference


@pytest.fixture
def used(book: Book) -> Book:
    """Three days of charges of every kind: at once, held, refunded, free, given by the caller, and refused ones."""
    service, clock = book.service, book.clock
    service.set_cost("VideoAgent", "render", BY_SECONDS)
    service.set_cost("Helper", "ping", 0, free=True)
    service.set_cost("Writer", "draft", 5)
    service.set_limit(ACME, amount=60, window="day")
    service.set_limit(ACME, amount=40, window="day", scope="department")
    service.set_limit(ACME, amount=9, window="day", unit="count", scope="user", scope_id="ann")
    refusals = 0
    for day in range(3):
        clock.set(NOON + day * DAY)
        for turn in range(4):
            who: dict[str, Any] = {"department_id": f"d{turn % 2}", "user_id": "ann"}
            try:
                book.spend(None, **VIDEO, **who)
                first = book.spend(None, **QA, quantity=3, **who)
                service.refund_credits(first.id, "0.5", organization_id=ACME)
                service.refund_credits(first.id, organization_id=ACME)
                render = {"agent_type": "VideoAgent", "action": "render"}
                with book.hold(None, **render, dimensions={"model": "fine", "seconds": 12}, **who):
                    clock.advance(MINUTE)
                hold = book.hold(None, agent_type="Writer", action="draft", **who)
                hold.commit(2)
            except CreditLimitExceededError:
                refusals += 1
            clock.advance(HOUR)
        book.spend(None, agent_type="Helper", action="ping")
        book.spend("1.25")
    assert refusals
    return book


def test_todays_prices_and_limits_change_nothing(used: Book) -> None:
    """What ran under these prices and limits costs the same in the replay, to the micro, and nothing is refused."""
    report = used.service.simulate(costs=current(used.service), limits=limits_now(used.service))
    balance = used.service.get_balance(ACME)
    assert (difference(report), report.total.refused, report.limits) == (0, 0, ())
    assert report.total.recorded == report.total.simulated == balance.spent
    assert {kept.reason for kept in report.not_repriced} == {"amount_given"}
    given = {(kept.agent_type, kept.recorded / kept.charges) for kept in report.not_repriced}
    assert given == {("Writer", 2), (None, Decimal("1.25"))}


def test_a_raised_price_costs_that_much_more(used: Book) -> None:
    """The difference is the charges times the raise, less what refunds give back of it; other actions stay."""
    entries = [
        PriceEntry("VideoAgent", "generate_video", "12.5"),
        PriceEntry("QAAgent", "answer_question", "0.7"),
    ]
    report = used.service.simulate(ACME, costs=entries)
    lines = {line.action: line for line in report.lines}
    video = lines["generate_video"]
    assert video.difference == video.charges * Decimal("2.5") > 0
    # Every answer was given back in full: at any price.
    assert (lines["answer_question"].recorded, lines["answer_question"].simulated) == (0, 0)
    assert difference(report) == video.difference
    assert report.lines[0] is video
    assert used.service.get_usage(ACME).total.net == report.total.recorded


def test_a_rule_prices_by_what_was_told_then(book: Book) -> None:
    """Dimensions are in the ledger: started fives of seconds at the other rate, partly given back."""
    book.service.set_cost("VideoAgent", "render", BY_SECONDS)
    render = {"agent_type": "VideoAgent", "action": "render"}
    charge = book.spend(None, **render, dimensions={"model": "fast", "seconds": 12}, quantity=2)
    assert charge.charged == 9
    book.service.refund_credits(charge.id, 3, organization_id=ACME)
    other = {"kind": "step", "dimension": "seconds", "size": 1, "credits": "1"}
    (line,) = book.service.simulate(costs=[PriceEntry("VideoAgent", "render", other)]).lines
    # 24 credits, a third of them given back.
    assert (line.recorded, line.simulated) == (6, 16)


def test_what_cannot_be_priced_is_told_and_keeps_its_amount(book: Book) -> None:
    """Erased dimensions, and a list without a price for what was charged."""
    book.service.set_cost("VideoAgent", "render", BY_SECONDS)
    render = {"agent_type": "VideoAgent", "action": "render"}
    for seconds in (3, 20):
        book.spend(None, **render, dimensions={"model": "fast", "seconds": seconds})
    book.sql("UPDATE credit_transaction_details SET dimensions = NULL")
    report = book.service.simulate(costs=[PriceEntry("VideoAgent", "render", 100)])
    (kept,) = report.not_repriced
    assert (kept.reason, kept.charges, kept.recorded) == ("dimensions_missing", 2, Decimal("7.5"))
    assert difference(report) == 0
    book.spend(None, **QA)
    needs = {"kind": "step", "dimension": "pages", "size": 1, "credits": "1"}
    report = book.service.simulate(costs=[PriceEntry("QAAgent", "answer_question", needs)])
    (kept,) = [one for one in report.not_repriced if one.action == "answer_question"]
    assert (kept.charges, kept.recorded) == (1, Decimal("0.5"))
    assert "pages" in kept.message


def test_an_own_price_stands_before_a_planned_default(book: Book) -> None:
    """As an import would: unless the planned ones are tried as the organization's own."""
    book.service.set_cost("QAAgent", "answer_question", 2, organization_id=ACME)
    book.spend(None, **QA)
    entries = [PriceEntry("QAAgent", "answer_question", 9)]
    assert book.service.simulate(ACME, costs=entries).total.simulated == 2
    assert book.service.simulate(ACME, costs=entries, own_prices=True).total.simulated == 9


def test_a_price_counts_in_its_own_time(book: Book) -> None:
    """Around the times of a planned price the price of then counts; a hold has the price of its start."""
    planned = PriceEntry("QAAgent", "answer_question", 3, valid_from=NOON + HOUR, valid_until=NOON + 2 * HOUR)
    book.spend(None, **QA)
    book.clock.set(NOON + 2 * HOUR - MINUTE)
    hold = book.hold(None, **QA)
    book.clock.set(NOON + 2 * HOUR)
    hold.commit()
    book.spend(None, **QA)
    assert book.service.simulate(costs=[planned]).total.simulated == Decimal("0.5") + 3 + Decimal("0.5")


def test_what_a_charge_could_not_collect_it_cannot_collect_here(book: Book) -> None:
    """A capped charge took all that there was; a lower price it can pay."""
    book.service.adjust_credits(ACME, -993)
    charge = book.spend(None, **VIDEO, overage="cap")
    assert (charge.charged, charge.uncollected) == (7, 3)

    def at(price: int) -> Decimal:
        return book.service.simulate(costs=[PriceEntry("VideoAgent", "generate_video", price)]).total.simulated

    assert [at(price) for price in (4, 7, 10, 20)] == [4, 7, 7, 7]


def test_a_lower_limit_refuses_what_the_ledger_would_have_refused(book: Book) -> None:
    """First refusal, count and credits by limit; what is refused makes room for what comes later."""
    for amount in (30, 50, 15, 5):
        book.spend(amount, department_id="d1")
        book.clock.advance(MINUTE)
    book.clock.advance(DAY)
    book.spend(60)
    planned = [
        PlannedLimit(55, "day"),
        PlannedLimit("40", "day", "department"),
        PlannedLimit(1, "week", mode="soft"),
        PlannedLimit(2, "lifetime", "department", "d2", "count"),
    ]
    report = book.service.simulate(ACME, limits=planned)
    # 30 pass, 50 and 15 are over the department's 40, 5 pass; the next day 60 are over the organization's 55.
    assert (report.total.refused, report.total.refused_credits, report.total.simulated) == (3, 125, 35)
    *hard, soft = report.limits
    assert sum(effect.refused for effect in hard) == 3
    assert {effect.limit.scope: effect.refused for effect in hard}["department"] >= 1
    assert min(effect.first_at for effect in hard) == NOON + MINUTE
    assert (soft.limit.mode, soft.crossed, soft.refused, soft.first_at) == ("soft", 1, 0, NOON)


@pytest.mark.parametrize("seed", range(3))
def test_a_replay_refuses_exactly_what_a_live_ledger_refuses(book: Book, seed: int) -> None:
    """The same calls against a ledger that has the limits: the same refusals, at the same moments."""
    from random import Random

    chance = Random(seed)
    planned = [
        PlannedLimit(chance.randint(20, 60), "day"),
        PlannedLimit(chance.randint(10, 30), "hour", "department"),
        PlannedLimit(chance.randint(5, 25), "day", "department", "d1"),
        PlannedLimit(chance.randint(3, 9), "day", "user", unit="count"),
    ]
    service = book.service
    service.grant_credits("globex", 1_000)
    for limit in planned:
        service.set_limit(
            "globex",
            amount=limit.amount,
            window=limit.window,
            scope=limit.scope,  # type: ignore[arg-type]
            scope_id=limit.scope_id,
            unit=limit.unit,  # type: ignore[arg-type]
        )
    first_at: datetime | None = None
    refused, credits_of = 0, 0
    pairs: list[tuple[str, str | None]] = []
    for _ in range(60):
        book.clock.advance(timedelta(minutes=chance.randint(1, 90)))
        if pairs and chance.random() < 0.15:
            kept, tried = pairs.pop(chance.randrange(len(pairs)))
            service.refund_credits(kept, organization_id=ACME)
            if tried is not None:
                service.refund_credits(tried, organization_id="globex")
            continue
        amount = chance.randint(1, 20)
        who = {"department_id": chance.choice(["d1", "d2"]), "user_id": chance.choice(["ann", "bob"])}
        made = service.consume_credits(organization_id=ACME, amount=amount, **who)
        try:
            same = service.consume_credits(organization_id="globex", amount=amount, **who).id
        except CreditLimitExceededError:
            first_at = first_at or book.clock.now()
            refused, credits_of, same = refused + 1, credits_of + amount, ""
        pairs.append((made.id, same or None))
    report = service.simulate(ACME, limits=planned)
    assert refused
    assert (report.total.refused, report.total.refused_credits) == (refused, credits_of)
    assert min(effect.first_at for effect in report.limits) == first_at
    assert report.total.simulated == service.get_balance("globex").spent


def test_a_period_is_replayed_alone(book: Book) -> None:
    """Half-open; refunds in it of charges before it are left out, and so are those after it."""
    before = book.spend(1)
    book.clock.advance(HOUR)
    inside = book.spend(10)
    book.service.refund_credits(before.id, organization_id=ACME)
    book.clock.advance(HOUR)
    book.service.refund_credits(inside.id, organization_id=ACME)
    book.spend(100)
    report = book.service.simulate(limits=[PlannedLimit(1_000, "day")], since=NOON + HOUR, until=NOON + 2 * HOUR)
    assert (report.total.charges, report.total.recorded, report.total.simulated) == (1, 10, 10)
    assert (report.since, report.until) == (NOON + HOUR, NOON + 2 * HOUR)
    everything = book.service.simulate(limits=[PlannedLimit(1_000, "day")])
    assert everything.total.recorded == book.service.get_balance(ACME).spent == 100


def test_pages_do_not_show(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few rows are read at once; several organizations, each with its own limits."""
    monkeypatch.setattr("agentcredits.service.upkeep.PAGE_ROWS", 2)
    for name in ("a", "b", "c", "d", "e"):
        book.service.grant_credits(name, 100)
        for _ in range(5):
            book.service.consume_credits(organization_id=name, **QA)
    limits = [PlannedLimit(3, "day", unit="count"), PlannedLimit(1, "day", unit="count", organization_id="c")]
    with pytest.raises(InvalidInputError, match="limit 3 stands in the place"):
        book.service.simulate(limits=[*limits, limits[0]])
    report = book.service.simulate(limits=limits, costs=[PriceEntry("QAAgent", "answer_question", 1)])
    refused = {line.organization_id: line.refused for line in report.organizations}
    assert refused == {"a": 2, "b": 2, "c": 4, "d": 2, "e": 2}
    assert report.total.simulated == 3 * 4 + 1


def test_a_simulation_writes_nothing(used: Book) -> None:
    """No row of any table differs."""
    before = used.tables()
    used.service.simulate(costs=[PriceEntry("*", "*", 3)], limits=[PlannedLimit(0, "day"), PlannedLimit(1, "month")])
    assert used.tables() == before


def test_what_observe_let_pass_is_no_usage(book: Book, database_url: str) -> None:
    """It was never charged, so no price changes it."""
    from agentcredits import Settings

    with SyncCreditService(database_url, settings=Settings(mode="observe"), clock=book.clock) as observing:
        observing.consume_credits(organization_id=ACME, amount=5_000, **VIDEO)
    report = book.service.simulate(costs=[PriceEntry("VideoAgent", "generate_video", 11)])
    assert report.lines == ()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "costs= or limits="),
        ({"limits": [PlannedLimit(1, "fortnight")]}, "limit 1: "),
        ({"limits": [PlannedLimit(-1, "day")]}, "limit 1: "),
        ({"limits": [PlannedLimit(1, "day", "galaxy")]}, "scope must be one of"),
        ({"limits": [PlannedLimit("0.5", "day", unit="count")]}, "whole number"),
        ({"limits": [3]}, "must hold PlannedLimit"),
        ({"costs": [], "since": NOON + DAY}, "since must be before"),
        ({"costs": [], "since": datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001
    ],
)
def test_what_makes_no_sense_is_refused(sqlite_book: Book, arguments: dict[str, Any], said: str) -> None:
    """By a sentence."""
    with pytest.raises(InvalidInputError, match=said):
        sqlite_book.service.simulate(**arguments)


def test_an_unknown_organization_is_refused(sqlite_book: Book) -> None:
    """A slip in its name must not look like no usage."""
    with pytest.raises(AccountNotFoundError):
        sqlite_book.service.simulate("nobody", costs=[])


async def test_the_other_face_says_the_same(used: Book) -> None:
    """One simulation."""
    limits = [PlannedLimit(20, "day")]
    async with CreditService(used.url, clock=used.clock) as service:
        assert await service.simulate(ACME, limits=limits) == used.service.simulate(ACME, limits=limits)


# -- files and the command line ----------------------------------------------------------------------------------


LISTS = {
    "limits.toml": '[[limit]]\namount = 20\nwindow = "day"\n[[limit]]\namount = "2"\nwindow = "day"\nunit = "count"\n'
    'scope = "user"\n',
    "limits.json": '[{"amount": 20, "window": "day", "scope_id": null},'
    ' {"amount": "2", "window": "day", "unit": "count", "scope": "user", "scope_id": ""}]',
    "limits.csv": "scope,unit,amount,window\norganization,credits,20,day\nuser,count,2,day\n",
}


@pytest.mark.parametrize("name", LISTS)
def test_limits_are_read_from_files_of_three_kinds(tmp_path: Path, name: str) -> None:
    """The same limits."""
    path = tmp_path / name
    path.write_text(LISTS[name])
    first, second = read_limits(path)
    assert (Decimal(str(first.amount)), first.window, first.scope, first.scope_id) == (20, "day", "organization", None)
    assert (Decimal(str(second.amount)), second.unit, second.scope) == (2, "count", "user")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "", "must end in"),
        ("a.toml", "[[limit]\n", "cannot be read as TOML"),
        ("a.toml", "[[limits]]\namount = 1\n", "no limits, only"),
        ("a.json", "{}", "has no limits"),
        ("a.json", "[1]", "limit 1: it must be a table"),
        ("a.json", '[{"amount": 1, "window": "day"}, {"window": "day"}]', "limit 2, amount: it is missing"),
        ("a.json", '[{"amount": 1, "window": 5}]', "limit 1, window: it must be a text"),
        ("a.json", '[{"amount": 1, "window": "day", "colour": "red"}]', "limit 1, colour: there is no such field"),
        ("a.csv", "amount,window\n1,day,3\n", "more cells"),
    ],
)
def test_a_slip_in_a_file_is_told_with_its_place(tmp_path: Path, name: str, text: str, said: str) -> None:
    """File, entry and field."""
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=said) as refusal:
        read_limits(path)
    assert refusal.value.context["file"] == name


@pytest.fixture
def recent(database_url: str) -> Iterator[SyncCreditService]:
    """Charges of yesterday by the command line's own clock."""
    clock = FakeClock()
    clock.set(datetime.now(NOON.tzinfo) - HOUR)
    with SyncCreditService(database_url, clock=clock) as service:
        service.grant_credits(ACME, 100)
        for _ in range(3):
            service.consume_credits(organization_id=ACME, **VIDEO, user_id="ann")
        yield service


def test_the_command_shows_the_difference(on: Call, recent: SyncCreditService, tmp_path: Path) -> None:
    """A price list and a file of limits; as a table and as JSON."""
    prices = tmp_path / "prices.toml"
    prices.write_text('[[price]]\nagent_type = "VideoAgent"\naction = "generate_video"\ncost = 12\n')
    limits = tmp_path / "limits.csv"
    limits.write_text(LISTS["limits.csv"])
    shown = on("simulate", "--costs", prices, "--since", "2d")
    assert (shown.code, shown.err) == (0, "")
    assert "36" in shown.out
    assert "+6" in shown.out
    data = on("simulate", "--costs", prices, "--limits", limits, "--org", ACME, "--json").data
    assert (data["total"]["recorded"], data["total"]["simulated"], data["total"]["refused"]) == (30, 12, 2)
    assert [line["action"] for line in data["lines"]] == ["generate_video"]
    assert sum(effect["refused"] for effect in data["limits"]) == 2
    assert on("simulate").code == 2
    assert on("simulate", "--costs", prices, "--org", "nobody").code == 3


def test_the_limits_that_are_set_can_be_tried_as_they_are_listed(
    on: Call, recent: SyncCreditService, tmp_path: Path
) -> None:
    """``limits list --json`` is a file for ``--limits``."""
    recent.set_limit(ACME, amount=25, window="day", include_existing=True)
    recent.set_limit(ACME, amount=1, window="lifetime", scope="user", unit="count", mode="soft")
    path = tmp_path / "limits.json"
    path.write_text(on("limits", "list", ACME, "--json").out)
    assert len(json.loads(path.read_text())["items"]) == 2
    data = on("simulate", "--limits", path, "--json").data
    assert (data["total"]["refused"], data["total"]["difference"]) == (1, -10)
