"""The operations: every change of money is one of these, and each names exactly one account.

They are plain facts, already checked (texts storable, amounts in micros, times in UTC); ``rules.posting`` decides
them, ``store.posting`` books them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import ClassVar

from agentcredits.errors import CreditsError
from agentcredits.model import (
    AccountStatus,
    GrantCategory,
    Lasting,
    LimitMode,
    LimitScope,
    LimitUnit,
    Overage,
    Pricing,
    Scopes,
)
from agentcredits.rules.periods import Every, RolloverTerms


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What an amount is for. ``details`` (metadata, dimensions) is canonical JSON text, or None."""

    agent_type: str | None = None
    action: str | None = None
    quantity: Decimal | None = None
    dimensions_json: str | None = None
    metadata_json: str | None = None
    scopes: Scopes = field(default_factory=Scopes)
    pricing: Pricing = Pricing.PRICED


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """Base: one change of one account."""

    organization_id: str

    @property
    def creates_account(self) -> bool:
        """Whether the account comes into being by this operation."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyedOperation(Operation):
    """An operation that answers its stored result when its key comes again.

    ``id`` is the id of the record that it creates, made before posting, so that a repeated try after a lost answer
    is recognised.
    """

    #: The name under which idempotency keys of this operation are unique.
    key_kind: ClassVar[str]
    id: str
    key: str
    fingerprint: str
    key_generated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateAccount(Operation):
    """Open the account if it is not there; nothing else."""

    @property
    def creates_account(self) -> bool:
        """Yes."""
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class SetStatus(Operation):
    """Bring an account from ``before`` to ``status``: freeze, unfreeze, close, reopen."""

    before: frozenset[AccountStatus]
    status: AccountStatus
    reason: str | None
    by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SetOverdraft(Operation):
    """How far charges with overage OVERDRAFT may go beyond the grants; what is overdrawn already stays."""

    amount_micros: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant(KeyedOperation):
    """Add a block of credits. ``effective_at`` None is now."""

    key_kind = "grant"

    amount_micros: int
    category: GrantCategory = GrantCategory.PAID
    priority: int = 50
    effective_at: datetime | None = None
    expires_at: datetime | None = None
    source: str | None = None
    metadata_json: str | None = None
    only_for: tuple[str, ...] = ()
    unit_cost: Decimal | None = None
    currency: str | None = None

    @property
    def creates_account(self) -> bool:
        """Yes."""
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRecurring(KeyedOperation):
    """Grant again each period. ``anchor`` None is now."""

    key_kind = "recurring"

    amount_micros: int
    every: Every
    tz: str
    anchor: datetime | None = None
    ends_at: datetime | None = None
    category: GrantCategory = GrantCategory.PLAN
    priority: int = 50
    expires_after: Lasting = "period"
    rollover: RolloverTerms | None = None
    only_for: tuple[str, ...] = ()
    unit_cost: Decimal | None = None
    currency: str | None = None
    source: str | None = None

    @property
    def creates_account(self) -> bool:
        """Yes."""
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRecurring(Operation):
    """Grant no further period."""

    recurring_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjust(KeyedOperation):
    """Correct the account by a signed amount: a grant of category "adjustment", or credits taken back.

    ``id`` is the ledger row's, ``grant_id`` that of the grant which a positive amount makes.
    """

    key_kind = "adjust"

    amount_micros: int
    grant_id: str
    reason: str | None = None

    @property
    def creates_account(self) -> bool:
        """When it gives."""
        return self.amount_micros > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VoidGrant(Operation):
    """Take back what is left of a grant; what is held stays with its hold.

    ``unreserved_only``: the grant is not ended, so that what its holds give back can be spent.
    """

    grant_id: str
    unreserved_only: bool = False
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending(KeyedOperation):
    """What limits apply to.

    Args:
        amount_micros: How much.
        activity: What for.
        observe: Record a refusal for want of credits or room in a limit, and let the work pass uncharged.
        would_refuse: The refusal that was found before posting (no price, a scope missing): raised when the key has no
            answer yet, or (``observe``) recorded likewise.
    """

    amount_micros: int
    activity: Activity = field(default_factory=Activity)
    observe: bool = False
    would_refuse: CreditsError | None = None

    @property
    def creates_account(self) -> bool:
        """Mode "observe" stops nobody who has no account yet."""
        return self.observe


@dataclass(frozen=True, slots=True, kw_only=True)
class Consume(Spending):
    """Reserve and commit at once."""

    key_kind = "consume"

    overage: Overage = Overage.REJECT


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve(Spending):
    """Hold an amount for ``ttl``."""

    key_kind = "reserve"

    ttl: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit(Operation):
    """Settle a hold. ``amount_micros`` None is the whole hold.

    Args:
        transaction_id: Id for the DEBIT row, made before posting.
        late: A handle's settlement: also after the hold expired, once, with CAP.
        grace: How long after its expiry an explicit commit may still settle a hold.
        automatic: The end of a block: what was settled inside it, or awaits a verdict, is left alone.
    """

    reservation_id: str
    transaction_id: str
    amount_micros: int | None = None
    overage: Overage = Overage.REJECT
    late: bool = False
    grace: timedelta = timedelta(0)
    automatic: bool = False
    metadata_json: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(Operation):
    """Give a hold back; ``automatic`` as in :class:`Commit`.

    ``forced``: an operator's, of work that seems lost; a handle that ends after all settles late.
    """

    reservation_id: str
    reason: str | None = None
    automatic: bool = False
    forced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Extend(Operation):
    """Let a hold live until now + ``ttl`` (never relative to its old end)."""

    reservation_id: str
    ttl: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkUnknown(Operation):
    """The provider's verdict is awaited: keep the hold for ``ttl`` from now."""

    reservation_id: str
    provider: str
    provider_reference: str | None
    ttl: timedelta


AboutHold = Commit | Release | Extend | MarkUnknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Refund(KeyedOperation):
    """Give back a charge or a part of it (``amount_micros`` None: all that is left of it)."""

    key_kind = "refund"

    transaction_id: str
    amount_micros: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SetLimit(Operation):
    """Make a limit, or change the amount, mode and thresholds of the one in this place.

    Args:
        id: For a new one.
        scope: What it is for.
        scope_id: Whose; '' for the organization or each.
        unit: What it counts.
        window_text: Canonical text of its window.
        amount: Micro-credits or charges.
        mode: Whether it refuses.
        warn_at: Parts of 10,000, ascending.
        include_existing: Let a new one count what was charged in the present window before.
    """

    id: str
    scope: LimitScope
    scope_id: str
    unit: LimitUnit
    window_text: str
    amount: int
    mode: LimitMode
    warn_at: tuple[int, ...] = ()
    include_existing: bool = False

    @property
    def creates_account(self) -> bool:
        """Yes."""
        return True

    @property
    def place(self) -> tuple[str, str, str, str]:
        """What tells limits apart."""
        return (self.scope, self.scope_id, self.unit, self.window_text)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveLimit(Operation):
    """Remove a limit and its counters."""

    limit_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRun(Operation):
    """Open a run, or change the one that is open under this id.

    Args:
        run_id: Whose pool.
        parent_run_id: The run around it.
        cap_micros: Its cap; inside another run carved out of that one's pool. None: as it is, else none of its own.
        borrows: Whether it goes on from the run around when its carve-out is used up. None: as it is, else no.
        partial: Let it open with what the run around has left, when that is less than the cap.
        ttl: How long nothing may happen in it until it ends. None: as it is, else the default.
    """

    run_id: str
    parent_run_id: str | None = None
    cap_micros: int | None = None
    borrows: bool | None = None
    partial: bool = False
    ttl: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndRun(Operation):
    """End a run and those inside it."""

    run_id: str
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expire(Operation):
    """Book what is due and nothing else."""


_encoder = json.JSONEncoder(default=str, separators=(",", ":"))


def fingerprint(kind: str, *parts: object) -> str:
    """A short hash of an operation's payload, for telling a repeated call from another one under the same key.

    Not part of it: price, time-to-live, metadata, request_id, run_id (they may differ between two honest tries).
    """
    text = _encoder.encode([kind, *parts])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
