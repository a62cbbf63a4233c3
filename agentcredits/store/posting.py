"""Post operations: lock the account, read the clock, load, let the rules decide, write back. One transaction's body.

The caller begins and ends the transaction. A single call is a batch of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection, update
from sqlalchemy.dialects import postgresql, sqlite

from agentcredits.clock import Clock
from agentcredits.rules.due import book_due
from agentcredits.rules.operations import Operation
from agentcredits.rules.posting import Outcome, decide
from agentcredits.rules.state import Ledger
from agentcredits.store import loading, records
from agentcredits.store.dialects import StoreDialect, dialect_of
from agentcredits.store.tables import (
    credit_accounts,
    credit_grants,
    credit_reservations,
    credit_transaction_allocations,
    credit_transaction_details,
    credit_transactions,
    idempotency_keys,
)


def post(
    connection: Connection, operations: Sequence[Operation], *, clock: Clock | None = None, fresh: bool = True
) -> list[Outcome]:
    """Decide and book operations in order; answer each, refusals included.

    Args:
        connection: In a write transaction that the caller commits. On PostgreSQL all operations name one account.
        operations: The batch; accounts are visited in the order of their ids.
        clock: Replaces the database's clock.
        fresh: False when this is a repeated try whose first answer was lost.

    Returns:
        One outcome per operation, in order. Records are snapshots: later operations of the batch do not show.
    """
    places: dict[str, list[int]] = {}
    for place, operation in enumerate(operations):
        places.setdefault(operation.organization_id, []).append(place)
    dialect = dialect_of(connection)
    if len(places) > 1 and not dialect.mixes_accounts:
        raise AssertionError("a batch names one account: a lock held for one tenant must not stop another")
    outcomes: list[Outcome] = [Outcome()] * len(operations)
    for organization_id in sorted(places):
        batch = [operations[place] for place in places[organization_id]]
        answers = _post_account(connection, dialect, organization_id, batch, clock, fresh)
        for place, answer in zip(places[organization_id], answers, strict=True):
            outcomes[place] = answer
    return outcomes


def _post_account(
    connection: Connection,
    dialect: StoreDialect,
    organization_id: str,
    operations: Sequence[Operation],
    clock: Clock | None,
    fresh: bool,
) -> list[Outcome]:
    ledger = Ledger(organization_id)
    ledger.account = loading.load_account(connection, organization_id, lock=dialect)
    if ledger.account is None and any(operation.creates_account for operation in operations):
        _create_account(connection, dialect, organization_id, clock)
        ledger.account = loading.load_account(connection, organization_id, lock=dialect)
    # The clock is read after the lock: a value from before the wait would be old (RULING: whose clock, read when).
    now = dialect.now(connection) if clock is None else clock.now()
    if ledger.account is not None:
        now = max(now, ledger.account.last_posted_at)
        loading.load_open_grants(connection, ledger)
        loading.load_due_holds(connection, ledger, now)
        loading.load_named(connection, ledger, operations, fresh=fresh)
        book_due(ledger, now)
    outcomes = [_snapshot(decide(ledger, operation, now)) for operation in operations]
    _write_back(connection, dialect, ledger)
    return outcomes


def _snapshot(outcome: Outcome) -> Outcome:
    return outcome if outcome.record is None else replace(outcome, record=replace(outcome.record))


def _create_account(connection: Connection, dialect: StoreDialect, organization_id: str, clock: Clock | None) -> None:
    now = dialect.now(connection) if clock is None else clock.now()
    build = postgresql.insert if dialect.name == "postgresql" else sqlite.insert
    connection.execute(
        build(credit_accounts).on_conflict_do_nothing(),
        {"organization_id": organization_id, "created_at": now, "last_posted_at": now},
    )


def _write_back(connection: Connection, dialect: StoreDialect, ledger: Ledger) -> None:
    """At most ten statements, whatever the size of the batch."""
    changes, account, organization_id = ledger.changes, ledger.account, ledger.organization_id
    if account is None:
        return
    if changes.account:
        connection.execute(
            update(credit_accounts).where(credit_accounts.c.organization_id == organization_id),
            records.account_counters(account),
        )
    key = ("organization_id", "id")
    dialect.insert(
        connection,
        credit_grants,
        [records.grant_values(organization_id, ledger.grants[place]) for place in sorted(changes.new_grants)],
    )
    dialect.update(
        connection,
        credit_grants,
        key,
        [records.grant_changes(organization_id, ledger.grants[place]) for place in sorted(changes.grants)],
    )
    dialect.insert(
        connection,
        credit_reservations,
        [records.hold_values(organization_id, ledger.holds[place]) for place in sorted(changes.new_holds)],
    )
    dialect.update(
        connection,
        credit_reservations,
        key,
        [records.hold_changes(organization_id, ledger.holds[place]) for place in sorted(changes.holds)],
    )
    rows = changes.rows
    dialect.insert(connection, credit_transactions, [records.row_values(organization_id, row) for row in rows])
    dialect.insert(
        connection,
        credit_transaction_allocations,
        [values for row in rows for values in records.allocation_values(organization_id, row)],
    )
    details = [records.detail_values(organization_id, row) for row in rows]
    dialect.insert(connection, credit_transaction_details, [values for values in details if values is not None])
    dialect.insert(
        connection,
        idempotency_keys,
        [records.key_values(organization_id, ledger.keys[place]) for place in sorted(changes.new_keys)],
    )
    dialect.update(
        connection,
        idempotency_keys,
        ("organization_id", "kind", "key"),
        [records.key_values(organization_id, ledger.keys[place]) for place in sorted(changes.keys)],
    )
