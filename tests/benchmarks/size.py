"""Whether a ledger's size costs anything: a charge, the balance, a page of history and a month's usage."""

from __future__ import annotations

import contextlib
import io
import statistics
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime

from agentcredits.cli.app import run as run_command
from agentcredits.service import SyncCreditService
from tests.benchmarks import ledgers
from tests.benchmarks.contestants import crowd, run_blocking
from tests.benchmarks.figures import Goal, Row
from tests.benchmarks.hand_written import HandWrittenLimited
from tests.benchmarks.ledgers import ORGANIZATION
from tests.benchmarks.minimal import FLOOR, make_floor

CHARGE, BALANCE, PAGE, USAGE = "charge", "balance", "page of 50", "one month's usage by action"
#: Booked together where they can be: what they name is looked for at once.
KEYED = "8 charges at once, each with its caller's key"
AT_ONCE = 8
COMMAND = "agentcredits usage"

#: How often each is done in a slice.
TIMES = {CHARGE: 30, KEYED: 15, BALANCE: 30, PAGE: 15, USAGE: 15}

#: About what a charge takes on the disk, in a SQLite file or a PostgreSQL database and its log.
BYTES_PER_CHARGE = 1_400


@dataclass
class Sizes:
    """Median milliseconds of each round: by what was done and the number of charges, and of the references."""

    charges: tuple[int, ...]
    times_ms: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    references: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    command_ms: list[float] = field(default_factory=list)

    def median(self, name: str, charges: int) -> float:
        """Over all rounds."""
        return statistics.median(self.times_ms[name, charges])

    def ratios(self, name: str) -> list[float]:
        """By round: the largest ledger against the smallest."""
        small, large = self.times_ms[name, self.charges[0]], self.times_ms[name, self.charges[-1]]
        return [after / before for before, after in zip(small, large, strict=True)]


def fitting(charges: Sequence[int], free_bytes: int) -> tuple[int, ...]:
    """The sizes for which there is room on the disk, smallest first."""
    fit: list[int] = []
    for count in sorted(charges):
        free_bytes -= count * BYTES_PER_CHARGE
        if free_bytes > 0:
            fit.append(count)
    return tuple(fit)


def fill(urls: Sequence[str], charges: Sequence[int]) -> None:
    """Make the ledgers; `verify` looks at the smallest.

    Raises:
        RuntimeError: the ledger does not add up.
    """
    for url, count in zip(urls, charges, strict=True):
        ledgers.fill(url, count)
    with SyncCreditService(urls[0]) as service:
        report = service.verify()
    if not report:
        raise RuntimeError(f"the ledger was filled wrongly: {report.problems[:3]}")


async def measure(urls: Sequence[str], charges: Sequence[int], reference_url: str, rounds: int) -> Sizes:
    """The same work on all ledgers, taking turns; the floor and the hand-written version on a database of their own."""
    sizes = Sizes(tuple(charges))
    with contextlib.ExitStack() as stack:
        callers = stack.enter_context(ThreadPoolExecutor(AT_ONCE))
        works = {}
        for count, url in zip(charges, urls, strict=True):
            service = stack.enter_context(SyncCreditService(url))
            service.set_limit(ORGANIZATION, scope="department", amount=10**8, window="month")
            service.set_limit(ORGANIZATION, amount=10**9, window="month")
            works[count] = _works(service, callers)
            for work in works[count].values():
                work()
        floor, hand = make_floor(reference_url), HandWrittenLimited(reference_url)
        await floor.start()
        await hand.start()
        await crowd(hand.charge, 1, 0.05)
        for number in range(rounds):
            order = charges if number % 2 == 0 else charges[::-1]
            for name, times in TIMES.items():
                found = _in_turn([works[count][name] for count in order], times)
                for count, p50_ms in zip(order, found, strict=True):
                    sizes.times_ms[name, count].append(p50_ms)
            sizes.references[FLOOR].append(run_blocking(floor.charge, 0.1).p50_ms or 0)
            sizes.references[hand.name].append((await crowd(hand.charge, 1, 0.2)).sample().p50_ms or 0)
            sizes.command_ms += _in_turn([lambda: _command(urls[-1])], 1)
        await floor.stop()
        await hand.stop()
    return sizes


def _in_turn(works: Sequence[Callable[[], object]], times: int) -> list[float]:
    """Median milliseconds of each, one call after the other, so that what disturbs one disturbs all."""
    found: list[list[float]] = [[] for _ in works]
    for _ in range(times):
        for work, seconds in zip(works, found, strict=True):
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
    return [statistics.median(seconds) * 1e3 for seconds in found]


def _works(service: SyncCreditService, callers: ThreadPoolExecutor) -> dict[str, Callable[[], object]]:
    since, until = ledgers.last_month(datetime.now(UTC).date())

    def charge(key: uuid.UUID | None = None) -> None:
        service.consume_credits(
            organization_id=ORGANIZATION,
            amount=1,
            agent_type="Agent0",
            action="action4",
            department_id="department3",
            idempotency_key=key and str(key),
        )

    return {
        CHARGE: charge,
        KEYED: lambda: list(callers.map(charge, [uuid.uuid4() for _ in range(AT_ONCE)])),
        BALANCE: lambda: service.get_balance(ORGANIZATION),
        PAGE: lambda: service.list_transactions(ORGANIZATION, limit=50),
        USAGE: lambda: service.get_usage(ORGANIZATION, since=since, until=until, group_by="action"),
    }


def _command(url: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        code = run_command(["usage", ORGANIZATION, "--by", "agent_type,action,department", "--database", url, "--json"])
    assert code == 0


def table(found: dict[str, Sizes]) -> list[str]:
    """p50 by size."""
    charges = next(iter(found.values())).charges
    lines = [
        "| p50 in ms, by rows of the ledger | " + " | ".join(f"{count:,}" for count in charges) + " |",
        "|---|" + "---:|" * len(charges),
    ]
    for database, sizes in found.items():
        for name in TIMES:
            cells = " | ".join(f"{sizes.median(name, count):.2f}" for count in charges)
            lines.append(f"| {database}: {name} | {cells} |")
        for name, times in sizes.references.items():
            lines.append(
                f"| {database}: {name} (its own tables) | {statistics.median(times):.2f} |"
                + " – |" * (len(charges) - 1)
            )
    return lines


def rows(database: str, sizes: Sizes) -> list[Row]:
    """The goals."""
    small, large = sizes.charges[0], sizes.charges[-1]
    goal = Goal(1.2, 1.05, at_most=True)
    found = [
        Row(f"{database}: {name}, {large:,} ledger rows against {small:,}", sizes.ratios(name), goal) for name in TIMES
    ]
    what = f"{database}: `{COMMAND}` of a year, {large:,} ledger rows, in a running process"
    return [*found, Row(what, sizes.command_ms, Goal(300, at_most=True), " ms")]
