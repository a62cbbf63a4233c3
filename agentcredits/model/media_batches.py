"""What the manifest of a media batch holds: the batch, its jobs, and where they stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

from agentcredits.amounts import from_micros


class JobState(StrEnum):
    """PLANNED → INTENT (committed before the provider is called) → CALLED (it answered; the charge or the file may be
    missing) → DONE. FAILED: given back. DRY_RUN, SKIPPED: not called, priced. UNKNOWN: called, and nobody knows how
    that ended; its hold is kept.
    """

    PLANNED = "planned"
    INTENT = "intent"
    CALLED = "called"
    DONE = "done"
    FAILED = "failed"
    DRY_RUN = "dry_run"
    SKIPPED = "skipped"
    UNKNOWN = "unknown"


class BatchState(StrEnum):
    """PLANNED: there is something left to do; RUNNING: a process works on it; FINISHED: nothing is left."""

    PLANNED = "planned"
    RUNNING = "running"
    FINISHED = "finished"


#: Reasons of a failed job that the next run tries again.
RETRYABLE_REASONS: Final = ("rate_limited", "transient", "quota_window")

#: States whose credits count towards the budget of a batch: spent, or held.
SPENDING_STATES: Final = (JobState.INTENT, JobState.CALLED, JobState.DONE, JobState.UNKNOWN)


@dataclass(frozen=True, slots=True)
class MediaJobRecord:
    """One line of a manifest.

    Attributes:
        estimate_micros: What it costs by the price list, or what is held for it.
        charged_micros: What it was charged; None until it is.
        attempt: How often the provider was called, or was about to be.
        reason: Why it stands where it does: a fault's category, an error's code; None when it is done.
        message: For the operator: what the provider said (redacted), and what to do.
    """

    organization_id: str
    batch_id: str
    number: int
    asset_id: str
    name: str
    priority: int
    state: JobState
    agent_type: str
    action: str
    provider: str | None
    model: str | None
    prompt: str
    enhanced_prompt: str | None
    parameters: Mapping[str, Any]
    dimensions: Mapping[str, Any]
    estimate_micros: int
    updated_at: datetime | None = None
    charged_micros: int | None = None
    attempt: int = 0
    reservation_id: str | None = None
    provider_reference: str | None = None
    result: Any = None
    path: str | None = None
    reason: str | None = None
    message: str | None = None

    @property
    def estimate(self) -> Decimal:
        """Credits by the price list."""
        return from_micros(self.estimate_micros)

    @property
    def charged(self) -> Decimal | None:
        """Credits charged; None until it is."""
        return None if self.charged_micros is None else from_micros(self.charged_micros)

    @property
    def shown_prompt(self) -> str:
        """The enhanced prompt, else the one that was given."""
        return self.enhanced_prompt or self.prompt

    @property
    def left(self) -> bool:
        """Whether a resume has something to do here."""
        if self.state is JobState.FAILED:
            # one that the provider charges for all the same is not tried again unasked
            return self.reason in RETRYABLE_REASONS and self.charged_micros is None
        return self.state is not JobState.DONE

    def as_dict(self) -> dict[str, Any]:
        """Plain data; amounts in credits (Decimal) beside their micros."""
        return {
            "number": self.number,
            "asset_id": self.asset_id,
            "name": self.name,
            "priority": self.priority,
            "state": self.state.value,
            "agent_type": self.agent_type,
            "action": self.action,
            "provider": self.provider,
            "model": self.model,
            "prompt": self.prompt,
            "enhanced_prompt": self.enhanced_prompt,
            "parameters": dict(self.parameters),
            "dimensions": dict(self.dimensions),
            "estimate": self.estimate,
            "estimate_micros": self.estimate_micros,
            "charged": self.charged,
            "charged_micros": self.charged_micros,
            "attempt": self.attempt,
            "reservation_id": self.reservation_id,
            "provider_reference": self.provider_reference,
            "result": self.result,
            "path": self.path,
            "reason": self.reason,
            "message": self.message,
            "updated_at": None if self.updated_at is None else self.updated_at.isoformat(),
        }


@dataclass(frozen=True, slots=True)
class MediaBatchRecord:
    """A batch without its jobs; ``counts`` by state, sums in micro-credits over all jobs."""

    organization_id: str
    id: str
    name: str
    state: BatchState
    budget_micros: int | None
    project_id: str | None
    department_id: str | None
    user_id: str | None
    settings: Mapping[str, Any]
    created_at: datetime | None = None
    updated_at: datetime | None = None
    leased_by: str | None = None
    leased_until: datetime | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    estimate_micros: int = 0
    charged_micros: int = 0

    @property
    def budget(self) -> Decimal | None:
        """Credits that the batch may cost; None: no budget of its own."""
        return None if self.budget_micros is None else from_micros(self.budget_micros)

    @property
    def estimate(self) -> Decimal:
        """Credits of all jobs by the price list."""
        return from_micros(self.estimate_micros)

    @property
    def charged(self) -> Decimal:
        """Credits charged so far."""
        return from_micros(self.charged_micros)

    def as_dict(self) -> dict[str, Any]:
        """Plain data; amounts in credits (Decimal) beside their micros."""
        return {
            "organization_id": self.organization_id,
            "batch_id": self.id,
            "name": self.name,
            "state": self.state.value,
            "budget": self.budget,
            "budget_micros": self.budget_micros,
            "project_id": self.project_id,
            "department_id": self.department_id,
            "user_id": self.user_id,
            "counts": dict(self.counts),
            "estimate": self.estimate,
            "estimate_micros": self.estimate_micros,
            "charged": self.charged,
            "charged_micros": self.charged_micros,
            "created_at": None if self.created_at is None else self.created_at.isoformat(),
            "updated_at": None if self.updated_at is None else self.updated_at.isoformat(),
            "leased_by": self.leased_by,
            "leased_until": None if self.leased_until is None else self.leased_until.isoformat(),
        }


def count_states(jobs: Iterable[MediaJobRecord]) -> dict[str, int]:
    """How many jobs are in each state; states without any are left out."""
    found: dict[str, int] = {}
    for job in jobs:
        found[job.state.value] = found.get(job.state.value, 0) + 1
    return found
