"""The public types: signatures survive the decorators, fallbacks widen results, mistakes are found by mypy."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SAMPLE = Path(__file__).with_name("sample.py")
EXPECTED = re.compile(r"# error: (?P<code>[a-z-]+)$")
FOUND = re.compile(r"^(?P<file>.+?):(?P<line>\d+): error: (?P<message>.+?)\s+\[(?P<code>[a-z-]+)\]$")


def test_type_checkers_see_what_users_need(tmp_path: Path) -> None:
    """A strict mypy accepts every assert_type of the sample and finds exactly the mistakes that it marks."""
    lines = SAMPLE.read_text().splitlines()
    expected = {
        (number, match["code"]) for number, line in enumerate(lines, 1) if (match := EXPECTED.search(line)) is not None
    }
    assert len(expected) > 20
    # Away from the project's own configuration, as a user's mypy would see the installed, typed package.
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\nstrict = True\n")
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(config), "--no-error-summary", str(SAMPLE)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert checked.stderr == ""
    found: dict[tuple[int, str], str] = {}
    for line in checked.stdout.splitlines():
        match = FOUND.match(line)
        if match is not None:
            assert Path(match["file"]).name == SAMPLE.name, line
            found[int(match["line"]), match["code"]] = match["message"]
        else:
            assert ": note: " in line, line
    assert {place: message for place, message in found.items() if place not in expected} == {}
    assert expected - set(found) == set()
