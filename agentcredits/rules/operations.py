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

from agentcredits.model import GrantCategory, Overage, Pricing, Scopes


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

    #: The name under which idempotency keys of this operation are unique; None: takes no key.
    key_kind: ClassVar[str | None] = None
    #: Whether the account comes into being by this operation.
    creates_account: ClassVar[bool] = False

    organization_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyedOperation(Operation):
    """An operation that answers its stored result when its key comes again.

    ``id`` is the id of the record that it creates, made before posting, so that a repeated try after a lost answer
    is recognised.
    """

    id: str
    key: str
    fingerprint: str
    key_generated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateAccount(Operation):
    """Open the account if it is not there; nothing else."""

    creates_account = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant(KeyedOperation):
    """Add a block of credits. ``effective_at`` None is now."""

    key_kind = "grant"
    creates_account = True

    amount_micros: int
    category: GrantCategory = GrantCategory.PAID
    priority: int = 50
    effective_at: datetime | None = None
    expires_at: datetime | None = None
    source: str | None = None
    metadata_json: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VoidGrant(Operation):
    """Take back what is left of a grant; what is held stays with its hold."""

    grant_id: str
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Consume(KeyedOperation):
    """Reserve and commit at once."""

    key_kind = "consume"

    amount_micros: int
    activity: Activity = field(default_factory=Activity)
    overage: Overage = Overage.REJECT


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve(KeyedOperation):
    """Hold an amount for ``ttl``."""

    key_kind = "reserve"

    amount_micros: int
    ttl: timedelta
    activity: Activity = field(default_factory=Activity)


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
    """Give a hold back; ``automatic`` as in :class:`Commit`."""

    reservation_id: str
    reason: str | None = None
    automatic: bool = False


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Refund(KeyedOperation):
    """Give back a charge or a part of it (``amount_micros`` None: all that is left of it)."""

    key_kind = "refund"

    transaction_id: str
    amount_micros: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expire(Operation):
    """Book what is due and nothing else."""


def fingerprint(kind: str, *parts: object) -> str:
    """A short hash of an operation's payload, for telling a repeated call from another one under the same key.

    Not part of it: price, time-to-live, metadata, request_id, run_id (they may differ between two honest tries).
    """
    text = json.dumps([kind, *parts], default=str, separators=(",", ":"), ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
