"""Prices live in agent_action_costs: seeded once, edited with plain SQL, used within a second, dated."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import make_url

from agentcredits import (
    AccountNotFoundError,
    CreditService,
    PlannedAction,
    RequestContext,
    SyncCreditService,
    UnpricedActionError,
    consume_credits,
    use_context,
)
from agentcredits.store.prices import read_candidates
from agentcredits.testing import FakeClock
from tests.integration.price_book import ACME, cost, priced, sql

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


@pytest.fixture
def service(database_url: str) -> Iterator[SyncCreditService]:
    """A service that reads every price anew."""
    with priced(database_url, 1000) as made:
        yield made


@pytest.fixture
def timed(database_url: str, clock: FakeClock) -> Iterator[SyncCreditService]:
    """The same under a clock that is moved by hand."""
    with priced(database_url, 1000, clock=clock) as made:
        yield made


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


def test_the_databases_clock_finds_the_rows_that_a_given_one_finds(service: SyncCreditService) -> None:
    """Its own statement on PostgreSQL reads the clock and the rows at once."""
    now = datetime.now(UTC)
    hour = timedelta(hours=1)
    service.set_cost("*", "write", 1)
    service.set_cost("WriterAgent", "write", 2, valid_from=now - 3 * hour, valid_until=now - hour)
    service.set_cost("WriterAgent", "write", 3, valid_from=now - 2 * hour)
    service.set_cost("WriterAgent", "write", 4, valid_from=now + hour)
    service.set_cost("WriterAgent", "write", 5, organization_id=ACME, valid_from=now - hour, valid_until=now + hour)
    service.set_cost("WriterAgent", "write", 6, organization_id="umbrella")
    service.set_cost("WriterAgent", "draw", 7)

    def found(action: str, clock: FakeClock | None) -> tuple[list[str], datetime]:
        rows, at = service._core.runner.read(
            lambda connection: read_candidates(connection, ACME, "WriterAgent", action, clock)
        )
        return [str(row.cost).partition(".")[0] for row in rows], at

    given = found("write", FakeClock(now))
    own = found("write", None)
    assert given == (["1", "3", "4", "5"], now)
    assert own[0] == given[0]
    for _, at in (own, found("sing", None)):
        assert at.utcoffset() == timedelta(0)
        assert abs(at - now) < timedelta(minutes=1)
    assert found("sing", None)[0] == found("sing", FakeClock(now))[0] == []


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
