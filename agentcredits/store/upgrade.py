"""Bringing a database to the schema that this version needs, and telling whether it is there.

Alembic is imported only when migrations run. They live in the package ``agentcredits_migrations``.
"""

from __future__ import annotations

import io
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Engine, column, inspect, select, table

from agentcredits.errors import ConfigurationError, SchemaError
from agentcredits.store import row_security
from agentcredits.store.dialects import dialect_of
from agentcredits.store.schema_check import check_schema
from agentcredits.store.tables import VERSION_TABLE, metadata
from agentcredits.store.tenancy import ACCOUNTS_FUNCTION
from agentcredits.store.triggers import TRIGGER_FUNCTIONS

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = [
    "EXPECTED_REVISION",
    "RESTORE_TRIGGERS",
    "check_schema",
    "current_revision",
    "drop_everything",
    "is_empty",
    "migration_transaction",
    "require_schema",
    "upgrade",
    "upgrade_database",
    "upgrade_sql",
]

#: Every revision, oldest first; spelled out so that a service can judge a database without importing Alembic.
REVISIONS: Final = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009")

#: The revision that this version needs: Alembic's head.
EXPECTED_REVISION: Final = REVISIONS[-1]

#: Key in Alembic's ``config.attributes``: put the triggers back even when no migration had to run.
RESTORE_TRIGGERS: Final = "agentcredits_restore_triggers"

#: How long an upgrade waits for another upgrade, or for a writer of the ledger.
LOCK_TIMEOUT_SECONDS: Final = 30.0

#: PostgreSQL's advisory lock of all upgrades: "agcr" in ASCII.
_ADVISORY_LOCK: Final = 0x61676372

# Alembic keeps the environment of the running migration in module globals: one at a time in a process.
_one_migration = threading.Lock()


def current_revision(connection: Connection) -> str | None:
    """The database's revision; None when it has no credits schema."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    revision: str | None = connection.execute(select(column("version_num")).select_from(table(VERSION_TABLE))).scalar()
    return revision


def is_empty(connection: Connection) -> bool:
    """Whether the database (on PostgreSQL: the current schema) has no tables at all."""
    return not inspect(connection).get_table_names()


def require_schema(connection: Connection, *, url: str) -> None:
    """Return if the schema is the one that this version needs.

    Args:
        connection: A connection to the database.
        url: The database as the user names it, for the message; its password hidden.

    Raises:
        SchemaError: missing, old or newer; with the exact command that mends it.
    """
    revision = current_revision(connection)
    if revision != EXPECTED_REVISION:
        raise _schema_error(revision, REVISIONS, url)


def _schema_error(revision: str | None, known: tuple[str, ...], url: str) -> SchemaError:
    command = f"agentcredits db upgrade --database {shlex.quote(url)}"
    context = {"database": url, "revision": revision, "expected": known[-1]}
    if revision is None:
        message, reason = f"The database {url} has no credits schema: run `{command}`.", "schema_missing"
    elif revision in known:
        message = (
            f"The credits schema of {url} is at revision {revision}, this version needs {known[-1]}: run `{command}`."
        )
        reason = "schema_old"
    else:
        command = "pip install --upgrade agentcredits"
        message = (
            f"The credits schema of {url} is at revision {revision}, which this version does not know"
            f" (it needs {known[-1]}): a newer agentcredits upgraded it, run `{command}`."
        )
        reason = "schema_newer"
    return SchemaError(message, reason=reason, context=context, suggestions=[f"Run `{command}`."])


def upgrade(connection: Connection) -> None:
    """Run all migrations that are missing on this connection, inside its transaction; the caller commits.

    On SQLite begin with ``BEGIN IMMEDIATE``, and switch foreign keys off before it, as ``upgrade_database`` does.

    Raises:
        SchemaError: a newer agentcredits upgraded this database.
    """
    if not connection.in_transaction():
        connection.begin()
    revision = current_revision(connection)
    if revision is not None and revision not in REVISIONS:
        raise _schema_error(revision, REVISIONS, connection.engine.url.render_as_string(hide_password=True))
    # Under its own policies a migration would see no rows to bring along.
    secured = revision != EXPECTED_REVISION and row_security.is_on(connection)
    if secured:
        row_security.disable(connection)
    _run(_configuration({"connection": connection, RESTORE_TRIGGERS: True}))
    if secured:
        row_security.enable(connection)


def upgrade_database(engine: Engine, *, with_row_security: bool | None = None) -> None:
    """Run all migrations that are missing, in one transaction; safe to call from several processes at once.

    Args:
        engine: The database.
        with_row_security: PostgreSQL's policies: True makes them, False takes them away, None leaves them as they are.

    Raises:
        SchemaError: a newer agentcredits upgraded this database.
        ConfigurationError: row security was asked for on SQLite; nothing was changed.
        sqlalchemy.exc.OperationalError: the lock was not free within ``LOCK_TIMEOUT_SECONDS``; nothing was changed.
    """
    with migration_transaction(engine) as connection:
        upgrade(connection)
        if with_row_security is not None:
            change = row_security.enable if with_row_security else row_security.disable
            change(connection)


@contextmanager
def migration_transaction(engine: Engine) -> Iterator[Connection]:
    """The transaction in which migrations run: alone, and all or nothing.

    Raises:
        SchemaError: rows point nowhere at its end (SQLite); nothing was changed.
    """
    with engine.connect() as connection:
        if connection.dialect.name != "sqlite":
            # Under REPEATABLE READ the second of two first upgrades would not see what the first one did.
            connection.execution_options(isolation_level="READ COMMITTED")
            dialect_of(connection).begin_write(connection, LOCK_TIMEOUT_SECONDS)
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
            yield connection
            connection.commit()
            return
        with _foreign_keys_off(connection):
            dialect_of(connection).begin_write(connection, LOCK_TIMEOUT_SECONDS)
            yield connection
            dangling = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
            if dangling:
                raise SchemaError(
                    f"The migration leaves {len(dangling)} rows that point nowhere, the first in {dangling[0][0]};"
                    " nothing was changed.",
                    reason="dangling_rows",
                    context={"rows": len(dangling)},
                )
            connection.commit()


@contextmanager
def _foreign_keys_off(connection: Connection) -> Iterator[None]:
    """A batch rebuild drops and renames tables: with foreign keys on, SQLite would count their rows as orphaned.

    The switch does nothing inside a transaction, so it goes around it, on the driver's own connection.
    """
    raw: Any = connection.connection.dbapi_connection
    raw.rollback()
    was_on = raw.execute("PRAGMA foreign_keys").fetchone()[0]
    raw.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        connection.rollback()
        raw.execute(f"PRAGMA foreign_keys={was_on}")


def drop_everything(connection: Connection) -> None:
    """Drop all that agentcredits keeps in a database, the ledger included; for tests. The caller commits."""
    metadata.drop_all(connection)
    connection.exec_driver_sql(f"DROP TABLE IF EXISTS {VERSION_TABLE}")
    if connection.dialect.name == "postgresql":
        for name in (*TRIGGER_FUNCTIONS, ACCOUNTS_FUNCTION):
            connection.exec_driver_sql(f"DROP FUNCTION IF EXISTS {name}()")


def upgrade_sql(dialect_name: str) -> str:
    """The SQL of all migrations, triggers and default prices included; nothing is connected to.

    Args:
        dialect_name: "sqlite" or "postgresql".

    Raises:
        ConfigurationError: another name.
    """
    if dialect_name not in ("sqlite", "postgresql"):
        raise ConfigurationError(f"there is no schema for {dialect_name!r}: ask for sqlite or postgresql.")
    output = io.StringIO()
    _run(_configuration({"dialect_name": dialect_name}, output), sql=True)
    return output.getvalue()


def _configuration(attributes: dict[str, Any], output_buffer: io.StringIO | None = None) -> Config:
    from alembic.config import Config

    config = Config(output_buffer=output_buffer, attributes=attributes)
    # ConfigParser reads % as interpolation, and a path may hold one.
    from importlib.resources import files

    config.set_main_option("script_location", str(files("agentcredits_migrations")).replace("%", "%%"))
    return config


def _run(config: Config, *, sql: bool = False) -> None:
    from alembic import command

    with _one_migration:
        command.upgrade(config, "head", sql=sql)
