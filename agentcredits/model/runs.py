"""Runs as callers get them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from agentcredits.amounts import from_micros
from agentcredits.model.records import MicrosAsCredits
from agentcredits.model.words import RunStatus


@dataclass(frozen=True, slots=True)
class RunRecord(MicrosAsCredits):
    """A run: a pool with a cap, or a carve-out of the pool of the run around it.

    Args:
        organization_id: Whose.
        run_id: Its id, as in ``RequestContext.run_id``.
        parent_run_id: The run around it.
        root_run_id: The outermost run of its tree.
        depth: 1 for an outermost run, at most 32.
        status: Whether it takes new charges and holds.
        cap_micros: Its cap; None: no bound of its own (inside another run: it uses that one's pool).
        borrows: Whether it goes on from the run around when its carve-out is used up.
        spent_micros: Charged in it, net of refunds.
        held_micros: Held in it by open reservations.
        carved_micros: What the runs inside claim: an open one its carve-out, an ended one what it used.
        inner_spent_micros: Charged in the runs inside, at any depth.
        remaining_micros: What can still be charged in it, borrowing included; None: no bound. 0 when it ended.
        created_at: When it was opened.
        expires_at: When it ends if nothing more happens; None while something is held in it, a run inside it is open,
            or it is over.
        ended_at: When it ended.
        reason: Why.
    """

    organization_id: str
    run_id: str
    parent_run_id: str | None
    root_run_id: str
    depth: int
    status: RunStatus
    cap_micros: int | None
    borrows: bool
    spent_micros: int
    held_micros: int
    carved_micros: int
    inner_spent_micros: int
    remaining_micros: int | None
    created_at: datetime
    expires_at: datetime | None
    ended_at: datetime | None = None
    reason: str | None = None

    @property
    def cap(self) -> Decimal | None:
        """Credits that it may use; None: no bound of its own."""
        return None if self.cap_micros is None else from_micros(self.cap_micros)

    @property
    def spent(self) -> Decimal:
        """Credits charged in it."""
        return from_micros(self.spent_micros)

    @property
    def held(self) -> Decimal:
        """Credits held in it."""
        return from_micros(self.held_micros)

    @property
    def carved(self) -> Decimal:
        """Credits that the runs inside claim."""
        return from_micros(self.carved_micros)

    @property
    def inner_spent(self) -> Decimal:
        """Credits charged in the runs inside."""
        return from_micros(self.inner_spent_micros)

    @property
    def total_spent(self) -> Decimal:
        """Credits charged in it and in the runs inside."""
        return from_micros(self.spent_micros + self.inner_spent_micros)

    @property
    def remaining(self) -> Decimal | None:
        """Credits that can still be charged in it; None: no bound."""
        return None if self.remaining_micros is None else from_micros(self.remaining_micros)
