"""The public faces of the service, and the default one that decorators and BaseCrew use."""

from __future__ import annotations

import threading
import warnings

from agentcredits.clock import Clock
from agentcredits.errors import AgentCreditsWarning
from agentcredits.runner.registry import Database
from agentcredits.service.base import follow
from agentcredits.service.blocking import SyncCreditService
from agentcredits.service.core import ServiceCore
from agentcredits.service.coroutine import CreditService

_lock = threading.RLock()
_default: CreditService | None = None


def configure(database: Database | None = None, *, clock: Clock | None = None, **settings: object) -> CreditService:
    """Say what decorators, BaseCrew and services without arguments use; returns a service on it.

    Args:
        database: URL, Engine, or None for the environment's or the default file.
        clock: Replaces the database's clock (for tests).
        **settings: Fields of ``Settings``; ``mode="off"`` (nothing is looked up, held or charged) is only possible
            here, for development and tests.

    Raises:
        ConfigurationError: a database or setting that cannot be used.
    """
    from agentcredits.settings import load_settings

    global _default
    chosen = load_settings(**settings)
    service = CreditService(database, settings=chosen, clock=clock)
    follow(database, chosen, clock)
    if chosen.mode == "off":
        warnings.warn("agentcredits is switched off: nothing is charged.", AgentCreditsWarning, stacklevel=2)
    with _lock:
        old, _default = _default, service
    if old is not None:
        old.close()
    return service


def default_service() -> CreditService:
    """The service that ``configure`` made, or one from the environment."""
    global _default
    if _default is None:
        with _lock:
            if _default is None:
                _default = CreditService()
    return _default


def core_of(service: CreditService | SyncCreditService | None) -> ServiceCore:
    """The core behind a face; None: the default service's."""
    return (default_service() if service is None else service)._core


__all__ = ["CreditService", "SyncCreditService", "configure", "core_of", "default_service"]
