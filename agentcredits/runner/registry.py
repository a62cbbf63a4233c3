"""One runner per database and process: constructing a service is free, and concurrent callers share batches."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import URL, Engine

from agentcredits.clock import Clock
from agentcredits.errors import AgentCreditsWarning, ConfigurationError
from agentcredits.runner.runner import Limits, Runner
from agentcredits.store.dialects import dialect_of, is_memory, make_engine, normalise_url

if TYPE_CHECKING:
    from agentcredits.settings import Settings

Database = str | URL | Engine

_Key = tuple[object, ...]

_runners: dict[_Key, Runner] = {}
_users: dict[_Key, int] = {}
_lock = threading.RLock()


class Lease:
    """A service's share of a runner; the last one to close ends the runner."""

    def __init__(self, database: Database | None, settings: Settings, clock: Clock | None) -> None:
        self._settings = settings
        self._clock = clock
        self._target: URL | Engine = resolve(database, settings)
        self._runner: Runner | None = None
        self.closed = False
        url = self._target.url if isinstance(self._target, Engine) else self._target
        #: The database's URL without its password.
        self.url = url.render_as_string(hide_password=True)

    @property
    def runner(self) -> Runner:
        """The shared runner, made on first use."""
        if self._runner is None or self._runner.pid != os.getpid():
            with _lock:
                if self._runner is None:
                    self._runner = self._acquire()
        return self._runner

    def _key(self) -> _Key:
        target = self._target
        place: object = id(target) if isinstance(target, Engine) else target.render_as_string(hide_password=False)
        return (place, id(self._clock) if self._clock is not None else None, self._settings.model_dump_json())

    def _acquire(self) -> Runner:
        key = self._key()
        runner = _runners.get(key)
        if runner is None:
            runner = _runners[key] = self._make()
        _users[key] = _users.get(key, 0) + 1
        return runner

    def _make(self) -> Runner:
        settings = self._settings
        target = self._target
        if isinstance(target, Engine):
            engine, owned = target, False
        else:
            engine, owned = (
                make_engine(
                    target,
                    pool_size=settings.pool_size,
                    lock_timeout_seconds=settings.lock_timeout_seconds,
                    sqlite_synchronous=settings.sqlite_synchronous,
                ),
                True,
            )
        return Runner(
            engine,
            owns_engine=owned,
            clock=self._clock,
            limits=Limits(
                lock_timeout_seconds=settings.lock_timeout_seconds,
                retry_seconds=settings.retry_seconds,
                posters=settings.pool_size,
                batch_size=settings.batch_size,
            ),
        )

    def close(self) -> None:
        """Give the share back; the last one books what is queued and closes the connections."""
        with _lock:
            if self.closed:
                return
            self.closed = True
            runner, self._runner = self._runner, None
            if runner is None:
                return
            key = self._key()
            _users[key] -= 1
            if _users[key] > 0:
                return
            del _users[key]
            _runners.pop(key, None)
        runner.close()


def resolve(database: Database | None, settings: Settings) -> URL | Engine:
    """The Engine given, or a normalised URL: argument, else settings, else the default file of this user.

    Raises:
        ConfigurationError: an AsyncEngine, or something that is no database.
    """
    if type(database).__name__ == "AsyncEngine":
        # By name: importing the class needs greenlet, and takes time.
        raise ConfigurationError(
            "an AsyncEngine cannot be used: pass its URL, or a plain Engine from sqlalchemy.create_engine();"
            " the coroutine methods work all the same."
        )
    if isinstance(database, Engine):
        dialect_of(database)
        return database
    if database is None:
        database = settings.database_url
    if database is None:
        from agentcredits.settings import default_database_url

        database = default_database_url()
        path = Path(normalise_url(database).database or "")
        path.parent.mkdir(parents=True, exist_ok=True)
        warnings.warn(
            f"no database configured: using the development database {path}; set AGENTCREDITS_DATABASE_URL.",
            AgentCreditsWarning,
            stacklevel=2,
        )
    if not isinstance(database, str | URL):
        raise ConfigurationError(
            f"database must be a URL or a SQLAlchemy Engine, not {type(database).__name__}.",
        )
    url = normalise_url(database)
    if url.get_backend_name() == "sqlite" and not is_memory(url) and _on_network(str(url.database)):
        warnings.warn(
            f"{url.database} looks like a network path: SQLite locks do not work there; use PostgreSQL.",
            AgentCreditsWarning,
            stacklevel=2,
        )
    return url


def _on_network(path: str) -> bool:
    return path.startswith(("\\\\", "//"))


def _close_all() -> None:
    """At exit: settle inline, end the threads."""
    with _lock:
        runners = list(_runners.values())
        _runners.clear()
        _users.clear()
    for runner in runners:
        if runner.pid == os.getpid():
            runner.close()


def _before_fork() -> None:
    _lock.acquire()
    for runner in _runners.values():
        runner.before_fork()


def _after_fork_in_parent() -> None:
    for runner in _runners.values():
        runner.after_fork_in_parent()
    _lock.release()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    for runner in _runners.values():
        runner.after_fork_in_child()


atexit.register(_close_all)
with contextlib.suppress(AttributeError):  # Windows has no fork
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
