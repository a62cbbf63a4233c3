"""The rules of limits against a model that keeps lists and adds them up anew for every question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from agentcredits.errors import ConfigurationError, CreditLimitExceededError, OverageRejectedError
from agentcredits.model import LimitMode, LimitScope, LimitUnit, Overage, Pricing, ReservationState, Scopes
from agentcredits.rules import limits
from agentcredits.rules import operations as ops
from agentcredits.rules.due import book_due
from agentcredits.rules.posting import Outcome, decide
from agentcredits.rules.state import AccountState, Changes, HoldState, Ledger, LimitState, Row, UsageState
from agentcredits.rules.windows import Window

ACME = "acme"
#: A few hours before midnight and a clock change in Berlin.
START = datetime(2026, 3, 28, 20, tzinfo=UTC)
PLENTY = 10**12
LINES = (5_000, 9_000)
WINDOWS = [
    str(Window.parse(words))
    for words in ("hour", "day", "day Europe/Berlin", "month", "lifetime", "fixed 5h 2026-01-01T00:00:00Z")
]
WAITS = [
    timedelta(seconds=1),
    timedelta(minutes=59),
    timedelta(hours=5),
    timedelta(hours=23, minutes=59),
    timedelta(days=31),
]
PLACES = [
    (LimitScope.ORGANIZATION, ""),
    *((LimitScope.DEPARTMENT, name) for name in ("", "d1", "d2")),
    *((LimitScope.USER, name) for name in ("", "u1", "u2")),
    (LimitScope.PROJECT, ""),
    (LimitScope.AGENT_TYPE, "A"),
    (LimitScope.ACTION, "A.b"),
    (LimitScope.RUN, "r1"),
]


# -- the model -----------------------------------------------------------------------------------------------------


@dataclass
class Charge:
    """A charge, and what was given back of it: (row id, amount)."""

    id: str
    seq: int
    at: datetime
    amount: int
    scopes: dict[LimitScope, str]
    refunds: list[tuple[str, int]] = field(default_factory=list)


@dataclass
class Held:
    """A hold, the limits that it was made under, and when it ends."""

    id: str
    amount: int
    scopes: dict[LimitScope, str]
    limits: set[str]
    expires_at: datetime
    state: str = "open"


@dataclass
class Bound:
    """A limit; it counts charges after ``since``."""

    id: str
    scope: LimitScope
    scope_id: str
    unit: LimitUnit
    window: str
    amount: int
    mode: LimitMode
    since: int
    #: How often its amount went up, from nothing at first: so often a threshold may be recorded in one window.
    raises: int = 1

    @property
    def place(self) -> tuple[str, str, str, str]:
        return (self.scope, self.scope_id, self.unit, self.window)


@dataclass
class Model:
    """Everything that ever happened, in lists."""

    charges: list[Charge] = field(default_factory=list)
    holds: list[Held] = field(default_factory=list)
    limits: list[Bound] = field(default_factory=list)

    def under(self, scopes: dict[LimitScope, str]) -> Iterator[tuple[Bound, str, bool]]:
        """The limits that count something in these scopes, by which id, and whether they are asked."""
        for one in self.limits:
            scope_id = scopes.get(one.scope)
            if scope_id is None or one.scope_id not in ("", scope_id):
                continue
            replaced = one.scope_id != scope_id and any(
                (other.scope, other.scope_id, other.unit, other.window) == (one.scope, scope_id, one.unit, one.window)
                for other in self.limits
            )
            yield one, scope_id, not replaced

    def spent(self, one: Bound, scope_id: str, now: datetime, *, without: frozenset[str] = frozenset()) -> int:
        start, end = Window.parse(one.window).bounds(now)
        total = 0
        for charge in self.charges:
            if charge.seq <= one.since or charge.scopes.get(one.scope) != scope_id or not start <= charge.at < end:
                continue
            if one.unit is LimitUnit.COUNT:
                total += charge.id not in without
                continue
            total += charge.amount if charge.id not in without else 0
            total -= sum(amount for row_id, amount in charge.refunds if row_id not in without)
        return total

    def held(self, one: Bound, scope_id: str) -> int:
        return sum(
            hold.amount if one.unit is LimitUnit.CREDITS else 1
            for hold in self.holds
            if hold.state == "open" and one.id in hold.limits and hold.scopes.get(one.scope) == scope_id
        )

    def left(self, one: Bound, scope_id: str, now: datetime) -> int:
        return one.amount - self.spent(one, scope_id, now) - self.held(one, scope_id)

    def blocking(self, scopes: dict[LimitScope, str], amount: int, now: datetime) -> list[Bound]:
        found = []
        for one, scope_id, asked in self.under(scopes):
            need = amount if one.unit is LimitUnit.CREDITS else 1
            if asked and one.mode is LimitMode.HARD and need and need > self.left(one, scope_id, now):
                found.append(one)
        return found

    def room(self, scopes: dict[LimitScope, str], now: datetime) -> int:
        return min(
            (
                max(0, self.left(one, scope_id, now))
                for one, scope_id, asked in self.under(scopes)
                if asked and one.mode is LimitMode.HARD and one.unit is LimitUnit.CREDITS
            ),
            default=PLENTY,
        )

    def end_holds(self, now: datetime) -> None:
        for hold in self.holds:
            if hold.state == "open" and hold.expires_at <= now:
                hold.state = "ended"


# -- both together -------------------------------------------------------------------------------------------------


class Pair:
    """The rules and the model, given the same steps; every answer and every counter must agree."""

    def __init__(self) -> None:
        self.ledger = Ledger(ACME, AccountState(ACME, START, START))
        self.model = Model()
        self.now = START
        self.count = 0
        self.crossings: Counter[tuple[str, str, datetime | None, int]] = Counter()
        self.did: Counter[str] = Counter()
        self.decide(
            ops.Grant(organization_id=ACME, id="g", key="g", fingerprint="g", amount_micros=PLENTY),
        )
        self.ledger.changes = Changes()

    def new(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def decide(self, operation: ops.Operation) -> Outcome:
        book_due(self.ledger, self.now)
        self.model.end_holds(self.now)
        outcome = decide(self.ledger, operation, self.now)
        for crossed in outcome.crossings:
            self.crossings[crossed.limit_id, crossed.scope_id, crossed.window_start, crossed.threshold] += 1
        return outcome

    # -- steps

    def wait(self, which: int) -> None:
        self.now += WAITS[which % len(WAITS)]

    def end_batch(self) -> None:
        """What was changed is written; the next batch finds it in the database."""
        self.ledger.changes = Changes()

    def set_limit(self, place: int, window: int, count: bool, amount: int, soft: bool, existing: bool) -> None:
        scope, scope_id = PLACES[place % len(PLACES)]
        operation = ops.SetLimit(
            organization_id=ACME,
            id=self.new("l"),
            scope=scope,
            scope_id=scope_id,
            unit=LimitUnit.COUNT if count else LimitUnit.CREDITS,
            window_text=WINDOWS[window % len(WINDOWS)],
            amount=amount % 5 if count else amount,
            mode=LimitMode.SOFT if soft else LimitMode.HARD,
            warn_at=LINES,
            include_existing=existing,
        )
        model = self.model
        known = next((one for one in model.limits if one.place == operation.place), None)
        if known is None:
            seq = 0 if existing else cast(AccountState, self.ledger.account).last_seq
            made = Bound(operation.id, scope, scope_id, operation.unit, operation.window_text, 0, operation.mode, seq)
            if existing:
                self.ledger.existing[operation.place] = self.in_database(made)
            model.limits.append(made)
            known = made
        else:
            known.raises += operation.amount > known.amount
        known.amount, known.mode = operation.amount, operation.mode
        outcome = self.decide(operation)
        assert isinstance(outcome.record, LimitState)
        assert outcome.record.id == known.id

    def in_database(self, one: Bound) -> dict[str, int]:
        """What a sum over the rows that are written would say."""
        unwritten = frozenset(row.id for row in self.ledger.changes.rows)
        found = {
            scope_id: self.model.spent(one, scope_id, self.now, without=unwritten)
            for scope_id in {charge.scopes.get(one.scope) for charge in self.model.charges}
            if scope_id is not None and one.scope_id in ("", scope_id)
        }
        return {scope_id: spent for scope_id, spent in found.items() if spent}

    def remove_limit(self, which: int) -> None:
        if self.model.limits:
            gone = self.model.limits.pop(which % len(self.model.limits))
            assert self.decide(ops.RemoveLimit(organization_id=ACME, limit_id=gone.id)).error is None

    def activity(self, who: int, amount: int) -> tuple[ops.Activity, dict[LimitScope, str]]:
        department, user = (None, "d1", "d2")[who % 3], (None, "u1", "u2")[who // 3 % 3]
        project, agent, run = (None, "p1")[who // 9 % 2], (None, "A")[who // 18 % 2], (None, "r1")[who // 36 % 2]
        activity = ops.Activity(
            agent_type=agent,
            action=agent and "b",
            scopes=Scopes(department_id=department, user_id=user, project_id=project, run_id=run),
            pricing=Pricing.PRICED if amount else Pricing.FREE,
        )
        scopes = {
            LimitScope.ORGANIZATION: "",
            LimitScope.DEPARTMENT: department,
            LimitScope.USER: user,
            LimitScope.PROJECT: project,
            LimitScope.AGENT_TYPE: agent,
            LimitScope.ACTION: agent and "A.b",
            LimitScope.RUN: run,
        }
        return activity, {scope: scope_id for scope, scope_id in scopes.items() if scope_id is not None}

    def charge(self, who: int, amount: int, cap: bool) -> None:
        activity, scopes = self.activity(who, amount)
        key = self.new("c")
        overage = Overage.CAP if cap else Overage.REJECT
        blocking = self.model.blocking(scopes, amount, self.now)
        if cap:
            blocking = [one for one in blocking if one.unit is LimitUnit.COUNT]
        charged = min(amount, self.model.room(scopes, self.now)) if cap else amount
        outcome = self.decide(
            ops.Consume(
                organization_id=ACME,
                id=key,
                key=key,
                fingerprint=key,
                amount_micros=amount,
                activity=activity,
                overage=overage,
            )
        )
        if self.agrees_on_refusal(outcome, blocking):
            row = cast(Row, outcome.record)
            assert (-row.amount_micros, row.uncollected_micros) == (charged, amount - charged)
            self.booked(row, scopes)

    def agrees_on_refusal(self, outcome: Outcome, blocking: list[Bound]) -> bool:
        """Both refuse, by the limit that rolls last; or neither does: True."""
        assert (outcome.error is not None) == bool(blocking), (outcome.error, blocking)
        self.did["refused" if blocking else "allowed"] += 1
        if outcome.error is None:
            return True
        assert isinstance(outcome.error, CreditLimitExceededError)
        context = outcome.error.context
        assert {context["limit_id"], *context["also_refused_by"]} == {one.id for one in blocking}
        ends = {one.id: Window.parse(one.window).bounds(self.now)[1] for one in blocking}
        assert ends[context["limit_id"]] == max(ends.values())
        return False

    def booked(self, row: Row, scopes: dict[LimitScope, str]) -> None:
        self.model.charges.append(Charge(row.id, row.seq, self.now, -row.amount_micros, scopes))
        for one, scope_id, asked in self.model.under(scopes):
            if not asked:
                continue
            start, _ = limits.window_of(self.ledger.limits[one.id], self.now)
            spent = self.model.spent(one, scope_id, self.now)
            for line in LINES:
                if spent and spent * 10_000 >= line * one.amount and (row.amount_micros or one.unit is LimitUnit.COUNT):
                    assert self.crossings[one.id, scope_id, start, line], "a threshold was reached and not recorded"
                assert self.crossings[one.id, scope_id, start, line] <= one.raises

    def reserve(self, who: int, amount: int, hours: int) -> None:
        activity, scopes = self.activity(who, amount)
        key = self.new("h")
        ttl = timedelta(hours=hours)
        blocking = self.model.blocking(scopes, amount, self.now)
        outcome = self.decide(
            ops.Reserve(
                organization_id=ACME,
                id=key,
                key=key,
                fingerprint=key,
                amount_micros=amount,
                activity=activity,
                ttl=ttl,
            )
        )
        if self.agrees_on_refusal(outcome, blocking):
            counted = {one.id for one, _, _ in self.model.under(scopes)}
            assert set(cast(HoldState, outcome.record).limits) == counted
            self.model.holds.append(Held(key, amount, scopes, counted, self.now + ttl))

    def commit(self, which: int, amount: int, cap: bool) -> None:
        open_or_late = [hold for hold in self.model.holds if hold.state in ("open", "ended")]
        if not open_or_late:
            return
        hold = open_or_late[which % len(open_or_late)]
        late = hold.state == "ended"
        outcome = self.decide(
            ops.Commit(
                organization_id=ACME,
                reservation_id=hold.id,
                transaction_id=self.new("t"),
                amount_micros=amount,
                overage=Overage.CAP if cap else Overage.REJECT,
                late=True,
            )
        )
        if not cap and amount > hold.amount:
            assert isinstance(outcome.error, OverageRejectedError)
            return
        hold.state = "settled"
        from_hold = 0 if late else min(amount, hold.amount)
        room = max(0, self.model.room(hold.scopes, self.now) - from_hold)
        charged = from_hold + min(amount - from_hold, room)
        record = cast(HoldState, outcome.record)
        assert (record.charged_micros, record.uncollected_micros, record.late) == (charged, amount - charged, late)
        self.did["late" if late else "over-run" if amount > hold.amount else "committed"] += 1
        if record.transaction_id is not None:
            self.booked(self.ledger.rows[record.transaction_id], hold.scopes)

    def release(self, which: int) -> None:
        found = [hold for hold in self.model.holds if hold.state == "open"]
        if found:
            hold = found[which % len(found)]
            outcome = self.decide(ops.Release(organization_id=ACME, reservation_id=hold.id))
            assert cast(HoldState, outcome.record).state is ReservationState.RELEASED
            hold.state = "settled"

    def refund(self, which: int, part: int) -> None:
        found = [one for one in self.model.charges if one.amount > sum(amount for _, amount in one.refunds)]
        if not found:
            return
        charge = found[which % len(found)]
        amount = min(part + 1, charge.amount - sum(given for _, given in charge.refunds))
        key = self.new("r")
        outcome = self.decide(
            ops.Refund(
                organization_id=ACME,
                id=key,
                key=key,
                fingerprint=key,
                transaction_id=charge.id,
                amount_micros=amount,
            )
        )
        assert outcome.error is None
        charge.refunds.append((key, amount))
        self.did["refunded"] += 1

    # -- after every step

    def compare(self) -> None:
        """Every counter that the rules keep, as it stands now; one that they do not keep is 0."""
        book_due(self.ledger, self.now)
        self.model.end_holds(self.now)
        assert {limit.id for limit in self.ledger.limits.values()} == {one.id for one in self.model.limits}
        assert {place[0] for place in self.ledger.usage} <= {one.id for one in self.model.limits}
        for one in self.model.limits:
            ids = (
                {"u1", "u2", "d1", "d2", "p1"} if not one.scope_id and one.scope is not LimitScope.ORGANIZATION else ()
            )
            for scope_id in ids or {one.scope_id}:
                kept = self.ledger.usage.get((one.id, scope_id))
                usage = UsageState(one.id, scope_id) if kept is None else replace(kept)
                limits.roll(self.ledger.limits[one.id], usage, self.now)
                expected = self.model.spent(one, scope_id, self.now), self.model.held(one, scope_id)
                assert (usage.spent, usage.held) == expected, (one, scope_id)


amounts = st.integers(0, 12)
picks = st.integers(0, 10)
#: Mostly limits of departments and days, so that some stand in for others.
places = st.sampled_from([0, 1, 1, 1, 2, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10])
windows = st.sampled_from([0, 1, 1, 1, 1, 2, 3, 4, 5])
steps = st.one_of(
    st.tuples(st.just("set_limit"), places, windows, st.booleans(), st.integers(0, 25), st.booleans(), st.booleans()),
    st.tuples(st.just("remove_limit"), picks),
    st.tuples(st.just("charge"), st.integers(0, 71), amounts, st.booleans()),
    st.tuples(st.just("charge"), st.integers(0, 71), amounts, st.just(False)),
    st.tuples(st.just("reserve"), st.integers(0, 71), amounts, st.sampled_from([1, 6, 48])),
    st.tuples(st.just("commit"), picks, amounts, st.booleans()),
    st.tuples(st.just("commit"), picks, amounts, st.just(True)),
    st.tuples(st.just("release"), picks),
    st.tuples(st.just("refund"), picks, amounts),
    st.tuples(st.just("wait"), picks),
    st.tuples(st.just("end_batch")),
)


@pytest.mark.proof
@pytest.mark.timeout(3_600)
def test_the_rules_count_what_adding_everything_up_says(proof: str) -> None:
    """The same sequences in every run; ``--proof long``: 20 times as many, new ones each time."""
    long = proof == "long"
    did: Counter[str] = Counter()

    @settings(
        max_examples=12_000 if long else 600,
        derandomize=not long,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(st.lists(steps, min_size=20, max_size=60))
    def run(sequence: list[tuple[Any, ...]]) -> None:
        pair = Pair()
        for name, *arguments in sequence:
            getattr(pair, name)(*arguments)
            pair.compare()
        for name, times in pair.did.items():
            event(f"{name}: {min(times, 3)}")
        did.update(pair.did)
        did["crossings"] += sum(pair.crossings.values())

    run()
    assert min(did[name] for name in ("refused", "allowed", "committed", "over-run", "late", "refunded")) > 40, did
    assert did["crossings"] > 100


def test_a_counter_of_a_limit_that_cannot_be_read_stands_until_its_window_ends() -> None:
    """One whose limit can be read always stands: it was brought into the window of now."""
    limit = LimitState("l", LimitScope.USER, "u", LimitUnit.CREDITS, "day", 5, LimitMode.HARD, START)
    unreadable = replace(limit, unusable="no window")

    def counts(of: LimitState, end: datetime | None) -> bool:
        return limits.Counter(of, UsageState("l", "u", window_start=START, window_end=end)).counts(START)

    assert counts(limit, None)
    assert counts(limit, START)
    assert counts(unreadable, None)
    assert counts(unreadable, START + timedelta(seconds=1))
    assert not counts(unreadable, START)


def test_a_limit_that_cannot_be_read_says_so() -> None:
    """Which limit, why, and what to do; the action did not run."""
    limit = LimitState(
        "l1", LimitScope.USER, "u", LimitUnit.CREDITS, "day", 5, LimitMode.HARD, START, unusable="no day"
    )
    with pytest.raises(ConfigurationError) as caught:
        limits.check(Ledger(ACME), [limits.Counter(limit, UsageState("l1", "u"))], 1, ops.Activity())
    assert caught.value.as_dict() == {
        "code": "configuration_error",
        "status": 500,
        "message": "limit l1 of organization acme cannot be read: no day; the action did not run.",
        "reason": "unusable_limit",
        "limit_source": "user",
        "retryable": False,
        "context": {"limit_id": "l1"},
        "suggestions": ["Set or remove the limit again, for example: agentcredits limits list"],
        "fixes": [],
    }
