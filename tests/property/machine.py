"""The state machine: the public service and the reference model side by side, compared after every step."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from agentcredits.amounts import from_micros
from agentcredits.errors import CreditsError
from agentcredits.model import CreditGrant, ReservationRecord, Transaction
from agentcredits.service import SyncCreditService
from agentcredits.testing import FakeClock
from tests.property.reference import Account, Answer, Grant, Hold, Ledger, Refused, Row

START = datetime(2026, 1, 30, 22, 0, tzinfo=UTC)
CREDIT = 1_000_000

micros = st.sampled_from([1, CREDIT // 2, CREDIT, 3 * CREDIT, 10 * CREDIT, 25 * CREDIT]) | st.integers(1, 40 * CREDIT)
grant_micros = st.sampled_from([CREDIT, 10 * CREDIT, 20 * CREDIT]) | st.integers(1, 60 * CREDIT)
ttls = st.sampled_from([timedelta(seconds=1), timedelta(minutes=1), timedelta(minutes=5), timedelta(hours=3)])
picks = st.integers(0, 10_000)
scope_ids = st.sampled_from([None, "alpha", "beta"])
scope_triples = st.tuples(scope_ids, scope_ids, scope_ids)
starts = st.sampled_from([None, -timedelta(days=1), timedelta(0), timedelta(seconds=30), timedelta(hours=1)])
ends = st.sampled_from([None, timedelta(seconds=1), timedelta(minutes=2), timedelta(hours=1), timedelta(days=2)])
overages = st.sampled_from(["reject", "cap"])

Call = tuple[str, dict[str, Any]]


def proof_is_long(config: pytest.Config) -> bool:
    """Whether ``--proof long`` (or AGENTCREDITS_PROOF=long) asks for the long form."""
    return "long" in (config.getoption("--proof", default=None), os.environ.get("AGENTCREDITS_PROOF"))


def change_one(name: str, value: Any) -> Any:
    """Another value of the same kind."""
    if name == "amount":
        return (value or CREDIT) + 1
    if isinstance(value, int):
        return value + 1
    if isinstance(value, datetime):
        return value + timedelta(seconds=1)
    if isinstance(value, tuple):
        return ("changed", *value[1:])
    if value is None:
        return START + timedelta(days=400)
    swaps = {"paid": "plan", "plan": "paid", "promotional": "paid", "adjustment": "paid", "cap": "reject", "reject": "cap"}
    return swaps.get(value, "changed")


#: The fields that make another payload of a keyed call; everything else may differ between two honest tries.
PAYLOAD = {
    "grant_credits": ("amount", "category", "priority", "expires_at"),
    "consume_credits": ("amount", "overage", "scopes"),
    "reserve_credits": ("amount", "scopes"),
    "refund_credits": ("amount",),
}


class LedgerMachine(RuleBasedStateMachine):
    """Subclasses set ``service`` and ``clock`` (one database for all examples; each example has its own accounts)."""

    service: SyncCreditService
    clock: FakeClock

    def __init__(self) -> None:
        super().__init__()
        self.clock.set(START)
        self.model = Ledger(self.clock.now)
        run = uuid.uuid4().hex
        self.organizations = (f"{run}-a", f"{run}-b")
        self.calls: list[Call] = []
        self.compared = dict.fromkeys(self.organizations, 0)
        self.newest = dict.fromkeys(self.organizations, START)
        self.keys = 0

    # -- driving both --------------------------------------------------------------------------------------------

    def new_key(self) -> str:
        self.keys += 1
        return f"key-{self.keys}"

    def apply(self, call: Call, *, remember: bool = True) -> None:
        """Make the same call on both sides; the answers, or the refusals, must be equal."""
        name, arguments = call
        if remember:
            self.calls.append(call)
        try:
            expected: Answer | str = self.model.call(name, arguments)
        except Refused as refusal:
            expected = refusal.code
        try:
            actual: Any = self.perform(name, dict(arguments))
        except CreditsError as error:
            actual = error.code
        if isinstance(expected, str) or isinstance(actual, str):
            assert actual == expected, call
        else:
            self.adopt(expected, actual)
        self.compare()
        if not isinstance(expected, str):
            self.compare_record(expected, actual)

    def perform(self, name: str, arguments: dict[str, Any]) -> Any:
        """Translate a call into one of the public service."""
        organization_id = arguments.pop("organization_id")
        if (amount := arguments.pop("amount", None)) is not None:
            arguments["amount"] = from_micros(amount)
        if (scopes := arguments.pop("scopes", None)) is not None:
            arguments |= dict(zip(("project_id", "department_id", "user_id"), scopes, strict=True))
        if name == "grant_credits":
            return self.service.grant_credits(organization_id, arguments.pop("amount"), **arguments)
        if name == "create_account":
            return self.service.create_account(organization_id)
        if name == "sweep":
            return self.service.sweep(organization_id)
        if name == "mark_unknown":
            arguments |= {"provider": "fal", "provider_reference": "job-1"}
        if name == "reserve_credits":
            return self.service.reserve_credits(organization_id=organization_id, **arguments).record
        first = next((arguments.pop(key) for key in ("reservation_id", "transaction_id", "grant_id") if key in arguments), None)
        ids = () if first is None else (first,)
        return getattr(self.service, name)(*ids, organization_id=organization_id, **arguments)

    @staticmethod
    def adopt(expected: Answer, actual: Any) -> None:
        """New records get their id from the service; a repeated answer must have the id that it had."""
        record = expected.record
        if record is None:
            return
        if expected.replayed or record.id:
            assert actual.id == record.id
        else:
            record.id = actual.id

    # -- comparing -----------------------------------------------------------------------------------------------

    def compare_record(self, expected: Answer, actual: Any) -> None:
        """The record that a call gave back equals the model's."""
        record = expected.record
        if isinstance(record, Grant) and not expected.replayed:
            compare_grant(record, actual)
        elif isinstance(record, Hold) and not expected.replayed:
            compare_hold(record, actual)
        elif isinstance(record, Row):
            compare_row(record, actual)
        if record is not None:
            assert actual.replayed == expected.replayed

    def compare(self) -> None:
        """Balance, new ledger rows, grants and verify of both accounts."""
        for organization_id in self.organizations:
            account = self.model.accounts.get(organization_id)
            if account is None:
                continue
            view = self.model.view(organization_id).terms()
            balance = self.service.get_balance(organization_id)
            assert {name: balance[f"{name}_micros"] for name in view} == view
            self.compare_history(organization_id, account)
            report = self.service.verify(organization_id)
            assert report.ok, report.problems

    def compare_history(self, organization_id: str, account: Account) -> None:
        """Rows since the last comparison, newest first; every one equal, seq without a gap."""
        known = self.compared[organization_id]
        rows: list[Transaction] = []
        cursor = None
        while True:
            page = self.service.list_transactions(organization_id, cursor=cursor, limit=50)
            rows += [row for row in page if row.seq > known]
            cursor = page.next_cursor
            if cursor is None or len(rows) == 0 or rows[-1].seq <= known + 1:
                break
        rows.reverse()
        expected = account.rows[known:]
        assert [row.seq for row in rows] == [row.seq for row in expected]
        for row, model in zip(rows, expected, strict=True):
            model.id = model.id or row.id
        for row, model in zip(rows, expected, strict=True):
            compare_row(model, row)
            assert row.created_at >= self.newest[organization_id], "history runs backwards"
            self.newest[organization_id] = row.created_at
        self.compared[organization_id] = len(account.rows)

    def teardown(self) -> None:
        """The whole history, every grant and every hold once more, read from the first page to the last."""
        for organization_id in self.organizations:
            if organization_id not in self.model.accounts:
                continue
            self.service.sweep(organization_id)
            self.model.sweep(organization_id)
            self.compared[organization_id] = 0
            self.newest[organization_id] = START
            account = self.model.accounts[organization_id]
            self.compare_history(organization_id, account)
            grants = {grant.id: grant for grant in self.service.list_grants(organization_id)}
            assert grants.keys() == {grant.id for grant in account.grants}
            for model_grant in account.grants:
                compare_grant(model_grant, grants[model_grant.id])
            for hold in account.holds:
                compare_hold(hold, self.service.get_reservation(hold.id, organization_id=organization_id))

    # -- picking -------------------------------------------------------------------------------------------------

    def pick(self, kind: Callable[[Account], list[Any]], number: int) -> tuple[str, str]:
        """Some record's account and id; an id that exists nowhere when there is none."""
        found = [
            (organization_id, record.id)
            for organization_id, account in self.model.accounts.items()
            for record in kind(account)
            if record.id
        ]
        return found[-1 - number % len(found)] if found else (self.organizations[0], str(uuid.UUID(int=number)))

    def pick_hold(self, number: int) -> tuple[str, str]:
        return self.pick(lambda account: account.holds, number)

    def pick_row(self, number: int) -> tuple[str, str]:
        return self.pick(lambda account: account.rows, number)

    def pick_charge(self, number: int) -> tuple[str, str]:
        return self.pick(lambda account: [row for row in account.rows if row.type == "debit"], number)

    # -- rules ---------------------------------------------------------------------------------------------------

    @initialize(first=grant_micros)
    def open_accounts(self, first: int) -> None:
        self.grant(0, first, "paid", 50, None, None)
        self.apply(("create_account", {"organization_id": self.organizations[1]}))

    @rule(
        organization=st.sampled_from([0, 0, 0, 1]),
        amount=grant_micros,
        category=st.sampled_from(["paid", "promotional", "plan", "adjustment"]),
        priority=st.sampled_from([10, 50, 50]),
        start=starts,
        end=ends,
    )
    def grant(
        self, organization: int, amount: int, category: str, priority: int, start: timedelta | None, end: timedelta | None
    ) -> None:
        now = self.clock.now()
        effective_at = None if start is None else now + start
        expires_at = None if end is None else max(now, effective_at or now) + end
        self.apply((
            "grant_credits",
            {
                "organization_id": self.organizations[organization],
                "amount": amount,
                "category": category,
                "priority": priority,
                "effective_at": effective_at,
                "expires_at": expires_at,
                "source": "test",
                "idempotency_key": self.new_key(),
            },
        ))

    @rule(number=picks)
    def void(self, number: int) -> None:
        organization_id, grant_id = self.pick(lambda account: account.grants, number)
        self.apply(("void_grant", {"organization_id": organization_id, "grant_id": grant_id}))

    @rule(organization=st.sampled_from([0, 0, 0, 1]), amount=micros, overage=overages, scopes=scope_triples)
    def consume(self, organization: int, amount: int, overage: str, scopes: tuple[Any, ...]) -> None:
        self.apply((
            "consume_credits",
            {
                "organization_id": self.organizations[organization],
                "amount": amount,
                "overage": overage,
                "scopes": scopes,
                "idempotency_key": self.new_key(),
            },
        ))

    @rule(organization=st.sampled_from([0, 0, 0, 1]), amount=micros, ttl=ttls, scopes=scope_triples)
    def reserve(self, organization: int, amount: int, ttl: timedelta, scopes: tuple[Any, ...]) -> None:
        self.apply((
            "reserve_credits",
            {
                "organization_id": self.organizations[organization],
                "amount": amount,
                "ttl": ttl,
                "scopes": scopes,
                "idempotency_key": self.new_key(),
            },
        ))

    def held(self, organization_id: str, reservation_id: str) -> int:
        account = self.model.accounts.get(organization_id)
        holds = [] if account is None else account.holds
        return next((hold.amount for hold in holds if hold.id == reservation_id), CREDIT)

    @rule(number=picks, change=st.sampled_from([None, 0, 1, -1, CREDIT, -CREDIT, "zero", "huge"]), overage=overages)
    def commit(self, number: int, change: int | str | None, overage: str) -> None:
        organization_id, reservation_id = self.pick_hold(number)
        held = self.held(organization_id, reservation_id)
        special = {None: None, "zero": 0, "huge": held + 100 * CREDIT}
        amount = special[change] if change in special else max(1, held + int(change or 0))
        self.apply((
            "commit_reservation",
            {
                "organization_id": organization_id,
                "reservation_id": reservation_id,
                "amount": amount,
                "overage": overage,
            },
        ))

    @rule(number=picks)
    def release(self, number: int) -> None:
        organization_id, reservation_id = self.pick_hold(number)
        self.apply(("release_reservation", {"organization_id": organization_id, "reservation_id": reservation_id}))

    @rule(number=picks, ttl=ttls)
    def extend(self, number: int, ttl: timedelta) -> None:
        organization_id, reservation_id = self.pick_hold(number)
        self.apply((
            "extend_reservation",
            {"organization_id": organization_id, "reservation_id": reservation_id, "ttl": ttl},
        ))

    @rule(number=picks)
    def await_verdict(self, number: int) -> None:
        organization_id, reservation_id = self.pick_hold(number)
        self.apply(("mark_unknown", {"organization_id": organization_id, "reservation_id": reservation_id}))

    @rule(number=picks, amount=st.none() | micros)
    def refund(self, number: int, amount: int | None) -> None:
        organization_id, transaction_id = self.pick_charge(number)
        self.apply((
            "refund_credits",
            {
                "organization_id": organization_id,
                "transaction_id": transaction_id,
                "amount": amount,
                "idempotency_key": self.new_key(),
            },
        ))

    @rule(number=picks)
    def refund_what_is_no_charge(self, number: int) -> None:
        """Only a DEBIT can be refunded."""
        organization_id, transaction_id = self.pick_row(number)
        self.apply((
            "refund_credits",
            {
                "organization_id": organization_id,
                "transaction_id": transaction_id,
                "amount": 1,
                "idempotency_key": self.new_key(),
            },
        ))

    @rule(organization=st.sampled_from([0, 1]))
    def sweep(self, organization: int) -> None:
        self.apply(("sweep", {"organization_id": self.organizations[organization]}))

    @rule(number=picks)
    def replay(self, number: int) -> None:
        """Any earlier call again, exactly as it was."""
        self.apply(self.calls[-1 - number % len(self.calls)], remember=False)

    @rule(number=picks, field=picks)
    def replay_with_one_field_changed(self, number: int, field: int) -> None:
        """An earlier keyed call with another payload: never the old answer, never a second booking."""
        keyed = [call for call in self.calls if call[0] in PAYLOAD]
        name, arguments = keyed[-1 - number % len(keyed)]
        changed = PAYLOAD[name][field % len(PAYLOAD[name])]
        self.apply((name, arguments | {changed: change_one(changed, arguments[changed])}), remember=False)

    @rule(number=picks, ttl=ttls)
    def replay_with_another_ttl(self, number: int, ttl: timedelta) -> None:
        """The time-to-live is no part of the payload."""
        keyed = [call for call in self.calls if call[0] == "reserve_credits"]
        if keyed:
            name, arguments = keyed[-1 - number % len(keyed)]
            self.apply((name, arguments | {"ttl": ttl}), remember=False)

    @rule(number=picks)
    def use_a_foreign_id(self, number: int) -> None:
        """An earlier call under the other organization: its ids and keys mean nothing there."""
        name, arguments = self.calls[-1 - number % len(self.calls)]
        first, second = self.organizations
        other = second if arguments["organization_id"] == first else first
        self.apply((name, arguments | {"organization_id": other}), remember=False)

    @rule(number=picks)
    def use_an_unknown_organization(self, number: int) -> None:
        name, arguments = self.calls[-1 - number % len(self.calls)]
        if name not in ("grant_credits", "create_account"):
            self.apply((name, arguments | {"organization_id": "nobody"}), remember=False)

    @rule(step=st.sampled_from([1e-6, 1.0, 59.0, 600.0, 4_000.0, 90_000.0, 8 * 86_400.0]))
    def pass_time(self, step: float) -> None:
        self.clock.advance(timedelta(seconds=step))
        self.compare()

    @precondition(lambda self: any(True for account in self.model.accounts.values() for _ in account.due_times()))
    @rule(number=picks, off=st.sampled_from([-1, 0, 1]))
    def go_to_an_edge(self, number: int, off: int) -> None:
        """To one microsecond before, onto, or after the moment at which something is due."""
        due = sorted(time for account in self.model.accounts.values() for time in account.due_times())
        edge = due[number % min(3, len(due))] + timedelta(microseconds=off)
        if edge > self.clock.now():
            self.clock.set(edge)
        self.compare()

    @rule(step=st.sampled_from([1.0, 3_600.0]))
    def set_the_clock_back(self, step: float) -> None:
        """A clock that jumps back does not take an account's history with it."""
        self.clock.advance(-timedelta(seconds=step))
        self.compare()


def takes_of(takes: Any) -> list[tuple[str, int]]:
    return [(grant.id, amount) for grant, amount in takes]


def allocations_of(record: Transaction | ReservationRecord) -> list[tuple[str | None, int]]:
    return [(allocation.grant_id, allocation.amount_micros) for allocation in record.allocations]


def compare_row(expected: Row, actual: Transaction) -> None:
    """A ledger row equals the model's."""
    assert {
        "id": actual.id,
        "seq": actual.seq,
        "type": actual.type.value,
        "amount": actual.amount_micros,
        "balance_after": actual.balance_after_micros,
        "uncollected": actual.uncollected_micros,
        "refund_of": actual.refund_of,
        "late": actual.late,
    } == {
        "id": expected.id or actual.id,
        "seq": expected.seq,
        "type": expected.type,
        "amount": expected.amount,
        "balance_after": expected.balance_after,
        "uncollected": expected.uncollected,
        "refund_of": None if expected.refund_of is None else expected.refund_of.id,
        "late": expected.late,
    }
    if expected.type in ("debit", "refund"):
        assert allocations_of(actual) == takes_of(expected.takes)
    if expected.type == "debit":
        assert actual.reservation_id == (None if expected.hold is None else expected.hold.id)
    if expected.grant is not None:
        assert actual.grant_id == expected.grant.id


def compare_grant(expected: Grant, actual: CreditGrant) -> None:
    """A grant's counters, status and times equal the model's."""
    for name in ("amount", "spent", "held", "expired", "voided", "remaining"):
        assert (name, actual[f"{name}_micros"]) == (name, getattr(expected, name))
    assert (actual.status.value, actual.category.value) == (expected.status, expected.category)
    assert (actual.effective_at, actual.expires_at) == (expected.effective_at, expected.expires_at)


def compare_hold(expected: Hold, actual: ReservationRecord) -> None:
    """A hold's state, amounts and allocations equal the model's."""
    assert {
        "state": actual.state.value,
        "amount": actual.amount_micros,
        "requested": actual.requested_micros,
        "charged": actual.charged_micros,
        "uncollected": actual.uncollected_micros,
        "late": actual.late,
        "expires_at": actual.expires_at,
        "transaction_id": actual.transaction_id,
    } == {
        "state": expected.state,
        "amount": expected.amount,
        "requested": expected.requested,
        "charged": expected.charged,
        "uncollected": expected.uncollected,
        "late": expected.late,
        "expires_at": expected.expires_at,
        "transaction_id": None if expected.row is None else expected.row.id or actual.transaction_id,
    }
    assert allocations_of(actual) == takes_of(expected.takes)
    assert actual.amount == Decimal(expected.amount) / CREDIT
