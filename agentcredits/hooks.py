"""Hooks: functions of yours that hear of what was booked, after it is booked.

A hook runs in the thread or task of whoever made the call, with its context, after COMMIT (for ``session=`` after
the outermost commit of your transaction). An exception in a hook is logged; what was booked stands. Settlements that
no caller waits for (a dropped generator, a store that was away) reach the log only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from agentcredits.model import Denial, LimitCrossing, OpenBreaker, ReservationRecord, Transaction

logger = logging.getLogger("agentcredits")

EventName = Literal[
    "charged",
    "refunded",
    "uncollected",
    "settled",
    "settlement_deferred",
    "limit_crossed",
    "would_refuse",
    "unknown_expired",
    "breaker_opened",
    "breaker_closed",
]


@dataclass(frozen=True, slots=True)
class CreditEvent:
    """Something that was booked.

    ``charged``: a charge at once (``transaction``). ``refunded``: a refund (``transaction``). ``settled``: a hold was
    charged or given back (``reservation``). ``uncollected``: an over-run could not be charged in full.
    ``settlement_deferred``: the work is done and the store is away; the settlement is kept and retried.
    ``limit_crossed``: a charge reached a soft limit or warn threshold for the first time in its window (``crossing``).
    ``would_refuse``: mode "observe" let pass what "enforce" would have refused (``denial``).
    ``unknown_expired``: a hold ran out before its provider's verdict came; its credits went back (``reservation``).
    ``breaker_opened``: a media provider's account of yours cannot be used and is not asked for a while (``breaker``);
    told again when a probe failed. ``breaker_closed``: it is asked again. These concern no organization: ``""``.
    """

    name: EventName
    organization_id: str
    transaction: Transaction | None = None
    reservation: ReservationRecord | None = None
    crossing: LimitCrossing | None = None
    denial: Denial | None = None
    breaker: OpenBreaker | None = None


Hook = Callable[[CreditEvent], object]

_hooks: list[Hook] = []


def add_hook(hook: Hook) -> Hook:
    """Call ``hook(event)`` for every event from now on; usable as a decorator."""
    if hook not in _hooks:
        _hooks.append(hook)
    return hook


def remove_hook(hook: Hook) -> None:
    """Stop calling ``hook``; unknown hooks are ignored."""
    if hook in _hooks:
        _hooks.remove(hook)


def listening() -> bool:
    """Whether anybody would be told."""
    return bool(_hooks)


def fire(event: CreditEvent) -> None:
    """Tell every hook; never raises."""
    if event.name == "uncollected":
        record = event.transaction or event.reservation
        logger.warning(
            "agentcredits: %s credits of organization %s could not be collected",
            record.uncollected if record is not None else "some",
            event.organization_id,
        )
    elif event.name == "unknown_expired" and event.reservation is not None:
        logger.warning(
            "agentcredits: reservation %s of organization %s ran out: %s never gave its verdict on job %s",
            event.reservation.id,
            event.organization_id,
            event.reservation.provider,
            event.reservation.provider_reference or "without a reference",
        )
    elif event.crossing is not None:
        logger.warning(
            "agentcredits: %sorganization %s reached %s %% of its limit of %s %s (%s)",
            f"{event.crossing.scope.value} {event.crossing.scope_id} of " if event.crossing.scope_id else "",
            event.organization_id,
            f"{(event.crossing.threshold * 100).normalize():f}",
            event.crossing.limit_amount,
            event.crossing.unit.value,
            event.crossing.window,
        )
    hooks = _hooks.copy()  # a hook may remove itself
    for hook in hooks:
        try:
            hook(event)
        except Exception:
            logger.exception("agentcredits: a hook failed on %s; what was booked stands", event.name)
