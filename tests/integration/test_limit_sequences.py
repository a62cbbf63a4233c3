"""Limits, sequence by sequence with exact numbers: what is held, what is spent, in which window, and by whom."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from agentcredits import (
    AgentCreditsWarning,
    LimitMode,
    MissingContextError,
    Settings,
    SyncCreditService,
    Window,
    consume_credits,
    track_agent_usage,
    use_context,
)
from tests.integration.limit_book import (
    ACME,
    DAY,
    HOUR,
    INSTANT,
    LONG,
    MICRO,
    MIDNIGHT,
    MINUTE,
    NOON,
    Book,
    refused,
)

# -- held and spent -------------------------------------------------------------------------------------------------


def test_a_hold_over_midnight_is_held_in_both_days_and_spent_in_the_second(book: Book) -> None:
    """100 a day: 80 reserved at 23:59 leave 20 at 00:01; committed at 00:02 they are spent in the new day."""
    book.clock.set(MIDNIGHT - MINUTE)
    limit = book.limit(100)
    first = book.hold(80)
    book.clock.set(MIDNIGHT + MINUTE)
    error = refused(lambda: book.hold(50))
    assert (error.reason, error.retryable) == ("limit_held", True)
    assert [error.context[name] for name in ("limit", "spent", "held", "left", "required")] == [100, 0, 80, 20, 50]
    second = book.hold(20)
    book.clock.set(MIDNIGHT + 2 * MINUTE)
    first.commit()
    assert book.counter(limit) == (80, 20)
    assert second.commit().charged == 20
    assert book.counter(limit) == (100, 0)
    refused(lambda: book.spend(MICRO))
    book.clock.set(MIDNIGHT + DAY - INSTANT)
    refused(lambda: book.hold(MICRO))
    book.clock.set(MIDNIGHT + DAY)
    assert book.counter(limit) == (0, 0)
    assert book.leaves(100)


def test_a_hold_made_before_a_limit_is_never_taken_off_it(book: Book) -> None:
    """Reserve 5, limit the department to 10, release: still exactly 10 are allowed; a settlement is spent in it."""
    released, committed = book.hold(5, department_id="video"), book.hold(3, department_id="video")
    limit = book.limit(10, scope="department", scope_id="video")
    released.release()
    assert book.counter(limit) == (0, 0)
    assert book.leaves(10, department_id="video")
    committed.commit()
    assert book.counter(limit) == (3, 0)
    book.spend(7, department_id="video")
    refused(lambda: book.spend(MICRO, department_id="video"))


def test_every_end_of_a_hold_gives_its_room_back_once(book: Book) -> None:
    """Released, run out, committed in part, committed to 0, unknown and then released: what is not spent is free."""
    limit = book.limit(100)
    book.hold(10).release()
    book.hold(20, ttl=HOUR)
    part, nothing, unknown = book.hold(30), book.hold(15), book.hold(25)
    assert book.counter(limit) == (0, 90)
    part.commit(12)
    nothing.commit(0)
    book.service.mark_unknown(unknown, "fal", ttl=LONG)
    assert book.counter(limit) == (12, 45)
    book.clock.advance(HOUR)
    assert book.counter(limit) == (12, 25)
    assert book.leaves(63)
    book.service.release_reservation(unknown)
    book.service.release_reservation(unknown)
    assert book.counter(limit) == (12, 0)
    book.spend(88)
    refused(lambda: book.hold(MICRO))


def test_limits_changed_under_open_holds(book: Book) -> None:
    """Raised, lowered below what is spent and held, removed, added: each hold settles in full, counters stay exact."""
    limit = book.limit(50)
    first, second, third = book.hold(20), book.hold(20), book.hold(10)
    book.limit(60)
    book.spend(10)
    refused(lambda: book.spend(1))
    assert book.limit(5).id == limit.id
    assert refused(lambda: book.spend(1)).context["left"] == 0
    assert book.counter(limit) == (10, 50)
    assert first.commit().charged == 20
    assert book.counter(limit) == (30, 30)
    book.service.remove_limit(limit)
    second.release()
    added = book.limit(40)
    assert added.id != limit.id
    assert third.commit().charged == 10
    assert book.counter(added) == (10, 0)
    assert book.leaves(30)


def test_a_key_that_is_replayed_counts_once(book: Book) -> None:
    """Charges and holds: the second answer moves no counter, also when the limit is full."""
    limit = book.limit(10)
    hold = book.hold(6, idempotency_key="hold")
    for _ in range(3):
        book.spend(4, idempotency_key="charge")
        assert book.hold(6, idempotency_key="hold").replayed
    assert book.counter(limit) == (4, 6)
    hold.release()
    assert book.hold(6, idempotency_key="hold").id != hold.id
    assert book.counter(limit) == (4, 6)


# -- which limits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["credits", "count"])
def test_a_new_limit_counts_from_its_creation_or_what_its_window_has(book: Book, unit: str) -> None:
    """The sum is by user, of this month, less refunds of charges of this month; a count keeps refunded charges."""
    last_month = book.spend(7, user_id="ann")
    book.clock.set(datetime(2026, 2, 10, tzinfo=UTC))
    january = book.spend(10, user_id="ann")
    book.spend(4, user_id="bob")
    book.spend(3)
    book.hold(2, user_id="bob").commit(1)
    book.hold(9, user_id="bob")
    book.service.refund_credits(january, 4)
    book.service.refund_credits(last_month, 2)

    fresh = book.limit(100, "month", scope="user", unit=unit)
    book.spend(5, user_id="ann")
    book.service.refund_credits(january, 1)
    assert book.counter(fresh, "ann") == ((5, 0) if unit == "credits" else (1, 0))
    assert book.counter(fresh, "bob") == (0, 0)
    book.service.remove_limit(fresh)

    full = book.limit(100, "month", scope="user", unit=unit, include_existing=True)
    assert book.counter(full, "ann") == ((10, 0) if unit == "credits" else (2, 0))
    assert book.counter(full, "bob") == ((5, 0) if unit == "credits" else (2, 0))
    (listed,) = book.service.list_limits(ACME)
    assert sorted(line.scope_id for line in listed.usage) == ["ann", "bob"]
    book.service.refund_credits(january)
    book.service.refund_credits(last_month)
    assert book.counter(full, "ann") == ((5, 0) if unit == "credits" else (2, 0))


@pytest.mark.parametrize(
    ("arguments", "spent"),
    [
        ({"window": "hour"}, 1),
        ({"window": "day"}, 11),
        ({"window": "month"}, 111),
        ({"window": "lifetime"}, 111),
        ({"window": Window.fixed(DAY, NOON)}, 11),
        ({"window": "day", "scope": "department", "scope_id": "video"}, 10),
        ({"window": "day", "scope": "department"}, 10),
        ({"window": "month", "scope": "project", "scope_id": "film"}, 100),
        ({"window": "day", "scope": "agent_type", "scope_id": "Cutter"}, 11),
        ({"window": "day", "scope": "action", "scope_id": "Cutter.cut"}, 1),
        ({"window": "day", "scope": "action", "scope_id": "Cutter.cu"}, 0),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_existing_charges_are_counted_by_scope_and_window(book: Book, arguments: dict[str, Any], spent: int) -> None:
    """Only what lies in the limit's own scope and in its present window."""
    book.spend(100, project_id="film")
    book.clock.set(NOON + DAY)
    book.spend(10, department_id="video", agent_type="Cutter", action="trim")
    book.clock.advance(HOUR)
    book.spend(1, agent_type="Cutter", action="cut")
    limit = book.service.set_limit(ACME, amount=500, include_existing=True, **arguments)
    assert book.counter(limit, "video" if "department" in arguments.values() else None) == (spent, 0)


def test_setting_a_limit_again_changes_it_and_keeps_its_counters(book: Book) -> None:
    """Its place is (scope, scope id, unit, window); anything else is another limit."""
    limit = book.limit(10, scope="department", scope_id="video", warn_at=(0.5,))
    book.spend(4, department_id="video")
    hold = book.hold(3, department_id="video")
    again = book.limit(20, scope="department", scope_id="video", mode="soft", warn_at=(0.9, 0.8), include_existing=True)
    assert (again.id, again.created_at) == (limit.id, limit.created_at)
    assert (again.amount, again.mode, again.warn_at) == (20, LimitMode.SOFT, (Decimal("0.8"), Decimal("0.9")))
    assert book.counter(again) == (4, 3)
    others = [
        book.limit(10, scope="department", scope_id="audio"),
        book.limit(10, scope="department"),
        book.limit(10, scope="department", scope_id="video", unit="count"),
        book.limit(10, "day Europe/Berlin", scope="department", scope_id="video"),
        book.limit(10, "week", scope="department", scope_id="video"),
        book.limit(10, scope="project", scope_id="video"),
    ]
    assert len({limit.id, *(other.id for other in others)}) == 7
    hold.commit()
    assert book.counter(again) == (7, 0)


def test_a_specific_limit_stands_in_for_the_default_of_its_unit_and_window(book: Book) -> None:
    """It alone is asked; taken away, the default goes on with an exact counter; other units and windows stay asked."""
    each = book.limit(10, scope="department")
    video = book.limit(30, scope="department", scope_id="video")
    book.spend(20, department_id="video")
    hold = book.hold(5, department_id="video")
    assert book.leaves(5, department_id="video")
    assert book.leaves(10, department_id="audio")
    assert (book.counter(each, "video"), book.counter(video)) == ((20, 5), (20, 5))
    book.service.remove_limit(video)
    error = refused(lambda: book.spend(1, department_id="video"))
    assert (error.context["limit_id"], error.context["spent"], error.context["held"]) == (each.id, 20, 5)
    hold.release()
    assert book.counter(each, "video") == (20, 0)
    book.limit(25, scope="department")
    assert book.leaves(5, department_id="video")

    lower = book.limit(2, scope="department", scope_id="audio")
    assert refused(lambda: book.spend(3, department_id="audio")).context["limit_id"] == lower.id
    book.limit(2, scope="department", scope_id="audio", mode="soft")
    book.spend(40, department_id="audio")
    assert book.counter(each, "audio") == (40, 0)
    book.limit(41, "week", scope="department")
    assert book.leaves(41, department_id="audio")
    book.limit(1, scope="department", unit="count")
    book.spend(1, department_id="audio")
    assert refused(lambda: book.spend(1, department_id="audio")).context["unit"] == "count"


def test_charges_without_a_scope_are_not_under_its_limits(book: Book) -> None:
    """A limit for each user, each department, an agent type and an action says nothing about a charge without them."""
    for scope in ("user", "department", "project", "agent_type", "action"):
        book.limit(0, scope=scope)
    book.spend(1)
    error = refused(lambda: book.spend(1, user_id="ann"))
    assert (error.limit_source, error.context["scope_id"]) == ("user", "ann")
    assert refused(lambda: book.spend(1, department_id="d")).limit_source == "department"
    assert refused(lambda: book.spend(1, project_id="p")).limit_source == "project"
    assert refused(lambda: book.spend(1, agent_type="A")).limit_source == "agent_type"
    with use_context(organization_id=ACME, user_id="bob"):
        assert refused(lambda: book.spend(1)).context["scope_id"] == "bob"
    book.service.remove_limit(next(one for one in book.service.list_limits(ACME) if one.scope.value == "agent_type"))
    error = refused(lambda: book.spend(1, agent_type="A", action="b"))
    assert (error.limit_source, error.context["scope_id"]) == ("action", "A.b")
    book.spend(1, agent_type="A")


def test_another_organization_is_never_counted(book: Book) -> None:
    """The same department and user under two organizations have nothing in common."""
    book.service.grant_credits("other", 100)
    limit = book.limit(10, scope="user", scope_id="ann")
    book.service.consume_credits(organization_id="other", amount=50, user_id="ann")
    assert book.counter(limit) == (0, 0)
    book.spend(10, user_id="ann")
    refused(lambda: book.spend(1, user_id="ann"))
    book.service.consume_credits(organization_id="other", amount=50, user_id="ann")


def test_required_scopes_refuse_before_anything_happens(database_url: str, open_book: Book) -> None:
    """Charges, holds, decorated methods and answers of check_credits; with the scopes they go through."""
    settings = Settings(require_scopes=("user", "department"))
    with SyncCreditService(database_url, clock=open_book.clock, settings=settings) as service:

        @consume_credits("ContentAgent", "generate_content", service=service)
        def work() -> str:
            return "done"

        before = open_book.tables()
        for call in (
            lambda: service.consume_credits(organization_id=ACME, amount=1, user_id="ann"),
            lambda: service.reserve_credits(organization_id=ACME, amount=1, department_id="video"),
            work,
        ):
            with use_context(organization_id=ACME), pytest.raises(MissingContextError) as refusal:
                call()
            assert refusal.value.reason == "scope_required"
        decision = service.check_credits(ACME, amount=1, user_id="ann")
        assert (decision.allowed, decision.reason) == (False, "scope_required")
        assert "department" in decision.message
        assert open_book.tables() == before
        with use_context(organization_id=ACME, user_id="ann", department_id="video"):
            assert work() == "done"
        assert service.check_credits(ACME, amount=1, user_id="ann", department_id="video").allowed


# -- counts, refunds, over-runs -------------------------------------------------------------------------------------


def test_a_count_is_one_per_charge_or_hold_whatever_it_costs(book: Book) -> None:
    """Quantity does not matter; a refund does not give it back, a release and a commit of nothing do."""
    limit = book.limit(4, unit="count")
    charge = book.spend(50, quantity=7)
    kept, released = book.hold(5), book.hold(5)
    assert book.counter(limit) == (1, 2)
    book.service.refund_credits(charge)
    assert book.counter(limit) == (1, 2)
    fourth = book.hold(5)
    error = refused(lambda: book.spend(1))
    assert [error.context[name] for name in ("unit", "limit", "left", "required")] == ["count", 4, 0, 1]
    released.release()
    fourth.commit(0)
    kept.commit(9)
    assert book.counter(limit) == (2, 0)
    book.spend(1)
    book.spend(1)
    refused(lambda: book.hold(1))
    assert not book.check(1)


def test_a_refund_makes_room_only_while_the_window_of_its_charge_lasts(book: Book) -> None:
    """Of yesterday's charge: none. Of a hold made yesterday and settled today: today's."""
    limit = book.limit(100)
    yesterday = book.spend(60)
    over_night = book.hold(30)
    book.service.refund_credits(yesterday, 10)
    assert book.counter(limit) == (50, 30)
    book.clock.set(MIDNIGHT)
    today = book.spend(50)
    book.service.refund_credits(yesterday)
    assert book.counter(limit) == (50, 30)
    settled = over_night.commit()
    assert book.counter(limit) == (80, 0)
    book.service.refund_credits(today, 20)
    book.service.refund_credits(str(settled.transaction_id), 5, organization_id=ACME)
    assert book.counter(limit) == (55, 0)
    assert book.leaves(45)
    book.service.refund_credits(today)
    assert book.counter(limit) == (25, 0)


def test_an_over_run_gets_what_the_hard_limits_leave(book: Book) -> None:
    """Handles and CAP take the smaller of the limits' and the account's room; the rest stands as uncollected."""
    department = book.limit(30, scope="department", scope_id="video")
    book.limit(1, scope="department", scope_id="video", window="week", mode="soft")
    book.limit(500)
    book.spend(10, department_id="video")
    other = book.hold(5, department_id="video")
    record = book.hold(4, department_id="video").commit(40)
    assert (record.charged, record.uncollected) == (15, 25)
    assert book.counter(department) == (25, 5)
    row = book.service.list_transactions(ACME, limit=1).items[0]
    assert (row.charged, row.uncollected) == (15, 25)
    capped = book.service.commit_reservation(other, 8, overage="cap")
    assert (capped.charged, capped.uncollected) == (5, 3)
    assert book.counter(department) == (30, 0)
    none_left = book.spend(2, department_id="video", overage="cap")
    assert (none_left.charged, none_left.uncollected) == (0, 2)
    lowered = book.limit(20, scope="department", scope_id="video")
    assert lowered.id == department.id
    book.limit(1_000, scope="department", scope_id="video")
    wide = book.spend(1_000, department_id="video", overage="cap")
    assert (wide.charged, wide.uncollected) == (470, 530)
    book.limit(2_000)
    assert book.spend(1_000, department_id="audio", overage="cap").charged == 500
    assert book.service.get_balance(ACME).available == 0


def test_a_count_refuses_a_capped_charge(book: Book) -> None:
    """What can be cut is the amount, not the number of charges."""
    book.limit(0, unit="count")
    refused(lambda: book.spend(1, overage="cap"))


def test_a_hold_that_ran_out_settles_late_within_what_limits_leave(book: Book) -> None:
    """Its room went to others when it ended; counts go through all the same, for the work is done."""
    limit, count = book.limit(100), book.limit(3, unit="count")
    first, second = book.hold(80, ttl=HOUR), book.hold(15, ttl=HOUR)
    book.clock.advance(HOUR)
    assert book.counter(limit) == (0, 0)
    book.spend(70)
    book.spend(10)
    book.spend(10)
    assert book.counter(count) == (3, 0)
    record = first.commit()
    assert (record.late, record.charged, record.uncollected) == (True, 10, 70)
    assert (book.counter(limit), book.counter(count)) == ((100, 0), (4, 0))
    assert second.commit(15).charged == 0
    assert second.commit(15).replayed
    assert (book.counter(limit), book.counter(count)) == ((100, 0), (5, 0))


def test_free_and_unpriced_work_is_under_counts_and_not_under_credits(book: Book) -> None:
    """A credit limit of 0 lets them pass, a count limit counts each; a paid action is refused by both."""
    service = book.service
    service.set_cost("Clerk", "greet", 0, free=True)

    @track_agent_usage("Clerk", service=service)
    class Clerk:
        def greet(self) -> str:
            return "hello"

        def hum(self) -> str:
            return "hm"

    limit, count = book.limit(0), book.limit(3, unit="count")
    with use_context(organization_id=ACME), warnings.catch_warnings():
        warnings.simplefilter("ignore", AgentCreditsWarning)
        assert (Clerk().greet(), Clerk().hum()) == ("hello", "hm")
        service.consume_credits(organization_id=ACME, agent_type="Clerk", action="greet")
        assert (book.counter(limit), book.counter(count)) == ((0, 0), (3, 0))
        assert refused(Clerk().greet).context["limit_id"] == count.id
        assert refused(Clerk().hum).context["limit_id"] == count.id
        service.remove_limit(count)
        error = refused(lambda: book.spend(MICRO))
        assert (error.context["limit"], error.context["left"], error.reason) == (0, 0, "limit_reached")
        assert not error.retryable
        assert Clerk().hum() == "hm"
