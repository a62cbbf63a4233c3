"""The README's Python blocks run: the quick start as pasted into a file, each other one after the documented set-up."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

QUICK_START, SET_UP, *SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
HEADINGS = [
    f"{number}: {re.findall(r'^#+ (.+)$', before, re.MULTILINE)[-1]}"
    for number, before in enumerate(
        (README[: match.start()] for match in re.finditer(r"```python\n", README)), start=-1
    )
][2:]


def run(source: str, folder: Path) -> subprocess.CompletedProcess[str]:
    script = folder / "pasted.py"
    script.write_text(source, encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AGENTCREDITS_")}
    return subprocess.run(
        [sys.executable, "-W", "error", script.name],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_quick_start_is_short() -> None:
    """At most 40 lines, blank ones included."""
    assert len(QUICK_START.splitlines()) <= 40


def test_the_quick_start_runs_as_pasted(tmp_path: Path) -> None:
    """Its output is the one that the README shows below it."""
    promised = re.findall(r"It prints\n\n```text\n(.*?)```", README, re.DOTALL)[0]
    done = run(QUICK_START, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == promised


def test_the_quick_start_is_the_first_example() -> None:
    """examples/quickstart.py is the same code below its docstring, so that neither goes stale."""
    source = (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8")
    assert source.partition('"""\n\n')[2] == QUICK_START


@pytest.mark.parametrize("snippet", SNIPPETS, ids=HEADINGS)
def test_the_snippet_runs_after_the_set_up(snippet: str, tmp_path: Path) -> None:
    """Each block stands on its own after the set-up that the README names; its assertions hold, nothing warns."""
    done = run(SET_UP + "\n" + snippet, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_commands_in_the_readme_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines of the command-line section end 0, one after the other, on the default file."""
    from agentcredits.cli import main

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("AGENTCREDITS_DATABASE_URL", raising=False)
    # The one file that they name.
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "agentcredits" / "prices" / "agent-actions.toml", tmp_path / "new-prices.toml")
    section = README.partition("## Command line")[2].partition("\n## ")[0]
    lines = [shlex.split(line[2:], comments=True) for line in section.splitlines() if line.startswith("$ ")]
    assert len(lines) >= 7
    for program, *words in lines:
        assert program == "agentcredits"
        assert main(words) == 0, words
    assert capsys.readouterr().err == ""


def test_links_in_the_readme_lead_somewhere() -> None:
    """Every relative link names a file or folder of the repository."""
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_prices_in_the_readme_are_those_of_the_migration() -> None:
    """The README's table and the seeded rows say the same."""
    from agentcredits.store.tables import DEFAULT_COSTS

    table = README.partition("The first migration inserts these")[2].partition("\n##")[0]
    rows = re.findall(r"^\| (\w+Agent) \| (\w+) \| ([\d.]+) \|$", table, re.MULTILINE)
    assert tuple(rows) == DEFAULT_COSTS


def test_every_error_in_the_readme_has_the_status_that_it_says() -> None:
    """The errors table names real classes with their real HTTP status."""
    import agentcredits

    table = README.partition("## Errors")[2].partition("\n## ")[0]
    checked = 0
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for name in re.findall(r"`(\w+Error)`", cells[0]) if len(cells) == 3 else ():
            assert str(getattr(agentcredits, name).http_status) in cells[2].split(", "), name
            checked += 1
    assert checked >= 15


def test_the_settings_table_names_the_settings() -> None:
    """Every setting in the README exists, and its plain default is the one shown."""
    from agentcredits.settings import Settings

    table = README.partition("## Settings")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| `?([^|`]+?)`? \|", table, re.MULTILINE)
    assert {name for name, _default in rows} | {"batch_size"} == set(Settings.model_fields)
    for name, shown in rows:
        default = Settings.model_fields[name].default
        if isinstance(default, str) or re.fullmatch(r"[\d.]+", shown):
            assert str(default).removesuffix(".0") == shown, name
