"""What operators do with what was recorded: replay it, let it go, erase it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from agentcredits.errors import InvalidInputError
from agentcredits.ids import scope_id
from agentcredits.model import (
    ErasureReport,
    LimitEffect,
    LimitMode,
    LimitScope,
    LimitUnit,
    NotRepriced,
    PlannedLimit,
    PurgeReport,
    SimulationLine,
    SimulationReport,
)
from agentcredits.rules import refusals
from agentcredits.rules.price_entries import PriceEntry
from agentcredits.rules.pricing import DEFAULT_ORGANIZATION, CostRow
from agentcredits.rules.simulation import RateCard, Recorded, Simulation
from agentcredits.rules.state import LimitState
from agentcredits.rules.windows import Window
from agentcredits.runner.steps import Read, Steps, Write
from agentcredits.service import arguments
from agentcredits.service.operators import Operators, limit_place
from agentcredits.service.prices import checked_entries
from agentcredits.store import erasure, limit_records, prices, queries, replay, retention

#: Rows, and accounts, that are read at once.
PAGE_ROWS: Final = 1_000
#: Limits in one simulation at most.
MAX_LIMITS: Final = 1_000

#: The least and the greatest age of what may go.
MIN_AGE: Final = timedelta(days=1)
MAX_AGE: Final = timedelta(days=36_500)

_IDS: Final = {"details": "transaction_ids", "reservations": "reservation_ids"}
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

    # -- retention -------------------------------------------------------------------------------------------

    def purge(
        self,
        organization_id: object = None,
        *,
        older_than: timedelta | None = None,
        keys: bool = True,
        details: bool = False,
        denials: bool = False,
        crossings: bool = False,
        dry_run: bool = False,
    ) -> Steps[PurgeReport]:
        """Let go of what is old."""
        owner = None if organization_id is None else arguments.organization(organization_id)
        age = self._retention(older_than, keys=keys)
        kinds: list[retention.Kind] = ["keys"] if keys else []
        kinds += ["details", "reservations"] if details else []
        kinds += ["denials"] if denials else []
        kinds += ["crossings"] if crossings else []
        if not kinds:
            raise InvalidInputError("purge needs one of keys, details, denials, crossings: what shall go?")
        now: datetime = yield Read(lambda connection: replay.moment(connection, self.clock))
        before = now - age
        counts = dict.fromkeys(kinds, 0)
        accounts = 0
        places = yield from self._next_accounts(owner, "")
        if owner is not None:
            yield Read(partial(queries.get_balance, organization_id=owner, clock=self.clock), owner)
        while places:
            for place in places:
                accounts += 1
                for kind in kinds:
                    counts[kind] += yield from self._purge_account(kind, place, before, dry_run=dry_run)
            places = yield from self._next_accounts(owner, places[-1])
        return PurgeReport(before, dry_run, accounts, **counts)

    def _retention(self, older_than: timedelta | None, *, keys: bool) -> timedelta:
        days = self.settings.idempotency_retention_days
        promised = None if days is None else timedelta(days=days)
        age = promised if older_than is None else older_than
        if age is None:
            raise InvalidInputError(
                "purge needs older_than=: the setting idempotency_retention_days names no age.",
                context={"parameter": "older_than"},
            )
        if not isinstance(age, timedelta):
            raise InvalidInputError("older_than must be a timedelta.", context={"parameter": "older_than"})
        if not MIN_AGE <= age <= MAX_AGE:
            raise InvalidInputError(
                "older_than must be at least 1 day: a younger key may still be needed by a second try.",
                context={"parameter": "older_than"},
            )
        if keys and promised is not None and age < promised:
            raise InvalidInputError(
                f"keys are kept for {days:g} days (setting idempotency_retention_days): older_than must be no less.",
                reason="within_retention",
                context={"parameter": "older_than", "idempotency_retention_days": days},
            )
        return age

    @staticmethod
    def _purge_account(kind: retention.Kind, owner: str, before: datetime, *, dry_run: bool) -> Steps[int]:
        removed = 0
        after: retention.Key | None = None
        while True:
            found: retention.Found = yield Read(
                partial(
                    retention.find,
                    kind=kind,
                    organization_id=owner,
                    before=before,
                    after=after,
                    count=PAGE_ROWS,
                ),
                owner,
            )
            if dry_run:
                removed += len(found.old)
            elif found.old:
                removed += yield Write(
                    partial(retention.remove, kind=kind, organization_id=owner, before=before, old=found.old), owner
                )
            if found.after is None:
                return removed
            after = found.after

    # -- erasure ---------------------------------------------------------------------------------------------

    def erase_user_details(self, organization_id: object, user_id: object) -> Steps[ErasureReport]:
        """Erase a user and the free text of its actions."""
        owner = arguments.organization(organization_id)
        user = scope_id(user_id, name="user_id")
        yield Read(partial(queries.get_balance, organization_id=owner, clock=self.clock), owner)
        transactions = yield from self._erase("details", erasure.erase_details, owner, user)
        reservations = yield from self._erase("reservations", erasure.erase_reservations, owner, user)
        # What was settled meanwhile: by now no reservation names the user any more.
        transactions += yield from self._erase("details", erasure.erase_details, owner, user)
        traces: erasure.Traces = yield Write(partial(erasure.erase_traces, organization_id=owner, user_id=user), owner)
        return ErasureReport(
            owner,
            user,
            transactions,
            reservations,
            traces.denials,
            traces.crossings,
            traces.kept_limits,
            traces.open_batches,
        )

    @staticmethod
    def _erase(table_name: str, erase: Callable[..., int], owner: str, user: str) -> Steps[int]:
        erased = 0
        after: str | None = ""
        while after is not None:
            ids: list[str]
            ids, after = yield Read(
                partial(
                    erasure.find,
                    table_name=table_name,
                    organization_id=owner,
                    user_id=user,
                    after=after,
                    count=PAGE_ROWS,
                ),
                owner,
            )
            if ids:
                erased += yield Write(
                    partial(erase, organization_id=owner, user_id=user, **{_IDS[table_name]: ids}), owner
                )
        return erased

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
