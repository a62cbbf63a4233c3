"""``reservations list``, ``release`` and ``resolve``: what is held, and settling it by hand."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from agentcredits.cli.corrections import ReasonOption
from agentcredits.cli.output import action_text, credits_text, foldable, make_table, print_table, say, time_text
from agentcredits.cli.parameters import DatabaseOption, JsonOption, LimitOption, OrganizationArgument
from agentcredits.cli.target import begin
from agentcredits.errors import InvalidInputError
from agentcredits.media.unknown import resolve_unknown
from agentcredits.model import ReservationRecord, ReservationState


class Verdict(StrEnum):
    """What became of a provider's job."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"


reservations = typer.Typer(
    help="Credits that are held for work that is not settled yet.", no_args_is_help=True, rich_markup_mode="rich"
)


@reservations.command("list")
def list_reservations(
    ctx: typer.Context,
    organization: OrganizationArgument,
    states: Annotated[
        list[ReservationState] | None,
        typer.Option("--state", help="Only this state; may be given several times. All when left out."),
    ] = None,
    limit: LimitOption = 50,
    unresolved: Annotated[
        bool,
        typer.Option("--unresolved", help="Only those whose provider's verdict has not come, in time or at all."),
    ] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List an organization's reservations as they are now, newest first.

    Amounts are credits held. "unknown" awaits a provider's verdict; "expired"
    ran out of time, and its credits are back (unless it was settled late).
    --unresolved lists what resolve is for.

    Example: agentcredits reservations list acme --state active --state unknown
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service:
        found = service.list_reservations(
            organization, states=[state.value for state in states or ()], limit=limit, unresolved=unresolved
        )

    def render(console: Console) -> None:
        if found:
            print_table(console, _table(console, found))
        else:
            say(console, f"organization {organization} has no such reservations.")

    command.out.show({"items": found}, render)


@reservations.command("release")
def release(
    ctx: typer.Context,
    organization: OrganizationArgument,
    reservation: Annotated[
        str,
        typer.Argument(metavar="ID", help="The reservation's id, as reservations list shows it.", show_default=False),
    ],
    reason: ReasonOption,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a reservation back to the grants it was taken from.

    For work that seems lost. Should it finish after all, it is charged late,
    once, from what is available then. Releasing again is harmless; one that
    was charged is refused: refund its charge.

    Example: agentcredits reservations release acme 0199d9a0-0000-7000-8000-000000000002 --reason "job lost"
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service:
        found = service.release_reservation(reservation, reason, organization_id=organization, force=True)
        now = service.get_balance(organization)

    def render(console: Console) -> None:
        if found.replayed:
            say(console, f"The reservation is {found.state.value} already: nothing changed.")
        else:
            say(console, f"Gave {credits_text(found.amount)} held credits back to {found.organization_id}.")
        say(console, f"It has {credits_text(now.available)} credits available.")

    command.out.show(found, render)


@reservations.command("resolve")
def resolve(
    ctx: typer.Context,
    organization: OrganizationArgument,
    outcome: Annotated[
        Verdict, typer.Argument(metavar="OUTCOME", help="succeeded charges, failed gives back.", show_default=False)
    ],
    reservation: Annotated[str | None, typer.Option("--id", metavar="ID", help="The reservation's id.")] = None,
    provider: Annotated[str | None, typer.Option(metavar="NAME", help="Who runs the job, with --reference.")] = None,
    reference: Annotated[str | None, typer.Option(metavar="JOB", help="The provider's id of the job.")] = None,
    amount: Annotated[
        str | None, typer.Option(metavar="CREDITS", help="What it really cost; the whole hold when left out.")
    ] = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Settle a reservation that waits for a provider's verdict, or waited in vain.

    Named by its id, or by the provider and its id of the job. Telling the
    same outcome again is harmless. One that ran out is charged late, from
    what is available; there is nothing to give back of it.

    Example: agentcredits reservations resolve acme succeeded --id 0199d9a0-0000-7000-8000-000000000002
    """
    command = begin(ctx, database, as_json)
    if (reservation is None) == (reference is None) or (provider is None) != (reference is None):
        raise InvalidInputError("name it by --id, or by --provider and --reference.", reason="wrong_use")
    if amount is not None and outcome is Verdict.FAILED:
        raise InvalidInputError("--amount goes with succeeded: what failed costs nothing.", reason="wrong_use")
    target = reservation if reservation is not None else (str(provider), str(reference))
    with command.target.service() as service:
        found = resolve_unknown(service, target, outcome=outcome.value, actual=amount, organization_id=organization)

    def render(console: Console) -> None:
        note = _note(found)
        held = f"reservation {found.id} of {credits_text(found.amount)} credits"
        say(console, f"{held} is {found.state.value}{f': {note}' if note else ''}.")

    command.out.show(found, render)


def _table(console: Console, found: Sequence[ReservationRecord]) -> Table:
    notes = [_note(one) for one in found]
    columns = ["created (UTC)", "state", "action", "amount", "expires (UTC)", *(["note"] if any(notes) else []), "id"]
    return make_table(
        columns,
        (
            (
                foldable(time_text(one.created_at), console, after=" "),
                one.state.value,
                foldable(action_text(one.agent_type, one.action), console, after="."),
                credits_text(one.amount),
                foldable(time_text(one.expires_at), console, after=" "),
                *([note] if any(notes) else []),
                one.id,
            )
            for one, note in zip(found, notes, strict=True)
        ),
        right=("amount",),
        folds=("note", "id"),
    )


def _note(one: ReservationRecord) -> str:
    notes = []
    if one.transaction_id is not None:
        notes.append(f"charged {credits_text(one.charged)}")
    if one.late:
        notes.append("settled late")
    if one.uncollected_micros and one.settled_at is not None:
        notes.append(f"{credits_text(one.uncollected)} not collected")
    if one.provider is not None:
        notes.append(" ".join(part for part in ("at", one.provider, one.provider_reference) if part))
    if one.reason:
        notes.append(one.reason)
    return ", ".join(notes)
