"""Charges that are decided together are answered and booked as each in turn would be."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcredits.errors import InvalidInputError
from agentcredits.model import AccountStatus, LimitMode, LimitScope, LimitUnit, Overage, Pricing, Scopes
from agentcredits.rules import alike, charges, entries, limits
from agentcredits.rules import operations as ops
from agentcredits.rules.outcomes import Outcome
from agentcredits.rules.posting import decide, decide_next
from agentcredits.rules.state import AccountState, Denied, Ledger

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
ACME = "acme"

ACTIVITIES = (
    ops.Activity(agent_type="Writer", action="write", quantity=Decimal(1), scopes=Scopes(department_id="sales")),
    ops.Activity(agent_type="Writer", action="write", metadata_json='{"a":1}', scopes=Scopes(department_id="sales")),
    ops.Activity(agent_type="Writer", action="write", scopes=Scopes(department_id="legal", user_id="ann")),
    ops.Activity(agent_type="Writer", action="edit", pricing=Pricing.UNPRICED),
    ops.Activity(agent_type="Writer", action="write", scopes=Scopes(run_id="run", run_max_micros=9)),
)
OFTEN = st.integers(0, 9).map(lambda number: ACTIVITIES[max(0, number - 5)])

CONSUMES = st.builds(
    lambda key, amount, activity, overage, rest: ops.Consume(
        organization_id=ACME,
        id="",
        key=key,
        fingerprint=f"{amount}{activity}",
        amount_micros=amount,
        activity=activity,
        overage=overage,
        observe=rest == 0,
        would_refuse=InvalidInputError("no") if rest == 1 else None,
    ),
    st.one_of(st.uuids().map(str), st.sampled_from(("a", "b"))),
    st.sampled_from((0, 1, 1, 1, 1, 2, 5)),
    OFTEN,
    st.sampled_from((*Overage, Overage.REJECT, Overage.REJECT)),
    st.integers(0, 40),
)
SET_LIMITS = st.builds(
    lambda scope, unit, mode, amount, window, lines: ops.SetLimit(
        organization_id=ACME,
        id="",
        scope=scope[0],
        scope_id=scope[1],
        unit=unit,
        window_text=window,
        amount=amount,
        mode=mode,
        warn_at=lines,
    ),
    st.sampled_from(
        (
            (LimitScope.ORGANIZATION, ""),
            (LimitScope.DEPARTMENT, "sales"),
            (LimitScope.DEPARTMENT, ""),
            (LimitScope.AGENT_TYPE, "Writer"),
            (LimitScope.USER, "ann"),
        )
    ),
    st.sampled_from(LimitUnit),
    st.sampled_from(LimitMode),
    st.integers(0, 40),
    st.sampled_from(("month UTC", "lifetime")),
    st.sampled_from(((), (5_000,), (3_333, 8_000, 10_000))),
)
GRANTS = st.builds(
    lambda amount, priority, only_for, ends: ops.Grant(
        organization_id=ACME,
        id="",
        key="",
        fingerprint="",
        amount_micros=amount,
        priority=priority,
        only_for=only_for,
        expires_at=NOW + timedelta(days=1) if ends else None,
    ),
    st.integers(1, 60),
    st.integers(0, 2),
    st.sampled_from(((), (), (), ("*.edit",))),
    st.booleans(),
)
OTHERS: st.SearchStrategy[ops.Operation] = st.one_of(
    GRANTS,
    SET_LIMITS,
    st.builds(ops.SetOverdraft, organization_id=st.just(ACME), amount_micros=st.integers(0, 9)),
    st.builds(
        lambda before, after: ops.SetStatus(
            organization_id=ACME, before=frozenset({before}), status=after, reason=None, by=None
        ),
        st.sampled_from((AccountStatus.OPEN, AccountStatus.FROZEN)),
        st.sampled_from((AccountStatus.OPEN, AccountStatus.FROZEN)),
    ),
)


def named(operations: Sequence[ops.Operation], prefix: str) -> list[ops.Operation]:
    """Give records their ids and, where they have none, keys."""
    made: list[ops.Operation] = []
    for place, operation in enumerate(operations):
        names: dict[str, Any] = {}
        if isinstance(operation, ops.KeyedOperation):
            names = {"id": f"{prefix}{place:03}", "key": operation.key or f"{prefix}{place:03}"}
        elif isinstance(operation, ops.SetLimit):
            names = {"id": f"{prefix}{place:03}"}
        made.append(dataclasses.replace(operation, **names))
    return made


def one_by_one(ledger: Ledger, operations: Sequence[ops.Operation]) -> list[Outcome]:
    return [decide(ledger, operation, NOW) for operation in operations]


def together(ledger: Ledger, operations: Sequence[ops.Operation]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    while len(outcomes) < len(operations):
        outcomes += decide_next(ledger, operations, len(outcomes), NOW)
    return outcomes


def words(error: Exception | None) -> Any:
    """An error, comparable."""
    return None if error is None else (type(error), str(error), getattr(error, "context", None))


def told(outcomes: Sequence[Outcome]) -> list[Any]:
    """The answers, comparable."""
    return [
        dataclasses.replace(outcome, error=words(outcome.error), denials=tuple(map(plain, outcome.denials)))
        for outcome in copy.deepcopy(outcomes)
    ]


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


@given(
    st.lists(GRANTS, min_size=1, max_size=4),
    st.lists(SET_LIMITS, max_size=4),
    st.lists(st.one_of(CONSUMES, CONSUMES, CONSUMES, CONSUMES, CONSUMES, CONSUMES, OTHERS), min_size=1, max_size=40),
)
def test_together_is_one_by_one(
    grants: list[ops.Operation],
    caps: list[ops.Operation],
    operations: list[ops.Operation],
) -> None:
    """Any batch on any account: the same answers and the same ledger, whoever decides."""
    ledger = Ledger(ACME, AccountState(ACME, NOW, NOW))
    one_by_one(ledger, named([*grants, *caps], "g"))
    batch = named(operations, "c")
    found = []
    for way in (one_by_one, together):
        mine = copy.deepcopy(ledger)
        with counted_ids():
            found.append((told(way(mine, batch)), comparable(mine)))
    assert found[0][0] == found[1][0]
    assert found[0][1] == found[1][1]


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
    batch = named(
        [
            ops.Consume(
                organization_id=ACME, id="", key=f"k{place}", fingerprint="", amount_micros=1, activity=ACTIVITIES[0]
            )
            for place in range(45)
        ],
        "c",
    )
    one_by_one(ledger, [grant, cap, batch[0]])
    # The first told the counter the limit's amount; the 20th reaches one half, and the 41st is refused.
    assert len(alike.consume(ledger, batch, 1, NOW)) == 18
    assert alike.consume(ledger, batch, 19, NOW) == []
    assert [crossed.spent for crossed in decide(ledger, batch[19], NOW).crossings] == [20]
    assert len(alike.consume(ledger, batch, 20, NOW)) == 20
    assert alike.consume(ledger, batch, 40, NOW) == []
    assert decide(ledger, batch[40], NOW).error is not None
