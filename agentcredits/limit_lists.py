"""Files with limits to try out: TOML, JSON or CSV, told apart by the end of their names."""

from __future__ import annotations

import csv
import io
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from agentcredits.errors import InvalidInputError
from agentcredits.model import Limit, PlannedLimit
from agentcredits.price_lists import read_text

MAX_FILE_BYTES: Final = 1024 * 1024

_FIELDS: Final = tuple(entry.name for entry in fields(PlannedLimit))
#: What ``agentcredits limits list --json`` says beside these; such an answer can be used as it is.
_PASSED_OVER: Final = {entry.name for entry in fields(Limit)} | {"is_each"}


def read_limits(path: str | Path) -> tuple[PlannedLimit, ...]:
    """The limits in a file, for ``simulate``.

    TOML has ``[[limit]]`` tables; JSON is a list, or what ``agentcredits limits list --json`` prints; CSV has a
    header. The fields are those of :class:`PlannedLimit`; amount and window are needed. ``simulate`` checks what they
    say.

    Args:
        path: Of the file; it ends in .toml, .json or .csv.

    Raises:
        InvalidInputError: the file cannot be read, or an entry has a field that there is not, or lacks one;
            ``context`` has ``file`` and, where it is known, ``entry`` (from 1) and ``field``.
    """
    place = Path(path)
    read = _FORMS.get(place.suffix.lower())
    if read is None:
        raise _error(place.name, f"it must end in {', '.join(_FORMS)}")
    text = read_text(place, MAX_FILE_BYTES, reason="bad_limit_list")
    try:
        found = read(text)
    except (ValueError, ArithmeticError, RecursionError, csv.Error) as error:
        raise _error(place.name, f"it cannot be read as {place.suffix[1:].upper()}: {error}") from error
    if not isinstance(found, list) or not found:
        raise _error(place.name, "it has no limits")
    return tuple(_limit(place.name, number, entry) for number, entry in enumerate(found, start=1))


def _limit(name: str, number: int, entry: Any) -> PlannedLimit:
    if not isinstance(entry, Mapping):
        raise _error(name, "it must be a table", number)
    for field in entry:
        if field not in _FIELDS and field not in _PASSED_OVER:
            raise _error(name, f"there is no such field (known are {', '.join(_FIELDS)})", number, str(field))
    given = {field: entry[field] for field in _FIELDS if entry.get(field) not in (None, "")}
    for field in ("amount", "window"):
        if field not in given:
            raise _error(name, "it is missing", number, field)
    for field, value in given.items():
        if field != "amount" and not isinstance(value, str):
            raise _error(name, "it must be a text", number, field)
    return PlannedLimit(**given)


def _error(name: str, problem: str, number: int | None = None, field: str | None = None) -> InvalidInputError:
    where = "".join(("" if number is None else f", limit {number}", "" if field is None else f", {field}"))
    return InvalidInputError(
        f"{name}{where}: {problem}.",
        reason="bad_limit_list",
        context={"file": name, "entry": number, "field": field},
    )


def _toml(text: str) -> Any:
    document = tomllib.loads(text, parse_float=Decimal)
    if unknown := document.keys() - {"limit"}:
        raise ValueError(f"there is no {min(unknown)}, only [[limit]] entries")
    return document.get("limit")


def _json(text: str) -> Any:
    document = json.loads(text, parse_float=Decimal)
    return document.get("items") if isinstance(document, dict) else document


def _csv(text: str) -> Any:
    rows = list(csv.DictReader(io.StringIO(text), strict=True))
    if any(None in row for row in rows):
        raise ValueError("a line has more cells than the header")
    return rows


_FORMS: Final[Mapping[str, Callable[[str], Any]]] = {".toml": _toml, ".json": _json, ".csv": _csv}
