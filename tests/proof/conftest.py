"""What every proof shares: its seed, and where its figures go."""

from __future__ import annotations

import random
from dataclasses import asdict

import pytest

from tests.proof.report import Collector, Record, Row

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
    """Notes what a proof counted; see :class:`tests.proof.report.Record`. The rows travel in the test's report."""

    def note(row: Row) -> None:
        request.node.user_properties.append((Collector.PROPERTY, asdict(row)))

    return Record(note, form=proof, test=request.node.nodeid)
