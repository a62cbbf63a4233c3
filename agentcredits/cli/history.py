"""``history``: the ledger's rows, as a table, JSON or CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from agentcredits.cli.csv_output import refuse_two_forms, write_csv
from agentcredits.cli.output import action_text, credits_text, foldable, make_table, print_table, say, time_text
from agentcredits.cli.parameters import (
    ActionOption,
    AgentOption,
    CsvOption,
    DatabaseOption,
    DepartmentOption,
    JsonOption,
    OrganizationArgument,
    ProjectOption,
    SinceOption,
    UntilOption,
    UserOption,
    parse_period,
)
from agentcredits.cli.target import begin
from agentcredits.model import Transaction, TransactionType
from agentcredits.service import SyncCreditService

#: Rows of a table when --limit is left out.
PAGE: Final = 50

#: Rows that CSV reads at a time.
CSV_PAGE: Final = 1_000

CSV_COLUMNS: Final = (
    "seq", "created_at", "type", "agent_type", "action", "quantity", "amount", "balance_after", "uncollected",
    "department_id", "project_id", "user_id", "run_id", "request_id", "pricing", "late", "reason", "id",
    "reservation_id", "grant_id", "refund_of", "idempotency_key", "dimensions", "metadata",
)  # fmt: skip


def register(app: typer.Typer, panel: str) -> None:
    """Add this file's command to the program."""
    app.command("history", rich_help_panel=panel)(history)


def history(
    ctx: typer.Context,
    organization: OrganizationArgument,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, max=1000, help="Rows at most; 50 when left out, with --csv all of them.", show_default=False
        ),
    ] = None,
    cursor: Annotated[
        int | None, typer.Option(help="Go on from here: the number that the page before ended with.")
    ] = None,
    kind: Annotated[TransactionType | None, typer.Option("--type", help="Only rows of this type.")] = None,
    agent: AgentOption = None,
    action: ActionOption = None,
    department: DepartmentOption = None,
    project: ProjectOption = None,
    user: UserOption = None,
    run: Annotated[str | None, typer.Option(metavar="ID", help="Only what belongs to this run.")] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    as_csv: CsvOption = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List an organization's ledger rows, newest first.

    Amounts are credits: what was taken is negative. The balance is that
    after the row, holds not counted. --csv streams every row that
    matches, in the same order, with all columns.

    Example: agentcredits history acme --type debit --since 7d --limit 20
    """
    command = begin(ctx, database, as_json)
    refuse_two_forms(as_json=command.out.as_json, as_csv=as_csv)
    start, end = parse_period(since, until)
    filters: dict[str, Any] = {
        "type": kind,
        "agent_type": agent,
        "action": action,
        "department_id": department,
        "project_id": project,
        "user_id": user,
        "run_id": run,
        "since": start,
        "until": end,
    }
    with command.target.service() as service:
        if as_csv:
            rows = _all_rows(service, organization, cursor, limit, filters)
            write_csv(CSV_COLUMNS, ([getattr(row, name) for name in CSV_COLUMNS] for row in rows))
            return
        page = service.list_transactions(organization, cursor=cursor, limit=limit or PAGE, **filters)

    def render(console: Console) -> None:
        if not page.items:
            say(console, f"organization {organization} has no such rows.")
            return
        print_table(console, history_table(console, page.items))
        if page.next_cursor is not None:
            say(console, f"More rows: add --cursor {page.next_cursor}")

    command.out.show({"items": page.items, "next_cursor": page.next_cursor}, render)


def _all_rows(
    service: SyncCreditService, organization: str, cursor: int | None, limit: int | None, filters: dict[str, Any]
) -> Iterator[Transaction]:
    """Rows page by page, by keyset; the first page is read at once, so that an error comes before the header."""
    size = CSV_PAGE if limit is None else limit
    page = service.list_transactions(organization, cursor=cursor, limit=size, **filters)

    def rows() -> Iterator[Transaction]:
        found = page
        yield from found.items
        while limit is None and found.next_cursor is not None:
            found = service.list_transactions(organization, cursor=found.next_cursor, limit=size, **filters)
            yield from found.items

    return rows()


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
