"""Media batches: priced before they start, charged once for what was made, resumed from their manifest."""

from __future__ import annotations

import json
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from agentcredits import PriceRule, RequestContext, SyncCreditService, use_context
from agentcredits.errors import ConfigurationError, InvalidInputError, MissingContextError, UnpricedActionError
from agentcredits.media.batch import MediaBatch
from agentcredits.media.batch_plan import BatchProgress
from agentcredits.media.batch_prices import CostQuestion
from agentcredits.media.breaker import breakers_of
from agentcredits.media.jobs import MediaJob
from agentcredits.media.manifest import Manifest, MediaBatchNotFoundError, charged_in_all, list_batches
from agentcredits.model.media_batches import BatchState
from agentcredits.service import core_of
from tests.integration.media_jobs import ACME, FakeProvider, Start, job, jobs, states

# -- before the start ----------------------------------------------------------------------------------------------


def test_a_plan_says_what_everything_costs_and_what_fits(start: Start, acme: SyncCreditService) -> None:
    """Total, balance, budget, and how far they reach in the order of priority; nothing is held or written."""
    acme.adjust_credits(ACME, -988)
    lines = [job(1, priority="low"), job(2), job(3, priority="HIGH"), job(4, priority=3)]
    plan = start(lines, None, budget=100).plan()
    assert (plan.total, plan.decision.available, plan.decision.allowed) == (20, 12, False)
    assert (plan.decision.reason, plan.fits) == ("insufficient_credits", 2)
    assert [(line.job.number, line.fits) for line in plan.lines] == [(4, True), (3, True), (2, False), (1, False)]
    assert start(lines, None, budget=6).plan().fits == 1
    assert start(lines, None, budget=6).plan().over_budget
    assert acme.get_balance(ACME).reserved == 0
    assert list_batches(core_of(acme), ACME, 10) == ()


def test_a_plan_sees_the_limits_too(start: Start, acme: SyncCreditService) -> None:
    acme.set_limit(ACME, scope="department", scope_id="film", amount=9, window="month")
    with use_context(RequestContext(ACME, department_id="film")):
        plan = start(jobs(2), None).plan()
    assert (plan.decision.allowed, plan.decision.limit_source) == (False, "department")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"action": "generate_hologram"}, "asset 2 (asset 2): "),
        ({"model": "fal-ai/unknown"}, "asset 2 (asset 2): "),
        ({"dimensions": {}}, "asset 2 (asset 2): "),
        ({"dimensions": {"resolution": "8K"}}, "asset 2 (asset 2): "),
    ],
)
def test_a_job_without_a_price_is_named_before_anything_happens(
    start: Start, acme: SyncCreditService, changes: dict[str, Any], words: str
) -> None:
    """Unknown action, model, missing dimension, a resolution that is not in the table: no call, no charge, no batch."""
    rows = [{"model": "fal-ai/flux/dev", "resolution": "1K", "credits": 5}]
    acme.set_cost("ImageAgent", "generate_image", PriceRule.table(("model", "resolution"), rows))
    provider = FakeProvider()
    good = {"dimensions": {"resolution": "1K"}}
    batch = start([job(1, **good), job(2, **{**good, **changes})], provider)
    with pytest.raises(UnpricedActionError, match=r"^asset 2 \(asset 2\): ") as caught:
        batch.run()
    assert caught.value.context["asset_id"] == "2.0"
    assert (provider.calls, acme.get_balance(ACME).available) == ([], 1_000)
    assert list_batches(core_of(acme), ACME, 10) == ()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"dimensions": {"duration": -5}}, "dimensions.duration"),
        ({"prompt": ""}, "prompt"),
        ({"priority": "soon"}, "priority"),
        ({"parameters": {"x": float("nan")}}, "parameters"),
        ({"model": "a\x00b"}, "model"),
    ],
)
def test_a_job_that_cannot_be_used_names_the_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        job(1, **changes)
    assert caught.value.context["field"] == field


def test_bad_arguments_are_refused(start: Start, acme: SyncCreditService) -> None:
    for options in ({"concurrency": 0}, {"budget": -1}, {"save": print}, {"name": ""}, {"credits_per_usd": 0}):
        with pytest.raises(InvalidInputError):
            start(jobs(1), print, **options)
    with pytest.raises(InvalidInputError, match="same asset_id"):
        start([job(1), job(1)], print)
    with pytest.raises(InvalidInputError, match="at least one job"):
        start([], print).run()
    with pytest.raises(MissingContextError):
        MediaBatch(acme, jobs(1), print)
    with pytest.raises(MediaBatchNotFoundError):
        MediaBatch.resume(acme, "no-such", print, organization_id=ACME)


# -- running -------------------------------------------------------------------------------------------------------


def test_a_batch_is_made_charged_and_written(start: Start, acme: SyncCreditService, folder: Path) -> None:
    """Every asset once: a file, a charge with the scopes of who started it, a manifest in database and JSON."""
    heard: list[BatchProgress] = []
    provider = FakeProvider()
    with use_context(RequestContext(ACME, department_id="film", user_id="ada")):
        batch = start(jobs(5), provider, output_dir=folder, on_progress=heard.append, concurrency=3, name="waves")
        summary = batch.run()
    assert states(summary) == ["done"] * 5
    assert sorted(provider.calls) == ["1.0", "2.0", "3.0", "4.0", "5.0"]
    assert (summary.charged, summary.complete, summary.batch.state) == (25, True, BatchState.FINISHED)
    rows = list(acme.list_transactions(ACME, type="debit"))
    assert [(row.charged, row.department_id, row.user_id) for row in rows] == [(5, "film", "ada")] * 5
    assert {row.metadata["asset_id"] for row in rows} == {f"{number}.0" for number in range(1, 6)}
    files = sorted(path.name for path in folder.iterdir())
    assert files == [*(f"{n:03d}_asset_{n}.json" for n in range(1, 6)), f"{summary.batch.id}.json"]
    assert json.loads((folder / "003_asset_3.json").read_text())["image"] == "asset 3"
    manifest = json.loads((folder / f"{summary.batch.id}.json").read_text())
    assert (manifest["state"], manifest["charged"], manifest["successful"]) == ("finished", 25, [1, 2, 3, 4, 5])
    assert manifest["jobs"][0]["path"] == str(folder / "001_asset_1.json")
    assert [event.ended for event in heard] == [1, 2, 3, 4, 5]
    assert heard[-1].charged_micros == 25_000_000
    assert {number: answer["image"] for number, answer in summary.results.items()} == {
        number: f"asset {number}" for number in range(1, 6)
    }


def test_urgent_jobs_come_first(start: Start) -> None:
    provider = FakeProvider()
    lines = [job(1, priority="LOW"), job(2), job(3, priority="HIGH"), job(4), job(5, priority=0)]
    start(lines, provider, concurrency=1).run()
    assert provider.calls == ["5.0", "3.0", "2.0", "4.0", "1.0"]


def test_scarce_credits_and_budgets_go_to_the_most_urgent(start: Start, acme: SyncCreditService) -> None:
    """Also with several calls at once: nobody less urgent is faster."""
    for options in ({"budget": 15}, {}):
        if not options:
            acme.adjust_credits(ACME, -(acme.get_balance(ACME).available - 15))
        summary = start([job(n, priority=9 - n) for n in range(1, 9)], FakeProvider(), concurrency=8, **options).run()
        assert states(summary) == ["dry_run"] * 5 + ["done"] * 3


def test_never_more_calls_at_once_than_allowed(start: Start) -> None:
    """Three calls meet inside (a barrier of 3 passes), and never a fourth."""
    inside = threading.Semaphore(3)
    together = threading.Barrier(3)

    def generate(line: MediaJob) -> str:
        assert inside.acquire(blocking=False), "a fourth call at once"
        together.wait(30)
        inside.release()
        together.wait(30)
        return line.name

    assert states(start(jobs(9), generate, concurrency=3).run()) == ["done"] * 9


async def _coroutine(line: MediaJob) -> str:
    return line.name


def test_generate_may_be_a_coroutine_function(start: Start) -> None:
    summary = start(jobs(2), _coroutine).run()
    assert summary.results == {1: "asset 1", 2: "asset 2"}


def test_when_the_provider_is_out_of_credit_the_rest_is_a_priced_plan(start: Start, acme: SyncCreditService) -> None:
    """Seed: 15 assets, 5 made, 10 shown with prompt and cost; after the top-up a resume makes exactly the missing."""
    provider = FakeProvider(balance=5)
    summary = start(jobs(15), provider, concurrency=1).run()
    assert (len(summary.successful), len(summary.failed), len(summary.dry_run)) == (5, 0, 10)
    assert {line.reason for line in summary.dry_run} == {"credits_exhausted"}
    assert (summary.dry_run[0].shown_prompt, summary.dry_run[0].estimate) == ("A picture of 6 waves", 5)
    assert len(provider.calls) == 6
    assert (summary.charged, acme.get_balance(ACME).available, acme.get_balance(ACME).reserved) == (25, 975, 0)
    assert len(acme._core.run(breakers_of(acme._core).list())) == 1
    provider.balance = 100
    resumed = MediaBatch.resume(acme, summary.batch.id, provider, organization_id=ACME)
    assert states(resumed) == ["done"] * 15
    assert sorted(provider.made, key=float) == [f"{number}.0" for number in range(1, 16)]
    assert (resumed.charged, acme.get_balance(ACME).available) == (75, 925)
    assert acme._core.run(breakers_of(acme._core).list()) == ()


def test_a_resume_before_the_top_up_costs_one_call(start: Start, acme: SyncCreditService) -> None:
    """One job finds out, the others are not sent."""
    provider = FakeProvider(balance=2)
    summary = start(jobs(8), provider, concurrency=1).run()
    calls = len(provider.calls)
    again = MediaBatch.resume(acme, summary.batch.id, provider, organization_id=ACME, concurrency=4)
    assert len(provider.calls) == calls + 1
    assert (len(again.successful), len(again.dry_run)) == (2, 6)


def test_the_customers_own_credits_and_limits_end_in_a_plan_too(start: Start, acme: SyncCreditService) -> None:
    acme.adjust_credits(ACME, -988)
    provider = FakeProvider()
    summary = start(jobs(4), provider, concurrency=1).run()
    assert states(summary) == ["done", "done", "dry_run", "dry_run"]
    assert {line.reason for line in summary.dry_run} == {"insufficient_credits"}
    acme.grant_credits(ACME, 100)
    acme.set_limit(ACME, amount=15, window="month", include_existing=True)
    again = MediaBatch.resume(acme, summary.batch.id, provider, organization_id=ACME)
    assert sorted(states(again)) == ["done", "done", "done", "dry_run"]
    assert [line.reason for line in again.dry_run] == ["credit_limit_exceeded"]
    assert len(provider.calls) == 3


def test_a_batch_stays_within_its_budget_over_all_its_runs(start: Start, acme: SyncCreditService) -> None:
    provider = FakeProvider()
    summary = start(jobs(6), provider, budget=14, concurrency=4).run()
    assert (len(summary.successful), [line.reason for line in summary.dry_run]) == (2, ["budget"] * 4)
    again = MediaBatch.resume(acme, summary.batch.id, provider, organization_id=ACME)
    assert (again.charged, len(provider.calls), acme.get_balance(ACME).reserved) == (10, 2, 0)


def test_what_batches_cost_together(start: Start, acme: SyncCreditService) -> None:
    start(jobs(2), FakeProvider(), name="one").run()
    start(jobs(3), FakeProvider(balance=1), name="two", concurrency=1).run()
    found = list_batches(core_of(acme), ACME, 10)
    assert [(batch.name, batch.charged, batch.estimate) for batch in found] == [("two", 5, 15), ("one", 10, 10)]
    assert found[0].counts == {"done": 1, "dry_run": 2}
    assert charged_in_all(core_of(acme), ACME) == 15_000_000
    assert list_batches(core_of(acme), "globex", 10) == ()
    with pytest.raises(MediaBatchNotFoundError):
        Manifest(core_of(acme), "globex", found[0].id).batch()


# -- thresholds ----------------------------------------------------------------------------------------------------


def test_above_the_threshold_it_is_skipped_or_asked(start: Start, acme: SyncCreditService) -> None:
    rows = [{"model": "small", "credits": 2}, {"model": "large", "credits": 9}]
    acme.set_cost("ImageAgent", "generate_image", PriceRule.table(("model",), rows))
    lines = [job(1, model="small"), job(2, model="large"), job(3, model="large")]
    provider = FakeProvider()
    batch = start(lines, provider, threshold=5)
    assert batch.plan().over_threshold == (2, 3)
    summary = batch.run()
    assert states(summary) == ["done", "skipped", "skipped"]
    assert summary.jobs[1].message == "It costs more than 5 credits."
    asked: list[CostQuestion] = []

    def confirm(question: CostQuestion) -> bool:
        asked.append(question)
        return len(asked) == 1

    again = MediaBatch.resume(acme, summary.batch.id, provider, organization_id=ACME, confirm=confirm)
    assert sorted(states(again)) == ["done", "done", "skipped"]
    assert [(question.amount, question.job and question.job.asset_id) for question in asked] == [(9, "2.0"), (9, "3.0")]


def test_above_the_threshold_of_the_batch_nothing_is_made(start: Start) -> None:
    provider = FakeProvider()
    summary = start(jobs(3), provider, batch_threshold=14).run()
    assert ({line.reason for line in summary.jobs}, provider.calls) == ({"batch_threshold"}, [])
    assert states(start(jobs(3), provider, batch_threshold=14, confirm=lambda _: True).run()) == ["done"] * 3


def test_dollars_need_a_rate(start: Start, acme: SyncCreditService) -> None:
    with pytest.raises(ConfigurationError, match="credits_per_usd"):
        start(jobs(1), FakeProvider(), threshold_usd="0.20").run()
    by_rate = start(jobs(1), FakeProvider(), threshold_usd="0.20", credits_per_usd=10).run()
    assert (states(by_rate), by_rate.jobs[0].message) == (["skipped"], "It costs more than 0.20 USD.")
    acme.set_cost("ImageAgent", "generate_image", PriceRule.usd("0.05", credits_per_usd=100))
    assert states(start(jobs(1), FakeProvider(), threshold_usd="0.20").run()) == ["done"]


# -- dry runs ------------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_everything_and_writes_nothing(start: Start, acme: SyncCreditService, folder: Path) -> None:
    provider = FakeProvider()
    summary = start(
        jobs(2), provider, dry_run=True, output_dir=folder, enhance=lambda line: f"{line.prompt}, at dusk"
    ).run()
    assert [(line.reason, line.shown_prompt, line.estimate) for line in summary.dry_run] == [
        ("dry_run", "A picture of 1 waves, at dusk", Decimal(5)),
        ("dry_run", "A picture of 2 waves, at dusk", Decimal(5)),
    ]
    assert (provider.calls, list(folder.iterdir()), list_batches(core_of(acme), ACME, 5)) == ([], [], ())
    with use_context(RequestContext(ACME, dry_run=True)):
        assert len(start(jobs(2), provider).run().dry_run) == 2


def test_the_provider_gets_the_better_prompt(start: Start) -> None:
    got: list[str] = []
    summary = start(jobs(1), lambda line: got.append(line.prompt) or "ok", enhance=lambda _: "better").run()
    assert summary.jobs[0].enhanced_prompt == "better"

    def fail(_: MediaJob) -> str:
        raise RuntimeError("the model that improves prompts is away")

    start(jobs(1), lambda line: got.append(line.prompt) or "ok", enhance=fail).run()
    assert got == ["better", "A picture of 1 waves"]
