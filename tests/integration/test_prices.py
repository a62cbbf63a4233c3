"""Prices live in agent_action_costs: seeded once, edited with plain SQL, used within a second, exact to the micro."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url, text

from agentcredits import (
    AccountNotFoundError,
    CreditService,
    InvalidAmountError,
    InvalidInputError,
    PlannedAction,
    Pricing,
    RequestContext,
    SyncCreditService,
    UnpricedActionError,
    consume_credits,
    use_context,
)
from agentcredits.settings import Settings
from agentcredits.testing import FakeClock

ACME = "acme"
GUIDE_PRICES = {
    ("ContentAgent", "generate_content"): "1",
    ("ContentAgent", "generate_instagram_reel"): "5",
    ("VisualPostAgent", "create_visual_post"): "2",
    ("VoiceAgent", "generate_voice"): "2",
    ("VideoAgent", "generate_video"): "10",
    ("ResearchAgent", "research_topic"): "1",
    ("QAAgent", "answer_question"): "0.5",
    ("WorkflowAgent", "execute_workflow"): "3",
}
#: What an operator runs in another process, with nothing but the database's own driver.
SQLITE_OPERATOR = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute(sys.argv[2])
connection.commit()
connection.close()
"""
POSTGRES_OPERATOR = """
import psycopg, sys
with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    connection.execute(sys.argv[2])
"""


def operator(url: str, statement: str) -> None:
    """Plain SQL from another process."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        program, target = SQLITE_OPERATOR, str(parsed.database)
    else:
        program, target = POSTGRES_OPERATOR, parsed.set(drivername="postgresql").render_as_string(hide_password=False)
    subprocess.run([sys.executable, "-c", program, target, statement], check=True, timeout=60)


def sql(url: str, statement: str, **parameters: Any) -> None:
    """Plain SQL from this process."""
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            connection.execute(text(statement), parameters)
    finally:
        engine.dispose()


@pytest.fixture
def service(database_url: str) -> Iterator[SyncCreditService]:
    """A service that reads every price anew."""
    with SyncCreditService(database_url, settings=Settings(price_cache_seconds=0)) as made:
        made.grant_credits(ACME, 1000)
        yield made


@pytest.fixture
def timed(database_url: str, clock: FakeClock) -> Iterator[SyncCreditService]:
    """The same under a clock that is moved by hand."""
    with SyncCreditService(database_url, clock=clock, settings=Settings(price_cache_seconds=0)) as made:
        made.grant_credits(ACME, 1000)
        yield made


def cost(service: SyncCreditService, agent_type: str = "Agent", action: str = "act", **arguments: Any) -> Decimal:
    """What a charge of the action costs now, charged for real."""
    return service.consume_credits(
        organization_id=arguments.pop("organization_id", ACME), agent_type=agent_type, action=action, **arguments
    ).charged


def within_a_second(service: SyncCreditService, expected: Decimal | None, *place: str) -> bool:
    """Whether the process charges the new price (None: refuses) at most a second later."""
    deadline = time.monotonic() + 1.0
    while True:
        looked_at = time.monotonic()
        try:
            found = cost(service, *place)
        except UnpricedActionError:
            found = None
        if found == expected or looked_at >= deadline:
            return found == expected
        time.sleep(0.02)


# -- the operator's plain SQL --------------------------------------------------------------------------------------


def test_the_eight_default_prices_are_the_guides(service: SyncCreditService) -> None:
    """Seeded by the migration, in force from the start, charged as the guide says."""
    rows = service.list_costs()
    assert {(row.agent_type, row.action): row.cost for row in rows} == {
        place: Decimal(price) for place, price in GUIDE_PRICES.items()
    }
    assert {(row.organization_id, row.valid_until, row.free) for row in rows} == {("", None, False)}
    assert {place: str(cost(service, *place)) for place in GUIDE_PRICES} == GUIDE_PRICES


def test_an_update_by_another_process_is_used_within_a_second(database_url: str) -> None:
    """With default settings and a price that this process already knows."""
    with SyncCreditService(database_url) as service:
        service.grant_credits(ACME, 1000)
        assert cost(service, "VideoAgent", "generate_video") == 10
        operator(database_url, "UPDATE agent_action_costs SET cost = 2.5 WHERE action = 'generate_video'")
        assert within_a_second(service, Decimal("2.5"), "VideoAgent", "generate_video")


def test_a_row_inserted_or_deleted_by_another_process_is_used_within_a_second(database_url: str) -> None:
    """Also what was unpriced is looked at again, and what is gone is refused again."""
    insert = (
        "INSERT INTO agent_action_costs (agent_type, action, cost, valid_from)"
        " VALUES ('Agent', 'act', 4, '2020-01-01 00:00:00.000000')"
    )
    with SyncCreditService(database_url) as service:
        service.grant_credits(ACME, 1000)
        with pytest.raises(UnpricedActionError):
            cost(service)
        operator(database_url, insert)
        assert within_a_second(service, Decimal(4))
        operator(database_url, "DELETE FROM agent_action_costs WHERE agent_type = 'Agent'")
        assert within_a_second(service, None)


def test_a_price_set_here_is_used_at_once(database_url: str) -> None:
    """The process's own memory of prices is cleared by set_cost."""
    with SyncCreditService(database_url) as service:
        service.grant_credits(ACME, 1000)
        with pytest.raises(UnpricedActionError):
            cost(service)
        service.set_cost("Agent", "act", 2)
        assert cost(service) == 2
        service.set_cost("Agent", "act", 3)
        assert cost(service) == 3


# -- which row -----------------------------------------------------------------------------------------------------


def test_an_own_row_beats_the_default_and_an_exact_name_beats_the_star(
    service: SyncCreditService, database_url: str
) -> None:
    """Organization first, then agent type, then action; each row is taken away to see the next one."""
    order: list[tuple[str, str, str, int]] = [
        (ACME, "Agent", "act", 1),
        (ACME, "Agent", "*", 2),
        (ACME, "*", "act", 3),
        (ACME, "*", "*", 4),
        ("", "Agent", "act", 5),
        ("", "Agent", "*", 6),
        ("", "*", "act", 7),
        ("", "*", "*", 8),
    ]
    for organization_id, agent_type, action, price in reversed(order):
        service.set_cost(agent_type, action, price, organization_id=organization_id or None)
    found = []
    for organization_id, agent_type, action, _ in order:
        found.append(int(cost(service)))
        sql(
            database_url,
            "DELETE FROM agent_action_costs WHERE organization_id = :o AND agent_type = :t AND action = :a",
            o=organization_id,
            t=agent_type,
            a=action,
        )
    assert found == [1, 2, 3, 4, 5, 6, 7, 8]
    with pytest.raises(UnpricedActionError):
        cost(service)


def test_an_own_row_is_for_its_organization_only(service: SyncCreditService) -> None:
    """Another organization pays the default; listing shows an organization its own and the defaults."""
    service.grant_credits("other", 10)
    service.set_cost("QAAgent", "answer_question", 9, organization_id=ACME)
    assert cost(service, "QAAgent", "answer_question") == 9
    assert cost(service, "QAAgent", "answer_question", organization_id="other") == Decimal("0.5")
    assert service.get_cost("QAAgent", "answer_question", organization_id=ACME).cost == 9
    assert service.get_cost("QAAgent", "answer_question").cost == Decimal("0.5")
    assert len(service.list_costs()) == len(service.list_costs("other")) == 8
    assert [row.cost for row in service.list_costs(ACME) if row.organization_id] == [9]


def test_the_latest_row_in_force_wins_where_an_operator_left_two(service: SyncCreditService, database_url: str) -> None:
    """Plain SQL can make rows overlap; the one that became valid last is used."""
    for year, price in ((2021, 1), (2023, 3), (2022, 2)):
        sql(
            database_url,
            "INSERT INTO agent_action_costs (agent_type, action, cost, valid_from) VALUES ('Agent', 'act', :c, :f)",
            c=price,
            f=f"{year}-01-01 00:00:00.000000+00" if "postgresql" in database_url else f"{year}-01-01 00:00:00.000000",
        )
    assert cost(service) == 3


# -- effective dates -----------------------------------------------------------------------------------------------


def test_a_price_begins_and_ends_to_the_microsecond(timed: SyncCreditService, clock: FakeClock) -> None:
    """valid_from <= now < valid_until."""
    start, end = clock.now() + timedelta(days=1), clock.now() + timedelta(days=2)
    tick = timedelta(microseconds=1)
    timed.set_cost("Agent", "act", 1, valid_from=start, valid_until=end)
    answers = []
    for moment in (start - tick, start, end - tick, end):
        clock.set(moment)
        try:
            answers.append(cost(timed))
        except UnpricedActionError:
            answers.append(None)
    assert answers == [None, 1, 1, None]


def test_set_cost_closes_the_row_before_it(timed: SyncCreditService, clock: FakeClock) -> None:
    """History keeps its prices: the old row ends where the new one begins, and nothing is overwritten."""
    first = timed.set_cost("Agent", "act", 1, source="launch")
    later = clock.advance(timedelta(days=1))
    second = timed.set_cost("Agent", "act", 2)
    rows = [row for row in timed.list_costs(all_versions=True) if row.agent_type == "Agent"]
    assert [(row.cost, row.valid_from, row.valid_until) for row in rows] == [
        (1, first.valid_from, later),
        (2, later, None),
    ]
    assert rows[0].source == "launch"
    assert rows[1] == second
    assert [row.cost for row in timed.list_costs() if row.agent_type == "Agent"] == [2]
    assert cost(timed) == 2


def test_a_price_for_a_time_lies_over_the_one_before(timed: SyncCreditService, clock: FakeClock) -> None:
    """When it ends the price before is in force again: an action never loses its price by a sale."""
    timed.set_cost("Agent", "act", 5)
    clock.advance(timedelta(days=1))
    timed.set_cost("Agent", "act", 3, valid_until=clock.now() + timedelta(days=7))
    assert cost(timed) == 3
    clock.advance(timedelta(days=7))
    assert cost(timed) == 5


def test_a_price_change_can_be_planned(timed: SyncCreditService, clock: FakeClock) -> None:
    """The old price stays in force until then, and both are listed as in force or to come."""
    timed.set_cost("Agent", "act", 1)
    change = clock.now() + timedelta(days=7)
    timed.set_cost("Agent", "act", 2, valid_from=change)
    assert cost(timed) == 1
    assert [row.cost for row in timed.list_costs() if row.agent_type == "Agent"] == [1, 2]
    clock.set(change)
    assert cost(timed) == 2


def test_setting_a_price_twice_in_the_same_moment_keeps_the_last(timed: SyncCreditService) -> None:
    """The moment has one price."""
    timed.set_cost("Agent", "act", 1)
    timed.set_cost("Agent", "act", 2)
    assert cost(timed) == 2
    assert len([row for row in timed.list_costs(all_versions=True) if row.agent_type == "Agent"]) == 1


def test_a_price_change_between_two_tries_is_no_other_payload(timed: SyncCreditService, clock: FakeClock) -> None:
    """The same key and action replays the first charge, at the first price."""
    timed.set_cost("Agent", "act", 1)
    assert cost(timed, idempotency_key="k") == 1
    clock.advance(timedelta(hours=1))
    timed.set_cost("Agent", "act", 2)
    assert cost(timed, idempotency_key="k") == 1


@pytest.mark.parametrize("kind", ["consume", "reserve"])
def test_a_second_try_is_answered_though_the_price_is_gone(
    service: SyncCreditService, database_url: str, kind: str
) -> None:
    """The key is looked at before the price; a first try without a price is refused and leaves no key."""

    def attempt(key: str) -> Any:
        call = service.consume_credits if kind == "consume" else service.reserve_credits
        return call(organization_id=ACME, agent_type="Agent", action="act", idempotency_key=key)

    service.set_cost("Agent", "act", 5)
    first = attempt("k")
    sql(database_url, "DELETE FROM agent_action_costs WHERE agent_type = 'Agent'")
    again = attempt("k")
    assert (again.id, again.replayed, again.amount) == (first.id, True, first.amount)
    for _ in range(2):
        with pytest.raises(UnpricedActionError, match=r"Agent\.act has no price"):
            attempt("other")
    with pytest.raises(UnpricedActionError):
        service.consume_credits(organization_id="nobody", agent_type="Agent", action="act", idempotency_key="k")
    with use_context(RequestContext(ACME, dry_run=True)), pytest.raises(UnpricedActionError):
        attempt("k")
    service.set_cost("Agent", "act", 6)
    assert abs(attempt("other").amount) == 6
    assert service.verify()


# -- amounts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("price", "quantity", "charged"),
    [
        ("0.000001", "0.000001", "0.000001"),
        ("0.333333", "3", "0.999999"),
        ("0.1", "0.333333", "0.033334"),
        ("1", "2.5", "2.5"),
        ("0.000003", "0.5", "0.000002"),
        ("10", 7, "70"),
    ],
)
def test_a_quantity_rounds_up_to_the_micro(service: SyncCreditService, price: str, quantity: Any, charged: str) -> None:
    """A price that is not zero never becomes zero, and nothing is rounded down."""
    service.set_cost("Agent", "act", price)
    row = service.consume_credits(organization_id=ACME, agent_type="Agent", action="act", quantity=quantity)
    assert row.charged == Decimal(charged)
    assert row.quantity == Decimal(str(quantity))


@pytest.mark.parametrize("price", ["0.1", "0.000001", "123456789.123456", "9007199254.740991", "0.3", "1e2"])
def test_a_price_is_kept_exactly(service: SyncCreditService, database_url: str, price: str) -> None:
    """Set, read and typed by an operator: the same digits on both databases, no binary float in between."""
    for _ in range(2):
        service.grant_credits(ACME, "9007199254.740991")
    assert service.set_cost("Agent", "act", price).cost == Decimal(price)
    assert service.get_cost("Agent", "act").cost == Decimal(price)
    assert cost(service) == Decimal(price)
    sql(database_url, f"UPDATE agent_action_costs SET cost = '{price}' WHERE agent_type = 'Agent'")
    assert cost(service) == Decimal(price)


def test_zero_is_not_free_unless_it_is_said(service: SyncCreditService, database_url: str) -> None:
    """A 0 that an operator typed is refused; free=True writes a row of 0."""
    with pytest.raises(InvalidAmountError):
        service.set_cost("Agent", "act", 0)
    with pytest.raises(InvalidInputError, match="free action costs 0"):
        service.set_cost("Agent", "act", 1, free=True)
    sql(database_url, "UPDATE agent_action_costs SET cost = 0 WHERE action = 'generate_voice'")
    with pytest.raises(UnpricedActionError, match="not marked free") as refusal:
        cost(service, "VoiceAgent", "generate_voice")
    assert refusal.value.reason == "zero_price_not_free"
    assert service.set_cost("Agent", "act", 0, free=True).free
    row = service.consume_credits(organization_id=ACME, agent_type="Agent", action="act")
    assert (row.amount, row.pricing, row.allocations) == (0, Pricing.FREE, ())
    assert service.list_transactions(ACME, limit=1).items[0] == row
    assert service.get_balance(ACME).available == 1000
    assert service.verify()


@pytest.mark.parametrize("typed", ["ten", "", " 5 ", "1,5", "NaN", "0.0000001", "99999999999", "0x10"])
def test_a_cost_that_is_no_amount_is_refused(sqlite_url: str, typed: str) -> None:
    """SQLite takes any text: an action with an unusable price does not run, and the sentence says what to do."""
    with SyncCreditService(sqlite_url) as service:
        service.grant_credits(ACME, 10)
        connection = sqlite3.connect(str(make_url(sqlite_url).database))
        connection.execute("UPDATE agent_action_costs SET cost = ? WHERE action = 'generate_voice'", (typed,))
        connection.commit()
        connection.close()
        with pytest.raises(UnpricedActionError, match="is not an amount of credits") as refusal:
            cost(service, "VoiceAgent", "generate_voice")
        assert (refusal.value.reason, bool(refusal.value.suggestions)) == ("unusable_price", True)
        assert service.get_balance(ACME).available == 10
        with pytest.raises(UnpricedActionError, match="is no amount of credits"):
            service.get_cost("VoiceAgent", "generate_voice")
        rows = {row.agent_type: row for row in service.list_costs()}
        assert (rows["VoiceAgent"].cost, rows.pop("VoiceAgent").problem) == (
            None,
            f"the cost {typed!r} is no amount of credits",
        )
        assert {row.problem for row in rows.values()} == {None}
        assert cost(service, "QAAgent", "answer_question") == Decimal("0.5")


@pytest.mark.parametrize("column", ["valid_from", "valid_until"])
@pytest.mark.parametrize("typed", ["soon", "2026-13-45", "zzz", b"x"])
def test_a_time_that_is_none_refuses_its_action_and_no_other(sqlite_url: str, column: str, typed: Any) -> None:
    """SQLite takes any text as a time too: whether such a row is in force cannot be told."""
    with SyncCreditService(sqlite_url) as service:
        service.grant_credits(ACME, 10)
        service.set_cost("VoiceAgent", "generate_voice", 3)
        connection = sqlite3.connect(str(make_url(sqlite_url).database))
        connection.execute(
            f"UPDATE agent_action_costs SET {column} = ? WHERE action = 'generate_voice' AND source IS NULL", (typed,)
        )
        connection.commit()
        connection.close()
        service.set_cost("Agent", "act", 1)
        with pytest.raises(UnpricedActionError, match="is no time") as refusal:
            cost(service, "VoiceAgent", "generate_voice")
        assert refusal.value.reason == "unusable_price"
        problems = [row.problem for row in service.list_costs() if row.problem is not None]
        assert len(problems) == 1
        assert f"{column} {typed!r}" in problems[0]
        assert cost(service, "QAAgent", "answer_question") == Decimal("0.5")


@pytest.mark.postgres
def test_the_infinities_of_postgresql_are_times(postgresql_url: str) -> None:
    """An end at 'infinity' is none, a start at '-infinity' is always, and one at 'infinity' never comes."""
    with SyncCreditService(postgresql_url, settings=Settings(price_cache_seconds=0)) as service:
        service.grant_credits(ACME, 100)
        sql(
            postgresql_url,
            "INSERT INTO agent_action_costs (agent_type, action, cost, valid_from, valid_until)"
            " VALUES ('Agent', 'act', 4, '-infinity', 'infinity'), ('Agent', 'later', 4, 'infinity', NULL)",
        )
        assert cost(service) == 4
        with pytest.raises(UnpricedActionError, match="has no price"):
            cost(service, "Agent", "later")
        assert len(service.list_costs()) == 10


def test_a_rule_of_a_later_version_is_refused(service: SyncCreditService, database_url: str) -> None:
    """A row whose rule this version cannot compute is not charged by its flat cost."""
    sql(database_url, "UPDATE agent_action_costs SET rule = '{}' WHERE action = 'generate_voice'")
    with pytest.raises(UnpricedActionError) as refusal:
        cost(service, "VoiceAgent", "generate_voice")
    assert refusal.value.reason == "unknown_price_rule"


@pytest.mark.parametrize(
    "bad", ["UPDATE agent_action_costs SET cost = -1", "UPDATE agent_action_costs SET cost = 1e12"]
)
def test_the_database_refuses_a_cost_out_of_range(database_url: str, bad: str) -> None:
    """A typing error of an operator does not get as far as a charge."""
    with pytest.raises(Exception, match=r"(?i)check constraint|overflow"):
        sql(database_url, bad)


# -- unpriced ------------------------------------------------------------------------------------------------------


def test_a_metered_action_without_a_price_does_not_run(service: SyncCreditService) -> None:
    """Every door refuses it, says which action it is and how to price it; nothing is written."""
    ran: list[str] = []

    @consume_credits("Agent", "act", service=service)
    def act() -> None:
        ran.append("act")

    doors: list[Any] = [
        lambda: cost(service),
        lambda: service.reserve_credits(organization_id=ACME, agent_type="Agent", action="act"),
        lambda: service.check_credits(ACME, agent_type="Agent", action="act"),
        lambda: service.quote(ACME, [PlannedAction("QAAgent", "answer_question"), PlannedAction("Agent", "act")]),
        lambda: service.get_cost("Agent", "act"),
        act,
    ]
    with use_context(RequestContext(ACME)):
        for door in doors:
            with pytest.raises(UnpricedActionError, match=r"Agent\.act") as refusal:
                door()
            assert refusal.value.fixes == ({"action": "set_cost", "agent_type": "Agent", "action_name": "act"},)
    assert ran == []
    assert len(service.list_transactions(ACME)) == 1
    assert service.list_reservations(ACME) == ()


def test_a_quote_prices_a_plan_without_touching_anything(service: SyncCreditService) -> None:
    """Lines, total and whether the account could pay."""
    plan = [PlannedAction("VideoAgent", "generate_video", 3), PlannedAction("QAAgent", "answer_question", "1.5")]
    quote = service.quote(ACME, plan)
    assert [line.amount for line in quote.lines] == [30, Decimal("0.75")]
    assert (quote.total, quote.allowed) == (Decimal("30.75"), True)
    refused = service.quote(ACME, [PlannedAction("VideoAgent", "generate_video", 101)])
    assert (refused.allowed, refused.decision.shortfall, refused.decision.reason) == (False, 10, "insufficient_credits")
    assert len(service.list_transactions(ACME)) == 1


def test_an_organizations_own_price_opens_its_account(service: SyncCreditService) -> None:
    """set_cost for an organization makes its account, without credits."""
    with pytest.raises(AccountNotFoundError):
        service.get_balance("new")
    service.set_cost("Agent", "act", 1, organization_id="new")
    assert service.get_balance("new").available == 0


async def test_prices_are_the_same_for_coroutines(aservice: CreditService) -> None:
    """set_cost, get_cost, list_costs and a charge on the coroutine face."""
    await aservice.grant_credits(ACME, 10)
    made = await aservice.set_cost("Agent", "act", "1.5", organization_id=ACME)
    assert await aservice.get_cost("Agent", "act", organization_id=ACME) == made
    assert made in await aservice.list_costs(ACME)
    row = await aservice.consume_credits(organization_id=ACME, agent_type="Agent", action="act", quantity=2)
    assert row.charged == 3
    assert made.created_at is not None
    assert made.created_at.tzinfo is UTC
    assert abs(made.created_at - datetime.now(UTC)) < timedelta(minutes=1)
