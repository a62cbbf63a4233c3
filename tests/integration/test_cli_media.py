"""`agentcredits media …`: plan, run, status, resume and reconcile, as somebody at a terminal uses them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentcredits import SyncCreditService
from tests.integration.cli_calls import Call

CALLS = """\
from pathlib import Path

from agentcredits.media import Finding

BALANCE = Path(__file__).with_name("balance")
CALLED = Path(__file__).with_name("called")


class FakeLocked(Exception):
    status_code = 403


def make(job):
    with CALLED.open("a") as file:
        file.write(job.asset_id + "\\n")
    left = int(BALANCE.read_text())
    if not left:
        raise FakeLocked("User is locked. Reason: Exhausted balance.")
    BALANCE.write_text(str(left - 1))
    return {"image": job.name}


def silent(job):
    raise TimeoutError


def look(job):
    return Finding.made({"image": "late"})


not_a_function = 1
"""

BATCH = {
    "name": "spring",
    "organization": "acme",
    "user": "ada",
    "concurrency": 1,
    "defaults": {"provider": "fal", "agent_type": "ImageAgent", "action": "generate_image", "model": "m"},
    "assets": [{"id": number, "name": f"wave {number}", "prompt": f"Wave number {number}"} for number in range(1, 5)],
}


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A folder with a batch and the functions that it is made with, as the current folder."""
    folder = tmp_path / "studio"
    folder.mkdir()
    # modules are remembered by name: each test has its own
    module = f"calls_{abs(hash(request.node.name))}"
    (folder / f"{module}.py").write_text(CALLS)
    (folder / "balance").write_text("100")
    (folder / "batch.json").write_text(json.dumps({**BATCH, "generate": f"{module}:make"}))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def calls(studio: Path) -> str:
    return next(studio.glob("calls_*.py")).stem


@pytest.fixture
def cli(on: Call, service: SyncCreditService) -> Call:
    service.grant_credits("acme", 100)
    service.set_cost("ImageAgent", "generate_image", 5)
    return lambda *words: on("media", *words)


def called(studio: Path) -> list[str]:
    path = studio / "called"
    return path.read_text().split() if path.exists() else []


def test_a_plan_prices_everything_and_calls_nothing(cli: Call, studio: Path, service: SyncCreditService) -> None:
    answer = cli("plan", "batch.json", "--json")
    assert (answer.code, answer.err) == (0, "")
    assert (answer.data["total"], answer.data["available"], answer.data["fits"]) == (20, 100, 4)
    assert [line["credits_micros"] for line in answer.data["lines"]] == [5_000_000] * 4
    text = cli("plan", "batch.json").out
    assert "total" in text
    assert "20 credits" in text
    assert "4 of 4" in text
    service.adjust_credits("acme", -93)
    short = cli("plan", "batch.json")
    assert short.code == 0
    assert "1 of 4" in short.out
    assert "Not all of it: organization acme has 7 credits available" in short.out
    assert called(studio) == []


def test_run_resume_and_status(cli: Call, studio: Path, service: SyncCreditService) -> None:
    """Out of credit at the provider is exit code 0 and a plan; after the top-up a resume makes what is missing."""
    (studio / "balance").write_text("2")
    first = cli("run", "batch.json", "--output-dir", "out")
    assert (first.code, first.err) == (0, "")
    assert "Successful: 2/4" in first.out
    assert "- 4: wave 4 - 5 credits\n     Prompt: Wave number 4\n" in first.out
    assert "still to make  10 credits" in first.out
    batch = cli("status", "--org", "acme", "--json").data["items"][0]["batch_id"]
    assert f"agentcredits media resume {batch} --org acme" in first.out
    assert sorted(path.name for path in (studio / "out").iterdir()) == [
        "001_wave_1.json", "002_wave_2.json", f"{batch}.json"
    ]  # fmt: skip
    (studio / "balance").write_text("50")
    second = cli("resume", batch, "--org", "acme", "--json")
    assert (second.code, second.data["complete"], second.data["charged"]) == (0, True, 20)
    assert called(studio) == ["1", "2", "3", "3", "4"]
    assert {row.user_id for row in service.list_transactions("acme", type="debit")} == {"ada"}
    shown = cli("status", batch, "--org", "acme", "--json").data
    assert [job["state"] for job in shown["jobs"]] == ["done"] * 4
    assert "Successful: 4/4" in cli("status", batch, "--org", "acme").out
    listed = cli("status", "--org", "acme")
    assert "spring" in listed.out
    assert "20 credits charged; 1 batch shown" in listed.out
    assert "has no media batches" in cli("status", "--org", "globex").out
    assert service.verify().ok


def test_a_call_without_an_answer_is_reconciled(cli: Call, calls: str, service: SyncCreditService) -> None:
    first = cli("run", "batch.json", "--generate", f"{calls}:silent", "--json")
    assert (first.code, first.data["unknown"]) == (2, [1, 2, 3, 4])
    batch = first.data["batch_id"]
    assert service.get_balance("acme").reserved == 20
    again = cli("resume", batch, "--org", "acme", "--generate", f"{calls}:make", "--json")
    assert (again.code, again.data["unknown"]) == (2, [1, 2, 3, 4])
    text = cli("status", batch, "--org", "acme").out
    assert f"agentcredits media reconcile {batch} --org acme --look" in text
    found = cli("reconcile", batch, "--org", "acme", "--look", f"{calls}:look", "--json")
    assert (found.code, found.data["complete"], found.data["charged"]) == (0, True, 20)
    assert service.get_balance("acme").reserved == 0


def test_retry_unknown_sends_again(cli: Call, calls: str, studio: Path) -> None:
    first = cli("run", "batch.json", "--generate", f"{calls}:silent", "--json")
    again = cli(
        "resume", first.data["batch_id"], "--org", "acme", "--generate", f"{calls}:make", "--retry-unknown", "--json"
    )
    assert (again.code, again.data["complete"], called(studio)) == (0, True, ["1", "2", "3", "4"])


def test_thresholds_skip_where_nobody_can_be_asked(cli: Call, studio: Path) -> None:
    (studio / "dear.json").write_text(json.dumps({**json.loads((studio / "batch.json").read_text()), "threshold": 4}))
    answer = cli("run", "dear.json", "--json")
    assert (answer.code, {job["reason"] for job in answer.data["jobs"]}) == (0, {"cost_threshold"})
    assert called(studio) == []
    assert cli("run", "dear.json", "--yes", "--json").data["complete"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("plan", "none.json"), "cannot be read"),
        (("run", "batch.json", "--generate", "nowhere:make"), "--generate nowhere:make cannot be loaded"),
        (("run", "batch.json", "--generate", "make"), "write MODULE:FUNCTION"),
        (("run", "batch.json", "--generate", "{calls}:not_a_function"), "is not a function"),
        (("run", "batch.json", "--generate", "{calls}:missing"), "has no attribute 'missing'"),
        (("status", "no-such", "--org", "acme"), "organization acme has no media batch no-such."),
        (("resume", "no-such", "--org", "acme"), "has no media batch"),
        (("reconcile", "no-such", "--org", "acme", "--look", "{calls}:look"), "has no media batch"),
        (("plan", "broken.json"), "broken.json, asset 1, field prompt: prompt is missing."),
        (("plan", "unpriced.json"), "asset 1 (x): "),
        (("plan", "nobody.json"), "nobody.json names no organization"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(
    cli: Call, calls: str, studio: Path, service: SyncCreditService, words: tuple[str, ...], message: str
) -> None:
    asset = {"id": 1, "name": "x", "agent_type": "ImageAgent", "action": "generate_image"}
    for name, assets, organization in (
        ("broken.json", [asset], "acme"),
        ("unpriced.json", [{**asset, "prompt": "p", "action": "generate_hologram"}], "acme"),
        ("nobody.json", [{**asset, "prompt": "p"}], None),
    ):
        (studio / name).write_text(json.dumps({"organization": organization, "assets": assets}))
    answer = cli(*(word.replace("{calls}", calls) for word in words))
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert (service.get_balance("acme").available, called(studio)) == (100, [])
