"""`agentcredits demo`, run as a user runs it: a process of its own, its output in a pipe."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from agentcredits import ReservationState, SyncCreditService, TransactionType

pytestmark = pytest.mark.crewai

#: task, what, outcome, credits, what is left: everything that happens, in its order.
EVENTS = [
    ("research", "llm_call", "charged", "0.5", "19.5"),
    *[("research", "search_web", "given_back", "2", "19.5")] * 6,
    ("research", "llm_call", "charged", "0.5", "19"),
    ("research", "search_archive", "charged", "2", "17"),
    ("research", "llm_call", "charged", "0.5", "16.5"),
    ("write", "llm_call", "charged", "0.5", "16"),
    ("picture", "llm_call", "charged", "0.5", "15.5"),
    ("picture", "draw_picture", "charged", "5", "10.5"),
    ("picture", "llm_call", "charged", "0.5", "10"),
    ("picture", "draw_picture", "dry_run", "5", "10"),
    ("picture", "llm_call", "charged", "0.5", "9.5"),
    ("video", "llm_call", "charged", "0.5", "9"),
    ("video", "make_video", "dry_run", "20", "9"),
    ("video", "llm_call", "charged", "0.5", "8.5"),
]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AGENTCREDITS_", "CREWAI_"))}
    return kept | more


def run_demo(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agentcredits.cli", "demo", *words],
        cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def events(story: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (event["task"], event["what"], event["outcome"], str(event["amount"]), str(event["available"]))
        for event in story["events"]
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def finished(folder: Path) -> subprocess.CompletedProcess[str]:
    return run_demo(folder)


@pytest.fixture
def ledger(finished: subprocess.CompletedProcess[str], folder: Path) -> Iterator[SyncCreditService]:
    """What the demo left behind."""
    with SyncCreditService(f"sqlite:///{folder}/agentcredits-demo.db") as service:
        yield service


# -- what is on screen -------------------------------------------------------------------------------------------


def test_the_demo_ends_well_and_quietly(finished: subprocess.CompletedProcess[str]) -> None:
    """Exit code 0, nothing on standard error; in a pipe no escape sequence, no spinner, no line of more than 100."""
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "\x1b" not in finished.stdout
    assert "\r" not in finished.stdout
    assert "▀" not in finished.stdout
    story, _, _ = finished.stdout.partition("The database stays:")
    assert [line for line in story.splitlines() if len(line) > 100] == []


def test_the_demo_says_that_its_model_is_scripted(finished: subprocess.CompletedProcess[str]) -> None:
    """Nobody shall think that a provider was asked."""
    assert "its language model is scripted (ScriptedLLM): no network, no keys." in finished.stdout
    assert "scripted model │ charged" in finished.stdout


def test_the_demo_shows_the_four_tasks_in_their_order(finished: subprocess.CompletedProcess[str]) -> None:
    """Headings, and what each agent answered."""
    shown = finished.stdout
    headings = ["1  research", "2  write", "3  picture", "4  video", "What the run cost"]
    assert [line for line in shown.splitlines() if line in headings] == headings
    for role in ("researcher", "writer", "painter", "director"):
        assert f"\n  {role}: " in shown


def test_the_demo_shows_that_the_repeats_of_a_failing_tool_cost_nothing(
    finished: subprocess.CompletedProcess[str],
) -> None:
    """Each try is told with what is left, which stays the same."""
    tries = [line for line in finished.stdout.splitlines() if line.startswith("  given back")]
    assert tries == [
        f"  given back     2  search_web      19.5 left   try {number}: ConnectionError: offline"
        for number in range(1, 7)
    ]
    assert "CrewAI tried it 6 times: 6 x 2 held, 6 x 2 given back, 0 charged" in finished.stdout


def test_the_demo_shows_the_limit_that_is_hit(finished: subprocess.CompletedProcess[str]) -> None:
    """Which limit, what is left of it, when it rolls; and the run goes on."""
    block = finished.stdout.partition("  refused        5  draw_picture      10 left\n")[2].partition("  charged")[0]
    words = " ".join(block.split())
    assert "prompt the same harbour at high and at low tide price 5 credits reason department marketing" in words
    assert "may use 12 credits (month UTC): 10 credits are used, 0 credits held, 2 credits left;" in words
    assert "picture needs 5 credits. It resets at 20" in words
    assert "painter: One picture of the moon" in finished.stdout
    assert "The head of marketing raises the limit to 40 credits a month" in finished.stdout


def test_the_demo_shows_the_plan_of_the_video(finished: subprocess.CompletedProcess[str]) -> None:
    """Prompt, parameters, price and reason."""
    block = finished.stdout.partition("  refused       20  make_video         9 left\n")[2].partition("  charged")[0]
    assert block.splitlines() == [
        "        dry run     nothing ran; the agent gets this plan instead",
        "        prompt      one long shot from the sea wall: the tide comes in",
        "        parameters  seconds 12, resolution 1080p",
        "        price       20 credits",
        "        reason      organization acme has 9 credits available, video needs 20; short by 11.",
        "        way out     Add at least 11 credits to organization acme.",
    ]


def test_the_demo_ends_with_the_table_the_balance_and_verify(finished: subprocess.CompletedProcess[str]) -> None:
    """A row for each thing that happened, their sum, what is left, and a clean ledger."""
    end = finished.stdout.partition("What the run cost")[2]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in end.splitlines() if line[:1] == "│"]
    names = [("scripted model" if what == "llm_call" else what) for _task, what, *_rest in EVENTS]
    assert [(row[1], row[2], row[4]) for row in rows[:-1]] == [
        (task, name, amount) for (task, _what, _outcome, amount, _left), name in zip(EVENTS, names, strict=True)
    ]
    assert [row[3] for row in rows if row[3].startswith("dry")] == [
        "dry run (limit_reached)",
        "dry run (insufficient_credits)",
    ]
    assert rows[-1][-2:] == ["charged", "11.5"]
    assert "organization acme has 8.5 credits." in end
    assert "verify: clean (1 account, 13 ledger rows;" in end


def test_the_three_commands_that_the_demo_names_work(finished: subprocess.CompletedProcess[str], folder: Path) -> None:
    """Pasted into a shell in the same folder, each ends 0 and shows this demo's ledger."""
    commands = finished.stdout.partition("Look at it:")[2].strip().splitlines()
    assert len(commands) == 3
    answers = []
    for command in commands:
        done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        answers.append(done.stdout)
    assert "Tool.picture" in answers[0]
    assert "marketing" in answers[1]
    assert answers[2].startswith("Clean: 1 account, 13 ledger rows")


def test_on_a_terminal_the_demo_has_colours_and_shows_the_picture(tmp_path: Path) -> None:
    """Outcomes in colours, the picture in half blocks, the cursor back at the end."""
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    terminal = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "agentcredits.cli", "demo"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(**terminal), stdout=theirs, stderr=theirs) as demo:
        os.close(theirs)
        shown = _read_all(ours)
    os.close(ours)
    assert demo.returncode == 0, shown
    assert shown.count("▀") == 56 * 15
    for colour, outcome in ((32, "charged"), (33, "given back"), (31, "refused")):
        assert f"\x1b[{colour}m{outcome}" in shown
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l") > 0


def _read_all(terminal: int) -> str:
    parts = []
    try:
        while part := os.read(terminal, 65_536):
            parts.append(part)
    except OSError:  # Linux says so when the other side is closed
        pass
    return b"".join(parts).decode()


# -- what is in the ledger and on disk ---------------------------------------------------------------------------


def test_the_failing_tool_was_really_held_and_given_back(ledger: SyncCreditService) -> None:
    """Six holds of the search were released; one search, that which worked, is charged."""
    released = ledger.list_reservations("acme", states=[ReservationState.RELEASED])
    assert [(hold.action, hold.amount, hold.charged, hold.reason) for hold in released] == [
        ("search", 2, 0, "ConnectionError: offline")
    ] * 6
    assert [row.amount for row in ledger.list_transactions("acme", limit=500) if row.action == "search"] == [-2]


def test_the_balance_is_the_sum_of_the_rows(ledger: SyncCreditService) -> None:
    """20 granted, 11.5 charged, 8.5 left, nothing held; promotional credits went first."""
    rows = list(ledger.list_transactions("acme", limit=500))
    balance = ledger.get_balance("acme")
    assert sum(row.amount for row in rows) == balance.available == Decimal("8.5")
    assert -sum(row.amount for row in rows if row.type is TransactionType.DEBIT) == balance.spent == Decimal("11.5")
    assert balance.reserved == 0
    assert {grant.category.value: grant.remaining for grant in ledger.list_grants("acme")} == {
        "promotional": 0,
        "paid": Decimal("8.5"),
    }
    assert ledger.verify()


def test_the_raised_limit_kept_its_counter(ledger: SyncCreditService) -> None:
    """The whole run was the department's, before and after the limit was raised."""
    (limit,) = ledger.list_limits("acme")
    assert (limit.scope.value, limit.scope_id, limit.amount, limit.window) == (
        "department",
        "marketing",
        40,
        "month UTC",
    )
    assert (limit.usage[0].spent, limit.usage[0].held) == (Decimal("11.5"), 0)


def test_the_picture_is_a_real_png(finished: subprocess.CompletedProcess[str], folder: Path) -> None:
    """Every chunk's checksum is right, the pixels are all there, and they show a bright moon in a dark sky."""
    data = (folder / "agentcredits-demo.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks = dict(_chunks(data[8:]))
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *how = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (width, height, how) == (480, 270, [8, 2, 0, 0, 0])
    pixels = zlib.decompress(chunks[b"IDAT"])
    assert len(pixels) == height * (1 + 3 * width)
    rows = [pixels[start : start + 1 + 3 * width] for start in range(0, len(pixels), 1 + 3 * width)]
    assert {row[0] for row in rows} == {0}
    corner, moon = (tuple(rows[y][1 + 3 * x : 4 + 3 * x]) for x, y in ((0, 0), (326, 73)))
    assert (max(corner) < 60, min(moon) > 200) == (True, True)
    assert len({row[1:] for row in rows}) > 200
    assert f"agentcredits-demo.png in this folder: 480 x 270 pixels, {len(data):,} bytes" in finished.stdout
    assert "packed with zlib and struct: a real PNG, no image library" in finished.stdout


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    while data:
        (length,) = struct.unpack(">I", data[:4])
        kind, body, checksum = data[4:8], data[8 : 8 + length], data[8 + length : 12 + length]
        assert struct.pack(">I", zlib.crc32(kind + body)) == checksum
        yield kind, body
        data = data[12 + length :]


# -- other ways to run it ----------------------------------------------------------------------------------------


def test_the_demo_starts_afresh_and_speaks_json(finished: subprocess.CompletedProcess[str], folder: Path) -> None:
    """A second run replaces the files; with --json the facts are one document on standard output."""
    (folder / "agentcredits-demo.png").write_bytes(b"of an older run")
    again = run_demo(folder, "--json")
    assert again.returncode == 0
    story = json.loads(again.stdout, parse_float=Decimal)
    assert events(story) == EVENTS
    assert story["organization_id"] == "acme"
    assert (story["summary"]["charged"], story["summary"]["given_back"]) == ("11.5", "12")
    assert (story["balance"]["granted"], story["balance"]["available"]) == (20, Decimal("8.5"))
    assert story["verify"] == {"ok": True, "accounts": 1, "transactions": 13, "problems": []}
    assert [(plan["action"], plan["reason"], plan["amount"]) for plan in story["dry_runs"]] == [
        ("picture", "limit_reached", 5),
        ("video", "insufficient_credits", 20),
    ]
    assert story["dry_runs"][1]["prompt"] == "one long shot from the sea wall: the tide comes in"
    picture = folder / "agentcredits-demo.png"
    size = picture.stat().st_size
    assert story["picture"] == {"path": str(picture), "width": 480, "height": 270, "bytes": size}
    assert size > 10_000
    assert sorted(path.name for path in folder.iterdir() if path.suffix == ".db") == ["agentcredits-demo.db"]


def test_a_named_database_is_kept(database_url: str, tmp_path: Path) -> None:
    """With --database nothing is deleted: a second run adds an organization of its own.

    That run's environment only observes and its pipe takes ASCII only: it shows the same all the same.
    """
    folder = tmp_path / "here"
    folder.mkdir()
    first = run_demo(folder, "--database", database_url, "--json")
    assert first.returncode == 0, first.stderr
    story = json.loads(first.stdout, parse_float=Decimal)
    assert story["organization_id"] == "acme"
    assert events(story) == EVENTS
    second = run_demo(folder, "--database", database_url, AGENTCREDITS_MODE="observe", PYTHONIOENCODING="ascii")
    assert (second.returncode, second.stderr) == (0, "")
    assert "Organization acme-2 has 20 credits" in second.stdout
    assert "  refused       20  make_video         9 left" in second.stdout
    assert "verify: clean (1 account, 13 ledger rows;" in second.stdout
    assert [path.name for path in folder.iterdir()] == ["agentcredits-demo.png"]


def test_where_the_picture_cannot_be_written_nothing_begins(tmp_path: Path) -> None:
    """One sentence, exit code 2, no database."""
    (tmp_path / "agentcredits-demo.png").mkdir()
    done = run_demo(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "The demo draws agentcredits-demo.png into the current folder" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["agentcredits-demo.png"]


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
