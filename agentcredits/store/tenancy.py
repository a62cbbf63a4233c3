"""PostgreSQL row security: which organization a transaction is for. Does nothing where policies do not apply.

The policies (``row_security``) compare organization_id with a setting that ends with the transaction. The runner marks
its connections once it knows that the policies apply to its role; everybody else pays nothing.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection, text

#: The setting that the policies read.
TENANT_SETTING: Final = "agentcredits.organization_id"
#: The setting under which the default prices, which all tenants read, can be written.
DEFAULTS_SETTING: Final = "agentcredits.default_prices"

_APPLIES: Final = "agentcredits_row_security"
_TENANT: Final = "agentcredits_tenant"

SET_TENANT: Final = f"SELECT set_config('{TENANT_SETTING}', %(organization)s, true)"
_SET: Final = text("SELECT set_config(:name, :value, true)")


def mark(connection: Connection) -> None:
    """Policies apply to this connection's role: name the tenant in each transaction."""
    connection.execution_options(**{_APPLIES: True})


def applies(connection: Connection) -> bool:
    """Whether the connection was marked."""
    return _APPLIES in connection.get_execution_options()


def enter(connection: Connection, organization_id: str) -> None:
    """This transaction, and those that ``renew`` begins, are for one organization."""
    if applies(connection):
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
