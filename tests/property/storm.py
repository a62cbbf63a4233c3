"""Plain seeded dice over the state machine's steps: no shrinking, and many more steps in the same time.

Every answer and the touched account's balance are compared at every step; all the rest (the other account, rows,
limits, grants, holds, ``verify``) at the end of each episode. Comparing everything at every step, as the test with
hypothesis does, takes ten times as long as the steps. Run as a program it prints what it did:
``python -m tests.property.storm <json arguments of storm>``.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from agentcredits.service import SyncCreditService
from agentcredits.settings import Settings
from agentcredits.testing import FakeClock
from tests.property.comparing import same
from tests.property.machine import LedgerMachine
from tests.property.side_by_side import START, Call
from tests.property.steps import grant_micros, oddities, times, works

EPISODE = 50

#: As hypothesis draws them: evenly, ``work`` being there twice.
RULES = (
    ("work", works),
    ("work", works),
    ("do_something_odd", oddities),
    ("let_time_pass", times),
)


class DifferenceError(AssertionError):
    """The service and the model differ; says which seed and step show it again."""


class StormMachine(LedgerMachine):
    """The machine, with less comparing while an episode lasts."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Counter[str] = Counter()

    def apply(self, call: Call, *, remember: bool = True) -> None:
        self.made[call[0]] += 1
        try:
            super().apply(call, remember=remember)
        except Exception as error:
            error.add_note(f"in {call}")
            raise

    def compare(self, touched: str) -> None:
        if touched in self.model.accounts:
            view = self.model.view(touched).terms()
            balance = self.service.get_balance(touched)
            same("balance", {name: balance[f"{name}_micros"] for name in view}, view)

    def compare_all(self) -> None:
        for organization_id in self.organizations:
            super().compare(organization_id)


def episode(service: Any, clock: FakeClock, *, seed: int, steps: int) -> Counter[str]:
    """One pair of fresh accounts and ``steps`` steps; gives the calls that were made.

    Raises:
        DifferenceError: The service did something else than the model.
    """

    class Machine(StormMachine):
        pass

    Machine.service, Machine.clock = service, clock
    machine = Machine()
    dice = random.Random(seed)
    number = 0
    try:
        machine.open_accounts(first=grant_micros.by_dice(dice))
        for number in range(1, steps + 1):  # noqa: B007  # said in the error
            name, draw = dice.choice(RULES)
            getattr(machine, name)(step=draw.by_dice(dice))
        machine.compare_all()
        machine.teardown()
    except Exception as error:
        raise DifferenceError(f"seed {seed}, step {number}: {error!r} {getattr(error, '__notes__', '')}") from error
    return machine.made


def storm(url: str, seed: int, steps: int) -> dict[str, Any]:
    """``steps`` steps in episodes; stops at the first difference, and says it."""
    made: Counter[str] = Counter()
    done = 0
    difference = None
    clock = FakeClock(START)
    with SyncCreditService(url, clock=clock, settings=Settings(sqlite_synchronous="NORMAL")) as service:
        try:
            while done < steps:
                length = min(EPISODE, steps - done)
                made += episode(service, clock, seed=seed * 1_000_003 + done, steps=length)
                done += length
        except DifferenceError as found:
            difference = str(found)
    return {"steps": done, "calls": made, "difference": difference}


def start(url: str, *, seed: int, steps: int) -> subprocess.Popen[str]:
    """The storm in a process of its own; its last line is what :func:`storm` gives."""
    arguments = json.dumps({"url": url, "seed": seed, "steps": steps})
    return subprocess.Popen(
        [sys.executable, "-m", "tests.property.storm", arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


if __name__ == "__main__":
    print(json.dumps(storm(**json.loads(sys.argv[1]))))  # noqa: T201  # the answer to the process that asked
