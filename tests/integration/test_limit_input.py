"""Limits that cannot be: refused with a typed error and nothing changed, or with the meaning that is documented.

Arguments of the methods, and what an operator types into ``credit_limits`` with plain SQL.
"""

from __future__ import annotations

import math
import sqlite3
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, text

from agentcredits import (
    AccountNotFoundError,
    ConfigurationError,
    CreditsError,
    InvalidAmountError,
    InvalidInputError,
    Limit,
    LimitNotFoundError,
    MissingContextError,
    RequestContext,
    Settings,
    SyncCreditService,
    Window,
    use_context,
)
from tests.integration.limit_book import ACME, DAY, HOUR, MICRO, MIDNIGHT, NOON, Book, refused

NAIVE = datetime(2026, 1, 31)  # noqa: DTZ001  # naive on purpose
NAN = Decimal("NaN")
LONG_ID = "d" * 300

# -- arguments -----------------------------------------------------------------------------------------------------

#: By what is wrong: the error, what its sentence names, and arguments that are refused so.
REFUSED: dict[str, tuple[type[CreditsError], str, list[dict[str, Any]]]] = {
    "amounts": (
        InvalidAmountError,
        "amount",
        [
            {"amount": value}
            for value in (
                *(-1, "-0.000001", True, False, None, math.nan, math.inf, NAN, "0.0000001", 1.0000001, 10**13),
                *("1e999999", "", " 1", "ten", b"1", [1]),
            )
        ],
    ),
    "counts": (
        InvalidAmountError,
        "whole number|amount",
        [{"amount": value, "unit": "count"} for value in ("1.5", 0.25, MICRO, -1, True, NAN)],
    ),
    "thresholds": (
        InvalidInputError,
        "warn_at",
        [
            {"warn_at": value}
            for value in (
                *((0,), (1.5,), (-0.5,), (True,), (NAN,), (math.inf,), ("abc",), ("0.80001",), (None,), (0.5, 2)),
                *(
                    "0.8",
                    0.8,
                    None,
                    {0.8},
                    ("1e999999",),
                    ("1e-999999",),
                    (1 / 3,),
                    tuple(n / 50 for n in range(1, 30)),
                ),
            )
        ],
    ),
    "units": (InvalidInputError, "unit must be", [{"unit": value} for value in ("usd", "", None, 5)]),
    "modes": (InvalidInputError, "mode must be", [{"mode": value} for value in ("firm", "", None, True)]),
    "scopes": (
        InvalidInputError,
        "scope must be",
        [{"scope": value} for value in ("team", "", None, "organisation", "request")],
    ),
    "an organization with an id": (InvalidInputError, "takes no scope_id", [{"scope": "organization"}]),
    "a run without an id": (InvalidInputError, "run_id", [{"scope": "run", "scope_id": None}]),
    "ids": (
        InvalidInputError,
        "scope_id",
        [
            {"scope": scope, "scope_id": value}
            for scope in ("department", "project", "user", "run", "agent_type")
            for value in (LONG_ID, "", "a\x00b", "a\ud800b", 5, ["x"])
        ]
        + [{"scope": "action", "scope_id": value} for value in ("x" * 512, "", "a\x00b", 5)],
    ),
    "windows": (
        InvalidInputError,
        "window|characters|time zone|Europe/Berlin|day",
        [
            {"window": value}
            for value in (
                *(
                    "",
                    "year",
                    "daily",
                    None,
                    timedelta(days=1),
                    5,
                    "day Nowhere/Land",
                    "day CET Berlin",
                    "month berlin",
                ),
                *("lifetime UTC", "month " + "x" * 200, "month Europe/Berlin UTC", "MONTH", "day utc"),
            )
        ],
    ),
    "anchors": (
        InvalidInputError,
        "time zone|not a time",
        [{"window": f"anniversary {anchor}"} for anchor in ("2026-01-31T00:00:00", "soon", "2026-02-30T00:00:00Z")]
        + [{"window": "fixed 5h 2026-01-01T00:00:00"}],
    ),
    "lengths": (
        InvalidInputError,
        "duration",
        [{"window": f"fixed {length} 2026-01-01T00:00:00Z"} for length in ("0s", "3661d", "1.5h", "-1h", "5", "h")],
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_limit_that_cannot_be_is_refused(sqlite_book: Book, what: str) -> None:
    """A typed error that names the argument, before anything is written: no row, and no account either."""
    error, message, cases = REFUSED[what]
    good = {"amount": 10, "window": "day", "scope": "department", "scope_id": "video"}
    before = sqlite_book.tables()
    for arguments in cases:
        for organization in (ACME, "newcomer"):
            with pytest.raises(error, match=message):
                pytest.fail(f"{arguments}: {sqlite_book.service.set_limit(organization, **{**good, **arguments})}")
    assert sqlite_book.tables() == before
    sqlite_book.service.set_limit(ACME, **good)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Window.fixed(timedelta(0), NOON), "1 second"),
        (lambda: Window.fixed(-HOUR, NOON), "1 second"),
        (lambda: Window.fixed(timedelta(microseconds=1_500_000), NOON), "whole seconds"),
        (lambda: Window.fixed(HOUR, NAIVE), "time zone"),
        (lambda: Window.anniversary(NAIVE), "time zone"),
        (lambda: Window.anniversary(NOON, "Mars/Base"), "time zone"),
        (lambda: Window.calendar("day", "Europe/Berlln"), "Europe/Berlin"),
        (lambda: Window.calendar("year"), "unit must be"),  # type: ignore[arg-type]  # what is tested
    ],
)
def test_a_window_that_cannot_be_is_refused_when_it_is_made(make: Callable[[], Window], message: str) -> None:
    """Zero or negative length, a naive anchor, an unknown zone or unit."""
    with pytest.raises(InvalidInputError, match=message):
        make()


def test_what_looks_odd_and_has_a_meaning(book: Book) -> None:
    """Amounts and counts written in other ways, thresholds in any order and twice, ids up to their longest."""
    assert book.limit(0).amount == 0
    assert [book.limit(amount).amount for amount in ("1.5", 0.1, Decimal("0.000001"), 2)] == [
        Decimal("1.5"),
        Decimal("0.1"),
        MICRO,
        2,
    ]
    assert [book.limit(amount, unit="count").amount for amount in ("3", 3.0, Decimal("3.00"), 3)] == [3] * 4
    warned = book.limit(5, warn_at=[1, 0.5, "0.5", Decimal("0.0001")])
    assert warned.warn_at == (Decimal("0.0001"), Decimal("0.5"), Decimal(1))
    longest = {"department": "d" * 255, "agent_type": "a" * 255, "action": f"{'a' * 255}.{'b' * 255}", "run": "r" * 255}
    for scope, scope_id in longest.items():
        assert book.limit(5, scope=scope, scope_id=scope_id).scope_id == scope_id
    with use_context(RequestContext(ACME, department_id="d" * 255, run_id="r" * 255)):
        refused(lambda: book.spend(6, agent_type="a" * 255, action="x" * 255))
        for limit in book.service.list_limits(ACME, scope="organization"):
            book.service.remove_limit(limit)
        book.spend(5, agent_type="a" * 255, action="x" * 255)
        for scope, scope_id in longest.items():
            listed = [one for one in book.service.list_limits(ACME, scope=scope) if one.scope_id == scope_id]
            assert [one.usage[0].spent for one in listed] == [0 if scope == "action" else 5]
    book.limit(5, scope="action", scope_id=f"{'a' * 255}.{'x' * 255}", include_existing=True)
    assert refused(lambda: book.spend(1, agent_type="a" * 255, action="x" * 255)).limit_source == "agent_type"


def test_ids_that_are_uuids_are_one_id_however_they_are_written(book: Book) -> None:
    """A UUID object, its text, its text in capitals."""
    who = uuid.UUID("ABCDEF01-2345-6789-ABCD-EF0123456789")
    limits = [book.limit(5, scope="user", scope_id=written) for written in (who, str(who), str(who).upper())]
    assert len({limit.id for limit in limits}) == 1
    book.spend(5, user_id=str(who).upper())
    refused(lambda: book.spend(1, user_id=who))
    assert [one.usage[0].spent for one in book.service.list_limits(ACME, scope_id=who)] == [5]


@pytest.mark.parametrize(
    ("anchor", "window_end"),
    [
        (datetime(2030, 1, 31, 9, tzinfo=UTC), datetime(2026, 1, 31, 9, tzinfo=UTC)),
        (datetime(1990, 5, 31, 9, tzinfo=UTC), datetime(2026, 1, 31, 9, tzinfo=UTC)),
    ],
)
def test_an_anchor_in_the_future_or_long_ago_gives_the_same_windows(
    book: Book, anchor: datetime, window_end: datetime
) -> None:
    """It fixes the day and time of the month; its date does not matter."""
    book.limit(5, Window.anniversary(anchor))
    assert refused(lambda: book.spend(6)).context["resets_at"] == window_end
    limit = book.limit(5, Window.fixed(DAY, anchor))
    assert {line.resets_at for one in book.service.list_limits(ACME) if one.id == limit.id for line in one.usage} == {
        datetime(2026, 1, 16, 9, tzinfo=UTC)
    }


def test_a_limit_that_is_not_there_cannot_be_removed(book: Book) -> None:
    """Unknown, removed before, another organization's (its own stays), and of an organization without an account."""
    service = book.service
    limit, foreign = book.limit(10), service.set_limit("other", amount=10, window="day")
    assert service.remove_limit(limit).id == limit.id
    before = book.tables()
    for gone in (limit, limit.id, foreign.id, str(uuid.UUID(int=7))):
        with pytest.raises(LimitNotFoundError) as refusal:
            service.remove_limit(gone, organization_id=ACME)
        assert (refusal.value.http_status, refusal.value.context) == (
            404,
            {"limit_id": gone if isinstance(gone, str) else limit.id},
        )
    with pytest.raises(LimitNotFoundError):
        service.remove_limit(replace(foreign, organization_id=ACME))
    with pytest.raises(AccountNotFoundError):
        service.remove_limit(limit.id, organization_id="nobody")
    with pytest.raises(MissingContextError):
        service.remove_limit(limit.id)
    for nonsense in ("", LONG_ID, 5, None, ["x"], "a\x00b"):
        with pytest.raises(InvalidInputError):
            service.remove_limit(nonsense, organization_id=ACME)  # type: ignore[arg-type]  # what is tested
    assert book.tables() == before
    with use_context(organization_id="other"):
        assert service.remove_limit(foreign.id).organization_id == "other"


def test_reports_of_nobody_and_bad_filters_are_refused(book: Book) -> None:
    """An organization without an account, unknown scopes, ids and page sizes that cannot be."""
    service = book.service
    for call in (service.list_limits, service.list_limit_crossings, service.get_usage):
        with pytest.raises(AccountNotFoundError):
            call("nobody")
    calls: list[Callable[[], Any]] = [
        partial(service.list_limits, ACME, scope="team"),
        partial(service.list_limits, ACME, scope_id=LONG_ID),
        partial(service.list_limits, ACME, scope_id=""),
        *(partial(service.list_limit_crossings, ACME, limit=size) for size in (0, -1, 1.5, True, 10**6)),
        *(partial(service.list_denials, ACME, limit=size) for size in (0, True)),
        *(partial(service.list_denials, ACME, since=when) for when in (NAIVE, "today", date(2026, 1, 1))),
        *(partial(service.observe_report, ACME, until=when) for when in (NAIVE, 5)),
        *(partial(service.get_usage, ACME, since=when) for when in (NAIVE, "2026-01-01", 5, True)),
        *(partial(service.get_usage, ACME, bucket=bucket) for bucket in ("year", "", 5)),
        *(partial(service.get_usage, ACME, group_by=names) for names in ("run", ("user", "user"), ("",), (5,), 5)),
        *(partial(service.get_usage, ACME, user_id=value) for value in ("", LONG_ID, 5)),
        *(partial(service.list_transactions, ACME, since=when) for when in (NAIVE, "today")),
        partial(service.list_transactions, ACME, run_id=""),
    ]
    for call in calls:
        with pytest.raises(InvalidInputError):
            call()


def test_the_last_instant_there_is_can_be_asked_for(book: Book) -> None:
    """datetime.max as "to the end" is no error, in any report."""
    book.spend(3)
    end = datetime.max.replace(tzinfo=UTC)
    assert book.service.get_usage(ACME, until=end).total.charges == 1
    assert book.service.get_usage(ACME, until=date.max).total.charges == 1
    assert len(book.service.list_transactions(ACME, type="debit", until=end).items) == 1
    assert book.service.list_denials(ACME, until=end) == ()


@pytest.mark.parametrize("value", [-1, "-1", True, math.nan, "0.0000001", "x", 10**13])
def test_a_cap_that_is_no_amount_is_refused_by_the_context(value: Any) -> None:
    """Where it is given, not at the first charge."""
    with pytest.raises(InvalidAmountError, match="max_credits"):
        RequestContext(ACME, max_credits=value)


@pytest.mark.parametrize("scopes", [("run",), ("team",), ("user", "x"), "user"])
def test_scopes_that_cannot_be_required_are_refused(sqlite_url: str, scopes: Any) -> None:
    """Only project, department and user."""
    with pytest.raises((ConfigurationError, ValueError)):
        SyncCreditService(sqlite_url, settings=Settings(require_scopes=scopes))


# -- plain SQL -----------------------------------------------------------------------------------------------------


def test_an_amount_changed_with_plain_sql_works_at_once(book: Book) -> None:
    """Raised, lowered and made soft by an operator's UPDATE; the next charge knows."""
    limit = book.limit(10)
    book.spend(10)
    refused(lambda: book.spend(1))
    assert book.sql("UPDATE credit_limits SET amount = 12.5 WHERE id = :id", id=limit.id) == 1
    assert book.leaves(Decimal("2.5"))
    book.spend(2)
    book.sql("UPDATE credit_limits SET amount = 3")
    refused(lambda: book.spend(MICRO))
    book.sql("UPDATE credit_limits SET mode = 'soft'")
    book.spend(100)
    assert book.counter(limit) == (112, 0)
    book.sql("DELETE FROM credit_limit_usage")
    book.sql("DELETE FROM credit_limits")
    book.spend(1)


def test_an_operators_update_cannot_write_an_old_counter_back(book: Book, app_engine: Engine) -> None:
    """A tool that reads the whole row, thinks, and writes all of it back: what was charged meanwhile still counts."""
    limit = book.limit(100)
    with app_engine.connect() as connection:
        row = dict(connection.execute(text("SELECT * FROM credit_limits")).mappings().one())
    book.spend(30)
    hold = book.hold(20)
    names = ", ".join(f"{name} = :{name}" for name in row)
    book.sql(f"UPDATE credit_limits SET {names} WHERE id = :id", **{**row, "amount": "60"})
    assert book.counter(limit) == (30, 20)
    assert book.leaves(10)
    hold.release()


UNUSABLE = {
    "a window": ("credits", "window_text", "fortnight"),
    "a zone": ("credits", "window_text", "day Nowhere/Land"),
    "thresholds": ("credits", "warn_at", "[2]"),
    "thresholds that are no list": ("credits", "warn_at", "80%"),
    "half a charge": ("count", "amount", "1.5"),
}


def type_in(book: Book, limit: Limit, column: str, value: str | None) -> None:
    term = "CAST(:value AS NUMERIC)" if column == "amount" and book.url.startswith("postgresql") else ":value"
    changed = book.sql(f"UPDATE credit_limits SET {column} = {term} WHERE id = :id", value=value, id=limit.id)
    assert changed == 1


@pytest.mark.parametrize("what", UNUSABLE)
def test_a_limit_that_cannot_be_read_stops_charges_and_lets_settlements_through(book: Book, what: str) -> None:
    """Fails closed with a typed error; open holds commit, over-run, release, end; once repaired nothing is missing."""
    unit, column, value = UNUSABLE[what]
    limit = book.limit(100, scope="user", scope_id="ann", unit=unit)
    spend, hold = partial(book.spend, user_id="ann"), partial(book.hold, user_id="ann")
    charge = spend(5)
    committed, over_run, released = hold(10), hold(4), hold(6)
    hold(7, ttl=HOUR)
    type_in(book, limit, column, value)
    before = book.tables()
    for call in (spend, hold, partial(spend, overage="cap")):
        with pytest.raises(ConfigurationError, match=limit.id) as refusal:
            call()
        assert (refusal.value.reason, refusal.value.limit_source) == ("unusable_limit", "user")
    decision = book.check(1, user_id="ann")
    assert (decision.allowed, decision.reason) == (False, "unusable_limit")
    assert book.tables() == before
    book.spend(1, user_id="bob")
    book.spend(1)

    assert committed.commit().charged == 10
    assert over_run.commit(5).charged == 5
    assert released.release().charged == 0
    book.service.refund_credits(charge, 2)
    book.clock.advance(HOUR)
    assert book.service.sweep().expired_reservations == 1
    assert [problem.check for problem in book.service.verify().problems] == ["limit"]

    repaired = {"window_text": "day UTC", "warn_at": None, "amount": "100"}[column]
    type_in(book, limit, column, repaired)
    assert book.counter(limit) == ((18, 0) if unit == "credits" else (3, 0))
    book.service.refund_credits(charge)
    spend(1)
    assert book.counter(limit) == ((16, 0) if unit == "credits" else (4, 0))


def test_a_refund_passes_after_a_window_was_unreadable_over_its_end(book: Book) -> None:
    """What cannot be counted is not: no counter goes below 0, and the new day begins at 0."""
    limit = book.limit(100)
    hold = book.hold(10)
    book.spend(5)
    type_in(book, limit, "window_text", "fortnight")
    book.clock.set(MIDNIGHT)
    record = hold.commit()
    book.service.refund_credits(record.transaction_id, 4, organization_id=ACME)
    book.service.remove_limit(limit)
    assert book.counter(book.limit(100, include_existing=True)) == (6, 0)


def test_set_limit_repairs_what_plain_sql_broke(book: Book) -> None:
    """Amount and thresholds; an unreadable window has no place, so that limit is removed."""
    limit = book.limit(100, unit="count")
    book.spend(5)
    type_in(book, limit, "amount", "0.5")
    type_in(book, limit, "warn_at", "{}x")
    assert book.limit(7, unit="count").id == limit.id
    assert (book.counter(limit), book.spend(1).charged) == ((1, 0), 1)
    type_in(book, limit, "window_text", "someday")
    assert book.limit(7, unit="count").id != limit.id
    with pytest.raises(ConfigurationError):
        book.spend(1)
    assert book.service.remove_limit(limit.id, organization_id=ACME).window == "someday"
    book.spend(1)


def test_a_soft_limit_that_cannot_be_read_refuses_nothing(book: Book) -> None:
    """It could not have refused either."""
    limit = book.limit(1, mode="soft")
    type_in(book, limit, "window_text", "fortnight")
    book.spend(50)
    book.hold(5).commit()
    type_in(book, limit, "window_text", "day UTC")
    book.service.remove_limit(limit)


def test_amounts_that_are_no_numbers(sqlite_book: Book) -> None:
    """SQLite takes any text for an amount: unreadable ones fail closed, readable ones count to the micro."""
    book = sqlite_book
    limit = book.limit(10)
    for value in ("abc", "", "1,5", "NaN", "1e3x", "0.0000001"):
        type_in(book, limit, "amount", value)
        with pytest.raises(ConfigurationError):
            book.spend(1)
    for value, room in (("2.5", Decimal("2.5")), ("1e1", Decimal(10)), ("0.000001", MICRO), ("0", Decimal(0))):
        type_in(book, limit, "amount", value)
        assert book.leaves(room)
    type_in(book, limit, "amount", "10")


def test_a_limit_deleted_by_a_tool_without_foreign_keys_stops_nobody(sqlite_book: Book) -> None:
    """The sqlite3 shell leaves the counters behind: holds settle, a new limit starts afresh, verify names them."""
    book = sqlite_book
    limit, _ = book.limit(10), book.limit(500, "month")
    hold = book.hold(5)
    with sqlite3.connect(book.url.removeprefix("sqlite:///")) as connection:
        assert connection.execute("DELETE FROM credit_limits WHERE amount = '10'").rowcount == 1
    connection.close()
    assert {problem.check for problem in book.service.verify().problems} == {"limit"}
    hold.commit()
    again = book.limit(10)
    assert again.id != limit.id
    assert book.leaves(10)
    book.sql("DELETE FROM credit_limit_usage WHERE limit_id = :id", id=limit.id)
    assert book.service.verify().ok


def test_a_settlement_passes_where_its_counter_was_deleted(book: Book) -> None:
    """Finished work is charged; a counter never goes below 0."""
    limit = book.limit(50)
    first, second = book.hold(10), book.hold(8)
    book.sql("DELETE FROM credit_limit_usage")
    third = book.hold(5)
    assert first.commit().charged == 10
    assert second.release().charged == 0
    assert third.commit().charged == 5
    assert book.counter(limit) == (15, 0)


def test_a_window_that_was_changed_by_hand_blocks_no_refund(book: Book) -> None:
    """Its counter began at 0 there: what was charged before cannot be taken off it."""
    limit = book.limit(50)
    charge = book.spend(10)
    type_in(book, limit, "window_text", "month UTC")
    book.clock.advance(DAY)
    book.spend(4)
    assert book.service.refund_credits(charge).amount == 10
    assert book.counter(limit) == (0, 0)
    book.service.remove_limit(limit)
    assert book.counter(book.limit(50, "month", include_existing=True)) == (4, 0)
