"""``costs list`` and ``costs set``: the price rows in ``agent_action_costs``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from agentcredits.amounts import to_micros
from agentcredits.cli.output import action_text, credits_text, foldable, make_table, print_table, say, time_text
from agentcredits.cli.parameters import NEGATIVE_NUMBERS, DatabaseOption, JsonOption, parse_time
from agentcredits.cli.target import begin
from agentcredits.errors import InvalidAmountError
from agentcredits.model import ActionCost

costs = typer.Typer(help="The prices of actions.", no_args_is_help=True, rich_markup_mode="rich")

OrgOption = Annotated[
    str | None,
    typer.Option(
        "--org", metavar="ORG", help="An organization's own price instead of the default.", show_default=False
    ),
]


@costs.command("list")
def list_prices(
    ctx: typer.Context,
    organization: OrgOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List prices in credits: the default ones, or an organization's own.

    Example: agentcredits costs list --org acme
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service:
        prices = service.list_costs(organization)

    def render(console: Console) -> None:
        if not prices:
            say(console, "There are no prices: set one with `agentcredits costs set AGENT ACTION COST`.")
            return
        rows = (
            (
                price.organization_id or "everybody",
                foldable(action_text(price.agent_type, price.action), console, after="."),
                credits_text(price.cost),
                foldable(time_text(price.valid_from), console, after=" ") if price.valid_from.timestamp() else "always",
                foldable(time_text(price.valid_until), console, after=" "),
                price.source or "",
            )
            for price in prices
        )
        columns = ("for", "action", "cost", "from (UTC)", "until (UTC)", "source")
        print_table(console, make_table(columns, rows, right=("cost",), folds="source"))

    command.out.show({"items": [_price_data(price) for price in prices]}, render)


@costs.command("set", context_settings=NEGATIVE_NUMBERS)
def set_price(
    ctx: typer.Context,
    agent_type: Annotated[str, typer.Argument(metavar="AGENT", help="Agent type, or * for all.", show_default=False)],
    action: Annotated[str, typer.Argument(metavar="ACTION", help="Action, or * for all.", show_default=False)],
    cost: Annotated[str, typer.Argument(metavar="COST", help="Credits, at most 6 decimals.", show_default=False)],
    organization: OrgOption = None,
    valid_from: Annotated[
        str | None, typer.Option(metavar="TIME", help="In force from, in ISO 8601 with a zone; now when left out.")
    ] = None,
    valid_until: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="In force until, in ISO 8601 with a zone; for good when left out."),
    ] = None,
    free: Annotated[bool, typer.Option("--free", help="Allow the cost 0.")] = False,
    source: Annotated[str | None, typer.Option(help="A note: where the price comes from.")] = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set what an action costs; the price before it is closed, not overwritten.

    Example: agentcredits costs set VideoAgent generate_video 12.5 --org acme
    """
    command = begin(ctx, database, as_json)
    starts = parse_time(valid_from, option="--valid-from")
    ends = parse_time(valid_until, option="--valid-until")
    with command.target.service() as service:
        try:
            price = service.set_cost(
                agent_type,
                action,
                cost,
                organization_id=organization,
                valid_from=starts,
                valid_until=ends,
                free=free,
                source=source,
            )
        except InvalidAmountError as error:
            if error.reason == "zero":
                error.suggestions += ("Add --free if it shall cost nothing.",)
            raise
    who = f"for {price.organization_id}" if price.organization_id else "for everybody"
    command.out.show(
        _price_data(price),
        lambda console: say(
            console,
            f"{action_text(price.agent_type, price.action)} {_cost_text(price)} {who}"
            f" from {time_text(price.valid_from)} UTC.",
        ),
    )


def _price_data(price: ActionCost) -> dict[str, Any]:
    """The row with its cost in micros too, as all amounts have them in JSON."""
    return {**price.as_dict(), "cost_micros": to_micros(price.cost, name="cost", allow_zero=True)}


def _cost_text(price: ActionCost) -> str:
    return f"costs {credits_text(price.cost)} credits" if price.cost else "is free"
