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
    RepairChange,
    RepairRefusal,
    RepairReport,
    SweepReport,
    VerifyProblem,
    VerifyProgress,
    VerifyReport,
)
from agentcredits.model.breakers import OpenBreaker
from agentcredits.model.limits import Denial, DenialGroup, Limit, LimitCrossing, LimitUsage
from agentcredits.model.prices import ActionCost, PriceChange, PriceExplanation, PriceStep
from agentcredits.model.records import (
    Account,
    Allocation,
    Balance,
    CreditGrant,
    ReservationRecord,
    Scopes,
    Transaction,
)
from agentcredits.model.recurring import Lasting, RecurringGrant, Rollover
from agentcredits.model.runs import RunRecord
from agentcredits.model.simulation import LimitEffect, NotRepriced, PlannedLimit, SimulationLine, SimulationReport
from agentcredits.model.upkeep import ErasureReport, PurgeReport
from agentcredits.model.usage import UsageLine, UsageReport
from agentcredits.model.words import (
    AccountStatus,
    GrantCategory,
    GrantStatus,
    LimitMode,
    LimitScope,
    LimitUnit,
    Overage,
    Pricing,
    RecurringStatus,
    ReservationState,
    RunStatus,
    TransactionType,
)

__all__ = [
    "Account",
    "AccountStatus",
    "ActionCost",
    "Allocation",
    "Balance",
    "CreditGrant",
    "Decision",
    "Denial",
    "DenialGroup",
    "DryRunResult",
    "ErasureReport",
    "GrantCategory",
    "GrantStatus",
    "Lasting",
    "Limit",
    "LimitCrossing",
    "LimitEffect",
    "LimitMode",
    "LimitScope",
    "LimitUnit",
    "LimitUsage",
    "NotRepriced",
    "OpenBreaker",
    "Overage",
    "Page",
    "PlannedAction",
    "PlannedLimit",
    "PriceChange",
    "PriceExplanation",
    "PriceStep",
    "Pricing",
    "PurgeReport",
    "Quote",
    "QuoteLine",
    "RecurringGrant",
    "RecurringStatus",
    "RepairChange",
    "RepairRefusal",
    "RepairReport",
    "ReservationRecord",
    "ReservationState",
    "Rollover",
    "RunRecord",
    "RunStatus",
    "Scopes",
    "SimulationLine",
    "SimulationReport",
    "SweepReport",
    "Transaction",
    "TransactionType",
    "UsageLine",
    "UsageReport",
    "VerifyProblem",
    "VerifyProgress",
    "VerifyReport",
]
