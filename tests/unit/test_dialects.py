"""URLs become the one driver of their database; engines are set up so that charges are durable and wait fairly."""

from __future__ import annotations

import sqlite3
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    Table,
    create_engine,
    insert,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import OperationalError

from agentcredits import SyncCreditService
from agentcredits.errors import ConfigurationError
from agentcredits.store import dialects
from agentcredits.store.columns import ExactNumeric, UtcDateTime
from agentcredits.store.dialects import Write, dialect_of, is_memory, make_engine, normalise_url
from agentcredits.store.tables import credit_accounts


def engine_for(url: str, **changes: Any) -> Engine:
    arguments: dict[str, Any] = {"pool_size": 2, "lock_timeout_seconds": 0.3, "sqlite_synchronous": "FULL"} | changes
    return make_engine(normalise_url(url), **arguments)


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("postgres://u:p@h/d", "postgresql+psycopg"),
        ("postgresql://u:p@h/d", "postgresql+psycopg"),
        ("postgresql+asyncpg://u:p@h/d", "postgresql+psycopg"),
        ("postgresql+psycopg://u:p@h/d", "postgresql+psycopg"),
        ("postgresql+psycopg_async://u:p@h/d", "postgresql+psycopg"),
        ("postgresql+psycopg2://u:p@h/d", "postgresql+psycopg"),
        ("sqlite:////x/y.db", "sqlite"),
        ("sqlite+pysqlite:////x/y.db", "sqlite"),
        ("sqlite+aiosqlite:////x/y.db", "sqlite"),
    ],
)
def test_a_shared_url_is_read_with_our_driver(given: str, driver: str) -> None:
    """DATABASE_URLs of applications name other drivers; everything else of them is kept."""
    url = normalise_url(given)
    assert url.drivername == driver
    assert url.database == make_url(given).database
    assert (url.username, url.password, url.host) == (
        make_url(given).username,
        make_url(given).password,
        make_url(given).host,
    )
    assert normalise_url(url) == url


def test_a_relative_file_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that changes its directory afterwards keeps its ledger; `~` is the user's home."""
    monkeypatch.chdir(tmp_path)
    assert normalise_url("sqlite:///credits.db").database == str(tmp_path / "credits.db")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert normalise_url("sqlite:///~/credits.db").database == str(tmp_path / "credits.db")


@pytest.mark.parametrize("given", ["nonsense", "mysql://h/d", "sqlite+pysqlcipher:///x", "oracle://h", ""])
def test_another_database_is_refused_with_what_is_supported(given: str) -> None:
    """The sentence names both, never the URL."""
    with pytest.raises(ConfigurationError, match=r"sqlite.*postgresql"):
        normalise_url(given)


@pytest.mark.parametrize(
    ("url", "memory"),
    [
        ("sqlite://", True),
        ("sqlite:///:memory:", True),
        ("sqlite:///file::memory:?uri=true", True),
        ("sqlite:///file:x?mode=memory&cache=shared&uri=true", True),
        ("sqlite:////x/y.db", False),
        ("postgresql://h/d", False),
    ],
)
def test_a_database_in_memory_is_recognised(url: str, memory: bool) -> None:
    """It has one connection for everybody."""
    assert is_memory(make_url(url)) is memory


def test_a_sqlite_file_is_durable_and_lets_readers_read(tmp_path: Path) -> None:
    """Write-ahead logging, FULL synchronous (a power cut loses nothing), foreign keys on: for every connection."""
    engine = engine_for(f"sqlite:///{tmp_path / 'a.db'}", pool_size=3)
    connections = [engine.connect() for _ in range(3)]
    for connection in connections:
        read = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
        assert read == ["wal", 2, 1]
    for connection in connections:
        connection.close()
    engine.dispose()


def test_synchronous_is_a_setting(tmp_path: Path) -> None:
    """NORMAL is faster."""
    engine = engine_for(f"sqlite:///{tmp_path / 'a.db'}", sqlite_synchronous="NORMAL")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 1
    engine.dispose()


def test_a_write_transaction_waits_for_the_other_writer_up_to_its_time_out(sqlite_url: str) -> None:
    """It gets the lock as soon as it is free, and gives up with "locked" at the time-out, not before."""
    engine = engine_for(sqlite_url)
    dialect = dialect_of(engine)
    other = sqlite3.connect(str(make_url(sqlite_url).database), isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with engine.connect() as connection:
        started = time.monotonic()
        with pytest.raises(OperationalError, match="locked"):
            dialect.begin_write(connection, 0.2)
        assert 0.2 <= time.monotonic() - started < 2.0
        connection.rollback()
        threading.Timer(0.1, other.execute, ("ROLLBACK",)).start()
        started = time.monotonic()
        dialect.begin_write(connection, 5.0)
        assert time.monotonic() - started < 2.0
        connection.rollback()
    other.close()
    engine.dispose()


def test_a_connection_that_goes_back_to_the_pool_waits_by_itself_again(sqlite_url: str) -> None:
    """Posting switches SQLite's own waiting off until then; the next user of the connection finds it as it was."""
    engine = engine_for(sqlite_url, lock_timeout_seconds=3)
    dialect = dialect_of(engine)

    def waiting(connection: Connection) -> object:
        return connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()

    for _ in range(2):
        with engine.connect() as connection:
            raw = connection.connection.dbapi_connection
            assert waiting(connection) == 3000
            dialect.begin_write(connection, 1.0)
            connection.rollback()
            assert waiting(connection) == 0
        with engine.connect() as connection:
            assert connection.connection.dbapi_connection is raw
            assert waiting(connection) == 3000
    engine.dispose()


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_a_users_own_connection_keeps_its_waiting(tmp_path: Path, mode: str) -> None:
    """Of an engine that is not ours nothing is known: only while the transaction begins is it switched off."""
    engine = create_engine(f"sqlite:///{tmp_path / 'a.db'}", connect_args={"timeout": 2})
    with engine.connect() as connection:
        connection.exec_driver_sql(f"PRAGMA journal_mode={mode}")
        dialect_of(engine).begin_write(connection, 1.0)
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == 2000
        connection.rollback()
    engine.dispose()


def test_a_file_without_a_write_ahead_log_keeps_its_waiting(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There COMMIT waits for readers. Some file systems can have no such log."""
    monkeypatch.setattr(dialects, "_use_wal", lambda cursor, timeout_seconds: False)
    engine = engine_for(sqlite_url, lock_timeout_seconds=3)
    with engine.connect() as connection:
        dialect_of(engine).begin_write(connection, 1.0)
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == 3000
        connection.rollback()
    engine.dispose()


def test_a_write_begins_immediate_also_where_the_users_engine_began_deferred(tmp_path: Path) -> None:
    """With the recipe of SQLAlchemy's documentation (its own BEGIN), the write lock is taken first all the same."""
    from sqlalchemy import event

    engine = create_engine(f"sqlite:///{tmp_path / 'a.db'}")
    event.listen(engine, "connect", lambda raw, _record: setattr(raw, "isolation_level", None))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    with engine.connect() as connection:
        dialect_of(engine).begin_write(connection, 1.0)
        other = sqlite3.connect(tmp_path / "a.db", timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.close()
        connection.rollback()
    engine.dispose()


@pytest.mark.postgres
def test_an_own_transaction_never_waits_longer_than_its_lock_time_out(postgresql_url: str) -> None:
    """Set for this transaction only; a caller's own connection keeps its setting."""
    engine = engine_for(postgresql_url)
    dialect = dialect_of(engine)
    with engine.begin() as connection:
        connection.execute(
            insert(credit_accounts),
            {"organization_id": "acme", "created_at": datetime.now(UTC), "last_posted_at": datetime.now(UTC)},
        )
    with engine.connect() as holder, engine.connect() as connection:
        account = dialect.open_account(holder, "acme", None).account
        assert account is not None
        assert account["organization_id"] == "acme"
        started = time.monotonic()
        with pytest.raises(OperationalError, match="lock timeout"):
            dialect.open_account(connection, "acme", 0.2)
        assert 0.2 <= time.monotonic() - started < 2.0
        connection.rollback()
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar_one() == "0"
        dialect.begin_write(connection, 0.7)
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar_one() == "700ms"
        connection.rollback()
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar_one() == "0"
        assert dialect.open_account(connection, "nobody", 0.2).account is None
    engine.dispose()


@pytest.mark.postgres
def test_the_lock_leaves_foreign_keys_of_the_host_alone(postgresql_url: str) -> None:
    """An application's table that refers to an account can be written while the account is being charged."""
    engine = engine_for(postgresql_url)
    with engine.begin() as connection:
        connection.execute(
            insert(credit_accounts),
            {"organization_id": "acme", "created_at": datetime.now(UTC), "last_posted_at": datetime.now(UTC)},
        )
        connection.exec_driver_sql("CREATE TABLE customers (id TEXT REFERENCES credit_accounts (organization_id))")
    with engine.connect() as holder, engine.begin() as connection:
        dialect_of(engine).open_account(holder, "acme", None)
        connection.exec_driver_sql("SET LOCAL lock_timeout = '300ms'")
        connection.exec_driver_sql("INSERT INTO customers VALUES ('acme')")
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE customers")
    engine.dispose()


@pytest.mark.postgres
def test_the_clock_is_read_after_the_wait_for_the_lock(postgresql_url: str) -> None:
    """A time from before the wait would let an expired hold be committed."""
    engine = engine_for(postgresql_url, lock_timeout_seconds=5)
    dialect = dialect_of(engine)
    with engine.begin() as connection:
        connection.execute(
            insert(credit_accounts),
            {"organization_id": "acme", "created_at": datetime.now(UTC), "last_posted_at": datetime.now(UTC)},
        )
    with engine.connect() as holder, engine.connect() as connection:
        dialect.open_account(holder, "acme", None)
        begun = dialect.now(connection)
        threading.Timer(0.3, holder.rollback).start()
        now = dialect.open_account(connection, "acme", 5.0).now
        assert now - begun >= timedelta(seconds=0.3)
        assert now.tzinfo is UTC
    engine.dispose()


def test_a_read_transaction_sees_one_moment(database_url: str) -> None:
    """What another writes between two statements does not show."""
    engine = engine_for(database_url)
    count = text("SELECT count(*) FROM agent_action_costs")
    with engine.connect() as reader:
        dialect_of(engine).begin_read(reader)
        before = reader.execute(count).scalar_one()
        with engine.begin() as writer:
            writer.exec_driver_sql("DELETE FROM agent_action_costs WHERE action = 'generate_video'")
        assert reader.execute(count).scalar_one() == before
        reader.rollback()
        assert reader.execute(count).scalar_one() == before - 1
    engine.dispose()


def test_many_rows_are_written_like_one(database_url: str) -> None:
    """Inserts and updates of one row and of several (array parameters on PostgreSQL), NULLs and times included."""
    engine = engine_for(database_url)
    dialect = dialect_of(engine)
    now = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    rows = [
        {
            "organization_id": f"o{number}",
            "created_at": now,
            "last_posted_at": now,
            "granted_micros": 2**62 + number,
            "next_due_at": None if number % 2 else now,
        }
        for number in range(4)
    ]
    with engine.begin() as connection:
        dialect.write(connection, [Write(credit_accounts, rows[:1])])
        dialect.write(connection, [Write(credit_accounts, rows[1:])])
        changed = [
            {"organization_id": f"o{n}", "granted_micros": n, "next_due_at": now if n % 2 else None} for n in range(4)
        ]
        dialect.write(connection, [Write(credit_accounts, changed[:1], ("organization_id",))])
        dialect.write(connection, [Write(credit_accounts, changed[1:3], ("organization_id",))])
        table = credit_accounts
        found = connection.execute(
            select(table.c.organization_id, table.c.granted_micros, table.c.next_due_at).order_by(
                table.c.organization_id
            )
        ).all()
    engine.dispose()
    assert [tuple(row) for row in found] == [("o0", 0, None), ("o1", 1, now), ("o2", 2, None), ("o3", 2**62 + 3, None)]


def test_times_and_amounts_come_back_as_they_went_in(database_url: str) -> None:
    """Microseconds in UTC whatever the zone, and decimals to the last digit."""
    table = Table(
        "kinds",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("at", UtcDateTime),
        Column("cost", ExactNumeric),
    )
    zoned = datetime.fromisoformat("2026-03-29T02:30:00.123456+05:30")
    values = [Decimal("0.000001"), Decimal("99999999999999.999999"), Decimal("0.1"), Decimal("1E+2")]
    engine = engine_for(database_url)
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(insert(table), [{"id": i, "at": zoned, "cost": value} for i, value in enumerate(values)])
        found = connection.execute(select(table.c.at, table.c.cost).order_by(table.c.id)).all()
        table.drop(connection)
    engine.dispose()
    assert {row.at for row in found} == {zoned.astimezone(UTC)}
    assert {row.at.tzinfo for row in found} == {UTC}
    assert [Decimal(row.cost) for row in found] == values


def test_postgresql_without_its_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact pip line."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match=r'pip install "agentcredits\[postgres\]"'):
        engine_for("postgresql://h/d")


def test_parameters_are_never_printed(database_url: str) -> None:
    """They may hold prompts and keys."""
    engine = engine_for(database_url)
    with engine.connect() as connection, pytest.raises(Exception, match="SQL parameters hidden") as failure:
        connection.execute(text("SELECT * FROM nowhere WHERE a = :a"), {"a": "a-secret-prompt"})
    engine.dispose()
    assert "a-secret-prompt" not in str(failure.value)


def test_an_engine_of_another_database_is_refused() -> None:
    """Its name is in the sentence."""

    class OtherEngine:
        class dialect:  # noqa: N801  # the attribute's name
            name = "oracle"

    engine: Any = OtherEngine()
    with pytest.raises(ConfigurationError, match="'oracle' is not supported"):
        dialects.dialect_of(engine)


def test_an_engine_in_autocommit_mode_is_refused(postgresql_url: str) -> None:
    """Its locks would end with their statement: nothing is booked."""
    engine = create_engine(normalise_url(postgresql_url), isolation_level="AUTOCOMMIT")
    with SyncCreditService(engine) as service, pytest.raises(ConfigurationError, match="autocommit"):
        service.grant_credits("acme", 1)
    with engine.connect() as connection:
        assert connection.execute(select(credit_accounts)).all() == []
    engine.dispose()
