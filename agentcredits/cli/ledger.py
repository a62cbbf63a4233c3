"""``grant``, ``grants list``, ``balance`` and ``verify``: what an account has, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

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
    NEGATIVE_NUMBERS,
    AmountArgument,
    CurrencyOption,
    DatabaseOption,
    JsonOption,
    KeyOption,
    OnlyForOption,
    OptionalOrganizationArgument,
    OrganizationArgument,
    UnitCostOption,
    parse_time,
)
from agentcredits.cli.progress import ledger_progress
from agentcredits.cli.recurring import recurring
from agentcredits.cli.target import begin
from agentcredits.model import Balance, CreditGrant, GrantCategory, GrantStatus, VerifyReport

grants = typer.Typer(help="Blocks of credits.", no_args_is_help=True, rich_markup_mode="rich")


def register(app: typer.Typer, *, credits_panel: str, look_panel: str) -> None:
    """Add this file's commands to the program."""
    app.command("grant", context_settings=NEGATIVE_NUMBERS, rich_help_panel=credits_panel)(grant)
    grants.add_typer(recurring, name="recurring")
    app.add_typer(grants, name="grants", rich_help_panel=credits_panel)
    app.command("balance", rich_help_panel=look_panel)(balance)
    app.command("verify", rich_help_panel=look_panel)(verify)


def grant(
    ctx: typer.Context,
    organization: OrganizationArgument,
    amount: AmountArgument,
    category: Annotated[GrantCategory, typer.Option(help="Where the credits come from.")] = GrantCategory.PAID,
    priority: Annotated[int, typer.Option(help="0 to 1,000,000; lower is spent first.")] = 50,
    effective_at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Usable from, in ISO 8601 with a zone; now when left out.")
    ] = None,
    expires_at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Usable until, in ISO 8601 with a zone; never when left out.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="A note: invoice, campaign …")] = None,
    only_for: OnlyForOption = None,
    unit_cost: UnitCostOption = None,
    currency: CurrencyOption = None,
    key: KeyOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give an organization credits; its account is opened by the first grant.

    Give --key where the command may be repeated (scripts, retries): the
    same key and terms grant once, the same key with other terms is an error.
    For many organizations at once see agentcredits bulk grant.

    Example: agentcredits grant acme 100 --category plan --key acme-2026-10
    """
    command = begin(ctx, database, as_json)
    effective = parse_time(effective_at, option="--effective-at")
    expires = parse_time(expires_at, option="--expires-at")
    with command.target.service() as service:
        made = service.grant_credits(
            organization,
            amount,
            category=category,
            priority=priority,
            effective_at=effective,
            expires_at=expires,
            source=source,
            only_for=only_for or None,
            unit_cost=unit_cost,
            currency=currency,
            idempotency_key=key,
        )
        now = service.get_balance(organization)
    command.out.show(made, lambda console: _show_grant(console, made, now))


@grants.command("list")
def list_grants(
    ctx: typer.Context,
    organization: OrganizationArgument,
    all_grants: Annotated[bool, typer.Option("--all", help="Those that are used up, expired or voided too.")] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List an organization's grants with what is left of them, oldest first.

    Amounts are credits. The id in the last column is what agentcredits void
    takes.

    Example: agentcredits grants list acme
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service:
        found = service.list_grants(organization)
    if not all_grants:
        living = (GrantStatus.ACTIVE, GrantStatus.SCHEDULED)
        found = tuple(one for one in found if one.status in living and (one.remaining_micros or one.held_micros))

    def render(console: Console) -> None:
        if found:
            print_table(console, _grants_table(console, found))
        else:
            say(console, f"organization {organization} has {'no grants' if all_grants else 'no grants to spend from'}.")

    command.out.show({"items": found}, render)


def balance(
    ctx: typer.Context,
    organization: OrganizationArgument,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what an organization can spend, and how that comes about.

    In credits: available = granted - scheduled - spent - reserved - expired
    - voided; "restricted" is the part of it that only certain actions may
    use. Exit code 3 when it has no account.

    Example: agentcredits balance acme
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service:
        found = service.get_balance(organization)
    command.out.show(found, lambda console: show_balance(console, found))


def verify(
    ctx: typer.Context,
    organization: OptionalOrganizationArgument = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute every counter from the ledger rows and report any difference.

    Reads account by account, in pages, and changes nothing; charges go on
    meanwhile. agentcredits repair --dry-run says what would mend it. Exit
    code 1 when something differs, 0 when all is clean.

    Example: agentcredits verify
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service, ledger_progress(command.out) as progress:
        report = service.verify(organization, progress=progress)
    command.out.show(verify_data(report), lambda console: show_verify(console, report))
    if not report.ok:
        raise typer.Exit(1)


def verify_data(report: VerifyReport) -> dict[str, Any]:
    """The report as plain data."""
    return {
        "ok": report.ok,
        "accounts": report.accounts,
        "transactions": report.transactions,
        "problems": report.problems,
    }


def show_verify(console: Console, report: VerifyReport) -> None:
    """One sentence when clean; else the differences."""
    seen = f"{count_text(report.accounts, 'account')}, {count_text(report.transactions, 'ledger row')}"
    if report.ok:
        say(console, ("Clean", "green"), f": {seen}; every counter equals what its rows say.")
        return
    say(console, (count_text(len(report.problems), "difference"), "red"), f" in {seen}:")
    rows = ((problem.organization_id, problem.check, problem.message) for problem in report.problems)
    print_table(console, make_table(("organization", "check", "difference"), rows, folds="difference"))


def show_balance(console: Console, found: Balance) -> None:
    """The sentence, then every term of the balance that is not zero."""
    say(console, f"organization {found.organization_id} has ", (credits_text(found.available), "bold"), " credits.")
    terms = ("granted", "scheduled", "spent", "reserved", "expired", "voided", "debt", "restricted")
    amounts = [(name, getattr(found, name)) for name in terms]
    console.print(make_facts((name, credits_text(amount)) for name, amount in amounts if amount or name == "granted"))


def _grants_table(console: Console, found: Sequence[CreditGrant]) -> Table:
    return make_table(
        ("effective (UTC)", "expires (UTC)", "category", "amount", "left", "held", "status", "source", "id"),
        (
            (
                foldable(time_text(one.effective_at), console, after=" "),
                foldable(time_text(one.expires_at), console, after=" "),
                one.category.value,
                credits_text(one.amount),
                credits_text(one.remaining),
                credits_text(one.held) if one.held_micros else "",
                one.status.value,
                one.source or "",
                one.id,
            )
            for one in found
        ),
        right=("amount", "left", "held"),
        folds=("source", "id"),
    )


def _show_grant(console: Console, made: CreditGrant, now: Balance) -> None:
    kind = f"{made.category.value} credits"
    until = "" if made.expires_at is None else f", usable until {time_text(made.expires_at)} UTC"
    again = " (this key was used before: nothing new was granted)" if made.replayed else ""
    say(console, f"Granted {credits_text(made.amount)} {kind} to {made.organization_id}{until}{again}.")
    say(console, f"It has {credits_text(now.available)} credits available.")
