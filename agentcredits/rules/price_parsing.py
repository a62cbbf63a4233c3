"""From the document of a price rule to what it computes: strict, so that a slip is refused and not priced."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, NoReturn, cast

from agentcredits.errors import InvalidInputError
from agentcredits.ids import check_text
from agentcredits.rules.price_nodes import (
    TOKEN_DIMENSIONS,
    Band,
    CostPlus,
    Fixed,
    Part,
    Rounding,
    Steps,
    Tokens,
)
from agentcredits.rules.price_tables import ANY_VALUE, Line, Table
from agentcredits.rules.price_values import (
    MAX_DECIMALS,
    MAX_VALUE_LENGTH,
    Unit,
    Value,
    bad_rule,
    comparable,
    number_text,
    rule_number,
)

VERSION: Final = 1
MAX_DOCUMENT_CHARACTERS: Final = 4_000_000
MAX_DEPTH: Final = 4
MAX_DIMENSIONS: Final = 6
MAX_LINES: Final = 20_000
MAX_PATTERNS: Final = 50_000
MAX_BANDS: Final = 1_000

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_LINE_FIELDS: Final = ("credits", "usd", "rule", "valid_until", "as_of", "source")
_ROUNDINGS: Final = ("up", "half_up", "down")


def parse_json(text: object) -> Part:
    """The rule that a database row holds as JSON text.

    Raises:
        InvalidInputError: it is none; ``context["field"]`` names the place. Reason "unknown_price_rule" for a kind or
            version that this version of agentcredits does not know, else "bad_price_rule".
    """
    if not isinstance(text, str):
        raise bad_rule("", f"it must be JSON text, not {type(text).__name__}")
    if len(text) > MAX_DOCUMENT_CHARACTERS:
        raise bad_rule("", f"it is longer than {MAX_DOCUMENT_CHARACTERS:,} characters")
    try:
        document = json.loads(
            text, parse_float=Decimal, parse_constant=_no_constant, object_pairs_hook=_without_duplicates
        )
    except InvalidInputError:
        raise
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise bad_rule("", f"it is no JSON ({type(error).__name__}: {str(error)[:100]})") from error
    return parse(document)


def parse(document: object) -> Part:
    """The rule that a document (a mapping) describes.

    Raises:
        InvalidInputError: as :func:`parse_json`.
    """
    reader = _Reader(document, "")
    version = reader.take("version", VERSION)
    if type(version) is not int or version != VERSION:
        raise bad_rule("version", f"this version of agentcredits knows version {VERSION}", reason="unknown_price_rule")
    return _part(reader, depth=0, usd_only=False)


def _no_constant(name: str) -> NoReturn:
    raise bad_rule("", f"{name} is no number")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise bad_rule("", f"it has {next(name for name in names if names.count(name) > 1)!r:.60} twice")
    return found


class _Reader:
    """The fields of one mapping, each taken once; what is left over is unknown."""

    def __init__(self, document: object, path: str) -> None:
        if not isinstance(document, Mapping) or not all(isinstance(name, str) for name in document):
            raise bad_rule(path, "it must be an object with named fields")
        self._left: dict[str, Any] = {name: value for name, value in document.items() if value is not None}
        self.path = path

    def place(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def has(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, default: object = None) -> Any:
        return self._left.pop(name, default)

    def need(self, name: str) -> Any:
        value = self.take(name)
        if value is None:
            raise bad_rule(self.place(name), "it is missing")
        return value

    def number(self, name: str, *, positive: bool = False) -> Fraction:
        return rule_number(self.need(name), field=self.place(name), positive=positive)

    def number_or_none(self, name: str, *, positive: bool = False) -> Fraction | None:
        return self.number(name, positive=positive) if self.has(name) else None

    def dimension(self, name: str) -> str:
        return _dimension(self.need(name), self.place(name))

    def amount(self) -> tuple[Fraction, Unit]:
        """Exactly one of ``credits`` and ``usd``."""
        if self.has("credits") == self.has("usd"):
            raise bad_rule(self.path, "it needs either credits or usd")
        unit: Unit = "credits" if self.has("credits") else "usd"
        return self.number(unit), unit

    def day(self, name: str) -> date | None:
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, date) and not isinstance(value, datetime):
            return value
        try:
            return date.fromisoformat(value)
        except (TypeError, ValueError):
            raise bad_rule(self.place(name), "it must be a day such as 2027-01-31") from None

    def finish(self) -> None:
        if self._left:
            raise bad_rule(self.place(next(iter(self._left))[:60]), "there is no such field")


def _dimension(value: object, path: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value) or value in _LINE_FIELDS:
        raise bad_rule(path, "it must name a dimension, in letters, digits and _")
    return value


def _part(reader: _Reader, *, depth: int, usd_only: bool) -> Part:
    kind = reader.take("kind")
    read = _KINDS.get(kind) if isinstance(kind, str) else None
    if read is None:
        raise bad_rule(reader.place("kind"), f"it must be one of {', '.join(_KINDS)}", reason="unknown_price_rule")
    if depth > MAX_DEPTH:
        raise bad_rule(reader.path, f"rules are nested more than {MAX_DEPTH} deep")
    part = read(reader, depth, usd_only)
    reader.finish()
    return part


def _inner(document: object, path: str, depth: int, usd_only: bool) -> Part:
    return _part(_Reader(document, path), depth=depth + 1, usd_only=usd_only)


def _unit(reader: _Reader, unit: Unit, usd_only: bool) -> Unit:
    if usd_only and unit == "credits":
        raise bad_rule(reader.path, "inside cost_plus prices are in usd")
    return unit


def _rate(reader: _Reader, usd_only: bool, unit: Unit = "usd") -> Fraction | None:
    """``credits_per_usd`` where it means something: not for credits, and not inside cost_plus, which has its own."""
    place = reader.place("credits_per_usd")
    rate = reader.number_or_none("credits_per_usd", positive=True)
    if rate is not None and unit == "credits":
        raise bad_rule(place, "the price is in credits already")
    if rate is not None and usd_only:
        raise bad_rule(place, "inside cost_plus the rate is cost_plus's own")
    return rate


def _flat(reader: _Reader, _depth: int, usd_only: bool) -> Part:
    _unit(reader, "credits", usd_only)
    return _fixed(reader, "credits", None)


def _usd(reader: _Reader, _depth: int, usd_only: bool) -> Part:
    return _fixed(reader, "usd", _rate(reader, usd_only))


def _fixed(reader: _Reader, unit: Unit, rate: Fraction | None) -> Fixed:
    amount = reader.number(unit)
    if not reader.has("per"):
        if reader.has("each"):
            raise bad_rule(reader.place("each"), "it goes with per")
        return Fixed(amount, unit, credits_per_usd=rate)
    per = reader.dimension("per")
    each = reader.number_or_none("each", positive=True)
    return Fixed(amount, unit, per, Fraction(1) if each is None else each, rate)


def _steps(reader: _Reader, _depth: int, usd_only: bool) -> Part:
    dimension = reader.dimension("dimension")
    if reader.has("size") == reader.has("bands"):
        raise bad_rule(reader.path, "it needs either size or bands")
    if reader.has("size"):
        size = reader.number("size", positive=True)
        amount, unit = reader.amount()
        _unit(reader, unit, usd_only)
        return Steps(dimension, unit, size, amount, credits_per_usd=_rate(reader, usd_only, unit))
    place = reader.place("bands")
    entries = _sequence(reader.take("bands"), place, MAX_BANDS)
    read = [_band(_Reader(entry, f"{place}[{number}]")) for number, entry in enumerate(entries)]
    currency = read[0][1]
    _unit(reader, currency, usd_only)
    end: Fraction | None = Fraction(0)
    for number, (band, unit) in enumerate(read):
        if unit != currency:
            raise bad_rule(f"{place}[{number}]", "all bands must be in credits, or all in usd")
        if end is None or (band.up_to is not None and band.up_to <= end):
            raise bad_rule(f"{place}[{number}]", "it must lie above the band before it")
        if band.start is not None and (band.start < end or (band.up_to is not None and band.start > band.up_to)):
            raise bad_rule(f"{place}[{number}].from", "it must lie above the band before it, and not above up_to")
        end = band.up_to
    return Steps(
        dimension, currency, bands=tuple(band for band, _ in read), credits_per_usd=_rate(reader, usd_only, currency)
    )


def _band(reader: _Reader) -> tuple[Band, Unit]:
    amount, unit = reader.amount()
    band = Band(amount, reader.number_or_none("from"), reader.number_or_none("up_to", positive=True))
    reader.finish()
    return band, unit


def _tokens(reader: _Reader, _depth: int, usd_only: bool) -> Part:
    currency = reader.need("currency")
    if currency not in ("credits", "usd"):
        raise bad_rule(reader.place("currency"), "it must be credits or usd")
    unit = _unit(reader, currency, usd_only)
    counts: dict[str, Fraction] = {}
    if reader.has("estimate"):
        estimate = _Reader(reader.take("estimate"), reader.place("estimate"))
        for name in TOKEN_DIMENSIONS:
            count = estimate.number_or_none(name)
            if count is not None and count.denominator != 1:
                raise bad_rule(estimate.place(name), "it must be a whole number")
            if count is not None:
                counts[name] = count
        estimate.finish()
    return Tokens(
        unit,
        reader.number("input"),
        reader.number_or_none("output"),
        reader.number_or_none("cached_input"),
        reader.number_or_none("cache_creation_input"),
        counts,
        _rate(reader, usd_only, unit),
    )


def _cost_plus(reader: _Reader, depth: int, usd_only: bool) -> Part:
    if usd_only:
        raise bad_rule(reader.path, "inside cost_plus prices are in usd")
    if reader.has("usd") == reader.has("rule"):
        raise bad_rule(reader.path, "it needs either usd or rule")
    provider: Part = (
        Fixed(reader.number("usd"), "usd")
        if reader.has("usd")
        else _inner(reader.take("rule"), reader.place("rule"), depth, usd_only=True)
    )
    rounding = reader.take("rounding", "up")
    if rounding not in _ROUNDINGS:
        raise bad_rule(reader.place("rounding"), f"it must be one of {', '.join(_ROUNDINGS)}")
    rate = reader.number("credits_per_usd", positive=True)
    fee = reader.number_or_none("fee")
    round_to = reader.number_or_none("round_to", positive=True)
    if round_to is not None and (round_to * 1_000_000).denominator != 1:
        raise bad_rule(reader.place("round_to"), "the smallest amount is 0.000001 credits")
    return CostPlus(
        provider,
        rate,
        Fraction(0) if fee is None else fee,
        cast(Rounding, rounding),
        Fraction(1, 1_000_000) if round_to is None else round_to,
    )


# -- tables ------------------------------------------------------------------------------------------------------

Pattern = tuple[Value | None, ...]


def _table(reader: _Reader, depth: int, usd_only: bool) -> Part:
    place = reader.place("dimensions")
    named = _sequence(reader.need("dimensions"), place, MAX_DIMENSIONS)
    dimensions = tuple(_dimension(name, f"{place}[{number}]") for number, name in enumerate(named))
    if len(set(dimensions)) < len(dimensions):
        raise bad_rule(place, "it names a dimension twice")
    place = reader.place("rows")
    index: dict[Pattern, list[int]] = {}
    lasting: dict[Pattern, int] = {}
    lines = []
    patterns = 0
    for number, entry in enumerate(_sequence(reader.need("rows"), place, MAX_LINES)):
        line = _line(_Reader(entry, f"{place}[{number}]"), dimensions, depth, usd_only)
        lines.append(line)
        for pattern in line.patterns():
            patterns += 1
            if patterns > MAX_PATTERNS:
                raise bad_rule(place, f"it prices more than {MAX_PATTERNS:,} combinations")
            _refuse_covered(pattern, lasting, number, place)
            index.setdefault(pattern, []).append(number)
            if line.valid_until is None:
                lasting[pattern] = number
    return Table(dimensions, tuple(lines), index, _rate(reader, usd_only))


def _refuse_covered(pattern: Pattern, lasting: Mapping[Pattern, int], number: int, rows: str) -> None:
    """A line that can never be reached is a slip: an earlier one would sell at another price."""
    for masked in itertools.product(*((None,) if value is None else (value, None) for value in pattern)):
        earlier = lasting.get(masked)
        if earlier == number:
            raise bad_rule(f"{rows}[{number}]", "it names the same value twice")
        if earlier is not None:
            raise bad_rule(f"{rows}[{number}]", f"it is never reached: {rows}[{earlier}] comes first and covers it")


def _line(reader: _Reader, dimensions: Sequence[str], depth: int, usd_only: bool) -> Line:
    part: Part
    if sum(reader.has(name) for name in ("credits", "usd", "rule")) != 1:
        raise bad_rule(reader.path, "it needs exactly one of credits, usd and rule")
    if reader.has("rule"):
        part = _inner(reader.take("rule"), reader.place("rule"), depth, usd_only)
    else:
        amount, unit = reader.amount()
        part = Fixed(amount, _unit(reader, unit, usd_only))
    source = reader.take("source")
    if source is not None:
        source = _text(source, reader.place("source"))
    until, as_of = reader.day("valid_until"), reader.day("as_of")
    values: list[tuple[Value, ...] | None] = []
    shown: list[tuple[str, ...] | None] = []
    for name in dimensions:
        held, texts = _values(reader.take(name, ANY_VALUE), reader.place(name))
        values.append(held)
        shown.append(texts)
    reader.finish()
    return Line(tuple(values), tuple(shown), part, until, as_of, source)


def _values(given: object, path: str) -> tuple[tuple[Value, ...] | None, tuple[str, ...] | None]:
    if given == ANY_VALUE:
        return None, None
    entries = list(given) if isinstance(given, list | tuple) else [given]
    found = [comparable(entry) for entry in entries]
    if not found or any(value is None or value == ANY_VALUE or value == "" for value in found):
        raise bad_rule(path, f"it must be a text of at most {MAX_VALUE_LENGTH} characters, a number, or a list of them")
    texts = []
    for entry, value in zip(entries, found, strict=True):
        # A text stays as it was written; numbers, and texts that are numbers, are written in one way.
        text = number_text(value) if isinstance(value, Fraction) else str(getattr(entry, "value", entry))
        if isinstance(value, Fraction) and Fraction(text) != value:
            raise bad_rule(path, f"{text} has more than {MAX_DECIMALS} decimals")
        texts.append(_text(text, path))
    return tuple(value for value in found if value is not None), tuple(texts)


def _text(value: object, path: str) -> str:
    try:
        return check_text(value, name="it")
    except InvalidInputError as error:
        raise bad_rule(path, error.message.removesuffix(".")) from error


def _sequence(value: object, path: str, longest: int) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or not value:
        raise bad_rule(path, "it must be a list that is not empty")
    if len(value) > longest:
        raise bad_rule(path, f"it has {len(value):,} entries; at most {longest:,} are allowed")
    return value


_KINDS: Final[dict[str, Callable[[_Reader, int, bool], Part]]] = {
    "flat": _flat,
    "usd": _usd,
    "table": _table,
    "step": _steps,
    "cost_plus": _cost_plus,
    "tokens": _tokens,
}
