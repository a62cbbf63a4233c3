"""The two pictures of README.md."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks import size
from tests.benchmarks.bare import CEILING
from tests.benchmarks.figures import Rounds
from tests.benchmarks.hand_written import HandWrittenLimited
from tests.benchmarks.hot_account import series
from tests.benchmarks.minimal import FLOOR, PGBENCH
from tests.benchmarks.ours import OursLimited, OursPairsLimited
from tests.benchmarks.size import Sizes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONCURRENCY = "throughput-by-callers.png"
LEDGER_SIZE = "latency-by-ledger-size.png"

#: Okabe and Ito's colours, which people with any kind of colour vision tell apart; the markers say it again.
BLUE, ORANGE, GREEN, PURPLE, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7F7F7F", "#000000"

_CURVES: dict[str, tuple[str, dict[str, Any]]] = {
    CEILING: ("bare batches, nothing decided", {"color": PURPLE, "marker": "v", "linestyle": "-."}),
    OursLimited.name: ("agentcredits, full charge", {"color": BLUE, "marker": "o", "linewidth": 2.4}),
    OursPairsLimited.name: ("agentcredits, reserve + commit pairs", {"color": GREEN, "marker": "s"}),
    PGBENCH: ("minimal transaction, pgbench", {"color": BLACK, "marker": "^", "linestyle": ":"}),
    HandWrittenLimited.name: ("hand-written ORM", {"color": ORANGE, "marker": "D"}),
}
_WORKS: dict[str, dict[str, Any]] = {
    size.CHARGE: {"color": BLUE, "marker": "o", "linewidth": 2.4},
    size.PAGE: {"color": GREEN, "marker": "s"},
    size.USAGE: {"color": PURPLE, "marker": "v"},
    size.BALANCE: {"color": BLACK, "marker": "^"},
}
_REFERENCES: dict[str, tuple[str, dict[str, Any]]] = {
    FLOOR: ("minimal transaction", {"color": GREY, "linestyle": "--"}),
    HandWrittenLimited.name: ("hand-written ORM, charge", {"color": ORANGE, "linestyle": "-."}),
}


def plot_concurrency(found: Mapping[str, Rounds], folder: Path) -> None:
    """Charges per second against the number of callers, a panel for each database."""
    figure, panels = _panels(len(found), "One hot account: charges per second by number of coroutines")
    for axes, (database, rounds) in zip(panels, found.items(), strict=True):
        ticks: set[int] = set()
        for name, (label, style) in _CURVES.items():
            counts, rates = series(rounds, name)
            if counts:
                axes.plot(counts, rates, label=label, **style)
                ticks.update(counts)
        floor = rounds.floor().rate
        axes.axhline(floor, color=GREY, linestyle="--", label="minimal transaction, raw driver, one caller")
        axes.set(title=database, xlabel="callers at once")
        _scale(axes, sorted(ticks))
    panels[0].set_ylabel("charges per second")
    _save(figure, panels, folder / CONCURRENCY)


def plot_ledger_size(found: Mapping[str, Sizes], folder: Path) -> None:
    """p50 against the number of ledger rows, a panel for each database."""
    figure, panels = _panels(len(found), "One caller: time of a call by rows in the ledger")
    for axes, (database, sizes) in zip(panels, found.items(), strict=True):
        for name, style in _WORKS.items():
            axes.plot(sizes.charges, [sizes.median(name, count) for count in sizes.charges], label=name, **style)
        for name, (label, style) in _REFERENCES.items():
            axes.axhline(statistics.median(sizes.references[name]), label=f"{label} (own tables)", **style)
        axes.set(title=database, xlabel="rows in the ledger")
        _scale(axes, sizes.charges)
    panels[0].set_ylabel("median time, ms")
    _save(figure, panels, folder / LEDGER_SIZE)


def _scale(axes: Axes, ticks: Sequence[int]) -> None:
    """Logarithmic both ways, with plain numbers, and on the x axis only at what was measured."""
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")


def _panels(count: int, title: str) -> tuple[Any, list[Axes]]:
    from matplotlib import pyplot as plt

    plt.switch_backend("Agg")  # no display
    figure, panels = plt.subplots(1, count, figsize=(5.6 * count, 5.2), sharey=True, squeeze=False)
    figure.suptitle(title, fontsize=13)
    return figure, list(panels[0])


def _save(figure: Any, panels: list[Axes], path: Path) -> None:
    from matplotlib import pyplot as plt

    entries: dict[str, Any] = {}
    for axes in panels:
        axes.grid(visible=True, which="major", color="#DDDDDD", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(entries.values(), entries.keys(), loc="lower center", ncols=3, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(path, dpi=120)
    plt.close(figure)
