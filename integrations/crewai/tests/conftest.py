"""CrewAI without telemetry and network, and a ledger with prices."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before crewai is imported.
for _name in ("CREWAI_DISABLE_TELEMETRY", "CREWAI_DISABLE_TRACKING", "CREWAI_DISABLE_VERSION_CHECK"):
    os.environ[_name] = "true"
os.environ["CREWAI_TRACING_ENABLED"] = "false"
os.environ["OTEL_SDK_DISABLED"] = "true"
os.environ["CREWAI_STORAGE_DIR"] = tempfile.mkdtemp(prefix="agentcredits-crewai-")
_HERE = Path(__file__).parent
sys.path[:0] = [str(_HERE), str(_HERE.parent)]

from crew_fakes import price  # noqa: E402
from served import Server  # noqa: E402

from agentcredits import SyncCreditService  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here runs real crews; crewai 1.15 reads fields of its own that it has deprecated."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.crewai)
            for kind in ("DeprecationWarning", "ResourceWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{kind}"))


@pytest.fixture(params=[True, False], ids=["native", "react"])
def native(request: pytest.FixtureRequest) -> bool:
    """How the model calls tools."""
    return bool(request.param)


@pytest.fixture
def ledger_url(request: pytest.FixtureRequest) -> str:
    """A fresh migrated SQLite file; a database of either kind in tests marked ``on_both``."""
    return str(request.getfixturevalue(f"{getattr(request, 'param', 'sqlite')}_url"))


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[SyncCreditService]:
    """Accounts with credits, and prices: see ``crew_fakes.price``."""
    with SyncCreditService(ledger_url) as made:
        price(made)
        yield made


@pytest.fixture
def server() -> Iterator[Server]:
    """An OpenAI-compatible server on 127.0.0.1."""
    made = Server()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _clean_hooks() -> Iterator[None]:
    """Hooks that a test registers do not reach the next one."""
    from crewai.hooks.dispatch import InterceptionPoint, _global_hooks

    before = {point: list(_global_hooks[point]) for point in InterceptionPoint}
    yield
    for point, found in before.items():
        _global_hooks[point][:] = found
