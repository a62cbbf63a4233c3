"""``doctor``: what this installation works on, and what is wrong with it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import pkgutil
import platform
from collections.abc import Iterable
from typing import Any

import typer
from rich.console import Console
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from agentcredits.cli.output import count_text, make_facts, say
from agentcredits.cli.parameters import DatabaseOption, JsonOption
from agentcredits.cli.target import Target, begin
from agentcredits.errors import CreditsError
from agentcredits.store import limit_tables, tables
from agentcredits.store.faults import translate
from agentcredits.store.reports import count_rows
from agentcredits.store.upgrade import EXPECTED_REVISION, REVISIONS, current_revision, require_schema

_DISTRIBUTIONS = ("agentcredits", "sqlalchemy", "alembic", "psycopg", "crewai")

#: What the packages of adapters begin with; the migrations' does too.
_ADAPTER = "agentcredits_"
_NO_ADAPTER = "agentcredits_migrations"
_COUNTED = {
    "accounts": tables.credit_accounts,
    "grants": tables.credit_grants,
    "reservations": tables.credit_reservations,
    "transactions": tables.credit_transactions,
    "prices": tables.agent_action_costs,
    "limits": limit_tables.credit_limits,
}


def register(app: typer.Typer, panel: str) -> None:
    """Add this file's command to the program."""
    app.command("doctor", rich_help_panel=panel)(doctor)


def doctor(ctx: typer.Context, database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """Show what this installation works on, and say what to mend.

    The database and its server, migrations that are missing, how SQLite
    writes (journal_mode, synchronous), the mode and required scopes, rows,
    adapters found with their frameworks, versions. Changes nothing. Exit
    code 1 when there is something to mend.

    Example: agentcredits doctor
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
        for note in report["notes"]:
            say(console, ("Note: ", "yellow"), note)

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
        "require_scopes": list(target.settings.require_scopes),
        "schema": {"revision": None, "expected": EXPECTED_REVISION, "is_current": False, "missing": list(REVISIONS)},
        "server": {},
        "counts": {},
        "adapters": find_adapters(),
        "versions": {"python": platform.python_version()} | {name: installed_version(name) for name in _DISTRIBUTIONS},
        "problems": problems,
        "notes": [],
    }
    try:
        with target.engine() as engine, engine.connect() as connection:
            report["server"] = _server(connection)
            revision = current_revision(connection)
            report["schema"] |= {
                "revision": revision,
                "is_current": revision == EXPECTED_REVISION,
                "missing": _missing(revision),
            }
            require_schema(connection, url=target.shown)
            for name, table in _COUNTED.items():
                report["counts"][name] = count_rows(connection, table)
    except CreditsError as error:
        problems.append(error.message)
    except SQLAlchemyError as error:
        problems.append(translate(error).message)
    report["notes"] = list(_notes(report))
    return report


def _missing(revision: str | None) -> list[str]:
    """The migrations that would run now, oldest first; none for a revision of a newer version."""
    if revision is None:
        return list(REVISIONS)
    return list(REVISIONS[REVISIONS.index(revision) + 1 :]) if revision in REVISIONS else []


def find_adapters() -> list[dict[str, Any]]:
    """Packages ``agentcredits_<framework>`` that can be imported, and whether their framework can; imports neither."""
    found = []
    for name in sorted({module.name for module in pkgutil.iter_modules() if module.name.startswith(_ADAPTER)}):
        if name == _NO_ADAPTER:
            continue
        framework = name.removeprefix(_ADAPTER)
        found.append(
            {
                "package": name,
                "framework": framework,
                "installed": importlib.util.find_spec(framework) is not None,
                "version": installed_version(framework),
            }
        )
    return found


def _notes(report: dict[str, Any]) -> Iterable[str]:
    """What is in order, but should be meant."""
    if report["mode"] == "observe":
        yield 'Mode "observe" refuses nothing for want of credits or limits: see `agentcredits observe report`.'
    if report["server"].get("journal_mode", "wal") not in ("wal", "memory"):
        yield f"SQLite's journal_mode is {report['server']['journal_mode']}, not wal: readers and writers wait."
    if report["server"].get("synchronous") == "NORMAL":
        yield "SQLite's synchronous=NORMAL may lose the last charges in a power cut (never after a crash)."


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
        missing = ", ".join(schema["missing"]) or "none"
        yield "schema", f"{schema['revision'] or 'none'} (this version needs {schema['expected']}; missing: {missing})"
    yield "mode", report["mode"]
    yield "required scopes", ", ".join(report["require_scopes"]) or "none"
    if report["counts"]:
        yield "rows", ", ".join(count_text(count, name.removesuffix("s")) for name, count in report["counts"].items())
    if not report["adapters"]:
        yield "adapters", "none found"
    for adapter in report["adapters"]:
        state = adapter["version"] or "installed" if adapter["installed"] else "not installed"
        yield adapter["package"], f"adapter for {adapter['framework']} ({state})"
    for name, version in report["versions"].items():
        yield name, version or "not installed"
