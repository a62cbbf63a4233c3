"""CSV on standard output: for spreadsheets, which must never take a text for a formula."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from agentcredits.cli.output import printable
from agentcredits.errors import InvalidInputError

#: What makes a spreadsheet compute a cell, full-width forms included.
FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def write_csv(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Print a header and rows as they come; nothing is collected."""
    to_terminal = sys.stdout.isatty()
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(list(columns))
    for row in rows:
        cells = (cell_text(value) for value in row)
        # A file gets every character; a terminal none that could rewrite it.
        writer.writerow([printable(cell) for cell in cells] if to_terminal else list(cells))
    sys.stdout.flush()


def cell_text(value: Any) -> str:
    """A value as a cell: numbers as numbers, times in ISO 8601, texts with a ' before what would be a formula."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | Decimal):
        return f"{value:f}" if isinstance(value, Decimal) else str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    text = json.dumps(dict(value), ensure_ascii=False, default=str) if isinstance(value, Mapping) else str(value)
    # Before Python 3.13 the csv module leaves a lone CR unquoted, and what follows it would begin a row.
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def refuse_two_forms(*, as_json: bool, as_csv: bool) -> None:
    """``--json`` and ``--csv`` exclude each other.

    Raises:
        InvalidInputError: both were given.
    """
    if as_json and as_csv:
        raise InvalidInputError("--json and --csv cannot both be printed: leave one out.", reason="wrong_use")
