"""Verify, recurring grants: each period granted once and no other, rests carried over once, nothing overlooked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Select, bindparam, select

from agentcredits.rules.state import GrantState, RecurringState
from agentcredits.rules.windows import Window
from agentcredits.store import recurring_records
from agentcredits.store.dialects import RowLike
from agentcredits.store.findings import MAX_EXAMPLES, Change, Finding
from agentcredits.store.recurring_tables import recurring_grants
from agentcredits.store.tables import credit_accounts


class RecurringCheck:
    """Every recurring grant of an account against the grants that it made, and the account against all of them.

    Args:
        connection: Where to read; must see one moment.
        account: The credit_accounts row.
    """

    def __init__(self, connection: Connection, account: RowLike) -> None:
        self._account = account
        rows = connection.execute(_recurring(), {"organization_id": account["organization_id"]}).mappings()
        self._known = {one.id: one for one in map(recurring_records.read_recurring, rows)}
        self._made: dict[str, set[datetime]] = defaultdict(set)
        self._strays: list[str] = []
        self._has_restricted = False
        #: By the grant that they come from: the rollovers, and what was taken from it.
        self._rollovers: dict[str, GrantState] = {}
        self._voided: dict[str, int] = {}

    @property
    def next_at(self) -> datetime | None:
        """When the next recurring grant comes."""
        return min((one.next_at for one in self._known.values() if one.is_active), default=None)

    def add(self, grant: GrantState) -> None:
        """Count a grant of the account."""
        self._has_restricted = self._has_restricted or bool(grant.only_for)
        if grant.recurring_id is None:
            return
        if grant.recurring_id not in self._known:
            self._strays.append(f"grant {grant.id} names recurring grant {grant.recurring_id}, which does not exist")
        elif grant.period_start is not None:
            self._made[grant.recurring_id].add(grant.period_start)
        self._voided[grant.id] = grant.voided_micros
        if grant.rolled_from is not None:
            self._rollovers[grant.rolled_from] = grant

    def findings(self) -> Iterator[Finding]:
        """Every difference, once all grants are counted."""
        stored, due = self._account["next_refill_at"], self.next_at
        if stored != due:
            message = f"next_refill_at is {stored}, the next recurring grant comes at {due}"
            yield Finding("recurring", message, (self._change("next_refill_at", stored, due),))
        if self._has_restricted and not self._account["has_restricted"]:
            message = "the account does not say that some of its grants are restricted"
            yield Finding("recurring", message, (self._change("has_restricted", before=False, after=True),))
        # No counter comes from what is wrong below.
        for message in (*self._strays, *islice(self._check_rollovers(), MAX_EXAMPLES)):
            yield Finding("recurring", message, blocks=False)
        for one in self._known.values():
            for message in islice(_check_periods(one, self._made[one.id]), MAX_EXAMPLES):
                yield Finding("recurring", message, blocks=False)

    def _change(self, column: str, before: Any, after: Any) -> Change:
        return Change(credit_accounts, {"organization_id": self._account["organization_id"]}, column, before, after)

    def _check_rollovers(self) -> Iterator[str]:
        for source, rollover in self._rollovers.items():
            if self._voided.get(source, 0) < rollover.amount_micros:
                yield f"grant {rollover.id} carries over more than grant {source} gave"


@cache
def _recurring() -> Select[Any]:
    table = recurring_grants
    return select(table).where(table.c.organization_id == bindparam("organization_id")).order_by(table.c.id)


def _check_periods(one: RecurringState, made: set[datetime]) -> Iterator[str]:
    window = Window.parse(one.window_text)
    expected = set()
    at = one.starts_at
    while at < one.next_at:
        start, at = window.bounds(at)
        expected.add(start)
    for start in sorted(expected - made):
        yield f"recurring grant {one.id} did not grant the period from {start.isoformat()}"
    for start in sorted(made - expected):
        yield f"recurring grant {one.id} granted a period from {start.isoformat()}, which is none of its"
    if one.last_start != max(made, default=None):
        yield f"recurring grant {one.id} says that it granted up to {one.last_start}"
