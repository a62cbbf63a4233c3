"""For operators: which provider accounts are not called now, and opening the way again by hand."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import overload

from agentcredits.media.breaker import breakers_of
from agentcredits.model import OpenBreaker
from agentcredits.service import CreditService, SyncCreditService, core_of


@overload
def open_breakers(service: SyncCreditService) -> tuple[OpenBreaker, ...]: ...


@overload
def open_breakers(service: CreditService) -> Awaitable[tuple[OpenBreaker, ...]]: ...


def open_breakers(
    service: SyncCreditService | CreditService,
) -> tuple[OpenBreaker, ...] | Awaitable[tuple[OpenBreaker, ...]]:
    """The provider accounts that nobody calls now, of all processes on the service's database. Not for customers.

    Args:
        service: Blocking, or async: then await what comes back.
    """
    core = core_of(service)
    steps = breakers_of(core).list()
    return core.arun(steps) if isinstance(service, CreditService) else core.run(steps)


@overload
def close_breaker(service: SyncCreditService, provider: str, account: str = "") -> bool: ...


@overload
def close_breaker(service: CreditService, provider: str, account: str = "") -> Awaitable[bool]: ...


def close_breaker(
    service: SyncCreditService | CreditService, provider: str, account: str = ""
) -> bool | Awaitable[bool]:
    """Call a provider again at once, because its account was topped up or unlocked; others know within a second.

    Args:
        service: Blocking, or async: then await what comes back.
        provider: The provider's name.
        account: Your label of the account.

    Returns:
        Whether it was closed to calls.
    """
    core = core_of(service)
    steps = breakers_of(core).close(provider, account)
    return core.arun(steps) if isinstance(service, CreditService) else core.run(steps)
