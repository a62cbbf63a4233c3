"""What operators do with what was recorded: replay it, let it go, erase it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Final

from agentcredits.errors import InvalidInputError
from agentcredits.model import (
    LimitEffect,
    LimitMode,
    LimitScope,
    LimitUnit,
    NotRepriced,
    PlannedLimit,
    SimulationLine,
    SimulationReport,
)
from agentcredits.rules import refusals
from agentcredits.rules.price_entries import PriceEntry
from agentcredits.rules.pricing import DEFAULT_ORGANIZATION, CostRow
from agentcredits.rules.simulation import RateCard, Recorded, Simulation
from agentcredits.rules.state import LimitState
from agentcredits.rules.windows import Window
from agentcredits.runner.steps import Read, Steps
from agentcredits.service import arguments
from agentcredits.service.operators import Operators, limit_place
from agentcredits.service.prices import checked_entries
from agentcredits.store import limit_records, prices, replay

#: Rows, and accounts, that are read at once.
PAGE_ROWS: Final = 1_000
#: Limits in one simulation at most.
MAX_LIMITS: Final = 1_000

_ALWAYS: Final = datetime.min.replace(tzinfo=UTC)


class Upkeep(Operators):
    """Simulations, retention, erasure."""

    # -- simulation ------------------------------------------------------------------------------------------

    def simulate(
        self,
        organization_id: object = None,
        *,
        costs: Iterable[PriceEntry] | None = None,
        limits: Iterable[PlannedLimit] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        own_prices: bool = False,
    ) -> Steps[SimulationReport]:
        """Replay recorded usage against other prices and limits."""
        if costs is None and limits is None:
            raise InvalidInputError("simulate needs costs= or limits=: what shall be different?")
        owner = None if organization_id is None else arguments.organization(organization_id)
        entries = None if costs is None else checked_entries(costs)
        planned = () if limits is None else _planned_limits(limits)
        start, end = arguments.period(since, until)
        now: datetime = yield Read(lambda connection: replay.moment(connection, self.clock))
        if start is not None and start >= (end or now):
            raise InvalidInputError("since must be before until, and before now.", context={"parameter": "since"})
        defaults: list[CostRow] = []
        if entries is not None:
            defaults = yield Read(partial(prices.all_rows, organization_id=DEFAULT_ORGANIZATION))
        lines: list[SimulationLine] = []
        effects: list[LimitEffect] = []
        kept: list[NotRepriced] = []
        places = yield from self._next_accounts(owner, "")
        while places:
            for place in places:
                own: list[CostRow] = []
                if entries is not None:
                    own = yield Read(partial(prices.all_rows, organization_id=place), place)
                rows = (*defaults, *own)
                target = place if own_prices else DEFAULT_ORGANIZATION
                simulation = Simulation(
                    place,
                    RateCard(rows),
                    None if entries is None else RateCard(rows, _cost_rows(entries, target)),
                    [both for both in planned if both[1].organization_id in (None, place)],
                )
                yield from self._replay(simulation, start, end)
                lines += simulation.lines()
                effects += simulation.effects()
                kept += simulation.not_repriced()
            places = yield from self._next_accounts(owner, places[-1])
        lines.sort(key=lambda line: (-abs(line.difference_micros), line.organization_id, _name(line)))
        return SimulationReport(start, end or now, tuple(lines), tuple(effects), tuple(kept))

    @staticmethod
    def _replay(simulation: Simulation, since: datetime | None, until: datetime | None) -> Steps[None]:
        owner = simulation.organization_id
        span: replay.Span | None = yield Read(
            partial(replay.span, organization_id=owner, since=since, until=until), owner
        )
        if span is None:
            raise refusals.account_not_found(owner)
        after = span.first
        while True:
            page: list[Recorded] = yield Read(partial(replay.page, place=span, after=after, count=PAGE_ROWS), owner)
            for recorded in page:
                simulation.replay(recorded)
            if len(page) < PAGE_ROWS:
                return
            after = page[-1].row.seq

    @staticmethod
    def _next_accounts(owner: str | None, after: str) -> Steps[list[str]]:
        """The organizations to visit after one: the one that was asked for, or the next of all."""
        if owner is not None:
            return [] if after else [owner]
        found: list[str] = yield Read(partial(replay.accounts_after, organization_id=after, count=PAGE_ROWS))
        return found


def _name(line: SimulationLine) -> tuple[str, str]:
    return (line.agent_type or "", line.action or "")


def _cost_rows(entries: Iterable[PriceEntry], organization_id: str) -> Iterator[CostRow]:
    """Prices as rows of the table, in force from the beginning where they do not say from when."""
    for entry in entries:
        yield CostRow(
            organization_id=organization_id,
            agent_type=entry.agent_type,
            action=entry.action,
            cost=entry.flat,
            valid_from=entry.valid_from or _ALWAYS,
            valid_until=entry.valid_until,
            rule=None if entry.rule is None else entry.rule.as_json(),
            free=entry.free,
        )


def _planned_limits(given: Iterable[PlannedLimit]) -> tuple[tuple[LimitState, PlannedLimit], ...]:
    """Limits as the rules know them, checked as ``set_limit`` checks them.

    Raises:
        InvalidInputError: one cannot be used, two stand in one place, or there are too many.
    """
    planned = arguments.items(given, PlannedLimit, name="limits")
    if len(planned) > MAX_LIMITS:
        raise InvalidInputError(f"limits may hold at most {MAX_LIMITS:,}.", context={"parameter": "limits"})
    found: dict[tuple[object, ...], tuple[LimitState, PlannedLimit]] = {}
    for number, limit in enumerate(planned, start=1):
        try:
            state = _limit_state(limit, number)
            owner = None if limit.organization_id is None else arguments.organization(limit.organization_id)
        except InvalidInputError as error:
            raise InvalidInputError(
                f"limit {number}: {error.message}", reason=error.reason, context={**error.context, "entry": number}
            ) from error
        place = (owner, state.scope, state.scope_id, state.unit, state.window_text)
        if place in found:
            raise InvalidInputError(
                f"limit {number} stands in the place of another one: scope, id, unit and window are the same.",
                context={"parameter": "limits", "entry": number},
            )
        found[place] = (state, replace(limit, organization_id=owner))
    return tuple(found.values())


def _limit_state(limit: PlannedLimit, number: int) -> LimitState:
    scope = arguments.choice(LimitScope, limit.scope, name="scope")
    unit = arguments.choice(LimitUnit, limit.unit, name="unit")
    mode = arguments.choice(LimitMode, limit.mode, name="mode")
    return LimitState(
        id=str(number),
        scope=scope,
        scope_id=limit_place(scope, limit.scope_id),
        unit=unit,
        window_text=str(Window.parse(limit.window)),
        amount=limit_records.limit_amount(limit.amount, unit),
        mode=mode,
        created_at=_ALWAYS,
    )
