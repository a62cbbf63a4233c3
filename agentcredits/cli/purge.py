"""``purge`` and ``erase-user``: letting go of what is old, and of what names a user."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Final

import typer
from rich.console import Console

from agentcredits.cli.output import count_text, say, time_text
from agentcredits.cli.parameters import DatabaseOption, JsonOption, OptionalOrganizationArgument, OrganizationArgument
from agentcredits.cli.target import begin
from agentcredits.errors import InvalidInputError
from agentcredits.model import ErasureReport, PurgeReport

_AGE: Final = re.compile(r"([1-9][0-9]{0,4})d")


def register(app: typer.Typer, panel: str) -> None:
    """Add this file's commands to the program."""
    app.command("purge", rich_help_panel=panel)(purge)
    app.command("erase-user", rich_help_panel=panel)(erase_user)


def purge(
    ctx: typer.Context,
    organization: OptionalOrganizationArgument = None,
    older_than: Annotated[
        str | None,
        typer.Option(metavar="DAYS", help="Age of what may go, such as 90d; else idempotency_retention_days."),
    ] = None,
    keys: Annotated[
        bool, typer.Option("--keys/--no-keys", help="Idempotency keys of charges, reservations and refunds.")
    ] = True,
    details: Annotated[
        bool, typer.Option("--details", help="Reason, request, dimensions and metadata of charges and reservations.")
    ] = False,
    denials: Annotated[bool, typer.Option("--denials", help="What mode observe recorded.")] = False,
    crossings: Annotated[bool, typer.Option("--crossings", help="Thresholds of limits that were reached.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would go; remove nothing.")] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let go of old idempotency keys, and on demand of details and records.

    No amount changes, and nothing is charged or given back anew: only a
    second try with a purged key counts as a new call. Keys of grants,
    adjustments and open reservations stay. Works in small steps; stopped, it
    can be run again.

    Example: agentcredits purge --older-than 90d --dry-run
    """
    command = begin(ctx, database, as_json)
    age = None if older_than is None else _age(older_than)
    with command.target.service() as service:
        report = service.purge(
            organization,
            older_than=age,
            keys=keys,
            details=details,
            denials=denials,
            crossings=crossings,
            dry_run=dry_run,
        )
    command.out.show(report, lambda console: _show_purge(console, report))


def erase_user(
    ctx: typer.Context,
    organization: OrganizationArgument,
    user: Annotated[str, typer.Argument(metavar="USER", help="The user's id.", show_default=False)],
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Erase a user and the free text of its actions; amounts stay.

    The user's usage goes to "no user", and its limits count from 0 again.
    It cannot be undone.

    Example: agentcredits erase-user acme user_7
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service:
        report = service.erase_user_details(organization, user)
    command.out.show(report, lambda console: _show_erasure(console, report))


def _age(text: str) -> timedelta:
    days = _AGE.fullmatch(text)
    if days is None:
        raise InvalidInputError(
            f"--older-than {text} is no age: write for example 90d.", context={"parameter": "--older-than"}
        )
    return timedelta(days=int(days[1]))


def _show_purge(console: Console, report: PurgeReport) -> None:
    counted = {
        count_text(report.keys, "idempotency key"): report.keys,
        f"the details of {count_text(report.details, 'ledger row')}": report.details,
        f"the details of {count_text(report.reservations, 'reservation')}": report.reservations,
        count_text(report.denials, "denial"): report.denials,
        count_text(report.crossings, "crossing"): report.crossings,
    }
    found = [text for text, number in counted.items() if number]
    what = ", ".join(found) if found else "nothing"
    verb = "Would remove" if report.dry_run else "Removed"
    seen = count_text(report.accounts, "account")
    say(console, f"{verb} {what} from before {time_text(report.before)} UTC ({seen} looked at).")


def _show_erasure(console: Console, report: ErasureReport) -> None:
    rows, holds = count_text(report.transactions, "ledger row"), count_text(report.reservations, "reservation")
    say(console, f"Erased user {report.user_id} of {report.organization_id}: {rows}, {holds}.")
    if report.kept_limits:
        limits = count_text(report.kept_limits, "limit")
        say(console, f"{limits} set for this user still name it: agentcredits limits remove.")
    if report.open_batches:
        say(console, f"Batches of the user that are not finished: {report.open_batches}: erase again when they are.")
