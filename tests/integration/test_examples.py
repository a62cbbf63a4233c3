"""Every file in examples/ runs as a program of its own, in an empty folder, and prints what it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

EXPECTED = {
    "quickstart.py": """\
a video of the sea
refused: organization acme has 2 credits available, generate_video needs 10; short by 8.
left: 2 of 12
2 debit generate_video -10 2
1 credit None 12 12
""",
    "guide_agents.py": """\
{'content': 'content about tides'}
content about harbours, 0 hints
failed and given back: no topic
{'image': 'a wave.png'}
a video
{'error': 'Not enough credits. Please purchase more.'}
granted 9, spent 9, left 0
""",
    "session_charge.py": """\
refused: organization acme has 5 credits available, generate_video needs 10; short by 5.
videos: 1
left: 5
""",
}


def run(script: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AGENTCREDITS_")}
    return subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_every_example_is_tested() -> None:
    """A new file in examples/ needs its expected output here."""
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_the_example_prints_what_it_promises(name: str, tmp_path: Path) -> None:
    """From an empty folder: exit code 0, no warning, exactly this output."""
    done = run(EXAMPLES / name, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == EXPECTED[name]


def test_the_quick_start_can_be_run_again(tmp_path: Path) -> None:
    """The grant's key is known: nothing is granted twice, and both videos are refused."""
    run(EXAMPLES / "quickstart.py", tmp_path)
    again = run(EXAMPLES / "quickstart.py", tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.count("refused: ") == 2
    assert "left: 2 of 12" in again.stdout
