"""What was charged in a transaction of the caller's: who is locked by it, and which hooks wait for its commit."""

from __future__ import annotations

import contextvars
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import Connection, RootTransaction, event

from agentcredits import hooks
from agentcredits.errors import ConfigurationError
from agentcredits.runner.runner import Runner
from agentcredits.store import queries, reports

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

logger = logging.getLogger("agentcredits")

#: When to look whether a bare Connection's COMMIT is through (seconds between looks).
_LOOKS_SECONDS = (0.001, 0.01, 0.05, 0.2, 1.0, 3.0)


@dataclass(eq=False)
class OpenCharges:
    """The charges in one transaction of the caller's that has not ended yet."""

    url: str
    one_writer: bool
    runner: Runner
    in_session: bool
    organizations: list[str] = field(default_factory=list)
    events: list[hooks.CreditEvent] = field(default_factory=list)
    rolled_back_to_savepoint: bool = False
    rolled_back: bool = False
    is_open: bool = True

    def holds(self, url: str, organization_id: str | None) -> bool:
        """Whether the transaction keeps others from charging this organization (on SQLite: any)."""
        return self.is_open and self.url == url and (self.one_writer or organization_id in self.organizations)


_by_transaction: weakref.WeakKeyDictionary[RootTransaction, OpenCharges] = weakref.WeakKeyDictionary()
_by_session: weakref.WeakKeyDictionary[Session, list[tuple[RootTransaction, OpenCharges]]] = weakref.WeakKeyDictionary()
_watched: weakref.WeakSet[Connection] = weakref.WeakSet()


def charges_in(
    connection: Connection, session: Session | None, *, url: str, one_writer: bool, runner: Runner
) -> OpenCharges:
    """The record of the connection's current transaction; made, and watched, on its first charge."""
    transaction = connection.get_transaction()
    if transaction is None:
        raise ConfigurationError("session= needs a transaction.")
    charges = _by_transaction.get(transaction)
    if charges is None:
        charges = OpenCharges(url, one_writer, runner, in_session=session is not None)
        _by_transaction[transaction] = charges
        if connection not in _watched:
            _watch_connection(connection)
        if session is not None:
            if session not in _by_session:
                _watch_session(session)
            _by_session.setdefault(session, []).append((transaction, charges))
    return charges


def _current(connection: Connection) -> OpenCharges | None:
    transaction = connection.get_transaction()
    return None if transaction is None else _by_transaction.get(transaction)


def _watch_connection(connection: Connection) -> None:
    _watched.add(connection)

    @event.listens_for(connection, "commit")
    def _on_commit(ended: Connection) -> None:
        # Called before COMMIT is sent: the lock is as good as gone, but nothing is certain yet.
        charges = _current(ended)
        if charges is not None:
            charges.is_open = False
            if charges.events and not charges.in_session:
                _fire_when_booked(charges)

    @event.listens_for(connection, "rollback")
    def _on_rollback(ended: Connection) -> None:
        charges = _current(ended)
        if charges is not None:
            charges.is_open = False
            charges.rolled_back = True
            charges.events.clear()

    @event.listens_for(connection, "rollback_savepoint")
    def _on_rollback_savepoint(ended: Connection, _name: str, _context: object) -> None:
        charges = _current(ended)
        if charges is not None:
            charges.rolled_back_to_savepoint = True


def _watch_session(session: Session) -> None:
    """A Session tells when its COMMIT is through; what did not come through by its transaction's end never will."""
    _by_session[session] = []

    @event.listens_for(session, "after_commit")
    def _after_commit(ended: Session) -> None:
        # Also called for savepoints: only what belongs to a transaction that is over is told.
        for transaction, charges in _by_session.get(ended, ()):
            if not transaction.is_active and not charges.is_open:
                _fire(charges)

    @event.listens_for(session, "after_transaction_end")
    def _after_end(ended: Session, transaction: object) -> None:
        if getattr(transaction, "parent", None) is None:
            for _, charges in _by_session.get(ended, ()):
                charges.is_open = False
            _by_session[ended] = []

    @event.listens_for(session, "after_rollback")
    def _after_rollback(ended: Session) -> None:
        for transaction, charges in _by_session.get(ended, ()):
            if not transaction.is_active:
                charges.is_open = False
                charges.events.clear()


def _fire(charges: OpenCharges) -> None:
    """Fire hooks; where a savepoint was rolled back in between, only for what is in the ledger."""
    events, charges.events = charges.events, []
    for credit_event in events:
        if not charges.rolled_back_to_savepoint or _is_booked(charges.runner, credit_event):
            hooks.fire(credit_event)


def _is_booked(runner: Runner, credit_event: hooks.CreditEvent) -> bool:
    """Never raises: the commit that it is asked after was the user's, and is through."""
    owner = credit_event.organization_id
    is_there: Callable[[Connection, str, str], bool] = queries.has_transaction
    record_id: str | None = None
    if credit_event.denial is not None:
        is_there, record_id = reports.has_denial, credit_event.denial.id
    elif credit_event.crossing is not None:
        record_id = credit_event.crossing.transaction_id
    elif credit_event.transaction is not None:
        record_id = credit_event.transaction.id
    elif credit_event.reservation is not None:
        is_there, record_id = queries.has_expired, credit_event.reservation.id
    if record_id is None:
        return False
    place = owner, record_id
    try:
        return runner.read(lambda connection: is_there(connection, *place), organization_id=owner)
    except Exception:
        logger.exception("agentcredits: cannot tell whether %s was booked", record_id)
        return False


def _fire_when_booked(charges: OpenCharges) -> None:
    """A bare Connection does not tell when its COMMIT is through: look for the rows from another thread."""
    events, charges.events = charges.events, []
    context = contextvars.copy_context()
    runner = charges.runner

    def wait_and_fire() -> None:
        for pause_seconds in _LOOKS_SECONDS:
            if charges.rolled_back:
                return
            if any(_is_booked(runner, credit_event) for credit_event in events):
                # One transaction: now that one of them is there, all are, but those of a savepoint rolled back. (They
                # are looked at anew: the COMMIT may have come through between two of the looks above.)
                for credit_event in events:
                    if _is_booked(runner, credit_event):
                        context.run(hooks.fire, credit_event)
                return
            runner.pause(pause_seconds)

    runner.call_in_background(wait_and_fire)
