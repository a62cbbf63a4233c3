"""The public door: every name in `__all__` exists, is documented, and importing it costs next to nothing."""

from __future__ import annotations

import ast
import enum
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import agentcredits

HEAVY = ("alembic", "crewai", "fastapi", "httpx", "pydantic", "pydantic_settings", "rich", "sqlalchemy", "typer")


def run_python(program: str) -> Any:
    """What a fresh interpreter prints as JSON."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


def test_all_is_sorted_without_duplicates() -> None:
    """One list, in the order that a reader looks things up."""
    assert list(agentcredits.__all__) == sorted(set(agentcredits.__all__))


@pytest.mark.parametrize("name", agentcredits.__all__)
def test_each_public_name_is_there_and_says_what_it_is(name: str) -> None:
    """Importable, with a docstring of its own that is a sentence; its public methods too."""
    thing = getattr(agentcredits, name)
    if name == "__version__":
        assert thing[0].isdigit()
        return
    documented = [(name, thing)]
    if inspect.isclass(thing) and not issubclass(thing, enum.Enum):
        documented += [
            (f"{name}.{attribute}", member)
            for attribute, member in vars(thing).items()
            if not attribute.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
        ]
    for place, member in documented:
        text = (member.__doc__ or "").strip()
        assert text, f"{place} has no docstring"
        assert not text.startswith(f"{name}("), f"{place} has a generated docstring"


def test_dir_lists_every_public_name() -> None:
    """Completion in an interpreter sees what has not been used yet."""
    assert set(agentcredits.__all__) <= set(dir(agentcredits))


def test_the_type_checkers_imports_are_the_public_names() -> None:
    """What mypy sees, what is imported lazily and `__all__` are one list."""
    tree = ast.parse(Path(str(agentcredits.__file__)).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {
        (node.module, alias.name) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    lazy = {(f"agentcredits.{module}", name) for name, module in agentcredits._HOME_OF.items()}
    assert typed == lazy
    assert {name for _, name in lazy} | {"__version__"} == set(agentcredits.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As for any module."""
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        agentcredits.nonsense  # noqa: B018  # the access is what is tested


def test_every_public_error_is_exported() -> None:
    """An application can catch each of them by its public name."""
    from agentcredits import errors

    public = {
        name
        for name, thing in vars(errors).items()
        if inspect.isclass(thing) and issubclass(thing, Exception | Warning) and thing.__module__ == errors.__name__
    }
    assert public <= set(agentcredits.__all__)


def test_import_loads_no_web_terminal_migration_or_agent_framework() -> None:
    """`import agentcredits` brings in nothing heavy at all."""
    loaded = run_python(
        "import agentcredits, json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    assert set(HEAVY) & set(loaded) == set()


def test_charging_loads_no_web_terminal_migration_or_agent_framework(tmp_path: Path) -> None:
    """Neither does a charge on a migrated database, once every public name was touched."""
    url = f"sqlite:///{tmp_path / 'credits.db'}"
    run_python(
        f"import agentcredits, json\nwith agentcredits.SyncCreditService({url!r}) as service:\n"
        "    service.grant_credits('acme', 10)\nprint(json.dumps(0))"
    )
    loaded = run_python(
        "import agentcredits, json, sys\n"
        "for name in agentcredits.__all__:\n"
        "    getattr(agentcredits, name)\n"
        f"with agentcredits.SyncCreditService({url!r}) as service:\n"
        "    service.consume_credits(organization_id='acme', agent_type='QAAgent', action='answer_question')\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    assert {"alembic", "crewai", "fastapi", "rich", "typer", "psycopg"} & set(loaded) == set()
