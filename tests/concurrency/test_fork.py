"""Forked children: both sides work on, and what the child inherited stays the parent's."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from agentcredits.model import ReservationState, TransactionType
from agentcredits.service import SyncCreditService
from tests.concurrency import workers

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")

ACME = "acme"
TTL = 0.6


@pytest.fixture
def service(database_url: str) -> Iterator[SyncCreditService]:
    """The observer: a million credits of acme."""
    with SyncCreditService(database_url) as made:
        made.grant_credits(ACME, 1_000_000)
        yield made


@pytest.mark.proof
@pytest.mark.timeout(300)
def test_children_of_a_busy_process_work_and_so_does_the_parent(
    service: SyncCreditService, database_url: str, proof: str
) -> None:
    """12 forks while four threads charge: every child charges by both doors, every charge is booked once."""
    children = 200 if proof == "long" else 12
    report = workers.finish(
        workers.start("fork_after_use", url=database_url, organization=ACME, children=children), timeout=250
    )
    assert report["exits"] == [0] * children
    assert service.get_balance(ACME).spent == report["charged"]
    assert service.verify(ACME).ok


@pytest.mark.timeout(150)
def test_a_child_does_not_settle_an_inherited_hold(service: SyncCreditService, database_url: str) -> None:
    """The child leaves the block first: nothing is charged then. The parent's heart-beat and its end are untouched."""
    worker = workers.start("fork_in_body", url=database_url, organization=ACME, ttl=TTL)
    first = workers.next_line(worker)
    assert first["exit"] == 0
    assert service.get_reservation(first["id"], organization_id=ACME).state is ReservationState.ACTIVE
    assert service.get_balance(ACME).spent == 0
    time.sleep(2 * TTL)
    assert service.get_reservation(first["id"], organization_id=ACME).state is ReservationState.ACTIVE
    workers.finish(worker)
    record = service.get_reservation(first["id"], organization_id=ACME)
    assert (record.state, record.charged, record.late) == (ReservationState.COMMITTED, 5, False)
    page = service.list_transactions(ACME, type=TransactionType.DEBIT)
    assert [row.charged for row in page] == [5]
    assert service.verify(ACME).ok


@pytest.mark.timeout(150)
def test_a_child_does_not_renew_the_hold_of_a_dead_parent(service: SyncCreditService, database_url: str) -> None:
    """The parent is killed in its body; the child lives on and works, but the hold ends with its ttl."""
    worker = workers.start("orphan_of_a_body", url=database_url, organization=ACME, ttl=TTL)
    line = workers.next_line(worker)
    time.sleep(2.5 * TTL)
    os.kill(line["child"], 0)  # the child must still be there, else this test shows nothing
    assert service.get_reservation(line["id"], organization_id=ACME).state is ReservationState.EXPIRED
    balance = service.get_balance(ACME)
    assert (balance.reserved, balance.spent) == (0, 1)
    worker.communicate(timeout=30)
    assert service.get_balance(ACME).spent == 1
    assert service.verify(ACME).ok
