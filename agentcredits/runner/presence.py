"""Which process this is, in a text that another process can check: whether the one that it names still lives."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from pathlib import Path

from agentcredits.ids import new_id


def own_name() -> str:
    """A new name for this process's work: ``<host>/<pid>/<where>/<unique>``, at most 64 characters."""
    host = "".join(c if c.isalnum() or c in "-." else "-" for c in platform.node())[:20] or "host"
    return f"{host}/{os.getpid()}/{_where() or '-'}/{new_id()[-12:]}"


def shown(name: str) -> str:
    """The name as a person reads it."""
    host, pid, *_ = [*name.split("/"), "?", "?"]
    return f"process {pid} on {host}"


def is_dead(name: str) -> bool:
    """Whether the process of that name is known to be gone: it was on this machine, and its pid is free.

    False wherever that cannot be known: another host, another container, a system without /proc.
    """
    _, pid, where, *_ = [*name.split("/"), "", ""]
    if not where or where != _where() or not pid.isdigit() or int(pid) <= 0:
        return False
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return True
    except OSError:
        return False
    # "pid (name) state …": a zombie holds its number, and does nothing any more
    return stat.rpartition(")")[2].split()[:1] == ["Z"]


@cache
def _where() -> str:
    """This boot and this process namespace; a pid means something only there. Empty where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
    return hashlib.blake2b(f"{platform.node()} {boot} {namespace}".encode(), digest_size=6).hexdigest()
