"""Plans: what a media tool hands back when nothing was generated. For customers and LLMs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final

from agentcredits.media.redaction import MASK, redact
from agentcredits.media.rules import FaultCategory
from agentcredits.model import DryRunResult

#: How deep and how wide the arguments of a call are copied into its plan.
_DEEPEST: Final = 4
_MOST_ITEMS: Final = 100

#: Reasons of plans that are no matter of the customer's credits.
DRY_RUN: Final = "dry_run"
OVER_THRESHOLD: Final = "over_threshold"
PROVIDER_REASONS: Final[Mapping[str, str]] = {
    FaultCategory.CREDITS_EXHAUSTED.value: "provider_exhausted",
    FaultCategory.ACCOUNT_LOCKED.value: "provider_locked",
    FaultCategory.QUOTA_WINDOW.value: "provider_quota",
}

_UNAVAILABLE: Final = "The provider's account cannot be used at the moment; nothing was charged. Try again {when}."
_QUOTA: Final = "The provider takes no more for now; nothing was charged. Try again {when}."


@dataclass(frozen=True, slots=True)
class MediaPlan(DryRunResult):
    """What would have been generated and what it would have cost. Falsy; ``str()`` is fit to be read by an LLM.

    Nothing in it is about the operator's account at the provider: no link, no key, none of the provider's words.

    Attributes:
        enhanced_prompt: What the enhancer made of the prompt; None without one, or when it failed.
        model: The model that would have been used.
        what_to_do: What the reader can do about it, in a sentence or two.
        retry_at: When the provider may serve again (UTC); None when nobody knows.
    """

    enhanced_prompt: str | None = None
    model: str | None = None
    what_to_do: str = ""
    retry_at: datetime | None = None

    def __str__(self) -> str:
        why = "This was a dry run: " if self.reason == DRY_RUN else ""
        cost = f" It would cost {self.amount:f} credits."
        return f"{why}{self.action} was not performed, nothing was generated.{cost} {self.what_to_do}".strip()


def advice(reason: str, *, retry_at: datetime | None = None) -> str:
    """What the reader of a plan can do: about the customer's own credits, or none about the operator's account."""
    if reason == DRY_RUN:
        return "Call it without dry_run to perform it."
    if reason == OVER_THRESHOLD:
        return "It costs more than may be spent without asking: somebody has to confirm it first."
    if reason in PROVIDER_REASONS.values():
        when = "later" if retry_at is None else f"after {retry_at:%Y-%m-%d %H:%M} UTC"
        return (_QUOTA if reason == "provider_quota" else _UNAVAILABLE).format(when=when)
    if reason.startswith(("limit", "credit_limit", "run")):
        return "A credit limit is reached: raise it, or wait until its period ends."
    return "There are not enough credits: add credits, then call it again."


def plain(value: object, *, depth: int = 0) -> Any:
    """A copy fit to be shown and stored: plain data, secrets masked; of anything else only the type's name."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        return redact(value)
    if value is None or isinstance(value, bool | int | float | Decimal | date | timedelta):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if depth < _DEEPEST and isinstance(value, Mapping):
        return {str(name): _named(str(name), item, depth) for name, item in list(value.items())[:_MOST_ITEMS]}
    if depth < _DEEPEST and isinstance(value, list | tuple | set | frozenset):
        return [plain(item, depth=depth + 1) for item in list(value)[:_MOST_ITEMS]]
    return f"<{type(value).__name__}>"


def _named(name: str, value: object, depth: int) -> Any:
    """What stands under a name that says "secret" is one, whatever it looks like."""
    if isinstance(value, str) and value and redact(f"{name}=abcd1234") != f"{name}=abcd1234":
        return MASK
    return plain(value, depth=depth + 1)
