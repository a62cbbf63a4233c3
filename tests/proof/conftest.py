"""What every proof shares: its seed, and the figures that it notes."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import pytest

Record = Callable[..., None]


@pytest.fixture(scope="session")
def seed(pytestconfig: pytest.Config, proof: str) -> int:
    """``--proof-seed``, else the same one in every short run and a new one in every long run."""
    given = pytestconfig.getoption("--proof-seed", default=None)
    if given is not None:
        return int(given)
    return random.SystemRandom().randrange(1_000_000) if proof == "long" else 6


@pytest.fixture
def record(proof: str) -> Record:
    """Prints one row of figures; fails the test when anything was wrong or nothing was tried."""

    def note(
        what: str, *, count: int, unit: str, seed: int | None, wrong: Mapping[str, int], database: str = ""
    ) -> None:
        print(f"\n{what} {database} {proof}: {count:,} {unit}, wrong {dict(wrong)}, seed {seed}")  # noqa: T201
        assert count > 0, f"{what}: nothing was tried"
        assert not any(wrong.values()), f"{what}: {dict(wrong)} in {count} {unit}, seed {seed}"

    return note
