"""What the commands print: rich tables for people, exact JSON for programs, one sentence for an error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Final, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentcredits.amounts import from_micros
from agentcredits.errors import CreditsError

#: Columns of a pipe or file, which has no width of its own: wide enough that no cell is broken.
PIPE_COLUMNS: Final = 200

#: What a column that gives way to others keeps of its width.
FOLDED_COLUMNS: Final = 9

#: A terminal with fewer columns gets rows of two lines.
NARROW_COLUMNS: Final = 100


def make_console(*, stderr: bool = False) -> Console:
    """A console on the process's own stream; colours only on a terminal."""
    # markup and emoji off: an organization may be called [bold] or :smile:
    console = Console(file=sys.stderr if stderr else sys.stdout, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    return console


@dataclass(frozen=True, slots=True)
class Output:
    """Where a command's answer goes, and in which form."""

    console: Console
    as_json: bool

    def show(self, data: Any, render: Callable[[Console], None]) -> None:
        """Print ``data`` as JSON, or ``render`` it for a person."""
        if self.as_json:
            print_json(data)
        else:
            render(self.console)


def print_json(data: Any) -> None:
    """Print plain data or records as JSON on standard output."""
    sys.stdout.write(to_json(data) + "\n")
    sys.stdout.flush()


def to_json(value: Any, indent: str = "") -> str:
    """JSON text of plain data and records: amounts as exact numbers beside their ``*_micros``, times in ISO 8601.

    ``json.dumps`` cannot write a Decimal but through a float, which is not exact above 2^53 micro-credits.
    """
    inner = indent + "  "
    value = plain(value)
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, Mapping):
        rows = [f"{inner}{json.dumps(str(key))}: {to_json(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}" if rows else "{}"
    if isinstance(value, list):
        rows = [inner + to_json(item, inner) for item in value]
        return "[\n" + ",\n".join(rows) + f"\n{indent}]" if rows else "[]"
    return json.dumps(value, ensure_ascii=False)


def plain(value: Any) -> Any:
    """One level of a record as JSON's own kinds (and Decimal); other objects as their text."""
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, str | bool | int | float | Decimal | Mapping):
        return value
    if isinstance(value, datetime):
        return value.isoformat()
    if hasattr(value, "as_dict"):
        return value.as_dict()
    if is_dataclass(value) and not isinstance(value, type):
        data = {entry.name: getattr(value, entry.name) for entry in fields(value)}
        data |= {
            name.removesuffix("_micros"): getattr(value, name.removesuffix("_micros"))
            for name in data
            if name.endswith("_micros")
        }
        return data
    if isinstance(value, Iterable):
        return list(value)
    return str(value)


def credits_text(value: Decimal) -> str:
    """An amount as people read it: ``1,234.5``."""
    return f"{value:,f}"


def time_text(value: datetime | None) -> str:
    """A time in UTC to the second; empty for None."""
    return "" if value is None else value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def count_text(number: int, noun: str) -> str:
    """``1 account``, ``2 accounts``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def micros_text(micros: int) -> str:
    """Micro-credits as people read credits: ``1,234.5``."""
    return credits_text(from_micros(micros))


def action_text(agent_type: str | None, action: str | None) -> str:
    """``VideoAgent.generate_video``, or what there is of it."""
    return ".".join(part for part in (agent_type, action) if part)


def printable(text: str) -> str:
    """The text without control characters, which could rewrite the terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def foldable(text: str, console: Console, *, after: str) -> Text:
    """The text, broken after the first ``after`` on a narrow terminal."""
    clean = printable(text)
    return Text(clean.replace(after, f"{after}\n", 1) if console.width < NARROW_COLUMNS else clean)


def say(console: Console, *parts: str | tuple[str, str]) -> None:
    """Print one line of plain parts and (part, style) pairs; it is never broken, so that it can be copied."""
    clean = (printable(part) if isinstance(part, str) else (printable(part[0]), part[1]) for part in parts)
    console.print(Text.assemble(*clean), soft_wrap=True)


def make_table(
    columns: Iterable[str],
    rows: Iterable[Iterable[str | Text]],
    *,
    right: Iterable[str] = (),
    folds: str | tuple[str, ...] = (),
    total: Iterable[str] = (),
) -> Table:
    """A plain table, for ``print_table``.

    Args:
        columns: Their names.
        rows: Their cells.
        right: Columns of numbers.
        folds: Columns that give way when space is short. All others are never cut.
        total: A last row below a gap.
    """
    numbers = set(right)
    yielding = (folds,) if isinstance(folds, str) else folds
    names = list(columns)
    cells = [[printable(cell) if isinstance(cell, str) else cell for cell in row] for row in (*rows, total) if row]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, name in enumerate(names):
        justify: Literal["right", "left"] = "right" if name in numbers else "left"
        lines = [name, *(line for row in cells for line in str(row[place]).split("\n"))]
        widest = max(cell_len(line) for line in lines)
        folding = name in yielding
        least = min(widest, FOLDED_COLUMNS) if folding else widest
        table.add_column(name, justify=justify, no_wrap=not folding, overflow="fold", min_width=least)
    for number, row in enumerate(cells, start=1):
        table.add_row(*row, end_section=bool(total) and number == len(cells) - 1)
    return table


def print_table(console: Console, table: Table) -> None:
    """Print a table; where it needs more columns than there are the terminal breaks its lines, and no digit is lost."""
    # One column of padding and one of the box for each, and the box's other edge.
    needed = sum((column.min_width or 0) + 2 for column in table.columns) + 1
    if needed > console.width:
        table.width = needed
    console.print(table, crop=False)


def make_facts(rows: Iterable[tuple[str, str]]) -> Table:
    """A two-column list of names and values."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, printable(text))
    return table


def print_error(error: CreditsError, *, as_json: bool) -> None:
    """One sentence on standard error, and what to do about it on a second line."""
    if as_json:
        sys.stderr.write(to_json({"error": error.as_dict()}) + "\n")
        return
    sys.stderr.write(f"{printable(error.message)}\n")
    advice = error.suggestions[0] if error.suggestions else ""
    if advice.strip(".").lower() not in error.message.lower():
        sys.stderr.write(f"{printable(advice)}\n")
