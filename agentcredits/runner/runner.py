"""The runner of one database: the doors (blocking, coroutine, background), retries, reads, and the end.

Everything that must survive a caller (a settlement, the undoing of a hold whose caller was cancelled) is queued
before anybody waits, so that no interrupt or cancellation can lose it.
"""

from __future__ import annotations

import contextvars
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

from agentcredits.clock import Clock
from agentcredits.errors import CreditsError, StoreUnavailableError
from agentcredits.rules.operations import AboutHold, Commit, Extend, Operation, Release
from agentcredits.rules.posting import Outcome
from agentcredits.runner.attempts import Attempts, post_batch
from agentcredits.runner.gate import Gate
from agentcredits.runner.keeper import Keeper
from agentcredits.runner.lanes import Lanes, release_of
from agentcredits.runner.pending import Answer, AsyncPending, Pending
from agentcredits.runner.spare import Spare
from agentcredits.runner.turns import Turns
from agentcredits.store import tenancy, upgrade
from agentcredits.store.dialects import POOL_TIMEOUT_SECONDS, dialect_of
from agentcredits.store.faults import Fault, classify, translate
from agentcredits.store.posting import MAX_REFILLS, decide_all

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")
logger = logging.getLogger("agentcredits")

#: How often a blocking caller looks whether its poster is still there.
SLICE_SECONDS = 1.0
STOP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Limits:
    """The numbers that a runner works with; see ``Settings``."""

    lock_timeout_seconds: float = 5.0
    retry_seconds: float = 2.0
    posters: int = 5
    batch_size: int = 500


class Deferred(Outcome):
    """The answer to a settlement that is kept and retried because the store is away."""

    __slots__ = ("cause",)
    cause: StoreUnavailableError


def deferred(cause: StoreUnavailableError) -> Deferred:
    """Make a Deferred answer."""
    answer = Deferred()
    object.__setattr__(answer, "cause", cause)
    return answer


class Runner:
    """Posts operations and runs reads on one engine, for any number of threads and event loops.

    Args:
        engine: The database.
        owns_engine: Whether ``close`` disposes it.
        clock: Replaces the database's clock.
        limits: Time-outs and sizes.
    """

    def __init__(self, engine: Engine, *, owns_engine: bool, clock: Clock | None, limits: Limits) -> None:
        self.engine = engine
        self.clock = clock
        self.dialect = dialect_of(engine)
        self._owns_engine = owns_engine
        self._limits = limits
        #: A database in memory has one connection for all threads.
        self._one_connection = threading.RLock() if isinstance(engine.pool, StaticPool) else None
        self._ready = False
        #: Whether PostgreSQL's policies apply to our role.
        self._row_security = False
        self._ended = False
        self._ready_lock = threading.RLock()
        self._begin_life()

    def _begin_life(self) -> None:
        self.pid = os.getpid()
        self._gate = Gate()
        self._readers: ThreadPoolExecutor | None = None
        self._readers_lock = threading.RLock()
        self._readings: dict[tuple[asyncio.AbstractEventLoop, Hashable], asyncio.Future[Any]] = {}
        self._background: dict[int, Pending] = {}
        self._keeper = Keeper(self._submit)
        # An application's own engine, and the one connection of a database in memory, are not kept from others.
        keeps = self._owns_engine and self._one_connection is None
        self._spare = Spare(self._connect, self._limits.posters if keeps else 0)
        #: Posters have connections of their own; all others have as many.
        self._turns = Turns(self._limits.posters, POOL_TIMEOUT_SECONDS)
        self._lanes = Lanes(
            self._post_batch,
            shared=self.dialect.mixes_accounts,
            posters=self._limits.posters,
            batch_size=self._limits.batch_size,
            on_answer=self._on_answer,
        )

    # -- doors -----------------------------------------------------------------------------------------------

    def post(self, operation: Operation) -> Outcome:
        """Blocking door: the outcome, which may be a refusal.

        Raises:
            CreditsError: the store is away, its schema is old, or it refused the statement.
        """
        return self._wait(Pending(operation))

    def apost(self, operation: Operation) -> Awaitable[Outcome]:
        """Coroutine door. A cancelled wait means "not started, or finished"; a hold made for nobody is released."""
        return self._await(AsyncPending(operation, _running_loop()))

    def settle(self, operation: Commit | Release) -> Outcome:
        """Blocking settlement that cannot be lost; :class:`Deferred` when the store is away."""
        return self._wait(Pending(operation, settlement=True))

    def asettle(self, operation: Commit | Release) -> Awaitable[Outcome]:
        """Settlement from a coroutine: queued before the first await, so that cancelling the wait loses nothing."""
        return self._await(AsyncPending(operation, _running_loop(), settlement=True))

    def settle_in_background(self, operation: Commit | Release) -> None:
        """Queue a settlement and go on; safe in finalizers and signal handlers."""
        self._submit(operation)

    def begin(self, handle: object, organization_id: str, reservation_id: str, ttl: timedelta) -> None:
        """Renew this hold until it is settled, or nobody has its handle any more."""
        self._keeper.begin(handle, organization_id, reservation_id, ttl)

    def _submit(self, operation: Operation) -> None:
        pending = Pending(operation, settlement=isinstance(operation, Commit | Release))
        self._background[id(pending)] = pending
        self._lanes.put(pending)

    def _wait(self, pending: Pending) -> Outcome:
        if self._lanes.current_is_poster:
            raise CreditsError(
                "agentcredits was called from inside one of its own transactions (a database event?);"
                " do this work outside."
            )
        self._lanes.ensure_started()
        try:
            self._lanes.put(pending)
            while not pending.lock.acquire(timeout=SLICE_SECONDS):
                if not self._lanes.alive:
                    # The posters ended (interpreter shutdown, closed at the same moment): post what waits right here.
                    self._lanes.stop(0)
        except BaseException:
            self._leave(pending)
            raise
        return self._unpack(pending.answer)

    async def _await(self, pending: AsyncPending) -> Outcome:
        self._lanes.ensure_started()
        try:
            self._lanes.put_in_turn(pending)
            answer = await pending.future
        except BaseException:
            self._leave(pending)
            raise
        return self._unpack(answer)

    def _leave(self, pending: Pending) -> None:
        """The caller goes away without its answer: nobody may be left with a hold that no one settles."""
        if pending.settlement or pending.claim():
            return
        release = None if pending.answer is None else release_of(pending.operation, pending.answer)
        if release is not None:
            self._submit(release)

    @staticmethod
    def _unpack(answer: Answer | None) -> Outcome:
        if isinstance(answer, BaseException):
            raise answer
        if answer is None:
            raise AssertionError("woken without an answer")
        return answer

    # -- posters' side ---------------------------------------------------------------------------------------

    def _on_answer(self, pending: Pending, answer: Answer) -> Answer:
        operation = pending.operation
        if self._background.pop(id(pending), None) is not None and isinstance(answer, Outcome):
            # No caller is there whose hooks could hear of it.
            for hold in answer.unanswered:
                logger.warning(
                    "agentcredits: reservation %s of organization %s ran out: %s never gave its verdict on job %s",
                    hold.id,
                    operation.organization_id,
                    hold.provider,
                    hold.provider_reference or "without a reference",
                )
        if not isinstance(operation, AboutHold):
            return answer
        if isinstance(operation, Commit | Release) and pending.settlement:
            if isinstance(answer, StoreUnavailableError):
                self._keeper.defer(operation)
                return deferred(answer)
            self._keeper.end(operation.reservation_id)
            problem = answer if isinstance(answer, BaseException) else answer.error
            if problem is not None:
                logger.error("agentcredits: reservation %s was not settled: %s", operation.reservation_id, problem)
        elif isinstance(operation, Commit | Release) and isinstance(answer, Outcome) and answer.error is None:
            self._keeper.end(operation.reservation_id)
        elif isinstance(operation, Extend) and isinstance(answer, Outcome) and answer.error is not None:
            # Settled by somebody else, or run out: there is nothing left to renew.
            self._keeper.end_renewal(operation.reservation_id)
        return answer

    def _post_batch(self, operations: Sequence[Operation], meanwhile: Callable[[], None]) -> list[Answer]:
        transact = partial(self._transact, meanwhile=meanwhile)
        return post_batch(transact, operations, self._limits.retry_seconds)

    def _ensure_ready(self) -> None:
        """Once per runner: an empty SQLite database gets its schema, any other must have the right one.

        Raises:
            SchemaError: the schema is missing, old or newer; says which command to run.
        """
        if self._ready:
            return
        with self._gate, self._ready_lock, self._exclusive():
            if not self._ready:
                with self.engine.connect() as connection:
                    empty = self.dialect.name == "sqlite" and upgrade.is_empty(connection)
                if empty:
                    upgrade.upgrade_database(self.engine)
                with self.engine.connect() as connection:
                    upgrade.require_schema(connection, url=self.engine.url.render_as_string(hide_password=True))
                    self._row_security = tenancy.is_active(connection)
                self._ready = True

    def _transact(
        self, operations: Sequence[Operation], attempts: Attempts, meanwhile: Callable[[], None]
    ) -> list[Outcome]:
        self._ensure_ready()
        fresh, attempts.fresh = attempts.fresh, False
        with self._gate, self._exclusive():
            connection = self._spare.take(before_connecting=meanwhile)
            post = partial(self._post_and_commit, connection, fresh=fresh, attempts=attempts, meanwhile=meanwhile)
            try:
                outcomes = post(operations)
                # An account that slept for years is brought up to date in several transactions.
                while late := [place for place, outcome in enumerate(outcomes) if outcome.undecided]:
                    again = post([operations[place] for place in late])
                    for place, outcome in zip(late, again, strict=True):
                        outcomes[place] = replace(outcome, unanswered=outcomes[place].unanswered + outcome.unanswered)
            except BaseException:
                # To try again takes its time as well.
                meanwhile()
                connection.close()
                self._spare.clear()
                raise
            self._spare.give(connection)
            return outcomes

    def _post_and_commit(
        self,
        connection: Connection,
        operations: Sequence[Operation],
        *,
        fresh: bool,
        attempts: Attempts,
        meanwhile: Callable[[], None],
    ) -> list[Outcome]:
        self.dialect.begin_posting(connection, self._limits.lock_timeout_seconds, meanwhile)
        decided = decide_all(
            connection,
            operations,
            clock=self.clock,
            fresh=fresh,
            lock_timeout_seconds=self._limits.lock_timeout_seconds,
            most_refills=MAX_REFILLS,
        )
        try:
            # Where it can, COMMIT goes out with the writes.
            self.dialect.write(connection, decided.writes, last=True)
            connection.commit()
        except SQLAlchemyError as error:
            attempts.note_failed_commit(error)
            raise
        return decided.outcomes

    # -- reads -----------------------------------------------------------------------------------------------

    def read(self, function: Callable[[Connection], T], *, organization_id: str | None = None) -> T:
        """Run a read in the calling thread.

        Settlements that this process queued in the background for the organization are waited for (a moment), so
        that a caller reads what it has just done. Under row security the read sees this organization; without one no
        tenant's rows (see ``tenancy.each``).
        """
        for pending in list(self._background.values()):
            mine = organization_id in (None, pending.operation.organization_id) and pending.settlement
            if mine and pending.lock.acquire(timeout=SLICE_SECONDS):
                pending.lock.release()
        try:
            try:
                return self._read_once(function, organization_id)
            except SQLAlchemyError as error:
                if classify(error) is not Fault.LOST:
                    raise
                # A pooled connection had been cut in the meantime; a read may simply be done again.
                return self._read_once(function, organization_id)
        except SQLAlchemyError as error:
            raise translate(error) from error
        finally:
            if self._ended and self._owns_engine:
                # It came too late for ``close``, which waits only for our own threads.
                self.engine.dispose()

    def _read_once(self, function: Callable[[Connection], T], organization_id: str | None) -> T:
        self._ensure_ready()
        with self._turns.take(), self._gate, self._exclusive(), self._connect() as connection:
            tenancy.enter(connection, organization_id)
            return function(connection)

    def _connect(self) -> Connection:
        connection = self.engine.connect()
        if self._row_security:
            tenancy.mark(connection)
        return connection

    async def aread(
        self, function: Callable[[Connection], T], *, organization_id: str | None = None, topic: Hashable = None
    ) -> T:
        """Run a read in a private thread, the caller's contextvars copied; one for all who ask for its topic now."""
        if topic is None:
            return await self.acall(lambda: self.read(function, organization_id=organization_id))
        import asyncio

        loop = asyncio.get_running_loop()
        place = (loop, topic)
        reading: asyncio.Future[T] | None = self._readings.get(place)
        if reading is None:
            run = contextvars.copy_context().run
            reading = loop.run_in_executor(
                self._executor(), run, lambda: self.read(function, organization_id=organization_id)
            )
            self._readings[place] = reading
            reading.add_done_callback(lambda _: self._readings.pop(place, None))
        # One asker's cancellation must not be the others'.
        return await asyncio.shield(reading)

    async def acall(self, function: Callable[[], T]) -> T:
        """Run a blocking function in a private thread, the caller's contextvars copied."""
        context = contextvars.copy_context()
        return await _running_loop().run_in_executor(self._executor(), context.run, function)

    def call_in_background(self, function: Callable[[], object]) -> None:
        """Run a function in a private thread and go on."""
        self._executor().submit(function)

    @staticmethod
    def pause(seconds: float) -> None:
        """Let a background function wait."""
        time.sleep(seconds)

    def _executor(self) -> ThreadPoolExecutor:
        if self._readers is None:
            with self._readers_lock:
                if self._readers is None:
                    self._readers = ThreadPoolExecutor(self._limits.posters, thread_name_prefix="agentcredits-reader")
        return self._readers

    def write(self, function: Callable[[Connection], T], *, organization_id: str | None = None) -> T:
        """Run a write that is no ledger operation (prices) in a transaction of its own, for one tenant or none."""
        try:
            self._ensure_ready()
            with self._turns.take(), self._gate, self._exclusive(), self._begun() as connection:
                tenancy.enter(connection, organization_id)
                value = function(connection)
                connection.commit()
                return value
        except SQLAlchemyError as error:
            raise translate(error) from error

    def _begun(self) -> Connection:
        """A connection in a write transaction; a pooled one that had been cut in the meantime is replaced once."""
        for last in (False, True):
            connection = self._connect()
            try:
                self.dialect.begin_write(connection, self._limits.lock_timeout_seconds)
            except SQLAlchemyError as error:
                connection.close()
                if last or classify(error) is not Fault.LOST:
                    raise
            else:
                return connection
        raise AssertionError("neither begun nor refused")

    def _exclusive(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._one_connection is None else self._one_connection

    # -- the end ---------------------------------------------------------------------------------------------

    @property
    def unsettled(self) -> list[Commit | Release]:
        """Settlements that are kept because the store is away."""
        return self._keeper.deferred

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until everything queued in the background is booked; False when some of it is still kept."""
        for pending in list(self._background.values()):
            if pending.lock.acquire(timeout=timeout_seconds):
                pending.lock.release()
        return not self._background and not self.unsettled

    def close(self) -> None:
        """Book what is queued and what was kept, end the threads, close the connections."""
        self._keeper.stop(STOP_SECONDS)
        self._lanes.stop(STOP_SECONDS)
        for operation in self.unsettled:
            answer = self._post_batch([operation], lambda: None)[0]
            if isinstance(answer, BaseException):
                logger.error(
                    "agentcredits: reservation %s of organization %s could not be settled before the end: %s;"
                    " the hold ends with its time-to-live",
                    operation.reservation_id,
                    operation.organization_id,
                    answer,
                )
            else:
                self._keeper.end(operation.reservation_id)
        if self._readers is not None:
            self._readers.shutdown(wait=True)
            self._readers = None
        self._spare.close()
        # Not before: what is in use would go back to a pool that nobody closes.
        self._ended = True
        if self._owns_engine:
            self.engine.dispose()

    def before_fork(self) -> None:
        """Wait until no connection is in use; close SQLite's, which a child must not inherit."""
        self._gate.close()
        if self.dialect.name == "sqlite" and self._one_connection is None:
            self._spare.clear()
            self.engine.dispose()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._gate.open()

    def after_fork_in_child(self) -> None:
        """Start anew: the parent's queue, threads and connections stay the parent's."""
        self._ready_lock = threading.RLock()
        _inherited.append((self.engine.pool, self._spare, self._lanes, self._keeper, self._readers))
        if self._one_connection is not None:
            self._one_connection = threading.RLock()
        else:
            self.engine.dispose(close=False)
        self._begin_life()


def _running_loop() -> asyncio.AbstractEventLoop:
    return _loops()()


@cache
def _loops() -> Callable[[], asyncio.AbstractEventLoop]:
    # Imported by whoever runs a loop; blocking programs are spared it.
    import asyncio

    return asyncio.get_running_loop


async def in_fresh_thread(function: Callable[[], T]) -> T:
    """Run a blocking function in a thread that belongs to no runner (it may be closing one)."""
    with ThreadPoolExecutor(1, thread_name_prefix="agentcredits-closer") as executor:
        return await _running_loop().run_in_executor(executor, function)


#: What a forked child inherited: never used, never finalized (closing it would disturb the parent).
_inherited: list[Any] = []
