"""Grants: when they count, in which order they burn, how they end, and that every balance is exact at every moment."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from agentcredits import (
    AccountNotFoundError,
    Balance,
    CreditGrant,
    CreditService,
    GrantCategory,
    GrantStatus,
    IdempotencyMismatchError,
    InsufficientCreditsError,
    InvalidInputError,
    SyncCreditService,
    TransactionType,
)
from agentcredits.testing import FakeClock

ACME = "acme"
DAY = timedelta(days=1)
TICK = timedelta(microseconds=1)
AROUND = pytest.mark.parametrize("offset", [-1, 0, 1], ids=["-1 µs", "0", "+1 µs"])


@pytest.fixture
def service(database_url: str, clock: FakeClock) -> Iterator[SyncCreditService]:
    """An empty ledger under a clock that is moved by hand."""
    with SyncCreditService(database_url, clock=clock) as made:
        yield made


def terms(balance: Balance) -> dict[str, int]:
    """The terms of the formula that are not zero, in whole credits."""
    names = ("granted", "scheduled", "spent", "reserved", "expired", "voided", "available")
    return {name: int(balance[name]) for name in names if balance[name]}


def now_of(service: SyncCreditService) -> dict[str, int]:
    return terms(service.get_balance(ACME))


def consume(service: SyncCreditService, amount: Any, **arguments: Any) -> Any:
    return service.consume_credits(organization_id=ACME, amount=amount, **arguments)


def history(service: SyncCreditService) -> list[tuple[str, int, int]]:
    """Type, amount and balance after each row, oldest first."""
    rows = reversed(service.list_transactions(ACME, limit=1000).items)
    return [(row.type.value, int(row.amount), int(row.balance_after)) for row in rows]


# -- granting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("category", "row_type"),
    [("paid", "purchase"), ("promotional", "credit"), ("plan", "credit"), ("adjustment", "adjust")],
)
def test_a_grant_writes_one_row_of_its_kind(service: SyncCreditService, category: str, row_type: str) -> None:
    """The row names the grant, its source and its metadata."""
    grant = service.grant_credits(ACME, "2.5", category=category, source="order 7", metadata={"a": 1})
    (row,) = service.list_transactions(ACME)
    assert (row.type, row.amount, row.balance_after, row.seq) == (
        TransactionType(row_type),
        Decimal("2.5"),
        row.amount,
        1,
    )
    assert (row.grant_id, row.reason, row.metadata) == (grant.id, "order 7", {"a": 1})
    assert [(part.grant_id, part.amount) for part in row.allocations] == [(grant.id, Decimal("2.5"))]
    assert (grant.category, grant.status, grant.remaining) == (
        GrantCategory(category),
        GrantStatus.ACTIVE,
        grant.amount,
    )


def test_a_key_grants_once(service: SyncCreditService) -> None:
    """The same key and payload replays; another amount is a mismatch; another organization's key is its own."""
    first = service.grant_credits(ACME, 10, idempotency_key="order-1")
    again = service.grant_credits(ACME, 10, idempotency_key="order-1", metadata={"try": 2})
    assert (again.id, again.replayed) == (first.id, True)
    with pytest.raises(IdempotencyMismatchError):
        service.grant_credits(ACME, 11, idempotency_key="order-1")
    assert not service.grant_credits("other", 10, idempotency_key="order-1").replayed
    assert now_of(service) == {"granted": 10, "available": 10}


def test_an_account_comes_into_being_once(service: SyncCreditService) -> None:
    """create_account opens it without credits; before that it does not exist."""
    with pytest.raises(AccountNotFoundError, match="grant credits first"):
        service.get_balance(ACME)
    assert terms(service.create_account(ACME)) == {}
    with pytest.raises(InsufficientCreditsError):
        consume(service, 1)
    service.grant_credits(ACME, 1)
    assert terms(service.create_account(ACME)) == {"granted": 1, "available": 1}


def test_a_refused_grant_opens_no_account(service: SyncCreditService, clock: FakeClock) -> None:
    """Nothing changed: the organization is as unknown as before."""
    with pytest.raises(InvalidInputError):
        service.grant_credits(ACME, 1, expires_at=clock.now())
    with pytest.raises(AccountNotFoundError):
        service.get_balance(ACME)


# -- the order -----------------------------------------------------------------------------------------------------


def test_grants_burn_in_their_order(service: SyncCreditService, clock: FakeClock) -> None:
    """Priority, then expiry (never last), then promotional, plan, adjustment, paid, then effective_at, then age."""
    start = clock.now()
    made: list[tuple[str, dict[str, Any]]] = [
        ("paid, later effective", {"effective_at": start - DAY}),
        ("paid, earlier effective", {"effective_at": start - 2 * DAY}),
        ("adjustment", {"category": "adjustment"}),
        ("plan", {"category": "plan"}),
        ("promotional", {"category": "promotional"}),
        ("expires late", {"expires_at": start + 9 * DAY}),
        ("expires soon", {"expires_at": start + 2 * DAY}),
        ("expires soon, promotional", {"expires_at": start + 2 * DAY, "category": "promotional"}),
        ("low priority number", {"priority": 1}),
        ("high priority number", {"priority": 99, "expires_at": start + DAY, "category": "promotional"}),
        ("paid, later effective, younger", {"effective_at": start - DAY}),
    ]
    names = {}
    for name, arguments in made:
        names[service.grant_credits(ACME, 1, **arguments).id] = name
        clock.advance(TICK)
    row = consume(service, len(made))
    assert [names[str(part.grant_id)] for part in row.allocations] == [
        "low priority number",
        "expires soon, promotional",
        "expires soon",
        "expires late",
        "promotional",
        "plan",
        "adjustment",
        "paid, earlier effective",
        "paid, later effective",
        "paid, later effective, younger",
        "high priority number",
    ]


def test_a_refund_goes_back_newest_allocation_first(service: SyncCreditService) -> None:
    """Repeated partial refunds walk the charge's allocations from the end, never above the charge."""
    first = service.grant_credits(ACME, 3, priority=1)
    second = service.grant_credits(ACME, 10, priority=2)
    charge = consume(service, 8)
    parts = []
    for amount in (4, 2, None):
        refund = service.refund_credits(charge, amount)
        parts.append([(part.grant_id, int(part.amount)) for part in refund.allocations])
    assert parts == [[(second.id, 4)], [(second.id, 1), (first.id, 1)], [(first.id, 2)]]
    assert now_of(service) == {"granted": 13, "available": 13}
    assert service.verify()


# -- scheduled -----------------------------------------------------------------------------------------------------


@AROUND
def test_a_scheduled_grant_counts_from_its_moment_on(service: SyncCreditService, clock: FakeClock, offset: int) -> None:
    """Before effective_at it is granted and scheduled; at it it can be spent."""
    at = clock.now() + DAY
    grant = service.grant_credits(ACME, 10, effective_at=at)
    assert (grant.status, now_of(service)) == (GrantStatus.SCHEDULED, {"granted": 10, "scheduled": 10})
    clock.set(at + offset * TICK)
    if offset < 0:
        assert now_of(service) == {"granted": 10, "scheduled": 10}
        assert not service.check_credits(ACME, amount=1)
        with pytest.raises(InsufficientCreditsError):
            consume(service, 1)
    else:
        assert now_of(service) == {"granted": 10, "available": 10}
        assert service.check_credits(ACME, amount=10)
        assert consume(service, 10).balance_after == 0
    assert service.verify()


def test_a_scheduled_grant_is_in_the_history_from_the_start(service: SyncCreditService, clock: FakeClock) -> None:
    """balance_after counts it, since the row says that it was granted; its beginning writes no row."""
    service.grant_credits(ACME, 1)
    service.grant_credits(ACME, 10, effective_at=clock.now() + DAY)
    clock.advance(2 * DAY)
    consume(service, 3)
    assert history(service) == [("purchase", 1, 1), ("purchase", 10, 11), ("debit", -3, 8)]


# -- ending --------------------------------------------------------------------------------------------------------


@AROUND
def test_a_grant_ends_at_its_moment(service: SyncCreditService, clock: FakeClock, offset: int) -> None:
    """Up to expires_at it can be spent, at it the rest is breakage: a row, not a silent loss."""
    at = clock.now() + DAY
    service.grant_credits(ACME, 10, expires_at=at)
    consume(service, 4)
    clock.set(at + offset * TICK)
    if offset < 0:
        assert now_of(service) == {"granted": 10, "spent": 4, "available": 6}
        assert consume(service, 6).balance_after == 0
    else:
        assert now_of(service) == {"granted": 10, "spent": 4, "expired": 6}
        with pytest.raises(InsufficientCreditsError):
            consume(service, 1)
        assert history(service)[-1] == ("expire", -6, 0)
        (grant,) = service.list_grants(ACME)
        assert (grant.status, grant.expired, grant.remaining) == (GrantStatus.EXPIRED, 6, 0)
    assert service.verify()


def test_a_balance_is_exact_without_any_posting(service: SyncCreditService, clock: FakeClock) -> None:
    """After a start, an end and a hold's end nothing was posted, and yet every read says what is."""
    start = clock.now()
    service.grant_credits(ACME, 10, expires_at=start + 2 * DAY)
    service.grant_credits(ACME, 5, effective_at=start + 3 * DAY)
    service.grant_credits(ACME, 1)
    service.reserve_credits(organization_id=ACME, amount=4, ttl=DAY)
    seen = []
    for days in (0, 1, 2, 3):
        clock.set(start + days * DAY)
        seen.append(now_of(service))
        assert service.check_credits(ACME, amount=1).available == seen[-1]["available"]
        assert sum(int(grant.remaining) for grant in service.list_grants(ACME)) == (
            seen[-1]["available"] + seen[-1].get("scheduled", 0)
        )
    assert seen == [
        {"granted": 16, "scheduled": 5, "reserved": 4, "available": 7},
        {"granted": 16, "scheduled": 5, "available": 11},
        {"granted": 16, "scheduled": 5, "expired": 10, "available": 1},
        {"granted": 16, "expired": 10, "available": 6},
    ]
    assert len(service.list_transactions(ACME)) == 3
    assert service.verify()
    report = service.sweep()
    assert (report.accounts, report.expired_reservations, report.expired_grants) == (1, 1, 1)
    assert now_of(service) == seen[-1]
    assert service.sweep().accounts == 0
    assert service.verify()


@pytest.mark.parametrize("refused", [False, True])
def test_what_is_due_is_booked_also_by_a_refusal(service: SyncCreditService, clock: FakeClock, refused: bool) -> None:
    """A refusal writes nothing but what was due anyway, in its order of time, and only once."""
    service.grant_credits(ACME, 10, expires_at=clock.now() + DAY)
    service.grant_credits(ACME, 1)
    service.reserve_credits(organization_id=ACME, amount=8, ttl=timedelta(hours=1))
    clock.advance(2 * DAY)
    if refused:
        with pytest.raises(InsufficientCreditsError):
            consume(service, 2)
    else:
        consume(service, 1)
    assert history(service) == [("purchase", 10, 10), ("purchase", 1, 11), ("expire", -10, 1)] + (
        [] if refused else [("debit", -1, 0)]
    )
    service.sweep()
    assert service.verify()


def test_held_credits_survive_their_grants_end_until_the_hold_ends(
    service: SyncCreditService, clock: FakeClock
) -> None:
    """The hold keeps them; what it uses is spent, what it gives back is breakage, not balance."""
    service.grant_credits(ACME, 10, expires_at=clock.now() + DAY)
    service.grant_credits(ACME, 1)
    hold = service.reserve_credits(organization_id=ACME, amount=8, ttl=2 * DAY)
    clock.advance(DAY)
    assert now_of(service) == {"granted": 11, "reserved": 8, "expired": 2, "available": 1}
    service.commit_reservation(hold, 5)
    assert now_of(service) == {"granted": 11, "spent": 5, "expired": 5, "available": 1}
    assert history(service)[2:] == [("expire", -2, 9), ("debit", -5, 4), ("expire", -3, 1)]
    assert service.verify()


def test_a_hold_and_its_grant_that_end_at_one_moment_become_breakage(
    service: SyncCreditService, clock: FakeClock
) -> None:
    """Holds come first, so that what they give back ends with the grant."""
    service.grant_credits(ACME, 10, expires_at=clock.now() + DAY)
    service.reserve_credits(organization_id=ACME, amount=8, ttl=DAY)
    clock.advance(DAY)
    assert now_of(service) == {"granted": 10, "expired": 10}
    service.sweep()
    assert history(service) == [("purchase", 10, 10), ("expire", -10, 0)]


def test_a_refund_to_an_ended_grant_is_written_and_ends_at_once(service: SyncCreditService, clock: FakeClock) -> None:
    """Both rows stand; the balance does not grow."""
    service.grant_credits(ACME, 10, expires_at=clock.now() + DAY)
    charge = consume(service, 10)
    clock.advance(DAY)
    refund = service.refund_credits(charge, 4)
    assert (refund.amount, refund.balance_after) == (4, 4)
    assert history(service)[-2:] == [("refund", 4, 4), ("expire", -4, 0)]
    assert now_of(service) == {"granted": 10, "spent": 6, "expired": 4}
    assert service.verify()


# -- voiding -------------------------------------------------------------------------------------------------------


def test_a_void_takes_back_what_is_left(service: SyncCreditService) -> None:
    """What was spent stays spent; a second void is a replay; the other grant is not touched."""
    grant = service.grant_credits(ACME, 10, priority=1)
    service.grant_credits(ACME, 1)
    consume(service, 4)
    voided = service.void_grant(grant, reason="charged back")
    assert (voided.status, voided.voided, voided.remaining, voided.replayed) == (GrantStatus.VOIDED, 6, 0, False)
    assert voided.voided_at is not None
    assert now_of(service) == {"granted": 11, "spent": 4, "voided": 6, "available": 1}
    row = service.list_transactions(ACME, limit=1).items[0]
    assert (row.type, row.amount, row.reason, row.grant_id) == (TransactionType.ADJUST, -6, "charged back", grant.id)
    assert service.void_grant(grant).replayed
    assert len(service.list_transactions(ACME)) == 4
    assert service.verify()


def test_a_void_under_a_hold_leaves_the_hold(service: SyncCreditService) -> None:
    """A grant voided under a hold behaves as an ended one: used is spent, given back is breakage."""
    grant = service.grant_credits(ACME, 10)
    hold = service.reserve_credits(organization_id=ACME, amount=6)
    assert service.void_grant(grant).voided == 4
    assert now_of(service) == {"granted": 10, "reserved": 6, "voided": 4}
    service.commit_reservation(hold, 2)
    assert now_of(service) == {"granted": 10, "spent": 2, "expired": 4, "voided": 4}
    assert service.verify()


def test_a_void_of_a_scheduled_grant_ends_its_schedule(service: SyncCreditService, clock: FakeClock) -> None:
    """It never begins."""
    grant = service.grant_credits(ACME, 10, effective_at=clock.now() + DAY)
    service.void_grant(grant)
    assert now_of(service) == {"granted": 10, "voided": 10}
    clock.advance(2 * DAY)
    assert now_of(service) == {"granted": 10, "voided": 10}
    assert service.verify()


def test_a_void_of_what_is_spent_or_ended_writes_no_row(service: SyncCreditService, clock: FakeClock) -> None:
    """There is nothing to take back."""
    spent = service.grant_credits(ACME, 2)
    consume(service, 2)
    ended = service.grant_credits(ACME, 3, expires_at=clock.now() + DAY)
    clock.advance(DAY)
    service.sweep()
    rows = len(service.list_transactions(ACME))
    assert service.void_grant(spent).status is GrantStatus.VOIDED
    assert (service.void_grant(ended).status, service.void_grant(ended).replayed) == (GrantStatus.EXPIRED, True)
    assert len(service.list_transactions(ACME)) == rows
    assert service.verify()


# -- the books -----------------------------------------------------------------------------------------------------


def test_the_history_is_a_gapless_chain(service: SyncCreditService, clock: FakeClock) -> None:
    """Each balance_after is the one before plus the amount; seq has no gap; time never runs backwards."""
    service.grant_credits(ACME, 50)
    service.grant_credits(ACME, 7, category="promotional", expires_at=clock.now() + DAY)
    charge = consume(service, 9)
    clock.advance(2 * DAY)
    service.refund_credits(charge, 3)
    with service.reserve_credits(organization_id=ACME, amount=5) as hold:
        hold.commit(2)
    clock.advance(-DAY)
    consume(service, 1)
    service.void_grant(service.list_grants(ACME)[0])
    rows = list(reversed(service.list_transactions(ACME, limit=100).items))
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    before = Decimal(0)
    for row in rows:
        assert row.balance_after == before + row.amount
        assert sum((part.amount for part in row.allocations), Decimal(0)) == abs(row.amount)
        before = row.balance_after
    times: list[datetime] = [row.created_at for row in rows]
    assert times == sorted(times)
    balance = service.get_balance(ACME)
    assert balance.available == before
    assert balance.available == (
        balance.granted - balance.scheduled - balance.spent - balance.reserved - balance.expired - balance.voided
    )
    assert service.verify()


def test_a_page_of_the_history_goes_on_where_it_ended(service: SyncCreditService) -> None:
    """Newest first, by seq: rows that are added meanwhile are neither shown twice nor skipped."""
    service.grant_credits(ACME, 50)
    for number in range(9):
        consume(service, 1, idempotency_key=f"k{number}")
    seen: list[int] = []
    cursor = None
    while True:
        page = service.list_transactions(ACME, cursor=cursor, limit=4)
        seen += [row.seq for row in page]
        consume(service, 1)
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == list(range(10, 0, -1))
    assert [row.type for row in service.list_transactions(ACME, type="purchase")] == [TransactionType.PURCHASE]


def test_an_account_that_is_clamped_in_views_stays_signed(service: SyncCreditService) -> None:
    """Mapping and attribute access are the same; debt is zero while there are credits."""
    service.grant_credits(ACME, 10)
    balance = service.get_balance(ACME)
    assert balance["available"] == balance.available == 10
    assert (balance["debt"], balance["available_micros"]) == (0, 10_000_000)
    with pytest.raises(KeyError):
        balance["nonsense"]


@pytest.mark.parametrize("when", ["past", "now", "before it begins"])
def test_a_grant_that_would_end_before_it_counts_is_refused(
    service: SyncCreditService, clock: FakeClock, when: str
) -> None:
    """It could never be spent."""
    end = {"past": clock.now() - DAY, "now": clock.now(), "before it begins": clock.now() + DAY}[when]
    begin = clock.now() + 2 * DAY if when == "before it begins" else None
    with pytest.raises(InvalidInputError) as refusal:
        service.grant_credits(ACME, 1, effective_at=begin, expires_at=end)
    assert refusal.value.reason == "expires_in_the_past"


async def test_grants_are_the_same_for_coroutines(database_url: str, clock: FakeClock) -> None:
    """Grant, list, void and sweep on the coroutine face."""
    async with CreditService(database_url, clock=clock) as service:
        grant = await service.grant_credits(ACME, 10, expires_at=clock.now() + DAY)
        await service.grant_credits(ACME, 5)
        assert isinstance(grant, CreditGrant)
        assert [found.amount for found in await service.list_grants(ACME)] == [10, 5]
        assert (await service.void_grant(grant)).voided == 10
        clock.advance(2 * DAY)
        assert terms(await service.get_balance(ACME)) == {"granted": 15, "voided": 10, "available": 5}
        assert (await service.sweep()).expired_grants == 0
        assert await service.verify()
