"""Recorded usage of one organization, replayed against other prices and limits. Pure.

The prices are those of ``pricing``, the limits those of ``limits``: what a simulation says is what the ledger would
have said. Balances are not simulated. A charge is replayed at the time of its ledger row, as if it had been made at
once; its price is that of the moment at which it was held. A refund gives back the same part of what its charge costs
here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from agentcredits.errors import CreditLimitExceededError, CreditsError
from agentcredits.model import LimitEffect, NotRepriced, PlannedLimit, Pricing, SimulationLine, TransactionType
from agentcredits.rules import limits as limit_rules
from agentcredits.rules import pricing
from agentcredits.rules.operations import Activity
from agentcredits.rules.pricing import ANY, CostRow
from agentcredits.rules.state import Ledger, LimitState, Row

#: Charges whose amount the price list of then does not explain.
AMOUNT_GIVEN = "amount_given"
#: Charges that do not tell what their price depends on.
DIMENSIONS_MISSING = "dimensions_missing"

Place = tuple[str | None, str | None]
"""Agent type and action."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A charge or refund as it stands in the ledger.

    Args:
        row: The row; its allocations are not needed.
        priced_at: When its price was looked up: when it was held, or charged.
        refunds_micros: What later rows of the replay give back of it.
    """

    row: Row
    priced_at: datetime
    refunds_micros: int = 0


class RateCard:
    """The prices of one organization: those in the database, and planned ones before them.

    A planned price replaces the rows of the same organization, agent type and action while it is in force, as an
    import would.
    """

    def __init__(self, rows: Iterable[CostRow], planned: Iterable[CostRow] = ()) -> None:
        self._rows = _by_place(rows)
        self._planned = _by_place(planned)

    def choose(self, agent_type: str, action: str, at: datetime) -> CostRow | None:
        """The row that applies at a moment."""
        near = [(agent_type, action), (agent_type, ANY), (ANY, action), (ANY, ANY)]
        planned = [row for place in near for row in self._planned.get(place, ()) if pricing.in_force(row, at)]
        replaced = {(row.organization_id, row.agent_type, row.action) for row in planned}
        kept = (
            row
            for place in dict.fromkeys(near)
            for row in self._rows.get(place, ())
            if (row.organization_id, row.agent_type, row.action) not in replaced
        )
        return pricing.choose((*planned, *kept), at)

    def amount(self, row: Row, at: datetime) -> int:
        """What a recorded action costs, in micro-credits.

        Raises:
            CreditsError: it has no price.
        """
        if row.agent_type is None or row.action is None or row.quantity is None:
            raise CreditsError("the charge names no action.", reason=AMOUNT_GIVEN)
        return pricing.price(
            self.choose(row.agent_type, row.action, at),
            agent_type=row.agent_type,
            action=row.action,
            quantity=row.quantity,
            dimensions=json.loads(row.dimensions) if row.dimensions else None,
            at=at,
            record_unpriced=row.pricing is Pricing.UNPRICED,
        ).amount_micros


def _by_place(rows: Iterable[CostRow]) -> dict[tuple[str, str], list[CostRow]]:
    found: dict[tuple[str, str], list[CostRow]] = {}
    for row in rows:
        found.setdefault((row.agent_type, row.action), []).append(row)
    return found


@dataclass(slots=True)
class _Sums:
    charges: int = 0
    recorded_micros: int = 0
    simulated_micros: int = 0
    refused: int = 0
    refused_micros: int = 0


@dataclass(slots=True)
class _Effect:
    first_at: datetime
    refused: int = 0
    refused_micros: int = 0
    crossed: int = 0


@dataclass(slots=True)
class _Kept:
    message: str
    charges: int = 0
    recorded_micros: int = 0


@dataclass(slots=True)
class _Refundable:
    """A charge of which something is given back later: what was taken, there and here, and what went back so far."""

    row: Row
    charged_micros: int
    simulated_micros: int
    to_come_micros: int
    back_micros: int = 0
    simulated_back_micros: int = 0


@dataclass(slots=True)
class Simulation:
    """The replay of one organization; feed it the rows in the order of ``seq``.

    Its memory grows with actions, with counters of limits, and with charges that are refunded later; not with rows.

    Args:
        organization_id: Whose rows.
        then: The prices as they were.
        card: The prices to try; None: every charge keeps its amount.
        limits: The limits to try, and what each was planned as.
    """

    organization_id: str
    then: RateCard
    card: RateCard | None = None
    limits: Sequence[tuple[LimitState, PlannedLimit]] = ()
    _ledger: Ledger = field(init=False)
    _sums: dict[Place, _Sums] = field(default_factory=dict)
    _effects: dict[str, _Effect] = field(default_factory=dict)
    _kept: dict[tuple[Place, str], _Kept] = field(default_factory=dict)
    _refundable: dict[str, _Refundable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._ledger = Ledger(self.organization_id)
        for limit, _ in self.limits:
            self._ledger.add_limit(replace(limit))

    def replay(self, recorded: Recorded) -> None:
        """Take the next row into account; other rows than charges and refunds change nothing."""
        row = recorded.row
        if row.type is TransactionType.REFUND:
            self._refund(row)
        elif row.type is TransactionType.DEBIT and row.pricing is not Pricing.OBSERVED:
            self._charge(recorded)

    # -- charges ---------------------------------------------------------------------------------------------

    def _charge(self, recorded: Recorded) -> None:
        row = recorded.row
        charged = -row.amount_micros
        amount = self._amount(recorded)
        sums = self._sums.setdefault((row.agent_type, row.action), _Sums())
        sums.charges += 1
        sums.recorded_micros += charged
        made = replace(row, amount_micros=-amount)
        if self._is_refused(made):
            sums.refused += 1
            sums.refused_micros += amount
            amount = 0
        else:
            sums.simulated_micros += amount
            self._book(made)
        if recorded.refunds_micros:
            self._refundable[row.id] = _Refundable(made, charged, amount, recorded.refunds_micros)

    def _amount(self, recorded: Recorded) -> int:
        """What the charge takes at the prices to try: its own amount where they cannot tell."""
        row = recorded.row
        charged = -row.amount_micros
        if self.card is None:
            return charged
        asked = charged + row.uncollected_micros
        problem = None
        try:
            if self.then.amount(row, recorded.priced_at) != asked:
                problem = self._unexplained(recorded)
        except CreditsError:
            problem = self._unexplained(recorded)
        if problem is None:
            try:
                amount = self.card.amount(row, recorded.priced_at)
            except CreditsError as error:
                problem = (error.reason, error.message)
            else:
                # It took all that there was: at a higher price there would not have been more.
                return min(amount, charged) if row.uncollected_micros else amount
        reason, message = problem
        kept = self._kept.setdefault(((row.agent_type, row.action), reason), _Kept(message))
        kept.charges += 1
        kept.recorded_micros += charged
        return charged

    def _unexplained(self, recorded: Recorded) -> tuple[str, str]:
        row = recorded.row
        name = limit_rules.action_id(row.agent_type, row.action) or "a charge without an action"
        if row.agent_type is not None and row.action is not None and not row.dimensions:
            applied = self.then.choose(row.agent_type, row.action, recorded.priced_at)
            if applied is not None and applied.rule is not None:
                return DIMENSIONS_MISSING, f"{name}: the ledger does not tell what its price depends on."
        return AMOUNT_GIVEN, f"{name}: its amount does not come from the price list of then."

    # -- limits ----------------------------------------------------------------------------------------------

    def _is_refused(self, row: Row) -> bool:
        if not self.limits:
            return False
        found = limit_rules.counters_of_record(self._ledger, row, row.created_at)
        try:
            # What for is told in the sentence of the refusal alone, which nobody reads here.
            limit_rules.check(self._ledger, found, -row.amount_micros, Activity())
        except CreditLimitExceededError as refusal:
            effect = self._effects.setdefault(str(refusal.context["limit_id"]), _Effect(row.created_at))
            effect.refused += 1
            effect.refused_micros -= row.amount_micros
            return True
        return False

    def _book(self, row: Row) -> None:
        if not self.limits:
            return
        limit_rules.book(self._ledger, row, row.created_at)
        crossings = self._ledger.changes.crossings
        for crossed in crossings:
            self._effects.setdefault(crossed.limit_id, _Effect(row.created_at)).crossed += 1
        crossings.clear()

    # -- refunds ---------------------------------------------------------------------------------------------

    def _refund(self, row: Row) -> None:
        """Give back the same part here as there; refunds of charges that are not replayed are left out of both."""
        charge = self._refundable.get(row.refund_of or "")
        if charge is None:
            return
        charge.back_micros += row.amount_micros
        # In whole micros of the sum so far: a charge that was given back in full is given back in full.
        back = charge.simulated_micros * charge.back_micros // charge.charged_micros - charge.simulated_back_micros
        charge.simulated_back_micros += back
        sums = self._sums[charge.row.agent_type, charge.row.action]
        sums.recorded_micros -= row.amount_micros
        sums.simulated_micros -= back
        limit_rules.unbook(self._ledger, charge.row, back, row.created_at)
        if charge.back_micros >= charge.to_come_micros:
            del self._refundable[charge.row.id]

    # -- what came out ---------------------------------------------------------------------------------------

    def lines(self) -> list[SimulationLine]:
        """By action."""
        return [
            SimulationLine(
                self.organization_id,
                *place,
                sums.charges,
                sums.recorded_micros,
                sums.simulated_micros,
                sums.refused,
                sums.refused_micros,
            )
            for place, sums in self._sums.items()
        ]

    def effects(self) -> list[LimitEffect]:
        """What limits did, in the order in which they were planned."""
        return [
            LimitEffect(
                self.organization_id, planned, effect.refused, effect.refused_micros, effect.first_at, effect.crossed
            )
            for limit, planned in self.limits
            if (effect := self._effects.get(limit.id)) is not None
        ]

    def not_repriced(self) -> list[NotRepriced]:
        """Charges that keep their amount, and why."""
        return [
            NotRepriced(self.organization_id, *place, reason, kept.message, kept.charges, kept.recorded_micros)
            for (place, reason), kept in self._kept.items()
        ]
