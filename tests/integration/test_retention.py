"""purge and erase_user_details: what is old or names a user goes; amounts, settlements and limits stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection

from agentcredits import (
    AccountNotFoundError,
    CreditLimitExceededError,
    CreditService,
    InvalidInputError,
    PlannedLimit,
    RefundExceedsChargeError,
    ReservationAlreadySettledError,
    ReservationExpiredError,
    ReservationState,
    Settings,
    SyncCreditService,
)
from agentcredits.store import retention
from tests.integration.cli_calls import Call
from tests.integration.limit_book import ACME, DAY, HOUR, LONG, NOON, Book

MONTH = timedelta(days=30)


def count(book: Book, table: str, condition: str = "1 = 1") -> int:
    """How many rows there are."""
    return len(rows_of(book, f"SELECT 1 FROM {table} WHERE {condition}"))


def rows_of(book: Book, statement: str) -> list[tuple[Any, ...]]:
    from sqlalchemy import create_engine

    engine = create_engine(book.url)
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.exec_driver_sql(statement)]
    engine.dispose()
    return found


# -- keys --------------------------------------------------------------------------------------------------------


def test_a_purged_key_is_a_new_call_and_a_kept_one_a_replay(book: Book) -> None:
    """On the side of the cut that its age says, to the microsecond."""
    old = book.spend(5, idempotency_key="old")
    book.clock.advance(timedelta(microseconds=1))
    young = book.spend(5, idempotency_key="young")
    book.clock.set(NOON + MONTH + timedelta(microseconds=1))
    report = book.service.purge(older_than=MONTH)
    assert (report.before, report.keys, report.accounts) == (NOON + timedelta(microseconds=1), 1, 1)
    assert book.spend(5, idempotency_key="young").id == young.id
    again = book.spend(5, idempotency_key="old")
    assert not again.replayed
    assert again.id != old.id
    assert book.service.get_balance(ACME).spent == 15


def test_settlements_stay_unique_after_the_purge(book: Book) -> None:
    """Everything that was settled is replayed or refused as before, also 25 hours and a purge later."""
    service = book.service
    committed = book.hold(10, idempotency_key="h1")
    service.commit_reservation(committed.id, 4, organization_id=ACME)
    released = book.hold(10, idempotency_key="h2")
    released.release()
    expired = book.hold(10, ttl=HOUR, idempotency_key="h3")
    late = book.hold(10, ttl=HOUR, idempotency_key="h4")
    charge = book.spend(20, idempotency_key="c1")
    service.refund_credits(charge.id, 15, organization_id=ACME, idempotency_key="r1")
    book.clock.advance(2 * HOUR)
    late.commit()  # by its handle: late, once
    book.clock.advance(timedelta(hours=25))
    balance = service.get_balance(ACME)
    assert service.purge(older_than=DAY).keys == 6
    assert count(book, "idempotency_keys", "kind <> 'grant'") == 0

    assert service.commit_reservation(committed.id, 4, organization_id=ACME).replayed
    with pytest.raises(ReservationAlreadySettledError):
        service.commit_reservation(committed.id, 5, organization_id=ACME)
    with pytest.raises(ReservationAlreadySettledError):
        service.release_reservation(committed.id, organization_id=ACME)
    assert service.release_reservation(released.id, organization_id=ACME).replayed
    with pytest.raises(ReservationAlreadySettledError):
        service.commit_reservation(released.id, organization_id=ACME)
    with pytest.raises(ReservationExpiredError):
        service.commit_reservation(expired.id, organization_id=ACME)
    assert service.commit_reservation(late.id, 10, organization_id=ACME).replayed
    with pytest.raises(RefundExceedsChargeError):
        service.refund_credits(charge.id, 15, organization_id=ACME, idempotency_key="r1")
    now = service.get_balance(ACME)
    assert (now.spent, now.reserved, now.available) == (balance.spent, balance.reserved, balance.available)

    # A reserve with a purged key is a new attempt: it holds anew, and charges nothing by itself.
    hold = book.hold(10, idempotency_key="h1")
    assert (hold.id != committed.id, hold.record.replayed, hold.record.state) == (True, False, ReservationState.ACTIVE)
    hold.release()
    assert service.get_balance(ACME).spent == balance.spent


def test_keys_that_still_protect_something_are_kept(book: Book) -> None:
    """Grants (one may stand for a payment), adjustments, and holds that are open, however old."""
    service = book.service
    grant = service.grant_credits(ACME, 50, idempotency_key="payment 7")
    service.adjust_credits(ACME, 5, idempotency_key="gift")
    hold = book.hold(10, ttl=timedelta(days=300), idempotency_key="open")
    waiting = book.hold(10, idempotency_key="waiting")
    service.mark_unknown(waiting.id, "fal", "job-1", organization_id=ACME, ttl=timedelta(days=300))
    book.clock.advance(timedelta(days=200))
    assert service.purge(older_than=DAY).keys == 0
    assert service.grant_credits(ACME, 50, idempotency_key="payment 7").id == grant.id
    assert service.adjust_credits(ACME, 5, idempotency_key="gift").replayed
    for key, place in (("open", hold.id), ("waiting", waiting.id)):
        assert service.reserve_credits(organization_id=ACME, amount=10, idempotency_key=key).id == place
    assert service.get_balance(ACME).reserved == 20
    service.release_reservation(hold.id, organization_id=ACME)
    assert service.purge(older_than=DAY).keys == 1


def test_a_key_that_got_a_new_hold_is_young_again(book: Book) -> None:
    """A released hold's key that is used again counts from then, also when a purge had already found it."""
    book.hold(10, idempotency_key="k").release()
    book.clock.advance(MONTH)
    before = book.clock.now() - DAY
    from sqlalchemy import create_engine

    engine = create_engine(book.url)

    def look(connection: Connection) -> retention.Found:
        return retention.find(connection, "keys", ACME, before, None, 10)

    with engine.connect() as connection:
        found = look(connection)
    assert found.old == [("reserve", "k")]
    hold = book.hold(10, idempotency_key="k")
    with engine.begin() as connection:
        assert retention.remove(connection, "keys", ACME, before, found.old) == 0
    engine.dispose()
    assert book.hold(10, idempotency_key="k").id == hold.id


def test_pages_and_organizations_do_not_show(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every account in steps of two rows; only the one that was named where one is; stopped and done again."""
    monkeypatch.setattr("agentcredits.service.upkeep.PAGE_ROWS", 2)
    service = book.service
    for name in ("a", "b", "c"):
        service.grant_credits(name, 100)
        for number in range(5):
            service.consume_credits(organization_id=name, amount=1, idempotency_key=f"k{number}")
    book.clock.advance(MONTH)
    assert service.purge("b", older_than=DAY, dry_run=True).keys == 5
    assert service.purge("b", older_than=DAY).keys == 5
    assert service.purge("b", older_than=DAY).keys == 0

    calls = 0
    remove = retention.remove

    def stop_at_third(*arguments: Any, **more: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return remove(*arguments, **more)

    monkeypatch.setattr(retention, "remove", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        service.purge(older_than=DAY)
    left = count(book, "idempotency_keys", "kind = 'consume'")
    assert 0 < left < 10
    monkeypatch.setattr(retention, "remove", remove)
    report = service.purge(older_than=DAY)
    assert (report.keys, report.accounts) == (left, 4)
    assert service.verify().ok


def test_only_what_was_chosen_goes(book: Book, database_url: str) -> None:
    """Details, denials and crossings each by its own flag; a dry run only counts."""
    service = book.service
    book.limit(10, warn_at=["0.5"])
    book.spend(6, user_id="ann", metadata={"prompt": "secret"}, dimensions={"model": "x"}, idempotency_key="a")
    book.spend(1, metadata={"prompt": "secret"}, idempotency_key="b")
    book.hold(1, metadata={"prompt": "secret"}, user_id="ann", idempotency_key="c").commit()
    open_hold = book.hold(1, metadata={"prompt": "still needed"})
    with SyncCreditService(database_url, settings=Settings(mode="observe"), clock=book.clock) as observing:
        observing.consume_credits(organization_id=ACME, amount=5_000, idempotency_key="d")
    book.clock.advance(MONTH)
    young = book.spend(1, metadata={"prompt": "young"})
    before = book.tables()
    everything: dict[str, Any] = {"details": True, "denials": True, "crossings": True}
    counted = service.purge(older_than=DAY, dry_run=True, **everything)
    assert book.tables() == before
    done = service.purge(older_than=DAY, keys=False, **everything)
    assert (done.keys, counted.keys) == (0, 4)
    assert (done.details, done.reservations, done.denials, done.crossings) == (3, 1, 1, 1)
    assert [getattr(counted, name) for name in ("details", "reservations", "denials", "crossings")] == [3, 1, 1, 1]
    assert not any("secret" in row for rows in book.tables().values() for row in rows)
    # By whom it was used stays: totals and limits count by it.
    assert service.get_usage(ACME, user_id="ann").total.charged == 7
    assert service.list_transactions(ACME, limit=1).items[0].metadata == {"prompt": "young"}
    assert young.metadata == {"prompt": "young"}
    assert open_hold.commit().charged == 1
    assert service.list_transactions(ACME, limit=1).items[0].metadata == {"prompt": "still needed"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "needs older_than="),
        ({"older_than": timedelta(hours=23)}, "at least 1 day"),
        ({"older_than": -DAY}, "at least 1 day"),
        ({"older_than": 90}, "must be a timedelta"),
        ({"older_than": DAY, "keys": False}, "what shall go"),
    ],
)
def test_what_makes_no_sense_is_refused(sqlite_book: Book, arguments: dict[str, Any], said: str) -> None:
    """By a sentence; nothing goes."""
    sqlite_book.spend(1)
    sqlite_book.clock.advance(MONTH)
    before = sqlite_book.tables()
    with pytest.raises(InvalidInputError, match=said):
        sqlite_book.service.purge(**arguments)
    with pytest.raises(AccountNotFoundError):
        sqlite_book.service.purge("nobody", older_than=DAY)
    assert sqlite_book.tables() == before


def test_the_setting_is_a_promise(sqlite_book: Book) -> None:
    """It is the age where none is told, and no key goes younger; other things may."""
    sqlite_book.spend(1, metadata={"prompt": "x"}, idempotency_key="k")
    sqlite_book.clock.advance(timedelta(days=20))
    settings = Settings(idempotency_retention_days=30)
    with SyncCreditService(sqlite_book.url, settings=settings, clock=sqlite_book.clock) as service:
        assert service.purge().keys == 0
        with pytest.raises(InvalidInputError, match="kept for 30 days"):
            service.purge(older_than=timedelta(days=10))
        assert service.purge(older_than=timedelta(days=10), keys=False, details=True).details == 1
        sqlite_book.clock.advance(timedelta(days=11))
        assert service.purge().keys == 1


# -- users -------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_ann(book: Book) -> Iterator[Book]:
    """Ann and Bob: charges, refunds, holds, limits, denials, crossings, over two days."""
    service = book.service
    service.set_limit(ACME, amount=60, window="day", scope="user", warn_at=["0.5"])
    service.set_limit(ACME, amount=50, window="lifetime", scope="user", unit="count")
    service.set_limit(ACME, amount=500, window="month", scope="user", scope_id="bob")
    service.set_limit(ACME, amount=400, window="lifetime", scope="user")
    for _ in range(2):
        for user in ("ann", "bob"):
            who = {"user_id": user, "metadata": {"prompt": f"of {user}"}, "dimensions": {"seed": f"of {user}"}}
            first = book.spend(20, agent_type="A", action="b", **who)
            service.refund_credits(first.id, 5, f"of {user}", organization_id=ACME)
            book.hold(10, **who).commit(4)
            book.hold(10, **who).release(f"of {user}")
        book.clock.advance(DAY)
    for user in ("ann", "bob"):
        who = {"user_id": user, "metadata": {"prompt": f"of {user}"}}
        book.spend(31, **who)
        book.hold(10, **who, idempotency_key=f"open of {user[0]}")
    with SyncCreditService(book.url, settings=Settings(mode="observe"), clock=book.clock) as observing:
        observing.consume_credits(organization_id=ACME, amount=55, user_id="ann", metadata={"prompt": "of ann"})
    yield book
    assert service.verify().problems == ()


def naming(book: Book, user: str) -> set[str]:
    """Tables with a row that names the user."""
    return {name for name, rows in book.tables().items() if any(user in row for row in rows)}


def test_nothing_names_an_erased_user_any_more(with_ann: Book) -> None:
    """In no table; amounts, other users and open holds are as before, and every counter is what its rows say."""
    service = with_ann.service
    assert {"credit_transaction_details", "usage_rollups", "credit_limit_usage", "credit_denials"} <= naming(
        with_ann, "ann"
    )
    before, bob = service.get_balance(ACME), service.get_usage(ACME, user_id="bob")
    total = service.get_usage(ACME).total
    report = service.erase_user_details(ACME, "ann")
    assert naming(with_ann, "ann") == set()
    # Each day a charge, its refund and a commit; then a charge, and what mode "observe" recorded.
    assert (report.transactions, report.reservations, report.denials, report.crossings) == (8, 5, 1, 1)
    assert report.complete
    assert service.verify().ok
    after = service.get_balance(ACME)
    assert (after.spent, after.reserved, after.available) == (before.spent, before.reserved, before.available)
    assert service.get_usage(ACME, user_id="bob") == bob
    assert service.get_usage(ACME).total == total
    assert service.get_usage(ACME, user_id="ann").lines == ()
    again = service.erase_user_details(ACME, "ann")
    assert (again.transactions, again.reservations, again.denials, again.crossings) == (0, 0, 0, 0)


def test_an_open_hold_of_an_erased_user_is_settled_as_any_other(with_ann: Book) -> None:
    """Its key finds it, it is charged, and no limit of the user counts it."""
    service = with_ann.service
    service.erase_user_details(ACME, "ann")
    (hold,) = [one for one in service.list_reservations(ACME, states=("active",)) if one.user_id is None]
    record = service.commit_reservation(hold.id, 10, organization_id=ACME)
    assert record.charged == 10
    assert service.verify().ok
    assert naming(with_ann, "ann") == set()


def test_what_goes_on_in_steps_is_right_after_each(with_ann: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after any step: every counter is what its rows say, and the next run ends it."""
    from agentcredits.runner.runner import Runner

    monkeypatch.setattr("agentcredits.service.upkeep.PAGE_ROWS", 3)
    service = with_ann.service
    write = Runner.write
    steps = 0

    def stop_after_one(self: Runner, function: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        write(self, function, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "write", stop_after_one)
    for _ in range(50):
        try:
            service.erase_user_details(ACME, "ann")
        except KeyboardInterrupt:
            assert service.verify().problems == ()
        if not naming(with_ann, "ann"):
            break
    assert naming(with_ann, "ann") == set()
    assert steps > 5


def test_limits_go_on_for_others_and_begin_anew_for_the_erased(with_ann: Book) -> None:
    """A limit that is set for the very user is configuration: it stays and is told of."""
    service = with_ann.service
    with pytest.raises(CreditLimitExceededError):
        with_ann.spend(50, user_id="bob")
    report = service.erase_user_details(ACME, "bob")
    assert (report.kept_limits, report.complete) == (1, False)
    assert naming(with_ann, "bob") == {"credit_limits"}
    with_ann.spend(50, user_id="bob")
    with pytest.raises(CreditLimitExceededError):
        with_ann.spend(11, user_id="bob")


def test_a_batch_of_an_erased_user_loses_its_prompts_when_it_is_finished(book: Book) -> None:
    """One that still runs needs them, and is told of."""
    for place, state in (("b1", "finished"), ("b2", "running")):
        book.sql(
            "INSERT INTO media_batches (organization_id, id, name, state, user_id, settings, created_at, updated_at)"
            " VALUES ('acme', :id, 'n', :state, 'ann', '{}', '2026-01-01 00:00:00', '2026-01-01 00:00:00')",
            id=place,
            state=state,
        )
        book.sql(
            "INSERT INTO media_jobs (organization_id, batch_id, number, asset_id, name, priority, state, agent_type,"
            " action, prompt, parameters, dimensions, updated_at)"
            " VALUES ('acme', :id, 1, 'a', 'a', 1, 'done', 'A', 'b', 'of ann', '{}', '{}', '2026-01-01 00:00:00')",
            id=place,
        )
    report = book.service.erase_user_details(ACME, "ann")
    assert (report.open_batches, report.complete) == (1, False)
    assert rows_of(book, "SELECT batch_id FROM media_jobs WHERE prompt = 'of ann'") == [("b2",)]
    assert rows_of(book, "SELECT id FROM media_batches WHERE user_id = 'ann'") == [("b2",)]


def test_another_organizations_user_of_the_same_name_is_another(with_ann: Book) -> None:
    """Erased is one organization's."""
    with_ann.service.grant_credits("globex", 10)
    with_ann.service.consume_credits(organization_id="globex", amount=1, user_id="ann")
    with_ann.service.erase_user_details(ACME, "ann")
    assert with_ann.service.get_usage("globex", user_id="ann").total.charged == 1
    with pytest.raises(AccountNotFoundError):
        with_ann.service.erase_user_details("nobody", "ann")


async def test_the_other_face_purges_and_erases_too(with_ann: Book) -> None:
    """The same steps; what was erased can no longer be priced anew."""
    with_ann.clock.advance(LONG)
    async with CreditService(with_ann.url, clock=with_ann.clock) as service:
        assert (await service.erase_user_details(ACME, "ann")).complete
        assert (await service.purge(older_than=MONTH)).keys > 3
        report = await service.simulate(limits=[PlannedLimit(0, "day", "user")])
    # Bob's charges alone are a user's now.
    assert report.total.refused == 5


def test_the_commands_purge_and_erase(on: Call, with_ann: Book) -> None:
    """With what they did in words and as JSON."""
    # The command line has the host's clock, for which all of this is long ago.
    counted = on("purge", "--older-than", "2d", "--dry-run")
    assert (counted.code, counted.err) == (0, "")
    assert counted.out.startswith("Would remove ")
    done = on("purge", ACME, "--older-than", "2d", "--details", "--json").data
    assert done["keys"] == counted_keys(counted.out)
    assert on("purge", "--older-than", "2d").out.startswith("Removed nothing")
    assert on("purge").code == 2
    assert on("purge", "--older-than", "2h").code == 2
    erased = on("erase-user", ACME, "bob")
    assert "1 limit set for this user" in erased.out
    assert on("erase-user", ACME, "ann", "--json").data["kept_limits"] == 0


def counted_keys(text: str) -> int:
    return int(text.removeprefix("Would remove ").split()[0])
