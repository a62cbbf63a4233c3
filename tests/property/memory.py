"""The public service on the rules alone: no database, everything that was ever booked stays loaded.

What the state machine needs of a service, a hundred times as fast. One account's whole life is one batch, so what it
does is also what N operations in one batch do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

from agentcredits.clock import Clock
from agentcredits.model import Balance, LimitUnit
from agentcredits.rules import burn_down, limits, runs
from agentcredits.rules import operations as ops
from agentcredits.rules.due import book_due, is_due
from agentcredits.rules.entries import end_if_over
from agentcredits.rules.posting import Outcome, decide
from agentcredits.rules.state import OPEN_STATES, AccountState, Ledger, Row
from agentcredits.runner.steps import Post, Read, Settle
from agentcredits.service import SyncCreditService
from agentcredits.store import records, recurring_records, run_records
from agentcredits.store.retention import PURGED_KINDS

CREDIT = 1_000_000


class _Page(list[Any]):
    next_cursor = None


class MemoryService(SyncCreditService):
    """Writes go through the real service down to the rules; reads look at the rules' state."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.ledgers: dict[str, Ledger] = {}
        self._clock = clock
        self._core._perform = self._perform  # type: ignore[method-assign]  # the door to the database

    def _perform(self, effect: Any) -> Any:
        if isinstance(effect, Read):
            # What an answer is read from after the write; the model is compared with the reads below.
            return None
        assert isinstance(effect, Post | Settle), effect
        return self._post(effect.operation)

    def _post(self, operation: ops.Operation) -> Outcome:
        ledger = self.ledgers.setdefault(operation.organization_id, Ledger(operation.organization_id))
        opens = ledger.account is None and operation.creates_account
        now = self._now(ledger)
        if opens:
            ledger.account = AccountState(operation.organization_id, now, now)
        book_due(ledger, now)
        runs.book_due(ledger, now)
        outcome = decide(ledger, operation, now)
        if opens and outcome.error is not None:
            ledger.account = None
        record = outcome.record
        return outcome if record is None or isinstance(record, Row) else replace(outcome, record=replace(record))

    def _now(self, ledger: Ledger) -> Any:
        now = self._clock.now()
        return now if ledger.account is None else max(now, ledger.account.last_posted_at)

    def _seen(self, organization_id: str) -> Ledger:
        """The account as it is now; what is due is booked in a copy."""
        ledger = self.ledgers[organization_id]
        if ledger.account is not None and (ledger.runs or is_due(ledger.account, self._now(ledger))):
            ledger = copy.deepcopy(ledger)
            book_due(ledger, self._now(ledger))
            runs.book_due(ledger, self._now(ledger))
        return ledger

    # -- reads -------------------------------------------------------------------------------------------------

    def get_balance(self, organization_id: Any) -> Any:
        ledger = self._seen(organization_id)
        account = ledger.account
        assert account is not None
        names = ("granted", "scheduled", "spent", "reserved", "expired", "voided")
        usable = burn_down.usable(ledger.grants.values(), self._now(ledger))
        return Balance(
            organization_id,
            **{f"{name}_micros": getattr(account, f"{name}_micros") for name in names},
            as_of=self._now(ledger),
            restricted_micros=sum(grant.remaining_micros for grant in usable if grant.only_for),
        )

    def get_account(self, organization_id: Any) -> Any:
        account = self._seen(organization_id).account
        assert account is not None
        return records.public_account(account)

    def list_recurring_grants(self, organization_id: Any) -> Any:
        found = self._seen(organization_id).recurring.values()
        return [recurring_records.public_recurring(organization_id, one) for one in found]

    def list_runs(self, organization_id: Any, **_: Any) -> Any:
        ledger = self._seen(organization_id)
        return [run_records.public_run(ledger, run) for run in ledger.runs.values()]

    def list_transactions(self, organization_id: Any, **_: Any) -> Any:
        ledger = self.ledgers[organization_id]
        return _Page(records.public_row(organization_id, row) for row in reversed(ledger.changes.rows))

    def list_grants(self, organization_id: Any, **_: Any) -> Any:
        ledger = copy.deepcopy(self._seen(organization_id))
        for grant in ledger.grants.values():
            # One that was used up before it ended: nothing was due, so nothing was booked.
            end_if_over(ledger, grant, self._now(ledger))
        return [records.public_grant(organization_id, grant) for grant in ledger.grants.values()]

    def get_reservation(self, reservation: Any, *, organization_id: Any = None) -> Any:
        return records.public_hold(organization_id, self._seen(organization_id).holds[reservation])

    def list_limits(self, organization_id: Any, **_: Any) -> Any:
        ledger = self._seen(organization_id)
        found = []
        for limit in ledger.limits.values():
            unit = 1 if limit.unit is LimitUnit.COUNT else CREDIT
            counters = [replace(usage) for usage in ledger.usage.values() if usage.limit_id == limit.id]
            for usage in counters:
                limits.roll(limit, usage, self._now(ledger))
            usage = [
                SimpleNamespace(scope_id=one.scope_id, spent=Decimal(one.spent) / unit, held=Decimal(one.held) / unit)
                for one in counters
            ]
            found.append(
                SimpleNamespace(
                    id=limit.id, amount=Decimal(limit.amount) / unit, unit=limit.unit, mode=limit.mode, usage=usage
                )
            )
        return found

    # -- writes whose answer is read -----------------------------------------------------------------------------

    def create_account(self, organization_id: Any) -> Any:
        self._core.run(self._core._post(ops.CreateAccount(organization_id=organization_id)))

    def sweep(self, organization_id: Any = None) -> Any:
        return self._core.run(self._core._post(ops.Expire(organization_id=organization_id)))

    def purge(self, organization_id: Any = None, *, older_than: Any = None, **_: Any) -> Any:
        ledger = self.ledgers[organization_id]
        before = self._clock.now() - older_than
        old = [
            place
            for place, key in ledger.keys.items()
            if key.kind in PURGED_KINDS
            and key.created_at < before
            and not (key.kind == "reserve" and ledger.holds[key.result_id].state in OPEN_STATES)
        ]
        for place in old:
            del ledger.keys[place]
        return SimpleNamespace(keys=len(old))

    def verify(self, organization_id: Any = None, **_: Any) -> Any:
        """The sums that verify makes in a database, of what the rules keep."""
        ledger = self._seen(organization_id)
        account, problems = ledger.account, []
        assert account is not None
        grants = ledger.grants.values()
        sums: dict[str, Callable[[Any], int]] = {
            "spent_micros": lambda grant: grant.spent_micros,
            "expired_micros": lambda grant: grant.expired_micros,
            "voided_micros": lambda grant: grant.voided_micros,
            "reserved_micros": lambda grant: grant.held_micros,
            "granted_micros": lambda grant: grant.amount_micros,
        }
        for name, of in sums.items():
            debt = account.overdrawn_micros if name == "spent_micros" else 0
            if getattr(account, name) != sum(of(grant) for grant in grants) + debt:
                problems.append(f"{name} is {getattr(account, name)}")
        if account.ledger_balance_micros != sum(row.amount_micros for row in ledger.changes.rows):
            problems.append("rows do not add up")
        problems += [f"grant {grant.id} went beyond its amount" for grant in grants if grant.remaining_micros < 0]
        return SimpleNamespace(problems=tuple(problems))
