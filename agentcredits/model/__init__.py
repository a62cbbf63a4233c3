"""The records that the public API takes and returns: frozen, slotted, with amounts in micro-credits.

Fields that end in ``_micros`` are integer micro-credits; the property of the same name without the ending is the
same amount in Decimal credits.
"""

from agentcredits.model.answers import (
    Decision,
    DryRunResult,
    Page,
    PlannedAction,
    Quote,
    QuoteLine,
    SweepReport,
    VerifyProblem,
    VerifyReport,
)
from agentcredits.model.records import (
    ActionCost,
    Allocation,
    Balance,
    CreditGrant,
    ReservationRecord,
    Scopes,
    Transaction,
)
from agentcredits.model.words import GrantCategory, GrantStatus, Overage, Pricing, ReservationState, TransactionType

__all__ = [
    "ActionCost",
    "Allocation",
    "Balance",
    "CreditGrant",
    "Decision",
    "DryRunResult",
    "GrantCategory",
    "GrantStatus",
    "Overage",
    "Page",
    "PlannedAction",
    "Pricing",
    "Quote",
    "QuoteLine",
    "ReservationRecord",
    "ReservationState",
    "Scopes",
    "SweepReport",
    "Transaction",
    "TransactionType",
    "VerifyProblem",
    "VerifyReport",
]
