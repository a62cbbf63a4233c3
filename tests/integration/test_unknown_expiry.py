"""UNKNOWN holds come to an end: told by a hook, listed, shown by the command line, and resolved late all the same."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from agentcredits import CreditEvent, CreditLimitExceededError, InsufficientCreditsError, ReservationState
from agentcredits.media import resolve_unknown
from tests.integration.cli_calls import Call
from tests.integration.limit_book import ACME, DAY, Book, refused
from tests.integration.test_hooks import wait_for

WEEK = 7 * DAY


def wait(book: Book, reference: str, ttl: timedelta | None = None, amount: int = 10) -> str:
    """A hold that awaits the verdict on a job."""
    place = book.hold(amount).id
    book.service.mark_unknown(place, "fal", reference, organization_id=ACME, ttl=ttl)
    return place


def ended(told: list[CreditEvent]) -> list[tuple[str, str | None]]:
    """Holds that were told of as ended without a verdict."""
    return [
        (event.reservation.id, event.reservation.provider_reference)
        for event in told
        if event.name == "unknown_expired" and event.reservation is not None
    ]


def test_its_end_is_told_once_by_whoever_books_it(book: Book, told: list[CreditEvent]) -> None:
    """The next posting of any kind, or a sweep; a hold of its own time-to-live when that ends; reads tell nothing."""
    early, late = wait(book, "job-1", DAY), wait(book, "job-2")
    book.hold(1, ttl=DAY)
    book.clock.advance(DAY)
    assert book.service.get_reservation(early, organization_id=ACME).state is ReservationState.EXPIRED
    assert ended(told) == []
    book.spend(1)
    assert ended(told) == [(early, "job-1")]
    (event,) = [event for event in told if event.name == "unknown_expired"]
    assert event.reservation is not None
    assert (event.reservation.state, event.reservation.reason) == (
        ReservationState.EXPIRED,
        "no verdict from the provider",
    )
    book.clock.advance(WEEK)
    assert book.service.sweep().expired_unknown == (late,)
    assert ended(told) == [(early, "job-1"), (late, "job-2")]
    book.spend(1)
    book.service.sweep()
    assert len(ended(told)) == 2


def test_its_end_is_told_although_the_posting_is_refused(book: Book, told: list[CreditEvent]) -> None:
    """What is due is booked before a refusal, so it is told."""
    place = wait(book, "job-1")
    book.limit(5)
    book.clock.advance(WEEK)
    refused(lambda: book.spend(6))
    assert ended(told) == [(place, "job-1")]


def test_its_end_is_told_by_a_settlement_of_another_hold(book: Book, told: list[CreditEvent]) -> None:
    """A handle's settlement books what is due too."""
    other = book.hold(5)
    place = wait(book, "job-1")
    book.clock.advance(WEEK)
    other.commit()
    assert ended(told) == [(place, "job-1")]


@pytest.mark.parametrize("kind", ["session", "connection"])
def test_in_the_callers_transaction_it_is_told_at_its_commit(
    book: Book, told: list[CreditEvent], app_engine: Engine, kind: str
) -> None:
    """Also where the charge is refused; not at all when the transaction is rolled back: then the next one tells it."""

    def begin() -> Any:
        return Session(app_engine) if kind == "session" else app_engine.connect()

    place = wait(book, "job-1")
    book.clock.advance(WEEK)
    with begin() as mine:
        book.service.consume_credits(organization_id=ACME, amount=1, session=mine)
        mine.rollback()
    with begin() as mine:
        with pytest.raises(InsufficientCreditsError):
            book.service.consume_credits(organization_id=ACME, amount=5_000, session=mine)
        assert ended(told) == []
        mine.commit()
    assert wait_for(lambda: bool(ended(told)))
    assert ended(told) == [(place, "job-1")]


def test_it_is_logged_where_no_caller_hears_of_it(
    book: Book, told: list[CreditEvent], caplog: pytest.LogCaptureFixture
) -> None:
    """A settlement in the background books what is due: the log has it."""
    other = book.hold(5)
    place = wait(book, "job-1")
    book.clock.advance(WEEK)
    core = book.service._core
    with caplog.at_level(logging.WARNING, logger="agentcredits"):
        core.runner.settle_in_background(other._commit_operation(None, None))
        assert core.runner.flush(10)
    assert ended(told) == []
    assert f"reservation {place} of organization acme ran out: fal never gave its verdict on job job-1" in caplog.text


def test_what_waits_and_what_waited_in_vain_is_listed(book: Book) -> None:
    """Newest first; what was charged late, given back or only ran out is not."""
    vain = wait(book, "job-1", DAY)
    charged_late = wait(book, "job-2", DAY)
    given_back = wait(book, "job-3")
    book.hold(1, ttl=DAY)
    book.service.release_reservation(given_back, organization_id=ACME)

    def listed(*states: str) -> list[str]:
        return [hold.id for hold in book.service.list_reservations(ACME, states=states, unresolved=True)]

    book.clock.advance(timedelta(seconds=1))
    waiting = wait(book, "job-4")
    assert listed() == [waiting, charged_late, vain]
    book.clock.advance(DAY)
    resolve_unknown(book.service, charged_late, outcome="succeeded", organization_id=ACME)
    assert listed() == [waiting, vain]
    assert (listed("unknown"), listed("expired"), listed("active")) == ([waiting], [vain], [])


def test_a_reference_alone_finds_it_by_an_index(book: Book, app_engine: Engine) -> None:
    """Open ones before settled ones; no scan of every hold there ever was."""
    settled = wait(book, "job-1")
    resolve_unknown(book.service, ("fal", "job-1"), outcome="failed")
    assert resolve_unknown(book.service, ("fal", "job-1"), outcome="failed").id == settled
    again = wait(book, "job-1")
    assert resolve_unknown(book.service, ("fal", "job-1"), outcome="succeeded").id == again
    query = "SELECT id FROM credit_reservations WHERE provider = 'fal' AND provider_reference = 'job-1'"
    with app_engine.connect() as connection:
        if app_engine.dialect.name == "sqlite":
            plan = connection.execute(text(f"EXPLAIN QUERY PLAN {query}")).all()
        else:
            connection.execute(text("SET enable_seqscan = off"))
            plan = connection.execute(text(f"EXPLAIN {query}")).all()
    assert "ix_credit_reservations_provider" in str(plan)


def test_the_command_line_lists_and_resolves(on: Call, book: Book) -> None:
    """By id or by job; the same outcome again is harmless; what cannot be is a sentence."""
    # The command line has the host's clock, by which the first has run out.
    vain, waiting = wait(book, "job-1"), wait(book, "job-2", timedelta(days=366), 20)
    book.service.release_reservation(wait(book, "job-3"), organization_id=ACME)
    items = on("reservations", "list", ACME, "--unresolved", "--json").data["items"]
    assert {item["id"] for item in items} == {vain, waiting}
    assert "job-2" in on("reservations", "list", ACME, "--unresolved").out
    for _ in range(2):
        done = on("reservations", "resolve", ACME, "succeeded", "--id", vain, "--amount", "4", "--json")
        assert (done.code, done.data["charged"], done.data["late"]) == (0, 4, True)
    found = on("reservations", "resolve", ACME, "failed", "--provider", "fal", "--reference", "job-2")
    assert found.out.startswith(f"reservation {waiting} of 20 credits is released")
    assert on("reservations", "list", ACME, "--unresolved", "--json").data["items"] == []
    for words in (
        ("succeeded",),
        ("succeeded", "--provider", "fal"),
        ("succeeded", "--id", vain, "--reference", "job-1"),
        ("failed", "--id", vain, "--amount", "4"),
        ("perhaps", "--id", vain),
        ("failed", "--id", vain),
    ):
        assert on("reservations", "resolve", ACME, *words).code == 2
    assert book.service.get_balance(ACME).spent == 4


def test_a_limit_that_its_end_makes_room_in_has_room(book: Book) -> None:
    """Held until its end, to the microsecond, and not after it."""
    limit = book.limit(15, "lifetime")
    wait(book, "job-1", DAY)
    with pytest.raises(CreditLimitExceededError):
        book.spend(10)
    book.clock.advance(DAY)
    book.spend(10)
    assert book.counter(limit) == (10, 0)
