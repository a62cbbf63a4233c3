"""What the tests of limits share: an account under a clock that is moved by hand, with short names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import create_engine, select, text

from agentcredits import (
    CreditEvent,
    CreditLimitExceededError,
    Decision,
    Limit,
    LimitCrossing,
    SyncCreditService,
    SyncReservation,
    Transaction,
)
from agentcredits.store.tables import metadata
from agentcredits.testing import FakeClock

ACME = "acme"
NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)
MIDNIGHT = datetime(2026, 1, 16, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
INSTANT = timedelta(microseconds=1)
MICRO = Decimal("0.000001")
LONG = timedelta(days=60)


@dataclass
class Book:
    """1,000 credits of one organization under a clock that is moved by hand, with short names."""

    url: str
    service: SyncCreditService
    clock: FakeClock

    def spend(self, amount: Any = 1, **scopes: Any) -> Transaction:
        return self.service.consume_credits(organization_id=ACME, amount=amount, **scopes)

    def hold(self, amount: Any = 1, ttl: timedelta = LONG, **scopes: Any) -> SyncReservation:
        return self.service.reserve_credits(organization_id=ACME, amount=amount, ttl=ttl, **scopes)

    def limit(self, amount: Any, window: Any = "day", **arguments: Any) -> Limit:
        return self.service.set_limit(ACME, amount=amount, window=window, **arguments)

    def counter(self, limit: Limit, scope_id: str | None = None) -> tuple[Decimal, Decimal]:
        """(spent, held) in the present window."""
        place = scope_id or limit.scope_id or None
        found = self.service.list_limits(ACME, scope=limit.scope.value, scope_id=place)
        (line,) = [line for one in found if one.id == limit.id for line in one.usage if line.scope_id == (place or "")]
        return line.spent, line.held

    def check(self, amount: Any, **scopes: Any) -> Decision:
        return self.service.check_credits(ACME, amount=amount, **scopes)

    def leaves(self, room: int | Decimal, **scopes: Any) -> bool:
        """Whether exactly ``room`` credits can be used now."""
        fits = not room or self.check(room, **scopes).allowed
        return fits and not self.check(room + MICRO, **scopes).allowed

    def tables(self) -> dict[str, list[Any]]:
        """Every stored row."""
        engine = create_engine(self.url)
        with engine.connect() as connection:
            found = {
                name: sorted(map(repr, connection.execute(select(table)).all()))
                for name, table in metadata.tables.items()
            }
        engine.dispose()
        return found

    def sql(self, statement: str, **parameters: Any) -> int:
        """Run SQL as an operator would; how many rows it changed."""
        engine = create_engine(self.url)
        with engine.begin() as connection:
            changed = connection.execute(text(statement), parameters).rowcount
        engine.dispose()
        return changed


def refused(call: Callable[[], Any]) -> CreditLimitExceededError:
    with pytest.raises(CreditLimitExceededError) as refusal:
        call()
    return refusal.value


def crossings(events: list[CreditEvent]) -> list[LimitCrossing]:
    return [event.crossing for event in events if event.name == "limit_crossed" and event.crossing is not None]
