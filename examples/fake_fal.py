"""A fake of fal on this machine: its queue (submit, status, result), its files, its balance, and its books.

It speaks as fal does to fal's own client, makes no pictures worth the name, and asks for no key. With a balance it
runs out: 403 "User is locked. Reason: Exhausted balance …". Not a part of agentcredits.
"""

from __future__ import annotations

import json
import struct
import threading
import time
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

LOCKED = "User is locked. Reason: Exhausted balance. Top up your balance at fal.ai/dashboard/billing."


class FakeFal:
    """A server on the loopback; use it as a context manager.

    Args:
        balance: How many pictures it makes before it is "locked".
        seconds: How long a picture takes; answers to a submission take as long.
    """

    def __init__(self, balance: int = 1_000_000, seconds: float = 0.0) -> None:
        self.balance = balance
        self.seconds = seconds
        #: Every request that was accepted, and so billed: its id, and the arguments.
        self.accepted: dict[str, dict[str, Any]] = {}
        self.refused = 0
        self._lock = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def top_up(self, pictures: int) -> None:
        with self._lock:
            self.balance += pictures

    def calls_by_prompt(self) -> Counter[str]:
        """How often each prompt was billed."""
        with self._lock:
            return Counter(str(arguments.get("prompt")) for arguments in self.accepted.values())

    def wait_for(self, count: int) -> None:
        """Wait until so many requests were accepted in all."""
        with self._lock:
            assert self._lock.wait_for(lambda: len(self.accepted) >= count, timeout=60)

    def submit(self, arguments: dict[str, Any]) -> str | None:
        """Accept (and bill) a request; None when the balance is used up."""
        with self._lock:
            if self.balance < 1:
                self.refused += 1
                return None
            self.balance -= 1
            request_id = f"fake-{len(self.accepted) + 1:04d}"
            self.accepted[request_id] = arguments
            self._lock.notify_all()
            return request_id

    def _handler(fal: FakeFal) -> type[BaseHTTPRequestHandler]:  # noqa: N805  # "self" is the handler below
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Be quiet."""

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                if len(body) < length:
                    self.close_connection = True  # whoever asks died in the middle of it
                    return
                request_id = fal.submit(json.loads(body or b"{}"))
                time.sleep(fal.seconds)
                if request_id is None:
                    self.answer(403, {"detail": LOCKED})
                    return
                place = f"{fal.url}{self.path}/requests/{request_id}"
                urls = {"response_url": place, "status_url": f"{place}/status", "cancel_url": f"{place}/cancel"}
                self.answer(200, {"status": "IN_QUEUE", "request_id": request_id, "queue_position": 0, **urls})

            def do_GET(self) -> None:
                parts = self.path.partition("?")[0].strip("/").split("/")
                if parts[0] == "files":
                    self.send(200, "image/png", a_picture())
                    return
                request_id = parts[-2] if parts[-1] == "status" else parts[-1]
                arguments = fal.accepted.get(request_id)
                if arguments is None:
                    self.answer(404, {"detail": "Request not found"})
                elif parts[-1] == "status":
                    time.sleep(fal.seconds)
                    self.answer(200, {"status": "COMPLETED", "logs": None, "metrics": {"inference_time": 0.1}})
                else:
                    image = {"url": f"{fal.url}/files/{request_id}.png", "content_type": "image/png"}
                    self.answer(200, {"images": [image], "prompt": arguments.get("prompt"), "seed": 7})

            def answer(self, status: int, body: dict[str, Any]) -> None:
                self.send(status, "application/json", json.dumps(body).encode())

            def send(self, status: int, kind: str, data: bytes) -> None:
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # whoever asked is gone

        return Handler


def a_picture() -> bytes:
    """A PNG of one grey pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\x00\x80")) + chunk(b"IEND", b"")


def use(client: Any, fal: FakeFal) -> None:
    """Point fal's client at the fake.

    Its environment variables name hosts and always say https; the two formats of its module are what it builds
    addresses from.
    """
    client.client.QUEUE_URL_FORMAT = f"{fal.url}/"
    client.client.RUN_URL_FORMAT = f"{fal.url}/"


if __name__ == "__main__":
    with FakeFal(balance=5) as server:
        answers = [server.submit({"prompt": f"wave {number}"}) for number in range(6)]
        print("a fake of fal; see fal_batch.py")
        print(f"accepted {len(server.accepted)}, refused {server.refused}")
