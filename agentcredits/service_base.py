"""What both faces of the service share: the core, and how it is made."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agentcredits.clock import Clock
from agentcredits.runner.registry import Database
from agentcredits.service_core import ServiceCore

if TYPE_CHECKING:
    from agentcredits.settings import Settings


class BaseService:
    """Holds the core; see the two faces."""

    def __init__(
        self, database: Database | None = None, *, settings: Settings | None = None, clock: Clock | None = None
    ) -> None:
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
        # The runner's own threads are what is being closed: this one comes from the loop's default pool.
        await asyncio.to_thread(self._core.close)
