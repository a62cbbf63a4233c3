"""``doctor``: what this installation works on, and what is wrong with it."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable
from typing import Any

import typer
from rich.console import Console
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import SQLAlchemyError

from agentcredits.cli.output import count_text, make_facts, say
from agentcredits.cli.parameters import DatabaseOption, JsonOption
from agentcredits.cli.target import Target, begin
from agentcredits.errors import CreditsError
from agentcredits.store import tables
from agentcredits.store.faults import translate
from agentcredits.store.upgrade import EXPECTED_REVISION, current_revision, require_schema

_DISTRIBUTIONS = ("agentcredits", "sqlalchemy", "alembic", "psycopg", "crewai")
_COUNTED = {
    "accounts": tables.credit_accounts,
    "grants": tables.credit_grants,
    "reservations": tables.credit_reservations,
    "transactions": tables.credit_transactions,
    "prices": tables.agent_action_costs,
}


def register(app: typer.Typer) -> None:
    """Add this file's command to the program."""
    app.command("doctor")(doctor)


def doctor(ctx: typer.Context, database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """Show the database, its schema and the versions in use, and say what to mend (exit code 1).

    Example: agentcredits doctor --database postgresql://localhost/credits
    """
    command = begin(ctx, database, as_json)
    report = examine(command.target)
    problems: list[str] = report["problems"]

    def render(console: Console) -> None:
        console.print(make_facts(_lines(report)))
        console.print()
        if not problems:
            say(console, ("Everything is in order.", "green"))
        for problem in problems:
            say(console, ("Mend: ", "red"), problem)

    command.out.show(report, render)
    if problems:
        raise typer.Exit(1)


def examine(target: Target) -> dict[str, Any]:
    """The facts as plain data; a database that is missing or away becomes a problem, not an error."""
    problems: list[str] = []
    report: dict[str, Any] = {
        "database": target.shown,
        "file": None if target.path is None else str(target.path),
        "mode": target.settings.mode,
        "schema": {"revision": None, "expected": EXPECTED_REVISION, "is_current": False},
        "server": {},
        "counts": {},
        "versions": {"python": platform.python_version()} | {name: installed_version(name) for name in _DISTRIBUTIONS},
        "problems": problems,
    }
    try:
        with target.engine() as engine, engine.connect() as connection:
            report["server"] = _server(connection)
            revision = current_revision(connection)
            report["schema"] |= {"revision": revision, "is_current": revision == EXPECTED_REVISION}
            require_schema(connection, url=target.shown)
            for name, table in _COUNTED.items():
                report["counts"][name] = connection.execute(select(func.count()).select_from(table)).scalar_one()
    except CreditsError as error:
        problems.append(error.message)
    except SQLAlchemyError as error:
        problems.append(translate(error).message)
    return report


def _server(connection: Connection) -> dict[str, Any]:
    if connection.dialect.name == "sqlite":
        synchronous = int(connection.exec_driver_sql("PRAGMA synchronous").scalar_one())
        return {
            "sqlite": connection.exec_driver_sql("SELECT sqlite_version()").scalar_one(),
            "journal_mode": connection.exec_driver_sql("PRAGMA journal_mode").scalar_one(),
            "synchronous": ("OFF", "NORMAL", "FULL", "EXTRA")[synchronous],
        }
    return {"postgresql": connection.exec_driver_sql("SHOW server_version").scalar_one()}


def installed_version(distribution: str) -> str | None:
    """Read from the installed metadata: importing crewai alone takes seconds."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _lines(report: dict[str, Any]) -> Iterable[tuple[str, str]]:
    yield "database", report["database"]
    if report["file"] is not None:
        yield "file", report["file"]
    for name, value in report["server"].items():
        yield name.replace("_", " "), str(value)
    schema = report["schema"]
    if schema["is_current"]:
        yield "schema", f"{schema['revision']} (current)"
    else:
        yield "schema", f"{schema['revision'] or 'none'} (this version needs {schema['expected']})"
    yield "mode", report["mode"]
    if report["counts"]:
        yield "rows", ", ".join(count_text(count, name.removesuffix("s")) for name, count in report["counts"].items())
    for name, version in report["versions"].items():
        yield name, version or "not installed"
