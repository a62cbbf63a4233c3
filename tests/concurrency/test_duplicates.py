"""The same keyed call sent many times at once: one result, and everybody is told of that one."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agentcredits.errors import (
    CreditsError,
    IdempotencyMismatchError,
    ReservationInUseError,
)
from agentcredits.model import ReservationState
from agentcredits.service import SyncCreditService
from tests.concurrency import workers
from tests.concurrency.test_ledger_races import race

ACME = "acme"
CALLERS = 16

Send = Callable[[SyncCreditService, str | None], Any]


@pytest.fixture
def rounds(proof: str) -> int:
    """How often each race is run: ``--proof long``: 100 times."""
    return 100 if proof == "long" else 3


@pytest.fixture
def services(database_url: str) -> Iterator[list[SyncCreditService]]:
    """Two services with an engine and a runner each, as two processes would have; 100,000 credits."""
    engines = [workers.own_engine(database_url) for _ in range(2)]
    made = [SyncCreditService(engine) for engine in engines]
    made[0].grant_credits(ACME, 100_000)
    yield made
    for service in made:
        service.close()
    for engine in engines:
        engine.dispose()


def duplicates(services: list[SyncCreditService], send: Send, key: str | None) -> list[Any]:
    """What 16 threads on two engines are answered to the same call."""
    answers = race(CALLERS, lambda place: send(services[place % len(services)], key))
    for answer in answers:
        if isinstance(answer, CreditsError):
            raise answer
    return answers


def shape(answers: list[Any]) -> tuple[int, int]:
    """How many results there are, and how many callers were told that theirs is the first."""
    records = [getattr(answer, "record", answer) for answer in answers]
    return len({record.id for record in records}), sum(not record.replayed for record in records)


@pytest.mark.proof
@pytest.mark.parametrize("operation", ["consume", "reserve", "grant", "adjust", "refund"])
def test_16_threads_that_send_one_call_get_one_result(
    services: list[SyncCreditService], operation: str, rounds: int
) -> None:
    """One makes it, 15 are answered with it; the ledger has it once. A grant opens the account in the same race."""
    service = services[0]
    for number in range(rounds):
        owner = f"new-{number}" if operation in ("grant", "adjust") else ACME
        charge = service.consume_credits(organization_id=ACME, amount=10).id if operation == "refund" else ""
        before = service.get_balance(ACME)
        send: dict[str, Send] = {
            "consume": lambda one, key: one.consume_credits(organization_id=ACME, amount=3, idempotency_key=key),
            "reserve": lambda one, key: one.reserve_credits(organization_id=ACME, amount=3, idempotency_key=key),
            "grant": lambda one, key, owner=owner: one.grant_credits(owner, 3, idempotency_key=key),
            "adjust": lambda one, key, owner=owner: one.adjust_credits(owner, 3, idempotency_key=key),
            "refund": lambda one, key, charge=charge: one.refund_credits(
                charge, 3, organization_id=ACME, idempotency_key=key
            ),
        }
        answers = duplicates(services, send[operation], f"{operation} {number}")
        assert shape(answers) == (1, 1)
        after = service.get_balance(ACME)
        moved = (after.spent - before.spent, after.reserved - before.reserved)
        assert moved == {"consume": (3, 0), "reserve": (0, 3), "refund": (-3, 0)}.get(operation, (0, 0))
        if owner != ACME:
            assert service.get_balance(owner).granted == 3
    assert service.verify().ok


def test_the_same_harness_sees_what_goes_without_a_key(services: list[SyncCreditService]) -> None:
    """The naive variant: 16 callers, 16 charges."""

    def send(service: SyncCreditService, key: str | None) -> Any:
        return service.consume_credits(organization_id=ACME, amount=3, idempotency_key=key)

    assert shape(duplicates(services, send, None)) == (CALLERS, CALLERS)
    assert services[0].get_balance(ACME).spent == 3 * CALLERS


def test_the_same_harness_sees_a_key_that_is_looked_up_and_then_written(services: list[SyncCreditService]) -> None:
    """The naive variant: everybody looks before anybody writes, and each finds nothing."""
    known: dict[str, Any] = {}
    looked = threading.Barrier(CALLERS)

    def send(service: SyncCreditService, key: str | None) -> Any:
        found = known.get(str(key))
        looked.wait(timeout=30)
        if found is not None:
            return found
        known[str(key)] = made = service.consume_credits(organization_id=ACME, amount=3)
        return made

    assert shape(duplicates(services, send, "k"))[0] > 1


@pytest.mark.proof
def test_one_key_for_two_payloads_is_one_result(services: list[SyncCreditService], rounds: int) -> None:
    """Whoever comes first decides; those of the other payload are refused, and charge nothing."""
    for number in range(rounds):
        before = services[0].get_balance(ACME).spent

        def send(place: int, number: int = number) -> Any:
            return services[place % 2].consume_credits(
                organization_id=ACME, amount=3 + place // 8, idempotency_key=f"k{number}"
            )

        answers = race(CALLERS, send)
        refused = [answer for answer in answers if isinstance(answer, IdempotencyMismatchError)]
        made = [answer for answer in answers if not isinstance(answer, CreditsError)]
        assert (len(refused), len(made)) == (8, 8)
        assert shape(made) == (1, 1)
        assert services[0].get_balance(ACME).spent - before == made[0].charged
    assert services[0].verify().ok


@pytest.mark.proof
def test_one_attempt_runs_and_the_others_are_told_so(services: list[SyncCreditService], rounds: int) -> None:
    """Blocks with one key: while the first one's body runs, the hold is in use; afterwards it is done."""
    for number in range(rounds):
        ended = threading.Semaphore(0)

        def work(place: int, number: int = number, ended: threading.Semaphore = ended) -> str:
            service = services[place % 2]
            hold = service.reserve_credits(organization_id=ACME, amount=5, idempotency_key=f"block {number}")
            if not hold.record.replayed:
                with hold:
                    assert all(ended.acquire(timeout=30) for _ in range(CALLERS - 1))
                return "ran"
            with pytest.raises(ReservationInUseError) as refusal, hold:
                pass
            ended.release()
            return "in use" if refusal.value.retryable else "refused"

        answers = race(CALLERS, work)
        assert (answers.count("ran"), answers.count("in use")) == (1, CALLERS - 1)
        with services[0].reserve_credits(organization_id=ACME, amount=5, idempotency_key=f"block {number}") as again:
            assert (again.record.replayed, again.record.state) == (True, ReservationState.COMMITTED)
    assert services[0].get_usage(ACME).total.charges == rounds
    assert services[0].verify().ok


@pytest.mark.proof
def test_2_processes_of_16_coroutines_that_send_the_same_calls_get_the_same_results(
    services: list[SyncCreditService], database_url: str, rounds: int
) -> None:
    """Charge, hold, grant and refund, each round with new keys: one result for all 32, told as new to one."""
    count = 10 * rounds
    charges = [services[0].consume_credits(organization_id=ACME, amount=10).id for _ in range(count)]
    before = services[0].get_balance(ACME)
    processes = [
        workers.start("send_duplicates", url=database_url, organization=ACME, coroutines=CALLERS, charges=charges)
        for _ in range(2)
    ]
    found: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    for process in processes:
        for name, answers in workers.finish(process, timeout=600)["answers"].items():
            found[name] += [(place, replayed) for place, replayed in answers]
    assert len(found) == 4 * count
    for name, answers in found.items():
        assert len(answers) == 2 * CALLERS, name
        assert len({place for place, _ in answers}) == 1, name
        assert [replayed for _, replayed in answers].count(False) == 1, name
    after = services[0].get_balance(ACME)
    assert after.spent - before.spent == (3 - 1) * count
    assert (after.reserved, after.granted - before.granted) == (2 * count, 4 * count)
    assert services[0].verify().ok
