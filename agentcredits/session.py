"""Charges inside the caller's own transaction: the charge and the user's own rows commit or roll back together.

The same rules run with plain SQLAlchemy Core on the caller's connection, inside a SAVEPOINT, so that a refusal leaves
the session usable. Nothing is retried (the transaction is not ours), and hooks fire at the outermost commit.
"""

from __future__ import annotations

import contextvars
import sys
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sqlalchemy import Connection, RootTransaction, event
from sqlalchemy.exc import SQLAlchemyError

from agentcredits import hooks
from agentcredits.errors import AccountLockedError, ConfigurationError, InvalidInputError
from agentcredits.rules.operations import KeyedOperation, Operation
from agentcredits.rules.posting import Outcome
from agentcredits.runner.runner import Runner
from agentcredits.runner.steps import Effect, Post, Read, Steps, drive
from agentcredits.store import queries
from agentcredits.store.dialects import dialect_of
from agentcredits.store.faults import translate
from agentcredits.store.posting import post

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

    from agentcredits.service_doors import Doors

    Target = Session | Connection | AsyncSession | AsyncConnection

T = TypeVar("T")

_SQLITE_ADVICE = (
    "On SQLite begin your transaction with BEGIN IMMEDIATE, or let the charge be its first statement:"
    " a transaction that has read before cannot become a writer once another process has written."
)


@dataclass(eq=False)
class _OpenCharges:
    """What was charged in one transaction of the caller's that has not ended yet."""

    url: str
    one_writer: bool
    organizations: list[str] = field(default_factory=list)
    events: list[hooks.CreditEvent] = field(default_factory=list)
    session_reference: weakref.ref[Session] | None = None
    rolled_back_to_savepoint: bool = False
    is_open: bool = True
    committed: bool = False

    @property
    def has_session(self) -> bool:
        """Whether a Session (and not a bare Connection) is charged in."""
        return self.session_reference is not None

    def session(self) -> Session | None:
        """The Session, while it lives."""
        return None if self.session_reference is None else self.session_reference()


#: The open transactions of this thread or task that hold an account.
_open: ContextVar[tuple[_OpenCharges, ...]] = ContextVar("agentcredits_open_charges", default=())
#: Where ``tell`` collects events while a session charge is being made.
_collecting: ContextVar[_OpenCharges | None] = ContextVar("agentcredits_collecting", default=None)

_by_transaction: weakref.WeakKeyDictionary[RootTransaction, _OpenCharges] = weakref.WeakKeyDictionary()
_watched: weakref.WeakSet[Connection] = weakref.WeakSet()
_watched_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def refuse_if_locked(url: str, runner: Runner, organization_id: str) -> None:
    """Raise at once when the caller's own open transaction holds the account: waiting would never end.

    Raises:
        AccountLockedError: a charge with ``session=`` is open in this thread or task.
    """
    for charges in _open.get():
        if charges.is_open and charges.url == url and (charges.one_writer or organization_id in charges.organizations):
            raise AccountLockedError(
                f"organization {organization_id} is locked by your open transaction: pass session= or commit first.",
                context={"organization_id": organization_id},
                suggestions=("Pass session= to this call too, or commit your transaction before it.",),
            )


def tell(events: list[hooks.CreditEvent]) -> None:
    """Fire hooks now, or at the outermost commit of the session that is charging."""
    charges = _collecting.get()
    if charges is None:
        for credit_event in events:
            hooks.fire(credit_event)
    else:
        charges.events.extend(events)


def run(core: Doors, steps: Steps[T], target: Target) -> T:
    """Drive steps on a Session or Connection."""
    if _is_async(target):
        steps.close()
        raise ConfigurationError(
            "an AsyncSession needs the coroutine face: await CreditService(...).method(session=...)."
        )
    value, charges = _run_on(core, steps, target)
    _remember(charges)
    return value


async def arun(core: Doors, steps: Steps[T], target: Target) -> T:
    """Drive steps on any kind of session; the statements of an async one run in its own greenlet."""
    if _is_async(target):
        value, charges = await cast("AsyncSession", target).run_sync(lambda plain: _run_on(core, steps, plain))
    else:
        value, charges = await core.runner.acall(lambda: _run_on(core, steps, target))
    _remember(charges)
    return value


def _is_async(target: object) -> bool:
    # Asked for only where the application itself uses it: it needs greenlet, and takes time to import.
    asyncio = sys.modules.get("sqlalchemy.ext.asyncio")
    return asyncio is not None and isinstance(target, asyncio.AsyncSession | asyncio.AsyncConnection)


def _plain_session(target: object) -> Session | None:
    orm = sys.modules.get("sqlalchemy.orm")
    return cast("Session", target) if orm is not None and isinstance(target, orm.Session) else None


def _connection(target: object) -> Connection:
    session = _plain_session(target)
    if session is not None:
        return session.connection()
    if isinstance(target, Connection):
        return target
    raise InvalidInputError(
        "session must be a SQLAlchemy Session, Connection, AsyncSession or AsyncConnection,"
        f" not {type(target).__name__}.",
        context={"parameter": "session"},
    )


def _remember(charges: _OpenCharges) -> None:
    living = tuple(known for known in _open.get() if known.is_open and known is not charges)
    _open.set((*living, charges) if charges.is_open and charges.organizations else living)


def _run_on(core: Doors, steps: Steps[T], target: object) -> tuple[T, _OpenCharges]:
    connection = _connection(target)
    charges = _charges_of(core, connection, _plain_session(target))

    def perform(effect: Effect) -> Any:
        match effect:
            case Post(operation):
                return _post(core, connection, charges, operation)
            case Read(function):
                return _read(connection, function)
            case _:
                raise ConfigurationError("only consume and refund can run inside your session.")

    token = _collecting.set(charges)
    try:
        return drive(steps, perform), charges
    finally:
        _collecting.reset(token)


def _read(connection: Connection, function: Callable[[Connection], T]) -> T:
    if connection.dialect.name != "postgresql":
        return function(connection)
    with connection.begin_nested():
        return function(connection)


def _post(core: Doors, connection: Connection, charges: _OpenCharges, operation: Operation) -> Outcome:
    organization_id = operation.organization_id
    if charges.organizations and organization_id < max(charges.organizations):
        raise InvalidInputError(
            f"charge organizations in ascending order within one transaction: {organization_id} comes before"
            f" {max(charges.organizations)}, which is charged already (two transactions in different orders would"
            " wait for each other for ever).",
            reason="organization_order",
            context={"organization_id": organization_id},
        )
    key = operation.key if isinstance(operation, KeyedOperation) else None
    sqlite = connection.dialect.name == "sqlite"
    try:
        if sqlite:
            _begin_sqlite(connection)
        with connection.begin_nested():
            (outcome,) = post(connection, [operation], clock=core.clock)
    except SQLAlchemyError as error:
        raise translate(error, idempotency_key=key, advice=_SQLITE_ADVICE if sqlite else None) from error
    if outcome.error is None and organization_id not in charges.organizations:
        charges.organizations.append(organization_id)
    return outcome


def _begin_sqlite(connection: Connection) -> None:
    """A SAVEPOINT outside a transaction would commit by itself: begin one, IMMEDIATE, when there is none yet."""
    raw: Any = connection.connection.driver_connection
    if not raw.in_transaction:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _charges_of(core: Doors, connection: Connection, session: Session | None) -> _OpenCharges:
    dialect = dialect_of(connection)
    if dialect.name == "postgresql" and getattr(connection.connection.dbapi_connection, "autocommit", False):
        raise ConfigurationError("session= needs a transaction: this connection is in autocommit mode.")
    if connection.get_transaction() is None:
        connection.begin()
    transaction = connection.get_transaction()
    if transaction is None:
        raise ConfigurationError("session= needs a transaction.")
    charges = _by_transaction.get(transaction)
    if charges is None:
        charges = _by_transaction[transaction] = _OpenCharges(
            core.lease.url,
            dialect.mixes_accounts,
            session_reference=None if session is None else weakref.ref(session),
        )
        _watch(core, connection, session)
    return charges


def _watch(core: Doors, connection: Connection, session: Session | None) -> None:
    """Close the account's mark when the transaction ends, and fire the hooks once it is committed."""
    if connection not in _watched:
        _watched.add(connection)

        def end(ended: Connection, *, committed: bool) -> None:
            transaction = ended.get_transaction()
            charges = None if transaction is None else _by_transaction.get(transaction)
            if charges is None:
                return
            charges.is_open = False
            charges.committed = committed
            if committed and charges.events and not charges.has_session:
                # A bare Connection does not tell when its COMMIT is through: look for the rows from another thread.
                _fire_when_booked(core.runner, charges)

        event.listen(connection, "commit", lambda ended: end(ended, committed=True))
        event.listen(connection, "rollback", lambda ended: end(ended, committed=False))

        @event.listens_for(connection, "rollback_savepoint")
        def _note(ended: Connection, _name: str, _context: object) -> None:
            transaction = ended.get_transaction()
            charges = None if transaction is None else _by_transaction.get(transaction)
            if charges is not None:
                charges.rolled_back_to_savepoint = True

    if session is not None and session not in _watched_sessions:
        _watched_sessions.add(session)

        @event.listens_for(session, "after_commit")
        def _after_commit(_session: Session) -> None:
            for transaction, charges in list(_by_transaction.items()):
                if charges.session() is _session and charges.committed and not transaction.is_active:
                    events, charges.events = charges.events, []
                    _fire(core.runner, events, check=charges.rolled_back_to_savepoint)


def _fire(runner: Runner, events: list[hooks.CreditEvent], *, check: bool) -> None:
    """Fire hooks; where a savepoint was rolled back in between, only for what is in the ledger."""
    for credit_event in events:
        if not check or _is_booked(runner, credit_event):
            hooks.fire(credit_event)


def _is_booked(runner: Runner, credit_event: hooks.CreditEvent) -> bool:
    transaction = credit_event.transaction
    return transaction is not None and (
        runner.read(lambda connection: queries.get_transaction(connection, transaction.organization_id, transaction.id))
        is not None
    )


def _fire_when_booked(runner: Runner, charges: _OpenCharges) -> None:
    events, charges.events = charges.events, []
    context = contextvars.copy_context()

    def wait_and_fire() -> None:
        for credit_event in events:
            for pause_seconds in (0.001, 0.01, 0.05, 0.2, 1.0):
                if _is_booked(runner, credit_event):
                    context.run(hooks.fire, credit_event)
                    break
                runner.pause(pause_seconds)

    runner.call_in_background(wait_and_fire)
