"""The records that the public API takes and returns: frozen, slotted, with amounts in micro-credits.

Fields that end in ``_micros`` are integer micro-credits; the property of the same name without the ending is the
same amount in Decimal credits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Generic, TypeVar

from agentcredits.amounts import from_micros

T = TypeVar("T")


class GrantCategory(StrEnum):
    """Where a grant comes from. Within equal priority and expiry, promotional burns first and paid last."""

    PROMOTIONAL = "promotional"
    PLAN = "plan"
    ADJUSTMENT = "adjustment"
    PAID = "paid"


class GrantStatus(StrEnum):
    """What the ledger has booked of a grant's life so far."""

    SCHEDULED = "scheduled"
    ACTIVE = "active"
    EXPIRED = "expired"
    VOIDED = "voided"


class ReservationState(StrEnum):
    """ACTIVE → COMMITTED / RELEASED / EXPIRED; UNKNOWN: the provider's verdict is awaited."""

    ACTIVE = "active"
    UNKNOWN = "unknown"
    COMMITTED = "committed"
    RELEASED = "released"
    EXPIRED = "expired"


class TransactionType(StrEnum):
    """The kinds of immutable ledger rows."""

    PURCHASE = "purchase"
    CREDIT = "credit"
    DEBIT = "debit"
    REFUND = "refund"
    EXPIRE = "expire"
    ADJUST = "adjust"


class Overage(StrEnum):
    """What a commit above the reserved amount does."""

    REJECT = "reject"
    CAP = "cap"


class Pricing(StrEnum):
    """How an amount came about: from a price, explicitly free, or recorded without a price."""

    PRICED = "priced"
    FREE = "free"
    UNPRICED = "unpriced"


class _MicrosAsCredits:
    """Gives ``x`` for every field ``x_micros``, and mapping access by name."""

    __slots__ = ()

    def __getitem__(self, name: str) -> Any:
        if name not in self.keys():
            raise KeyError(name)
        return getattr(self, name)

    def keys(self) -> tuple[str, ...]:
        """The names that mapping access knows: every field, and every amount in credits."""
        names: list[str] = []
        for entry in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            names.append(entry.name)
            if entry.name.endswith("_micros"):
                names.append(entry.name.removesuffix("_micros"))
        return tuple(names)

    def as_dict(self) -> dict[str, Any]:
        """Plain data: amounts in Decimal credits and in micros, times as datetime."""
        return {name: getattr(self, name) for name in self.keys()}


@dataclass(frozen=True, slots=True)
class Scopes:
    """Who below the organization an action belongs to, and in which run and request."""

    project_id: str | None = None
    department_id: str | None = None
    user_id: str | None = None
    run_id: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Allocation:
    """How much of a row or hold comes from one grant; ``grant_id`` None is overdraft."""

    grant_id: str | None
    amount_micros: int

    @property
    def amount(self) -> Decimal:
        """Credits."""
        return from_micros(self.amount_micros)


@dataclass(frozen=True, slots=True)
class Balance(_MicrosAsCredits):
    """An account at one moment: ``available = granted - scheduled - spent - reserved - expired - voided``.

    True and signed; ``balance["available"]`` and ``balance.available`` are the same Decimal.
    """

    organization_id: str
    granted_micros: int
    scheduled_micros: int
    spent_micros: int
    reserved_micros: int
    expired_micros: int
    voided_micros: int
    as_of: datetime

    @property
    def available_micros(self) -> int:
        """What can be spent now, in micros; negative is debt."""
        return (
            self.granted_micros
            - self.scheduled_micros
            - self.spent_micros
            - self.reserved_micros
            - self.expired_micros
            - self.voided_micros
        )

    @property
    def debt_micros(self) -> int:
        """``max(0, -available)`` in micros."""
        return max(0, -self.available_micros)

    @property
    def available(self) -> Decimal:
        """What can be spent now, in credits."""
        return from_micros(self.available_micros)

    @property
    def debt(self) -> Decimal:
        """``max(0, -available)`` in credits."""
        return from_micros(self.debt_micros)

    @property
    def granted(self) -> Decimal:
        """All credits ever granted, scheduled ones included."""
        return from_micros(self.granted_micros)

    @property
    def scheduled(self) -> Decimal:
        """Granted, but not yet effective."""
        return from_micros(self.scheduled_micros)

    @property
    def spent(self) -> Decimal:
        """Charged, net of refunds."""
        return from_micros(self.spent_micros)

    @property
    def reserved(self) -> Decimal:
        """Held by open reservations."""
        return from_micros(self.reserved_micros)

    @property
    def expired(self) -> Decimal:
        """Breakage: credits whose grant ended before they were used."""
        return from_micros(self.expired_micros)

    @property
    def voided(self) -> Decimal:
        """Taken back by voiding grants."""
        return from_micros(self.voided_micros)

    def keys(self) -> tuple[str, ...]:
        """Names for mapping access."""
        return (*_MicrosAsCredits.keys(self), "available", "available_micros", "debt", "debt_micros")


@dataclass(frozen=True, slots=True)
class CreditGrant(_MicrosAsCredits):
    """A block of credits; see :class:`GrantStatus`. ``remaining`` is neither spent, held, expired nor voided."""

    organization_id: str
    id: str
    amount_micros: int
    category: GrantCategory
    priority: int
    effective_at: datetime
    created_at: datetime
    status: GrantStatus
    expires_at: datetime | None = None
    voided_at: datetime | None = None
    source: str | None = None
    spent_micros: int = 0
    held_micros: int = 0
    expired_micros: int = 0
    voided_micros: int = 0
    replayed: bool = False

    @property
    def amount(self) -> Decimal:
        """Credits granted."""
        return from_micros(self.amount_micros)

    @property
    def remaining_micros(self) -> int:
        """What is left of the grant, in micros."""
        return self.amount_micros - self.spent_micros - self.held_micros - self.expired_micros - self.voided_micros

    @property
    def remaining(self) -> Decimal:
        """What is left of the grant, in credits."""
        return from_micros(self.remaining_micros)

    @property
    def spent(self) -> Decimal:
        """Credits charged to this grant, net of refunds."""
        return from_micros(self.spent_micros)

    @property
    def held(self) -> Decimal:
        """Credits of this grant in open reservations."""
        return from_micros(self.held_micros)

    @property
    def expired(self) -> Decimal:
        """Breakage of this grant."""
        return from_micros(self.expired_micros)

    @property
    def voided(self) -> Decimal:
        """Credits of this grant taken back."""
        return from_micros(self.voided_micros)

    def keys(self) -> tuple[str, ...]:
        """Names for mapping access."""
        return (*_MicrosAsCredits.keys(self), "remaining", "remaining_micros")


@dataclass(frozen=True, slots=True)
class Transaction(_MicrosAsCredits):
    """An immutable ledger row. ``amount`` is signed; ``seq`` is gapless per account and orders its history.

    ``balance_after`` is granted - spent - expired - voided after the row: holds are not counted.
    ``uncollected`` is what a capped over-run could not charge. A dry run's transaction has ``seq`` 0, no id,
    and ``dry_run`` True: nothing was written.
    """

    organization_id: str
    id: str
    seq: int
    type: TransactionType
    amount_micros: int
    balance_after_micros: int
    created_at: datetime
    agent_type: str | None = None
    action: str | None = None
    quantity: Decimal | None = None
    project_id: str | None = None
    department_id: str | None = None
    user_id: str | None = None
    request_id: str | None = None
    run_id: str | None = None
    reservation_id: str | None = None
    grant_id: str | None = None
    refund_of: str | None = None
    idempotency_key: str | None = None
    uncollected_micros: int = 0
    pricing: Pricing = Pricing.PRICED
    late: bool = False
    reason: str | None = None
    dimensions: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    allocations: tuple[Allocation, ...] = ()
    replayed: bool = False
    dry_run: bool = False

    @property
    def amount(self) -> Decimal:
        """Signed credits: a DEBIT is negative."""
        return from_micros(self.amount_micros)

    @property
    def charged(self) -> Decimal:
        """Credits that this row took from the account (0 for rows that give)."""
        return from_micros(max(0, -self.amount_micros))

    @property
    def balance_after(self) -> Decimal:
        """Credits after the row, holds not counted."""
        return from_micros(self.balance_after_micros)

    @property
    def uncollected(self) -> Decimal:
        """Credits of an over-run that were not there to charge."""
        return from_micros(self.uncollected_micros)

    @property
    def unpriced(self) -> bool:
        """Whether the action was recorded without a price."""
        return self.pricing is Pricing.UNPRICED


@dataclass(frozen=True, slots=True)
class ReservationRecord(_MicrosAsCredits):
    """What the ledger knows of a hold."""

    organization_id: str
    id: str
    state: ReservationState
    amount_micros: int
    created_at: datetime
    expires_at: datetime
    agent_type: str | None = None
    action: str | None = None
    quantity: Decimal | None = None
    project_id: str | None = None
    department_id: str | None = None
    user_id: str | None = None
    request_id: str | None = None
    run_id: str | None = None
    idempotency_key: str | None = None
    pricing: Pricing = Pricing.PRICED
    requested_micros: int | None = None
    charged_micros: int = 0
    uncollected_micros: int = 0
    transaction_id: str | None = None
    settled_at: datetime | None = None
    late: bool = False
    reason: str | None = None
    provider: str | None = None
    provider_reference: str | None = None
    allocations: tuple[Allocation, ...] = ()
    replayed: bool = False

    @property
    def amount(self) -> Decimal:
        """Credits held."""
        return from_micros(self.amount_micros)

    @property
    def charged(self) -> Decimal:
        """Credits charged at settlement."""
        return from_micros(self.charged_micros)

    @property
    def uncollected(self) -> Decimal:
        """Credits of an over-run that were not there to charge."""
        return from_micros(self.uncollected_micros)

    @property
    def requested(self) -> Decimal | None:
        """Credits that the settlement asked for; None while open or after a release."""
        return None if self.requested_micros is None else from_micros(self.requested_micros)


@dataclass(frozen=True, slots=True)
class ActionCost(_MicrosAsCredits):
    """One row of ``agent_action_costs``: a flat price in credits. ``organization_id`` '' is the default."""

    organization_id: str
    agent_type: str
    action: str
    cost: Decimal
    valid_from: datetime
    valid_until: datetime | None = None
    free: bool = False
    source: str | None = None
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Decision(_MicrosAsCredits):
    """The answer of ``check_credits``: whether the action would be allowed now. Truthy when it would."""

    organization_id: str
    allowed: bool
    required_micros: int
    available_micros: int
    reason: str | None = None
    limit_source: str | None = None
    retryable: bool = False
    message: str = ""
    suggestions: tuple[str, ...] = ()
    fixes: tuple[Mapping[str, Any], ...] = ()

    @property
    def required(self) -> Decimal:
        """Credits that the action costs."""
        return from_micros(self.required_micros)

    @property
    def available(self) -> Decimal:
        """Credits that can be spent now."""
        return from_micros(self.available_micros)

    @property
    def shortfall_micros(self) -> int:
        """How much is missing, in micros."""
        return max(0, self.required_micros - self.available_micros)

    @property
    def shortfall(self) -> Decimal:
        """How many credits are missing."""
        return from_micros(self.shortfall_micros)

    def __bool__(self) -> bool:
        return self.allowed

    def keys(self) -> tuple[str, ...]:
        """Names for mapping access."""
        return (*_MicrosAsCredits.keys(self), "shortfall", "shortfall_micros")


@dataclass(frozen=True, slots=True)
class PlannedAction:
    """One line of a plan to be priced by ``quote``."""

    agent_type: str
    action: str
    quantity: int | Decimal = 1
    dimensions: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class QuoteLine(_MicrosAsCredits):
    """One priced line of a quote."""

    agent_type: str
    action: str
    quantity: Decimal
    amount_micros: int

    @property
    def amount(self) -> Decimal:
        """Credits."""
        return from_micros(self.amount_micros)


@dataclass(frozen=True, slots=True)
class Quote:
    """A priced plan and whether the account could pay it now."""

    organization_id: str
    lines: tuple[QuoteLine, ...]
    decision: Decision

    @property
    def total_micros(self) -> int:
        """The whole plan, in micros."""
        return sum(line.amount_micros for line in self.lines)

    @property
    def total(self) -> Decimal:
        """The whole plan, in credits."""
        return from_micros(self.total_micros)

    @property
    def allowed(self) -> bool:
        """Whether the account could pay the whole plan now."""
        return self.decision.allowed


@dataclass(frozen=True, slots=True)
class DryRunResult:
    """What comes back instead of a result when nothing was done: a priced plan. Falsy.

    ``str()`` is one sentence that is fit to be read by an LLM.
    """

    agent_type: str
    action: str
    amount_micros: int
    reason: str
    prompt: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    dimensions: Mapping[str, Any] = field(default_factory=dict)
    fixes: tuple[Mapping[str, Any], ...] = ()

    @property
    def amount(self) -> Decimal:
        """Credits that the action would have cost."""
        return from_micros(self.amount_micros)

    def as_dict(self) -> dict[str, Any]:
        """Plain data. There is no access by key: a plan must not be taken for the result that it stands for."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)} | {"amount": self.amount}

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return f"Dry run: {self.action} was not performed ({self.reason}); it would cost {self.amount:f} credits."


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A page of a history; pass ``next_cursor`` back to go on, None at the end."""

    items: tuple[T, ...]
    next_cursor: int | None = None

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, slots=True)
class VerifyProblem:
    """One difference that ``verify`` found."""

    organization_id: str
    check: str
    message: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The answer of ``verify``: truthy when every counter equals what its rows say."""

    accounts: int
    transactions: int
    problems: tuple[VerifyProblem, ...] = ()

    @property
    def ok(self) -> bool:
        """No difference found."""
        return not self.problems

    def __bool__(self) -> bool:
        return self.ok


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What ``sweep`` booked: accounts visited, holds that expired (those awaiting a verdict listed), grant ends."""

    accounts: int
    expired_reservations: int
    expired_grants: int
    expired_unknown: tuple[str, ...] = ()
