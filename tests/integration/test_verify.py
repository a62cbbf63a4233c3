"""verify recomputes every counter from the rows it counts: whatever is changed behind its back is named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import pytest
from sqlalchemy import create_engine, make_url

from agentcredits import CreditGrant, CreditService, ReservationRecord, SyncCreditService, Transaction
from agentcredits.store.triggers import APPEND_ONLY, trigger_statements
from agentcredits.testing import FakeClock

ACME, OTHER = "acme", "other"


@dataclass
class Books:
    """A ledger with a row of every kind, and the means to change it behind its back."""

    url: str
    service: SyncCreditService
    paid: CreditGrant
    scheduled: CreditGrant
    charge: Transaction
    refund: Transaction
    settled: ReservationRecord
    held: ReservationRecord

    def tamper(self, statement: str) -> int:
        """Run SQL with the append-only triggers out of the way; how many rows it changed."""
        engine = create_engine(make_url(self.url), isolation_level="AUTOCOMMIT")
        names = {
            "paid": self.paid.id,
            "scheduled": self.scheduled.id,
            "charge": self.charge.id,
            "refund": self.refund.id,
            "settled": self.settled.id,
            "held": self.held.id,
        }
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                for table in APPEND_ONLY:
                    for event in ("update", "delete"):
                        connection.exec_driver_sql(f"DROP TRIGGER {table}_no_{event}")
            else:
                connection.exec_driver_sql("SET session_replication_role = replica")
            changed = connection.exec_driver_sql(statement.format(**names)).rowcount
            if engine.dialect.name == "sqlite":
                for create in trigger_statements("sqlite"):
                    connection.exec_driver_sql(create)
            else:
                connection.exec_driver_sql("RESET session_replication_role")
        engine.dispose()
        return int(changed)


@pytest.fixture
def books(database_url: str, clock: FakeClock) -> Iterator[Books]:
    """Grants of every status, charges, a partial refund, holds of every state, breakage and a void."""
    with SyncCreditService(database_url, clock=clock) as service:
        paid = service.grant_credits(ACME, 100, idempotency_key="g1")
        scheduled = service.grant_credits(ACME, 5, effective_at=clock.now() + timedelta(days=30))
        service.grant_credits(ACME, 7, category="promotional", expires_at=clock.now() + timedelta(days=1))
        doomed = service.grant_credits(ACME, 3, category="adjustment")
        service.void_grant(doomed)
        charge = service.consume_credits(organization_id=ACME, amount=10, idempotency_key="c1")
        clock.advance(timedelta(days=2))
        refund = service.refund_credits(charge, 4, idempotency_key="r1")
        settled = service.commit_reservation(
            service.reserve_credits(organization_id=ACME, amount=6, idempotency_key="h1"), 5
        )
        service.reserve_credits(organization_id=ACME, amount=2).release()
        held = service.reserve_credits(organization_id=ACME, amount=8, ttl=timedelta(days=300)).record
        service.grant_credits(OTHER, 1)
        yield Books(database_url, service, paid, scheduled, charge, refund, settled, held)


def test_an_honest_ledger_is_clean(books: Books) -> None:
    """Nothing to report, and the report says how much was looked at."""
    report = books.service.verify()
    assert (report.ok, bool(report), report.problems) == (True, True, ())
    rows = sum(len(books.service.list_transactions(place, limit=100)) for place in (ACME, OTHER))
    assert (report.accounts, report.transactions) == (2, rows)
    assert books.service.verify(OTHER).accounts == 1
    assert books.service.verify("nobody").accounts == 0


TAMPERED = {
    # the account's counters
    "granted": (
        "UPDATE credit_accounts SET granted_micros = granted_micros + 1 WHERE organization_id = 'acme'",
        "granted",
    ),
    "scheduled": (
        "UPDATE credit_accounts SET scheduled_micros = scheduled_micros - 1 WHERE organization_id = 'acme'",
        "scheduled",
    ),
    "spent": ("UPDATE credit_accounts SET spent_micros = spent_micros - 1 WHERE organization_id = 'acme'", "spent"),
    "reserved": (
        "UPDATE credit_accounts SET reserved_micros = reserved_micros + 1 WHERE organization_id = 'acme'",
        "reserved",
    ),
    "expired": (
        "UPDATE credit_accounts SET expired_micros = expired_micros + 1 WHERE organization_id = 'acme'",
        "expired",
    ),
    "voided": ("UPDATE credit_accounts SET voided_micros = voided_micros + 1 WHERE organization_id = 'acme'", "voided"),
    "last_seq": ("UPDATE credit_accounts SET last_seq = last_seq + 1 WHERE organization_id = 'acme'", "seq"),
    "nothing due": ("UPDATE credit_accounts SET next_due_at = NULL WHERE organization_id = 'acme'", "due"),
    "due too late": (
        "UPDATE credit_accounts SET next_due_at = '2090-01-01 00:00:00.000000' WHERE organization_id = 'acme'",
        "due",
    ),
    "account lost": ("DELETE FROM credit_accounts WHERE organization_id = 'acme'", "account"),
    # grants
    "grant amount": ("UPDATE credit_grants SET amount_micros = amount_micros + 1 WHERE id = '{paid}'", "grant"),
    "grant spent": ("UPDATE credit_grants SET spent_micros = spent_micros + 1 WHERE id = '{paid}'", "grant"),
    "grant held": ("UPDATE credit_grants SET held_micros = held_micros - 1 WHERE id = '{paid}'", "grant"),
    "grant expired": ("UPDATE credit_grants SET expired_micros = 1 WHERE id = '{paid}'", "grant"),
    "grant voided": ("UPDATE credit_grants SET voided_micros = 1 WHERE id = '{paid}'", "grant"),
    "grant hidden": ("UPDATE credit_grants SET is_open = (1 = 0) WHERE id = '{paid}'", "grant"),
    "grant ended": ("UPDATE credit_grants SET status = 'expired' WHERE id = '{scheduled}'", "scheduled"),
    "grant started": ("UPDATE credit_grants SET status = 'active' WHERE id = '{scheduled}'", "scheduled"),
    "grant lost": ("DELETE FROM credit_grants WHERE id = '{paid}'", "grant"),
    # the ledger's rows
    "row amount": ("UPDATE credit_transactions SET amount_micros = amount_micros - 1 WHERE id = '{charge}'", "chain"),
    "row balance": (
        "UPDATE credit_transactions SET balance_after_micros = balance_after_micros + 1 WHERE id = '{charge}'",
        "chain",
    ),
    "row time": (
        "UPDATE credit_transactions SET created_at = '2090-01-01 00:00:00.000000' WHERE id = '{charge}'",
        "chain",
    ),
    "row lost": ("DELETE FROM credit_transactions WHERE id = '{charge}'", "seq"),
    "row elsewhere": ("UPDATE credit_transactions SET seq = seq + 100 WHERE id = '{refund}'", "chain"),
    "row type": ("UPDATE credit_transactions SET type = 'adjust' WHERE id = '{charge}'", "spent"),
    "part amount": (
        "UPDATE credit_transaction_allocations SET amount_micros = amount_micros + 1 WHERE transaction_id = '{refund}'"
        " AND position = 0",
        "allocations",
    ),
    "part lost": (
        "DELETE FROM credit_transaction_allocations WHERE transaction_id = '{refund}' AND position = 0",
        "allocations",
    ),
    "part of another grant": (
        "UPDATE credit_transaction_allocations SET grant_id = '{scheduled}' WHERE transaction_id = '{refund}'"
        " AND position = 0",
        "grant",
    ),
    "part of no grant": (
        "UPDATE credit_transaction_allocations SET grant_id = 'nowhere' WHERE transaction_id = '{refund}'"
        " AND position = 0",
        "grant",
    ),
    "refund too large": ("UPDATE credit_transactions SET amount_micros = 10000001 WHERE id = '{refund}'", "refunds"),
    "refund of nothing": ("UPDATE credit_transactions SET refund_of = 'nowhere' WHERE id = '{refund}'", "refunds"),
    # reservations
    "hold charged": (
        "UPDATE credit_reservations SET charged_micros = charged_micros + 1 WHERE id = '{settled}'",
        "settlement",
    ),
    "hold open again": ("UPDATE credit_reservations SET state = 'active' WHERE id = '{settled}'", "reserved"),
    "hold closed": ("UPDATE credit_reservations SET state = 'released' WHERE id = '{held}'", "reserved"),
    "hold amount": ("UPDATE credit_reservations SET amount_micros = 1 WHERE id = '{held}'", "hold"),
    "hold of another grant": (
        "UPDATE credit_reservations SET allocations = replace(allocations, '{paid}', '{scheduled}')"
        " WHERE id = '{held}'",
        "grant",
    ),
    "settlement lost": (
        "UPDATE credit_transactions SET reservation_id = NULL WHERE reservation_id = '{settled}'",
        "settlement",
    ),
    # keys
    "grant key": ("UPDATE idempotency_keys SET result_id = 'nowhere' WHERE key = 'g1'", "keys"),
    "consume key": ("UPDATE idempotency_keys SET result_id = 'nowhere' WHERE key = 'c1'", "keys"),
    "refund key": ("UPDATE idempotency_keys SET result_id = 'nowhere' WHERE key = 'r1'", "keys"),
    "reserve key": ("UPDATE idempotency_keys SET result_id = 'nowhere' WHERE key = 'h1'", "keys"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_changed_behind_its_back_is_named(books: Books, what: str) -> None:
    """The check that finds it, the organization, and a sentence; the other organization stays clean."""
    statement, check = TAMPERED[what]
    assert books.service.verify()
    assert books.tamper(statement) == 1
    report = books.service.verify()
    assert not report
    assert check in {problem.check for problem in report.problems}
    assert {problem.organization_id for problem in report.problems} == {ACME}
    assert all(problem.message for problem in report.problems)
    assert books.service.verify(OTHER)


def test_the_difference_is_said_in_credits(books: Books) -> None:
    """What stands there, and what the rows say."""
    books.tamper("UPDATE credit_accounts SET reserved_micros = 8500000 WHERE organization_id = 'acme'")
    assert [(found.check, found.message) for found in books.service.verify().problems] == [
        ("reserved", "reserved is 8.5, its rows say 8")
    ]


def test_verify_sees_through_what_is_due_but_not_booked_yet(books: Books, clock: FakeClock) -> None:
    """A hold that ran out and a grant that began are no difference, before and after they are booked."""
    clock.advance(timedelta(days=400))
    assert books.service.verify()
    assert books.service.sweep().accounts == 1
    assert books.service.verify()


async def test_the_coroutine_face_reports_the_same(books: Books) -> None:
    """The same report."""
    books.tamper("UPDATE credit_accounts SET last_seq = last_seq + 1 WHERE organization_id = 'acme'")
    async with CreditService(books.url) as service:
        assert await service.verify() == books.service.verify()
