"""Reads: balances, histories, grants, reservations, accounts that have something due."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, or_, select

from agentcredits.clock import Clock
from agentcredits.errors import CreditsError
from agentcredits.model import (
    Account,
    Balance,
    CreditGrant,
    GrantStatus,
    Page,
    RecurringGrant,
    ReservationRecord,
    ReservationState,
    RunRecord,
    RunStatus,
    Transaction,
    TransactionType,
)
from agentcredits.rules import burn_down, limits, refusals, runs
from agentcredits.rules.accounts import refuse_unless_open
from agentcredits.rules.charges import short_of, usable_by
from agentcredits.rules.due import book_due, is_due
from agentcredits.rules.entries import end_if_over
from agentcredits.rules.operations import Activity, Operation, Spending
from agentcredits.rules.state import AccountState, Ledger
from agentcredits.store import loading, records, recurring_records, run_records, tenancy
from agentcredits.store.dialects import dialect_of
from agentcredits.store.recurring_tables import recurring_grants
from agentcredits.store.tables import (
    HOLDING,
    credit_grants,
    credit_reservations,
    credit_transaction_details,
    credit_transactions,
)


def now_of(connection: Connection, clock: Clock | None) -> datetime:
    """The injected clock's time, or the database's."""
    return dialect_of(connection).now(connection) if clock is None else clock.now()


def view(
    connection: Connection,
    organization_id: str,
    clock: Clock | None,
    *,
    planned: Sequence[Operation] | None = None,
    run_ids: Sequence[str] = (),
) -> tuple[Ledger, AccountState, datetime]:
    """The account as it is now: what is due is computed here and booked by the next posting.

    One statement when nothing is due and no grant is restricted. Otherwise the loads see one moment, or they would be
    torn apart.

    Args:
        connection: Where to read.
        organization_id: Whose.
        clock: Replaces the database's clock.
        planned: Load the limits and runs of these operations too.
        run_ids: Load these runs too (only with ``planned``).

    Raises:
        AccountNotFoundError: the organization has no account.
    """
    ledger = Ledger(organization_id)
    now = now_of(connection, clock)
    ledger.account = loading.load_account(connection, organization_id)
    if ledger.account is None:
        raise refusals.account_not_found(organization_id)
    now = max(now, ledger.account.last_posted_at)
    # Restricted credits are told apart by the grants themselves.
    if is_due(ledger.account, now) or ledger.account.has_restricted:
        connection.rollback()
        dialect_of(connection).begin_read(connection)
        ledger.account = loading.load_account(connection, organization_id)
        if ledger.account is None:
            raise refusals.account_not_found(organization_id)
        now = max(now, ledger.account.last_posted_at)
        loading.load_open_grants(connection, ledger)
        loading.load_due_holds(connection, ledger, now)
        loading.load_recurring(connection, ledger, now)
        if planned is not None:
            loading.load_limits(connection, ledger, planned, loading.asked_by(planned))
            run_records.load_runs(connection, ledger, planned, now, run_ids)
        book_due(ledger, now)
    elif planned is not None:
        loading.load_limits(connection, ledger, planned, loading.asked_by(planned))
        run_records.load_runs(connection, ledger, planned, now, run_ids)
    runs.book_due(ledger, now)
    return ledger, ledger.account, now


def get_balance(connection: Connection, organization_id: str, clock: Clock | None) -> Balance:
    """The account's balance now.

    Raises:
        AccountNotFoundError: the organization has no account.
    """
    ledger, account, now = view(connection, organization_id, clock)
    restricted = (grant for grant in burn_down.usable(ledger.grants.values(), now) if grant.only_for)
    return Balance(
        organization_id=organization_id,
        granted_micros=account.granted_micros,
        scheduled_micros=account.scheduled_micros,
        spent_micros=account.spent_micros,
        reserved_micros=account.reserved_micros,
        expired_micros=account.expired_micros,
        voided_micros=account.voided_micros,
        as_of=now,
        restricted_micros=sum(grant.remaining_micros for grant in restricted) if account.has_restricted else 0,
    )


def get_account(connection: Connection, organization_id: str, clock: Clock | None) -> Account:
    """The account's status, line and debt now.

    Raises:
        AccountNotFoundError: the organization has no account.
    """
    _, account, now = view(connection, organization_id, clock)
    return records.public_account(account, now)


def check(
    connection: Connection, organization_id: str, planned: Sequence[Spending], clock: Clock | None
) -> tuple[int, CreditsError | None]:
    """Whether operations together could be posted now: micro-credits available, and the refusal if there is one.

    Raises:
        AccountNotFoundError: the organization has no account.
    """
    ledger, account, now = view(connection, organization_id, clock, planned=planned)
    available = account.available_micros
    usable = available + account.overdrawn_micros
    try:
        refuse_unless_open(account)
        for operation in planned:
            found = limits.of_spending(ledger, operation.activity, now)
            pool = runs.of_spending(ledger, operation.activity, now)
            runs.check(ledger, pool, operation.amount_micros, operation.activity, capped=False)
            limits.check(ledger, found, operation.amount_micros, operation.activity)
            limits.hold(ledger, found, operation.amount_micros)
            limits.keep(ledger, found)
            runs.keep(ledger, pool)
            runs.hold(ledger, pool, operation.amount_micros, now)
    except CreditsError as error:
        return available, error
    if account.has_restricted:
        return _check_grants(ledger, planned, now)
    total = sum(operation.amount_micros for operation in planned)
    if total > usable:
        what = planned[0].activity if len(planned) == 1 else Activity(action="the plan")
        return available, refusals.insufficient(account, usable, total, what)
    return available, None


def _check_grants(ledger: Ledger, planned: Sequence[Spending], now: datetime) -> tuple[int, CreditsError | None]:
    """As ``check``, charge by charge, where some grants are kept for certain actions."""
    usable = {
        grant.id: grant.remaining_micros
        for operation in planned
        for grant in usable_by(ledger, operation.activity, now)
    }
    total = sum(operation.amount_micros for operation in planned)
    missing = 0
    for operation in planned:
        grants = usable_by(ledger, operation.activity, now)
        room = min(operation.amount_micros, sum(grant.remaining_micros for grant in grants))
        missing += operation.amount_micros - room
        for part in burn_down.take(grants, room):
            ledger.grants[str(part.grant_id)].spent_micros += part.amount_micros
    if not missing:
        return sum(usable.values()), None
    what = planned[0].activity if len(planned) == 1 else Activity(action="the plan")
    return total - missing, short_of(ledger, total - missing, total, what)


def list_grants(connection: Connection, organization_id: str, clock: Clock | None) -> tuple[CreditGrant, ...]:
    """Every grant of the organization as it is now, oldest first."""
    ledger, _, now = view(connection, organization_id, clock)
    rows = connection.execute(
        select(credit_grants)
        .where(credit_grants.c.organization_id == organization_id)
        .order_by(credit_grants.c.created_at, credit_grants.c.id)
    ).mappings()
    grants = {id_: ledger.grants[id_] for id_ in ledger.changes.new_grants}
    for row in rows:
        grant = grants[row["id"]] = ledger.grants.setdefault(row["id"], records.read_grant(row))
        end_if_over(ledger, grant, now)
    oldest_first = sorted(grants.values(), key=lambda grant: (grant.created_at, grant.id))
    return tuple(records.public_grant(organization_id, grant) for grant in oldest_first)


def list_recurring_grants(
    connection: Connection, organization_id: str, clock: Clock | None
) -> tuple[RecurringGrant, ...]:
    """Every recurring grant of the organization as it is now, oldest first."""
    table = recurring_grants
    ledger, _, _ = view(connection, organization_id, clock)
    rows = connection.execute(
        select(table).where(table.c.organization_id == organization_id).order_by(table.c.created_at, table.c.id)
    ).mappings()
    return tuple(
        recurring_records.public_recurring(
            organization_id, ledger.recurring.get(row["id"]) or recurring_records.read_recurring(row)
        )
        for row in rows
    )


def get_reservation(
    connection: Connection, organization_id: str, reservation_id: str, clock: Clock | None
) -> ReservationRecord:
    """One reservation as it is now.

    Raises:
        ReservationNotFoundError: unknown, or another organization's.
    """
    table = credit_reservations
    ledger, _, _ = view(connection, organization_id, clock)
    row = (
        connection.execute(
            select(table).where(table.c.organization_id == organization_id, table.c.id == reservation_id)
        )
        .mappings()
        .first()
    )
    if row is None:
        raise refusals.reservation_not_found(organization_id, reservation_id)
    hold = ledger.holds.get(reservation_id) or records.read_hold(row)
    return records.public_hold(organization_id, hold)


def list_reservations(
    connection: Connection,
    organization_id: str,
    clock: Clock | None,
    *,
    states: Sequence[ReservationState],
    limit: int,
    unresolved: bool = False,
) -> tuple[ReservationRecord, ...]:
    """Reservations in the given states as they are now, newest first.

    ``unresolved``: only those whose provider's verdict has not come: they wait, or ran out and were not charged late.
    """
    table = credit_reservations
    ledger, _, now = view(connection, organization_id, clock)
    statement = select(table).where(table.c.organization_id == organization_id)
    if states:
        # Those whose time is over still stand as open in the table until something is posted.
        is_open = table.c.state.in_(HOLDING)
        wanted = [table.c.state.in_([state.value for state in states]) & ~(is_open & (table.c.expires_at <= now))]
        if ReservationState.EXPIRED in states:
            wanted.append(is_open & (table.c.expires_at <= now))
        statement = statement.where(or_(*wanted))
    if unresolved:
        waited = table.c.state.in_([ReservationState.UNKNOWN.value, ReservationState.EXPIRED.value])
        statement = statement.where(waited, table.c.provider.is_not(None), table.c.requested_micros.is_(None))
    rows = connection.execute(statement.order_by(table.c.created_at.desc(), table.c.id.desc()).limit(limit)).mappings()
    return tuple(
        records.public_hold(organization_id, ledger.holds.get(row["id"]) or records.read_hold(row)) for row in rows
    )


def has_expired(connection: Connection, organization_id: str, reservation_id: str) -> bool:
    """Whether this reservation's end by time is booked."""
    table = credit_reservations
    statement = select(table.c.state).where(table.c.organization_id == organization_id, table.c.id == reservation_id)
    return connection.execute(statement).scalar() == ReservationState.EXPIRED.value


def get_run(connection: Connection, organization_id: str, run_id: str, clock: Clock | None) -> RunRecord:
    """One run as it is now.

    Raises:
        RunNotFoundError: unknown, or another organization's.
    """
    ledger, _, _ = view(connection, organization_id, clock, planned=(), run_ids=[run_id])
    return run_records.public_run(ledger, runs.known(ledger, run_id))


def list_runs(
    connection: Connection,
    organization_id: str,
    clock: Clock | None,
    *,
    status: RunStatus | None,
    parent_run_id: str | None,
    limit: int,
) -> tuple[RunRecord, ...]:
    """Runs as they are now, newest first.

    Raises:
        AccountNotFoundError: the organization has no account.
    """
    now = now_of(connection, clock)
    names = run_records.run_ids(
        connection, organization_id, now, status=status, parent_run_id=parent_run_id, limit=limit
    )
    ledger, _, _ = view(connection, organization_id, clock, planned=(), run_ids=names)
    found = (run_records.public_run(ledger, ledger.runs[name]) for name in names if name in ledger.runs)
    return tuple(run for run in found if status is None or run.status is status)


def purge_runs(connection: Connection, organization_id: str | None, clock: Clock | None, older_than: timedelta) -> int:
    """Remove the trees of runs that ended that long ago; how many runs."""
    now = now_of(connection, clock)
    return run_records.purge(connection, organization_id, now, now - older_than)


def has_transaction(connection: Connection, organization_id: str, transaction_id: str) -> bool:
    """Whether this ledger row is there."""
    table = credit_transactions
    statement = select(table.c.seq).where(table.c.organization_id == organization_id, table.c.id == transaction_id)
    return connection.execute(statement).first() is not None


def list_transactions(
    connection: Connection,
    organization_id: str,
    *,
    cursor: int | None,
    limit: int,
    type: TransactionType | None,
    matches: Mapping[str, str],
    since: datetime | None,
    until: datetime | None,
) -> Page[Transaction]:
    """A page of the history, newest first, by ``seq``: no row is skipped or shown twice while others are added.

    Args:
        connection: Where to read.
        organization_id: Whose.
        cursor: Only rows before this seq.
        limit: Rows at most.
        type: Only rows of this type.
        matches: Only rows with these values, by column.
        since: Only rows from here on.
        until: Only rows before.

    Raises:
        AccountNotFoundError: the organization has no account.
    """
    table = credit_transactions
    if loading.load_account(connection, organization_id) is None:
        raise refusals.account_not_found(organization_id)
    statement = loading.TRANSACTIONS.where(table.c.organization_id == organization_id)
    if cursor is not None:
        statement = statement.where(table.c.seq < cursor)
    if type is not None:
        statement = statement.where(table.c.type == type.value)
    for name, value in matches.items():
        column = credit_transaction_details.c.user_id if name == "user_id" else table.c[name]
        statement = statement.where(column == value)
    if since is not None:
        statement = statement.where(table.c.created_at >= since)
    if until is not None:
        statement = statement.where(table.c.created_at < until)
    rows = loading.read_rows(connection, organization_id, statement.order_by(table.c.seq.desc()).limit(limit + 1))
    items = tuple(records.public_row(organization_id, row) for row in rows[:limit])
    return Page(items, items[-1].seq if len(rows) > limit else None)


@dataclass(frozen=True, slots=True)
class Due:
    """What is due in an account: how many holds and grants end, and which holds awaited a verdict."""

    holds: int
    grants: int
    unknown: tuple[str, ...]


def due_summary(connection: Connection, organization_id: str, clock: Clock | None) -> Due:
    """What the next posting of the account will book by time alone."""
    ledger, _, _ = view(connection, organization_id, clock)
    ended = [ledger.holds[place] for place in sorted(ledger.changes.holds)]
    grants = [ledger.grants[place] for place in ledger.changes.grants | ledger.changes.new_grants]
    return Due(
        holds=len(ended),
        grants=sum(grant.status is GrantStatus.EXPIRED and grant.expired_micros > 0 for grant in grants),
        unknown=tuple(hold.id for hold in ended if hold.provider is not None),
    )


def accounts_due(connection: Connection, clock: Clock | None, organization_id: str | None) -> list[str]:
    """The organizations that have something to be booked."""
    table = tenancy.all_accounts(connection)
    statement = select(table.c.organization_id).where(table.c.next_due_at <= now_of(connection, clock))
    if organization_id is not None:
        statement = statement.where(table.c.organization_id == organization_id)
    return list(connection.execute(statement.order_by(table.c.organization_id)).scalars())
