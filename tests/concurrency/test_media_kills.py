"""kill -9 at random moments of a batch: nothing is paid twice, nothing is lost, and what nobody knows is shown.

The gap in which a kill leaves an UNKNOWN lies between the note of intent and the stored answer: the provider may have
accepted the request by then. The bar: billed calls ≤ assets + UNKNOWNs shown; once those are resolved by asking the
provider, its books and the ledger's agree.
"""

from __future__ import annotations

import random
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentcredits import PriceRule, SyncCreditService
from agentcredits.media import Finding, MediaBatch
from agentcredits.media.manifest import list_batches
from agentcredits.model.media_batches import MediaJobRecord
from agentcredits.service import core_of

pytest.importorskip("fal_client", reason="the real client is what is killed in the middle of a call")

from tests.concurrency import media_worker
from tests.proof.load import start_process

ACME = "acme"
ASSETS = 12
PRICE = 5


@pytest.fixture
def fal() -> Iterator[Any]:
    """A loopback fal that takes a moment for everything, so that kills land inside calls."""
    with media_worker.load("fake_fal").FakeFal(seconds=0.02) as server:
        yield server


@pytest.fixture
def acme(database_url: str) -> Iterator[SyncCreditService]:
    with SyncCreditService(database_url) as service:
        service.grant_credits(ACME, 100_000)
        service.set_cost("Pictures", "generate_image", PriceRule.flat(PRICE))
        yield service


def start(worker: str, url: str, fal: Any, folder: Path, batch_id: str | None = None) -> tuple[Any, media_worker.Lines]:
    """A worker from the warm process, and what it says."""
    lines = folder.with_name(f"{folder.name}-{uuid.uuid4().hex}.lines")
    process = start_process(media_worker.work, worker, lines, url, fal.url, str(folder), ASSETS, batch_id)
    return process, media_worker.Lines(lines)


def run_until_killed(process: Any, said: media_worker.Lines, after_lines: int, wait_seconds: float) -> bool:
    """Let it finish so many assets and a moment more, then kill -9; False when it was through before."""
    while process.exitcode is None and said.count() < 1 + after_lines:  # "ready" comes first
        time.sleep(0.001)
    process.join(wait_seconds)
    process.kill()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL), "what went wrong is in its output"
    return bool(process.exitcode)


def last_batch(service: SyncCreditService) -> str | None:
    found = list_batches(core_of(service), ACME, 1)
    return found[0].id if found else None


def ask(fal: Any, job: MediaJobRecord) -> Finding:
    """What fal knows of a job: by its request's id, else (no id was noted) by its prompt."""
    if job.provider_reference is None:
        ids = [name for name, arguments in fal.accepted.items() if arguments["prompt"] == job.prompt]
    else:
        ids = [job.provider_reference] if job.provider_reference in fal.accepted else []
    return Finding.made({"images": [{"url": f"{fal.url}/files/{ids[0]}.png"}]}) if ids else Finding.never_sent()


@pytest.mark.proof
@pytest.mark.timeout(1_800)
def test_kill_9_at_any_moment_pays_for_no_asset_twice(
    acme: SyncCreditService, database_url: str, fal: Any, tmp_path: Path, proof: str
) -> None:
    """Each round: killed, resumed and killed again, resumed to the end; then the books are compared."""
    dice = random.Random(22)
    kills = unknowns = 0
    for round_number in range(50 if proof == "long" else 3):
        billed, spent = len(fal.accepted), acme.get_balance(ACME).spent
        folder = tmp_path / f"round-{round_number}"
        before = last_batch(acme)
        for _ in range(2):
            batch_id = last_batch(acme)
            process, said = start("batch", database_url, fal, folder, None if batch_id == before else batch_id)
            kills += run_until_killed(process, said, dice.randrange(0, 5), dice.uniform(0.0, 0.25))
        batch_id = last_batch(acme)
        if batch_id in (None, before):
            assert len(fal.accepted) == billed, "a call was made before the manifest was there"
            continue
        made = media_worker.generate_at(fal.url)
        summary = MediaBatch.resume(acme, str(batch_id), made, organization_id=ACME)

        shown = len(summary.unknown)
        unknowns += shown
        calls = len(fal.accepted) - billed
        assert len(summary.successful) + shown == ASSETS
        assert calls <= ASSETS, "an asset was sent twice although nobody asked for it"
        assert calls >= len(summary.successful)
        assert acme.get_balance(ACME).reserved == PRICE * shown, "exactly the unknown ones are held"
        assert acme.get_balance(ACME).spent - spent == PRICE * len(summary.successful)

        settled = MediaBatch.load(acme, str(batch_id), made, organization_id=ACME)
        settled.reconcile(lambda job: ask(fal, job))
        done = MediaBatch.resume(acme, str(batch_id), made, organization_id=ACME)
        assert (len(done.successful), done.complete) == (ASSETS, True)
        calls = len(fal.accepted) - billed
        assert calls == ASSETS
        assert acme.get_balance(ACME).spent - spent == PRICE * calls, "the provider's and the ledger's books differ"
        assert acme.get_balance(ACME).reserved == 0
        assert len(list(folder.glob("*.png"))) == ASSETS
        assert [path.name for path in folder.glob(".*")] == [], "half-written files are left"
        assert acme.verify().ok
    assert kills >= (25 if proof == "long" else 1)
    if proof == "long":
        assert unknowns > 0, "no kill fell into the gap: the proof has shown nothing"


def test_a_batch_without_notes_of_intent_is_caught(
    acme: SyncCreditService, database_url: str, fal: Any, tmp_path: Path
) -> None:
    """The control: killed inside a call, the naive batch calls (and charges) again; the same bar goes red for it."""
    fal.seconds = 0.3
    for _ in range(3):
        accepted = len(fal.accepted)
        process, _ = start("naive", database_url, fal, tmp_path)
        fal.wait_for(accepted + 1)
        process.kill()
        process.join(30)
    fal.seconds = 0.0
    process, _ = start("naive", database_url, fal, tmp_path)
    process.join(60)
    assert process.exitcode == 0
    assert len(list(tmp_path.glob("*.png"))) == ASSETS
    assert len(fal.accepted) > ASSETS
    assert acme.get_balance(ACME).spent > PRICE * ASSETS


def test_killed_inside_a_call_it_is_unknown_with_its_request(
    acme: SyncCreditService, database_url: str, fal: Any, tmp_path: Path
) -> None:
    """The gap itself: the request was accepted, its id noted, the process killed; found again, it is paid once."""
    fal.seconds = 30.0
    process, _ = start("batch", database_url, fal, tmp_path)
    fal.wait_for(3)
    process.kill()
    process.join(30)
    fal.seconds = 0.0
    batch_id = str(last_batch(acme))
    generate = media_worker.generate_at(fal.url)
    summary = MediaBatch.resume(acme, batch_id, generate, organization_id=ACME)
    assert (len(summary.unknown), len(summary.successful)) == (3, ASSETS - 3)
    assert {job.reason for job in summary.unknown} == {"interrupted"}
    assert acme.get_balance(ACME).reserved == 3 * PRICE
    done = MediaBatch.resume(acme, batch_id, generate, organization_id=ACME, look=lambda job: ask(fal, job))
    assert (len(done.successful), len(fal.accepted)) == (ASSETS, ASSETS)
    assert acme.get_balance(ACME).spent == PRICE * ASSETS
