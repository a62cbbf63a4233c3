"""How limits and their crossings look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentcredits.cli.output import NARROW_COLUMNS, credits_text, foldable, make_table, say, time_text
from agentcredits.model import Limit, LimitCrossing, LimitMode, LimitScope, LimitUnit, LimitUsage


def limit_data(limit: Limit) -> dict[str, Any]:
    """The limit as plain data, amounts in its unit."""
    return {
        "organization_id": limit.organization_id,
        "id": limit.id,
        "scope": limit.scope,
        "scope_id": limit.scope_id,
        "is_each": limit.is_each,
        "unit": limit.unit,
        "window": limit.window,
        "amount": limit.amount,
        "mode": limit.mode,
        "warn_at": limit.warn_at,
        "created_at": limit.created_at,
        "usage": limit.usage,
    }


def limits_table(console: Console, found: Sequence[Limit]) -> Table:
    """Limits with their counters; on a narrow terminal cells of two lines, without the limits' ids."""
    narrow = console.width < NARROW_COLUMNS
    columns = "for,window,amount" if narrow else "scope,id,unit,window,amount,mode"
    columns += ",used,held,left,resets (UTC)" + ("" if narrow else ",limit")
    rows = (
        _narrow_row(console, limit, counter, first) if narrow else _row(limit, counter, first)
        for limit in found
        for counter, first in _counters(limit)
    )
    return make_table(columns.split(","), rows, right=("amount", "used", "held", "left"), folds=("id", "for", "limit"))


def _counters(limit: Limit) -> Iterator[tuple[LimitUsage | None, bool]]:
    """The rows of one limit: itself, and below an "each" its counters."""
    if limit.is_each or not limit.usage:
        yield None, True
        yield from ((counter, False) for counter in limit.usage)
        return
    yield limit.usage[0], True


def _row(limit: Limit, counter: LimitUsage | None, first: bool) -> tuple[str, ...]:
    used = _used(counter)
    if not first:
        return ("", "" if counter is None else f"  {counter.scope_id}", "", "", "", "", *used, "")
    return (
        limit.scope.value,
        _whose(limit),
        limit.unit.value,
        limit.window,
        credits_text(limit.amount),
        _mode(limit),
        *used,
        limit.id,
    )


def _narrow_row(console: Console, limit: Limit, counter: LimitUsage | None, first: bool) -> tuple[str | Text, ...]:
    spent, held, left, resets = _used(counter)
    counted = (spent, held, left, foldable(resets, console, after=" "))
    if not first:
        return ("" if counter is None else f"  {counter.scope_id}", "", "", *counted)
    whose = foldable(f"{limit.scope.value.replace('_', '-')} {_whose(limit)}".strip(), console, after=" ")
    amount = f"{credits_text(limit.amount)} {limit.unit.value}"
    return (
        whose,
        foldable(limit.window, console, after=" "),
        foldable(f"{amount} {_mode(limit)}", console, after=f"{limit.unit.value} "),
        *counted,
    )


def _used(counter: LimitUsage | None) -> tuple[str, str, str, str]:
    if counter is None:
        return "", "", "", ""
    amounts = (counter.spent, counter.held, counter.remaining)
    spent, held, left = (credits_text(amount) for amount in amounts)
    return spent, held, left, time_text(counter.resets_at) or "never"


def _whose(limit: Limit) -> str:
    return "each" if limit.is_each else limit.scope_id


def _mode(limit: Limit) -> str:
    return ", ".join((limit.mode.value, *(_percent(fraction) for fraction in limit.warn_at)))


def _percent(fraction: Decimal) -> str:
    return f"{(fraction * 100).normalize():f} %"


def amount_text(limit: Limit) -> str:
    """``500 credits``, ``1 charge``."""
    if limit.unit is LimitUnit.CREDITS:
        return f"{credits_text(limit.amount)} credits"
    return f"{credits_text(limit.amount)} charge{'' if limit.amount == 1 else 's'}"


def owner(limit: Limit) -> str:
    """Whose limit: ``department sales``, ``each user``, ``organization acme``."""
    if limit.scope is LimitScope.ORGANIZATION:
        return f"organization {limit.organization_id}"
    scope = limit.scope.value.replace("_", " ")
    return f"each {scope}" if limit.is_each else f"{scope} {limit.scope_id}"


def show_set(console: Console, limit: Limit) -> None:
    """What a limit that was just set means, and what is used of it already."""
    of = "" if limit.scope is LimitScope.ORGANIZATION else f" of organization {limit.organization_id}"
    effect = "it refuses what goes beyond" if limit.mode is LimitMode.HARD else "it refuses nothing (soft)"
    warns = ", ".join(_percent(fraction) for fraction in limit.warn_at)
    say(
        console,
        f"{owner(limit)}{of} may use {amount_text(limit)} ({limit.window}); {effect}"
        + (f"; recorded at {warns}." if warns else "."),
    )
    if not limit.is_each and limit.usage:
        used, held, left, resets = _used(limit.usage[0])
        say(console, f"{used} used, {held} held, {left} left; resets: {resets}{'' if resets == 'never' else ' UTC'}.")


def crossings_table(console: Console, found: Sequence[LimitCrossing]) -> Table:
    """Thresholds that were reached."""
    return make_table(
        ("time (UTC)", "scope", "id", "reached", "limit", "spent", "unit", "window", "window began (UTC)"),
        (
            (
                foldable(time_text(one.created_at), console, after=" "),
                one.scope.value,
                one.scope_id,
                _percent(one.threshold),
                credits_text(one.limit_amount),
                credits_text(one.spent),
                one.unit.value,
                foldable(one.window, console, after=" "),
                foldable(time_text(one.window_start), console, after=" "),
            )
            for one in found
        ),
        right=("reached", "limit", "spent"),
        folds="id",
    )
