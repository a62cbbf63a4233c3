"""How the ``costs`` commands show prices and what an import changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from typing import Any, Final

from rich.console import Console

from agentcredits.amounts import to_micros
from agentcredits.cli.output import (
    action_text,
    count_text,
    credits_text,
    foldable,
    make_table,
    print_table,
    say,
    time_text,
)
from agentcredits.model import ActionCost, PriceChange
from agentcredits.rules.price_rules import PriceRule

#: How many differences of one price are shown; JSON has them all.
SHOWN_DETAILS: Final = 10

_MARKS: Final = {"new": "+", "changed": "~", "same": "=", "over": "-", "only_in_database": "!"}


def price_data(price: ActionCost) -> dict[str, Any]:
    """The row with its cost in micros too, as all amounts have them in JSON."""
    micros = None if price.cost is None else to_micros(price.cost, name="cost", allow_zero=True)
    return {**price.as_dict(), "as_of": _day(price.as_of), "cost_micros": micros}


def change_data(change: PriceChange) -> dict[str, Any]:
    """A change for JSON."""
    return {
        "organization_id": change.organization_id,
        "agent_type": change.agent_type,
        "action": change.action,
        "status": change.status,
        "details": list(change.details),
        "before": None if change.before is None else price_data(change.before),
        "after": None if change.after is None else price_data(change.after),
    }


def cost_text(price: ActionCost) -> str:
    """A price in few words: ``12.5``, ``table of 8 over model``, ``unreadable``."""
    if price.problem is not None:
        return "unreadable"
    if price.rule is not None:
        return PriceRule(price.rule).summary
    return "unreadable" if price.cost is None else credits_text(price.cost)


def show_prices(console: Console, prices: Sequence[ActionCost], today: date, max_age_days: int | None) -> None:
    """A table of prices, and below it what is to be mended or checked."""
    columns = ("for", "action", "cost", "from (UTC)", "until (UTC)", "as of", "source")
    rows = (
        (
            price.organization_id or "everybody",
            foldable(action_text(price.agent_type, price.action), console, after="."),
            cost_text(price),
            foldable(_start_text(price), console, after=" "),
            foldable(time_text(price.valid_until), console, after=" "),
            _day(price.as_of) or "",
            price.source or "",
        )
        for price in prices
    )
    print_table(console, make_table(columns, rows, right=("cost",), folds="source"))
    for price in prices:
        name = action_text(price.agent_type, price.action)
        if price.problem is not None:
            say(console, ("Mend: ", "red"), f"{name} is refused: {price.problem}.")
        elif is_old(price, today, max_age_days):
            say(console, ("Check: ", "yellow"), f"the price of {name} is older than {max_age_days} days.")


def is_old(price: ActionCost, today: date, max_age_days: int | None) -> bool:
    """Whether the price was known to be right longer ago than the setting allows."""
    known = price.as_of or (None if price.created_at is None else price.created_at.date())
    return max_age_days is not None and known is not None and today - known > timedelta(days=max_age_days)


def show_changes(console: Console, changes: Iterable[PriceChange], *, written: bool) -> None:
    """What an import did, or would do."""
    counts = dict.fromkeys(_MARKS, 0)
    for change in changes:
        counts[change.status] += 1
        price = change.after or change.before
        told = "" if price is None else cost_text(price)
        say(
            console,
            f"{_MARKS[change.status]} {action_text(change.agent_type, change.action)}: {told}"
            f" ({change.status.replace('_', ' ')})",
        )
        for detail in change.details[:SHOWN_DETAILS]:
            say(console, f"    {detail}")
        if len(change.details) > SHOWN_DETAILS:
            say(console, f"    and {len(change.details) - SHOWN_DETAILS:,} more")
    done = "Written" if written else "Not written"
    total = counts["new"] + counts["changed"]
    say(
        console,
        f"{done}: {count_text(total, 'price')} ({counts['new']:,} new, {counts['changed']:,} changed);"
        f" {counts['same']:,} the same, {counts['over']:,} over.",
    )


def _start_text(price: ActionCost) -> str:
    if price.problem is not None and price.valid_from.year == 9999:
        return "unreadable"
    return time_text(price.valid_from) if price.valid_from.timestamp() > 0 else "always"


def _day(day: date | None) -> str | None:
    return None if day is None else day.isoformat()
