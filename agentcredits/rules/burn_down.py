"""Which grant is used first, and how an amount is taken from grants.

Burn-down order: priority (lower first), expires_at (never-expiring last), promotional before plan before adjustment
before paid, effective_at, created_at, id. The id makes the order total, so that it is the same on every database.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from agentcredits.model import Allocation, GrantCategory, GrantStatus
from agentcredits.rules.state import GrantState

NEVER: Final = datetime.max.replace(tzinfo=UTC)

_CATEGORY_RANK: Final = {
    GrantCategory.PROMOTIONAL: 0,
    GrantCategory.PLAN: 1,
    GrantCategory.ADJUSTMENT: 2,
    GrantCategory.PAID: 3,
}

OrderKey = tuple[int, datetime, int, datetime, datetime, str]


def order_key(grant: GrantState) -> OrderKey:
    """The grant's place in the burn-down order."""
    return (
        grant.priority,
        grant.expires_at or NEVER,
        _CATEGORY_RANK[grant.category],
        grant.effective_at,
        grant.created_at,
        grant.id,
    )


def usable(grants: Iterable[GrantState], now: datetime) -> list[GrantState]:
    """Grants that can be spent at ``now`` (effective_at <= now < expires_at) and have credits left, in order."""
    return sorted(
        (
            grant
            for grant in grants
            if grant.status is GrantStatus.ACTIVE
            and grant.remaining_micros > 0
            and grant.effective_at <= now
            and (grant.expires_at is None or now < grant.expires_at)
        ),
        key=order_key,
    )


def take(grants: Sequence[GrantState], amount_micros: int) -> tuple[Allocation, ...]:
    """How ``amount_micros`` is taken from grants in the given order; the caller has checked that it fits."""
    allocations: list[Allocation] = []
    missing = amount_micros
    for grant in grants:
        if missing <= 0:
            break
        part = min(missing, grant.remaining_micros)
        if part > 0:
            allocations.append(Allocation(grant.id, part))
            missing -= part
    if missing > 0:
        raise AssertionError(f"burn-down is short of {missing} micros: the caller did not check the usable sum")
    return tuple(allocations)


def split(
    allocations: Sequence[Allocation], amount_micros: int
) -> tuple[tuple[Allocation, ...], tuple[Allocation, ...]]:
    """The first ``amount_micros`` of the allocations, and the rest newest first (as it is given back)."""
    used: list[Allocation] = []
    rest: list[Allocation] = []
    missing = amount_micros
    for allocation in allocations:
        part = min(missing, allocation.amount_micros)
        if part > 0:
            used.append(Allocation(allocation.grant_id, part))
            missing -= part
        if allocation.amount_micros > part:
            rest.append(Allocation(allocation.grant_id, allocation.amount_micros - part))
    return tuple(used), tuple(reversed(rest))
