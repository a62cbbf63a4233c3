"""How such a ledger is often written, so that the proofs show that they would notice: nothing here is right."""

from __future__ import annotations

import uuid
from typing import Any

from agentcredits.service import SyncCreditService

# -- ledgers that the state machine must catch -------------------------------------------------------------------


class _Changed:
    """The real service, with some calls done the naive way."""

    def __init__(self, service: SyncCreditService) -> None:
        self._service = service

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)


class NoKeys(_Changed):
    """A retry is a new call: nothing remembers what was done under a key."""

    def _forgetful(self, name: str, *arguments: Any, **named: Any) -> Any:
        return getattr(self._service, name)(*arguments, **named | {"idempotency_key": uuid.uuid4().hex})

    def consume_credits(self, **named: Any) -> Any:
        return self._forgetful("consume_credits", **named)

    def refund_credits(self, *arguments: Any, **named: Any) -> Any:
        return self._forgetful("refund_credits", *arguments, **named)


class FloatAmounts(_Changed):
    """Credits as floats, kept to the cent as money often is."""

    def consume_credits(self, *, amount: Any, **named: Any) -> Any:
        return self._service.consume_credits(amount=max(0.01, round(float(amount), 2)), **named)


class SelectThenUpdateSettlement(_Changed):
    """Whether a hold may be committed is looked up first, and the charge is a call of its own."""

    def commit_reservation(self, reservation_id: str, amount: Any = None, **named: Any) -> Any:
        hold = self._service.get_reservation(reservation_id, organization_id=named["organization_id"])
        self._service.release_reservation(reservation_id, organization_id=named["organization_id"])
        self._service.consume_credits(
            organization_id=named["organization_id"], amount=hold.amount if amount is None else amount
        )
        return self._service.get_reservation(reservation_id, organization_id=named["organization_id"])
