"""The public service and the reference model side by side: each call is made on both, and everything compared."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine

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
from tests.property.steps import CREDIT

START = datetime(2026, 1, 30, 22, 0, tzinfo=UTC)

Call = tuple[str, dict[str, Any]]


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


class SideBySide(RuleBasedStateMachine):
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
