"""session=: the charge and the user's own rows commit or roll back together, whatever kind of session it is."""

from __future__ import annotations

import asyncio
import inspect
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.orm import Session

from agentcredits import (
    AccountLockedError,
    AccountNotFoundError,
    ConfigurationError,
    CreditService,
    InsufficientCreditsError,
    InvalidInputError,
    RefundExceedsChargeError,
    SchemaError,
    StoreUnavailableError,
    SyncCreditService,
    Transaction,
    UnpricedActionError,
)
from agentcredits.testing import FakeClock

ACME, ZETA = "acme", "zeta"
INSERT_ORDER = text("INSERT INTO orders (id) VALUES (:id)")
AT_ONCE_SECONDS = 1.0


@contextmanager
def at_once() -> Iterator[None]:
    """What happens inside does not wait for a lock."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < AT_ONCE_SECONDS


@dataclass
class App:
    """An application with a table of its own, and two organizations that have 10 credits each."""

    service: SyncCreditService
    engine: Engine
    open: Callable[[], Any]

    def charge(self, amount: int, organization_id: str = ACME, **arguments: Any) -> Transaction:
        return self.service.consume_credits(organization_id=organization_id, amount=amount, **arguments)

    def available(self, organization_id: str = ACME) -> Decimal:
        return self.service.get_balance(organization_id).available

    def orders(self) -> list[str]:
        with self.engine.connect() as connection:
            return list(connection.exec_driver_sql("SELECT id FROM orders ORDER BY id").scalars())


@pytest.fixture
def app_engine(database_url: str) -> Iterator[Engine]:
    """The application's own engine on the same database, with a table of its own."""
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE orders (id TEXT PRIMARY KEY)")
    yield engine
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE orders")
    engine.dispose()


@pytest.fixture(params=["session", "connection"])
def app(request: pytest.FixtureRequest, service: SyncCreditService, app_engine: Engine) -> App:
    """The application, with a Session and with a Connection: both execute, commit, roll back and nest."""
    for place in (ACME, ZETA):
        service.grant_credits(place, 10)
    return App(
        service, app_engine, app_engine.connect if request.param == "connection" else partial(Session, app_engine)
    )


# -- together ------------------------------------------------------------------------------------------------------


def test_a_charge_and_the_users_row_commit_together(app: App) -> None:
    """One commit books both; the ledger verifies."""
    with app.open() as session:
        session.execute(INSERT_ORDER, {"id": "o1"})
        transaction = app.charge(3, session=session)
        session.commit()
    assert app.orders() == ["o1"]
    assert app.available() == 7
    assert app.service.list_transactions(ACME).items[0] == transaction
    assert app.service.verify()


def test_a_charge_and_the_users_row_roll_back_together(app: App) -> None:
    """One rollback undoes both."""
    with app.open() as session:
        session.execute(INSERT_ORDER, {"id": "o1"})
        app.charge(3, session=session)
        session.rollback()
    assert app.orders() == []
    assert app.available() == 10
    assert len(app.service.list_transactions(ACME)) == 1
    assert app.service.verify()


def test_a_session_that_is_closed_without_commit_charges_nothing(app: App) -> None:
    """Forgetting to commit is a rollback, and lets go of the account."""
    with app.open() as session:
        app.charge(3, session=session)
    assert app.charge(1).balance_after == 9


def test_a_refused_charge_leaves_the_session_usable(app: App) -> None:
    """Every kind of refusal touches neither the user's earlier rows nor what comes after it."""
    with app.open() as session:
        session.execute(INSERT_ORDER, {"id": "before"})
        with pytest.raises(InsufficientCreditsError):
            app.charge(11, session=session)
        with pytest.raises(UnpricedActionError):
            app.service.consume_credits(organization_id=ACME, agent_type="Nobody", action="nothing", session=session)
        with pytest.raises(AccountNotFoundError):
            app.charge(1, "nobody", session=session)
        session.execute(INSERT_ORDER, {"id": "then"})
        app.charge(1, ZETA, session=session)
        session.commit()
    assert app.orders() == ["before", "then"]
    assert (app.available(), app.available(ZETA)) == (10, 9)
    assert app.service.verify()


def test_prices_and_several_charges_work_inside_one_transaction(app: App) -> None:
    """A price is looked up on the same connection; rows of one transaction follow each other."""
    with app.open() as session:
        first = app.service.consume_credits(
            organization_id=ACME, agent_type="ContentAgent", action="generate_content", session=session
        )
        second = app.service.consume_credits(
            organization_id=ACME, agent_type="VoiceAgent", action="generate_voice", quantity=2, session=session
        )
        session.commit()
    assert [first.amount, second.amount] == [-1, -4]
    assert [first.seq, second.seq] == [2, 3]
    assert [first.balance_after, second.balance_after] == [9, 5]
    assert app.service.verify()


def test_a_refund_takes_part_in_the_users_transaction(app: App) -> None:
    """refund_credits(session=) commits or rolls back with the user's rows, and a refusal leaves it usable."""
    charge = app.charge(4)
    with app.open() as session:
        app.service.refund_credits(charge, 1, session=session)
        session.rollback()
    assert app.available() == 6
    with app.open() as session:
        refund = app.service.refund_credits(charge, 3, "unhappy", session=session)
        with pytest.raises(RefundExceedsChargeError):
            app.service.refund_credits(charge, 2, session=session)
        session.execute(INSERT_ORDER, {"id": "refunded"})
        session.commit()
    assert (refund.amount, refund.refund_of, refund.reason) == (3, charge.id, "unhappy")
    assert app.orders() == ["refunded"]
    assert app.available() == 9
    assert app.service.verify()


def test_a_key_replays_across_sessions(app: App) -> None:
    """The same key charges once, whether the first try was in a session, in this one, or in none."""
    with app.open() as session:
        first = app.charge(2, idempotency_key="k", session=session)
        again = app.charge(2, idempotency_key="k", session=session)
        session.commit()
    later = app.charge(2, idempotency_key="k")
    with app.open() as session:
        last = app.charge(2, idempotency_key="k", session=session)
        session.commit()
    assert {again.id, later.id, last.id} == {first.id}
    assert [first.replayed, again.replayed, later.replayed, last.replayed] == [False, True, True, True]
    assert app.available() == 8


def test_a_rolled_back_key_can_be_used_again(app: App) -> None:
    """What was rolled back never happened, its key included."""
    with app.open() as session:
        app.charge(2, idempotency_key="k", session=session)
        session.rollback()
    assert not app.charge(3, idempotency_key="k").replayed
    assert app.available() == 7


def test_an_injected_clock_is_honoured_in_a_session(app: App, database_url: str, clock: FakeClock) -> None:
    """The row's time is the injected clock's."""
    clock.set(app.service.get_balance(ACME).as_of.replace(year=2100))
    with SyncCreditService(database_url, clock=clock) as service, app.open() as session:
        row = service.consume_credits(organization_id=ACME, amount=1, session=session)
        session.commit()
    assert row.created_at == clock.now()


def test_a_price_that_was_never_committed_is_not_remembered(app: App) -> None:
    """What a session sees of its own uncommitted rows is for that session only."""
    action = {"organization_id": ACME, "agent_type": "VideoAgent", "action": "generate_video"}
    with app.open() as session:
        session.execute(text("UPDATE agent_action_costs SET cost = '7' WHERE action = 'generate_video'"))
        inside = app.service.consume_credits(**action, session=session)
        session.rollback()
    outside = app.service.consume_credits(**action)
    assert (inside.charged, outside.charged) == (7, 10)


def test_closing_the_service_before_the_commit_does_not_break_the_users_commit(app: App, database_url: str) -> None:
    """A service made for one request may be closed before its caller commits: the commit is the user's."""
    with app.open() as session:
        with SyncCreditService(database_url) as short_lived:
            session.execute(INSERT_ORDER, {"id": "o1"})
            short_lived.consume_credits(organization_id=ACME, amount=1, session=session)
        session.commit()
    assert app.orders() == ["o1"]
    assert app.available() == 9


# -- the lock ------------------------------------------------------------------------------------------------------


def test_the_account_is_refused_at_once_while_the_session_is_open(app: App) -> None:
    """Waiting for one's own transaction would never end: AccountLockedError at once, with what to do instead."""
    outside: list[Callable[[], object]] = [
        lambda: app.charge(1),
        lambda: app.service.reserve_credits(organization_id=ACME, amount=1),
        lambda: app.service.grant_credits(ACME, 1),
    ]
    with app.open() as session:
        app.charge(1, session=session)
        for call in outside:
            with at_once(), pytest.raises(AccountLockedError) as refusal:
                call()
            assert "pass session= or commit first" in refusal.value.message
            assert refusal.value.context["organization_id"] == ACME
            assert refusal.value.suggestions
        session.rollback()
    assert app.available() == 10


def test_a_price_is_not_set_while_the_session_holds_the_only_writer(app: App) -> None:
    """On SQLite a price would wait for the caller's own transaction: it is refused at once; PostgreSQL takes it."""
    with app.open() as session:
        app.charge(1, session=session)
        if "sqlite" in str(app.service.database_url):
            with at_once(), pytest.raises(AccountLockedError, match="the database file is locked"):
                app.service.set_cost("Agent", "act", 1)
        else:
            assert app.service.set_cost("Agent", "act", 1).cost == 1
        session.commit()
    assert app.service.set_cost("Agent", "act", 2).cost == 2


@pytest.mark.parametrize("end", ["commit", "rollback", "close"])
def test_the_account_is_free_again_after_the_session(app: App, end: str) -> None:
    """Commit, rollback and close each end the lock."""
    with app.open() as session:
        app.charge(1, session=session)
        getattr(session, end)()
        app.charge(2)
    assert app.available() == (7 if end == "commit" else 8)


def test_a_refused_charge_in_the_session_still_holds_the_account(app: App, database_url: str) -> None:
    """The refusal was decided under the account's lock, which lasts as long as the user's transaction."""
    with app.open() as session:
        with pytest.raises(InsufficientCreditsError):
            app.charge(11, session=session)
        with at_once(), pytest.raises(AccountLockedError):
            app.charge(1)
        session.rollback()
    assert app.charge(1).balance_after == 9


def test_reads_are_not_stopped_by_an_open_session(app: App) -> None:
    """A balance is read from outside as it is committed."""
    with app.open() as session:
        app.charge(1, session=session)
        assert app.available() == 10
        assert app.service.check_credits(ACME, amount=10)
        session.commit()
    assert app.available() == 9


def test_a_thread_with_the_callers_context_is_refused_as_well(app: App) -> None:
    """asyncio.to_thread carries the context, and with it the knowledge of the open transaction."""

    async def scenario(session: Any) -> None:
        app.charge(1, session=session)
        with at_once(), pytest.raises(AccountLockedError):
            await asyncio.to_thread(app.charge, 1)

    with app.open() as session:
        asyncio.run(scenario(session))
        session.rollback()


def test_another_organization_is_refused_only_where_there_is_one_writer(app: App) -> None:
    """PostgreSQL locks one account; SQLite's open transaction holds the whole file, so that waiting never ends."""
    with app.open() as session:
        app.charge(1, session=session)
        if app.engine.dialect.name == "postgresql":
            assert app.charge(1, ZETA).balance_after == 9
        else:
            with at_once(), pytest.raises(AccountLockedError):
                app.charge(1, ZETA)
        session.rollback()


def test_several_organizations_are_charged_in_ascending_order_or_refused(app: App) -> None:
    """Two transactions in different orders would wait for each other: the second order is refused."""
    with app.open() as session:
        for place in (ACME, ZETA, ZETA):
            app.charge(1, place, session=session)
        with pytest.raises(InvalidInputError, match="ascending order") as refusal:
            app.charge(1, ACME, session=session)
        assert refusal.value.reason == "organization_order"
        session.commit()
    assert (app.available(), app.available(ZETA)) == (9, 8)


def test_a_lock_of_somebody_else_ends_with_the_sessions_own_time_out(app: App, database_url: str) -> None:
    """It comes as StoreUnavailableError with its cause and the key; the session goes on afterwards."""
    url = make_url(database_url)
    sqlite = url.get_backend_name() == "sqlite"
    impatient = create_engine(url, connect_args={"timeout": 0.1} if sqlite else {"options": "-c lock_timeout=100"})
    with app.engine.connect() as other, Session(impatient) as session:
        other.exec_driver_sql("BEGIN IMMEDIATE" if sqlite else "SELECT 1 FROM credit_accounts FOR UPDATE")
        with at_once(), pytest.raises(StoreUnavailableError) as refusal:
            app.charge(1, idempotency_key="k", session=session)
        assert refusal.value.__cause__ is not None
        assert (refusal.value.outcome, refusal.value.idempotency_key) == ("not_started", "k")
        other.rollback()
        app.charge(1, idempotency_key="k", session=session)
        session.commit()
    impatient.dispose()
    assert app.available() == 9


# -- SQLite --------------------------------------------------------------------------------------------------------


@pytest.fixture
def sqlite_app(sqlite_url: str) -> Iterator[App]:
    """The application on SQLite alone."""
    engine = create_engine(sqlite_url)
    with SyncCreditService(sqlite_url) as service:
        service.grant_credits(ACME, 10)
        yield App(service, engine, partial(Session, engine))
    engine.dispose()


def test_a_charge_as_first_statement_begins_the_transaction_immediate(sqlite_app: App) -> None:
    """SQLite's write lock is taken before anything is read, so that the transaction cannot become stale."""
    statements: list[str] = []

    @event.listens_for(sqlite_app.engine, "before_cursor_execute")
    def _note(_c: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    with sqlite_app.open() as session:
        sqlite_app.charge(1, session=session)
        session.commit()
    assert statements[0] == "BEGIN IMMEDIATE"


def test_a_transaction_that_has_read_before_another_writer_gets_advice(sqlite_app: App) -> None:
    """It cannot become a writer any more: a typed, retryable error at once that says how to begin."""
    with sqlite_app.open() as session:
        session.execute(text("BEGIN"))
        session.execute(text("SELECT count(*) FROM credit_accounts")).all()
        other = sqlite3.connect(str(sqlite_app.engine.url.database))
        other.execute("CREATE TABLE elsewhere (id INTEGER)")
        other.close()
        with at_once(), pytest.raises(StoreUnavailableError) as refusal:
            sqlite_app.charge(1, session=session)
        assert "BEGIN IMMEDIATE" in " ".join(refusal.value.suggestions)
        assert "locked" in str(refusal.value.__cause__)
        assert (refusal.value.outcome, refusal.value.retryable) == ("not_started", True)
        session.rollback()
        sqlite_app.charge(1, session=session)
        session.commit()
    assert sqlite_app.available() == 9


def test_a_transaction_begun_immediate_may_read_before_the_charge(sqlite_app: App) -> None:
    """The advice holds: BEGIN IMMEDIATE first, then anything, charge last."""
    with sqlite_app.open() as session:
        session.execute(text("BEGIN IMMEDIATE"))
        session.execute(text("SELECT count(*) FROM credit_accounts")).all()
        sqlite_app.charge(1, session=session)
        session.commit()
    assert sqlite_app.available() == 9


def test_a_session_on_a_database_without_the_schema_says_what_to_run(sqlite_app: App, tmp_path: Path) -> None:
    """Both ways in, with a price to be looked up and without, give the typed error."""
    engine = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    with Session(engine) as session:
        with pytest.raises(SchemaError, match="agentcredits db upgrade"):
            sqlite_app.charge(1, session=session)
        with pytest.raises(SchemaError, match="agentcredits db upgrade"):
            sqlite_app.service.consume_credits(
                organization_id=ACME, agent_type="QAAgent", action="answer_question", session=session
            )
    engine.dispose()


# -- what is no session --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nonsense", [NotImplemented, "session", 5, [], Session, create_engine("sqlite://")], ids=repr)
async def test_what_is_no_session_is_refused_with_a_sentence(sqlite_url: str, nonsense: Any) -> None:
    """By both faces, and nothing is charged."""
    async with CreditService(sqlite_url) as service:
        with SyncCreditService(sqlite_url) as blocking:
            blocking.grant_credits(ACME, 10)
            with pytest.raises(InvalidInputError, match="session must be a SQLAlchemy Session"):
                blocking.consume_credits(organization_id=ACME, amount=1, session=nonsense)
            with pytest.raises(InvalidInputError, match="session must be a SQLAlchemy Session"):
                await service.refund_credits("id", organization_id=ACME, session=nonsense)
            with pytest.raises(InvalidInputError, match="session must be a SQLAlchemy Session"):
                await service.consume_credits(organization_id=ACME, amount=1, session=nonsense)
            assert blocking.get_balance(ACME).available == 10


@pytest.mark.postgres
def test_a_connection_without_transactions_is_refused(postgresql_url: str) -> None:
    """In autocommit mode nothing could be rolled back."""
    engine = create_engine(postgresql_url, isolation_level="AUTOCOMMIT")
    with SyncCreditService(postgresql_url) as service, engine.connect() as connection:
        service.grant_credits(ACME, 10)
        with pytest.raises(ConfigurationError, match="autocommit"):
            service.consume_credits(organization_id=ACME, amount=1, session=connection)
        assert service.get_balance(ACME).available == 10
    engine.dispose()


def test_only_charges_and_refunds_take_a_session() -> None:
    """A hold that others cannot see protects nothing: reserve has no such parameter, nor has anything else."""
    for face in (CreditService, SyncCreditService):
        takers = {
            name
            for name, method in inspect.getmembers(face, inspect.isfunction)
            if "session" in inspect.signature(method).parameters
        }
        assert takers == {"consume_credits", "refund_credits"}
