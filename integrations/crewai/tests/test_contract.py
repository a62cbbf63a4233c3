"""The contract of adapters: public names only, a helpful ImportError, nothing of the framework in the core."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import agentcredits
import agentcredits_crewai

#: Tokens that are no code.
LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
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


def test_it_stays_thin() -> None:
    """At most 600 lines of code, docstrings and comments apart: what other frameworks need too is in the core."""
    lines = 0
    for path in PACKAGE.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        skipped = (
            tokenize.COMMENT,
            tokenize.NL,
            tokenize.NEWLINE,
            tokenize.INDENT,
            tokenize.DEDENT,
            tokenize.ENDMARKER,
        )
        tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in skipped]
        code = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0] if ast.get_docstring(node) is not None else None
                code -= set(range(first.lineno, (first.end_lineno or 0) + 1)) if first is not None else set()
        lines += len(code)
    assert 400 < lines <= 600


def test_without_crewai_it_says_what_to_install() -> None:
    """The exact line, whatever else is installed."""
    script = "import sys; sys.modules['crewai'] = None; import agentcredits_crewai"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'pip install "agentcredits[crewai]"' in done.stderr.splitlines()[-1]


def test_its_public_names_are_there() -> None:
    assert sorted(agentcredits_crewai.__all__) == agentcredits_crewai.__all__
    assert all(hasattr(agentcredits_crewai, name) for name in agentcredits_crewai.__all__)
