"""What media tools are tried with: a provider that answers as it is told, and the failures that providers report."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from agentcredits import RequestContext, SyncCreditService

KEY = "sk-live-1234567890abcdef1234567890"
LINK = "fal.ai/dashboard/billing"
ACME = RequestContext("acme")
PRICE = 10

Tool = Callable[..., Any]


class FakeProviderError(Exception):
    """What a client raises for an HTTP answer, as far as anybody looks at it."""

    def __init__(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        super().__init__(json.dumps(body))
        self.status_code = status
        self.body = body
        self.headers = headers or {}


class FakeTimeoutError(TimeoutError):
    """A client that stopped waiting for a job."""

    def __init__(self, request_id: str) -> None:
        super().__init__("timed out")
        self.request_id = request_id


def exhausted() -> Exception:
    return FakeProviderError(
        403, {"detail": f"User is locked. Reason: Exhausted balance. Top up your balance at {LINK}. key={KEY}"}
    )


def locked() -> Exception:
    return FakeProviderError(403, {"detail": "User is locked. Reason: Admin lock. Please contact support@fal.ai"})


def quota() -> Exception:
    return FakeProviderError(429, {"detail": "Daily limit reached"}, {"retry-after": "3600"})


def limited() -> Exception:
    return FakeProviderError(429, {"detail": "Too many", "error_type": "concurrent_requests_limit"})


def refused() -> Exception:
    return FakeProviderError(422, {"detail": [{"msg": "content policy", "type": "content_policy_violation"}]})


def trouble() -> Exception:
    return FakeProviderError(503, {"detail": "Service unavailable"})


class FakeProvider:
    """Raises or returns what it is told, and counts the calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.answers: list[object] = []

    def generate(self, prompt: str, seconds: int = 5, api_key: str = KEY, client: object = None) -> object:
        self.calls.append(prompt)
        answer = self.answers.pop(0) if self.answers else {"url": "https://files/1.png"}
        if isinstance(answer, BaseException):
            raise answer
        return answer


def spent(ledger: SyncCreditService) -> Decimal:
    """What acme has spent; nothing is held and the books are right."""
    balance = ledger.get_balance("acme")
    assert balance.reserved == 0, balance
    assert ledger.verify().problems == (), ledger.verify().problems
    return balance.spent
