"""``demo``: one crew does research, writes, draws and plans a video; what it costs is told as it happens."""

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
from rich.console import Console

from agentcredits.cli.db import upgrade_target
from agentcredits.cli.demo_picture import PICTURE_FILE
from agentcredits.cli.output import make_console, print_json, say
from agentcredits.cli.parameters import DatabaseOption, JsonOption
from agentcredits.cli.target import Options, Target, begin, target_of
from agentcredits.errors import ConfigurationError
from agentcredits.service import SyncCreditService

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
    """Watch a real CrewAI crew be charged, given back and refused (no network, no keys).

    Writes ./agentcredits-demo.png and a fresh ./agentcredits-demo.db, or
    into the database that --database names.

    Example: agentcredits demo
    """
    if importlib.util.find_spec("crewai") is None:
        raise ConfigurationError(
            'The demo runs a CrewAI crew, and crewai is not installed: pip install "agentcredits[crewai]"',
            reason="missing_package",
        )
    _require_folder()
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

    console = make_console(stderr=command.out.as_json)
    # observe mode would let the crew have what the demo shows to be refused
    settings = target.settings.model_copy(update={"mode": "enforce"})
    say(console, ("agentcredits demo", "bold"))
    with quiet_crewai(), target.engine() as engine, SyncCreditService(engine, settings=settings) as service:
        with _spinner(console, "Loading CrewAI ..."):
            from agentcredits.cli.demo_story import Story
        with _spinner(console, "The crew is at work ..."):
            told = Story(console, service).run()
    told |= {"database": target.shown, "commands": _commands(target, told["organization_id"])}
    _show_commands(console, target, told["commands"])
    if command.out.as_json:
        print_json(told)
    if not told["verify"]["ok"]:
        raise typer.Exit(1)


@contextmanager
def quiet_crewai() -> Iterator[None]:
    """CrewAI without telemetry, with its files in a folder that goes away; must surround its first import."""
    with tempfile.TemporaryDirectory(prefix="agentcredits-demo-") as storage:
        os.environ.update(QUIET_CREWAI, CREWAI_STORAGE_DIR=storage)
        # one tool fails on purpose, and the demo tells so itself
        logging.getLogger("crewai").setLevel(logging.CRITICAL)
        yield


@contextmanager
def _spinner(console: Console, words: str) -> Iterator[None]:
    """On a terminal; nothing in a pipe or file."""
    if not console.is_terminal:
        yield
        return
    with console.status(words):
        yield


def _require_folder() -> None:
    """The picture goes into the current folder.

    Raises:
        ConfigurationError: it cannot be written there.
    """
    picture = Path(PICTURE_FILE)
    if picture.is_dir() or not os.access(picture if picture.exists() else Path.cwd(), os.W_OK):
        raise ConfigurationError(
            f"The demo draws {PICTURE_FILE} into the current folder, where it cannot be written: use another folder.",
            reason="unwritable_folder",
        )


def _commands(target: Target, organization_id: str) -> list[str]:
    """Three commands that look at the database, as they can be typed in this folder."""
    url = target.shown
    if target.path is not None and target.path.parent == Path.cwd():
        url = f"sqlite:///{target.path.name}"
    # a password is not printed: the environment has to name the database then
    where = "" if target.url.password else f" --database {shlex.quote(url)}"
    return [f"{_program()} {words} {organization_id}{where}" for words in ("history", "limits list", "verify")]


def _show_commands(console: Console, target: Target, commands: list[str]) -> None:
    console.print()
    say(console, "The database stays: ", (target.shown, "bold"))
    variable = ", with AGENTCREDITS_DATABASE_URL naming the database" if target.url.password else ""
    say(console, f"Look at it{variable}:")
    for command in commands:
        say(console, "  ", (command, "cyan"))


def _program() -> str:
    """How this program was called, so that the commands work when pasted."""
    called = Path(sys.argv[0])
    found = shutil.which("agentcredits")
    if called.name != "agentcredits" or not os.access(called, os.X_OK):
        return f"{shlex.quote(sys.executable)} -m agentcredits.cli"
    if found is not None and Path(found).samefile(called):
        return "agentcredits"
    return shlex.quote(os.path.relpath(called) if called.is_relative_to(Path.cwd()) else str(called))
