"""PostgreSQL row security: a second line behind every WHERE. An optional step after the migrations.

Each tenant table shows and takes only rows of the organization that the transaction names; a transaction that names
none sees no tenant's rows. FORCE binds the owner of the tables too; superusers and roles with BYPASSRLS go past it, so
the application's role must be neither. Default prices can be read by all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, text

from agentcredits.errors import ConfigurationError
from agentcredits.store.tables import agent_action_costs, credit_accounts, metadata
from agentcredits.store.tenancy import ACCOUNTS_FUNCTION, DEFAULTS_SETTING, TENANT_SETTING

#: Under it the owner of the tables may read all accounts: set by the function that lists them, for its own length.
_LISTING_SETTING: Final = "agentcredits.listing"

#: The tables that hold tenants' rows.
TABLES: Final = tuple(sorted(name for name, table in metadata.tables.items() if "organization_id" in table.c))

# A setting of an earlier transaction is left behind as '', which names nobody.
_MINE: Final = f"organization_id = NULLIF(current_setting('{TENANT_SETTING}', true), '')"
_DEFAULT: Final = "organization_id = ''"


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy as it is declared: for which command, and under which condition; ``owner``: for the owner only."""

    command: str
    condition: str
    owner: bool = False


def policies(table: str) -> Mapping[str, Policy]:
    """The policies of a table, by name."""
    found = {"agentcredits_tenant": Policy("ALL", _MINE)}
    if table == agent_action_costs.name:
        writes = f"{_DEFAULT} AND current_setting('{DEFAULTS_SETTING}', true) = 'write'"
        found["agentcredits_defaults"] = Policy("SELECT", _DEFAULT)
        found["agentcredits_defaults_write"] = Policy("ALL", writes)
    if table == credit_accounts.name:
        listing = f"current_setting('{_LISTING_SETTING}', true) = 'on'"
        found["agentcredits_listing"] = Policy("SELECT", listing, owner=True)
    return found


def is_on(connection: Connection) -> bool:
    """Whether the policies were made here."""
    if connection.dialect.name != "postgresql":
        return False
    found = connection.execute(
        text(
            "SELECT EXISTS (SELECT FROM pg_policies WHERE schemaname = current_schema()"
            " AND tablename = ANY(:tables) AND policyname LIKE 'agentcredits_%')"
        ),
        {"tables": list(TABLES)},
    )
    return bool(found.scalar_one())


def enable(connection: Connection) -> None:
    """Make, or make anew, every policy; the caller commits.

    Raises:
        ConfigurationError: not PostgreSQL.
    """
    _require_postgresql(connection)
    disable(connection)
    for table in TABLES:
        connection.exec_driver_sql(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        connection.exec_driver_sql(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        for name, policy in policies(table).items():
            role = "CURRENT_USER" if policy.owner else "PUBLIC"
            check = "" if policy.command == "SELECT" else f" WITH CHECK ({policy.condition})"
            connection.exec_driver_sql(
                f"CREATE POLICY {name} ON {table} FOR {policy.command} TO {role} USING ({policy.condition}){check}"
            )
    schema = connection.exec_driver_sql("SELECT quote_ident(current_schema())").scalar_one()
    # For those only who may read accounts at all: the function itself runs with its owner's rights. Only a superuser
    # could make the setting a part of the function, so it is set and taken back in it.
    connection.exec_driver_sql(
        f"CREATE OR REPLACE FUNCTION {ACCOUNTS_FUNCTION}()"  # noqa: S608 - names of our own
        " RETURNS TABLE (organization_id text, last_seq bigint, next_due_at timestamptz)"
        f" LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp AS $$"
        " BEGIN IF NOT has_table_privilege(session_user, 'credit_accounts', 'SELECT') THEN RETURN; END IF;"
        f" PERFORM set_config('{_LISTING_SETTING}', 'on', true);"
        " RETURN QUERY SELECT a.organization_id::text, a.last_seq, a.next_due_at FROM credit_accounts AS a;"
        f" PERFORM set_config('{_LISTING_SETTING}', '', true); END $$"
    )


def disable(connection: Connection) -> None:
    """Take every policy away; the caller commits.

    Raises:
        ConfigurationError: not PostgreSQL.
    """
    _require_postgresql(connection)
    for table in TABLES:
        if connection.exec_driver_sql(f"SELECT to_regclass('{table}')").scalar_one() is None:
            continue
        for name in policies(table):
            connection.exec_driver_sql(f"DROP POLICY IF EXISTS {name} ON {table}")
        connection.exec_driver_sql(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
        connection.exec_driver_sql(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    connection.exec_driver_sql(f"DROP FUNCTION IF EXISTS {ACCOUNTS_FUNCTION}()")


def _require_postgresql(connection: Connection) -> None:
    if connection.dialect.name != "postgresql":
        raise ConfigurationError(
            "row security is a feature of PostgreSQL: a SQLite file is open to whoever can read it.",
            reason="no_row_security",
        )
