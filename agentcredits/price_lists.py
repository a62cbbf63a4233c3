"""Price lists: TOML files with the prices of actions, ours and users' own.

A list is read whole before any of it is used. What is wrong with it is told with the file, the line, the entry and the
field. Lists in US dollars need to be told what a dollar is worth in credits.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from agentcredits.amounts import Amount
from agentcredits.clock import as_utc
from agentcredits.errors import InvalidInputError
from agentcredits.rules.price_entries import PriceEntry
from agentcredits.rules.price_rules import PriceRule

T = TypeVar("T")

MAX_FILE_BYTES: Final = 8 * 1024 * 1024
#: The reason of the error for a list in USD that is read without a rate.
RATE_MISSING: Final = "rate_missing"

_LIST_FIELDS: Final = ("title", "source", "as_of", "credits_per_usd", "price")
_ENTRY_FIELDS: Final = (
    "agent_type",
    "action",
    "cost",
    "rule",
    "free",
    "source",
    "as_of",
    "valid_from",
    "valid_until",
)
_HEADER: Final = re.compile(r"\s*\[\[\s*price\s*\]\]")
_INDEXED: Final = re.compile(r"(\w+)\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class PriceList:
    """Prices that belong together, checked and ready for ``import_costs``.

    ``skipped`` says in sentences what of a foreign price map was left out.
    """

    name: str
    entries: tuple[PriceEntry, ...]
    title: str = ""
    source: str | None = None
    as_of: date | None = None
    skipped: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: str | Path, *, credits_per_usd: Amount | None = None) -> Self:
        """The list in a TOML file.

        Args:
            path: Of the file.
            credits_per_usd: What a dollar is worth, for the prices in USD that do not say so themselves; replaces the
                file's own ``credits_per_usd``.

        Raises:
            InvalidInputError: the file cannot be read or used; ``context`` has ``file`` and, where they are known,
                ``line``, ``entry`` (from 1) and ``field``.
        """
        place = Path(path)
        return cls.parse(read_text(place, MAX_FILE_BYTES), name=place.name, credits_per_usd=credits_per_usd)

    @classmethod
    def shipped(cls, name: str, *, credits_per_usd: Amount | None = None) -> Self:
        """A list that comes with agentcredits; see :func:`shipped_lists`.

        Raises:
            InvalidInputError: there is no such list, or it is in USD and ``credits_per_usd`` was not given.
        """
        found = _shipped().get(name)
        if found is None:
            raise InvalidInputError(
                f"there is no price list {name!r:.60}: there are {', '.join(_shipped())}.",
                reason="unknown_price_list",
                context={"parameter": "name"},
            )
        made = cls.parse(found.read_text(encoding="utf-8"), name=name, credits_per_usd=credits_per_usd)
        return replace(made, name=name)

    @classmethod
    def parse(cls, text: str, *, name: str, credits_per_usd: Amount | None = None) -> Self:
        """The list in a TOML text; ``name`` is for messages.

        Raises:
            InvalidInputError: as :meth:`read`.
        """
        try:
            document = tomllib.loads(text, parse_float=Decimal)
        except (tomllib.TOMLDecodeError, ArithmeticError, ValueError, RecursionError) as error:
            line = re.search(r"at line (\d+)", str(error))
            context = {"line": int(line[1])} if line else {}
            raise InvalidInputError(
                f"{name} is no TOML: {error}.", reason="bad_price_list", context={"file": name, **context}
            ) from error
        reader = _Reader(name, text, document)
        title, source, as_of = reader.header("title", str), reader.header("source", str), reader.header("as_of", date)
        return cls(name, reader.entries(credits_per_usd), title or "", source, as_of)


def shipped_lists() -> tuple[PriceList, ...]:
    """The lists that come with agentcredits, those in USD at one credit per dollar."""
    return tuple(PriceList.shipped(name, credits_per_usd=1) for name in _shipped())


def needs_rate(name: str) -> bool:
    """Whether a shipped list is in USD, so that it needs ``credits_per_usd``."""
    try:
        PriceList.shipped(name)
    except InvalidInputError as error:
        if error.reason != RATE_MISSING:
            raise
        return True
    return False


def _shipped() -> dict[str, Traversable]:
    folder = files("agentcredits") / "prices"
    found = {entry.name.removesuffix(".toml"): entry for entry in folder.iterdir() if entry.name.endswith(".toml")}
    return dict(sorted(found.items()))


def read_text(path: Path, longest: int, *, reason: str = "bad_price_list") -> str:
    """The text of a file of the user's.

    Raises:
        InvalidInputError: it is missing, too large or no UTF-8.
    """
    context = {"file": str(path)}
    try:
        if path.stat().st_size > longest:
            raise InvalidInputError(f"{path} is larger than {longest:,} bytes.", reason=reason, context=context)
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        problem = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise InvalidInputError(f"{path} cannot be read: {problem}.", reason=reason, context=context) from error


class _Reader:
    """One file: its document for what it says, its text for the line of what is wrong."""

    def __init__(self, name: str, text: str, document: Mapping[str, Any]) -> None:
        self._name = name
        self._lines = text.splitlines()
        self._document = document

    def header(self, name: str, kind: type[T]) -> T | None:
        """A field of the list itself."""
        value = self._document.get(name)
        if value is not None and type(value) is not kind:
            raise self._error(f"it must be a {kind.__name__}", None, name)
        return value

    def entries(self, credits_per_usd: Amount | None) -> tuple[PriceEntry, ...]:
        """The prices, those in USD with the rate given, else the file's own."""
        self._refuse_unknown(self._document, _LIST_FIELDS, None)
        rate = self._document.get("credits_per_usd") if credits_per_usd is None else credits_per_usd
        listed = self._document.get("price")
        if not isinstance(listed, list) or not listed:
            raise self._error("it has no [[price]] entries", None, "price")
        return tuple(self._entry(entry, number, rate) for number, entry in enumerate(listed))

    def _entry(self, entry: Any, number: int, rate: Amount | None) -> PriceEntry:
        if not isinstance(entry, Mapping):
            raise self._error("it must be a table", number, "price")
        self._refuse_unknown(entry, _ENTRY_FIELDS, number)
        for field in ("agent_type", "action"):
            if field not in entry:
                raise self._error("it is missing", number, field)
        free = entry.get("free", False)
        if not isinstance(free, bool):
            raise self._error("it must be true or false", number, "free")
        if ("rule" in entry) + ("cost" in entry) != 1 and not (free and "rule" not in entry and "cost" not in entry):
            raise self._error("it needs either cost or rule", number, "cost")
        try:
            return PriceEntry(
                entry["agent_type"],
                entry["action"],
                _rated(entry["rule"], rate) if "rule" in entry else entry.get("cost", 0),
                free=free,
                source=entry.get("source", self._document.get("source")),
                as_of=entry.get("as_of", self._document.get("as_of")),
                valid_from=_moment(entry.get("valid_from"), "valid_from"),
                valid_until=_moment(entry.get("valid_until"), "valid_until"),
            )
        except InvalidInputError as error:
            path = error.context.get("field")
            field = (
                error.context.get("parameter", "rule" if "rule" in entry else "cost")
                if path is None
                else f"rule.{path}".rstrip(".")
            )
            raise self._error(error.message.rstrip("."), number, field, reason=error.reason) from error

    def _refuse_unknown(self, given: Mapping[str, Any], known: Sequence[str], number: int | None) -> None:
        for field in given:
            if field not in known:
                raise self._error(f"there is no such field (known are {', '.join(known)})", number, field)

    def _error(
        self, problem: str, number: int | None, field: str, *, reason: str = "bad_price_list"
    ) -> InvalidInputError:
        line = self._line_of(number, field)
        where = "" if number is None else f", price {number + 1}"
        return InvalidInputError(
            f"{self._name}, line {line}{where}, {field}: {problem}.",
            reason=RATE_MISSING if reason == RATE_MISSING else "bad_price_list",
            context={"file": self._name, "line": line, "entry": None if number is None else number + 1, "field": field},
            suggestions=("Pass credits_per_usd, on the command line --credits-per-usd.",)
            if reason == RATE_MISSING
            else (),
        )

    def _line_of(self, number: int | None, field: str) -> int:
        """The line, from 1, that the field of an entry stands on; the nearest one above it where it cannot be told."""
        headers = [place for place, line in enumerate(self._lines) if _HEADER.match(line)]
        start, end = 0, len(self._lines)
        if number is not None and number < len(headers):
            start = headers[number]
            end = headers[number + 1] if number + 1 < len(headers) else end
        for part in field.split("."):
            indexed = _INDEXED.fullmatch(part)
            name = re.escape(indexed[1] if indexed else part)
            named = re.compile(rf"(^|[\s{{,.\[])\"?{name}\"?\s*(=|\]|\.)")
            found = [place for place in range(start, end) if named.search(self._lines[place])]
            if indexed is None:
                start = found[0] if found else start
                continue
            # Either a section [[….rows]] for each, or one inline table on a line of its own for each.
            sections = [place for place in found if self._lines[place].lstrip().startswith("[[")]
            first = found[0] if found else start
            inline = list(self._inline_tables(first, end))
            wanted = int(indexed[2])
            for places in (sections, inline):
                if wanted < len(places):
                    start = places[wanted]
                    end = places[wanted + 1] if wanted + 1 < len(places) else end
                    break
            else:
                start = first
        return start + 1

    def _inline_tables(self, first: int, end: int) -> Iterator[int]:
        """The lines of a list that is opened on the first one, where each begins a table."""
        if self._lines[first].rstrip().endswith("["):
            for place in range(first + 1, end):
                line = self._lines[place].lstrip()
                if line.startswith("]"):
                    return
                if line.startswith("{"):
                    yield place


def _rated(document: Mapping[str, Any], rate: Amount | None) -> PriceRule:
    rule = PriceRule(document)
    if rule.needs_rate and rate is None:
        raise InvalidInputError("its prices are in USD: say what a dollar is worth in credits", reason=RATE_MISSING)
    return rule if rate is None else rule.with_rate(rate)


def _moment(value: Any, name: str) -> datetime | None:
    """A time of a TOML file; a day is its first moment in UTC."""
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    return None if value is None else as_utc(value, name=name)
