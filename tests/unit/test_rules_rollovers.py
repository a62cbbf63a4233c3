"""Rollovers on plain state: what is carried over from one period of a recurring grant into the next."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from agentcredits.amounts import MAX_TOTAL_MICROS
from agentcredits.model import GrantCategory, GrantStatus, Lasting
from agentcredits.rules.due import book_due
from agentcredits.rules.operations import CancelRecurring, Consume
from agentcredits.rules.periods import RolloverTerms
from agentcredits.rules.posting import decide
from agentcredits.rules.state import Changes, GrantState, Ledger
from tests.unit.recurring_book import DAY, HOUR, NOW, TOMORROW, account_of, made, operation, rows


@pytest.mark.parametrize(
    ("terms", "remaining", "earlier", "carried"),
    [
        (RolloverTerms(None, 0, "period"), 7, 100, 7),
        (RolloverTerms(5, 0, "period"), 7, 0, 5),
        (RolloverTerms(5, 0, "period"), 7, 3, 2),
        (RolloverTerms(5, 0, "period"), 7, 6, 0),
        (RolloverTerms(5, 7, "period"), 7, 0, 5),
        (RolloverTerms(5, 8, "period"), 7, 0, 0),
        (RolloverTerms(5, 3, "period"), 0, 0, 0),
    ],
)
def test_what_is_carried_over_is_never_more_than_there_is(
    terms: RolloverTerms, remaining: int, earlier: int, carried: int
) -> None:
    """The minimum is a threshold, the maximum is for all rollovers together."""
    assert terms.carried_micros(remaining, earlier) == carried


def spend(ledger: Ledger, amount: int, at: datetime = NOW) -> None:
    book_due(ledger, at)
    name = f"charge {len(ledger.rows)}"
    charge = Consume(organization_id="acme", id=name, key=name, fingerprint="f", amount_micros=amount)
    assert decide(ledger, charge, at).error is None


def rollovers(ledger: Ledger) -> list[GrantState]:
    return [grant for grant in ledger.grants.values() if grant.rolled_from is not None]


def test_the_rest_of_a_period_is_carried_over_into_the_next() -> None:
    """It leaves the old grant and becomes one of its own, of the same kind, that ends with the next period."""
    terms: dict[str, Any] = {
        "category": GrantCategory.PROMOTIONAL,
        "priority": 7,
        "unit_cost": Decimal("0.01"),
        "currency": "EUR",
        "source": "contract 1",
    }
    ledger, _ = made(**terms, rollover=RolloverTerms(None, 0, "period"))
    (old,) = ledger.grants.values()
    spend(ledger, 4)
    ledger.changes = Changes()
    book_due(ledger, NOW + DAY)
    (rollover,) = rollovers(ledger)
    assert rollover == GrantState(
        id=rollover.id,
        status=GrantStatus.ACTIVE,
        amount_micros=6,
        effective_at=TOMORROW,
        created_at=TOMORROW,
        expires_at=TOMORROW + DAY,
        recurring_id="r",
        rolled_from=old.id,
        **terms,
    )
    assert (old.status, old.voided_micros, old.expired_micros, old.remaining_micros) == (GrantStatus.EXPIRED, 6, 0, 0)
    new = next(grant for grant in ledger.grants.values() if grant not in (old, rollover))
    assert rows(ledger) == [
        ("adjust", -6, 0, old.id, "carried over into the next period"),
        ("adjust", 6, 6, rollover.id, "carried over from the period before"),
        ("credit", 10, 16, new.id, "contract 1"),
    ]
    assert {row.created_at for row in ledger.changes.rows} == {NOW + DAY}
    assert [(part.grant_id, part.amount_micros) for row in ledger.changes.rows for part in row.allocations] == [
        (old.id, 6),
        (rollover.id, 6),
        (new.id, 10),
    ]
    account = account_of(ledger)
    assert (account.granted_micros, account.voided_micros, account.available_micros) == (26, 6, 16)
    assert (ledger.changes.grants, ledger.changes.new_grants) == ({old.id}, {rollover.id, new.id})
    book_due(ledger, NOW + 2 * DAY)
    assert rollover.expired_micros == 6
    assert [grant.amount_micros for grant in rollovers(ledger)] == [6, 10]


def test_what_was_taken_back_before_is_not_carried_over() -> None:
    """It stays taken back beside what is."""
    ledger, _ = made(rollover=RolloverTerms(None, 0, "period"))
    (old,) = ledger.grants.values()
    book_due(ledger, NOW)
    old.voided_micros = account_of(ledger).voided_micros = 3
    book_due(ledger, TOMORROW)
    assert [grant.amount_micros for grant in rollovers(ledger)] == [7]
    assert (old.voided_micros, account_of(ledger).voided_micros, account_of(ledger).available_micros) == (10, 10, 17)


def test_the_grants_of_a_period_have_the_same_ids_for_ever() -> None:
    """Two machines, or two versions of the program, that book the same period make the same records."""
    ledger, _ = made(rollover=RolloverTerms(None, 0, "period"))
    book_due(ledger, TOMORROW)
    assert list(ledger.grants) == [
        "07abe3e7-2d81-5e04-8d0d-9d82c42ddde9",
        "507d2f58-f563-54dc-9b55-5147be1076d0",
        "012eb0d0-1319-5d21-9604-d2ded5a69937",
    ]


def test_a_rollover_stays_restricted_to_its_actions() -> None:
    """As the grant that it comes from."""
    ledger, _ = made(rollover=RolloverTerms(None, 0, "period"), only_for=("VideoAgent.*",))
    book_due(ledger, TOMORROW)
    assert [grant.only_for for grant in rollovers(ledger)] == [("VideoAgent.*",)]


@pytest.mark.parametrize(
    ("lasts", "expires_at"), [("period", TOMORROW + DAY), (None, None), (36 * HOUR, TOMORROW + 36 * HOUR)]
)
def test_a_rollover_lasts_as_long_as_was_said(lasts: Lasting, expires_at: datetime | None) -> None:
    """To the end of the next period, for ever, or for a time from its start."""
    ledger, _ = made(rollover=RolloverTerms(None, 0, lasts))
    book_due(ledger, TOMORROW)
    assert [grant.expires_at for grant in rollovers(ledger)] == [expires_at]


def test_earlier_rollovers_count_against_the_maximum_while_they_last() -> None:
    """What is left of them and what is held of them, as long as they do not end at this very moment."""
    ledger, _ = made(rollover=RolloverTerms(15, 0, None))
    book_due(ledger, TOMORROW)
    book_due(ledger, TOMORROW + DAY)
    assert [grant.amount_micros for grant in rollovers(ledger)] == [10, 5]
    first, second = rollovers(ledger)
    first.held_micros, second.held_micros = 3, 1
    first.spent_micros = 4
    account_of(ledger).spent_micros += 4
    account_of(ledger).reserved_micros += 4
    book_due(ledger, TOMORROW + 2 * DAY)
    assert [grant.amount_micros for grant in rollovers(ledger)] == [10, 5, 4]
    ledger, _ = made(rollover=RolloverTerms(15, 0, "period"))
    book_due(ledger, TOMORROW + 2 * DAY)
    assert [grant.amount_micros for grant in rollovers(ledger)] == [10, 10, 10]
    ledger, _ = made(rollover=RolloverTerms(15, 0, 36 * HOUR))
    book_due(ledger, TOMORROW + 2 * DAY)
    assert [grant.amount_micros for grant in rollovers(ledger)] == [10, 5, 10]


def test_rollovers_of_others_do_not_count_nor_do_those_that_were_taken_back() -> None:
    """Only those of the same recurring grant that can still be used."""
    ledger, _ = made(rollover=RolloverTerms(15, 0, None))
    assert decide(ledger, operation("other", rollover=RolloverTerms(12, 0, None)), NOW).error is None
    book_due(ledger, TOMORROW)
    assert [grant.amount_micros for grant in rollovers(ledger)] == [10, 10]
    mine = next(grant for grant in rollovers(ledger) if grant.recurring_id == "r")
    mine.status = GrantStatus.VOIDED
    book_due(ledger, TOMORROW + DAY)
    amounts = {(grant.recurring_id, grant.effective_at): grant.amount_micros for grant in rollovers(ledger)}
    assert (amounts["r", TOMORROW + DAY], amounts["other", TOMORROW + DAY]) == (10, 2)


@pytest.mark.parametrize(
    ("changes", "carried"),
    [
        ({}, []),
        ({"rollover": RolloverTerms(0, 0, None)}, []),
        ({"rollover": RolloverTerms(1, 0, None)}, [1]),
        ({"rollover": RolloverTerms(None, 11, None)}, []),
        ({"rollover": RolloverTerms(None, 0, None), "ends_at": TOMORROW}, []),
        ({"rollover": RolloverTerms(None, 0, None), "expires_after": None}, []),
        ({"rollover": RolloverTerms(None, 0, None), "expires_after": HOUR}, []),
    ],
    ids=["no terms", "nothing", "one", "too little", "the last period", "lasts for ever", "ended before"],
)
def test_only_what_the_terms_allow_is_carried_over(changes: dict[str, Any], carried: list[int]) -> None:
    """And only at the end of a period that another one follows."""
    ledger, _ = made(**changes)
    book_due(ledger, TOMORROW)
    assert [grant.amount_micros for grant in rollovers(ledger)] == carried
    assert account_of(ledger).voided_micros == sum(carried)


def test_nothing_is_carried_over_after_a_cancellation() -> None:
    """It is breakage, as what is left of a grant that nobody made to come again."""
    ledger, one = made(rollover=RolloverTerms(None, 0, None))
    decide(ledger, CancelRecurring(organization_id="acme", recurring_id="r"), NOW)
    one.next_at = TOMORROW
    book_due(ledger, TOMORROW)
    assert (rollovers(ledger), account_of(ledger).expired_micros) == ([], 10)


def test_an_account_carries_over_no_more_than_it_can_count() -> None:
    """To the micro."""
    for room, carried in ((3, [3]), (1, [1]), (0, [])):
        ledger, _ = made(rollover=RolloverTerms(None, 0, None))
        account_of(ledger).granted_micros = MAX_TOTAL_MICROS - room
        book_due(ledger, TOMORROW)
        assert [grant.amount_micros for grant in rollovers(ledger)] == carried
