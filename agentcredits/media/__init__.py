"""Media tools: what a provider's failure means, for the operator and for the customer.

Each public name is imported from its module when it is first used, as in ``agentcredits`` itself.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentcredits.media.assets import AssetGenerator
    from agentcredits.media.batch import MediaBatch
    from agentcredits.media.batch_files import BatchFile, read_batch_file
    from agentcredits.media.batch_plan import BatchPlan, BatchProgress, BatchSummary
    from agentcredits.media.batch_prices import CostQuestion
    from agentcredits.media.batch_run import note_provider_reference
    from agentcredits.media.batch_start import Finding
    from agentcredits.media.breaker import Breakers, breakers_of
    from agentcredits.media.faults import ProviderFault, classify_provider_error, find_provider_fault
    from agentcredits.media.jobs import MediaJob
    from agentcredits.media.manifest import MediaBatchInUseError, MediaBatchNotFoundError
    from agentcredits.media.operators import close_breaker, open_breakers
    from agentcredits.media.plans import MediaPlan
    from agentcredits.media.redaction import redact
    from agentcredits.media.rules import FaultCategory, FaultRules, load_fault_rules
    from agentcredits.media.tool import media_tool, wrap
    from agentcredits.media.unknown import Reconciled, reconcile, resolve_unknown
    from agentcredits.media.verdicts import ChargePolicy, Verdict, judge, load_charge_policy
    from agentcredits.model import OpenBreaker

__all__ = [
    "AssetGenerator",
    "BatchFile",
    "BatchPlan",
    "BatchProgress",
    "BatchSummary",
    "Breakers",
    "ChargePolicy",
    "CostQuestion",
    "FaultCategory",
    "FaultRules",
    "Finding",
    "MediaBatch",
    "MediaBatchInUseError",
    "MediaBatchNotFoundError",
    "MediaJob",
    "MediaPlan",
    "OpenBreaker",
    "ProviderFault",
    "Reconciled",
    "Verdict",
    "breakers_of",
    "classify_provider_error",
    "close_breaker",
    "find_provider_fault",
    "judge",
    "load_charge_policy",
    "load_fault_rules",
    "media_tool",
    "note_provider_reference",
    "open_breakers",
    "read_batch_file",
    "reconcile",
    "redact",
    "resolve_unknown",
    "wrap",
]

#: Where each public name lives.
_HOMES = {
    "assets": ("AssetGenerator",),
    "batch": ("MediaBatch",),
    "batch_files": ("BatchFile", "read_batch_file"),
    "batch_plan": ("BatchPlan", "BatchProgress", "BatchSummary"),
    "batch_prices": ("CostQuestion",),
    "batch_run": ("note_provider_reference",),
    "batch_start": ("Finding",),
    "jobs": ("MediaJob",),
    "manifest": ("MediaBatchInUseError", "MediaBatchNotFoundError"),
    "faults": ("ProviderFault", "classify_provider_error", "find_provider_fault"),
    "redaction": ("redact",),
    "rules": ("FaultCategory", "FaultRules", "load_fault_rules"),
    "breaker": ("Breakers", "OpenBreaker", "breakers_of"),
    "operators": ("close_breaker", "open_breakers"),
    "plans": ("MediaPlan",),
    "tool": ("media_tool", "wrap"),
    "unknown": ("Reconciled", "reconcile", "resolve_unknown"),
    "verdicts": ("ChargePolicy", "Verdict", "judge", "load_charge_policy"),
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
