"""A tree of runs on plain state, with short names for what is done in it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from agentcredits.errors import (
    CreditLimitExceededError,
    CreditsError,
)
from agentcredits.model import Scopes
from agentcredits.rules import operations as ops
from agentcredits.rules import runs
from agentcredits.rules.due import book_due
from agentcredits.rules.posting import decide
from agentcredits.rules.state import AccountState, HoldState, Ledger, Row, RunState
from agentcredits.testing import START as NOW

ACME = "acme"
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
MICRO = Decimal("0.000001")


class Tree:
    """An account of 1,000 micros, a clock, and short names for what is done in runs; ids are counted."""

    def __init__(self) -> None:
        self.ledger = Ledger(ACME, AccountState(ACME, NOW, NOW))
        self.now = NOW
        self._count = 0
        self.do(ops.Grant(**self._facts(), amount_micros=1_000))

    def _facts(self) -> dict[str, str]:
        self._count += 1
        return {"organization_id": ACME, "id": f"id{self._count}", "key": f"k{self._count}", "fingerprint": "f"}

    def do(self, operation: ops.Operation) -> Any:
        book_due(self.ledger, self.now)
        runs.book_due(self.ledger, self.now)
        outcome = decide(self.ledger, operation, self.now)
        if outcome.error is not None:
            raise outcome.error
        return outcome.record

    def open(self, run_id: str, cap: int | None = None, parent: str | None = None, **how: Any) -> RunState:
        operation = ops.OpenRun(organization_id=ACME, run_id=run_id, cap_micros=cap, parent_run_id=parent, **how)
        made: RunState = self.do(operation)
        return made

    def end(self, run_id: str, reason: str | None = None) -> RunState:
        ended: RunState = self.do(ops.EndRun(organization_id=ACME, run_id=run_id, reason=reason))
        return ended

    def activity(self, run_id: str, cap: int | None = None) -> ops.Activity:
        return ops.Activity(action="act", scopes=Scopes(run_id=run_id, run_max_micros=cap))

    def spend(self, run_id: str, amount: int, *, cap: int | None = None, **how: Any) -> Row:
        activity = self.activity(run_id, cap)
        made: Row = self.do(ops.Consume(**self._facts(), amount_micros=amount, activity=activity, **how))
        return made

    def hold(self, run_id: str, amount: int, *, ttl: timedelta = HOUR, **how: Any) -> HoldState:
        activity = self.activity(run_id)
        made: HoldState = self.do(ops.Reserve(**self._facts(), amount_micros=amount, activity=activity, ttl=ttl, **how))
        return made

    def commit(self, hold: HoldState, amount: int, **how: Any) -> HoldState:
        facts = {"organization_id": ACME, "reservation_id": hold.id, "transaction_id": f"t{hold.id}"}
        done: HoldState = self.do(ops.Commit(**facts, amount_micros=amount, **how))
        return done

    def release(self, hold: HoldState) -> None:
        self.do(ops.Release(organization_id=ACME, reservation_id=hold.id))

    def refund(self, charge: Row, amount: int) -> None:
        self.do(ops.Refund(**self._facts(), transaction_id=charge.id, amount_micros=amount))

    def __getitem__(self, run_id: str) -> RunState:
        return self.ledger.runs[run_id]

    def numbers(self, run_id: str) -> tuple[int, int, int, int]:
        """(spent, held, carved, what was charged in the runs inside)."""
        run = self[run_id]
        return run.spent_micros, run.held_micros, run.carved_micros, run.inner_spent_micros

    def room(self, run_id: str) -> int | None:
        return runs.room(self.ledger, self[run_id])


def refused(call: Callable[[], object]) -> CreditLimitExceededError:
    with pytest.raises(CreditLimitExceededError) as refusal:
        call()
    return refusal.value


def told(error: CreditsError, *names: str) -> list[Any]:
    """What an error's context says, micro-credits as whole numbers."""
    values = [error.context[name] for name in names]
    return [int(value / MICRO) if isinstance(value, Decimal) else value for value in values]
