"""What time alone brings about: grants start, end and come again, holds run out. Booked lazily and exactly, never by a
timer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial
from heapq import heapify, heappop, heappush

from agentcredits.model import GrantStatus, ReservationState
from agentcredits.rules import limits, overdraft, recurring, runs
from agentcredits.rules.entries import account_of, end_grant, give_back, next_event, note_next_refill
from agentcredits.rules.state import OPEN_STATES, AccountState, GrantState, HoldState, Ledger, RecurringState

_Event = tuple[datetime, int, str, Callable[[], Iterable["_Event"]]]
"""When, its place among what happens at one moment, whose, and its booking, which tells what that brings about."""

_HOLD_ENDS, _GRANT_STARTS, _GRANT_ENDS, _GRANT_COMES_AGAIN = range(4)


def is_due(account: AccountState, now: datetime) -> bool:
    """Whether something may have fallen due, so that the counters are not exact until it is booked."""
    return account.next_due_at is not None and now >= account.next_due_at


def is_refill_due(account: AccountState, now: datetime) -> bool:
    """Whether a recurring grant comes again."""
    return account.next_refill_at is not None and now >= account.next_refill_at


def book_due(ledger: Ledger, now: datetime, *, most_refills: int | None = None) -> bool:
    """Book everything that is due up to ``now``, in the order of time; afterwards ``next_due_at`` is exact.

    At one moment holds end first, so that what a hold gives back ends with its grant; then grants start; then they end,
    and carry over; then they come again. Needs all open grants, all due holds and, where one of them is due, all
    active recurring grants.

    Args:
        ledger: The loaded state.
        now: Up to when, included.
        most_refills: Stop before a recurring grant has come again more often than this; None: book all of it.

    Returns:
        Whether everything is booked.
    """
    account = ledger.account
    if account is None or not is_due(account, now):
        return True
    events = list(_events(ledger, now))
    heapify(events)
    refills = 0
    while events:
        at, kind, _, book = events[0]
        if kind == _GRANT_COMES_AGAIN:
            if refills == most_refills:
                break
            refills += 1
        heappop(events)
        for event in book():
            heappush(events, event)
        overdraft.repay(ledger, at, now)
    if refills:
        note_next_refill(ledger)
    account.next_due_at = ledger.later_due_at
    account.note_due(account.next_refill_at)
    for hold in ledger.holds.values():
        if hold.state in OPEN_STATES:
            account.note_due(hold.expires_at)
    for grant in ledger.grants.values():
        if grant.is_open:
            account.note_due(next_event(grant))
    account.last_posted_at = now
    ledger.changes.account = True
    return not events


def _events(ledger: Ledger, now: datetime) -> Iterator[_Event]:
    for hold in ledger.holds.values():
        if hold.state in OPEN_STATES and hold.expires_at <= now:
            yield hold.expires_at, _HOLD_ENDS, hold.id, partial(_expire_hold, ledger, hold, now)
    for grant in ledger.grants.values():
        yield from _events_of_grant(ledger, grant, now)
    for one in ledger.recurring.values():
        yield from _events_of_recurring(ledger, one, now)


def _events_of_grant(ledger: Ledger, grant: GrantState, now: datetime) -> Iterator[_Event]:
    if grant.status is GrantStatus.SCHEDULED and grant.effective_at <= now:
        yield grant.effective_at, _GRANT_STARTS, grant.id, partial(_start_grant, ledger, grant)
    # One that is used up has nothing to end: it may be loaded by chance, and chance must not change what is booked.
    if (
        grant.is_open
        and grant.status in (GrantStatus.SCHEDULED, GrantStatus.ACTIVE)
        and grant.expires_at is not None
        and grant.expires_at <= now
    ):
        yield grant.expires_at, _GRANT_ENDS, grant.id, partial(_end_grant, ledger, grant, now)


def _events_of_recurring(ledger: Ledger, one: RecurringState, now: datetime) -> Iterator[_Event]:
    if one.is_active and one.next_at <= now:
        yield one.next_at, _GRANT_COMES_AGAIN, one.id, partial(_refill, ledger, one, now)


def _expire_hold(ledger: Ledger, hold: HoldState, now: datetime) -> Iterable[_Event]:
    unknown = hold.state is ReservationState.UNKNOWN
    give_back(ledger, tuple(reversed(hold.allocations)), now)
    limits.let_go(ledger, hold)
    runs.let_go(ledger, hold, hold.expires_at)
    ledger.touch_hold(hold)
    hold.state = ReservationState.EXPIRED
    hold.settled_at = hold.expires_at
    hold.reason = "no verdict from the provider" if unknown else "time-to-live ended"
    if unknown:
        ledger.changes.unanswered.append(hold)
    return ()


def _start_grant(ledger: Ledger, grant: GrantState) -> Iterable[_Event]:
    ledger.touch_grant(grant.id)
    grant.status = GrantStatus.ACTIVE
    account_of(ledger).scheduled_micros -= grant.amount_micros
    return ()


def _end_grant(ledger: Ledger, grant: GrantState, now: datetime) -> Iterable[_Event]:
    rollover = recurring.carry_over(ledger, grant, now)
    end_grant(ledger, grant, now)
    return () if rollover is None else _events_of_grant(ledger, rollover, now)


def _refill(ledger: Ledger, one: RecurringState, now: datetime) -> Iterable[_Event]:
    made = recurring.refill(ledger, one, now)
    if made is not None:
        yield from _events_of_grant(ledger, made, now)
    yield from _events_of_recurring(ledger, one, now)
