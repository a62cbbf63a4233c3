"""The rules alone, without a database, do what the reference model does; fast enough to try every mutant of them."""

from __future__ import annotations

import pytest

from agentcredits.testing import FakeClock
from tests.property import storm
from tests.property.memory import MemoryService
from tests.property.side_by_side import START


@pytest.mark.parametrize("seed", range(4))
def test_the_rules_do_what_the_reference_model_does(seed: int) -> None:
    """500 steps from each of four seeds, every answer and balance compared at each."""
    clock = FakeClock(START)
    with MemoryService(clock) as service:
        for number in range(10):
            storm.episode(service, clock, seed=seed * 1_000 + number, steps=storm.EPISODE)
