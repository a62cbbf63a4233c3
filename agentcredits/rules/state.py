"""The state of one account that the rules read and change, and the record of what they changed.

These objects are mutable and live for one batch: ``store.posting`` loads them, ``rules.posting`` decides on them,
``store.posting`` writes back what ``Ledger.changes`` names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from agentcredits.model import Allocation, GrantCategory, GrantStatus, Pricing, ReservationState, TransactionType

OPEN_STATES = frozenset({ReservationState.ACTIVE, ReservationState.UNKNOWN})


@dataclass(slots=True)
class AccountState:
    """The counters of an account row; ``next_due_at`` is never later than the next thing that falls due."""

    organization_id: str
    created_at: datetime
    last_posted_at: datetime
    granted_micros: int = 0
    scheduled_micros: int = 0
    spent_micros: int = 0
    reserved_micros: int = 0
    expired_micros: int = 0
    voided_micros: int = 0
    last_seq: int = 0
    next_due_at: datetime | None = None

    @property
    def ledger_balance_micros(self) -> int:
        """What ``balance_after`` of the newest row says: holds and schedule not counted."""
        return self.granted_micros - self.spent_micros - self.expired_micros - self.voided_micros

    @property
    def available_micros(self) -> int:
        """What can be spent, as far as it is booked."""
        return self.ledger_balance_micros - self.scheduled_micros - self.reserved_micros

    def note_due(self, at: datetime | None) -> None:
        """Something falls due at ``at``."""
        if at is not None and (self.next_due_at is None or at < self.next_due_at):
            self.next_due_at = at


@dataclass(slots=True)
class GrantState:
    """A grant's row."""

    id: str
    status: GrantStatus
    amount_micros: int
    category: GrantCategory
    priority: int
    effective_at: datetime
    created_at: datetime
    expires_at: datetime | None = None
    voided_at: datetime | None = None
    source: str | None = None
    spent_micros: int = 0
    held_micros: int = 0
    expired_micros: int = 0
    voided_micros: int = 0

    @property
    def remaining_micros(self) -> int:
        """Neither spent, held, expired nor voided."""
        return self.amount_micros - self.spent_micros - self.held_micros - self.expired_micros - self.voided_micros

    @property
    def is_open(self) -> bool:
        """Whether anything can still happen to it without a refund: loaded with every posting."""
        return self.held_micros > 0 or (
            self.remaining_micros > 0 and self.status in (GrantStatus.SCHEDULED, GrantStatus.ACTIVE)
        )


@dataclass(slots=True)
class HoldState:
    """A reservation's row; ``allocations`` in burn-down order."""

    id: str
    state: ReservationState
    amount_micros: int
    allocations: tuple[Allocation, ...]
    created_at: datetime
    expires_at: datetime
    idempotency_key: str
    pricing: Pricing = Pricing.PRICED
    agent_type: str | None = None
    action: str | None = None
    quantity: Decimal | None = None
    project_id: str | None = None
    department_id: str | None = None
    user_id: str | None = None
    request_id: str | None = None
    run_id: str | None = None
    dimensions: str | None = None
    metadata: str | None = None
    settled_at: datetime | None = None
    requested_micros: int | None = None
    charged_micros: int = 0
    uncollected_micros: int = 0
    transaction_id: str | None = None
    late: bool = False
    reason: str | None = None
    provider: str | None = None
    provider_reference: str | None = None


@dataclass(slots=True)
class Row:
    """A ledger row, and the details that are stored apart from it because they may be erased."""

    id: str
    seq: int
    type: TransactionType
    amount_micros: int
    balance_after_micros: int
    created_at: datetime
    allocations: tuple[Allocation, ...] = ()
    agent_type: str | None = None
    action: str | None = None
    quantity: Decimal | None = None
    project_id: str | None = None
    department_id: str | None = None
    run_id: str | None = None
    reservation_id: str | None = None
    grant_id: str | None = None
    refund_of: str | None = None
    idempotency_key: str | None = None
    uncollected_micros: int = 0
    pricing: Pricing = Pricing.PRICED
    late: bool = False
    user_id: str | None = None
    request_id: str | None = None
    reason: str | None = None
    dimensions: str | None = None
    metadata: str | None = None


@dataclass(slots=True)
class KeyState:
    """What an idempotency key stands for."""

    kind: str
    key: str
    fingerprint: str
    result_id: str
    created_at: datetime


@dataclass(slots=True)
class Changes:
    """What has to be written back: new rows in order, and the ids of changed ones."""

    account: bool = False
    new_grants: set[str] = field(default_factory=set)
    grants: set[str] = field(default_factory=set)
    new_holds: set[str] = field(default_factory=set)
    holds: set[str] = field(default_factory=set)
    rows: list[Row] = field(default_factory=list)
    new_keys: set[tuple[str, str]] = field(default_factory=set)
    keys: set[tuple[str, str]] = field(default_factory=set)


@dataclass(slots=True)
class Ledger:
    """One account's loaded state. ``account`` None: the organization has no account.

    ``later_due_at`` is the earliest end of an open hold that was not loaded because it is not due yet; it is only
    known (and only needed) when something was due.
    """

    organization_id: str
    account: AccountState | None = None
    grants: dict[str, GrantState] = field(default_factory=dict)
    holds: dict[str, HoldState] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    refunds: dict[str, list[Row]] = field(default_factory=dict)
    keys: dict[tuple[str, str], KeyState] = field(default_factory=dict)
    later_due_at: datetime | None = None
    changes: Changes = field(default_factory=Changes)

    def touch_grant(self, grant_id: str) -> GrantState:
        """The grant, noted as changed."""
        if grant_id not in self.changes.new_grants:
            self.changes.grants.add(grant_id)
        return self.grants[grant_id]

    def touch_hold(self, hold: HoldState) -> HoldState:
        """The hold, noted as changed."""
        if hold.id not in self.changes.new_holds:
            self.changes.holds.add(hold.id)
        return hold
