"""Kind "table": a price for each combination of dimensions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from fractions import Fraction
from typing import Any, Final

from agentcredits.errors import UnpricedActionError
from agentcredits.rules.price_nodes import Case, Money, Part, converted, rate_field
from agentcredits.rules.price_values import Value, bad_dimension, dimension_value, missing, unknown

#: What matches every value of a dimension, given or not.
ANY_VALUE: Final = "*"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a table: a value (or several) for each dimension, None for any, and what it costs."""

    values: tuple[tuple[Value, ...] | None, ...]
    #: The same as the operator wrote them.
    shown: tuple[tuple[str, ...] | None, ...]
    part: Part
    valid_until: date | None = None
    as_of: date | None = None
    source: str | None = None

    def patterns(self) -> Iterator[tuple[Value | None, ...]]:
        """Every combination of values that it prices."""
        return itertools.product(*((None,) if values is None else values for values in self.values))

    def fits(self, place: int, value: Value | None) -> bool:
        """Whether it prices this value of the dimension at ``place``; None: it was not given."""
        held = self.values[place]
        return held is None or value in held

    def is_over(self, at: datetime) -> bool:
        """Whether its day has come."""
        end = self.valid_until
        return end is not None and at >= datetime(end.year, end.month, end.day, tzinfo=UTC)

    def title(self, dimensions: Sequence[str]) -> str:
        """``model=gen4_turbo, resolution=720p``."""
        return ", ".join(f"{name}={' or '.join(texts)}" for name, texts in self._held(dimensions)) or "every call"

    def document(self, dimensions: Sequence[str]) -> dict[str, Any]:
        """As it is stored."""
        found: dict[str, Any] = {
            name: texts[0] if len(texts) == 1 else list(texts) for name, texts in self._held(dimensions)
        }
        inner = self.part.document()
        if set(inner) in ({"kind", "credits"}, {"kind", "usd"}):
            del inner["kind"]
            found |= inner
        else:
            found["rule"] = inner
        if self.valid_until is not None:
            found["valid_until"] = self.valid_until.isoformat()
        if self.as_of is not None:
            found["as_of"] = self.as_of.isoformat()
        return found if self.source is None else found | {"source": self.source}

    def _held(self, dimensions: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The dimensions for which it has values."""
        return ((name, texts) for name, texts in zip(dimensions, self.shown, strict=True) if texts is not None)


@dataclass(frozen=True, slots=True)
class Table:
    """Kind "table": the first line that matches the dimensions, and is not over, has the price."""

    dimensions: tuple[str, ...]
    lines: tuple[Line, ...]
    #: Which lines price a combination of values, None for any; ascending.
    index: Mapping[tuple[Value | None, ...], Sequence[int]]
    credits_per_usd: Fraction | None = None

    @property
    def needs_rate(self) -> bool:
        """Whether it gives US dollars that nothing turns into credits."""
        return self.credits_per_usd is None and any(line.part.needs_rate for line in self.lines)

    def price(self, case: Case) -> Money:
        """What one call costs."""
        values = tuple(dimension_value(case.dimensions, name) for name in self.dimensions)
        line = self._find(values, case.at)
        if line is None:
            raise self._refusal(values, case)
        dated = "" if line.as_of is None else f", as of {line.as_of.isoformat()}"
        source = "" if line.source is None else f" ({line.source}{dated})"
        case.step(f"line {line.title(self.dimensions)}{source or dated}")
        case.as_of = line.as_of or case.as_of
        amount, unit = line.part.price(case)
        return converted(case, amount, unit, self.credits_per_usd)

    def _find(self, values: tuple[Value | None, ...], at: datetime) -> Line | None:
        masked = itertools.product(*({value, None} for value in values))
        found = sorted({number for pattern in masked for number in self.index.get(pattern, ())})
        return next((self.lines[number] for number in found if not self.lines[number].is_over(at)), None)

    def _refusal(self, values: tuple[Value | None, ...], case: Case) -> UnpricedActionError:
        """Which dimension leaves no line, and what it may be."""
        alive = [line for line in self.lines if not line.is_over(case.at)]
        left: Iterable[Line] = alive
        for place, name in enumerate(self.dimensions):
            value = values[place]
            fitting = [line for line in left if line.fits(place, value)]
            if not fitting:
                over = [line for line in self.lines if line.is_over(case.at) and self._covers(line, values)]
                if over:
                    return _is_over(name, over[-1], self.dimensions)
                known = [text for line in left for text in line.shown[place] or ()]
                return missing(name, known) if value is None else unknown(name, case.dimensions[name], known)
            left = fitting
        raise AssertionError("a line that fits every dimension would have been found")

    @staticmethod
    def _covers(line: Line, values: tuple[Value | None, ...]) -> bool:
        return all(line.fits(place, value) for place, value in enumerate(values))

    def document(self) -> dict[str, Any]:
        """As it is stored."""
        return {
            "kind": "table",
            "dimensions": list(self.dimensions),
            "rows": [line.document(self.dimensions) for line in self.lines],
        } | rate_field(self.credits_per_usd)


def _is_over(name: str, line: Line, dimensions: Sequence[str]) -> UnpricedActionError:
    day = str(line.valid_until)
    return bad_dimension(name, "price_over", f"the price for {line.title(dimensions)} ended on {day}", valid_until=day)
