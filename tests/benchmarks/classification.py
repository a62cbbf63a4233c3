"""What classifying a provider's failure costs, over the real messages of the tests."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.figures import Goal, Row

MESSAGES = Path(__file__).parents[1] / "data/provider_messages"

#: The floor: one search for the words that matter, on the same text.
FLOOR = re.compile("insufficient|credit|quota|balance|limit")

REPEATS = 20


class FakeClientError(Exception):
    """An exception of a client that says everything in one sentence."""


def measure(rounds: int) -> tuple[float, float]:
    """Microseconds of one classification and of one search, each the median over all messages.

    Of a message its fastest round counts; both contestants take turns.
    """
    from agentcredits.media import classify_provider_error

    ours, floor = [], []
    for path in sorted(MESSAGES.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            exception, given = _arguments({"provider": path.stem, **json.loads(line)})
            text = line.lower()
            found = [
                (
                    _us(lambda e=exception, g=given: classify_provider_error(e, **g)),  # type: ignore[misc]
                    _us(lambda t=text: FLOOR.search(t)),  # type: ignore[misc]
                )
                for _ in range(rounds + 1)
            ]
            ours.append(min(pair[0] for pair in found[1:]))
            floor.append(min(pair[1] for pair in found[1:]))
    return statistics.median(ours), statistics.median(floor)


def _us(call: Callable[[], Any]) -> float:
    started = time.perf_counter_ns()
    for _ in range(REPEATS):
        call()
    return (time.perf_counter_ns() - started) / REPEATS / 1e3


def _arguments(entry: dict[str, Any]) -> tuple[Exception | None, dict[str, Any]]:
    given = {name: entry[name] for name in ("provider", "status", "headers", "body", "value") if name in entry}
    if "text" not in entry:
        return None, given
    if "status" in entry:
        return None, {**given, "body": entry["text"]}
    return FakeClientError(entry["text"]), given


def row(measured: tuple[float, float]) -> Row:
    """The line of the table."""
    ours, floor = measured
    what = "one provider fault classified, median over the real messages"
    return Row(what, [ours], Goal(50, at_most=True), " µs", f", {ours / floor:.0f} × one `re.search`")


if __name__ == "__main__":
    print(row(measure(5)).line())
