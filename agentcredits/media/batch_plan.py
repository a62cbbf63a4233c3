"""What a batch would cost before it starts, and what became of it afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from agentcredits.amounts import from_micros
from agentcredits.model import Decision
from agentcredits.model.media_batches import JobState, MediaBatchRecord, MediaJobRecord, count_states


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """One priced line of a plan; ``fits``: made in this order, balance and budget would suffice up to here."""

    job: MediaJobRecord
    usd: Decimal | None
    fits: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain data; amounts in credits."""
        return {
            "number": self.job.number,
            "asset_id": self.job.asset_id,
            "name": self.job.name,
            "priority": self.job.priority,
            "model": self.job.model,
            "prompt": self.job.shown_prompt,
            "credits": self.job.estimate,
            "credits_micros": self.job.estimate_micros,
            "usd": self.usd,
            "fits": self.fits,
        }


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """A batch, priced before the start; nothing is held.

    Attributes:
        lines: In the order in which they would be made.
        decision: Whether balance and limits would allow the whole batch now.
        budget_micros: What the batch may cost; None: no budget of its own.
        over_threshold: Numbers of the jobs that cost more than the threshold for one call.
        batch_over_threshold: Whether the total is above the threshold for the batch.
    """

    organization_id: str
    name: str
    lines: tuple[PlannedJob, ...]
    decision: Decision
    budget_micros: int | None = None
    over_threshold: tuple[int, ...] = ()
    batch_over_threshold: bool = False

    @property
    def total_micros(self) -> int:
        """The whole batch, in micro-credits."""
        return sum(line.job.estimate_micros for line in self.lines)

    @property
    def total(self) -> Decimal:
        """The whole batch, in credits."""
        return from_micros(self.total_micros)

    @property
    def total_usd(self) -> Decimal | None:
        """The whole batch in US dollars; None where a price is not in dollars."""
        usd = [line.usd for line in self.lines]
        return sum((amount for amount in usd if amount is not None), Decimal(0)) if None not in usd else None

    @property
    def over_budget(self) -> bool:
        """Whether the whole batch costs more than its budget."""
        return self.budget_micros is not None and self.total_micros > self.budget_micros

    @property
    def fits(self) -> int:
        """How many jobs would be made now."""
        return sum(line.fits for line in self.lines)

    def as_dict(self) -> dict[str, Any]:
        """Plain data; amounts in credits (Decimal) beside their micros."""
        decision = self.decision
        return {
            "organization_id": self.organization_id,
            "name": self.name,
            "assets": len(self.lines),
            "total": self.total,
            "total_micros": self.total_micros,
            "total_usd": self.total_usd,
            "available": decision.available,
            "available_micros": decision.available_micros,
            "allowed": decision.allowed,
            "reason": decision.reason,
            "limit_source": decision.limit_source,
            "message": decision.message or None,
            "budget": None if self.budget_micros is None else from_micros(self.budget_micros),
            "over_budget": self.over_budget,
            "over_threshold": list(self.over_threshold),
            "batch_over_threshold": self.batch_over_threshold,
            "fits": self.fits,
            "lines": [line.as_dict() for line in self.lines],
        }


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """What became of a batch: the three parts of its report, and what nobody knows.

    Attributes:
        batch: The batch now; its ``id`` is "" after a dry run, which writes nothing.
        jobs: Every job, in the order of the manifest.
        results: What ``generate`` returned in this run, by job number.
    """

    batch: MediaBatchRecord
    jobs: tuple[MediaJobRecord, ...]
    results: Mapping[int, Any] = field(default_factory=dict)

    @property
    def successful(self) -> tuple[MediaJobRecord, ...]:
        """Made; the charge or the file of some may still be missing (state CALLED), which a resume completes."""
        return self._in(JobState.DONE, JobState.CALLED)

    @property
    def failed(self) -> tuple[MediaJobRecord, ...]:
        """Called without success; nothing was charged."""
        return self._in(JobState.FAILED)

    @property
    def dry_run(self) -> tuple[MediaJobRecord, ...]:
        """Not made: prompt and cost are shown; a resume makes them."""
        return self._in(JobState.DRY_RUN, JobState.SKIPPED, JobState.PLANNED)

    @property
    def unknown(self) -> tuple[MediaJobRecord, ...]:
        """Called, and nobody knows how it ended: the hold is kept, and it is not sent again."""
        return self._in(JobState.UNKNOWN, JobState.INTENT)

    @property
    def charged_micros(self) -> int:
        """Micro-credits charged for the whole batch, all runs together."""
        return sum(job.charged_micros or 0 for job in self.jobs)

    @property
    def charged(self) -> Decimal:
        """Credits charged for the whole batch, all runs together."""
        return from_micros(self.charged_micros)

    @property
    def left_micros(self) -> int:
        """What the jobs that were not made would cost."""
        return sum(job.estimate_micros for job in self.dry_run)

    @property
    def complete(self) -> bool:
        """Whether a resume would have nothing to do."""
        return not any(job.left for job in self.jobs)

    def _in(self, *states: JobState) -> tuple[MediaJobRecord, ...]:
        return tuple(job for job in self.jobs if job.state in states)

    def as_dict(self) -> dict[str, Any]:
        """The manifest as plain data; amounts in credits (Decimal) beside their micros."""
        head = self.batch.as_dict() | {"counts": count_states(self.jobs)}
        head |= {"charged": self.charged, "charged_micros": self.charged_micros, "complete": self.complete}
        for name, jobs in (
            ("successful", self.successful),
            ("failed", self.failed),
            ("dry_run", self.dry_run),
            ("unknown", self.unknown),
        ):
            head[name] = [job.number for job in jobs]
        return {**head, "jobs": [job.as_dict() for job in self.jobs]}


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """One job ended; ``counts`` by state over the whole batch, and what is charged so far."""

    job: MediaJobRecord
    result: Any
    total: int
    counts: Mapping[str, int]
    charged_micros: int

    @property
    def ended(self) -> int:
        """Jobs that are not waiting any more."""
        return self.total - self.counts.get(JobState.PLANNED.value, 0) - self.counts.get(JobState.INTENT.value, 0)


def manifest_json(data: Mapping[str, Any]) -> bytes:
    """A manifest as a JSON file; credits are numbers, exact beside them in ``*_micros``."""
    return (json.dumps(data, ensure_ascii=False, indent=2, default=_plain) + "\n").encode()


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return str(value)


def mark_what_fits(
    jobs: Iterable[tuple[MediaJobRecord, Decimal | None]], available_micros: int, budget_micros: int | None
) -> tuple[PlannedJob, ...]:
    """The jobs in the order in which they are made, and which of them balance and budget suffice for."""
    room = available_micros if budget_micros is None else min(available_micros, budget_micros)
    lines = []
    for job, usd in sorted(jobs, key=lambda pair: (pair[0].priority, pair[0].number)):
        fits = job.estimate_micros <= room
        room -= job.estimate_micros if fits else 0
        lines.append(PlannedJob(job, usd, fits))
    return tuple(lines)
