"""Media batches in trouble: failures, lost answers, lost leases, interrupts, crashes; nothing is paid for twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from agentcredits import SyncCreditService
from agentcredits.media.batch import Finding, MediaBatch
from agentcredits.media.batch_plan import BatchProgress
from agentcredits.media.batch_run import note_provider_reference
from agentcredits.media.jobs import MediaJob
from agentcredits.media.manifest import Manifest, MediaBatchInUseError
from agentcredits.model.media_batches import JobState, MediaJobRecord
from agentcredits.runner import presence
from agentcredits.service import core_of
from agentcredits.testing import FakeClock
from tests.integration.media_jobs import ACME, FakeProvider, Start, job, jobs, states


class FakeHttpError(Exception):
    def __init__(self, status_code: int, message: str) -> None:
        super().__init__(message)
        self.status_code = status_code


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
