"""AssetGenerator: a queue of assets with prompts and costs on show, which turns into a dry run when credits run out.

Subclass it, say what is to be made and how the provider is called::

    class Pictures(AssetGenerator):
        def get_generation_queue(self):
            return [{"id": 1.0, "name": "city", "prompt": "A city", "model": "fal-ai/flux/dev", "priority": "HIGH"}]

        def call(self, model, arguments):
            return fal_client.subscribe(model, arguments)

    Pictures(output_dir, asset_type="image", organization_id="acme").process_queue()
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TextIO

from agentcredits.amounts import Amount, from_micros
from agentcredits.errors import InvalidInputError
from agentcredits.media.batch import MediaBatch
from agentcredits.media.batch_plan import BatchProgress, BatchSummary
from agentcredits.media.batch_prices import CostQuestion
from agentcredits.media.faults import classify_provider_error
from agentcredits.media.files import find_url
from agentcredits.media.jobs import MediaJob, priority_text
from agentcredits.media.report import Style, asset_head, cost_text, summary_text
from agentcredits.media.rules import FaultCategory, default_rules
from agentcredits.model.media_batches import JobState, MediaJobRecord
from agentcredits.service import CreditService, SyncCreditService

#: Dollars of one asset above which it is skipped, or ``confirm`` is asked.
COST_THRESHOLD_USD: Final = Decimal("0.20")

#: Reasons for which the rest of a queue is only shown: the provider's account, or the customer's own credits.
_EXHAUSTED: Final = ("credits_exhausted", "account_locked", "insufficient_credits")


class AssetGenerator:
    """Makes a queue of assets, each priced, held, charged and shown; a :class:`MediaBatch` underneath.

    Args:
        output_dir: Where files and manifests go.
        seeds: Named seeds; an asset's ``seed_key`` picks its own.
        brand_colors: For the subclass's prompts.
        asset_type: What is made ("image", "video" …); the action is ``generate_<asset_type>``.
        dry_run: Show prompts and costs; call and write nothing.
        service: Who keeps the credits; None: the default service.
        organization_id: Who pays; None: the active RequestContext.
        agent_type: Under which prices are looked up; None: the class's name.
        provider: Who makes the assets.
        threshold_usd: Dollars of one asset above which it is skipped, or ``confirm`` is asked; None: no threshold.
        credits_per_usd: What a dollar is worth; needed by the threshold where prices are not in dollars.
        confirm: Is asked whether an asset may cost more than the threshold.
        budget: Credits that one queue may cost; None: no budget.
        concurrency: Calls at once.
        enhance: Makes a better prompt.
        account: Your label of your account at the provider, when there are several.
        stream: Where the report goes; None: standard output.

    Attributes:
        credits_exhausted: Whether credits ran out: from then on queues are only shown. Set it back after a top-up, or
            use :meth:`resume`.
        summary: Of the last queue.
    """

    def __init__(
        self,
        output_dir: str | Path,
        seeds: Mapping[str, Any] | None = None,
        brand_colors: Mapping[str, Any] | None = None,
        asset_type: str = "image",
        dry_run: bool = False,
        *,
        service: SyncCreditService | CreditService | None = None,
        organization_id: object = None,
        agent_type: str | None = None,
        provider: str = "fal",
        threshold_usd: Amount | None = COST_THRESHOLD_USD,
        credits_per_usd: Amount | None = None,
        confirm: Callable[[CostQuestion], bool] | None = None,
        budget: Amount | None = None,
        concurrency: int = 1,
        enhance: Callable[[MediaJob], str] | None = None,
        account: str = "",
        stream: TextIO | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.seeds = dict(seeds or {})
        self.brand_colors = dict(brand_colors or {})
        self.asset_type = asset_type
        self.dry_run = dry_run
        self.credits_exhausted = False
        self.summary: BatchSummary | None = None
        self._service = service
        self._organization_id = organization_id
        self._agent_type = agent_type or type(self).__name__
        self._provider = provider
        self._concurrency = concurrency
        self._stream = stream
        self._options: dict[str, Any] = {
            "threshold_usd": threshold_usd,
            "credits_per_usd": credits_per_usd,
            "confirm": confirm,
            "enhance": enhance,
            "account": account,
            "concurrency": concurrency,
            "output_dir": self.output_dir,
        }
        self._budget = budget
        self._configs: dict[str, Mapping[str, Any]] = {}
        self._records: dict[str, MediaJobRecord] = {}
        self._usd: dict[str, Decimal | None] = {}
        self._headed: set[str] = set()

    # The next two are for subclasses to write, as in the class that this one grew from: only they know what to make and
    # whom to ask. Not abstract methods: a generator that is only given a queue needs the second alone, a dry run none.

    # -- what a subclass says --------------------------------------------------------------------------------

    def get_generation_queue(self) -> Sequence[Mapping[str, Any]]:
        """What is to be made: mappings with ``id``, ``name``, ``prompt``, ``model``, and if wanted ``priority``,
        ``scene``, ``seed_key``, ``parameters`` (for the provider) and ``dimensions`` (for the price).
        """
        raise NotImplementedError("get_generation_queue() says what is to be made")

    def call(self, model: str, arguments: Mapping[str, Any]) -> Any:
        """Call the provider; its answer is what is saved."""
        raise NotImplementedError("call() asks the provider")

    def arguments(self, job: MediaJob) -> dict[str, Any]:
        """What ``call`` gets: the prompt, the asset's parameters, and the seed that its ``seed_key`` names."""
        key = self._configs[job.asset_id].get("seed_key") if job.asset_id in self._configs else None
        seed = {"seed": self.seeds[key]} if key in self.seeds else {}
        return {"prompt": job.prompt, **seed, **job.parameters}

    def is_credit_error(self, error: BaseException | str) -> bool:
        """Whether an error (or its text) says that the account at the provider is out of credit or locked."""
        raised = error if isinstance(error, BaseException) else RuntimeError(error)
        fault = classify_provider_error(raised, provider=self._provider)
        return fault.category in (FaultCategory.CREDITS_EXHAUSTED, FaultCategory.ACCOUNT_LOCKED)

    # -- making ----------------------------------------------------------------------------------------------

    def generate_asset(self, asset_config: Mapping[str, Any]) -> dict[str, Any]:
        """Make one asset; see :meth:`process_queue` for what comes back."""
        return self._results(self._process([asset_config]))[0]

    def process_queue(self, queue: Sequence[Mapping[str, Any]] | None = None) -> list[dict[str, Any]]:
        """Make the queue (None: ``get_generation_queue()``) and print a summary.

        Returns:
            For each asset, in the order of the queue: ``asset_id``, ``name``, ``success``, ``dry_run``, ``unknown``,
            ``prompt``, ``model``, ``priority``, ``estimated_cost`` (USD as Decimal, or None), ``credits`` and
            ``charged`` (Decimal), ``url``, ``path``, ``reason`` and ``error``.

        Raises:
            InvalidInputError: an asset cannot be used; nothing was called.
            UnpricedActionError: an asset has no price; nothing was called.
            ConfigurationError: the threshold needs ``credits_per_usd``.
        """
        return self._shown(self._process(self.get_generation_queue() if queue is None else queue))

    def resume(self, batch_id: str, **options: Any) -> list[dict[str, Any]]:
        """Do what is left of a queue, after a top-up or a crash; options as for :meth:`MediaBatch.resume`."""
        again = {name: options.pop(name) for name in ("look", "retry_unknown") if name in options}
        self.credits_exhausted = False
        batch = MediaBatch.load(
            self._service,
            batch_id,
            self._generate,
            organization_id=self._organization_id,
            **{**self._options, "on_progress": self._on_progress, **options},
        )
        self._prepare(batch)
        return self._shown(batch.run_again(**again))

    def as_dict(self) -> dict[str, Any]:
        """The last queue as plain data (JSON): the manifest, and what :meth:`process_queue` gave.

        Raises:
            InvalidInputError: no queue was made yet.
        """
        if self.summary is None:
            raise InvalidInputError("no queue was processed yet.")
        return {**self.summary.as_dict(), "results": self._results(self.summary)}

    # -- inside ----------------------------------------------------------------------------------------------

    def _process(self, queue: Sequence[Mapping[str, Any]]) -> BatchSummary:
        jobs = [self._job(config) for config in queue]
        self._configs = {job.asset_id: config for job, config in zip(jobs, queue, strict=True)}
        batch = MediaBatch(
            self._service,
            jobs,
            self._generate,
            organization_id=self._organization_id,
            name=f"{self._agent_type} {self.asset_type}",
            budget=self._budget,
            on_progress=self._on_progress,
            dry_run=self.dry_run or self.credits_exhausted,
            **self._options,
        )
        self._prepare(batch)
        self.summary = batch.run()
        return self.summary

    def _prepare(self, batch: MediaBatch) -> None:
        lines = batch.plan().lines
        self._usd = {line.job.asset_id: line.usd for line in lines}
        self._records = {line.job.asset_id: line.job for line in lines}
        self._headed = set()

    def _job(self, config: Mapping[str, Any]) -> MediaJob:
        if not isinstance(config, Mapping):
            raise InvalidInputError(f"an asset must be a mapping, not {type(config).__name__}.")
        missing = next((name for name in ("id", "name", "prompt", "model") if config.get(name) is None), None)
        if missing is not None:
            raise InvalidInputError(
                f"asset {config.get('name') or config.get('id') or '?'}: {missing} is missing.",
                context={"field": missing},
            )
        return MediaJob(
            asset_id=str(config["id"]),
            name=config["name"],
            prompt=config["prompt"],
            agent_type=self._agent_type,
            action=f"generate_{self.asset_type}",
            provider=self._provider,
            model=config["model"],
            parameters=config.get("parameters") or {},
            dimensions=config.get("dimensions") or {},
            priority=config.get("priority", "MEDIUM"),
        )

    def _generate(self, job: MediaJob) -> Any:
        if self._concurrency == 1:
            self._head(replace(self._records[job.asset_id], enhanced_prompt=job.prompt))
            self._print(f"{self._style.mark('wait')}Sending request to {_host(self._provider)}...\n")
        return self.call(str(job.model), self.arguments(job))

    def _on_progress(self, progress: BatchProgress) -> None:
        job, style = progress.job, self._style
        self._head(job)
        if job.state in (JobState.DONE, JobState.CALLED):
            url = find_url(progress.result)
            lines = [f"{style.mark('good')}Generated successfully!", *([] if url is None else [f"   URL: {url}"])]
        elif job.state is JobState.FAILED:
            lines = [f"{style.mark('bad')}Failed: {job.message or job.reason}"]
        elif job.state is JobState.UNKNOWN:
            lines = [f"{style.mark('unknown')}NO ANSWER - it may have been made; not sent again by itself"]
        else:
            lines = ["", *self._not_made(job)]
        self._print("\n".join(lines) + "\n\n")

    def _not_made(self, job: MediaJobRecord) -> list[str]:
        style = self._style
        if job.reason in _EXHAUSTED and not self.dry_run:
            self.credits_exhausted = True
        if job.reason == "cost_threshold":
            return [f"{style.mark('skip')}SKIPPED - {job.message}"]
        if not self.credits_exhausted:
            told = "" if job.reason == "dry_run" else f"\n   {job.message}"
            return [f"{style.mark('credits')}DRY RUN - Displaying prompt and cost only{told}"]
        billing = _billing_url(self._provider)
        if job.reason == "insufficient_credits" or billing is None:
            how = str(job.message)
        else:
            how = f"Top up your balance at: {billing}"
        return [f"{style.mark('credits')}NO CREDITS AVAILABLE - Displaying prompt and cost only", f"   {how}"]

    def _head(self, job: MediaJobRecord) -> None:
        if job.asset_id not in self._headed:
            self._headed.add(job.asset_id)
            scene = self._configs.get(job.asset_id, {}).get("scene")
            self._print(asset_head(job, self._cost(job), self._style, asset_type=self.asset_type, scene=scene))

    def _shown(self, summary: BatchSummary) -> list[dict[str, Any]]:
        self.summary = summary
        self._print(summary_text(summary, self._cost, self._style))
        return self._results(summary)

    def _results(self, summary: BatchSummary) -> list[dict[str, Any]]:
        return [
            {
                "asset_id": job.asset_id,
                "name": job.name,
                "success": job in summary.successful,
                "dry_run": job in summary.dry_run,
                "unknown": job in summary.unknown,
                "prompt": job.shown_prompt,
                "model": job.model,
                "priority": priority_text(job.priority),
                "estimated_cost": self._usd.get(job.asset_id),
                "credits": job.estimate,
                "charged": from_micros(job.charged_micros or 0),
                "url": find_url(summary.results.get(job.number, job.result)),
                "path": job.path,
                "reason": job.reason,
                "error": job.message,
            }
            for job in summary.jobs
        ]

    def _cost(self, job: MediaJobRecord) -> str:
        return cost_text(job.estimate_micros, self._usd.get(job.asset_id))

    @property
    def _style(self) -> Style:
        return Style(self._stream or sys.stdout)

    def _print(self, text: str) -> None:
        stream = self._stream or sys.stdout
        stream.write(text)
        stream.flush()


def _host(provider: str) -> str:
    return "fal.ai" if provider == "fal" else provider


def _billing_url(provider: str) -> str | None:
    """The address at which the operator tops his account up."""
    known = default_rules().providers.get(default_rules().provider_name(provider) or provider)
    return None if known is None or not known.billing_url else _with_scheme(known.billing_url)


def _with_scheme(address: str) -> str:
    return address if "://" in address else f"https://{address}"
