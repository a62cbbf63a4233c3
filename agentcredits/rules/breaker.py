"""The breaker of an operator's account at a provider: when it opens, who may find out, when it closes. Pure.

No state means closed. The first failure that will not pass by itself opens it. While it is open nobody calls the
provider, except for one prober at a time from ``probe_at`` on: its success closes, its failure waits twice as long.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

#: How often the pause is doubled at most (the longest pause cuts in earlier; this keeps the numbers small).
_MOST_DOUBLINGS: Final = 30


@dataclass(frozen=True, slots=True)
class Pauses:
    """How long an open breaker waits: before the first probe, between later ones at most, and for a prober."""

    probe_after: timedelta
    max_probe_after: timedelta
    probe_lease: timedelta

    def after(self, failures: int) -> timedelta:
        """The pause after this many failures in a row: doubled each time."""
        return min(self.probe_after * (1 << min(failures - 1, _MOST_DOUBLINGS)), self.max_probe_after)


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of a failure that opens: its kind, its rule, the provider's words, when it may be over."""

    category: str
    rule: str
    message: str
    retry_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class BreakerState:
    """An open breaker: why, since when, from when on it may be probed, and until when somebody is doing that."""

    provider: str
    account: str
    category: str
    rule: str
    message: str
    failures: int
    opened_at: datetime
    probe_at: datetime
    probing_until: datetime | None = None


def may_probe(state: BreakerState, now: datetime, *, early: bool = False) -> bool:
    """Whether a caller may find out if the account is served again; ``early``: something says that it is."""
    return (early or state.probe_at <= now) and (state.probing_until is None or state.probing_until <= now)


def failed(
    state: BreakerState | None,
    place: tuple[str, str],
    finding: Finding,
    *,
    now: datetime,
    pauses: Pauses,
    claim: datetime | None,
) -> BreakerState:
    """The breaker after a failure that opens it.

    Args:
        state: As it is stored; None: closed.
        place: Provider and account.
        finding: What the failure was.
        now: The current time.
        pauses: How long to wait.
        claim: The ``probing_until`` of the caller who probed; None: the call began before the breaker was open.

    Returns:
        The new state; the same object when nothing changes (calls that began earlier fail one after the other, and
        that says nothing new).
    """
    probed = state is not None and claim is not None and state.probing_until == claim
    if state is not None and not probed:
        return state
    failures = 1 if state is None else state.failures + 1
    return BreakerState(
        provider=place[0],
        account=place[1],
        category=finding.category,
        rule=finding.rule,
        message=finding.message,
        failures=failures,
        opened_at=now if state is None else state.opened_at,
        probe_at=finding.retry_at or now + pauses.after(failures),
    )


def probing(state: BreakerState, now: datetime, pauses: Pauses) -> BreakerState:
    """The breaker while one caller finds out."""
    return replace(state, probing_until=now + pauses.probe_lease)
