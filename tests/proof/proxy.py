"""A proxy between psycopg and PostgreSQL that cuts a connection when its COMMIT went out."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from sqlalchemy import make_url

Cut = Literal["answer lost", "never arrived"]


SYNC = b"S\x00\x00\x00\x04"


class CuttingProxy:
    """Listens on a Unix socket of its own; ``url`` leads through it.

    Once armed, the next COMMIT on any connection is cut: "answer lost" lets the server finish it first, "never arrived"
    keeps it from the server. Its client sees the same in both cases.
    """

    def __init__(self, url: str) -> None:
        self._server = make_url(url)
        self._folder = tempfile.TemporaryDirectory(prefix="agentcredits-proxy-")
        self._listener = socket.socket(socket.AF_UNIX)
        self._door = Path(self._folder.name) / ".s.PGSQL.5432"
        self._listener.bind(str(self._door))
        self._listener.listen(64)
        self._changed = threading.Condition()
        self._next: Cut | None = None
        self._under_way = False
        self.cuts = 0
        through = self._server.set(host=None, port=None).update_query_dict({"host": self._folder.name})
        self.url = through.render_as_string(hide_password=False)

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.close()
        self._folder.cleanup()

    def lock_door(self) -> None:
        """Let no new connection in; those that are open stay."""
        self._door.unlink()

    def arm(self, cut: Cut = "answer lost") -> None:
        """Cut the next COMMIT; waits for the end of a cut that is under way."""
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way)
            self._next = cut

    def wait_until_cut(self, patience_seconds: float = 60) -> None:
        """Wait until the COMMIT that it was armed for has been cut."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._next is None, patience_seconds), "no COMMIT came by"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = self._connect()
                threading.Thread(target=self._to_server, args=(client, server), daemon=True).start()

    def _connect(self) -> socket.socket:
        host = str(self._server.query.get("host") or self._server.host or "localhost")
        port = self._server.port or 5432
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{port}")
        return server

    def _to_server(self, client: socket.socket, server: socket.socket) -> None:
        answers = threading.Thread(target=self._to_client, args=(client, server), daemon=True)
        answers.start()
        with contextlib.suppress(OSError), client, server:
            while data := client.recv(65_536):
                cut = self._take_cut() if b"COMMIT" in data else None
                if cut is None:
                    server.sendall(data)
                    continue
                client.shutdown(socket.SHUT_RDWR)
                if cut == "answer lost":
                    # Its Sync may still be on the way: without one the server would keep its answer to itself.
                    server.sendall(data + SYNC)
                    # The other thread, whose client is gone, ends with the first answer: wait for that.
                    answers.join(10)
                # close() alone would not end the connection: the other thread is reading from it.
                server.shutdown(socket.SHUT_RDWR)
                self._done()
                return
            server.shutdown(socket.SHUT_RDWR)

    def _take_cut(self) -> Cut | None:
        with self._changed:
            if self._next is None or self._under_way:
                return None
            self._under_way = True
            return self._next

    def _done(self) -> None:
        with self._changed:
            self._next, self._under_way = None, False
            self.cuts += 1
            self._changed.notify_all()

    @staticmethod
    def _to_client(client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65_536):
                client.sendall(data)
