"""``repair``: counters that differ from the ledger, made equal to it."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from agentcredits.amounts import from_micros
from agentcredits.cli.output import count_text, make_table, print_table, say
from agentcredits.cli.parameters import DatabaseOption, JsonOption, OptionalOrganizationArgument
from agentcredits.cli.progress import ledger_progress
from agentcredits.cli.target import begin
from agentcredits.errors import InvalidInputError
from agentcredits.model import RepairChange, RepairReport


def register(app: typer.Typer, panel: str) -> None:
    """Add this file's command to the program."""
    app.command("repair", rich_help_panel=panel)(repair)


def repair(
    ctx: typer.Context,
    organization: OptionalOrganizationArgument = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the changes.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Change without asking.")] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make counters that differ from the ledger rows equal to them.

    Lists every change first: of accounts, grants, settled reservations,
    limits and usage totals. Ledger rows are never changed. An account with
    something that cannot be repaired is left as it is. Each account is
    changed in one transaction under its lock, and only if it is clean then.
    Exit code 1 when differences remain.

    Example: agentcredits repair --dry-run
    """
    command = begin(ctx, database, as_json)
    may_ask = command.out.console.is_terminal and not command.out.as_json
    if not (dry_run or yes or may_ask):
        raise InvalidInputError("repair changes counters: give --dry-run to look, or --yes.", reason="wrong_use")
    with command.target.service() as service:

        def run(*, dry_run: bool) -> RepairReport:
            with ledger_progress(command.out) as progress:
                return service.repair(organization, dry_run=dry_run, progress=progress)

        if yes and not dry_run:
            report = run(dry_run=False)
        else:
            report = run(dry_run=True)
            if report.changes and not dry_run:
                show_repair(command.out.console, report)
                if typer.confirm("Change these counters?", default=False):
                    report = run(dry_run=False)
    command.out.show(repair_data(report), lambda console: show_repair(console, report))
    if not report.ok:
        raise typer.Exit(1)


def repair_data(report: RepairReport) -> dict[str, Any]:
    """The report as plain data."""
    return {
        "ok": report.ok,
        "dry_run": report.dry_run,
        "accounts": report.accounts,
        "transactions": report.transactions,
        "changes": report.changes,
        "refused": report.refused,
    }


def show_repair(console: Console, report: RepairReport) -> None:
    """One sentence when clean; else the changes, and what cannot be repaired."""
    seen = f"{count_text(report.accounts, 'account')}, {count_text(report.transactions, 'ledger row')}"
    if not report.changes and not report.refused:
        say(console, ("Clean", "green"), f": {seen}; there is nothing to repair.")
        return
    if report.changes:
        what = "to be made equal" if report.dry_run else "made equal"
        say(console, (count_text(len(report.changes), "counter"), "bold"), f" {what} to the ledger, in {seen}:")
        rows = (
            (
                one.organization_id,
                f"{one.table}.{one.column}",
                _key(one),
                _value(one, one.before),
                _value(one, one.after),
            )
            for one in report.changes
        )
        columns = ("organization", "counter", "of", "is", "becomes")
        print_table(console, make_table(columns, rows, right=("is", "becomes"), folds=("of", "counter")))
    if report.refused:
        say(console, (count_text(len(report.refused), "difference"), "red"), " that cannot be repaired:")
        refused = ((one.organization_id, one.check, one.message, one.reason) for one in report.refused)
        headings = ("organization", "check", "difference", "why")
        print_table(console, make_table(headings, refused, folds=("difference", "why")))


def _key(change: RepairChange) -> str:
    return ", ".join(change.key.values())


def _value(change: RepairChange, value: object) -> str:
    """Credits where the column is of micro-credits."""
    if value is None:
        return ""
    return f"{from_micros(value):,f}" if change.column.endswith("_micros") and isinstance(value, int) else str(value)
