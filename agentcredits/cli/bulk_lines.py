"""The lines of a bulk file: read one by one, as CSV or JSON lines; what is wrong with one does not stop the others."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, NoReturn, TextIO

from agentcredits.errors import InvalidInputError

#: The longest line that is read; a longer one is skipped without being held in memory.
MAX_LINE_CHARACTERS: Final = 65_536

Values = Mapping[str, Any]
"""A line's columns by name; those that were left empty are missing."""

Record = tuple[int, Values | InvalidInputError]
"""The number of the line on which a record begins, from 1, and its columns or what is wrong with it."""


class Format(StrEnum):
    """How a bulk file is written."""

    CSV = "csv"
    JSONL = "jsonl"


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a file: any others are refused."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def known(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.required, *self.optional)


def read_records(file: TextIO, format: Format, columns: Columns) -> Iterator[Record]:
    """The records of a file, blank lines left out.

    Args:
        file: Decoded with ``surrogateescape``, so that a byte that is no UTF-8 is its line's fault alone.
        format: CSV with a header, or one JSON object on each line.
        columns: What a record may have.

    Raises:
        InvalidInputError: the header of a CSV file is missing, or names columns that cannot be.
    """
    lines = Lines(file)
    return _csv_records(lines, columns) if format is Format.CSV else _json_records(lines, columns)


class Lines(Iterator[str]):
    """The lines of a file; going on after one that raised gives the next.

    Args:
        file: With universal newlines.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        #: The number of the last line read, from 1.
        self.number = 0

    def __next__(self) -> str:
        line = self._file.readline(MAX_LINE_CHARACTERS)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) == MAX_LINE_CHARACTERS and not line.endswith("\n"):
            while (rest := self._file.readline(MAX_LINE_CHARACTERS)) and not rest.endswith("\n"):
                pass
            raise InvalidInputError(
                f"the line is longer than {MAX_LINE_CHARACTERS:,} characters.", reason="line_too_long"
            )
        if not line.isascii() and any("\ud800" <= character <= "\udfff" for character in line):
            raise InvalidInputError("the line is not UTF-8: save the file as UTF-8.", reason="not_utf8")
        return line


# -- CSV ---------------------------------------------------------------------------------------------------------


def _csv_records(lines: Lines, columns: Columns) -> Iterator[Record]:
    reader = csv.reader(lines, strict=True)
    header = _header(reader, columns)

    def records() -> Iterator[Record]:
        while True:
            number = lines.number + 1
            try:
                cells = next(reader)
                if any(cell.strip() for cell in cells):
                    yield number, _named(header, cells)
            except StopIteration:
                return
            except InvalidInputError as error:
                yield number, error
            except csv.Error as error:
                upto = "" if lines.number == number else f" (read up to line {lines.number})"
                yield number, InvalidInputError(f"the line is not valid CSV: {error}{upto}.", reason="not_csv")

    return records()


def _header(reader: Iterator[list[str]], columns: Columns) -> list[str]:
    try:
        header = next((cells for cells in reader if any(cell.strip() for cell in cells)), None)
    except (csv.Error, InvalidInputError) as error:
        raise InvalidInputError(f"the header cannot be read: {error}", reason="bad_header") from error
    known = f"the columns are {', '.join(columns.required)}"
    known += f", and if wanted {', '.join(columns.optional)}" if columns.optional else ""
    if header is None:
        raise InvalidInputError(f"the file has no header: {known}.", reason="bad_header")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise InvalidInputError(f"the header names {twice[0]!r} twice.", reason="bad_header")
    strange = [name for name in header if name not in columns.known]
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise InvalidInputError("the columns must be separated by commas.", reason="bad_header")
    if strange:
        raise InvalidInputError(f"the header names an unknown column {strange[0]!r}: {known}.", reason="bad_header")
    missing = [name for name in columns.required if name not in header]
    if missing:
        raise InvalidInputError(f"the header lacks {', '.join(missing)}: {known}.", reason="bad_header")
    return header


def _named(header: list[str], cells: list[str]) -> Values:
    if len(cells) != len(header):
        raise InvalidInputError(
            f"the line has {len(cells)} fields, the header {len(header)}: quote fields that hold commas.",
            reason="wrong_fields",
        )
    return {name: cell for name, cell in zip(header, cells, strict=True) if cell}


# -- JSON lines --------------------------------------------------------------------------------------------------


def _json_records(lines: Lines, columns: Columns) -> Iterator[Record]:
    while True:
        try:
            line = next(lines)
            if line.strip():
                yield lines.number, _object(line, columns)
        except StopIteration:
            return
        except InvalidInputError as error:
            yield lines.number, error


def _object(line: str, columns: Columns) -> Values:
    try:
        found = json.loads(line, parse_float=Decimal, parse_constant=_no_number, object_pairs_hook=_unique)
    except InvalidInputError:
        raise
    # Beside what json raises: a number too long for int, an exponent too large for Decimal, arrays nested too deep.
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise InvalidInputError("the line is not valid JSON.", reason="not_json") from error
    if not isinstance(found, dict):
        raise InvalidInputError("the line is not a JSON object.", reason="not_json")
    strange = [name for name in found if name not in columns.known]
    if strange:
        raise InvalidInputError(
            f"the line has an unknown column {strange[0]!r}: known are {', '.join(columns.known)}.",
            reason="unknown_column",
        )
    return {name: value for name, value in found.items() if value is not None}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InvalidInputError("the line names a column twice.", reason="duplicate_column")
    return found


def _no_number(name: str) -> NoReturn:
    raise InvalidInputError(f"{name} is not a number.", reason="not_a_number")
