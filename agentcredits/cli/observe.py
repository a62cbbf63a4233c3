"""``observe report`` and ``list``: what mode "observe" let pass and "enforce" would have refused."""

from __future__ import annotations

from collections.abc import Sequence

import typer
from rich.console import Console
from rich.table import Table

from agentcredits.cli.output import (
    action_text,
    count_text,
    credits_text,
    foldable,
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
    SinceOption,
    UntilOption,
    parse_period,
)
from agentcredits.cli.target import begin
from agentcredits.model import Denial, DenialGroup

observe = typer.Typer(
    help='What mode "observe" let pass and "enforce" would have refused.',
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@observe.command("report")
def report(
    ctx: typer.Context,
    organization: OptionalOrganizationArgument = None,
    since: SinceOption = None,
    until: UntilOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count would-be refusals by organization, reason, source and action, the most frequent first.

    Read it before you switch from AGENTCREDITS_MODE=observe to enforce: these
    are the calls that would have stopped. "credits" is what they cost.

    Example: agentcredits observe report --since 7d
    """
    command = begin(ctx, database, as_json)
    start, end = parse_period(since, until)
    with command.target.service() as service:
        found = service.observe_report(organization, since=start, until=end)

    def render(console: Console) -> None:
        if not found:
            say(console, "Nothing would have been refused.")
            return
        print_table(console, _report_table(console, found))
        count = sum(group.count for group in found)
        say(console, f"{count_text(count, 'call')} would have been refused.")

    command.out.show({"items": found, "count": sum(group.count for group in found)}, render)


@observe.command("list")
def list_denials(
    ctx: typer.Context,
    organization: OptionalOrganizationArgument = None,
    since: SinceOption = None,
    until: UntilOption = None,
    limit: LimitOption = 50,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List would-be refusals one by one, newest first, with the sentence that each would have raised.

    Example: agentcredits observe list acme --since today
    """
    command = begin(ctx, database, as_json)
    start, end = parse_period(since, until)
    with command.target.service() as service:
        found = service.list_denials(organization, since=start, until=end, limit=limit)

    def render(console: Console) -> None:
        if found:
            print_table(console, _list_table(console, found))
        else:
            say(console, "Nothing would have been refused.")

    command.out.show({"items": found}, render)


def _report_table(console: Console, found: Sequence[DenialGroup]) -> Table:
    return make_table(
        ("times", "credits", "organization", "action", "reason", "by", "first (UTC)", "last (UTC)"),
        (
            (
                f"{group.count:,}",
                credits_text(group.required),
                group.organization_id,
                foldable(action_text(group.agent_type, group.action), console, after="."),
                group.reason,
                group.limit_source or "",
                foldable(time_text(group.first_at), console, after=" "),
                foldable(time_text(group.last_at), console, after=" "),
            )
            for group in found
        ),
        right=("times", "credits"),
        folds=("organization", "reason"),
    )


def _list_table(console: Console, found: Sequence[Denial]) -> Table:
    return make_table(
        ("time (UTC)", "organization", "action", "credits", "what it would have said"),
        (
            (
                foldable(time_text(one.created_at), console, after=" "),
                one.organization_id,
                foldable(action_text(one.agent_type, one.action), console, after="."),
                credits_text(one.required),
                one.message,
            )
            for one in found
        ),
        right=("credits",),
        folds=("organization", "what it would have said"),
    )
