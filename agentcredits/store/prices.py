"""The table ``agent_action_costs``: reading candidates, setting a price, listing."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from sqlalchemy import Connection, Select, delete, insert, or_, select, update

from agentcredits.amounts import from_micros, to_micros
from agentcredits.clock import Clock
from agentcredits.errors import InvalidAmountError, InvalidInputError
from agentcredits.model import ActionCost
from agentcredits.rules.pricing import ANY, DEFAULT_ORGANIZATION, CostRow
from agentcredits.store.dialects import dialect_of
from agentcredits.store.tables import agent_action_costs as costs


def read_candidates(
    connection: Connection, organization_id: str, agent_type: str, action: str, clock: Clock | None
) -> tuple[tuple[CostRow, ...], datetime]:
    """Every row that may price the action now or soon, and the time at which it was read."""
    now = dialect_of(connection).now(connection) if clock is None else clock.now()
    rows = _rows(
        connection,
        select(costs).where(
            costs.c.organization_id.in_((organization_id, DEFAULT_ORGANIZATION)),
            costs.c.agent_type.in_((agent_type, ANY)),
            costs.c.action.in_((action, ANY)),
            or_(costs.c.valid_until.is_(None), costs.c.valid_until > now),
        ),
    )
    return tuple(rows), now


def set_cost(
    connection: Connection,
    *,
    organization_id: str,
    agent_type: str,
    action: str,
    cost: Decimal,
    valid_from: datetime | None,
    valid_until: datetime | None,
    free: bool,
    source: str | None,
    clock: Clock | None,
) -> ActionCost:
    """Give an action a new price from ``valid_from`` (None: now) on.

    A price without an end closes the row in force before. A price for a time only lies over it, and it is in force
    again afterwards (the row that became valid last wins). Rows that would start at the same moment are replaced;
    later ones stay.

    Raises:
        InvalidInputError: the price would end before it starts.
    """
    now = dialect_of(connection).now(connection) if clock is None else clock.now()
    start = now if valid_from is None else valid_from
    if valid_until is not None and valid_until <= start:
        raise InvalidInputError(
            "valid_until must be later than valid_from, and than now.", context={"parameter": "valid_until"}
        )
    mine = (
        (costs.c.organization_id == organization_id) & (costs.c.agent_type == agent_type) & (costs.c.action == action)
    )
    connection.execute(delete(costs).where(mine, costs.c.valid_from == start))
    if valid_until is None:
        connection.execute(
            update(costs)
            .where(
                mine,
                costs.c.valid_from < start,
                or_(costs.c.valid_until.is_(None), costs.c.valid_until > start),
            )
            .values(valid_until=start)
        )
    connection.execute(
        insert(costs),
        {
            "organization_id": organization_id,
            "agent_type": agent_type,
            "action": action,
            "cost": cost,
            "valid_from": start,
            "valid_until": valid_until,
            "free": free,
            "source": source,
            "created_at": now,
        },
    )
    return ActionCost(organization_id, agent_type, action, cost, start, valid_until, free, source, now)


def list_costs(
    connection: Connection, organization_id: str | None, clock: Clock | None, *, all_versions: bool = False
) -> tuple[ActionCost, ...]:
    """Prices in force or to come: the defaults, and an organization's own where it is given.

    Raises:
        InvalidAmountError: a row holds something that is no amount of credits.
    """
    now = dialect_of(connection).now(connection) if clock is None else clock.now()
    organizations = {DEFAULT_ORGANIZATION} | ({organization_id} if organization_id else set())
    statement = select(costs).where(costs.c.organization_id.in_(sorted(organizations)))
    if not all_versions:
        statement = statement.where(or_(costs.c.valid_until.is_(None), costs.c.valid_until > now))
    return tuple(
        public_cost(row)
        for row in _rows(
            connection,
            statement.order_by(costs.c.organization_id, costs.c.agent_type, costs.c.action, costs.c.valid_from),
        )
    )


def public_cost(row: CostRow) -> ActionCost:
    """The record that callers get.

    Raises:
        InvalidAmountError: the cost that stands in the table is no amount of credits.
    """
    try:
        cost = from_micros(to_micros(row.cost, name="cost", allow_zero=True))
    except InvalidAmountError as error:
        raise InvalidAmountError(
            f"the cost {row.cost!r} of {row.agent_type}.{row.action} in agent_action_costs is no amount of credits.",
            context={"agent_type": row.agent_type, "action": row.action},
        ) from error
    return ActionCost(
        row.organization_id,
        row.agent_type,
        row.action,
        cost,
        row.valid_from,
        row.valid_until,
        row.free,
        row.source,
        row.created_at,
    )


def _rows(connection: Connection, statement: Select[tuple[object, ...]]) -> list[CostRow]:
    return [
        CostRow(
            organization_id=row["organization_id"],
            agent_type=row["agent_type"],
            action=row["action"],
            cost=row["cost"],
            valid_from=row["valid_from"] or datetime.min.replace(tzinfo=UTC),
            valid_until=row["valid_until"],
            rule=row["rule"],
            free=bool(row["free"]),
            source=row["source"],
            created_at=row["created_at"],
        )
        for row in connection.execute(statement).mappings()
    ]
