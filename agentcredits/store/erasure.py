"""Erasing one user: everything that names the user or holds free text of the user's actions; no amount changes.

What was counted by user is moved along in the same transaction: the totals by day go to "no user", the user's counters
of limits go down by what no row tells any more. So ``verify`` is clean after each step, and a run that was stopped is
simply done again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import Connection, and_, delete, func, select, update

from agentcredits.model import LimitScope, LimitUnit, Pricing, TransactionType
from agentcredits.rules import limits as limit_rules
from agentcredits.rules import rollups
from agentcredits.rules.state import LimitState, Row, UsageState
from agentcredits.store import limit_records, loading, records
from agentcredits.store.dialects import LIMIT_COUNTERS, Write, dialect_of
from agentcredits.store.limit_tables import credit_denials, credit_limit_crossings, credit_limit_usage, credit_limits
from agentcredits.store.media_tables import media_batches, media_jobs
from agentcredits.store.retention import lock_account
from agentcredits.store.tables import (
    HOLDING,
    credit_reservations,
    credit_transaction_details,
    credit_transactions,
    usage_rollups,
)

#: What stands where a text cannot be empty.
ERASED: Final = "(erased)"

_details, _rows, _holds, _usage = (
    credit_transaction_details,
    credit_transactions,
    credit_reservations,
    credit_limit_usage,
)
_SUMS: Final = limit_records.ROLLUP_SUMS

Counter = tuple[LimitState, UsageState]


@dataclass(frozen=True, slots=True)
class Traces:
    """What else named the user: records changed or removed, and what was left because it is in use."""

    denials: int
    crossings: int
    kept_limits: int
    open_batches: int


def find(
    connection: Connection, table_name: str, organization_id: str, user_id: str, after: str, count: int
) -> tuple[list[str], str | None]:
    """The next details or reservations by their id: which are the user's, and where to go on (None: at the end)."""
    table, name = (_details, "transaction_id") if table_name == "details" else (_holds, "id")
    statement = select(table.c[name], table.c.user_id).where(
        table.c.organization_id == organization_id, table.c[name] > after
    )
    rows = connection.execute(statement.order_by(table.c[name]).limit(count)).all()
    return [row[0] for row in rows if row[1] == user_id], rows[-1][0] if len(rows) == count else None


def erase_details(connection: Connection, organization_id: str, user_id: str, transaction_ids: Sequence[str]) -> int:
    """Erase the details of these ledger rows of the user; how many."""
    lock_account(connection, organization_id)
    mine = and_(
        _details.c.organization_id == organization_id,
        _details.c.transaction_id.in_(transaction_ids),
        _details.c.user_id == user_id,
    )
    statement = loading.TRANSACTIONS.where(_rows.c.organization_id == organization_id, mine)
    rows = loading.read_rows(connection, organization_id, statement)
    if not rows:
        return 0
    refunds: dict[str, list[Row]] = {}
    for row in connection.execute(
        loading.TRANSACTIONS.where(
            _rows.c.organization_id == organization_id, _rows.c.refund_of.in_([row.id for row in rows])
        )
    ).mappings():
        refunds.setdefault(row["refund_of"], []).append(records.read_row(row, ()))
    for limit, usage in _counters(connection, organization_id, user_id):
        spent = sum(_spent(limit, usage, row, refunds.get(row.id, ())) for row in rows)
        usage.spent = max(0, usage.spent - spent)
        _write_counter(connection, organization_id, usage)
    _move_totals(connection, organization_id, user_id, rows)
    connection.execute(delete(_details).where(mine))
    return len(rows)


def erase_reservations(
    connection: Connection, organization_id: str, user_id: str, reservation_ids: Sequence[str]
) -> int:
    """Erase the user from these reservations; an open one is held on, but counts in no limit of the user any more."""
    lock_account(connection, organization_id)
    mine = and_(
        _holds.c.organization_id == organization_id, _holds.c.id.in_(reservation_ids), _holds.c.user_id == user_id
    )
    counters = {limit.id: (limit, usage) for limit, usage in _counters(connection, organization_id, user_id)}
    of_users = select(credit_limits.c.id).where(
        credit_limits.c.organization_id == organization_id, credit_limits.c.scope == LimitScope.USER.value
    )
    user_limits = set(connection.execute(of_users).scalars())
    for row in connection.execute(select(_holds).where(mine, _holds.c.state.in_(HOLDING))).mappings():
        hold = records.read_hold(row)
        for limit_id in user_limits.intersection(hold.limits) & counters.keys():
            limit, usage = counters[limit_id]
            usage.held = max(0, usage.held - limit_rules.Counter(limit, usage).units(hold.amount_micros))
            _write_counter(connection, organization_id, usage)
        left = [limit_id for limit_id in hold.limits if limit_id not in user_limits]
        connection.execute(
            update(_holds)
            .where(_holds.c.organization_id == organization_id, _holds.c.id == hold.id)
            .values(limits=json.dumps(left) if left else None)
        )
    nothing = dict.fromkeys(("user_id", "request_id", "dimensions", "metadata", "reason"))
    return connection.execute(update(_holds).where(mine).values(nothing)).rowcount


def erase_traces(connection: Connection, organization_id: str, user_id: str) -> Traces:
    """Erase the user from denials, crossings and finished batches, and counters that count nothing any more."""
    lock_account(connection, organization_id)
    denials, crossings, batches, jobs = credit_denials, credit_limit_crossings, media_batches, media_jobs
    limits = credit_limits
    changed = connection.execute(
        update(denials)
        .where(denials.c.organization_id == organization_id, denials.c.user_id == user_id)
        .values(user_id=None, message=ERASED)
    ).rowcount
    removed = connection.execute(
        delete(crossings).where(
            crossings.c.organization_id == organization_id,
            crossings.c.scope == LimitScope.USER.value,
            crossings.c.scope_id == user_id,
        )
    ).rowcount
    for limit, usage in _counters(connection, organization_id, user_id):
        if not usage.held and not usage.spent:
            connection.execute(
                delete(_usage).where(
                    _usage.c.organization_id == organization_id,
                    _usage.c.limit_id == limit.id,
                    _usage.c.scope_id == user_id,
                )
            )
    mine = and_(batches.c.organization_id == organization_id, batches.c.user_id == user_id)
    finished = select(batches.c.id).where(mine, batches.c.state == "finished")
    connection.execute(
        update(jobs)
        .where(jobs.c.organization_id == organization_id, jobs.c.batch_id.in_(finished))
        .values(prompt=ERASED, enhanced_prompt=None, parameters="{}", dimensions="{}", result=None, message=None)
    )
    connection.execute(update(batches).where(mine, batches.c.state == "finished").values(user_id=None))
    kept = select(func.count()).where(
        limits.c.organization_id == organization_id,
        limits.c.scope == LimitScope.USER.value,
        limits.c.scope_id == user_id,
    )
    return Traces(
        changed,
        removed,
        connection.execute(kept).scalar_one(),
        connection.execute(select(func.count()).where(mine)).scalar_one(),
    )


def _counters(connection: Connection, organization_id: str, user_id: str) -> list[Counter]:
    """The user's counters."""
    limits = credit_limits
    found = connection.execute(
        select(limits, *(_usage.c[name] for name in LIMIT_COUNTERS))
        .select_from(
            limits.join(
                _usage, and_(_usage.c.organization_id == limits.c.organization_id, _usage.c.limit_id == limits.c.id)
            )
        )
        .where(
            limits.c.organization_id == organization_id,
            limits.c.scope == LimitScope.USER.value,
            _usage.c.scope_id == user_id,
        )
    ).mappings()
    return [(limit_records.read_limit(row), limit_records.read_usage(row["id"], user_id, row)) for row in found.all()]


def _write_counter(connection: Connection, organization_id: str, usage: UsageState) -> None:
    values = limit_records.usage_values(organization_id, usage)
    dialect_of(connection).write(connection, [Write(_usage, [values], ("organization_id", "limit_id", "scope_id"))])


def _spent(limit: LimitState, usage: UsageState, row: Row, refunds: Sequence[Row]) -> int:
    """What a ledger row stands for in a counter, less what was given back of it in the counter's window."""
    is_counted = row.type is TransactionType.DEBIT and row.pricing is not Pricing.OBSERVED
    if not is_counted or row.seq <= limit.counts_from_seq or not _in_window(usage, row):
        return 0
    if limit.unit is LimitUnit.COUNT:
        return 1
    return -row.amount_micros - sum(refund.amount_micros for refund in refunds if _in_window(usage, refund))


def _in_window(usage: UsageState, row: Row) -> bool:
    return (usage.window_start is None or row.created_at >= usage.window_start) and (
        usage.window_end is None or row.created_at < usage.window_end
    )


def _move_totals(connection: Connection, organization_id: str, user_id: str, rows: Sequence[Row]) -> None:
    """Let the totals by day of these rows stand for nobody in particular."""
    taken = rollups.totals(rows)
    given = rollups.totals(replace(row, user_id=None) for row in rows)
    less = [limit_records.rollup_values(organization_id, place, total.negated()) for place, total in taken.items()]
    more = [limit_records.rollup_values(organization_id, place, total) for place, total in given.items()]
    if not less:
        return
    keys = ("organization_id", "day", "bucket")
    dialect_of(connection).write(
        connection,
        [Write(usage_rollups, less, keys, adds=_SUMS), Write(usage_rollups, more, keys, adds=_SUMS)],
    )
    connection.execute(
        delete(usage_rollups).where(
            usage_rollups.c.organization_id == organization_id,
            # Not as pairs: SQLite would look at every line of the account.
            usage_rollups.c.day.in_(sorted({values["day"] for values in less})),
            usage_rollups.c.bucket.in_(sorted({values["bucket"] for values in less})),
            *(usage_rollups.c[name] == 0 for name in _SUMS),
        )
    )
