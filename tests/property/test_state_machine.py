"""Every operation, in any order, at any time, repeated or altered: the service does what the reference model does."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from agentcredits.service import SyncCreditService
from agentcredits.settings import Settings
from agentcredits.testing import FakeClock
from tests.property.machine import START, LedgerMachine


@pytest.mark.proof
@pytest.mark.timeout(3_600)
def test_the_service_does_what_the_reference_model_does(
    database_url: str, proof: str, record_property: pytest.RecordProperty
) -> None:
    """About 2,000 steps on SQLite and 500 on PostgreSQL, the same ones in every run; ``--proof long``: new ones."""
    long = proof == "long"
    examples = 50 if database_url.startswith("sqlite") else 13
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
                max_examples=examples * 20 if long else examples,
                stateful_step_count=100 if long else 40,
                derandomize=not long,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                phases=(Phase.generate, Phase.shrink),
                report_multiple_bugs=False,
                print_blob=True,
            ),
        )
    record_property("steps", dict(steps))
    assert {name for name, count in steps.items() if count > 5} == {
        "adjust_credits",
        "cancel_recurring_grant",
        "commit_reservation",
        "consume_credits",
        "create_account",
        "create_recurring_grant",
        "extend_reservation",
        "grant_credits",
        "mark_unknown",
        "refund_credits",
        "release_reservation",
        "remove_limit",
        "reserve_credits",
        "set_limit",
        "sweep",
        "void_grant",
    }
