"""Media batches: many assets with one budget, in the order of their priority, from a manifest that survives anything.

The manifest is in the database, and as JSON beside the files. Kill the process at any moment: :meth:`MediaBatch.resume`
does the rest, and nothing is paid twice (see ``batch_run``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from agentcredits.amounts import Amount
from agentcredits.context import RequestContext, bind, current_context, use_context
from agentcredits.errors import InvalidInputError
from agentcredits.ids import check_text, new_id
from agentcredits.media.batch_plan import (
    BatchPlan,
    BatchProgress,
    BatchSummary,
    manifest_json,
    mark_what_fits,
)
from agentcredits.media.batch_prices import BatchPrices, CostQuestion, optional_micros
from agentcredits.media.batch_run import Done, JobRunner, public_job
from agentcredits.media.batch_start import Finding, new_records, owner_of, whole_number
from agentcredits.media.breaker import breakers_of
from agentcredits.media.files import Save, save_result, sweep_drafts, write_atomically
from agentcredits.media.jobs import MediaJob
from agentcredits.media.manifest import LEASE, Manifest
from agentcredits.media.rules import default_rules
from agentcredits.model import PlannedAction
from agentcredits.model.media_batches import (
    BatchState,
    JobState,
    MediaBatchRecord,
    MediaJobRecord,
    count_states,
)
from agentcredits.runner.pool import run_bounded
from agentcredits.service import CreditService, SyncCreditService, core_of

if TYPE_CHECKING:
    from agentcredits.service.core import ServiceCore

MAX_CONCURRENCY: Final = 64

#: What the manifest remembers of how a batch was started, for a resume.
_SETTINGS: Final = (
    *("output_dir", "concurrency", "account"),
    *("threshold", "threshold_usd", "batch_threshold", "credits_per_usd"),
)

#: How often the manifest's JSON file is written while a batch runs.
_JSON_EVERY_SECONDS: Final = 1.0


class MediaBatch:
    """A batch of media assets.

    Args:
        service: Who keeps the credits; None: the default service.
        jobs: What is to be made.
        generate: Calls the provider for one job and returns its answer; a function or a coroutine function. What it
            raises is judged by the rules of provider faults.
        organization_id: Who pays; None: the active RequestContext. Its scopes are stored with the batch.
        name: For people.
        output_dir: Where files go; None: no files.
        budget: Credits that the batch may cost at most, all its runs together; None: no budget of its own.
        concurrency: Calls at once, at most.
        save: Writes the file of one answer beside the path that it is given; None: bytes as they are, the file behind
            the first address in the answer, else the answer as JSON.
        threshold: Credits for one call; a job above it is skipped, or ``confirm`` is asked.
        threshold_usd: The same in US dollars.
        batch_threshold: Credits for the whole batch; above it nothing is made, or ``confirm`` is asked.
        credits_per_usd: What a dollar is worth, for ``threshold_usd`` where a price is not in dollars.
        confirm: Is asked (in the caller's thread) whether something may cost more than its threshold.
        enhance: Makes a better prompt of a job; shown, stored, and what ``generate`` gets.
        on_progress: Hears of every job that ended, in the caller's thread.
        account: Your label of your account at the provider, when there are several.
        dry_run: Price and show everything; call and write nothing.
        settings: More to remember in the manifest (JSON).

    Raises:
        InvalidInputError: an argument cannot be used, or two jobs have the same id.
        MissingContextError: nobody says who pays.
    """

    def __init__(
        self,
        service: SyncCreditService | CreditService | None,
        jobs: Iterable[MediaJob],
        generate: Callable[[MediaJob], Any] | None,
        *,
        organization_id: object = None,
        name: str = "batch",
        output_dir: str | Path | None = None,
        budget: Amount | None = None,
        concurrency: int = 4,
        save: Save | None = None,
        threshold: Amount | None = None,
        threshold_usd: Amount | None = None,
        batch_threshold: Amount | None = None,
        credits_per_usd: Amount | None = None,
        confirm: Callable[[CostQuestion], bool] | None = None,
        enhance: Callable[[MediaJob], str] | None = None,
        on_progress: Callable[[BatchProgress], None] | None = None,
        account: str = "",
        dry_run: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._core: ServiceCore = core_of(service)
        self._generate = generate
        context = current_context()
        owner = owner_of(organization_id, context)
        same = context is not None and context.organization_id == owner
        self._concurrency = whole_number(concurrency, name="concurrency", most=MAX_CONCURRENCY)
        self._folder = None if output_dir is None else Path(output_dir).absolute()
        if save is not None and self._folder is None:
            raise InvalidInputError("save needs output_dir: where shall the files go?", context={"parameter": "save"})
        self._save = save or (save_result if self._folder is not None else None)
        self._prices = BatchPrices(
            self._core,
            threshold=threshold,
            threshold_usd=threshold_usd,
            batch_threshold=batch_threshold,
            credits_per_usd=credits_per_usd,
            confirm=confirm,
        )
        self._enhance = enhance
        self._on_progress = on_progress
        self._account = account and check_text(account, name="account")
        self.dry_run = dry_run or (same and context is not None and context.dry_run)
        self._again = False
        remembered = {
            "output_dir": None if self._folder is None else str(self._folder),
            "concurrency": self._concurrency,
            "account": self._account,
            "threshold": None if threshold is None else str(threshold),
            "threshold_usd": None if threshold_usd is None else str(threshold_usd),
            "batch_threshold": None if batch_threshold is None else str(batch_threshold),
            "credits_per_usd": None if credits_per_usd is None else str(credits_per_usd),
            **(settings or {}),
        }
        self._batch = MediaBatchRecord(
            organization_id=owner,
            id="",
            name=check_text(name, name="name"),
            state=BatchState.PLANNED,
            budget_micros=optional_micros(budget, name="budget"),
            project_id=context.project_id if same and context is not None else None,
            department_id=context.department_id if same and context is not None else None,
            user_id=context.user_id if same and context is not None else None,
            settings=remembered,
        )
        self._jobs = new_records(owner, jobs)

    # -- before ----------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The batch's id; "" until it is run."""
        return self._batch.id

    @property
    def generate_name(self) -> str | None:
        """``module:function`` of what makes it, where the batch was started with one."""
        name = self._batch.settings.get("generate")
        return name if isinstance(name, str) else None

    def plan(self) -> BatchPlan:
        """Price the whole batch and compare it with balance, limits and budget; nothing is held or written.

        Raises:
            UnpricedActionError: a job has no price (unknown model, a dimension missing or not in the table); the
                message names it.
            ConfigurationError: ``threshold_usd`` needs ``credits_per_usd``.
        """
        with self._paying():
            priced = [self._prices.priced(job) for job in self._jobs]
            open_jobs = [pair for pair in priced if pair[0].left]
            quote = self._core.run(
                self._core.quote(
                    self._batch.organization_id,
                    [
                        PlannedAction(job.agent_type, job.action, dimensions=public_job(job).priced_by)
                        for job, _ in open_jobs
                    ],
                )
            )
        spent = sum(job.charged_micros or 0 for job, _ in priced)
        budget = None if self._batch.budget_micros is None else max(0, self._batch.budget_micros - spent)
        lines = mark_what_fits(open_jobs, quote.decision.available_micros, budget)
        total = sum(line.job.estimate_micros for line in lines)
        return BatchPlan(
            organization_id=self._batch.organization_id,
            name=self._batch.name,
            lines=lines,
            decision=quote.decision,
            budget_micros=budget,
            over_threshold=tuple(line.job.number for line in lines if self._prices.above(line.job, line.usd)),
            batch_over_threshold=self._prices.batch_above(total) is not None,
        )

    # -- running ---------------------------------------------------------------------------------------------

    def run(self) -> BatchSummary:
        """Make what can be made, and give the summary of all jobs.

        A batch is written to the manifest before its first call. What credits, limits, budget, threshold or the
        provider's own balance do not allow is not an error: it comes back priced, and :meth:`resume` makes it later.
        Interrupted (KeyboardInterrupt), nothing new begins and calls that are under way are waited for.

        Raises:
            UnpricedActionError: a job has no price; nothing was called.
            MediaBatchInUseError: another process works on this batch.
            StoreUnavailableError: the database stayed away; the manifest says what to resume.
        """
        if not self._jobs:
            raise InvalidInputError("a batch needs at least one job.", context={"parameter": "jobs"})
        plan = self.plan()
        if self.dry_run:
            return self._dry_run(plan)
        if self._generate is None:
            raise InvalidInputError("generate is missing: it calls the provider.", context={"parameter": "generate"})
        if not self._batch.id:
            self._batch = replace(self._batch, id=new_id())
            by_number = {line.job.number: line.job for line in plan.lines}
            self._jobs = tuple(by_number.get(job.number, job) for job in self._jobs)
            self._manifest().create(self._batch, self._jobs)
        return self._go(look=None, retry_unknown=False)

    @classmethod
    def resume(
        cls,
        service: SyncCreditService | CreditService | None,
        batch_id: str,
        generate: Callable[[MediaJob], Any] | None,
        *,
        organization_id: object = None,
        retry_unknown: bool = False,
        look: Callable[[MediaJobRecord], Finding] | None = None,
        **options: Any,
    ) -> BatchSummary:
        """Do what is left of a batch: what was interrupted is completed, what was not made is made.

        Args:
            service: As for the constructor.
            batch_id: Which.
            generate: As for the constructor.
            organization_id: Whose; None: the active RequestContext.
            retry_unknown: Send jobs again of which nobody knows whether the provider has made them. It may bill twice.
            look: Is asked about each UNKNOWN job first; see :meth:`reconcile`.
            **options: As for the constructor; what is left out is as the batch was started.

        Raises:
            MediaBatchNotFoundError: there is no such batch.
            MediaBatchInUseError: another process works on it; the message says which, and until when.
        """
        batch = cls.load(service, batch_id, generate, organization_id=organization_id, **options)
        return batch.run_again(look=look, retry_unknown=retry_unknown)

    @classmethod
    def load(
        cls,
        service: SyncCreditService | CreditService | None,
        batch_id: str,
        generate: Callable[[MediaJob], Any] | None = None,
        *,
        organization_id: object = None,
        **options: Any,
    ) -> Self:
        """The batch of a manifest, with the options that it was started with under those given here.

        Raises:
            MediaBatchNotFoundError: there is no such batch.
        """
        owner = owner_of(organization_id, current_context())
        manifest = Manifest(core_of(service), owner, check_text(batch_id, name="batch_id"))
        record = manifest.batch()
        known = {name: record.settings.get(name) for name in _SETTINGS}
        made = cls(
            service,
            (),
            generate,
            organization_id=owner,
            **{**{name: value for name, value in known.items() if value is not None}, "name": record.name, **options},
        )
        made._batch, made._jobs, made._again = record, manifest.jobs(), True
        return made

    def run_again(
        self, *, look: Callable[[MediaJobRecord], Finding] | None = None, retry_unknown: bool = False
    ) -> BatchSummary:
        """:meth:`resume` of a batch that was loaded."""
        if self.dry_run:
            return self._dry_run(self.plan())
        if self._generate is None:
            raise InvalidInputError("generate is missing: it calls the provider.", context={"parameter": "generate"})
        return self._go(look=look, retry_unknown=retry_unknown)

    def reconcile(self, look: Callable[[MediaJobRecord], Finding]) -> BatchSummary:
        """Find out about UNKNOWN jobs, without calling the provider for anything else.

        Args:
            look: Is asked about each; ``provider_reference`` is the provider's id of the request, where it was noted.
                Anything but a :class:`Finding` leaves the job as it is.

        Raises:
            MediaBatchInUseError: another process works on the batch.
        """
        manifest = self._manifest()
        runner = self._runner(manifest)
        with self._paying(), manifest.leased():
            for job in manifest.jobs(JobState.INTENT):
                runner.give_up(job)
            self._look(manifest, runner, look)
            for job in manifest.jobs(JobState.CALLED):
                runner.complete(job, None, job.result)
        return self._ended(manifest, {})

    def status(self) -> BatchSummary:
        """The manifest now."""
        if not self._batch.id:
            return BatchSummary(self._batch, self._jobs)
        manifest = self._manifest()
        return BatchSummary(manifest.batch(), manifest.jobs())

    # -- inside ----------------------------------------------------------------------------------------------

    def _go(self, *, look: Callable[[MediaJobRecord], Finding] | None, retry_unknown: bool) -> BatchSummary:
        manifest = self._manifest()
        runner = self._runner(manifest)
        results: dict[int, Any] = {}
        with self._paying(), manifest.leased():
            if self._folder is not None:
                sweep_drafts(self._folder, self._batch.id)
            self._take_up(manifest, runner, look, retry_unknown=retry_unknown)
            jobs = {job.number: job for job in manifest.jobs()}
            self._write_json(manifest)
            written_at = time.monotonic()
            for done in self._made(manifest, runner, list(jobs.values())):
                jobs[done.job.number] = done.job
                if done.job.state in (JobState.DONE, JobState.CALLED):
                    results[done.job.number] = done.result
                self._tell(done, jobs)
                if time.monotonic() - written_at >= _JSON_EVERY_SECONDS:
                    self._write_json(manifest)
                    written_at = time.monotonic()
        return self._ended(manifest, results)

    def _ended(self, manifest: Manifest, results: Mapping[int, Any]) -> BatchSummary:
        self._write_json(manifest)
        return BatchSummary(manifest.batch(), manifest.jobs(), results)

    def _take_up(
        self,
        manifest: Manifest,
        runner: JobRunner,
        look: Callable[[MediaJobRecord], Finding] | None,
        *,
        retry_unknown: bool,
    ) -> None:
        """What an earlier process left: notes without an answer, answers without a charge, plans to be made."""
        for job in manifest.jobs(JobState.INTENT):
            runner.give_up(job)
        for job in manifest.jobs(JobState.UNKNOWN):
            runner.keep_hold(job, str(job.reservation_id))
        if look is not None:
            self._look(manifest, runner, look)
        if retry_unknown:
            for job in manifest.jobs(JobState.UNKNOWN):
                runner.settle_unknown(job, "never_sent", None, "sent again on request")
        for job in manifest.jobs(JobState.CALLED):
            runner.complete(job, None, job.result)
        for job in manifest.jobs(JobState.FAILED, JobState.DRY_RUN):
            runner.let_go(job)
        manifest.plan_again()

    @staticmethod
    def _look(manifest: Manifest, runner: JobRunner, look: Callable[[MediaJobRecord], Finding]) -> None:
        for job in manifest.jobs(JobState.UNKNOWN):
            found: object = look(job)
            if isinstance(found, Finding) and found.kind != "open":
                runner.settle_unknown(job, found.kind, found.result, "the provider did not do it")

    def _made(self, manifest: Manifest, runner: JobRunner, jobs: list[MediaJobRecord]) -> Iterator[Done]:
        waiting = _by_urgency(job for job in jobs if job.state is JobState.PLANNED)
        refused = self._prices.refused_batch(waiting)
        every = LEASE.total_seconds() / 3
        if self._enhance is not None:
            better = run_bounded(
                waiting,
                bind(runner.enhance),
                workers=self._concurrency,
                beat=manifest.renew,
                every_seconds=every,
            )
            waiting = _by_urgency(better)
        call = bind(runner)

        def made(jobs: Iterable[MediaJobRecord], *, workers: int, probe: bool = False) -> Iterator[Done]:
            tasks = (runner.prepare(job, refused or self._prices.refused(job), probe=probe) for job in jobs)
            return run_bounded(tasks, call, workers=workers, beat=manifest.renew, every_seconds=every)

        # A resume says that the account is served again: one job finds out before the others follow.
        probes = self._probes(waiting) if self._again else []
        yield from made(probes, workers=1, probe=True)
        probed = {job.number for job in probes}
        yield from made([job for job in waiting if job.number not in probed], workers=self._concurrency)

    def _probes(self, waiting: list[MediaJobRecord]) -> list[MediaJobRecord]:
        """The first job of each provider whose breaker is open."""
        rules = default_rules()
        broken = {
            entry.provider for entry in self._core.run(breakers_of(self._core).list()) if entry.account == self._account
        }
        found: dict[str, MediaJobRecord] = {}
        for job in waiting:
            provider = job.provider and (rules.provider_name(job.provider) or job.provider)
            if provider in broken:
                found.setdefault(str(provider), job)
        return list(found.values())

    def _tell(self, done: Done, jobs: Mapping[int, MediaJobRecord]) -> None:
        if self._on_progress is not None:
            charged = sum(job.charged_micros or 0 for job in jobs.values())
            self._on_progress(BatchProgress(done.job, done.result, len(jobs), count_states(jobs.values()), charged))

    def _dry_run(self, plan: BatchPlan) -> BatchSummary:
        runner = self._runner(self._manifest())
        jobs = {job.number: job for job in self._jobs}
        for line in plan.lines:
            made = replace(runner.enhanced(line.job), state=JobState.DRY_RUN, reason="dry_run")
            jobs[made.number] = made
            self._tell(Done(made), jobs)
        return BatchSummary(self._batch, tuple(jobs.values()))

    # -- parts -----------------------------------------------------------------------------------------------

    def _manifest(self) -> Manifest:
        return Manifest(self._core, self._batch.organization_id, self._batch.id)

    def _runner(self, manifest: Manifest) -> JobRunner:
        return JobRunner(
            manifest,
            self._generate or _nobody_generates,
            save=self._save,
            folder=self._folder,
            enhance=self._enhance,
            breakers=breakers_of(self._core),
            account=self._account,
        )

    def _paying(self) -> use_context:
        """Who pays: the active context when it is the batch's organization's, else what the batch was started with."""
        context = current_context()
        if context is not None and context.organization_id == self._batch.organization_id:
            return use_context(context)
        return use_context(
            RequestContext(
                self._batch.organization_id,
                project_id=self._batch.project_id,
                department_id=self._batch.department_id,
                user_id=self._batch.user_id,
            )
        )

    def _write_json(self, manifest: Manifest) -> None:
        if self._folder is not None:
            summary = BatchSummary(manifest.batch(), manifest.jobs())
            write_atomically(self._folder / f"{self._batch.id}.json", manifest_json(summary.as_dict()))


def _nobody_generates(job: MediaJob) -> Any:
    raise InvalidInputError(f"asset {job.asset_id} cannot be made: this batch has no generate function.")


def _by_urgency(jobs: Iterable[MediaJobRecord]) -> list[MediaJobRecord]:
    return sorted(jobs, key=lambda job: (job.priority, job.number))
