"""CrewAI without telemetry and network, and a ledger with prices."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine

# Before crewai is imported.
for _name in ("CREWAI_DISABLE_TELEMETRY", "CREWAI_DISABLE_TRACKING", "CREWAI_DISABLE_VERSION_CHECK"):
    os.environ[_name] = "true"
os.environ["CREWAI_TRACING_ENABLED"] = "false"
os.environ["OTEL_SDK_DISABLED"] = "true"
os.environ["CREWAI_STORAGE_DIR"] = tempfile.mkdtemp(prefix="agentcredits-crewai-")
_HERE = Path(__file__).parent
sys.path[:0] = [str(_HERE), str(_HERE.parent)]

from agentcredits import SyncCreditService  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here runs real crews; crewai 1.15 reads fields of its own that it has deprecated."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.crewai)
            for kind in ("DeprecationWarning", "ResourceWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{kind}"))


@pytest.fixture(scope="session")
def _template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "credits.db"
    with SyncCreditService(f"sqlite:///{path}") as made:
        made.create_account("first-use-migrates")
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()
    return path


@pytest.fixture(params=[True, False], ids=["native", "react"])
def native(request: pytest.FixtureRequest) -> bool:
    """How the model calls tools."""
    return bool(request.param)


@pytest.fixture
def database(_template: Path, tmp_path: Path) -> Path:
    """A fresh migrated SQLite file."""
    path = tmp_path / "credits.db"
    shutil.copyfile(_template, path)
    return path


@pytest.fixture
def ledger(database: Path) -> Iterator[SyncCreditService]:
    """Two organizations with 100 credits each; an LLM call costs 1, a draw 10."""
    with SyncCreditService(f"sqlite:///{database}") as made:
        for organization in ("acme", "globex"):
            made.grant_credits(organization, 100)
        made.set_cost("Crew", "llm_call", 1)
        made.set_cost("Flow", "llm_call", 1)
        made.set_cost("*", "draw", 10)
        yield made


@pytest.fixture(autouse=True)
def _clean_hooks() -> Iterator[None]:
    """Hooks that a test registers do not reach the next one."""
    from crewai.hooks.dispatch import InterceptionPoint, _global_hooks

    before = {point: list(_global_hooks[point]) for point in InterceptionPoint}
    yield
    for point, found in before.items():
        _global_hooks[point][:] = found
