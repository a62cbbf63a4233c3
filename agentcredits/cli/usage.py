"""``usage``: what was charged, by whom and when, as a table with bars, JSON or CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from agentcredits.cli.csv_output import refuse_two_forms, write_csv
from agentcredits.cli.output import NARROW_COLUMNS, credits_text, make_facts, make_table, print_table, say
from agentcredits.cli.parameters import (
    ActionOption,
    AgentOption,
    CsvOption,
    DatabaseOption,
    DepartmentOption,
    JsonOption,
    OrganizationArgument,
    ProjectOption,
    SinceOption,
    UntilOption,
    UserOption,
    parse_period,
)
from agentcredits.cli.target import begin
from agentcredits.model import GrantCategory, UsageLine, UsageReport

#: What lines are grouped by when neither --by nor --bucket says.
GROUPS: Final = "agent_type,action"

BAR_COLUMNS: Final = 24
NARROW_BAR_COLUMNS: Final = 10
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"


class Bucket(StrEnum):
    """Lengths of time that totals are made of."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"


def register(app: typer.Typer, panel: str) -> None:
    """Add this file's command to the program."""
    app.command("usage", rich_help_panel=panel)(usage)


def usage(
    ctx: typer.Context,
    organization: OrganizationArgument,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Group by agent_type, action, department, project, user: one, or several with commas."
            " When left out: agent_type,action; with --bucket nothing.",
        ),
    ] = None,
    bucket: Annotated[Bucket | None, typer.Option(help="A line for each day, week (from Monday) or month.")] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    agent: AgentOption = None,
    action: ActionOption = None,
    department: DepartmentOption = None,
    project: ProjectOption = None,
    user: UserOption = None,
    as_csv: CsvOption = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what an organization used, in credits, most first.

    Counts whole UTC days, from totals that are kept with every charge: it is
    as fast on a large ledger as on a small one. "refunded" is what was given
    back in the period, whenever it was charged; net = charged - refunded;
    "uncollected" is what over-runs could not take. Where it was not paid
    credits alone, the net is also told by the category of the grants.

    Example: agentcredits usage acme --by department,action --since month
    """
    command = begin(ctx, database, as_json)
    refuse_two_forms(as_json=command.out.as_json, as_csv=as_csv)
    start, end = parse_period(since, until)
    chosen = by if by is not None else "" if bucket is not None else GROUPS
    with command.target.service() as service:
        report = service.get_usage(
            organization,
            since=start,
            until=end,
            group_by=[name.strip() for name in chosen.split(",") if name.strip()],  # type: ignore[misc]  # it checks
            bucket=None if bucket is None else bucket.value,
            agent_type=agent,
            action=action,
            department_id=department,
            project_id=project,
            user_id=user,
        )
    if as_csv:
        _write_csv(report)
        return
    command.out.show(_data(report), lambda console: _show(console, report))


def _data(report: UsageReport) -> dict[str, Any]:
    return {
        "organization_id": report.organization_id,
        "since": report.since,
        "until": report.until,
        "group_by": report.group_by,
        "bucket": report.bucket,
        "lines": report.lines,
        "total": report.total,
    }


def _write_csv(report: UsageReport) -> None:
    places = (*(("bucket",) if report.bucket else ()), *report.group_by)
    numbers = ("charges", "charged", "refunded", "net", "uncollected")
    write_csv(
        (*places, *numbers),
        ([*_place(line, report.group_by), *(getattr(line, name) for name in numbers)] for line in report.lines),
    )


def _place(line: UsageLine, groups: Sequence[str]) -> list[str | None]:
    """Where a line belongs: its bucket if there is one, and the values of its groups."""
    bucket = [] if line.bucket is None else [line.bucket.isoformat()]
    return [*bucket, *(line.group[name] for name in groups)]


# -- shown -------------------------------------------------------------------------------------------------------


def _show(console: Console, report: UsageReport) -> None:
    first = "the beginning" if report.since is None else report.since.isoformat()
    last = "now" if report.until is None else (report.until - timedelta(days=1)).isoformat()
    if not report.lines:
        say(console, f"organization {report.organization_id} used nothing from {first} to {last}.")
        return
    say(console, f"organization {report.organization_id}, in credits, from {first} to {last} (UTC days):")
    if report.group_by or report.bucket:
        print_table(console, _table(console, report))
        return
    names = ("charges", "charged", "refunded", "net", "uncollected", *_categories(report.total))
    facts = {name: getattr(report.total, name) for name in names}
    console.print(make_facts((name, f"{number:,}" if name == "charges" else credits_text(number))
                             for name, number in facts.items() if number or name in names[:2]))  # fmt: skip


def _table(console: Console, report: UsageReport) -> Table:
    total = report.total
    # Columns that hold nothing but zeros are left out, for the bars' sake.
    numbers = ["charges", "charged"]
    numbers += ["refunded", "net"] if total.refunded_micros else []
    numbers += ["uncollected"] if total.uncollected_micros else []
    numbers += _categories(total)
    places = [*([report.bucket] if report.bucket else []), *report.group_by]
    lines = list(_without_gaps(report))
    most = max(line.charged_micros for line in lines)
    rows = [
        [
            *(text or "-" for text in _place(line, report.group_by)),
            *_numbers(line, numbers),
            bar(console, line.charged_micros, most),
        ]
        for line in lines
    ]
    last = ["total", *[""] * (len(places) - 1), *_numbers(total, numbers), ""]
    return make_table((*places, *numbers, ""), rows, right=numbers, folds=tuple(report.group_by), total=last)


def _categories(total: UsageLine) -> list[str]:
    """The categories of grants that bore the net, where it was not paid credits alone."""
    found = [category.value for category in GrantCategory if total[f"{category.value}_micros"]]
    return [] if found == [GrantCategory.PAID.value] else found


def _numbers(line: UsageLine, names: Sequence[str]) -> list[str]:
    return [f"{line.charges:,}" if name == "charges" else credits_text(getattr(line, name)) for name in names]


def _without_gaps(report: UsageReport) -> Iterator[UsageLine]:
    """The lines; where time is all that they are divided by, buckets without use between them too."""
    if report.bucket is None or report.group_by:
        yield from report.lines
        return
    expected: date | None = None
    for line in report.lines:
        while expected is not None and line.bucket is not None and expected < line.bucket:
            yield UsageLine({}, expected, 0, 0, 0, 0)
            expected = _next(expected, report.bucket)
        yield line
        expected = None if line.bucket is None else _next(line.bucket, report.bucket)


def _next(first_day: date, bucket: str) -> date:
    """The first day of the bucket after this one."""
    if bucket == "month":
        return (first_day + timedelta(days=31)).replace(day=1)
    return first_day + timedelta(days=7 if bucket == "week" else 1)


def bar(console: Console, part: int, whole: int) -> str:
    """A bar for ``part`` of ``whole``: blocks on a terminal that has them, else "#"; never empty for what is not 0."""
    width = NARROW_BAR_COLUMNS if console.width < NARROW_COLUMNS else BAR_COLUMNS
    if part <= 0 or whole <= 0:
        return ""
    if not (console.is_terminal and console.encoding.startswith("utf")):
        return "#" * max(1, (2 * part * width + whole) // (2 * whole))
    full, rest = divmod(max(1, (16 * part * width + whole) // (2 * whole)), 8)
    return "█" * full + _EIGHTHS[rest].strip()
