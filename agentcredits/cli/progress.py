"""A progress bar on standard error, for commands that read the whole ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from agentcredits.cli.output import Output, make_console, printable
from agentcredits.model import VerifyProgress


@contextmanager
def ledger_progress(out: Output) -> Iterator[Callable[[VerifyProgress], object] | None]:
    """A bar of ledger rows for the length of the block; None where nobody looks (a pipe, ``--json``)."""
    console = make_console(stderr=True)
    if out.as_json or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"))
    # Transient: what stays on the screen is the answer.
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def show(seen: VerifyProgress) -> None:
            name = f"{printable(seen.organization_id)} ({seen.accounts_done + 1:,} of {seen.accounts:,})"
            bar.update(task, description=name, completed=seen.rows_read, total=seen.rows)

        yield show
