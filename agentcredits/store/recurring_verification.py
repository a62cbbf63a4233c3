"""Verify, recurring grants: each period granted once and no other, rests carried over once, nothing overlooked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import Connection, select

from agentcredits.rules.state import RecurringState
from agentcredits.rules.windows import Window
from agentcredits.store import recurring_records
from agentcredits.store.recurring_tables import recurring_grants

Problems = Iterator[tuple[str, str]]
MAX_EXAMPLES = 20


def check_recurring(connection: Connection, account: Any, grants: Sequence[Any]) -> Problems:
    """Every recurring grant against the grants that it made, and the account against all of them.

    Args:
        connection: Where to read.
        account: The credit_accounts row.
        grants: All credit_grants rows of the account.
    """
    rows = connection.execute(
        select(recurring_grants).where(recurring_grants.c.organization_id == account["organization_id"])
    ).mappings()
    known = {one.id: one for one in map(recurring_records.read_recurring, rows)}
    due = min((one.next_at for one in known.values() if one.is_active), default=None)
    if account["next_refill_at"] != due:
        yield "recurring", f"next_refill_at is {account['next_refill_at']}, the next recurring grant comes at {due}"
    if any(grant["only_for"] for grant in grants) and not account["has_restricted"]:
        yield "recurring", "the account does not say that some of its grants are restricted"
    made: dict[str, set[datetime]] = defaultdict(set)
    for grant in grants:
        parent = grant["recurring_id"]
        if parent is not None and parent not in known:
            yield "recurring", f"grant {grant['id']} names recurring grant {parent}, which does not exist"
        elif parent is not None and grant["period_start"] is not None:
            made[parent].add(grant["period_start"])
    yield from islice(_check_rollovers(grants), MAX_EXAMPLES)
    for one in known.values():
        yield from islice(_check_periods(one, made[one.id]), MAX_EXAMPLES)


def _check_periods(one: RecurringState, made: set[datetime]) -> Problems:
    window = Window.parse(one.window_text)
    expected = set()
    at = one.starts_at
    while at < one.next_at:
        start, at = window.bounds(at)
        expected.add(start)
    for start in sorted(expected - made):
        yield "recurring", f"recurring grant {one.id} did not grant the period from {start.isoformat()}"
    for start in sorted(made - expected):
        yield "recurring", f"recurring grant {one.id} granted a period from {start.isoformat()}, which is none of its"
    if one.last_start != max(made, default=None):
        yield "recurring", f"recurring grant {one.id} says that it granted up to {one.last_start}"


def _check_rollovers(grants: Sequence[Any]) -> Problems:
    by_id = {grant["id"]: grant for grant in grants}
    for grant in grants:
        if grant["rolled_from"] is None:
            continue
        source = by_id.get(grant["rolled_from"])
        if source is None or source["voided_micros"] < grant["amount_micros"]:
            yield "recurring", f"grant {grant['id']} carries over more than grant {grant['rolled_from']} gave"
