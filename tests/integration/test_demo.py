"""`agentcredits demo`, run as a user runs it: a process of its own, its output in a pipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.crewai

EVENTS = [
    ("generate_content", "charged", 1, 19),
    ("generate_instagram_reel", "charged", 5, 14),
    ("generate_video", "given_back", 0, 14),
    ("generate_video", "charged", 10, 4),
    ("generate_content", "charged", 1, 3),
    ("generate_video", "refused", 0, 3),
]


def run_demo(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("AGENTCREDITS_", "CREWAI_"))}
    return subprocess.run(
        [sys.executable, "-m", "agentcredits.cli", "demo", *words],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def finished(folder: Path) -> subprocess.CompletedProcess[str]:
    return run_demo(folder)


def test_the_demo_ends_well_and_quietly(finished: subprocess.CompletedProcess[str]) -> None:
    """Exit code 0, nothing on standard error, no escape sequences and no spinner in a pipe."""
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "\x1b" not in finished.stdout
    assert "\r" not in finished.stdout


def test_the_demo_shows_a_charge_a_give_back_and_a_refusal(finished: subprocess.CompletedProcess[str]) -> None:
    """The crews' own words, the failure, the refusal's sentence, the table, the balance and verify are on screen."""
    shown = finished.stdout
    assert "researcher: The moon pulls the near sea" in shown
    assert "The crew failed: the renderer went offline." in shown
    assert "InsufficientCreditsError: organization acme has 3 credits available" in shown
    assert "short by 7" in shown
    assert "organization acme has 3 credits." in shown
    assert "Clean: 1 account, 6 ledger rows" in shown
    table = [line.split() for line in shown.partition("what happened")[2].splitlines()]
    assert [words[-3:] for words in table if "VideoAgent.generate_video" in words] == [
        ["held", "10", "14"],
        ["charged", "-10", "4"],
        ["needs", "10", "3"],
    ]


def test_the_three_commands_that_the_demo_names_work(finished: subprocess.CompletedProcess[str], folder: Path) -> None:
    """Pasted into a shell in the same folder, each ends 0 and shows this demo's ledger."""
    commands = finished.stdout.partition("Look at it:")[2].strip().splitlines()
    assert len(commands) == 3
    answers = []
    for command in commands:
        done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        answers.append(done.stdout)
    assert "VideoAgent.generate_video" in answers[0]
    assert "organization acme has 3 credits." in answers[1]
    assert answers[2].startswith("Clean: 1 account")


def test_the_demo_starts_afresh_and_speaks_json(finished: subprocess.CompletedProcess[str], folder: Path) -> None:
    """A second run replaces the file; with --json the outcome is one document on standard output."""
    again = run_demo(folder, "--json")
    assert again.returncode == 0
    story = json.loads(again.stdout)
    assert [
        (step["action"], step["outcome"], step["charged"], step["available_after"]) for step in story["steps"]
    ] == EVENTS
    assert story["organization_id"] == "acme"
    assert story["verify"] == {"ok": True, "accounts": 1, "transactions": 6, "problems": []}
    assert sorted(path.name for path in folder.iterdir() if path.suffix == ".db") == ["agentcredits-demo.db"]


def test_a_named_database_is_kept(tmp_path: Path) -> None:
    """With --database nothing is deleted: a second run adds an organization of its own."""
    where = ("--database", f"sqlite:///{tmp_path}/mine.db", "--json")
    names = []
    for _run in range(2):
        done = run_demo(tmp_path, *where)
        assert done.returncode == 0, done.stderr
        story = json.loads(done.stdout)
        names.append(story["organization_id"])
        assert [step["outcome"] for step in story["steps"]] == [outcome for _action, outcome, *_rest in EVENTS]
    assert names == ["acme", "acme-2"]
    assert not (tmp_path / "agentcredits-demo.db").exists()


def test_without_crewai_the_demo_names_the_pip_line(tmp_path: Path) -> None:
    """One sentence, exit code 2, no file."""
    code = "import sys; sys.modules['crewai'] = None; from agentcredits.cli import main; sys.exit(main(['demo']))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert 'pip install "agentcredits[crewai]"' in done.stderr
    assert list(tmp_path.iterdir()) == []
