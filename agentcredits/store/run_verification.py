"""Verify, runs: recompute what was spent and held in them from the ledger, and what is carved from the runs inside.

The sums are made by the database, all runs of an account at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, FromClause, and_, case, func, or_, select

from agentcredits.amounts import from_micros
from agentcredits.model import RunStatus
from agentcredits.rules.runs import POOL
from agentcredits.rules.state import OPEN_STATES
from agentcredits.store import limit_sums
from agentcredits.store.findings import Finding
from agentcredits.store.tables import credit_reservations, credit_runs

MAX_EXAMPLES: Final = 20

Problems = Iterator[Finding]


def _finding(message: str) -> Finding:
    # A run's counters are nobody else's: the account can be repaired beside them.
    return Finding("run", message, blocks=False)


def check_runs(connection: Connection, organization_id: str) -> Problems:
    """Every counter of every run, and that each stands where it says."""
    known = select(credit_runs.c.run_id).where(credit_runs.c.organization_id == organization_id).limit(1)
    if connection.execute(known).first() is None:
        return
    yield from _check(connection, organization_id, _spent(organization_id), {"spent_micros": "spent"})
    yield from _check(connection, organization_id, _held(organization_id), {"held_micros": "held"})
    inside = {
        "carved_micros": "carved for the runs inside",
        "inner_spent_micros": "spent in the runs inside",
        "open_children": "the number of open runs inside",
    }
    yield from _check(connection, organization_id, _inside(organization_id), inside)
    yield from _check_places(connection, organization_id)


def _check(connection: Connection, organization_id: str, sums: Any, names: dict[str, str]) -> Problems:
    """Compare columns of the runs with the sums of the same names; a run without a sum should stand at 0."""
    table = credit_runs
    expected = {name: func.coalesce(sums.c[name], 0) for name in names}
    statement = (
        select(table.c.run_id, *(table.c[name] for name in names), *expected.values())
        .select_from(table.outerjoin(sums, sums.c.run_id == table.c.run_id))
        .where(table.c.organization_id == organization_id)
        .where(or_(*(table.c[name] != sum_ for name, sum_ in expected.items())))
    )
    for run_id, *values in connection.execute(statement.order_by(table.c.run_id).limit(MAX_EXAMPLES)):
        stored, summed = values[: len(names)], values[len(names) :]
        for (name, what), there, right in zip(names.items(), stored, summed, strict=True):
            if there != right:
                shown = [
                    f"{from_micros(number):f}" if name.endswith("_micros") else str(number)
                    for number in (int(there), int(right))
                ]
                yield _finding(f"{what} of run {run_id} is {shown[0]}, its rows say {shown[1]}")


def _spent(organization_id: str) -> FromClause:
    table, rows, charges = credit_runs, limit_sums.rows, limit_sums.charges
    joined = limit_sums.COUNTED.join(
        table,
        and_(
            table.c.organization_id == charges.c.organization_id,
            table.c.run_id == charges.c.run_id,
            charges.c.seq > table.c.counts_from_seq,
        ),
    )
    return (
        select(table.c.run_id, func.sum(-rows.c.amount_micros).label("spent_micros"))
        .select_from(joined)
        .where(rows.c.organization_id == organization_id, limit_sums.is_counted())
        .group_by(table.c.run_id)
        .subquery()
    )


def _held(organization_id: str) -> FromClause:
    table = credit_reservations
    return (
        select(table.c.run_id, func.sum(table.c.amount_micros).label("held_micros"))
        .where(
            table.c.organization_id == organization_id,
            table.c.state.in_([state.value for state in OPEN_STATES]),
            # JSON; all others in it are UUIDs.
            table.c.limits.like(f'%"{POOL}"%'),
        )
        .group_by(table.c.run_id)
        .subquery()
    )


def _inside(organization_id: str) -> FromClause:
    table = credit_runs
    is_open = table.c.status == RunStatus.OPEN.value
    used = table.c.spent_micros + table.c.held_micros + table.c.carved_micros
    claim: ColumnElement[int] = case((and_(is_open, table.c.cap_micros > used), table.c.cap_micros), else_=used)
    return (
        select(
            table.c.parent_run_id.label("run_id"),
            func.sum(claim).label("carved_micros"),
            func.sum(table.c.spent_micros + table.c.inner_spent_micros).label("inner_spent_micros"),
            func.sum(case((is_open, 1), else_=0)).label("open_children"),
        )
        .where(table.c.organization_id == organization_id, table.c.parent_run_id.is_not(None))
        .group_by(table.c.parent_run_id)
        .subquery()
    )


def _check_places(connection: Connection, organization_id: str) -> Problems:
    run, around = credit_runs, credit_runs.alias("around")
    statement = (
        select(run.c.run_id, run.c.parent_run_id)
        .select_from(
            run.outerjoin(
                around,
                and_(around.c.organization_id == run.c.organization_id, around.c.run_id == run.c.parent_run_id),
            )
        )
        .where(
            run.c.organization_id == organization_id,
            or_(
                and_(run.c.parent_run_id.is_(None), run.c.root_run_id != run.c.run_id),
                and_(run.c.parent_run_id.is_not(None), around.c.run_id.is_(None)),
                run.c.root_run_id != around.c.root_run_id,
                run.c.depth != around.c.depth + 1,
                and_(run.c.status == RunStatus.OPEN.value, around.c.status == RunStatus.ENDED.value),
            ),
        )
        .order_by(run.c.run_id)
        .limit(MAX_EXAMPLES)
    )
    for run_id, parent in connection.execute(statement):
        inside = "on its own" if parent is None else f"inside run {parent}"
        yield _finding(f"run {run_id} cannot stand {inside} as it says")
