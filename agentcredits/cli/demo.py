"""``demo``: two agents run real crews; credits are charged, given back and refused, and everything is shown."""

from __future__ import annotations

import importlib.util
import logging
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import typer

from agentcredits.cli.db import upgrade_target
from agentcredits.cli.output import make_console, print_json
from agentcredits.cli.parameters import DatabaseOption, JsonOption
from agentcredits.cli.target import Options, Target, begin, target_of
from agentcredits.errors import ConfigurationError

DEMO_FILE: Final = "agentcredits-demo.db"

#: CrewAI reads these when it is imported: no telemetry, no traces, no question about them, no version check.
QUIET_CREWAI: Final = {
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_DISABLE_TRACKING": "true",
    "CREWAI_DISABLE_VERSION_CHECK": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "OTEL_SDK_DISABLED": "true",
}


def register(app: typer.Typer, panel: str) -> None:
    """Add this file's command to the program."""
    app.command("demo", rich_help_panel=panel)(demo)


def demo(ctx: typer.Context, database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """Watch two agents run real CrewAI crews and be charged, given back and refused (no network, no keys).

    Writes a fresh ./agentcredits-demo.db, or into the database that --database names.

    Example: agentcredits demo
    """
    if importlib.util.find_spec("crewai") is None:
        raise ConfigurationError(
            'The demo runs CrewAI crews, and crewai is not installed: pip install "agentcredits[crewai]"',
            reason="missing_package",
        )
    named = database or (ctx.obj.database if isinstance(ctx.obj, Options) else None)
    command = begin(ctx, database, as_json)
    target = command.target
    if named is None:
        for leftover in (DEMO_FILE, f"{DEMO_FILE}-wal", f"{DEMO_FILE}-shm"):
            Path(leftover).unlink(missing_ok=True)
        target = target_of(f"sqlite:///{DEMO_FILE}")
    if target.missing:
        upgrade_target(target)
    with target.service():
        pass  # a database that was there before is never migrated here: this says what to run

    from agentcredits.cli.demo_story import Story

    with quiet_crewai():
        story = Story(console=make_console(stderr=command.out.as_json), target=target, commands=_commands(target))
        summary = story.run()
    if command.out.as_json:
        print_json(summary)


@contextmanager
def quiet_crewai() -> Iterator[None]:
    """CrewAI without telemetry, with its files in a folder that goes away; must surround its first import."""
    with tempfile.TemporaryDirectory(prefix="agentcredits-demo-") as storage:
        os.environ.update(QUIET_CREWAI, CREWAI_STORAGE_DIR=storage)
        # the demo lets one crew fail on purpose and tells so itself
        logging.getLogger("crewai").setLevel(logging.CRITICAL)
        yield


def _commands(target: Target) -> tuple[str, ...]:
    """Three commands that look at the database, as they can be typed in this folder."""
    url = target.shown
    if target.path is not None and target.path.parent == Path.cwd():
        url = f"sqlite:///{target.path.name}"
    # a password is not printed: the environment has to name the database then
    where = "" if target.url.password else f" --database {shlex.quote(url)}"
    return tuple(f"{_program()} {words}{where}" for words in ("history {org}", "balance {org}", "verify"))


def _program() -> str:
    """How this program was called, so that the commands work when pasted."""
    called = Path(sys.argv[0])
    found = shutil.which("agentcredits")
    if called.name != "agentcredits" or not os.access(called, os.X_OK):
        return f"{shlex.quote(sys.executable)} -m agentcredits.cli"
    if found is not None and Path(found).samefile(called):
        return "agentcredits"
    return shlex.quote(os.path.relpath(called) if called.is_relative_to(Path.cwd()) else str(called))
