"""Recurring grants against naive calendar arithmetic, and posted by a process that is killed again and again."""

from __future__ import annotations

import random
from calendar import monthrange
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentcredits import Rollover, SyncCreditService
from agentcredits.model import GrantStatus
from agentcredits.rules.due import book_due
from agentcredits.rules.operations import Consume, CreateRecurring, Expire, Operation
from agentcredits.rules.posting import decide
from agentcredits.rules.state import AccountState, Ledger
from agentcredits.store.dialects import dialect_of, make_engine, normalise_url
from agentcredits.store.posting import post
from agentcredits.testing import FakeClock

pytestmark = pytest.mark.proof

ZONES = (
    "UTC",
    "Europe/Berlin",
    "Europe/London",
    "America/New_York",
    "America/St_Johns",
    "America/Santiago",
    "America/Sao_Paulo",
    "America/Havana",
    "Africa/Casablanca",
    "Africa/Cairo",
    "Asia/Kathmandu",
    "Asia/Beirut",
    "Asia/Tehran",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Pacific/Kiritimati",
    "Antarctica/Troll",
)
MINUTE = timedelta(minutes=1)


# -- the calendar, naively -----------------------------------------------------------------------------------------


def first_instant(wall: datetime, zone: ZoneInfo) -> datetime:
    """The first instant at which clocks in the zone show the time or a later one: looked for minute by minute."""
    instant = wall.replace(tzinfo=zone).astimezone(UTC)
    if instant.astimezone(zone).replace(tzinfo=None) == wall:
        return instant
    at = (instant - timedelta(hours=26)).replace(second=0, microsecond=0)
    while at.astimezone(zone).replace(tzinfo=None) < wall:
        at += MINUTE
    return at


def walls(every: str, anchor: datetime, zone: ZoneInfo) -> Iterator[datetime]:
    """The local times at which periods begin, from some time before the anchor on."""
    local = anchor.astimezone(zone).replace(tzinfo=None, fold=0)
    if every == "month":
        year, month = (local - timedelta(days=62)).year, (local - timedelta(days=62)).month
        while True:
            yield local.replace(year=year, month=month, day=min(local.day, monthrange(year, month)[1]))
            year, month = (year, month + 1) if month < 12 else (year + 1, 1)
    day: date = local.date() - timedelta(days=10)
    while True:
        if every == "day" or day.isoweekday() == 1:
            yield datetime(day.year, day.month, day.day)  # noqa: DTZ001  # a time on the wall
        day += timedelta(days=1)


def starts(every: str, anchor: datetime, zone: ZoneInfo, until: datetime) -> list[datetime]:
    """The instants at which grants come: the anchor, then every later start."""
    found = [anchor]
    for wall in walls(every, anchor, zone):
        at = first_instant(wall, zone)
        if at > until:
            return found
        # A day that a zone left out begins when the next one does.
        if at > found[-1]:
            found.append(at)
    raise AssertionError("the walls ended")


anchors = st.datetimes(datetime(2009, 1, 1), datetime(2029, 1, 1)).map(  # noqa: DTZ001  # made aware here
    lambda at: at.replace(second=0, microsecond=0, tzinfo=UTC)
)


def test_periods_are_those_of_the_calendar_however_often_somebody_posts(proof: str) -> None:
    """In every zone, over clock changes and short months: each start once, at its instant, in the order of time."""

    @settings(
        max_examples=5_000 if proof == "long" else 250,
        derandomize=proof != "long",
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        every=st.sampled_from(["day", "week", "month", "month"]),
        tz=st.sampled_from(ZONES),
        anchor=anchors,
        pauses=st.lists(st.integers(1, 60 * 24 * 40), min_size=1, max_size=6),
    )
    def check(every: Any, tz: str, anchor: datetime, pauses: list[int]) -> None:
        ledger = Ledger("acme", AccountState("acme", anchor, anchor))
        facts = {"organization_id": "acme", "id": "r", "key": "k", "fingerprint": "f"}
        operation = CreateRecurring(**facts, amount_micros=7, every=every, tz=tz)
        assert decide(ledger, operation, anchor).error is None
        now = anchor
        for pause in pauses:
            now += pause * MINUTE
            assert book_due(ledger, now)
        expected = starts(every, anchor, ZoneInfo(tz), now)
        grants = sorted(ledger.grants.values(), key=lambda grant: grant.effective_at)
        assert [grant.effective_at for grant in grants] == expected
        assert [grant.expires_at for grant in grants[:-1]] == expected[1:]
        assert [grant.status is GrantStatus.ACTIVE for grant in grants] == [False] * (len(grants) - 1) + [True]
        account = ledger.account
        assert account is not None
        assert (account.available_micros, account.granted_micros) == (7, 7 * len(grants))
        # Told in the order of time: a grant, then its end and the next one.
        assert [row.amount_micros for row in ledger.changes.rows] == [7] + [-7, 7] * (len(grants) - 1)

    check()


def test_the_comparison_can_fail() -> None:
    """31 days are no month, and 24 hours no day: a schedule made so differs from the calendar's."""
    berlin = ZoneInfo("Europe/Berlin")
    anchor = datetime(2026, 1, 31, 9, tzinfo=UTC)
    months = starts("month", anchor, berlin, datetime(2026, 5, 1, tzinfo=UTC))
    assert months != [anchor + number * timedelta(days=31) for number in range(len(months))]
    assert [at.astimezone(berlin).day for at in months] == [31, 28, 31, 30]
    days = starts("day", datetime(2026, 3, 27, 23, tzinfo=UTC), berlin, datetime(2026, 3, 30, tzinfo=UTC))
    assert days != [days[0] + number * timedelta(days=1) for number in range(len(days))]


# -- posted 24 times a day, and killed -----------------------------------------------------------------------------


START = datetime(2026, 1, 31, 9, tzinfo=UTC)


def posts(chance: random.Random) -> Iterator[tuple[datetime, bool]]:
    """When somebody posts in 62 days, some hours twice and some never, and whether the transaction is lost."""
    for hour in range(62 * 24):
        for _ in range(chance.choice([0, 1, 1, 2])):
            yield START + timedelta(hours=hour + 1), chance.random() < 0.33


def test_a_job_without_memory_fails_under_this_schedule() -> None:
    """It grants when it finds the right hour: some days twice, some days not at all."""
    granted = Counter(at.date() for at, killed in posts(random.Random(1)) if at.hour == 0 and not killed)
    days = {at.date() for at, _ in posts(random.Random(1)) if at.date() > START.date()}
    assert max(granted.values()) > 1
    assert granted.keys() < days


def test_62_days_of_24_posts_a_day_book_each_refill_once_though_the_poster_is_killed(database_url: str) -> None:
    """A third of the transactions are lost before their COMMIT, some hours nobody posts at all; the monthly refill of
    the 31st and the daily one are there exactly once, and each day's rest is carried over exactly once.
    """
    chance = random.Random(20260131)
    engine = make_engine(normalise_url(database_url), pool_size=1, lock_timeout_seconds=5, sqlite_synchronous="NORMAL")
    clock = FakeClock(START)
    berlin = ZoneInfo("Europe/Berlin")
    with SyncCreditService(database_url, clock=clock) as service:
        monthly = service.create_recurring_grant("acme", 100)
        daily = service.create_recurring_grant("acme", 5, every="day", tz=berlin.key, rollover=Rollover(maximum=3))
        lost = 0
        for at, killed in posts(chance):
            clock.set(at)
            lost += killed
            operation: Operation = Expire(organization_id="acme")
            if chance.random() < 0.5:
                key = f"{at}-{chance.random()}"
                facts = {"organization_id": "acme", "id": key, "key": key, "fingerprint": "f"}
                operation = Consume(**facts, amount_micros=chance.randrange(1, 400_000))
            with engine.connect() as connection:
                dialect_of(connection).begin_write(connection, 5)
                post(connection, [operation], clock=clock)
                if killed:
                    connection.rollback()
                else:
                    connection.commit()
        service.sweep()
        engine.dispose()
        assert lost > 300
        grants = service.list_grants("acme")
        assert len({grant.id for grant in grants}) == len(grants)
        for one, every, zone in ((monthly, "month", ZoneInfo("UTC")), (daily, "day", berlin)):
            made = [grant for grant in grants if grant.recurring_id == one.id and grant.period_start]
            assert [grant.effective_at for grant in made] == starts(every, START, zone, clock.now())
        carried = Counter(grant.rolled_from for grant in grants if grant.rolled_from)
        assert set(carried.values()) == {1}
        assert len(carried) > 30
        assert service.verify().problems == ()
