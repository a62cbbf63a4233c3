"""Races for one hold, one charge, one room that is new, and the last credits: exactly those win who may."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any, Protocol

import pytest

from agentcredits.errors import (
    CreditLimitExceededError,
    CreditsError,
    InsufficientCreditsError,
    RefundExceedsChargeError,
    ReservationAlreadySettledError,
)
from agentcredits.service import SyncCreditService
from tests.concurrency import workers
from tests.proof.conftest import Record
from tests.proof.naive_races import SelectThenUpdate
from tests.proof.racing import Racers, kind_of

ACME = "acme"
TTL = timedelta(minutes=5)


class Books(Protocol):
    """What the harnesses race on."""

    def racers(self, number: int) -> list[Callable[[], bool]]:
        """Four calls of which exactly one may win."""

    def crowd(self, number: int) -> tuple[int, Callable[[int], bool]]:
        """How many of a crowd may win, and what each of it does."""


@pytest.fixture
def services(database_url: str) -> Iterator[list[SyncCreditService]]:
    """Two services with an engine and a runner each, as two processes would have."""
    engines = [workers.own_engine(database_url) for _ in range(2)]
    made = [SyncCreditService(engine) for engine in engines]
    made[0].grant_credits(ACME, 10_000_000)
    yield made
    for service in made:
        service.close()
    for engine in engines:
        engine.dispose()


class RealBooks:
    """The ledger, through two services; what the winners were told is added up."""

    def __init__(self, services: list[SyncCreditService]) -> None:
        self._services = services
        self.spent = Decimal(0)
        services[0].set_limit(ACME, amount=10, window="month", scope="department")
        services[0].set_limit(ACME, amount=7, window="day", scope="user", unit="count")

    def racers(self, number: int) -> list[Callable[[], bool]]:
        """Even: two commits and two releases of one hold. Odd: four refunds of one charge, without a key."""
        first, second = self._services
        if number % 2:
            charge = first.consume_credits(organization_id=ACME, amount=5).id
            self.spent += 5
            return [lambda by=by: self._refund(by, charge) for by in (first, second) * 2]
        hold = first.reserve_credits(organization_id=ACME, amount=5, ttl=TTL).id
        return [
            lambda: self._settle(lambda: first.commit_reservation(hold, 2, organization_id=ACME)),
            lambda: self._settle(lambda: second.commit_reservation(hold, 3, organization_id=ACME)),
            lambda: self._settle(lambda: first.release_reservation(hold, organization_id=ACME)),
            lambda: self._settle(lambda: second.release_reservation(hold, organization_id=ACME)),
        ]

    def _settle(self, act: Callable[[], Any]) -> bool:
        try:
            record = act()
        except ReservationAlreadySettledError:
            return False
        if not record.replayed:
            self.spent += record.charged
        return not record.replayed

    def _refund(self, service: SyncCreditService, charge: str) -> bool:
        try:
            row = service.refund_credits(charge, organization_id=ACME)
        except RefundExceedsChargeError:
            return False
        self.spent -= row.amount
        return True

    def crowd(self, number: int) -> tuple[int, Callable[[int], bool]]:
        """In turn: a department's first credits, a user's first calls, an account's last credits."""
        if number % 3 == 2:
            account = f"last-{number}"
            self._services[0].grant_credits(account, 5)
            return 5, lambda place: self._use(place, account, {})
        scope = {"user_id": f"new-{number}"} if number % 3 else {"department_id": f"new-{number}"}
        return 7 if number % 3 else 10, lambda place: self._use(place, ACME, scope)

    def _use(self, place: int, account: str, scope: dict[str, Any]) -> bool:
        """One credit, half of the crowd at once and half through a hold."""
        service = self._services[place % 2]
        try:
            if place % 4 < 2:
                service.consume_credits(organization_id=account, amount=1, **scope)
            else:
                service.reserve_credits(organization_id=account, amount=1, ttl=TTL, **scope).commit()
        except (CreditLimitExceededError, InsufficientCreditsError):
            return False
        return True


# -- the harnesses -------------------------------------------------------------------------------------------------


def settle(books: Books, rounds: int) -> Counter[str]:
    """Four racers in each round; how many wins were too many, and how many rounds nobody won."""
    found = Counter({"won twice": 0, "won by nobody": 0})
    with Racers(4) as racers:
        for number in range(rounds):
            acts = books.racers(number)
            wins = sum(check(racers.race(lambda place, acts=acts: acts[place]())))  # type: ignore[misc]
            found["won twice"] += max(0, wins - 1)
            found["won by nobody"] += wins == 0
    return found


def crowd(books: Books, rounds: int) -> Counter[str]:
    """64 in each round; by how many they were let through too often, or too seldom."""
    found = Counter({"overshoot": 0, "left unused": 0})
    with Racers(64) as racers:
        for number in range(rounds):
            allowed, act = books.crowd(number)
            wins = sum(check(racers.race(act)))
            found["overshoot"] += max(0, wins - allowed)
            found["left unused"] += max(0, allowed - wins)
    return found


def check(results: list[Any]) -> list[bool]:
    """The results, when none is an error that nobody expected."""
    for result in results:
        if isinstance(result, CreditsError):
            raise result
    return results


# -- the proofs ----------------------------------------------------------------------------------------------------


@pytest.mark.proof
@pytest.mark.timeout(1_800)
def test_every_hold_and_every_charge_is_settled_once(
    services: list[SyncCreditService], database_url: str, proof: str, record: Record
) -> None:
    """2,000 rounds of four racers; short: 100. The ledger holds what the winners were told, and not a credit more."""
    rounds = 2_000 if proof == "long" else 100
    books = RealBooks(services)
    wrong = settle(books, rounds)
    balance = services[1].get_balance(ACME)
    wrong["credits that nobody was told of"] = int(balance.spent != books.spent)
    wrong["still held"] = int(balance.reserved)
    wrong["verify"] = len(services[0].verify(ACME).problems)
    record(
        "settle and refund races",
        count=rounds,
        unit="× 4 racers",
        seed=None,
        wrong=wrong,
        database=kind_of(database_url),
    )


@pytest.mark.proof
@pytest.mark.timeout(1_800)
def test_a_crowd_of_64_gets_what_is_there(
    services: list[SyncCreditService], database_url: str, proof: str, record: Record
) -> None:
    """500 rounds of first use and last credits; short: 20. As many get through as may: not one more, not one less."""
    rounds = 500 if proof == "long" else 20
    wrong = crowd(RealBooks(services), rounds)
    wrong["verify"] = len(services[0].verify().problems)
    record(
        "first use, last credits",
        count=rounds,
        unit="× 64 racers",
        seed=None,
        wrong=wrong,
        database=kind_of(database_url),
    )


# -- the naive variant ---------------------------------------------------------------------------------------------


@pytest.fixture
def naive(database_url: str) -> Iterator[SelectThenUpdate]:
    made = SelectThenUpdate(database_url)
    yield made
    made.close()


def test_the_harness_sees_two_winners(naive: SelectThenUpdate) -> None:
    """Select-then-update settles one hold several times, within the rounds of the short form."""
    assert settle(naive, 100)["won twice"] > 0


def test_the_harness_sees_an_overshoot(naive: SelectThenUpdate) -> None:
    """Select-then-update lets too many through, within the rounds of the short form."""
    assert crowd(naive, 20)["overshoot"] > 0
