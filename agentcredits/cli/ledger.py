"""``grant``, ``balance``, ``history`` and ``verify``: what an account has, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from agentcredits.cli.output import (
    action_text,
    count_text,
    credits_text,
    foldable,
    make_facts,
    make_table,
    say,
    time_text,
)
from agentcredits.cli.parameters import (
    NEGATIVE_NUMBERS,
    DatabaseOption,
    JsonOption,
    OrganizationArgument,
    parse_time,
)
from agentcredits.cli.target import begin
from agentcredits.model import Balance, CreditGrant, GrantCategory, Transaction, TransactionType, VerifyReport


def register(app: typer.Typer) -> None:
    """Add this file's commands to the program."""
    app.command("grant", context_settings=NEGATIVE_NUMBERS)(grant)
    app.command("balance")(balance)
    app.command("history")(history)
    app.command("verify")(verify)


def grant(
    ctx: typer.Context,
    organization: OrganizationArgument,
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="Credits, at most 6 decimals.", show_default=False)],
    category: Annotated[GrantCategory, typer.Option(help="Where the credits come from.")] = GrantCategory.PAID,
    priority: Annotated[int, typer.Option(help="Lower is spent first.")] = 50,
    effective_at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Usable from, in ISO 8601 with a zone; now when left out.")
    ] = None,
    expires_at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Usable until, in ISO 8601 with a zone; never when left out.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="A note: invoice, campaign …")] = None,
    key: Annotated[str | None, typer.Option(help="Idempotency key: the same key grants once.")] = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give an organization credits; its account is opened by the first grant.

    Example: agentcredits grant acme 100 --category promotional --expires-at 2027-01-31T00:00:00Z
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
            idempotency_key=key,
        )
        now = service.get_balance(organization)
    command.out.show(made, lambda console: _show_grant(console, made, now))


def balance(
    ctx: typer.Context,
    organization: OrganizationArgument,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what an organization can spend, and how that comes about.

    Example: agentcredits balance acme
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service:
        found = service.get_balance(organization)
    command.out.show(found, lambda console: show_balance(console, found))


def history(
    ctx: typer.Context,
    organization: OrganizationArgument,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Rows at most.")] = 50,
    cursor: Annotated[
        int | None, typer.Option(help="Go on from here: the number that the page before ended with.")
    ] = None,
    kind: Annotated[TransactionType | None, typer.Option("--type", help="Only rows of this type.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only rows of this agent type.")] = None,
    action: Annotated[str | None, typer.Option(help="Only rows of this action.")] = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List an organization's ledger rows, newest first.

    Example: agentcredits history acme --type debit --limit 20
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service:
        page = service.list_transactions(
            organization, cursor=cursor, limit=limit, type=kind, agent_type=agent, action=action
        )

    def render(console: Console) -> None:
        if not page.items:
            say(console, f"organization {organization} has no such rows.")
            return
        console.print(history_table(console, page.items))
        if page.next_cursor is not None:
            say(console, f"More rows: add --cursor {page.next_cursor}")

    command.out.show({"items": page.items, "next_cursor": page.next_cursor}, render)


def verify(
    ctx: typer.Context,
    organization: Annotated[
        str | None, typer.Argument(metavar="[ORG]", help="Only this organization.", show_default=False)
    ] = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute every counter from the ledger rows and report any difference (exit code 1).

    Example: agentcredits verify
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service:
        report = service.verify(organization)
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
    console.print(make_table(("organization", "check", "difference"), rows, folds="difference"))


def show_balance(console: Console, found: Balance) -> None:
    """The sentence, then every term of the balance that is not zero."""
    say(console, f"organization {found.organization_id} has ", (credits_text(found.available), "bold"), " credits.")
    terms = ("granted", "scheduled", "spent", "reserved", "expired", "voided", "debt")
    amounts = [(name, getattr(found, name)) for name in terms]
    console.print(make_facts((name, credits_text(amount)) for name, amount in amounts if amount or name == "granted"))


def history_table(console: Console, rows: Sequence[Transaction]) -> Table:
    """The rows of a ledger as a table."""
    sequence_of = {row.id: row.seq for row in rows}
    return make_table(
        ("seq", "time (UTC)", "type", "action", "amount", "balance", "note"),
        (
            (
                str(row.seq),
                foldable(time_text(row.created_at), console, after=" "),
                row.type.value,
                foldable(action_text(row.agent_type, row.action), console, after="."),
                f"{row.amount:+,f}",
                credits_text(row.balance_after),
                _note(row, sequence_of),
            )
            for row in rows
        ),
        right=("seq", "amount", "balance"),
        folds="note",
    )


def _note(row: Transaction, sequence_of: dict[str, int]) -> str:
    notes = []
    if row.refund_of is not None:
        seq = sequence_of.get(row.refund_of)
        notes.append(f"refund of {row.refund_of}" if seq is None else f"refund of seq {seq}")
    if row.pricing.value != "priced":
        notes.append(row.pricing.value)
    if row.late:
        notes.append("settled late")
    if row.uncollected_micros:
        notes.append(f"{credits_text(row.uncollected)} not collected")
    if row.reason:
        notes.append(row.reason)
    return ", ".join(notes)


def _show_grant(console: Console, made: CreditGrant, now: Balance) -> None:
    kind = f"{made.category.value} credits"
    until = "" if made.expires_at is None else f", usable until {time_text(made.expires_at)} UTC"
    again = " (this key was used before: nothing new was granted)" if made.replayed else ""
    say(console, f"Granted {credits_text(made.amount)} {kind} to {made.organization_id}{until}{again}.")
    say(console, f"It has {credits_text(now.available)} credits available.")
