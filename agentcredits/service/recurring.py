"""Grants that come again each period: made, listed, cancelled."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import get_args

from agentcredits.amounts import Amount, to_micros
from agentcredits.clock import as_utc, host_now
from agentcredits.errors import InvalidInputError
from agentcredits.ids import check_text, new_id
from agentcredits.model import GrantCategory, Lasting, RecurringGrant, Rollover
from agentcredits.rules import operations as ops
from agentcredits.rules.periods import Every, RolloverTerms, periods
from agentcredits.rules.posting import Outcome
from agentcredits.rules.state import RecurringState
from agentcredits.runner.steps import Read, Steps
from agentcredits.service import arguments
from agentcredits.service.upkeep import Upkeep
from agentcredits.store import queries, recurring_records


class Recurring(Upkeep):
    """Recurring grants."""

    def create_recurring_grant(
        self,
        organization_id: object,
        amount: Amount,
        *,
        every: Every = "month",
        anchor: datetime | None = None,
        tz: str = "UTC",
        ends_at: datetime | None = None,
        category: str = "plan",
        priority: int = 50,
        expires_after: Lasting = "period",
        rollover: Rollover | None = None,
        only_for: Sequence[str] | None = None,
        unit_cost: Amount | None = None,
        currency: str | None = None,
        source: str | None = None,
        idempotency_key: str | None = None,
    ) -> Steps[RecurringGrant]:
        """Grant credits again each period."""
        owner = arguments.organization(organization_id)
        if every not in get_args(Every):
            raise InvalidInputError(
                f"every must be one of {', '.join(get_args(Every))}, not {every!r}.", context={"parameter": "every"}
            )
        begin = None if anchor is None else as_utc(anchor, name="anchor")
        # A zone or time that no period can be made of is refused here, before anything is booked.
        periods(every, begin or host_now(), tz).bounds(begin or host_now())
        micros = to_micros(amount)
        lasting = arguments.lasting(expires_after, name="expires_after")
        terms = _terms(rollover)
        if terms is not None and lasting != "period":
            raise InvalidInputError(
                'only a grant that lasts for its period is carried over: leave expires_after at "period".',
                context={"parameter": "rollover"},
            )
        end = None if ends_at is None else as_utc(ends_at, name="ends_at")
        kind = arguments.choice(GrantCategory, category, name="category")
        rank = arguments.whole_number(priority, name="priority", low=0, high=arguments.MAX_PRIORITY)
        names = arguments.only_for(only_for)
        cost, money = arguments.cost_basis(unit_cost, currency)
        if source is not None:
            check_text(source, name="source")
        key, generated = arguments.key(idempotency_key)
        carried = None if terms is None else (terms.maximum_micros, terms.minimum_micros, terms.expires_after)
        payload = (every, begin, tz, end, kind, rank, lasting, carried, names, cost, money, source)
        outcome = yield from self._post(
            ops.CreateRecurring(
                organization_id=owner,
                id=new_id(),
                key=key,
                key_generated=generated,
                fingerprint=ops.fingerprint("recurring", owner, micros, *payload),
                amount_micros=micros,
                every=every,
                tz=tz,
                anchor=begin,
                ends_at=end,
                category=kind,
                priority=rank,
                expires_after=lasting,
                rollover=terms,
                only_for=names,
                unit_cost=cost,
                currency=money,
                source=source,
            )
        )
        return self._recurring(owner, outcome)

    def list_recurring_grants(self, organization_id: object) -> Steps[tuple[RecurringGrant, ...]]:
        """Every recurring grant of the organization, oldest first."""
        owner = arguments.organization(organization_id)
        found: tuple[RecurringGrant, ...] = yield Read(
            lambda connection: queries.list_recurring_grants(connection, owner, self.clock), owner
        )
        return found

    def cancel_recurring_grant(self, recurring: object, *, organization_id: object = None) -> Steps[RecurringGrant]:
        """Grant no further period."""
        owner = self.organization(organization_id, recurring)
        outcome = yield from self._post(
            ops.CancelRecurring(organization_id=owner, recurring_id=self.id_of(recurring, name="recurring_id"))
        )
        return self._recurring(owner, outcome)

    @staticmethod
    def _recurring(organization_id: str, outcome: Outcome) -> RecurringGrant:
        if not isinstance(outcome.record, RecurringState):
            raise TypeError("a recurring grant was expected")
        return recurring_records.public_recurring(organization_id, outcome.record, replayed=outcome.replayed)


def _terms(rollover: object) -> RolloverTerms | None:
    if rollover is None:
        return None
    if not isinstance(rollover, Rollover):
        raise InvalidInputError(
            f"rollover must be a Rollover, not {type(rollover).__name__}.", context={"parameter": "rollover"}
        )
    most = None if rollover.maximum is None else to_micros(rollover.maximum, name="rollover.maximum")
    least = to_micros(rollover.minimum, name="rollover.minimum", allow_zero=True)
    if most is not None and least > most:
        raise InvalidInputError(
            "rollover.minimum must not be above rollover.maximum.", context={"parameter": "rollover"}
        )
    return RolloverTerms(most, least, arguments.lasting(rollover.expires_after, name="rollover.expires_after"))
