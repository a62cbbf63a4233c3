"""Breakers of provider accounts on both databases: shared by processes, probed by exactly one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from agentcredits import ConfigurationError, CreditEvent, SyncCreditService, add_hook, remove_hook
from agentcredits.media import Breakers, OpenBreaker, ProviderFault, classify_provider_error
from agentcredits.service import core_of
from agentcredits.testing import FakeClock

KEY = "sk-live-1234567890abcdef1234567890"
LINK = "https://fal.ai/dashboard/billing"
EXHAUSTED = {"detail": f"User is locked. Reason: Exhausted balance. Top up at {LINK}. api_key={KEY}"}


def fault(status: int = 403, body: object = None, *, now: datetime | None = None, **headers: str) -> ProviderFault:
    return classify_provider_error(
        provider="fal", status=status, body=EXHAUSTED if body is None else body, headers=headers, now=now
    )


class Process:
    """A service of its own: what another process is, as far as the breaker can tell."""

    def __init__(self, service: SyncCreditService) -> None:
        self.core = core_of(service)
        self.breakers = Breakers(self.core)

    def may_call(self, account: str = "") -> OpenBreaker | None:
        return self.core.run(self.breakers.may_call("fal", account))

    def probe(self) -> OpenBreaker | None:
        return self.core.run(self.breakers.probe("fal"))

    def report(self, fault: ProviderFault | None, account: str = "") -> None:
        self.core.run(self.breakers.report("fal", account, fault))

    def list(self) -> tuple[OpenBreaker, ...]:
        return self.core.run(self.breakers.list())


@pytest.fixture
def processes(database_url: str, clock: FakeClock) -> Iterator[tuple[Process, Process]]:
    with (
        SyncCreditService(database_url, clock=clock) as one,
        SyncCreditService(database_url, clock=clock) as other,
    ):
        yield Process(one), Process(other)


SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


def test_a_terminal_fault_stops_all_calls_of_the_account_and_of_no_other(
    processes: tuple[Process, Process], clock: FakeClock
) -> None:
    """What is open says why, for operators; other accounts and providers are served."""
    mine, _ = processes
    assert mine.may_call() is None
    mine.report(fault())
    found = mine.may_call()
    assert found is not None
    assert (found.provider, found.account, found.category, found.failures) == ("fal", "", "credits_exhausted", 1)
    assert (found.opened_at, found.probe_at) == (clock.now(), clock.now() + 5 * MINUTE)
    assert mine.list() == (found,)
    assert mine.may_call("second") is None
    assert mine.core.run(mine.breakers.may_call("replicate")) is None


def test_other_processes_know_within_a_second(processes: tuple[Process, Process], clock: FakeClock) -> None:
    """A process that read "closed" a moment ago asks again after a second, and so with "open"."""
    mine, yours = processes
    assert yours.may_call() is None
    mine.report(fault())
    assert yours.may_call() is None  # its memory, not a second old
    clock.advance(SECOND)
    assert yours.may_call() is not None
    assert mine.core.run(mine.breakers.close("fal")) is True
    assert mine.may_call() is None
    assert yours.may_call() is not None
    clock.advance(SECOND)
    assert yours.may_call() is None
    assert mine.core.run(mine.breakers.close("fal")) is False


def test_one_of_all_callers_probes_and_its_success_closes(processes: tuple[Process, Process], clock: FakeClock) -> None:
    """From probe_at on one caller is let through, in whatever process; the others wait for what it finds."""
    mine, yours = processes
    mine.report(fault())
    clock.advance(5 * MINUTE)
    assert yours.may_call() is None
    assert yours.may_call() is not None
    assert mine.may_call() is not None
    yours.report(None)
    clock.advance(SECOND)
    assert (mine.may_call(), mine.list()) == (None, ())


def test_a_failed_probe_waits_twice_as_long(processes: tuple[Process, Process], clock: FakeClock) -> None:
    """And the breaker remembers since when."""
    mine, yours = processes
    opened_at = clock.now()
    mine.report(fault())
    clock.advance(5 * MINUTE)
    assert yours.may_call() is None
    yours.report(fault())
    (found,) = mine.list()
    assert (found.failures, found.opened_at, found.probe_at) == (2, opened_at, clock.now() + 10 * MINUTE)


@pytest.fixture
def told() -> Iterator[list[CreditEvent]]:
    """What hooks hear of breakers."""
    events: list[CreditEvent] = []

    def hear(event: CreditEvent) -> None:
        if event.breaker is not None:
            events.append(event)

    add_hook(hear)
    yield events
    remove_hook(hear)


def heard(events: list[CreditEvent]) -> list[tuple[str, str, int]]:
    """Name, account and failures; nothing else is named."""
    found = [(event.name, event.breaker.account, event.breaker.failures) for event in events if event.breaker]
    assert {(event.organization_id, event.transaction, event.reservation) for event in events} <= {("", None, None)}
    events.clear()
    return found


def test_hooks_hear_that_an_account_is_not_served_and_that_it_is_again(
    processes: tuple[Process, Process], clock: FakeClock, told: list[CreditEvent]
) -> None:
    """Once for all failures of the moment, again for a failed probe; closed by a probe or by hand, once."""
    mine, yours = processes
    for process in processes:
        process.report(fault(), "studio")
    mine.report(fault(429, {"detail": "slow down"}), "studio")
    assert heard(told) == [("breaker_opened", "studio", 1)]
    clock.advance(5 * MINUTE)
    assert yours.may_call("studio") is None
    yours.report(fault(), "studio")
    assert heard(told) == [("breaker_opened", "studio", 2)]
    clock.advance(10 * MINUTE)
    assert mine.may_call("studio") is None
    mine.report(None, "studio")
    mine.report(None, "studio")
    assert heard(told) == [("breaker_closed", "studio", 2)]
    mine.report(fault())
    assert [yours.core.run(yours.breakers.close("fal")) for _ in range(2)] == [True, False]
    assert heard(told) == [("breaker_opened", "", 1), ("breaker_closed", "", 1)]


def test_a_prober_whose_turn_is_over_closes_nothing(
    processes: tuple[Process, Process], clock: FakeClock, told: list[CreditEvent]
) -> None:
    """Somebody else probes by then; what the late one found out is no news."""
    mine, yours = processes
    mine.report(fault())
    clock.advance(5 * MINUTE)
    assert mine.may_call() is None
    clock.advance(10 * MINUTE)
    assert yours.may_call() is None
    heard(told)
    mine.report(None)
    assert (heard(told), len(yours.list())) == ([], 1)
    yours.report(None)
    assert (heard(told), yours.list()) == ([("breaker_closed", "", 1)], ())


def test_sixteen_threads_of_two_processes_make_one_probe(processes: tuple[Process, Process], clock: FakeClock) -> None:
    """Exactly one None, however they interleave."""
    mine, yours = processes
    mine.report(fault())
    clock.advance(5 * MINUTE)
    barrier = threading.Barrier(16)

    def ask(number: int) -> OpenBreaker | None:
        barrier.wait()
        return (mine, yours)[number % 2].may_call()

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, range(16)))
    assert found.count(None) == 1


def test_sixteen_failures_at_once_open_it_once(processes: tuple[Process, Process]) -> None:
    """The calls that were under way when the account ran dry do not lengthen the pause."""
    barrier = threading.Barrier(16)

    def tell(number: int) -> None:
        barrier.wait()
        processes[number % 2].report(fault())

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(tell, range(16)))
    (found,) = processes[0].list()
    assert found.failures == 1


def test_a_success_that_is_no_probe_closes_nothing(processes: tuple[Process, Process], clock: FakeClock) -> None:
    """A job that was accepted before the account ran dry proves nothing."""
    mine, yours = processes
    assert yours.may_call() is None
    mine.report(fault())
    yours.report(None)
    mine.report(None)
    clock.advance(SECOND)
    assert yours.may_call() is not None


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (429, {"detail": "Too many requests", "error_type": "concurrent_requests_limit"}),
        (500, {"detail": "Internal server error"}),
        (422, {"detail": [{"loc": ["body", "prompt"], "msg": "content policy", "type": "content_policy_violation"}]}),
        (418, {"detail": "nobody knows"}),
    ],
)
def test_what_passes_or_is_the_requests_own_fault_opens_nothing(
    processes: tuple[Process, Process], status: int, body: object
) -> None:
    """Rate limits, trouble, refusals, the unknown."""
    mine, _ = processes
    found = fault(status, body)
    assert found.category.value in ("rate_limited", "transient", "rejected", "other")
    mine.report(found)
    assert (mine.may_call(), mine.list()) == (None, ())


def test_a_quota_opens_until_its_time_and_not_at_all_without_one(
    processes: tuple[Process, Process], clock: FakeClock
) -> None:
    """The provider says when to come back."""
    mine, _ = processes
    body = {"detail": "Daily limit reached"}
    mine.report(fault(429, body))
    assert mine.list() == ()
    known = fault(429, body, now=clock.now(), **{"retry-after": "7200"})
    assert known.category.value == "quota_window"
    mine.report(known)
    (found,) = mine.list()
    assert found.probe_at == clock.now() + timedelta(hours=2)


def test_a_probe_that_says_nothing_lets_the_next_one_try(processes: tuple[Process, Process], clock: FakeClock) -> None:
    """A passing failure, or no call at all: the turn is free again at once."""
    mine, yours = processes
    mine.report(fault())
    clock.advance(5 * MINUTE)
    assert mine.may_call() is None
    mine.report(fault(500, {"detail": "Internal server error"}))
    assert mine.may_call() is None
    mine.core.run(mine.breakers.give_up("fal"))
    assert yours.may_call() is None
    (found,) = mine.list()
    assert found.failures == 1


def test_a_prober_that_died_is_replaced(processes: tuple[Process, Process], clock: FakeClock) -> None:
    """Its turn ends by itself; if it was only slow, its late word changes nothing."""
    mine, yours = processes
    mine.report(fault())
    clock.advance(5 * MINUTE)
    assert mine.may_call() is None
    clock.advance(10 * MINUTE)
    assert yours.may_call() is None
    (before,) = mine.list()
    mine.report(None)
    assert mine.list() == (before,)
    mine.report(fault())
    assert mine.list() == (before,)
    yours.report(None)
    assert mine.list() == ()


def test_an_early_probe_is_one_too(processes: tuple[Process, Process], clock: FakeClock) -> None:
    """A positive balance lets one caller try before the time."""
    mine, yours = processes
    mine.report(fault())
    assert mine.probe() is None
    assert yours.probe() is not None
    assert mine.breakers.may_ask_balance("fal") is True
    assert mine.breakers.may_ask_balance("fal") is False
    assert mine.breakers.may_ask_balance("fal", "second") is True
    clock.advance(MINUTE)
    assert mine.breakers.may_ask_balance("fal") is True


def test_what_is_kept_holds_no_key(
    database_url: str, processes: tuple[Process, Process], caplog: pytest.LogCaptureFixture
) -> None:
    """The row, the list and the log; NUL bytes and lone surrogates of a provider break nothing."""
    mine, _ = processes
    caplog.set_level(logging.INFO)
    mine.report(fault(body={"detail": EXHAUSTED["detail"] + " \x00 \ud800"}))
    (found,) = mine.list()
    engine = create_engine(database_url)
    with engine.connect() as connection:
        stored = str(connection.execute(text("SELECT * FROM media_breakers")).one())
    engine.dispose()
    assert "Exhausted balance" in stored
    assert KEY not in stored + str(found) + caplog.text
    assert LINK in caplog.text  # the operator is told where
    with pytest.raises(ConfigurationError, match="not its key"):
        mine.may_call(KEY)


def test_the_two_spellings_of_a_provider_share_a_breaker(processes: tuple[Process, Process]) -> None:
    """fal, fal.ai and FAL_CLIENT are one account."""
    mine, _ = processes
    mine.report(fault())
    assert mine.core.run(mine.breakers.may_call("fal.ai")) is not None
    assert mine.core.run(mine.breakers.may_call("FAL_CLIENT")) is not None


def test_a_closed_breaker_costs_one_look_a_second(
    processes: tuple[Process, Process], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hot path of a tool: no statement at all while the memory lasts, and none after a success."""
    mine, _ = processes
    reads: list[object] = []
    read = mine.core.runner.read

    def counting(function: Any, **how: Any) -> Any:
        reads.append(function)
        return read(function, **how)

    monkeypatch.setattr(mine.core.runner, "read", counting)
    monkeypatch.setattr(mine.core.runner, "write", None)
    for _ in range(10):
        assert mine.may_call() is None
        mine.report(None)
    assert len(reads) == 1
    clock.advance(SECOND)
    assert mine.may_call() is None
    assert len(reads) == 2


def test_pauses_must_make_sense(service: SyncCreditService) -> None:
    """Positive, and the longest not shorter than the first."""
    for first, longest in ((0, 60), (5, 4)):
        with pytest.raises(ConfigurationError):
            Breakers(core_of(service), probe_after=first * MINUTE, max_probe_after=longest * MINUTE)
