"""The words that the ledger stores: categories, states, types."""

from __future__ import annotations

from enum import StrEnum


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


class RecurringStatus(StrEnum):
    """ACTIVE grants again; ENDED has come to its end; CANCELLED was ended by hand."""

    ACTIVE = "active"
    ENDED = "ended"
    CANCELLED = "cancelled"


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
    OVERDRAFT = "overdraft"


class AccountStatus(StrEnum):
    """OPEN; FROZEN: nothing new is charged or held; CLOSED: nor is anything granted."""

    OPEN = "open"
    FROZEN = "frozen"
    CLOSED = "closed"


class Pricing(StrEnum):
    """How an amount came about: from a price, explicitly free, recorded without a price, or (mode "observe") not
    charged although the action would have been refused.
    """

    PRICED = "priced"
    FREE = "free"
    UNPRICED = "unpriced"
    OBSERVED = "observed"


class LimitScope(StrEnum):
    """What a limit is for; ``RUN``: one run (whose ``max_credits`` is no limit, but refuses as ``"run"`` too)."""

    ORGANIZATION = "organization"
    DEPARTMENT = "department"
    PROJECT = "project"
    USER = "user"
    AGENT_TYPE = "agent_type"
    ACTION = "action"
    RUN = "run"


class RunStatus(StrEnum):
    """OPEN takes charges and holds; in an ENDED run only open holds settle."""

    OPEN = "open"
    ENDED = "ended"


class LimitUnit(StrEnum):
    """What a limit counts: credits, or charges."""

    CREDITS = "credits"
    COUNT = "count"


class LimitMode(StrEnum):
    """HARD refuses what would go beyond it; SOFT only records that it was gone beyond."""

    HARD = "hard"
    SOFT = "soft"
