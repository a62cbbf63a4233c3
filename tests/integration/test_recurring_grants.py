"""Grants that come again: each period once, exactly at its start, in order, whenever somebody looks."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError

from agentcredits import (
    CreditGrant,
    CreditsError,
    CreditService,
    GrantStatus,
    IdempotencyMismatchError,
    InvalidAmountError,
    InvalidInputError,
    RecurringGrant,
    RecurringGrantNotFoundError,
    RecurringStatus,
    Rollover,
    SyncCreditService,
)
from agentcredits.store.posting import MAX_REFILLS
from agentcredits.testing import FakeClock

ACME = "acme"
START = datetime(2026, 1, 31, 9, tzinfo=UTC)
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
TICK = timedelta(microseconds=1)


@pytest.fixture
def clock() -> FakeClock:
    """The last day of January, 9 o'clock."""
    return FakeClock(START)


@pytest.fixture
def service(database_url: str, clock: FakeClock) -> Iterator[SyncCreditService]:
    """An empty ledger under a clock that is moved by hand; clean at the end."""
    with SyncCreditService(database_url, clock=clock) as made:
        yield made
        assert made.verify().problems == ()


def terms(service: SyncCreditService) -> dict[str, int]:
    """The terms of the balance that are not zero, in whole credits."""
    balance = service.get_balance(ACME)
    names = ("granted", "scheduled", "spent", "reserved", "expired", "voided", "available")
    return {name: int(balance[name]) for name in names if balance[name]}


def history(service: SyncCreditService) -> list[tuple[str, int]]:
    """Type and amount of every row, oldest first."""
    return [(row.type.value, int(row.amount)) for row in reversed(service.list_transactions(ACME, limit=1000).items)]


def refills(service: SyncCreditService) -> list[CreditGrant]:
    return [grant for grant in service.list_grants(ACME) if grant.period_start is not None]


def consume(service: SyncCreditService, amount: Any, **arguments: Any) -> Any:
    return service.consume_credits(organization_id=ACME, amount=amount, **arguments)


# -- periods -------------------------------------------------------------------------------------------------------


def test_the_anchor_day_is_clamped_in_short_months_and_comes_back(service: SyncCreditService, clock: FakeClock) -> None:
    """31 January, 28 February, 31 March, 30 April: each for its own period, at the anchor's time of day."""
    made = service.create_recurring_grant(ACME, 100, anchor=START)
    assert (made.status, made.starts_at, made.next_at) == (
        RecurringStatus.ACTIVE,
        START,
        datetime(2026, 2, 28, 9, tzinfo=UTC),
    )
    clock.set(datetime(2026, 5, 1, tzinfo=UTC))
    consume(service, 1)
    starts = [grant.effective_at for grant in refills(service)]
    assert starts == [datetime(2026, month, day, 9, tzinfo=UTC) for month, day in ((1, 31), (2, 28), (3, 31), (4, 30))]
    assert [grant.expires_at for grant in refills(service)] == [*starts[1:], datetime(2026, 5, 31, 9, tzinfo=UTC)]
    assert [grant.created_at for grant in refills(service)] == starts


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_a_period_is_granted_exactly_at_its_start(service: SyncCreditService, clock: FakeClock, offset: int) -> None:
    """Half-open: the old grant ends and the new one counts at the same instant, for reads and for charges."""
    service.create_recurring_grant(ACME, 10)
    consume(service, 4)
    clock.set(datetime(2026, 2, 28, 9, tzinfo=UTC) + offset * TICK)
    before = {"granted": 10, "spent": 4, "available": 6}
    after = {"granted": 20, "spent": 4, "expired": 6, "available": 10}
    assert terms(service) == (before if offset < 0 else after)
    service.sweep()
    assert terms(service) == (before if offset < 0 else after)
    assert history(service) == [("credit", 10), ("debit", -4)] + (
        [] if offset < 0 else [("expire", -6), ("credit", 10)]
    )


def test_after_a_long_sleep_every_missed_period_is_booked_in_order_once(
    service: SyncCreditService, clock: FakeClock
) -> None:
    """Fourteen months: a view shows them without a write, the next posting books them, and no one books them again."""
    service.create_recurring_grant(ACME, 10, anchor=START)
    rows = len(history(service))
    clock.set(datetime(2027, 3, 31, 9, tzinfo=UTC))
    shown, grants = terms(service), service.list_grants(ACME)
    assert shown == {"granted": 150, "expired": 140, "available": 10}
    assert len(history(service)) == rows
    consume(service, 1)
    expected = [("credit", 10)] + [("expire", -10), ("credit", 10)] * 14 + [("debit", -1)]
    assert history(service) == expected
    assert [grant.id for grant in refills(service)] == [grant.id for grant in grants]
    service.sweep()
    clock.advance(DAY)
    consume(service, 1)
    assert history(service) == [*expected, ("debit", -1)]


def test_a_catch_up_of_years_is_booked_in_several_transactions(service: SyncCreditService, clock: FakeClock) -> None:
    """More refills than one transaction books: the charge that finds them is answered once, after all of them."""
    service.create_recurring_grant(ACME, 1, every="day")
    days = 2 * MAX_REFILLS + 3
    clock.advance(days * DAY)
    charge = consume(service, 1)
    assert not charge.replayed
    assert len(refills(service)) == days + 1
    assert charge.seq == 2 * days + 2
    assert terms(service) == {"granted": days + 1, "spent": 1, "expired": days}


def test_days_and_weeks_follow_the_calendar_of_the_zone(service: SyncCreditService, clock: FakeClock) -> None:
    """Days of Berlin over the change to summer time, weeks from Monday; the running period is granted at once."""
    clock.set(datetime(2026, 3, 27, 12, tzinfo=UTC))
    days = service.create_recurring_grant(ACME, 1, every="day", tz="Europe/Berlin")
    weeks = service.create_recurring_grant(ACME, 5, every="week", tz="Europe/Berlin")
    clock.advance(4 * DAY)
    service.sweep()
    found: dict[str | None, list[datetime]] = {days.id: [], weeks.id: []}
    for grant in refills(service):
        found[grant.recurring_id].append(grant.effective_at)
    begin = datetime(2026, 3, 27, 12, tzinfo=UTC)
    midnights = [(27, 23), (28, 23), (29, 22), (30, 22)]
    assert found[days.id] == [begin, *(datetime(2026, 3, day, hour, tzinfo=UTC) for day, hour in midnights)]
    assert found[weeks.id] == [begin, datetime(2026, 3, 29, 22, tzinfo=UTC)]


def test_a_future_anchor_grants_nothing_before(service: SyncCreditService, clock: FakeClock) -> None:
    """The first grant comes at the anchor."""
    anchor = START + 10 * DAY
    made = service.create_recurring_grant(ACME, 10, anchor=anchor)
    assert (made.starts_at, made.next_at, terms(service)) == (anchor, anchor, {})
    clock.set(anchor - TICK)
    assert terms(service) == {}
    clock.set(anchor)
    assert terms(service) == {"granted": 10, "available": 10}


def test_a_past_anchor_grants_the_running_period_only(service: SyncCreditService) -> None:
    """Periods that were over before it was made are not made up for."""
    made = service.create_recurring_grant(ACME, 10, anchor=START - 100 * DAY)
    (grant,) = refills(service)
    assert grant.effective_at == made.starts_at == START
    assert grant.period_start == datetime(2026, 1, 23, 9, tzinfo=UTC)
    assert grant.expires_at == made.next_at == datetime(2026, 2, 23, 9, tzinfo=UTC)


def test_nothing_comes_from_its_end_on(service: SyncCreditService, clock: FakeClock) -> None:
    """ends_at is exclusive: a period that begins then is not granted."""
    made = service.create_recurring_grant(ACME, 10, ends_at=datetime(2026, 3, 31, 9, tzinfo=UTC))
    clock.set(datetime(2026, 8, 1, tzinfo=UTC))
    service.sweep()
    assert len(refills(service)) == 2
    (listed,) = service.list_recurring_grants(ACME)
    assert (listed.id, listed.status, listed.next_at) == (made.id, RecurringStatus.ENDED, None)
    assert terms(service) == {"granted": 20, "expired": 20}


def test_cancelling_grants_no_further_period(service: SyncCreditService, clock: FakeClock) -> None:
    """What was granted stays until its own end; cancelling again is a replay."""
    made = service.create_recurring_grant(ACME, 10, rollover=Rollover())
    clock.advance(DAY)
    cancelled = service.cancel_recurring_grant(made)
    assert (cancelled.status, cancelled.next_at, cancelled.cancelled_at) == (
        RecurringStatus.CANCELLED,
        None,
        START + DAY,
    )
    assert service.cancel_recurring_grant(made.id, organization_id=ACME).replayed
    assert terms(service) == {"granted": 10, "available": 10}
    clock.set(datetime(2026, 6, 1, tzinfo=UTC))
    assert terms(service) == {"granted": 10, "expired": 10}
    service.create_account("globex")
    with pytest.raises(RecurringGrantNotFoundError):
        service.cancel_recurring_grant(made.id, organization_id="globex")


def test_cancelling_books_what_was_due_before(service: SyncCreditService, clock: FakeClock) -> None:
    """Cancelled exactly at a period's start: that period is granted."""
    made = service.create_recurring_grant(ACME, 10)
    clock.set(datetime(2026, 2, 28, 9, tzinfo=UTC))
    service.cancel_recurring_grant(made)
    assert terms(service) == {"granted": 20, "expired": 10, "available": 10}


def test_each_grant_may_last_longer_or_for_ever(service: SyncCreditService, clock: FakeClock) -> None:
    """expires_after counts from the grant's own start."""
    service.create_recurring_grant(ACME, 10, expires_after=None)
    service.create_recurring_grant(ACME, 1, every="week", expires_after=10 * DAY)
    clock.set(datetime(2026, 2, 28, 9, tzinfo=UTC))
    # Weeks from 31 Jan (the running one), 2, 9, 16 and 23 Feb: only the last one's 10 days are not over.
    assert terms(service) == {"granted": 25, "expired": 4, "available": 21}


def test_the_terms_of_each_grant_are_those_of_its_recurring_grant(service: SyncCreditService) -> None:
    """Category, priority, source, restriction and cost basis."""
    made = service.create_recurring_grant(
        ACME,
        10,
        category="paid",
        priority=7,
        source="subscription 1",
        only_for=["VideoAgent"],
        unit_cost="0.05",
        currency="EUR",
    )
    (grant,) = service.list_grants(ACME)
    names = ("category", "priority", "source", "only_for", "unit_cost", "currency")
    assert [getattr(grant, name) for name in names] == [getattr(made, name) for name in names]
    assert history(service) == [("purchase", 10)]
    assert grant.recurring_id == made.id
    assert service.list_recurring_grants(ACME) == (made,)


# -- at one instant ------------------------------------------------------------------------------------------------


def test_at_one_instant_holds_end_then_grants_end_then_they_come_again(
    service: SyncCreditService, clock: FakeClock
) -> None:
    """What the hold gives back at the period's end is part of the rest, which is carried over once; then the refill."""
    service.create_recurring_grant(ACME, 10, rollover=Rollover(maximum=5))
    end = datetime(2026, 2, 28, 9, tzinfo=UTC)
    service.reserve_credits(organization_id=ACME, amount=3, ttl=end - START)
    consume(service, 3)
    clock.set(end)
    service.sweep()
    assert history(service) == [
        ("credit", 10),
        ("debit", -3),
        ("adjust", -5),
        ("adjust", 5),
        ("expire", -2),
        ("credit", 10),
    ]
    assert terms(service) == {"granted": 25, "spent": 3, "expired": 2, "voided": 5, "available": 15}


def test_what_is_held_over_the_end_of_a_period_stays_with_its_hold(
    service: SyncCreditService, clock: FakeClock
) -> None:
    """It is not carried over; charged, it was the old period's; given back, it is breakage."""
    service.create_recurring_grant(ACME, 10, rollover=Rollover())
    hold = service.reserve_credits(organization_id=ACME, amount=4, ttl=60 * DAY)
    clock.set(datetime(2026, 2, 28, 9, tzinfo=UTC))
    assert terms(service) == {"granted": 26, "voided": 6, "reserved": 4, "available": 16}
    hold.commit(1)
    assert terms(service) == {"granted": 26, "voided": 6, "spent": 1, "expired": 3, "available": 16}


# -- rollover ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spent", "rollover", "carried"),
    [
        (4, Rollover(), 6),
        (4, Rollover(maximum=5), 5),
        (4, Rollover(maximum=6), 6),
        (4, Rollover(minimum=6), 6),
        (4, Rollover(minimum="6.000001"), 0),
        (10, Rollover(), 0),
        (0, Rollover(maximum=20, minimum=10), 10),
    ],
)
def test_the_rest_is_carried_over_as_far_as_the_terms_go(
    service: SyncCreditService, clock: FakeClock, spent: int, rollover: Rollover, carried: int
) -> None:
    """min(maximum, rest), nothing below the minimum; the other part is breakage, and no credit is made of nothing."""
    service.create_recurring_grant(ACME, 10, rollover=rollover)
    if spent:
        consume(service, spent)
    clock.set(datetime(2026, 2, 28, 9, tzinfo=UTC))
    service.sweep()
    rest = 10 - spent
    assert terms(service) == {
        name: amount
        for name, amount in (
            ("granted", 20 + carried),
            ("spent", spent),
            ("voided", carried),
            ("expired", rest - carried),
            ("available", 10 + carried),
        )
        if amount
    }
    rows = history(service)[1 + bool(spent) :]
    moved = [("adjust", -carried), ("adjust", carried)] if carried else []
    assert rows == [*moved, *([("expire", carried - rest)] if rest > carried else []), ("credit", 10)]


def test_a_rollover_burns_before_the_new_periods_grant(service: SyncCreditService, clock: FakeClock) -> None:
    """Though it lives longer."""
    service.create_recurring_grant(ACME, 10, rollover=Rollover(expires_after=90 * DAY), unit_cost=1, currency="USD")
    clock.set(datetime(2026, 2, 28, 9, tzinfo=UTC))
    charge = consume(service, 12)
    by_id = {grant.id: grant for grant in service.list_grants(ACME)}
    assert [(by_id[str(part.grant_id)].rolled_from is not None, int(part.amount)) for part in charge.allocations] == [
        (True, 10),
        (False, 2),
    ]
    rollover = next(grant for grant in by_id.values() if grant.rolled_from)
    assert rollover.expires_at == rollover.effective_at + 90 * DAY
    assert (rollover.unit_cost, rollover.currency, rollover.period_start) == (1, "USD", None)


def test_a_rollover_ends_by_itself_and_is_not_carried_on(service: SyncCreditService, clock: FakeClock) -> None:
    """By default with the period that it was carried into: then its rest is breakage, the period's own is carried."""
    service.create_recurring_grant(ACME, 10, rollover=Rollover())
    clock.set(datetime(2026, 3, 31, 9, tzinfo=UTC))
    consume(service, 1)
    assert terms(service) == {"granted": 50, "spent": 1, "voided": 20, "expired": 10, "available": 19}


def test_the_maximum_is_for_all_rollovers_together(service: SyncCreditService, clock: FakeClock) -> None:
    """What earlier ones still have leaves less room; what was used of them makes room again."""
    service.create_recurring_grant(ACME, 10, rollover=Rollover(maximum=15, expires_after=None))
    clock.set(datetime(2026, 3, 31, 9, tzinfo=UTC))
    assert terms(service) == {"granted": 45, "voided": 15, "expired": 5, "available": 25}
    consume(service, 12)
    clock.set(datetime(2026, 4, 30, 9, tzinfo=UTC))
    # 3 are left of the rollovers and 10 of the period: room for 12.
    assert terms(service) == {"granted": 65, "voided": 25, "spent": 12, "expired": 5, "available": 23}


def test_nothing_is_carried_over_after_the_last_period(service: SyncCreditService, clock: FakeClock) -> None:
    """There is no period to carry it into."""
    service.create_recurring_grant(ACME, 10, rollover=Rollover(), ends_at=START + 30 * DAY)
    clock.set(START + 60 * DAY)
    assert terms(service) == {"granted": 30, "voided": 10, "expired": 20}


def test_a_voided_periods_grant_is_not_carried_over(service: SyncCreditService, clock: FakeClock) -> None:
    """It was taken back; the next period comes all the same."""
    service.create_recurring_grant(ACME, 10, rollover=Rollover())
    (grant,) = refills(service)
    service.void_grant(grant)
    clock.set(datetime(2026, 2, 28, 9, tzinfo=UTC))
    assert terms(service) == {"granted": 20, "voided": 10, "available": 10}


def test_a_refund_to_a_carried_grant_is_breakage_and_one_to_a_rollover_comes_back(
    service: SyncCreditService, clock: FakeClock
) -> None:
    """The old period's grant has ended; its rollover has not."""
    service.create_recurring_grant(ACME, 10, rollover=Rollover(expires_after=None))
    old = consume(service, 4)
    clock.set(datetime(2026, 2, 28, 9, tzinfo=UTC))
    new = consume(service, 6)
    service.refund_credits(old.id, organization_id=ACME)
    service.refund_credits(new.id, organization_id=ACME)
    assert terms(service) == {"granted": 26, "voided": 6, "expired": 4, "available": 16}


# -- keys, refusals, the database ----------------------------------------------------------------------------------


def test_a_key_makes_one_recurring_grant(service: SyncCreditService, clock: FakeClock) -> None:
    """The same call answers the same record as it is now; another payload is a mismatch."""
    made = service.create_recurring_grant(ACME, 10, anchor=START, idempotency_key="sub-1")
    clock.set(datetime(2026, 3, 1, tzinfo=UTC))
    again = service.create_recurring_grant(ACME, 10, anchor=START, idempotency_key="sub-1")
    assert (again.id, again.replayed, again.next_at) == (made.id, True, datetime(2026, 3, 31, 9, tzinfo=UTC))
    with pytest.raises(IdempotencyMismatchError):
        service.create_recurring_grant(ACME, 11, anchor=START, idempotency_key="sub-1")
    assert len(service.list_recurring_grants(ACME)) == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"amount": 0}, InvalidAmountError),
        ({"amount": -1}, InvalidAmountError),
        ({"every": "year"}, InvalidInputError),
        ({"every": None}, InvalidInputError),
        ({"tz": "Europe/Nowhere"}, InvalidInputError),
        ({"anchor": datetime(2026, 1, 1)}, InvalidInputError),  # noqa: DTZ001  # naive on purpose
        ({"anchor": datetime(9999, 12, 31, 23, tzinfo=UTC)}, InvalidInputError),
        ({"ends_at": START}, InvalidInputError),
        ({"anchor": START + DAY, "ends_at": START + DAY}, InvalidInputError),
        ({"expires_after": "month"}, InvalidInputError),
        ({"expires_after": timedelta(0)}, InvalidInputError),
        ({"expires_after": TICK}, InvalidInputError),
        ({"expires_after": 4_000 * DAY}, InvalidInputError),
        ({"expires_after": DAY, "rollover": Rollover()}, InvalidInputError),
        ({"rollover": 5}, InvalidInputError),
        ({"rollover": Rollover(maximum=0)}, InvalidAmountError),
        ({"rollover": Rollover(maximum=1, minimum=2)}, InvalidInputError),
        ({"rollover": Rollover(minimum=-1)}, InvalidAmountError),
        ({"rollover": Rollover(expires_after=timedelta(0))}, InvalidInputError),
        ({"category": "gift"}, InvalidInputError),
        ({"priority": -1}, InvalidInputError),
        ({"only_for": []}, InvalidInputError),
        ({"unit_cost": 1}, InvalidInputError),
    ],
)
def test_a_bad_argument_is_refused_and_nothing_changes(
    service: SyncCreditService, arguments: dict[str, Any], error: type[CreditsError]
) -> None:
    """A typed error, and no account."""
    with pytest.raises(error):
        service.create_recurring_grant(ACME, **{"amount": 1, **arguments})
    with pytest.raises(CreditsError, match="no credit account"):
        service.get_balance(ACME)


def test_there_are_at_most_fifty_active_ones(service: SyncCreditService) -> None:
    """Each is looked at whenever one of them is due."""
    for _ in range(50):
        made = service.create_recurring_grant(ACME, 1)
    with pytest.raises(InvalidInputError, match="cancel one first"):
        service.create_recurring_grant(ACME, 1)
    service.cancel_recurring_grant(made)
    service.create_recurring_grant(ACME, 1)


def test_the_database_itself_refuses_a_period_twice(database_url: str, service: SyncCreditService) -> None:
    """A unique index over (recurring grant, period start): whatever a second writer believes."""
    service.create_recurring_grant(ACME, 1)
    engine = create_engine(database_url)
    columns = "organization_id, status, amount_micros, category, effective_at, created_at, recurring_id, period_start"
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(
            text(f"INSERT INTO credit_grants (id, {columns}) SELECT 'another', {columns} FROM credit_grants")
        )
    engine.dispose()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE recurring_grants SET next_at = '2026-03-31 09:00:00.000000'",
        "UPDATE recurring_grants SET last_start = NULL",
        "UPDATE recurring_grants SET status = 'cancelled'",
        "UPDATE recurring_grants SET starts_at = '2026-01-01 09:00:00.000000'",
        "UPDATE credit_accounts SET next_refill_at = NULL",
        "UPDATE credit_accounts SET has_restricted = (1 = 0)",
        "UPDATE credit_grants SET period_start = '2026-01-30 09:00:00.000000'",
        "UPDATE credit_grants SET recurring_id = 'nowhere'",
        "UPDATE credit_grants SET rolled_from = id",
        "DELETE FROM recurring_grants",
    ],
)
def test_verify_finds_what_was_changed_behind_its_back(database_url: str, clock: FakeClock, statement: str) -> None:
    """Each counter and each mark of a recurring grant is recomputed."""
    with SyncCreditService(database_url, clock=clock) as service:
        service.create_recurring_grant(ACME, 1, only_for=["VideoAgent"])
        assert service.verify().ok
        engine = create_engine(database_url)
        with engine.begin() as connection:
            connection.execute(text(statement))
        engine.dispose()
        assert "recurring" in {problem.check for problem in service.verify().problems}


async def test_the_coroutine_face_does_the_same(aservice: CreditService) -> None:
    """Made, listed, cancelled, under the database's own clock."""
    made = await aservice.create_recurring_grant(ACME, 10, every="day", rollover=Rollover(maximum=3))
    assert isinstance(made, RecurringGrant)
    assert made.rollover == Rollover(maximum=3)
    assert await aservice.list_recurring_grants(ACME) == (made,)
    assert (await aservice.get_balance(ACME)).available == 10
    assert (await aservice.cancel_recurring_grant(made)).status is RecurringStatus.CANCELLED
    (grant,) = await aservice.list_grants(ACME)
    assert grant.status is GrantStatus.ACTIVE
