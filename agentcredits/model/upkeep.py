"""What was let go, or erased."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class PurgeReport:
    """What ``purge`` removed, or (``dry_run``) would remove.

    Args:
        before: Only what is older than this.
        dry_run: Nothing was removed.
        accounts: Organizations that were visited.
        keys: Idempotency keys of charges, reservations and refunds.
        details: Ledger rows that lost reason, request, dimensions and metadata.
        reservations: Ended reservations that lost the same.
        denials: Records of what mode "observe" let pass.
        crossings: Records of thresholds that were reached.
    """

    before: datetime
    dry_run: bool
    accounts: int
    keys: int = 0
    details: int = 0
    reservations: int = 0
    denials: int = 0
    crossings: int = 0


@dataclass(frozen=True, slots=True)
class ErasureReport:
    """What ``erase_user_details`` erased.

    Args:
        organization_id: Whose user.
        user_id: The user.
        transactions: Ledger rows that lost their details.
        reservations: Reservations that lost user, request, dimensions, metadata and reason.
        denials: Records of mode "observe" that lost user and message.
        crossings: Records of thresholds of the user that were removed.
        kept_limits: Limits that are set for this user and still name it: remove them with ``remove_limit``.
        open_batches: Batches of the user that are not finished and still name it: erase again when they are.
    """

    organization_id: str
    user_id: str
    transactions: int
    reservations: int
    denials: int
    crossings: int
    kept_limits: int
    open_batches: int

    @property
    def complete(self) -> bool:
        """Nothing is left that names the user."""
        return not self.kept_limits and not self.open_batches
