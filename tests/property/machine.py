"""The state machine: the public service and the reference model side by side, compared after every step."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from agentcredits.amounts import from_micros
from agentcredits.context import RequestContext, use_context
from agentcredits.errors import CreditsError
from agentcredits.model import Account as AccountRecord
from agentcredits.model import Rollover, Transaction
from agentcredits.reservation import SyncReservation
from agentcredits.service import SyncCreditService
from agentcredits.testing import FakeClock
from tests.property.comparing import compare_grant, compare_hold, compare_recurring, compare_row, same
from tests.property.reference import Account, Answer, Grant, Hold, Ledger, Limit, Recurring, Refused, Row
from tests.property.steps import CREDIT, grant_micros, oddities, times, works

DAY = timedelta(days=1)
START = datetime(2026, 1, 30, 22, 0, tzinfo=UTC)

Call = tuple[str, dict[str, Any]]


def change_one(name: str, value: Any) -> Any:
    """Another value of the same kind, and never an amount of 0, which is refused for itself."""
    if name == "amount":
        return (value or CREDIT) + 1 or CREDIT
    if isinstance(value, int):
        return value + 1
    if isinstance(value, datetime):
        return value + timedelta(seconds=1)
    if isinstance(value, tuple):
        return ("changed", *value[1:])
    if value is None:
        return START + timedelta(days=400)
    swaps = {
        "paid": "plan",
        "plan": "paid",
        "promotional": "paid",
        "adjustment": "paid",
        "cap": "reject",
        "reject": "overdraft",
        "overdraft": "cap",
        "day": "week",
        "week": "month",
        "month": "day",
    }
    return swaps.get(value, "changed")


def rollover_of(terms: tuple[int | None, int, Any] | None) -> Rollover | None:
    """The public form of the model's terms."""
    if terms is None:
        return None
    most, least, lasting = terms
    return Rollover(None if most is None else from_micros(most), from_micros(least), lasting)


def activity_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """The public arguments for the scopes and the action of a call, which are taken out of it."""
    scopes, action = arguments.pop("scopes", None), arguments.pop("action", None)
    found = {} if scopes is None else dict(zip(("project_id", "department_id", "user_id"), scopes, strict=True))
    return found if action is None else found | {"agent_type": "Maker", "action": action}


NEEDS_A_HOLD = ("commit", "release", "extend", "await_verdict", "settle_by_handle")

OF_ACCOUNTS = (
    "adjust_credits",
    "create_account",
    "create_recurring_grant",
    "grant_credits",
    "open_run",
    "set_overdraft",
    "set_status",
    "sweep",
)

IDS = ("reservation_id", "transaction_id", "grant_id", "limit_id", "run_id", "recurring_id")

#: The fields that make another payload of a keyed call; everything else may differ between two honest tries.
PAYLOAD = {
    "grant_credits": ("amount", "category", "priority", "expires_at"),
    "consume_credits": ("amount", "overage", "scopes"),
    "reserve_credits": ("amount", "scopes"),
    "refund_credits": ("amount",),
    "adjust_credits": ("amount",),
    "create_recurring_grant": ("amount", "every", "anchor", "ends_at", "category"),
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
        self.handles: dict[str, SyncReservation] = {}
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
            expected: Answer | str = getattr(self.model, name)(**arguments)
        except Refused as refusal:
            expected = refusal.code
        try:
            actual: Any = self.perform(name, dict(arguments))
        except CreditsError as error:
            actual = error.code
        if isinstance(expected, str) or isinstance(actual, str):
            same(call, actual, expected)
        else:
            self.adopt(expected, actual)
        self.compare(arguments["organization_id"])
        if not isinstance(expected, str):
            self.compare_record(expected, actual)

    def perform(self, name: str, arguments: dict[str, Any]) -> Any:
        """Make a call, in the context of its run, if it names one."""
        run, cap = arguments.pop("run", None), arguments.pop("run_cap", None)
        if name == "open_run" and (amount := arguments.pop("amount")) is not None:
            arguments["max_credits"] = from_micros(amount)
        if run is None:
            return self.perform_here(name, arguments)
        most = None if cap is None else from_micros(cap)
        with use_context(RequestContext(arguments["organization_id"], run_id=run, max_credits=most)):
            return self.perform_here(name, arguments)

    def perform_here(self, name: str, arguments: dict[str, Any]) -> Any:
        """Translate a call into one of the public service."""
        organization_id = arguments.pop("organization_id")
        if (amount := arguments.pop("amount", None)) is not None:
            arguments["amount"] = from_micros(amount)
        arguments |= activity_of(arguments)
        if name == "create_recurring_grant":
            arguments["rollover"] = rollover_of(arguments["rollover"])
        if name in OF_ACCOUNTS:
            return self.perform_for_account(name, organization_id, arguments)
        if name == "set_limit":
            if arguments["unit"] == "count":
                arguments["amount"] = int(arguments["amount"] * CREDIT)
            arguments["mode"] = "hard" if arguments.pop("hard") else "soft"
            arguments["scope_id"] = arguments["scope_id"] or None
            return self.service.set_limit(organization_id, **arguments)
        if name == "release_reservation" and arguments.get("force"):
            arguments["reason"] = "a reason"
        if name == "mark_unknown":
            arguments |= {"provider": "fal", "provider_reference": "job-1"}
        if name == "reserve_credits":
            handle = self.service.reserve_credits(organization_id=organization_id, **arguments)
            self.handles.setdefault(handle.id, handle)
            return handle.record
        if name == "commit_reservation" and arguments.pop("late", False):
            return self.handles[arguments["reservation_id"]].commit(arguments.get("amount"))
        first = next(
            (arguments.pop(key) for key in IDS if key in arguments),
            None,
        )
        ids = () if first is None else (first,)
        return getattr(self.service, name)(*ids, organization_id=organization_id, **arguments)

    def perform_for_account(self, name: str, organization_id: str, arguments: dict[str, Any]) -> Any:
        """Calls whose first argument is the organization, and the second, if there is one, the amount."""
        if name == "set_status":
            return getattr(self.service, f"{arguments['change']}_account")(organization_id, "a reason")
        amounts = (arguments.pop("amount"),) if "amount" in arguments else ()
        return getattr(self.service, name)(organization_id, *amounts, **arguments)

    @staticmethod
    def adopt(expected: Answer, actual: Any) -> None:
        """New records get their id from the service; a repeated answer must have the id that it had."""
        record = expected.record
        if record is None:
            return
        if expected.replayed or record.id:
            same("id of a repeated answer", actual.id, record.id)
        else:
            record.id = actual.id
        if isinstance(record, Recurring):
            for grant in record.grants:
                grant.name()
        if isinstance(record, Row) and record.grant is not None and not record.grant.id:
            # An adjustment answers its row; its grant is named there.
            record.grant.id = actual.grant_id

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
        elif isinstance(record, Recurring):
            compare_recurring(record, actual)
        if isinstance(actual, AccountRecord) or (record is not None and not isinstance(record, Limit)):
            same("replayed", actual.replayed, expected.replayed)

    def compare(self, touched: str) -> None:
        """The balances of both accounts; new ledger rows and ``verify`` of the one that a call was for."""
        for organization_id in self.organizations:
            account = self.model.accounts.get(organization_id)
            if account is None:
                continue
            seen = self.model.view(organization_id)
            view = seen.terms() | {"restricted": seen.restricted()}
            balance = self.service.get_balance(organization_id)
            same("balance", {name: balance[f"{name}_micros"] for name in view}, view)
            if touched != organization_id:
                continue
            self.compare_history(organization_id, account)
            self.compare_limits(organization_id)
            self.compare_account(organization_id)
            self.compare_runs(organization_id)
            report = self.service.verify(organization_id)
            same("verify", report.problems, ())

    def compare_account(self, organization_id: str) -> None:
        """Line, debt and status; debt is what is below zero, and is said by the balance too."""
        view = self.model.view(organization_id)
        account = self.service.get_account(organization_id)
        facts = (account.overdraft_micros, account.debt_micros, account.status.value)
        same("account", facts, (view.line, view.debt, view.status))
        same("debt", self.service.get_balance(organization_id).debt_micros, view.debt)

    def compare_limits(self, organization_id: str) -> None:
        """Every limit and every counter."""
        view = self.model.view(organization_id)
        named = {who for record in (*view.rows, *view.holds) for who in record.scopes if who}
        people = named | {"alpha", "beta", ""}
        expected = {
            limit.id: {
                "amount": limit.amount,
                "hard": limit.hard,
                "counters": {
                    who: counter for who in people if any(counter := (view.spent(limit, who), view.held(limit, who)))
                },
            }
            for limit in view.limits
        }
        actual = {}
        for limit in self.service.list_limits(organization_id):
            unit = 1 if limit.unit == "count" else CREDIT
            actual[limit.id] = {
                "amount": limit.amount * unit,
                "hard": limit.mode == "hard",
                "counters": {
                    usage.scope_id: (usage.spent * unit, usage.held * unit)
                    for usage in limit.usage
                    if usage.spent or usage.held
                },
            }
        same("limits", actual, expected)

    def compare_runs(self, organization_id: str) -> None:
        """Every run and every counter of it."""
        view = self.model.view(organization_id)
        expected = {}
        for run in view.runs.values():
            room = 0 if run.ended_at is not None else view.run_room(run)
            expected[run.id] = {
                "cap": run.cap,
                "borrows": run.borrow,
                "ended_at": run.ended_at,
                "expires_at": view.run_ends(run),
                "spent": view.run_spent(run),
                "held": view.run_held(run),
                "carved": view.carved(run),
                "inner_spent": view.inner_spent(run),
                "remaining": None if room == 10**12 else room,
            }
        names = ("spent", "held", "carved", "inner_spent", "remaining", "cap")
        actual = {
            run.run_id: {name: run[f"{name}_micros"] for name in names}
            | {"borrows": run.borrows, "ended_at": run.ended_at, "expires_at": run.expires_at}
            for run in self.service.list_runs(organization_id)
        }
        same("runs", actual, expected)

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
        same("rows", [(row.seq, row.type) for row in rows], [(row.seq, row.type) for row in expected])
        for row, model in zip(rows, expected, strict=True):
            model.id = model.id or row.id
        for row, model in zip(rows, expected, strict=True):
            compare_row(model, row)
            same("history runs forwards", row.created_at >= self.newest[organization_id], True)
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
            same("grants", set(grants), {grant.id for grant in account.grants})
            for model_grant in account.grants:
                compare_grant(model_grant, grants[model_grant.id])
            recurring = {one.id: one for one in self.service.list_recurring_grants(organization_id)}
            same("recurring grants", set(recurring), {one.id for one in account.recurring})
            for one in account.recurring:
                compare_recurring(one, recurring[one.id])
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
        """Three times in four an open hold, if there is one."""
        if number % 4 and self.has(lambda account: [hold for hold in account.holds if hold.open]):
            return self.pick(lambda account: [hold for hold in account.holds if hold.open], number // 4)
        return self.pick(lambda account: account.holds, number // 4)

    def has(self, kind: Callable[[Account], list[Any]]) -> bool:
        return any(kind(account) for account in self.model.accounts.values())

    # -- steps ---------------------------------------------------------------------------------------------------

    @initialize(first=grant_micros.by_hypothesis)
    def open_accounts(self, first: int) -> None:
        self.grant(0, first + 20 * CREDIT, "paid", 50, None, None)
        self.apply(("create_account", {"organization_id": self.organizations[1]}))

    @rule(step=works.by_hypothesis)
    def work(self, step: tuple[str, dict[str, Any]]) -> None:
        """Any operation; one that needs a hold or a charge makes one first."""
        name, drawn = step
        first = self.organizations[0]
        if name in ("reserve", "consume") and self.model.view(first).terms()["available"] < CREDIT:
            self.grant(0, 20 * CREDIT, "plan", 50, None, timedelta(hours=2))
        if name in NEEDS_A_HOLD and not self.has(lambda account: [hold for hold in account.holds if hold.open]):
            self.grant(0, 5 * CREDIT, "promotional", 50, None, timedelta(minutes=5))
            self.reserve(0, 3 * CREDIT, timedelta(minutes=5), (None, "alpha", None))
        if name == "refund" and not self.has(charges):
            self.consume(0, 3 * CREDIT, "cap", (None, None, "alpha"))
        getattr(self, name)(**drawn)

    @rule(step=works.by_hypothesis)
    def work_more(self, step: tuple[str, dict[str, Any]]) -> None:
        """The same: rules are drawn evenly, and most steps should be work."""
        self.work(step)

    @rule(step=oddities.by_hypothesis)
    def do_something_odd(self, step: tuple[str, dict[str, Any]]) -> None:
        """Repetitions, changed repetitions, and ids that mean nothing here."""
        name, drawn = step
        getattr(self, name)(**drawn)

    @rule(step=times.by_hypothesis)
    def let_time_pass(self, step: tuple[str, dict[str, Any]]) -> None:
        name, drawn = step
        getattr(self, name)(**drawn)
        self.compare(touched="")

    def grant(
        self,
        organization: int,
        amount: int,
        category: str,
        priority: int,
        start: timedelta | None,
        end: timedelta | None,
        only_for: tuple[str, ...] | None = None,
    ) -> None:
        now = self.clock.now()
        effective_at = None if start is None else now + start
        self.apply(
            (
                "grant_credits",
                {
                    "organization_id": self.organizations[organization],
                    "amount": amount,
                    "category": category,
                    "priority": priority,
                    "effective_at": effective_at,
                    "expires_at": None if end is None else max(now, effective_at or now) + end,
                    "source": "test",
                    "only_for": only_for,
                    "idempotency_key": self.new_key(),
                },
            )
        )

    def recur(
        self,
        organization: int,
        amount: int,
        every: str,
        anchor: timedelta | None,
        length: timedelta | None,
        category: str,
        priority: int,
        lasting: tuple[Any, Any],
        only_for: tuple[str, ...] | None,
    ) -> None:
        now = self.clock.now()
        begin = None if anchor is None else now + anchor
        expires_after, rollover = lasting
        self.apply(
            (
                "create_recurring_grant",
                {
                    "organization_id": self.organizations[organization],
                    "amount": amount,
                    "every": every,
                    "anchor": begin,
                    "ends_at": None if length is None else max(now, begin or now) + length,
                    "category": category,
                    "priority": priority,
                    "expires_after": expires_after,
                    "rollover": rollover,
                    "only_for": only_for,
                    "idempotency_key": self.new_key(),
                },
            )
        )

    def cancel(self, number: int) -> None:
        organization_id, recurring_id = self.pick(lambda account: account.recurring, number)
        self.apply(("cancel_recurring_grant", {"organization_id": organization_id, "recurring_id": recurring_id}))

    def void(self, number: int, mode: str) -> None:
        organization_id, grant_id = self.pick(lambda account: account.grants, number)
        self.apply(("void_grant", {"organization_id": organization_id, "grant_id": grant_id, "mode": mode}))

    def consume(
        self,
        organization: int,
        amount: int,
        overage: str,
        scopes: tuple[Any, ...],
        run: tuple[str | None, int | None] = (None, None),
        action: str | None = None,
    ) -> None:
        self.apply(
            (
                "consume_credits",
                {
                    "organization_id": self.organizations[organization],
                    "amount": amount,
                    "overage": overage,
                    "scopes": scopes,
                    "run": run[0],
                    "run_cap": run[1],
                    "action": action,
                    "idempotency_key": self.new_key(),
                },
            )
        )

    def reserve(
        self,
        organization: int,
        amount: int,
        ttl: timedelta,
        scopes: tuple[Any, ...],
        run: tuple[str | None, int | None] = (None, None),
        action: str | None = None,
    ) -> None:
        self.apply(
            (
                "reserve_credits",
                {
                    "organization_id": self.organizations[organization],
                    "amount": amount,
                    "ttl": ttl,
                    "scopes": scopes,
                    "run": run[0],
                    "run_cap": run[1],
                    "action": action,
                    "idempotency_key": self.new_key(),
                },
            )
        )

    def held(self, organization_id: str, reservation_id: str) -> int:
        account = self.model.accounts.get(organization_id)
        holds = [] if account is None else account.holds
        return next((hold.amount for hold in holds if hold.id == reservation_id), CREDIT)

    def commit(self, number: int, change: int | str | None, overage: str) -> None:
        organization_id, reservation_id = self.pick_hold(number)
        held = self.held(organization_id, reservation_id)
        special = {None: None, "zero": 0, "huge": held + 100 * CREDIT}
        amount = special[change] if change in special else max(1, held + int(change or 0))
        arguments = {"organization_id": organization_id, "reservation_id": reservation_id}
        self.apply(("commit_reservation", arguments | {"amount": amount, "overage": overage}))

    def settle_by_handle(self, number: int, change: int | None) -> None:
        """A handle settles with CAP, and late when its hold has expired or was forced back."""
        organization_id, reservation_id = self.pick(lambda account: account.holds, number)
        if reservation_id not in self.handles:
            return
        held = self.held(organization_id, reservation_id)
        amount = None if change is None else max(0, held + change)
        arguments = {"organization_id": organization_id, "reservation_id": reservation_id, "amount": amount}
        self.apply(("commit_reservation", arguments | {"overage": "cap", "late": True}), remember=False)

    def release(self, number: int, force: bool) -> None:
        organization_id, reservation_id = self.pick_hold(number)
        arguments = {"organization_id": organization_id, "reservation_id": reservation_id, "force": force}
        self.apply(("release_reservation", arguments))

    def line(self, organization: int, amount: int) -> None:
        self.apply(("set_overdraft", {"organization_id": self.organizations[organization], "amount": amount}))

    def overdraw(self, organization: int, amount: int, scopes: tuple[Any, ...]) -> None:
        """More than there is, from a line that is long enough; sometimes something pays for it soon."""
        owner = self.organizations[organization]
        available = max(0, self.model.view(owner).terms()["available"])
        self.line(organization, 50 * CREDIT)
        self.consume(organization, available + amount, "overdraft", scopes)

    def status(self, organization: int, change: str) -> None:
        """One change; most of the time it is undone at once, or little else would happen."""
        owner = self.organizations[organization]
        self.apply(("set_status", {"organization_id": owner, "change": change}))
        if self.keys % 3:
            undo = "reopen" if self.model.accounts[owner].status == "closed" else "unfreeze"
            self.apply(("set_status", {"organization_id": owner, "change": undo}))

    def thaw(self, organization: int) -> None:
        """Whatever was done to the account, it is open again."""
        owner = self.organizations[organization]
        undo = {"closed": "reopen", "frozen": "unfreeze"}.get(self.model.accounts[owner].status)
        if undo is not None:
            self.apply(("set_status", {"organization_id": owner, "change": undo}))

    def extend(self, number: int, ttl: timedelta) -> None:
        organization_id, reservation_id = self.pick_hold(number)
        arguments = {"organization_id": organization_id, "reservation_id": reservation_id, "ttl": ttl}
        self.apply(("extend_reservation", arguments))

    def await_verdict(self, number: int) -> None:
        organization_id, reservation_id = self.pick_hold(number)
        self.apply(("mark_unknown", {"organization_id": organization_id, "reservation_id": reservation_id}))

    def refund(self, number: int, amount: int | None, of: Callable[[Account], list[Any]] | None = None) -> None:
        organization_id, transaction_id = self.pick(of or charges, number)
        self.apply(
            (
                "refund_credits",
                {
                    "organization_id": organization_id,
                    "transaction_id": transaction_id,
                    "amount": amount,
                    "idempotency_key": self.new_key(),
                },
            )
        )

    def adjust(self, organization: int, amount: int) -> None:
        arguments = {"organization_id": self.organizations[organization], "amount": amount}
        self.apply(("adjust_credits", arguments | {"idempotency_key": self.new_key()}))

    def limit(
        self,
        organization: int,
        place: tuple[str, str],
        unit: str,
        window: str,
        amount: int,
        hard: bool,
        include_existing: bool,
    ) -> None:
        scope, scope_id = place
        arguments = {
            "organization_id": self.organizations[organization],
            "scope": scope,
            "scope_id": scope_id,
            "unit": unit,
            "window": window,
            "amount": amount if unit == "credits" else amount // CREDIT,
            "hard": hard,
            "include_existing": include_existing,
        }
        self.apply(("set_limit", arguments))

    def unlimit(self, number: int) -> None:
        organization_id, limit_id = self.pick(lambda account: account.limits, number)
        self.apply(("remove_limit", {"organization_id": organization_id, "limit_id": limit_id}))

    def open_run(
        self,
        organization: int,
        run_id: str,
        parent: str | None,
        amount: int | None,
        borrow: bool | None,
        partial: bool,
        ttl: timedelta | None,
    ) -> None:
        arguments = {
            "organization_id": self.organizations[organization],
            "run_id": run_id,
            "parent_run_id": None if parent == run_id else parent,
            "amount": amount,
            "borrow": borrow,
            "partial": partial,
            "ttl": ttl,
        }
        self.apply(("open_run", arguments))

    def end_run(self, organization: int, run_id: str) -> None:
        self.apply(("end_run", {"organization_id": self.organizations[organization], "run_id": run_id}))

    def sweep(self, organization: int) -> None:
        self.apply(("sweep", {"organization_id": self.organizations[organization]}))

    def purge(self, organization: int) -> None:
        """Old keys go; what comes again with one of them is a new call on both sides."""
        organization_id = self.organizations[organization]
        self.sweep(organization)
        if organization_id in self.model.accounts:
            found = self.service.purge(organization_id, older_than=DAY).keys
            same("purged keys", found, self.model.purge(organization_id, DAY))
            self.compare(organization_id)

    # -- oddities ------------------------------------------------------------------------------------------------

    def replay(self, number: int) -> None:
        """Any earlier call again, exactly as it was."""
        self.apply(self.calls[-1 - number % len(self.calls)], remember=False)

    def replay_with_one_field_changed(self, number: int, field: int) -> None:
        """An earlier keyed call with another payload: never the old answer, never a second booking."""
        keyed = [call for call in self.calls if call[0] in PAYLOAD]
        name, arguments = keyed[-1 - number % len(keyed)]
        changed = PAYLOAD[name][field % len(PAYLOAD[name])]
        self.apply((name, arguments | {changed: change_one(changed, arguments[changed])}), remember=False)

    def replay_with_another_ttl(self, number: int, ttl: timedelta) -> None:
        """The time-to-live is no part of the payload."""
        keyed = [call for call in self.calls if call[0] == "reserve_credits"]
        if keyed:
            name, arguments = keyed[-1 - number % len(keyed)]
            self.apply((name, arguments | {"ttl": ttl}), remember=False)

    def use_a_foreign_id(self, number: int) -> None:
        """An earlier call under the other organization: its ids and keys mean nothing there."""
        name, arguments = self.calls[-1 - number % len(self.calls)]
        first, second = self.organizations
        other = second if arguments["organization_id"] == first else first
        self.apply((name, arguments | {"organization_id": other}), remember=False)

    def use_an_id_that_nobody_has(self, number: int, name: str) -> None:
        arguments: dict[str, Any] = {"organization_id": self.organizations[0]}
        arguments["grant_id" if name == "void_grant" else "reservation_id"] = str(uuid.UUID(int=number))
        if name == "commit_reservation":
            arguments |= {"amount": None, "overage": "reject"}
        if name == "release_reservation":
            arguments["force"] = False
        if name == "void_grant":
            arguments["mode"] = "remaining"
        self.apply((name, arguments), remember=False)

    def use_an_unknown_organization(self, number: int) -> None:
        """An organization that never had an account has nothing: no balance, and no record of any id."""
        name, arguments = self.calls[-1 - number % len(self.calls)]
        if name in (
            "grant_credits",
            "create_account",
            "sweep",
            "set_limit",
            "adjust_credits",
            "create_recurring_grant",
        ):
            return
        with pytest.raises(CreditsError) as caught:
            self.perform(name, arguments | {"organization_id": "nobody"})
        assert caught.value.code.endswith("_not_found")

    def refund_any_row(self, number: int) -> None:
        """Only a DEBIT can be refunded."""
        self.refund(number, 1, of=lambda account: account.rows)

    # -- time ----------------------------------------------------------------------------------------------------

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(timedelta(seconds=seconds))

    def jump_back(self, seconds: float) -> None:
        """A clock that jumps back does not take an account's history with it: its now is at least its newest row."""
        for organization in range(len(self.organizations)):
            # A closed one would refuse the row.
            self.thaw(organization)
            self.grant(organization, 1, "paid", 50, None, None)
        self.clock.advance(timedelta(seconds=-seconds))

    def go_to_an_edge(self, number: int, off: int) -> None:
        """To one microsecond before, onto, or after the moment at which something is due."""
        due = sorted(time for account in self.model.accounts.values() for time in account.due_times())
        if due:
            self.clock.set(max(due[number % min(3, len(due))] + timedelta(microseconds=off), self.clock.now()))


def charges(account: Account) -> list[Any]:
    """The rows that can be refunded."""
    return [row for row in account.rows if row.type == "debit"]
