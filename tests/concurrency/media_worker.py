"""The process that the kill tests kill: makes or resumes a batch with fal's own client against a FakeFal elsewhere.

It writes a line when it is ready, one for each asset that ended, and one when it is through.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fal_client

from agentcredits import SyncCreditService
from agentcredits.media import MediaBatch, MediaJob, note_provider_reference
from agentcredits.media.batch_plan import BatchProgress
from agentcredits.media.files import write_atomically

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> Any:
    """A file of examples/ as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def make_jobs(count: int, folder: str) -> list[MediaJob]:
    """Prompts name the folder: the provider's books tell the rounds of a proof apart."""
    return [
        MediaJob(
            asset_id=str(number),
            name=f"asset {number}",
            prompt=f"wave {number} for {Path(folder).name}",
            agent_type="Pictures",
            action="generate_image",
            provider="fal",
            model="fal-ai/flux/dev",
        )
        for number in range(1, count + 1)
    ]


def generate_at(url: str) -> Callable[[MediaJob], Any]:
    """Calls fal's client; the request's id is noted as soon as it is known."""
    os.environ["FAL_KEY"] = "fake-key"
    fal_client.client.QUEUE_URL_FORMAT = f"{url}/"

    def generate(job: MediaJob) -> Any:
        request = fal_client.submit(str(job.model), {"prompt": job.prompt})
        note_provider_reference(request.request_id)
        return request.get(interval=0.005)

    return generate


class Lines:
    """What a worker says: lines of a file, there as soon as they are said."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def say(self, value: Any) -> None:
        """Write a line."""
        with self.path.open("a") as file:
            file.write(json.dumps(value) + "\n")

    def count(self) -> int:
        """How many there are."""
        return self.path.read_text().count("\n") if self.path.exists() else 0


def work(worker: str, lines: Path, url: str, fal: str, folder: str, count: int, batch_id: str | None) -> None:
    """The process: ``batch`` or ``naive``."""
    told = Lines(lines)
    told.say("ready")
    if worker == "batch":
        batch(told, url, fal, folder, count, batch_id)
    else:
        naive(told, url, fal, folder, count)


def batch(told: Lines, url: str, fal: str, folder: str, count: int, batch_id: str | None) -> None:
    def progress(event: BatchProgress) -> None:
        told.say(event.job.number)

    with SyncCreditService(url) as service:
        if batch_id is None:
            made = MediaBatch(
                service, make_jobs(count, folder), generate_at(fal), organization_id="acme", output_dir=folder,
                on_progress=progress, concurrency=3,
            )  # fmt: skip
            summary = made.run()
        else:
            summary = MediaBatch.resume(
                service, batch_id, generate_at(fal), organization_id="acme", on_progress=progress
            )
        told.say({"complete": summary.complete})


def naive(told: Lines, url: str, fal: str, folder: str, count: int) -> None:
    """A batch as one would write it: charge, call, write the file, and go by the files on a restart.

    There is no note of intent, so a call whose answer was lost is made again: what the harness must find.
    """
    generate = generate_at(fal)
    with SyncCreditService(url) as service:
        for job in make_jobs(count, folder):
            target = Path(folder) / f"{int(job.asset_id):03d}.png"
            if target.exists():
                continue
            service.consume_credits(organization_id="acme", agent_type=job.agent_type, action=job.action)
            write_atomically(target, json.dumps(generate(job)).encode())
            told.say(job.asset_id)
        told.say({"complete": True})
