"""What operators do with a whole account, on the blocking face: status and overdraft line."""

from __future__ import annotations

from uuid import UUID

from agentcredits.amounts import Amount
from agentcredits.model import Account
from agentcredits.service.blocking_prices import SyncPriceMethods

Id = str | UUID


class SyncAccountMethods(SyncPriceMethods):
    """Status and overdraft line of an account; a part of :class:`SyncCreditService`."""

    def get_account(
        self,
        organization_id: Id,
    ) -> Account:
        """The account's status, overdraft line and debt now.

        Blocking form of :meth:`CreditService.get_account`: same arguments, results and errors.
        """
        return self._core.run(self._core.get_account(organization_id))

    def freeze_account(
        self,
        organization_id: Id,
        reason: str,
        *,
        by: str | None = None,
    ) -> Account:
        """Charge and hold nothing new; running work still settles, grants and refunds still work.

        Blocking form of :meth:`CreditService.freeze_account`: same arguments, results and errors.
        """
        return self._core.run(self._core.freeze_account(organization_id, reason, by=by))

    def unfreeze_account(
        self,
        organization_id: Id,
        reason: str | None = None,
        *,
        by: str | None = None,
    ) -> Account:
        """Undo ``freeze_account``; nothing happens when the account is open.

        Blocking form of :meth:`CreditService.unfreeze_account`: same arguments, results and errors.
        """
        return self._core.run(self._core.unfreeze_account(organization_id, reason, by=by))

    def close_account(
        self,
        organization_id: Id,
        reason: str,
        *,
        by: str | None = None,
    ) -> Account:
        """Charge, hold and grant nothing new; running work still settles, refunds and voids still work.

        Blocking form of :meth:`CreditService.close_account`: same arguments, results and errors.
        """
        return self._core.run(self._core.close_account(organization_id, reason, by=by))

    def reopen_account(
        self,
        organization_id: Id,
        reason: str | None = None,
        *,
        by: str | None = None,
    ) -> Account:
        """Undo ``close_account``; nothing happens when the account is open.

        Blocking form of :meth:`CreditService.reopen_account`: same arguments, results and errors.
        """
        return self._core.run(self._core.reopen_account(organization_id, reason, by=by))

    def set_overdraft(
        self,
        organization_id: Id,
        amount: Amount,
    ) -> Account:
        """How far charges with overage "overdraft" may go beyond the grants.

        Blocking form of :meth:`CreditService.set_overdraft`: same arguments, results and errors.
        """
        return self._core.run(self._core.set_overdraft(organization_id, amount))
