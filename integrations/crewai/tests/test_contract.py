"""The contract of adapters: public names only, a helpful ImportError, nothing of the framework in the core."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import agentcredits
import agentcredits_crewai

PACKAGE = Path(agentcredits_crewai.__file__).parent


def test_it_imports_public_names_only() -> None:
    """What is missing from the public API is missing there, not here."""
    imported: set[str] = set()
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not [name.name for name in node.names if name.name.split(".")[0] == "agentcredits"], path.name
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "agentcredits":
                assert node.module == "agentcredits", f"{path.name}: {node.module}"
                imported |= {name.name for name in node.names}
    assert imported
    assert imported <= set(agentcredits.__all__)


def test_without_crewai_it_says_what_to_install() -> None:
    """The exact line, whatever else is installed."""
    script = "import sys; sys.modules['crewai'] = None; import agentcredits_crewai"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'pip install "agentcredits[crewai]"' in done.stderr.splitlines()[-1]


def test_its_public_names_are_there() -> None:
    assert sorted(agentcredits_crewai.__all__) == agentcredits_crewai.__all__
    assert all(hasattr(agentcredits_crewai, name) for name in agentcredits_crewai.__all__)
