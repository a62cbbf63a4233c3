"""What the ledger holds: balances, grants, rows, reservations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from decimal import Decimal, localcontext
from typing import Any

from agentcredits.amounts import from_micros
from agentcredits.model.words import (
    AccountStatus,
    GrantCategory,
    GrantStatus,
    Pricing,
    ReservationState,
    TransactionType,
)

#: What ``MicrosAsCredits`` has found of each kind of record.
_NAMES: dict[type[Any], tuple[str, ...]] = {}


class MicrosAsCredits:
    """Gives ``x`` for every field ``x_micros``, and mapping access by name."""

    __slots__ = ()

    def __getitem__(self, name: str) -> Any:
        if name not in self.keys():
            raise KeyError(name)
        return getattr(self, name)

    def keys(self) -> tuple[str, ...]:
        """The names that mapping access knows: every field, and every amount in credits."""
        found = _NAMES.get(type(self))
        if found is None:
            names: list[str] = []
            for entry in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
                names.append(entry.name)
                if entry.name.endswith("_micros"):
                    names.append(entry.name.removesuffix("_micros"))
            found = _NAMES[type(self)] = tuple(names)
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain data: amounts in Decimal credits and in micros, times as datetime."""
        return {name: getattr(self, name) for name in self.keys()}


@dataclass(frozen=True, slots=True)
class Scopes:
    """Who below the organization an action belongs to, and in which run (and its cap) and request."""

    project_id: str | None = None
    department_id: str | None = None
    user_id: str | None = None
    run_id: str | None = None
    request_id: str | None = None
    run_max_micros: int | None = None


@dataclass(frozen=True, slots=True)
class Allocation:
    """How much of a row or hold comes from one grant; ``grant_id`` None is overdraft.

    A ledger row's tells the grant's category too, and what a credit of it cost (``unit_cost`` of ``currency``).
    """

    grant_id: str | None
    amount_micros: int
    category: GrantCategory | None = field(default=None, compare=False)
    unit_cost: Decimal | None = field(default=None, compare=False)
    currency: str | None = field(default=None, compare=False)

    @property
    def amount(self) -> Decimal:
        """Credits."""
        return from_micros(self.amount_micros)

    @property
    def cost(self) -> Decimal | None:
        """What these credits cost, in ``currency``, exact; None: their grant has no cost basis."""
        if self.unit_cost is None:
            return None
        with localcontext() as context:
            context.prec = 64
            return self.amount * self.unit_cost


@dataclass(frozen=True, slots=True)
class Balance(MicrosAsCredits):
    """An account at one moment: ``available = granted - scheduled - spent - reserved - expired - voided``.

    True and signed; ``balance["available"]`` and ``balance.available`` are the same Decimal. ``restricted`` are the
    credits in it that only certain actions may use; a debt is taken off.
    """

    organization_id: str
    granted_micros: int
    scheduled_micros: int
    spent_micros: int
    reserved_micros: int
    expired_micros: int
    voided_micros: int
    as_of: datetime
    restricted_micros: int = 0

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
        """What was charged beyond the grants and is not paid back, in micros: ``max(0, restricted - available)``."""
        return max(0, self.restricted_micros - self.available_micros)

    @property
    def available(self) -> Decimal:
        """What can be spent now, in credits."""
        return from_micros(self.available_micros)

    @property
    def debt(self) -> Decimal:
        """What was charged beyond the grants and is not paid back, in credits; restricted credits do not pay it."""
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
        """Taken back by voiding grants and by adjustments, or carried over into a rollover."""
        return from_micros(self.voided_micros)

    @property
    def restricted(self) -> Decimal:
        """The credits among what is available that only certain actions may use."""
        return from_micros(self.restricted_micros)

    def keys(self) -> tuple[str, ...]:
        """Names for mapping access."""
        return (*MicrosAsCredits.keys(self), "available", "available_micros", "debt", "debt_micros")


@dataclass(frozen=True, slots=True)
class Account(MicrosAsCredits):
    """An account's status and overdraft line at one moment.

    ``debt`` is what was charged from the line and is not paid back; ``replayed``: nothing changed.
    """

    organization_id: str
    status: AccountStatus
    overdraft_micros: int
    debt_micros: int
    available_micros: int
    created_at: datetime
    as_of: datetime
    #: Why it has its status, who gave it, and when; None: it was always open.
    status_reason: str | None = None
    status_by: str | None = None
    status_at: datetime | None = None
    replayed: bool = False

    @property
    def overdraft(self) -> Decimal:
        """Credits that charges with overage "overdraft" may go beyond the grants."""
        return from_micros(self.overdraft_micros)

    @property
    def debt(self) -> Decimal:
        """Credits charged from the line and not paid back."""
        return from_micros(self.debt_micros)

    @property
    def available(self) -> Decimal:
        """What can be spent now, in credits; negative is debt."""
        return from_micros(self.available_micros)


@dataclass(frozen=True, slots=True)
class CreditGrant(MicrosAsCredits):
    """A block of credits; see :class:`GrantStatus`. ``remaining`` is neither spent, held, expired nor voided.

    Args:
        only_for: The actions that may use it, such as ``"VideoAgent.*"``; empty: every action.
        unit_cost: What one credit of it cost, in ``currency``.
        recurring_id: The recurring grant that made it.
        period_start: Of the period that it was made for.
        rolled_from: The grant of the period before, whose rest it carries.
    """

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
    #: The part of what is spent that paid the account's debt.
    repaid_micros: int = 0
    only_for: tuple[str, ...] = ()
    unit_cost: Decimal | None = None
    currency: str | None = None
    recurring_id: str | None = None
    period_start: datetime | None = None
    rolled_from: str | None = None
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
    def repaid(self) -> Decimal:
        """Credits of this grant that paid the account's debt; a part of what is spent."""
        return from_micros(self.repaid_micros)

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
        """Credits of this grant taken back, or carried over into the next period."""
        return from_micros(self.voided_micros)

    def keys(self) -> tuple[str, ...]:
        """Names for mapping access."""
        return (*MicrosAsCredits.keys(self), "remaining", "remaining_micros")


@dataclass(frozen=True, slots=True)
class Transaction(MicrosAsCredits):
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
    def overdraft(self) -> Decimal:
        """Credits of a charge that came from the account's overdraft line."""
        parts = self.allocations if self.amount_micros < 0 else ()
        return from_micros(sum(part.amount_micros for part in parts if part.grant_id is None))

    @property
    def amount_by_category(self) -> dict[GrantCategory, Decimal]:
        """The row's credits by the category of the grants that they come from or go to; never negative."""
        found: dict[GrantCategory, Decimal] = {}
        for allocation in self.allocations:
            if allocation.category is not None:
                found[allocation.category] = found.get(allocation.category, Decimal(0)) + allocation.amount
        return found

    @property
    def cost_basis(self) -> dict[str, Decimal]:
        """What the row's credits cost, by currency; credits of grants without a cost basis are left out."""
        found: dict[str, Decimal] = {}
        with localcontext() as context:
            context.prec = 64
            for allocation in self.allocations:
                cost = allocation.cost
                if cost is not None and allocation.currency is not None:
                    found[allocation.currency] = found.get(allocation.currency, Decimal(0)) + cost
        return found

    @property
    def unpriced(self) -> bool:
        """Whether the action was recorded without a price."""
        return self.pricing is Pricing.UNPRICED


@dataclass(frozen=True, slots=True)
class ReservationRecord(MicrosAsCredits):
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
    #: An operator gave it back; ``reason`` says why.
    forced: bool = False
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
