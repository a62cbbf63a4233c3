"""Settings, from arguments and ``AGENTCREDITS_…`` environment variables.

pydantic-settings is imported here and this module only on first use, so that ``import agentcredits`` stays light.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from agentcredits.errors import ConfigurationError


class Settings(BaseSettings):
    """How agentcredits behaves. Every field can be set by ``AGENTCREDITS_<FIELD>`` in the environment.

    ``mode`` "off" (nothing is looked up, held or charged) can only be given as an argument: an environment variable
    that switches billing off in production would go unseen.
    """

    model_config = SettingsConfigDict(env_prefix="AGENTCREDITS_", frozen=True, extra="forbid")

    database_url: str | None = None
    mode: Literal["enforce", "observe", "off"] = "enforce"
    """"observe": nothing is refused for want of credits, limits or prices; what would have been is only recorded."""
    require_scopes: tuple[Literal["project", "department", "user"], ...] = ()
    """Charges without these are refused: a charge without a user slips past every limit for users."""
    reservation_ttl_seconds: float = Field(default=300.0, gt=0, le=86_400)
    """How long a hold lives without being renewed."""
    unknown_ttl_seconds: float = Field(default=7 * 86_400.0, gt=0, le=366 * 86_400)
    """How long a hold waits for a provider's verdict."""
    commit_grace_seconds: float = Field(default=0.0, ge=0, le=3_600)
    """How long after its expiry an explicit commit may still settle a hold."""
    idempotency_retention_days: float | None = Field(default=None, ge=1, le=36_500)
    """The least age at which ``purge`` takes keys of charges, reservations and refunds, and the age when it is told
    none. None: it must be told. Nothing is purged by itself."""
    on_settlement_failure: Literal["return", "raise"] = "return"
    """What a handle does when the work is done and the store is away (the settlement is retried either way)."""
    lock_timeout_seconds: float = Field(default=5.0, gt=0, le=60)
    """How long an own transaction waits for a lock."""
    retry_seconds: float = Field(default=2.0, ge=0, le=60)
    """How long a posting is tried again after conflicts, dead-locks and lost connections."""
    pool_size: int = Field(default=5, ge=1, le=200)
    """Connections for postings, on PostgreSQL the number of accounts that can be posted at the same moment, and as many
    for reads."""
    batch_size: int = Field(default=500, ge=1, le=5_000)
    """Operations in one transaction at most."""
    price_cache_seconds: float = Field(default=0.5, ge=0, le=1)
    """How old a price may be; at most one second, so that plain SQL on the table works."""
    price_max_age_days: int | None = Field(default=None, ge=1, le=36_500)
    """A price that was known to be right longer ago is warned about, once; None: never."""
    fault_rules: Path | None = None
    """A TOML file with rules for errors of media providers, asked before the package's own."""
    sqlite_synchronous: Literal["FULL", "NORMAL", "EXTRA"] = "FULL"
    """FULL survives a power cut; NORMAL is faster and may lose the last charges then (never after a crash)."""

    @property
    def reservation_ttl(self) -> timedelta:
        """The default time-to-live of a hold."""
        return timedelta(seconds=self.reservation_ttl_seconds)


def load_settings(**arguments: object) -> Settings:
    """Settings from arguments over the environment.

    Raises:
        ConfigurationError: an unknown name or a value out of range, or mode "off" from the environment.
    """
    if "mode" not in arguments and os.environ.get("AGENTCREDITS_MODE", "").strip().lower() == "off":
        raise ConfigurationError('AGENTCREDITS_MODE=off is not allowed: pass configure(mode="off") in code instead.')
    try:
        return Settings(**arguments)  # type: ignore[arg-type]  # pydantic checks the values
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(str(part) for part in problem["loc"]) or "settings"
        raise ConfigurationError(f"setting {name}: {problem['msg']}.", context={"setting": name}) from error


def default_database_url() -> str:
    """The default ledger: one absolute file per user, the same from every working directory."""
    base = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not base.is_absolute():
        # The XDG specification: a relative path is to be ignored.
        base = Path.home() / ".local" / "share"
    return f"sqlite:///{base / 'agentcredits' / 'agentcredits.db'}"
