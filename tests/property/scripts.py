"""Scripts: drawn steps as operations of the ledger, with the same ids on every account that they are played on."""

from __future__ import annotations

import dataclasses
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st
from sqlalchemy import Engine

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
from agentcredits.service import arguments
from agentcredits.testing import FakeClock
from tests.property.posted import book

START = datetime(2026, 1, 30, 22, 0, tzinfo=UTC)
CREDIT = 1_000_000

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
