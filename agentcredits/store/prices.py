"""The table ``agent_action_costs``: reading candidates, setting prices, comparing, listing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    insert,
    or_,
    select,
    type_coerce,
)
from sqlalchemy import update as update_rows

from agentcredits.amounts import from_micros, to_micros
from agentcredits.clock import Clock
from agentcredits.errors import InvalidAmountError, InvalidInputError
from agentcredits.model import ActionCost, PriceChange
from agentcredits.rules.price_entries import PriceEntry
from agentcredits.rules.price_rules import PriceRule, stored_rule, usable
from agentcredits.rules.pricing import ANY, DEFAULT_ORGANIZATION, CostRow, choose
from agentcredits.store import tenancy
from agentcredits.store.dialects import dialect_of
from agentcredits.store.tables import agent_action_costs as costs

_TIMES: Final = ("valid_from", "valid_until", "created_at", "as_of")
_ALWAYS: Final = datetime.min.replace(tzinfo=UTC)
_NEVER: Final = datetime.max.replace(tzinfo=UTC)


def read_candidates(
    connection: Connection, organization_id: str, agent_type: str, action: str, clock: Clock | None
) -> tuple[tuple[CostRow, ...], datetime]:
    """Every row that may price the action now or soon, and the time at which it was read."""
    dialect = connection.dialect.name
    tells_time = clock is None and dialect == "postgresql"
    statement = _candidates(dialect, tells_time)
    asked: dict[str, Any] = {"organization_id": organization_id, "agent_type": agent_type, "action": action}
    if tells_time:
        if not connection.in_transaction():
            # A statement alone needs no BEGIN, and no ROLLBACK when the connection goes back to its pool.
            connection.execution_options(isolation_level="AUTOCOMMIT")
        found = connection.execute(statement, asked).mappings().all()
        now = found[0]["read_at"] if found else _now(connection, clock)
    else:
        now = _now(connection, clock)
        found = connection.execute(statement, asked | {"now": now}).mappings().all()
    return tuple(_cost_row(row) for row in found), now


@cache
def _candidates(dialect: str, tells_time: bool) -> Select[Any]:
    """Built once: every price that a process does not know yet is read with it.

    ``tells_time``: the statement reads the clock itself, once for all of its rows, and spares a round trip.
    """
    now: ColumnElement[datetime] = bindparam("now", type_=costs.c.valid_until.type)
    if tells_time:
        now = type_coerce(func.statement_timestamp(), costs.c.valid_until.type)
    mine = and_(
        costs.c.organization_id.in_((bindparam("organization_id"), DEFAULT_ORGANIZATION)),
        costs.c.agent_type.in_((bindparam("agent_type"), ANY)),
        costs.c.action.in_((bindparam("action"), ANY)),
        or_(costs.c.valid_until.is_(None), costs.c.valid_until > now),
    )
    read_at = (now.label("read_at"),) if tells_time else ()
    return _select(dialect, *read_at).where(mine)


def list_costs(
    connection: Connection, organization_id: str | None, clock: Clock | None, *, all_versions: bool = False
) -> tuple[ActionCost, ...]:
    """Prices in force or to come: the defaults, and an organization's own where it is given."""
    organizations = {DEFAULT_ORGANIZATION} | ({organization_id} if organization_id else set())
    condition: ColumnElement[bool] = costs.c.organization_id.in_(sorted(organizations))
    if not all_versions:
        now = _now(connection, clock)
        condition = and_(condition, or_(costs.c.valid_until.is_(None), costs.c.valid_until > now))
    return tuple(public_cost(row) for row in _rows(connection, condition))


def all_rows(connection: Connection, organization_id: str) -> list[CostRow]:
    """Every price that an organization ('': everybody) ever had."""
    return _rows(connection, costs.c.organization_id == organization_id)


# -- setting -----------------------------------------------------------------------------------------------------


def set_cost(connection: Connection, *, organization_id: str, entry: PriceEntry, clock: Clock | None) -> ActionCost:
    """Give an action a new price from ``valid_from`` (None: now) on.

    A price without an end closes the row in force before. A price for a time only lies over it, and it is in force
    again afterwards (the row that became valid last wins). Rows that would start at the same moment are replaced;
    later ones stay.

    Raises:
        InvalidInputError: the price would end before it starts.
    """
    if organization_id == DEFAULT_ORGANIZATION:
        tenancy.write_defaults(connection)
    now = _now(connection, clock)
    start = now if entry.valid_from is None else entry.valid_from
    if entry.valid_until is not None and entry.valid_until <= start:
        raise InvalidInputError(
            "valid_until must be later than valid_from, and than now.", context={"parameter": "valid_until"}
        )
    mine = _place(organization_id, entry.agent_type, entry.action)
    connection.execute(delete(costs).where(mine, costs.c.valid_from == start))
    if entry.valid_until is None:
        connection.execute(
            update_rows(costs)
            .where(
                mine,
                costs.c.valid_from < start,
                or_(costs.c.valid_until.is_(None), costs.c.valid_until > start),
            )
            .values(valid_until=start)
        )
    rule = entry.rule
    connection.execute(
        insert(costs),
        {
            "organization_id": organization_id,
            "agent_type": entry.agent_type,
            "action": entry.action,
            "cost": entry.flat,
            "rule": None if rule is None else rule.as_json(),
            "valid_from": start,
            "valid_until": entry.valid_until,
            "free": entry.free,
            "source": entry.source,
            "created_at": now,
            "as_of": entry.as_of,
        },
    )
    return _as_set(organization_id, entry, start, now)


def import_costs(
    connection: Connection, *, organization_id: str, entries: Iterable[PriceEntry], clock: Clock | None
) -> tuple[PriceChange, ...]:
    """Set what differs from the prices that are there, in the caller's transaction; what is the same is not touched.

    Raises:
        InvalidInputError: one price would end before it starts.
    """
    if connection.dialect.name == "postgresql":
        # Two imports at once would each find the other's rows missing; readers are not kept waiting.
        connection.exec_driver_sql("LOCK TABLE agent_action_costs IN SHARE ROW EXCLUSIVE MODE")
    moment = _Fixed(_now(connection, clock))
    changes = []
    for entry in entries:
        change = _compared(connection, organization_id, entry, moment.now())
        if change.status in ("new", "changed"):
            made = set_cost(connection, organization_id=organization_id, entry=entry, clock=moment)
            change = replace(change, after=made)
        changes.append(change)
    return tuple(changes)


def diff_costs(
    connection: Connection, *, organization_id: str, entries: Iterable[PriceEntry], clock: Clock | None
) -> tuple[PriceChange, ...]:
    """What an import would do, and the prices in force that it does not name; nothing is written."""
    now = _now(connection, clock)
    listed = list(entries)
    changes = [_compared(connection, organization_id, entry, now) for entry in listed]
    places = {(entry.agent_type, entry.action) for entry in listed}
    others: dict[tuple[str, str], list[CostRow]] = {}
    for row in _rows(connection, costs.c.organization_id == organization_id):
        if (row.agent_type, row.action) not in places:
            others.setdefault((row.agent_type, row.action), []).append(row)
    for (agent_type, action), rows in sorted(others.items()):
        applies = choose(rows, now)
        if applies is not None:
            before = public_cost(applies)
            changes.append(PriceChange(organization_id, agent_type, action, "only_in_database", before=before))
    return tuple(changes)


class _Fixed:
    """One moment for all prices of an import."""

    def __init__(self, moment: datetime) -> None:
        self._moment = moment

    def now(self) -> datetime:
        """That moment."""
        return self._moment


def _compared(connection: Connection, organization_id: str, entry: PriceEntry, now: datetime) -> PriceChange:
    place = (organization_id, entry.agent_type, entry.action)
    after = _as_set(organization_id, entry, entry.valid_from or now, now)
    if entry.valid_until is not None and entry.valid_until <= now:
        return PriceChange(*place, "over", after=after)
    rows = _rows(connection, _place(*place))
    planned = next((row for row in rows if row.valid_from == entry.valid_from), None)
    row = planned or choose(rows, max(now, entry.valid_from or now))
    if row is None:
        return PriceChange(*place, "new", after=after)
    before = public_cost(row)
    details = tuple(_differences(before, after))
    return PriceChange(*place, "changed" if details else "same", before=before, after=after, details=details)


def _differences(before: ActionCost, after: ActionCost) -> Iterator[str]:
    if before.problem is not None:
        yield f"{before.problem} → {_cost_text(after)}"
        return
    if before.rule != after.rule or before.cost != after.cost:
        if before.rule is not None and after.rule is not None:
            yield from PriceRule(before.rule).differences(PriceRule(after.rule))
        else:
            yield f"{_cost_text(before)} → {_cost_text(after)}"
    for name in ("free", "source", "as_of", "valid_until"):
        if getattr(before, name) != getattr(after, name):
            yield f"{name}: {_shown(getattr(before, name))} → {_shown(getattr(after, name))}"


def _cost_text(price: ActionCost) -> str:
    if price.cost is None:
        return f"{(price.rule or {}).get('kind', 'no')} rule"
    return f"{price.cost:f} credits"


def _shown(value: object) -> str:
    return "none" if value is None else str(value)


def _as_set(organization_id: str, entry: PriceEntry, start: datetime, now: datetime) -> ActionCost:
    rule = entry.rule
    return ActionCost(
        organization_id=organization_id,
        agent_type=entry.agent_type,
        action=entry.action,
        cost=entry.flat if rule is None else None,
        valid_from=start,
        valid_until=entry.valid_until,
        free=entry.free,
        source=entry.source,
        created_at=now,
        rule=None if rule is None else rule.document,
        as_of=entry.as_of,
    )


# -- reading -----------------------------------------------------------------------------------------------------


def public_cost(row: CostRow) -> ActionCost:
    """The record that callers get; one that cannot be used says why, and stands in nobody's way."""
    problem = row.problem
    cost: Decimal | None = None
    rule: Mapping[str, Any] | None = None
    try:
        if row.rule is None:
            cost = from_micros(to_micros(row.cost, name="cost", allow_zero=True))
        else:
            rule = usable(stored_rule(row.rule)).document
    except InvalidAmountError:
        problem = problem or f"the cost {row.cost!r} is no amount of credits"
    except InvalidInputError as error:
        problem = problem or error.message.rstrip(".")
    return ActionCost(
        organization_id=row.organization_id,
        agent_type=row.agent_type,
        action=row.action,
        cost=cost,
        valid_from=row.valid_from,
        valid_until=row.valid_until,
        free=row.free,
        source=row.source,
        created_at=row.created_at,
        rule=rule,
        as_of=row.as_of,
        problem=problem,
    )


def _rows(connection: Connection, condition: ColumnElement[bool]) -> list[CostRow]:
    """Rows with their times read as text: one that an operator mistyped must not hide all others."""
    found = connection.execute(_select(connection.dialect.name).where(condition)).mappings()
    return [_cost_row(row) for row in found]


def _select(dialect: str, *more: ColumnElement[Any]) -> Select[Any]:
    columns = [_as_text(dialect, column) if column.name in _TIMES else column for column in costs.c]
    order = (costs.c.organization_id, costs.c.agent_type, costs.c.action, costs.c.valid_from)
    return select(*columns, *more).order_by(*order)


def _as_text(dialect: str, column: ColumnElement[Any]) -> ColumnElement[Any]:
    name = str(getattr(column, "name", ""))
    if dialect == "sqlite":
        return type_coerce(column, Text).label(name)
    utc = column if name == "as_of" else func.timezone("UTC", column)
    told = func.to_char(utc, "YYYY-MM-DD" if name == "as_of" else "YYYY-MM-DD HH24:MI:SS.US")
    # PostgreSQL knows an infinity, which no datetime can hold.
    return case((func.isfinite(column), told), else_=cast(column, Text)).label(name)


def _cost_row(row: RowMapping) -> CostRow:
    problem = None
    try:
        starts, ends = _moment(row["valid_from"]), _moment(row["valid_until"])
    except (TypeError, ValueError, OverflowError):
        problem = f"valid_from {row['valid_from']!r:.60} or valid_until {row['valid_until']!r:.60} is no time"
        starts, ends = _NEVER, None
    return CostRow(
        organization_id=row["organization_id"],
        agent_type=row["agent_type"],
        action=row["action"],
        cost=row["cost"],
        valid_from=starts or _ALWAYS,
        valid_until=ends,
        rule=row["rule"],
        free=bool(row["free"]),
        source=row["source"],
        created_at=_or_none(row["created_at"], _moment),
        as_of=_or_none(row["as_of"], date.fromisoformat),
        problem=problem,
    )


def _moment(value: Any) -> datetime | None:
    """A time as the database tells it.

    Raises:
        TypeError, ValueError, OverflowError: it is none.
    """
    if value is None:
        return None
    if value in ("infinity", "-infinity"):
        return _ALWAYS if value.startswith("-") else _NEVER
    found = datetime.fromisoformat(value)
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def _or_none(value: object, read: Any) -> Any:
    """What only informs: unreadable is as good as nothing."""
    try:
        return None if value is None else read(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _place(organization_id: str, agent_type: str, action: str) -> ColumnElement[bool]:
    return and_(costs.c.organization_id == organization_id, costs.c.agent_type == agent_type, costs.c.action == action)


def _now(connection: Connection, clock: Clock | None) -> datetime:
    return dialect_of(connection).now(connection) if clock is None else clock.now()
