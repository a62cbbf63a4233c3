"""Measure agentcredits against the minimal transaction and a hand-written version: ``make bench``.

Only ratios of one run mean anything: contestants take turns in short slices, the floor stands before and after each,
and the median of the rounds counts. The whole run writes the tables of README.md and the pictures beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks import classification, hot_account, machine, memory, overheads, plots, processes, size
from tests.benchmarks.databases import POSTGRESQL, Databases, databases
from tests.benchmarks.figures import HEAD, Rounds, Row, rates_table
from tests.benchmarks.hot_account import Turns
from tests.benchmarks.minimal import FLOOR

HERE = Path(__file__).parent
README = HERE / "README.md"
PICTURES = "\n\n".join(
    (
        f"![Charges per second by number of callers]({plots.CONCURRENCY})",
        f"![Time of a call by rows in the ledger]({plots.LEDGER_SIZE})",
    )
)
BEGIN, END = "<!-- make bench: begin -->", "<!-- make bench: end -->"


@dataclass(frozen=True)
class Plan:
    """How much to measure."""

    turns: Turns
    process_turns: Turns
    process_seconds: float
    small_rounds: int
    sizes: tuple[int, ...]
    size_rounds: int
    memory_charges: int
    memory_seconds: float


WHOLE = Plan(
    turns=Turns(rounds=5, seconds=0.4),
    process_turns=Turns(rounds=5, seconds=0.4),
    process_seconds=2.0,
    small_rounds=9,
    sizes=(10_000, 100_000, 1_000_000, 10_000_000),
    size_rounds=11,
    memory_charges=1_000_000,
    memory_seconds=420,
)
QUICK = Plan(
    turns=Turns(rounds=1, seconds=0.2, floor_slices=2, callers=(1, hot_account.CROWD)),
    process_turns=Turns(rounds=2, seconds=0.2, floor_slices=2),
    process_seconds=0.4,
    small_rounds=2,
    sizes=(2_000, 20_000),
    size_rounds=2,
    memory_charges=10_000,
    memory_seconds=10,
)


@dataclass
class Report:
    """What was found so far; parts that were not measured are left out of it."""

    rates: dict[str, Rounds] = field(default_factory=dict)
    sizes: dict[str, size.Sizes] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    machine: str = ""
    running: list[tuple[str, subprocess.Popen[str]]] = field(default_factory=list)

    def finish(self) -> None:
        """Wait for the processes whose memory is measured."""
        while self.running:
            kind, process = self.running.pop(0)
            self.rows.append(memory.finish(process).row(kind))

    def text(self, plan: Plan) -> str:
        """All tables in Markdown."""
        lines = [f"{self.machine} Medians of {plan.turns.rounds} rounds. Compare ratios, not numbers.".strip()]
        for database, rounds in self.rates.items():
            title = f"{database}, one hot account, charges per second (p50 ms)"
            lines += ["", *rates_table(title, FLOOR, rounds)]
        if self.sizes:
            lines += ["", *size.table(self.sizes)]
        return "\n".join([*lines, "", *HEAD, *[row.line() for row in self.rows]])


def measure_rates(place: Databases, plan: Plan, report: Report) -> None:
    """One hot account, by contestant and number of callers."""
    for kind in place.kinds:
        report.rates[kind] = asyncio.run(hot_account.measure(place.fresh(kind), plan.turns))
    for kind in reversed(place.kinds):
        report.rows += hot_account.rows(kind, report.rates[kind])


def measure_processes(place: Databases, plan: Plan, report: Report) -> None:
    """Several processes on one hot account, on PostgreSQL."""
    if POSTGRESQL in place.kinds:
        found = asyncio.run(processes.measure(place.fresh(POSTGRESQL), plan.process_turns, plan.process_seconds))
        report.rows += found.rows(POSTGRESQL)


def measure_overheads(_: Databases, plan: Plan, report: Report) -> None:
    """The decorator, imports, classification."""
    report.rows += [overheads.decorated(plan.small_rounds), *overheads.imports(plan.small_rounds)]
    report.rows.append(classification.row(classification.measure(plan.small_rounds)))


def measure_memory(place: Databases, plan: Plan, report: Report) -> None:
    """Begin processes that make very many charges; they run on while ledgers are filled, which is not timed either."""
    for kind in place.kinds:
        report.running.append((kind, memory.start(place.fresh(kind), plan.memory_charges, plan.memory_seconds)))


def measure_sizes(place: Databases, plan: Plan, report: Report) -> None:
    """Small and large ledgers."""
    free = shutil.disk_usage(place.folder).free // len(place.kinds)
    charges = size.fitting(plan.sizes, free)
    if charges != plan.sizes:
        print(f"No room for ledgers of {plan.sizes[-1]:,} rows: measuring up to {charges[-1]:,}.")
    urls = {kind: [place.fresh(kind) for _ in charges] for kind in place.kinds}
    with ThreadPoolExecutor() as pool:
        for filled in [pool.submit(size.fill, some, charges) for some in urls.values()]:
            filled.result()
    report.finish()
    for kind, some in urls.items():
        sizes = asyncio.run(size.measure(some, charges, place.fresh(kind), plan.size_rounds))
        report.sizes[kind] = sizes
        report.rows += size.rows(kind, sizes)


PARTS: dict[str, Callable[[Databases, Plan, Report], None]] = {
    "rates": measure_rates,
    "processes": measure_processes,
    "overheads": measure_overheads,
    "memory": measure_memory,
    "sizes": measure_sizes,
}


def measure(plan: Plan, parts: list[str]) -> Report:
    """Run the parts in their order, saying how long each took."""
    report = Report()
    before = machine.ticks()
    with databases() as place:
        for name in (name for name in PARTS if name in parts):
            started = time.monotonic()
            PARTS[name](place, plan, report)
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        report.finish()
        report.machine = machine.told(place.folder, machine.stolen(before, machine.ticks()))
    return report


def draw(report: Report, folder: Path) -> None:
    """Write the pictures of what was measured."""
    if report.rates:
        plots.plot_concurrency(report.rates, folder)
    if report.sizes:
        plots.plot_ledger_size(report.sizes, folder)


def write_readme(text: str) -> None:
    """Replace what stands between the markers."""
    page = README.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute or so; prints only")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}; prints only")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="also write the pictures there")
    arguments = parser.parse_args()
    whole = not arguments.quick and not arguments.only
    plan = QUICK if arguments.quick else WHOLE
    report = measure(plan, arguments.only or list(PARTS))
    text = report.text(plan)
    print(text)
    if whole:
        write_readme(f"{PICTURES}\n\n{text}")
    folder = arguments.plots or (HERE if whole else None)
    if folder is not None:
        draw(report, folder)


if __name__ == "__main__":
    main()
