"""``check_schema`` names every kind of damage, and finds nothing where there is none."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine

from agentcredits.store.upgrade import check_schema, upgrade_database
from tests.migration.databases import create_declared, engine_for


def problems(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return check_schema(connection)


def test_a_migrated_and_a_declared_database_have_no_differences(empty_engine: Engine) -> None:
    """Both ways to the schema are clean; a stranger's tables, indexes and triggers are not looked at."""
    with empty_engine.begin() as connection:
        create_declared(connection)
        connection.exec_driver_sql("CREATE TABLE orders (id INTEGER, note TEXT)")
        connection.exec_driver_sql("CREATE INDEX orders_note ON orders (note)")
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("CREATE TRIGGER orders_t BEFORE DELETE ON orders BEGIN SELECT 1; END")
    assert problems(empty_engine) == []


def test_an_empty_database_misses_every_table(empty_engine: Engine) -> None:
    """The check says so instead of failing on the first one."""
    found = problems(empty_engine)
    assert "table credit_accounts is missing" in found
    assert "table agent_action_costs is missing" in found


DAMAGE = {
    "a dropped index": (
        "DROP INDEX uq_credit_transactions_settlement",
        ["table credit_transactions: index uq_credit_transactions_settlement is missing"],
    ),
    "an index of a stranger": (
        "CREATE INDEX mine ON credit_grants (source)",
        ["table credit_grants: index mine is not declared"],
    ),
    "an extra column": (
        "ALTER TABLE idempotency_keys ADD COLUMN note TEXT",
        ["table idempotency_keys: column note is not declared"],
    ),
    "a missing column": (
        "ALTER TABLE credit_transaction_details DROP COLUMN reason",
        ["table credit_transaction_details: column reason is missing"],
    ),
    "a dropped table": ("DROP TABLE idempotency_keys", ["table idempotency_keys is missing"]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(empty_engine: Engine, damage: str) -> None:
    """Exactly what was broken is reported, on both databases."""
    upgrade_database(empty_engine)
    statement, expected = DAMAGE[damage]
    with empty_engine.begin() as connection:
        connection.exec_driver_sql(statement)
    assert problems(empty_engine) == expected


def test_an_index_with_another_condition_is_named(empty_engine: Engine) -> None:
    """A unique partial index that covers fewer rows would let a hold settle twice."""
    upgrade_database(empty_engine)
    with empty_engine.begin() as connection:
        connection.exec_driver_sql("DROP INDEX uq_credit_transactions_settlement")
        connection.exec_driver_sql(
            "CREATE UNIQUE INDEX uq_credit_transactions_settlement"
            " ON credit_transactions (organization_id, reservation_id)"
            " WHERE type = 'refund' AND reservation_id IS NOT NULL"
        )
    assert problems(empty_engine) == [
        "table credit_transactions: index uq_credit_transactions_settlement is"
        " \"unique (organization_id, reservation_id) where type = 'refund' AND reservation_id IS NOT NULL\","
        " declared as \"unique (organization_id, reservation_id) where type = 'debit' AND reservation_id IS NOT NULL\""
    ]


# -- PostgreSQL --------------------------------------------------------------------------------------------------

PG_DAMAGE = {
    "a dropped trigger": (
        "DROP TRIGGER credit_transactions_append_only ON credit_transactions",
        "trigger credit_transactions_append_only is missing",
    ),
    "a disabled trigger": (
        "ALTER TABLE credit_transactions DISABLE TRIGGER credit_transactions_no_truncate",
        'trigger credit_transactions_no_truncate is "disabled: BEFORE TRUNCATE',
    ),
    "a trigger for fewer events": (
        "CREATE OR REPLACE TRIGGER credit_transactions_append_only BEFORE DELETE ON credit_transactions"
        " FOR EACH ROW EXECUTE FUNCTION agentcredits_refuse_change()",
        'trigger credit_transactions_append_only is "BEFORE DELETE ON',
    ),
    "a conditional trigger": (
        "CREATE OR REPLACE TRIGGER credit_transactions_append_only BEFORE UPDATE OR DELETE ON credit_transactions"
        " FOR EACH ROW WHEN (old.seq > 9) EXECUTE FUNCTION agentcredits_refuse_change()",
        "trigger credit_transactions_append_only is 'CREATE TRIGGER",
    ),
    "a dropped trigger of the accounts": (
        "DROP TRIGGER credit_accounts_with_rows ON credit_accounts",
        "trigger credit_accounts_with_rows is missing",
    ),
    "accounts that are kept no more": (
        "CREATE OR REPLACE FUNCTION agentcredits_keep_account() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN RETURN OLD; END $$",
        "EXECUTE agentcredits_keep_account: BEGIN RETURN OLD; END",
    ),
    "a foreign key that is none of ours": (
        "ALTER TABLE credit_transactions ADD CONSTRAINT mine FOREIGN KEY (organization_id) REFERENCES credit_accounts",
        "table credit_transactions: foreign key mine is not declared",
    ),
    "a trigger of a stranger": (
        "CREATE TRIGGER mine BEFORE INSERT ON credit_grants FOR EACH ROW EXECUTE FUNCTION agentcredits_refuse_change()",
        "trigger mine is not declared",
    ),
    "a toothless function": (
        "CREATE OR REPLACE FUNCTION agentcredits_refuse_change() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN RETURN NEW; END $$",
        "EXECUTE agentcredits_refuse_change: BEGIN RETURN NEW; END",
    ),
    "a dropped CHECK": (
        "ALTER TABLE credit_grants DROP CONSTRAINT ck_credit_grants_counters",
        "table credit_grants: CHECK ck_credit_grants_counters is missing",
    ),
    "a wider CHECK": (
        "ALTER TABLE credit_grants DROP CONSTRAINT ck_credit_grants_status,"
        " ADD CONSTRAINT ck_credit_grants_status CHECK (status IN ('scheduled', 'active', 'expired', 'voided', ''))",
        "table credit_grants: CHECK ck_credit_grants_status is",
    ),
    "a dropped foreign key": (
        "ALTER TABLE credit_grants DROP CONSTRAINT fk_credit_grants_credit_accounts",
        "table credit_grants: foreign key fk_credit_grants_credit_accounts is missing",
    ),
    "a dropped unique constraint": (
        "ALTER TABLE credit_transactions DROP CONSTRAINT uq_credit_transactions_organization_id_id",
        "table credit_transactions: unique constraint uq_credit_transactions_organization_id_id is missing",
    ),
    "a dropped primary key": (
        "ALTER TABLE idempotency_keys DROP CONSTRAINT pk_idempotency_keys",
        "table idempotency_keys: primary key pk_idempotency_keys is missing",
    ),
    "a changed type": (
        "ALTER TABLE credit_accounts ALTER COLUMN last_seq TYPE INTEGER",
        "column last_seq is 'INTEGER NOT NULL DEFAULT 0', declared as 'BIGINT NOT NULL DEFAULT 0'",
    ),
    "a shorter text": (
        "ALTER TABLE credit_grants ALTER COLUMN source TYPE VARCHAR(20)",
        "table credit_grants: column source is 'VARCHAR(20)', declared as 'VARCHAR(255)'",
    ),
    "a time without zone": (
        "ALTER TABLE credit_grants ALTER COLUMN voided_at TYPE TIMESTAMP",
        "column voided_at is 'TIMESTAMP WITHOUT TIME ZONE', declared as 'TIMESTAMP WITH TIME ZONE'",
    ),
    "a column that takes NULL": (
        "ALTER TABLE credit_accounts ALTER COLUMN created_at DROP NOT NULL",
        "table credit_accounts: column created_at is",
    ),
    "another default": (
        "ALTER TABLE credit_reservations ALTER COLUMN pricing SET DEFAULT 'free'",
        "table credit_reservations: column pricing is \"VARCHAR(32) NOT NULL DEFAULT 'free'\"",
    ),
}


@pytest.mark.postgres
@pytest.mark.parametrize("damage", PG_DAMAGE)
def test_damage_on_postgresql_is_named(empty_postgresql_url: str, damage: str) -> None:
    """What only PostgreSQL can change in place."""
    engine = engine_for(empty_postgresql_url)
    upgrade_database(engine)
    statement, expected = PG_DAMAGE[damage]
    with engine.begin() as connection:
        connection.exec_driver_sql(statement)
    found = problems(engine)
    engine.dispose()
    assert found
    assert any(expected in sentence for sentence in found), found


@pytest.mark.postgres
def test_the_check_needs_no_rights_beyond_reading_the_catalogue(empty_postgresql_url: str) -> None:
    """An application's role, which may create nothing, can run it."""
    engine = engine_for(empty_postgresql_url)
    upgrade_database(engine)
    with engine.connect() as connection:
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")
        assert check_schema(connection) == []
    engine.dispose()


# -- SQLite ------------------------------------------------------------------------------------------------------

SQLITE_REWRITES = {
    "a dropped CHECK": (
        "credit_accounts",
        "CONSTRAINT ck_credit_accounts_organization CHECK (organization_id <> '')",
        "CONSTRAINT ck_credit_accounts_organization CHECK (1)",
        "table credit_accounts: CHECK ck_credit_accounts_organization is '1', declared as \"organization_id <> ''\"",
    ),
    "a changed type": (
        "credit_accounts",
        "last_seq BIGINT",
        "last_seq VARCHAR(9)",
        "column last_seq is 'VARCHAR(9) NOT NULL DEFAULT 0', declared as 'BIGINT NOT NULL DEFAULT 0'",
    ),
    "a column that takes NULL": (
        "credit_grants",
        "category VARCHAR(32) NOT NULL",
        "category VARCHAR(32)",
        "table credit_grants: column category is 'VARCHAR(32)', declared as 'VARCHAR(32) NOT NULL'",
    ),
    "another default": (
        "credit_grants",
        "DEFAULT 50",
        "DEFAULT 51",
        "column priority is 'INTEGER NOT NULL DEFAULT 51', declared as 'INTEGER NOT NULL DEFAULT 50'",
    ),
    "a foreign key to another column": (
        "credit_grants",
        "REFERENCES credit_accounts (organization_id)",
        "REFERENCES credit_accounts (created_at)",
        "table credit_grants: foreign key fk_credit_grants_credit_accounts is",
    ),
    "a unique constraint on another column": (
        "credit_transactions",
        "UNIQUE (organization_id, id)",
        "UNIQUE (organization_id, type)",
        "table credit_transactions: unique constraint uq_credit_transactions_organization_id_id is",
    ),
}


@pytest.fixture
def sqlite_file(tmp_path: Path) -> Path:
    path = tmp_path / "credits.db"
    engine = engine_for(f"sqlite:///{path}")
    upgrade_database(engine)
    engine.dispose()
    return path


def test_a_dropped_trigger_on_sqlite_is_named_and_put_back(sqlite_file: Path) -> None:
    """The next upgrade mends it, although no migration has to run."""
    engine = engine_for(f"sqlite:///{sqlite_file}")
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER credit_transactions_no_update")
        connection.exec_driver_sql("DROP TRIGGER credit_transactions_no_delete")
        connection.exec_driver_sql(
            "CREATE TRIGGER credit_transactions_no_delete BEFORE DELETE ON credit_transactions BEGIN SELECT 1; END"
        )
        connection.exec_driver_sql("CREATE TRIGGER mine BEFORE INSERT ON credit_grants BEGIN SELECT 1; END")
    deleted, updated, mine = problems(engine)
    assert deleted.startswith("trigger credit_transactions_no_delete is 'CREATE TRIGGER")
    assert mine == "trigger mine is not declared"
    assert updated == "trigger credit_transactions_no_update is missing"
    upgrade_database(engine)
    assert problems(engine) == ["trigger mine is not declared"]
    engine.dispose()


@pytest.mark.parametrize("damage", SQLITE_REWRITES)
def test_damage_inside_a_table_on_sqlite_is_named(sqlite_file: Path, damage: str) -> None:
    """SQLite cannot change these in place; a careless rebuild can."""
    table, declared, broken, expected = SQLITE_REWRITES[damage]
    raw = sqlite3.connect(sqlite_file)
    raw.execute("PRAGMA writable_schema=ON")
    changed = raw.execute(
        "UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE name = ? AND instr(sql, ?)",
        (declared, broken, table, declared),
    ).rowcount
    version = raw.execute("PRAGMA schema_version").fetchone()[0]
    raw.execute(f"PRAGMA schema_version={version + 1}")
    raw.commit()
    raw.close()
    assert changed == 1
    engine = create_engine(f"sqlite:///{sqlite_file}")
    found = problems(engine)
    engine.dispose()
    assert len(found) == 1
    assert expected in found[0]
