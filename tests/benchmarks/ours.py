"""agentcredits through its public faces, with and without limits in force."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any, ClassVar

from agentcredits.service import CreditService, SyncCreditService
from tests.benchmarks.contestants import DEPARTMENT, HOT, HOT_LIMITED, PLENTY, Blocking, Coroutine

_CHARGE: dict[str, Any] = {"organization_id": HOT, "agent_type": "ContentAgent", "action": "generate_content"}
_LIMITED = {**_CHARGE, "organization_id": HOT_LIMITED, "department_id": DEPARTMENT}

TTL = timedelta(minutes=5)


class OursBlocking(Blocking):
    """``SyncCreditService.consume_credits``: price, grants in burn-down order, key, ledger row, allocations."""

    name = "agentcredits, blocking"
    what: ClassVar = _CHARGE

    def __init__(self, url: str) -> None:
        self._service = SyncCreditService(url)

    async def start(self) -> None:
        set_up(self._service, self.what["organization_id"])

    async def stop(self) -> None:
        self._service.close()

    def charge(self) -> None:
        self._service.consume_credits(**self.what)


class OursBlockingLimited(OursBlocking):
    """The full charge: limits of the organization's and the department's month are in force."""

    name = "agentcredits, blocking, two limits"
    what: ClassVar = _LIMITED


class Ours(Coroutine):
    """The same through ``CreditService``."""

    name = "agentcredits, coroutines"
    callers: tuple[int, ...] = (1, 8, 32, 128, 512)
    what: ClassVar = _CHARGE

    def __init__(self, url: str) -> None:
        self._url = url
        self._service = CreditService(url)

    async def start(self) -> None:
        with SyncCreditService(self._url) as service:
            set_up(service, self.what["organization_id"])

    async def stop(self) -> None:
        await self._service.aclose()

    def charge(self) -> Awaitable[Any]:
        return self._service.consume_credits(**self.what)


class OursLimited(Ours):
    """The full charge: limits of the organization's and the department's month are in force."""

    name = "agentcredits, coroutines, two limits"
    what: ClassVar = _LIMITED


class OursKeyed(OursLimited):
    """The same with a key of the caller's for each charge: looked up, and stored beside the ledger row."""

    name = "agentcredits, coroutines, two limits, callers' keys"
    callers = (1, 128)

    def charge(self) -> Awaitable[Any]:
        return self._service.consume_credits(**self.what, idempotency_key=str(uuid.uuid4()))


class OursPairs(Ours):
    """Reserve, then commit: two transactions for each piece of work."""

    name = "agentcredits, reserve + commit"
    callers = (1, 128)

    async def charge(self) -> None:
        hold = await self._service.reserve_credits(**self.what, ttl=TTL)
        await hold.commit()


class OursPairsLimited(OursPairs):
    """The same with limits in force."""

    name = "agentcredits, reserve + commit, two limits"
    callers = (1, 8, 128)
    what: ClassVar = _LIMITED


def set_up(service: SyncCreditService, organization_id: str) -> None:
    """Credits for ever, and the limits of the limited account; safe to repeat."""
    service.grant_credits(organization_id, PLENTY, idempotency_key="benchmark")
    if organization_id == HOT_LIMITED:
        service.set_limit(organization_id, amount=PLENTY, window="month")
        service.set_limit(organization_id, scope="department", amount=PLENTY, window="month")
