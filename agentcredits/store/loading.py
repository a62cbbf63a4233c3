"""Load what a batch of operations on one account can touch, with a fixed number of statements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TypeGuard

from sqlalchemy import BindParameter, Connection, Select, and_, bindparam, func, or_, select

from agentcredits.model import AccountStatus, Allocation, LimitScope, RecurringStatus
from agentcredits.rules import keys, limits, runs
from agentcredits.rules import operations as ops
from agentcredits.rules.due import is_due, is_refill_due
from agentcredits.rules.state import AccountState, Ledger, Row
from agentcredits.store import limit_records, limit_sums, records, recurring_records
from agentcredits.store.dialects import Ask, Opened, RowLike, dialect_of
from agentcredits.store.recurring_tables import recurring_grants
from agentcredits.store.tables import (
    HOLDING,
    credit_accounts,
    credit_grants,
    credit_reservations,
    credit_transaction_allocations,
    credit_transaction_details,
    credit_transactions,
)

#: Ledger rows with their erasable details.
TRANSACTIONS: Select[tuple[object, ...]] = select(
    credit_transactions,
    *(column for column in credit_transaction_details.c if column.name not in ("organization_id", "transaction_id")),
).select_from(
    credit_transactions.outerjoin(
        credit_transaction_details,
        and_(
            credit_transaction_details.c.organization_id == credit_transactions.c.organization_id,
            credit_transaction_details.c.transaction_id == credit_transactions.c.id,
        ),
    )
)

# What every read asks is built once: building a statement takes longer than SQLite takes to answer it.
_OF_ORGANIZATION: BindParameter[str] = bindparam("organization_id")
_ACCOUNT = select(credit_accounts).where(credit_accounts.c.organization_id == _OF_ORGANIZATION)
_OPEN_GRANTS = select(credit_grants).where(credit_grants.c.organization_id == _OF_ORGANIZATION, credit_grants.c.is_open)
_OPEN_HOLDS = and_(credit_reservations.c.organization_id == _OF_ORGANIZATION, credit_reservations.c.state.in_(HOLDING))
_DUE_HOLDS = select(credit_reservations).where(_OPEN_HOLDS, credit_reservations.c.expires_at <= bindparam("now"))
_NEXT_END = select(func.min(credit_reservations.c.expires_at)).where(
    _OPEN_HOLDS, credit_reservations.c.expires_at > bindparam("now")
)


def load_account(connection: Connection, organization_id: str) -> AccountState | None:
    """The account's counters, without a lock."""
    row = connection.execute(_ACCOUNT, {"organization_id": organization_id}).mappings().first()
    return None if row is None else records.read_account(row)


def load_open_grants(connection: Connection, ledger: Ledger) -> None:
    """Every grant to which something can still happen."""
    _load_grants(connection, ledger, _OPEN_GRANTS, {"organization_id": ledger.organization_id})


def load_due_holds(connection: Connection, ledger: Ledger, now: datetime) -> None:
    """Every open hold whose time is over, and when the next of the others ends."""
    if ledger.account is None or not is_due(ledger.account, now):
        return
    asked = {"organization_id": ledger.organization_id, "now": now}
    _add_holds(ledger, connection.execute(_DUE_HOLDS, asked).mappings())
    ledger.later_due_at = connection.execute(_NEXT_END, asked).scalar()


def load_recurring(
    connection: Connection, ledger: Ledger, now: datetime, operations: Sequence[ops.Operation] = ()
) -> None:
    """All active recurring grants where one of them is due or an operation is about one, and those that are named."""
    about = [one for one in operations if _is_about_recurring(one)]
    if not about and (ledger.account is None or not is_refill_due(ledger.account, now)):
        return
    named = {operation.recurring_id for operation in about if isinstance(operation, ops.CancelRecurring)}
    named |= {key.result_id for key in ledger.keys.values() if key.kind == ops.CreateRecurring.key_kind}
    table = recurring_grants
    wanted = or_(table.c.status == RecurringStatus.ACTIVE.value, table.c.id.in_(sorted(named)))
    statement = select(table).where(table.c.organization_id == ledger.organization_id, wanted)
    for row in connection.execute(statement).mappings():
        ledger.recurring[row["id"]] = recurring_records.read_recurring(row)


def _is_about_recurring(operation: ops.Operation) -> bool:
    """Closing an account cancels them all."""
    if isinstance(operation, ops.SetStatus):
        return operation.status is AccountStatus.CLOSED
    return isinstance(operation, ops.CreateRecurring | ops.CancelRecurring)


def load_named(
    connection: Connection,
    ledger: Ledger,
    operations: Sequence[ops.Operation],
    ask: Ask,
    opened: Opened,
    *,
    fresh: bool,
) -> None:
    """The records that the operations name by key or id.

    Args:
        connection: Where to read.
        ledger: Gets the records.
        operations: The batch.
        ask: What they name.
        opened: What was read of that already.
        fresh: As in :func:`stored_keys`.
    """
    hold_ids = set(ask.hold_ids)
    row_ids: set[str] = set()
    grant_ids: set[str] = set()
    keyed: list[ops.KeyedOperation] = []
    for operation in operations:
        if _is_looked_up(operation, fresh=fresh):
            keyed.append(operation)
        if isinstance(operation, ops.Refund):
            row_ids.add(operation.transaction_id)
        elif isinstance(operation, ops.VoidGrant):
            grant_ids.add(operation.grant_id)
    if ask.keys:
        _load_keys(connection, ledger, ask.keys, opened.keys)
    for kind, record_id in _named_by_key(ledger, keyed):
        {"reserve": hold_ids, "grant": grant_ids, "recurring": set()}.get(kind, row_ids).add(record_id)
    _add_holds(ledger, opened.holds or ())
    missing_holds = hold_ids if opened.holds is None else hold_ids.difference(ask.hold_ids)
    if missing_holds:
        _add_holds(ledger, dialect_of(connection).read_holds(connection, ledger.organization_id, missing_holds))
    if row_ids:
        grant_ids |= _load_rows_with_refunds(connection, ledger, row_ids)
    if row_ids and _may_go_back_to_payers(ledger, operations):
        table = credit_grants
        _load_grants(
            connection,
            ledger,
            select(table).where(table.c.organization_id == ledger.organization_id, table.c.repaid_micros > 0),
        )
    missing = grant_ids - ledger.grants.keys()
    if missing:
        _load_grants(
            connection,
            ledger,
            select(credit_grants).where(
                credit_grants.c.organization_id == ledger.organization_id, credit_grants.c.id.in_(sorted(missing))
            ),
        )


def _may_go_back_to_payers(ledger: Ledger, operations: Sequence[ops.Operation]) -> bool:
    """Whether a refund may find that the debt was paid meanwhile: its charge, perhaps one of this batch, overdrew."""
    return (
        (ledger.account is not None and ledger.account.overdraft_micros > 0)
        or any(isinstance(operation, ops.SetOverdraft) for operation in operations)
        or any(part.grant_id is None for row in ledger.rows.values() for part in row.allocations)
    )


def load_allocations(
    connection: Connection, organization_id: str, transaction_ids: Iterable[str]
) -> dict[str, tuple[Allocation, ...]]:
    """The per-grant allocations of ledger rows, in their order, with what their grants say of them."""
    table = credit_transaction_allocations
    found: dict[str, list[Allocation]] = {}
    grants = credit_grants
    for row in connection.execute(
        select(
            table.c.transaction_id,
            table.c.grant_id,
            table.c.amount_micros,
            grants.c.category,
            grants.c.unit_cost,
            grants.c.currency,
        )
        .select_from(
            table.outerjoin(
                grants, and_(grants.c.organization_id == table.c.organization_id, grants.c.id == table.c.grant_id)
            )
        )
        .where(table.c.organization_id == organization_id, table.c.transaction_id.in_(list(transaction_ids)))
        .order_by(table.c.transaction_id, table.c.position)
    ):
        found.setdefault(row.transaction_id, []).append(records.read_allocation(row))
    return {transaction_id: tuple(parts) for transaction_id, parts in found.items()}


def read_rows(connection: Connection, organization_id: str, statement: Select[tuple[object, ...]]) -> list[Row]:
    """Ledger rows of a statement built on ``TRANSACTIONS``, with their allocations."""
    found = connection.execute(statement).mappings().all()
    allocations = load_allocations(connection, organization_id, [row["id"] for row in found]) if found else {}
    return [records.read_row(row, allocations.get(row["id"], ())) for row in found]


def asked_by(operations: Sequence[ops.Operation], keys: frozenset[tuple[str, str]] = frozenset()) -> Ask:
    """What the operations name; ``keys``: with these."""
    places: set[tuple[str, str]] = {(LimitScope.ORGANIZATION, "")}
    hold_ids: set[str] = set()
    activity = None
    for operation in operations:
        if isinstance(operation, ops.Spending):
            if operation.activity is not activity:
                activity = operation.activity
                places.update(limits.places_of_activity(activity))
        elif isinstance(operation, ops.AboutHold):
            hold_ids.add(operation.reservation_id)
        elif isinstance(operation, ops.SetLimit):
            places.add((operation.scope, operation.scope_id))
    return Ask(frozenset(places), tuple(sorted(hold_ids)), keys)


def stored_keys(operations: Sequence[ops.Operation], *, fresh: bool) -> frozenset[tuple[str, str]]:
    """The keys of the operations, with their kinds, that may be stored.

    Args:
        operations: The batch.
        fresh: Whether this is the first try: generated keys cannot be known yet, so they are not looked up.
    """
    return frozenset(
        (operation.key_kind, operation.key)
        for operation in operations
        if _is_looked_up(operation, fresh=fresh) and keys.is_stored(operation)
    )


def _is_looked_up(operation: ops.Operation, *, fresh: bool) -> TypeGuard[ops.KeyedOperation]:
    return isinstance(operation, ops.KeyedOperation) and not (fresh and operation.key_generated)


def load_limits(
    connection: Connection,
    ledger: Ledger,
    operations: Sequence[ops.Operation],
    ask: Ask,
    found: Sequence[RowLike] | None = None,
) -> None:
    """The limits that the operations, and the holds and charges that they name, fall under; with their counters.

    ``found``: those of what the operations name, if they were read already.
    """
    places: set[tuple[str, str]] = set()
    for row in ledger.rows.values():
        places.update(limits.places_of_record(row))
    for hold in ledger.holds.values():
        if hold.id not in ask.hold_ids:
            places.update(limits.places_of_record(hold))
    places -= ask.places
    ids = {operation.limit_id for operation in operations if isinstance(operation, ops.RemoveLimit)}
    ids.update(*(hold.limits for hold in ledger.holds.values()))
    ids.discard(runs.POOL)
    if found is None or places or not ids.issubset(row["id"] for row in found):
        for hold_id in ask.hold_ids:
            if hold_id in ledger.holds:
                places.update(limits.places_of_record(ledger.holds[hold_id]))
        found = dialect_of(connection).read_limits(connection, ledger.organization_id, places | ask.places, ids)
    for values in found:
        limit_id, counted_id = values["id"], values["counted_id"]
        ledger.add_limit(limit_records.read_limit(values))
        if counted_id is not None:
            ledger.usage[limit_id, counted_id] = limit_records.read_usage(limit_id, counted_id, values)


def load_existing(connection: Connection, ledger: Ledger, operations: Sequence[ops.Operation], now: datetime) -> None:
    """What was charged in the present window, for new limits that are to count it."""
    for operation in operations:
        if isinstance(operation, ops.SetLimit) and operation.include_existing:
            start, _ = limits.window_of(limits.new_limit(operation, now, 0), now)
            statement = limit_sums.spent_since(
                ledger.organization_id, operation.scope, operation.scope_id, operation.unit, start
            )
            ledger.existing[operation.place] = {
                row.scope_id: int(row.spent) for row in connection.execute(statement) if row.spent
            }


def _named_by_key(ledger: Ledger, operations: Sequence[ops.KeyedOperation]) -> list[tuple[str, str]]:
    """The records that the loaded keys, or the ids in generated ones, name: what made them, and their ids."""
    stored = [(key.kind, key.result_id) for key in ledger.keys.values()]
    ids = ((operation.key_kind, keys.record_id(operation)) for operation in operations)
    return stored + [(kind, record_id) for kind, record_id in ids if record_id is not None]


def _load_keys(
    connection: Connection, ledger: Ledger, places: frozenset[tuple[str, str]], found: Sequence[RowLike] | None
) -> None:
    if found is None:
        found = dialect_of(connection).read_keys(connection, ledger.organization_id, places)
    for key in map(records.read_key, found):
        if (key.kind, key.key) in places:
            ledger.keys[key.kind, key.key] = key


def _load_grants(
    connection: Connection,
    ledger: Ledger,
    statement: Select[tuple[object, ...]],
    parameters: Mapping[str, object] | None = None,
) -> None:
    for row in connection.execute(statement, parameters).mappings():
        ledger.grants.setdefault(row["id"], records.read_grant(row))


def _add_holds(ledger: Ledger, rows: Iterable[RowLike]) -> None:
    for row in rows:
        if row["id"] not in ledger.holds:
            ledger.holds[row["id"]] = records.read_hold(row)


def _load_rows_with_refunds(connection: Connection, ledger: Ledger, row_ids: set[str]) -> set[str]:
    """Load ledger rows and the refunds of them; return the grants that they touch."""
    table = credit_transactions
    wanted = sorted(row_ids)
    grant_ids: set[str] = set()
    for row in read_rows(
        connection,
        ledger.organization_id,
        TRANSACTIONS.where(
            table.c.organization_id == ledger.organization_id,
            or_(table.c.id.in_(wanted), table.c.refund_of.in_(wanted)),
        ).order_by(table.c.seq),
    ):
        if row.id in row_ids:
            ledger.rows[row.id] = row
        if row.refund_of is not None:
            ledger.refunds.setdefault(row.refund_of, []).append(row)
        grant_ids |= {part.grant_id for part in row.allocations if part.grant_id is not None}
    return grant_ids
