"""Processes that make one call and die at a named point of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy.engine.default import DefaultDialect

from tests.proof.books import Call, Journal
from tests.proof.load import TILLS

DIED: Final = 71
IDLE: Final = TransactionStatus.IDLE

#: Where a process dies, and whether its work is charged then. A charge without a hold is work of its own.
POINTS: Final[Mapping[str, bool]] = {
    "before the reserve": False,
    "before the reserve's COMMIT": False,
    "between the reserve's COMMIT and its answer": False,
    "after the reserve": False,
    "during the work": False,
    "before the commit": False,
    "before the commit's COMMIT": False,
    "between the commit's COMMIT and its answer": True,
    "after the commit": True,
    "before the charge's COMMIT": False,
    "between the charge's COMMIT and its answer": True,
}


def die_at(point: str, till: str, url: str, call: Call, journal: Path) -> None:
    """A process: one call, as far as ``point``."""
    signal.alarm(120)  # a process that hangs ends

    def at(here: str) -> None:
        if here == point:
            os._exit(DIED)

    def notify_commits(names: list[str]) -> None:
        """Reach the points around each COMMIT that the process sends, in the order of ``names``.

        On PostgreSQL it may go out as the last statement of a pipeline; its answer has come when the pipeline ends.
        """
        do_commit, execute, pipeline = DefaultDialect.do_commit, psycopg.Connection.execute, psycopg.Connection.pipeline
        sent: list[str] = []

        def begin() -> str:
            name = names.pop(0) if names else "another"
            at(f"before the {name}'s COMMIT")
            return name

        def watched_commit(self: DefaultDialect, connection: Any) -> None:
            if getattr(connection, "pgconn", None) is not None and connection.pgconn.transaction_status == IDLE:
                do_commit(self, connection)
                return  # it went out with a pipeline
            name = begin()
            do_commit(self, connection)
            at(f"between the {name}'s COMMIT and its answer")

        def watched_execute(self: Any, query: Any, *arguments: Any, **options: Any) -> Any:
            if query == "COMMIT":
                sent.append(begin())
            return execute(self, query, *arguments, **options)

        @contextmanager
        def watched_pipeline(self: Any) -> Iterator[Any]:
            with pipeline(self) as one:
                yield one
            while sent:
                at(f"between the {sent.pop()}'s COMMIT and its answer")

        DefaultDialect.do_commit = watched_commit  # type: ignore[method-assign]
        psycopg.Connection.execute = watched_execute  # type: ignore[method-assign]
        psycopg.Connection.pipeline = watched_pipeline  # type: ignore[method-assign]

    place = TILLS[till](url, {})
    notes = Journal(journal)
    notes.begin(call)
    if call.kind == "charge":
        notify_commits(["charge"])
        place.do(call)
    else:
        notify_commits(["reserve", "commit"])
        at("before the reserve")
        holding = place.working(call)
        at("after the reserve")
        with holding:
            at("during the work")
            notes.note("worked", call.key)
            at("before the commit")
        at("after the commit")
    os._exit(0)
