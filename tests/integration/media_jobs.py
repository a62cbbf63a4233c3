"""What media batches are tried with: jobs of acme, and a provider that makes as many of them as its balance allows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from agentcredits.media.batch import MediaBatch
from agentcredits.media.jobs import MediaJob

ACME = "acme"

Start = Callable[..., MediaBatch]


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


def states(summary: Any) -> list[str]:
    return [job.state.value for job in summary.jobs]
