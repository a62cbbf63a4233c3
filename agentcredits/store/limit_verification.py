"""Verify, limits and usage: recompute the counters of limits and the totals of usage from the ledger rows."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, String, and_, case, cast, func, literal, or_, select, union_all

from agentcredits.model import LimitUnit, Pricing
from agentcredits.rules import limits as limit_rules
from agentcredits.rules import rollups
from agentcredits.rules.refusals import in_unit
from agentcredits.rules.state import OPEN_STATES, LimitState
from agentcredits.store import limit_records, limit_sums, records
from agentcredits.store.tables import (
    credit_grants,
    credit_limit_usage,
    credit_limits,
    credit_reservations,
    credit_transaction_allocations,
    credit_transaction_details,
    credit_transactions,
    usage_rollups,
)

MAX_EXAMPLES = 20

Problems = Iterator[tuple[str, str]]


def check_limits(connection: Connection, organization_id: str, now: datetime) -> Problems:
    """Every counter of every limit: what is held, and what was spent in its window."""
    if connection.dialect.name == "postgresql":
        # Tables that were never analysed look small: nested loops would read the whole ledger for each of its rows.
        connection.exec_driver_sql("SET LOCAL enable_nestloop = off")
    rows = connection.execute(select(credit_limits).where(credit_limits.c.organization_id == organization_id))
    limits = {limit.id: limit for limit in map(limit_records.read_limit, rows.mappings())}
    yield from _check_held(connection, organization_id, limits)
    for limit in limits.values():
        if limit.unusable is not None:
            yield "limit", f"limit {limit.id} cannot be read: {limit.unusable}"
        else:
            yield from _check_spent(connection, organization_id, limit, now)


def _check_held(connection: Connection, organization_id: str, limits: dict[str, LimitState]) -> Problems:
    expected: dict[tuple[str, str], int] = defaultdict(int)
    table = credit_reservations
    for row in connection.execute(
        select(table).where(
            table.c.organization_id == organization_id,
            table.c.state.in_([state.value for state in OPEN_STATES]),
            table.c.limits.is_not(None),
        )
    ).mappings():
        hold = records.read_hold(row)
        places = dict(limit_rules.places_of_record(hold))
        for limit_id in json.loads(row["limits"]):
            limit = limits.get(limit_id)
            if limit is not None:
                units = hold.amount_micros if limit.unit is LimitUnit.CREDITS else 1
                expected[limit_id, places.get(limit.scope, "")] += units
    usage = credit_limit_usage
    stored = {
        (row.limit_id, row.scope_id): row.held
        for row in connection.execute(
            select(usage.c.limit_id, usage.c.scope_id, usage.c.held).where(
                usage.c.organization_id == organization_id, usage.c.held != 0
            )
        )
    }
    known = select(credit_limits.c.id).where(credit_limits.c.organization_id == organization_id)
    for limit_id in connection.execute(
        select(usage.c.limit_id)
        .where(usage.c.organization_id == organization_id, usage.c.limit_id.not_in(known))
        .distinct()
        .limit(MAX_EXAMPLES)
    ).scalars():
        yield "limit", f"there are counters of limit {limit_id}, which does not exist"
    for place in sorted(stored.keys() | expected.keys()):
        if place[0] in limits and stored.get(place, 0) != expected.get(place, 0):
            yield _difference("held", limits[place[0]], place[1], stored.get(place, 0), expected.get(place, 0))


def _check_spent(connection: Connection, organization_id: str, limit: LimitState, now: datetime) -> Problems:
    """Each counter against the rows of its own window, and of the present one for counters that are not there."""
    usage, rows, charges = credit_limit_usage, limit_sums.rows, limit_sums.charges
    counted = limit_sums.scope_column(limit.scope)
    since_limit = charges.c.seq > limit.counts_from_seq
    mine = and_(
        rows.c.organization_id == organization_id,
        limit_sums.is_counted(),
        since_limit,
        counted.is_not(None) if not limit.scope_id else counted == limit.scope_id,
    )
    in_window = and_(
        or_(usage.c.window_start.is_(None), charges.c.created_at >= usage.c.window_start),
        or_(usage.c.window_end.is_(None), rows.c.created_at < usage.c.window_end),
    )
    sums = (
        select(usage.c.scope_id, limit_sums.units(limit.unit).label("spent"))
        .select_from(
            limit_sums.COUNTED.join(
                usage,
                and_(
                    usage.c.organization_id == rows.c.organization_id,
                    usage.c.limit_id == limit.id,
                    usage.c.scope_id == counted,
                ),
            )
        )
        .where(mine, in_window)
        .group_by(usage.c.scope_id)
        .subquery()
    )
    for row in connection.execute(
        select(usage.c.scope_id, usage.c.spent, func.coalesce(sums.c.spent, 0).label("expected"))
        .select_from(usage.outerjoin(sums, sums.c.scope_id == usage.c.scope_id))
        .where(
            usage.c.organization_id == organization_id,
            usage.c.limit_id == limit.id,
            usage.c.spent != func.coalesce(sums.c.spent, 0),
        )
        .limit(MAX_EXAMPLES)
    ):
        yield _difference("spent", limit, row.scope_id, row.spent, int(row.expected))
    start, end = limit_rules.window_of(limit, now)
    known = select(usage.c.scope_id).where(usage.c.organization_id == organization_id, usage.c.limit_id == limit.id)
    statement = (
        select(counted.label("scope_id"), limit_sums.units(limit.unit).label("spent"))
        .select_from(limit_sums.COUNTED)
        .where(mine, counted.not_in(known))
        .group_by(counted)
        .limit(MAX_EXAMPLES)
    )
    if start is not None:
        statement = statement.where(charges.c.created_at >= start, rows.c.created_at < end)
    for missing in connection.execute(statement):
        if missing.spent:
            yield _difference("spent", limit, missing.scope_id, 0, int(missing.spent))


def _difference(name: str, limit: LimitState, scope_id: str, stored: int, expected: int) -> tuple[str, str]:
    who = f"{limit.scope.value} {scope_id}".strip()
    return (
        "limit",
        f"{name} of limit {limit.id} ({who}, {limit.window_text}) is {in_unit(limit.unit, stored):f},"
        f" its rows say {in_unit(limit.unit, expected):f}",
    )


def check_usage(connection: Connection, organization_id: str) -> Problems:
    """The totals by day against the charges and refunds that they are made of."""
    rows, details, totals = credit_transactions, credit_transaction_details, usage_rollups
    parts, grants = credit_transaction_allocations, credit_grants
    if connection.dialect.name == "postgresql":
        day: Any = func.to_char(func.timezone("UTC", rows.c.created_at), "YYYY-MM-DD")
    else:
        day = func.date(rows.c.created_at)
    grouped = [
        func.coalesce(details.c.user_id if name == "user_id" else rows.c[name], "").label(name)
        for name in rollups.GROUPED
    ]
    is_debit = rows.c.type == "debit"
    net = case((is_debit, parts.c.amount_micros), else_=-parts.c.amount_micros)
    with_details = rows.outerjoin(
        details, and_(details.c.organization_id == rows.c.organization_id, details.c.transaction_id == rows.c.id)
    )
    counted = and_(
        rows.c.organization_id == organization_id,
        rows.c.type.in_(["debit", "refund"]),
        rows.c.pricing != Pricing.OBSERVED.value,
    )
    nothing = literal(0)
    from_rows = (
        select(
            day.label("day"),
            *grouped,
            case((is_debit, 1), else_=0).label("charges"),
            case((is_debit, -rows.c.amount_micros), else_=0).label("charged"),
            case((is_debit, 0), else_=rows.c.amount_micros).label("refunded"),
            *(nothing.label(name) for name in limit_records.NET_COLUMNS.values()),
        )
        .select_from(with_details)
        .where(counted)
    )
    from_parts = (
        select(
            day,
            *grouped,
            *(nothing, nothing, nothing),
            *(case((grants.c.category == category.value, net), else_=0) for category in limit_records.NET_COLUMNS),
        )
        .select_from(
            with_details.join(
                parts, and_(parts.c.organization_id == rows.c.organization_id, parts.c.transaction_id == rows.c.id)
            ).join(grants, and_(grants.c.organization_id == parts.c.organization_id, grants.c.id == parts.c.grant_id))
        )
        .where(counted)
    )
    from_totals = select(
        cast(totals.c.day, String),
        *(totals.c[name] for name in rollups.GROUPED),
        -totals.c.charges,
        -totals.c.charged_micros,
        -totals.c.refunded_micros,
        *(-totals.c[name] for name in limit_records.NET_COLUMNS.values()),
    ).where(totals.c.organization_id == organization_id)
    both = union_all(from_rows, from_parts, from_totals).subquery()
    place: Sequence[Any] = [both.c.day, *(both.c[name] for name in rollups.GROUPED)]
    sums = [func.sum(both.c[name]) for name in ("charges", "charged", "refunded", *limit_records.NET_COLUMNS.values())]
    differs = or_(*(total != literal(0) for total in sums))
    for row in connection.execute(select(*place).group_by(*place).having(differs).limit(MAX_EXAMPLES)):
        what = ", ".join(f"{name} {value}" for name, value in zip(rollups.GROUPED, row[1:], strict=True) if value)
        yield "usage", f"the totals of {row.day} ({what or 'no names'}) differ from their rows"
