"""The counters of limits: what moves them, when they roll, what they warn of, what becomes of them with their limit."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from agentcredits.amounts import MAX_TOTAL_MICROS
from agentcredits.errors import CreditsError, LimitNotFoundError
from agentcredits.model import LimitMode, LimitScope, LimitUnit, Pricing, Scopes
from agentcredits.rules import limits
from agentcredits.rules import operations as ops
from agentcredits.rules.state import Changes, Ledger, LimitState, UsageState
from agentcredits.testing import START as NOW
from tests.unit.test_rules_limits import COUNT, CREDITS, HARD, LIFETIME, SOFT, USER, LimitBook
from tests.unit.test_rules_posting import ACME, DAY

TICK = timedelta(seconds=1)


@pytest.fixture
def book() -> LimitBook:
    return LimitBook()


# -- what moves a counter ------------------------------------------------------------------------------------------


def test_a_hold_counts_until_it_ends_in_the_limits_that_counted_it(book: LimitBook) -> None:
    """Settled or given back; a limit that came later is not lowered, one that is gone is left out."""
    gone = book.limit(100, window_text="hour UTC")
    first, calls = book.limit(100), book.limit(100, unit=COUNT)
    holds = [book.reserve(5, activity=USER), book.reserve(7, activity=USER)]
    assert set(holds[0].limits) == {first.id, calls.id, gone.id}
    assert [book.usage(one) for one in (first, calls, gone)] == [(0, 12), (0, 2), (0, 12)]
    later = book.limit(100, window_text="month UTC")
    book.remove(gone)
    book.release(holds[0])
    assert [book.usage(one) for one in (first, calls, later)] == [(0, 7), (0, 1), None]
    book.commit(holds[1], 4)
    assert [book.usage(one) for one in (first, calls, later)] == [(4, 0), (1, 0), (4, 0)]


def test_a_settlement_goes_through_whatever_became_of_the_counters(book: LimitBook) -> None:
    """Plain SQL may have removed one or lowered it: it is never brought below 0."""
    removed, lowered, calls = book.limit(100), book.limit(100, window_text="hour UTC"), book.limit(9, unit=COUNT)
    hold = book.reserve(5, activity=USER)
    book.write()
    del book.ledger.usage[removed.id, "u1"]
    book.ledger.usage[lowered.id, "u1"].held = 3
    book.release(hold)
    assert [book.usage(one) for one in (removed, lowered, calls)] == [None, (0, 0), (0, 0)]
    assert book.ledger.changes.usage == {(lowered.id, "u1"), (calls.id, "u1")}


def test_a_hold_of_nothing_is_a_call_and_no_credits(book: LimitBook) -> None:
    """A counter that is not moved is not kept."""
    money, calls = book.limit(10), book.limit(10, unit=COUNT)
    hold = book.reserve(0, activity=USER)
    assert set(hold.limits) == {money.id, calls.id}
    assert [book.usage(one) for one in (money, calls)] == [None, (0, 1)]


def test_what_mode_observe_let_pass_counts_nowhere(book: LimitBook) -> None:
    """Neither as a hold nor as a charge."""
    limit, calls = book.limit(10), book.limit(10, unit=COUNT)
    book.consume(11, activity=USER, observe=True)
    hold = book.reserve(11, activity=USER, observe=True)
    book.commit(hold)
    assert hold.limits == ()
    assert [book.usage(one) for one in (limit, calls)] == [None, None]


def test_each_counter_is_written_once(book: LimitBook) -> None:
    """Inserted in the batch that made it, updated in later ones, and not in one that does not move it."""
    limit = book.limit(100)
    place = (limit.id, "u1")
    book.consume(1, activity=USER)
    book.consume(1, activity=USER)
    assert (book.ledger.changes.new_usage, book.ledger.changes.usage) == ({place}, set())
    book.write()
    book.consume(1, activity=USER)
    assert (book.ledger.changes.new_usage, book.ledger.changes.usage) == (set(), {place})
    book.write()
    book.consume(1)
    assert (book.ledger.changes.new_usage, book.ledger.changes.usage) == (set(), set())


# -- windows -------------------------------------------------------------------------------------------------------


def test_a_new_window_starts_with_nothing_spent_and_all_that_is_held(book: LimitBook) -> None:
    """At its first instant, not before; warnings start afresh with it."""
    limit = book.limit(10, warn_at=(5_000,))
    book.consume(6, activity=USER)
    book.reserve(2, activity=USER, ttl=3 * DAY)
    assert book.crossed == [(5_000, 6)]
    book.now += DAY - TICK
    assert book.refusal(3)
    book.now += TICK
    book.consume(5, activity=USER)
    usage = book.ledger.usage[limit.id, "u1"]
    assert (usage.spent, usage.held) == (5, 2)
    assert (usage.window_start, usage.window_end) == (NOW + DAY, NOW + 2 * DAY)
    assert book.crossed == [(5_000, 6), (5_000, 5)]


def test_a_lifetime_has_no_window(book: LimitBook) -> None:
    """Nothing rolls."""
    limit = book.limit(10, window_text=LIFETIME)
    book.consume(6, activity=USER)
    book.now += 4_000 * DAY
    assert book.refusal(5)
    usage = book.ledger.usage[limit.id, "u1"]
    assert (usage.window_start, usage.window_end) == (None, None)


@pytest.mark.parametrize(
    ("start", "end", "rolls"),
    [
        (NOW - 9 * TICK, NOW + TICK, False),
        (NOW, NOW + TICK, False),
        (NOW - 9 * TICK, NOW, True),
        (NOW + TICK, NOW + 9 * TICK, True),
        (None, None, True),
    ],
    ids=["inside", "its first instant", "over", "not begun", "none yet"],
)
def test_a_window_that_has_begun_stands_until_it_ends(
    start: datetime | None, end: datetime | None, rolls: bool
) -> None:
    """A machine with another edition of the time zones does not start it afresh."""
    limit = LimitState("l", LimitScope.USER, "u", CREDITS, "day UTC", 10, HARD, NOW)
    usage = UsageState("l", "u", 3, 4, start, end, warned=5_000, warned_amount=10)
    limits.roll(limit, usage, NOW)
    expected = (0, 0, 0, NOW, NOW + DAY) if rolls else (4, 5_000, 10, start, end)
    assert (usage.spent, usage.warned, usage.warned_amount, usage.window_start, usage.window_end) == expected
    assert usage.held == 3


def test_a_window_that_only_ends_otherwise_keeps_what_is_spent() -> None:
    """The same start: the same window."""
    limit = LimitState("l", LimitScope.USER, "u", CREDITS, "day UTC", 10, HARD, NOW)
    usage = UsageState("l", "u", 3, 4, NOW, NOW + TICK)
    limits.roll(limit, usage, NOW + TICK)
    assert (usage.spent, usage.window_end) == (4, NOW + DAY)


@pytest.mark.parametrize("ahead", [-TICK, timedelta(0), DAY - TICK, DAY])
def test_the_window_of_a_moment_is_the_one_that_holds_it(ahead: timedelta) -> None:
    """However often, and in whatever order, it is asked for."""
    limit = LimitState("l", LimitScope.USER, "u", CREDITS, "day UTC", 10, HARD, NOW)
    assert limits.window_of(limit, NOW) == (NOW, NOW + DAY)
    start = NOW + DAY * (ahead // DAY)
    assert limits.window_of(limit, NOW + ahead) == (start, start + DAY)


def test_a_counter_whose_window_cannot_be_read_stays_in_the_one_that_it_has(book: LimitBook) -> None:
    """It counts on until that ends, and never warns; nothing that settles or is given back is refused for it."""
    limit = book.limit(10, mode=SOFT, warn_at=(1_000,))
    charge = book.consume(1, activity=USER)
    limit.unusable, limit.window_text, limit.bounds = "no window", "never", None
    book.write()
    book.consume(4, activity=USER)
    book.refund(charge)
    assert (book.usage(limit), book.crossed) == ((4, 0), [])
    book.now += DAY
    late = book.consume(5, activity=USER)
    book.refund(late, 1)
    assert (book.usage(limit), book.crossed) == ((4, 0), [])


# -- refunds -------------------------------------------------------------------------------------------------------


def test_a_refund_makes_room_in_the_window_of_its_charge(book: LimitBook) -> None:
    """In a later one it does not; what was called stays called."""
    calls = book.limit(100, unit=COUNT, window_text=LIFETIME)
    day, ever = book.limit(100), book.limit(100, window_text=LIFETIME)
    charge = book.consume(10, activity=USER)
    book.refund(charge, 3)
    assert [book.usage(one) for one in (day, ever, calls)] == [(7, 0), (7, 0), (1, 0)]
    book.now += DAY
    book.consume(5, activity=USER)
    book.refund(charge, 2)
    assert [book.usage(one) for one in (day, ever, calls)] == [(5, 0), (10, 0), (2, 0)]


def test_a_charge_of_the_windows_first_instant_is_in_it(book: LimitBook) -> None:
    """Half-open, as everywhere."""
    limit = book.limit(100)
    book.now = NOW + DAY
    charge = book.consume(10, activity=USER)
    book.refund(charge, 3)
    assert book.usage(limit) == (7, 0)


def test_a_refund_of_what_a_limit_never_counted_makes_no_room_in_it(book: LimitBook) -> None:
    """Charged before the limit was there, or in a counter that plain SQL removed; never below 0."""
    before = book.consume(10, activity=USER)
    limit = book.limit(100)
    last = book.account.last_seq
    counted = book.consume(6, activity=USER)
    assert (limit.counts_from_seq, before.seq, counted.seq) == (last, last, last + 1)
    book.refund(before)
    assert book.usage(limit) == (6, 0)
    book.ledger.usage[limit.id, "u1"].spent = 1
    book.refund(counted, 2)
    assert book.usage(limit) == (0, 0)
    del book.ledger.usage[limit.id, "u1"]
    book.refund(counted, 2)
    assert book.usage(limit) is None


# -- thresholds ----------------------------------------------------------------------------------------------------


def test_a_threshold_is_recorded_with_all_that_a_reader_needs(book: LimitBook) -> None:
    """Once, by the charge that reached it."""
    limit = book.limit(10, scope_id="", warn_at=(5_000, 9_000))
    book.consume(4, activity=USER)
    assert book.crossed == []
    row = book.consume(1, activity=USER)
    (crossed,) = book.ledger.changes.crossings
    told = {name: getattr(crossed, name) for name in crossed.__slots__}
    assert told.pop("id")
    assert told == {
        "limit_id": limit.id,
        "scope": LimitScope.USER,
        "scope_id": "u1",
        "unit": CREDITS,
        "window_text": "day UTC",
        "window_start": NOW,
        "threshold": 5_000,
        "limit_amount": 10,
        "spent": 5,
        "at": NOW,
        "transaction_id": row.id,
    }
    book.consume(1, activity=USER)
    book.consume(4, activity=USER)
    assert book.crossed == [(5_000, 5), (9_000, 10)]


def test_an_operation_tells_what_it_brought_about_and_not_what_others_of_its_batch_did(book: LimitBook) -> None:
    """Thresholds and would-be refusals, each once."""
    book.limit(10, warn_at=(3_000, 6_000))
    amounts = [(3, False), (90, True), (90, True), (1, False), (3, False), (90, True)]
    told = []
    for amount, observe in amounts:
        outcome = book.decide(book.keyed("consume", amount_micros=amount, activity=USER, observe=observe))
        told.append(([one.threshold for one in outcome.crossings], [one.required_micros for one in outcome.denials]))
    assert told == [([3_000], []), ([], [90]), ([], [90]), ([], []), ([6_000], []), ([], [90])]


@pytest.mark.parametrize(
    ("mode", "lines", "charges", "crossed"),
    [
        (HARD, (), (10,), []),
        (HARD, (5_000, 9_000), (10,), [(5_000, 10), (9_000, 10)]),
        (HARD, (10_000,), (9, 1), [(10_000, 10)]),
        (SOFT, (), (10, 1, 1), [(10_000, 11)]),
        (SOFT, (10_000,), (10, 1), [(10_000, 10), (10_000, 11)]),
        (SOFT, (5_000,), (0, 4), []),
    ],
    ids=["no lines", "both at once", "the whole", "beyond a soft one", "the whole, then beyond", "not reached"],
)
def test_which_thresholds_a_charge_reaches(
    book: LimitBook, mode: LimitMode, lines: tuple[int, ...], charges: tuple[int, ...], crossed: list[tuple[int, int]]
) -> None:
    """A soft limit has one more: going beyond it."""
    book.limit(10, mode=mode, warn_at=lines)
    for amount in charges:
        book.consume(amount, activity=USER)
    assert book.crossed == crossed


def test_a_limit_of_nothing_warns_with_the_first_charge_only(book: LimitBook) -> None:
    """Not for work that costs nothing."""
    book.limit(0, mode=SOFT, warn_at=(5_000,))
    free = ops.Activity(scopes=USER.scopes, pricing=Pricing.FREE)
    book.consume(0, activity=free)
    assert book.crossed == []
    book.consume(1, activity=USER)
    assert book.crossed == [(5_000, 1), (10_000, 1)]


def test_the_least_beyond_a_soft_limit_is_beyond_it(book: LimitBook) -> None:
    """However large it is."""
    book.limit(200_000, mode=SOFT)
    book.consume(200_000, activity=USER)
    assert book.crossed == []
    book.consume(1, activity=USER)
    assert book.crossed == [(10_000, 200_001)]


def test_a_threshold_is_told_once_in_a_window_whatever_is_refunded(book: LimitBook) -> None:
    """A raise tells it again, where the refund had brought the counter below it."""
    limit = book.limit(10, warn_at=(5_000,))
    charge = book.consume(6, activity=USER)
    book.refund(charge, 4)
    book.consume(4, activity=USER)
    assert book.crossed == [(5_000, 6)]
    limit.amount = 12
    book.consume(1, activity=USER)
    assert book.crossed == [(5_000, 6)]
    book.refund(charge)
    limit.amount = 14
    book.consume(2, activity=USER)
    assert book.crossed == [(5_000, 6), (5_000, 7)]


def test_a_raise_lets_thresholds_be_crossed_again_that_it_put_back_above_the_counter(book: LimitBook) -> None:
    """Those that are still reached are not told twice; a lower limit tells nothing twice either."""
    book.limit(10, warn_at=(5_000, 9_000))
    book.consume(9, activity=USER)
    book.write()
    limit = book.limit(16, warn_at=(5_000, 9_000))
    book.consume(1, activity=USER)
    assert book.crossed == []
    book.consume(5, activity=USER)
    assert book.crossed == [(9_000, 15)]
    limit.amount = 15
    book.consume(0, activity=USER)
    assert book.crossed == [(9_000, 15)]
    limit.amount = 100
    book.consume(45, activity=USER)
    assert book.crossed == [(9_000, 15), (5_000, 60)]


# -- set and removed -----------------------------------------------------------------------------------------------


def test_setting_a_limit_again_changes_the_one_in_its_place(book: LimitBook) -> None:
    """Its amount, mode and thresholds; its id and counters stay. Other scopes, units and windows are other places."""
    limit = book.limit(10, warn_at=(5_000,))
    assert book.ledger.changes.account
    assert book.ledger.changes.new_limits == {limit.id}
    other = [book.limit(1, scope_id="u2"), book.limit(1, unit=COUNT), book.limit(1, window_text="month UTC")]
    assert len({limit.id, *(one.id for one in other)}) == 4
    book.limit(11)
    assert book.ledger.changes.limits == set()
    book.consume(3, activity=ops.Activity(scopes=Scopes(user_id="u3")))
    book.write()
    book.now += DAY
    again = book.limit(20, mode=SOFT, warn_at=(9_000,))
    assert again is limit
    assert (limit.amount, limit.mode, limit.warn_at, limit.created_at) == (20, SOFT, (9_000,), NOW)
    assert book.ledger.changes == Changes(account=True, limits={limit.id})


def test_a_new_limit_says_from_when_it_counts(book: LimitBook) -> None:
    """After the newest row, or (``include_existing``) from the first."""
    book.consume(5, activity=USER)
    fresh = book.limit(10)
    assert (fresh.counts_from_seq, fresh.created_at, fresh.scope_id) == (2, NOW, "u1")
    assert book.limit(10, window_text="month UTC", include_existing=True).counts_from_seq == 0


def test_what_was_charged_in_the_window_counts_where_it_is_asked_for(book: LimitBook) -> None:
    """What the database knows, and what this batch has added to it and taken off again."""
    place = ("user", "u1", "credits", "day UTC")
    old = book.consume(50, activity=USER)
    book.now += DAY
    charge = book.consume(40, activity=USER)
    book.write()
    book.ledger.existing[place] = {"u1": 40}
    book.consume(5, activity=USER)
    book.consume(7, activity=ops.Activity(scopes=Scopes(user_id="u2")))
    book.grant(3)
    book.consume(2_000_000, activity=USER, observe=True)
    book.refund(charge, 10)
    book.refund(old, 1)
    limit = book.limit(100, include_existing=True)
    assert book.usage(limit) == (35, 0)
    assert book.usage(limit, "u2") is None
    assert book.ledger.changes.new_usage == {(limit.id, "u1")}


@pytest.mark.parametrize(("unit", "spent"), [(CREDITS, 5), (COUNT, 1)])
def test_only_charges_are_counted_of_what_was(book: LimitBook, unit: LimitUnit, spent: int) -> None:
    """Not grants, and not what mode observe let pass."""
    book.grant(3)
    book.consume(5)
    book.consume(2_000_000, observe=True)
    limit = book.limit(100, unit=unit, scope=LimitScope.ORGANIZATION, scope_id="", include_existing=True)
    assert book.usage(limit, "") == (spent, 0)


def test_calls_that_were_refunded_stay_calls(book: LimitBook) -> None:
    """Also where a limit is asked to count what was."""
    charges = [book.consume(5, activity=USER) for _ in range(3)]
    book.refund(charges[0])
    place = {"unit": COUNT, "window_text": LIFETIME, "include_existing": True}
    assert book.usage(book.limit(100, **place)) == (3, 0)


def test_a_refund_of_a_charge_that_is_not_loaded_is_counted_by_the_database(book: LimitBook) -> None:
    """It was asked for what was charged before; this batch adds nothing that it knows."""
    charge = book.consume(5, activity=USER)
    book.write()
    book.refund(charge)
    del book.ledger.rows[charge.id]
    assert book.usage(book.limit(100, include_existing=True)) is None


def test_a_limit_is_removed_with_all_that_was_to_be_written_of_it(book: LimitBook) -> None:
    """One of this batch was never there; one that is stored has to be deleted."""
    stored = book.limit(10)
    kept = book.limit(10, window_text="hour UTC")
    book.consume(1, activity=USER)
    book.write()
    book.limit(20)
    book.consume(1, activity=USER)
    book.remove(stored)
    changes = book.ledger.changes
    assert (changes.limits, changes.removed_limits, changes.usage) == (set(), {stored.id}, {(kept.id, "u1")})
    assert set(book.ledger.usage) == {(kept.id, "u1")}

    book.write()
    new = book.limit(10, window_text="month UTC")
    book.consume(1, activity=USER)
    book.remove(new)
    changes = book.ledger.changes
    assert (changes.new_limits, changes.removed_limits, changes.new_usage) == (set(), set(), set())
    assert changes.account
    assert list(book.ledger.limits) == [kept.id]


def test_a_limit_that_is_not_there_cannot_be_removed(book: LimitBook) -> None:
    """It says which."""
    error: CreditsError | None = book.decide(ops.RemoveLimit(organization_id=ACME, limit_id="l9")).error
    assert isinstance(error, LimitNotFoundError)
    assert error.message == "organization acme has no limit l9."
    assert error.context == {"limit_id": "l9"}
    book.ledger = Ledger(ACME)
    missing = book.decide(ops.RemoveLimit(organization_id=ACME, limit_id="l9")).error
    assert missing is not None
    assert missing.code == "account_not_found"


# -- how much passes before a counter speaks -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "warn_at", "spent", "warned", "quiet"),
    [
        (HARD, (), 0, 0, None),
        (HARD, (5_000, 8_000), 0, 0, 499_999),
        (HARD, (5_000, 8_000), 499_999, 0, 0),
        (HARD, (5_000, 8_000), 600_000, 5_000, 199_999),
        (HARD, (3_333,), 0, 0, 333_299),
        (SOFT, (), 0, 0, 1_000_000),
        (SOFT, (), 999_999, 0, 1),
        (SOFT, (), 1_000_001, 10_001, None),
    ],
)
def test_how_much_can_be_spent_without_a_word(
    mode: LimitMode, warn_at: tuple[int, ...], spent: int, warned: int, quiet: int | None
) -> None:
    """Up to the last micro-credit that reaches no threshold; None: as much as there can be."""
    limit = LimitState("l", LimitScope.USER, "u1", CREDITS, LIFETIME, 1_000_000, mode, NOW, warn_at=warn_at)
    counter = limits.Counter(limit, UsageState("l", "u1", spent=spent, warned=warned, warned_amount=1_000_000))
    assert limits.quiet(counter) == (MAX_TOTAL_MICROS if quiet is None else quiet)


def test_a_counter_that_does_not_know_its_limits_amount_looks_first() -> None:
    """Unless it has no threshold, or another limit speaks for it."""
    limit = LimitState("l", LimitScope.USER, "u1", CREDITS, LIFETIME, 100, HARD, NOW, warn_at=(5_000,))
    usage = UsageState("l", "u1", warned_amount=90)
    assert limits.quiet(limits.Counter(limit, usage)) == 0
    assert limits.quiet(limits.Counter(limit, usage, speaks=False)) == MAX_TOTAL_MICROS
    limit.warn_at = ()
    assert limits.quiet(limits.Counter(limit, usage)) == MAX_TOTAL_MICROS
