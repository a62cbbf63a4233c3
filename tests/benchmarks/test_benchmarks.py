"""What the benchmarks compute is right, and every contestant really charges."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from sqlalchemy import create_engine, func, select, text

from agentcredits.service import SyncCreditService
from agentcredits.store.dialects import normalise_url
from tests.benchmarks import hot_account, ledgers, machine, memory, plots, processes, run, size
from tests.benchmarks.bare import make_ceiling
from tests.benchmarks.contestants import PLENTY, crowd
from tests.benchmarks.figures import Beside, Goal, Rounds, Row, Sample, fairness, middle, rates_table
from tests.benchmarks.hand_written import HandWrittenLimited, OrmEntry, OrmLimit
from tests.benchmarks.hot_account import Turns
from tests.benchmarks.memory import Growth
from tests.benchmarks.minimal import FLOOR
from tests.benchmarks.ours import OursLimited
from tests.benchmarks.processes import Together

TINY = Turns(rounds=2, seconds=0.02, floor_slices=1, floor_seconds=0.01, callers=(1, 128))


def test_a_ratio_is_taken_against_the_floor_beside_it() -> None:
    """A machine that becomes half as fast between two rounds or two contestants changes no ratio to the floor."""
    rounds = Rounds()
    for speed in (1.0, 0.5):
        rounds.add(("ours", 128), Beside(Sample(8_000 * speed, 2 / speed), Sample(1_000 * speed, 1 / speed)))
        slower = speed / 2
        rounds.add(("hand", 128), Beside(Sample(200 * slower, 40 / slower), Sample(1_000 * slower, 1 / slower)))

    assert rounds.rate(("ours", 128)) == pytest.approx([8, 8])
    assert rounds.p50(("ours", 128)) == pytest.approx([2, 2])
    assert rounds.rate(("hand", 128)) == pytest.approx([0.2, 0.2])
    assert rounds.p50(("hand", 128)) == pytest.approx([40, 40])


def test_two_contestants_are_compared_within_a_round() -> None:
    """A round on a slow machine counts as much as one on a fast machine."""
    rounds = Rounds()
    floor = Sample(1_000, 1.0)
    for speed, factor in ((1.0, 40), (0.1, 50), (1.0, 60)):
        rounds.add(("ours", 128), Beside(Sample(200 * factor * speed, 400 / factor / speed), floor))
        rounds.add(("hand", 128), Beside(Sample(200 * speed, 400 / speed), floor))
    assert rounds.rate(("ours", 128), ("hand", 128)) == pytest.approx([40, 50, 60])
    assert rounds.p50(("ours", 128), ("hand", 128)) == pytest.approx([1 / 40, 1 / 50, 1 / 60])


def test_a_time_that_nobody_took_is_not_compared() -> None:
    """A program such as pgbench gives a rate only."""
    rounds = Rounds()
    rounds.add(("pgbench", 1), Beside(Sample(1_000), Sample(1_000, 1.0)))
    assert rounds.rate(("pgbench", 1)) == [1]
    with pytest.raises(ValueError, match="how long"):
        rounds.p50(("pgbench", 1))


def test_one_disturbed_slice_of_the_floor_does_not_count() -> None:
    """The median of the slices before and after a contestant's."""
    slices = [Sample(1_000, 1.0), Sample(1_000, 1.0), Sample(10, 100.0), Sample(1_000, 1.0)]
    assert middle(slices) == Sample(1_000, 1.0)


def test_the_median_of_the_rounds_decides_and_their_spread_is_shown() -> None:
    """Neither the best round nor the mean."""
    row = Row("something", [2.0, 9.0, 10.0], Goal(8, 20))
    assert row.line() == "| something | 9 × (2–10) | ≥ 8 × | ≥ 20 × | yes |"
    assert Row("something", [1.0, 7.9, 900.0], Goal(8, 20)).line().endswith("| no |")


@pytest.mark.parametrize(
    ("goal", "value", "met"),
    [
        (Goal(8, 20), 7.99, "no"),
        (Goal(8, 20), 8, "yes"),
        (Goal(8, 20), 20, "stretch"),
        (Goal(3, 1.5, at_most=True), 3.01, "no"),
        (Goal(3, 1.5, at_most=True), 3, "yes"),
        (Goal(3, 1.5, at_most=True), 1.5, "stretch"),
        (Goal(40), 1_000, "yes"),
    ],
)
def test_a_goal_is_met_at_its_bound(goal: Goal, value: float, met: str) -> None:
    """Both directions, with and without a stretch."""
    assert goal.met(value) == met


def test_a_figure_without_a_goal_is_only_shown() -> None:
    """No "yes" where nothing was promised."""
    assert Row("something", [1_234.5], unit=" ms").line() == "| something | 1,234 ms | – | – | – |"


def test_fairness_is_jains_index() -> None:
    """1 when all got the same, 1/n when one got everything."""
    assert fairness([5, 5, 5, 5]) == pytest.approx(1)
    assert fairness([9, 0, 0]) == pytest.approx(1 / 3)
    assert fairness([1, 2, 3]) == pytest.approx(36 / 42)
    with pytest.raises(ValueError, match="nobody"):
        fairness([0, 0])


def test_fairness_looks_at_processes_and_at_callers() -> None:
    """Callers may be treated unevenly by processes that are treated evenly."""
    found = Together()
    found.add(Beside(Sample(16_000), Sample(1_000, 1.0)), [[10, 0], [10, 0], [0, 10], [5, 5]])
    rate, between_processes, between_callers = (row.found for row in found.rows("PostgreSQL"))
    assert (rate, between_processes) == (16, 1)
    assert between_callers == pytest.approx(40**2 / (8 * 350))


def test_memory_that_was_cut_short_meets_no_goal() -> None:
    """A million charges were promised."""
    mb = 1024 * 1024
    assert Growth(1_000, 200, 100 * mb, 1_000, 104 * mb).row("SQLite").line().endswith("| 4 MB | ≤ 5 MB | – | yes |")
    assert Growth(1_000, 200, 100 * mb, 1_000, 106 * mb).row("SQLite").line().endswith("| no |")
    assert Growth(1_000, 200, 100 * mb, 900, 100 * mb).row("SQLite").line().endswith("| – | – | – |")


def test_ledgers_that_do_not_fit_on_the_disk_are_left_out() -> None:
    """All sizes together must have room."""
    room = (10_000 + 100_000) * size.BYTES_PER_CHARGE
    assert size.fitting((10_000, 100_000, 1_000_000), room + 1) == (10_000, 100_000)
    assert size.fitting((10_000, 100_000), room) == (10_000,)


# -- ledgers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("charges", [1_500, 10_000, 1_000_003])
@pytest.mark.parametrize("today", [date(2026, 3, 1), date(2026, 3, 31), date(2027, 1, 15)])
def test_the_measured_month_holds_the_same_charges_whatever_the_ledgers_size(charges: int, today: date) -> None:
    """Every charge has its day, in order, and none lies in the present month."""
    since, until = ledgers.last_month(today)
    days = [entry for stretch in ledgers.stretches(charges, today) for entry in stretch.days()]
    assert [number for _, numbers in days for number in numbers] == list(range(1, charges + 1))
    assert [day for day, _ in days] == sorted({day for day, _ in days})
    in_month = [len(numbers) for day, numbers in days if since <= day]
    assert in_month == [ledgers.PER_DAY_IN_MONTH] * (until - since).days


def test_a_ledger_too_small_for_its_month_is_refused() -> None:
    """Nothing is measured on less than was promised."""
    with pytest.raises(ValueError, match="do not fill"):
        ledgers.stretches(500, date(2026, 3, 1))


def test_a_filled_ledger_adds_up(database_url: str) -> None:
    """`verify` recomputes what was written by SQL; usage of the month equals its rows."""
    ledgers.fill(database_url, 3_000)
    since, until = ledgers.last_month(datetime.now(UTC).date())
    month = (until - since).days * ledgers.PER_DAY_IN_MONTH
    with SyncCreditService(database_url) as service:
        assert service.verify().problems == ()
        by_action = service.get_usage(ledgers.ORGANIZATION, since=since, until=until, group_by="action")
        everything = service.get_usage(ledgers.ORGANIZATION, group_by=("agent_type", "action", "user"))
        page = service.list_transactions(ledgers.ORGANIZATION, limit=50)
    assert (by_action.total.charges, everything.total.charges, len(by_action.lines)) == (month, 3_000, 10)
    assert len(page.items) == 50
    newest = page.items[0]
    assert since <= newest.created_at.date() < until
    line = next(line for line in everything.lines if line.group["action"] == newest.action)
    assert line.group["agent_type"] == newest.agent_type


# -- measuring ---------------------------------------------------------------------------------------------------


async def test_everybody_is_measured_beside_the_floor(database_url: str) -> None:
    """Each contestant with each number of callers once a round; the tables and goals can be made of it."""
    rounds = await hot_account.measure(database_url, TINY)
    for player in hot_account.contestants(database_url):
        for callers in set(player.callers) & set(TINY.callers):
            assert len(rounds.entries[player.name, callers]) == TINY.rounds
            assert min(rounds.rate((player.name, callers))) > 0
    database = "SQLite" if database_url.startswith("sqlite") else "PostgreSQL"
    rows = hot_account.rows(database, rounds)
    assert all(len(row.values) == TINY.rounds for row in rows)
    assert sum(row.goal is not None for row in rows) == (4 if database == "SQLite" else 8)
    table = rates_table("here", FLOOR, rounds)
    assert table[0] == "| here | 1 caller | 128 callers |"
    assert len(table) == 3 + len({name for name, _ in rounds.entries})


async def test_the_full_charge_and_the_hand_written_one_count_two_limits(database_url: str) -> None:
    """What the goals speak of: the organization's and the department's month."""
    player = OursLimited(database_url)
    await player.start()
    found = await crowd(player.charge, 8, 0.01)
    await player.stop()
    with SyncCreditService(database_url) as service:
        limits = service.list_limits("hot-limited")
        assert sorted((limit.scope, limit.window) for limit in limits) == [
            ("department", "month UTC"),
            ("organization", "month UTC"),
        ]
        assert [int(usage.spent) for limit in limits for usage in limit.usage] == [len(found.times)] * 2
        assert service.verify().problems == ()
    assert sum(found.counts) == len(found.times) >= 8
    hand = HandWrittenLimited(database_url)
    await hand.start()
    await crowd(hand.charge, 2, 0.01)
    await hand.stop()
    engine = create_engine(normalise_url(database_url))
    with engine.connect() as connection:
        used = connection.scalars(select(OrmLimit.used)).all()
        ledger = connection.scalar(select(func.count()).select_from(OrmEntry))
    engine.dispose()
    assert used == [ledger, ledger]
    assert ledger >= 2


async def test_bare_batches_book_every_charge(database_url: str) -> None:
    """The ceiling does at least this: no call is answered that is not in its ledger, its balance and its counters."""
    player = make_ceiling(database_url)
    await player.start()
    found = await crowd(player.charge, 8, 0.01)
    await player.stop()
    engine = create_engine(normalise_url(database_url))
    with engine.connect() as connection:
        (balance,) = connection.scalars(text("SELECT balance FROM bare_accounts"))
        used = connection.scalars(text("SELECT used FROM bare_limits")).all()
        rows = connection.scalar(text("SELECT count(*) FROM bare_ledger"))
    engine.dispose()
    assert PLENTY - balance == rows == len(found.times) >= 8
    assert used == [rows, rows]


async def test_processes_charge_one_account_together(postgresql_url: str) -> None:
    """What the processes say they charged is what the account was charged."""
    with SyncCreditService(postgresql_url) as service:
        found = await processes.measure(postgresql_url, replace(TINY, rounds=1), 0.05)
        charged = service.get_balance("hot-limited").spent
    assert len(found.entries) == len(found.between_processes) == len(found.between_callers) == 1
    assert 0 < found.between_callers[0] <= 1
    # Each process charged alone before, to connect.
    assert charged >= processes.PROCESSES * (processes.CALLERS + 1)


def test_the_memory_of_a_process_of_its_own_is_measured(database_url: str) -> None:
    """All the charges were made, and megabytes come back."""
    growth = memory.finish(memory.start(database_url, 500, 60))
    with SyncCreditService(database_url) as service:
        assert service.get_balance("hot-limited").spent == growth.charges == growth.wanted == 500
    assert growth.first_charges == 100
    assert 10 * memory.MB < growth.first_bytes < 1_000 * memory.MB


async def test_pictures_and_tables_are_made_of_what_was_measured(database_url: str, tmp_path: Path) -> None:
    """Also with one database and few sizes."""
    pytest.importorskip("matplotlib")
    report = run.Report()
    report.rates["One"] = await hot_account.measure(database_url, replace(TINY, rounds=1))
    ledgers.fill(database_url, 2_000)
    report.sizes["One"] = await size.measure([database_url], [2_000], database_url, 1)
    run.draw(report, tmp_path)
    for name in (plots.CONCURRENCY, plots.LEDGER_SIZE):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert "| One: charge | " in report.text(run.QUICK)


def test_the_machine_is_told(tmp_path: Path) -> None:
    """The share of what was stolen is that of the time between two readings."""
    stat = tmp_path / "stat"
    stat.write_text("cpu  10 0 10 70 0 0 0 10 99 99\ncpu0 1 1 1 1 1 1 1 1 0 0\n", encoding="ascii")
    before = machine.ticks(stat)
    stat.write_text("cpu  20 0 20 100 0 0 0 60 99 99\n", encoding="ascii")
    assert before == machine.Ticks(whole=100, stolen=10)
    assert machine.stolen(before, machine.ticks(stat)) == 0.5
    assert machine.stolen(before, before) is None
    assert machine.stolen(None, machine.ticks(tmp_path / "no stat")) is None
    assert re.fullmatch(
        r"Python \S+ \(a bare `await` takes \d+\.\d\d µs\), \d+ cores, of whose time other machines took 50%;"
        r" 8 KiB are on the disk in \d+\.\d\d ms\.",
        machine.told(tmp_path, 0.5),
    )
    assert "other machines" not in machine.told(tmp_path, None)
