"""Lanes: who waits at the same time for the same account shares a transaction, and nobody waits for another tenant."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text

from agentcredits import CreditService, StoreError, StoreUnavailableError, SyncCreditService
from agentcredits.model import ReservationState
from agentcredits.rules.operations import Expire, Operation, Release, Reserve
from agentcredits.rules.posting import Outcome
from agentcredits.rules.state import HoldState
from agentcredits.runner import runner
from agentcredits.runner.lanes import Lanes
from agentcredits.runner.pending import Answer, AsyncPending, Pending
from agentcredits.settings import Settings
from agentcredits.store.posting import Decided, decide_all
from agentcredits.testing import START

ACME, OTHER = "acme", "other"


# -- the queue -----------------------------------------------------------------------------------------------------


@dataclass
class Books:
    """A posting that notes its batches and can be held up, for one account or for all."""

    batches: list[list[str]] = field(default_factory=list)
    gates: dict[str, threading.Event] = field(default_factory=dict)
    answer: Callable[[Operation], Answer] = lambda _operation: Outcome()
    under_way: set[str] = field(default_factory=set)
    most_threads: int = 0
    posting: threading.Event = field(default_factory=threading.Event)

    def post(self, operations: Sequence[Operation], _meanwhile: Callable[[], None]) -> list[Answer]:
        names = [operation.organization_id for operation in operations]
        assert not self.under_way & set(names), "an account was posted twice at once"
        self.under_way |= set(names)
        self.most_threads = max(self.most_threads, len(self.under_way))
        self.batches.append(names)
        self.posting.set()
        for name in set(names):
            if name in self.gates:
                self.gates[name].wait(10)
        self.under_way -= set(names)
        return [self.answer(operation) for operation in operations]

    def hold_up(self, *names: str) -> None:
        for name in names:
            self.gates[name] = threading.Event()


@contextmanager
def running(books: Books, **changes: Any) -> Iterator[Lanes]:
    arguments: dict[str, Any] = {"shared": False, "posters": 4, "batch_size": 500} | changes
    lanes = Lanes(books.post, on_answer=lambda _pending, answer: answer, **arguments)
    lanes.ensure_started()
    try:
        yield lanes
    finally:
        for gate in books.gates.values():
            gate.set()
        lanes.stop(10)


def put(lanes: Lanes, name: str, *, settlement: bool = False) -> Pending:
    pending = Pending(Expire(organization_id=name), settlement=settlement)
    lanes.put(pending)
    return pending


def answered(*pendings: Pending, seconds: float = 5.0) -> bool:
    """Whether all get their answers in time."""
    return until(lambda: all(pending.answer is not None for pending in pendings), seconds)


def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return condition()


def test_an_idle_lane_posts_at_once() -> None:
    """It never waits to fill a batch."""
    books = Books()
    with running(books) as lanes:
        for _ in range(3):
            assert answered(put(lanes, ACME))
    assert books.batches == [[ACME]] * 3


def test_what_waits_together_is_posted_together() -> None:
    """While one batch is on its way the next one gathers, in the order of arrival, up to the batch size."""
    books = Books()
    books.hold_up(ACME)
    with running(books, batch_size=10) as lanes:
        first = put(lanes, ACME)
        assert books.posting.wait(5)
        waiting = [put(lanes, ACME) for _ in range(25)]
        books.gates[ACME].set()
        assert answered(first, *waiting)
    assert [len(batch) for batch in books.batches] == [1, 10, 10, 5]


def test_one_account_that_is_held_up_stops_no_other() -> None:
    """Each account has a lane of its own; the one that is stuck goes on when it can, with all that gathered."""
    books = Books()
    books.hold_up(ACME)
    with running(books) as lanes:
        stuck = [put(lanes, ACME) for _ in range(3)]
        assert books.posting.wait(5)
        others = [put(lanes, f"tenant-{number}") for number in range(50)]
        assert answered(*others)
        assert not any(pending.lock.acquire(blocking=False) for pending in stuck)
        books.gates[ACME].set()
        assert answered(*stuck)
    assert books.batches[0][0] == ACME


def test_no_more_accounts_are_posted_at_once_than_there_are_posters() -> None:
    """Each poster has a connection; whoever came first is served first when one is free."""
    books = Books()
    names = [f"tenant-{number}" for number in range(8)]
    books.hold_up(*names)
    with running(books, posters=3) as lanes:
        pendings = [put(lanes, name) for name in names]
        assert until(lambda: len(books.batches) == 3)
        time.sleep(0.05)
        assert len(books.batches) == 3
        for name in names:
            books.gates[name].set()
        assert answered(*pendings)
    assert books.most_threads == 3
    assert sorted(batch[0] for batch in books.batches) == names


def test_a_shared_lane_mixes_accounts_and_has_one_poster() -> None:
    """SQLite has one writer anyway: fewer, larger transactions."""
    books = Books()
    books.hold_up("first")
    with running(books, shared=True) as lanes:
        first = put(lanes, "first")
        assert books.posting.wait(5)
        rest = [put(lanes, name) for name in (ACME, OTHER, ACME)]
        books.gates["first"].set()
        assert answered(first, *rest)
    assert books.batches == [["first"], [ACME, OTHER, ACME]]


def test_a_posting_that_breaks_answers_everybody_and_the_next_one_is_served() -> None:
    """Callers never wait for ever, whatever happened to the thread's work."""
    books = Books()

    def fail(_operation: Operation) -> Answer:
        raise SystemExit("out of the blue")

    with running(books) as lanes:
        books.answer = fail
        broken = [put(lanes, ACME), put(lanes, OTHER)]
        assert answered(*broken)
        assert {type(pending.answer) for pending in broken} == {SystemExit}
        books.answer = lambda _operation: Outcome()
        healthy = put(lanes, ACME)
        assert answered(healthy)
        assert isinstance(healthy.answer, Outcome)


def test_who_left_before_the_start_is_not_posted_but_a_settlement_is() -> None:
    """A cancelled call means not started; finished work is settled whoever waits for it."""
    books = Books()
    books.hold_up(ACME)
    with running(books) as lanes:
        first = put(lanes, ACME)
        assert books.posting.wait(5)
        gone, settlement = put(lanes, ACME), put(lanes, ACME, settlement=True)
        assert gone.claim()
        assert settlement.claim()
        books.gates[ACME].set()
        assert answered(first, settlement)
    assert books.batches == [[ACME], [ACME]]
    assert gone.answer is None


def test_a_hold_made_for_somebody_who_left_is_released() -> None:
    """Its credits do not wait for the time-to-live."""
    hold = HoldState("hold", ReservationState.ACTIVE, 1, (), START, START + timedelta(minutes=5), "key")
    released: list[Operation] = []

    def answer(operation: Operation) -> Answer:
        if isinstance(operation, Reserve):
            return Outcome(hold)
        released.append(operation)
        return Outcome()

    books = Books(answer=answer)
    books.hold_up(ACME)
    with running(books) as lanes:
        pending = Pending(
            Reserve(
                organization_id=ACME, id="hold", key="key", fingerprint="", amount_micros=1, ttl=timedelta(minutes=5)
            )
        )
        lanes.put(pending)
        assert books.posting.wait(5)
        assert pending.claim()
        books.gates[ACME].set()
        assert until(lambda: bool(released))
    assert [type(operation) for operation in released] == [Release]


def test_stopping_books_what_is_queued() -> None:
    """Nothing that was accepted is dropped, and the threads end."""
    books = Books()
    books.hold_up(ACME)
    with running(books) as lanes:
        pendings = [put(lanes, ACME)]
        assert books.posting.wait(5)
        pendings += [put(lanes, name) for name in (ACME, OTHER, ACME, "third")]
        threading.Timer(0.05, books.gates[ACME].set).start()
        lanes.stop(10)
        assert answered(*pendings, seconds=0.5)
        assert not lanes.alive
    assert sorted(chain.from_iterable(books.batches)) == [ACME, ACME, ACME, OTHER, "third"]


# -- on real databases ---------------------------------------------------------------------------------------------

IMPATIENT = Settings(lock_timeout_seconds=0.3, retry_seconds=0)


@contextmanager
def transactions(engine: Engine) -> Iterator[list[int]]:
    """How many operations each committed transaction booked."""
    sizes: list[int] = []
    local = threading.local()

    def note(*arguments: Any, **options: Any) -> Decided:
        decided = decide_all(*arguments, **options)
        local.booked = sum(outcome.error is None for outcome in decided.outcomes)
        return decided

    def end(_connection: Any) -> None:
        if getattr(local, "booked", 0):
            sizes.append(local.booked)
        local.booked = 0

    event.listen(engine, "commit", end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "decide_all", note)
        yield sizes
    event.remove(engine, "commit", end)


@contextmanager
def account_locked_elsewhere(url: str, organization_id: str) -> Iterator[None]:
    """Another connection's open transaction holds the account (on SQLite: the file)."""
    engine = create_engine(url)
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        connection.execute(
            text("UPDATE credit_accounts SET last_seq = last_seq WHERE organization_id = :place"),
            {"place": organization_id},
        )
        try:
            yield
        finally:
            connection.rollback()
    engine.dispose()


@pytest.mark.parametrize("batch_size", [500, 20])
async def test_batches_really_form(database_url: str, batch_size: int) -> None:
    """128 coroutines on one account need few transactions, none above the batch size, and each gets its own row."""
    async with CreditService(database_url, settings=Settings(batch_size=batch_size)) as service:
        await service.grant_credits(ACME, 1000)
        with transactions(service._core.runner.engine) as sizes:
            rows = await asyncio.gather(*(service.consume_credits(organization_id=ACME, amount=1) for _ in range(128)))
        assert sum(sizes) == 128
        assert max(sizes) <= batch_size
        assert len(sizes) <= (128 // batch_size + 3)
        assert sorted(row.seq for row in rows) == list(range(2, 130))
        assert (await service.get_balance(ACME)).available == 872
        assert await service.verify()


async def test_accounts_share_a_transaction_only_on_sqlite(database_url: str) -> None:
    """On PostgreSQL a batch holds operations of one account, so that no tenant waits for another's lock."""
    names = [f"tenant-{number}" for number in range(6)]
    async with CreditService(database_url) as service:
        for name in names:
            await service.grant_credits(name, 100)
        with transactions(service._core.runner.engine) as sizes:
            await asyncio.gather(*(service.consume_credits(organization_id=name, amount=1) for name in names * 5))
        assert sum(sizes) == 30
        if "postgresql" in database_url:
            assert max(sizes) <= 5
            assert len(sizes) >= len(names)
        else:
            assert max(sizes) > 5
        assert await service.verify()


@pytest.mark.postgres
async def test_a_locked_account_stops_no_other_tenant(postgresql_url: str) -> None:
    """Its own callers wait and are booked once the lock is gone; everybody else does not notice."""
    async with CreditService(postgresql_url) as service:
        for name in (ACME, OTHER):
            await service.grant_credits(name, 100)
        with account_locked_elsewhere(postgresql_url, ACME):
            stuck = [asyncio.create_task(service.consume_credits(organization_id=ACME, amount=1)) for _ in range(20)]
            await asyncio.sleep(0.05)
            started = time.monotonic()
            await asyncio.gather(*(service.consume_credits(organization_id=OTHER, amount=1) for _ in range(20)))
            assert time.monotonic() - started < 2.0
            assert (await service.get_balance(ACME)).available == 100
            assert not any(task.done() for task in stuck)
        await asyncio.gather(*stuck)
        assert (await service.get_balance(ACME)).available == 80


@pytest.mark.postgres
async def test_a_lock_time_out_reaches_only_that_accounts_callers(postgresql_url: str) -> None:
    """Retryable, certainly not started, with the key to try again under."""
    async with CreditService(postgresql_url, settings=IMPATIENT) as service:
        for name in (ACME, OTHER):
            await service.grant_credits(name, 100)
        with account_locked_elsewhere(postgresql_url, ACME):
            answers = await asyncio.gather(
                *(service.consume_credits(organization_id=ACME, amount=1, idempotency_key=f"k{n}") for n in range(5)),
                *(service.consume_credits(organization_id=OTHER, amount=1) for _ in range(5)),
                return_exceptions=True,
            )
        for number, refusal in enumerate(answers[:5]):
            assert isinstance(refusal, StoreUnavailableError)
            assert (refusal.retryable, refusal.outcome, refusal.reason) == (True, "not_started", "locked")
            assert refusal.idempotency_key == f"k{number}"
        assert not any(isinstance(answer, BaseException) for answer in answers[5:])
        again = await service.consume_credits(organization_id=ACME, amount=1, idempotency_key="k0")
        assert (again.replayed, again.balance_after) == (False, 99)
        assert await service.verify()


def test_a_locked_file_is_a_retryable_error_and_nothing_is_booked(sqlite_url: str) -> None:
    """SQLite has one lock for all; the generated key comes with the error."""
    with SyncCreditService(sqlite_url, settings=IMPATIENT) as service:
        service.grant_credits(ACME, 100)
        with account_locked_elsewhere(sqlite_url, ACME):
            started = time.monotonic()
            with pytest.raises(StoreUnavailableError) as refusal:
                service.consume_credits(organization_id=ACME, amount=1)
            assert 0.3 <= time.monotonic() - started < 3.0
        assert (refusal.value.retryable, refusal.value.outcome) == (True, "not_started")
        assert refusal.value.idempotency_key
        retried = service.consume_credits(organization_id=ACME, amount=1, idempotency_key=refusal.value.idempotency_key)
        assert (retried.replayed, retried.balance_after) == (False, 99)


@pytest.fixture
def poisoned_url(database_url: str) -> Iterator[str]:
    """A database that refuses one action by a constraint that the rules do not know."""
    engine = create_engine(database_url)
    sqlite = engine.dialect.name == "sqlite"
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER poison BEFORE INSERT ON credit_transactions WHEN NEW.action = 'poison'"
            " BEGIN SELECT RAISE(ABORT, 'poisoned'); END"
            if sqlite
            else "ALTER TABLE credit_transactions ADD CONSTRAINT poison CHECK (action <> 'poison')"
        )
    yield database_url
    if not sqlite:
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE credit_transactions DROP CONSTRAINT poison")
    engine.dispose()


async def test_a_poisoned_operation_hits_only_its_caller(poisoned_url: str) -> None:
    """Its batch is posted again one by one: all others are booked once, in order, with their own answers."""
    async with CreditService(poisoned_url) as service:
        await service.grant_credits(ACME, 1000)
        await service.grant_credits(OTHER, 1000)

        async def charge(number: int) -> Any:
            return await service.consume_credits(
                organization_id=OTHER if number % 3 == 0 else ACME,
                amount=1,
                agent_type="Agent",
                action="poison" if number in (20, 41) else "fine",
                idempotency_key=f"k{number}",
            )

        answers = await asyncio.gather(*(charge(number) for number in range(60)), return_exceptions=True)
        culprits = [number for number, answer in enumerate(answers) if isinstance(answer, BaseException)]
        assert culprits == [20, 41]
        for number in culprits:
            assert isinstance(answers[number], StoreError)
            assert not answers[number].retryable
        assert [answer.idempotency_key for answer in answers if not isinstance(answer, BaseException)] == [
            f"k{number}" for number in range(60) if number not in culprits
        ]
        assert (await service.get_balance(OTHER)).available == 980
        assert (await service.get_balance(ACME)).available == 962
        assert await service.verify()


# -- coroutines ----------------------------------------------------------------------------------------------------


def in_turn(lanes: Lanes, name: str) -> AsyncPending:
    pending = AsyncPending(Expire(organization_id=name), asyncio.get_running_loop())
    lanes.put_in_turn(pending)
    return pending


async def test_coroutines_of_one_turn_of_the_loop_share_a_batch() -> None:
    """An idle poster is woken when the turn is over, not by the first of them."""
    books = Books()
    with running(books) as lanes:

        async def caller() -> None:
            for _ in range(5):
                await in_turn(lanes, ACME).future

        await asyncio.wait_for(asyncio.gather(*(caller() for _ in range(64))), 10)
    assert [len(batch) for batch in books.batches] == [64] * 5


def test_a_loop_that_ends_in_the_middle_of_its_turn_loses_nothing_and_blocks_nobody() -> None:
    """What it queued is booked with the next operation, and its successor wakes posters by itself."""
    books = Books()
    with running(books) as lanes:
        loop = asyncio.new_event_loop()
        forgotten = AsyncPending(Expire(organization_id=OTHER), loop, settlement=True)
        lanes.put_in_turn(forgotten)
        loop.close()

        async def caller() -> None:
            await in_turn(lanes, ACME).future

        asyncio.run(asyncio.wait_for(caller(), 10))
        assert answered(forgotten)
    assert sorted(chain(*books.batches)) == [ACME, OTHER]


def test_what_a_loop_left_behind_is_booked_at_the_end() -> None:
    """Nobody comes after it: stopping the lanes books it."""
    books = Books()
    with running(books) as lanes:
        loop = asyncio.new_event_loop()
        forgotten = AsyncPending(Expire(organization_id=OTHER), loop, settlement=True)
        lanes.put_in_turn(forgotten)
        loop.close()
    assert forgotten.answer is not None
    assert books.batches == [[OTHER]]
