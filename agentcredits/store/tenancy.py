"""PostgreSQL row security: which organization a transaction is for. Does nothing where policies do not apply.

The policies (``row_security``) compare organization_id with a setting that ends with the transaction. Connections are
marked once it is known that the policies apply to their role; everybody else pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, FromClause, String, column, func, select, text

from agentcredits.store.columns import UtcDateTime
from agentcredits.store.tables import credit_accounts

T = TypeVar("T")

#: The setting that the policies read.
TENANT_SETTING: Final = "agentcredits.organization_id"
#: The setting under which the default prices, which all tenants read, can be written.
DEFAULTS_SETTING: Final = "agentcredits.default_prices"
#: The function that lists every account, whoever asks.
ACCOUNTS_FUNCTION: Final = "agentcredits_accounts"

#: As psycopg takes it.
SET_TENANT_SQL: Final = f"SELECT set_config('{TENANT_SETTING}', %(organization)s, true)"
_SET: Final = text("SELECT set_config(:name, :value, true)")

_APPLIES: Final = "agentcredits_row_security"
_TENANT: Final = "agentcredits_tenant"
_known: WeakKeyDictionary[Engine, bool] = WeakKeyDictionary()


def is_active(connection: Connection) -> bool:
    """Whether policies apply to this connection's role; asked once for each engine.

    They do not on SQLite, where they were not switched on, and for superusers and roles with BYPASSRLS.
    """
    if connection.dialect.name != "postgresql":
        return False
    known = _known.get(connection.engine)
    if known is None:
        place = func.to_regclass(credit_accounts.name)
        known = _known[connection.engine] = bool(connection.scalar(select(func.row_security_active(place))))
    return known


def mark(connection: Connection) -> None:
    """Policies apply to this connection's role: name the tenant in each transaction."""
    connection.execution_options(**{_APPLIES: True})


def applies(connection: Connection) -> bool:
    """Whether the connection was marked."""
    return _APPLIES in connection.get_execution_options()


def enter(connection: Connection, organization_id: str | None) -> None:
    """This transaction, and those that ``renew`` begins, are for one organization; None or '': for none."""
    if applies(connection) and organization_id:
        connection.execution_options(**{_TENANT: organization_id})
        apply(connection)


def apply(connection: Connection) -> None:
    """Name the tenant to the transaction that has just begun."""
    tenant: Any = connection.get_execution_options().get(_TENANT)
    if tenant is not None:
        connection.execute(_SET, {"name": TENANT_SETTING, "value": tenant})


def renew(connection: Connection) -> None:
    """End a read, so that the next statement sees what was committed meanwhile; the tenant stays."""
    connection.rollback()
    apply(connection)


def write_defaults(connection: Connection) -> None:
    """This transaction may write the default prices."""
    if applies(connection):
        connection.execute(_SET, {"name": DEFAULTS_SETTING, "value": "write"})


def all_accounts(connection: Connection) -> FromClause:
    """Every account's organization_id, last_seq and next_due_at, also where policies show the tenant's only."""
    if not applies(connection):
        return credit_accounts
    listed = func.agentcredits_accounts().table_valued(
        column("organization_id", String()), column("last_seq"), column("next_due_at", UtcDateTime())
    )
    return listed.alias("accounts")


def each(connection: Connection, organization_id: str | None, read: Callable[[str | None], T]) -> Iterator[T]:
    """What ``read`` answers for an organization; None: for all at once, or one by one where policies apply."""
    if organization_id is not None or not applies(connection):
        yield read(organization_id)
        return
    places = all_accounts(connection).c.organization_id
    for place in list(connection.execute(select(places).order_by(places)).scalars()):
        enter(connection, place)
        yield read(place)
