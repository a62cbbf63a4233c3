"""Fifteen pictures by fal's own client; the balance at fal runs out after five. Nothing crashes, nothing is paid twice.

python examples/fal_batch.py [DATABASE_URL]

``fake_fal`` stands in for fal, on this machine. With your own key, leave out the two lines that point to it.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import fal_client
from fake_fal import FakeFal, use

from agentcredits import PriceRule, SyncCreditService
from agentcredits.media import AssetGenerator, note_provider_reference

SCENES = ("city", "harbour", "forest", "desert", "glacier")
TIMES = ("dawn", "noon", "dusk")


class Pictures(AssetGenerator):
    """What is to be made, and how fal is asked."""

    def get_generation_queue(self) -> list[dict[str, Any]]:
        return [
            {
                "id": f"{number}.0",
                "name": f"{scene}_{time}",
                "prompt": f"A wide picture of a {scene} at {time}, seen from a kite, with long shadows",
                "model": "fal-ai/flux/dev",
                "priority": "HIGH" if time == "dawn" else "MEDIUM",
            }
            for number, (time, scene) in enumerate(((t, s) for t in TIMES for s in SCENES), start=1)
        ]

    def call(self, model: str, arguments: Mapping[str, Any]) -> Any:
        request = fal_client.submit(model, dict(arguments))
        note_provider_reference(request.request_id)  # should this process die now, the manifest knows the request
        return request.get(interval=0.01)


def run(url: str, folder: Path) -> None:
    os.environ.setdefault("FAL_KEY", "fake-key")
    logging.getLogger("agentcredits").setLevel(logging.ERROR)  # that fal is out of credit is what this is about
    with FakeFal(balance=5) as fal, SyncCreditService(url) as service:
        use(fal_client, fal)
        service.grant_credits("acme", 500, idempotency_key="fal-batch")
        service.set_cost("Pictures", "generate_image", PriceRule.usd("0.05", credits_per_usd=100))

        pictures = Pictures(folder, service=service, organization_id="acme", stream=StringIO())
        pictures.process_queue()
        assert pictures.summary is not None
        batch = pictures.summary.batch.id
        print(f"made {files(folder)} of 15; fal was called {len(fal.accepted)} times, and refused {fal.refused}")
        for picture in pictures.as_dict()["results"]:
            if picture["dry_run"]:
                print(f"  not made: {picture['name']}, ${picture['estimated_cost']}: {picture['prompt'][:38]}...")

        fal.top_up(100)  # at fal.ai/dashboard/billing, in real life
        pictures.resume(batch)
        print(f"after the top-up: made {files(folder)} of 15; fal was called {len(fal.accepted)} times")
        spent = service.get_balance("acme").spent
        print(f"acme paid {spent} credits for {len(fal.accepted)} calls; no prompt twice: {once(fal)}")
        assert service.verify()


def files(folder: Path) -> int:
    return len(list(folder.glob("*.png")))


def once(fal: FakeFal) -> bool:
    return set(fal.calls_by_prompt().values()) == {1}


if __name__ == "__main__":
    given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("AGENTCREDITS_DATABASE_URL")
    with tempfile.TemporaryDirectory() as temporary:
        run(given or f"sqlite:///{temporary}/credits.db", Path(temporary) / "pictures")
