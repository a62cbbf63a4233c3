"""What operators do with a whole account: freeze and close it, lend it a line."""

from __future__ import annotations

from agentcredits.amounts import Amount, to_micros
from agentcredits.ids import check_text
from agentcredits.model import Account, AccountStatus
from agentcredits.rules import operations as ops
from agentcredits.rules.posting import Outcome
from agentcredits.rules.state import AccountState
from agentcredits.runner.steps import Read, Steps
from agentcredits.service import arguments
from agentcredits.service.charges import Charges
from agentcredits.store import queries, records

#: From where each status can be reached.
_BEFORE = {
    "freeze": (AccountStatus.FROZEN, frozenset({AccountStatus.OPEN})),
    "unfreeze": (AccountStatus.OPEN, frozenset({AccountStatus.FROZEN})),
    "close": (AccountStatus.CLOSED, frozenset({AccountStatus.OPEN, AccountStatus.FROZEN})),
    "reopen": (AccountStatus.OPEN, frozenset({AccountStatus.CLOSED})),
}


class Accounts(Charges):
    """Status and overdraft line."""

    def get_account(self, organization_id: object) -> Steps[Account]:
        """Status, line and debt now."""
        owner = arguments.organization(organization_id)
        found: Account = yield Read(lambda connection: queries.get_account(connection, owner, self.clock), owner)
        return found

    def freeze_account(self, organization_id: object, reason: str, *, by: str | None = None) -> Steps[Account]:
        """Charge and hold nothing new."""
        return (yield from self._set_status("freeze", organization_id, arguments.reason(reason), by))

    def unfreeze_account(
        self, organization_id: object, reason: str | None = None, *, by: str | None = None
    ) -> Steps[Account]:
        """Undo ``freeze_account``."""
        return (yield from self._set_status("unfreeze", organization_id, _optional(reason), by))

    def close_account(self, organization_id: object, reason: str, *, by: str | None = None) -> Steps[Account]:
        """Charge, hold and grant nothing new."""
        return (yield from self._set_status("close", organization_id, arguments.reason(reason), by))

    def reopen_account(
        self, organization_id: object, reason: str | None = None, *, by: str | None = None
    ) -> Steps[Account]:
        """Undo ``close_account``."""
        return (yield from self._set_status("reopen", organization_id, _optional(reason), by))

    def set_overdraft(self, organization_id: object, amount: Amount) -> Steps[Account]:
        """Set the line."""
        owner = arguments.organization(organization_id)
        micros = to_micros(amount, allow_zero=True)
        return self._account((yield from self._post(ops.SetOverdraft(organization_id=owner, amount_micros=micros))))

    def _set_status(self, change: str, organization_id: object, reason: str | None, by: str | None) -> Steps[Account]:
        status, before = _BEFORE[change]
        operation = ops.SetStatus(
            organization_id=arguments.organization(organization_id),
            status=status,
            before=before,
            reason=reason,
            by=None if by is None else check_text(by, name="by"),
        )
        return self._account((yield from self._post(operation)))

    @staticmethod
    def _account(outcome: Outcome) -> Account:
        if not isinstance(outcome.record, AccountState):
            raise TypeError("an account was expected")
        return records.public_account(outcome.record, replayed=outcome.replayed)


def _optional(reason: str | None) -> str | None:
    return None if reason is None else arguments.reason(reason)
