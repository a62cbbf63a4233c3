"""session=: the charge and the user's own rows commit or roll back together, whatever kind of session it is."""

from __future__ import annotations

import asyncio
import inspect
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from agentcredits import (
    AccountLockedError,
    AccountNotFoundError,
    ConfigurationError,
    CreditEvent,
    CreditService,
    InsufficientCreditsError,
    InvalidInputError,
    RefundExceedsChargeError,
    SchemaError,
    StoreUnavailableError,
    SyncCreditService,
    UnpricedActionError,
    add_hook,
    remove_hook,
)
from agentcredits.settings import Settings
from agentcredits.testing import FakeClock

ACME, ZETA = "acme", "zeta"
INSERT_ORDER = text("INSERT INTO orders (id) VALUES (:id)")
AT_ONCE_SECONDS = 1.0


@pytest.fixture
def events() -> Iterator[list[CreditEvent]]:
    """What the hooks heard of."""
    heard: list[CreditEvent] = []
    hook = add_hook(heard.append)
    yield heard
    remove_hook(hook)


@pytest.fixture
def app_engine(database_url: str) -> Iterator[Engine]:
    """The application's own engine on the same database, with a table of its own."""
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE orders (id TEXT PRIMARY KEY)")
    yield engine
    engine.dispose()


@pytest.fixture
def funded(service: SyncCreditService, app_engine: Engine) -> SyncCreditService:
    """Two organizations with 10 credits each."""
    for organization_id in (ACME, ZETA):
        service.grant_credits(organization_id, 10)
    return service


@pytest.fixture(params=["session", "connection"])
def open_session(request: pytest.FixtureRequest, app_engine: Engine) -> Callable[[], Any]:
    """Opens a Session or a Connection: both execute, commit, roll back and nest."""
    return app_engine.connect if request.param == "connection" else lambda: Session(app_engine)


def orders(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.exec_driver_sql("SELECT id FROM orders ORDER BY id").scalars())


def available(service: SyncCreditService, organization_id: str = ACME) -> Decimal:
    return service.get_balance(organization_id).available


def wait_for(condition: Callable[[], bool], seconds: float = 3.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


# -- together ------------------------------------------------------------------------------------------------------


def test_a_charge_and_the_users_row_commit_together(
    funded: SyncCreditService, app_engine: Engine, open_session: Callable[[], Any]
) -> None:
    """One commit books both; the ledger verifies."""
    with open_session() as session:
        session.execute(INSERT_ORDER, {"id": "o1"})
        transaction = funded.consume_credits(organization_id=ACME, amount=3, session=session)
        session.commit()
    assert orders(app_engine) == ["o1"]
    assert available(funded) == 7
    assert funded.list_transactions(ACME).items[0] == transaction
    assert funded.verify()


def test_a_charge_and_the_users_row_roll_back_together(
    funded: SyncCreditService, app_engine: Engine, open_session: Callable[[], Any], events: list[CreditEvent]
) -> None:
    """One rollback undoes both, and no hook hears of it."""
    with open_session() as session:
        session.execute(INSERT_ORDER, {"id": "o1"})
        funded.consume_credits(organization_id=ACME, amount=3, session=session)
        session.rollback()
    assert orders(app_engine) == []
    assert available(funded) == 10
    assert len(funded.list_transactions(ACME)) == 1
    assert funded.verify()
    time.sleep(0.05)  # a bare Connection's hooks come from another thread
    assert events == []


def test_a_session_that_is_closed_without_commit_charges_nothing(
    funded: SyncCreditService, open_session: Callable[[], Any]
) -> None:
    """Forgetting to commit is a rollback, and lets go of the account."""
    with open_session() as session:
        funded.consume_credits(organization_id=ACME, amount=3, session=session)
    assert available(funded) == 10
    assert funded.consume_credits(organization_id=ACME, amount=1).balance_after == 9


def test_a_refused_charge_leaves_the_session_usable(
    funded: SyncCreditService, app_engine: Engine, open_session: Callable[[], Any]
) -> None:
    """Every kind of refusal touches neither the user's earlier rows nor what comes after it."""
    with open_session() as session:
        session.execute(INSERT_ORDER, {"id": "before"})
        with pytest.raises(InsufficientCreditsError):
            funded.consume_credits(organization_id=ACME, amount=11, session=session)
        with pytest.raises(UnpricedActionError):
            funded.consume_credits(organization_id=ACME, agent_type="Nobody", action="nothing", session=session)
        with pytest.raises(AccountNotFoundError):
            funded.consume_credits(organization_id="nobody", amount=1, session=session)
        session.execute(INSERT_ORDER, {"id": "then"})
        funded.consume_credits(organization_id="zeta", amount=1, session=session)
        session.commit()
    assert orders(app_engine) == ["before", "then"]
    assert (available(funded), available(funded, ZETA)) == (10, 9)
    assert funded.verify()


def test_prices_and_several_charges_work_inside_one_transaction(
    funded: SyncCreditService, open_session: Callable[[], Any]
) -> None:
    """A price is looked up on the same connection; rows of one transaction follow each other."""
    with open_session() as session:
        first = funded.consume_credits(
            organization_id=ACME, agent_type="ContentAgent", action="generate_content", session=session
        )
        second = funded.consume_credits(
            organization_id=ACME, agent_type="VoiceAgent", action="generate_voice", quantity=2, session=session
        )
        session.commit()
    assert [first.amount, second.amount] == [-1, -4]
    assert [first.seq, second.seq] == [2, 3]
    assert [first.balance_after, second.balance_after] == [9, 5]
    assert funded.verify()


def test_a_refund_takes_part_in_the_users_transaction(
    funded: SyncCreditService, app_engine: Engine, open_session: Callable[[], Any], events: list[CreditEvent]
) -> None:
    """refund_credits(session=) commits or rolls back with the user's rows, and a refusal leaves it usable."""
    charge = funded.consume_credits(organization_id=ACME, amount=4)
    events.clear()
    with open_session() as session:
        funded.refund_credits(charge, 1, session=session)
        session.rollback()
    assert available(funded) == 6
    with open_session() as session:
        refund = funded.refund_credits(charge, 3, "unhappy", session=session)
        with pytest.raises(RefundExceedsChargeError):
            funded.refund_credits(charge, 2, session=session)
        session.execute(INSERT_ORDER, {"id": "refunded"})
        assert events == []
        session.commit()
    assert (refund.amount, refund.refund_of, refund.reason) == (3, charge.id, "unhappy")
    assert orders(app_engine) == ["refunded"]
    assert available(funded) == 9
    assert wait_for(lambda: len(events) == 1)
    assert (events[0].name, events[0].transaction) == ("refunded", refund)
    assert funded.verify()


def test_a_key_replays_across_sessions(
    funded: SyncCreditService, open_session: Callable[[], Any], events: list[CreditEvent]
) -> None:
    """The same key charges once, whether the first try was in a session, in this one, or in none; hooks hear once."""
    with open_session() as session:
        first = funded.consume_credits(organization_id=ACME, amount=2, idempotency_key="k", session=session)
        again = funded.consume_credits(organization_id=ACME, amount=2, idempotency_key="k", session=session)
        session.commit()
    later = funded.consume_credits(organization_id=ACME, amount=2, idempotency_key="k")
    with open_session() as session:
        last = funded.consume_credits(organization_id=ACME, amount=2, idempotency_key="k", session=session)
        session.commit()
    assert {again.id, later.id, last.id} == {first.id}
    assert [first.replayed, again.replayed, later.replayed, last.replayed] == [False, True, True, True]
    assert available(funded) == 8
    assert wait_for(lambda: len(events) == 1)
    time.sleep(0.05)
    assert len(events) == 1


def test_a_rolled_back_key_can_be_used_again(funded: SyncCreditService, open_session: Callable[[], Any]) -> None:
    """What was rolled back never happened, its key included."""
    with open_session() as session:
        funded.consume_credits(organization_id=ACME, amount=2, idempotency_key="k", session=session)
        session.rollback()
    assert not funded.consume_credits(organization_id=ACME, amount=3, idempotency_key="k").replayed
    assert available(funded) == 7


def test_an_injected_clock_is_honoured_in_a_session(
    database_url: str, clock: FakeClock, app_engine: Engine, open_session: Callable[[], Any]
) -> None:
    """The row's time is the injected clock's."""
    with SyncCreditService(database_url, clock=clock) as service, open_session() as session:
        service.grant_credits(ACME, 1)
        row = service.consume_credits(organization_id=ACME, amount=1, session=session)
        session.commit()
    assert row.created_at == clock.now()


# -- savepoints and hooks ------------------------------------------------------------------------------------------


def test_a_savepoint_that_the_user_rolls_back_undoes_its_charge(
    funded: SyncCreditService, app_engine: Engine, open_session: Callable[[], Any], events: list[CreditEvent]
) -> None:
    """Charge and row of the savepoint are gone, its hook does not fire; those around it stand and are told."""
    with open_session() as session:
        funded.consume_credits(organization_id=ACME, amount=1, session=session)
        savepoint = session.begin_nested()
        session.execute(INSERT_ORDER, {"id": "undone"})
        funded.consume_credits(organization_id=ACME, amount=5, session=session)
        savepoint.rollback()
        session.execute(INSERT_ORDER, {"id": "kept"})
        funded.consume_credits(organization_id=ACME, amount=2, session=session)
        session.commit()
    assert orders(app_engine) == ["kept"]
    assert available(funded) == 7
    assert wait_for(lambda: len(events) == 2)
    time.sleep(0.05)
    assert [heard.transaction.charged for heard in events if heard.transaction] == [1, 2]
    assert funded.verify()


def test_hooks_fire_only_after_the_outermost_commit(
    funded: SyncCreditService, app_engine: Engine, open_session: Callable[[], Any], events: list[CreditEvent]
) -> None:
    """Neither the charge nor the release of a savepoint tells anybody; when a hook runs, others see the row."""
    seen: list[int] = []

    def look(_event: CreditEvent) -> None:
        with app_engine.connect() as connection:
            seen.append(
                connection.exec_driver_sql("SELECT count(*) FROM credit_transactions WHERE type = 'debit'").scalar_one()
            )

    add_hook(look)
    try:
        with open_session() as session:
            with session.begin_nested():
                transaction = funded.consume_credits(organization_id=ACME, amount=1, session=session)
            time.sleep(0.02)
            assert events == []
            session.commit()
            assert wait_for(lambda: bool(seen))
    finally:
        remove_hook(look)
    assert [(heard.name, heard.transaction) for heard in events] == [("charged", transaction)]
    assert seen == [1]


def test_a_session_that_goes_on_tells_of_each_transaction_once(
    funded: SyncCreditService, open_session: Callable[[], Any], events: list[CreditEvent]
) -> None:
    """Commit, roll back, commit on one session: two charges, each told once."""
    with open_session() as session:
        for end in ("commit", "rollback", "commit"):
            funded.consume_credits(organization_id=ACME, amount=1, session=session)
            getattr(session, end)()
    assert available(funded) == 8
    assert wait_for(lambda: len(events) == 2)
    time.sleep(0.05)
    assert len({heard.transaction.id for heard in events if heard.transaction}) == len(events) == 2


def test_a_failing_hook_does_not_disturb_the_commit(
    funded: SyncCreditService, open_session: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The commit stands and the failure is logged."""

    def fail(_event: CreditEvent) -> None:
        raise RuntimeError("hook")

    add_hook(fail)
    try:
        with open_session() as session:
            funded.consume_credits(organization_id=ACME, amount=1, session=session)
            session.commit()
        assert wait_for(lambda: "a hook failed" in caplog.text)
    finally:
        remove_hook(fail)
    assert available(funded) == 9


@pytest.mark.postgres
def test_a_commit_that_fails_tells_nobody_not_even_later(
    postgresql_url: str, events: list[CreditEvent]
) -> None:
    """A deferred constraint breaks the COMMIT: the charge never happened, and the next commit does not tell of it."""
    engine = create_engine(postgresql_url)
    with SyncCreditService(postgresql_url) as service, Session(engine) as session:
        service.grant_credits(ACME, 10)
        session.execute(text("CREATE TABLE orders (id TEXT UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
        session.commit()
        session.execute(INSERT_ORDER, {"id": "twice"})
        session.execute(INSERT_ORDER, {"id": "twice"})
        service.consume_credits(organization_id=ACME, amount=1, session=session)
        with pytest.raises(IntegrityError):
            session.commit()
        session.rollback()
        session.execute(INSERT_ORDER, {"id": "other"})
        session.commit()
        assert service.get_balance(ACME).available == 10
    engine.dispose()
    assert events == []


@pytest.mark.postgres
def test_a_failed_commit_of_a_connection_tells_nobody(postgresql_url: str, events: list[CreditEvent]) -> None:
    """As for a Session: a bare Connection's hooks look for the row first."""
    engine = create_engine(postgresql_url)
    with SyncCreditService(postgresql_url) as service:
        service.grant_credits(ACME, 10)
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE orders (id TEXT UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        with engine.connect() as connection:
            connection.execute(INSERT_ORDER, {"id": "twice"})
            connection.execute(INSERT_ORDER, {"id": "twice"})
            service.consume_credits(organization_id=ACME, amount=1, session=connection)
            with pytest.raises(IntegrityError):
                connection.commit()
            connection.rollback()
    engine.dispose()
    assert events == []


def test_closing_the_service_before_the_commit_does_not_break_the_users_commit(
    database_url: str, app_engine: Engine, open_session: Callable[[], Any]
) -> None:
    """A service made for one request may be closed before its caller commits: the commit is the user's."""
    with SyncCreditService(database_url) as setup:
        setup.grant_credits(ACME, 10)
        with open_session() as session:
            with SyncCreditService(database_url) as short_lived:
                session.execute(INSERT_ORDER, {"id": "o1"})
                short_lived.consume_credits(organization_id=ACME, amount=1, session=session)
            session.commit()
        assert available(setup) == 9
    assert orders(app_engine) == ["o1"]


def test_a_long_lived_session_outlives_the_services_that_charged_in_it(
    database_url: str, app_engine: Engine, open_session: Callable[[], Any], events: list[CreditEvent]
) -> None:
    """The next service that charges in the same session has its hooks fired as well, savepoints and all."""
    with SyncCreditService(database_url) as setup:
        setup.grant_credits(ACME, 10)
    with open_session() as session:
        for _ in range(2):
            with SyncCreditService(database_url) as short_lived:
                with session.begin_nested() as savepoint:
                    session.execute(INSERT_ORDER, {"id": "undone"})
                    savepoint.rollback()
                short_lived.consume_credits(organization_id=ACME, amount=1, session=session)
                session.commit()
                assert wait_for(lambda: bool(events))
                events.pop()
    with SyncCreditService(database_url) as after:
        assert available(after) == 8


# -- the lock ------------------------------------------------------------------------------------------------------


def without_session(service: SyncCreditService) -> dict[str, Callable[[], object]]:
    """Calls that change the account outside the session."""
    return {
        "consume": lambda: service.consume_credits(organization_id=ACME, amount=1),
        "reserve": lambda: service.reserve_credits(organization_id=ACME, amount=1),
        "grant": lambda: service.grant_credits(ACME, 1),
    }


@pytest.mark.parametrize("call", ["consume", "reserve", "grant"])
def test_the_account_is_refused_at_once_while_the_session_is_open(
    funded: SyncCreditService, open_session: Callable[[], Any], call: str
) -> None:
    """Waiting for one's own transaction would never end: AccountLockedError at once, with what to do instead."""
    with open_session() as session:
        funded.consume_credits(organization_id=ACME, amount=1, session=session)
        started = time.monotonic()
        with pytest.raises(AccountLockedError) as refusal:
            without_session(funded)[call]()
        assert time.monotonic() - started < AT_ONCE_SECONDS
        assert "pass session= or commit first" in refusal.value.message
        assert refusal.value.context["organization_id"] == ACME
        assert refusal.value.suggestions
        session.rollback()
    assert available(funded) == 10


@pytest.mark.parametrize("end", ["commit", "rollback", "close"])
def test_the_account_is_free_again_after_the_session(
    funded: SyncCreditService, open_session: Callable[[], Any], end: str
) -> None:
    """Commit, rollback and close each end the lock."""
    with open_session() as session:
        funded.consume_credits(organization_id=ACME, amount=1, session=session)
        getattr(session, end)()
        funded.consume_credits(organization_id=ACME, amount=2)
    assert available(funded) == (7 if end == "commit" else 8)


def test_a_refused_charge_in_the_session_still_holds_the_account(
    funded: SyncCreditService, open_session: Callable[[], Any]
) -> None:
    """The refusal was decided under the account's lock, which lasts as long as the user's transaction."""
    with open_session() as session:
        with pytest.raises(InsufficientCreditsError):
            funded.consume_credits(organization_id=ACME, amount=11, session=session)
        started = time.monotonic()
        with pytest.raises(AccountLockedError):
            funded.consume_credits(organization_id=ACME, amount=1)
        assert time.monotonic() - started < AT_ONCE_SECONDS
        session.rollback()


def test_reads_are_not_stopped_by_an_open_session(funded: SyncCreditService, open_session: Callable[[], Any]) -> None:
    """A balance is read from outside as it is committed."""
    with open_session() as session:
        funded.consume_credits(organization_id=ACME, amount=1, session=session)
        assert available(funded) == 10
        assert funded.check_credits(ACME, amount=10)
        session.commit()
    assert available(funded) == 9


def test_a_thread_with_the_callers_context_is_refused_as_well(
    funded: SyncCreditService, open_session: Callable[[], Any]
) -> None:
    """asyncio.to_thread carries the context, and with it the knowledge of the open transaction."""

    async def scenario(session: Any) -> None:
        funded.consume_credits(organization_id=ACME, amount=1, session=session)
        with pytest.raises(AccountLockedError):
            await asyncio.to_thread(without_session(funded)["consume"])

    with open_session() as session:
        asyncio.run(scenario(session))
        session.rollback()


def test_another_organization_is_refused_only_where_there_is_one_writer(
    funded: SyncCreditService, app_engine: Engine, open_session: Callable[[], Any]
) -> None:
    """PostgreSQL locks one account; SQLite's open transaction holds the whole file, so that waiting never ends."""
    with open_session() as session:
        funded.consume_credits(organization_id=ACME, amount=1, session=session)
        if app_engine.dialect.name == "postgresql":
            assert funded.consume_credits(organization_id=ZETA, amount=1).balance_after == 9
        else:
            started = time.monotonic()
            with pytest.raises(AccountLockedError):
                funded.consume_credits(organization_id=ZETA, amount=1)
            assert time.monotonic() - started < AT_ONCE_SECONDS
        session.rollback()


def test_several_organizations_are_charged_in_ascending_order_or_refused(
    funded: SyncCreditService, open_session: Callable[[], Any]
) -> None:
    """Two transactions in different orders would wait for each other: the second order is refused."""
    with open_session() as session:
        funded.consume_credits(organization_id=ACME, amount=1, session=session)
        funded.consume_credits(organization_id=ZETA, amount=1, session=session)
        funded.consume_credits(organization_id=ZETA, amount=1, session=session)
        with pytest.raises(InvalidInputError, match="ascending order") as refusal:
            funded.consume_credits(organization_id=ACME, amount=1, session=session)
        assert refusal.value.reason == "organization_order"
        session.commit()
    assert (available(funded), available(funded, ZETA)) == (9, 8)


@pytest.mark.postgres
def test_a_lock_of_somebody_else_ends_with_the_users_own_lock_timeout(postgresql_url: str) -> None:
    """The time-out is the session's own; it comes as StoreUnavailableError with its cause, the session goes on."""
    engine = create_engine(postgresql_url)
    with SyncCreditService(postgresql_url) as service, engine.connect() as other, Session(engine) as session:
        service.grant_credits(ACME, 10)
        other.exec_driver_sql("SELECT 1 FROM credit_accounts WHERE organization_id = 'acme' FOR UPDATE")
        session.execute(text("SET LOCAL lock_timeout = '100ms'"))
        with pytest.raises(StoreUnavailableError) as refusal:
            service.consume_credits(organization_id=ACME, amount=1, idempotency_key="k", session=session)
        assert refusal.value.__cause__ is not None
        assert (refusal.value.outcome, refusal.value.idempotency_key) == ("not_started", "k")
        other.rollback()
        service.consume_credits(organization_id=ACME, amount=1, idempotency_key="k", session=session)
        session.commit()
        assert service.get_balance(ACME).available == 9
    engine.dispose()


# -- SQLite --------------------------------------------------------------------------------------------------------


@pytest.fixture
def sqlite_app(sqlite_url: str) -> Iterator[tuple[SyncCreditService, Engine]]:
    """A service on SQLite and the application's engine."""
    engine = create_engine(sqlite_url)
    with SyncCreditService(sqlite_url) as service:
        service.grant_credits(ACME, 10)
        yield service, engine
    engine.dispose()


def test_a_charge_as_first_statement_begins_the_transaction_immediate(
    sqlite_app: tuple[SyncCreditService, Engine],
) -> None:
    """SQLite's write lock is taken before anything is read, so that the transaction cannot become stale."""
    service, engine = sqlite_app
    statements: list[str] = []
    event.listen(
        engine,
        "before_cursor_execute",
        lambda _c, _cursor, statement, _p, _context, _many: statements.append(statement),
    )
    with Session(engine) as session:
        service.consume_credits(organization_id=ACME, amount=1, session=session)
        session.commit()
    assert statements[0] == "BEGIN IMMEDIATE"


def test_a_transaction_that_has_read_before_another_writer_gets_advice(
    sqlite_url: str, sqlite_app: tuple[SyncCreditService, Engine]
) -> None:
    """It cannot become a writer any more: a typed, retryable error at once that says how to begin."""
    service, engine = sqlite_app
    with Session(engine) as session:
        session.execute(text("BEGIN"))
        session.execute(text("SELECT count(*) FROM credit_accounts")).all()
        other = sqlite3.connect(str(make_url(sqlite_url).database))
        other.execute("CREATE TABLE elsewhere (id INTEGER)")
        other.commit()
        other.close()
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError) as refusal:
            service.consume_credits(organization_id=ACME, amount=1, session=session)
        assert time.monotonic() - started < AT_ONCE_SECONDS
        assert "BEGIN IMMEDIATE" in " ".join(refusal.value.suggestions)
        assert "locked" in str(refusal.value.__cause__)
        assert (refusal.value.outcome, refusal.value.retryable) == ("not_started", True)
        session.rollback()
        service.consume_credits(organization_id=ACME, amount=1, session=session)
        session.commit()
    assert service.get_balance(ACME).available == 9


def test_a_transaction_begun_immediate_may_read_before_the_charge(
    sqlite_app: tuple[SyncCreditService, Engine],
) -> None:
    """The helper of the documentation: BEGIN IMMEDIATE first, then anything, charge last."""
    service, engine = sqlite_app
    with Session(engine) as session:
        session.execute(text("BEGIN IMMEDIATE"))
        session.execute(text("SELECT count(*) FROM credit_accounts")).all()
        service.consume_credits(organization_id=ACME, amount=1, session=session)
        session.commit()
    assert service.get_balance(ACME).available == 9


# -- prices --------------------------------------------------------------------------------------------------------


def test_a_price_that_was_never_committed_is_not_remembered(
    funded: SyncCreditService, app_engine: Engine, open_session: Callable[[], Any]
) -> None:
    """What a session sees of its own uncommitted rows is for that session only."""
    with open_session() as session:
        session.execute(text("UPDATE agent_action_costs SET cost = '7' WHERE action = 'generate_video'"))
        inside = funded.consume_credits(
            organization_id=ACME, agent_type="VideoAgent", action="generate_video", session=session
        )
        session.rollback()
    outside = funded.consume_credits(organization_id=ACME, agent_type="VideoAgent", action="generate_video")
    assert (inside.charged, outside.charged) == (7, 10)


# -- what is no session --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nonsense", [object(), "session", 5, b"", [], Session])
def test_nonsense_as_session_is_refused_with_a_sentence(service: SyncCreditService, nonsense: Any) -> None:
    """What is no session is named, and nothing is charged."""
    service.grant_credits(ACME, 10)
    with pytest.raises(InvalidInputError, match="session must be a SQLAlchemy Session"):
        service.consume_credits(organization_id=ACME, amount=1, session=nonsense)
    with pytest.raises(InvalidInputError, match="session must be a SQLAlchemy Session"):
        service.refund_credits("id", organization_id=ACME, session=nonsense)
    assert available(service) == 10


async def test_nonsense_as_session_is_refused_by_the_coroutine_face(aservice: CreditService) -> None:
    """As on the blocking face."""
    await aservice.grant_credits(ACME, 10)
    nonsense: Any = object()
    with pytest.raises(InvalidInputError, match="session must be a SQLAlchemy Session"):
        await aservice.consume_credits(organization_id=ACME, amount=1, session=nonsense)
    assert (await aservice.get_balance(ACME)).available == 10


def test_an_engine_is_no_session(service: SyncCreditService, app_engine: Engine) -> None:
    """An Engine has no transaction of the caller's."""
    engine: Any = app_engine
    with pytest.raises(InvalidInputError, match="not Engine"):
        service.consume_credits(organization_id=ACME, amount=1, session=engine)


def test_a_connection_without_transactions_is_refused(postgresql_url: str) -> None:
    """In autocommit mode nothing could be rolled back."""
    engine = create_engine(postgresql_url, isolation_level="AUTOCOMMIT")
    with SyncCreditService(postgresql_url) as service, engine.connect() as connection:
        service.grant_credits(ACME, 10)
        with pytest.raises(ConfigurationError, match="autocommit"):
            service.consume_credits(organization_id=ACME, amount=1, session=connection)
        assert service.get_balance(ACME).available == 10
    engine.dispose()


def test_a_session_on_a_database_without_the_schema_says_what_to_run(tmp_path: Any, sqlite_url: str) -> None:
    """Both ways in, with a price to be looked up and without, give the typed error."""
    engine = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    with SyncCreditService(sqlite_url) as service, Session(engine) as session:
        service.grant_credits(ACME, 10)
        with pytest.raises(SchemaError, match="agentcredits db upgrade"):
            service.consume_credits(organization_id=ACME, amount=1, session=session)
        with pytest.raises(SchemaError, match="agentcredits db upgrade"):
            service.consume_credits(organization_id=ACME, agent_type="QAAgent", action="answer", session=session)
        session.rollback()
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


# -- coroutines ----------------------------------------------------------------------------------------------------


@dataclass
class Async:
    """The coroutine face, and the application's own async engine on the same database."""

    service: CreditService
    engine: AsyncEngine

    def session(self) -> AsyncSession:
        return AsyncSession(self.engine, expire_on_commit=False)

    async def orders(self) -> list[str]:
        async with self.engine.connect() as connection:
            return list((await connection.exec_driver_sql("SELECT id FROM orders ORDER BY id")).scalars())

    async def available(self, organization_id: str = ACME) -> Decimal:
        return (await self.service.get_balance(organization_id)).available


@pytest.fixture(
    params=[
        "sqlite+aiosqlite",
        pytest.param("postgresql+psycopg", marks=pytest.mark.postgres),
        pytest.param("postgresql+asyncpg", marks=pytest.mark.postgres),
    ]
)
async def app(request: pytest.FixtureRequest) -> AsyncIterator[Async]:
    """Two funded organizations; an engine for each async driver that applications use."""
    driver = request.param
    url = str(request.getfixturevalue(f"{driver.split('+')[0]}_url"))
    engine = create_async_engine(make_url(url).set(drivername=driver))
    async with engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE orders (id TEXT PRIMARY KEY)")
    async with CreditService(url) as service:
        for organization_id in (ACME, ZETA):
            await service.grant_credits(organization_id, 10)
        yield Async(service, engine)
    await engine.dispose()


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_an_async_session_commits_or_rolls_back_both(app: Async, end: str, events: list[CreditEvent]) -> None:
    """Charge and row share their fate on aiosqlite, psycopg and asyncpg; hooks fire after COMMIT only."""
    async with app.session() as session:
        await session.execute(INSERT_ORDER, {"id": "o1"})
        transaction = await app.service.consume_credits(organization_id=ACME, amount=3, session=session)
        assert events == []
        await getattr(session, end)()
    assert await app.orders() == (["o1"] if end == "commit" else [])
    assert await app.available() == (7 if end == "commit" else 10)
    assert [heard.transaction for heard in events] == ([transaction] if end == "commit" else [])
    assert await app.service.verify()


async def test_an_async_connection_works_too(app: Async, events: list[CreditEvent]) -> None:
    """A bare AsyncConnection commits both; its hook comes a moment after COMMIT."""
    async with app.engine.connect() as connection:
        await connection.execute(INSERT_ORDER, {"id": "o1"})
        await app.service.consume_credits(organization_id=ACME, amount=3, session=connection)
        await connection.commit()
    assert await app.orders() == ["o1"]
    assert await app.available() == 7
    assert await asyncio.to_thread(wait_for, lambda: len(events) == 1)


async def test_a_refusal_leaves_an_async_session_usable(app: Async) -> None:
    """The savepoint around the charge ends with the refusal; rows before and after it stand."""
    async with app.session() as session:
        await session.execute(INSERT_ORDER, {"id": "before"})
        with pytest.raises(InsufficientCreditsError):
            await app.service.consume_credits(organization_id=ACME, amount=11, session=session)
        await session.execute(INSERT_ORDER, {"id": "then"})
        await app.service.consume_credits(
            organization_id=ACME, agent_type="QAAgent", action="answer_question", session=session
        )
        await session.commit()
    assert await app.orders() == ["before", "then"]
    assert await app.available() == Decimal("9.5")
    assert await app.service.verify()


async def test_an_async_savepoint_that_is_rolled_back_undoes_its_charge(app: Async, events: list[CreditEvent]) -> None:
    """The charge is gone and only what stayed is told."""
    async with app.session() as session:
        await app.service.consume_credits(organization_id=ACME, amount=1, session=session)
        savepoint = await session.begin_nested()
        await app.service.consume_credits(organization_id=ACME, amount=5, session=session)
        await savepoint.rollback()
        await session.commit()
    assert await app.available() == 9
    assert [heard.transaction.charged for heard in events if heard.transaction] == [1]


async def test_an_async_refund_takes_part_in_the_transaction(app: Async) -> None:
    """refund_credits(session=) with an AsyncSession."""
    charge = await app.service.consume_credits(organization_id=ACME, amount=4)
    async with app.session() as session:
        await app.service.refund_credits(charge, session=session)
        await session.rollback()
        assert await app.available() == 6
        await app.service.refund_credits(charge, 1, session=session)
        await session.commit()
    assert await app.available() == 7
    assert await app.service.verify()


async def test_a_coroutine_that_would_wait_for_itself_is_refused_at_once(app: Async) -> None:
    """In the same task, in a task made from it and in to_thread; after COMMIT all is free again."""

    async def charge() -> object:
        return await app.service.consume_credits(organization_id=ACME, amount=1)

    async with app.session() as session:
        await app.service.consume_credits(organization_id=ACME, amount=1, session=session)
        started = time.monotonic()
        with pytest.raises(AccountLockedError):
            await charge()
        with pytest.raises(AccountLockedError):
            await app.service.reserve_credits(organization_id=ACME, amount=1)
        with pytest.raises(AccountLockedError):
            await asyncio.create_task(charge())
        assert time.monotonic() - started < AT_ONCE_SECONDS
        await session.commit()
        await charge()
    assert await app.available() == 8


async def test_a_task_that_did_not_open_the_transaction_waits_for_it(app: Async) -> None:
    """Another request's charge is not refused: it is booked once the transaction ends."""

    async def other() -> object:
        return await app.service.consume_credits(organization_id=ACME, amount=1)

    ready, go_on = asyncio.Event(), asyncio.Event()

    async def holder() -> None:
        async with app.session() as session:
            await app.service.consume_credits(organization_id=ACME, amount=1, session=session)
            ready.set()
            await go_on.wait()
            await session.commit()

    holding = asyncio.create_task(holder())
    await ready.wait()
    waiting = asyncio.create_task(other())
    done, _ = await asyncio.wait({waiting}, timeout=0.1)
    assert not done
    go_on.set()
    await asyncio.gather(holding, waiting)
    assert await app.available() == 8


async def test_organizations_ascend_in_an_async_session_as_well(app: Async) -> None:
    """The order is kept for every kind of session."""
    async with app.session() as session:
        await app.service.consume_credits(organization_id=ZETA, amount=1, session=session)
        with pytest.raises(InvalidInputError, match="ascending order"):
            await app.service.consume_credits(organization_id=ACME, amount=1, session=session)
        await session.commit()
    assert (await app.available(), await app.available(ZETA)) == (10, 9)


async def test_a_plain_session_given_to_the_coroutine_face_does_not_block_the_loop(
    aservice: CreditService, app_engine: Engine
) -> None:
    """Its statements run in a private thread; charge and row commit together, and the lock is known."""
    await aservice.grant_credits(ACME, 10)
    with Session(app_engine) as session:
        session.execute(INSERT_ORDER, {"id": "o1"})
        await aservice.consume_credits(organization_id=ACME, amount=3, session=session)
        with pytest.raises(AccountLockedError):
            await aservice.consume_credits(organization_id=ACME, amount=3)
        session.commit()
    assert orders(app_engine) == ["o1"]
    assert (await aservice.get_balance(ACME)).available == 7


async def test_an_async_session_is_refused_by_the_blocking_face(app: Async) -> None:
    """It says which face to use; nothing is charged."""
    with SyncCreditService(str(app.service._core.lease._target.render_as_string(hide_password=False))) as blocking:
        async with app.session() as session:
            target: Any = session
            with pytest.raises(ConfigurationError, match="AsyncSession needs the coroutine face"):
                blocking.consume_credits(organization_id=ACME, amount=1, session=target)
    assert await app.available() == 10
