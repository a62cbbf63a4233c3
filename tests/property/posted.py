"""Operations posted straight to the store, and everything that is stored about an account, as plain data."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from sqlalchemy import Engine, RowMapping, Table, select

from agentcredits.errors import CreditsError
from agentcredits.ids import record_of_key
from agentcredits.rules.operations import Operation
from agentcredits.rules.posting import Outcome
from agentcredits.store import tables
from agentcredits.store.dialects import dialect_of
from agentcredits.store.posting import post
from agentcredits.testing import FakeClock

TENANT_TABLES: tuple[Table, ...] = (
    tables.credit_accounts,
    tables.credit_grants,
    tables.credit_reservations,
    tables.credit_transactions,
    tables.credit_transaction_allocations,
    tables.credit_transaction_details,
    tables.idempotency_keys,
    tables.credit_runs,
    tables.recurring_grants,
)


def new_organization() -> str:
    return f"org-{uuid.uuid4().hex}"


def post_now(engine: Engine, clock: FakeClock, operations: Sequence[Operation], *, fresh: bool = True) -> list[Outcome]:
    """Post as one transaction."""
    with engine.connect() as connection:
        dialect_of(connection).begin_write(connection, 5)
        outcomes = post(connection, operations, clock=clock, fresh=fresh)
        connection.commit()
    return outcomes


def book(engine: Engine, clock: FakeClock, operations: Sequence[Operation]) -> list[Any]:
    """Post as one transaction; answers and refusals as plain data."""
    return [
        (plain(outcome.error or outcome.record).replace(operation.organization_id, "ORG"), outcome.replayed)
        for operation, outcome in zip(operations, post_now(engine, clock, operations), strict=True)
    ]


def plain(value: Any) -> str:
    """A record or error as comparable text."""
    if isinstance(value, CreditsError):
        return json.dumps({"type": type(value).__name__, **value.as_dict()}, default=str, sort_keys=True)
    return "" if value is None else json.dumps(dataclasses.asdict(value), default=str, sort_keys=True)


def names_organization(column: str, row: RowMapping) -> bool:
    """The payload that a script's repetition of a generated key stands for is fingerprinted as a service does it."""
    return column == "fingerprint" and record_of_key(row["key"]) is not None


def dump(engine: Engine, organization_id: str, *, without: AbstractSet[str] = frozenset()) -> dict[str, list[Any]]:
    """Everything stored about an account, with rows' own ids replaced by their seq (booked ends make new ids)."""
    books: dict[str, list[Any]] = {}
    with engine.connect() as connection:
        transactions = tables.credit_transactions
        names = {
            row.id: f"seq-{row.seq}"
            for row in connection.execute(
                select(transactions.c.id, transactions.c.seq).where(transactions.c.organization_id == organization_id)
            )
        }
        for table in TENANT_TABLES:
            rows = connection.execute(select(table).where(table.c.organization_id == organization_id)).mappings()
            books[table.name] = sorted(
                (
                    tuple(
                        (name, str(names.get(value, value)) if isinstance(value, str) else str(value))
                        for name, value in row.items()
                        if name not in without | {"organization_id"} and not names_organization(name, row)
                    )
                    for row in rows
                ),
                key=str,
            )
    return books
