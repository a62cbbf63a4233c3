"""What is computed from measurements: ratios within a round, their spread, fairness, and rows with goals."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sample:
    """One slice of one contestant: charges per second, and the median time of one charge in milliseconds."""

    rate: float
    p50_ms: float | None = None


@dataclass(frozen=True)
class Beside:
    """A contestant's slice and the floor just before and after it."""

    sample: Sample
    floor: Sample

    @property
    def rate(self) -> float:
        """The rate as a multiple of the floor's."""
        return self.sample.rate / self.floor.rate

    @property
    def p50(self) -> float:
        """The median time as a multiple of the floor's."""
        if self.sample.p50_ms is None or self.floor.p50_ms is None:
            raise ValueError("this contestant does not say how long a charge takes")
        return self.sample.p50_ms / self.floor.p50_ms


def middle(samples: Iterable[Sample]) -> Sample:
    """Medians of several slices: one that was disturbed does not count."""
    some = list(samples)
    times = [sample.p50_ms for sample in some if sample.p50_ms is not None]
    return Sample(statistics.median(sample.rate for sample in some), statistics.median(times) if times else None)


#: A contestant's name and the number of its callers.
Who = tuple[str, int]


@dataclass
class Rounds:
    """What was measured on one database: for each contestant one entry per round."""

    entries: dict[Who, list[Beside]] = field(default_factory=lambda: defaultdict(list))

    def add(self, who: Who, beside: Beside) -> None:
        """Add the next round's slice."""
        self.entries[who].append(beside)

    def median(self, who: Who) -> Sample | None:
        """The medians over all rounds, for tables; None: not measured."""
        return middle(entry.sample for entry in self.entries[who]) if who in self.entries else None

    def floor(self) -> Sample:
        """The floor, over all rounds."""
        return middle(entry.floor for entries in self.entries.values() for entry in entries)

    def rate(self, who: Who, against: Who | None = None) -> list[float]:
        """By round: how many times the rate of the floor beside it, or of another contestant in the same round."""
        entries = self.entries[who]
        if against is None:
            return [entry.rate for entry in entries]
        others = self.entries[against]
        return [entry.sample.rate / other.sample.rate for entry, other in zip(entries, others, strict=True)]

    def p50(self, who: Who, against: Who | None = None) -> list[float]:
        """By round: how many times the median time of the floor beside it, or of another contestant.

        Raises:
            ValueError: one of them does not say how long a charge takes.
        """
        entries = self.entries[who]
        if against is None:
            return [entry.p50 for entry in entries]
        others = self.entries[against]
        return [Beside(entry.sample, other.sample).p50 for entry, other in zip(entries, others, strict=True)]


def fairness(counts: Sequence[float]) -> float:
    """Jain's index, (Σx)² / (n · Σx²): 1 when all got the same, 1/n when one got everything.

    Raises:
        ValueError: nobody got anything.
    """
    if not any(counts):
        raise ValueError("nobody got anything")
    return sum(counts) ** 2 / (len(counts) * sum(count * count for count in counts))


# -- rows --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Goal:
    """What a figure should reach, and what would be better still."""

    bound: float
    stretch: float | None = None
    at_most: bool = False

    def met(self, value: float) -> str:
        """Either "no", "yes" or "stretch"."""
        if self.stretch is not None and self._reaches(value, self.stretch):
            return "stretch"
        return "yes" if self._reaches(value, self.bound) else "no"

    def text(self, bound: float | None, unit: str) -> str:
        """A bound as the table shows it."""
        return "–" if bound is None else f"{'≤' if self.at_most else '≥'} {bound:g}{unit}"

    def _reaches(self, value: float, bound: float) -> bool:
        return value <= bound if self.at_most else value >= bound


@dataclass(frozen=True)
class Row:
    """One line of the table of goals: the median of ``values`` decides, their spread is shown.

    Attributes:
        what: What was measured.
        values: One per round.
        goal: None: only shown.
        unit: With the space before it.
        note: Said behind the figure.
    """

    what: str
    values: Sequence[float]
    goal: Goal | None = None
    unit: str = " ×"
    note: str = ""

    @property
    def found(self) -> float:
        """The median."""
        return statistics.median(self.values)

    def line(self) -> str:
        """The row in Markdown."""
        shown = f"{number(self.found)}{self.unit}"
        if len(self.values) > 1:
            shown += f" ({number(min(self.values))}–{number(max(self.values))})"
        cells = [self.what, shown + self.note, "–", "–", "–"]
        if self.goal is not None:
            goal = self.goal
            cells[2:] = [goal.text(goal.bound, self.unit), goal.text(goal.stretch, self.unit), goal.met(self.found)]
        return f"| {' | '.join(cells)} |"


HEAD = ("| ratio | found (least–most of the rounds) | goal | stretch | met |", "|---|---:|---:|---:|---|")


def number(value: float) -> str:
    """Three significant digits, whole from 100 on."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def rates_table(title: str, floor: str, rounds: Rounds) -> list[str]:
    """Charges per second and p50, a line for each contestant, a column for each number of callers."""
    columns = sorted({callers for _, callers in rounds.entries} | {1})
    lines = [
        f"| {title} | " + " | ".join(f"{count} caller{'s' * (count > 1)}" for count in columns) + " |",
        "|---|" + "---:|" * len(columns),
        f"| {floor} | {_cell(rounds.floor())} |" + " – |" * (len(columns) - 1),
    ]
    names = dict.fromkeys(name for name, _ in rounds.entries)
    return lines + [
        f"| {name} | " + " | ".join(_cell(rounds.median((name, count))) for count in columns) + " |" for name in names
    ]


def _cell(sample: Sample | None) -> str:
    if sample is None:
        return "–"
    return f"{sample.rate:,.0f}" + ("" if sample.p50_ms is None else f" ({sample.p50_ms:.2f})")
