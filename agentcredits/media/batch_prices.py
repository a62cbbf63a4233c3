"""What the jobs of a batch cost, and which of them cost more than somebody wants to pay without being asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING

from agentcredits.amounts import Amount, from_micros, parse_decimal, to_micros
from agentcredits.errors import ConfigurationError, CreditsError, InvalidInputError
from agentcredits.media.batch_run import public_job
from agentcredits.media.jobs import MediaJob
from agentcredits.model.media_batches import JobState, MediaJobRecord

if TYPE_CHECKING:
    from agentcredits.rules.pricing import Price
    from agentcredits.service.core import ServiceCore

#: What these cost is settled, or held.
_SETTLED = (JobState.INTENT, JobState.CALLED, JobState.DONE, JobState.UNKNOWN)


@dataclass(frozen=True, slots=True)
class CostQuestion:
    """What ``confirm`` is asked: may this cost so much? ``job`` is None for the batch as a whole."""

    amount_micros: int
    usd: Decimal | None
    job: MediaJob | None
    threshold: str

    @property
    def amount(self) -> Decimal:
        """Credits."""
        return from_micros(self.amount_micros)


class BatchPrices:
    """Prices and thresholds of one batch; the arguments are those of ``MediaBatch``."""

    def __init__(
        self,
        core: ServiceCore,
        *,
        threshold: Amount | None,
        threshold_usd: Amount | None,
        batch_threshold: Amount | None,
        credits_per_usd: Amount | None,
        confirm: Callable[[CostQuestion], bool] | None,
    ) -> None:
        self._core = core
        self._threshold_micros = optional_micros(threshold, name="threshold")
        self._batch_threshold_micros = optional_micros(batch_threshold, name="batch_threshold")
        self._threshold_usd = _optional_number(threshold_usd, name="threshold_usd", zero=True)
        self._credits_per_usd = _optional_number(credits_per_usd, name="credits_per_usd", zero=False)
        self._confirm = confirm

    def priced(self, job: MediaJobRecord) -> tuple[MediaJobRecord, Decimal | None]:
        """The job with what it costs now (one that is made or held keeps its amount), and the same in US dollars.

        Dollars are known where the price list is in dollars, or ``credits_per_usd`` says what one is worth.

        Raises:
            CreditsError: as the price rules raise it; the message names the job.
        """
        if job.state in _SETTLED:
            return job, None
        try:
            price = self._price(job)
        except CreditsError as error:
            raise type(error)(
                f"asset {job.number} ({job.name}): {error.message}",
                reason=error.reason,
                limit_source=error.limit_source,
                context={**error.context, "asset": job.number, "asset_id": job.asset_id},
                suggestions=error.suggestions,
                fixes=error.fixes,
            ) from error
        usd = price.usd
        if usd is None and self._credits_per_usd is not None:
            usd = price.amount / self._credits_per_usd
        return replace(job, estimate_micros=price.amount_micros), usd

    def _price(self, job: MediaJobRecord) -> Price:
        return self._core.run(
            self._core.price(
                organization_id=job.organization_id,
                agent_type=job.agent_type,
                action=job.action,
                dimensions=public_job(job).priced_by,
            )
        )

    def above(self, job: MediaJobRecord, usd: Decimal | None) -> str | None:
        """The threshold for one call that a priced job is above, in words; None: it is not.

        Raises:
            ConfigurationError: the threshold is in dollars, and nobody says what a dollar is worth.
        """
        if self._threshold_micros is not None and job.estimate_micros > self._threshold_micros:
            return f"{from_micros(self._threshold_micros):f} credits"
        if self._threshold_usd is None:
            return None
        if usd is None:
            raise ConfigurationError(
                f"{job.agent_type}.{job.action} has no price in US dollars: threshold_usd needs credits_per_usd.",
                context={"parameter": "credits_per_usd"},
            )
        return f"{self._threshold_usd:f} USD" if usd > self._threshold_usd else None

    def batch_above(self, total_micros: int) -> str | None:
        """The threshold for the whole batch that a total is above, in words; None: it is not."""
        limit = self._batch_threshold_micros
        return None if limit is None or total_micros <= limit else f"{from_micros(limit):f} credits"

    def refused(self, job: MediaJobRecord) -> tuple[str, str] | None:
        """Why a job is not made for its cost (reason, message); asks, where somebody can be asked."""
        if self._threshold_micros is None and self._threshold_usd is None:
            return None
        job, usd = self.priced(job)
        threshold = self.above(job, usd)
        if threshold is None or self._agreed(CostQuestion(job.estimate_micros, usd, public_job(job), threshold)):
            return None
        return "cost_threshold", f"It costs more than {threshold}."

    def refused_batch(self, jobs: Iterable[MediaJobRecord]) -> tuple[str, str] | None:
        """Why nothing is made for its cost altogether (reason, message); asks, where somebody can be asked."""
        total = sum(job.estimate_micros for job in jobs)
        threshold = self.batch_above(total)
        if threshold is None or self._agreed(CostQuestion(total, None, None, threshold)):
            return None
        return "batch_threshold", f"The batch costs more than {threshold}."

    def _agreed(self, question: CostQuestion) -> bool:
        return self._confirm is not None and bool(self._confirm(question))


def optional_micros(value: Amount | None, *, name: str) -> int | None:
    """An amount of credits in micros; None stays None."""
    return None if value is None else to_micros(value, name=name, allow_zero=True)


def _optional_number(value: Amount | None, *, name: str, zero: bool) -> Decimal | None:
    if value is None:
        return None
    number = parse_decimal(value, name=name)
    if number < 0 or (not zero and not number):
        raise InvalidInputError(f"{name} must be above zero.", context={"parameter": name})
    return number
