"""Who is busy hands the answers of one batch out while the database works on the next one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import OperationalError

from agentcredits import CreditService, Settings, SyncCreditService, Transaction
from agentcredits.rules.operations import Expire, Operation
from agentcredits.rules.posting import Outcome
from agentcredits.runner.attempts import Attempts
from agentcredits.runner.lanes import Lanes
from agentcredits.runner.pending import Answer, Pending
from agentcredits.runner.spare import Spare
from agentcredits.store import libpq
from agentcredits.store.dialects import KNOWN, make_engine, normalise_url

ACME = "acme"


class Posting:
    """One batch under way: begins, does what can be done meanwhile when it is told to, and ends when it is told to."""

    def __init__(self) -> None:
        self.begun, self.work, self.worked, self.end = (threading.Event() for _ in range(4))

    def finish(self) -> None:
        """Without having had the time for anything else."""
        self.work.set()
        self.end.set()


class Postings:
    """Batches that go on step by step."""

    def __init__(self, number: int, *, works: bool = True) -> None:
        self.all = [Posting() for _ in range(number)]
        self.sizes: list[int] = []
        self._works = works

    def post(self, operations: Sequence[Operation], meanwhile: Callable[[], None]) -> list[Answer]:
        posting = self.all[len(self.sizes)]
        self.sizes.append(len(operations))
        posting.begun.set()
        assert posting.work.wait(10)
        if self._works:
            meanwhile()
            meanwhile()
        posting.worked.set()
        assert posting.end.wait(10)
        return [Outcome()] * len(operations)


class Served:
    """Lanes, and every answer in the order in which it was handed out."""

    def __init__(self, postings: Postings, *, shared: bool) -> None:
        self.order: list[Pending] = []
        self.lanes = Lanes(postings.post, shared=shared, posters=2, batch_size=10, on_answer=self._note)
        self.lanes.ensure_started()

    def _note(self, pending: Pending, answer: Answer) -> Answer:
        self.order.append(pending)
        return answer

    def put(self) -> Pending:
        pending = Pending(Expire(organization_id=ACME))
        self.lanes.put(pending)
        return pending

    def begin(self, posting: Posting) -> Pending:
        """Put one whose batch begins at once."""
        pending = self.put()
        assert posting.begun.wait(5)
        return pending


@contextmanager
def serving(postings: Postings, *, shared: bool = False) -> Iterator[Served]:
    served = Served(postings, shared=shared)
    try:
        yield served
    finally:
        for posting in postings.all:
            posting.finish()
        served.lanes.stop(10)


def has_answer(pending: Pending) -> bool:
    return pending.lock.acquire(timeout=5)


def test_answers_are_handed_out_while_the_next_batch_is_on_its_way() -> None:
    """Not before it was sent, not after it came back, and once."""
    postings = Postings(2)
    one, two = postings.all
    with serving(postings) as served:
        first = served.begin(one)
        second = served.put()
        one.finish()
        assert two.begun.wait(5)
        assert first.answer is None
        two.work.set()
        assert has_answer(first)
        assert two.worked.wait(5)
        assert (served.order, second.answer) == ([first], None)
        two.end.set()
        assert has_answer(second)
    assert served.order == [first, second]
    assert postings.sizes == [1, 1]


def test_a_batch_that_has_no_time_for_them_hands_them_out_at_its_end() -> None:
    """First those of the batch before it."""
    postings = Postings(2, works=False)
    one, two = postings.all
    with serving(postings) as served:
        first = served.begin(one)
        second = served.put()
        one.finish()
        two.finish()
        assert has_answer(first)
        assert has_answer(second)
    assert served.order == [first, second]


def test_answers_are_handed_out_at_once_when_nobody_waits() -> None:
    """Also where those who waited are gone."""
    postings = Postings(1)
    with serving(postings) as served:
        first = served.begin(postings.all[0])
        gone = served.put()
        assert gone.claim()
        postings.all[0].finish()
        assert has_answer(first)
    assert served.order == [first]


def test_a_shared_lane_hands_out_its_answers_before_it_leaves_the_file_to_others() -> None:
    """There is no other side that works meanwhile."""
    postings = Postings(2)
    one, two = postings.all
    with serving(postings, shared=True) as served:
        first = served.begin(one)
        served.put()
        one.finish()
        assert has_answer(first)
        assert not two.worked.is_set()


def test_a_posting_that_breaks_hands_out_the_answers_before_it() -> None:
    """Its own callers get what broke it."""
    broken = SystemExit("out of the blue")

    class Breaks(Postings):
        def post(self, operations: Sequence[Operation], meanwhile: Callable[[], None]) -> list[Answer]:
            if not self.sizes:
                return super().post(operations, meanwhile)
            raise broken

    postings = Breaks(1)
    with serving(postings) as served:
        first = served.begin(postings.all[0])
        second = served.put()
        postings.all[0].finish()
        assert has_answer(first)
        assert has_answer(second)
    assert isinstance(first.answer, Outcome)
    assert second.answer is broken


# -- what takes long -----------------------------------------------------------------------------------------------


def test_whoever_has_to_connect_does_it_first() -> None:
    """To connect takes long; a kept connection takes nothing."""
    done: list[str] = []

    def connect() -> Connection:
        done.append("connect")
        return create_engine("sqlite://").connect()

    spare = Spare(connect, 1)
    kept = spare.take(before_connecting=lambda: done.append("meanwhile"))
    assert done == ["meanwhile", "connect"]
    spare.give(kept)
    assert spare.take(before_connecting=lambda: done.append("again")) is kept
    assert done == ["meanwhile", "connect"]
    kept.close()


def test_before_a_posting_is_tried_again_there_is_time(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between tries grow."""
    done: list[str] = []

    def fail(*_: object, **__: object) -> list[Outcome]:
        done.append("tried")
        raise OperationalError("SELECT 1", None, Exception("lost"))

    with SyncCreditService(sqlite_url) as service:
        runner = service._core.runner
        monkeypatch.setattr(runner, "_post_and_commit", fail)
        with pytest.raises(OperationalError):
            runner._transact([Expire(organization_id=ACME)], Attempts(), meanwhile=lambda: done.append("meanwhile"))
        monkeypatch.undo()
    assert done[-2:] == ["tried", "meanwhile"]


@pytest.fixture
def raw(postgresql_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection as psycopg has it."""
    url = normalise_url(postgresql_url).set(drivername="postgresql")
    with closing(psycopg.connect(url.render_as_string(hide_password=False))) as connection:
        yield connection


@pytest.mark.postgres
def test_it_is_done_when_the_server_takes_longer_than_usual_and_before_a_commit_comes_back(
    raw: psycopg.Connection[Any],
) -> None:
    """Once, and long before the end."""
    after: list[float] = []
    known = libpq.Known()

    def run(*statements: str) -> None:
        started = time.monotonic()
        known.meanwhile = lambda: after.append(time.monotonic() - started)
        libpq.run(raw, known, *((libpq.Statement(statement.encode()), {}) for statement in statements))
        assert time.monotonic() - started >= 1

    run("BEGIN", "SELECT pg_sleep(1)")
    assert len(after) == 1
    assert after[0] < 0.9
    assert known.meanwhile is None
    known.meanwhile = lambda: after.append(0)
    libpq.run(raw, known, (libpq.Statement(b"SELECT pg_sleep(0.001)"), {}), (libpq.COMMIT, {}))
    assert after[1:] == [0]


@pytest.mark.postgres
def test_other_statements_of_the_same_posting_do_not_wait_with_it(postgresql_url: str) -> None:
    """Whatever SQLAlchemy sends may take long, too."""
    engine = make_engine(normalise_url(postgresql_url), pool_size=1, lock_timeout_seconds=5, sqlite_synchronous="FULL")
    done: list[bool] = []
    with engine.connect() as connection:
        connection.info[KNOWN].meanwhile = lambda: done.append(connection.in_transaction())
        connection.execute(text("SELECT 1"))
        assert len(done) == 1
        connection.execute(text("SELECT 1"))
        assert len(done) == 1
    engine.dispose()


@pytest.mark.postgres
async def test_nobody_waits_for_the_lock_that_the_next_batch_waits_for(postgresql_url: str) -> None:
    """The first charge is answered when it is booked, though the next one of the account cannot go on."""
    engine = create_engine(postgresql_url)
    async with CreditService(postgresql_url, settings=Settings(lock_timeout_seconds=20)) as service:
        await service.grant_credits(ACME, 100)

        async def charge() -> Transaction:
            return await service.consume_credits(organization_id=ACME, amount=1)

        # The second charge may slip in before whoever stood in line wakes up.
        was_held_up = False
        for _ in range(20):
            was_held_up = await _hold_up_the_second(engine, charge)
            if was_held_up:
                break
        assert was_held_up
    engine.dispose()


async def _hold_up_the_second(engine: Engine, charge: Callable[[], Coroutine[Any, Any, Transaction]]) -> bool:
    """Two charges, and between them somebody else who takes the account's lock and keeps it; whether that came off."""
    take = text("SELECT 1 FROM credit_accounts WHERE organization_id = 'acme' FOR UPDATE")
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    with engine.connect() as holder, engine.connect() as next_in_line, engine.connect() as watcher:

        async def in_line(number: int) -> None:
            while watcher.execute(waiting).scalar_one() < number:
                watcher.rollback()
                await asyncio.sleep(0.01)
            watcher.rollback()

        holder.execute(take)
        first = asyncio.create_task(charge())
        await in_line(1)
        second = asyncio.create_task(charge())
        waits = asyncio.create_task(asyncio.to_thread(next_in_line.execute, take))
        await in_line(2)
        holder.rollback()
        await asyncio.wait_for(first, 10)
        await waits
        was_held_up = not second.done()
        next_in_line.rollback()
        await asyncio.wait_for(second, 10)
    return was_held_up
