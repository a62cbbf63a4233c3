"""What the proofs found: one row each, one JSON file and one table for a run."""

from __future__ import annotations

import json
import platform
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

_COLUMNS = ("what", "database", "form", "count", "wrong", "seed", "seconds")


@dataclass(frozen=True, slots=True)
class Row:
    """One proof as it was run.

    ``count`` times ``unit`` was tried; ``wrong`` names each kind of wrong outcome with its number; ``command`` runs
    the same proof again, with the same seed.
    """

    what: str
    database: str
    form: str
    count: int
    unit: str
    wrong: Mapping[str, int]
    seed: int | None
    seconds: float
    command: str

    @property
    def ok(self) -> bool:
        return not any(self.wrong.values())


class Report:
    """The rows of one run, kept in a file from the first row on: a run that is cut short loses nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Keep ``row``; the file holds the rows of this run only."""
        self.rows.append(row)
        content = {
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            "machine": f"{platform.system()} {platform.machine()}",
            "rows": [asdict(row) for row in self.rows],
        }
        self.path.write_text(json.dumps(content, indent=2) + "\n")

    def lines(self) -> list[str]:
        """The table, one line for each row, as wide as its cells."""
        cells = [_COLUMNS, *(_cells(row) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return [*(_join(line, widths) for line in cells), "", "each again:", *(f"  {row.command}" for row in self.rows)]


class Collector:
    """Gathers the rows of a run from the reports of its tests, whichever process they ran in, and shows the table.

    A pytest plugin of the process that the user started.
    """

    #: Under this name a test's report carries its rows.
    PROPERTY = "proof"

    def __init__(self, path: Path) -> None:
        self._report = Report(path)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Each test reports its rows once, with its call."""
        if report.when == "call":
            for name, value in report.user_properties:
                if name == self.PROPERTY:
                    self._report.add(Row(**value))  # type: ignore[arg-type]  # as ``asdict`` made it

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The table, when there is one."""
        if self._report.rows:
            terminalreporter.section("proofs")
            for line in self._report.lines():
                terminalreporter.write_line(line)
            terminalreporter.write_line(f"written to {self._report.path}")


class Record:
    """What a test notes its figures with: ``record("kill -9", count=60, unit="kills", seed=seed, wrong={"lost": 0})``.

    Called once all is counted. A row's seconds run from the making of the Record, or from the row before it.

    Args:
        note: Takes each row.
        form: "short" or "long".
        test: The test's id.
    """

    def __init__(self, note: Callable[[Row], None], *, form: str, test: str) -> None:
        self._note, self._form, self._test = note, form, test
        self._began = time.monotonic()

    def __call__(
        self,
        what: str,
        *,
        count: int,
        unit: str,
        seed: int | None,
        wrong: Mapping[str, int],
        database: str = "",
        details: object = "",
    ) -> None:
        """Note one row; then, if anything was wrong or nothing was tried, fail the test, with the details."""
        began, self._began = self._began, time.monotonic()
        again = "" if seed is None else f" --proof-seed={seed}"
        row = Row(
            what=what,
            database=database,
            form=self._form,
            count=count,
            unit=unit,
            wrong=dict(wrong),
            seed=seed,
            seconds=round(self._began - began, 1),
            command=f"python -m pytest --proof={self._form}{again} '{self._test}'",
        )
        self._note(row)
        assert count > 0, f"{what}: nothing was tried"
        assert row.ok, f"{what}: {row.wrong} in {count} {unit}; again: {row.command}\n{details}"


def _cells(row: Row) -> tuple[str, ...]:
    wrong = ", ".join(f"{number:,} {kind}" for kind, number in row.wrong.items())
    seed = "-" if row.seed is None else str(row.seed)
    count = f"{row.count:,} {row.unit}"
    return row.what, row.database, row.form, count, wrong, seed, f"{row.seconds:.1f}"


def _join(line: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
