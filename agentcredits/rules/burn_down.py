"""Which grant is used first, and how an amount is taken from grants.

Burn-down order: priority (lower first), rollovers before others, expires_at (never-expiring last), restricted before
unrestricted, promotional before plan before adjustment before paid, effective_at, created_at, id. The id makes the
order total, so that it is the same on every database.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
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

OrderKey = tuple[int, bool, datetime, bool, int, datetime, datetime, str]


def order_key(grant: GrantState) -> OrderKey:
    """The grant's place in the burn-down order."""
    return (
        grant.priority,
        grant.rolled_from is None,
        grant.expires_at or NEVER,
        not grant.only_for,
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


def usable_for(
    grants: Iterable[GrantState], now: datetime, agent_type: str | None, action: str | None
) -> list[GrantState]:
    """The usable grants that this action may use, in order; without an action the unrestricted ones."""
    return [grant for grant in usable(grants, now) if not grant.only_for or allows(grant.only_for, agent_type, action)]


def allows(only_for: Collection[str], agent_type: str | None, action: str | None) -> bool:
    """Whether names such as ``VideoAgent.generate_video``, ``VideoAgent.*`` and ``*.generate_video`` hold an action."""
    return (
        (agent_type is not None and f"{agent_type}.*" in only_for)
        or (action is not None and f"*.{action}" in only_for)
        or (agent_type is not None and action is not None and f"{agent_type}.{action}" in only_for)
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
