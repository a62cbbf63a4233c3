"""Post operations: lock the account, read the clock, load, let the rules decide, write back. One transaction's body.

The caller begins and ends the transaction. A single call is a batch of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from operator import attrgetter, itemgetter
from typing import Any, Final

from sqlalchemy import Connection, Table, bindparam, delete, text

from agentcredits.clock import Clock
from agentcredits.rules import rollups, runs
from agentcredits.rules.due import book_due
from agentcredits.rules.operations import AboutHold, Operation, Spending
from agentcredits.rules.outcomes import Outcome, Record
from agentcredits.rules.posting import decide, decide_next
from agentcredits.rules.state import HoldState, Ledger, Row
from agentcredits.store import limit_records, loading, records, recurring_records, run_records
from agentcredits.store.columns import UtcDateTime
from agentcredits.store.dialects import Columns, Rows, StoreDialect, Write, dialect_of
from agentcredits.store.limit_tables import credit_denials, credit_limit_crossings, credit_limit_usage, credit_limits
from agentcredits.store.recurring_tables import recurring_grants
from agentcredits.store.tables import (
    credit_accounts,
    credit_grants,
    credit_reservations,
    credit_runs,
    credit_transaction_allocations,
    credit_transaction_details,
    credit_transactions,
    idempotency_keys,
    usage_rollups,
)

#: How many recurring grants one transaction books: an account that slept for years catches up in several.
MAX_REFILLS: Final = 200


@dataclass(frozen=True, slots=True)
class Decided:
    """What operations come to, and the writes that book it.

    ``outcomes`` answers each operation, in order. Their records are snapshots: later operations of the batch do not
    show.
    """

    outcomes: list[Outcome]
    writes: list[Write]


def post(
    connection: Connection,
    operations: Sequence[Operation],
    *,
    clock: Clock | None = None,
    fresh: bool = True,
    lock_timeout_seconds: float | None = None,
) -> list[Outcome]:
    """Decide operations in order and book them; answer each, refusals included. However much is due, it is booked. See
    :func:`decide_all`.
    """
    decided = decide_all(connection, operations, clock=clock, fresh=fresh, lock_timeout_seconds=lock_timeout_seconds)
    dialect_of(connection).write(connection, decided.writes)
    return decided.outcomes


def decide_all(
    connection: Connection,
    operations: Sequence[Operation],
    *,
    clock: Clock | None = None,
    fresh: bool = True,
    lock_timeout_seconds: float | None = None,
    most_refills: int | None = None,
) -> Decided:
    """Lock, load, and decide operations in order; what is to be written is the caller's last statement.

    Args:
        connection: In a write transaction that the caller commits. On PostgreSQL all operations name one account.
        operations: The batch; accounts are visited in the order of their ids.
        clock: Replaces the database's clock.
        fresh: False when this is a repeated try whose first answer was lost.
        lock_timeout_seconds: How long to wait for an account's row; None: as the connection is set.
        most_refills: Where more recurring grants are due in an account, only so many are booked, and its operations
            stay undecided; None: all are booked.
    """
    places: dict[str, list[int]] = {}
    for place, operation in enumerate(operations):
        places.setdefault(operation.organization_id, []).append(place)
    dialect = dialect_of(connection)
    if len(places) > 1 and not dialect.mixes_accounts:
        raise AssertionError("a batch names one account: a lock held for one tenant must not stop another")
    outcomes: list[Outcome] = [Outcome()] * len(operations)
    writes: list[Write] = []
    for organization_id in sorted(places):
        batch = [operations[place] for place in places[organization_id]]
        decided = _decide_account(
            connection, dialect, organization_id, batch, clock, fresh, lock_timeout_seconds, most_refills
        )
        for place, answer in zip(places[organization_id], decided.outcomes, strict=True):
            outcomes[place] = answer
        writes += decided.writes
    return Decided(outcomes, writes)


def _decide_account(
    connection: Connection,
    dialect: StoreDialect,
    organization_id: str,
    operations: Sequence[Operation],
    clock: Clock | None,
    fresh: bool,
    lock_timeout_seconds: float | None,
    most_refills: int | None,
) -> Decided:
    ledger = Ledger(organization_id)
    created, all_booked, loaded = False, True, _NOTHING
    ask = loading.asked_by(operations, loading.stored_keys(operations, fresh=fresh))
    opened = dialect.open_account(connection, organization_id, lock_timeout_seconds, ask)
    if opened.account is None and any(operation.creates_account for operation in operations):
        _create_account(connection, dialect, organization_id, clock)
        opened = dialect.open_account(connection, organization_id, lock_timeout_seconds, ask)
        created = True
    ledger.account = None if opened.account is None else records.read_account(opened.account)
    # The clock was read after the lock: a value from before the wait would be old.
    now = opened.now if clock is None else clock.now()
    if ledger.account is not None:
        now = max(now, ledger.account.last_posted_at)
        for grant in opened.grants:
            ledger.grants[grant["id"]] = records.read_grant(grant)
        loading.load_due_holds(connection, ledger, now)
        loading.load_named(connection, ledger, operations, ask, opened, fresh=fresh)
        if opened.has_limits:
            loading.load_limits(connection, ledger, operations, ask, opened.limits)
        if opened.has_runs:
            run_records.load_runs(connection, ledger, operations, now)
        loading.load_existing(connection, ledger, operations, now)
        loading.load_recurring(connection, ledger, now, operations)
        loaded = _seldom(ledger)
        all_booked = book_due(ledger, now, most_refills=most_refills)
        runs.book_due(ledger, now)
    unanswered = tuple(replace(hold) for hold in ledger.changes.unanswered)
    if all_booked:
        outcomes = _decide_in_order(ledger, operations, now, opened=not created)
    else:
        outcomes = [Outcome(undecided=True)] * len(operations)
    if unanswered:
        outcomes[0] = replace(outcomes[0], unanswered=unanswered)
    if created and ledger.account is None:
        connection.execute(delete(credit_accounts).where(credit_accounts.c.organization_id == organization_id))
    return Decided(outcomes, _writes(connection, ledger, loaded))


def _decide_in_order(ledger: Ledger, operations: Sequence[Operation], now: datetime, *, opened: bool) -> list[Outcome]:
    """Decide in order. An account whose row was made for this batch is there from the first operation that opens it."""
    account = ledger.account
    outcomes: list[Outcome] = []
    often = _named_often(operations)
    while not opened and len(outcomes) < len(operations):
        operation = operations[len(outcomes)]
        ledger.account = account if operation.creates_account else None
        outcome = decide(ledger, operation, now)
        opened = outcome.error is None
        outcomes.append(_snapshot(outcome, often))
    ledger.account = account if opened else None
    while len(outcomes) < len(operations):
        outcomes += [_snapshot(outcome, often) for outcome in decide_next(ledger, operations, len(outcomes), now)]
    return outcomes


def _named_often(operations: Sequence[Operation]) -> set[str] | None:
    """The holds that several operations make or name; None: there are operations that may change any hold."""
    named: set[str] = set()
    often: set[str] = set()
    for operation in operations:
        if isinstance(operation, Spending):
            hold_id = operation.id
        elif isinstance(operation, AboutHold):
            hold_id = operation.reservation_id
        else:
            return None
        if hold_id in named:
            often.add(hold_id)
        named.add(hold_id)
    return often


def _snapshot(outcome: Outcome, often: set[str] | None) -> Outcome:
    # Ledger rows never change; the other records may, by a later operation of the batch.
    record = outcome.record
    if record is None or isinstance(record, Row):
        return outcome
    if isinstance(record, HoldState) and often is not None and not outcome.replayed and record.id not in often:
        return outcome
    return Outcome(_copy(record), outcome.error, outcome.replayed, outcome.crossings, outcome.denials)


def _copy(record: Record) -> Record:
    """The record as it is now; ``dataclasses.replace`` takes three times as long."""
    kind = type(record)
    read = _read_all.get(kind)
    if read is None:
        read = _read_all[kind] = attrgetter(*(entry.name for entry in fields(record)))
    return kind(*read(record))


_read_all: Final[dict[type[Record], attrgetter[tuple[Any, ...]]]] = {}


def _create_account(connection: Connection, dialect: StoreDialect, organization_id: str, clock: Clock | None) -> None:
    now = dialect.now(connection) if clock is None else clock.now()
    connection.execute(_CREATE_ACCOUNT, {"organization_id": organization_id, "now": now})


#: Two first uses at the same moment agree on one row.
_CREATE_ACCOUNT: Final = text(
    "INSERT INTO credit_accounts (organization_id, created_at, last_posted_at) VALUES (:organization_id, :now, :now)"
    " ON CONFLICT DO NOTHING"
).bindparams(bindparam("now", type_=UtcDateTime()))


@dataclass(frozen=True, slots=True)
class _Seldom:
    """What a posting changes only now and then, to tell afterwards whether it did."""

    totals: tuple[int, ...] = ()
    grants: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    windows: Mapping[tuple[str, str], tuple[object, ...]] = field(default_factory=dict)


_NOTHING: Final = _Seldom()


def _seldom(ledger: Ledger) -> _Seldom:
    return _Seldom(
        records.account_totals(ledger.account),
        {id_: records.grant_standing(grant) for id_, grant in ledger.grants.items()},
        {place: limit_records.usage_window(usage) for place, usage in ledger.usage.items()},
    )


def _writes(connection: Connection, ledger: Ledger, loaded: _Seldom) -> list[Write]:
    """A fixed number of statements (PostgreSQL: one), whatever the size of the batch."""
    changes, account, owner = ledger.changes, ledger.account, ledger.organization_id
    if account is None:
        return []
    if changes.removed_limits:
        gone = sorted(changes.removed_limits)
        for table, column in ((credit_limit_usage, "limit_id"), (credit_limits, "id")):
            connection.execute(delete(table).where(table.c.organization_id == owner, table.c[column].in_(gone)))
    key = ("organization_id", "id")
    writes = _Writes()
    # The rows of one write have the same columns; what changes seldom is a column only of those that it changed for.
    if changes.account:
        values = records.account_changes(
            account,
            totals=records.account_totals(account) != loaded.totals,
            standing=changes.standing,
            features=changes.account_features,
        )
        writes.add(credit_accounts, [values], key[:1])
    if changes.new_grants or changes.grants:
        _add_grants(writes, ledger, loaded)
    if changes.new_holds or changes.holds:
        _add_holds(writes, ledger)
    if changes.rows:
        rows = changes.rows
        writes.add(credit_transactions, records.row_columns(owner, rows))
        writes.add(credit_transaction_allocations, records.allocation_columns(owner, rows))
        writes.add(credit_transaction_details, list(filter(None, (records.detail_values(owner, row) for row in rows))))
        sums = sorted(rollups.totals(rows).items(), key=itemgetter(0))
        totals, adds = limit_records.rollup_rows(owner, sums)
        writes.add(usage_rollups, totals, ("organization_id", "day", "bucket"), adds)
    if changes.new_keys or changes.keys:
        _add_keys(writes, ledger)
    if ledger.limits or changes.usage or changes.crossings or changes.denials:
        _add_limits(writes, ledger, loaded)
    if ledger.runs or ledger.recurring:
        _add_runs(writes, ledger)
    return writes


class _Writes(list[Write]):
    def add(self, table: Table, rows: Rows | Columns, keys: tuple[str, ...] = (), adds: tuple[str, ...] = ()) -> None:
        """Add a write, unless it has no rows."""
        if rows:
            self.append(Write(table, rows, keys, adds))


def _add_grants(writes: _Writes, ledger: Ledger, loaded: _Seldom) -> None:
    changes, owner, grants, key = ledger.changes, ledger.organization_id, ledger.grants, ("organization_id", "id")
    writes.add(credit_grants, [records.grant_values(owner, grants[id_]) for id_ in sorted(changes.new_grants)])
    rows: dict[bool, list[records.Values]] = {False: [], True: []}
    for id_ in sorted(changes.grants):
        whole = id_ in changes.repaid or records.grant_standing(grants[id_]) != loaded.grants[id_]
        rows[whole].append(records.grant_changes(owner, grants[id_], whole=whole))
    for found in rows.values():
        writes.add(credit_grants, found, key)


def _add_holds(writes: _Writes, ledger: Ledger) -> None:
    changes, owner, holds, key = ledger.changes, ledger.organization_id, ledger.holds, ("organization_id", "id")
    writes.add(credit_reservations, records.hold_columns(owner, [holds[id_] for id_ in sorted(changes.new_holds)]))
    changed = [holds[id_] for id_ in sorted(changes.holds)]
    plain, forced = [one for one in changed if not one.forced], [one for one in changed if one.forced]
    writes.add(credit_reservations, records.hold_changes(owner, plain), key)
    writes.add(credit_reservations, records.hold_changes(owner, forced, forced=True), key)


def _add_keys(writes: _Writes, ledger: Ledger) -> None:
    changes, owner, stored = ledger.changes, ledger.organization_id, ledger.keys.__getitem__
    writes.add(idempotency_keys, records.key_columns(owner, map(stored, sorted(changes.new_keys))))
    again = records.key_columns(owner, map(stored, sorted(changes.keys)))
    writes.add(idempotency_keys, again, ("organization_id", "kind", "key"))


def _add_limits(writes: _Writes, ledger: Ledger, loaded: _Seldom) -> None:
    changes, owner, limits, usage = ledger.changes, ledger.organization_id, ledger.limits, ledger.usage
    of_limit, of_usage = ("organization_id", "id"), ("organization_id", "limit_id", "scope_id")
    writes.add(credit_limits, [limit_records.limit_values(owner, limits[id_]) for id_ in sorted(changes.new_limits)])
    writes.add(
        credit_limits, [limit_records.limit_changes(owner, limits[id_]) for id_ in sorted(changes.limits)], of_limit
    )
    writes.add(
        credit_limit_usage, [limit_records.usage_values(owner, usage[place]) for place in sorted(changes.new_usage)]
    )
    rolled = {place for place in changes.usage if limit_records.usage_window(usage[place]) != loaded.windows[place]}
    counted = [limit_records.usage_changes(owner, usage[place]) for place in sorted(changes.usage - rolled)]
    writes.add(credit_limit_usage, counted, of_usage)
    afresh = [limit_records.usage_values(owner, usage[place]) for place in sorted(rolled)]
    writes.add(credit_limit_usage, afresh, of_usage)
    writes.add(credit_limit_crossings, [limit_records.crossing_values(owner, one) for one in changes.crossings])
    writes.add(credit_denials, [limit_records.denial_values(owner, one) for one in changes.denials])


def _add_runs(writes: _Writes, ledger: Ledger) -> None:
    changes, owner, runs, recurring = ledger.changes, ledger.organization_id, ledger.runs, ledger.recurring
    of_run, key = ("organization_id", "run_id"), ("organization_id", "id")
    writes.add(credit_runs, [run_records.run_values(owner, runs[id_]) for id_ in sorted(changes.new_runs)])
    writes.add(credit_runs, [run_records.run_changes(owner, runs[id_]) for id_ in sorted(changes.runs)], of_run)
    values, changed = recurring_records.recurring_values, recurring_records.recurring_changes
    writes.add(recurring_grants, [values(owner, recurring[id_]) for id_ in sorted(changes.new_recurring)])
    writes.add(recurring_grants, [changed(owner, recurring[id_]) for id_ in sorted(changes.recurring)], key)
