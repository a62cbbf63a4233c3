"""A loopback server that answers as OpenAI does and counts what it serves, and what the ledger says was served."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from crewai import LLM

from agentcredits import SyncCreditService

Answer = Callable[[dict[str, Any]], Any]


class _Listener(ThreadingHTTPServer):
    request_queue_size = 512


class Server:
    """An OpenAI-compatible server on 127.0.0.1 that counts what it serves, in total and by API key.

    ``answer`` gives for each request a text, a list of tool calls, or a number (an HTTP error).
    """

    def __init__(self) -> None:
        self.answer: Answer = draws_once
        self.requests = 0
        self.served: dict[str, dict[str, int]] = {}
        self._lock = threading.Lock()
        self._http = _Listener(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def llm(self, key: str = "acme", **more: Any) -> LLM:
        return LLM(model="openai/gpt-4o-mini", base_url=self.url, api_key=key, **more)

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _serve(self, key: str, body: dict[str, Any]) -> tuple[Any, dict[str, int]]:
        with self._lock:
            self.requests += 1
        found = self.answer(body)
        if isinstance(found, int):
            return found, {}
        with self._lock:
            prompt, completion = 100 + len(body["messages"]), 7
            count = self.served.setdefault(key, {"requests": 0, "tokens": 0})
            count["requests"] += 1
            count["tokens"] += prompt + completion
        return found, {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                found, usage = server._serve(self.headers["Authorization"].removeprefix("Bearer "), body)
                if isinstance(found, int):
                    return self.reply(found, {"error": {"message": "broken", "type": "server_error"}})
                message: dict[str, Any] = {"role": "assistant", "content": found}
                if isinstance(found, list):
                    calls = [
                        {"index": n, "id": f"c{n}", "type": "function", "function": {"name": name, "arguments": text}}
                        for n, (name, text) in enumerate(found)
                    ]
                    message = {"role": "assistant", "content": None, "tool_calls": calls}
                ends = "tool_calls" if isinstance(found, list) else "stop"
                about = {"id": "x", "created": 1, "model": "gpt-4o-mini"}
                if not body.get("stream"):
                    choice = {"index": 0, "message": message, "finish_reason": ends}
                    return self.reply(200, about | {"object": "chat.completion", "choices": [choice], "usage": usage})
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                kind = about | {"object": "chat.completion.chunk"}
                for chunk in (
                    kind | {"choices": [{"index": 0, "delta": message, "finish_reason": None}]},
                    kind | {"choices": [{"index": 0, "delta": {}, "finish_reason": ends}]},
                    kind | {"choices": [], "usage": usage},
                ):
                    self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
                self.wfile.write(b"data: [DONE]\n\n")
                return None

            def reply(self, status: int, data: dict[str, Any]) -> None:
                text = json.dumps(data).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        return Handler


def draws_once(body: dict[str, Any]) -> Any:
    """A tool call first, the answer after its result."""
    names = [entry["function"]["name"] for entry in body.get("tools") or ()]
    if "draw" in names and not any(message["role"] == "tool" for message in body["messages"]):
        return [("draw", '{"prompt": "tea"}')]
    return "fin"


def booked(ledger: SyncCreditService, organization: str = "acme") -> dict[str, int]:
    """What the metadata of the LLM charges says was served."""
    rows = list(ledger.list_transactions(organization, type="debit", action="llm_call", limit=500))
    usages = [row.metadata["usage"] for row in rows if row.metadata]
    return {
        "requests": sum(usage["successful_requests"] for usage in usages),
        "tokens": sum(usage["total_tokens"] for usage in usages),
        "charges": len(rows),
    }
