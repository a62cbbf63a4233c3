"""Hooks hear of what was booked, once, after it is booked, in the thread and context of whoever made the call."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from agentcredits import (
    CreditEvent,
    CreditService,
    InsufficientCreditsError,
    SyncCreditService,
    add_hook,
    remove_hook,
)

ACME = "acme"
#: Longer than a bare Connection's hooks wait between two looks at the ledger.
SETTLED_SECONDS = 0.06


@pytest.fixture
def events() -> Iterator[list[CreditEvent]]:
    """What the hooks heard of."""
    heard: list[CreditEvent] = []
    hook = add_hook(heard.append)
    yield heard
    remove_hook(hook)


@pytest.fixture
def service(service: SyncCreditService) -> SyncCreditService:
    """The service, with 10 credits for one organization."""
    service.grant_credits(ACME, 10)
    return service


@pytest.fixture
def app_engine(database_url: str) -> Iterator[Engine]:
    """The application's own engine on the same database."""
    engine = create_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture(params=["session", "connection"])
def open_session(request: pytest.FixtureRequest, app_engine: Engine) -> Callable[[], Any]:
    """Opens a Session or a Connection: both execute, commit, roll back and nest."""
    return app_engine.connect if request.param == "connection" else partial(Session, app_engine)


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


# -- what is told --------------------------------------------------------------------------------------------------


def test_every_kind_of_booking_is_told_once(service: SyncCreditService, events: list[CreditEvent]) -> None:
    """Charged, refunded and settled (committed or released) carry the record that the caller got."""
    charge = service.consume_credits(organization_id=ACME, amount=1)
    refund = service.refund_credits(charge)
    committed = service.commit_reservation(service.reserve_credits(organization_id=ACME, amount=2))
    released = service.release_reservation(service.reserve_credits(organization_id=ACME, amount=2))
    with service.reserve_credits(organization_id=ACME, amount=3) as hold:
        pass
    assert [(heard.name, heard.transaction or heard.reservation) for heard in events] == [
        ("charged", charge),
        ("refunded", refund),
        ("settled", committed),
        ("settled", released),
        ("settled", hold.record),
    ]
    assert {heard.organization_id for heard in events} == {ACME}


def test_what_could_not_be_collected_is_told_and_logged(
    service: SyncCreditService, events: list[CreditEvent], caplog: pytest.LogCaptureFixture
) -> None:
    """An over-run beyond the account's credits is an event of its own, for charges and for holds."""
    service.consume_credits(organization_id=ACME, amount=7, overage="cap")
    with service.reserve_credits(organization_id=ACME, amount=2) as hold:
        hold.commit(5)
    assert [heard.name for heard in events] == ["charged", "settled", "uncollected"]
    assert events[2].reservation is not None
    assert (events[2].reservation.charged, events[2].reservation.uncollected) == (3, 2)
    assert "2 credits of organization acme could not be collected" in caplog.text
    events.clear()
    service.consume_credits(organization_id=ACME, amount=4, overage="cap")
    assert [heard.name for heard in events] == ["charged", "uncollected"]
    assert events[1].transaction is not None
    assert (events[1].transaction.charged, events[1].transaction.uncollected) == (0, 4)


def test_refusals_replays_grants_and_reservations_are_not_told(
    service: SyncCreditService, events: list[CreditEvent]
) -> None:
    """Nothing was booked by them, or nothing was charged."""
    first = service.consume_credits(organization_id=ACME, amount=1, idempotency_key="k")
    refund = service.refund_credits(first, idempotency_key="k")
    hold = service.reserve_credits(organization_id=ACME, amount=1)
    hold.commit()
    events.clear()
    service.consume_credits(organization_id=ACME, amount=1, idempotency_key="k")
    assert service.refund_credits(first, idempotency_key="k").id == refund.id
    service.commit_reservation(hold)
    with pytest.raises(InsufficientCreditsError):
        service.consume_credits(organization_id=ACME, amount=100)
    service.grant_credits(ACME, 1)
    service.reserve_credits(organization_id=ACME, amount=1)
    service.get_balance(ACME)
    assert events == []


def test_a_hook_sees_the_row_that_it_hears_of(service: SyncCreditService, app_engine: Engine) -> None:
    """It runs after COMMIT: another connection finds the row."""
    seen: list[int] = []

    @add_hook
    def look(_event: CreditEvent) -> None:
        with app_engine.connect() as connection:
            query = text("SELECT count(*) FROM credit_transactions WHERE type = 'debit'")
            count = connection.execute(query).scalar_one()
        # Only now: the test goes on, and its engine is disposed, once this is there.
        seen.append(count)

    try:
        service.consume_credits(organization_id=ACME, amount=1)
    finally:
        remove_hook(look)
    assert seen == [1]


def test_a_hook_may_charge_by_itself(service: SyncCreditService) -> None:
    """It runs outside every transaction of ours, so that it may call the service again."""
    follow_ups: list[str] = []

    @add_hook
    def follow_up(event: CreditEvent) -> None:
        if event.transaction is not None and event.transaction.amount == -1:
            follow_ups.append(service.consume_credits(organization_id=ACME, amount=2).id)

    try:
        service.consume_credits(organization_id=ACME, amount=1)
    finally:
        remove_hook(follow_up)
    assert len(follow_ups) == 1
    assert service.get_balance(ACME).available == 7


# -- where it runs -------------------------------------------------------------------------------------------------

caller = contextvars.ContextVar("caller", default="nobody")


@pytest.fixture
def places() -> Iterator[list[tuple[str, str, str]]]:
    """Where each hook ran: amount charged, the caller's own variable, the thread's name."""
    heard: list[tuple[str, str, str]] = []

    @add_hook
    def note(event: CreditEvent) -> None:
        if event.transaction is not None:
            heard.append((str(event.transaction.charged), caller.get(), threading.current_thread().name))

    yield heard
    remove_hook(note)


def test_a_hook_runs_in_its_callers_thread_and_context(
    service: SyncCreditService, places: list[tuple[str, str, str]]
) -> None:
    """Also when several callers' charges are booked in one transaction: never in another tenant's context."""

    def work(number: int) -> None:
        caller.set(f"tenant-{number}")
        service.consume_credits(organization_id=ACME, amount=f"0.{number}")

    threads = [threading.Thread(target=work, args=(number,), name=f"worker-{number}") for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(places) == [(f"0.{number}", f"tenant-{number}", f"worker-{number}") for number in range(1, 9)]


async def test_a_hook_runs_in_its_coroutines_context(
    aservice: CreditService, places: list[tuple[str, str, str]]
) -> None:
    """In the event loop's thread, with the task's own variables."""
    await aservice.grant_credits(ACME, 10)

    async def work(number: int) -> None:
        caller.set(f"tenant-{number}")
        await aservice.consume_credits(organization_id=ACME, amount=f"0.{number}")

    await asyncio.gather(*(work(number) for number in range(1, 9)))
    here = threading.current_thread().name
    assert sorted(places) == [(f"0.{number}", f"tenant-{number}", here) for number in range(1, 9)]


def test_a_failing_hook_disturbs_nobody(
    service: SyncCreditService, events: list[CreditEvent], caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged; the charge stands, the caller gets its answer, the other hooks hear of it."""

    @add_hook
    def fail(_event: CreditEvent) -> None:
        raise RuntimeError("broken hook")

    last = add_hook(events.append)
    try:
        charge = service.consume_credits(organization_id=ACME, amount=1)
    finally:
        remove_hook(fail)
        remove_hook(last)
    assert service.get_balance(ACME).available == 9
    assert events[0].transaction == charge
    assert "a hook failed on charged" in caplog.text
    assert "broken hook" in caplog.text


def test_a_hook_is_called_once_however_often_it_was_added(service: SyncCreditService) -> None:
    """Adding twice is adding once; removing ends it, removing again is harmless."""
    heard: list[CreditEvent] = []
    hook = add_hook(heard.append)
    assert add_hook(hook) is hook
    service.consume_credits(organization_id=ACME, amount=1)
    remove_hook(hook)
    remove_hook(hook)
    service.consume_credits(organization_id=ACME, amount=1)
    assert len(heard) == 1


def test_a_hook_may_remove_itself(service: SyncCreditService, events: list[CreditEvent]) -> None:
    """The hooks after it are not skipped."""
    calls: list[str] = []

    def once(_event: CreditEvent) -> None:
        calls.append("once")
        remove_hook(once)

    remove_hook(events.append)
    add_hook(once)
    last = add_hook(lambda _event: calls.append("last"))
    try:
        service.consume_credits(organization_id=ACME, amount=1)
        service.consume_credits(organization_id=ACME, amount=1)
    finally:
        remove_hook(last)
    assert calls == ["once", "last", "last"]


# -- inside the caller's own transaction ---------------------------------------------------------------------------


def charged(events: list[CreditEvent]) -> list[int]:
    return [int(heard.transaction.charged) for heard in events if heard.transaction is not None]


def test_hooks_fire_only_after_the_outermost_commit(
    service: SyncCreditService, app_engine: Engine, open_session: Callable[[], Any]
) -> None:
    """Neither the charge nor the end of a savepoint tells anybody; when a hook runs, others see the row."""
    seen: list[int] = []

    @add_hook
    def look(_event: CreditEvent) -> None:
        with app_engine.connect() as connection:
            query = text("SELECT count(*) FROM credit_transactions WHERE type = 'debit'")
            count = connection.execute(query).scalar_one()
        # Only now: the test goes on, and its engine is disposed, once this is there.
        seen.append(count)

    try:
        with open_session() as session:
            with session.begin_nested():
                service.consume_credits(organization_id=ACME, amount=1, session=session)
            time.sleep(SETTLED_SECONDS)
            assert seen == []
            session.commit()
            assert wait_for(lambda: bool(seen))
    finally:
        remove_hook(look)
    assert seen == [1]


def test_a_rollback_tells_nobody(
    service: SyncCreditService, open_session: Callable[[], Any], events: list[CreditEvent]
) -> None:
    """Rolled back or closed without commit: it never happened."""
    for end in ("rollback", "close"):
        with open_session() as session:
            service.consume_credits(organization_id=ACME, amount=1, session=session)
            getattr(session, end)()
    time.sleep(SETTLED_SECONDS)
    assert events == []


def test_a_savepoint_that_the_user_rolls_back_undoes_its_charge_and_its_hook(
    service: SyncCreditService, open_session: Callable[[], Any], events: list[CreditEvent]
) -> None:
    """The charges around it stand and are told; the ledger verifies."""
    with open_session() as session:
        service.consume_credits(organization_id=ACME, amount=1, session=session)
        savepoint = session.begin_nested()
        service.consume_credits(organization_id=ACME, amount=5, session=session)
        savepoint.rollback()
        service.consume_credits(organization_id=ACME, amount=2, session=session)
        session.commit()
    assert wait_for(lambda: len(events) == 2)
    time.sleep(SETTLED_SECONDS)
    assert charged(events) == [1, 2]
    assert service.get_balance(ACME).available == 7
    assert service.verify()


def test_a_session_that_goes_on_tells_of_each_transaction_once(
    service: SyncCreditService, open_session: Callable[[], Any], events: list[CreditEvent]
) -> None:
    """Commit, roll back, commit on one session: two charges, each told once; a replay is not told."""
    with open_session() as session:
        for amount, end in ((1, "commit"), (2, "rollback"), (3, "commit"), (3, "commit")):
            service.consume_credits(organization_id=ACME, amount=amount, idempotency_key=f"k{amount}", session=session)
            getattr(session, end)()
    assert wait_for(lambda: len(events) == 2)
    time.sleep(SETTLED_SECONDS)
    # a bare connection's two commits are looked for by two threads: which one tells first is open
    assert sorted(charged(events)) == [1, 3]
    assert service.get_balance(ACME).available == 6


def test_a_failing_hook_does_not_disturb_the_users_commit(
    service: SyncCreditService, open_session: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The commit stands and the failure is logged."""

    @add_hook
    def fail(_event: CreditEvent) -> None:
        raise RuntimeError("broken hook")

    try:
        with open_session() as session:
            service.consume_credits(organization_id=ACME, amount=1, session=session)
            session.commit()
        assert wait_for(lambda: "a hook failed" in caplog.text)
    finally:
        remove_hook(fail)
    assert service.get_balance(ACME).available == 9


def test_hooks_of_a_long_lived_session_outlive_the_services_that_charged_in_it(
    database_url: str, service: SyncCreditService, open_session: Callable[[], Any], events: list[CreditEvent]
) -> None:
    """Each request makes a service, charges in the same session and closes it: every commit works and is told."""
    with open_session() as session:
        for number in (1, 2):
            with SyncCreditService(database_url) as short_lived:
                savepoint = session.begin_nested()
                short_lived.consume_credits(organization_id=ACME, amount=5, session=session)
                savepoint.rollback()
                short_lived.consume_credits(organization_id=ACME, amount=number, session=session)
                session.commit()
            assert wait_for(lambda expected=number: len(events) == expected)
    assert charged(events) == [1, 2]
    assert service.get_balance(ACME).available == 7


def test_a_released_hold_is_told_with_its_reason(service: SyncCreditService, events: list[CreditEvent]) -> None:
    """The block's exception becomes the reason."""
    with (
        pytest.raises(ValueError, match="no frames"),
        service.reserve_credits(organization_id=ACME, amount=1, ttl=timedelta(minutes=1)),
    ):
        raise ValueError("no frames")
    assert events[0].reservation is not None
    assert (events[0].name, events[0].reservation.reason) == ("settled", "ValueError: no frames")


@pytest.mark.postgres
@pytest.mark.parametrize("kind", ["session", "connection"])
def test_a_commit_that_fails_tells_nobody_not_even_later(
    postgresql_url: str, events: list[CreditEvent], kind: str
) -> None:
    """A deferred constraint breaks the COMMIT: the charge never happened, and the next commit does not tell of it."""
    engine = create_engine(postgresql_url)
    insert = text("INSERT INTO tickets (id) VALUES ('twice')")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE tickets (id TEXT UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    with SyncCreditService(postgresql_url) as service, engine.connect() as connection:
        target: Any = Session(engine) if kind == "session" else connection
        service.grant_credits(ACME, 10)
        target.execute(insert)
        target.execute(insert)
        service.consume_credits(organization_id=ACME, amount=1, session=target)
        with pytest.raises(IntegrityError):
            target.commit()
        target.rollback()
        target.execute(insert)
        target.commit()
        target.close()
        assert service.get_balance(ACME).available == 10
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE tickets")
    engine.dispose()
    assert events == []
