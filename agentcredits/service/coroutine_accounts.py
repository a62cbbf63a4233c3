"""What operators do with a whole account, on the coroutine face: status and overdraft line."""

from __future__ import annotations

from uuid import UUID

from agentcredits.amounts import Amount
from agentcredits.model import Account
from agentcredits.service.coroutine_prices import PriceMethods

Id = str | UUID


class AccountMethods(PriceMethods):
    """Status and overdraft line of an account; a part of :class:`CreditService`."""

    async def get_account(
        self,
        organization_id: Id,
    ) -> Account:
        """The account's status, overdraft line and debt now.

        Raises:
            AccountNotFoundError: the organization has no account.
        """
        return await self._core.arun(self._core.get_account(organization_id))

    async def freeze_account(
        self,
        organization_id: Id,
        reason: str,
        *,
        by: str | None = None,
    ) -> Account:
        """Charge and hold nothing new; running work still settles, grants and refunds still work.

        An account that is frozen keeps its first reason (``replayed``).

        Args:
            organization_id: Whose account.
            reason: Why; for operators, kept in the account.
            by: Who does it.

        Raises:
            AccountNotFoundError: the organization has no account.
            AccountClosedError: it is closed, which is more.
        """
        return await self._core.arun(self._core.freeze_account(organization_id, reason, by=by))

    async def unfreeze_account(
        self,
        organization_id: Id,
        reason: str | None = None,
        *,
        by: str | None = None,
    ) -> Account:
        """Undo ``freeze_account``; nothing happens when the account is open.

        Raises:
            AccountNotFoundError: the organization has no account.
            AccountClosedError: it is closed: reopen it.
        """
        return await self._core.arun(self._core.unfreeze_account(organization_id, reason, by=by))

    async def close_account(
        self,
        organization_id: Id,
        reason: str,
        *,
        by: str | None = None,
    ) -> Account:
        """Charge, hold and grant nothing new; running work still settles, refunds and voids still work.

        What is left of the grants stays and ends with them; void it to take it back.

        Args:
            organization_id: Whose account.
            reason: Why; for operators, kept in the account.
            by: Who does it.

        Raises:
            AccountNotFoundError: the organization has no account.
        """
        return await self._core.arun(self._core.close_account(organization_id, reason, by=by))

    async def reopen_account(
        self,
        organization_id: Id,
        reason: str | None = None,
        *,
        by: str | None = None,
    ) -> Account:
        """Undo ``close_account``; nothing happens when the account is open.

        Raises:
            AccountNotFoundError: the organization has no account.
            AccountFrozenError: it is frozen, not closed: unfreeze it.
        """
        return await self._core.arun(self._core.reopen_account(organization_id, reason, by=by))

    async def set_overdraft(
        self,
        organization_id: Id,
        amount: Amount,
    ) -> Account:
        """How far charges with overage "overdraft" may go beyond the grants.

        Debt is paid back by whatever becomes usable next, before it can be spent. A line below the debt lends no more
        and takes nothing back.

        Args:
            organization_id: Whose account.
            amount: Credits; 0 is no line.

        Raises:
            AccountNotFoundError: the organization has no account.
            InvalidAmountError: negative, or no amount.
        """
        return await self._core.arun(self._core.set_overdraft(organization_id, amount))
