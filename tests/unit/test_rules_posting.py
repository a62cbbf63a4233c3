"""Deciding operations on loaded state: a refusal touches nothing, a key answers again, every row adds up."""

from __future__ import annotations

import copy
from datetime import timedelta
from typing import Any

import pytest

from agentcredits.amounts import MAX_AMOUNT_MICROS, MAX_TOTAL_MICROS
from agentcredits.errors import (
    AccountNotFoundError,
    CreditsError,
    GrantNotFoundError,
    IdempotencyMismatchError,
    InsufficientCreditsError,
    InvalidAmountError,
    InvalidInputError,
    OverageRejectedError,
    RefundExceedsChargeError,
    ReservationAlreadySettledError,
    ReservationExpiredError,
    ReservationNotFoundError,
    TransactionNotFoundError,
)
from agentcredits.model import GrantStatus, Overage, Pricing, ReservationState
from agentcredits.rules import operations as ops
from agentcredits.rules.due import book_due
from agentcredits.rules.posting import Outcome, decide
from agentcredits.rules.state import AccountState, GrantState, HoldState, Ledger, Row
from agentcredits.testing import START as NOW

ACME = "acme"
TTL = timedelta(minutes=5)
DAY = timedelta(days=1)


class Book:
    """An account and a clock, with short names for the operations; ids are counted."""

    def __init__(self) -> None:
        self.ledger = Ledger(ACME, AccountState(ACME, NOW, NOW))
        self.now = NOW
        self._count = 0

    def _new(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}{self._count}"

    def decide(self, operation: ops.Operation) -> Outcome:
        book_due(self.ledger, self.now)
        return decide(self.ledger, operation, self.now)

    def do(self, operation: ops.Operation) -> Any:
        outcome = self.decide(operation)
        if outcome.error is not None:
            raise outcome.error
        return outcome.record

    def keyed(self, kind: str, **arguments: Any) -> Any:
        key = arguments.pop("key", None) or self._new("key")
        payload = {name: value for name, value in arguments.items() if name != "ttl"}
        return {"grant": ops.Grant, "consume": ops.Consume, "reserve": ops.Reserve, "refund": ops.Refund}[kind](
            organization_id=ACME,
            id=self._new(kind[0]),
            key=key,
            fingerprint=ops.fingerprint(kind, *sorted(payload.items())),
            **arguments,
        )

    def grant(self, amount: int, **arguments: Any) -> GrantState:
        made: GrantState = self.do(self.keyed("grant", amount_micros=amount, **arguments))
        return made

    def consume(self, amount: int, **arguments: Any) -> Row:
        made: Row = self.do(self.keyed("consume", amount_micros=amount, **arguments))
        return made

    def reserve(self, amount: int, **arguments: Any) -> HoldState:
        made: HoldState = self.do(self.keyed("reserve", amount_micros=amount, **({"ttl": TTL} | arguments)))
        return made

    def refund(self, charge: Row, amount: int | None = None, **arguments: Any) -> Row:
        made: Row = self.do(self.keyed("refund", transaction_id=charge.id, amount_micros=amount, **arguments))
        return made

    def commit(self, hold: HoldState, amount: int | None = None, **arguments: Any) -> HoldState:
        made: HoldState = self.do(
            ops.Commit(
                organization_id=ACME,
                reservation_id=hold.id,
                transaction_id=self._new("t"),
                amount_micros=amount,
                **arguments,
            )
        )
        return made

    def release(self, hold: HoldState, **arguments: Any) -> HoldState:
        made: HoldState = self.do(ops.Release(organization_id=ACME, reservation_id=hold.id, **arguments))
        return made

    @property
    def account(self) -> AccountState:
        assert self.ledger.account is not None
        return self.ledger.account

    @property
    def rows(self) -> list[tuple[str, int, int]]:
        return [(row.type.value, row.amount_micros, row.balance_after_micros) for row in self.ledger.changes.rows]


@pytest.fixture
def book() -> Book:
    return Book()


def parts(record: Row | HoldState) -> list[tuple[str | None, int]]:
    return [(part.grant_id, part.amount_micros) for part in record.allocations]


# -- refusals ------------------------------------------------------------------------------------------------------


def refusals() -> dict[str, tuple[type[CreditsError], Any]]:
    """What each operation can be refused for, on a book with a grant, a charge, a hold and a settled hold."""

    def commit(place: str, amount: int | None) -> ops.Commit:
        return ops.Commit(organization_id=ACME, reservation_id=place, transaction_id="t", amount_micros=amount)

    return {
        "grant that ended": (
            InvalidInputError,
            lambda book: book.keyed("grant", amount_micros=1, expires_at=book.now),
        ),
        "grant that is too much": (
            InvalidAmountError,
            lambda book: book.keyed("grant", amount_micros=MAX_TOTAL_MICROS),
        ),
        "consume": (InsufficientCreditsError, lambda book: book.keyed("consume", amount_micros=1000)),
        "reserve": (InsufficientCreditsError, lambda book: book.keyed("reserve", amount_micros=1000, ttl=TTL)),
        "key of another charge": (
            IdempotencyMismatchError,
            lambda book: book.keyed("consume", amount_micros=2, key="charge"),
        ),
        "refund of too much": (
            RefundExceedsChargeError,
            lambda book: book.keyed("refund", transaction_id=book.charge.id, amount_micros=11),
        ),
        "refund of nothing": (
            TransactionNotFoundError,
            lambda book: book.keyed("refund", transaction_id="nowhere", amount_micros=None),
        ),
        "refund of a grant's row": (
            TransactionNotFoundError,
            lambda book: book.keyed("refund", transaction_id=book.purchase, amount_micros=None),
        ),
        "void of nothing": (GrantNotFoundError, lambda _book: ops.VoidGrant(organization_id=ACME, grant_id="nowhere")),
        "commit of nothing": (ReservationNotFoundError, lambda _book: commit("nowhere", 1)),
        "commit of too much": (OverageRejectedError, lambda book: commit(book.hold.id, 21)),
        "commit of what is settled": (ReservationAlreadySettledError, lambda book: commit(book.settled.id, 4)),
        "release of what is settled": (
            ReservationAlreadySettledError,
            lambda book: ops.Release(organization_id=ACME, reservation_id=book.settled.id),
        ),
    }


@pytest.mark.parametrize("name", refusals())
def test_a_refusal_touches_nothing(name: str) -> None:
    """State and the list of changes are the same, to the last field."""
    book: Any = Book()
    book.grant(100)
    book.purchase = book.ledger.changes.rows[0].id
    book.charge = book.consume(10, key="charge")
    book.hold = book.reserve(20)
    book.settled = book.commit(book.reserve(5), 3)
    error, make = refusals()[name]
    operation = make(book)
    before = copy.deepcopy(book.ledger)
    outcome = book.decide(operation)
    assert type(outcome.error) is error
    assert outcome.record is None
    assert book.ledger == before


def test_an_unknown_organization_is_refused_by_every_operation() -> None:
    """Money operations say that there is no account; those on a record that there is no such record."""
    book = Book()
    book.ledger = Ledger(ACME)
    found = {
        type(operation).__name__: type(book.decide(operation).error)
        for operation in (
            book.keyed("consume", amount_micros=1),
            book.keyed("reserve", amount_micros=1, ttl=TTL),
            book.keyed("refund", transaction_id="x"),
            ops.VoidGrant(organization_id=ACME, grant_id="x"),
            ops.Expire(organization_id=ACME),
            ops.Commit(organization_id=ACME, reservation_id="x", transaction_id="t"),
            ops.Release(organization_id=ACME, reservation_id="x"),
            ops.Extend(organization_id=ACME, reservation_id="x", ttl=TTL),
            ops.MarkUnknown(organization_id=ACME, reservation_id="x", provider="p", provider_reference=None, ttl=TTL),
        )
    }
    assert found == dict.fromkeys(("Consume", "Reserve", "Refund", "VoidGrant", "Expire"), AccountNotFoundError) | (
        dict.fromkeys(("Commit", "Release", "Extend", "MarkUnknown"), ReservationNotFoundError)
    )


def test_an_account_takes_as_much_as_its_counter_holds(book: Book) -> None:
    """Up to the limit and not a micro more."""
    whole, rest = divmod(MAX_TOTAL_MICROS, MAX_AMOUNT_MICROS)
    for _ in range(whole):
        book.grant(MAX_AMOUNT_MICROS)
    book.grant(rest)
    with pytest.raises(InvalidAmountError) as refusal:
        book.grant(1)
    assert refusal.value.reason == "total_too_large"
    assert book.account.granted_micros == MAX_TOTAL_MICROS < 2**63


# -- keys ----------------------------------------------------------------------------------------------------------


def test_the_second_operation_with_a_key_replays_the_first_of_its_batch(book: Book) -> None:
    """Not loaded from anywhere: the state that the first one left."""
    first = book.grant(10, key="g")
    charge = book.consume(4, key="c")
    outcome = book.decide(book.keyed("consume", amount_micros=4, key="c"))
    assert (outcome.record, outcome.replayed) == (charge, True)
    assert book.decide(book.keyed("grant", amount_micros=10, key="g")).record is first
    assert len(book.rows) == 2


def test_the_second_operation_is_decided_afresh_where_the_first_was_refused(book: Book) -> None:
    """A refusal stores no key, so that the same call may succeed a moment later."""
    book.grant(3)
    with pytest.raises(InsufficientCreditsError):
        book.consume(4, key="c")
    book.grant(1)
    assert not book.decide(book.keyed("consume", amount_micros=4, key="c")).replayed
    assert book.account.spent_micros == 4


def test_a_key_is_asked_before_the_balance(book: Book) -> None:
    """A replay needs no credits, and a mismatch is told even where there are none."""
    book.grant(4)
    book.consume(4, key="c")
    assert book.decide(book.keyed("consume", amount_micros=4, key="c")).replayed
    with pytest.raises(IdempotencyMismatchError):
        book.consume(5, key="c")


def test_kinds_of_calls_have_keys_of_their_own(book: Book) -> None:
    """One order number may grant, charge, reserve and refund."""
    book.grant(100, key="order")
    charge = book.consume(1, key="order")
    book.reserve(2, key="order")
    book.refund(charge, key="order")
    assert len(book.ledger.changes.new_keys) == 4


def test_a_key_that_is_used_again_is_written_over(book: Book) -> None:
    """After a release the key stands for the new hold."""
    book.grant(10)
    first = book.reserve(1, key="k")
    book.release(first)
    second = book.reserve(1, key="k")
    assert second.id != first.id
    assert book.ledger.keys["reserve", "k"].result_id == second.id
    assert book.decide(book.keyed("reserve", amount_micros=1, ttl=TTL, key="k")).record is second


def test_the_fingerprint_is_the_kind_and_the_payload() -> None:
    """Stable, and different for whatever differs."""
    texts = [
        ops.fingerprint("consume", "acme", 1),
        ops.fingerprint("reserve", "acme", 1),
        ops.fingerprint("consume", "acme", 2),
        ops.fingerprint("consume", "acme", "1"),
        ops.fingerprint("consume", "acme1"),
        ops.fingerprint("consume", "acme", None),
    ]
    assert len(set(texts)) == len(texts)
    assert texts[0] == ops.fingerprint("consume", "acme", 1)
    assert {len(text) for text in texts} == {32}


# -- charging ------------------------------------------------------------------------------------------------------


def test_a_charge_takes_exactly_what_is_usable(book: Book) -> None:
    """Scheduled, ended and held credits are no room."""
    book.grant(5)
    book.grant(7, effective_at=NOW + DAY)
    book.grant(9, expires_at=NOW + TTL)
    book.reserve(2, ttl=DAY)
    book.now = NOW + TTL
    with pytest.raises(InsufficientCreditsError) as refusal:
        book.consume(6)
    assert refusal.value.context["available"] * 1_000_000 == 5
    assert book.consume(5).balance_after_micros == 5 + 7 + 2 - 5


def test_a_capped_charge_takes_what_is_there(book: Book) -> None:
    """The rest stands on the row as uncollected, also when nothing is there."""
    book.grant(3)
    first = book.consume(5, overage=Overage.CAP)
    second = book.consume(5, overage=Overage.CAP)
    assert [(row.amount_micros, row.uncollected_micros) for row in (first, second)] == [(-3, 2), (0, 5)]
    assert book.account.available_micros == 0


@pytest.mark.parametrize("pricing", [Pricing.FREE, Pricing.UNPRICED])
def test_an_action_that_costs_nothing_writes_a_row_of_nothing(book: Book, pricing: Pricing) -> None:
    """At once or through a hold: that it happened is in the ledger; a priced commit of 0 is not."""
    book.grant(1)
    activity = ops.Activity(agent_type="Agent", action="act", pricing=pricing)
    book.consume(0, activity=activity)
    book.commit(book.reserve(0, activity=activity))
    book.commit(book.reserve(1), 0)
    assert book.rows == [("purchase", 1, 1), ("debit", 0, 1), ("debit", 0, 1)]
    assert [row.pricing for row in book.ledger.changes.rows[1:]] == [pricing, pricing]


def test_an_over_run_continues_in_the_burn_down_order(book: Book) -> None:
    """First the hold, then what is usable now; neighbours of one grant become one part."""
    first = book.grant(10, priority=2)
    hold = book.reserve(6)
    early = book.grant(3, priority=1)
    book.commit(hold, 12, overage=Overage.CAP)
    row = book.ledger.changes.rows[-1]
    assert parts(row) == [(first.id, 6), (early.id, 3), (first.id, 3)]
    assert (row.amount_micros, hold.uncollected_micros) == (-12, 0)
    refunds = [parts(book.refund(row, amount)) for amount in (1, 3, 3, None)]
    assert refunds == [
        [(first.id, 1)],
        [(first.id, 2), (early.id, 1)],
        [(early.id, 2), (first.id, 1)],
        [(first.id, 5)],
    ]
    assert book.account.spent_micros == 0
    with pytest.raises(RefundExceedsChargeError):
        book.refund(row)


def test_the_end_of_a_block_leaves_alone_what_is_decided(book: Book) -> None:
    """Committed, released or waiting for a verdict inside the block: the automatic settlement changes nothing."""
    book.grant(100)
    committed = book.commit(book.reserve(10), 4)
    released = book.release(book.reserve(10))
    waiting = book.reserve(10)
    book.do(
        ops.MarkUnknown(
            organization_id=ACME, reservation_id=waiting.id, provider="fal", provider_reference=None, ttl=DAY
        )
    )
    before = copy.deepcopy(book.ledger)
    for hold in (committed, released, waiting):
        assert book.commit(hold, late=True, overage=Overage.CAP, automatic=True).id == hold.id
        assert book.release(hold, automatic=True).id == hold.id
    assert book.ledger == before
    assert waiting.state is ReservationState.UNKNOWN


def test_a_void_between_hold_and_settlement_keeps_every_counter_straight(book: Book) -> None:
    """Used stays spent, given back becomes breakage, and a refund to it ends at once."""
    grant = book.grant(10)
    hold = book.reserve(6)
    book.do(ops.VoidGrant(organization_id=ACME, grant_id=grant.id))
    book.commit(hold, 4)
    charge = book.ledger.changes.rows[-2]
    book.refund(charge, 3)
    assert book.rows == [
        ("purchase", 10, 10),
        ("adjust", -4, 6),
        ("debit", -4, 2),
        ("expire", -2, 0),
        ("refund", 3, 3),
        ("expire", -3, 0),
    ]
    assert (grant.status, grant.spent_micros, grant.expired_micros, grant.voided_micros, grant.held_micros) == (
        GrantStatus.VOIDED,
        1,
        5,
        4,
        0,
    )
    assert book.account.available_micros == grant.remaining_micros == 0


def test_a_refund_brings_a_used_up_grant_back_to_life_with_its_end(book: Book) -> None:
    """The end that nobody had to wait for any more counts again."""
    book.grant(10, expires_at=NOW + DAY)
    charge = book.consume(10)
    book.now += timedelta(hours=1)
    book.account.next_due_at = None
    book.refund(charge, 4)
    assert book.account.next_due_at == NOW + DAY
    book.now = NOW + DAY
    book.do(ops.Expire(organization_id=ACME))
    assert book.rows[-1] == ("expire", -4, 0)


def test_a_reserve_whose_own_hold_ended_unseen_is_refused_and_may_be_repeated(book: Book) -> None:
    """Its answer was lost and it is tried again when the hold has run out: no second record under the same id."""
    book.grant(10)
    lost = book.keyed("reserve", amount_micros=4, ttl=TTL, key="k")
    book.do(lost)
    book.now += TTL
    with pytest.raises(ReservationExpiredError, match="nothing is held") as refusal:
        book.do(lost)
    assert refusal.value.retryable
    assert book.account.reserved_micros == 0
    assert book.reserve(4, key="k").id != lost.id
    assert book.account.reserved_micros == 4


def test_a_batch_says_what_has_to_be_written(book: Book) -> None:
    """New records apart from changed ones, so that each is inserted or updated once."""
    grant = book.grant(10)
    hold = book.reserve(5)
    book.commit(hold, 2)
    changes = book.ledger.changes
    assert (changes.new_grants, changes.grants) == ({grant.id}, set())
    assert (changes.new_holds, changes.holds) == ({hold.id}, set())
    assert [row.seq for row in changes.rows] == [1, 2]
    assert changes.account
