"""What the service answers: decisions, quotes, dry runs, pages, reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from decimal import Decimal
from typing import Any, Generic, TypeVar

from agentcredits.amounts import from_micros
from agentcredits.model.prices import PriceStep
from agentcredits.model.records import MicrosAsCredits

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Decision(MicrosAsCredits):
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
        return (*MicrosAsCredits.keys(self), "shortfall", "shortfall_micros")


@dataclass(frozen=True, slots=True)
class PlannedAction:
    """One line of a plan to be priced by ``quote``."""

    agent_type: str
    action: str
    quantity: int | Decimal = 1
    dimensions: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class QuoteLine(MicrosAsCredits):
    """One priced line of a quote; the arithmetic and US dollars are known where a price rule made it."""

    agent_type: str
    action: str
    quantity: Decimal
    amount_micros: int
    steps: tuple[PriceStep, ...] = ()
    usd: Decimal | None = None

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
class VerifyProgress:
    """How far ``verify`` is: the account that it reads, accounts done of all, ledger rows read of those known of."""

    organization_id: str
    accounts_done: int
    accounts: int
    rows_read: int
    rows: int


@dataclass(frozen=True, slots=True)
class RepairChange:
    """One column of a derived counter: what stands there, and what the append-only ledger says.

    ``before`` None: there is no such row of counters; the repair inserts it.
    """

    organization_id: str
    table: str
    key: Mapping[str, str]
    column: str
    before: int | bool | str | datetime | None
    after: int | bool | str | datetime | None


@dataclass(frozen=True, slots=True)
class RepairRefusal:
    """A difference that was, or would be, left as it is; and why."""

    organization_id: str
    check: str
    message: str
    reason: str


@dataclass(frozen=True, slots=True)
class RepairReport:
    """The answer of ``repair``: truthy when nothing is left to repair.

    ``changes``: what would be changed (``dry_run``), or was. An account with a refusal is never changed, unless all
    that is refused are wrong ``balance_after`` of ledger rows (check "chain"), from which nothing is computed.
    """

    dry_run: bool
    accounts: int
    transactions: int
    changes: tuple[RepairChange, ...] = ()
    refused: tuple[RepairRefusal, ...] = ()

    @property
    def ok(self) -> bool:
        """Every counter equals what its rows say, now."""
        return not self.refused and (not self.dry_run or not self.changes)

    def __bool__(self) -> bool:
        return self.ok


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What ``sweep`` booked: accounts visited, holds that expired (those awaiting a verdict listed), grant ends."""

    accounts: int
    expired_reservations: int
    expired_grants: int
    expired_unknown: tuple[str, ...] = ()
