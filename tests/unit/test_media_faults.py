"""The classifier's types, reading of clients' exceptions, bodies, values, chains and groups."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import openai
import pytest
import requests

from agentcredits import media
from agentcredits.media import (
    FaultCategory,
    ProviderFault,
    classify_provider_error,
    find_provider_fault,
)

NOW = datetime(2027, 1, 31, 12, 0, tzinfo=UTC)
EXHAUSTED = {"detail": "User is locked. Reason: Exhausted balance. Top up your balance at fal.ai/dashboard/billing."}


# -- exceptions as the clients raise them: what is installed is real, the others are copies of their attributes -----


def answer(status: int, body: object, url: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
    return httpx.Response(status, json=body, headers=headers, request=httpx.Request("POST", url))


class FakeFalClientHTTPError(Exception):
    def __init__(self, response: httpx.Response) -> None:
        super().__init__(response.json()["detail"])
        self.message = str(response.json()["detail"])
        self.status_code = response.status_code
        self.error_type = response.headers.get("x-fal-error-type")
        self.response = response


class FakeReplicateError(Exception):
    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(f"ReplicateError Details:\ntitle: {title}\nstatus: {status}\ndetail: {detail}")
        self.status = status
        self.title = title
        self.detail = detail


class FakeElevenLabsApiError(Exception):
    def __init__(self, status_code: int, body: object) -> None:
        super().__init__()
        self.status_code = status_code
        self.body = body
        self.headers: dict[str, str] = {}


class FakeGoogleClientError(Exception):
    def __init__(self, code: int, details: dict[str, Any]) -> None:
        super().__init__(f"{code} {details['error']['status']}. {details}")
        self.code = code
        self.status = details["error"]["status"]
        self.message = details["error"]["message"]
        self.details = details


class FakeRpcState:
    name = "PERMISSION_DENIED"


class RpcError(Exception):
    """Named as gRPC names its base: it answers by methods."""

    def code(self) -> FakeRpcState:
        return FakeRpcState()

    def details(self) -> str:
        return "Your organization does not have enough balance to request this action (need $0.02, have $0)."


class FakeBotoClientError(Exception):
    def __init__(self) -> None:
        super().__init__("An error occurred")
        self.response = {
            "Error": {"Code": "ThrottlingException", "Message": "Too many tokens per day, please wait."},
            "ResponseMetadata": {"HTTPStatusCode": 429},
        }


def openai_error(code: str, message: str, headers: Mapping[str, str] | None = None) -> openai.RateLimitError:
    error = {"message": message, "type": code, "param": None, "code": code}
    response = answer(429, {"error": error}, "https://api.openai.com/v1/images/generations", headers)
    return openai.RateLimitError(f"Error code: 429 - {error}", response=response, body=error)


def httpx_error() -> httpx.HTTPStatusError:
    response = answer(403, EXHAUSTED, "https://queue.fal.run/fal-ai/flux/dev")
    return httpx.HTTPStatusError("Client error '403 Forbidden'", request=response.request, response=response)


def requests_error() -> requests.HTTPError:
    response = requests.Response()
    response.status_code = 200
    response.status_code = 402
    response.url = "https://api.stability.ai/v2beta/stable-image/generate/core"
    response._content = b'{"errors":["You lack sufficient credits to make this request."],"name":"payment_required"}'
    return requests.HTTPError("402 Client Error", response=response)


def hub_error() -> Exception:
    from huggingface_hub.errors import HfHubHTTPError

    response = answer(
        402, {"error": "You have depleted your monthly included credits."}, "https://router.huggingface.co/x"
    )
    return HfHubHTTPError(
        "402 Client Error", response=response, server_message="You have depleted your monthly included credits."
    )  # type: ignore[arg-type]


def aiohttp_error() -> Exception:
    import aiohttp
    from multidict import CIMultiDict, CIMultiDictProxy
    from yarl import URL

    url = URL("https://api.replicate.com/v1/predictions")
    asked = aiohttp.RequestInfo(url, "POST", CIMultiDictProxy(CIMultiDict()), url)
    return aiohttp.ClientResponseError(
        asked, (), status=429, message="Too Many Requests", headers=CIMultiDict({"Retry-After": "7"})
    )


REAL_AND_COPIED: dict[str, tuple[Callable[[], BaseException], str, str | None, int | None]] = {
    "openai, no credit": (
        lambda: openai_error("insufficient_quota", "You exceeded your current quota, please check your plan."),
        "credits_exhausted",
        "openai",
        429,
    ),
    "openai, too fast": (
        lambda: openai_error("rate_limit_exceeded", "Rate limit reached for images per minute."),
        "rate_limited",
        "openai",
        429,
    ),
    "openai, no network": (
        lambda: openai.APIConnectionError(request=httpx.Request("POST", "https://api.openai.com/v1/images")),
        "transient",
        "openai",
        None,
    ),
    "httpx": (httpx_error, "credits_exhausted", "fal", 403),
    "httpx, no network": (lambda: httpx.ConnectError("[Errno -2] Name or service not known"), "transient", None, None),
    "requests": (requests_error, "credits_exhausted", "stability", 402),
    "huggingface_hub": (hub_error, "credits_exhausted", "huggingface", 402),
    "aiohttp": (aiohttp_error, "rate_limited", "replicate", 429),
    "fal": (
        lambda: FakeFalClientHTTPError(answer(403, EXHAUSTED, "https://queue.fal.run/x")),
        "credits_exhausted",
        "fal",
        403,
    ),
    "replicate": (
        lambda: FakeReplicateError(402, "Insufficient credit", "You have insufficient credit to run this model."),
        "credits_exhausted",
        None,
        402,
    ),
    "elevenlabs": (
        lambda: FakeElevenLabsApiError(
            401,
            {
                "detail": {
                    "status": "quota_exceeded",
                    "message": "You have 5 credits remaining, while 19 credits are required for this request.",
                }
            },
        ),
        "credits_exhausted",
        None,
        401,
    ),
    "google": (
        lambda: FakeGoogleClientError(
            429,
            {
                "error": {
                    "code": 429,
                    "message": "Your prepayment credits are depleted.",
                    "status": "RESOURCE_EXHAUSTED",
                }
            },
        ),
        "credits_exhausted",
        None,
        429,
    ),
    "grpc": (RpcError, "credits_exhausted", None, None),
    "botocore": (FakeBotoClientError, "quota_window", None, 429),
}


@pytest.mark.parametrize("name", REAL_AND_COPIED)
def test_an_exception_of_a_client_is_read_by_its_attributes(name: str) -> None:
    """Category, provider (from the address or the client) and status, without importing any client."""
    make, category, provider, status = REAL_AND_COPIED[name]
    fault = classify_provider_error(make(), now=NOW)
    assert (fault.category, fault.provider, fault.status) == (category, provider, status)


def test_a_streamed_body_is_not_fetched() -> None:
    """Classifying must not read from the network: requests would fetch an unread body when asked for it."""
    read: list[str] = []

    class FakeStreamedResponse:
        status_code = 429
        headers: Mapping[str, str] = {}
        url = "https://api.example.com/x"
        _content = False

        @property
        def content(self) -> bytes:
            read.append("content")
            return b"Insufficient credits"

    class FakeHTTPError(Exception):
        response = FakeStreamedResponse()

    assert classify_provider_error(FakeHTTPError(), now=NOW).category == "rate_limited"
    assert read == []


def test_the_client_is_not_imported() -> None:
    """Importing and using the classifier loads no client, no web and no database library."""
    program = (
        "import json, sys\nfrom agentcredits.media import classify_provider_error\n"
        "classify_provider_error(ValueError('x'), status=402, body=b'{}')\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    clients = {"openai", "httpx", "requests", "aiohttp", "huggingface_hub", "grpc", "sqlalchemy", "pydantic", "typer"}
    assert clients & set(json.loads(done.stdout)) == set()


# -- bodies and returned values ------------------------------------------------------------------------------------


def test_the_fault_is_a_frozen_record_for_two_readers() -> None:
    """The operator gets the provider and its billing page, the customer neither."""
    fault = classify_provider_error(provider="fal", status=403, body=EXHAUSTED, now=NOW)
    assert fault.category is FaultCategory.CREDITS_EXHAUSTED
    assert (fault.provider, fault.scope, fault.retryable, fault.retry_at) == ("fal", "account", False, None)
    assert fault.rule == "fal.exhausted-balance"
    assert "https://fal.ai/dashboard/billing" in fault.guidance
    assert "fal" not in fault.customer_message.lower()
    assert "Exhausted balance" in fault.message
    assert next(field.name for field in fields(ProviderFault)) == "category"
    with pytest.raises(FrozenInstanceError):
        fault.category = FaultCategory.OTHER  # type: ignore[misc]


@pytest.mark.parametrize(
    ("value", "category"),
    [
        ({"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}, "credits_exhausted"),
        ({"error": {"code": 402, "message": "Insufficient credits"}}, "credits_exhausted"),
        ({"status": "FAILED", "failureCode": "SAFETY.INPUT.TEXT", "failure": None}, "rejected"),
        ({"data": {"task_status": "failed", "task_status_msg": "Content policy violation"}}, "rejected"),
        ({"success": False, "message": "Too many requests"}, "rate_limited"),
        ('{"error": "Insufficient credits"}', "credits_exhausted"),
        (answer(200, {"error": {"message": "Rate limit reached"}}, "https://api.example.com"), "rate_limited"),
    ],
)
def test_a_fault_inside_a_returned_value_is_found(value: object, category: str) -> None:
    """HTTP 200 with an error inside."""
    fault = find_provider_fault(value, now=NOW)
    assert fault is not None
    assert fault.category == category


@pytest.mark.parametrize(
    "value",
    [
        {"images": [{"url": "https://example.com/a.png"}], "prompt": "a sign that says insufficient credits"},
        {"base_resp": {"status_code": 0, "status_msg": "success"}, "trace_id": "1"},
        {"choices": [{"message": {"content": "Your credit balance is too low."}, "finish_reason": "stop"}]},
        {"status": "succeeded", "message": "insufficient credits was the title of the film", "error": None},
        {"status": "completed", "metadata": {"title": "out of credits"}},
        "https://example.com/insufficient-credits.mp4",
        b"\x89PNG insufficient credits",
        answer(200, {"images": []}, "https://queue.fal.run/x"),
        [],
        42,
        None,
    ],
)
def test_a_product_is_not_taken_for_a_fault(value: object) -> None:
    """Only what is marked as a failure counts, whatever the product says."""
    assert find_provider_fault(value, provider="fal", now=NOW) is None


def test_a_model_object_is_read_like_its_json() -> None:
    """Clients return objects; their fields are attributes."""

    @dataclass
    class FakeTask:
        status: str
        failure: str
        failure_code: str

    task = FakeTask("FAILED", "Internal error. Please try again later.", "INTERNAL")
    fault = find_provider_fault(task, provider="runway", now=NOW)
    assert fault is not None
    assert fault.category == "transient"


@pytest.mark.parametrize(
    ("status", "body", "category", "rule"),
    [
        (200, "<html><title>Welcome</title></html>", "other", "unreadable"),
        (200, "it works", "other", "unreadable"),
        (502, "<html><title>502 Bad Gateway</title></html>", "transient", None),
        (500, b"\xff\xfe\x00 not text", "transient", None),
        (402, "", "credits_exhausted", "status-402"),
        (403, "<html><title>Attention Required!</title></html>", "other", None),
    ],
)
def test_an_answer_that_is_not_json_is_a_fault_of_its_status(
    status: int, body: str | bytes, category: str, rule: str | None
) -> None:
    """Never an exception, and never a success."""
    fault = classify_provider_error(status=status, body=body, now=NOW)
    assert fault.category == category
    assert rule is None or fault.rule == rule


@pytest.mark.parametrize(
    "body",
    [
        {
            "detail": [
                {
                    "loc": ["body", "prompt"],
                    "msg": "String should have at most 100 characters",
                    "type": "string_too_long",
                    "input": "insufficient credits, exhausted balance",
                }
            ]
        },
        {
            "error": {"message": "Invalid parameter", "type": "invalid_request_error"},
            "request": {"prompt": "payment required"},
        },
        {
            "error": {
                "message": 'The prompt "you have run out of credits" has invalid characters',
                "code": "invalid_prompt",
            }
        },
        {"message": "Invalid request", "prompt": "top up your balance", "input": {"text": "insufficient funds"}},
        {"message": "Invalid request", "input": {"message": "Insufficient credits", "error": "Exhausted balance"}},
        {"detail": [{"msg": "Field required", "type": "missing", "ctx": {"title": "You have run out of credits"}}]},
        {"errors": ["Invalid input: text 'your balance is too low' is too long"]},
    ],
)
def test_a_prompt_about_credits_is_not_an_answer_about_them(body: dict[str, Any]) -> None:
    """What repeats the request is not read."""
    fault = classify_provider_error(provider="fal", status=422, body=body, now=NOW)
    assert fault.category == "rejected"


def test_a_wrapped_answer_is_found_inside_the_message() -> None:
    """JSON and reprs after some words, and JSON within a JSON string."""
    inner = json.dumps({"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}})
    wrapped = RuntimeError("All 4 models failed: " + json.dumps({"error": {"message": inner, "code": 503}}))
    assert classify_provider_error(wrapped, now=NOW).category == "transient"
    repr_inside = RuntimeError("Error code: 402 - {'error': {'message': 'Insufficient Balance', 'code': None}}")
    assert classify_provider_error(repr_inside, now=NOW).category == "credits_exhausted"


# -- chains and groups ---------------------------------------------------------------------------------------------


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:  # noqa: BLE001  # groups and all
        return caught


def test_the_cause_of_a_wrapper_decides() -> None:
    """A framework's own exception around the client's."""
    fault = classify_provider_error(raised(RuntimeError("tool generate_image failed"), httpx_error()), now=NOW)
    assert (fault.category, fault.provider) == ("credits_exhausted", "fal")


def test_a_context_counts_and_a_suppressed_one_does_not() -> None:
    """`raise … from None` says that what came before does not matter."""
    outer = RuntimeError("no more ideas")
    outer.__context__ = httpx_error()
    assert classify_provider_error(outer, now=NOW).category == "credits_exhausted"
    outer.__suppress_context__ = True
    assert classify_provider_error(outer, now=NOW).category == "other"


def test_the_outermost_provider_of_a_fallback_decides() -> None:
    """The first provider was out of credit, the second is only busy: try again."""
    second = openai_error("rate_limit_exceeded", "Rate limit reached")
    second.__context__ = httpx_error()
    assert classify_provider_error(second, now=NOW).category == "rate_limited"


def test_a_structured_answer_outweighs_a_wrappers_words() -> None:
    """A wrapper's "timed out" is less sure than a status and a body."""
    assert classify_provider_error(raised(RuntimeError("generation timed out"), httpx_error()), now=NOW).status == 403


def test_the_gravest_member_of_a_group_decides() -> None:
    """One task of many met the empty balance: the operator must know."""
    busy = openai_error("rate_limit_exceeded", "Rate limit reached")
    group = ExceptionGroup(
        "batch", [ValueError("odd"), busy, ExceptionGroup("inner", [raised(KeyError("x"), httpx_error())])]
    )
    assert classify_provider_error(group, now=NOW).category == "credits_exhausted"


def test_a_chain_that_ends_nowhere_ends() -> None:
    """Cycles and endless chains cost no more than a long one."""
    first, second = RuntimeError("one"), RuntimeError("two")
    first.__cause__, second.__cause__ = second, first
    assert classify_provider_error(first, now=NOW).category == "other"
    deep: BaseException = httpx_error()
    for number in range(2_000):
        outer = RuntimeError(str(number))
        outer.__cause__ = deep
        deep = outer
    assert classify_provider_error(deep, now=NOW).category == "other"


def test_status_and_headers_complete_an_exception() -> None:
    """A caller who has them beside an exception that says less."""
    fault = classify_provider_error(ValueError("no luck"), status=429, headers={"Retry-After": "3"}, now=NOW)
    assert (fault.category, fault.retry_at) == ("rate_limited", NOW + timedelta(seconds=3))


# -- the package's door --------------------------------------------------------------------------------------------


def test_the_public_names_are_there_and_sorted() -> None:
    """As in agentcredits itself."""
    assert list(media.__all__) == sorted(media.__all__)
    assert {*media.__all__} <= {*dir(media)}
    for name in media.__all__:
        assert getattr(media, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        media.nonsense  # noqa: B018  # the access is what is tested
