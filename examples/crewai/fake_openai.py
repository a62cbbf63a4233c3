"""FakeOpenAI stands in for api.openai.com: a server on 127.0.0.1 with scripted answers that keeps what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

Chat = Callable[[dict[str, Any]], str | tuple[str, dict[str, Any]]]
Image = Callable[[str], str | None]


class FakeOpenAI:
    """Serves ``/v1/chat/completions`` and ``/v1/images/generations`` while its block lasts.

    Args:
        chat: Function of a chat request that says the answer: a text, or a tool's name and its arguments.
        image: Function of a prompt that says the picture's address; None: an answer without data.
    """

    def __init__(self, chat: Chat = lambda _request: "Done.", image: Image = lambda prompt: f"{prompt}.png") -> None:
        self.chat, self.image = chat, image
        self.chats: list[dict[str, Any]] = []
        """The requests that were answered."""
        self.images: list[str] = []
        """The prompts that were answered."""
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())

    @property
    def url(self) -> str:
        """For ``OPENAI_BASE_URL``."""
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _serve(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            if path == "/v1/images/generations":
                self.images.append(request["prompt"])
                url = self.image(request["prompt"])
                data = [] if url is None else [{"url": url, "revised_prompt": request["prompt"]}]
                return {"created": 1, "data": data}
            self.chats.append(request)
            return self._completion(self.chat(request), request["model"])

    def _completion(self, answer: str | tuple[str, dict[str, Any]], model: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer}
        if isinstance(answer, tuple):
            function = {"name": answer[0], "arguments": json.dumps(answer[1])}
            calls = [{"id": f"call_{len(self.chats)}", "type": "function", "function": function}]
            message = {"role": "assistant", "content": None, "tool_calls": calls}
        reason = "tool_calls" if isinstance(answer, tuple) else "stop"
        return {
            "id": f"chat_{len(self.chats)}",
            "object": "chat.completion",
            "created": 1,
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        serve = self._serve

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                body = json.dumps(serve(self.path, request)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_args: Any) -> None:
                pass  # the examples' own lines are enough

        return Handler
