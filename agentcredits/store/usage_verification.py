"""Verify, usage: the totals by day against the charges and refunds that they are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from sqlalchemy import Connection, Select, bindparam, select

from agentcredits.amounts import MAX_TOTAL_MICROS
from agentcredits.rules import rollups
from agentcredits.store.findings import Change, Finding
from agentcredits.store.ledger_pages import stream
from agentcredits.store.limit_records import ROLLUP_SUMS, rollup_sums
from agentcredits.store.tables import usage_rollups


def check_days(
    connection: Connection,
    organization_id: str,
    after: str,
    day: str,
    lines: Mapping[tuple[str, ...], rollups.Totals],
    *,
    to_the_end: bool = False,
) -> Iterator[Finding]:
    """Compare one day's lines; the days between ``after`` and it must have none.

    Args:
        connection: Where to read.
        organization_id: Whose.
        after: The day that was compared last; '' at the beginning.
        day: The day of ``lines``; '' when there is none.
        lines: What its rows say.
        to_the_end: It is the last day: those after it must have none.
    """
    table = usage_rollups
    expected = {rollups.bucket(values): (values, totals) for values, totals in lines.items()}
    place = {"organization_id": organization_id, "after": after} | ({} if to_the_end else {"up_to": day})
    for row in stream(connection, _lines(to_the_end), **place):
        stored = row._mapping
        nothing = tuple(stored[name] for name in rollups.GROUPED), rollups.Totals()
        values, totals = expected.pop(stored["bucket"], nothing) if stored["day"] == day else nothing
        should = _line(values, totals)
        key = {"organization_id": organization_id, "day": stored["day"], "bucket": stored["bucket"]}
        changes = tuple(
            Change(table, key, name, stored[name], value) for name, value in should.items() if stored[name] != value
        )
        if changes:
            yield Finding("usage", _differ(stored["day"], values), changes)
    for bucket, (values, totals) in expected.items():
        key = {"organization_id": organization_id, "day": day, "bucket": bucket}
        should = _line(values, totals)
        change = Change(table, key, "charges", None, totals.charges, row={**key, **should})
        if any(should[name] for name in ROLLUP_SUMS):
            yield Finding("usage", _differ(day, values), (change,))


@cache
def _lines(to_the_end: bool) -> Select[Any]:
    table = usage_rollups
    wanted = [table.c.organization_id == bindparam("organization_id"), table.c.day > bindparam("after")]
    if not to_the_end:
        wanted.append(table.c.day <= bindparam("up_to"))
    return select(table).where(*wanted).order_by(table.c.day, table.c.bucket)


def _line(values: tuple[str, ...], totals: rollups.Totals) -> dict[str, Any]:
    # A stored total stays at the top instead of running over.
    sums = {name: min(value, MAX_TOTAL_MICROS) for name, value in rollup_sums(totals).items()}
    return {**dict(zip(rollups.GROUPED, values, strict=True)), **sums}


def _differ(day: str, values: tuple[str, ...]) -> str:
    what = ", ".join(f"{name} {value}" for name, value in zip(rollups.GROUPED, values, strict=True) if value)
    return f"the totals of {day} ({what or 'no names'}) differ from their rows"
