"""What a database error means for the caller: try again, wait, upgrade the schema, or mend the input."""

from __future__ import annotations

import sqlite3
from enum import Enum
from typing import Any, Final

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, ProgrammingError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from agentcredits.errors import CreditsError, SchemaError, StoreError, StoreUnavailableError


class Fault(Enum):
    """The kinds of database errors."""

    CONFLICT = "conflict"
    """Serialization failure or dead-lock: nothing was written; the same transaction can be tried again."""
    LOST = "lost"
    """The connection broke: whether a commit arrived is unknown until the key is looked up."""
    LOCKED = "locked"
    """Somebody holds the lock for longer than the time-out: nothing was written."""
    AWAY = "away"
    """No connection could be made, or the file cannot be written: nothing was written."""
    SCHEMA = "schema"
    """A table or column is missing."""
    DATA = "data"
    """Anything else: this statement's own fault."""


#: A prepared statement is not there, or there already.
NOT_PREPARED_STATES: Final = frozenset({"26000", "42P05"})
_CONFLICT_STATES = {"40001", "40P01", *NOT_PREPARED_STATES}
#: 57014: an operator's statement_timeout ended the wait.
_LOCKED_STATES = {"55P03", "57014"}
#: A standby, or a server that takes no writes for another reason.
READ_ONLY_STATE: Final = "25006"
_AWAY_STATES = {"53100", "53200", "53300", "57P01", "57P02", "57P03", READ_ONLY_STATE}
_SCHEMA_WORDS = ("no such table", "no such column", "has no column named")
_SCHEMA_STATES = {"42P01", "42703", "3F000"}


def classify(error: BaseException) -> Fault:
    """The kind of a database error."""
    if isinstance(error, PoolTimeoutError):
        return Fault.AWAY
    if not isinstance(error, DBAPIError):
        return Fault.DATA
    state = sql_state(error)
    if state is not None:
        if state in _CONFLICT_STATES:
            return Fault.CONFLICT
        if state in _LOCKED_STATES:
            return Fault.LOCKED
        if state in _SCHEMA_STATES:
            return Fault.SCHEMA
        if state != READ_ONLY_STATE and (error.connection_invalidated or state.startswith("08")):
            return Fault.LOST
        return Fault.AWAY if state in _AWAY_STATES else Fault.DATA
    if error.connection_invalidated:
        return Fault.LOST
    words = str(error.orig).lower()
    if "locked" in words or "busy" in words:
        return Fault.LOCKED
    if isinstance(error, OperationalError | ProgrammingError) and any(sign in words for sign in _SCHEMA_WORDS):
        return Fault.SCHEMA
    if isinstance(error.orig, sqlite3.Error):
        # SQLITE_ERROR is a statement that is wrong; the other operational errors are the file's or the disk's.
        wrong = getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR
        return Fault.AWAY if isinstance(error, OperationalError) and not wrong else Fault.DATA
    return Fault.AWAY if isinstance(error, OperationalError | InterfaceError) else Fault.DATA


def sql_state(error: DBAPIError) -> str | None:
    """The five-character SQLSTATE, where the driver gives one."""
    original: Any = error.orig
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    return str(state) if state else None


def translate(
    error: BaseException, *, idempotency_key: str | None = None, ambiguous: bool = False, advice: str | None = None
) -> CreditsError:
    """The typed error for a database error; the original becomes its cause.

    Args:
        error: What the driver raised.
        idempotency_key: The key under which the caller can repeat the call.
        ambiguous: A COMMIT was on its way when its connection broke, in this try or in an earlier one that
            ``error`` kept from being looked up.
        advice: A suggestion to add.
    """
    if isinstance(error, CreditsError):
        return error
    fault = classify(error) if isinstance(error, SQLAlchemyError) else Fault.DATA
    suggestions = () if advice is None else (advice,)
    translated: CreditsError
    if fault is Fault.SCHEMA:
        translated = SchemaError(
            "the credits schema is missing or old: run `agentcredits db upgrade`.",
            suggestions=("Run `agentcredits db upgrade`.", *suggestions),
        )
    elif fault is Fault.DATA:
        translated = StoreError(f"the credits database refused the statement ({type(error).__name__}).")
    else:
        sentence = {
            Fault.CONFLICT: "other transactions were in the way",
            Fault.LOST: "the connection to the credits database was lost",
            Fault.LOCKED: "the account or the database file is locked by another transaction",
            Fault.AWAY: "all connections to the credits database are in use"
            if isinstance(error, PoolTimeoutError)
            else "the credits database cannot be reached or written",
        }[fault]
        translated = StoreUnavailableError(
            f"{sentence}; {'whether it was booked is unknown' if ambiguous else 'nothing was booked'}.",
            reason=fault.value,
            context={"idempotency_key": idempotency_key, "outcome": "unknown" if ambiguous else "not_started"},
            suggestions=(*suggestions, "Try again; with the same idempotency key nothing happens twice."),
        )
    translated.__cause__ = error
    return translated
