"""``db upgrade``, ``current``, ``check`` and ``sql``: the schema."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

from agentcredits.cli.output import make_table, print_table, say
from agentcredits.cli.parameters import DatabaseOption, JsonOption
from agentcredits.cli.target import Target, begin
from agentcredits.store.upgrade import (
    EXPECTED_REVISION,
    check_schema,
    current_revision,
    require_schema,
    upgrade_database,
    upgrade_sql,
)

db = typer.Typer(help="The database's schema.", no_args_is_help=True, rich_markup_mode="rich")


class DialectName(StrEnum):
    """The databases that the schema can be written for."""

    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"


@db.command("upgrade")
def upgrade(
    ctx: typer.Context,
    row_security: Annotated[
        bool | None,
        typer.Option(
            "--row-security/--no-row-security",
            help="PostgreSQL: make the policies that show a transaction one organization's rows only, or take them"
            " away; left as they are when not given.",
            show_default=False,
        ),
    ] = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create the schema, or bring it up to date; safe to run again, and by several processes at once.

    With --row-security the application must connect as a role that is no
    superuser and has no BYPASSRLS; restart it afterwards.

    Example: agentcredits db upgrade --database sqlite:///credits.db
    """
    command = begin(ctx, database, as_json)
    before, after = upgrade_target(command.target, row_security=row_security)
    sentence = (
        f"{command.target.shown} is at {after} already."
        if before == after
        else f"{command.target.shown} is now at {after} (before: {before or 'empty'})."
    )
    data: dict[str, object] = {"database": command.target.shown, "before": before, "revision": after}
    if row_security is not None:
        data["row_security"] = row_security
        sentence += f" Row security is {'on' if row_security else 'off'}."
    command.out.show(data, lambda console: say(console, sentence))


def upgrade_target(target: Target, *, row_security: bool | None = None) -> tuple[str | None, str | None]:
    """Run the migrations; the revision before and after."""
    with target.engine(create=True) as engine:
        with engine.connect() as connection:
            before = current_revision(connection)
        upgrade_database(engine, with_row_security=row_security)
        with engine.connect() as connection:
            return before, current_revision(connection)


@db.command("current")
def current(ctx: typer.Context, database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """Show the schema's revision and whether it is the one that this version needs.

    Example: agentcredits db current
    """
    command = begin(ctx, database, as_json)
    with command.target.engine() as engine, engine.connect() as connection:
        revision = current_revision(connection)
    is_current = revision == EXPECTED_REVISION
    state = f"is at {revision}" if revision else "has no credits schema"
    advice = (
        "(current)." if is_current else f"but this version needs {EXPECTED_REVISION}: run `agentcredits db upgrade`."
    )
    sentence = f"{command.target.shown} {state} {advice}"
    command.out.show(
        {
            "database": command.target.shown,
            "revision": revision,
            "expected": EXPECTED_REVISION,
            "is_current": is_current,
        },
        lambda console: say(console, sentence),
    )


@db.command("check")
def check(ctx: typer.Context, database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """Compare the live schema with the declared one: tables, checks, indexes, triggers (exit code 1 on differences).

    Example: agentcredits db check
    """
    command = begin(ctx, database, as_json)
    with command.target.engine() as engine, engine.connect() as connection:
        require_schema(connection, url=command.target.shown)
        problems = check_schema(connection)

    def render(console: Console) -> None:
        if not problems:
            say(console, ("Clean", "green"), ": the live schema is the declared one.")
            return
        print_table(console, make_table(("difference",), ([problem] for problem in problems), folds="difference"))

    command.out.show({"database": command.target.shown, "ok": not problems, "problems": problems}, render)
    if problems:
        raise typer.Exit(1)


@db.command("sql")
def sql(
    ctx: typer.Context,
    dialect: Annotated[
        DialectName | None,
        typer.Option(help="The kind of database; that of the URL when left out.", show_default=False),
    ] = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the SQL of all migrations, for a reviewed hand-over to a database administrator; connects to nothing.

    Example: agentcredits db sql --dialect postgresql > credits.sql
    """
    command = begin(ctx, database, as_json)
    name = dialect.value if dialect is not None else command.target.url.get_backend_name()
    text = upgrade_sql(name)
    # not through rich, which would break long lines
    command.out.show({"dialect": name, "sql": text}, lambda _console: typer.echo(text.rstrip("\n")))
