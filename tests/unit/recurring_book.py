"""An account with a recurring grant on plain state, with short names for what is looked at."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from agentcredits.rules.operations import CreateRecurring
from agentcredits.rules.posting import decide
from agentcredits.rules.state import AccountState, Ledger, RecurringState

NOW = datetime(2026, 1, 31, 9, tzinfo=UTC)
#: Midnight in Berlin before and after it.
TODAY, TOMORROW = datetime(2026, 1, 30, 23, tzinfo=UTC), datetime(2026, 1, 31, 23, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def made(**changes: Any) -> tuple[Ledger, RecurringState]:
    """An account with one recurring grant of 10 micros, made now."""
    ledger = Ledger("acme", AccountState("acme", NOW, NOW))
    facts = {"organization_id": "acme", "id": "r", "key": "k", "fingerprint": "f"}
    arguments: dict[str, Any] = {"amount_micros": 10, "every": "day", "tz": "Europe/Berlin"} | changes
    assert decide(ledger, CreateRecurring(**facts, **arguments), NOW).error is None
    return ledger, ledger.recurring["r"]


def operation(id_: str = "s", **changes: Any) -> CreateRecurring:
    facts: dict[str, Any] = {"organization_id": "acme", "id": id_, "key": f"key {id_}", "fingerprint": "f"}
    return CreateRecurring(**facts | {"amount_micros": 10, "every": "day", "tz": "Europe/Berlin"} | changes)


def account_of(ledger: Ledger) -> AccountState:
    assert ledger.account is not None
    return ledger.account


def rows(ledger: Ledger) -> list[tuple[str, int, int, str | None, str | None]]:
    """Of each row type, amount, balance, grant and reason."""
    return [
        (row.type.value, row.amount_micros, row.balance_after_micros, row.grant_id, row.reason)
        for row in ledger.changes.rows
    ]
