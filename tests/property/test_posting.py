"""Posting: batches equal singles, booking in halves equals booking at once, burn-down follows its order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, select

from agentcredits.model import GrantCategory, Overage
from agentcredits.rules.operations import CreateAccount, Expire, Grant, Operation
from agentcredits.rules.state import Row
from agentcredits.store import queries, tables
from agentcredits.store.dialects import make_engine, normalise_url
from agentcredits.testing import FakeClock
from tests.property.posted import book, dump, new_organization, plain, post_now
from tests.property.scripts import CREDIT, START, Script, amounts, batches, play, steps

pytestmark = pytest.mark.proof


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A writable engine on a fresh, migrated database."""
    engine = make_engine(normalise_url(database_url), pool_size=1, lock_timeout_seconds=5, sqlite_synchronous="NORMAL")
    yield engine
    engine.dispose()


def examples(proof: str, engine: Engine, count: int) -> settings:
    """How many examples: fewer on PostgreSQL, twenty times more in the long form."""
    count = count if engine.dialect.name == "sqlite" else max(10, count // 4)
    long = proof == "long"
    return settings(
        max_examples=count * 20 if long else count,
        derandomize=not long,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


def test_n_operations_in_one_batch_equal_n_batches_of_one(engine: Engine, proof: str) -> None:
    """Answers, refusals, and every stored row are the same, whatever is in the batch."""

    @examples(proof, engine, 120)
    @given(batches)
    def check(script: list[Any]) -> None:
        together, apart = new_organization(), new_organization()
        assert play(engine, script, together, together=True) == play(engine, script, apart, together=False)
        assert dump(engine, together) == dump(engine, apart)

    check()


def test_a_batch_over_two_accounts_equals_two_batches(engine: Engine, proof: str) -> None:
    """SQLite may mix accounts in a transaction: neither sees the other. PostgreSQL refuses such a batch."""
    first, second = new_organization(), new_organization()
    clock = FakeClock(START)
    if engine.dialect.name == "postgresql":
        with pytest.raises(AssertionError, match="one account"):
            book(engine, clock, [CreateAccount(organization_id=first), CreateAccount(organization_id=second)])
        return

    @examples(proof, engine, 40)
    @given(st.lists(steps, min_size=1, max_size=8), st.lists(steps, min_size=1, max_size=8))
    def check(left: list[Any], right: list[Any]) -> None:
        mixed, alone = (new_organization(), new_organization()), (new_organization(), new_organization())
        clock = FakeClock(START)
        for pair in (mixed, alone):
            for name in pair:
                book(engine, clock, [CreateAccount(organization_id=name)])
        scripts = {name: Script(name, clock) for name in (*mixed, *alone)}
        both: list[Operation] = []
        for index in range(max(len(left), len(right))):
            for steps_of_one, name in ((left, mixed[0]), (right, mixed[1])):
                if index < len(steps_of_one):
                    both.append(scripts[name].operation(steps_of_one[index]))
        answers = book(engine, clock, both)
        separate = [
            book(engine, clock, [scripts[name].operation(step) for step in drawn])
            for drawn, name in ((left, alone[0]), (right, alone[1]))
        ]
        for place, name in enumerate(mixed):
            mine = [
                answer for answer, operation in zip(answers, both, strict=True) if operation.organization_id == name
            ]
            assert mine == separate[place]
            assert dump(engine, name) == dump(engine, alone[place])

    check()


#: When something was booked may differ between two schedules; what was booked may not.
BOOKING_TIMES = frozenset({"last_posted_at", "created_at", "settled_at"})


def runs_as_seen(engine: Engine, clock: FakeClock, organization_id: str) -> list[Any]:
    with engine.connect() as connection:
        found = queries.list_runs(connection, organization_id, clock, status=None, parent_run_id=None, limit=10)
    return sorted((dataclasses.replace(run, organization_id="ORG") for run in found), key=lambda run: run.run_id)


def test_two_half_runs_of_booking_what_is_due_equal_one_run(engine: Engine, proof: str) -> None:
    """A process that sweeps often and one that sweeps once leave the same books."""

    @examples(proof, engine, 60)
    @given(batches, st.lists(st.integers(1, 900), min_size=1, max_size=4))
    def check(script: list[Any], pauses: list[int]) -> None:
        often, once = new_organization(), new_organization()
        for name in (often, once):
            play(engine, script, name, together=True)
        clock = FakeClock(START + timedelta(minutes=sum(pause for _, pause in script)))
        for pause in pauses:
            clock.advance(timedelta(minutes=pause))
            book(engine, clock, [Expire(organization_id=often)])
        book(engine, clock, [Expire(organization_id=once)])
        books = [dump(engine, name, without=BOOKING_TIMES) for name in (often, once)]
        for name, one in zip((often, once), books, strict=True):
            # The end of a run by time is booked when somebody asks for its tree: what is asked for is compared.
            one["credit_runs"] = runs_as_seen(engine, clock, name)
        assert books[0] == books[1]

    check()


grants = st.lists(
    st.tuples(
        amounts,
        st.sampled_from(list(GrantCategory)),
        st.sampled_from([0, 10, 50]),
        st.sampled_from([-60, -1, 0]),
        st.none() | st.sampled_from([1, 5, 60]),
    ),
    min_size=1,
    max_size=12,
)


def test_credits_burn_in_the_documented_order(engine: Engine, proof: str) -> None:
    """priority, then the sooner end (never last), then category, start, creation, id: the same on both databases."""

    @examples(proof, engine, 80)
    @given(grants, st.lists(amounts, min_size=1, max_size=6))
    def check(drawn: list[Any], charges: list[int]) -> None:
        organization_id = new_organization()
        clock = FakeClock(START)
        script = Script(organization_id, clock)
        operations: list[Operation] = []
        for amount, category, priority, start, end in drawn:
            operations.append(
                dataclasses.replace(
                    script.operation(("grant", amount, category, priority, None, end)),
                    effective_at=START + timedelta(minutes=start),
                )
            )
        book(engine, clock, operations)
        order = sorted(
            (item for item in operations if isinstance(item, Grant)),
            key=lambda grant: (
                grant.priority,
                datetime.max.replace(tzinfo=UTC) if grant.expires_at is None else grant.expires_at,
                ["promotional", "plan", "adjustment", "paid"].index(grant.category),
                grant.effective_at,
                grant.id,
            ),
        )
        pool = [[grant.id, grant.amount_micros] for grant in order]
        for charge in charges:
            amount = min(charge, sum(room for _, room in pool))
            expected = []
            for slot in pool:
                part = min(slot[1], amount)
                if part:
                    expected.append((slot[0], part))
                    slot[1] -= part
                    amount -= part
            row = post_now(engine, clock, [script.make_consume(charge, Overage.CAP)])[0].record
            assert isinstance(row, Row)
            assert [(part.grant_id, part.amount_micros) for part in row.allocations] == expected
            assert row.uncollected_micros == charge - sum(part for _, part in expected)

    check()


@pytest.mark.parametrize("spent", [0, 1, 2])
def test_what_a_hold_leaves_goes_back_newest_first(engine: Engine, spent: int) -> None:
    """A commit uses the hold's grants in burn-down order; the rest goes back from the last to the first, here as
    breakage of grants that have ended meanwhile. A release does the same with all of it.
    """
    organization_id = new_organization()
    clock = FakeClock(START)
    script = Script(organization_id, clock)
    for length in (5, 6, 7, 8):
        post_now(engine, clock, [script.make_grant(CREDIT, GrantCategory.PAID, 50, None, length)])
    post_now(engine, clock, [script.make_reserve(4 * CREDIT, 60)])
    clock.advance(timedelta(minutes=10))
    settle = script.make_commit(0, spent * CREDIT, Overage.REJECT, False) if spent else script.make_release(0)
    post_now(engine, clock, [settle])
    with engine.connect() as connection:
        rows = connection.execute(
            select(tables.credit_transactions)
            .where(tables.credit_transactions.c.organization_id == organization_id)
            .where(tables.credit_transactions.c.type == "expire")
            .order_by(tables.credit_transactions.c.seq)
        )
        assert [row.grant_id for row in rows] == script.grants[spent:][::-1]


def test_a_used_up_grant_that_is_loaded_by_chance_ends_no_sooner(engine: Engine) -> None:
    """A repeated key loads its grant, which has nothing left that could end: in one batch with what is due, and alone,
    the same is booked.
    """
    script: list[Any] = [
        (
            [
                ("grant", 1, GrantCategory.PROMOTIONAL, 10, None, 1),
                ("consume", 1, Overage.REJECT),
                ("grant", 1, GrantCategory.PROMOTIONAL, 10, None, 1),
            ],
            1,
        ),
        ([("expire",), ("repeat", 2)], 1),
    ]
    together, apart = new_organization(), new_organization()
    assert play(engine, script, together, together=True) == play(engine, script, apart, together=False)
    assert dump(engine, together) == dump(engine, apart)


def test_a_hold_ends_before_its_grant_at_the_same_instant(engine: Engine) -> None:
    """What the hold gives back ends with the grant: one row of breakage for both, not two."""
    organization_id = new_organization()
    clock = FakeClock(START)
    script = Script(organization_id, clock)
    post_now(engine, clock, [script.make_grant(5 * CREDIT, GrantCategory.PAID, 50, None, 10)])
    post_now(engine, clock, [script.make_reserve(2 * CREDIT, 10)])
    clock.advance(timedelta(minutes=10))
    post_now(engine, clock, [script.make_expire()])
    with engine.connect() as connection:
        amounts = connection.execute(
            select(tables.credit_transactions.c.amount_micros)
            .where(tables.credit_transactions.c.organization_id == organization_id)
            .order_by(tables.credit_transactions.c.seq)
        ).scalars()
        assert list(amounts) == [5 * CREDIT, -5 * CREDIT]


def test_a_try_that_is_made_again_is_no_replay(engine: Engine) -> None:
    """The same operation once more (its first answer was lost) gives its own record; another call's key is a replay."""
    organization_id = new_organization()
    clock = FakeClock(START)
    script = Script(organization_id, clock)
    operations = [
        script.make_grant(5 * CREDIT, GrantCategory.PAID, 50, None, None),
        script.make_consume(CREDIT, Overage.REJECT),
        script.make_reserve(CREDIT, 10),
    ]
    operations.append(script.make_refund(0, 1))
    for operation in operations:
        first = post_now(engine, clock, [operation])[0]
        again = post_now(engine, clock, [operation], fresh=False)[0]
        caller = dataclasses.replace(operation, id=script.new_id(), key_generated=False)  # type: ignore[call-arg]  # keyed operations have these
        other = post_now(engine, clock, [caller])[0]
        assert (first.replayed, again.replayed, other.replayed) == (False, False, True)
        assert plain(first.record) == plain(again.record) == plain(other.record)


def test_the_comparison_can_fail(engine: Engine) -> None:
    """One operation more, and the stored books differ: the dump hides nothing that matters."""
    same, more = new_organization(), new_organization()
    script: list[Any] = [([("grant", CREDIT, GrantCategory.PAID, 50, None, None), ("consume", 1, Overage.REJECT)], 1)]
    play(engine, script, same, together=True)
    play(engine, [*script, ([("consume", 1, Overage.REJECT)], 1)], more, together=True)
    assert dump(engine, same) != dump(engine, more)
