"""What every proof shares: its seed, and the report that its figures go to."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.proof.report import Record, Report

_REPORT = pytest.StashKey[Report]()
_SHORT_SEED = 6


@pytest.fixture(scope="session")
def seed(pytestconfig: pytest.Config, proof: str) -> int:
    """``--proof-seed``, else the same one in every short run and a new one in every long run."""
    given = pytestconfig.getoption("--proof-seed")
    if given is not None:
        return int(given)
    return random.SystemRandom().randrange(1_000_000) if proof == "long" else _SHORT_SEED


@pytest.fixture
def record(request: pytest.FixtureRequest, proof: str) -> Record:
    """Notes what a proof counted; see :class:`tests.proof.report.Record`."""
    report = request.config.stash.setdefault(_REPORT, Report(Path(request.config.getoption("--proof-report"))))
    return Record(report, form=proof, test=request.node.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    report = config.stash.get(_REPORT, None)
    if report is not None:
        terminalreporter.section("proofs")
        for line in report.lines():
            terminalreporter.write_line(line)
        terminalreporter.write_line(f"written to {report.path}")
