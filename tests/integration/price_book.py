"""What the tests of prices share: a service that reads every price anew, plain SQL, what a charge costs now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from sqlalchemy import create_engine, text

from agentcredits import SyncCreditService
from agentcredits.settings import Settings

ACME = "acme"


@contextmanager
def priced(url: str, granted: int, **how: Any) -> Iterator[SyncCreditService]:
    """A service that reads every price anew, and ``granted`` credits of acme."""
    with SyncCreditService(url, settings=Settings(price_cache_seconds=0), **how) as made:
        made.grant_credits(ACME, granted)
        yield made


def sql(url: str, statement: str, **parameters: Any) -> None:
    """Plain SQL from this process."""
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            connection.execute(text(statement), parameters)
    finally:
        engine.dispose()


def cost(service: SyncCreditService, agent_type: str = "Agent", action: str = "act", **arguments: Any) -> Decimal:
    """What a charge of the action costs now, charged for real."""
    return service.consume_credits(
        organization_id=arguments.pop("organization_id", ACME), agent_type=agent_type, action=action, **arguments
    ).charged


def rows(url: str) -> list[tuple[Any, ...]]:
    """The whole table of prices."""
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            statement = text(
                "SELECT * FROM agent_action_costs ORDER BY organization_id, agent_type, action, valid_from"
            )
            return [tuple(row) for row in connection.execute(statement)]
    finally:
        engine.dispose()


def charge(service: SyncCreditService, **dimensions: Any) -> Decimal:
    """What a video of these dimensions costs now, charged for real."""
    return service.consume_credits(
        organization_id=ACME, agent_type="VideoAgent", action="generate_video", dimensions=dimensions
    ).charged
