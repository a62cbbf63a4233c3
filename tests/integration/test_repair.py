"""repair makes derived counters equal to what the ledger says, and touches nothing else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from agentcredits import CreditService, RepairReport, SyncCreditService
from agentcredits.store.triggers import APPEND_ONLY, trigger_statements
from agentcredits.testing import FakeClock

ACME, GLOBEX = "acme", "globex"


@contextmanager
def behind_its_back(url: str) -> Iterator[Connection]:
    """Plain SQL, with the triggers and foreign keys out of the way."""
    engine = create_engine(make_url(url), poolclass=NullPool)
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            for table in APPEND_ONLY:
                for event in ("update", "delete"):
                    connection.exec_driver_sql(f"DROP TRIGGER {table}_no_{event}")
            yield connection
            for create in trigger_statements("sqlite"):
                connection.exec_driver_sql(create)
        else:
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
            yield connection


def tamper(url: str, *statements: str) -> None:
    with behind_its_back(url) as connection:
        for statement in statements:
            assert connection.exec_driver_sql(statement).rowcount > 0, statement


def everything(url: str) -> dict[str, list[tuple[object, ...]]]:
    """Every row of the tables that hold counters or what they come from."""
    tables = ("accounts", "grants", "reservations", "transactions", "transaction_allocations", "limits", "limit_usage")
    engine = create_engine(make_url(url))
    with engine.connect() as connection:
        found = {
            name: sorted((tuple(row) for row in connection.execute(text(f"SELECT * FROM credit_{name}"))), key=repr)
            for name in tables
        }
        found["usage"] = sorted(
            (tuple(row) for row in connection.execute(text("SELECT * FROM usage_rollups"))), key=repr
        )
    engine.dispose()
    return found


@pytest.fixture
def books(database_url: str, clock: FakeClock) -> Iterator[SyncCreditService]:
    """Two organizations with charges on two days, a refund, settled and open holds, limits."""
    with SyncCreditService(database_url, clock=clock) as service:
        for place in (ACME, GLOBEX):
            service.grant_credits(place, 100)
            service.grant_credits(place, 7, category="promotional", expires_at=clock.now() + timedelta(days=1))
            service.grant_credits(place, 1, category="plan", only_for=["B"])
            service.create_recurring_grant(place, 1, anchor=clock.now() + timedelta(days=9))
            service.set_limit(place, amount=90, window="month")
            service.set_limit(place, scope="user", amount=50, window="day")
            service.set_limit(place, scope="user", amount=50, unit="count", window="lifetime")
        for _ in range(2):
            for place in (ACME, GLOBEX):
                charge = service.consume_credits(
                    organization_id=place, amount=3, agent_type="A", action="a", user_id="ada", idempotency_key=None
                )
                service.refund_credits(charge, 1)
                hold = service.reserve_credits(organization_id=place, amount=6, user_id="ada")
                service.commit_reservation(hold, 5)
                service.reserve_credits(organization_id=place, amount=2, user_id="bob", ttl=timedelta(days=60))
            clock.advance(timedelta(days=2))
        assert service.verify()
        yield service


BROKEN = {
    "account": "UPDATE credit_accounts SET spent_micros = spent_micros + 5, reserved_micros = 0, last_seq = 3",
    "account granted": "UPDATE credit_accounts SET granted_micros = 0, expired_micros = 9, voided_micros = 1",
    "due": "UPDATE credit_accounts SET next_due_at = NULL",
    "grant": "UPDATE credit_grants SET spent_micros = 0, held_micros = 1, voided_micros = 2",
    "grant amount": "UPDATE credit_grants SET amount_micros = amount_micros + 1000000",
    "grant hidden": "UPDATE credit_grants SET is_open = (1 = 0) WHERE is_open",
    "settled hold": "UPDATE credit_reservations SET charged_micros = 1 WHERE state = 'committed'",
    "limit": "UPDATE credit_limit_usage SET spent = spent + 7, held = held + 1",
    "limit lost": "DELETE FROM credit_limit_usage",
    "usage": "UPDATE usage_rollups SET charges = charges + 1, charged_micros = 5, uncollected_micros = 4",
    "usage by category": "UPDATE usage_rollups SET paid_micros = 1, promotional_micros = -5, plan_micros = 7",
    "refill": "UPDATE credit_accounts SET next_refill_at = NULL",
    "restricted": "UPDATE credit_accounts SET has_restricted = (1 = 0)",
    "usage lost": "DELETE FROM usage_rollups",
    "usage of a day without rows": "UPDATE usage_rollups SET day = '2020-01-01'"
    " WHERE day = (SELECT MAX(day) FROM usage_rollups)",
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_counter_is_listed_then_made_what_it_was(
    books: SyncCreditService, database_url: str, what: str
) -> None:
    """The list changes nothing; the repair brings every row back to what it was before the damage."""
    right = everything(database_url)
    tamper(database_url, BROKEN[what])
    wrong = everything(database_url)
    assert wrong != right
    listed = books.repair()
    assert everything(database_url) == wrong
    assert (listed.dry_run, listed.ok, listed.refused) == (True, False, ())
    assert {change.organization_id for change in listed.changes} == {ACME, GLOBEX}
    done = books.repair(dry_run=False)
    assert (done.ok, done.changes) == (True, listed.changes)
    assert books.verify()
    mended = everything(database_url)
    if what == "limit lost":
        # What was warned of is no counter of the ledger: only held and spent come back.
        assert [row[3:5] for row in mended["limit_usage"]] == [
            row[3:5] for row in right["limit_usage"] if any(row[3:5])
        ]
    elif what == "due":
        # Never later than the next thing that falls due; the repair says exactly when.
        assert [row[:8] for row in mended["accounts"]] == [row[:8] for row in right["accounts"]]
    elif what == "usage of a day without rows":
        assert [row for row in mended["usage"] if row in right["usage"]] == right["usage"]
    else:
        assert mended == right


def test_a_change_says_what_stands_there_and_what_the_ledger_says(books: SyncCreditService, database_url: str) -> None:
    """Table, key, column, before and after."""
    (grant,) = [one for one in books.list_grants(ACME) if one.category.value == "paid"]
    tamper(database_url, f"UPDATE credit_grants SET spent_micros = 4 WHERE id = '{grant.id}'")
    (change,) = books.repair().changes
    assert (change.organization_id, change.table, change.key, change.column) == (
        ACME,
        "credit_grants",
        {"id": grant.id},
        "spent_micros",
    )
    assert (change.before, change.after) == (4, grant.spent_micros)


UNREPAIRABLE = {
    "seq": "DELETE FROM credit_transactions WHERE organization_id = 'acme' AND seq = 4",
    "chain": "UPDATE credit_transactions SET created_at = '2020-01-01' WHERE organization_id = 'acme' AND seq = 4",
    "allocations": "DELETE FROM credit_transaction_allocations WHERE transaction_id IN"
    " (SELECT id FROM credit_transactions WHERE organization_id = 'acme' AND seq = 4)",
    "hold": "UPDATE credit_reservations SET state = 'released' WHERE organization_id = 'acme' AND state = 'active'",
    "status": "UPDATE credit_grants SET status = 'scheduled' WHERE organization_id = 'acme' AND category = 'paid'",
    "grant": "DELETE FROM credit_grants WHERE organization_id = 'acme' AND category = 'paid'",
}


@pytest.mark.parametrize("check", UNREPAIRABLE)
def test_what_no_counter_can_mend_is_refused_and_its_account_left_alone(
    books: SyncCreditService, database_url: str, check: str
) -> None:
    """With a reason; the account's own broken counter stays too, and another organization is repaired."""
    tamper(database_url, UNREPAIRABLE[check], "UPDATE credit_accounts SET expired_micros = expired_micros + 1")
    before = everything(database_url)
    report = books.repair(dry_run=False)
    assert not report
    assert check in {one.check for one in report.refused}
    assert {one.organization_id for one in report.refused} == {ACME}
    assert all(one.reason for one in report.refused)
    assert {one.organization_id for one in report.changes} == {GLOBEX}
    after = everything(database_url)
    assert [row for row in before["accounts"] if row[0] == ACME] == [row for row in after["accounts"] if row[0] == ACME]
    assert after["transactions"] == before["transactions"]
    assert books.verify(GLOBEX)
    assert not books.verify(ACME)


def test_a_value_that_the_database_refuses_changes_nothing(books: SyncCreditService, database_url: str) -> None:
    """A ledger that says nonsense (spent below zero) is refused by the CHECKs: the account stays as it is."""
    tamper(
        database_url,
        "UPDATE credit_transactions SET type = 'refund', amount_micros = 3000000, refund_of = id"
        " WHERE organization_id = 'acme' AND type = 'debit'",
    )
    before = everything(database_url)
    report = books.repair(ACME, dry_run=False)
    assert not report.ok
    assert report.changes == ()
    assert everything(database_url) == before


@pytest.mark.parametrize("attempt", range(3))
def test_counters_are_repaired_while_charges_go_on(database_url: str, attempt: int) -> None:
    """No charge is lost or counted twice: verify is clean afterwards, and the balance is grants less charges."""
    with SyncCreditService(database_url) as service:
        service.grant_credits(ACME, 10_000)
        service.set_limit(ACME, amount=10_000, window="lifetime")
        for _ in range(30):
            service.consume_credits(organization_id=ACME, amount=1)
        tamper(
            database_url,
            "UPDATE credit_accounts SET reserved_micros = reserved_micros + 11",
            "UPDATE credit_grants SET spent_micros = spent_micros + 11",
            "UPDATE credit_limit_usage SET spent = spent + 11",
            "UPDATE usage_rollups SET charges = charges + 11",
        )
        charged, done = [0, 0, 0], threading.Event()

        def charge(number: int) -> None:
            while not done.is_set():
                service.consume_credits(organization_id=ACME, amount=1)
                charged[number] += 1

        threads = [threading.Thread(target=charge, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        try:
            report = service.repair(dry_run=False)
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert report.refused == ()
        assert service.verify().problems == ()
        assert service.get_balance(ACME).available == 10_000 - 30 - sum(charged)


def test_a_charge_booked_on_a_wrong_counter_does_not_stand_in_the_way(database_url: str) -> None:
    """Its balance_after is wrong for ever, and listed; the counters are mended, and the next rows follow again."""
    with SyncCreditService(database_url) as service:
        service.grant_credits(ACME, 10)
        tamper(database_url, "UPDATE credit_accounts SET spent_micros = spent_micros + 2000000")
        service.consume_credits(organization_id=ACME, amount=1)
        report = service.repair(dry_run=False)
        assert [(one.column, one.before, one.after) for one in report.changes] == [
            ("spent_micros", 3_000_000, 1_000_000)
        ]
        assert [(one.check, one.message) for one in report.refused] == [("chain", "row 2 does not follow from row 1")]
        assert service.get_balance(ACME).available == 9
        for _ in range(2):
            service.consume_credits(organization_id=ACME, amount=1)
        problems = [problem.message for problem in service.verify().problems]
        assert problems == ["row 2 does not follow from row 1", "row 3 does not follow from row 2"]


async def test_the_coroutine_face_repairs_the_same(database_url: str) -> None:
    """The same report."""
    async with CreditService(database_url) as service:
        await service.grant_credits(ACME, 1)
        tamper(database_url, "UPDATE credit_accounts SET voided_micros = 1")
        listed = await service.repair(ACME)
        assert isinstance(listed, RepairReport)
        assert not listed
        assert await service.repair(ACME, dry_run=False)
        assert (await service.repair()).changes == ()


def test_a_ledger_row_is_never_written(books: SyncCreditService, database_url: str) -> None:
    """The append-only triggers are in force: a repair that tried would raise."""
    engine = create_engine(make_url(database_url), poolclass=NullPool)
    with pytest.raises(SQLAlchemyError), engine.begin() as connection:
        connection.exec_driver_sql("UPDATE credit_transactions SET late = late")
    tamper(database_url, *(statement for what, statement in BROKEN.items() if "lost" not in what))
    before = everything(database_url)
    assert books.repair(dry_run=False)
    after = everything(database_url)
    for name in ("transactions", "transaction_allocations", "limits"):
        assert after[name] == before[name]
