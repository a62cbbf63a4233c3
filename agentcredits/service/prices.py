"""Prices: looked up in ``agent_action_costs``, at most a moment old, and set there."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal

from agentcredits.amounts import Amount, to_micros
from agentcredits.clock import as_utc
from agentcredits.errors import (
    CreditsError,
    InvalidInputError,
    UnpricedActionError,
)
from agentcredits.ids import check_text, encode_json, scope_id
from agentcredits.model import ActionCost, PriceChange, PriceExplanation, Pricing
from agentcredits.rules import operations as ops
from agentcredits.rules import pricing as price_rules
from agentcredits.rules.price_entries import PriceEntry
from agentcredits.rules.price_rules import PriceRule
from agentcredits.rules.pricing import CostRow, Price
from agentcredits.runner.steps import Read, Steps, Write
from agentcredits.service import arguments, session
from agentcredits.service.doors import Doors
from agentcredits.store import prices

logger = logging.getLogger("agentcredits")

#: Prices in one import at most.
MAX_ENTRIES: Final = 10_000

#: Quantities of one action whose prices are kept ready.
MAX_QUANTITIES: Final = 100

#: Prices that were already warned about: whose, of what, of which day.
_warned_old: set[tuple[str, str, str, date]] = set()


class Prices(Doors):
    """What actions cost."""

    def price(
        self,
        *,
        organization_id: str,
        agent_type: str,
        action: str,
        quantity: Any = 1,
        dimensions: Mapping[str, Any] | None = None,
        unpriced: Literal["deny", "record"] = "deny",
    ) -> Steps[Price]:
        """What an action costs now.

        Raises:
            UnpricedActionError: the action has no usable price.
            InvalidAmountError: the quantity is none.
        """
        amount = price_rules.parse_quantity(quantity)
        if self.mode == "off":
            return Price(0, Pricing.FREE)
        row, now = yield from self._cost_row(organization_id, agent_type, action)
        try:
            price = price_rules.price(
                row,
                agent_type=agent_type,
                action=action,
                quantity=amount,
                dimensions=dimensions,
                at=now,
                record_unpriced=unpriced == "record",
            )
        except UnpricedActionError as error:
            if self.mode != "observe":
                raise
            return Price(0, Pricing.UNPRICED, error)
        if row is not None:
            self._warn_if_old(row, price, now)
        return price

    def _warn_if_old(self, row: CostRow, price: Price, now: datetime) -> None:
        """Once for each price; what a provider asks changes, and nobody is told."""
        days = self.settings.price_max_age_days
        if days is None or price.as_of is None or now.date() - price.as_of <= timedelta(days=days):
            return
        place = (row.organization_id, row.agent_type, row.action, price.as_of)
        if place not in _warned_old:
            _warned_old.add(place)
            logger.warning(
                "agentcredits: the price of %s.%s is of %s, older than %d days: check it and set it again",
                row.agent_type,
                row.action,
                price.as_of,
                days,
            )

    def _cost_row(self, organization_id: str, agent_type: str, action: str) -> Steps[tuple[CostRow | None, datetime]]:
        """The row that applies, and the time now."""
        place = (
            organization_id,
            check_text(agent_type, name="agent_type"),
            check_text(action, name="action"),
        )
        known = self._prices.get(place, self.clock)
        if known is None:
            started, generation = time.monotonic(), self._prices.generation
            known = yield Read(
                lambda connection: prices.read_candidates(connection, *place, self.clock),
                organization_id or None,
                topic=(self._prices, generation, place),
            )
            rows, now = known
            if not session.is_charging():
                # What the caller's open transaction sees may never be committed.
                self._prices.put(place, rows, now, started, generation)
        rows, now = known
        return price_rules.choose(rows, now), now

    def set_cost(
        self,
        agent_type: str,
        action: str,
        cost: Amount | PriceRule | Mapping[str, Any],
        *,
        organization_id: object = None,
        valid_from: datetime | None = None,
        valid_until: datetime | None = None,
        free: bool = False,
        source: str | None = None,
        as_of: date | None = None,
    ) -> Steps[ActionCost]:
        """Set a price; ``*`` matches any agent type or action. Cost 0 needs ``free=True``."""
        entry = _in_utc(PriceEntry(agent_type, action, cost, free, source, as_of, valid_from, valid_until))
        owner = yield from self._owner(organization_id)
        made: ActionCost = yield Write(
            lambda connection: prices.set_cost(connection, organization_id=owner, entry=entry, clock=self.clock),
            owner or None,
        )
        self._prices.clear()
        return made

    def _owner(self, organization_id: object) -> Steps[str]:
        """Whose price it is: everybody's, or an organization's, which gets its account."""
        if organization_id is None:
            return price_rules.DEFAULT_ORGANIZATION
        owner = scope_id(organization_id, name="organization_id")
        yield from self._post(ops.CreateAccount(organization_id=owner))
        return owner

    def import_costs(
        self, entries: Iterable[PriceEntry], *, organization_id: object = None
    ) -> Steps[tuple[PriceChange, ...]]:
        """Set every price that differs, in one transaction."""
        listed = checked_entries(entries)
        owner = yield from self._owner(organization_id)
        changes: tuple[PriceChange, ...] = yield Write(
            lambda connection: prices.import_costs(connection, organization_id=owner, entries=listed, clock=self.clock),
            owner or None,
        )
        self._prices.clear()
        return changes

    def diff_costs(
        self, entries: Iterable[PriceEntry], *, organization_id: object = None
    ) -> Steps[tuple[PriceChange, ...]]:
        """What an import would do."""
        listed = checked_entries(entries)
        owner = "" if organization_id is None else scope_id(organization_id, name="organization_id")
        changes: tuple[PriceChange, ...] = yield Read(
            lambda connection: prices.diff_costs(connection, organization_id=owner, entries=listed, clock=self.clock),
            owner or None,
        )
        return changes

    def get_cost(self, agent_type: str, action: str, *, organization_id: object = None) -> Steps[ActionCost]:
        """The price that applies to an action now.

        Raises:
            UnpricedActionError: none does, or one that cannot be used.
        """
        owner = "" if organization_id is None else scope_id(organization_id, name="organization_id")
        row, now = yield from self._cost_row(owner, agent_type, action)
        if row is None:
            _price(None, agent_type, action, Decimal(1), None, now)
            raise UnpricedActionError
        found = prices.public_cost(row)
        if found.problem is not None:
            raise UnpricedActionError(
                f"the price of {agent_type}.{action} in agent_action_costs cannot be used: {found.problem}.",
                reason="unusable_price",
                context={"agent_type": agent_type, "action": action},
            )
        return found

    def explain_cost(
        self,
        agent_type: str,
        action: str,
        *,
        organization_id: object = None,
        quantity: Any = 1,
        dimensions: Mapping[str, Any] | None = None,
    ) -> Steps[PriceExplanation]:
        """What an action costs now, with the arithmetic."""
        owner = "" if organization_id is None else scope_id(organization_id, name="organization_id")
        amount = price_rules.parse_quantity(quantity)
        encode_json(dimensions, name="dimensions")
        row, now = yield from self._cost_row(owner, agent_type, action)
        found = _price(row, agent_type, action, amount, dimensions, now)
        if row is None:
            raise UnpricedActionError
        steps = found.steps
        if row.rule is None:
            steps = price_rules.explain_flat(found, amount, to_micros(row.cost, name="cost", allow_zero=True))
        return PriceExplanation(
            organization_id=owner,
            agent_type=agent_type,
            action=action,
            quantity=amount,
            amount_micros=found.amount_micros,
            price=prices.public_cost(row),
            dimensions=dict(dimensions or {}),
            usd=found.usd,
            steps=steps,
        )

    def list_costs(
        self, organization_id: object = None, *, all_versions: bool = False
    ) -> Steps[tuple[ActionCost, ...]]:
        """Prices in force or to come: the defaults, and an organization's own."""
        owner = None if organization_id is None else scope_id(organization_id, name="organization_id")
        found: tuple[ActionCost, ...] = yield Read(
            lambda connection: prices.list_costs(connection, owner, self.clock, all_versions=all_versions), owner
        )
        return found

    def known_price(
        self, organization_id: str, agent_type: object, action: object, quantity: object, dimensions: object
    ) -> Price | None:
        """The price of a plain action that was read a moment ago; None: find out with ``amount_for``.

        Nearly every charge's price is one of these; three generators less for it.
        """
        if dimensions is not None or not (type(agent_type) is type(action) is str) or self.mode == "off":
            return None
        place = (organization_id, agent_type, action)
        count = quantity if self.clock is None and type(quantity) is int else None
        steady = None if count is None else self._prices.steady(place)
        if steady is not None and count in steady:
            return steady[count]
        known = self._prices.fresh(place, self.clock)
        if known is None:
            return None
        rows, now = known
        row = price_rules.choose(rows, now)
        try:
            price = _price(row, agent_type, action, price_rules.parse_quantity(quantity), None, now)
        except CreditsError:
            return None
        if row is not None:
            self._warn_if_old(row, price, now)
        if steady is not None and count is not None and len(steady) < MAX_QUANTITIES:
            steady[count] = price
        return price

    def amount_for(
        self,
        *,
        organization_id: str,
        amount: Amount | None,
        agent_type: str | None,
        action: str | None,
        quantity: Any,
        dimensions: Mapping[str, Any] | None,
        idempotency_key: str | None = None,
    ) -> Steps[Price]:
        """The amount given, or the price of the action.

        An action that has lost its price is refused only after its key was looked at: the call may be the second try
        of one that was answered while it had a price.

        Raises:
            InvalidInputError: neither an amount nor both agent_type and action.
        """
        if amount is not None:
            price_rules.parse_quantity(quantity)
            return Price(to_micros(amount))
        if agent_type is None or action is None:
            raise InvalidInputError("pass amount=, or agent_type= and action= to look the price up.")
        try:
            return (
                yield from self.price(
                    organization_id=organization_id,
                    agent_type=agent_type,
                    action=action,
                    quantity=quantity,
                    dimensions=dimensions,
                )
            )
        except UnpricedActionError as refusal:
            if idempotency_key is None or self._dry_run(organization_id):
                raise
            return Price(0, Pricing.UNPRICED, refusal)


def _price(
    row: CostRow | None,
    agent_type: str,
    action: str,
    quantity: Decimal,
    dimensions: Mapping[str, Any] | None,
    at: datetime,
) -> Price:
    """The price, whatever the mode."""
    return price_rules.price(
        row,
        agent_type=agent_type,
        action=action,
        quantity=quantity,
        dimensions=dimensions,
        at=at,
        record_unpriced=False,
    )


def _in_utc(entry: PriceEntry) -> PriceEntry:
    """The entry with its times checked."""
    start = None if entry.valid_from is None else as_utc(entry.valid_from, name="valid_from")
    end = None if entry.valid_until is None else as_utc(entry.valid_until, name="valid_until")
    if start is not None and end is not None and end <= start:
        raise InvalidInputError("valid_until must be later than valid_from.", context={"parameter": "valid_until"})
    return entry.changed(valid_from=start, valid_until=end)


def checked_entries(given: Iterable[PriceEntry]) -> tuple[PriceEntry, ...]:
    """Prices that can be set together.

    Raises:
        InvalidInputError: too many, one of them twice, or one with times that cannot be.
    """
    found = tuple(_in_utc(entry) for entry in arguments.items(given, PriceEntry, name="entries"))
    if len(found) > MAX_ENTRIES:
        raise InvalidInputError(f"entries may hold at most {MAX_ENTRIES:,} prices.", context={"parameter": "entries"})
    places = set()
    for entry in found:
        place = (entry.agent_type, entry.action, entry.valid_from)
        if place in places:
            raise InvalidInputError(
                f"entries price {entry.agent_type}.{entry.action} twice.", context={"parameter": "entries"}
            )
        places.add(place)
    return found
