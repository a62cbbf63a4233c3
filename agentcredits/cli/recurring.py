"""``grants recurring list``, ``create`` and ``cancel``: grants that come again each period."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from agentcredits.cli.output import credits_text, foldable, make_table, print_table, say, time_text
from agentcredits.cli.parameters import (
    NEGATIVE_NUMBERS,
    AmountArgument,
    CurrencyOption,
    DatabaseOption,
    JsonOption,
    KeyOption,
    OnlyForOption,
    OrganizationArgument,
    UnitCostOption,
    parse_time,
)
from agentcredits.cli.target import begin
from agentcredits.errors import InvalidInputError
from agentcredits.model import GrantCategory, Lasting, RecurringGrant, Rollover

recurring = typer.Typer(help="Grants that come again each period.", no_args_is_help=True, rich_markup_mode="rich")

_DURATION: Final = re.compile(r"([1-9][0-9]{0,4})([dh])")


class Period(StrEnum):
    """How often a grant comes again."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"


@recurring.command("create", context_settings=NEGATIVE_NUMBERS)
def create(
    ctx: typer.Context,
    organization: OrganizationArgument,
    amount: AmountArgument,
    every: Annotated[
        Period, typer.Option(help="Months from the anchor's day; calendar weeks and days.")
    ] = Period.MONTH,
    anchor: Annotated[
        str | None, typer.Option(metavar="TIME", help="The first grant, in ISO 8601 with a zone; now when left out.")
    ] = None,
    tz: Annotated[str, typer.Option(metavar="ZONE", help="Of the periods, such as Europe/Berlin.")] = "UTC",
    ends_at: Annotated[
        str | None, typer.Option(metavar="TIME", help="No period from then on is granted; never when left out.")
    ] = None,
    category: Annotated[GrantCategory, typer.Option(help="Where the credits come from.")] = GrantCategory.PLAN,
    priority: Annotated[int, typer.Option(help="0 to 1,000,000; lower is spent first.")] = 50,
    expires_after: Annotated[
        str, typer.Option(metavar="HOW-LONG", help="Each grant's life: period, never, or such as 90d or 12h.")
    ] = "period",
    rollover: Annotated[bool, typer.Option("--rollover", help="Carry a period's rest over into the next one.")] = False,
    rollover_max: Annotated[str | None, typer.Option(metavar="AMOUNT", help="At most this, all together.")] = None,
    rollover_min: Annotated[str, typer.Option(metavar="AMOUNT", help="Not when there is less than this.")] = "0",
    rollover_expires_after: Annotated[
        str, typer.Option(metavar="HOW-LONG", help="The life of what is carried over.")
    ] = "period",
    only_for: OnlyForOption = None,
    unit_cost: UnitCostOption = None,
    currency: CurrencyOption = None,
    source: Annotated[str | None, typer.Option(help="A note: subscription, contract …")] = None,
    key: KeyOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Grant an organization credits again each period, the running one included.

    No job has to run: whoever charges or looks finds every period granted,
    once. Give --key where the command may be repeated.

    Example: agentcredits grants recurring create acme 100 --rollover --rollover-max 50 --key acme-plan
    """
    command = begin(ctx, database, as_json)
    terms = Rollover(rollover_max, rollover_min, _lasting(rollover_expires_after, "--rollover-expires-after"))
    with command.target.service() as service:
        made = service.create_recurring_grant(
            organization,
            amount,
            every=every.value,
            anchor=parse_time(anchor, option="--anchor"),
            tz=tz,
            ends_at=parse_time(ends_at, option="--ends-at"),
            category=category,
            priority=priority,
            expires_after=_lasting(expires_after, "--expires-after"),
            rollover=terms if rollover else None,
            only_for=only_for or None,
            unit_cost=unit_cost,
            currency=currency,
            source=source,
            idempotency_key=key,
        )

    def render(console: Console) -> None:
        again = " (this key was used before: nothing new was made)" if made.replayed else ""
        say(console, f"{made.organization_id} gets {credits_text(made.amount)} credits each {every.value}{again}.")
        say(console, _next(made))

    command.out.show(made, render)


@recurring.command("list")
def list_recurring(
    ctx: typer.Context,
    organization: OrganizationArgument,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List an organization's recurring grants, oldest first, with when each comes next.

    Example: agentcredits grants recurring list acme
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service:
        found = service.list_recurring_grants(organization)

    def render(console: Console) -> None:
        if found:
            print_table(console, _table(console, found))
        else:
            say(console, f"organization {organization} has no recurring grants.")

    command.out.show({"items": found}, render)


@recurring.command("cancel")
def cancel(
    ctx: typer.Context,
    organization: OrganizationArgument,
    recurring_grant: Annotated[
        str,
        typer.Argument(metavar="ID", help="The recurring grant's id, as list shows it.", show_default=False),
    ],
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Grant no further period. What was granted stays until its own end.

    Nothing is carried over any more. Cancelling again is harmless.

    Example: agentcredits grants recurring cancel acme 0199d9a0-0000-7000-8000-000000000003
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service:
        found = service.cancel_recurring_grant(recurring_grant, organization_id=organization)
    what = f"was {found.status.value} before: nothing changed" if found.replayed else "is cancelled"
    command.out.show(found, lambda console: say(console, f"The recurring grant of {organization} {what}."))


def _lasting(value: str, option: str) -> Lasting:
    if value == "period":
        return "period"
    if value == "never":
        return None
    match = _DURATION.fullmatch(value)
    if match is None:
        raise InvalidInputError(
            f"{option} {value} is no time: write period, never, or such as 90d or 12h.", context={"parameter": option}
        )
    return timedelta(days=int(match[1])) if match[2] == "d" else timedelta(hours=int(match[1]))


def _next(one: RecurringGrant) -> str:
    if one.next_at is None:
        return f"It is {one.status.value}: no further grant comes."
    return f"The next grant comes at {time_text(one.next_at)} UTC."


def _table(console: Console, found: Sequence[RecurringGrant]) -> Table:
    return make_table(
        ("next (UTC)", "amount", "category", "periods", "carried over", "status", "source", "id"),
        (
            (
                "" if one.next_at is None else foldable(time_text(one.next_at), console, after=" "),
                credits_text(one.amount),
                one.category.value,
                one.window,
                _rollover_text(one.rollover),
                one.status.value,
                one.source or "",
                one.id,
            )
            for one in found
        ),
        right=("amount",),
        folds=("periods", "source", "id"),
    )


def _rollover_text(rollover: Rollover | None) -> str:
    if rollover is None:
        return "nothing"
    return "all" if rollover.maximum is None else f"up to {rollover.maximum}"
