"""Between rows of the database, the rules' state, and the public records: runs; and which of them a batch needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, delete, exists, literal_column, or_, select

from agentcredits.model import RunRecord, RunStatus
from agentcredits.rules import operations as ops
from agentcredits.rules import runs as run_rules
from agentcredits.rules.state import AccountState, Ledger, RunState
from agentcredits.store.dialects import RowLike
from agentcredits.store.records import Values
from agentcredits.store.tables import credit_runs

_CHANGING = (
    "run_id",
    "cap_micros",
    "borrows",
    "spent_micros",
    "held_micros",
    "carved_micros",
    "inner_spent_micros",
    "open_children",
    "warned",
    "warned_micros",
    "ttl_seconds",
    "expires_at",
    "ended_at",
    "reason",
)
_FIXED = ("parent_run_id", "root_run_id", "depth", "counts_from_seq", "created_at")
_PUBLIC = (
    "run_id",
    "parent_run_id",
    "root_run_id",
    "depth",
    "status",
    "cap_micros",
    "borrows",
    "spent_micros",
    "held_micros",
    "carved_micros",
    "inner_spent_micros",
    "created_at",
    "ended_at",
    "reason",
)
_changing = attrgetter(*_CHANGING)
_fixed = attrgetter(*_FIXED)
_public = attrgetter(*_PUBLIC)

_OPEN = credit_runs.c.status == RunStatus.OPEN.value
_IDLE = and_(_OPEN, credit_runs.c.held_micros == 0, credit_runs.c.open_children == 0)


def read_run(row: RowLike) -> RunState:
    """A credit_runs row as state."""
    return RunState(status=RunStatus(row["status"]), **{name: row[name] for name in (*_CHANGING, *_FIXED)})


def run_values(organization_id: str, run: RunState) -> Values:
    """A whole credit_runs row."""
    return {**run_changes(organization_id, run), **dict(zip(_FIXED, _fixed(run), strict=True))}


def run_changes(organization_id: str, run: RunState) -> Values:
    """What an UPDATE of a run writes, with its key."""
    return {
        "organization_id": organization_id,
        "status": run.status.value,
        **dict(zip(_CHANGING, _changing(run), strict=True)),
    }


def public_run(ledger: Ledger, run: RunState) -> RunRecord:
    """The record that callers get; needs the runs around it loaded."""
    return RunRecord(
        organization_id=ledger.organization_id,
        expires_at=run.due_at,
        remaining_micros=run_rules.room(ledger, run) if run.is_open else 0,
        **dict(zip(_PUBLIC, _public(run), strict=True)),
    )


# -- loading -----------------------------------------------------------------------------------------------------


def load_runs(
    connection: Connection, ledger: Ledger, operations: Sequence[ops.Operation], now: datetime, more: Iterable[str] = ()
) -> None:
    """The runs that the operations, and the holds and charges that they name, are in; those around them; and the runs
    of the same trees that are due.

    Args:
        connection: Where to read.
        ledger: Gets the runs; what the operations name by id is loaded already.
        operations: The batch.
        now: The moment.
        more: Ids of other runs.
    """
    names = set(more)
    ends = False
    for operation in operations:
        if isinstance(operation, ops.Spending):
            names.add(operation.activity.scopes.run_id or "")
        elif isinstance(operation, ops.OpenRun):
            names |= {operation.run_id, operation.parent_run_id or ""}
        elif isinstance(operation, ops.EndRun):
            names.add(operation.run_id)
            ends = True
    names |= {hold.run_id or "" for hold in ledger.holds.values()}
    names |= {row.run_id or "" for row in ledger.rows.values()}
    names.discard("")
    if not names:
        return
    mine = credit_runs.c.organization_id == ledger.organization_id
    _add(connection, ledger, select(credit_runs).where(mine, credit_runs.c.run_id.in_(sorted(names))))
    # An outermost run with nothing open inside is alone; any other may have changed by the end of another of its tree.
    roots = {run.root_run_id for run in ledger.runs.values() if run.parent_run_id is not None or run.open_children}
    if roots:
        # Who ends a run ends those inside it: all that are open may be.
        due = _OPEN if ends else and_(_IDLE, credit_runs.c.expires_at <= now)
        wanted = or_(
            and_(credit_runs.c.root_run_id.in_(sorted(roots)), due), credit_runs.c.run_id.in_(sorted(ledger.runs))
        )
        _add(connection, ledger, _with_those_around(mine, wanted))


def _with_those_around(mine: ColumnElement[bool], wanted: ColumnElement[bool]) -> Select[Any]:
    table = credit_runs
    chain = select(table.c.organization_id, table.c.run_id, table.c.parent_run_id).where(mine, wanted)
    chain_cte = chain.cte("chain", recursive=True)
    around = select(table.c.organization_id, table.c.run_id, table.c.parent_run_id).join(
        chain_cte,
        and_(table.c.organization_id == chain_cte.c.organization_id, table.c.run_id == chain_cte.c.parent_run_id),
    )
    chain_cte = chain_cte.union(around)
    return select(table).where(mine, table.c.run_id.in_(select(chain_cte.c.run_id)))


def _add(connection: Connection, ledger: Ledger, statement: Select[Any]) -> None:
    for row in connection.execute(statement).mappings():
        ledger.runs.setdefault(row["run_id"], read_run(row))


# -- listing and tidying -----------------------------------------------------------------------------------------


def run_ids(
    connection: Connection,
    organization_id: str,
    now: datetime,
    *,
    status: RunStatus | None,
    parent_run_id: str | None,
    limit: int,
) -> list[str]:
    """Runs newest first; an open one whose time is over counts as ended, as far as its own row tells."""
    table = credit_runs
    over = and_(_IDLE, table.c.expires_at <= now)
    statement = select(table.c.run_id).where(table.c.organization_id == organization_id)
    if status is RunStatus.OPEN:
        statement = statement.where(_OPEN, ~over)
    elif status is RunStatus.ENDED:
        statement = statement.where(or_(~_OPEN, over))
    if parent_run_id is not None:
        statement = statement.where(table.c.parent_run_id == parent_run_id)
    statement = statement.order_by(table.c.created_at.desc(), table.c.run_id.desc()).limit(limit)
    return list(connection.execute(statement).scalars())


def purge(connection: Connection, organization_id: str | None, now: datetime, before: datetime) -> int:
    """Remove whole trees whose outermost run ended before a time, unless something is still held in them.

    Returns:
        How many runs were removed.
    """
    table = credit_runs
    inside = table.alias("inside")
    over = or_(and_(~_OPEN, table.c.ended_at < before), and_(_OPEN, table.c.expires_at < before))
    held = exists().where(
        inside.c.organization_id == table.c.organization_id,
        inside.c.root_run_id == table.c.run_id,
        inside.c.held_micros > literal_column("0"),
    )
    outermost = select(table.c.organization_id, table.c.run_id, table.c.open_children)
    outermost = outermost.where(table.c.parent_run_id.is_(None), over, ~held)
    if organization_id is not None:
        outermost = outermost.where(table.c.organization_id == organization_id)
    removed = 0
    for owner, root, open_children in connection.execute(outermost).all():
        tree = and_(table.c.organization_id == owner, table.c.root_run_id == root)
        if not open_children or _ended_before(connection, owner, tree, root, now, before):
            removed += connection.execute(delete(table).where(tree)).rowcount
    return removed


def _ended_before(
    connection: Connection, organization_id: str, tree: ColumnElement[bool], root: str, now: datetime, before: datetime
) -> bool:
    """Whether the outermost run ended in time, once the ends inside it are booked (here only)."""
    ledger = Ledger(organization_id, AccountState(organization_id, now, now))
    _add(connection, ledger, select(credit_runs).where(tree))
    run_rules.book_due(ledger, now)
    ended_at = ledger.runs[root].ended_at
    return ended_at is not None and ended_at < before
