"""``costs list``, ``set`` and ``explain``: the price rows in ``agent_action_costs``; lists are in ``cost_lists``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from agentcredits.cli import cost_lists
from agentcredits.cli.cost_tables import price_data, show_prices
from agentcredits.cli.output import action_text, credits_text, say, time_text
from agentcredits.cli.parameters import NEGATIVE_NUMBERS, DatabaseOption, JsonOption, parse_time
from agentcredits.cli.target import begin
from agentcredits.clock import host_now
from agentcredits.errors import InvalidAmountError, InvalidInputError
from agentcredits.model import ActionCost

costs = typer.Typer(help="The prices of actions.", no_args_is_help=True, rich_markup_mode="rich")

OrgOption = Annotated[
    str | None,
    typer.Option(
        "--org", metavar="ORG", help="An organization's own price instead of the default.", show_default=False
    ),
]
AgentArgument = Annotated[str, typer.Argument(metavar="AGENT", help="Agent type, or * for all.", show_default=False)]
ActionArgument = Annotated[str, typer.Argument(metavar="ACTION", help="Action, or * for all.", show_default=False)]


@costs.command("list")
def list_prices(
    ctx: typer.Context,
    organization: OrgOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List prices in credits: the default ones, or an organization's own.

    A price that cannot be used says why below the table, and so does one
    that is older than the setting price_max_age_days.

    Example: agentcredits costs list --org acme
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service:
        prices = service.list_costs(organization)

    def render(console: Console) -> None:
        if not prices:
            say(console, "There are no prices: set one with `agentcredits costs set AGENT ACTION COST`.")
            return
        show_prices(console, prices, host_now().date(), command.target.settings.price_max_age_days)

    command.out.show({"items": [price_data(price) for price in prices]}, render)


@costs.command("set", context_settings=NEGATIVE_NUMBERS)
def set_price(
    ctx: typer.Context,
    agent_type: AgentArgument,
    action: ActionArgument,
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
        price_data(price),
        lambda console: say(
            console,
            f"{action_text(price.agent_type, price.action)} {_cost_text(price)} {who}"
            f" from {time_text(price.valid_from)} UTC.",
        ),
    )


@costs.command("explain")
def explain(
    ctx: typer.Context,
    agent_type: Annotated[str, typer.Argument(metavar="AGENT", help="The agent type.", show_default=False)],
    action: Annotated[str, typer.Argument(metavar="ACTION", help="The action.", show_default=False)],
    dimensions: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=VALUE]...", help="What the price depends on.", show_default=False),
    ] = None,
    quantity: Annotated[str, typer.Option(metavar="NUMBER", help="How many, or how much.")] = "1",
    organization: OrgOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what an action costs now, and the arithmetic behind it.

    Example: agentcredits costs explain VideoAgent generate_video model=gen4_turbo duration=10
    """
    command = begin(ctx, database, as_json)
    given = dict(_pair(text) for text in dimensions or ())
    with command.target.service() as service:
        found = service.explain_cost(
            agent_type, action, organization_id=organization, quantity=quantity, dimensions=given
        )

    def render(console: Console) -> None:
        price = found.price
        cost = f"costs {credits_text(found.amount)} credits" if found.amount else "is free"
        usd = "" if found.usd is None else f" ({found.usd:,f} USD by the price list)"
        say(console, f"{action_text(agent_type, action)} {cost}{usd}.")
        for step in found.steps:
            say(console, f"    {step}")
        who = price.organization_id or "everybody"
        facts = [f"the price of {action_text(price.agent_type, price.action)} for {who}"]
        facts += [f"source: {price.source}"] if price.source else []
        facts += [f"as of {price.as_of}"] if price.as_of else []
        say(console, f"By {', '.join(facts)}.")

    command.out.show({**found.as_dict(), "price": price_data(found.price)}, render)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise InvalidInputError(
            f"{text!r} is no dimension: write NAME=VALUE, for example resolution=1080P.", reason="wrong_use"
        )
    return name, value


cost_lists.register(costs)


def _cost_text(price: ActionCost) -> str:
    return f"costs {credits_text(price.cost)} credits" if price.cost else "is free"
