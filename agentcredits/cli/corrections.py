"""``adjust``, ``refund``, ``void`` and ``sweep``: what an operator mends by hand."""

from __future__ import annotations

from typing import Annotated, Final

import typer
from rich.console import Console

from agentcredits.cli.output import action_text, count_text, credits_text, say
from agentcredits.cli.parameters import (
    NEGATIVE_NUMBERS,
    DatabaseOption,
    JsonOption,
    KeyOption,
    OptionalOrganizationArgument,
    OrganizationArgument,
)
from agentcredits.cli.target import begin
from agentcredits.errors import TransactionNotFoundError
from agentcredits.model import CreditGrant, GrantStatus, SweepReport, Transaction
from agentcredits.service import SyncCreditService

#: The longest seq that is taken for one; ids are longer and hold a minus.
MAX_SEQ_DIGITS: Final = 15

ReasonOption = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why; it stays in the ledger.", show_default=False)
]


def register(app: typer.Typer, panel: str) -> None:
    """Add this file's commands to the program."""
    app.command("adjust", context_settings=NEGATIVE_NUMBERS, rich_help_panel=panel)(adjust)
    app.command("refund", context_settings=NEGATIVE_NUMBERS, rich_help_panel=panel)(refund)
    app.command("void", rich_help_panel=panel)(void)
    app.command("sweep", rich_help_panel=panel)(sweep)


def adjust(
    ctx: typer.Context,
    organization: OrganizationArgument,
    amount: Annotated[
        str,
        typer.Argument(
            metavar="AMOUNT",
            help="Credits, at most 6 decimals: 5 gives, -5 takes back what is available.",
            show_default=False,
        ),
    ],
    reason: ReasonOption,
    key: KeyOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Correct an account: a positive amount is granted, a negative one taken back.

    What is given is a grant of category "adjustment"; what is taken comes
    from the grants in the order in which they are spent. Exit code 3 when
    less is available than is to be taken; nothing changes then.

    Example: agentcredits adjust acme -5 --reason "granted twice" --key ticket-7
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service:
        made = service.adjust_credits(organization, amount, reason=reason, idempotency_key=key)
        now = service.get_balance(organization)

    def render(console: Console) -> None:
        verb, way = ("Gave", "to") if made.amount_micros > 0 else ("Took", "from")
        say(
            console,
            f"{verb} {credits_text(abs(made.amount))} credits {way} {made.organization_id} (seq {made.seq})"
            f"{_again(made)}.",
        )
        say(console, f"It has {credits_text(now.available)} credits available.")

    command.out.show(made, render)


def refund(
    ctx: typer.Context,
    organization: OrganizationArgument,
    transaction: Annotated[
        str,
        typer.Argument(metavar="TRANSACTION", help="The charge: its seq in history, or its id.", show_default=False),
    ],
    amount: Annotated[
        str | None,
        typer.Argument(
            metavar="[AMOUNT]", help="Credits, at most 6 decimals; all that is left when left out.", show_default=False
        ),
    ] = None,
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why; it stays in the ledger.")] = None,
    key: KeyOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a charge, or a part of it, back to the grants it came from.

    The refunds of a charge together are never more than the charge. Give
    --key where the command may be repeated: without it, a partial refund
    that is sent twice is given twice.

    Example: agentcredits refund acme 2 1.5 --reason "blurred video" --key ticket-8
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service:
        charge = _transaction_id(service, organization, transaction)
        made = service.refund_credits(charge, amount, reason, organization_id=organization, idempotency_key=key)
        now = service.get_balance(organization)

    def render(console: Console) -> None:
        what = action_text(made.agent_type, made.action)
        say(
            console,
            f"Gave {credits_text(made.amount)} credits back to {made.organization_id}"
            f"{f' for {what}' if what else ''} (seq {made.seq}){_again(made)}.",
        )
        say(console, f"It has {credits_text(now.available)} credits available.")

    command.out.show(made, render)


def _transaction_id(service: SyncCreditService, organization: str, named: str) -> str:
    """The id of a ledger row that was named by its seq or its id.

    Raises:
        TransactionNotFoundError: there is no row with this seq.
    """
    if not (named.isascii() and named.isdigit() and len(named) <= MAX_SEQ_DIGITS):
        return named
    seq = int(named)
    page = service.list_transactions(organization, cursor=seq + 1, limit=1)
    if not page.items or page.items[0].seq != seq:
        raise TransactionNotFoundError(
            f"organization {organization} has no ledger row with seq {seq}.",
            context={"organization_id": organization, "seq": seq},
            suggestions=(f"Look it up: agentcredits history {organization} --type debit",),
        )
    return page.items[0].id


def void(
    ctx: typer.Context,
    organization: OrganizationArgument,
    grant: Annotated[
        str,
        typer.Argument(metavar="GRANT", help="The grant's id, as grants list shows it.", show_default=False),
    ],
    reason: ReasonOption,
    unreserved: Annotated[
        bool, typer.Option("--unreserved", help="Only what is not held: what holds give back can be spent.")
    ] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take back what is left of a grant.

    What was spent of it stays spent; what is held stays with its hold and
    does not come back when the hold is released, unless --unreserved is
    given: then the grant lives on. Voiding again is harmless.

    Example: agentcredits void acme 0199d9a0-0000-7000-8000-000000000001 --reason "unpaid invoice"
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service:
        found = service.void_grant(
            grant, organization_id=organization, mode="unreserved" if unreserved else "remaining", reason=reason
        )
        now = service.get_balance(organization)

    def render(console: Console) -> None:
        say(console, _void_sentence(found))
        say(console, f"It has {credits_text(now.available)} credits available.")

    command.out.show(found, render)


def _void_sentence(found: CreditGrant) -> str:
    if found.replayed and found.status is GrantStatus.ACTIVE:
        return f"Nothing of the grant of {found.organization_id} is left to take."
    if found.replayed:
        return f"The grant of {found.organization_id} was {found.status.value} before: nothing was taken."
    held = f"; {credits_text(found.held)} are still held" if found.held_micros else ""
    return f"Took {credits_text(found.voided)} credits of the grant back from {found.organization_id}{held}."


def sweep(
    ctx: typer.Context,
    organization: OptionalOrganizationArgument = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Book what time has brought about: grants that started or expired, reservations that ran out.

    Tidiness only: every charge and every balance counts it anyway. Run it
    now and then so that histories of quiet organizations are complete.

    Example: agentcredits sweep
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service:
        report = service.sweep(organization)
    command.out.show(report, lambda console: _show_sweep(console, report))


def _show_sweep(console: Console, report: SweepReport) -> None:
    if not report.accounts:
        say(console, "Nothing was due.")
        return
    say(
        console,
        f"Booked what was due in {count_text(report.accounts, 'account')}:"
        f" {count_text(report.expired_reservations, 'reservation')} ran out,"
        f" {count_text(report.expired_grants, 'grant')} expired.",
    )
    for reservation_id in report.expired_unknown:
        say(console, f"No verdict ever came from the provider of reservation {reservation_id}.")


def _again(made: Transaction) -> str:
    return " (this key was used before: nothing new was booked)" if made.replayed else ""
