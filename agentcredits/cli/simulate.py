"""``simulate``: recorded usage against another price list or other limits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from agentcredits.cli.cost_lists import AgentOption, LitellmOption, OnlyOption, RateOption, read_prices
from agentcredits.cli.output import action_text, count_text, credits_text, make_table, print_table, say, time_text
from agentcredits.cli.parameters import DatabaseOption, JsonOption, SinceOption, UntilOption, parse_period
from agentcredits.cli.target import begin
from agentcredits.limit_lists import read_limits
from agentcredits.model import LimitEffect, PlannedLimit, SimulationLine, SimulationReport

#: Lines of each table; JSON has all.
SHOWN_LINES = 40

_REASONS = {
    "amount_given": "amount not from the prices of then",
    "dimensions_missing": "dimensions missing or erased",
}


def register(app: typer.Typer, panel: str) -> None:
    """Add this file's command to the program."""
    app.command("simulate", rich_help_panel=panel)(simulate)


def simulate(
    ctx: typer.Context,
    costs: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A price list in TOML; an action that it does not name keeps its price."),
    ] = None,
    limits: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Limits in TOML, JSON or CSV, in place of those that are set."),
    ] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    organization: Annotated[
        str | None, typer.Option("--org", metavar="ORG", help="Only this organization's usage; all when left out.")
    ] = None,
    own_prices: Annotated[
        bool, typer.Option("--own-prices", help="Try the prices as the organizations' own, not as the default.")
    ] = False,
    litellm: LitellmOption = False,
    credits_per_usd: RateOption = None,
    agent_type: AgentOption = "*",
    only: OnlyOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what recorded usage would have cost at other prices, and which limits would have refused it.

    Writes nothing. Each charge is priced as of its own time; limits count
    from --since on, so begin where their windows begin. A refund gives back
    the same part of the simulated price. Balances are not simulated.

    A limit has amount and window, and may have scope, scope_id, unit, mode
    and organization_id: [[limit]] tables in TOML, a list in JSON (or what
    limits list --json prints), a header in CSV.

    Example: agentcredits simulate --costs prices.toml --since month
    """
    command = begin(ctx, database, as_json)
    start, end = parse_period(since, until)
    entries = None
    if costs is not None:
        entries = read_prices(Path(costs), litellm, credits_per_usd, None, agent_type, only).entries
    planned = None if limits is None else read_limits(limits)
    with command.target.service() as service:
        report = service.simulate(
            organization, costs=entries, limits=planned, since=start, until=end, own_prices=own_prices
        )
    command.out.show(_data(report), lambda console: _show(console, report))


def _data(report: SimulationReport) -> dict[str, Any]:
    return {
        "since": report.since,
        "until": report.until,
        "total": report.total,
        "organizations": report.organizations,
        "lines": report.lines,
        "limits": report.limits,
        "not_repriced": report.not_repriced,
    }


def _show(console: Console, report: SimulationReport) -> None:
    first = "the beginning" if report.since is None else f"{time_text(report.since)}"
    if not report.lines:
        say(console, f"Nothing was charged from {first} to {time_text(report.until)} (UTC).")
        return
    total = report.total
    say(console, f"{count_text(total.charges, 'charge')} from {first} to {time_text(report.until)} (UTC), in credits:")
    print_table(console, _lines_table(report))
    _note_rest(console, len(report.lines))
    if report.limits:
        print_table(console, _limits_table(report))
        _note_rest(console, len(report.limits))
    kept = sum(line.charges for line in report.not_repriced)
    if kept:
        say(console, f"{count_text(kept, 'charge')} kept the recorded amount:")
        for line in report.not_repriced[:SHOWN_LINES]:
            name = action_text(line.agent_type, line.action) or "no action"
            why = _REASONS.get(line.reason, line.message)
            credits_of = f"{count_text(line.charges, 'charge')}, {credits_text(line.recorded)} credits"
            say(console, f"    {line.organization_id} {name}: {credits_of}: {why}")
        _note_rest(console, len(report.not_repriced))


def _lines_table(report: SimulationReport) -> Table:
    lines = report.lines[:SHOWN_LINES]
    columns = ("organization", "action", "charges", "recorded", "simulated", "difference", "refused")
    return make_table(
        columns,
        ((line.organization_id, action_text(line.agent_type, line.action) or "-", *_numbers(line)) for line in lines),
        right=columns[2:],
        folds=("organization", "action"),
        total=("total", "", *_numbers(report.total)),
    )


def _numbers(line: SimulationLine) -> tuple[str, ...]:
    sign = "+" if line.difference_micros > 0 else ""
    return (
        f"{line.charges:,}",
        credits_text(line.recorded),
        credits_text(line.simulated),
        f"{sign}{credits_text(line.difference)}",
        f"{line.refused:,}" if line.refused else "",
    )


def _limits_table(report: SimulationReport) -> Table:
    columns = ("organization", "limit", "would refuse", "credits", "first (UTC)")
    return make_table(
        columns,
        (
            (
                effect.organization_id,
                _limit_text(effect.limit),
                _effect_text(effect),
                credits_text(effect.refused_credits),
                time_text(effect.first_at),
            )
            for effect in report.limits[:SHOWN_LINES]
        ),
        right=("would refuse", "credits"),
        folds=("organization", "limit"),
    )


def _effect_text(effect: LimitEffect) -> str:
    return f"{effect.refused:,}" if effect.limit.mode == "hard" else f"crossed {effect.crossed:,}"


def _limit_text(limit: PlannedLimit) -> str:
    who = limit.scope if limit.scope == "organization" else f"{limit.scope} {limit.scope_id or '(each)'}"
    unit = "credits" if limit.unit == "credits" else "charges"
    return f"{who}: {limit.amount} {unit} ({limit.window})"


def _note_rest(console: Console, count: int) -> None:
    if count > SHOWN_LINES:
        say(console, f"    … and {count - SHOWN_LINES:,} more: --json has all.")
