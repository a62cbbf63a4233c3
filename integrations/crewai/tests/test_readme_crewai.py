"""The adapter's README and package keep their word."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

from test_served_usage import Server

import agentcredits

HOME = Path(__file__).parents[1]
README = (HOME / "README.md").read_text(encoding="utf-8")
PACKAGE = HOME / "agentcredits_crewai"


def run(source: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(HOME), str(HOME.parents[1]), str(HOME.parents[1] / "migrations")])
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AGENTCREDITS_")}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", source],
        cwd=folder, env={**environment, "PYTHONPATH": path, **more}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip


def test_the_quick_start_runs_as_pasted(tmp_path: Path) -> None:
    """Against a loopback model: one picture and two LLM calls; run again, the picture is not affordable any more."""
    (quick_start,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    server = Server()
    try:
        done = run(quick_start, tmp_path, OPENAI_API_KEY="acme", OPENAI_BASE_URL=server.url)
        again = run(quick_start, tmp_path, OPENAI_API_KEY="acme", OPENAI_BASE_URL=server.url)
    finally:
        server.close()
    assert (done.returncode, again.returncode) == (0, 0), done.stderr + again.stderr
    assert done.stdout.splitlines()[-2:] == ["fin", "charged: 12 left: 3"]
    assert again.stdout.splitlines()[-2:] == ["fin", "charged: 2 left: 1"]


def test_without_crewai_the_error_is_the_line_to_run(tmp_path: Path) -> None:
    """And agentcredits itself never imports it."""
    source = "import sys, agentcredits; print('crewai' in sys.modules); sys.modules['crewai'] = None\n"
    source += "import agentcredits_crewai"
    done = run(source, tmp_path)
    assert done.stdout == "False\n"
    assert done.stderr.splitlines()[-1].startswith("ImportError: agentcredits_crewai needs CrewAI")
    assert 'pip install "agentcredits[crewai]"' in done.stderr


def test_only_public_names_are_imported() -> None:
    """The contract of integrations/README.md."""
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "agentcredits":
                assert node.module == "agentcredits", path
                assert {alias.name for alias in node.names} <= set(agentcredits.__all__), path
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("agentcredits.") for alias in node.names), path


def test_every_argument_and_name_is_in_the_readme() -> None:
    """What the package exports and credited() takes."""
    import inspect

    import agentcredits_crewai

    for name in set(agentcredits_crewai.__all__) - {"Run", "RunSummary", "SummaryLine", "CrewMissingContext"}:
        assert name in README
    for name in list(inspect.signature(agentcredits_crewai.credited).parameters)[1:]:
        assert f"`{name}=`" in README or f"`{name}=" in README, name
