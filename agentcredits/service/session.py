"""Charges inside the caller's own transaction: the charge and the user's own rows commit or roll back together.

The same rules run with plain SQLAlchemy Core on the caller's connection, inside a SAVEPOINT, so that a refusal leaves
the session usable. Nothing is retried (the transaction is not ours), and hooks fire at the outermost commit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from agentcredits import hooks
from agentcredits.errors import AccountLockedError, ConfigurationError, InvalidInputError
from agentcredits.rules.operations import KeyedOperation, Operation
from agentcredits.rules.posting import Outcome
from agentcredits.runner.steps import Effect, Post, Read, Steps, drive
from agentcredits.service.session_charges import OpenCharges, charges_in
from agentcredits.store import tenancy
from agentcredits.store.dialects import dialect_of
from agentcredits.store.faults import translate
from agentcredits.store.posting import post

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

    from agentcredits.service.doors import Doors

    Target = Session | Connection | AsyncSession | AsyncConnection

T = TypeVar("T")

_SQLITE_ADVICE = (
    "On SQLite begin your transaction with BEGIN IMMEDIATE, or let the charge be its first statement:"
    " a transaction that has read before cannot become a writer once another process has written."
)


#: The open transactions of this thread or task that hold an account.
_open: ContextVar[tuple[OpenCharges, ...]] = ContextVar("agentcredits_open_charges", default=())
#: Where ``tell`` collects events while a session charge is being made.
_collecting: ContextVar[OpenCharges | None] = ContextVar("agentcredits_collecting", default=None)


def is_charging() -> bool:
    """Whether this is called from inside a charge on the caller's own connection."""
    return _collecting.get() is not None


def refuse_if_locked(url: str, organization_id: str | None) -> None:
    """Raise at once when the caller's own open transaction holds the account: waiting would never end.

    Args:
        url: The database.
        organization_id: Whose account; None: no account, but SQLite's one writer.

    Raises:
        AccountLockedError: a charge with ``session=`` is open in this thread or task.
    """
    for charges in _open.get():
        if charges.holds(url, organization_id):
            who = "the database file" if organization_id is None else f"organization {organization_id}"
            raise AccountLockedError(
                f"{who} is locked by your open transaction: pass session= or commit first.",
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
    touched: list[OpenCharges] = []
    try:
        return _run_on(core, steps, target, touched)
    finally:
        _remember(touched)


async def arun(core: Doors, steps: Steps[T], target: Target) -> T:
    """Drive steps on any kind of session; the statements of an async one run in its own greenlet."""
    touched: list[OpenCharges] = []
    try:
        if _is_async(target):
            return await cast("AsyncSession", target).run_sync(lambda plain: _run_on(core, steps, plain, touched))
        return await core.runner.acall(lambda: _run_on(core, steps, target, touched))
    finally:
        _remember(touched)


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


def _remember(touched: list[OpenCharges]) -> None:
    """Note the caller's transactions that hold an account (a refused charge holds it too, until they end)."""
    living = tuple(known for known in _open.get() if known.is_open and known not in touched)
    _open.set((*living, *(charges for charges in touched if charges.is_open and charges.organizations)))


def _run_on(core: Doors, steps: Steps[T], target: object, touched: list[OpenCharges]) -> T:
    connection = _connection(target)
    charges = _charges_of(core, connection, _plain_session(target))
    touched.append(charges)

    def perform(effect: Effect) -> Any:
        match effect:
            case Post(operation):
                return _post(core, connection, charges, operation)
            case Read(function, organization_id):
                return _read(connection, function, organization_id)
            case _:
                raise ConfigurationError("only consume and refund can run inside your session.")

    token = _collecting.set(charges)
    try:
        return drive(steps, perform)
    finally:
        _collecting.reset(token)


def _read(connection: Connection, function: Callable[[Connection], T], organization_id: str | None) -> T:
    try:
        if connection.dialect.name != "postgresql":
            return function(connection)
        # A failed statement must not abort the caller's transaction.
        with connection.begin_nested():
            tenancy.enter(connection, organization_id)
            return function(connection)
    except SQLAlchemyError as error:
        raise translate(error) from error


def _post(core: Doors, connection: Connection, charges: OpenCharges, operation: Operation) -> Outcome:
    organization_id = operation.organization_id
    if charges.organizations and organization_id < max(charges.organizations):
        raise InvalidInputError(
            f"charge organizations in ascending order within one transaction: {organization_id} comes before"
            f" {max(charges.organizations)}, which is charged already (two transactions in different orders would"
            " wait for each other for ever).",
            reason="organization_order",
            context={"organization_id": organization_id},
        )
    if organization_id not in charges.organizations:
        charges.organizations.append(organization_id)
    key = operation.key if isinstance(operation, KeyedOperation) else None
    sqlite = connection.dialect.name == "sqlite"
    try:
        if sqlite:
            _begin_sqlite(connection)
        with connection.begin_nested():
            (outcome,) = post(connection, [operation], clock=core.clock)
    except SQLAlchemyError as error:
        raise translate(error, idempotency_key=key, advice=_SQLITE_ADVICE if sqlite else None) from error
    return outcome


def _begin_sqlite(connection: Connection) -> None:
    """A SAVEPOINT outside a transaction would commit by itself: begin one, IMMEDIATE, when there is none yet."""
    raw: Any = connection.connection.driver_connection
    if not raw.in_transaction:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _charges_of(core: Doors, connection: Connection, session: Session | None) -> OpenCharges:
    dialect = dialect_of(connection)
    if dialect.name == "postgresql" and getattr(connection.connection.dbapi_connection, "autocommit", False):
        raise ConfigurationError("session= needs a transaction: this connection is in autocommit mode.")
    if connection.get_transaction() is None:
        connection.begin()
    if tenancy.is_active(connection):
        tenancy.mark(connection)
    return charges_in(connection, session, url=core.lease.url, one_writer=dialect.mixes_accounts, runner=core.runner)
