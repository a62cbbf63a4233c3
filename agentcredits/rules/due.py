"""What time alone brings about: grants start and end, holds run out. Booked lazily and exactly, never by a timer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial

from agentcredits.model import GrantStatus, ReservationState
from agentcredits.rules import limits, overdraft, runs
from agentcredits.rules.entries import account_of, end_grant, give_back, next_event
from agentcredits.rules.state import OPEN_STATES, AccountState, GrantState, HoldState, Ledger

_Event = tuple[datetime, int, str, Callable[[], None]]


def is_due(account: AccountState, now: datetime) -> bool:
    """Whether something may have fallen due, so that the counters are not exact until it is booked."""
    return account.next_due_at is not None and now >= account.next_due_at


def book_due(ledger: Ledger, now: datetime) -> None:
    """Book every grant start, hold expiry and grant expiry up to ``now``, in the order of time.

    At the same instant holds come before grants, so that what a hold gives back expires with its grant. Needs all
    open grants and all due holds loaded; afterwards ``next_due_at`` is exact.
    """
    account = ledger.account
    if account is None or not is_due(account, now):
        return
    for at, _, _, book in sorted(_events(ledger, now), key=lambda event: event[:3]):
        book()
        overdraft.repay(ledger, at, now)
    account.next_due_at = ledger.later_due_at
    for hold in ledger.holds.values():
        if hold.state in OPEN_STATES:
            account.note_due(hold.expires_at)
    for grant in ledger.grants.values():
        if grant.is_open:
            account.note_due(next_event(grant))
    account.last_posted_at = now
    ledger.changes.account = True


def _events(ledger: Ledger, now: datetime) -> Iterator[_Event]:
    for hold in ledger.holds.values():
        if hold.state in OPEN_STATES and hold.expires_at <= now:
            yield hold.expires_at, 0, hold.id, partial(_expire_hold, ledger, hold, now)
    for grant in ledger.grants.values():
        if grant.status is GrantStatus.SCHEDULED and grant.effective_at <= now:
            yield grant.effective_at, 1, grant.id, partial(_start_grant, ledger, grant)
        # One that is used up has nothing to end: it may be loaded by chance, and chance must not change what is booked.
        if (
            grant.is_open
            and grant.status in (GrantStatus.SCHEDULED, GrantStatus.ACTIVE)
            and grant.expires_at is not None
            and grant.expires_at <= now
        ):
            yield grant.expires_at, 2, grant.id, partial(end_grant, ledger, grant, now)


def _expire_hold(ledger: Ledger, hold: HoldState, now: datetime) -> None:
    unknown = hold.state is ReservationState.UNKNOWN
    give_back(ledger, hold, tuple(reversed(hold.allocations)), now)
    limits.let_go(ledger, hold)
    runs.let_go(ledger, hold, hold.expires_at)
    ledger.touch_hold(hold)
    hold.state = ReservationState.EXPIRED
    hold.settled_at = hold.expires_at
    hold.reason = "no verdict from the provider" if unknown else "time-to-live ended"
    if unknown:
        ledger.changes.unanswered.append(hold)


def _start_grant(ledger: Ledger, grant: GrantState) -> None:
    ledger.touch_grant(grant.id)
    grant.status = GrantStatus.ACTIVE
    account_of(ledger).scheduled_micros -= grant.amount_micros
