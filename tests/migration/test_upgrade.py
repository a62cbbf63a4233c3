"""Upgrades: once, all or nothing, next to others, and never over what an operator did."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, Row, create_engine, inspect, text
from sqlalchemy.pool import StaticPool

from agentcredits import SyncCreditService
from agentcredits.errors import ConfigurationError, SchemaError
from agentcredits.store import upgrade as store_upgrade
from agentcredits.store.tables import DEFAULT_COSTS, VERSION_TABLE, agent_action_costs, usage_rollups
from agentcredits.store.upgrade import (
    EXPECTED_REVISION,
    check_schema,
    current_revision,
    drop_everything,
    is_empty,
    migration_transaction,
    require_schema,
    upgrade,
    upgrade_database,
    upgrade_sql,
)
from agentcredits.testing import START, FakeClock
from tests.migration.databases import (
    HEAD,
    catalogue,
    configuration,
    create_declared,
    engine_for,
    insert_ledger_rows,
    write_next_revision,
)


def default_prices(connection: Connection) -> list[tuple[str, str, str]]:
    rows = connection.execute(agent_action_costs.select().where(agent_action_costs.c.organization_id == ""))
    return sorted((row.agent_type, row.action, f"{float(row.cost):g}") for row in rows)


def test_the_revisions_spelled_out_are_those_of_the_tree(empty_engine: Engine) -> None:
    """A service judges a database without importing Alembic, and judges it as Alembic would."""
    with empty_engine.connect() as connection:
        script = ScriptDirectory.from_config(configuration(connection))
    assert [step.revision for step in script.walk_revisions()][::-1] == list(store_upgrade.REVISIONS)
    assert script.get_current_head() == EXPECTED_REVISION


def test_an_empty_database_becomes_the_expected_revision(empty_engine: Engine) -> None:
    """From nothing to the head in one call."""
    with empty_engine.connect() as connection:
        assert is_empty(connection)
        assert current_revision(connection) is None
    upgrade_database(empty_engine)
    with empty_engine.connect() as connection:
        assert not is_empty(connection)
        assert current_revision(connection) == EXPECTED_REVISION
        require_schema(connection, url="unused")


def test_the_migrated_schema_equals_the_declared_one(empty_engine: Engine) -> None:
    """Word for word in the database's own catalogue, triggers, checks and indexes included."""
    upgrade_database(empty_engine)
    with empty_engine.connect() as connection:
        after_migrations = catalogue(connection)
    with migration_transaction(empty_engine) as connection:
        command.downgrade(configuration(connection), "base")
    with empty_engine.begin() as connection:
        assert catalogue(connection) == []
        create_declared(connection)
        assert catalogue(connection) == after_migrations


def test_up_down_up_ends_where_it_began(empty_engine: Engine) -> None:
    """A downgrade takes everything away that the upgrade made, so that the next upgrade works."""
    upgrade_database(empty_engine)
    with empty_engine.connect() as connection:
        before = catalogue(connection)
    with migration_transaction(empty_engine) as connection:
        command.downgrade(configuration(connection), "base")
    with empty_engine.connect() as connection:
        assert catalogue(connection) == []
        assert current_revision(connection) is None
    upgrade_database(empty_engine)
    with empty_engine.connect() as connection:
        assert catalogue(connection) == before


def test_upgrade_runs_inside_the_callers_transaction(empty_engine: Engine) -> None:
    """The caller decides: what he rolls back never was, what he commits stays."""
    with empty_engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        upgrade(connection)
        assert current_revision(connection) == EXPECTED_REVISION
        connection.rollback()
        assert is_empty(connection)
    with empty_engine.connect() as connection:
        upgrade(connection)
        connection.commit()
    with empty_engine.connect() as connection:
        assert check_schema(connection) == []


def test_an_interrupted_upgrade_leaves_nothing(empty_engine: Engine) -> None:
    """All or nothing on both databases: their DDL is transactional."""

    def interrupted() -> None:
        with migration_transaction(empty_engine) as connection:
            upgrade(connection)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with empty_engine.connect() as connection:
        assert is_empty(connection)


def test_a_database_in_memory_is_upgraded() -> None:
    """One shared connection (StaticPool) is enough: nothing opens a second one."""
    engine = engine_for("sqlite://")
    assert isinstance(engine.pool, StaticPool)
    upgrade_database(engine)
    with engine.connect() as connection:
        assert check_schema(connection) == []
    engine.dispose()


def test_everything_is_dropped_for_a_test_that_starts_afresh(empty_engine: Engine) -> None:
    """Nothing of ours is left, rows of the ledger included; a host's table stays."""
    upgrade_database(empty_engine)
    with empty_engine.begin() as connection:
        insert_ledger_rows(connection)
        connection.exec_driver_sql("CREATE TABLE orders (id INTEGER)")
    with empty_engine.begin() as connection:
        drop_everything(connection)
    with empty_engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["orders"]
        assert [line for line in catalogue(connection) if "orders" not in line] == []
    upgrade_database(empty_engine)
    with empty_engine.connect() as connection:
        assert check_schema(connection) == []


def test_the_default_prices_are_inserted_once_and_never_again(empty_engine: Engine) -> None:
    """What an operator changed or deleted stays as he left it."""
    upgrade_database(empty_engine)
    with empty_engine.connect() as connection:
        assert default_prices(connection) == sorted(DEFAULT_COSTS)
    with empty_engine.begin() as connection:
        connection.exec_driver_sql("UPDATE agent_action_costs SET cost = '7' WHERE agent_type = 'QAAgent'")
        connection.exec_driver_sql("DELETE FROM agent_action_costs WHERE agent_type <> 'QAAgent'")
    upgrade_database(empty_engine)
    with empty_engine.connect() as connection:
        assert default_prices(connection) == [("QAAgent", "answer_question", "7")]


def test_a_host_applications_own_migrations_are_not_touched(empty_engine: Engine) -> None:
    """Its tables, its alembic_version and its rows stay, also through a downgrade of ours."""
    with empty_engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('host7')")
        connection.exec_driver_sql("CREATE TABLE orders (id INTEGER)")
        before = catalogue(connection)
    upgrade_database(empty_engine)
    with empty_engine.connect() as connection:
        assert check_schema(connection) == []
    with migration_transaction(empty_engine) as connection:
        command.downgrade(configuration(connection), "base")
    with empty_engine.connect() as connection:
        assert catalogue(connection) == before
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all() == ["host7"]


FIRST_UPGRADE = """
import sys
from tests.migration.databases import engine_for
from agentcredits.store.upgrade import upgrade_database
engine = engine_for(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
upgrade_database(engine)
engine.dispose()
"""


def test_two_processes_that_upgrade_first_agree(empty_engine: Engine, empty_url: str) -> None:
    """Both meet while a third holds the lock; then both succeed and the schema is there once."""
    children = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", FIRST_UPGRADE, empty_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(2)
    ]
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        with migration_transaction(empty_engine):
            for child in children:
                assert child.stdin is not None
                child.stdin.write("go\n")
                child.stdin.flush()
            with pytest.raises(subprocess.TimeoutExpired):
                children[0].wait(timeout=1.0)
        for child in children:
            _, errors = child.communicate(timeout=60)
            assert (child.returncode, errors) == (0, "")
    finally:
        for child in children:
            child.kill()
            child.communicate()
    with empty_engine.connect() as connection:
        assert check_schema(connection) == []
        assert default_prices(connection) == sorted(DEFAULT_COSTS)


def test_threads_upgrade_different_databases_at_once(tmp_path: Path) -> None:
    """Alembic keeps its environment in module globals; we let one migration run at a time."""
    engines = [engine_for(f"sqlite:///{tmp_path / f'{number}.db'}") for number in range(6)]
    failures: list[BaseException] = []

    def run(engine: Engine) -> None:
        try:
            upgrade_database(engine)
        except BaseException as error:  # noqa: BLE001  # shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=run, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for engine in engines:
        with engine.connect() as connection:
            assert check_schema(connection) == []
        engine.dispose()


def test_two_upgrades_under_repeatable_read_agree(empty_postgresql_url: str) -> None:
    """A host's engine may run at REPEATABLE READ, whose snapshot would be taken before the lock is free."""
    first = engine_for(empty_postgresql_url)
    second = create_engine(first.url, isolation_level="REPEATABLE READ")
    waiting = threading.Thread(target=upgrade_database, args=(second,))
    with migration_transaction(first) as connection:
        waiting.start()
        with first.connect() as watcher:
            lock = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            while not watcher.execute(lock).scalar_one():
                watcher.rollback()
        upgrade(connection)
    waiting.join()
    with first.connect() as connection:
        assert default_prices(connection) == sorted(DEFAULT_COSTS)
    first.dispose()
    second.dispose()


# -- judging a database ------------------------------------------------------------------------------------------


def test_a_missing_schema_names_the_exact_command(empty_engine: Engine) -> None:
    """The sentence can be pasted into a shell; shell characters in the URL are quoted."""
    url = "postgresql://u:***@h/db?a=1&b=2"
    with empty_engine.connect() as connection, pytest.raises(SchemaError) as caught:
        require_schema(connection, url=url)
    assert caught.value.message == (
        f"The database {url} has no credits schema: run `agentcredits db upgrade --database '{url}'`."
    )
    assert caught.value.reason == "schema_missing"
    assert caught.value.suggestions == (f"Run `agentcredits db upgrade --database '{url}'`.",)


def test_a_newer_schema_asks_for_a_newer_package(empty_engine: Engine) -> None:
    """Neither a service nor an upgrade works on a schema that it does not know, and nothing is changed."""
    upgrade_database(empty_engine)
    with empty_engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    with empty_engine.connect() as connection, pytest.raises(SchemaError, match="pip install --upgrade") as caught:
        require_schema(connection, url="sqlite:///x.db")
    assert (caught.value.reason, caught.value.context["revision"]) == ("schema_newer", "9999")
    with pytest.raises(SchemaError, match="revision 9999"):
        upgrade_database(empty_engine)
    with empty_engine.connect() as connection:
        assert current_revision(connection) == "9999"


def test_an_old_schema_names_the_exact_command(empty_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database of an earlier release is told from one of a later release."""
    upgrade_database(empty_engine)
    monkeypatch.setattr(store_upgrade, "REVISIONS", (*store_upgrade.REVISIONS, "9000"))
    monkeypatch.setattr(store_upgrade, "EXPECTED_REVISION", "9000")
    with empty_engine.connect() as connection, pytest.raises(SchemaError) as caught:
        require_schema(connection, url="sqlite:///x.db")
    assert caught.value.reason == "schema_old"
    assert caught.value.message.endswith(
        f"is at revision {HEAD}, this version needs 9000: run `agentcredits db upgrade --database sqlite:///x.db`."
    )


# -- SQL for a database administrator ----------------------------------------------------------------------------


def test_the_offline_sql_builds_the_same_database(empty_engine: Engine, empty_url: str) -> None:
    """Run by a stranger's tool it gives the schema, the triggers, the prices and the revision."""
    sql = upgrade_sql(empty_engine.dialect.name)
    raw = empty_engine.raw_connection()
    if empty_engine.dialect.name == "sqlite":
        raw.driver_connection.executescript(sql)  # type: ignore[union-attr]  # it is a sqlite3.Connection
    else:
        raw.driver_connection.autocommit = True  # type: ignore[union-attr]  # it is a psycopg.Connection
        raw.driver_connection.execute(sql)  # type: ignore[union-attr]
        raw.driver_connection.autocommit = False  # type: ignore[union-attr]
    raw.close()
    with empty_engine.connect() as connection:
        assert check_schema(connection) == []
        assert default_prices(connection) == sorted(DEFAULT_COSTS)
        require_schema(connection, url=empty_url)


def test_the_offline_sql_of_another_database_is_refused() -> None:
    """Only what is tested is written."""
    with pytest.raises(ConfigurationError, match="mysql"):
        upgrade_sql("mysql")


# -- the stock alembic command -----------------------------------------------------------------------------------


def alembic(arguments: list[str], directory: Path, database_url: str) -> str:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("alembic")), *arguments],
        cwd=directory,
        env=os.environ | {"AGENTCREDITS_DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_stock_command_works_on_a_connection_of_its_own(empty_url: str, tmp_path: Path) -> None:
    """Two lines of alembic.ini name the package; `current` and `check` change nothing."""
    (tmp_path / "alembic.ini").write_text("[alembic]\nscript_location = agentcredits_migrations:\n", encoding="utf-8")
    elsewhere = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    alembic(["-x", f"url={empty_url}", "upgrade", "head"], tmp_path, elsewhere)
    engine = engine_for(empty_url)
    with engine.begin() as connection:
        assert check_schema(connection) == []
        trigger = (
            "credit_transactions_no_update" if empty_url.startswith("sqlite") else "credit_transactions_append_only"
        )
        on = "" if empty_url.startswith("sqlite") else " ON credit_transactions"
        connection.exec_driver_sql(f"DROP TRIGGER {trigger}{on}")
    assert alembic(["current"], tmp_path, empty_url).strip() == f"{EXPECTED_REVISION} (head)"
    assert "No new upgrade operations detected." in alembic(["check"], tmp_path, empty_url)
    with engine.connect() as connection:
        assert check_schema(connection) == [f"trigger {trigger} is missing"]
    engine.dispose()
    assert not (tmp_path / "elsewhere.db").exists()


def test_autogenerate_writes_the_next_revision_in_plain_types(
    empty_engine: Engine, empty_url: str, tmp_path: Path
) -> None:
    """What is missing is written without names of ours, which may change; a host's tables are left alone."""
    upgrade_database(empty_engine)
    with empty_engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE agent_action_costs")
        connection.exec_driver_sql("CREATE TABLE orders (id INTEGER)")
    (tmp_path / "versions").mkdir()
    config = configuration(None, tmp_path / "versions")
    config.set_main_option("sqlalchemy.url", empty_url.replace("%", "%%"))
    command.revision(config, "lost table", autogenerate=True, rev_id="9000", version_path=str(tmp_path / "versions"))
    written = (tmp_path / "versions" / "9000_lost_table.py").read_text(encoding="utf-8")
    assert "sa.Column('valid_from', sa.DateTime(timezone=True), nullable=False)" in written
    assert """sa.Column('cost', sa.Numeric(20, 6).with_variant(sa.Text(), "sqlite"), nullable=False)""" in written
    assert "agentcredits" not in written
    assert "orders" not in written


# -- a next revision ---------------------------------------------------------------------------------------------


def test_a_next_revision_keeps_rows_keys_and_triggers(empty_engine: Engine, tmp_path: Path) -> None:
    """On SQLite it rebuilds tables that others refer to; no row, no foreign key and no trigger is lost."""
    versions = write_next_revision(tmp_path / "versions")
    upgrade_database(empty_engine)
    with empty_engine.begin() as connection:
        insert_ledger_rows(connection)
        before = catalogue(connection)
    triggers = [line for line in before if line.startswith("trigger")]
    assert len(triggers) == {"sqlite": 4, "postgresql": 5}[empty_engine.dialect.name]

    with migration_transaction(empty_engine) as connection:
        command.upgrade(configuration(connection, versions), "head")
    with empty_engine.connect() as connection:
        assert current_revision(connection) == "9000"
        assert [line for line in catalogue(connection) if line.startswith("trigger")] == triggers
        assert connection.exec_driver_sql("SELECT count(*) FROM credit_transactions").scalar_one() == 1
        if connection.dialect.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1
            assert connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall() == []

    with migration_transaction(empty_engine) as connection:
        command.downgrade(configuration(connection, versions), HEAD)
    with empty_engine.connect() as connection:
        assert check_schema(connection) == []
        assert [line for line in catalogue(connection) if line.startswith("trigger")] == triggers


def test_a_migration_that_orphans_rows_is_refused(tmp_path: Path) -> None:
    """Foreign keys are off while SQLite rebuilds tables, so they are checked before the commit."""
    engine = engine_for(f"sqlite:///{tmp_path / 'credits.db'}")
    upgrade_database(engine)
    with engine.begin() as connection:
        insert_ledger_rows(connection)
    with pytest.raises(SchemaError, match="1 rows that point nowhere"), migration_transaction(engine) as connection:
        connection.exec_driver_sql("DELETE FROM credit_accounts")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM credit_accounts").scalar_one() == 1
    engine.dispose()


def test_usage_is_filled_from_the_ledger_that_is_there(empty_engine: Engine) -> None:
    """What a database of the first revision has booked is in the totals, as if they had always been kept."""
    upgrade_database(empty_engine)
    clock = FakeClock(START)
    with SyncCreditService(empty_engine, clock=clock) as service:
        service.grant_credits("acme", 1_000)
        service.grant_credits("acme", 3, category="promotional")
        service.grant_credits("ünïcode:3", 1_000, category="plan")
        for day in range(3):
            for user in (None, "ann", "b:b"):
                for organization in ("acme", "ünïcode:3"):
                    charge = service.consume_credits(
                        organization_id=organization,
                        amount=day + 1,
                        agent_type="ContentAgent",
                        action="generate_content",
                        department_id="sales" if day else None,
                        user_id=user,
                    )
                    if user == "ann":
                        clock.advance(timedelta(hours=20))
                        service.refund_credits(charge, 1)
        before = [tuple(row) for row in usage_rows(empty_engine)]
        assert len(before) > 12
        with migration_transaction(empty_engine) as connection:
            command.downgrade(configuration(connection), "0001")
        upgrade_database(empty_engine)
        assert [tuple(row) for row in usage_rows(empty_engine)] == before
        assert service.verify().problems == ()


def usage_rows(engine: Engine) -> Sequence[Row[Any]]:
    with engine.connect() as connection:
        return connection.execute(usage_rollups.select().order_by(*usage_rollups.c)).all()


def test_the_dates_of_prices_come_without_touching_them(empty_engine: Engine) -> None:
    """Prices of a database of the second revision stay as they are, without a day; back again nothing is lost."""
    with migration_transaction(empty_engine) as connection:
        command.upgrade(configuration(connection), "0002")
    with empty_engine.begin() as connection:
        connection.exec_driver_sql("UPDATE agent_action_costs SET cost = '7' WHERE agent_type = 'QAAgent'")
        before = connection.exec_driver_sql("SELECT * FROM agent_action_costs ORDER BY action").fetchall()
    upgrade_database(empty_engine)
    with SyncCreditService(empty_engine) as service:
        assert {price.as_of for price in service.list_costs()} == {None}
        assert service.get_cost("QAAgent", "answer_question").cost == 7
    with migration_transaction(empty_engine) as connection:
        command.downgrade(configuration(connection), "0002")
    with empty_engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT * FROM agent_action_costs ORDER BY action").fetchall() == before
