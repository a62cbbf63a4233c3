"""The program: its options, its commands, and what an error looks like."""

from __future__ import annotations

import copy
import functools
import io
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer
import typer.main
from sqlalchemy.exc import SQLAlchemyError
from typer.models import CommandInfo

from agentcredits.cli import corrections, demo, detect, doctor, history, ledger, purge, repair, simulate, usage
from agentcredits.cli.accounts import accounts
from agentcredits.cli.bulk import bulk
from agentcredits.cli.costs import costs
from agentcredits.cli.db import db
from agentcredits.cli.limits import limits
from agentcredits.cli.media import media
from agentcredits.cli.observe import observe
from agentcredits.cli.output import print_error
from agentcredits.cli.parameters import DatabaseOption, JsonOption
from agentcredits.cli.reservations import reservations
from agentcredits.cli.runs import runs
from agentcredits.cli.target import Options
from agentcredits.errors import AgentCreditsWarning, CreditsError
from agentcredits.store.faults import translate

EXIT_ERROR: Final = 2
EXIT_OUT_OF_CREDITS: Final = 3

#: The base of every wrong use of the command line; typer does not export it by name.
USAGE_ERROR: Final[type[Exception]] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="agentcredits",
    help="Credits for AI agents, in your own database.",
    epilog="Example: agentcredits db upgrade && agentcredits grant acme 100 && agentcredits balance acme",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"agentcredits {doctor.installed_version('agentcredits') or 'of a checkout'}")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Credits for AI agents, in your own database."""
    ctx.obj = Options(database=database, as_json=as_json)


_SET_UP = "Set up"
_LOOK = "Look"
_CREDITS = "Credits"
_CONTROL = "Control"

demo.register(app, _SET_UP)
app.add_typer(db, name="db", rich_help_panel=_SET_UP)
doctor.register(app, _SET_UP)
ledger.register(app, credits_panel=_CREDITS, look_panel=_LOOK)
history.register(app, _LOOK)
usage.register(app, _LOOK)
detect.register(app, _LOOK)
simulate.register(app, _LOOK)
corrections.register(app, _CREDITS)
repair.register(app, _CREDITS)
app.add_typer(reservations, name="reservations", rich_help_panel=_CREDITS)
app.add_typer(bulk, name="bulk", rich_help_panel=_CREDITS)
app.add_typer(media, name="media", rich_help_panel=_CREDITS)
app.add_typer(accounts, name="accounts", rich_help_panel=_CONTROL)
app.add_typer(limits, name="limits", rich_help_panel=_CONTROL)
app.add_typer(runs, name="runs", rich_help_panel=_CONTROL)
app.add_typer(costs, name="costs", rich_help_panel=_CONTROL)
app.add_typer(observe, name="observe", rich_help_panel=_CONTROL)
purge.register(app, _CONTROL)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; expected errors become one sentence on standard error and an exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in words
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a terminal or pipe that is not UTF-8 shows "?" for a character that it cannot, instead of failing
            stream.reconfigure(errors="replace")
    # what the library would warn a developer about (the default file, for one) `doctor` says in words
    warnings.simplefilter("ignore", AgentCreditsWarning)
    try:
        tree = tree_for(words[0] if words else "")
        result: Any = tree.main(words, prog_name="agentcredits", standalone_mode=False)
    except CreditsError as error:
        print_error(error, as_json=as_json)
        return EXIT_OUT_OF_CREDITS if error.http_status == 402 else EXIT_ERROR
    except SQLAlchemyError as error:
        print_error(translate(error), as_json=as_json)
        return EXIT_ERROR
    except USAGE_ERROR as error:
        return _wrong_use(error, as_json=as_json)
    except typer.Abort:
        return EXIT_ERROR
    return result if isinstance(result, int) else 0


@functools.cache
def _whole_tree() -> Any:
    return typer.main.get_command(app)


def tree_for(word: str) -> Any:
    """The commands; only what the first word names, if anything: to build all of them takes longer than to run most."""
    part = copy.copy(app)
    part.registered_groups = [group for group in app.registered_groups if group.name == word]
    part.registered_commands = [command for command in app.registered_commands if _name_of(command) == word]
    if part.registered_groups or part.registered_commands:
        return typer.main.get_command(part)
    return _whole_tree()


def _name_of(command: CommandInfo) -> str:
    return command.name or typer.main.get_command_name(getattr(command.callback, "__name__", ""))


def _wrong_use(error: Exception, *, as_json: bool) -> int:
    """A wrong option or argument in one sentence; a group without a command shows its help."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        # with rich the help was printed when the error was made; without it, it is the message
        if str(error).strip():
            typer.echo(str(error))
        return EXIT_ERROR
    path = context.command_path if context is not None else "agentcredits"
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    print_error(
        CreditsError(" ".join(message.split()), reason="wrong_use", suggestions=[f"Try `{path} --help`."]),
        as_json=as_json,
    )
    return EXIT_ERROR
