"""The ledger is append-only by triggers, whoever connects."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, IntegrityError

from agentcredits.store.triggers import APPEND_ONLY
from agentcredits.store.upgrade import upgrade_database
from tests.migration.databases import engine_for, insert_ledger_rows


@pytest.fixture
def ledger(empty_engine: Engine) -> Engine:
    """A migrated database with a row in each append-only table."""
    upgrade_database(empty_engine)
    with empty_engine.begin() as connection:
        insert_ledger_rows(connection)
    return empty_engine


def rows(engine: Engine, table: str) -> list[tuple[object, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(f"SELECT * FROM {table}")]


@pytest.mark.parametrize("table", APPEND_ONLY)
@pytest.mark.parametrize(
    "statement",
    ["UPDATE {} SET amount_micros = amount_micros + 1", "UPDATE {} SET organization_id = 'x'", "DELETE FROM {}"],
)
def test_rows_are_neither_changed_nor_deleted(ledger: Engine, table: str, statement: str) -> None:
    """Plain SQL of an operator is refused with a sentence that says what to do instead."""
    before = rows(ledger, table)
    with (
        ledger.connect() as connection,
        pytest.raises(DBAPIError, match=f"{table} is append-only: correct it with a new row"),
    ):
        connection.exec_driver_sql(statement.format(table))
    assert rows(ledger, table) == before
    assert len(before) == 1


@pytest.mark.parametrize("table", APPEND_ONLY)
@pytest.mark.parametrize("words", ["TRUNCATE {}", "TRUNCATE {} CASCADE"])
def test_tables_are_not_truncated(empty_postgresql_url: str, table: str, words: str) -> None:
    """TRUNCATE fires no row trigger; PostgreSQL has one for the statement."""
    engine = engine_for(empty_postgresql_url)
    upgrade_database(engine)
    with engine.begin() as connection:
        insert_ledger_rows(connection)
    with engine.connect() as connection, pytest.raises(DBAPIError, match=f"{table} is append-only"):
        connection.exec_driver_sql(words.format(table))
    assert len(rows(engine, table)) == 1
    engine.dispose()


@pytest.mark.parametrize(
    "statement", ["DELETE FROM credit_accounts", "UPDATE credit_accounts SET organization_id = 'x'"]
)
@pytest.mark.parametrize("table", ["credit_transactions", "credit_reservations"])
def test_an_account_that_has_rows_stays(ledger: Engine, table: str, statement: str) -> None:
    """With its name; one that has none may go, be it on SQLite by foreign keys or on PostgreSQL by a trigger."""
    now = "'2026-01-01 00:00:00.000000+00'" if ledger.dialect.name == "postgresql" else "'2026-01-01 00:00:00.000000'"
    with ledger.begin() as connection:
        for name in ("held", "empty"):
            connection.exec_driver_sql(
                "INSERT INTO credit_accounts (organization_id, last_posted_at, created_at)"
                f" VALUES ('{name}', {now}, {now})"
            )
        connection.exec_driver_sql(
            "INSERT INTO credit_reservations"
            " (organization_id, id, state, amount_micros, allocations, idempotency_key, created_at, expires_at)"
            f" VALUES ('held', 'h1', 'active', 5, '[]', 'k', {now}, {now})"
        )
    name = "acme" if table == "credit_transactions" else "held"
    with ledger.connect() as connection, pytest.raises(IntegrityError):
        connection.exec_driver_sql(f"{statement} WHERE organization_id = '{name}'")
    assert len(rows(ledger, "credit_accounts")) == 3
    with ledger.begin() as connection:
        connection.exec_driver_sql(f"{statement} WHERE organization_id = 'empty'")
        connection.exec_driver_sql("UPDATE credit_accounts SET last_seq = 7 WHERE organization_id = 'acme'")
    assert "empty" not in {row[0] for row in rows(ledger, "credit_accounts")}


def test_rows_are_still_added(ledger: Engine) -> None:
    """The triggers stand in nobody's way."""
    with ledger.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO credit_transaction_allocations"
            " (organization_id, transaction_id, position, grant_id, amount_micros) VALUES ('acme', 't1', 1, 'g2', 1)"
        )
    assert len(rows(ledger, "credit_transaction_allocations")) == 2
