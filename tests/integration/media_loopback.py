"""A loopback server that answers as media providers do, and counts what it is asked."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

#: Status, body, headers.
Answer = tuple[int, Any, dict[str, str]]

#: Stainless clients (openai, runwayml) try again by themselves: without waiting here.
AT_ONCE = {"retry-after-ms": "1"}

PREDICTION = {
    "id": "p1",
    "model": "acme/painter",
    "version": "v1",
    "input": {},
    "logs": "",
    "created_at": "2026-11-20T12:00:00Z",
    "urls": {},
}
BILLING = "https://provider.example/billing"

#: What each provider answers to the call that starts a job, by what is the matter with it.
FAILURES: dict[str, dict[str, Answer]] = {
    "fal": {
        "exhausted": (
            403,
            {"detail": "User is locked. Reason: Exhausted balance. Top up your balance at fal.ai/dashboard/billing."},
            {},
        ),
        "limited": (
            429,
            {"detail": "Too many concurrent requests", "error_type": "concurrent_requests_limit"},
            {"x-fal-needs-retry": "1"},
        ),
        "refused": (
            422,
            {
                "detail": [
                    {
                        "loc": ["body", "prompt"],
                        "msg": "flagged by a content checker",
                        "type": "content_policy_violation",
                    }
                ]
            },
            {},
        ),
        "trouble": (500, {"detail": "Internal server error"}, {}),
    },
    "replicate": {
        "exhausted": (
            402,
            {
                "title": "Insufficient credit",
                "detail": "You have insufficient credit to run this model. Go to"
                " https://replicate.com/account/billing#billing to purchase credit.",
                "status": 402,
            },
            {},
        ),
        "limited": (
            429,
            {
                "title": "Too many requests",
                "detail": "Request was throttled. Your rate limit for creating predictions is reduced to 6 requests per"
                " minute while you have less than $5.0 in credit.",
                "status": 429,
            },
            {},
        ),
        "refused": (
            422,
            {"title": "Input validation failed", "detail": "- input.prompt: NSFW content detected", "status": 422},
            {},
        ),
        "trouble": (503, {"title": "Service unavailable", "detail": "Try again later", "status": 503}, {}),
    },
    "openai": {
        "exhausted": (
            429,
            {
                "error": {
                    "message": "You have no credits remaining. Add credits to continue using the API at"
                    " https://platform.openai.com/settings/organization/billing/.",
                    "type": "insufficient_quota",
                    "code": "credit_balance_exhausted",
                }
            },
            AT_ONCE,
        ),
        "limited": (
            429,
            {"error": {"message": "Rate limit reached", "type": "requests", "code": "rate_limit_exceeded"}},
            AT_ONCE,
        ),
        "refused": (
            400,
            {
                "error": {
                    "message": "Your request was rejected by the safety system.",
                    "type": "image_generation_user_error",
                    "code": "moderation_blocked",
                }
            },
            {},
        ),
        "trouble": (500, {"error": {"message": "The server had an error", "type": "server_error"}}, AT_ONCE),
    },
    "runway": {
        "exhausted": (400, {"error": "You do not have enough credits to run this task."}, {}),
        "limited": (429, {"error": "Too many requests, slow down."}, AT_ONCE),
        "refused": (400, {"error": "Validation of body failed", "issues": [{"message": "promptText is too long"}]}, {}),
        "trouble": (502, {"error": "Bad gateway"}, AT_ONCE),
    },
    "elevenlabs": {
        "exhausted": (
            401,
            {
                "detail": {
                    "status": "quota_exceeded",
                    "message": "This request exceeds your quota of 10000. You have 5 credits remaining, while 19"
                    " credits are required for this request.",
                }
            },
            {},
        ),
        "limited": (
            429,
            {"detail": {"status": "too_many_concurrent_requests", "message": "Too many concurrent requests."}},
            {},
        ),
        "refused": (
            400,
            {"detail": {"status": "content_against_policy", "message": "The content violates our policies."}},
            {},
        ),
        "trouble": (503, {"detail": {"status": "internal_server_error", "message": "Something went wrong."}}, {}),
    },
    "google": {
        "exhausted": (
            429,
            {
                "error": {
                    "code": 429,
                    "message": "Your prepayment credits are depleted. Please go to AI Studio at"
                    " https://ai.studio/projects to manage your project and billing.",
                    "status": "RESOURCE_EXHAUSTED",
                }
            },
            {},
        ),
        "limited": (
            429,
            {
                "error": {
                    "code": 429,
                    "message": "You exceeded your current quota.",
                    "status": "RESOURCE_EXHAUSTED",
                    "details": [
                        {
                            "@type": "type.googleapis.com/google.rpc.QuotaFailure",
                            "violations": [{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel"}],
                        },
                        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7s"},
                    ],
                }
            },
            {},
        ),
        "refused": (
            400,
            {"error": {"code": 400, "message": "The prompt contains sensitive words.", "status": "INVALID_ARGUMENT"}},
            {},
        ),
        "trouble": (503, {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}, {}),
    },
}


class Loopback:
    """Every provider on one port; ``matter`` says what is wrong with the account or the request, None: nothing."""

    def __init__(self) -> None:
        self.matter: str | None = None
        #: A job that was accepted: "done" or "running".
        self.job = "done"
        #: Method and path of each request.
        self.asked: list[str] = []
        loopback = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                self._answer()

            def do_GET(self) -> None:
                self._answer()

            def do_PUT(self) -> None:
                self.do_POST()

            def _answer(self) -> None:
                loopback.asked.append(f"{self.command} {self.path}")
                provider, _, path = self.path.lstrip("/").partition("/")
                status, body, headers = loopback.answer(provider, self.command, path)
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"content-type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                """Nothing on the test's terminal."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def url(self, provider: str) -> str:
        """Where a client of the provider is sent."""
        return f"http://127.0.0.1:{self._server.server_port}/{provider}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, provider: str, method: str, path: str) -> Answer:
        """What the provider says."""
        if self.matter is not None and method == "POST":
            return FAILURES[provider][self.matter]
        body: Any
        match provider, method:
            case "fal", "POST":
                job = self.url("fal") + "/requests/job-1"
                body = {"request_id": "job-1", "response_url": job, "status_url": f"{job}/status", "cancel_url": job}
            case "fal", "GET" if path.startswith("requests/job-1/status"):
                body = (
                    {"status": "COMPLETED", "logs": []} if self.job == "done" else {"status": "IN_PROGRESS", "logs": []}
                )
            case "fal", _:
                body = {"images": [{"url": "https://files/1.png"}]}
            case "replicate", _:
                return 201, {**PREDICTION, "status": "succeeded", "output": "https://files/1.png"}, {}
            case "openai", _:
                body = {"created": 1, "data": [{"b64_json": "aGVsbG8="}]}
            case "runway", "POST":
                body = {"id": "17f20503-6c24-4c16-946b-35dbbce2af2f"}
            case "runway", _:
                body = {
                    "id": "17f20503-6c24-4c16-946b-35dbbce2af2f",
                    "createdAt": "2026-11-20T12:00:00Z",
                    "status": "SUCCEEDED" if self.job == "done" else "RUNNING",
                    **({"output": ["https://files/1.png"]} if self.job == "done" else {"progress": 0.5}),
                }
            case "elevenlabs", _:
                return 200, b"\x00sound\x00" * 100, {"content-type": "audio/mpeg"}
            case _:
                picture = {"inlineData": {"mimeType": "image/png", "data": "aGVsbG8="}}
                body = {"candidates": [{"content": {"parts": [picture], "role": "model"}, "finishReason": "STOP"}]}
        return 200, body, {}
