"""Credits for CrewAI: what crews, flows and tools cost is reserved before, charged on success, given back on failure.

See the README beside this package for what is charged and what is not.
"""

try:
    import crewai as _crewai  # noqa: F401
    from crewai.hooks.dispatch import HookAborted as _HookAborted  # noqa: F401
except ImportError as error:
    raise ImportError(
        'agentcredits_crewai needs CrewAI 1.15.19 or newer: run  pip install "agentcredits[crewai]"'
    ) from error

from agentcredits import RunSummary, SummaryLine
from agentcredits_crewai.credited import CreditedCrew, credited
from agentcredits_crewai.errors import CrewCreditLimitExceeded, CrewInsufficientCredits, CrewMissingContext
from agentcredits_crewai.hooks import require_credits
from agentcredits_crewai.runs import Run
from agentcredits_crewai.tools import meter

__all__ = [
    "CreditedCrew",
    "CrewCreditLimitExceeded",
    "CrewInsufficientCredits",
    "CrewMissingContext",
    "Run",
    "RunSummary",
    "SummaryLine",
    "credited",
    "meter",
    "require_credits",
]
