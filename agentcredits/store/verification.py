"""Verify: recompute every counter from the rows that it counts, account by account, and report any difference.

The sums are made by the database, so the memory needed does not grow with the ledger.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, and_, case, func, literal_column, select

from agentcredits.amounts import from_micros
from agentcredits.model import VerifyProblem, VerifyReport
from agentcredits.rules.entries import next_event
from agentcredits.rules.state import OPEN_STATES
from agentcredits.store import limit_verification, records, recurring_verification
from agentcredits.store.dialects import dialect_of
from agentcredits.store.recurring_tables import recurring_grants
from agentcredits.store.tables import (
    credit_accounts,
    credit_grants,
    credit_reservations,
    credit_transaction_allocations,
    credit_transactions,
    idempotency_keys,
)

_OPEN = [state.value for state in OPEN_STATES]
MAX_EXAMPLES = 20


def verify(connection: Connection, organization_id: str | None) -> VerifyReport:
    """Check one account, or all; each is read as of one moment."""
    statement = select(credit_accounts.c.organization_id).order_by(credit_accounts.c.organization_id)
    if organization_id is not None:
        statement = statement.where(credit_accounts.c.organization_id == organization_id)
    accounts = list(connection.execute(statement).scalars())
    problems: list[VerifyProblem] = []
    transactions = 0
    dialect = dialect_of(connection)
    for place in accounts:
        # One moment for each account, not one for all: a long read would keep SQLite's log from being written back.
        connection.rollback()
        dialect.begin_read(connection)
        checked, found = _verify_account(connection, place)
        transactions += checked
        problems += found
    connection.rollback()
    problems += _strays(connection, organization_id)
    return VerifyReport(len(accounts), transactions, tuple(problems))


def _strays(connection: Connection, organization_id: str | None) -> list[VerifyProblem]:
    """Rows of organizations that have no account."""
    known = select(credit_accounts.c.organization_id)
    problems = []
    for table in (credit_grants, credit_reservations, credit_transactions, recurring_grants):
        statement = select(table.c.organization_id).where(table.c.organization_id.not_in(known)).distinct()
        if organization_id is not None:
            statement = statement.where(table.c.organization_id == organization_id)
        problems += [
            VerifyProblem(place, "account", f"{table.name} has rows of organization {place}, which has no account")
            for place in connection.execute(statement.limit(MAX_EXAMPLES)).scalars()
        ]
    return problems


def _verify_account(connection: Connection, organization_id: str) -> tuple[int, list[VerifyProblem]]:
    account = (
        connection.execute(select(credit_accounts).where(credit_accounts.c.organization_id == organization_id))
        .mappings()
        .one()
    )
    ledger = _ledger_sums(connection, organization_id)
    held, open_holds = _open_holds(connection, organization_id)
    grants = list(
        connection.execute(select(credit_grants).where(credit_grants.c.organization_id == organization_id)).mappings()
    )
    problems = [
        VerifyProblem(organization_id, check, message)
        for check, message in (
            *_check_account(account, ledger, held, grants),
            *_check_grants(connection, organization_id, grants, open_holds),
            *_check_chain(connection, organization_id),
            *_check_allocations(connection, organization_id),
            *_check_refunds(connection, organization_id),
            *_check_settlements(connection, organization_id),
            *_check_keys(connection, organization_id),
            *_check_due(account, grants, open_holds),
            *limit_verification.check_limits(connection, organization_id, account["last_posted_at"]),
            *limit_verification.check_usage(connection, organization_id),
            *recurring_verification.check_recurring(connection, account, grants),
        )
    ]
    return int(ledger["rows"]), problems


def _ledger_sums(connection: Connection, organization_id: str) -> dict[str, int]:
    table = credit_transactions

    def total(*types: str) -> Any:
        return func.coalesce(func.sum(case((table.c.type.in_(types), table.c.amount_micros), else_=0)), 0)

    row = connection.execute(
        select(
            func.count().label("rows"),
            func.coalesce(func.min(table.c.seq), 0).label("first"),
            func.coalesce(func.max(table.c.seq), 0).label("last"),
            total("debit", "refund").label("spent"),
            total("expire").label("expired"),
            func.coalesce(func.sum(table.c.amount_micros), 0).label("balance"),
        ).where(table.c.organization_id == organization_id)
    ).one()
    return {name: int(value) for name, value in row._mapping.items()}


def _open_holds(connection: Connection, organization_id: str) -> tuple[int, list[Any]]:
    table = credit_reservations
    rows = list(
        connection.execute(
            select(table.c.id, table.c.amount_micros, table.c.allocations, table.c.expires_at).where(
                table.c.organization_id == organization_id, table.c.state.in_(_OPEN)
            )
        )
    )
    return sum(row.amount_micros for row in rows), rows


def _differ(name: str, stored: int, recomputed: int) -> Iterator[tuple[str, str]]:
    if stored != recomputed:
        yield name, f"{name} is {from_micros(stored):f}, its rows say {from_micros(recomputed):f}"


def _check_account(account: Any, ledger: dict[str, int], held: int, grants: list[Any]) -> Iterator[tuple[str, str]]:
    scheduled = sum(grant["amount_micros"] for grant in grants if grant["status"] == "scheduled")
    yield from _differ("granted", account["granted_micros"], sum(grant["amount_micros"] for grant in grants))
    yield from _differ("scheduled", account["scheduled_micros"], scheduled)
    yield from _differ("spent", account["spent_micros"], -ledger["spent"])
    yield from _differ("reserved", account["reserved_micros"], held)
    yield from _differ("expired", account["expired_micros"], -ledger["expired"])
    yield from _differ("voided", account["voided_micros"], sum(grant["voided_micros"] for grant in grants))
    balance = account["granted_micros"] - account["spent_micros"] - account["expired_micros"] - account["voided_micros"]
    yield from _differ("balance", balance, ledger["balance"])
    if account["last_seq"] != ledger["last"] or ledger["last"] != ledger["rows"]:
        yield "seq", f"last_seq is {account['last_seq']}, the ledger has {ledger['rows']} rows up to {ledger['last']}"


def _check_grants(
    connection: Connection, organization_id: str, grants: list[Any], open_holds: list[Any]
) -> Iterator[tuple[str, str]]:
    moved: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    rows, parts = credit_transactions, credit_transaction_allocations
    taken_from_grant = rows.c.amount_micros < literal_column("0")
    for row in connection.execute(
        select(parts.c.grant_id, rows.c.type, taken_from_grant, func.sum(parts.c.amount_micros))
        .select_from(
            parts.join(
                rows,
                and_(
                    rows.c.organization_id == parts.c.organization_id,
                    rows.c.id == parts.c.transaction_id,
                ),
            )
        )
        .where(parts.c.organization_id == organization_id)
        .group_by(parts.c.grant_id, rows.c.type, taken_from_grant)
    ):
        grant_id, kind, taken, amount = row
        moved[str(grant_id)][f"{kind}-" if taken else str(kind)] += int(amount)
    held: dict[str, int] = defaultdict(int)
    for hold in open_holds:
        parts_of_hold = json.loads(hold.allocations)
        if sum(amount for _, amount in parts_of_hold) != hold.amount_micros:
            yield "hold", f"the allocations of reservation {hold.id} do not add up to what it holds"
        for grant_id, amount in parts_of_hold:
            held[grant_id] += amount
    known = {grant["id"] for grant in grants}
    for stray in (moved.keys() | held.keys()) - known:
        yield "grant", f"rows name grant {stray}, which does not exist"
    for grant in grants:
        sums = moved[grant["id"]]
        granted = sums["purchase"] + sums["credit"] + sums["adjust"]
        name = f"grant {grant['id']}"
        for part, stored, recomputed in (
            ("amount", grant["amount_micros"], granted),
            ("spent", grant["spent_micros"], sums["debit-"] - sums["refund"]),
            ("expired", grant["expired_micros"], sums["expire-"]),
            ("voided", grant["voided_micros"], sums["adjust-"]),
            ("held", grant["held_micros"], held[grant["id"]]),
        ):
            if stored != recomputed:
                yield (
                    "grant",
                    f"{part} of {name} is {from_micros(stored):f}, its rows say {from_micros(recomputed):f}",
                )
        if bool(grant["is_open"]) != records.read_grant(grant).is_open:
            yield "grant", f"{name} is marked {'open' if grant['is_open'] else 'closed'} and is not"


def _check_chain(connection: Connection, organization_id: str) -> Iterator[tuple[str, str]]:
    table = credit_transactions
    chain = (
        select(
            table.c.seq,
            table.c.amount_micros,
            table.c.balance_after_micros,
            func.coalesce(func.lag(table.c.seq).over(order_by=table.c.seq), 0).label("seq_before"),
            func.coalesce(func.lag(table.c.balance_after_micros).over(order_by=table.c.seq), 0).label("balance_before"),
            func.lag(table.c.created_at).over(order_by=table.c.seq).label("created_before"),
            table.c.created_at,
        )
        .where(table.c.organization_id == organization_id)
        .subquery()
    )
    for row in connection.execute(
        select(chain)
        .where(
            (chain.c.seq != chain.c.seq_before + 1)
            | (chain.c.balance_after_micros != chain.c.balance_before + chain.c.amount_micros)
            | (chain.c.created_at < chain.c.created_before)
        )
        .order_by(chain.c.seq)
        .limit(MAX_EXAMPLES)
    ):
        yield "chain", f"row {row.seq} does not follow from row {row.seq_before}"


def _check_allocations(connection: Connection, organization_id: str) -> Iterator[tuple[str, str]]:
    rows, parts = credit_transactions, credit_transaction_allocations
    sums = (
        select(parts.c.transaction_id, func.sum(parts.c.amount_micros).label("amount"))
        .where(parts.c.organization_id == organization_id)
        .group_by(parts.c.transaction_id)
        .subquery()
    )
    for row in connection.execute(
        select(rows.c.seq)
        .select_from(rows.outerjoin(sums, sums.c.transaction_id == rows.c.id))
        .where(
            rows.c.organization_id == organization_id,
            func.coalesce(sums.c.amount, 0) != func.abs(rows.c.amount_micros),
        )
        .order_by(rows.c.seq)
        .limit(MAX_EXAMPLES)
    ):
        yield "allocations", f"the allocations of row {row.seq} do not add up to its amount"


def _check_refunds(connection: Connection, organization_id: str) -> Iterator[tuple[str, str]]:
    table = credit_transactions
    charge = table.alias("charge")
    refunds = (
        select(table.c.refund_of, func.sum(table.c.amount_micros).label("amount"))
        .where(table.c.organization_id == organization_id, table.c.refund_of.is_not(None))
        .group_by(table.c.refund_of)
        .subquery()
    )
    for row in connection.execute(
        select(refunds.c.refund_of)
        .select_from(
            refunds.outerjoin(
                charge, and_(charge.c.organization_id == organization_id, charge.c.id == refunds.c.refund_of)
            )
        )
        .where(charge.c.id.is_(None) | (refunds.c.amount > -charge.c.amount_micros))
        .limit(MAX_EXAMPLES)
    ):
        yield "refunds", f"the refunds of transaction {row.refund_of} are larger than its charge"


def _check_settlements(connection: Connection, organization_id: str) -> Iterator[tuple[str, str]]:
    holds, rows = credit_reservations, credit_transactions
    join = holds.outerjoin(
        rows,
        and_(
            rows.c.organization_id == holds.c.organization_id,
            rows.c.reservation_id == holds.c.id,
            rows.c.type == "debit",
        ),
    )
    for row in connection.execute(
        select(holds.c.id)
        .select_from(join)
        .where(
            holds.c.organization_id == organization_id,
            func.coalesce(rows.c.amount_micros, 0) != -holds.c.charged_micros,
        )
        .limit(MAX_EXAMPLES)
    ):
        yield "settlement", f"reservation {row.id} and its ledger row do not agree on what was charged"


def _check_keys(connection: Connection, organization_id: str) -> Iterator[tuple[str, str]]:
    keys = idempotency_keys
    for kind, table in (
        ("consume", credit_transactions),
        ("refund", credit_transactions),
        ("adjust", credit_transactions),
        ("grant", credit_grants),
        ("reserve", credit_reservations),
        ("recurring", recurring_grants),
    ):
        join = keys.outerjoin(
            table, and_(table.c.organization_id == keys.c.organization_id, table.c.id == keys.c.result_id)
        )
        for row in connection.execute(
            select(keys.c.key)
            .select_from(join)
            .where(keys.c.organization_id == organization_id, keys.c.kind == kind, table.c.id.is_(None))
            .limit(MAX_EXAMPLES)
        ):
            yield "keys", f"the {kind} key {row.key!r} stands for a record that does not exist"


def _check_due(account: Any, grants: list[Any], open_holds: list[Any]) -> Iterator[tuple[str, str]]:
    moments = [hold.expires_at for hold in open_holds]
    moments += [] if account["next_refill_at"] is None else [account["next_refill_at"]]
    moments += [
        moment for grant in grants if grant["is_open"] and (moment := next_event(records.read_grant(grant))) is not None
    ]
    if moments and (account["next_due_at"] is None or account["next_due_at"] > min(moments)):
        yield "due", f"next_due_at is {account['next_due_at']}, but something falls due at {min(moments)}"
