"""Reads for operators: limits and what was used of them, crossings, usage, what mode "observe" let pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Select, Table, and_, case, func, or_, select

from agentcredits.clock import Clock
from agentcredits.model import Denial, DenialGroup, Limit, LimitCrossing, LimitScope, UsageLine
from agentcredits.rules import limits as limit_rules
from agentcredits.rules import refusals
from agentcredits.rules.state import LimitState, UsageState
from agentcredits.store import limit_records, loading, queries, tenancy
from agentcredits.store.ledger_pages import stream
from agentcredits.store.limit_tables import credit_denials, credit_limit_crossings, credit_limit_usage, credit_limits
from agentcredits.store.tables import idempotency_keys, usage_rollups

#: Counters that are listed with a limit.
MAX_COUNTERS: Final = 20


def list_limits(
    connection: Connection,
    organization_id: str,
    clock: Clock | None,
    *,
    scope: LimitScope | None,
    scope_id: str | None,
) -> tuple[Limit, ...]:
    """Limits as they stand now, with their most used counters; limits of runs only when asked for.

    Raises:
        AccountNotFoundError: the organization has no account.
    """
    ledger, _, now = queries.view(connection, organization_id, clock, planned=())
    table = credit_limits
    wanted = [table.c.organization_id == organization_id]
    wanted.append(table.c.scope != LimitScope.RUN.value if scope is None else table.c.scope == scope.value)
    if scope_id is not None:
        wanted.append(table.c.scope_id.in_([scope_id, ""]))
    order = (table.c.scope, table.c.scope_id, table.c.unit, table.c.created_at, table.c.id)
    rows = connection.execute(select(table).where(*wanted).order_by(*order)).mappings().all()
    counters: dict[str, list[UsageState]] = {}
    for found in connection.execute(_most_used(organization_id, now, wanted, scope_id)).mappings():
        usage = limit_records.read_usage(found["limit_id"], found["scope_id"], found)
        # What is due was computed, not booked: its counters are in the view.
        usage = ledger.usage.get((usage.limit_id, usage.scope_id), usage)
        counters.setdefault(usage.limit_id, []).append(usage)
    return tuple(
        limit_records.public_limit(organization_id, limit, _as_of(limit, counters.get(limit.id, []), now, scope_id))
        for limit in map(limit_records.read_limit, rows)
    )


def _most_used(
    organization_id: str, now: datetime, wanted: Sequence[Any], scope_id: str | None
) -> Select[tuple[Any, ...]]:
    usage, table = credit_limit_usage, credit_limits
    current = or_(usage.c.window_end.is_(None), usage.c.window_end > now)
    used = usage.c.held + case((current, usage.c.spent), else_=0)
    ranked = (
        select(usage, func.row_number().over(partition_by=usage.c.limit_id, order_by=used.desc()).label("place"))
        .select_from(
            usage.join(table, and_(table.c.organization_id == usage.c.organization_id, table.c.id == usage.c.limit_id))
        )
        .where(usage.c.organization_id == organization_id, *wanted)
    )
    if scope_id is not None:
        ranked = ranked.where(usage.c.scope_id.in_([scope_id, ""]))
    found = ranked.subquery()
    return select(found).where(found.c.place <= MAX_COUNTERS).order_by(found.c.limit_id, found.c.place)


def _as_of(limit: LimitState, counters: list[UsageState], now: datetime, scope_id: str | None) -> list[UsageState]:
    """The counters in their present windows; one that was never moved stands at 0."""
    own = limit.scope_id or ("" if limit.scope is LimitScope.ORGANIZATION else scope_id)
    if not counters and own is not None:
        counters = [UsageState(limit.id, own)]
    if limit.unusable is None:
        for usage in counters:
            limit_rules.roll(limit, usage, now)
    return sorted(counters, key=lambda usage: usage.spent + usage.held, reverse=True)


def list_crossings(connection: Connection, organization_id: str, *, limit: int) -> tuple[LimitCrossing, ...]:
    """Thresholds that were reached, newest first.

    Raises:
        AccountNotFoundError: the organization has no account.
    """
    _require_account(connection, organization_id)
    table = credit_limit_crossings
    statement = (
        select(table)
        .where(table.c.organization_id == organization_id)
        .order_by(table.c.created_at.desc(), table.c.id.desc())
        .limit(limit)
    )
    return tuple(
        limit_records.public_crossing(organization_id, limit_records.read_crossing(row))
        for row in connection.execute(statement).mappings()
    )


def _require_account(connection: Connection, organization_id: str) -> None:
    if loading.load_account(connection, organization_id) is None:
        raise refusals.account_not_found(organization_id)


# -- usage -------------------------------------------------------------------------------------------------------

#: The names that callers use and the columns behind them.
GROUPS: Final = {
    "agent_type": "agent_type",
    "action": "action",
    "department": "department_id",
    "project": "project_id",
    "user": "user_id",
}

_SUMS: Final = limit_records.ROLLUP_SUMS


def get_usage(
    connection: Connection,
    organization_id: str,
    *,
    since: date | None,
    until: date | None,
    group_by: Sequence[str],
    bucket: str | None,
    matches: Mapping[str, str],
) -> tuple[UsageLine, ...]:
    """Totals of whole UTC days; months and weeks are made of days here, so that both databases agree.

    Args:
        connection: Where to read.
        organization_id: Whose.
        since: First day.
        until: Day after the last one.
        group_by: Keys of ``GROUPS``.
        bucket: "day", "week", "month" or None.
        matches: Values of columns of the totals.

    Raises:
        AccountNotFoundError: the organization has no account.
    """
    _require_account(connection, organization_id)
    table = usage_rollups
    columns = [table.c[GROUPS[name]] for name in group_by]
    if bucket is not None:
        columns.append(table.c.day)
    wanted = [table.c.organization_id == organization_id]
    wanted += [table.c[name] == value for name, value in matches.items()]
    if since is not None:
        wanted.append(table.c.day >= since.isoformat())
    if until is not None:
        wanted.append(table.c.day < until.isoformat())
    sums = [func.sum(table.c[name]).label(name) for name in _SUMS]
    found: dict[tuple[date | None, tuple[str, ...]], list[int]] = {}
    for row in connection.execute(select(*columns, *sums).where(*wanted).group_by(*columns)):
        values = row[: len(group_by)]
        place = None if bucket is None else first_day(date.fromisoformat(row[len(group_by)]), bucket)
        numbers = [int(number or 0) for number in row[-len(_SUMS) :]]
        line = found.setdefault((place, tuple(values)), [0] * len(_SUMS))
        for position, number in enumerate(numbers):
            line[position] += number
    lines = [
        UsageLine(
            {name: value or None for name, value in zip(group_by, values, strict=True)},
            place,
            **dict(zip(_SUMS, numbers, strict=True)),
        )
        for (place, values), numbers in found.items()
        if any(numbers)
    ]
    return tuple(
        sorted(lines, key=lambda line: (line.bucket or date.min, -line.charged_micros, str(list(line.group.values()))))
    )


def first_day(day: date, bucket: str) -> date:
    """The first day of the bucket that a day is in; weeks begin on Monday."""
    if bucket == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if bucket == "month" else day


# -- mode "observe" ----------------------------------------------------------------------------------------------


def _denials(organization_id: str | None, since: datetime | None, until: datetime | None) -> list[Any]:
    table = credit_denials
    wanted = []
    if organization_id is not None:
        wanted.append(table.c.organization_id == organization_id)
    if since is not None:
        wanted.append(table.c.created_at >= since)
    if until is not None:
        wanted.append(table.c.created_at < until)
    return wanted


def list_denials(
    connection: Connection,
    organization_id: str | None,
    *,
    since: datetime | None,
    until: datetime | None,
    limit: int,
) -> tuple[Denial, ...]:
    """Would-be refusals, newest first."""
    found: list[Denial] = []
    for some in tenancy.each(
        connection, organization_id, lambda place: _newest_denials(connection, _denials(place, since, until), limit)
    ):
        found += some
    return tuple(sorted(found, key=lambda denial: (denial.created_at, denial.id), reverse=True)[:limit])


def _newest_denials(connection: Connection, wanted: list[Any], limit: int) -> list[Denial]:
    table = credit_denials
    order = (table.c.created_at.desc(), table.c.id.desc())
    statement = select(table).where(*wanted).order_by(*order).limit(limit)
    return [limit_records.read_denial(row) for row in connection.execute(statement).mappings()]


def has_denial(connection: Connection, organization_id: str, denial_id: str) -> bool:
    """Whether this would-be refusal is recorded."""
    table = credit_denials
    statement = select(table.c.id).where(table.c.organization_id == organization_id, table.c.id == denial_id)
    return connection.execute(statement).first() is not None


def observe_report(
    connection: Connection, organization_id: str | None, *, since: datetime | None, until: datetime | None
) -> tuple[DenialGroup, ...]:
    """Would-be refusals counted, the most frequent first."""
    found: list[DenialGroup] = []
    for some in tenancy.each(
        connection, organization_id, lambda place: _denial_groups(connection, _denials(place, since, until))
    ):
        found += some
    return tuple(sorted(found, key=lambda group: -group.count))


def _denial_groups(connection: Connection, wanted: list[Any]) -> list[DenialGroup]:
    table = credit_denials
    place = (table.c.organization_id, table.c.reason, table.c.limit_source, table.c.agent_type, table.c.action)
    statement = (
        select(
            *place,
            func.count().label("times"),
            func.sum(table.c.required_micros).label("required"),
            func.min(table.c.created_at).label("first_at"),
            func.max(table.c.created_at).label("last_at"),
        )
        .where(*wanted)
        .group_by(*place)
        .order_by(func.count().desc(), *place)
    )
    return [
        DenialGroup(
            organization_id=row.organization_id,
            reason=row.reason,
            limit_source=row.limit_source,
            agent_type=row.agent_type,
            action=row.action,
            count=int(row.times),
            required_micros=int(row.required),
            first_at=row.first_at,
            last_at=row.last_at,
        )
        for row in connection.execute(statement)
    ]


# -- the whole database ------------------------------------------------------------------------------------------


def count_rows(connection: Connection, table: Table) -> int:
    """How many rows of all organizations, and of none, a tenant table has."""
    if tenancy.is_active(connection):
        tenancy.mark(connection)
    owner = table.c.organization_id
    counted = select(func.count()).select_from(table)

    def count(place: str | None) -> int:
        return int(connection.execute(counted if place is None else counted.where(owner == place)).scalar_one())

    defaults = count("") if tenancy.applies(connection) else 0
    return defaults + sum(tenancy.each(connection, None, count))


# -- keys --------------------------------------------------------------------------------------------------------


def keys_from(connection: Connection, kind: str, prefix: str) -> Iterator[tuple[str, str]]:
    """Idempotency keys of a kind that begin so (on SQLite in any case), with their organizations; looks at all keys."""
    if tenancy.is_active(connection):
        tenancy.mark(connection)
    table = idempotency_keys
    statement = select(table.c.key, table.c.organization_id).where(
        table.c.kind == kind, table.c.key.startswith(prefix, autoescape=True)
    )
    for rows in tenancy.each(connection, None, lambda _place: stream(connection, statement)):
        for row in rows:
            yield row.key, row.organization_id
