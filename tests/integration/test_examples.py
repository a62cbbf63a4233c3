"""Every file in examples/ runs as a program of its own, in an empty folder, and does and prints what it promises."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from fastapi.responses import StreamingResponse
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from agentcredits import (
    CreditLimitExceededError,
    MissingContextError,
    RequestContext,
    SyncCreditService,
    UnpricedActionError,
    configure,
    consume_credits,
    current_context,
    use_context,
)

EXAMPLES = Path(__file__).parents[2] / "examples"

SESSION_OUTPUT = """\
committed: the tide (published); 15 credits left
the upload broke off, both rolled back: the tide (published); 15 credits left
second try: the tide (published), a storm (published); 5 credits left
refused: organization acme has 5 credits available, generate_video needs 10; short by 5.
kept as a draft: the tide (published), a storm (published), the moon (draft); 5 credits left
charged 10 for a storm
charged 10 for the tide
"""

EXPECTED = {
    "quickstart.py": """\
a video of the sea
refused: organization acme has 2 credits available, generate_video needs 10; short by 8.
left: 2 of 12
2 debit generate_video -10 2
1 credit None 12 12
""",
    "guide_agents.py": """\
{'content': 'content about tides'}
content about harbours, 0 hints
failed and given back: no topic
{'image': 'a wave.png'}
a video
{'error': 'Not enough credits. Please purchase more.'}
granted 9, spent 9, left 0
""",
    "session_charge.py": SESSION_OUTPUT,
    "session_charge_async.py": SESSION_OUTPUT,
    "bind_threads.py": """\
without bind: research is metered, but no RequestContext is active: enter use_context(RequestContext(...)).
with bind:
  tides for ada
  harbours for ada
  storms for ada
  tides for bo
  harbours for bo
acme: 4 × research_topic by ada
acme: 6 of 10 credits left
beta: 1 × generate_voice by bo
beta: 3 × research_topic by bo
beta: 5 of 10 credits left
""",
    "fake_fal.py": """\
a fake of fal; see fal_batch.py
accepted 5, refused 1
""",
    "fal_batch.py": """\
made 5 of 15; fal was called 5 times, and refused 1
  not made: city_noon, $0.05: A wide picture of a city at noon, seen...
  not made: harbour_noon, $0.05: A wide picture of a harbour at noon, s...
  not made: forest_noon, $0.05: A wide picture of a forest at noon, se...
  not made: desert_noon, $0.05: A wide picture of a desert at noon, se...
  not made: glacier_noon, $0.05: A wide picture of a glacier at noon, s...
  not made: city_dusk, $0.05: A wide picture of a city at dusk, seen...
  not made: harbour_dusk, $0.05: A wide picture of a harbour at dusk, s...
  not made: forest_dusk, $0.05: A wide picture of a forest at dusk, se...
  not made: desert_dusk, $0.05: A wide picture of a desert at dusk, se...
  not made: glacier_dusk, $0.05: A wide picture of a glacier at dusk, s...
after the top-up: made 15 of 15; fal was called 15 times
acme paid 75 credits for 15 calls; no prompt twice: True
""",
    "departments.py": """\
department sales reached 80% of its 100 credits
refused by the department limit of sales: 0 credits left
sales made 10
film made 12
refused by the user limit of intern: 0 credits left
the intern made 2
run trailer reached 50% of its 50 credits
run trailer reached 80% of its 50 credits
refused by the run limit of trailer: 0 credits left
the run made 5
film: 19 charges, 190 credits
sales: 10 charges, 100 credits
""",
    "fastapi_context.py": """\
/posts 200 "a post about tides"
/videos 200 "a video of tides"
/videos 402 {"code":"insufficient_credits","status":402,"message":"organization acme has 1 credit available,\
 generate_video needs 10; short by 9.","reason":"insufficient_credits","limit_source":"balance","retryable":false,\
"context":{"organization_id":"acme","agent_type":"VideoAgent","action":"generate_video","available":"1",\
"required":"10","shortfall":"9","reserved":"0"},"suggestions":["Add at least 9 credits to organization acme.",\
"Choose a smaller or cheaper action."],"fixes":[{"action":"add_credits","amount":"9"}]}
/videos 401 {"detail":"Send a valid bearer token."}
charged 10 for generate_video by ada
charged 1 for generate_content by ada
""",
}
#: These leave their file where they are run; the others take a database, and clean up after themselves.
LEAVE_A_FILE = {"quickstart.py", "guide_agents.py"}
#: What acme is charged by those.
CHARGES = {
    "bind_threads.py": {"research_topic": 4},
    "departments.py": {"generate_video": 29},
    "fal_batch.py": {"generate_image": 15},
    "fastapi_context.py": {"generate_video": 1, "generate_content": 1},
    "session_charge.py": {"generate_video": 2},
    "session_charge_async.py": {"generate_video": 2},
}


def run(script: Path, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AGENTCREDITS_")}
    return subprocess.run(
        [sys.executable, "-W", "error", str(script), *arguments],
        cwd=folder, env={**environment, "PYTHONIOENCODING": "utf-8", **variables},
        capture_output=True, encoding="utf-8", timeout=60, check=False,
    )  # fmt: skip


def test_every_example_is_tested() -> None:
    """A new file in examples/ needs its expected output here, and a line in the README beside it."""
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert names == set(EXPECTED)
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert {name for name in names if f"| [{name}]({name}) |" in readme} == names


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_the_example_prints_what_it_promises(name: str, tmp_path: Path) -> None:
    """From an empty folder: exit code 0, no warning, exactly this output, and no file that is not announced."""
    done = run(EXAMPLES / name, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == EXPECTED[name]
    left = {path.name for path in tmp_path.iterdir()}
    assert "credits.db" in left if name in LEAVE_A_FILE else not left


def test_the_quick_start_can_be_run_again(tmp_path: Path) -> None:
    """The grant's key is known: nothing is granted twice, and both videos are refused."""
    run(EXAMPLES / "quickstart.py", tmp_path)
    again = run(EXAMPLES / "quickstart.py", tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.count("refused: ") == 2
    assert "left: 2 of 12" in again.stdout


@pytest.mark.parametrize("how", ["argument", "environment"])
@pytest.mark.parametrize("name", sorted(CHARGES))
def test_the_example_works_on_the_database_that_it_is_given(
    name: str, how: str, sqlite_url: str, tmp_path: Path
) -> None:
    """The charges are in that ledger, and its books are right."""
    if how == "argument":
        done = run(EXAMPLES / name, tmp_path, sqlite_url, AGENTCREDITS_DATABASE_URL="sqlite:////nowhere/at/all.db")
    else:
        done = run(EXAMPLES / name, tmp_path, AGENTCREDITS_DATABASE_URL=sqlite_url)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", EXPECTED[name])
    with SyncCreditService(sqlite_url) as service:
        assert Counter(row.action for row in service.list_transactions("acme", type="debit")) == CHARGES[name]
        assert service.verify()


# -- a charge in the application's own transaction -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["session_charge.py", "session_charge_async.py"])
def test_rows_and_charges_share_their_fate(
    name: str, database_url: str, service: SyncCreditService, tmp_path: Path
) -> None:
    """Two videos, two charges; the rolled back one left neither row nor charge, the refused one its draft only."""
    try:
        done = run(EXAMPLES / name, tmp_path, database_url)
        assert (done.returncode, done.stderr, done.stdout) == (0, "", SESSION_OUTPUT)
        rows = execute(database_url, "SELECT title, state FROM videos ORDER BY id")
        assert rows == [("the tide", "published"), ("a storm", "published"), ("the moon", "draft")]
        ledger = [(row.seq, str(row.amount), row.metadata.get("title")) for row in service.list_transactions("acme")]
        assert ledger == [(3, "-10", "a storm"), (2, "-10", "the tide"), (1, "25", None)]
        assert service.get_balance("acme").available == 5
        assert service.verify()
    finally:
        execute(database_url, "DROP TABLE IF EXISTS videos")


def execute(url: str, statement: str) -> list[tuple[Any, ...]]:
    engine = create_engine(url)
    with engine.begin() as connection:
        result = connection.exec_driver_sql(statement)
        rows = [tuple(row) for row in result] if result.returns_rows else []
    engine.dispose()
    return rows


# -- threads and callbacks -----------------------------------------------------------------------------------------


def test_bound_calls_are_charged_to_whom_they_were_bound_for(sqlite_url: str, tmp_path: Path) -> None:
    """Thread, pool and callback: the right organization, department and user; the refused call cost nobody anything."""
    run(EXAMPLES / "bind_threads.py", tmp_path, sqlite_url)
    with SyncCreditService(sqlite_url) as service:
        paid = Counter(
            (row.organization_id, row.department_id, row.user_id, row.action, row.charged)
            for organization_id in ("acme", "beta")
            for row in service.list_transactions(organization_id, type="debit")
        )
        assert paid == {
            ("acme", "studio", "ada", "research_topic", 1): 4,
            ("beta", None, "bo", "research_topic", 1): 3,
            ("beta", None, "bo", "generate_voice", 2): 1,
        }
        acme, beta = service.get_balance("acme"), service.get_balance("beta")
        assert [acme.available, beta.available] == [Decimal(6), Decimal(5)]
        assert [acme.reserved, beta.reserved] == [Decimal(0), Decimal(0)]


# -- FastAPI -------------------------------------------------------------------------------------------------------

TENANTS = [f"org-{number}" for number in range(5)]
GRANTED = {tenant: 100 + number for number, tenant in enumerate(TENANTS)}
PLACES = {"ada": "film", "bo": None}  # each tenant has two users, one of them in a department


@dataclass
class Web:
    """The example's app with five tenants, and a client that calls it in memory."""

    example: ModuleType
    app: FastAPI
    client: httpx.AsyncClient
    service: SyncCreditService

    @staticmethod
    def bearer(token: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {token}"}

    async def post(self, path: str, token: str, **body: str) -> httpx.Response:
        return await self.client.post(path, json=body, headers=self.bearer(token))

    def paid(self, tenant: str) -> Counter[tuple[Any, ...]]:
        """Calls by department, user, action and credits."""
        assert self.service.flush()
        rows = self.service.list_transactions(tenant, type="debit")
        return Counter((row.department_id, row.user_id, row.action, row.charged) for row in rows)

    def nobody_paid(self) -> bool:
        return all(
            self.service.get_balance(tenant).available == GRANTED[tenant] and not self.paid(tenant)
            for tenant in TENANTS
        )


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """examples/fastapi_context.py as a module."""
    name = "example_fastapi_context"
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / "fastapi_context.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # SQLAlchemy and FastAPI look annotations up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


@pytest.fixture
async def web(example: ModuleType, database_url: str, service: SyncCreditService) -> AsyncIterator[Web]:
    configure(database_url)
    engine = create_engine(database_url)
    example.Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        for tenant in TENANTS:
            service.grant_credits(tenant, GRANTED[tenant])
            for user, department in PLACES.items():
                token = example.sha256(f"{user}@{tenant}")
                session.add(
                    example.User(token_sha256=token, user_id=user, organization_id=tenant, department_id=department)
                )
    app = example.create_app(engine)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
        yield Web(example, app, client, service)
    assert current_context() is None
    example.Base.metadata.drop_all(engine)
    engine.dispose()
    configure()


async def test_fifty_requests_at_once_are_each_paid_by_their_own_tenant(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """25 `def` and 25 `async def` endpoints are all inside at the same moment before the first one is charged."""
    generate_video, generate_content = web.example.generate_video, web.example.generate_content
    threads, tasks = threading.Barrier(25), asyncio.Barrier(25)

    def video(prompt: str) -> str:
        threads.wait(60)
        return str(generate_video(prompt))

    async def content(topic: str) -> str:
        async with asyncio.timeout(60):
            await tasks.wait()
        return str(await generate_content(topic))

    monkeypatch.setattr(web.example, "generate_video", video)
    monkeypatch.setattr(web.example, "generate_content", content)
    calls = [
        (path, f"{user}@{tenant}", number)
        for tenant in TENANTS
        for path in ("/videos", "/posts")
        for user, times in (("ada", 3), ("bo", 2))
        for number in range(times)
    ]
    random.Random(5).shuffle(calls)
    answers = await asyncio.gather(*(web.post(path, token, prompt=f"{token} {n}") for path, token, n in calls))

    assert [(answer.status_code, answer.json()) for answer in answers] == [
        (200, f"a {'video of' if path == '/videos' else 'post about'} {token} {n}") for path, token, n in calls
    ]
    for tenant in TENANTS:
        assert web.paid(tenant) == {
            ("film", "ada", "generate_video", 10): 3,
            (None, "bo", "generate_video", 10): 2,
            ("film", "ada", "generate_content", 1): 3,
            (None, "bo", "generate_content", 1): 2,
        }
        assert web.service.get_balance(tenant).available == GRANTED[tenant] - 55
        assert len({row.request_id for row in web.service.list_transactions(tenant, type="debit")}) == 10
    assert web.service.verify()


NO_TOKEN: list[dict[str, str]] = [
    {},
    {"Authorization": ""},
    {"Authorization": "Bearer"},
    {"Authorization": "Bearer "},
    {"Authorization": "Bearer guess"},
    {"Authorization": "Basic ada@org-0"},
    {"Authorization": "ada@org-0"},
    {"X-Organization-Id": "org-0", "X-User-Id": "ada"},
]


async def test_without_a_known_token_nothing_runs_and_nobody_pays(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """401 with the scheme to use, on every path, before any endpoint."""
    ran: list[str] = []
    monkeypatch.setattr(web.example, "generate_video", ran.append)
    monkeypatch.setattr(web.example, "generate_content", ran.append)
    for path in ("/videos", "/posts", "/docs", "/nowhere"):
        for headers in NO_TOKEN:
            answer = await web.client.post(path, json={"prompt": "tides"}, headers=headers)
            assert answer.status_code == 401, (path, headers)
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert answer.json() == {"detail": "Send a valid bearer token."}
    assert ran == []
    assert web.nobody_paid()


@pytest.mark.parametrize(("path", "price"), [("/videos", 10), ("/posts", 1)])
async def test_what_the_request_says_about_identity_is_not_heard(web: Web, path: str, price: int) -> None:
    """Body, query and headers name another tenant; the token's own pays."""
    answer = await web.client.post(
        path,
        json={"prompt": "tides", "organization_id": "org-0", "user_id": "ada", "department_id": "film"},
        params={"organization_id": "org-0", "user_id": "ada"},
        headers={"Authorization": "Bearer bo@org-1", "X-Organization-Id": "org-0"},
    )
    assert answer.status_code == 200
    assert [sum(web.paid(tenant).values()) for tenant in TENANTS] == [0, 1, 0, 0, 0]
    ((department, user, _, charged),) = web.paid("org-1")
    assert (department, user, charged) == (None, "bo", price)


async def test_out_of_credits_is_a_402_that_says_how_to_get_on(web: Web) -> None:
    """Numbers are exact texts; nothing is charged or left held; the next tenant is served."""
    web.service.consume_credits(organization_id="org-0", amount="92.5")
    answer = await web.post("/videos", "ada@org-0", prompt="tides")
    assert answer.status_code == 402
    body = answer.json()
    assert (body["code"], body["status"], body["retryable"]) == ("insufficient_credits", 402, False)
    assert body["message"] == "organization org-0 has 7.5 credits available, generate_video needs 10; short by 2.5."
    assert {key: body["context"][key] for key in ("available", "required", "shortfall")} == {
        "available": "7.5", "required": "10", "shortfall": "2.5",
    }  # fmt: skip
    assert body["suggestions"] == [
        "Add at least 2.5 credits to organization org-0.",
        "Choose a smaller or cheaper action.",
    ]
    assert body["fixes"] == [{"action": "add_credits", "amount": "2.5"}]
    balance = web.service.get_balance("org-0")
    assert (balance.available, balance.reserved) == (Decimal("7.5"), Decimal(0))
    assert (await web.post("/posts", "ada@org-0", prompt="tides")).status_code == 200
    assert (await web.post("/videos", "ada@org-1", prompt="tides")).status_code == 200


async def test_every_402_is_told_and_other_errors_are_not(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit answers like an empty account; what the operator has to mend is a 500 without its text."""

    def over_limit(prompt: str) -> str:
        raise CreditLimitExceededError(f"film may not spend more on {prompt}", suggestions=["Wait until December."])

    @consume_credits("VideoAgent", "no_such_action")
    async def unpriced(topic: str) -> str:
        return topic

    monkeypatch.setattr(web.example, "generate_video", over_limit)
    monkeypatch.setattr(web.example, "generate_content", unpriced)
    body = (await web.post("/videos", "ada@org-0", prompt="tides")).json()
    assert (body["code"], body["status"]) == ("credit_limit_exceeded", 402)
    assert (body["message"], body["suggestions"]) == ("film may not spend more on tides", ["Wait until December."])

    with pytest.raises(UnpricedActionError):
        await web.post("/posts", "ada@org-0", prompt="tides")
    quiet = httpx.ASGITransport(web.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=quiet, base_url="http://app", headers=web.bearer("ada@org-0")) as client:
        answer = await client.post("/posts", json={"prompt": "tides"})
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")
    assert web.nobody_paid()


async def test_streams_and_background_tasks_belong_to_the_request(web: Web) -> None:
    """What starts after the endpoint has returned is paid by the same user."""

    @consume_credits("VoiceAgent", "generate_voice")
    def voice() -> Iterator[str]:
        yield "la"

    @consume_credits("ResearchAgent", "research_topic")
    async def research() -> AsyncIterator[str]:
        yield "found"

    @web.app.post("/voice")
    def post_voice(later: BackgroundTasks) -> StreamingResponse:
        later.add_task(web.example.generate_video, "tides")
        return StreamingResponse(voice(), background=later)

    @web.app.post("/research")
    async def post_research(later: BackgroundTasks) -> StreamingResponse:
        later.add_task(web.example.generate_content, "tides")
        return StreamingResponse(research(), background=later)

    answers = await asyncio.gather(web.post("/voice", "ada@org-1"), web.post("/research", "bo@org-2"))
    assert [answer.text for answer in answers] == ["la", "found"]
    assert web.paid("org-1") == {("film", "ada", "generate_voice", 2): 1, ("film", "ada", "generate_video", 10): 1}
    assert web.paid("org-2") == {(None, "bo", "research_topic", 1): 1, (None, "bo", "generate_content", 1): 1}


@pytest.mark.parametrize("path", ["/videos", "/posts"])
async def test_a_def_dependency_would_not_do(web: Web, path: str) -> None:
    """What the example's first lines say: its context stays in the worker thread, and the metered call is refused."""

    def payer() -> Iterator[None]:
        with use_context(RequestContext("org-0")):
            yield

    app = FastAPI(dependencies=[Depends(payer)])
    app.add_api_route("/videos", lambda: web.example.generate_video("tides"), methods=["POST"])

    async def post_post() -> str:
        return str(await web.example.generate_content("tides"))

    app.add_api_route("/posts", post_post, methods=["POST"])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
        with pytest.raises(MissingContextError):
            await client.post(path)
    assert web.nobody_paid()
