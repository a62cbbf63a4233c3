"""``costs import``, ``seed``, ``seeds`` and ``diff``: whole price lists, all or nothing."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from agentcredits.cli.cost_tables import change_data, show_changes
from agentcredits.cli.output import count_text, make_table, print_table, say
from agentcredits.cli.parameters import DatabaseOption, JsonOption
from agentcredits.cli.target import Command, begin
from agentcredits.clock import host_now
from agentcredits.errors import InvalidInputError
from agentcredits.litellm_prices import read_litellm
from agentcredits.price_lists import PriceList, needs_rate, shipped_lists

OrgOption = Annotated[
    str | None,
    typer.Option(
        "--org", metavar="ORG", help="An organization's own prices instead of the default.", show_default=False
    ),
]
RateOption = Annotated[
    str | None,
    typer.Option(
        "--credits-per-usd",
        metavar="CREDITS",
        help="What a dollar is worth, for prices in USD that do not say so themselves.",
        show_default=False,
    ),
]
AsOfOption = Annotated[
    str | None,
    typer.Option("--as-of", metavar="DAY", help="The day on which the prices were right, such as 2026-10-31."),
]
LitellmOption = Annotated[bool, typer.Option("--litellm", help="The file is a litellm price map, in JSON.")]
AgentOption = Annotated[str, typer.Option("--agent", metavar="NAME", help="With --litellm: the agent type.")]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="PATTERN", help="With --litellm: only such models, as openai/*; may be repeated."),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would change; write nothing.")]


def register(costs: typer.Typer) -> None:
    """Add this file's commands to ``costs``."""
    costs.command("import")(import_prices)
    costs.command("seed")(seed)
    costs.command("seeds")(seeds)
    costs.command("diff")(diff)


def import_prices(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A price list in TOML.", show_default=False)],
    litellm: LitellmOption = False,
    organization: OrgOption = None,
    credits_per_usd: RateOption = None,
    as_of: AsOfOption = None,
    agent_type: AgentOption = "*",
    only: OnlyOption = None,
    dry_run: DryRunOption = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set the prices of a file: all that differ, or none.

    What is the same is not written again, and a price that the file does
    not name stays. A slip in the file is told with its line and field.

    --litellm takes a map such as model_prices_and_context_window.json:
    llm_call and embed by tokens, generate_image, generate_video by seconds
    and resolution, generate_voice by characters. Models with prices that
    no provider asks are left out and reported.

    Example: agentcredits costs import prices.toml --dry-run
    """
    command = begin(ctx, database, as_json)
    prices = read_prices(Path(file), litellm, credits_per_usd, as_of, agent_type, only)
    _apply(command, prices, organization, dry_run=dry_run)


def seed(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A list of agentcredits costs seeds.", show_default=False)
    ],
    organization: OrgOption = None,
    credits_per_usd: RateOption = None,
    as_of: AsOfOption = None,
    dry_run: DryRunOption = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set the prices of a list that comes with agentcredits.

    Example: agentcredits costs seed studio-models --dry-run
    """
    command = begin(ctx, database, as_json)
    prices = _dated(PriceList.shipped(name, credits_per_usd=credits_per_usd), as_of)
    _apply(command, prices, organization, dry_run=dry_run)


def seeds(ctx: typer.Context, database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """Show the price lists that come with agentcredits.

    Example: agentcredits costs seeds
    """
    command = begin(ctx, database, as_json)
    lists = [
        {
            "name": prices.name,
            "title": prices.title,
            "prices": len(prices.entries),
            "as_of": prices.as_of,
            "source": prices.source,
            "needs_credits_per_usd": needs_rate(prices.name),
        }
        for prices in shipped_lists()
    ]

    def render(console: Console) -> None:
        rows = (
            (
                str(row["name"]),
                str(row["prices"]),
                "USD" if row["needs_credits_per_usd"] else "credits",
                str(row["as_of"] or ""),
                str(row["title"]),
            )
            for row in lists
        )
        columns = ("name", "actions", "in", "as of", "what")
        print_table(console, make_table(columns, rows, right=("actions",), folds="what"))

    command.out.show({"items": lists}, render)


def diff(
    ctx: typer.Context,
    file: Annotated[
        str,
        typer.Argument(metavar="FILE|NAME", help="A price list in TOML, or one of costs seeds.", show_default=False),
    ],
    litellm: LitellmOption = False,
    organization: OrgOption = None,
    credits_per_usd: RateOption = None,
    as_of: AsOfOption = None,
    agent_type: AgentOption = "*",
    only: OnlyOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a price list with the prices in the database; nothing is written.

    New (+), changed (~), the same (=), over already (-), and prices that are
    in the database only (!).

    Example: agentcredits costs diff studio-models
    """
    command = begin(ctx, database, as_json)
    path = Path(file)
    if litellm or path.exists() or path.suffix:
        prices = read_prices(path, litellm, credits_per_usd, as_of, agent_type, only)
    else:
        prices = _dated(PriceList.shipped(file, credits_per_usd=credits_per_usd), as_of)
    with command.target.service() as service:
        changes = service.diff_costs(prices.entries, organization_id=organization)

    def render(console: Console) -> None:
        show_changes(console, changes, written=False)
        _show_skipped(console, prices)

    data = {"list": prices.name, "changes": [change_data(change) for change in changes]}
    command.out.show({**data, "skipped": list(prices.skipped)}, render)


def read_prices(
    path: Path, litellm: bool, rate: str | None, as_of: str | None, agent_type: str, only: list[str] | None
) -> PriceList:
    """A price list, or with ``litellm`` a litellm price map."""
    if not litellm:
        if only or agent_type != "*":
            raise InvalidInputError("--only and --agent go with --litellm.", reason="wrong_use")
        return _dated(PriceList.read(path, credits_per_usd=rate), as_of)
    if rate is None:
        raise InvalidInputError(
            "a litellm price map is in USD: say what a dollar is worth, for example --credits-per-usd 100.",
            reason="rate_missing",
        )
    return read_litellm(
        path,
        credits_per_usd=rate,
        today=host_now().date(),
        agent_type=agent_type,
        only=only or (),
        as_of=_day(as_of),
    )


def _apply(command: Command, prices: PriceList, organization: str | None, *, dry_run: bool) -> None:
    with command.target.service() as service:
        if dry_run:
            found = service.diff_costs(prices.entries, organization_id=organization)
            changes = tuple(change for change in found if change.status != "only_in_database")
        else:
            changes = service.import_costs(prices.entries, organization_id=organization)

    def render(console: Console) -> None:
        show_changes(console, changes, written=not dry_run)
        _show_skipped(console, prices)

    data = {"list": prices.name, "dry_run": dry_run, "changes": [change_data(change) for change in changes]}
    command.out.show({**data, "skipped": list(prices.skipped)}, render)


def _show_skipped(console: Console, prices: PriceList) -> None:
    if prices.skipped:
        say(console, f"Left out or noted, {count_text(len(prices.skipped), 'reason')}:")
        for line in prices.skipped:
            say(console, f"    {line}")


def _dated(prices: PriceList, as_of: str | None) -> PriceList:
    day = _day(as_of)
    if day is None:
        return prices
    return PriceList(
        prices.name, tuple(entry.changed(as_of=day) for entry in prices.entries), prices.title, prices.source, day
    )


def _day(text: str | None) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InvalidInputError(
            f"--as-of {text} is not a day: write for example 2026-10-31.", context={"parameter": "--as-of"}
        ) from None
