"""Each example in examples/crewai, run as a program of its own in an empty folder: its output, charges and calls."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from crew_fakes import left
from served import Server, booked

from agentcredits import SyncCreditService

EXAMPLES = Path(__file__).parents[3] / "examples"
CREWAI = EXAMPLES / "crewai"
SCAFFOLD = CREWAI / "scaffold"

EXPECTED = {
    "flow.py": """\
1 × look_up: 3
2 × llm_call: 2
writer: 1
editor: 1
charged: 5
Twice a day, the sea comes home.
served: 2 LLM calls; 5 credits left
""",
    "hierarchical.py": """\
charged 5: Crew Manager 3, researcher 1, writer 1
A page: the moon pulls the sea.
charged 5: Crew Manager 3, researcher 2
stopped by the run limit: 0 credits left of the cap
served: 10 LLM calls; 90 credits left
""",
    "dalle.py": """\
charged 12, given back 0
{"image_url": "https://pictures.example/a-harbour.png", "image_description": "a harbour"}
charged 2, given back 10
Failed to generate image.
charged 12, given back 0
{"image_url": "https://pictures.example/a-lighthouse.png", "image_description": "a lighthouse"}
charged 2, given back 0
No picture of the open sea: it costs 10 credits (insufficient_credits).
served: 3 pictures, 8 LLM calls; 8 credits left
""",
}
#: Agent type, action, credits and, of LLM calls, the agent: how many charges acme has of each.
CHARGES = {
    "flow.py": {
        ("PageFlow", "look_up", 3, None): 1,
        ("PageFlow", "llm_call", 1, "writer"): 1,
        ("PageFlow", "llm_call", 1, "editor"): 1,
    },
    "hierarchical.py": {
        ("Crew", "llm_call", 1, "Crew Manager"): 6,
        ("Crew", "llm_call", 1, "researcher"): 3,
        ("Crew", "llm_call", 1, "writer"): 1,
    },
    "dalle.py": {("Crew", "llm_call", 1, "painter"): 8, ("DallETool", "generate_image", 10, "painter"): 2},
}
LEFT = {"flow.py": 5, "hierarchical.py": 90, "dalle.py": 8}
#: Holds that were given back: the picture that failed. What is refused is never held.
RELEASED = {"dalle.py": ["generate_image"]}

needs_crewai_tools = pytest.mark.skipif(
    find_spec("crewai_tools") is None,
    reason="NOT TESTED: examples/crewai/dalle.py needs crewai-tools, which is not installed",
)
PROGRAMS = [pytest.param(name, marks=needs_crewai_tools if name == "dalle.py" else ()) for name in EXPECTED]

#: Python imports this at its start: it refuses, and writes down, whatever is to leave this machine.
WATCH = """
import os, sys

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        address = arguments[1] if event == "socket.connect" else arguments
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost"):
            with open(os.environ["CALLED_OUT"], "a") as out:
                print(event, address, file=out)
            raise ConnectionRefusedError(address)

sys.addaudithook(watch)
"""


class Folder:
    """An empty folder to run programs in, which must not call out."""

    def __init__(self, parent: Path) -> None:
        self.path = parent / "empty"
        self.path.mkdir()
        self._watch = parent / "watch"
        self._watch.mkdir()
        (self._watch / "sitecustomize.py").write_text(WATCH, encoding="utf-8")
        self._called_out = parent / "called-out"
        self._home = parent / "home"
        self._home.mkdir()

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("AGENTCREDITS_")}
        paths = [variables.pop("PYTHONPATH", ""), str(self._watch), inherited.pop("PYTHONPATH", "")]
        environment = inherited | {"PYTHONIOENCODING": "utf-8", "HOME": str(self._home)} | variables
        environment["CALLED_OUT"] = str(self._called_out)
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        done = subprocess.run(
            [sys.executable, *command],
            cwd=self.path, env=environment, capture_output=True, encoding="utf-8", timeout=120, check=False,
        )  # fmt: skip
        assert not self._called_out.exists(), self._called_out.read_text(encoding="utf-8")
        return done

    @property
    def names(self) -> set[str]:
        return {path.name for path in self.path.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def books(sqlite_url: str) -> Iterator[SyncCreditService]:
    """The ledger that the program works on: migrated, and without an account."""
    with SyncCreditService(sqlite_url) as made:
        yield made


def debits(books: SyncCreditService) -> list[Any]:
    return list(books.list_transactions("acme", type="debit", limit=500))


def test_every_example_is_tested_and_listed() -> None:
    """A new program needs its expected output here, and a line in examples/README.md."""
    programs = {path.name for path in CREWAI.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")}
    assert programs == set(EXPECTED) == set(CHARGES) == set(LEFT)
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for name in {*programs, "scaffold"}:
        assert f"| [crewai/{name}](crewai/{name}) |" in readme, name


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_example_prints_and_charges_what_it_promises(
    name: str, folder: Folder, sqlite_url: str, books: SyncCreditService
) -> None:
    """Exactly this output; every LLM call that was served is charged once, to its agent; nothing is left open."""
    done = folder.run(str(CREWAI / name), sqlite_url, AGENTCREDITS_DATABASE_URL="sqlite:////nowhere/at/all.db")
    assert (done.returncode, done.stdout) == (0, EXPECTED[name]), done.stderr
    assert not unexpected(done.stderr)
    assert folder.names == set()

    rows = debits(books)
    found = Counter((row.agent_type, row.action, int(row.charged), (row.metadata or {}).get("agent")) for row in rows)
    assert found == CHARGES[name]
    (served,) = re.findall(r"(\d+) LLM calls", done.stdout)
    usages = [row.metadata["usage"] for row in rows if row.action == "llm_call"]
    assert sum(usage["successful_requests"] for usage in usages) == len(usages) == int(served)
    assert sum(usage["total_tokens"] for usage in usages) == 110 * int(served)
    assert {row.user_id for row in rows} == {"ada"}
    assert not books.list_reservations("acme", states=["active", "unknown"])
    released = [hold.action for hold in books.list_reservations("acme", states=["released"])]
    assert released == RELEASED.get(name, [])
    assert len(books.list_reservations("acme", limit=500)) == len(rows) + len(released)
    assert left(books) == LEFT[name]


def unexpected(stderr: str) -> list[str]:
    """Everything but the warnings that a run comes near its cap."""
    return [line for line in stderr.splitlines() if not re.match(r"agentcredits: run \S+ of .+ reached \d+ %", line)]


def test_without_a_database_and_crewais_switches_it_is_as_quiet(folder: Folder) -> None:
    """As a reader runs it: nothing is sent, nothing is asked, no file is left."""
    switches = ("CREWAI_DISABLE_TELEMETRY", "CREWAI_DISABLE_TRACKING", "CREWAI_DISABLE_VERSION_CHECK")
    off = dict.fromkeys((*switches, "CREWAI_TRACING_ENABLED", "OTEL_SDK_DISABLED", "CREWAI_TESTING"), "")
    done = folder.run(str(CREWAI / "flow.py"), **off)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", EXPECTED["flow.py"])
    assert folder.names == set()


# -- the scaffold --------------------------------------------------------------------------------------------------


def without_credits(source: str) -> str:
    return "".join(line for line in source.splitlines(keepends=True) if not line.rstrip().endswith("# credits"))


def sources(root: Path) -> dict[str, str]:
    found = [path for path in root.rglob("*") if path.suffix in (".py", ".yaml")]
    return {str(path.relative_to(root)): path.read_text("utf-8") for path in found}


def run_scaffold(folder: Folder, project: Path, server: Server, **variables: str) -> subprocess.CompletedProcess[str]:
    """What `crewai run` calls, with the model where CrewAI looks for it."""
    return folder.run(
        "-c", "from research_desk.main import run; run()", PYTHONPATH=str(project / "src"),
        MODEL="openai/gpt-4o-mini", OPENAI_API_KEY="acme", OPENAI_BASE_URL=server.url, **variables,
    )  # fmt: skip


def test_three_lines_were_added_to_what_crewai_generates(folder: Folder) -> None:
    """`crewai create crew` as installed; the crew got a name for the third line to take, and nothing else changed."""
    create = "from crewai_cli.cli import crewai; crewai()"
    done = folder.run("-c", create, "create", "crew", "research_desk", "--classic", "--skip-provider")
    assert done.returncode == 0, done.stderr
    generated = sources(folder.path / "research_desk" / "src" / "research_desk")
    named = generated["crew.py"].replace("        return Crew(", "        desk = Crew(")
    ours = sources(SCAFFOLD / "src" / "research_desk")
    assert set(ours) == {name for name in generated if not name.startswith("tools")}
    assert sum(line.endswith("# credits") for source in ours.values() for line in source.splitlines()) == 3
    generated["crew.py"] = named + "        return desk\n"
    assert {name: without_credits(source) for name, source in ours.items()} == {name: generated[name] for name in ours}


def test_with_the_three_lines_it_charges_each_llm_call(
    folder: Folder, sqlite_url: str, books: SyncCreditService, server: Server
) -> None:
    """After the README's three commands: two tasks, two calls served, two credits charged, the report written."""
    server.answer = lambda _body: "All about it."
    readme = (SCAFFOLD / "README.md").read_text(encoding="utf-8")
    for command in readme.partition("```sh\n")[2].partition("```")[0].splitlines():
        words = command.removeprefix("agentcredits ").split()
        done = folder.run("-m", "agentcredits.cli", *words, AGENTCREDITS_DATABASE_URL=sqlite_url)
        assert done.returncode == 0, done.stderr
    done = run_scaffold(folder, SCAFFOLD, server, AGENTCREDITS_DATABASE_URL=sqlite_url)
    assert done.returncode == 0, done.stderr
    assert (folder.path / "report.md").read_text(encoding="utf-8") == "All about it."
    assert folder.names == {"report.md"}
    rows = [(row.agent_type, row.action, row.charged, row.metadata["task"]) for row in reversed(debits(books))]
    assert rows == [("Crew", "llm_call", 1, "research_task"), ("Crew", "llm_call", 1, "reporting_task")]
    assert booked(books) == {**server.served["acme"], "charges": 2}
    assert server.requests == 2
    assert left(books) == 8


def test_without_them_it_runs_uncharged(
    folder: Folder, tmp_path: Path, server: Server, books: SyncCreditService
) -> None:
    """The same report, the same two calls; agentcredits is not even imported, and there is no database to charge."""
    server.answer = lambda _body: "All about it."
    project = tmp_path / "project"
    shutil.copytree(SCAFFOLD / "src", project / "src")
    for path in project.rglob("*.py"):
        path.write_text(without_credits(path.read_text(encoding="utf-8")), encoding="utf-8")
        assert "credit" not in path.read_text(encoding="utf-8")
    done = run_scaffold(folder, project, server, AGENTCREDITS_DATABASE_URL="sqlite:////nowhere/at/all.db")
    assert done.returncode == 0, done.stderr
    assert (folder.path / "report.md").read_text(encoding="utf-8") == "All about it."
    assert server.requests == 2


def test_without_credits_it_stops_before_the_next_llm_call(
    folder: Folder, sqlite_url: str, books: SyncCreditService, server: Server
) -> None:
    """One credit for two tasks: the second is not served, no report is written, and the error has the numbers."""
    books.set_cost("Crew", "llm_call", 1)
    books.grant_credits("acme", 1)
    done = run_scaffold(folder, SCAFFOLD, server, AGENTCREDITS_DATABASE_URL=sqlite_url)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "Exception: An error occurred while running the crew: "
        "organization acme has 0 credits available, llm_call needs 1; short by 1."
    )
    assert folder.names == set()
    assert booked(books) == {**server.served["acme"], "charges": 1}
    assert server.requests == 1
    assert left(books) == 0
