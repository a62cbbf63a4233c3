"""What both faces of the service share: the core, and how it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentcredits.clock import Clock
from agentcredits.runner.registry import Database
from agentcredits.runner.runner import in_fresh_thread
from agentcredits.service.core import ServiceCore

if TYPE_CHECKING:
    from agentcredits.settings import Settings


class _Configured:
    """What ``configure`` said; services made without arguments follow it."""

    database: Database | None = None
    settings: Settings | None = None
    clock: Clock | None = None


def follow(database: Database | None, settings: Settings | None, clock: Clock | None) -> None:
    """Let services that are made without arguments from now on use these."""
    _Configured.database, _Configured.settings, _Configured.clock = database, settings, clock


class BaseService:
    """Holds the core; see the two faces."""

    def __init__(
        self, database: Database | None = None, *, settings: Settings | None = None, clock: Clock | None = None
    ) -> None:
        if database is None and settings is None and clock is None:
            database, settings, clock = _Configured.database, _Configured.settings, _Configured.clock
        self._core = ServiceCore(database, settings=settings, clock=clock)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.database_url}>"

    @property
    def database_url(self) -> str:
        """The database's URL, its password hidden."""
        return self._core.lease.url

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._core.settings

    async def _close_in_thread(self) -> None:
        await in_fresh_thread(self._core.close)
