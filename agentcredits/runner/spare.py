"""Connections that posters keep from one posting to the next: out of the pool and back costs more than a statement."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection


class Spare:
    """Connections without a transaction, for whoever posts next; a list's own methods are atomic.

    Args:
        connect: Takes one out of the pool.
        most: How many are kept at most; the others go back to the pool.
    """

    def __init__(self, connect: Callable[[], Connection], most: int) -> None:
        self._connect = connect
        self._most = most
        self._idle: list[Connection] = []

    def take(self, before_connecting: Callable[[], None] = lambda: None) -> Connection:
        """A kept connection, or one out of the pool, which may take long."""
        try:
            return self._idle.pop()
        except IndexError:
            before_connecting()
            return self._connect()

    def give(self, connection: Connection) -> None:
        """Keep a connection after a posting that went well."""
        if len(self._idle) < self._most:
            self._idle.append(connection)
        else:
            connection.close()

    def clear(self) -> None:
        """Give all back to the pool: what became of one may have become of the others, and the pool finds out."""
        while self._idle:
            self.take().close()

    def close(self) -> None:
        """Keep none any more."""
        self._most = 0
        self.clear()
