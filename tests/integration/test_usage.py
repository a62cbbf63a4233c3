"""Usage by day and the filters of the history: what they say is what the ledger's rows add up to."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from itertools import chain, combinations
from typing import Any

import pytest

from agentcredits import (
    CreditService,
    RequestContext,
    SyncCreditService,
    Transaction,
    TransactionType,
    UsageLine,
    UsageReport,
    use_context,
)
from tests.integration.limit_book import ACME, DAY, HOUR, INSTANT, NOON, Book

GROUPS = {
    "agent_type": "agent_type",
    "action": "action",
    "department": "department_id",
    "project": "project_id",
    "user": "user_id",
}
BUCKETS: tuple[Any, ...] = (None, "day", "week", "month")
Sums = tuple[int, Decimal, Decimal, Decimal]


def keep_busy(book: Book, seed: int, steps: int) -> None:
    """Charges, holds, over-runs, refunds, free work and rows that are no usage, over about two months."""
    dice = random.Random(seed)
    service = book.service
    service.set_cost("Clerk", "greet", 0, free=True)
    charges: list[Transaction] = []
    for _ in range(steps):
        scopes = {
            "user_id": dice.choice([None, "ann", "bob"]),
            "department_id": dice.choice([None, "video", "audio"]),
            "project_id": dice.choice([None, "film"]),
        }
        kind = dice.random()
        with use_context(RequestContext(ACME, run_id=dice.choice(["r1", "r2"]), **scopes)):
            if kind < 0.5:
                agent = {"agent_type": dice.choice(["Cutter", "Clerk"]), "action": dice.choice(["cut", "mix"])}
                amount = Decimal(dice.randrange(1, 9_000_000)) / 1_000_000
                charges.append(book.spend(amount, **(agent if dice.random() < 0.8 else {})))
            elif kind < 0.7:
                hold = book.hold(2, agent_type="Cutter", action="trim")
                hold.commit(dice.choice([0, 1, 2, 5_000])) if dice.random() < 0.7 else hold.release()
                service.grant_credits(ACME, 50)
            elif kind < 0.75:
                service.consume_credits(organization_id=ACME, agent_type="Clerk", action="greet")
            elif kind < 0.8:
                service.adjust_credits(ACME, dice.choice([-1, 2]))
            elif charges:
                charge = charges.pop(dice.randrange(len(charges)))
                service.refund_credits(charge, charge.charged if dice.random() < 0.5 else "0.000001")
        book.clock.advance(timedelta(seconds=dice.choice([1, 3_600, 40_000, 86_400, 86_399])))
        if dice.random() < 0.2:
            midnight = book.clock.now().replace(hour=0, minute=0, second=0, microsecond=0) + DAY
            book.clock.set(midnight - dice.choice([timedelta(0), INSTANT]))


def history(service: SyncCreditService, **filters: Any) -> list[Transaction]:
    """Every row, newest first, in pages of seven."""
    rows: list[Transaction] = []
    cursor = None
    while True:
        page = service.list_transactions(ACME, cursor=cursor, limit=7, **filters)
        rows += page.items
        cursor = page.next_cursor
        if cursor is None:
            return rows


def first_day(day: date, bucket: str | None) -> date | None:
    if bucket is None:
        return None
    return {"day": day, "week": day - timedelta(days=day.weekday()), "month": day.replace(day=1)}[bucket]


def added_up(
    rows: Iterable[Transaction], group_by: tuple[str, ...] = (), bucket: str | None = None
) -> dict[tuple[Any, ...], Sums]:
    """The naive report: charges and refunds by the day of their own row."""
    found: dict[tuple[Any, ...], Sums] = {}
    for row in rows:
        if row.type not in (TransactionType.DEBIT, TransactionType.REFUND):
            continue
        place = (first_day(row.created_at.date(), bucket), *(getattr(row, GROUPS[name]) for name in group_by))
        count, charged, refunded, uncollected = found.get(place, (0, Decimal(0), Decimal(0), Decimal(0)))
        is_charge = row.type is TransactionType.DEBIT
        found[place] = (
            count + is_charge,
            charged + row.charged,
            refunded + (0 if is_charge else row.amount),
            uncollected + row.uncollected,
        )
    return found


def sums(line: UsageLine) -> Sums:
    return line.charges, line.charged, line.refunded, line.uncollected


def reported(report: UsageReport) -> dict[tuple[Any, ...], Sums]:
    found = {(line.bucket, *line.group.values()): sums(line) for line in report}
    assert len(found) == len(report)
    return found


# -- reports -------------------------------------------------------------------------------------------------------


def test_every_report_is_what_the_rows_add_up_to(book: Book) -> None:
    """Two months of random activity: all groups, all buckets, in order."""
    keep_busy(book, seed=1, steps=140)
    rows = history(book.service)
    assert len({row.created_at.date() for row in rows}) > 30
    assert {row.type for row in rows} == {
        TransactionType.PURCHASE,
        TransactionType.DEBIT,
        TransactionType.REFUND,
        TransactionType.ADJUST,
    }
    totals = added_up(rows)[None,]
    assert all(totals)
    for names in chain.from_iterable(combinations(GROUPS, size) for size in range(6)):
        for bucket in BUCKETS:
            report = book.service.get_usage(ACME, group_by=names, bucket=bucket)  # type: ignore[arg-type]
            assert reported(report) == added_up(rows, names, bucket), (names, bucket)
            assert sums(report.total) == totals
            assert report.total.net == totals[1] - totals[2]
            places = [(line.bucket or date.min, -line.charged_micros) for line in report]
            assert places == sorted(places)
            assert all(tuple(line.group) == names for line in report)


@pytest.mark.parametrize(
    "filters",
    [
        {"user_id": "ann"},
        {"department_id": "video", "project_id": "film"},
        {"agent_type": "Cutter"},
        {"agent_type": "Clerk", "action": "mix", "user_id": "bob"},
        {"action": "nothing"},
    ],
    ids=lambda filters: " ".join(filters.values()),
)
def test_filters_leave_what_they_name(book: Book, filters: dict[str, Any]) -> None:
    """Usage and history filter alike, refunds with what they refund."""
    keep_busy(book, seed=2, steps=60)
    rows = [row for row in history(book.service) if all(getattr(row, name) == value for name, value in filters.items())]
    assert history(book.service, **filters) == rows
    report = book.service.get_usage(ACME, group_by=("user", "action"), bucket="week", **filters)
    assert reported(report) == added_up(rows, ("user", "action"), "week")
    assert bool(rows) == (filters != {"action": "nothing"})


BERLIN = timezone(timedelta(hours=1))
DAYS = [date(2026, 1, day) for day in range(15, 20)]


@pytest.mark.parametrize(
    ("since", "until", "first", "last"),
    [
        (None, None, None, None),
        (date(2026, 1, 16), None, DAYS[1], None),
        (None, date(2026, 1, 18), None, DAYS[3]),
        (date(2026, 1, 17), date(2026, 1, 18), DAYS[2], DAYS[3]),
        (date(2026, 1, 17), date(2026, 1, 17), DAYS[2], DAYS[2]),
        (date(2026, 1, 18), date(2026, 1, 16), DAYS[3], DAYS[1]),
        (datetime(2026, 1, 16, 23, 59, tzinfo=UTC), datetime(2026, 1, 18, tzinfo=UTC), DAYS[1], DAYS[3]),
        (datetime(2026, 1, 16, tzinfo=UTC), datetime(2026, 1, 18, 0, 0, 0, 1, tzinfo=UTC), DAYS[1], DAYS[4]),
        (datetime(2026, 1, 17, 0, 30, tzinfo=BERLIN), datetime(2026, 1, 18, 1, tzinfo=BERLIN), DAYS[1], DAYS[3]),
    ],
)
def test_a_period_is_made_of_whole_utc_days(
    book: Book, since: Any, until: Any, first: date | None, last: date | None
) -> None:
    """since: from the start of its day; until: the day after the last, a time within a day includes that day."""
    for number, day in enumerate(DAYS):
        book.clock.set(datetime(day.year, day.month, day.day, tzinfo=UTC))
        book.spend(10**number)
        book.clock.set(datetime(day.year, day.month, day.day, 23, 59, 59, 999_999, tzinfo=UTC))
        book.spend(2 * 10**number) if number < 2 else None
        book.service.grant_credits(ACME, 10**6)
    report = book.service.get_usage(ACME, since=since, until=until, bucket="day")
    wanted = [day for day in DAYS if (first is None or day >= first) and (last is None or day < last)]
    assert [line.bucket for line in report] == wanted
    charged = {day: 10**number * (3 if number < 2 else 1) for number, day in enumerate(DAYS)}
    assert [line.charged for line in report] == [charged[day] for day in wanted]
    assert (report.since, report.until, report.bucket, report.group_by) == (first, last, "day", ())
    assert report.total.charged == sum(charged[day] for day in wanted)


def test_a_refund_is_booked_on_its_own_day_and_to_its_charges_names(book: Book) -> None:
    """Charged in January, refunded in February: February's line is negative, the user's net is right."""
    scopes = {"user_id": "ann", "department_id": "video", "project_id": "film", "agent_type": "A", "action": "b"}
    charge = book.spend(10, **scopes)
    settled = book.hold(5, **scopes).commit()
    book.clock.set(datetime(2026, 2, 1, tzinfo=UTC))
    book.service.refund_credits(charge, 4)
    book.service.refund_credits(str(settled.transaction_id), 5, organization_id=ACME)
    everything = tuple(GROUPS)
    lines = book.service.get_usage(ACME, group_by=everything, bucket="month").lines  # type: ignore[arg-type]
    assert [(line.bucket, sums(line), line.net) for line in lines] == [
        (date(2026, 1, 1), (2, 15, 0, 0), 15),
        (date(2026, 2, 1), (0, 0, 9, 0), -9),
    ]
    expected = {"agent_type": "A", "action": "b", "department": "video", "project": "film", "user": "ann"}
    assert [dict(line.group) for line in lines] == [expected] * 2
    assert book.service.get_usage(ACME, user_id="ann").total.net == 6
    assert [row.user_id for row in book.service.list_transactions(ACME, type="refund").items] == ["ann", "ann"]


def test_free_work_and_over_runs_are_usage_and_grants_are_not(book: Book) -> None:
    """A free charge counts as one; what could not be collected is told beside what was."""
    book.service.set_cost("Clerk", "greet", 0, free=True)
    book.service.consume_credits(organization_id=ACME, agent_type="Clerk", action="greet")
    book.spend(1_200, overage="cap")
    book.service.grant_credits(ACME, 7, expires_at=book.clock.now() + DAY)
    book.service.adjust_credits(ACME, -2)
    book.hold(1).release()
    book.hold(1).commit(0)
    book.clock.advance(2 * DAY)
    book.service.sweep()
    (line,) = book.service.get_usage(ACME)
    assert sums(line) == (2, 1_000, 0, 200)
    assert (line["charged"], line["net"], line.as_dict()["uncollected"]) == (1_000, 1_000, 200)
    assert (line.group, line.bucket) == ({}, None)


def test_nothing_used_is_an_empty_report(book: Book) -> None:
    """No lines, a total of 0; also where the period has nothing."""
    assert (book.service.get_usage(ACME).lines, book.service.get_usage(ACME).total.charged) == ((), 0)
    book.spend(1)
    assert len(book.service.get_usage(ACME, group_by="user", until=NOON.date())) == 0
    assert len(book.service.get_usage(ACME, group_by="user", since=NOON.date() + DAY)) == 0
    assert [line.group for line in book.service.get_usage(ACME, group_by="user")] == [{"user": None}]


def test_names_that_run_together_stay_apart(book: Book) -> None:
    """Long ids that differ at their end, and values that look like two others in one."""
    book.service.grant_credits("other", 5)
    book.service.consume_credits(organization_id="other", amount=5, user_id="ann")
    long_ids = [f"{'d' * 254}{end}" for end in "ab"]
    for number, (department, user) in enumerate(
        [*((name, None) for name in long_ids), ("a", "b"), ("ab", None), (None, "ab"), ("1:a", "1:b"), ("é", "日本")]
    ):
        book.spend(number + 1, department_id=department, user_id=user)
        book.spend(10, department_id=department, user_id=user)
    report = book.service.get_usage(ACME, group_by=("department", "user"))
    found = {tuple(line.group.values()): sums(line)[:2] for line in report}
    assert found == {
        (long_ids[0], None): (2, 11),
        (long_ids[1], None): (2, 12),
        ("a", "b"): (2, 13),
        ("ab", None): (2, 14),
        (None, "ab"): (2, 15),
        ("1:a", "1:b"): (2, 16),
        ("é", "日本"): (2, 17),
    }


async def test_the_coroutine_face_reports_the_same(book: Book) -> None:
    """The same lines and the same filtered pages."""
    keep_busy(book, seed=3, steps=25)
    async with CreditService(book.url, clock=book.clock) as service:
        for bucket in BUCKETS:
            assert await service.get_usage(ACME, group_by=("user",), bucket=bucket) == book.service.get_usage(
                ACME, group_by="user", bucket=bucket
            )
        assert (await service.list_transactions(ACME, run_id="r1")).items == tuple(history(book.service, run_id="r1"))


# -- the history ---------------------------------------------------------------------------------------------------


def filtered(**wanted: Any) -> Callable[[Transaction], bool]:
    return lambda row: all(getattr(row, name) == value for name, value in wanted.items())


def test_filtered_pages_leave_nothing_out_and_show_nothing_twice(book: Book) -> None:
    """Each filter alone and all of them together, half-open in time."""
    keep_busy(book, seed=4, steps=60)
    rows = history(book.service)
    assert [row.seq for row in rows] == list(range(len(rows), 0, -1))
    middle, later = rows[len(rows) // 2].created_at, rows[len(rows) // 4].created_at
    cases: list[dict[str, Any]] = [
        {"type": "debit"},
        {"type": "refund", "user_id": "ann"},
        {"run_id": "r1"},
        {"run_id": "r2", "department_id": "video", "type": "debit"},
        {"project_id": "film"},
        {"agent_type": "Cutter", "action": "mix"},
    ]
    for wanted in cases:
        expected = list(filter(filtered(**wanted), rows))
        assert expected
        assert history(book.service, **wanted) == expected
        within = [row for row in expected if middle <= row.created_at < later]
        assert history(book.service, since=middle, until=later, **wanted) == within
    assert [row for row in rows if row.created_at >= middle] == history(book.service, since=middle)
    assert [row for row in rows if row.created_at < middle] == history(book.service, until=middle)
    assert history(book.service, since=middle, until=middle) == []
    assert history(book.service, user_id="nobody") == []


def test_pages_stay_in_step_while_rows_are_added(book: Book) -> None:
    """Charges between two pages of a filtered history shift nothing."""

    def pages() -> Iterator[Transaction]:
        cursor = None
        while True:
            page = book.service.list_transactions(ACME, cursor=cursor, limit=3, user_id="ann", type="debit")
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return
            for user in ("ann", "bob"):
                book.spend(1, user_id=user)

    expected = [book.spend(number, user_id="ann") for number in range(1, 9)]
    for number in range(8):
        book.spend(1, user_id="bob", project_id=f"p{number}")
    book.clock.advance(HOUR)
    assert [row.id for row in pages()] == [row.id for row in reversed(expected)]
