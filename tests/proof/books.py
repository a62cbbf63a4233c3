"""Two independent books of the same calls: what the callers were told, and what the ledger holds; and their audit."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

Kind = Literal["charge", "hold", "release", "refund"]


@dataclass(frozen=True, slots=True)
class Call:
    """One call that moves credits: ``micros`` out of the account (a refund: into it; a released hold: none).

    ``of`` names the transaction that a refund gives back.
    """

    kind: Kind
    key: str
    micros: int
    of: str = ""

    @property
    def effect_micros(self) -> int:
        """What it adds to the account once it is booked."""
        return {"charge": -self.micros, "hold": -self.micros, "release": 0, "refund": self.micros}[self.kind]


class Journal:
    """A worker's own notes before and after each call; they survive whatever happens to the worker.

    Notes: ``begun`` (with the call), ``done``, ``refused`` (told that nothing was booked), ``unknown`` (told that it is
    not known), ``broken`` (an error that nobody was promised).
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        self._lock = threading.Lock()
        # A predecessor may have been killed within a line: what comes now begins a new one.
        os.write(self._file, b"\n")

    def note(self, what: str, key: str, **more: object) -> None:
        line = json.dumps({"note": what, "key": key, **more}) + "\n"
        with self._lock:
            os.write(self._file, line.encode())
            os.fsync(self._file)

    def begin(self, call: Call) -> None:
        self.note("begun", call.key, call=asdict(call))


@dataclass(slots=True)
class Told:
    """What the callers know, from all their journals."""

    begun: dict[str, Call] = field(default_factory=dict)
    #: The last word on each call; a call without one died with its worker.
    last: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    @property
    def unanswered(self) -> list[Call]:
        """Calls whose outcome their callers do not know: what they repeat under its key."""
        return [call for key, call in self.begun.items() if self.last.get(key) in (None, "unknown")]

    @property
    def done(self) -> list[Call]:
        return [self.begun[key] for key, note in self.last.items() if note == "done"]


def read_journals(paths: Iterable[Path]) -> Told:
    """Read journals; the last line of a worker that was killed may be torn."""
    told = Told()
    for path in paths:
        for line in path.read_text().splitlines() if path.exists() else ():
            with contextlib.suppress(json.JSONDecodeError):
                note = json.loads(line)
                if note["note"] == "begun":
                    told.begun[note["key"]] = Call(**note["call"])
                else:
                    told.last[note["key"]] = note["note"]
                if note["note"] == "broken":
                    told.broken.append(note["error"])
    return told


@dataclass(frozen=True, slots=True)
class Books:
    """What the ledger holds: (key, micros) for each entry, and what its own recomputation complains about."""

    entries: list[tuple[str, int]]
    problems: list[str]


@dataclass(frozen=True, slots=True)
class Findings:
    """What an audit found; all zero is right.

    ``lost``: a caller was told that it is booked, and it is not. ``duplicated``: booked more than once.
    ``drifted``: counters, sums or amounts that differ. ``misled``: told that nothing was booked, and it was.
    ``broken``: errors of a kind that callers were not promised.
    """

    calls: int
    lost: list[str]
    duplicated: list[str]
    drifted: list[str]
    misled: list[str]
    broken: list[str]

    @property
    def wrong(self) -> Mapping[str, int]:
        """The number of each."""
        return {name: len(getattr(self, name)) for name in ("lost", "duplicated", "drifted", "misled", "broken")}

    def __str__(self) -> str:
        samples = {name: getattr(self, name)[:5] for name, number in self.wrong.items() if number}
        return f"{self.calls} calls, {dict(self.wrong)}, among them {samples}"


def audit(told: Told, books: Books) -> Findings:
    """Compare the two books, entry by entry."""
    booked = Counter(key for key, _ in books.entries)
    effects: Counter[str] = Counter()
    for key, micros in books.entries:
        effects[key] += micros
    moving = [call for call in told.done if call.effect_micros]
    return Findings(
        calls=len(told.begun),
        lost=[call.key for call in moving if not booked[call.key]],
        duplicated=[key for key, count in booked.items() if count > 1],
        drifted=[
            *books.problems,
            *(
                f"{key}: {micros} instead of {told.begun[key].effect_micros if key in told.begun else 'nothing'}"
                for key, micros in effects.items()
                if booked[key] == 1 and (key not in told.begun or micros != told.begun[key].effect_micros)
            ),
        ],
        misled=[key for key, note in told.last.items() if note == "refused" and booked[key]],
        broken=told.broken,
    )
