"""``runs list``, ``show``, ``end`` and ``purge``: pools of runs and what is carved out of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from agentcredits.cli.output import (
    count_text,
    credits_text,
    foldable,
    make_facts,
    make_table,
    print_table,
    say,
    time_text,
)
from agentcredits.cli.parameters import (
    DatabaseOption,
    JsonOption,
    LimitOption,
    OptionalOrganizationArgument,
    OrganizationArgument,
)
from agentcredits.cli.target import begin
from agentcredits.model import RunRecord, RunStatus
from agentcredits.service.runs import RETENTION

runs = typer.Typer(
    help="Runs with a cap, and the parts of it that runs inside them were given.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="The run's id, as runs list shows it.", show_default=False)
]


@runs.command("list")
def list_runs(
    ctx: typer.Context,
    organization: OrganizationArgument,
    status: Annotated[RunStatus | None, typer.Option(help="Only runs of this status.")] = None,
    inside: Annotated[str | None, typer.Option(metavar="RUN", help="Only those right inside this run.")] = None,
    limit: LimitOption = 50,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List an organization's runs as they are now, newest first.

    "used" counts what was charged in the run and in those inside it, "held"
    open reservations, "inside" what open runs inside keep for themselves.

    Example: agentcredits runs list acme --status open
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service:
        found = service.list_runs(
            organization, status=None if status is None else status.value, parent_run_id=inside, limit=limit
        )

    def render(console: Console) -> None:
        if found:
            print_table(console, _table(console, found))
        else:
            say(console, f"organization {organization} has no such runs.")

    command.out.show({"items": found}, render)


@runs.command("show")
def show_run(
    ctx: typer.Context,
    organization: OrganizationArgument,
    run: RunArgument,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one run, and the runs right inside it (at most 50).

    Example: agentcredits runs show acme nightly-report
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service:
        found = service.get_run(run, organization_id=organization)
        inside = service.list_runs(organization, parent_run_id=found.run_id)

    def render(console: Console) -> None:
        console.print(_facts(found))
        if inside:
            print_table(console, _table(console, inside))

    command.out.show({**found.as_dict(), "children": inside}, render)


@runs.command("end")
def end_run(
    ctx: typer.Context,
    organization: OrganizationArgument,
    run: RunArgument,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Why; kept with the run.")] = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a run and those inside it: nothing new begins in them.

    What they did not use goes back to the run around. Reservations that are
    open settle as before. Ending a run again is harmless.

    Example: agentcredits runs end acme nightly-report --reason "it loops"
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service:
        found = service.end_run(run, organization_id=organization, reason=reason)

    def render(console: Console) -> None:
        say(console, f"Run {found.run_id} is ended; {credits_text(found.total_spent)} credits were charged in it.")

    command.out.show(found, render)


@runs.command("purge")
def purge_runs(
    ctx: typer.Context,
    organization: OptionalOrganizationArgument = None,
    days: Annotated[int, typer.Option(min=0, help="Only runs that ended this long ago.")] = RETENTION.days,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove runs that ended long ago, with those inside them.

    Their charges stay in the ledger. A removed run's id may be used again and
    then starts at nothing.

    Example: agentcredits runs purge --days 90
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service:
        removed = service.purge_runs(organization, older_than=timedelta(days=days))
    command.out.show({"removed": removed}, lambda console: say(console, f"Removed {count_text(removed, 'run')}."))


def _bound(amount: Decimal | None) -> str:
    return "–" if amount is None else credits_text(amount)


def _kept_inside(run: RunRecord) -> Decimal:
    """What the runs inside claim beyond what was charged in them."""
    return run.carved - run.inner_spent


def _facts(run: RunRecord) -> Table:
    ends = time_text(run.ended_at or run.expires_at)
    state = run.status.value if run.ended_at is None else f"ended {ends}" + (f" ({run.reason})" if run.reason else "")
    rows = [
        ("run", run.run_id),
        ("inside", run.parent_run_id or "–"),
        ("status", state),
        ("cap", _bound(run.cap) + (", may borrow" if run.borrows else "")),
        ("charged", f"{credits_text(run.spent)}, in runs inside {credits_text(run.inner_spent)}"),
        ("held", credits_text(run.held)),
        ("kept by runs inside", credits_text(_kept_inside(run))),
        ("left", _bound(run.remaining)),
        ("opened (UTC)", time_text(run.created_at)),
    ]
    if run.expires_at is not None:
        rows.append(("ends if idle (UTC)", ends))
    return make_facts(rows)


def _table(console: Console, found: Sequence[RunRecord]) -> Table:
    return make_table(
        ["opened (UTC)", "status", "cap", "used", "held", "inside", "left", "run", "in run"],
        (
            (
                foldable(time_text(one.created_at), console, after=" "),
                one.status.value,
                _bound(one.cap),
                credits_text(one.total_spent),
                credits_text(one.held),
                credits_text(_kept_inside(one)),
                _bound(one.remaining),
                one.run_id,
                one.parent_run_id or "",
            )
            for one in found
        ),
        right=("cap", "used", "held", "inside", "left"),
        folds=("run", "in run"),
    )
