"""Media batches: priced before they start, charged once for what was made, resumed from their manifest."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from agentcredits import PriceRule, RequestContext, SyncCreditService, use_context
from agentcredits.errors import ConfigurationError, InvalidInputError, MissingContextError, UnpricedActionError
from agentcredits.media.batch import Finding, MediaBatch
from agentcredits.media.batch_plan import BatchProgress
from agentcredits.media.batch_prices import CostQuestion
from agentcredits.media.batch_run import note_provider_reference
from agentcredits.media.breaker import breakers_of
from agentcredits.media.jobs import MediaJob
from agentcredits.media.manifest import (
    Manifest,
    MediaBatchInUseError,
    MediaBatchNotFoundError,
    charged_in_all,
    list_batches,
)
from agentcredits.model.media_batches import BatchState, JobState, MediaJobRecord
from agentcredits.runner import presence
from agentcredits.service import core_of
from agentcredits.testing import FakeClock

ACME = "acme"


class FakeProvider:
    """A provider that makes ``balance`` pictures, then is out of credit in fal's words; it counts its calls."""

    def __init__(self, balance: int = 1_000) -> None:
        self.balance = balance
        self.calls: list[str] = []
        self.made: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, job: MediaJob) -> Any:
        with self._lock:
            self.calls.append(job.asset_id)
            if len(self.made) >= self.balance:
                raise FakeLockedError
            self.made.append(job.asset_id)
            return {"image": job.name, "seed": len(self.made)}


class FakeLockedError(Exception):
    """fal's answer when the balance is used up."""

    status_code = 403

    def __init__(self) -> None:
        super().__init__("User is locked. Reason: Exhausted balance. Top up your balance at fal.ai/dashboard/billing.")


class FakeHttpError(Exception):
    def __init__(self, status_code: int, message: str) -> None:
        super().__init__(message)
        self.status_code = status_code


def job(number: int, **changes: Any) -> MediaJob:
    return MediaJob(
        **{
            "asset_id": f"{number}.0",
            "name": f"asset {number}",
            "prompt": f"A picture of {number} waves",
            "agent_type": "ImageAgent",
            "action": "generate_image",
            "provider": "fal",
            "model": "fal-ai/flux/dev",
            **changes,
        }
    )


def jobs(count: int, **changes: Any) -> list[MediaJob]:
    return [job(number, **changes) for number in range(1, count + 1)]


@pytest.fixture
def acme(service: SyncCreditService) -> SyncCreditService:
    """1,000 credits of acme; a picture costs 5."""
    service.grant_credits(ACME, 1_000)
    service.set_cost("ImageAgent", "generate_image", 5)
    return service


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "out"
    made.mkdir()
    return made


Start = Callable[..., MediaBatch]


@pytest.fixture
def start(acme: SyncCreditService) -> Start:
    def make(lines: Any, generate: Any, **options: Any) -> MediaBatch:
        return MediaBatch(acme, lines, generate, **{"organization_id": ACME, **options})

    return make


@pytest.fixture(autouse=True)
def _books(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test did, the ledger's counters are what its rows say."""
    service = request.getfixturevalue("acme") if "acme" in request.fixturenames else None
    yield
    if service is not None:
        assert service.verify().problems == ()


def states(summary: Any) -> list[str]:
    return [job.state.value for job in summary.jobs]


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


# -- what goes wrong -----------------------------------------------------------------------------------------------


def test_a_failure_is_given_back_and_tried_again_only_when_it_may_pass(start: Start, acme: SyncCreditService) -> None:
    answers: dict[str, list[Any]] = {
        "1.0": [FakeHttpError(503, "server error"), "made"],
        "2.0": [FakeHttpError(422, "the prompt is too long"), "never asked for"],
        "3.0": [{"base_resp": {"status_code": 1002, "status_msg": "rate limit"}}, "made"],
        "4.0": [ValueError("my own mistake, api_key=sk-abcdef0123456789abcdef"), "never asked for"],
    }

    def generate(line: MediaJob) -> Any:
        answer = answers[line.asset_id].pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    lines = [job(1), job(2), job(3, provider="minimax"), job(4)]
    summary = start(lines, generate).run()
    assert states(summary) == ["failed"] * 4
    assert [line.reason for line in summary.failed] == ["transient", "rejected", "rate_limited", "other"]
    assert "sk-abcdef" not in str(summary.as_dict())
    assert acme.get_balance(ACME).available == 1_000
    again = MediaBatch.resume(acme, summary.batch.id, generate, organization_id=ACME)
    assert states(again) == ["done", "failed", "done", "failed"]
    assert [line.attempt for line in again.jobs] == [2, 1, 2, 1]
    assert acme.get_balance(ACME).available == 990


def test_a_call_that_got_no_answer_is_unknown_and_never_sent_again_unasked(
    start: Start, acme: SyncCreditService
) -> None:
    """The request may have arrived: the hold is kept, it is shown, and only somebody who says so sends it again."""
    calls: list[str] = []

    def generate(line: MediaJob) -> str:
        calls.append(line.key)
        if len(calls) == 1:
            raise TimeoutError("the read timed out")
        return "made"

    summary = start(jobs(1), generate).run()
    assert (states(summary), len(summary.unknown)) == (["unknown"], 1)
    assert acme.get_balance(ACME).reserved == 5
    [hold] = acme.list_reservations(ACME, states=["unknown"])
    assert hold.provider == "fal"
    again = MediaBatch.resume(acme, summary.batch.id, generate, organization_id=ACME)
    assert (states(again), len(calls), acme.get_balance(ACME).reserved) == (["unknown"], 1, 5)
    sent = MediaBatch.resume(acme, summary.batch.id, generate, organization_id=ACME, retry_unknown=True)
    assert (states(sent), len(calls), acme.get_balance(ACME).reserved) == (["done"], 2, 0)
    assert acme.get_balance(ACME).available == 995
    assert len(set(calls)) == 2, "each attempt has a key of its own"


def test_a_connection_that_was_refused_sent_nothing(start: Start) -> None:
    def generate(_: MediaJob) -> None:
        raise ConnectionRefusedError("connection refused")

    summary = start(jobs(1), generate).run()
    assert (states(summary), summary.jobs[0].reason) == (["failed"], "transient")


def test_reconcile_settles_what_the_provider_knows(start: Start, acme: SyncCreditService, folder: Path) -> None:
    """Made: charged, with its file. Never sent: given back, made by the next resume. Anything else: still unknown."""

    def generate(line: MediaJob) -> None:
        note_provider_reference(f"req-{line.asset_id}")
        raise TimeoutError

    batch = start(jobs(3), generate, output_dir=folder)
    summary = batch.run()
    assert [line.provider_reference for line in summary.unknown] == ["req-1.0", "req-2.0", "req-3.0"]
    assert acme.get_balance(ACME).reserved == 15

    def look(line: MediaJobRecord) -> Any:
        assert line.provider_reference == f"req-{line.asset_id}"
        return {"1.0": Finding.made({"image": "late"}), "2.0": Finding.never_sent()}.get(line.asset_id)

    found = MediaBatch.load(acme, summary.batch.id, organization_id=ACME).reconcile(look)
    assert states(found) == ["done", "planned", "unknown"]
    assert json.loads(Path(str(found.jobs[0].path)).read_text()) == {"image": "late"}
    balance = acme.get_balance(ACME)
    assert (balance.spent, balance.reserved) == (5, 5)
    provider = FakeProvider()
    done = MediaBatch.resume(acme, summary.batch.id, provider, organization_id=ACME)
    assert (states(done), provider.calls) == (["done", "done", "unknown"], ["2.0"])


def test_an_interrupt_waits_for_what_is_under_way_and_the_rest_is_resumed(
    start: Start, acme: SyncCreditService
) -> None:
    provider = FakeProvider()

    def interrupt(progress: BatchProgress) -> None:
        if progress.ended == 2:
            raise KeyboardInterrupt

    batch = start(jobs(9), provider, concurrency=3, on_progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        batch.run()
    counts = batch.status().batch.counts
    assert counts["done"] == len(provider.calls)
    assert counts["planned"] == 9 - len(provider.calls) > 0
    assert batch.status().batch.leased_by is None
    again = MediaBatch.resume(acme, batch.id, provider, organization_id=ACME)
    assert (states(again), len(provider.calls)) == (["done"] * 9, 9)


def test_a_file_that_cannot_be_written_costs_no_second_call(
    start: Start, acme: SyncCreditService, folder: Path
) -> None:
    """The work is done and charged; the answer waits in the manifest, and a resume writes the file from it."""

    def broken(line: MediaJob, result: Any, path: Path) -> Path:
        path.write_text("half")
        raise OSError("no space left on device")

    provider = FakeProvider()
    summary = start(jobs(1), provider, output_dir=folder, save=broken).run()
    assert (states(summary), summary.jobs[0].reason) == (["called"], "not_saved")
    assert [path.name for path in folder.iterdir()] == [f"{summary.batch.id}.json"]
    assert acme.get_balance(ACME).spent == 5
    again = MediaBatch.resume(acme, summary.batch.id, provider, organization_id=ACME)
    assert (states(again), again.jobs[0].reason, len(provider.calls)) == (["done"], None, 1)
    assert (folder / "001_asset_1.json").exists()
    assert acme.get_balance(ACME).spent == 5


def test_bytes_become_a_file(start: Start, folder: Path) -> None:
    summary = start(jobs(1), lambda _: b"\x89PNG", output_dir=folder).run()
    assert Path(str(summary.jobs[0].path)).read_bytes() == b"\x89PNG"
    assert (states(summary), summary.jobs[0].result) == (["done"], None)


def test_a_batch_that_somebody_works_on_is_refused_with_who_and_until_when(
    start: Start, acme: SyncCreditService
) -> None:
    summary = start(jobs(2), FakeProvider(balance=1), concurrency=1).run()
    other = Manifest(core_of(acme), ACME, summary.batch.id)
    with other.leased(), pytest.raises(MediaBatchInUseError, match=r"is worked on by process \d+ on .+ until ") as told:
        MediaBatch.resume(acme, summary.batch.id, FakeProvider(), organization_id=ACME)
    assert [line.state.value for line in other.jobs()] == ["done", "dry_run"], "a refused resume changed something"
    assert told.value.context["leased_by"] == other.owner
    again = MediaBatch.resume(acme, summary.batch.id, FakeProvider(), organization_id=ACME)
    assert states(again) == ["done", "done"]


def test_a_process_that_lost_its_lease_calls_nobody(sqlite_url: str) -> None:
    """Asleep for longer than its lease while another one took the batch: it must not send a single request."""
    clock = FakeClock()
    with SyncCreditService(sqlite_url, clock=clock) as service:
        service.grant_credits(ACME, 100)
        service.set_cost("ImageAgent", "generate_image", 5)
        late, early = FakeProvider(), FakeProvider()

        def sleep_then_be_late(_: MediaJob) -> str:
            clock.advance(timedelta(minutes=5))
            MediaBatch.resume(service, batch.id, early, organization_id=ACME)
            return late(_)

        batch = MediaBatch(service, jobs(3), sleep_then_be_late, organization_id=ACME, concurrency=1)
        with pytest.raises(MediaBatchInUseError):
            batch.run()
        assert (late.calls, early.calls) == (["1.0"], ["2.0", "3.0"])
        assert states(batch.status()) == ["done", "done", "done"]
        assert service.get_balance(ACME).spent == 15
        assert service.verify().ok


def test_a_process_whose_lease_another_one_has_calls_nobody(sqlite_url: str) -> None:
    """The same when the other one has not come to the job yet: the job is not even noted."""
    clock = FakeClock()
    with SyncCreditService(sqlite_url, clock=clock) as service, ExitStack() as stack:
        service.grant_credits(ACME, 100)
        service.set_cost("ImageAgent", "generate_image", 5)
        provider = FakeProvider()

        def lose_the_lease(line: MediaJob) -> Any:
            clock.advance(timedelta(minutes=5))
            stack.enter_context(Manifest(core_of(service), ACME, batch.id).leased())
            return provider(line)

        batch = MediaBatch(service, jobs(3), lose_the_lease, organization_id=ACME, concurrency=1)
        with pytest.raises(MediaBatchInUseError):
            batch.run()
        assert (provider.calls, states(batch.status())) == (["1.0"], ["done", "planned", "planned"])


def test_somebody_elses_settlement_by_hand_stands(start: Start, acme: SyncCreditService) -> None:
    def generate(_: MediaJob) -> None:
        raise TimeoutError

    summary = start(jobs(2), generate).run()
    first, second = summary.unknown
    acme.release_reservation(first.reservation_id, "by hand", organization_id=ACME)
    acme.commit_reservation(second.reservation_id, organization_id=ACME)
    batch = MediaBatch.load(acme, summary.batch.id, organization_id=ACME)
    found = batch.reconcile(lambda _: Finding.made("late"))
    assert [(line.state.value, line.charged) for line in found.jobs] == [("done", 0), ("done", 5)]
    assert acme.get_balance(ACME).spent == 5


def test_a_failure_that_the_provider_bills_is_charged_and_not_repeated(start: Start, acme: SyncCreditService) -> None:
    """Runway bills moderated generations: the operator passes that on, and no resume pays a second time."""

    def generate(_: MediaJob) -> dict[str, Any]:
        return {"id": "t1", "status": "FAILED", "failure": "moderated", "failureCode": "SAFETY.INPUT.TEXT"}

    summary = start([job(1, provider="runway")], generate).run()
    assert [(line.state.value, line.charged) for line in summary.jobs] == [("failed", 5)]
    # even a failure that would pass is not paid for a second time unasked
    Manifest(core_of(acme), ACME, summary.batch.id).change(summary.jobs[0], JobState.FAILED, reason="transient")
    again = MediaBatch.resume(acme, summary.batch.id, generate, organization_id=ACME)
    assert (again.jobs[0].attempt, again.complete, acme.get_balance(ACME).spent) == (1, True, 5)


def test_a_signed_address_is_kept_until_its_file_is_there(start: Start, acme: SyncCreditService, folder: Path) -> None:
    """What the file is fetched with must stay whole; afterwards no secret of it is left in the manifest."""
    answer = {"note": "fetch with token=abcdef0123456789"}

    def broken(*_: Any) -> Path:
        raise OSError("no network")

    summary = start(jobs(1), lambda _: answer, output_dir=folder, save=broken).run()
    assert summary.jobs[0].result == answer
    done = MediaBatch.resume(acme, summary.batch.id, FakeProvider(), organization_id=ACME)
    assert done.jobs[0].result == {"note": "fetch with token=[redacted]"}
    assert json.loads((folder / "001_asset_1.json").read_text()) == answer


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


# -- crashes, moment by moment -------------------------------------------------------------------------------------


class Died(BaseException):
    """The process ends here; nothing that comes later in it happens."""


@pytest.mark.parametrize("moment", ["reserve_credits", "intend", "mark_called", "commit"])
def test_whatever_moment_it_dies_at_a_resume_pays_once(
    start: Start, acme: SyncCreditService, moment: str, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    """Before the note: made once. After it, without an answer: unknown. After the answer: charged once, not called."""
    provider = FakeProvider()
    batch = start(jobs(1), provider, concurrency=1)
    with monkeypatch.context() as patch:
        _die_after(patch, moment)
        with pytest.raises(Died):
            batch.run()
    _orphan(database_url)
    again = MediaBatch.resume(acme, batch.id, provider, organization_id=ACME)
    if moment == "intend":
        assert (states(again), provider.calls) == (["unknown"], [])
        assert acme.get_balance(ACME).reserved == 5
    else:
        assert (states(again), provider.calls) == (["done"], ["1.0"])
        assert (acme.get_balance(ACME).spent, acme.get_balance(ACME).reserved) == (5, 0)


def _die_after(patch: pytest.MonkeyPatch, moment: str) -> None:
    from agentcredits.media import batch_run
    from agentcredits.reservation import SyncReservation

    def dying(function: Any, when: Callable[..., bool] = lambda *_, **__: True) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            value = function(*args, **kwargs)
            if when(*args, **kwargs):
                raise Died
            return value

        return call

    if moment == "reserve_credits":
        patch.setattr(batch_run.JobRunner, "_reserve", dying(batch_run.JobRunner._reserve))
    elif moment == "intend":
        patch.setattr(Manifest, "intend", dying(Manifest.intend))
    elif moment == "mark_called":
        called = dying(Manifest.change, lambda *_, **values: values.get("state") is JobState.CALLED)
        patch.setattr(Manifest, "change", called)
    else:
        patch.setattr(SyncReservation, "commit", dying(SyncReservation.commit))
    # a dead process gives no lease back
    patch.setattr("agentcredits.store.media_batches.give_lease_back", lambda *_: None)


def _orphan(url: str) -> None:
    """The lease of the process that died has run out."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE media_batches SET leased_by = 'gone/1/-/x', leased_until = '2020-01-01'"))
    engine.dispose()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells")
def test_only_a_process_that_is_known_to_be_gone_counts_as_dead() -> None:
    """A batch must not be taken from a living process, nor from one on another machine that happens to have a pid."""
    code = "from agentcredits.runner import presence; print(presence.own_name())"
    gone = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert presence.is_dead(gone)
    assert not presence.is_dead(presence.own_name())
    host, pid, _, unique = gone.split("/")
    for other in (f"{host}/{pid}/elsewhere/{unique}", f"{host}/{pid}/-/{unique}", f"{host}/x", "", f"{host}/-1/-/x"):
        assert not presence.is_dead(other)
    assert len(gone) <= 64
