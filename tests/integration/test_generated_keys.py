"""Calls without a key: their generated one takes no row, and whoever learns it can repeat the call with it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from agentcredits import (
    IdempotencyMismatchError,
    ReservationInUseError,
    StoreUnavailableError,
    SyncCreditService,
)
from agentcredits.runner.runner import Runner
from tests.integration.limit_book import ACME, Book

DAY = timedelta(days=1)


def stored(book: Book) -> int:
    """The keys that charges and holds have rows for."""
    return sum("'consume'" in row or "'reserve'" in row for row in book.tables()["idempotency_keys"])


def test_a_charge_under_its_generated_key_is_the_same_charge(book: Book) -> None:
    """Also after its price has changed, and after all keys are purged; another payload is refused."""
    service = book.service
    service.set_cost("Painter", "paint", 3)
    charge = service.consume_credits(organization_id=ACME, agent_type="Painter", action="paint", department_id="sales")
    plain = book.spend(5)
    assert charge.idempotency_key is not None
    assert stored(book) == 0
    service.set_cost("Painter", "paint", 4)
    for _ in range(2):
        again = service.consume_credits(
            organization_id=ACME,
            agent_type="Painter",
            action="paint",
            department_id="sales",
            idempotency_key=charge.idempotency_key,
        )
        assert (again.id, again.charged, again.replayed) == (charge.id, 3, True)
        book.clock.advance(200 * DAY)
        service.purge(older_than=DAY)
    assert book.spend(5, idempotency_key=plain.idempotency_key).id == plain.id
    for other in ({"amount": 6}, {"amount": 5, "user_id": "ann"}):
        with pytest.raises(IdempotencyMismatchError):
            book.spend(**other, idempotency_key=plain.idempotency_key)
    assert service.get_balance(ACME).spent == 8
    assert stored(book) == 0


def test_a_hold_under_its_generated_key_is_the_same_hold(book: Book) -> None:
    """While it lives it belongs to who made it; charged it is replayed; given back, the next attempt holds anew."""
    service = book.service
    hold = book.hold(10, user_id="ann")
    key = hold.record.idempotency_key
    again = book.hold(10, user_id="ann", idempotency_key=key)
    assert again.id == hold.id
    with pytest.raises(ReservationInUseError), again:
        pytest.fail("another caller's hold must not be worked on")
    with pytest.raises(IdempotencyMismatchError):
        book.hold(11, user_id="ann", idempotency_key=key)
    hold.commit(4)
    assert book.hold(10, user_id="ann", idempotency_key=key).record.charged == 4

    released = book.hold(10)
    released.release()
    anew = book.hold(10, idempotency_key=released.record.idempotency_key)
    assert anew.id != released.id
    assert stored(book) == 1
    assert book.hold(10, idempotency_key=released.record.idempotency_key).id == anew.id
    assert service.get_balance(ACME).reserved == 10
    assert service.get_balance(ACME).spent == 4


def test_what_was_erased_is_not_taken_for_the_same_call(book: Book) -> None:
    """Without its user the record cannot tell: refused, rather than answered with somebody's charge or booked twice."""
    charge = book.spend(5, user_id="ann")
    book.service.erase_user_details(ACME, "ann")
    with pytest.raises(IdempotencyMismatchError):
        book.spend(5, user_id="ann", idempotency_key=charge.idempotency_key)
    assert book.service.get_balance(ACME).spent == 5


def test_the_id_of_a_record_is_a_key_like_any_other(book: Book) -> None:
    """Whoever keys what follows by what came before is charged for both."""
    first = book.spend(5)
    second = book.spend(5, idempotency_key=first.id)
    assert second.id != first.id
    assert book.spend(5, idempotency_key=first.id).id == second.id
    assert book.service.get_balance(ACME).spent == 10


def cut_once(monkeypatch: pytest.MonkeyPatch, *, retried: bool) -> None:
    """The next posting is committed, and its connection breaks before the answer; ``retried``: else for good."""
    post, cut = Runner._post_and_commit, []

    def broken() -> OperationalError:
        return OperationalError("COMMIT", None, psycopg.OperationalError("cut"), connection_invalidated=True)

    def post_and_be_cut(self: Runner, connection: Connection, operations: Any, *, attempts: Any, **others: Any) -> Any:
        if cut and not retried:
            raise broken()
        outcomes = post(self, connection, operations, attempts=attempts, **others)
        if cut:
            return outcomes
        cut.append(True)
        attempts.note_failed_commit(broken())
        raise broken()

    monkeypatch.setattr(Runner, "_post_and_commit", post_and_be_cut)


Call = Callable[..., Any]


def consume(service: SyncCreditService, **arguments: Any) -> Any:
    return service.consume_credits(organization_id=ACME, amount=5, department_id="sales", **arguments)


def reserve(service: SyncCreditService, **arguments: Any) -> Any:
    return service.reserve_credits(organization_id=ACME, amount=5, department_id="sales", **arguments).record


@pytest.mark.parametrize("call", [consume, reserve])
def test_our_own_second_try_finds_what_the_first_booked(
    book: Book, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    """The connection broke after COMMIT: the answer is the record, not a replay of somebody else's."""
    with monkeypatch.context() as patch:
        cut_once(patch, retried=True)
        record = call(book.service)
    assert not record.replayed
    balance = book.service.get_balance(ACME)
    assert balance.spent + balance.reserved == 5


@pytest.mark.parametrize("call", [consume, reserve])
def test_the_key_that_an_error_carries_repeats_the_call(
    book: Book, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    """Whether it was booked is unknown: with that key it is booked once."""
    with monkeypatch.context() as patch:
        cut_once(patch, retried=False)
        with pytest.raises(StoreUnavailableError) as unknown:
            call(book.service)
    context = unknown.value.context
    assert context["outcome"] == "unknown"
    record = call(book.service, idempotency_key=context["idempotency_key"])
    assert record.replayed
    balance = book.service.get_balance(ACME)
    assert balance.spent + balance.reserved == 5
    assert stored(book) == 0
