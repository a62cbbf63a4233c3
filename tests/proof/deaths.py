"""Processes that make one call and die at a named point of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from sqlalchemy.engine.default import DefaultDialect

from tests.proof.books import Call, Journal
from tests.proof.load import TILLS

DIED: Final = 71

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
        """Reach the points around each COMMIT that the process sends, in the order of ``names``."""
        do_commit = DefaultDialect.do_commit

        def watched(self: DefaultDialect, connection: Any) -> None:
            name = names.pop(0) if names else "another"
            at(f"before the {name}'s COMMIT")
            do_commit(self, connection)
            at(f"between the {name}'s COMMIT and its answer")

        DefaultDialect.do_commit = watched  # type: ignore[method-assign]

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
