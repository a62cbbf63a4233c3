"""The table ``media_breakers``: reading, and the changes of which exactly one caller may win. And holds by job."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, case, delete, or_, select, update
from sqlalchemy.dialects.postgresql import insert as insert_into_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_into_sqlite

from agentcredits.clock import Clock
from agentcredits.rules import breaker
from agentcredits.rules.breaker import BreakerState
from agentcredits.store import tenancy
from agentcredits.store.dialects import dialect_of
from agentcredits.store.media_tables import media_breakers as breakers
from agentcredits.store.tables import HOLDING
from agentcredits.store.tables import credit_reservations as holds

#: Provider and account.
Place = tuple[str, str]


def read_breaker(connection: Connection, place: Place, clock: Clock | None) -> tuple[BreakerState | None, datetime]:
    """The breaker of an account (None: closed), and the time at which it was read."""
    return _read(connection, place), _now(connection, clock)


def list_breakers(connection: Connection) -> tuple[BreakerState, ...]:
    """Every open breaker."""
    found = connection.execute(select(breakers).order_by(breakers.c.provider, breakers.c.account)).mappings()
    return tuple(_state(row) for row in found)


def claim_probe(
    connection: Connection, place: Place, clock: Clock | None, pauses: breaker.Pauses, *, early: bool
) -> tuple[BreakerState | None, datetime, bool]:
    """Become the one who probes.

    Returns:
        The breaker now (None: closed in the meantime), the time, and whether the caller is the one.
    """
    state = _read(connection, place)
    now = _now(connection, clock)
    if state is None or not breaker.may_probe(state, now, early=early):
        return state, now, False
    taken = breaker.probing(state, now, pauses)
    # The condition is tested again on the locked row: of two who read the same, the second finds it changed.
    free = or_(breakers.c.probing_until.is_(None), breakers.c.probing_until <= now)
    due = [] if early else [breakers.c.probe_at <= now]
    won = connection.execute(
        update(breakers).where(_at(place), free, *due).values(probing_until=taken.probing_until)
    ).rowcount
    return (taken, now, True) if won else (_read(connection, place), now, False)


def book_failure(
    connection: Connection,
    place: Place,
    clock: Clock | None,
    finding: breaker.Finding,
    pauses: breaker.Pauses,
    claim: datetime | None,
) -> tuple[BreakerState, datetime, bool]:
    """Open the breaker, or let it wait longer.

    Returns:
        The breaker now, the time, and whether this call opened or changed it.
    """
    old = _read(connection, place, lock=True)
    now = _now(connection, clock)
    new = breaker.failed(old, place, finding, now=now, pauses=pauses, claim=claim)
    if new is old:
        return new, now, False
    values = _values(new)
    if old is not None:
        connection.execute(update(breakers).where(_at(place)).values(values))
        return new, now, True
    insert = insert_into_postgresql if connection.dialect.name == "postgresql" else insert_into_sqlite
    made = connection.execute(insert(breakers).values(values).on_conflict_do_nothing()).rowcount
    return (new, now, True) if made else (_read(connection, place) or new, now, False)


def end_probe(connection: Connection, place: Place, claim: datetime) -> None:
    """Let somebody else probe; nothing happens when another does already."""
    connection.execute(update(breakers).where(_at(place), breakers.c.probing_until == claim).values(probing_until=None))


def close_breaker(connection: Connection, place: Place, claim: datetime | None = None) -> BreakerState | None:
    """Forget an open breaker, and give what it was; with ``claim`` only while this prober's turn lasts."""
    found = _read(connection, place, lock=True)
    if found is None or claim not in (None, found.probing_until):
        return None
    connection.execute(delete(breakers).where(_at(place)))
    return found


def _read(connection: Connection, place: Place, *, lock: bool = False) -> BreakerState | None:
    statement = select(breakers).where(_at(place))
    row = connection.execute(statement.with_for_update() if lock else statement).mappings().one_or_none()
    return None if row is None else _state(row)


def _state(row: RowMapping) -> BreakerState:
    return BreakerState(**row)


def _values(state: BreakerState) -> dict[str, object]:
    return {column.name: getattr(state, column.name) for column in breakers.columns}


def _at(place: Place) -> ColumnElement[bool]:
    return and_(breakers.c.provider == place[0], breakers.c.account == place[1])


def _now(connection: Connection, clock: Clock | None) -> datetime:
    return dialect_of(connection).now(connection) if clock is None else clock.now()


# -- holds that await a provider's verdict -----------------------------------------------------------------------


def find_by_reference(
    connection: Connection, providers: Sequence[str], reference: str, organization_id: str | None
) -> tuple[str, str] | None:
    """Organization and id of the hold that was marked with a provider's reference; the newest of several.

    One that is open comes before those that are settled (the verdict was told twice, or a reference used again).
    """
    for found in tenancy.each(connection, organization_id, partial(_find_hold, connection, providers, reference)):
        if found is not None:
            return found
    return None


def _find_hold(
    connection: Connection, providers: Sequence[str], reference: str, organization_id: str | None
) -> tuple[str, str] | None:
    is_open = case((holds.c.state.in_(HOLDING), 0), else_=1)
    statement = select(holds.c.organization_id, holds.c.id).where(
        holds.c.provider.in_(providers), holds.c.provider_reference == reference
    )
    if organization_id is not None:
        statement = statement.where(holds.c.organization_id == organization_id)
    found = connection.execute(statement.order_by(is_open, holds.c.created_at.desc()).limit(1)).one_or_none()
    return None if found is None else (found.organization_id, found.id)
