"""Costs in agent_action_costs: kept and charged exactly, rounded up, refused where they are no amount or no time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import make_url

from agentcredits import InvalidAmountError, InvalidInputError, Pricing, SyncCreditService, UnpricedActionError
from agentcredits.settings import Settings
from tests.integration.price_book import ACME, cost, priced, sql


@pytest.fixture
def service(database_url: str) -> Iterator[SyncCreditService]:
    """A service that reads every price anew."""
    with priced(database_url, 1000) as made:
        yield made


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
