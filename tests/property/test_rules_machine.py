"""The rules alone, without a database, do what the reference model does; fast enough to try every mutant of them."""

from __future__ import annotations

from typing import Any

import pytest

from agentcredits.testing import FakeClock
from tests.property import storm
from tests.property.machine import START
from tests.property.memory import MemoryService
from tests.property.storm import StormMachine


class MemoryMachine(StormMachine):
    """Leaves out what is kept or read by tables of its own: runs, purges, the terms of an account."""

    def consume(self, *facts: Any, **named: Any) -> None:
        super().consume(*facts, **named | {"run": (None, None)})

    def reserve(self, *facts: Any, **named: Any) -> None:
        super().reserve(*facts, **named | {"run": (None, None)})

    def open_run(self, *_: Any, **__: Any) -> None:
        pass

    def end_run(self, *_: Any, **__: Any) -> None:
        pass

    def purge(self, *_: Any, **__: Any) -> None:
        pass

    def compare_account(self, organization_id: str) -> None:
        pass

    def compare_runs(self, organization_id: str) -> None:
        pass


@pytest.mark.parametrize("seed", range(4))
def test_the_rules_do_what_the_reference_model_does(seed: int) -> None:
    """500 steps from each of four seeds, every answer and balance compared at each."""
    clock = FakeClock(START)
    with MemoryService(clock) as service:
        for number in range(10):
            storm.episode(service, clock, seed=seed * 1_000 + number, steps=storm.EPISODE, kind=MemoryMachine)
