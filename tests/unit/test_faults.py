"""Database errors become typed errors that say whether to try again, made from errors that real databases gave."""

from __future__ import annotations

import pickle
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from agentcredits import (
    CreditsError,
    InsufficientCreditsError,
    SchemaError,
    StoreError,
    StoreUnavailableError,
    SyncCreditService,
)
from agentcredits.store.faults import Fault, classify, translate


def failure(engine: Engine, *statements: str) -> SQLAlchemyError:
    """The error that the last statement gives."""
    try:
        with engine.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))
    except SQLAlchemyError as error:
        return error
    pytest.fail(f"{statements[-1]} succeeded")


# -- SQLite --------------------------------------------------------------------------------------------------------


def test_a_locked_file_is_locked(sqlite_url: str) -> None:
    """Nothing was written; trying again is right."""
    engine = create_engine(sqlite_url, connect_args={"timeout": 0.05})
    other = sqlite3.connect(str(make_url(sqlite_url).database), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    error = failure(engine, "BEGIN IMMEDIATE")
    other.close()
    engine.dispose()
    assert classify(error) is Fault.LOCKED


def test_a_file_that_cannot_be_opened_or_written_is_away(tmp_path: Path, sqlite_url: str) -> None:
    """A missing directory, a full disk, a file that may only be read."""
    missing = create_engine(f"sqlite:///{tmp_path / 'no' / 'such' / 'directory.db'}")
    assert classify(failure(missing, "SELECT 1")) is Fault.AWAY
    full = create_engine(sqlite_url)
    filled = failure(
        full,
        "PRAGMA max_page_count = 1",
        "CREATE TABLE large (x BLOB)",
        "INSERT INTO large SELECT randomblob(1000000) FROM credit_accounts UNION ALL SELECT randomblob(1000000)",
    )
    assert "full" in str(filled)
    assert classify(filled) is Fault.AWAY
    read_only = create_engine(f"{sqlite_url.replace('sqlite:///', 'sqlite:///file:')}?mode=ro&uri=true")
    assert classify(failure(read_only, "DELETE FROM agent_action_costs")) is Fault.AWAY
    for engine in (missing, full, read_only):
        engine.dispose()


def test_a_file_that_is_no_database_is_a_fault_of_its_own(tmp_path: Path) -> None:
    """Trying again does not help."""
    (tmp_path / "letter.db").write_text("Dear reader, " * 100)
    engine = create_engine(f"sqlite:///{tmp_path / 'letter.db'}")
    assert classify(failure(engine, "SELECT * FROM sqlite_master")) is Fault.DATA
    engine.dispose()


# -- both ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("SELECT * FROM nowhere", Fault.SCHEMA),
        ("SELECT no_such_thing FROM credit_accounts", Fault.SCHEMA),
        (
            "INSERT INTO agent_action_costs (agent_type, action, valid_from, cost) VALUES ('a', 'b', '2020-01-01', -1)",
            Fault.DATA,
        ),
        ("INSERT INTO credit_grants (organization_id) VALUES ('acme')", Fault.DATA),
        ("INSERT INTO credit_accounts (no_such_thing) VALUES (1)", Fault.SCHEMA),
        ("SELEKT 1", Fault.DATA),
    ],
)
def test_statements_that_fail_by_themselves(database_url: str, statement: str, fault: Fault) -> None:
    """A missing table or column asks for an upgrade; a violated constraint is the statement's own fault."""
    engine = create_engine(database_url)
    assert classify(failure(engine, statement)) is fault
    engine.dispose()


def test_an_empty_pool_is_away(sqlite_url: str) -> None:
    """No connection was to be had: nothing was written."""
    engine = create_engine(sqlite_url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    with engine.connect(), pytest.raises(SQLAlchemyError) as caught:
        engine.connect()
    engine.dispose()
    assert classify(caught.value) is Fault.AWAY


# -- PostgreSQL ----------------------------------------------------------------------------------------------------


@pytest.fixture
def postgres(postgresql_url: str) -> Iterator[Engine]:
    engine = create_engine(postgresql_url)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO credit_accounts (organization_id, created_at, last_posted_at)"
            " VALUES ('acme', now(), now()), ('zeta', now(), now())"
        )
    yield engine
    engine.dispose()


LOCK = "SELECT 1 FROM credit_accounts WHERE organization_id = '{}' FOR UPDATE"


@pytest.mark.postgres
def test_a_lock_time_out_is_locked(postgres: Engine) -> None:
    """55P03."""
    with postgres.connect() as holder:
        holder.exec_driver_sql(LOCK.format("acme"))
        error = failure(postgres, "SET LOCAL lock_timeout = '50ms'", LOCK.format("acme"))
    assert classify(error) is Fault.LOCKED


@pytest.mark.postgres
def test_a_statement_time_out_of_the_operators_is_locked_too(postgres: Engine) -> None:
    """57014: the operator's statement_timeout ended the wait; nothing was written and trying again is right."""
    with postgres.connect() as holder:
        holder.exec_driver_sql(LOCK.format("acme"))
        error = failure(postgres, "SET LOCAL statement_timeout = '50ms'", LOCK.format("acme"))
    assert classify(error) is Fault.LOCKED


@pytest.mark.postgres
def test_finished_work_is_settled_also_where_the_operator_ends_long_statements(postgres: Engine) -> None:
    """A statement_timeout shorter than our lock time-out: the settlement is kept and booked once the lock is gone."""
    url = postgres.url.update_query_dict({"options": "-c statement_timeout=100"})
    with SyncCreditService(url) as service, postgres.connect() as holder:
        service.grant_credits("acme", 10)
        with service.reserve_credits(organization_id="acme", amount=4):
            holder.exec_driver_sql(LOCK.format("acme"))
        assert service.get_balance("acme").reserved == 4
        holder.rollback()
        deadline = time.monotonic() + 5
        while not service.flush() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert service.get_balance("acme").spent == 4


@pytest.mark.postgres
def test_a_dead_lock_is_a_conflict(postgres: Engine) -> None:
    """40P01: one of the two is chosen; it can be tried again."""
    caught: list[BaseException] = []

    def lock(connection: Connection, place: str) -> None:
        try:
            connection.exec_driver_sql(LOCK.format(place))
        except SQLAlchemyError as error:
            caught.append(error)
            connection.rollback()

    with postgres.connect() as one, postgres.connect() as two:
        for connection in (one, two):
            connection.exec_driver_sql("SET LOCAL deadlock_timeout = '50ms'")
        lock(one, "acme")
        lock(two, "zeta")
        crossing = threading.Thread(target=lock, args=(one, "zeta"))
        crossing.start()
        time.sleep(0.05)
        lock(two, "acme")
        crossing.join()
    assert [classify(error) for error in caught] == [Fault.CONFLICT]


@pytest.mark.postgres
def test_a_serialization_failure_is_a_conflict(postgres: Engine) -> None:
    """40001, where the user's own transaction is stricter than ours."""
    update = "UPDATE credit_accounts SET last_seq = last_seq + 1 WHERE organization_id = 'acme'"
    with postgres.connect().execution_options(isolation_level="REPEATABLE READ") as strict:
        strict.exec_driver_sql("SELECT * FROM credit_accounts").all()
        with postgres.begin() as other:
            other.exec_driver_sql(update)
        with pytest.raises(SQLAlchemyError) as caught:
            strict.exec_driver_sql(update)
    assert classify(caught.value) is Fault.CONFLICT


@pytest.mark.postgres
def test_a_connection_that_is_ended_by_the_server_is_lost(postgres: Engine) -> None:
    """Whatever was on its way may or may not have arrived."""
    with postgres.connect() as doomed, postgres.connect() as killer:
        place = doomed.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        killer.exec_driver_sql(f"SELECT pg_terminate_backend({place})")
        with pytest.raises(SQLAlchemyError) as caught:
            doomed.exec_driver_sql("SELECT 1")
    assert classify(caught.value) is Fault.LOST


@pytest.mark.postgres
def test_a_transaction_that_may_not_write_is_away(postgres: Engine) -> None:
    """25006: a stand-by, or a server that an operator made read-only."""
    error = failure(postgres, "SET TRANSACTION READ ONLY", "DELETE FROM agent_action_costs")
    assert classify(error) is Fault.AWAY


@pytest.mark.postgres
def test_a_database_that_is_not_there_is_away(postgresql_url: str) -> None:
    """Nobody listens, or the server knows no such database."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    nobody = create_engine(f"postgresql+psycopg://u@127.0.0.1:{port}/d", connect_args={"connect_timeout": 1})
    elsewhere = create_engine(make_url(postgresql_url).set(database="no_such_database"))
    for engine in (nobody, elsewhere):
        assert classify(failure(engine, "SELECT 1")) is Fault.AWAY
        engine.dispose()


# -- what callers get ----------------------------------------------------------------------------------------------


def some_error() -> SQLAlchemyError:
    engine = create_engine("sqlite://")
    error = failure(engine, "SELECT * FROM nowhere")
    engine.dispose()
    return error


@pytest.mark.parametrize(
    ("fault", "error", "retryable"),
    [
        (Fault.CONFLICT, StoreUnavailableError, True),
        (Fault.LOST, StoreUnavailableError, True),
        (Fault.LOCKED, StoreUnavailableError, True),
        (Fault.AWAY, StoreUnavailableError, True),
        (Fault.SCHEMA, SchemaError, False),
        (Fault.DATA, StoreError, False),
    ],
)
def test_each_fault_becomes_one_typed_error(
    monkeypatch: pytest.MonkeyPatch, fault: Fault, error: type[CreditsError], retryable: bool
) -> None:
    """With the original as its cause; it pickles, and the suggestion is there where it helps."""
    cause = some_error()
    monkeypatch.setattr("agentcredits.store.faults.classify", lambda _error: fault)
    translated = translate(cause, idempotency_key="k", advice="Do this.")
    assert type(translated) is error
    assert translated.retryable is retryable
    assert translated.__cause__ is cause
    assert "nowhere" not in translated.message
    assert type(pickle.loads(pickle.dumps(translated))) is error
    if isinstance(translated, StoreUnavailableError):
        assert (translated.outcome, translated.idempotency_key, translated.reason) == ("not_started", "k", fault.value)
        assert translated.suggestions[0] == "Do this."


@pytest.mark.parametrize(
    ("ambiguous", "outcome", "sentence"),
    [(True, "unknown", "whether it was booked is unknown"), (False, "not_started", "nothing was booked")],
)
@pytest.mark.parametrize("fault", [Fault.LOST, Fault.CONFLICT, Fault.LOCKED, Fault.AWAY])
def test_what_a_lost_commit_did_stays_unknown_whatever_kept_it_from_being_looked_up(
    monkeypatch: pytest.MonkeyPatch, fault: Fault, ambiguous: bool, outcome: str, sentence: str
) -> None:
    """The last of several tries says nothing of the first."""
    monkeypatch.setattr("agentcredits.store.faults.classify", lambda _error: fault)
    translated = translate(some_error(), idempotency_key="k", ambiguous=ambiguous)
    assert isinstance(translated, StoreUnavailableError)
    assert translated.outcome == outcome
    assert sentence in translated.message


def test_our_own_errors_pass_unchanged() -> None:
    """A refusal is no fault of the database."""
    refusal = InsufficientCreditsError("no")
    assert translate(refusal) is refusal


@pytest.mark.parametrize("call", ["grant", "balance", "price"])
def test_a_database_that_is_away_is_one_error_at_every_door(call: str) -> None:
    """A posting, a read and a price: StoreUnavailableError, not started, after the lock time-out at the latest."""
    from agentcredits.settings import Settings

    settings = Settings(lock_timeout_seconds=1, retry_seconds=0.1)
    with SyncCreditService("postgresql://u@127.0.0.1:1/d", settings=settings) as service:
        doors: dict[str, Callable[[], object]] = {
            "grant": lambda: service.grant_credits("acme", 1),
            "balance": lambda: service.get_balance("acme"),
            "price": lambda: service.set_cost("A", "b", 1),
        }
        with pytest.raises(StoreUnavailableError) as refusal:
            doors[call]()
    assert (refusal.value.outcome, refusal.value.retryable) == ("not_started", True)
