"""Verify, limits: every counter against the holds and ledger rows that it counts, in one pass for all limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Connection, Select, bindparam, select

from agentcredits.model import LimitUnit
from agentcredits.rules import limits as limit_rules
from agentcredits.rules.recount import CounterPlace, LimitRecount, Marks, Period
from agentcredits.rules.refusals import in_unit
from agentcredits.rules.state import HoldState, LimitState, UsageState
from agentcredits.store import limit_records
from agentcredits.store.findings import Change, Finding
from agentcredits.store.ledger_pages import entries_after, stream
from agentcredits.store.limit_tables import credit_limit_usage, credit_limits

Limits = Mapping[str, LimitState]


def load_limits(connection: Connection, organization_id: str) -> dict[str, LimitState]:
    """Every limit of the account, by id."""
    rows = connection.execute(_limits(), {"organization_id": organization_id})
    return {limit.id: limit for limit in map(limit_records.read_limit, rows.mappings())}


def load_recount(connection: Connection, organization_id: str, now: datetime) -> LimitRecount:
    """What counts the ledger's rows for all limits of an account."""
    usage = _load_usage(connection, organization_id)
    windows = {place: (counter.window_start, counter.window_end) for place, counter in usage.items()}
    return LimitRecount(load_limits(connection, organization_id), windows, now)


def count_hold(hold: HoldState, limits: Limits, held: dict[CounterPlace, int]) -> None:
    """Add an open hold to the counters of the limits that count it."""
    if not hold.limits:
        return
    places = dict(limit_rules.places_of_record(hold))
    for limit_id in hold.limits:
        limit = limits.get(limit_id)
        if limit is not None:
            place = limit_id, places.get(limit.scope, "")
            held[place] = held.get(place, 0) + (hold.amount_micros if limit.unit is LimitUnit.CREDITS else 1)


def check_limits(
    connection: Connection,
    organization_id: str,
    limits: Limits,
    recount: LimitRecount,
    marks: Marks,
    held: Mapping[CounterPlace, int],
    now: datetime,
) -> Iterator[Finding]:
    """Compare every counter: what is held, and what was spent in its window.

    Args:
        connection: Sees one moment.
        organization_id: Whose.
        limits: As they stand at that moment.
        recount: What all rows say for the limits and windows that stood when their reading began.
        marks: Where in the ledger a moment is.
        held: What open holds say.
        now: The account's last posting.
    """
    for limit in limits.values():
        if limit.unusable is not None:
            yield Finding("limit", f"limit {limit.id} cannot be read: {limit.unusable}")
    usage = _load_usage(connection, organization_id)
    spent = _spent(connection, organization_id, limits, usage, recount, marks, now)
    for limit_id in sorted({limit_id for limit_id, _ in usage} - limits.keys()):
        yield Finding("limit", f"there are counters of limit {limit_id}, which does not exist")
    for place in sorted(usage.keys() | spent.keys() | held.keys()):
        limit_id, scope_id = place
        known = limits.get(limit_id)
        if known is None:
            continue
        stored = usage.get(place)
        expected = {"held": held.get(place, 0)}
        if known.unusable is None:
            expected["spent"] = spent.get(place, 0)
        yield from _compare(organization_id, known, scope_id, stored, expected, now)


def _spent(
    connection: Connection,
    organization_id: str,
    limits: Limits,
    usage: Mapping[CounterPlace, UsageState],
    recount: LimitRecount,
    marks: Marks,
    now: datetime,
) -> dict[CounterPlace, int]:
    """What was spent by counter; limits and windows that are newer than the recount are counted again, and alone."""
    windows: dict[CounterPlace, Period] = {
        place: (counter.window_start, counter.window_end) for place, counter in usage.items()
    }
    changed = {place for place, window in windows.items() if recount.windows.get(place) != window}
    # A new limit's counters are new; one that has none yet may lack it.
    added = {limit_id: (limit_id, "") for limit_id in limits.keys() - recount.limits.keys()}
    changed.update(added.values())
    spent = {place: number for place, number in recount.spent.items() if place not in changed and place[0] in limits}
    again = {limit_id: limits[limit_id] for limit_id, _ in changed if limit_id in limits}
    if not again:
        return spent
    second = LimitRecount(again, {place: window for place, window in windows.items() if place[0] in again}, now)
    starts = ((limits[place[0]], windows.get(place, (None, None))[0]) for place in changed if place[0] in limits)
    seq = min(limit.counts_from_seq if start is None else marks.seq_before(start) for limit, start in starts)
    while page := entries_after(connection, organization_id, seq):
        for row in page:
            second.add(row)
        seq = page[-1].seq
    return spent | {place: number for place, number in second.spent.items() if place in changed or place[0] in added}


def _load_usage(connection: Connection, organization_id: str) -> dict[CounterPlace, UsageState]:
    return {
        (row.limit_id, row.scope_id): limit_records.read_usage(row.limit_id, row.scope_id, row._mapping)
        for row in stream(connection, _usage(), organization_id=organization_id)
    }


@cache
def _limits() -> Select[Any]:
    table = credit_limits
    return select(table).where(table.c.organization_id == bindparam("organization_id")).order_by(table.c.id)


@cache
def _usage() -> Select[Any]:
    table = credit_limit_usage
    mine = table.c.organization_id == bindparam("organization_id")
    return select(table).where(mine).order_by(table.c.limit_id, table.c.scope_id)


def _compare(
    organization_id: str,
    limit: LimitState,
    scope_id: str,
    stored: UsageState | None,
    expected: Mapping[str, int],
    now: datetime,
) -> Iterator[Finding]:
    key = {"organization_id": organization_id, "limit_id": limit.id, "scope_id": scope_id}
    row = None
    if stored is None:
        start, end = (None, None) if limit.unusable is not None else limit_rules.window_of(limit, now)
        made = UsageState(limit.id, scope_id, window_start=start, window_end=end, **expected)
        row = limit_records.usage_values(organization_id, made)
    who = f"{limit.scope.value} {scope_id}".strip()
    for name, after in expected.items():
        before = 0 if stored is None else getattr(stored, name)
        if before == after:
            continue
        yield Finding(
            "limit",
            f"{name} of limit {limit.id} ({who}, {limit.window_text}) is {in_unit(limit.unit, before):f},"
            f" its rows say {in_unit(limit.unit, after):f}",
            (Change(credit_limit_usage, key, name, before, after, row=row),),
        )
