"""Every operation, in any order, at any time, repeated or altered: the service does what the reference model does.

Here hypothesis draws the steps, everything is compared after each of them, and a difference is shrunk to a few;
tests/proof/test_differences.py makes many more steps with plain dice.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from agentcredits.service import SyncCreditService
from agentcredits.settings import Settings
from agentcredits.testing import FakeClock
from tests.property.machine import LedgerMachine
from tests.property.side_by_side import START


def test_the_service_does_what_the_reference_model_does(
    database_url: str, record_property: pytest.RecordProperty
) -> None:
    """About 800 steps on SQLite and 300 on PostgreSQL, the same ones in every run."""
    clock = FakeClock(START)
    steps: Counter[str] = Counter()
    with SyncCreditService(database_url, clock=clock, settings=Settings(sqlite_synchronous="NORMAL")) as service:

        class Machine(LedgerMachine):
            def apply(self, call: tuple[str, dict[str, object]], *, remember: bool = True) -> None:
                steps[call[0]] += 1
                super().apply(call, remember=remember)

        Machine.service = service
        Machine.clock = clock
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=20 if database_url.startswith("sqlite") else 8,
                stateful_step_count=40,
                derandomize=True,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                phases=(Phase.generate, Phase.shrink),
                report_multiple_bugs=False,
                print_blob=True,
            ),
        )
    record_property("steps", dict(steps))
    assert set(steps) == {
        "adjust_credits",
        "cancel_recurring_grant",
        "commit_reservation",
        "consume_credits",
        "create_account",
        "end_run",
        "create_recurring_grant",
        "extend_reservation",
        "grant_credits",
        "mark_unknown",
        "open_run",
        "refund_credits",
        "release_reservation",
        "remove_limit",
        "reserve_credits",
        "set_limit",
        "set_overdraft",
        "set_status",
        "sweep",
        "void_grant",
    }
