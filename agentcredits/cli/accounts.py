"""``accounts``: what an operator does with a whole account: freeze, close, lend it an overdraft line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console

from agentcredits.cli.corrections import ReasonOption
from agentcredits.cli.output import credits_text, make_facts, say, time_text
from agentcredits.cli.parameters import NEGATIVE_NUMBERS, DatabaseOption, JsonOption, OrganizationArgument
from agentcredits.cli.target import Command, begin
from agentcredits.model import Account, AccountStatus
from agentcredits.service import SyncCreditService

accounts = typer.Typer(
    help="An organization's account: its status and its overdraft line.", no_args_is_help=True, rich_markup_mode="rich"
)

ByOption = Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who does it; kept in the account.")]
OptionalReasonOption = Annotated[
    str | None, typer.Option("--reason", metavar="TEXT", help="Why; kept in the account.", show_default=False)
]


@accounts.command("show")
def show(
    ctx: typer.Context,
    organization: OrganizationArgument,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show an account's status, overdraft line and debt.

    Amounts are credits. Exit code 3 when there is no account.

    Example: agentcredits accounts show acme
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service:
        found = service.get_account(organization)
    command.out.show(found, lambda console: _show(console, found))


@accounts.command("freeze")
def freeze(
    ctx: typer.Context,
    organization: OrganizationArgument,
    reason: ReasonOption,
    by: ByOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Charge and reserve nothing new.

    Work that runs under a reservation still settles; grants, refunds and
    releases still work. Freezing again changes nothing.

    Example: agentcredits accounts freeze acme --reason "invoice unpaid" --by ops
    """
    _change(begin(ctx, database, as_json), lambda service: service.freeze_account(organization, reason, by=by))


@accounts.command("unfreeze")
def unfreeze(
    ctx: typer.Context,
    organization: OrganizationArgument,
    reason: OptionalReasonOption = None,
    by: ByOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a frozen account be charged again.

    Example: agentcredits accounts unfreeze acme --reason "invoice paid"
    """
    _change(begin(ctx, database, as_json), lambda service: service.unfreeze_account(organization, reason, by=by))


@accounts.command("close")
def close(
    ctx: typer.Context,
    organization: OrganizationArgument,
    reason: ReasonOption,
    by: ByOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Charge, reserve and grant nothing new.

    Work that runs under a reservation still settles; refunds, releases and
    voids still work. What is left of the grants stays: see agentcredits void.
    Recurring grants are cancelled for good.

    Example: agentcredits accounts close acme --reason "contract ended"
    """
    _change(begin(ctx, database, as_json), lambda service: service.close_account(organization, reason, by=by))


@accounts.command("reopen")
def reopen(
    ctx: typer.Context,
    organization: OrganizationArgument,
    reason: OptionalReasonOption = None,
    by: ByOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Open a closed account again.

    Example: agentcredits accounts reopen acme --reason "new contract"
    """
    _change(begin(ctx, database, as_json), lambda service: service.reopen_account(organization, reason, by=by))


@accounts.command("overdraft", context_settings=NEGATIVE_NUMBERS)
def overdraft(
    ctx: typer.Context,
    organization: OrganizationArgument,
    amount: Annotated[
        str, typer.Argument(metavar="AMOUNT", help="Credits, at most 6 decimals; 0 is no line.", show_default=False)
    ],
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set how far charges with overage "overdraft" may go beyond the grants.

    The next credits pay the debt before anything else. A line below the debt
    lends no more and takes nothing back.

    Example: agentcredits accounts overdraft acme 50
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service:
        made = service.set_overdraft(organization, amount)

    def render(console: Console) -> None:
        again = " already" if made.replayed else ""
        say(console, f"organization {made.organization_id} may overdraw {credits_text(made.overdraft)} credits{again}.")
        if made.debt_micros:
            say(console, f"It owes {credits_text(made.debt)} of them.")

    command.out.show(made, render)


def _show(console: Console, found: Account) -> None:
    say(console, f"The account of {found.organization_id} is ", (found.status.value, _style(found)), ".")
    facts = (
        ("reason", found.status_reason or ""),
        ("by", found.status_by or ""),
        ("since (UTC)", time_text(found.status_at)),
        ("available", credits_text(found.available)),
        ("overdraft", credits_text(found.overdraft) if found.overdraft_micros else ""),
        ("debt", credits_text(found.debt) if found.debt_micros else ""),
        ("created (UTC)", time_text(found.created_at)),
    )
    console.print(make_facts((name, text) for name, text in facts if text))


def _change(command: Command, change: Callable[[SyncCreditService], Account]) -> None:
    with command.target.service() as service:
        made = change(service)
    command.out.show(made, lambda console: _show_change(console, made))


def _show_change(console: Console, made: Account) -> None:
    word = "already " if made.replayed else "now "
    say(console, f"The account of {made.organization_id} is {word}", (made.status.value, _style(made)), ".")
    if made.replayed and made.status_reason:
        say(console, f"Since {time_text(made.status_at)} UTC: {made.status_reason}")


def _style(account: Account) -> str:
    return "green" if account.status is AccountStatus.OPEN else "red"
