"""``bulk grant`` and ``bulk adjust``: many organizations from one file, once each, however often it is run."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Final, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from agentcredits.cli.bulk_items import ADJUST, GRANT, Kind
from agentcredits.cli.bulk_lines import Format, read_records
from agentcredits.cli.bulk_run import Report, Run
from agentcredits.cli.output import count_text, make_console, make_facts, micros_text, say
from agentcredits.cli.parameters import DatabaseOption, JsonOption
from agentcredits.cli.target import Command, begin
from agentcredits.clock import host_now
from agentcredits.errors import CreditsError, InvalidInputError
from agentcredits.store.upgrade import require_schema

bulk = typer.Typer(
    help="Grants and adjustments of many organizations from a file.", no_args_is_help=True, rich_markup_mode="rich"
)

EXIT_FAILED: Final = 2

#: Endings of files that hold JSON lines; anything else is CSV.
JSON_ENDINGS: Final = (".jsonl", ".ndjson", ".json")

FileArgument = Annotated[
    str, typer.Argument(metavar="FILE", help="The file, in UTF-8; - for standard input.", show_default=False)
]
BulkKeyOption = Annotated[
    str,
    typer.Option(
        metavar="KEY",
        help="Names this bulk for ever: line 7 is booked under KEY:7, so a second run books nothing twice.",
        show_default=False,
    ),
]
FormatOption = Annotated[
    Format | None,
    typer.Option("--format", help="When left out: jsonl for .jsonl, .ndjson and .json, else csv.", show_default=False),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check every line and show the totals; book nothing.")]


@bulk.command("grant")
def bulk_grant(
    ctx: typer.Context,
    file: FileArgument,
    key: BulkKeyOption,
    format: FormatOption = None,
    dry_run: DryRunOption = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Grant credits to many organizations, one on each line of a file.

    Columns: organization_id, amount (credits, at most 6 decimals), and if
    wanted category, priority, effective_at, expires_at (ISO 8601 with a
    zone), source, only_for (names with spaces between them), unit_cost and
    currency, as in agentcredits grant. CSV has a header; JSON lines have an
    object with these names on each line.

    A line that cannot be booked is reported with its number and stops no
    other. Mend it in place and run the same command again: what is booked
    is known by KEY and line number. A booked line that was changed is
    reported as a mismatch and not booked.

    Exit codes: 0 every line is booked, 2 a line failed or the run stopped.

    Example: agentcredits bulk grant grants.csv --key spring-2026 --dry-run
    """
    _run(begin(ctx, database, as_json), GRANT, file, key, format, dry_run=dry_run)


@bulk.command("adjust")
def bulk_adjust(
    ctx: typer.Context,
    file: FileArgument,
    key: BulkKeyOption,
    format: FormatOption = None,
    dry_run: DryRunOption = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Correct the accounts of many organizations, one on each line of a file.

    Columns: organization_id, amount (credits, at most 6 decimals; 5 gives,
    -5 takes back) and reason, as in agentcredits adjust. CSV has a header;
    JSON lines have an object with these names on each line. Lines of one
    organization are booked in the order of the file.

    A line that cannot be booked is reported with its number and stops no
    other. Mend it in place and run the same command again: what is booked
    is known by KEY and line number. A booked line whose organization or
    amount was changed is reported as a mismatch and not booked. --dry-run
    cannot see whether enough is available to be taken back.

    Exit codes: 0 every line is booked, 2 a line failed or the run stopped.

    Example: agentcredits bulk adjust corrections.jsonl --key ticket-9
    """
    _run(begin(ctx, database, as_json), ADJUST, file, key, format, dry_run=dry_run)


def _run(command: Command, kind: Kind, file: str, key: str, format: Format | None, *, dry_run: bool) -> None:
    report = Report(dry_run=dry_run)
    messages = make_console(stderr=True)

    def tell(number: int, error: CreditsError) -> None:
        if not command.out.as_json:
            say(messages, ("line ", "red"), (f"{number:d}", "red"), f": {error.message}")

    run = Run(kind, key, report, tell)
    chosen = format or (Format.JSONL if file.lower().endswith(JSON_ENDINGS) else Format.CSV)
    with command.target.engine() as engine:
        with engine.connect() as connection:
            require_schema(connection, url=command.target.shown)
        with _opened(file) as (lines, size, position):
            records = read_records(lines, chosen, kind.columns)
            steps = run.check(engine, records, host_now()) if dry_run else run.book(engine, records)
            with closing(steps), _progress(messages, size, quiet=command.out.as_json) as advance:
                try:
                    for _ in steps:
                        advance(position(), report)
                except KeyboardInterrupt:
                    report.stopped = "it was interrupted"
    data = {"file": file, "key": key, **report.as_dict()}
    command.out.show(data, lambda console: _show(console, file, report))
    if not report.ok:
        raise typer.Exit(EXIT_FAILED)


@contextmanager
def _opened(file: str) -> Iterator[tuple[TextIO, int | None, Callable[[], int]]]:
    """The file's text, its size in bytes (None for standard input), and how far it was read.

    Raises:
        InvalidInputError: it cannot be opened.
    """
    if file == "-":
        binary = getattr(sys.stdin, "buffer", None)
        if binary is None:
            yield sys.stdin, None, lambda: 0
            return
        text = io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape")
        try:
            yield text, None, lambda: 0
        finally:
            text.detach()  # standard input is not ours to close
        return
    path = Path(file)
    try:
        raw = path.open("rb")
        size = path.stat().st_size
    except OSError as error:
        raise InvalidInputError(
            f"the file {file} cannot be read: {error.strerror or error}.",
            reason="unreadable_file",
            context={"file": file},
        ) from error
    with io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape") as text:
        yield text, size, raw.tell


@contextmanager
def _progress(console: Console, size: int | None, *, quiet: bool) -> Iterator[Callable[[int, Report], None]]:
    """A bar on a terminal; nothing in a pipe or file."""
    if quiet or not console.is_terminal:
        yield lambda _position, _report: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=size)

        def advance(position: int, report: Report) -> None:
            progress.update(task, completed=position, description=_counts(report))

        yield advance


def _counts(report: Report) -> str:
    done = f"{report.would_book:,} checked" if report.dry_run else f"{report.booked:,} booked"
    return f"{done}, {report.already_there:,} already there, {report.failed:,} failed"


def _show(console: Console, file: str, report: Report) -> None:
    name = "standard input" if file == "-" else file
    if report.stopped is not None:
        say(console, ("Stopped", "red"), f" at line {report.last_line:,} of {name}: {report.stopped.rstrip('.')}.")
    elif report.ok:
        words = "can be booked; nothing was (dry run)" if report.dry_run else "is booked"
        say(console, ("Good", "green"), f": every line of {name} {words}.")
    else:
        say(console, (count_text(report.failed, "line"), "red"), f" of {name} failed.")
    facts = [("lines", f"{report.lines:,}")]
    if report.dry_run:
        facts.append(("would book", _lines_text(report.would_book, report.would_book_micros)))
    else:
        facts.append(("booked", _lines_text(report.booked, report.booked_micros)))
    facts.append(("already there", _lines_text(report.already_there, report.already_there_micros)))
    facts.append(("failed", f"{report.failed:,}"))
    facts.append(("credits in all", micros_text(report.good_micros)))
    console.print(make_facts(facts))
    if not report.ok:
        mend = "Run the same command again to go on" if report.stopped else "Mend them in place and run it again"
        say(console, f"{mend}: nothing is booked twice under this key.")


def _lines_text(lines: int, micros: int) -> str:
    return f"{lines:,} ({micros_text(micros)} credits)"
