"""A parent that used the service forks workers, as gunicorn does with a preloaded application."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from agentcredits import CreditService, SyncCreditService
from tests.proof.tills import ORGANIZATION


def charge_in_forks(url: str, told: Path, *, rounds: int, forks: int, charges: int) -> None:
    """The parent: charge, fork ``forks`` workers that charge by both doors at the same time, charge again."""
    signal.alarm(450)  # a process that hangs ends
    service = SyncCreditService(url)
    _charge(service, told, "parent")
    for number in range(rounds):
        children = []
        for place in range(forks):
            child = os.fork()
            if not child:
                _work(service, url, told, f"{number}-{place}", charges)
            children.append(child)
        _charge(service, told, f"parent-{number}")
        for child in children:
            _, status = os.waitpid(child, 0)
            if status:
                os._exit(4)
    service.close()


def _work(service: SyncCreditService, url: str, told: Path, name: str, charges: int) -> None:
    """A worker; never returns into the parent's code."""
    signal.alarm(100)

    async def charge_all() -> None:
        async with CreditService(url) as face:
            keys = [f"async-{name}-{number}" for number in range(charges)]
            await asyncio.gather(
                *(face.consume_credits(organization_id=ORGANIZATION, amount=1, idempotency_key=key) for key in keys)
            )
            for key in keys:
                _note(told, key)

    try:
        for number in range(charges):
            _charge(service, told, f"sync-{name}-{number}")
        asyncio.run(charge_all())
        service.close()
    except BaseException:
        os._exit(5)
        raise
    os._exit(0)


def _charge(service: SyncCreditService, told: Path, key: str) -> None:
    service.consume_credits(organization_id=ORGANIZATION, amount=1, idempotency_key=key)
    _note(told, key)


def _note(told: Path, key: str) -> None:
    with told.open("a") as file:
        file.write(f"{key}\n")
