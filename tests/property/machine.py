"""The state machine: what is done to the service and the reference model, step by step."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis.stateful import initialize, rule

from agentcredits.errors import CreditsError
from tests.property.comparing import same
from tests.property.reference import Account
from tests.property.side_by_side import START, SideBySide
from tests.property.steps import CREDIT, grant_micros, oddities, times, works

DAY = timedelta(days=1)


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


NEEDS_A_HOLD = ("commit", "release", "extend", "await_verdict", "settle_by_handle")

#: The fields that make another payload of a keyed call; everything else may differ between two honest tries.
PAYLOAD = {
    "grant_credits": ("amount", "category", "priority", "expires_at"),
    "consume_credits": ("amount", "overage", "scopes"),
    "reserve_credits": ("amount", "scopes"),
    "refund_credits": ("amount",),
    "adjust_credits": ("amount",),
    "create_recurring_grant": ("amount", "every", "anchor", "ends_at", "category"),
}


class LedgerMachine(SideBySide):
    """Any operation, oddities, and time that passes; subclasses set ``service`` and ``clock``."""

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
