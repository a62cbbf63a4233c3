"""What operators use: limits, adjustments, usage, reports of mode "observe"."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Any

from agentcredits.amounts import Amount, parse_decimal, to_micros
from agentcredits.clock import as_utc
from agentcredits.errors import InvalidInputError
from agentcredits.ids import check_text, new_id, scope_id
from agentcredits.model import (
    Denial,
    DenialGroup,
    Limit,
    LimitCrossing,
    LimitMode,
    LimitScope,
    LimitUnit,
    Transaction,
    UsageReport,
)
from agentcredits.rules import operations as ops
from agentcredits.rules.posting import Outcome
from agentcredits.rules.state import LimitState
from agentcredits.rules.windows import Window
from agentcredits.runner.steps import Read, Steps
from agentcredits.service import arguments
from agentcredits.service.accounts import Accounts
from agentcredits.service.runs import Runs
from agentcredits.store import limit_records, reports

#: The longest ``agent_type.action``.
MAX_ACTION = 511
MAX_WARNINGS = 20


class Operators(Accounts, Runs):
    """Limits, adjustments, usage, reports."""

    # -- limits ----------------------------------------------------------------------------------------------

    def set_limit(
        self,
        organization_id: object,
        *,
        amount: Amount,
        window: Window | str,
        scope: str = "organization",
        scope_id: object = None,
        unit: str = "credits",
        mode: str = "hard",
        warn_at: Sequence[Amount] = (),
        include_existing: bool = False,
    ) -> Steps[Limit]:
        """Limit what may be used in a scope and window."""
        owner = arguments.organization(organization_id)
        kind = arguments.choice(LimitScope, scope, name="scope")
        counted = arguments.choice(LimitUnit, unit, name="unit")
        outcome = yield from self._post(
            ops.SetLimit(
                organization_id=owner,
                id=new_id(),
                scope=kind,
                scope_id=limit_place(kind, scope_id),
                unit=counted,
                window_text=str(Window.parse(window)),
                amount=limit_records.limit_amount(amount, counted),
                mode=arguments.choice(LimitMode, mode, name="mode"),
                warn_at=_warnings(warn_at),
                include_existing=bool(include_existing),
            )
        )
        return self._limit(owner, outcome)

    def list_limits(
        self, organization_id: object, *, scope: str | None = None, scope_id: object = None
    ) -> Steps[tuple[Limit, ...]]:
        """Limits with what was used of them."""
        owner = arguments.organization(organization_id)
        kind = None if scope is None else arguments.choice(LimitScope, scope, name="scope")
        place = None if scope_id is None else _scope_text(scope_id, kind)
        found: tuple[Limit, ...] = yield Read(
            lambda connection: reports.list_limits(connection, owner, self.clock, scope=kind, scope_id=place), owner
        )
        return found

    def remove_limit(self, limit: object, *, organization_id: object = None) -> Steps[Limit]:
        """Remove a limit and its counters."""
        owner = self.organization(organization_id, limit)
        outcome = yield from self._post(
            ops.RemoveLimit(organization_id=owner, limit_id=self.id_of(limit, name="limit_id"))
        )
        return self._limit(owner, outcome)

    def list_limit_crossings(self, organization_id: object, *, limit: int = 50) -> Steps[tuple[LimitCrossing, ...]]:
        """Thresholds that were reached, newest first."""
        owner = arguments.organization(organization_id)
        size = arguments.page_size(limit)
        found: tuple[LimitCrossing, ...] = yield Read(
            lambda connection: reports.list_crossings(connection, owner, limit=size), owner
        )
        return found

    @staticmethod
    def _limit(organization_id: str, outcome: Outcome) -> Limit:
        if not isinstance(outcome.record, LimitState):
            raise TypeError("a limit was expected")
        return limit_records.public_limit(organization_id, outcome.record)

    # -- adjustments -----------------------------------------------------------------------------------------

    def adjust_credits(
        self,
        organization_id: object,
        amount: Amount,
        *,
        reason: str | None = None,
        idempotency_key: str | None = None,
    ) -> Steps[Transaction]:
        """Correct an account by a signed amount."""
        owner = arguments.organization(organization_id)
        number = parse_decimal(amount)
        micros = -to_micros(-number) if number < 0 else to_micros(number)
        why = None if reason is None else check_text(reason, name="reason")
        key, generated = arguments.key(idempotency_key)
        outcome = yield from self._post(
            ops.Adjust(
                organization_id=owner,
                id=new_id(),
                key=key,
                key_generated=generated,
                fingerprint=ops.fingerprint("adjust", owner, micros),
                amount_micros=micros,
                grant_id=new_id(),
                reason=why,
            )
        )
        return self._transaction(owner, outcome)

    # -- usage -----------------------------------------------------------------------------------------------

    def get_usage(
        self,
        organization_id: object,
        *,
        since: date | datetime | None = None,
        until: date | datetime | None = None,
        group_by: Sequence[str] | str = (),
        bucket: str | None = None,
        agent_type: str | None = None,
        action: str | None = None,
        project_id: object = None,
        department_id: object = None,
        user_id: object = None,
    ) -> Steps[UsageReport]:
        """What was used, from the totals by day."""
        owner = arguments.organization(organization_id)
        first = None if since is None else _day(since, name="since")
        last = None if until is None else _day(until, name="until", up=True)
        groups = _groups(group_by)
        if bucket not in (None, "day", "week", "month"):
            raise InvalidInputError(
                f"bucket must be day, week or month, not {bucket!r}.", context={"parameter": "bucket"}
            )
        matches = arguments.matches(
            agent_type=agent_type,
            action=action,
            project_id=project_id,
            department_id=department_id,
            user_id=user_id,
        )
        lines = yield Read(
            lambda connection: reports.get_usage(
                connection, owner, since=first, until=last, group_by=groups, bucket=bucket, matches=matches
            ),
            owner,
        )
        return UsageReport(owner, first, last, groups, bucket, lines)

    # -- mode "observe" --------------------------------------------------------------------------------------

    def list_denials(
        self,
        organization_id: object = None,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 50,
    ) -> Steps[tuple[Denial, ...]]:
        """Would-be refusals, newest first."""
        owner = None if organization_id is None else arguments.organization(organization_id)
        start, end = arguments.period(since, until)
        size = arguments.page_size(limit)
        found: tuple[Denial, ...] = yield Read(
            lambda connection: reports.list_denials(connection, owner, since=start, until=end, limit=size), owner
        )
        return found

    def observe_report(
        self,
        organization_id: object = None,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Steps[tuple[DenialGroup, ...]]:
        """Would-be refusals, counted."""
        owner = None if organization_id is None else arguments.organization(organization_id)
        start, end = arguments.period(since, until)
        found: tuple[DenialGroup, ...] = yield Read(
            lambda connection: reports.observe_report(connection, owner, since=start, until=end), owner
        )
        return found


def limit_place(scope: LimitScope, value: object) -> str:
    """Whose limit: '' for the organization, and for each where no id is given."""
    if scope is LimitScope.ORGANIZATION:
        if value is not None:
            raise InvalidInputError("a limit of the organization takes no scope_id.", context={"parameter": "scope_id"})
        return ""
    if value is None:
        if scope is LimitScope.RUN:
            raise InvalidInputError("a limit of a run needs its run_id as scope_id.", context={"parameter": "scope_id"})
        return ""
    return _scope_text(value, scope)


def _scope_text(value: object, scope: LimitScope | None) -> str:
    if scope is LimitScope.ACTION:
        text = check_text(value, name="scope_id", max_length=MAX_ACTION)
        if "." not in text.strip("."):
            raise InvalidInputError(
                f"an action is named with its agent type, such as VideoAgent.generate_video, not {text!r}.",
                context={"parameter": "scope_id"},
            )
        return text
    if scope is LimitScope.AGENT_TYPE:
        return check_text(value, name="scope_id")
    return scope_id(value, name="scope_id")


def _warnings(values: object) -> tuple[int, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise InvalidInputError("warn_at must be a sequence of fractions such as (0.8, 0.95).")
    if len(values) > MAX_WARNINGS:
        raise InvalidInputError(f"warn_at may hold at most {MAX_WARNINGS} fractions.", context={"parameter": "warn_at"})
    return limit_records.warn_parts([parse_decimal(value, name="warn_at") for value in values])


def _groups(value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else arguments.items(value, str, name="group_by")
    for name in names:
        if name not in reports.GROUPS:
            raise InvalidInputError(
                f"group_by must hold {', '.join(reports.GROUPS)}, not {name!r}.", context={"parameter": "group_by"}
            )
    if len(set(names)) < len(names):
        raise InvalidInputError("group_by names something twice.", context={"parameter": "group_by"})
    return names


def _day(value: object, *, name: str, up: bool = False) -> date:
    """A UTC day; with ``up`` a datetime in the middle of a day is the day after."""
    if isinstance(value, datetime):
        at = as_utc(value, name=name)
        day = at.date()
        # The last day there is has no day after it.
        return day + timedelta(days=1) if up and at.time() != at.min.time() and day < date.max else day
    if isinstance(value, date):
        return value
    raise InvalidInputError(f"{name} must be a date or an aware datetime.", context={"parameter": name})
