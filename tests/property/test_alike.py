"""Charges, holds and settlements that are decided together are answered and booked as each in turn would be."""

from __future__ import annotations

import copy
import dataclasses
import random
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any

import pytest

from agentcredits.errors import InvalidInputError
from agentcredits.ids import generated_key
from agentcredits.model import AccountStatus, GrantCategory, LimitMode, LimitScope, LimitUnit, Overage, Pricing, Scopes
from agentcredits.rules import alike, charges, entries, limits
from agentcredits.rules import operations as ops
from agentcredits.rules.outcomes import Outcome
from agentcredits.rules.posting import decide, decide_next
from agentcredits.rules.state import AccountState, Denied, Ledger
from agentcredits.service import arguments

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
ACME = "acme"

ACTIVITIES = (
    ops.Activity(agent_type="Writer", action="write", quantity=Decimal(1), scopes=Scopes(department_id="sales")),
    ops.Activity(agent_type="Writer", action="write", metadata_json='{"a":1}', scopes=Scopes(department_id="sales")),
    ops.Activity(
        agent_type="Writer",
        action="write",
        scopes=Scopes(department_id="legal", user_id="ann", project_id="p", request_id="r"),
        dimensions_json='{"d":3}',
    ),
    ops.Activity(agent_type="Writer", action="edit", pricing=Pricing.UNPRICED),
    ops.Activity(agent_type="Writer", action="write", scopes=Scopes(run_id="run", run_max_micros=9)),
)


def uid(number: int) -> str:
    """The id that is drawn at that place."""
    return str(uuid.UUID(int=number))


class Dice:
    """Draws operations: mostly plain ones, as busy accounts get them."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.number = 0
        #: How often what is drawn is not plain.
        self._odd = self._random.choice((0.0, 0.02, 0.2))
        self._alike = self._random.choice(ACTIVITIES)

    def odd(self) -> bool:
        return self._random.random() < self._odd

    def one(self, *choices: Any) -> Any:
        return self._random.choice(choices)

    def id(self) -> str:
        self.number += 1
        return uid(self.number)

    def spending(self, kind: str, activity: ops.Activity | None, overage: Overage | None) -> dict[str, Any]:
        activity = activity or (self.one(*ACTIVITIES) if self.odd() else self._alike)
        amount = self.one(0, 2, 5) if self.odd() else 1
        made, generated = self.id(), self.one(True, False)
        key = generated_key(made) if generated else f"k{self.number}"
        if self.odd():
            generated = False
            key = self.one("a", "b", generated_key(uid(max(0, self.number - self.one(1, 2, 3)))))
        return {
            "organization_id": ACME,
            "id": made,
            "key": key,
            "key_generated": generated,
            "fingerprint": arguments.fingerprint(kind, ACME, amount, activity, self.one(True, False), overage),
            "amount_micros": amount,
            "activity": activity,
            "observe": self.odd(),
            "would_refuse": InvalidInputError("no") if self.odd() and self.odd() else None,
        }

    def consume(self, activity: ops.Activity | None = None) -> ops.Operation:
        overage = self.one(*Overage) if self.odd() else Overage.REJECT
        return ops.Consume(**self.spending("consume", activity, overage), overage=overage)

    def reserve(self, activity: ops.Activity | None = None) -> ops.Operation:
        return ops.Reserve(**self.spending("reserve", activity, None), ttl=timedelta(minutes=self.one(1, 2, 9)))

    def commit(self, holds: Sequence[str]) -> ops.Operation:
        return ops.Commit(
            organization_id=ACME,
            reservation_id=self.one(*holds) if holds and not self.odd() else uid(max(0, self.number - 1)),
            transaction_id=self.id(),
            amount_micros=self.one(0, 1, 2, 5) if self.odd() else None,
            overage=self.one(*Overage),
            automatic=self.odd(),
            late=self.odd(),
            metadata_json=self.one(None, '{"b":2}'),
        )

    def grant(self) -> ops.Operation:
        return ops.Grant(
            organization_id=ACME,
            id=self.id(),
            key=f"k{self.number}",
            fingerprint="",
            amount_micros=self.one(3, 9, 25, 200),
            priority=self.one(0, 1, 2),
            only_for=self.one((), (), (), ("*.edit",), ("Writer.*",)),
            category=self.one(*GrantCategory),
            unit_cost=self.one(None, Decimal("0.01")),
            currency=self.one("EUR", "USD"),
            expires_at=self.one(None, NOW + timedelta(days=1)),
        )

    def limit(self) -> ops.Operation:
        scope, scope_id = self.one(
            (LimitScope.ORGANIZATION, ""),
            (LimitScope.DEPARTMENT, "sales"),
            (LimitScope.DEPARTMENT, ""),
            (LimitScope.AGENT_TYPE, "Writer"),
            (LimitScope.USER, "ann"),
        )
        return ops.SetLimit(
            organization_id=ACME,
            id=self.id(),
            scope=scope,
            scope_id=scope_id,
            unit=self.one(*LimitUnit),
            window_text=self.one("month UTC", "lifetime"),
            amount=self.one(3, 20, 40, 100),
            mode=self.one(*LimitMode),
            warn_at=self.one((), (5_000,), (3_333, 8_000, 10_000)),
        )

    def other(self) -> ops.Operation:
        return self.one(
            self.grant,
            self.limit,
            lambda: ops.SetOverdraft(organization_id=ACME, amount_micros=self.one(0, 9)),
            lambda: ops.SetStatus(
                organization_id=ACME,
                before=frozenset({self.one(AccountStatus.OPEN, AccountStatus.FROZEN)}),
                status=self.one(AccountStatus.OPEN, AccountStatus.FROZEN),
                reason=None,
                by=None,
            ),
        )()

    def batch(self, holds: Sequence[str]) -> list[ops.Operation]:
        kinds = self.one((self.consume,), (self.reserve,), (lambda: self.commit(holds),))
        if self.odd():
            kinds = (self.consume, self.reserve, lambda: self.commit(holds))
        return [self.other() if self.odd() and self.odd() else self.one(*kinds)() for _ in range(40)]


def one_by_one(ledger: Ledger, operations: Sequence[ops.Operation]) -> list[Outcome]:
    return [copy.deepcopy(decide(ledger, operation, NOW)) for operation in operations]


def together(ledger: Ledger, operations: Sequence[ops.Operation]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    while len(outcomes) < len(operations):
        # What later operations make of a record does not show in its answer.
        outcomes += map(copy.deepcopy, decide_next(ledger, operations, len(outcomes), NOW))
    return outcomes


def words(error: Exception | None) -> Any:
    """An error, comparable."""
    return None if error is None else (type(error), str(error), getattr(error, "context", None))


def told(outcomes: Sequence[Outcome]) -> list[Any]:
    """The answers, comparable."""
    return [
        (
            dataclasses.replace(outcome, error=words(outcome.error), denials=tuple(map(plain, outcome.denials))),
            sources(outcome.record),
        )
        for outcome in outcomes
    ]


def sources(record: Any) -> Any:
    """Where its credits come from, which two allocations need not have in common to be equal."""
    return [(part.category, part.unit_cost, part.currency) for part in getattr(record, "allocations", ())]


def plain(denied: Denied) -> Denied:
    return dataclasses.replace(denied, error=words(denied.error))


def comparable(ledger: Ledger) -> Ledger:
    ledger.changes.denials[:] = map(plain, ledger.changes.denials)
    # What is only remembered.
    ledger.limits_over.clear()
    for limit in ledger.limits.values():
        limit.bounds = None
    return ledger


@contextmanager
def counted_ids() -> Iterator[None]:
    """Ids of what is booked beside a charge are numbers."""
    numbers = count()
    with pytest.MonkeyPatch.context() as patch:
        for module in (charges, entries, limits):
            patch.setattr(module, "new_id", lambda: str(next(numbers)))
        yield


@pytest.mark.parametrize("seeds", [range(start, start + 100) for start in range(0, 400, 100)], ids=str)
def test_together_is_one_by_one(seeds: range) -> None:
    """Any batch on any account: the same answers and the same ledger, whoever decides."""
    for seed in seeds:
        dice = Dice(seed)
        ledger = Ledger(ACME, AccountState(ACME, NOW, NOW))
        one_by_one(ledger, [dice.grant() for _ in range(4)] + [dice.limit() for _ in range(dice.one(0, 1, 3, 5))])
        # Counters know their limits' amounts from the first charge on.
        one_by_one(ledger, [dice.consume(activity) for activity in ACTIVITIES])
        if dice.one(True, False, False, False):
            for limit in ledger.limits.values():
                limit.unusable = dice.one(None, None, "edited with plain SQL")
        mixed = dice.one(ACTIVITIES, (None,))
        one_by_one(ledger, [dice.reserve(dice.one(*mixed)) for _ in range(dice.one(0, 30))])
        if dice.one(True, False):
            # Holds for the same action that other limits count.
            one_by_one(ledger, [dice.limit(), *(dice.reserve(dice.one(*mixed)) for _ in range(10))])
        batch = dice.batch(sorted(ledger.holds))
        found = []
        for way in (one_by_one, together):
            mine = copy.deepcopy(ledger)
            with counted_ids():
                found.append((told(way(mine, batch)), comparable(mine)))
        assert found[0][0] == found[1][0], f"seed {seed}"
        assert found[0][1] == found[1][1], f"seed {seed}"


def test_plain_charges_are_decided_at_once() -> None:
    """Else the comparison above would compare the rules with themselves."""
    ledger = Ledger(ACME, AccountState(ACME, NOW, NOW))
    grant = ops.Grant(organization_id=ACME, id="grant", key="grant", fingerprint="", amount_micros=50)
    cap = ops.SetLimit(
        organization_id=ACME,
        id="cap",
        scope=LimitScope.DEPARTMENT,
        scope_id="sales",
        unit=LimitUnit.CREDITS,
        window_text="month UTC",
        amount=40,
        mode=LimitMode.HARD,
        warn_at=(5_000,),
    )
    batch: list[ops.Operation] = [
        ops.Consume(
            organization_id=ACME,
            id=f"c{place}",
            key=f"k{place}",
            fingerprint="",
            amount_micros=1,
            activity=ACTIVITIES[0],
        )
        for place in range(45)
    ]
    one_by_one(ledger, [grant, cap, batch[0]])
    # The first told the counter the limit's amount; the 20th reaches one half, and the 41st is refused.
    assert len(alike.consume(ledger, batch, 1, NOW)) == 18
    assert alike.consume(ledger, batch, 19, NOW) == []
    assert [crossed.spent for crossed in decide(ledger, batch[19], NOW).crossings] == [20]
    assert len(alike.consume(ledger, batch, 20, NOW)) == 20
    assert alike.consume(ledger, batch, 40, NOW) == []
    assert decide(ledger, batch[40], NOW).error is not None


def test_plain_holds_are_made_and_settled_at_once() -> None:
    """The same for holds: all of one grant; those of another, and what is settled in part, are left to the rules."""
    ledger = Ledger(ACME, AccountState(ACME, NOW, NOW))
    grants = [
        ops.Grant(
            organization_id=ACME, id=f"grant{place}", key=f"{place}", fingerprint="", amount_micros=20, priority=place
        )
        for place in range(2)
    ]
    one_by_one(ledger, grants)
    holds: list[ops.Operation] = [
        ops.Reserve(
            organization_id=ACME,
            id=f"h{place}",
            key=f"k{place}",
            fingerprint="",
            amount_micros=1,
            activity=ACTIVITIES[0],
            ttl=timedelta(minutes=5),
        )
        for place in range(30)
    ]
    assert [len(alike.reserve(ledger, holds, start, NOW)) for start in (0, 20)] == [20, 10]
    settled: list[ops.Operation] = [
        ops.Commit(
            organization_id=ACME,
            reservation_id=f"h{place}",
            transaction_id=f"t{place}",
            amount_micros=0 if place == 25 else None,
        )
        for place in range(30)
    ]
    assert [len(alike.commit(ledger, settled, start, NOW)) for start in (0, 20, 25, 26)] == [20, 5, 0, 4]
