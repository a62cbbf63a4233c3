"""The state of one account that the rules read and change, and the record of what they changed.

These objects are mutable and live for one batch: ``store.posting`` loads them, ``rules.posting`` decides on them,
``store.posting`` writes back what ``Ledger.changes`` names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from agentcredits.errors import CreditsError
from agentcredits.model import (
    AccountStatus,
    Allocation,
    GrantCategory,
    GrantStatus,
    Lasting,
    LimitMode,
    LimitScope,
    LimitUnit,
    Pricing,
    RecurringStatus,
    ReservationState,
    RunStatus,
    TransactionType,
)
from agentcredits.rules.operations import Activity
from agentcredits.rules.periods import RolloverTerms

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
    overdraft_micros: int = 0
    #: What was charged beyond the grants and is not paid back.
    overdrawn_micros: int = 0
    status: AccountStatus = AccountStatus.OPEN
    status_reason: str | None = None
    status_by: str | None = None
    status_at: datetime | None = None
    #: Exactly when the next recurring grant comes; the recurring grants need not be loaded before.
    next_refill_at: datetime | None = None
    #: Whether any grant was ever restricted to certain actions.
    has_restricted: bool = False

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
    #: The part of what is spent that paid the account's debt.
    repaid_micros: int = 0
    #: Names of the actions that may use it; empty: every action.
    only_for: tuple[str, ...] = ()
    unit_cost: Decimal | None = None
    currency: str | None = None
    recurring_id: str | None = None
    period_start: datetime | None = None
    rolled_from: str | None = None

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
class RecurringState:
    """A recurring grant's row.

    ``next_at`` is the moment of the first refill that is not booked, ``last_start`` the start of the last period that
    is: a period that began then or earlier is never granted again, whatever becomes of the rules of a time zone.
    """

    id: str
    status: RecurringStatus
    amount_micros: int
    category: GrantCategory
    priority: int
    window_text: str
    starts_at: datetime
    next_at: datetime
    created_at: datetime
    last_start: datetime | None = None
    ends_at: datetime | None = None
    expires_after: Lasting = "period"
    rollover: RolloverTerms | None = None
    only_for: tuple[str, ...] = ()
    unit_cost: Decimal | None = None
    currency: str | None = None
    source: str | None = None
    cancelled_at: datetime | None = None

    @property
    def is_active(self) -> bool:
        """Whether it grants again."""
        return self.status is RecurringStatus.ACTIVE


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
    #: The limits that count it; ``runs.POOL`` among them: so does the pool of its run.
    limits: tuple[str, ...] = ()
    #: Mode "observe" let it pass although it would have been refused: it holds and charges nothing.
    observed: bool = False
    #: An operator gave it back: its work, should it finish after all, is charged late.
    forced: bool = False


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
class LimitState:
    """A limit's row; amounts in micro-credits or charges. ``unusable``: why it cannot be read (plain SQL)."""

    id: str
    scope: LimitScope
    scope_id: str
    unit: LimitUnit
    window_text: str
    amount: int
    mode: LimitMode
    created_at: datetime
    counts_from_seq: int = 0
    #: Parts of 10,000, ascending.
    warn_at: tuple[int, ...] = ()
    unusable: str | None = None
    #: The window of this posting's moment; None until it is asked for.
    bounds: tuple[datetime, datetime] | None = None


@dataclass(slots=True)
class UsageState:
    """One counter of a limit; ``spent`` belongs to the window from ``window_start`` (None: the lifetime)."""

    limit_id: str
    scope_id: str
    held: int = 0
    spent: int = 0
    window_start: datetime | None = None
    window_end: datetime | None = None
    warned: int = 0
    warned_amount: int = 0


@dataclass(slots=True)
class RunState:
    """A run's row. What is ``carved`` are the claims of the runs inside: theirs, whatever they use of it."""

    run_id: str
    #: The outermost run of its tree; its own id for that one.
    root_run_id: str
    created_at: datetime
    #: When it ends, unless something happens in it before, is held in it, or a run inside it is open.
    expires_at: datetime
    ttl_seconds: int
    parent_run_id: str | None = None
    depth: int = 1
    status: RunStatus = RunStatus.OPEN
    #: None: no bound of its own; inside another run it uses that one's pool.
    cap_micros: int | None = None
    borrows: bool = False
    spent_micros: int = 0
    held_micros: int = 0
    carved_micros: int = 0
    #: What was charged in the runs inside.
    inner_spent_micros: int = 0
    open_children: int = 0
    counts_from_seq: int = 0
    #: The highest threshold recorded, in parts of 10,000, and the cap then.
    warned: int = 0
    warned_micros: int = 0
    ended_at: datetime | None = None
    reason: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether it takes new charges and holds."""
        return self.status is RunStatus.OPEN

    @property
    def used_micros(self) -> int:
        """What is not free in its own pool."""
        return self.spent_micros + self.held_micros + self.carved_micros

    @property
    def claim_micros(self) -> int:
        """What the run around cannot use: the carve-out while it is open (more, when it borrowed), then its use."""
        return max(self.cap_micros or 0, self.used_micros) if self.is_open else self.used_micros

    @property
    def due_at(self) -> datetime | None:
        """When it ends by time alone; None while it works or is over."""
        return self.expires_at if self.is_open and not self.held_micros and not self.open_children else None


@dataclass(frozen=True, slots=True)
class Crossed:
    """A threshold of a limit that a charge reached; amounts in micro-credits or charges."""

    id: str
    limit_id: str
    scope: LimitScope
    scope_id: str
    unit: LimitUnit
    window_text: str
    window_start: datetime | None
    #: Parts of 10,000 of the amount.
    threshold: int
    limit_amount: int
    spent: int
    at: datetime
    transaction_id: str


@dataclass(frozen=True, slots=True)
class Denied:
    """A would-be refusal that mode "observe" let pass."""

    id: str
    at: datetime
    error: CreditsError
    activity: Activity
    required_micros: int


@dataclass(slots=True)
class Changes:
    """What has to be written back: new rows in order, and the ids of changed ones."""

    account: bool = False
    #: The account's line, debt or status.
    standing: bool = False
    #: Whether the account uses more (or less) of what is loaded only where it is used.
    account_features: bool = False
    new_grants: set[str] = field(default_factory=set)
    grants: set[str] = field(default_factory=set)
    #: Those among them that paid the account's debt, or were paid back.
    repaid: set[str] = field(default_factory=set)
    new_holds: set[str] = field(default_factory=set)
    holds: set[str] = field(default_factory=set)
    rows: list[Row] = field(default_factory=list)
    new_keys: set[tuple[str, str]] = field(default_factory=set)
    keys: set[tuple[str, str]] = field(default_factory=set)
    new_limits: set[str] = field(default_factory=set)
    limits: set[str] = field(default_factory=set)
    removed_limits: set[str] = field(default_factory=set)
    new_usage: set[tuple[str, str]] = field(default_factory=set)
    usage: set[tuple[str, str]] = field(default_factory=set)
    new_runs: set[str] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)
    crossings: list[Crossed] = field(default_factory=list)
    denials: list[Denied] = field(default_factory=list)
    #: Holds whose time ended while the provider's verdict was awaited.
    unanswered: list[HoldState] = field(default_factory=list)
    new_recurring: set[str] = field(default_factory=set)
    recurring: set[str] = field(default_factory=set)


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
    limits: dict[str, LimitState] = field(default_factory=dict)
    #: The same by (scope, scope_id); kept by ``add_limit`` and ``drop_limit``.
    limits_at: dict[tuple[str, str], list[LimitState]] = field(default_factory=dict)
    #: What ``rules.limits`` found there for the names of an action; forgotten with every limit that comes or goes.
    limits_over: dict[tuple[str | None, ...], list[tuple[LimitState, str, bool]]] = field(default_factory=dict)
    usage: dict[tuple[str, str], UsageState] = field(default_factory=dict)
    #: What was charged before, by scope id, for limits that are to count it: from the ledger, by the limit's place.
    existing: dict[tuple[str, str, str, str], dict[str, int]] = field(default_factory=dict)
    #: The runs that the operations name, with those around them.
    runs: dict[str, RunState] = field(default_factory=dict)
    #: All active recurring grants, where one is due or named.
    recurring: dict[str, RecurringState] = field(default_factory=dict)
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

    def touch_recurring(self, recurring: RecurringState) -> RecurringState:
        """The recurring grant, noted as changed."""
        if recurring.id not in self.changes.new_recurring:
            self.changes.recurring.add(recurring.id)
        return recurring

    def add_limit(self, limit: LimitState) -> None:
        """Let a limit, loaded or new, be found."""
        if limit.id not in self.limits:
            self.limits[limit.id] = limit
            self.limits_at.setdefault((limit.scope, limit.scope_id), []).append(limit)
            self.limits_over.clear()

    def drop_limit(self, limit: LimitState) -> None:
        """Let a removed limit be found no more."""
        del self.limits[limit.id]
        self.limits_at[limit.scope, limit.scope_id].remove(limit)
        self.limits_over.clear()

    def touch_usage(self, usage: UsageState) -> None:
        """Keep a counter, noted as new or changed."""
        place = (usage.limit_id, usage.scope_id)
        if place not in self.usage:
            self.usage[place] = usage
            self.changes.new_usage.add(place)
        elif place not in self.changes.new_usage:
            self.changes.usage.add(place)
