"""Processes that make one call and die at a named point of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from psycopg.pq import TransactionStatus
from sqlalchemy.engine.default import DefaultDialect

from agentcredits.store import libpq
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

        On PostgreSQL it goes out as the last statement of a pipeline.
        """
        do_commit, run = DefaultDialect.do_commit, libpq.run

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

        def watched_run(raw: Any, prepared: Any, *statements: Any) -> Any:
            name = begin() if statements[-1][0] is libpq.COMMIT else None
            found = run(raw, prepared, *statements)
            if name is not None:
                at(f"between the {name}'s COMMIT and its answer")
            return found

        DefaultDialect.do_commit = watched_commit  # type: ignore[method-assign]
        libpq.run = watched_run

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
