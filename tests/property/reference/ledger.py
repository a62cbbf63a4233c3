"""The calls of the reference model: what each refuses, and what it books."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from tests.property.reference.account import Account
from tests.property.reference.values import (
    UNKNOWN_TTL,
    Answer,
    Grant,
    Hold,
    Lasting,
    Limit,
    Recurring,
    Refused,
    Run,
    subtract,
    sum_of,
    take,
)


class Ledger:
    """The whole model; its methods mirror the service's, with amounts in micros and ids as the service gave them."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._clock = now
        self.accounts: dict[str, Account] = {}

    def _open(self, organization_id: str) -> tuple[Account, datetime]:
        account = self.accounts.get(organization_id)
        if account is None:
            raise Refused("account_not_found")
        return account, account.book_due(self._clock())

    def view(self, organization_id: str) -> Account:
        """The account as it is now, without booking anything."""
        account = self.accounts.get(organization_id)
        if account is None:
            raise Refused("account_not_found")
        now = self._clock()
        # Where nothing is due only the copy's time moves; a deep copy takes longer than the service itself.
        due = any(time <= max(now, account.last_posted_at) for time in account.due_times())
        seen = copy.deepcopy(account) if due else copy.copy(account)
        seen.book_due(now)
        return seen

    # -- operations ----------------------------------------------------------------------------------------------

    def create_account(self, organization_id: str) -> Answer:
        account = self.accounts.setdefault(organization_id, Account(self._clock()))
        account.book_due(self._clock())
        return Answer(None)

    def grant_credits(
        self,
        organization_id: str,
        amount: int,
        *,
        category: str,
        priority: int,
        effective_at: datetime | None,
        expires_at: datetime | None,
        source: str | None,
        only_for: tuple[str, ...] | None,
        idempotency_key: str,
    ) -> Answer:
        self.create_account(organization_id)
        account, now = self._open(organization_id)
        payload = (amount, category, priority, effective_at, expires_at, source, only_for)
        if (replay := account.replay("grant", idempotency_key, payload)) is not None:
            return replay
        if account.status == "closed":
            raise Refused("account_closed")
        start = now if effective_at is None else effective_at
        if expires_at is not None and expires_at <= max(start, now):
            raise Refused("invalid_input")
        grant = Grant(amount, category, priority, start, expires_at, now, "scheduled" if start > now else "active")
        grant.only_for = only_for or ()
        account.grants.append(grant)
        account.add_row({"paid": "purchase", "adjustment": "adjust"}.get(category, "credit"), amount, grant=grant)
        account.repay(now)
        account.keys["grant", idempotency_key] = (payload, grant)
        return Answer(grant)

    def create_recurring_grant(
        self,
        organization_id: str,
        amount: int,
        *,
        every: str,
        anchor: datetime | None,
        ends_at: datetime | None,
        category: str,
        priority: int,
        expires_after: Lasting,
        rollover: tuple[int | None, int, Lasting] | None,
        only_for: tuple[str, ...] | None,
        idempotency_key: str,
    ) -> Answer:
        self.create_account(organization_id)
        account, now = self._open(organization_id)
        payload = (amount, every, anchor, ends_at, category, priority, expires_after, rollover, only_for)
        if (replay := account.replay("recurring", idempotency_key, payload)) is not None:
            return replay
        if account.status == "closed":
            raise Refused("account_closed")
        begin = max(anchor or now, now)
        if ends_at is not None and ends_at <= begin:
            raise Refused("invalid_input")
        terms = (category, priority, every, anchor or now, begin, ends_at, expires_after, rollover, only_for or ())
        one = Recurring(amount, *terms)
        account.recurring.append(one)
        if begin <= now:
            account.refill(one, now)
            account.repay(now)
        account.keys["recurring", idempotency_key] = (payload, one)
        return Answer(one)

    def cancel_recurring_grant(self, organization_id: str, recurring_id: str) -> Answer:
        account, _ = self._open(organization_id)
        one = next((one for one in account.recurring if one.id == recurring_id), None)
        if one is None:
            raise Refused("recurring_grant_not_found")
        if one.status != "active":
            return Answer(one, replayed=True)
        one.status = "cancelled"
        return Answer(one)

    def void_grant(self, organization_id: str, grant_id: str, mode: str) -> Answer:
        account, _ = self._open(organization_id)
        grant = next((one for one in account.grants if one.id == grant_id), None)
        if grant is None:
            raise Refused("grant_not_found")
        lives_on = mode == "unreserved" and grant.status == "active"
        if grant.status in ("voided", "expired") or (lives_on and not grant.remaining):
            return Answer(grant, replayed=True)
        if not lives_on:
            grant.status = "voided"
        if taken := grant.remaining:
            grant.voided += taken
            account.add_row("adjust", -taken, grant=grant)
        return Answer(grant)

    def consume_credits(
        self,
        organization_id: str,
        amount: int,
        *,
        overage: str,
        scopes: tuple[Any, ...],
        action: str | None,
        idempotency_key: str,
        run: str | None = None,
        run_cap: int | None = None,
    ) -> Answer:
        account, _ = self._open(organization_id)
        payload = (amount, overage, scopes, action)
        if (replay := account.replay("consume", idempotency_key, payload)) is not None:
            return replay
        account.refuse_unless_open()
        pool = account.run_of(run, run_cap)
        account.check_run(pool, run_cap, amount, capped=overage != "reject")
        account.check(scopes, amount, capped=overage != "reject")
        room = min(amount, account.limit_room(scopes), account.run_left(pool, run_cap))
        takes = take(account.usable_for(action), room)
        if sum_of(takes) < amount and overage == "reject":
            raise Refused("insufficient_credits")
        account.keep_run(pool)
        row = account.debit(takes, amount, scopes, run, lent=account.lend(room - sum_of(takes), overage))
        account.keys["consume", idempotency_key] = (payload, row)
        return Answer(row)

    def reserve_credits(
        self,
        organization_id: str,
        amount: int,
        *,
        ttl: timedelta,
        scopes: tuple[Any, ...],
        action: str | None,
        idempotency_key: str,
        run: str | None = None,
        run_cap: int | None = None,
    ) -> Answer:
        account, now = self._open(organization_id)
        payload = (amount, scopes, action)
        if (replay := account.replay("reserve", idempotency_key, payload)) is not None:
            return replay
        account.refuse_unless_open()
        wanted = account.run_of(run, run_cap)
        account.check_run(wanted, run_cap, amount)
        account.check(scopes, amount)
        takes = take(account.usable_for(action), amount)
        if sum_of(takes) < amount:
            raise Refused("insufficient_credits")
        for grant, part in takes:
            grant.held += part
        pool = account.keep_run(wanted)
        account.touch_run(run, now)
        hold = Hold(amount, takes, now, now + ttl, scopes=scopes, limits=account.counting(scopes), run=run, pool=pool)
        hold.action = action
        account.holds.append(hold)
        account.keys["reserve", idempotency_key] = (payload, hold)
        return Answer(hold)

    def _hold(self, organization_id: str, reservation_id: str) -> tuple[Account, Hold, datetime]:
        account = self.accounts.get(organization_id)
        if account is None:
            raise Refused("reservation_not_found")
        now = account.book_due(self._clock())
        hold = next((one for one in account.holds if one.id == reservation_id), None)
        if hold is None:
            raise Refused("reservation_not_found")
        return account, hold, now

    def commit_reservation(
        self, organization_id: str, reservation_id: str, amount: int | None, *, overage: str, late: bool = False
    ) -> Answer:
        account, hold, _ = self._hold(organization_id, reservation_id)
        wanted = hold.amount if amount is None else amount
        if hold.charged_once:
            if hold.requested == wanted:
                return Answer(hold, replayed=True)
            raise Refused("reservation_already_settled")
        if hold.state == "released" and not (hold.forced and late):
            raise Refused("reservation_already_settled")
        if hold.state == "expired" and not late:
            raise Refused("reservation_expired")
        if wanted > hold.amount and overage == "reject" and not late:
            raise Refused("overage_rejected")
        account.settle(hold, wanted, overage)
        return Answer(hold)

    def release_reservation(self, organization_id: str, reservation_id: str, *, force: bool = False) -> Answer:
        account, hold, now = self._hold(organization_id, reservation_id)
        if hold.charged_once:
            raise Refused("reservation_already_settled")
        if not hold.open:
            return Answer(hold, replayed=True)
        hold.state = "released"
        hold.forced = force
        if hold.pool is not None:
            hold.pool.touch(account.last_posted_at)
        account.give_back(hold, hold.takes)
        account.repay(now)
        return Answer(hold)

    @staticmethod
    def _refuse_settled(hold: Hold) -> None:
        if hold.charged_once or hold.state == "released":
            raise Refused("reservation_already_settled")
        if hold.state == "expired":
            raise Refused("reservation_expired")

    def extend_reservation(self, organization_id: str, reservation_id: str, ttl: timedelta) -> Answer:
        _, hold, now = self._hold(organization_id, reservation_id)
        self._refuse_settled(hold)
        if hold.state == "unknown":
            raise Refused("reservation_unknown")
        hold.expires_at = now + ttl
        return Answer(hold)

    def mark_unknown(self, organization_id: str, reservation_id: str) -> Answer:
        _, hold, now = self._hold(organization_id, reservation_id)
        self._refuse_settled(hold)
        if hold.state == "unknown":
            return Answer(hold, replayed=True)
        hold.state = "unknown"
        hold.expires_at = now + UNKNOWN_TTL
        return Answer(hold)

    def refund_credits(
        self, organization_id: str, transaction_id: str, amount: int | None, *, idempotency_key: str
    ) -> Answer:
        account, now = self._open(organization_id)
        payload = (transaction_id, amount)
        if (replay := account.replay("refund", idempotency_key, payload)) is not None:
            return replay
        charge = next((row for row in account.rows if row.id == transaction_id), None)
        if charge is None or charge.type != "debit":
            raise Refused("transaction_not_found")
        left = -charge.amount - charge.refunded
        wanted = left if amount is None else amount
        if wanted > left or wanted == 0:
            raise Refused("refund_exceeds_charge")
        # The line was the charge's last resort: it is the first to be given back.
        returned = min(wanted, max(0, charge.overdraft - charge.refunded))
        newest_first = list(reversed(charge.takes))
        given = take(subtract(newest_first, max(0, charge.refunded - charge.overdraft)), wanted - returned)
        charge.refunded += wanted
        account.debt -= returned
        for grant, part in given:
            grant.spent -= part
        row = account.add_row("refund", wanted, takes=given, overdraft=returned, refund_of=charge)
        if charge.run in account.runs and charge.seq > account.runs[charge.run].rows_before:
            account.touch_run(charge.run, row.at)
        for grant, part in given:
            if grant.status in ("expired", "voided"):
                account.breakage(grant, part)
        for grant in sorted(account.grants, key=lambda one: (max(one.effective_at, one.created_at), one.id))[::-1]:
            part = min(grant.repaid, max(0, -account.debt))
            if part:
                account.move(grant, -part)
                if grant.status in ("expired", "voided"):
                    account.breakage(grant, part)
        account.repay(now)
        account.keys["refund", idempotency_key] = (payload, row)
        return Answer(row)

    def adjust_credits(self, organization_id: str, amount: int, *, idempotency_key: str) -> Answer:
        if amount > 0:
            self.create_account(organization_id)
        account, now = self._open(organization_id)
        if (replay := account.replay("adjust", idempotency_key, (amount,))) is not None:
            return replay
        if amount > 0:
            if account.status == "closed":
                raise Refused("account_closed")
            grant = Grant(amount, "adjustment", 50, now, None, now)
            account.grants.append(grant)
            row = account.add_row("adjust", amount, grant=grant)
            account.repay(now)
        else:
            takes = take(account.usable(), -amount)
            if sum_of(takes) < -amount:
                raise Refused("insufficient_credits")
            for one, part in takes:
                one.voided += part
            row = account.add_row("adjust", amount, takes=takes)
        account.keys["adjust", idempotency_key] = ((amount,), row)
        return Answer(row)

    def set_overdraft(self, organization_id: str, amount: int) -> Answer:
        account, _ = self._open(organization_id)
        before, account.line = account.line, amount
        return Answer(None, replayed=before == amount)

    def set_status(self, organization_id: str, change: str) -> Answer:
        account, _ = self._open(organization_id)
        status, before = {
            "freeze": ("frozen", ("open",)),
            "unfreeze": ("open", ("frozen",)),
            "close": ("closed", ("open", "frozen")),
            "reopen": ("open", ("closed",)),
        }[change]
        if account.status not in (status, *before):
            raise Refused(f"account_{account.status}")
        same = account.status == status
        account.status = status
        if status == "closed":
            for one in account.recurring:
                one.status = "cancelled" if one.status == "active" else one.status
        return Answer(None, replayed=same)

    def set_limit(
        self,
        organization_id: str,
        *,
        scope: str,
        scope_id: str,
        unit: str,
        window: str,
        amount: int,
        hard: bool,
        include_existing: bool,
    ) -> Answer:
        self.create_account(organization_id)
        account, _ = self._open(organization_id)
        before = 0 if include_existing else len(account.rows)
        limit = Limit(scope, scope_id, unit, window, amount, hard, before)
        for known in account.limits:
            if known.place == limit.place:
                known.amount, known.hard = amount, hard
                return Answer(known)
        account.limits.append(limit)
        return Answer(limit)

    def remove_limit(self, organization_id: str, limit_id: str) -> Answer:
        account, _ = self._open(organization_id)
        limit = next((one for one in account.limits if one.id == limit_id), None)
        if limit is None:
            raise Refused("limit_not_found")
        account.limits.remove(limit)
        return Answer(limit)

    def open_run(
        self,
        organization_id: str,
        run_id: str,
        *,
        parent_run_id: str | None,
        amount: int | None,
        borrow: bool | None,
        partial: bool,
        ttl: timedelta | None,
    ) -> Answer:
        account, now = self._open(organization_id)
        parent = None if parent_run_id is None else self._run(account, parent_run_id)
        known = account.runs.get(run_id)
        place = known.parent if known is not None else parent
        if known is not None and known.ended_at is not None:
            raise Refused("run_ended")
        if known is not None and parent is not None and known.parent is not parent:
            raise Refused("invalid_input")
        if borrow and place is None:
            raise Refused("invalid_input")
        if known is None and parent is not None and parent.ended_at is not None:
            raise Refused("run_ended")
        cap = amount if amount is not None or known is None else known.cap
        if place is not None and cap is not None:
            claimed = 0 if known is None else account.claim(known)
            least = 0 if known is None else account.used(known)
            more = max(0, max(cap, least) - claimed)
            given = more if account.bears(place, more) else account.run_room(place)
            if given < more and not partial:
                raise Refused("credit_limit_exceeded")
            cap -= more - given
        if known is None:
            lasts = ttl or timedelta(days=30 if place is None else 1)
            known = Run(run_id, place, cap, bool(borrow), lasts, len(account.rows), now)
            account.runs[run_id] = known
        known.cap = cap
        known.borrow = known.borrow if borrow is None else borrow
        known.ttl = ttl or known.ttl
        known.touch(now)
        return Answer(None)

    @staticmethod
    def _run(account: Account, run_id: str) -> Run:
        if run_id not in account.runs:
            raise Refused("run_not_found")
        return account.runs[run_id]

    def end_run(self, organization_id: str, run_id: str) -> Answer:
        account, now = self._open(organization_id)
        run = self._run(account, run_id)
        if run.ended_at is None:
            account.end_run(run, now)
        return Answer(None)

    def sweep(self, organization_id: str) -> Answer:
        self._open(organization_id)
        return Answer(None)

    def purge(self, organization_id: str, older_than: timedelta) -> int:
        """Forget the keys of old calls; those that gave, and those of open holds, are kept."""
        account, before = self.accounts[organization_id], self._clock() - older_than
        old = [
            (kind, key)
            for (kind, key), (_, record) in account.keys.items()
            if kind in ("consume", "refund", "reserve")
            and (record.created_at if isinstance(record, Hold) else record.at) < before
            and not (isinstance(record, Hold) and record.open)
        ]
        for place in old:
            del account.keys[place]
        return len(old)
