"""Accounts at media providers that are not asked for a while."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class OpenBreaker:
    """An account at a provider that is not asked; for operators.

    Attributes:
        provider: The provider's name ("fal").
        account: The operator's label of the account; "" when there is one only.
        category: Why: ``"credits_exhausted"``, ``"account_locked"`` or ``"quota_window"``.
        rule: Id of the rule that decided.
        message: The provider's own words, redacted. Not for customers.
        failures: How often it failed in a row, probes included.
        opened_at: Since when.
        probe_at: From when on one call may find out whether the account is served again.
    """

    provider: str
    account: str
    category: str
    rule: str
    message: str
    failures: int
    opened_at: datetime
    probe_at: datetime
