"""Credits for AI agents, in your own database.

Each public name is imported from its module when it is first used, so that `import agentcredits` costs an application
next to nothing until it charges.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentcredits.base_crew import BaseCrew
    from agentcredits.context import RequestContext, bind, current_context, require_context, use_context
    from agentcredits.decorators import consume_credits, track_agent_usage
    from agentcredits.errors import (
        AccountLockedError,
        AccountNotFoundError,
        AgentCreditsWarning,
        ConfigurationError,
        CreditLimitExceededError,
        CreditsError,
        DryRunNotSupportedError,
        GrantNotFoundError,
        IdempotencyMismatchError,
        InsufficientCreditsError,
        InvalidAmountError,
        InvalidInputError,
        MissingContextError,
        OverageRejectedError,
        RefundExceedsChargeError,
        ReservationAlreadySettledError,
        ReservationError,
        ReservationExpiredError,
        ReservationInUseError,
        ReservationNotFoundError,
        ReservationUnknownError,
        SchemaError,
        ServiceClosedError,
        SettlementFailedError,
        StoreError,
        StoreUnavailableError,
        TransactionNotFoundError,
        UnpricedActionError,
    )
    from agentcredits.hooks import CreditEvent, add_hook, remove_hook
    from agentcredits.model import (
        ActionCost,
        Allocation,
        Balance,
        CreditGrant,
        Decision,
        DryRunResult,
        GrantCategory,
        GrantStatus,
        Overage,
        Page,
        PlannedAction,
        Pricing,
        Quote,
        QuoteLine,
        ReservationRecord,
        ReservationState,
        SweepReport,
        Transaction,
        TransactionType,
        VerifyProblem,
        VerifyReport,
    )
    from agentcredits.reservation import Reservation, SyncReservation
    from agentcredits.service import CreditService, SyncCreditService, configure, default_service
    from agentcredits.settings import Settings

__version__ = "0.1.0"

__all__ = [
    "AccountLockedError",
    "AccountNotFoundError",
    "ActionCost",
    "AgentCreditsWarning",
    "Allocation",
    "Balance",
    "BaseCrew",
    "ConfigurationError",
    "CreditEvent",
    "CreditGrant",
    "CreditLimitExceededError",
    "CreditService",
    "CreditsError",
    "Decision",
    "DryRunNotSupportedError",
    "DryRunResult",
    "GrantCategory",
    "GrantNotFoundError",
    "GrantStatus",
    "IdempotencyMismatchError",
    "InsufficientCreditsError",
    "InvalidAmountError",
    "InvalidInputError",
    "MissingContextError",
    "Overage",
    "OverageRejectedError",
    "Page",
    "PlannedAction",
    "Pricing",
    "Quote",
    "QuoteLine",
    "RefundExceedsChargeError",
    "RequestContext",
    "Reservation",
    "ReservationAlreadySettledError",
    "ReservationError",
    "ReservationExpiredError",
    "ReservationInUseError",
    "ReservationNotFoundError",
    "ReservationRecord",
    "ReservationState",
    "ReservationUnknownError",
    "SchemaError",
    "ServiceClosedError",
    "Settings",
    "SettlementFailedError",
    "StoreError",
    "StoreUnavailableError",
    "SweepReport",
    "SyncCreditService",
    "SyncReservation",
    "Transaction",
    "TransactionNotFoundError",
    "TransactionType",
    "UnpricedActionError",
    "VerifyProblem",
    "VerifyReport",
    "__version__",
    "add_hook",
    "bind",
    "configure",
    "consume_credits",
    "current_context",
    "default_service",
    "remove_hook",
    "require_context",
    "track_agent_usage",
    "use_context",
]

#: Where each public name lives.
_HOMES = {
    "settings": ("Settings",),
    "base_crew": ("BaseCrew",),
    "context": ("RequestContext", "bind", "current_context", "require_context", "use_context"),
    "decorators": ("consume_credits", "track_agent_usage"),
    "errors": (
        "AccountLockedError",
        "AccountNotFoundError",
        "AgentCreditsWarning",
        "ConfigurationError",
        "CreditLimitExceededError",
        "CreditsError",
        "DryRunNotSupportedError",
        "GrantNotFoundError",
        "IdempotencyMismatchError",
        "InsufficientCreditsError",
        "InvalidAmountError",
        "InvalidInputError",
        "MissingContextError",
        "OverageRejectedError",
        "RefundExceedsChargeError",
        "ReservationAlreadySettledError",
        "ReservationError",
        "ReservationExpiredError",
        "ReservationInUseError",
        "ReservationNotFoundError",
        "ReservationUnknownError",
        "SchemaError",
        "ServiceClosedError",
        "SettlementFailedError",
        "StoreError",
        "StoreUnavailableError",
        "TransactionNotFoundError",
        "UnpricedActionError",
    ),
    "hooks": ("CreditEvent", "add_hook", "remove_hook"),
    "model": (
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
        "SweepReport",
        "Transaction",
        "TransactionType",
        "VerifyProblem",
        "VerifyReport",
    ),
    "reservation": ("Reservation", "SyncReservation"),
    "service": ("CreditService", "SyncCreditService", "configure", "default_service"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    try:
        module = _HOME_OF[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
