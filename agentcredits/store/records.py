"""Between rows of the database, the rules' state, and the public records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from operator import attrgetter
from typing import Any

from agentcredits.model import (
    Account,
    AccountStatus,
    Allocation,
    CreditGrant,
    GrantCategory,
    GrantStatus,
    Pricing,
    ReservationRecord,
    ReservationState,
    Transaction,
    TransactionType,
)
from agentcredits.model.making import maker
from agentcredits.rules.state import (
    AccountState,
    GrantState,
    HoldState,
    KeyState,
    Row,
)
from agentcredits.store.dialects import Columns, RowLike

Values = dict[str, Any]

#: What every charge, hold or settlement changes.
_ACCOUNT_COUNTERS = ("spent_micros", "reserved_micros", "last_seq", "next_due_at", "last_posted_at")
#: What changes seldom: written only when it did.
_ACCOUNT_TOTALS = ("granted_micros", "scheduled_micros", "expired_micros", "voided_micros")
_ACCOUNT_STANDING = (
    "overdraft_micros",
    "overdrawn_micros",
    "status",
    "status_reason",
    "status_by",
    "status_at",
)
_GRANT_COUNTERS = ("spent_micros", "held_micros", "expired_micros", "voided_micros")
_HOLD_PLAIN = (
    "id",
    "amount_micros",
    "agent_type",
    "action",
    "quantity",
    "project_id",
    "department_id",
    "user_id",
    "request_id",
    "run_id",
    "dimensions",
    "metadata",
    "idempotency_key",
    "created_at",
    "expires_at",
    "settled_at",
    "requested_micros",
    "charged_micros",
    "uncollected_micros",
    "transaction_id",
    "late",
    "reason",
    "provider",
    "provider_reference",
    "observed",
)
_ROW_PLAIN = (
    "id",
    "seq",
    "amount_micros",
    "balance_after_micros",
    "created_at",
    "agent_type",
    "action",
    "quantity",
    "project_id",
    "department_id",
    "run_id",
    "reservation_id",
    "grant_id",
    "refund_of",
    "idempotency_key",
    "uncollected_micros",
    "late",
)
#: As stored: the texts of the words in place of the enumerations.
_ROW_STORED = ("type", "pricing", *_ROW_PLAIN)
_KEY = ("kind", "key", "fingerprint", "result_id", "created_at")
_DETAILS = ("user_id", "request_id", "reason", "dimensions", "metadata")
#: As stored: the texts of the words in place of the enumerations; what is made of other values comes after these.
_HOLD_STORED = ("state", "pricing", "forced", *_HOLD_PLAIN)
_HOLD_CHANGING = (
    "expires_at",
    "settled_at",
    "requested_micros",
    "charged_micros",
    "uncollected_micros",
    "transaction_id",
    "late",
    "reason",
    "provider",
    "provider_reference",
)

#: All of a record's columns at once; this is done for every charge.
_account_counters = attrgetter(*_ACCOUNT_COUNTERS)
account_totals = attrgetter(*_ACCOUNT_TOTALS)
grant_standing = attrgetter("status", "is_open", "expired_micros", "voided_micros", "voided_at")
_account_standing = attrgetter(*_ACCOUNT_STANDING)
_hold_stored = attrgetter("state._value_", "pricing._value_", "forced", *_HOLD_PLAIN)
_hold_changing = attrgetter("id", "state._value_", *_HOLD_CHANGING)
_row_stored = attrgetter("type._value_", "pricing._value_", *_ROW_PLAIN)
_key = attrgetter(*_KEY)
#: What callers get, from what the rules know by the same names: all but the organization, and what follows.
_hold_public = attrgetter(*(entry.name for entry in fields(ReservationRecord)[1:-1]))
_row_public = attrgetter(*(entry.name for entry in fields(Transaction)[1:-5]))
_make_hold = maker(ReservationRecord)
_make_row = maker(Transaction)
_details = attrgetter(*_DETAILS)


# -- accounts ----------------------------------------------------------------------------------------------------


def read_account(row: RowLike) -> AccountState:
    """A credit_accounts row as state."""
    return AccountState(
        organization_id=row["organization_id"],
        created_at=row["created_at"],
        overdraft_micros=row["overdraft_micros"],
        overdrawn_micros=row["overdrawn_micros"],
        status=AccountStatus(row["status"]),
        status_reason=row["status_reason"],
        status_by=row["status_by"],
        status_at=row["status_at"],
        next_refill_at=row["next_refill_at"],
        has_restricted=bool(row["has_restricted"]),
        **{name: row[name] for name in (*_ACCOUNT_COUNTERS, *_ACCOUNT_TOTALS)},
    )


def account_changes(account: AccountState, *, totals: bool, standing: bool, features: bool) -> Values:
    """What an UPDATE of the account writes, with its key.

    Args:
        account: As it is now.
        totals: What was granted, scheduled, expired and voided too.
        standing: Its line, debt and status too.
        features: Also when the next recurring grant comes, and whether a grant was ever restricted.
    """
    values = {
        "organization_id": account.organization_id,
        **dict(zip(_ACCOUNT_COUNTERS, _account_counters(account), strict=True)),
    }
    if totals:
        values |= zip(_ACCOUNT_TOTALS, account_totals(account), strict=True)
    if standing:
        values |= zip(_ACCOUNT_STANDING, _account_standing(account), strict=True)
        values["status"] = account.status.value
    if features:
        values |= {"next_refill_at": account.next_refill_at, "has_restricted": account.has_restricted}
    return values


def public_account(account: AccountState, as_of: datetime | None = None, *, replayed: bool = False) -> Account:
    """The record that callers get; ``as_of`` None: as of its last posting."""
    return Account(
        organization_id=account.organization_id,
        status=account.status,
        status_reason=account.status_reason,
        status_by=account.status_by,
        status_at=account.status_at,
        overdraft_micros=account.overdraft_micros,
        debt_micros=account.overdrawn_micros,
        available_micros=account.available_micros,
        created_at=account.created_at,
        as_of=as_of or account.last_posted_at,
        replayed=replayed,
    )


# -- grants ------------------------------------------------------------------------------------------------------


def read_grant(row: RowLike) -> GrantState:
    """A credit_grants row as state."""
    return GrantState(
        id=row["id"],
        status=GrantStatus(row["status"]),
        amount_micros=row["amount_micros"],
        category=GrantCategory(row["category"]),
        priority=row["priority"],
        effective_at=row["effective_at"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        voided_at=row["voided_at"],
        source=row["source"],
        repaid_micros=row["repaid_micros"],
        only_for=read_names(row["only_for"]),
        unit_cost=exact(row["unit_cost"]),
        currency=row["currency"],
        recurring_id=row["recurring_id"],
        period_start=row["period_start"],
        rolled_from=row["rolled_from"],
        **{name: row[name] for name in _GRANT_COUNTERS},
    )


def grant_values(organization_id: str, grant: GrantState) -> Values:
    """A whole credit_grants row."""
    return {
        **grant_changes(organization_id, grant, whole=True),
        "amount_micros": grant.amount_micros,
        "category": grant.category.value,
        "priority": grant.priority,
        "effective_at": grant.effective_at,
        "expires_at": grant.expires_at,
        "created_at": grant.created_at,
        "source": grant.source,
        "only_for": write_names(grant.only_for),
        "unit_cost": grant.unit_cost,
        "currency": grant.currency,
        "recurring_id": grant.recurring_id,
        "period_start": grant.period_start,
        "rolled_from": grant.rolled_from,
    }


def read_names(value: str | None) -> tuple[str, ...]:
    """The names of actions in a column; NULL: none."""
    return tuple(json.loads(value)) if value else ()


def write_names(names: tuple[str, ...]) -> str | None:
    """Names of actions for a column."""
    return json.dumps(names) if names else None


def grant_changes(organization_id: str, grant: GrantState, *, whole: bool) -> Values:
    """What an UPDATE of a grant writes, with its key; ``whole``: its standing and what it paid of the debt too."""
    values = {
        "organization_id": organization_id,
        "id": grant.id,
        "spent_micros": grant.spent_micros,
        "held_micros": grant.held_micros,
    }
    if whole:
        values |= {
            "status": grant.status.value,
            "is_open": grant.is_open,
            "expired_micros": grant.expired_micros,
            "voided_micros": grant.voided_micros,
            "voided_at": grant.voided_at,
            "repaid_micros": grant.repaid_micros,
        }
    return values


def public_grant(organization_id: str, grant: GrantState, *, replayed: bool = False) -> CreditGrant:
    """The record that callers get."""
    return CreditGrant(
        organization_id=organization_id,
        id=grant.id,
        amount_micros=grant.amount_micros,
        category=grant.category,
        priority=grant.priority,
        effective_at=grant.effective_at,
        created_at=grant.created_at,
        status=grant.status,
        expires_at=grant.expires_at,
        voided_at=grant.voided_at,
        source=grant.source,
        repaid_micros=grant.repaid_micros,
        only_for=grant.only_for,
        unit_cost=grant.unit_cost,
        currency=grant.currency,
        recurring_id=grant.recurring_id,
        period_start=grant.period_start,
        rolled_from=grant.rolled_from,
        replayed=replayed,
        **{name: getattr(grant, name) for name in _GRANT_COUNTERS},
    )


# -- reservations ------------------------------------------------------------------------------------------------


_STATES = {state.value: state for state in ReservationState}
_PRICINGS = {pricing.value: pricing for pricing in Pricing}


def read_hold(row: RowLike) -> HoldState:
    """A credit_reservations row as state."""
    # Every settlement comes by here: one call with all names is the fastest.
    return HoldState(
        state=_STATES[row["state"]],
        pricing=_PRICINGS[row["pricing"]],
        allocations=_read_parts(row["allocations"]),
        limits=_read_ids(row["limits"]) if row["limits"] else (),
        forced=row["forced"],
        quantity=exact(row["quantity"]),
        id=row["id"],
        amount_micros=row["amount_micros"],
        agent_type=row["agent_type"],
        action=row["action"],
        project_id=row["project_id"],
        department_id=row["department_id"],
        user_id=row["user_id"],
        request_id=row["request_id"],
        run_id=row["run_id"],
        dimensions=row["dimensions"],
        metadata=row["metadata"],
        idempotency_key=row["idempotency_key"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        settled_at=row["settled_at"],
        requested_micros=row["requested_micros"],
        charged_micros=row["charged_micros"],
        uncollected_micros=row["uncollected_micros"],
        transaction_id=row["transaction_id"],
        late=row["late"],
        reason=row["reason"],
        provider=row["provider"],
        provider_reference=row["provider_reference"],
        observed=row["observed"],
    )


@lru_cache(maxsize=1024)
def _read_parts(text: str) -> tuple[Allocation, ...]:
    return tuple(Allocation(grant_id, micros) for grant_id, micros in json.loads(text))


@lru_cache(maxsize=1024)
def _read_ids(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


@lru_cache(maxsize=1024)
def _parts_text(parts: tuple[Allocation, ...]) -> str:
    return json.dumps([[part.grant_id, part.amount_micros] for part in parts])


@lru_cache(maxsize=1024)
def _ids_text(ids: tuple[str, ...]) -> str | None:
    return json.dumps(ids) if ids else None


def hold_columns(organization_id: str, holds: Sequence[HoldState]) -> Columns:
    """Whole credit_reservations rows."""
    columns = _columns(organization_id, _HOLD_STORED, map(_hold_stored, holds))
    if not holds:
        return columns
    return {
        **columns,
        "allocations": [_parts_text(hold.allocations) for hold in holds],
        "limits": [_ids_text(hold.limits) for hold in holds],
    }


def hold_changes(organization_id: str, holds: Sequence[HoldState], *, forced: bool = False) -> Columns:
    """What an UPDATE of reservations writes, with its key; ``forced``: that they were given back by force too."""
    columns = _columns(organization_id, ("id", "state", *_HOLD_CHANGING), map(_hold_changing, holds))
    return {**columns, "forced": [True] * len(holds)} if forced and holds else columns


def public_hold(organization_id: str, hold: HoldState, *, replayed: bool = False) -> ReservationRecord:
    """The record that callers get."""
    record = _make_hold(organization_id, *_hold_public(hold), replayed)
    return replace(record, pricing=Pricing.OBSERVED) if hold.observed else record


# -- ledger rows -------------------------------------------------------------------------------------------------


def read_row(row: RowLike, allocations: tuple[Allocation, ...]) -> Row:
    """A credit_transactions row (joined with its details) as state."""
    plain = {name: row[name] for name in (*_ROW_PLAIN, *_DETAILS)}
    plain["quantity"] = exact(plain["quantity"])
    return Row(type=TransactionType(row["type"]), pricing=Pricing(row["pricing"]), allocations=allocations, **plain)


def row_columns(organization_id: str, rows: Sequence[Row]) -> Columns:
    """Whole credit_transactions rows."""
    return _columns(organization_id, _ROW_STORED, map(_row_stored, rows))


def read_allocation(row: Any) -> Allocation:
    """A credit_transaction_allocations row (joined with its grant) as a part of a ledger row."""
    category = None if row.category is None else GrantCategory(row.category)
    return Allocation(row.grant_id, row.amount_micros, category, exact(row.unit_cost), row.currency)


def allocation_columns(organization_id: str, rows: Sequence[Row]) -> Columns:
    """The credit_transaction_allocations rows of ledger rows."""
    parts = [
        (row.id, position, part.grant_id, part.amount_micros)
        for row in rows
        for position, part in enumerate(row.allocations)
    ]
    return _columns(organization_id, ("transaction_id", "position", "grant_id", "amount_micros"), parts)


def detail_values(organization_id: str, row: Row) -> Values | None:
    """The erasable details of a ledger row; None when there are none."""
    details = _details(row)
    if not any(details):
        return None
    return {"organization_id": organization_id, "transaction_id": row.id, **dict(zip(_DETAILS, details, strict=True))}


def public_row(organization_id: str, row: Row, *, replayed: bool = False) -> Transaction:
    """The record that callers get."""
    return _make_row(
        organization_id,
        *_row_public(row),
        json.loads(row.dimensions) if row.dimensions else {},
        json.loads(row.metadata) if row.metadata else {},
        row.allocations,
        replayed,
        False,
    )


# -- idempotency keys --------------------------------------------------------------------------------------------


def read_key(row: RowLike) -> KeyState:
    """An idempotency_keys row as state."""
    return KeyState(row["kind"], row["key"], row["fingerprint"], row["result_id"], row["created_at"])


def key_columns(organization_id: str, keys: Iterable[KeyState]) -> Columns:
    """Whole idempotency_keys rows."""
    return _columns(organization_id, _KEY, map(_key, keys))


def _columns(organization_id: str, names: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> Columns:
    """Rows of one organization as columns; none: no columns."""
    found = dict(zip(names, zip(*rows, strict=True), strict=False))
    return {"organization_id": (organization_id,) * len(found[names[0]]), **found} if found else {}


def exact(value: Any) -> Decimal | None:
    """A number without the column's trailing zeros, the same on every database."""
    return None if value is None else _exact(value)


@lru_cache(maxsize=1024, typed=True)
def _exact(value: Any) -> Decimal:
    return Decimal(f"{Decimal(value).normalize():f}")
