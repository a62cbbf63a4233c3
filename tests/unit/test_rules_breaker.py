"""The breaker's rules: when it opens, who may probe, how long it waits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from agentcredits.rules.breaker import BreakerState, Finding, Pauses, failed, may_probe, probing

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
PAUSES = Pauses(5 * MINUTE, 60 * MINUTE, 10 * MINUTE)
EMPTY = Finding("credits_exhausted", "fal.balance", "exhausted")
PLACE = ("fal", "main")


def opened(finding: Finding = EMPTY) -> BreakerState:
    return failed(None, PLACE, finding, now=NOW, pauses=PAUSES, claim=None)


def test_the_first_failure_opens() -> None:
    """It says why, and when to look again."""
    state = opened()
    assert (state.category, state.rule, state.message) == ("credits_exhausted", "fal.balance", "exhausted")
    assert (state.provider, state.account) == PLACE
    assert (state.failures, state.opened_at, state.probe_at) == (1, NOW, NOW + 5 * MINUTE)
    assert not may_probe(state, NOW)


def test_a_quota_is_probed_when_the_provider_says_that_it_is_over() -> None:
    """Not before, and not later."""
    midnight = NOW + timedelta(hours=12)
    assert opened(Finding("quota_window", "google.day", "", midnight)).probe_at == midnight


def test_failures_of_calls_that_began_earlier_change_nothing() -> None:
    """Sixteen calls in flight fail one after the other: the account is as empty as before."""
    state = opened()
    assert failed(state, PLACE, EMPTY, now=NOW + MINUTE, pauses=PAUSES, claim=None) is state
    assert failed(state, PLACE, EMPTY, now=NOW + MINUTE, pauses=PAUSES, claim=NOW) is state


def test_each_failed_probe_waits_twice_as_long_up_to_the_longest_pause() -> None:
    """5, 10, 20, 40, 60, 60 minutes, however long it lasts."""
    state, now, pauses = opened(), NOW, []
    for _ in range(100):
        pauses.append(state.probe_at - now)
        now = state.probe_at
        state = probing(state, now, PAUSES)
        state = failed(state, PLACE, EMPTY, now=now, pauses=PAUSES, claim=state.probing_until)
    assert [pause // MINUTE for pause in pauses[:6]] == [5, 10, 20, 40, 60, 60]
    assert set(pauses[6:]) == {60 * MINUTE}
    assert (state.failures, state.opened_at, state.probing_until) == (101, NOW, None)


@pytest.mark.parametrize(
    ("minutes", "early", "expected"), [(4, False, False), (5, False, True), (6, False, True), (0, True, True)]
)
def test_a_probe_waits_for_its_time_unless_something_says_otherwise(minutes: int, early: bool, expected: bool) -> None:
    """The time itself is late enough."""
    assert may_probe(opened(), NOW + minutes * MINUTE, early=early) is expected


def test_one_prober_at_a_time_and_a_lost_one_is_replaced() -> None:
    """For ten minutes nobody else probes, not even early; then somebody may."""
    state = probing(opened(), NOW + 5 * MINUTE, PAUSES)
    assert not may_probe(state, NOW + 14 * MINUTE)
    assert not may_probe(state, NOW + 14 * MINUTE, early=True)
    assert may_probe(state, NOW + 15 * MINUTE)
