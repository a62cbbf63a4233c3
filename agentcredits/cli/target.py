"""Which database a command works on, and the rule that only ``demo`` and ``db upgrade`` create files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer
from sqlalchemy import URL, Engine

from agentcredits.cli.output import Output, make_console
from agentcredits.errors import ConfigurationError, SchemaError
from agentcredits.service import SyncCreditService
from agentcredits.settings import Settings, default_database_url, load_settings
from agentcredits.store.dialects import is_memory, make_engine, normalise_url
from agentcredits.store.upgrade import require_schema


@dataclass(frozen=True, slots=True)
class Options:
    """The options that every command takes, before its name or after it."""

    database: str | None = None
    as_json: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """The database of one command."""

    url: URL
    settings: Settings

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=bool(self.url.password))

    @property
    def path(self) -> Path | None:
        """The SQLite file, absolute; None for an in-memory database or PostgreSQL."""
        if self.url.get_backend_name() != "sqlite" or is_memory(self.url):
            return None
        return Path(str(self.url.database))

    @property
    def missing(self) -> bool:
        """Whether it is a SQLite file that is not there."""
        return self.path is not None and not self.path.exists()

    def require_file(self) -> None:
        """Refuse a missing SQLite file instead of creating an empty ledger in the wrong place.

        Raises:
            SchemaError: with the command that creates it.
        """
        if self.missing:
            raise SchemaError(
                f"There is no database file {self.path}: create it with"
                f" `agentcredits db upgrade --database {self.shown}`, or name another with --database.",
                reason="missing_file",
            )

    @contextmanager
    def engine(self, *, create: bool = False) -> Iterator[Engine]:
        """An engine for the length of the block.

        Args:
            create: Whether a SQLite file that is not there may be created.
        """
        if create:
            self._require_folder()
        else:
            self.require_file()
        engine = make_engine(
            self.url,
            pool_size=self.settings.pool_size,
            lock_timeout_seconds=self.settings.lock_timeout_seconds,
            sqlite_synchronous=self.settings.sqlite_synchronous,
        )
        try:
            yield engine
        finally:
            engine.dispose()

    def _require_folder(self) -> None:
        """The default file's folder is made; a folder that the user named is not, because it may be a slip."""
        if self.path is None or self.path.parent.is_dir():
            return
        if self.url == normalise_url(default_database_url()):
            self.path.parent.mkdir(parents=True)
            return
        raise ConfigurationError(
            f"There is no folder {self.path.parent} for the database file: create it first.", reason="missing_folder"
        )

    @contextmanager
    def service(self) -> Iterator[SyncCreditService]:
        """A service on the migrated database for the length of the block.

        Raises:
            SchemaError: the file or its schema is missing, old or newer.
        """
        with self.engine() as engine:
            with engine.connect() as connection:
                require_schema(connection, url=self.shown)
            with SyncCreditService(engine) as service:
                yield service


@dataclass(frozen=True, slots=True)
class Command:
    """What a command needs: its database and its output."""

    target: Target
    out: Output


def begin(ctx: typer.Context, database: str | None, as_json: bool) -> Command:
    """Join the options given before the command's name with those after it (these win)."""
    before = ctx.obj if isinstance(ctx.obj, Options) else Options()
    return Command(
        target=target_of(database or before.database),
        out=Output(console=make_console(), as_json=as_json or before.as_json),
    )


def target_of(database: str | None) -> Target:
    """``--database``, else AGENTCREDITS_DATABASE_URL, else the default SQLite file."""
    settings = load_settings()
    return Target(normalise_url(database or settings.database_url or default_database_url()), settings)
