"""Each command's help ends with an example, and each example works."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from agentcredits import SyncCreditService
from agentcredits.cli import main
from agentcredits.cli.app import app


def _leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield " ".join(path), command
        return
    for name, below in command.commands.items():
        yield from _leaves(below, (*path, name))


def _studio(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """A batch file, the functions that make it and look after it, and a batch that was made of it; its id."""
    (folder / "studio").mkdir()
    (folder / "studio" / "__init__.py").write_text("")
    (folder / "studio" / "calls.py").write_text(
        "from agentcredits.media import Finding\n\n\n"
        "def make(job):\n    return {'image': job.name}\n\n\n"
        "def look(job):\n    return Finding.made({'image': job.name})\n"
    )
    asset = {
        "id": 1,
        "name": "wave",
        "prompt": "A wave.",
        "agent_type": "VisualPostAgent",
        "action": "create_visual_post",
    }
    content = {"name": "spring", "organization": "acme", "assets": [asset]}
    (folder / "batch.yaml").write_text(json.dumps(content))
    monkeypatch.syspath_prepend(str(folder))
    for name in ("studio", "studio.calls"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert main(["media", "run", "batch.yaml", "--generate", "studio.calls:make", "--json"]) == 0
    return str(json.loads(capsys.readouterr().out)["batch_id"])


COMMANDS = {name: command for name, command in _leaves(typer.main.get_command(app)) if name != "demo"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_works(
    command: str,
    sqlite_url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each help's example ends 0 on a database where the things that it names exist (the demo's test is its own)."""
    with SyncCreditService(sqlite_url) as service:
        grant = service.grant_credits("acme", 100)
        service.consume_credits(organization_id="acme", amount=10)
        hold = service.reserve_credits(organization_id="acme", amount=5)
        recurring = service.create_recurring_grant("acme", 10)
        service.set_limit("acme", amount=50, window="day", scope="department", scope_id="sales")
        service.open_run("acme", "nightly-report", max_credits=20)
    (tmp_path / "grants.csv").write_text("organization_id,amount\nacme,5\n")
    (tmp_path / "corrections.jsonl").write_text('{"organization_id": "acme", "amount": -5, "reason": "twice"}\n')
    (tmp_path / "prices.toml").write_text('[[price]]\nagent_type = "QAAgent"\naction = "answer"\ncost = "0.5"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGENTCREDITS_DATABASE_URL", sqlite_url)
    batch = ""
    if command.startswith("media"):
        batch = _studio(tmp_path, monkeypatch, capsys)
    (line,) = re.findall(r"^Example: agentcredits (.+)$", inspect.cleandoc(COMMANDS[command].help), re.MULTILINE)
    named = line.replace("0199d9a0-0000-7000-8000-000000000001", grant.id)
    named = named.replace("0199d9a0-0000-7000-8000-000000000002", batch or hold.id)
    named = named.replace("0199d9a0-0000-7000-8000-000000000003", recurring.id)
    assert main(shlex.split(named.partition(" > ")[0])) == 0
    streams = capsys.readouterr()
    assert streams.out
    assert streams.err == ""
