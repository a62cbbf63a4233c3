"""Values that are wrong, by what they are passed for, and how a method with good arguments is described."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from agentcredits.errors import (
    AccountNotFoundError,
    CreditsError,
    IdempotencyMismatchError,
    InsufficientCreditsError,
    InvalidInputError,
    MissingContextError,
    UnpricedActionError,
)

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ACME, OTHER = "acme", "other"
NUL, SURROGATE, LONG = "a\x00b", "a\ud800b", "x" * 5_000
UNKNOWN_ID = str(uuid.UUID(int=12345))

NUMBERS: list[Any] = [
    *(
        -1,
        "-0.5",
        math.nan,
        math.inf,
        -math.inf,
        "NaN",
        "Infinity",
        Decimal("NaN"),
        Decimal("sNaN"),
        Decimal("-Infinity"),
    ),
    *(True, False, "0.0000001", 1.0000001, 10**25, "1e25", 1e300, Decimal("1E+999999"), "", " 1", "1,5", "ten", "0x1"),
    *("\u0661", b"1", [], {}, object(), 1j, NUL, SURROGATE),
]
BAD: dict[str, list[Any]] = {
    "amount": [*NUMBERS, 0, "0", 0.0, Decimal("-0")],
    "amount or zero": NUMBERS,
    "text": ["", NUL, SURROGATE, LONG, 5, b"text", ["x"], {"x": 1}, object(), True],
    "organization": ["", NUL, SURROGATE, LONG, 5, b"acme", ["acme"], object()],
    "when": [datetime(2027, 1, 1), date(2027, 1, 1), "2027-01-01T00:00:00Z", 1.5, True],  # noqa: DTZ001  # naive on purpose
    "ttl": [timedelta(0), timedelta(seconds=-1), timedelta.max, 300, "5m", 1.5, True],
    "json": [
        *({"x": object()}, {"x": math.nan}, {"x": b"1"}, {"x": NUL}, {NUL: 1}, {"x": [SURROGATE]}, {"x": "y" * 8192}),
        *({("a",): 1}, "text", ["x"], 5),
    ],
    "choice": ["nonsense", "", 5, object(), NUL],
    "page size": [0, -1, 10**6, True, 1.5, "5"],
    "cursor": [-1, True, 1.5, "x", 10**30],
    "priority": [-1, 10**30, True, 1.5, "5"],
    "record id": ["", NUL, SURROGATE, LONG, 5, b"x", object(), ["x"]],
}
KIND: dict[str, str] = {
    **dict.fromkeys(("amount", "quantity", "cost"), "amount"),
    **dict.fromkeys(("agent_type", "action", "reason", "provider", "provider_reference", "source"), "text"),
    **dict.fromkeys(
        ("organization_id", "project_id", "department_id", "user_id", "run_id", "scope_id"), "organization"
    ),
    **dict.fromkeys(
        ("effective_at", "expires_at", "anchor", "ends_at", "valid_from", "valid_until", "since", "until"), "when"
    ),
    **dict.fromkeys(("metadata", "dimensions"), "json"),
    **dict.fromkeys(("overage", "category", "type", "scope", "unit", "mode", "bucket", "every"), "choice"),
    **dict.fromkeys(("reservation", "transaction", "grant", "recurring"), "record id"),
    "idempotency_key": "text",
    "ttl": "ttl",
    "limit": "page size",
    "cursor": "cursor",
    "priority": "priority",
    "final_amount": "amount or zero",
    "max_credits": "amount or zero",
    "by": "text",
    "run": "record id",
    "parent_run_id": "organization",
}
Wrong = tuple[str, dict[str, Any], type[CreditsError]]


@dataclass
class Entry:
    """A method with good arguments."""

    name: str
    good: dict[str, Any]
    #: The arguments that are tried with every bad value of their kind (see KIND), separated by spaces.
    tried: str
    positional: tuple[str, ...] = ()
    #: (what, arguments, error): input that is well-formed and still wrong.
    wrong: Sequence[Wrong] = ()


@dataclass
class Ids:
    """Records that stand in the ledger: of acme, and of another organization."""

    hold: str
    charge: str
    purchase: str
    grant: str
    foreign_hold: str
    foreign_charge: str
    foreign_grant: str
    limit: str
    foreign_limit: str
    recurring: str
    foreign_recurring: str


UNKNOWN_ACCOUNT: Wrong = ("unknown organization", {"organization_id": "nobody"}, AccountNotFoundError)
NO_ORGANIZATION: Wrong = ("no organization anywhere", {"organization_id": None}, MissingContextError)
UNPRICED: Wrong = ("an unpriced action", {"amount": None, "agent_type": "A", "action": "b"}, UnpricedActionError)
PRICED_WRONG: tuple[Wrong, ...] = (
    ("neither amount nor action", {"amount": None}, InvalidInputError),
    ("an agent type without an action", {"amount": None, "agent_type": "A"}, InvalidInputError),
    UNPRICED,
    ("a bad agent type", {"amount": None, "agent_type": ["A"], "action": "b"}, InvalidInputError),
    ("a bad action", {"amount": None, "agent_type": "A", "action": NUL}, InvalidInputError),
)
CHARGE_WRONG: tuple[Wrong, ...] = (
    UNKNOWN_ACCOUNT,
    ("more than there is", {"amount": 10_000}, InsufficientCreditsError),
    *PRICED_WRONG,
)
LATER, EARLIER = START + timedelta(days=2), START + timedelta(days=1)
ACTIVITY = "organization_id amount agent_type action quantity dimensions"
SCOPES = "project_id department_id user_id metadata idempotency_key"


def key_reused(key: str) -> Wrong:
    return ("a key with another payload", {"idempotency_key": key}, IdempotencyMismatchError)
