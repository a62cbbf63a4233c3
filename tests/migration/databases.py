"""What the migration tests share: engines as in production, catalogues as plain text, a next revision."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, make_url, text

from agentcredits.store import upgrade as store_upgrade
from agentcredits.store.dialects import make_engine, normalise_url
from agentcredits.store.tables import VERSION_TABLE, metadata
from agentcredits.store.triggers import trigger_statements


def engine_for(url: str) -> Engine:
    """An engine as the service makes it: WAL, foreign keys on, short waits."""
    return make_engine(normalise_url(url), pool_size=2, lock_timeout_seconds=5.0, sqlite_synchronous="NORMAL")


@contextmanager
def fresh_postgresql(server_url: str) -> Iterator[str]:
    """The URL of a new database without tables; dropped afterwards."""
    name = f"empty_{uuid.uuid4().hex}"
    server = create_engine(normalise_url(server_url), isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    server.dispose()


def create_declared(connection: Connection) -> None:
    """The declared schema without migrations: tables.py, straight."""
    metadata.create_all(connection)
    for statement in trigger_statements(connection.dialect.name):
        connection.execute(text(statement.replace(":", r"\:")))


def catalogue(connection: Connection) -> list[str]:
    """Everything that the database itself says about its schema, one line for each thing, without our own reading."""
    lines = _sqlite_catalogue(connection) if connection.dialect.name == "sqlite" else _pg_catalogue(connection)
    return sorted(line for line in lines if VERSION_TABLE not in line)


def _sqlite_catalogue(connection: Connection) -> list[str]:
    rows = connection.exec_driver_sql("SELECT type, name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    lines = []
    for kind, name, table, sql in rows:
        if kind != "table":
            lines.append(f"{kind} {name} on {table}: {sql}")
            continue
        # The order of columns matters; that of constraints does not.
        body = _parts(sql[sql.index("(") + 1 : sql.rindex(")")])
        columns = [part for part in body if not part.startswith("CONSTRAINT")]
        lines += [f"table {name} column {number}: {part}" for number, part in enumerate(columns)]
        lines += [f"table {name}: {part}" for part in body if part.startswith("CONSTRAINT")]
    return lines


def _parts(body: str) -> list[str]:
    """What stands between the commas of a CREATE TABLE, whatever ALTER TABLE did to its lines."""
    parts, depth = [""], 0
    for character in body:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [" ".join(part.split()) for part in parts]


_PG_CATALOGUE = """
SELECT format('table %s column %s: %s %s %s %s', c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod),
              a.attnotnull, pg_get_expr(d.adbin, d.adrelid))
  FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
  LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
 WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT format('constraint %s on %s: %s', conname, conrelid::regclass, pg_get_constraintdef(oid))
  FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL
SELECT format('index %s on %s: %s', indexname, tablename, indexdef) FROM pg_indexes WHERE schemaname = 'public'
UNION ALL
SELECT format('trigger %s on %s: %s %s', tgname, tgrelid::regclass, tgenabled, pg_get_triggerdef(oid))
  FROM pg_trigger WHERE NOT tgisinternal
UNION ALL
SELECT format('function %s', pg_get_functiondef(oid)) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
"""


def _pg_catalogue(connection: Connection) -> list[str]:
    return [str(line) for line in connection.execute(text(_PG_CATALOGUE)).scalars()]


def configuration(connection: Connection | None, versions: Path | None = None) -> Config:
    """Alembic's configuration as ``upgrade`` makes it, with a folder of further revisions."""
    config = store_upgrade._configuration({} if connection is None else {"connection": connection})
    if versions is not None:
        released = Path(config.get_main_option("script_location") or "") / "versions"
        # The second name is what Alembic before 1.16 reads.
        for option in ("path_separator", "version_path_separator"):
            config.set_main_option(option, "os")
        config.set_main_option("version_locations", f"{released}{os.pathsep}{versions}")
    return config


#: The newest revision of the package.
HEAD = store_upgrade.REVISIONS[-1]

NEXT_REVISION = '''"""A next revision that rebuilds the ledger's table on SQLite."""

import sqlalchemy as sa
from alembic import op

revision = "9000"
down_revision = "HEAD"


def upgrade():
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP TRIGGER credit_accounts_with_rows ON credit_accounts")
    with op.batch_alter_table("credit_transactions") as batch:
        batch.add_column(sa.Column("channel", sa.String(32)))
        batch.create_check_constraint(op.f("ck_credit_transactions_channel"), "channel <> ''")
    with op.batch_alter_table("credit_accounts") as batch:
        batch.alter_column("organization_id", type_=sa.String(300), existing_type=sa.String(255))


def downgrade():
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP TRIGGER credit_accounts_with_rows ON credit_accounts")
    with op.batch_alter_table("credit_accounts") as batch:
        batch.alter_column("organization_id", type_=sa.String(255), existing_type=sa.String(300))
    with op.batch_alter_table("credit_transactions") as batch:
        batch.drop_constraint(op.f("ck_credit_transactions_channel"), type_="check")
        batch.drop_column("channel")
'''


def write_next_revision(folder: Path) -> Path:
    """A folder with a revision 9000 that no release has."""
    folder.mkdir()
    (folder / "9000_next.py").write_text(NEXT_REVISION.replace("HEAD", HEAD), encoding="utf-8")
    return folder


def insert_ledger_rows(connection: Connection) -> None:
    """An account with one grant's purchase and its allocation, written by hand."""
    now = "2026-01-01 00:00:00.000000" if connection.dialect.name == "sqlite" else "2026-01-01 00:00:00+00"
    for statement in (
        f"INSERT INTO credit_accounts (organization_id, last_posted_at, created_at) VALUES ('acme', '{now}', '{now}')",
        "INSERT INTO credit_transactions"
        " (organization_id, seq, id, type, amount_micros, balance_after_micros, created_at)"
        f" VALUES ('acme', 1, 't1', 'purchase', 5000000, 5000000, '{now}')",
        "INSERT INTO credit_transaction_allocations"
        " (organization_id, transaction_id, position, grant_id, amount_micros)"
        " VALUES ('acme', 't1', 0, 'g1', 5000000)",
    ):
        connection.exec_driver_sql(statement)
