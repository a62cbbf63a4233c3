"""What agentcredits costs where it does nothing: the decorator with mode "off", and the import."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from agentcredits import consume_credits
from agentcredits.service import SyncCreditService
from agentcredits.settings import load_settings
from tests.benchmarks.databases import CHECKOUT
from tests.benchmarks.figures import Goal, Row

CALLS = 50_000

CPU_OF_IMPORT = """
import resource
def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
before = cpu()
{statement}
print(cpu() - before)
"""

#: agentcredits loads its rooms on first use, so what a program really imports is measured too.
FLOOR_IMPORT = "import sqlalchemy"
IMPORTS = (
    "import agentcredits",
    "from agentcredits import CreditService, RequestContext, consume_credits, use_context",
)


def decorated(rounds: int) -> Row:
    """Microseconds that the decorator adds to a call, with mode "off"."""
    service: Any = SyncCreditService("sqlite://", settings=load_settings(mode="off"))

    def bare(number: int) -> int:
        return number

    wrapped = consume_credits("ContentAgent", "generate_content", service=service)(bare)
    added = []
    for _ in range(rounds + 1):
        times = []
        for function in (bare, wrapped, bare):
            started = time.perf_counter_ns()
            for number in range(CALLS):
                function(number)
            times.append((time.perf_counter_ns() - started) / CALLS / 1e3)
        added.append(times[1] - (times[0] + times[2]) / 2)
    service.close()
    return Row("decorated call, mode off, over the bare call", added[1:], Goal(2, 1, at_most=True), " µs")


def imports(rounds: int) -> list[Row]:
    """CPU time of imports against that of SQLAlchemy, taking turns."""
    found: dict[str, list[float]] = {statement: [] for statement in IMPORTS}
    for number in range(rounds + 1):
        base = _import_cpu_seconds(FLOOR_IMPORT)
        for statement, ratios in found.items():
            ratio = _import_cpu_seconds(statement) / base
            if number:  # the first round fills the disk's cache
                ratios.append(ratio)
    goal = Goal(1.5, at_most=True)
    return [Row(f"CPU time of `{name}` against `{FLOOR_IMPORT}`", ratios, goal) for name, ratios in found.items()]


def _import_cpu_seconds(statement: str) -> float:
    command = [sys.executable, "-c", CPU_OF_IMPORT.format(statement=statement)]
    # Installed packages are compiled already; ours shall not be compiled anew each time either.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=CHECKOUT, env=environment)
    return float(done.stdout)
