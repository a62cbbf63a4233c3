"""Trees of runs: pools with a cap, carve-outs, borrowing, ends by hand and by time, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from agentcredits import (
    AccountNotFoundError,
    CreditEvent,
    InvalidAmountError,
    InvalidInputError,
    MissingContextError,
    RequestContext,
    RunEndedError,
    RunNotFoundError,
    RunRecord,
    SyncCreditService,
    add_hook,
    remove_hook,
    use_context,
)
from agentcredits.testing import FakeClock
from tests.integration.limit_book import ACME, DAY, HOUR, INSTANT, MICRO, NOON, Book, refused


@pytest.fixture
def book(database_url: str) -> Iterator[Book]:
    """1,000 credits; each test that ends well leaves a ledger that verify finds right."""
    clock = FakeClock(NOON)
    with SyncCreditService(database_url, clock=clock) as service:
        service.grant_credits(ACME, 1_000)
        yield Book(database_url, service, clock)
        assert service.verify().problems == ()


def opened(book: Book, run_id: str, max_credits: Any = None, parent: str | None = None, **how: Any) -> RunRecord:
    return book.service.open_run(ACME, run_id, max_credits=max_credits, parent_run_id=parent, **how)


def run(book: Book, run_id: str) -> RunRecord:
    return book.service.get_run(run_id, organization_id=ACME)


def ended(book: Book, run_id: str, reason: str | None = None) -> RunRecord:
    return book.service.end_run(run_id, organization_id=ACME, reason=reason)


def inside(run_id: str, **more: Any) -> use_context:
    return use_context(RequestContext(ACME, run_id=run_id, **more))


def spend(book: Book, run_id: str, amount: Any, **how: Any) -> Any:
    with inside(run_id):
        return book.spend(amount, **how)


def hold(book: Book, run_id: str, amount: Any, **how: Any) -> Any:
    with inside(run_id):
        return book.hold(amount, **how)


def numbers(book: Book, run_id: str) -> tuple[Any, ...]:
    """(spent, held, carved, remaining)."""
    found = run(book, run_id)
    return (found.spent, found.held, found.carved, found.remaining)


# -- pools and carve-outs --------------------------------------------------------------------------------------------


def test_a_run_with_a_cap_is_a_pool(book: Book) -> None:
    """Charges and holds up to the cap to the micro; a refund and a release make room again."""
    made = opened(book, "r", 10)
    assert (made.run_id, made.cap, made.remaining, made.depth, made.status) == ("r", 10, 10, 1, "open")
    charge = spend(book, "r", 6)
    kept = hold(book, "r", 4)
    error = refused(lambda: spend(book, "r", MICRO))
    assert (error.limit_source, error.reason, error.retryable) == ("run", "limit_held", True)
    assert [error.context[name] for name in ("run_id", "limit", "spent", "held", "left")] == ["r", 10, 6, 4, 0]
    kept.release()
    assert numbers(book, "r") == (6, 0, 0, 4)
    book.service.refund_credits(charge, 1)
    assert numbers(book, "r") == (5, 0, 0, 5)
    error = refused(lambda: hold(book, "r", 6))
    assert (error.reason, error.retryable) == ("limit_reached", False)
    assert error.fixes == ({"action": "raise_max_credits", "run_id": "r", "amount": 11},)


def test_a_carve_out_is_kept_from_the_run_around_until_the_run_inside_ends(book: Book) -> None:
    """20, of them 5 for a run inside: 15 are left; 2 of the 5 are used, 3 come back."""
    opened(book, "outer", 20)
    opened(book, "inner", 5, "outer")
    assert numbers(book, "outer") == (0, 0, 5, 15)
    spend(book, "outer", 15)
    error = refused(lambda: spend(book, "outer", MICRO))
    assert (error.context["run_id"], error.context["carved"], error.reason) == ("outer", 5, "limit_held")
    spend(book, "inner", 2)
    assert refused(lambda: spend(book, "inner", 4)).context["run_id"] == "inner"
    assert ended(book, "inner", "done").reason == "done"
    assert numbers(book, "outer") == (15, 0, 2, 3)
    assert run(book, "outer").total_spent == 17
    spend(book, "outer", 3)
    error = refused(lambda: spend(book, "outer", MICRO))
    assert error.reason == "limit_reached"


def test_a_carve_out_larger_than_what_is_left_is_refused_or_smaller(book: Book) -> None:
    """``partial`` says which; a refused run leaves no trace."""
    opened(book, "outer", 10)
    hold(book, "outer", 7)
    before = book.tables()
    error = refused(lambda: opened(book, "inner", 4, "outer"))
    assert (error.limit_source, error.context["run_id"], error.context["left"]) == ("run", "outer", 3)
    assert book.tables() == before
    assert opened(book, "inner", 4, "outer", partial=True).cap == 3
    assert run(book, "outer").remaining == 0
    assert opened(book, "none", 1, "outer", partial=True).cap == 0
    refused(lambda: spend(book, "none", MICRO))


def test_a_run_without_a_cap_shares_the_pool_around_it(book: Book) -> None:
    """What it uses the one around cannot; and the other way round."""
    opened(book, "outer", 10)
    opened(book, "shared", None, "outer")
    spend(book, "shared", 4)
    spend(book, "outer", 4)
    assert [numbers(book, name) for name in ("outer", "shared")] == [(4, 0, 4, 2), (4, 0, 0, 2)]
    assert refused(lambda: spend(book, "shared", 3)).context["run_id"] == "outer"
    ended(book, "shared")
    assert numbers(book, "outer") == (4, 0, 4, 2)


def test_borrowing_goes_on_from_the_free_part_of_the_pools_around(book: Book) -> None:
    """10, inside 4 that may borrow, inside 1 that may borrow: the innermost can use all that nobody else claims."""
    opened(book, "a", 10)
    opened(book, "b", 4, "a", borrow=True)
    opened(book, "c", 1, "b", borrow=True)
    opened(book, "d", 2, "a")
    assert [run(book, name).remaining for name in "abcd"] == [4, 7, 8, 2]
    spend(book, "c", 6)
    # Of c's 6 one is its own, three are b's, two are a's.
    assert [numbers(book, name) for name in "abc"] == [(0, 0, 8, 2), (0, 0, 6, 2), (6, 0, 0, 2)]
    error = refused(lambda: spend(book, "c", 3))
    assert (error.context["run_id"], error.context["required"], error.context["amount"]) == ("a", 3, 3)
    spend(book, "d", 2)
    assert refused(lambda: spend(book, "d", 1)).context["run_id"] == "d"
    ended(book, "b")
    assert run(book, "c").reason == "run b around it ended"
    assert numbers(book, "a") == (0, 0, 8, 2)


def test_a_run_that_may_not_borrow_stops_those_inside_it(book: Book) -> None:
    """The run that stands in the way is named, with what it would have to bear."""
    opened(book, "a", 10)
    opened(book, "b", 3, "a")
    opened(book, "c", 1, "b", borrow=True)
    error = refused(lambda: spend(book, "c", 4))
    assert (error.context["run_id"], error.context["required"], error.context["left"]) == ("b", 3, 2)
    spend(book, "c", 3)
    assert run(book, "a").remaining == 7


def test_an_over_run_takes_what_the_pools_leave(book: Book) -> None:
    """CAP: a hold of 2 that becomes 9 in a run of 5 gets 5; borrowing, it gets 8 of the 8 that are there."""
    opened(book, "outer", 8)
    opened(book, "inner", 5, "outer")
    record = hold(book, "inner", 2).commit(9)
    assert (record.charged, record.uncollected) == (5, 4)
    book.service.refund_credits(record.transaction_id, organization_id=ACME)
    opened(book, "inner", borrow=True)
    record = hold(book, "inner", 2).commit(9)
    assert (record.charged, record.uncollected) == (8, 1)
    assert spend(book, "inner", 3, overage="cap").uncollected == 3
    assert numbers(book, "outer") == (0, 0, 8, 0)


def test_opening_again_changes_cap_and_borrowing(book: Book) -> None:
    """A larger carve-out needs room around, a smaller one gives back; what is not said stays."""
    opened(book, "outer", 10)
    opened(book, "inner", 4, "outer", borrow=True)
    assert opened(book, "inner").cap == 4
    assert opened(book, "inner", 9).cap == 9
    assert run(book, "outer").remaining == 1
    assert refused(lambda: opened(book, "inner", 11)).context["run_id"] == "outer"
    assert opened(book, "inner", 11, partial=True).cap == 10
    spend(book, "inner", 3)
    assert opened(book, "inner", 1).borrows
    assert numbers(book, "outer") == (0, 0, 3, 7)
    assert not opened(book, "inner", borrow=False).borrows
    refused(lambda: spend(book, "inner", MICRO))
    spend(book, "outer", 7)
    assert opened(book, "outer", 2).remaining == 0


def test_the_cap_of_a_context_bounds_a_run_inside_another_and_changes_an_outermost_one(book: Book) -> None:
    """As before there were trees; the carve-out itself is changed by open_run alone."""
    opened(book, "outer", 10)
    opened(book, "inner", 6, "outer")
    with inside("inner", max_credits=2):
        error = refused(lambda: book.spend(3))
        assert (error.context["run_id"], error.context["limit"]) == ("inner", 2)
        book.spend(2)
    spend(book, "inner", 4)
    with inside("outer", max_credits=12):
        book.spend(6)
    assert run(book, "outer").cap == 12


def test_a_run_that_had_no_cap_counts_from_when_it_gets_one(book: Book) -> None:
    """Charges, refunds and holds from before are not in it."""
    before = spend(book, "r", 5)
    kept = hold(book, "r", 5)
    opened(book, "r", 3)
    spend(book, "r", 2)
    hold(book, "r", 1)
    book.service.refund_credits(before)
    kept.release()
    assert numbers(book, "r") == (2, 1, 0, 0)


def test_caps_that_were_limits_go_on_to_work(book: Book) -> None:
    """A limit of the run's own: refuses, and is changed by the next context; no pool beside it."""
    limit = book.limit(10, "lifetime", scope="run", scope_id="old")
    with inside("old", max_credits=10):
        book.spend(10)
        assert refused(lambda: book.spend(1)).context["limit_id"] == limit.id
    with inside("old", max_credits=12):
        book.spend(2)
        refused(lambda: book.spend(1))
    assert book.service.list_runs(ACME) == ()
    assert book.counter(limit, "old") == (12, 0)


def test_a_cap_is_warned_of_with_what_was_spent_inside(book: Book) -> None:
    """Half and four fifths, also when runs inside spent it."""
    told: list[CreditEvent] = []
    hook = add_hook(told.append)
    opened(book, "outer", 10)
    opened(book, "inner", 8, "outer")
    spend(book, "outer", 1)
    spend(book, "inner", 4)
    spend(book, "inner", 3)
    remove_hook(hook)
    crossings = [
        (one.crossing.scope_id, str(one.crossing.threshold), one.crossing.spent) for one in told if one.crossing
    ]
    assert crossings == [("inner", "0.5", 4), ("outer", "0.5", 5), ("inner", "0.8", 7), ("outer", "0.8", 8)]


# -- ends ------------------------------------------------------------------------------------------------------------


def test_an_ended_run_takes_nothing_new_and_settles_what_is_open(book: Book) -> None:
    """A hold of it is charged, what it leaves goes to the run around; a charge, a hold and a run inside are refused."""
    opened(book, "outer", 10)
    opened(book, "inner", 8, "outer")
    kept = hold(book, "inner", 6)
    ended(book, "outer", "the night is over")
    for call in (
        lambda: spend(book, "inner", 1),
        lambda: hold(book, "inner", 0.5),
        lambda: opened(book, "inner", 3),
        lambda: opened(book, "more", 1, "outer"),
        lambda: spend(book, "inner", 1, overage="cap"),
    ):
        with pytest.raises(RunEndedError) as caught:
            call()
        assert (caught.value.limit_source, caught.value.reason) == ("run", "run_ended")
    assert numbers(book, "outer") == (0, 0, 6, 0)
    assert kept.commit(4).charged == 4
    assert [(one.spent, one.held, one.carved) for one in (run(book, name) for name in ("outer", "inner"))] == [
        (0, 0, 4),
        (4, 0, 0),
    ]
    again = ended(book, "inner")
    assert again.reason == "run outer around it ended"


def test_an_over_run_after_the_end_stays_in_what_the_runs_leave(book: Book) -> None:
    """The carve-out went back: more than the hold comes from the run around, never above either cap."""
    opened(book, "outer", 10)
    opened(book, "inner", 5, "outer")
    kept = hold(book, "inner", 2)
    late = hold(book, "inner", 1, ttl=HOUR)
    ended(book, "inner")
    spend(book, "outer", 6)
    assert kept.commit(9).charged == 3
    book.clock.advance(2 * HOUR)
    record = late.commit(3)
    assert (record.late, record.charged, record.uncollected) == (True, 1, 2)
    assert numbers(book, "outer") == (6, 0, 4, 0)


def test_a_run_ends_when_nothing_happened_in_it_for_its_time_to_live(book: Book) -> None:
    """To the microsecond, whoever looks; every charge in it or inside it begins the time anew; a hold stops it."""
    opened(book, "outer", 10, ttl=DAY)
    made = opened(book, "inner", 4, "outer", ttl=HOUR)
    assert (made.expires_at, run(book, "outer").expires_at) == (NOON + HOUR, None)
    book.clock.advance(HOUR - INSTANT)
    spend(book, "inner", 1)
    assert run(book, "inner").expires_at == NOON + 2 * HOUR - INSTANT
    kept = hold(book, "inner", 1, ttl=5 * HOUR)
    book.clock.advance(4 * HOUR)
    assert run(book, "inner").status == "open"
    kept.commit()
    book.clock.advance(HOUR - INSTANT)
    assert run(book, "outer").remaining == 6
    book.clock.advance(INSTANT)
    stored = book.tables()["credit_runs"]
    assert run(book, "outer").remaining == 8
    over = run(book, "inner")
    assert (over.status, over.ended_at, over.reason) == ("ended", book.clock.now(), "time-to-live ended")
    assert [one.run_id for one in book.service.list_runs(ACME, status="open")] == ["outer"]
    assert [one.run_id for one in book.service.list_runs(ACME, status="ended")] == ["inner"]
    assert book.tables()["credit_runs"] == stored
    with pytest.raises(RunEndedError):
        spend(book, "inner", 1)
    spend(book, "outer", 8)
    assert numbers(book, "outer") == (8, 0, 2, 0)


def test_the_end_of_a_run_begins_the_time_of_the_one_around_it(book: Book) -> None:
    """Holds that run out, runs inside that end by it, and the run around: each at its own moment, seen days later."""
    opened(book, "a", 10, ttl=HOUR)
    opened(book, "b", 5, "a", ttl=2 * HOUR)
    hold(book, "b", 3, ttl=HOUR)
    book.clock.advance(10 * DAY)
    assert [run(book, name).ended_at for name in "ab"] == [NOON + 4 * HOUR, NOON + 3 * HOUR]
    with pytest.raises(RunEndedError):
        spend(book, "a", 1)
    assert [run(book, name).ended_at for name in "ab"] == [NOON + 4 * HOUR, NOON + 3 * HOUR]
    assert [numbers(book, name)[:3] for name in "ab"] == [(0, 0, 0), (0, 0, 0)]


def test_a_crashed_run_locks_nothing_but_the_pool_around_it(book: Book) -> None:
    """Another run and charges without one go on; after 24 hours its carve-out is back."""
    opened(book, "outer", 10)
    opened(book, "crashed", 10, "outer")
    refused(lambda: spend(book, "outer", 1))
    spend(book, "other", 50)
    book.spend(50)
    book.clock.advance(DAY)
    spend(book, "outer", 10)


# -- purge, reads, bad input -----------------------------------------------------------------------------------------


def test_purge_removes_trees_that_ended_long_ago(book: Book) -> None:
    """Also such as nobody ended; not what still holds something; a removed id starts at nothing."""
    opened(book, "ended", 10)
    opened(book, "inner", 5, "ended")
    spend(book, "inner", 2)
    ended(book, "ended")
    opened(book, "idle", 10, ttl=HOUR)
    opened(book, "left", 5, "idle", ttl=HOUR)
    opened(book, "outlived", 10, ttl=HOUR)
    opened(book, "outliving", 5, "outlived", ttl=9 * DAY)
    opened(book, "holding", 10)
    hold(book, "holding", 1)
    ended(book, "holding")
    opened(book, "open", 10, ttl=20 * DAY)
    book.clock.advance(10 * DAY)
    assert book.service.purge_runs(ACME, older_than=10 * DAY) == 0
    assert book.service.purge_runs(older_than=10 * DAY - 3 * HOUR) == 4
    assert {one.run_id for one in book.service.list_runs(ACME)} == {"outlived", "outliving", "holding", "open"}
    opened(book, "ended", 3)
    spend(book, "ended", 3)
    assert run(book, "ended").spent == 3


def test_runs_are_listed_newest_first(book: Book) -> None:
    """By status and by the run around them; a page of them."""
    for number in range(4):
        opened(book, f"r{number}", 10 if number == 0 else 1, None if number == 0 else "r0")
        book.clock.advance(HOUR)
    ended(book, "r2")
    assert [one.run_id for one in book.service.list_runs(ACME)] == ["r3", "r2", "r1", "r0"]
    assert [one.run_id for one in book.service.list_runs(ACME, parent_run_id="r0", status="open")] == ["r3", "r1"]
    assert [one.run_id for one in book.service.list_runs(ACME, limit=1)] == ["r3"]
    assert run(book, "r1")["cap"] == Decimal(1)
    with pytest.raises(AccountNotFoundError):
        book.service.list_runs("nobody")


def test_runs_inside_each_other_are_at_most_32(book: Book) -> None:
    """And none is inside itself, or changes its place."""
    opened(book, "1", 10)
    for depth in range(2, 33):
        assert opened(book, str(depth), None, str(depth - 1)).depth == depth
    with pytest.raises(InvalidInputError, match="at most 32"):
        opened(book, "33", None, "32")
    spend(book, "32", 10)
    assert refused(lambda: spend(book, "32", MICRO)).context["run_id"] == "1"
    for run_id, parent in (("1", "32"), ("3", "1"), ("5", "5")):
        with pytest.raises(InvalidInputError):
            opened(book, run_id, None, parent)
    assert ended(book, "1").status == "ended"
    assert {one.status for one in book.service.list_runs(ACME)} == {"ended"}


def test_bad_input_changes_nothing(book: Book) -> None:
    """A typed error each."""
    opened(book, "r", 10)
    before = book.tables()
    wrong: list[tuple[type[Exception], Any]] = [
        (InvalidAmountError, lambda: opened(book, "x", -1)),
        (InvalidAmountError, lambda: opened(book, "x", "nan")),
        (InvalidInputError, lambda: opened(book, "", 1)),
        (InvalidInputError, lambda: opened(book, "x", 1, borrow=True)),
        (InvalidInputError, lambda: opened(book, "r", borrow=True)),
        (InvalidInputError, lambda: opened(book, "x", 1, "r", borrow="yes")),
        (InvalidInputError, lambda: opened(book, "x", 1, ttl=timedelta(milliseconds=999))),
        (InvalidInputError, lambda: opened(book, "x", 1, ttl=timedelta(days=367))),
        (InvalidInputError, lambda: book.service.list_runs(ACME, status="over")),  # type: ignore[arg-type]
        (InvalidInputError, lambda: book.service.purge_runs(ACME, older_than=timedelta(days=-1))),
        (RunNotFoundError, lambda: opened(book, "x", 1, "nothing")),
        (RunNotFoundError, lambda: run(book, "nothing")),
        (RunNotFoundError, lambda: ended(book, "nothing")),
        (AccountNotFoundError, lambda: book.service.open_run("nobody", "x")),
        (MissingContextError, lambda: book.service.get_run("r")),
    ]
    for kind, call in wrong:
        with pytest.raises(kind):
            call()
    assert book.tables() == before


def test_verify_names_every_counter_that_was_changed(book: Book) -> None:
    """And runs that stand where they cannot."""
    opened(book, "a", 10)
    opened(book, "b", 5, "a")
    spend(book, "b", 2)
    hold(book, "b", 1)
    for column, run_id, what in (
        ("spent_micros", "b", "spent of run b is 3, its rows say 2"),
        ("held_micros", "b", "held of run b is 2, its rows say 1"),
        ("carved_micros", "a", "carved for the runs inside of run a is 6, its rows say 5"),
        ("inner_spent_micros", "a", "spent in the runs inside of run a is 3, its rows say 2"),
    ):
        book.sql(f"UPDATE credit_runs SET {column} = {column} + 1000000 WHERE run_id = '{run_id}'")
        assert what in [problem.message for problem in book.service.verify(ACME).problems]
        book.sql(f"UPDATE credit_runs SET {column} = {column} - 1000000 WHERE run_id = '{run_id}'")
        assert book.service.verify(ACME).ok
    book.sql("UPDATE credit_runs SET open_children = 2 WHERE run_id = 'a'")
    assert "the number of open runs inside of run a is 2, its rows say 1" in [
        one.message for one in book.service.verify(ACME).problems
    ]
    book.sql("UPDATE credit_runs SET open_children = 1 WHERE run_id = 'a'")
    book.sql("UPDATE credit_runs SET depth = 1, parent_run_id = NULL WHERE run_id = 'b'")
    assert not book.service.verify(ACME).ok
    book.sql("UPDATE credit_runs SET depth = 3, parent_run_id = 'a' WHERE run_id = 'b'")
    assert "run b cannot stand inside run a as it says" in [one.message for one in book.service.verify(ACME).problems]
    book.sql("UPDATE credit_runs SET depth = 2 WHERE run_id = 'b'")


def test_an_account_without_runs_pays_nothing_for_them(book: Book) -> None:
    """Not one statement that names the table but the one that asks whether there are any."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        spend(book, "tagged", 1)
        hold(book, "tagged", 1).commit()
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert [one for one in seen if "credit_runs" in one and "EXISTS" not in one] == []
    assert len([one for one in seen if "credit_runs" in one]) in (0, 3)
