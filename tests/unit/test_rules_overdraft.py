"""The overdraft line on plain state: what it lends, who pays the debt, and who gets it back after a refund."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from agentcredits.model import Allocation, GrantCategory, GrantStatus, Overage
from agentcredits.rules import overdraft
from agentcredits.rules.state import AccountState, Changes, GrantState, Ledger
from agentcredits.testing import START as NOW

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def grant(name: str, amount: int, **changes: Any) -> GrantState:
    times = {"effective_at": NOW - DAY, "created_at": NOW - DAY}
    facts = {"category": GrantCategory.PAID, "priority": 50, "status": GrantStatus.ACTIVE}
    return GrantState(**{"id": name, "amount_micros": amount} | facts | times | changes)


def ledger_of(*grants: GrantState, debt: int = 0, line: int = 0) -> Ledger:
    """A ledger whose counters say what the grants and the debt say."""
    account = AccountState("acme", NOW - DAY, NOW - DAY, overdraft_micros=line, overdrawn_micros=debt)
    account.granted_micros = sum(one.amount_micros for one in grants)
    account.spent_micros = sum(one.spent_micros for one in grants) + debt
    return Ledger("acme", account, {one.id: one for one in grants})


def account_of(ledger: Ledger) -> AccountState:
    assert ledger.account is not None
    return ledger.account


def parts(allocations: tuple[Allocation, ...]) -> list[tuple[str | None, int]]:
    return [(part.grant_id, part.amount_micros) for part in allocations]


def rows(ledger: Ledger) -> list[tuple[str, int, int, str | None, list[tuple[str | None, int]]]]:
    return [
        (row.type.value, row.amount_micros, row.balance_after_micros, row.grant_id, parts(row.allocations))
        for row in ledger.changes.rows
    ]


def is_straight(ledger: Ledger) -> bool:
    """Spent is what the grants say and the debt; no grant went beyond its amount."""
    account = account_of(ledger)
    grants = ledger.grants.values()
    return account.spent_micros == sum(one.spent_micros for one in grants) + account.overdrawn_micros and all(
        0 <= one.repaid_micros <= one.spent_micros and one.remaining_micros >= 0 for one in grants
    )


# -- what is lent --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "line", "debt", "taken"),
    [
        (0, 10, 0, []),
        (4, 10, 0, [("a", 3), ("b", 1)]),
        (8, 10, 0, [("a", 3), ("b", 5)]),
        (9, 10, 0, [("a", 3), ("b", 5), (None, 1)]),
        (30, 10, 0, [("a", 3), ("b", 5), (None, 10)]),
        (30, 10, 7, [("a", 3), ("b", 5), (None, 3)]),
        (30, 10, 10, [("a", 3), ("b", 5)]),
        # The line was lowered below the debt.
        (30, 4, 7, [("a", 3), ("b", 5)]),
        (30, 0, 0, [("a", 3), ("b", 5)]),
    ],
)
def test_the_line_lends_what_the_grants_are_short_of(
    wanted: int, line: int, debt: int, taken: list[tuple[str | None, int]]
) -> None:
    """As far as it goes, and only to charges that ask for it: a capped one takes what is there."""
    usable = [grant("a", 3), grant("b", 7, spent_micros=2)]
    account = account_of(ledger_of(debt=debt, line=line))
    assert parts(overdraft.take(account, usable, wanted, Overage.OVERDRAFT)) == taken
    of_grants = [part for part in taken if part[0] is not None]
    assert parts(overdraft.take(account, usable, wanted, Overage.CAP)) == of_grants


def test_what_is_taken_is_booked_on_its_grant_or_as_debt() -> None:
    """Spending says how much it is in all; debt alone changes the account's standing."""
    ledger = ledger_of(grant("a", 10, spent_micros=1), grant("b", 10), debt=2)
    assert overdraft.spend(ledger, (Allocation("a", 3), Allocation("b", 4))) == 7
    assert (ledger.changes.grants, ledger.changes.standing) == ({"a", "b"}, False)
    assert overdraft.spend(ledger, (Allocation("a", 1), Allocation(None, 5))) == 6
    assert ledger.changes.standing
    assert [one.spent_micros for one in ledger.grants.values()] == [5, 4]
    assert account_of(ledger).overdrawn_micros == 7
    assert overdraft.spend(ledger, ()) == 0


# -- paid back -----------------------------------------------------------------------------------------------------


def test_usable_grants_pay_the_debt_in_burn_down_order() -> None:
    """Each with a row of amount 0 that leaves the balance as it is; those that are not needed pay nothing."""
    ledger = ledger_of(grant("later", 9, priority=2), grant("first", 5, priority=1, spent_micros=2), debt=7)
    ledger.grants["last"] = grant("last", 4, priority=3)
    account_of(ledger).granted_micros += 4
    overdraft.repay(ledger, NOW, NOW)
    assert rows(ledger) == [
        ("adjust", 0, 9, "first", [("first", 3), (None, 3)]),
        ("adjust", 0, 9, "later", [("later", 4), (None, 4)]),
    ]
    assert {(row.reason, row.created_at) for row in ledger.changes.rows} == {("overdraft paid back", NOW)}
    assert account_of(ledger).overdrawn_micros == 0
    assert [(one.spent_micros, one.repaid_micros) for one in ledger.grants.values()] == [(4, 4), (5, 3), (0, 0)]
    assert is_straight(ledger)
    assert ledger.changes.grants == ledger.changes.repaid == {"first", "later"}
    assert ledger.changes.standing


def test_what_is_missing_stays_debt() -> None:
    """To the micro."""
    ledger = ledger_of(grant("a", 3), grant("b", 2), debt=6)
    overdraft.repay(ledger, NOW, NOW)
    assert account_of(ledger).overdrawn_micros == 1
    ledger.grants["c"] = grant("c", 1)
    account_of(ledger).granted_micros += 1
    overdraft.repay(ledger, NOW, NOW)
    assert account_of(ledger).overdrawn_micros == 0
    assert is_straight(ledger)


def test_a_micro_of_debt_is_paid_and_none_is_not() -> None:
    """Nor is a credit that a refund still has to hand on."""
    for debt, paid in ((1, 1), (0, 0), (-2, 0)):
        ledger = ledger_of(grant("a", 3), debt=debt)
        overdraft.repay(ledger, NOW, NOW)
        assert ledger.grants["a"].repaid_micros == paid
        assert len(ledger.changes.rows) == paid
        assert ledger.changes.account == ledger.changes.standing == bool(paid)


def test_only_what_is_usable_at_the_moment_pays() -> None:
    """Restricted grants are kept for their actions; scheduled and ended ones count at the moment that is booked."""
    ledger = ledger_of(
        grant("restricted", 10, only_for=("VideoAgent.*",)),
        grant("starts", 10, effective_at=NOW - HOUR),
        grant("ended", 10, status=GrantStatus.EXPIRED),
        grant("ends", 10, expires_at=NOW - HOUR),
        grant("held", 10, held_micros=10),
        debt=25,
    )
    overdraft.repay(ledger, NOW - 2 * HOUR, NOW)
    assert [(row.grant_id, row.created_at) for row in ledger.changes.rows] == [("ends", NOW)]
    overdraft.repay(ledger, NOW, NOW)
    assert [row.grant_id for row in ledger.changes.rows] == ["ends", "starts"]
    assert account_of(ledger).overdrawn_micros == 5


# -- given back ----------------------------------------------------------------------------------------------------


def repaid(name: str, amount: int, part: int, **changes: Any) -> GrantState:
    """A grant that is used up, a part of it for the debt."""
    return grant(name, amount, **{"spent_micros": amount, "repaid_micros": part} | changes)


def test_a_refund_beyond_the_debt_goes_to_the_newest_payer_first() -> None:
    """As far as each had paid, with a row of amount 0 that leaves the balance as it is."""
    ledger = ledger_of(
        repaid("old", 9, 4),
        repaid("new", 9, 3, created_at=NOW - HOUR),
        grant("no payer", 9, created_at=NOW),
        repaid("oldest", 9, 2, created_at=NOW - 2 * DAY, effective_at=NOW - 2 * DAY),
        debt=-5,
    )
    overdraft.give_back(ledger, NOW)
    assert rows(ledger) == [
        ("adjust", 0, 14, "new", [(None, 3), ("new", 3)]),
        ("adjust", 0, 14, "old", [(None, 2), ("old", 2)]),
    ]
    assert {(row.reason, row.created_at) for row in ledger.changes.rows} == {
        ("a refund of what was paid back before", NOW)
    }
    account = account_of(ledger)
    assert (account.overdrawn_micros, account.available_micros) == (0, 14)
    assert [(one.spent_micros, one.repaid_micros) for one in ledger.grants.values()] == [
        (7, 2),
        (6, 0),
        (0, 0),
        (9, 2),
    ]
    assert is_straight(ledger)
    assert ledger.changes.grants == ledger.changes.repaid == {"old", "new"}
    assert ledger.changes.standing
    before = ledger.changes.rows.copy()
    overdraft.give_back(ledger, NOW)
    assert ledger.changes.rows == before


@pytest.mark.parametrize("debt", [0, 1, 9])
def test_while_there_is_debt_nobody_gets_anything_back(debt: int) -> None:
    """A refund lowers the debt first."""
    ledger = ledger_of(repaid("a", 9, 4), debt=debt)
    overdraft.give_back(ledger, NOW)
    assert ledger.changes == Changes()
    assert ledger.grants["a"].repaid_micros == 4


def test_a_single_micro_is_given_back() -> None:
    """Of a payer of one micro."""
    ledger = ledger_of(repaid("a", 1, 1), debt=-1)
    overdraft.give_back(ledger, NOW)
    assert ledger.grants["a"].remaining_micros == 1
    assert is_straight(ledger)


@pytest.mark.parametrize(
    ("newer", "older"),
    [
        ({"created_at": NOW - 2 * HOUR, "effective_at": NOW - HOUR}, {"created_at": NOW - 2 * HOUR}),
        ({"created_at": NOW - HOUR, "effective_at": NOW - 3 * HOUR}, {"effective_at": NOW - 2 * HOUR}),
        ({"created_at": NOW - HOUR}, {"effective_at": NOW - HOUR, "id": "a"}),
    ],
    ids=["starts later", "made later", "of one moment: by id"],
)
def test_a_payer_is_as_old_as_its_first_chance_to_pay(newer: dict[str, Any], older: dict[str, Any]) -> None:
    """From the later of its start and its making on."""
    ledger = ledger_of(repaid("old", 5, 5, **older), repaid("z", 5, 5, **newer), debt=-5)
    overdraft.give_back(ledger, NOW)
    assert [row.grant_id for row in ledger.changes.rows] == ["z"]


@pytest.mark.parametrize("status", [GrantStatus.EXPIRED, GrantStatus.VOIDED])
def test_what_an_ended_payer_gets_back_is_breakage(status: GrantStatus) -> None:
    """It leaves the account at once; the same for one whose end nobody booked because it was used up."""
    for changes in ({"status": status}, {"expires_at": NOW}):
        ledger = ledger_of(repaid("a", 9, 4, **changes), debt=-3)
        overdraft.give_back(ledger, NOW)
        assert rows(ledger) == [
            ("adjust", 0, 3, "a", [(None, 3), ("a", 3)]),
            ("expire", -3, 0, "a", [("a", 3)]),
        ]
        one = ledger.grants["a"]
        assert one.status in (status, GrantStatus.EXPIRED)
        assert (one.expired_micros, one.remaining_micros, account_of(ledger).expired_micros) == (3, 0, 3)
        assert {row.created_at for row in ledger.changes.rows} == {NOW}
        assert account_of(ledger).next_due_at is None


def test_what_a_payer_gets_back_ends_with_it() -> None:
    """Its end, which nobody waited for any more, is due again."""
    ledger = ledger_of(repaid("a", 9, 4, expires_at=NOW + DAY), debt=-3)
    overdraft.give_back(ledger, NOW)
    assert account_of(ledger).next_due_at == NOW + DAY
    assert rows(ledger) == [("adjust", 0, 3, "a", [(None, 3), ("a", 3)])]
