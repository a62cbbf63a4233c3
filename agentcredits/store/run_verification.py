"""Verify, runs: recompute what was spent and held in them from the ledger, and what is carved from the runs inside.

The sums are made by the database, all runs of an account at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    FromClause,
    Select,
    and_,
    bindparam,
    case,
    func,
    or_,
    select,
)

from agentcredits.amounts import from_micros
from agentcredits.model import RunStatus
from agentcredits.rules.runs import POOL
from agentcredits.store import limit_sums
from agentcredits.store.findings import Finding
from agentcredits.store.tables import HOLDING, credit_reservations, credit_runs

MAX_EXAMPLES: Final = 20

Problems = Iterator[Finding]


def _finding(message: str) -> Finding:
    # A run's counters are nobody else's: the account can be repaired beside them.
    return Finding("run", message, blocks=False)


def check_runs(connection: Connection, organization_id: str) -> Problems:
    """Every counter of every run, and that each stands where it says."""
    mine = {"organization_id": organization_id}
    if connection.execute(_any_run(), mine).first() is None:
        return
    for what in _COUNTERS:
        for run_id, *values in connection.execute(_differing(what), mine):
            yield from _compare(_COUNTERS[what], run_id, values)
    for run_id, parent in connection.execute(_misplaced(), mine):
        inside = "on its own" if parent is None else f"inside run {parent}"
        yield _finding(f"run {run_id} cannot stand {inside} as it says")


#: The columns that are counted together, and what they are called.
_COUNTERS: Final = {
    "spent": {"spent_micros": "spent"},
    "held": {"held_micros": "held"},
    "inside": {
        "carved_micros": "carved for the runs inside",
        "inner_spent_micros": "spent in the runs inside",
        "open_children": "the number of open runs inside",
    },
}


def _compare(names: dict[str, str], run_id: str, values: list[Any]) -> Problems:
    stored, summed = values[: len(names)], values[len(names) :]
    for (name, what), there, right in zip(names.items(), stored, summed, strict=True):
        if there != right:
            shown = [
                f"{from_micros(number):f}" if name.endswith("_micros") else str(number)
                for number in (int(there), int(right))
            ]
            yield _finding(f"{what} of run {run_id} is {shown[0]}, its rows say {shown[1]}")


# -- what is asked of every account ----------------------------------------------------------------------------------

_OWNER: Final[BindParameter[str]] = bindparam("organization_id")


@cache
def _any_run() -> Select[Any]:
    return select(credit_runs.c.run_id).where(credit_runs.c.organization_id == _OWNER).limit(1)


@cache
def _differing(what: str) -> Select[Any]:
    """Columns of the runs beside the sums of the same names; a run without a sum should stand at 0."""
    table, names = credit_runs, _COUNTERS[what]
    sums = {"spent": _spent, "held": _held, "inside": _inside}[what]()
    expected = {name: func.coalesce(sums.c[name], 0) for name in names}
    return (
        select(table.c.run_id, *(table.c[name] for name in names), *expected.values())
        .select_from(table.outerjoin(sums, sums.c.run_id == table.c.run_id))
        .where(table.c.organization_id == _OWNER)
        .where(or_(*(table.c[name] != sum_ for name, sum_ in expected.items())))
        .order_by(table.c.run_id)
        .limit(MAX_EXAMPLES)
    )


def _spent() -> FromClause:
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
        .where(rows.c.organization_id == _OWNER, limit_sums.is_counted())
        .group_by(table.c.run_id)
        .subquery()
    )


def _held() -> FromClause:
    table = credit_reservations
    return (
        select(table.c.run_id, func.sum(table.c.amount_micros).label("held_micros"))
        .where(
            table.c.organization_id == _OWNER,
            table.c.state.in_(HOLDING),
            # JSON; all others in it are UUIDs.
            table.c.limits.like(f'%"{POOL}"%'),
        )
        .group_by(table.c.run_id)
        .subquery()
    )


def _inside() -> FromClause:
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
        .where(table.c.organization_id == _OWNER, table.c.parent_run_id.is_not(None))
        .group_by(table.c.parent_run_id)
        .subquery()
    )


@cache
def _misplaced() -> Select[Any]:
    """Runs that cannot stand where they say."""
    run, around = credit_runs, credit_runs.alias("around")
    return (
        select(run.c.run_id, run.c.parent_run_id)
        .select_from(
            run.outerjoin(
                around,
                and_(around.c.organization_id == run.c.organization_id, around.c.run_id == run.c.parent_run_id),
            )
        )
        .where(
            run.c.organization_id == _OWNER,
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
