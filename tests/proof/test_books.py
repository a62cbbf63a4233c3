"""The callers' own books: nothing that was noted is overlooked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proof.books import Call, Journal, read_journals


@pytest.mark.parametrize("torn", [b"", b'{"note":', b'{"note": "done", "key": "second"}'])
def test_a_line_that_a_kill_tore_hides_no_other(tmp_path: Path, torn: bytes) -> None:
    """A worker is killed while it writes; its successor writes on in the same journal."""
    path = tmp_path / "journal"
    calls = [Call("charge", key, 100_000) for key in ("first", "second", "third")]
    journal = Journal(path)
    journal.begin(calls[0])
    journal.note("done", "first")
    journal.begin(calls[1])
    with path.open("ab") as file:
        file.write(torn)
    successor = Journal(path)
    successor.begin(calls[2])
    successor.note("done", "third")
    told = read_journals([path])
    assert list(told.begun.values()) == calls
    whole = torn.endswith(b"}")
    assert told.last == {"first": "done", "third": "done"} | ({"second": "done"} if whole else {})
    assert told.unanswered == ([] if whole else [calls[1]])
