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
from agentcredits.model.limits import Denial, DenialGroup, Limit, LimitCrossing, LimitUsage
from agentcredits.model.prices import ActionCost, PriceChange, PriceExplanation, PriceStep
from agentcredits.model.records import (
    Allocation,
    Balance,
    CreditGrant,
    ReservationRecord,
    Scopes,
    Transaction,
)
from agentcredits.model.recurring import Lasting, RecurringGrant, Rollover
from agentcredits.model.usage import UsageLine, UsageReport
from agentcredits.model.words import (
    GrantCategory,
    GrantStatus,
    LimitMode,
    LimitScope,
    LimitUnit,
    Overage,
    Pricing,
    RecurringStatus,
    ReservationState,
    TransactionType,
)

__all__ = [
    "ActionCost",
    "Allocation",
    "Balance",
    "CreditGrant",
    "Decision",
    "Denial",
    "DenialGroup",
    "DryRunResult",
    "GrantCategory",
    "GrantStatus",
    "Lasting",
    "Limit",
    "LimitCrossing",
    "LimitMode",
    "LimitScope",
    "LimitUnit",
    "LimitUsage",
    "Overage",
    "Page",
    "PlannedAction",
    "PriceChange",
    "PriceExplanation",
    "PriceStep",
    "Pricing",
    "Quote",
    "QuoteLine",
    "RecurringGrant",
    "RecurringStatus",
    "ReservationRecord",
    "ReservationState",
    "Rollover",
    "Scopes",
    "SweepReport",
    "Transaction",
    "TransactionType",
    "UsageLine",
    "UsageReport",
    "VerifyProblem",
    "VerifyReport",
]
