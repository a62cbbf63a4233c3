"""Posting: batches equal singles, booking in halves equals booking at once, burn-down follows its order."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, Table, select

from agentcredits.errors import CreditsError
from agentcredits.ids import generated_key
from agentcredits.model import AccountStatus, GrantCategory, Overage, Scopes
from agentcredits.rules.operations import (
    Activity,
    CancelRecurring,
    Commit,
    Consume,
    CreateAccount,
    CreateRecurring,
    EndRun,
    Expire,
    Extend,
    Grant,
    MarkUnknown,
    OpenRun,
    Operation,
    Refund,
    Release,
    Reserve,
    SetOverdraft,
    SetStatus,
    VoidGrant,
    fingerprint,
)
from agentcredits.rules.periods import RolloverTerms
from agentcredits.rules.posting import Outcome
from agentcredits.rules.state import Row
from agentcredits.service import arguments
from agentcredits.store import queries, tables
from agentcredits.store.dialects import dialect_of, make_engine, normalise_url
from agentcredits.store.posting import post
from agentcredits.testing import FakeClock

START = datetime(2026, 1, 30, 22, 0, tzinfo=UTC)
CREDIT = 1_000_000
TENANT_TABLES: tuple[Table, ...] = (
    tables.credit_accounts,
    tables.credit_grants,
    tables.credit_reservations,
    tables.credit_transactions,
    tables.credit_transaction_allocations,
    tables.credit_transaction_details,
    tables.idempotency_keys,
    tables.credit_runs,
    tables.recurring_grants,
)


pytestmark = pytest.mark.proof


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A writable engine on a fresh, migrated database."""
    engine = make_engine(normalise_url(database_url), pool_size=1, lock_timeout_seconds=5, sqlite_synchronous="NORMAL")
    yield engine
    engine.dispose()


def new_organization() -> str:
    return f"org-{uuid.uuid4().hex}"


def post_now(engine: Engine, clock: FakeClock, operations: Sequence[Operation], *, fresh: bool = True) -> list[Outcome]:
    """Post as one transaction."""
    with engine.connect() as connection:
        dialect_of(connection).begin_write(connection, 5)
        outcomes = post(connection, operations, clock=clock, fresh=fresh)
        connection.commit()
    return outcomes


def book(engine: Engine, clock: FakeClock, operations: Sequence[Operation]) -> list[Any]:
    """Post as one transaction; answers and refusals as plain data."""
    return [
        (plain(outcome.error or outcome.record).replace(operation.organization_id, "ORG"), outcome.replayed)
        for operation, outcome in zip(operations, post_now(engine, clock, operations), strict=True)
    ]


def plain(value: Any) -> str:
    """A record or error as comparable text."""
    if isinstance(value, CreditsError):
        return json.dumps({"type": type(value).__name__, **value.as_dict()}, default=str, sort_keys=True)
    return "" if value is None else json.dumps(dataclasses.asdict(value), default=str, sort_keys=True)


def dump(engine: Engine, organization_id: str, *, without: AbstractSet[str] = frozenset()) -> dict[str, list[Any]]:
    """Everything stored about an account, with rows' own ids replaced by their seq (booked ends make new ids)."""
    books: dict[str, list[Any]] = {}
    with engine.connect() as connection:
        transactions = tables.credit_transactions
        names = {
            row.id: f"seq-{row.seq}"
            for row in connection.execute(
                select(transactions.c.id, transactions.c.seq).where(transactions.c.organization_id == organization_id)
            )
        }
        for table in TENANT_TABLES:
            rows = connection.execute(select(table).where(table.c.organization_id == organization_id)).mappings()
            books[table.name] = sorted(
                (
                    tuple(
                        (name, str(names.get(value, value)) if isinstance(value, str) else str(value))
                        for name, value in row.items()
                        if name != "organization_id" and name not in without
                    )
                    for row in rows
                ),
                key=str,
            )
    return books


# -- any sequence of operations --------------------------------------------------------------------------------------

amounts = st.sampled_from([1, CREDIT, 3 * CREDIT, 10 * CREDIT]) | st.integers(1, 30 * CREDIT)
minutes = st.sampled_from([1, 5, 60, 600])
picks = st.integers(0, 50)
run_ids = st.sampled_from(["r1", "r2", "r3"])
caps = st.sampled_from([None, None, 3 * CREDIT, 20 * CREDIT])
actions = st.sampled_from([None, "draw", "write"])
restrictions = st.sampled_from([(), (), ("Maker.draw",), ("*.write", "Other.*")])
steps = st.one_of(
    st.tuples(
        st.just("grant"),
        amounts,
        st.sampled_from(list(GrantCategory)),
        st.sampled_from([10, 50]),
        st.none() | minutes,
        st.none() | minutes,
        restrictions,
    ),
    st.tuples(st.just("consume"), amounts, st.sampled_from(list(Overage)), actions),
    st.tuples(st.just("consume"), amounts, st.sampled_from(list(Overage)), actions),
    st.tuples(
        st.just("recurring"),
        amounts,
        st.sampled_from(["day", "week", "month"]),
        st.sampled_from([None, -31 * 24 * 60 + 600, 60]),
        st.sampled_from(
            [
                ("period", None),
                ("period", RolloverTerms(5 * CREDIT, CREDIT, None)),
                ("period", RolloverTerms(None, 0, "period")),
                (None, None),
                (timedelta(hours=30), None),
            ]
        ),
        restrictions,
    ),
    st.tuples(st.just("cancel"), picks),
    st.tuples(st.just("reserve"), amounts, minutes, actions),
    st.tuples(st.just("reserve"), amounts, minutes, actions),
    st.tuples(
        st.just("commit"), picks, st.none() | amounts | st.just(0), st.sampled_from(list(Overage)), st.booleans()
    ),
    st.tuples(
        st.just("commit"), picks, st.none() | amounts | st.just(0), st.sampled_from(list(Overage)), st.booleans()
    ),
    st.tuples(st.just("consume"), amounts, st.sampled_from(list(Overage)), actions, run_ids, caps),
    st.tuples(st.just("reserve"), amounts, minutes, actions, run_ids, caps),
    st.tuples(st.just("open run"), run_ids, st.none() | run_ids, caps, st.booleans(), st.booleans(), minutes),
    st.tuples(st.just("end run"), run_ids),
    st.tuples(st.just("release"), picks, st.booleans()),
    st.tuples(st.just("line"), st.just(0) | amounts),
    st.tuples(st.just("line"), amounts),
    st.tuples(st.just("status"), st.sampled_from([*AccountStatus, AccountStatus.OPEN, AccountStatus.OPEN])),
    st.tuples(st.just("extend"), picks, minutes),
    st.tuples(st.just("unknown"), picks),
    st.tuples(st.just("refund"), picks, st.none() | amounts),
    st.tuples(st.just("void"), picks, st.booleans()),
    st.tuples(st.just("repeat"), picks),
    st.tuples(st.just("other payload"), picks),
    st.tuples(st.just("expire")),
)
batches = st.lists(
    st.tuples(st.lists(steps, min_size=1, max_size=10), minutes | st.just(1_500)), min_size=1, max_size=4
)


def activity(action: str | None, run_id: str | None, cap: int | None) -> Activity:
    """Of the agent type Maker, if it is an action at all."""
    scopes = Scopes(run_id=run_id, run_max_micros=cap)
    return Activity(scopes=scopes) if action is None else Activity(agent_type="Maker", action=action, scopes=scopes)


class Script:
    """Turns drawn steps into operations; the same ids for every account that it is played on."""

    def __init__(self, organization_id: str, clock: FakeClock) -> None:
        self.organization_id = organization_id
        self.clock = clock
        self.made = 0
        self.grants: list[str] = []
        self.holds: list[str] = []
        self.charges: list[str] = []
        self.recurring: list[str] = []
        self.keyed: list[Operation] = []

    def new_id(self) -> str:
        self.made += 1
        return str(uuid.UUID(int=self.made))

    def keyed_facts(self, *payload: object) -> dict[str, Any]:
        made = self.new_id()
        return {
            "organization_id": self.organization_id,
            "id": made,
            "key": f"key-{made}",
            "fingerprint": fingerprint("test", *payload),
        }

    def spending_facts(self, kind: str, amount: int, about: Activity, overage: Overage | None) -> dict[str, Any]:
        """Every other charge or hold has a generated key; its payload is what a service makes of the call."""
        facts = self.keyed_facts(kind, amount, overage) | {"amount_micros": amount, "activity": about}
        if self.made % 2:
            facts |= {
                "key": generated_key(facts["id"]),
                "key_generated": True,
                "fingerprint": arguments.fingerprint(
                    kind, self.organization_id, amount, about, explicit_amount=bool(self.made % 4 - 1), overage=overage
                ),
            }
        return facts

    @staticmethod
    def choose(ids: list[str], number: int) -> str:
        return ids[-1 - number % len(ids)] if ids else "no-such-record"

    def operation(self, step: tuple[Any, ...]) -> Operation:
        kind, *drawn = step
        operation = getattr(self, "make_" + kind.replace(" ", "_"))(*drawn)
        if isinstance(operation, Grant | Consume | Reserve | Refund | CreateRecurring):
            self.keyed.append(operation)
        return operation  # type: ignore[no-any-return]  # the makers below all return operations

    def make_grant(
        self,
        amount: int,
        category: GrantCategory,
        priority: int,
        start: int | None,
        length: int | None,
        only_for: tuple[str, ...] = (),
    ) -> Operation:
        facts = self.keyed_facts("grant", amount, category, priority, start, length)
        self.grants.append(facts["id"])
        begin = None if start is None else self.clock.now() + timedelta(minutes=start)
        end = None if length is None else (begin or self.clock.now()) + timedelta(minutes=length)
        return Grant(
            **facts,
            amount_micros=amount,
            category=category,
            priority=priority,
            effective_at=begin,
            expires_at=end,
            only_for=only_for,
        )

    def make_recurring(
        self, amount: int, every: Any, anchor: int | None, lasting: tuple[Any, Any], only_for: tuple[str, ...]
    ) -> Operation:
        facts = self.keyed_facts("recurring", amount, every, anchor)
        self.recurring.append(facts["id"])
        expires_after, rollover = lasting
        return CreateRecurring(
            **facts,
            amount_micros=amount,
            every=every,
            tz="Europe/Berlin",
            anchor=None if anchor is None else self.clock.now() + timedelta(minutes=anchor),
            expires_after=expires_after,
            rollover=rollover,
            only_for=only_for,
        )

    def make_cancel(self, number: int) -> Operation:
        chosen = self.choose(self.recurring, number)
        return CancelRecurring(organization_id=self.organization_id, recurring_id=chosen)

    def make_consume(
        self,
        amount: int,
        overage: Overage,
        action: str | None = None,
        run_id: str | None = None,
        cap: int | None = None,
    ) -> Operation:
        facts = self.spending_facts("consume", amount, activity(action, run_id, cap), overage)
        self.charges.append(facts["id"])
        return Consume(**facts, overage=overage)

    def make_reserve(
        self, amount: int, ttl: int, action: str | None = None, run_id: str | None = None, cap: int | None = None
    ) -> Operation:
        facts = self.spending_facts("reserve", amount, activity(action, run_id, cap), None)
        self.holds.append(facts["id"])
        return Reserve(**facts, ttl=timedelta(minutes=ttl))

    def make_open_run(
        self, run_id: str, parent: str | None, cap: int | None, borrows: bool, partial: bool, ttl: int
    ) -> Operation:
        return OpenRun(
            organization_id=self.organization_id,
            run_id=run_id,
            parent_run_id=None if parent == run_id else parent,
            cap_micros=cap,
            borrows=borrows and parent not in (None, run_id),
            partial=partial,
            ttl=timedelta(minutes=ttl),
        )

    def make_end_run(self, run_id: str) -> Operation:
        return EndRun(organization_id=self.organization_id, run_id=run_id)

    def make_commit(self, number: int, amount: int | None, overage: Overage, late: bool) -> Operation:
        made = self.new_id()
        self.charges.append(made)
        return Commit(
            organization_id=self.organization_id,
            reservation_id=self.choose(self.holds, number),
            transaction_id=made,
            amount_micros=amount,
            overage=Overage.CAP if late and overage is Overage.REJECT else overage,
            late=late,
        )

    def make_release(self, number: int, forced: bool = False) -> Operation:
        hold = self.choose(self.holds, number)
        return Release(organization_id=self.organization_id, reservation_id=hold, forced=forced)

    def make_line(self, amount: int) -> Operation:
        return SetOverdraft(organization_id=self.organization_id, amount_micros=amount)

    def make_status(self, status: AccountStatus) -> Operation:
        before = frozenset(AccountStatus) - {status}
        return SetStatus(
            organization_id=self.organization_id, status=status, before=before, reason="a reason", by="somebody"
        )

    def make_extend(self, number: int, ttl: int) -> Operation:
        hold = self.choose(self.holds, number)
        return Extend(organization_id=self.organization_id, reservation_id=hold, ttl=timedelta(minutes=ttl))

    def make_unknown(self, number: int) -> Operation:
        return MarkUnknown(
            organization_id=self.organization_id,
            reservation_id=self.choose(self.holds, number),
            provider="fal",
            provider_reference=None,
            ttl=timedelta(days=7),
        )

    def make_refund(self, number: int, amount: int | None) -> Operation:
        charge = self.choose(self.charges, number)
        return Refund(**self.keyed_facts("refund", charge, amount), transaction_id=charge, amount_micros=amount)

    def make_void(self, number: int, unreserved_only: bool) -> Operation:
        chosen = self.choose(self.grants, number)
        return VoidGrant(organization_id=self.organization_id, grant_id=chosen, unreserved_only=unreserved_only)

    def make_repeat(self, number: int) -> Operation:
        """An earlier keyed call again, as a new try: same key and payload, another new id."""
        if not self.keyed:
            return self.make_expire()
        return dataclasses.replace(self.keyed[-1 - number % len(self.keyed)], id=self.new_id(), key_generated=False)  # type: ignore[call-arg]  # keyed operations have these

    def make_other_payload(self, number: int) -> Operation:
        """An earlier key with another payload."""
        if not self.keyed:
            return self.make_expire()
        earlier = self.keyed[-1 - number % len(self.keyed)]
        return dataclasses.replace(earlier, id=self.new_id(), key_generated=False, fingerprint="another payload")  # type: ignore[call-arg]  # keyed operations have these

    def make_expire(self) -> Operation:
        return Expire(organization_id=self.organization_id)


def play(engine: Engine, script: list[Any], organization_id: str, *, together: bool) -> list[Any]:
    """Play a drawn script on an account, each group as one batch or as batches of one."""
    clock = FakeClock(START)
    maker = Script(organization_id, clock)
    answers = book(engine, clock, [CreateAccount(organization_id=organization_id)])
    for group, pause in script:
        operations = [maker.operation(step) for step in group]
        if together:
            answers += book(engine, clock, operations)
        else:
            for operation in operations:
                answers += book(engine, clock, [operation])
        clock.advance(timedelta(minutes=pause))
    return answers


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
