"""The report itself: what was wrong is noted and fails the test, and the file can be read by a program."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from tests.proof.report import Record, Report, Row


def row(**changes: object) -> Row:
    values = {
        "what": "kill -9 of workers",
        "database": "sqlite",
        "form": "short",
        "count": 60,
        "unit": "kills",
        "wrong": {"lost": 0, "duplicated": 0},
        "seed": 6,
        "seconds": 1.5,
        "command": "python -m pytest again",
    }
    return Row(**{**values, **changes})  # type: ignore[arg-type]


def test_the_file_holds_every_row_from_the_first_on(tmp_path: Path) -> None:
    report = Report(tmp_path / "results.json")
    report.add(row())
    assert [kept["what"] for kept in json.loads(report.path.read_text())["rows"]] == ["kill -9 of workers"]
    report.add(row(database="postgresql", wrong={"lost": 1}))
    kept = json.loads(report.path.read_text())["rows"]
    assert [(one["database"], one["wrong"]) for one in kept] == [
        ("sqlite", {"lost": 0, "duplicated": 0}),
        ("postgresql", {"lost": 1}),
    ]


def test_the_table_names_count_wrong_seed_and_command(tmp_path: Path) -> None:
    report = Report(tmp_path / "results.json")
    report.add(row(count=1_000))
    lines = report.lines()
    assert [cell.strip() for cell in lines[1].split("  ") if cell] == [
        "kill -9 of workers", "sqlite", "short", "1,000 kills", "0 lost, 0 duplicated", "6", "1.5",
    ]  # fmt: skip
    assert lines[-1] == "  python -m pytest again"


@pytest.mark.parametrize(
    ("count", "wrong", "fails"), [(60, {"lost": 0}, False), (60, {"lost": 1}, True), (0, {"lost": 0}, True)]
)
def test_what_is_wrong_or_was_never_tried_is_noted_and_fails(
    tmp_path: Path, count: int, wrong: dict[str, int], fails: bool
) -> None:
    report = Report(tmp_path / "results.json")
    record = Record(report.add, form="short", test="tests/proof/test_x.py::test_y")
    with pytest.raises(AssertionError) if fails else contextlib.nullcontext():
        record("a proof", count=count, unit="kills", seed=7, wrong=wrong)
    (noted,) = report.rows
    assert (noted.count, noted.wrong) == (count, wrong)
    assert noted.command == "python -m pytest --proof=short --proof-seed=7 'tests/proof/test_x.py::test_y'"
