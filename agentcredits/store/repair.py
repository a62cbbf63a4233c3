"""Repair: make derived counters equal to what the append-only ledger says, one account at a time.

Ledger rows, holds' terms and keys are never touched: an account in which one of those is wrong is left alone. Only a
row's ``balance_after`` does not stand in the way: a charge that was booked while the account's counters were wrong says
what they said, for ever, but nothing is computed from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Table, insert, update
from sqlalchemy.exc import IntegrityError

from agentcredits.model import RepairChange, RepairRefusal
from agentcredits.store.dialects import dialect_of
from agentcredits.store.findings import Change, Finding
from agentcredits.store.verification import AccountVerification, Step

#: Why a difference of each kind cannot be repaired; "" for all others.
_REASONS: Final = {
    "seq": "a ledger row is missing, and ledger rows are never written again",
    "chain": "ledger rows are never changed",
    "allocations": "ledger rows are never changed",
    "refunds": "ledger rows are never changed",
    "keys": "the record that the key stands for is missing",
    "settlement": "the ledger does not hold exactly one charge of this reservation",
    "hold": "a reservation's own terms are no counter",
    "status": "a grant's status is no counter",
    "grant": "the grant is missing, and only its rows are left",
    "": "no counter is wrong, but what counters come from",
}
_BLOCKED: Final = "left alone: something else in this account cannot be repaired"
_MEANWHILE: Final = "left alone: the counter changed meanwhile; run the repair again"
_CHECKED: Final = "left alone: the database's own checks refuse the value that the ledger says"
_NOT_CLEAN: Final = "left alone: the account would not be clean afterwards"


@dataclass(frozen=True, slots=True)
class AccountRepair:
    """What was, or would be, changed in an account, and what stands in the way."""

    changes: tuple[RepairChange, ...] = ()
    refused: tuple[RepairRefusal, ...] = ()


def examine(connection: Connection, organization_id: str, step: Step) -> AccountVerification:
    """Recompute an account, as ``verify`` does, keeping every difference."""
    account = AccountVerification(organization_id, most=None)
    account.walk(connection, step)
    connection.rollback()
    dialect_of(connection).begin_read(connection)
    account.finish(connection, step)
    return account


def plan(account: AccountVerification) -> AccountRepair:
    """The changes that would make the counters right, and what none can."""
    return AccountRepair(
        tuple(_public(account, change) for finding in account.findings for change in finding.changes),
        tuple(_refusal(account, finding) for finding in account.findings if not finding.changes),
    )


def apply(connection: Connection, account: AccountVerification) -> AccountRepair:
    """Change the counters under the account's lock, and compare again; all of it, or nothing.

    Args:
        connection: In a write transaction that the caller commits; it is rolled back when something is refused.
        account: As ``examine`` left it.
    """
    dialect_of(connection).open_account(connection, account.organization_id, None)
    account.finish(connection)
    findings = account.findings
    if any(finding.blocks and not finding.changes for finding in findings):
        return _left_alone(connection, account, findings, _BLOCKED)
    changes = [change for finding in findings for change in finding.changes]
    try:
        if not all(_write(connection, table, group) for table, group in _by_row(changes)):
            return _left_alone(connection, account, findings, _MEANWHILE)
    except IntegrityError:
        return _left_alone(connection, account, findings, _CHECKED)
    account.finish(connection)
    if account.counter_findings:
        return _left_alone(connection, account, findings, _NOT_CLEAN)
    return AccountRepair(
        tuple(_public(account, change) for change in changes),
        tuple(_refusal(account, finding) for finding in findings if not finding.changes),
    )


def _by_row(changes: Iterable[Change]) -> list[tuple[Table, list[Change]]]:
    """Changes of one row together: its CHECKs look at several columns."""
    rows: dict[tuple[Any, ...], list[Change]] = {}
    for change in changes:
        rows.setdefault((change.table.name, *change.key.values()), []).append(change)
    return [(group[0].table, group) for group in rows.values()]


def _write(connection: Connection, table: Table, changes: list[Change]) -> bool:
    """Change one row; False when it is no longer as it was found."""
    first = changes[0]
    if first.row is not None:
        connection.execute(insert(table).values(**first.row))
        return True
    statement = update(table).values({change.column: change.after for change in changes})
    for name, value in first.key.items():
        statement = statement.where(table.c[name] == value)
    for change in changes:
        statement = statement.where(table.c[change.column].is_not_distinct_from(change.before))
    return connection.execute(statement).rowcount == 1


def _left_alone(
    connection: Connection, account: AccountVerification, findings: list[Finding], reason: str
) -> AccountRepair:
    connection.rollback()
    return AccountRepair(refused=tuple(_refusal(account, finding, reason) for finding in findings))


def _refusal(account: AccountVerification, finding: Finding, reason: str = "") -> RepairRefusal:
    why = reason if finding.changes else _REASONS.get(finding.check, _REASONS[""])
    return RepairRefusal(account.organization_id, finding.check, finding.message, why)


def _public(account: AccountVerification, change: Change) -> RepairChange:
    key = {name: value for name, value in change.key.items() if name != "organization_id"}
    before = None if change.row is not None else change.before
    return RepairChange(account.organization_id, change.table.name, key, change.column, before, change.after)
