"""Alembic's entry: which database, in whose transaction, and the triggers at the end.

Runs on the connection in ``config.attributes["connection"]`` and inside its transaction (so ``upgrade()`` and tests
share one), else on its own connection to ``-x url=…``, ``sqlalchemy.url``, or the database of the settings.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from alembic import context
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.pool import NullPool

from agentcredits.settings import default_database_url, load_settings
from agentcredits.store.columns import ExactNumeric, UtcDateTime
from agentcredits.store.dialects import normalise_url
from agentcredits.store.tables import VERSION_TABLE, metadata
from agentcredits.store.triggers import trigger_statements
from agentcredits.store.upgrade import RESTORE_TRIGGERS, migration_transaction

config = context.config


def run() -> None:
    """Run the migrations in the mode that Alembic was started in."""
    if context.is_offline_mode():
        dialect = config.attributes.get("dialect_name") or normalise_url(_url()).get_backend_name()
        _migrate(dialect, dialect_name=dialect, literal_binds=True, dialect_opts={"paramstyle": "named"})
        return
    connection = config.attributes.get("connection")
    if isinstance(connection, Connection):
        _migrate(connection.dialect.name, connection=connection)
        return
    engine = create_engine(normalise_url(_url()), poolclass=NullPool, hide_parameters=True)
    with migration_transaction(engine) as own:
        _migrate(own.dialect.name, connection=own)


def _url() -> str:
    return (
        context.get_x_argument(as_dictionary=True).get("url")
        or config.get_section(config.config_ini_section, {}).get("sqlalchemy.url")
        or load_settings().database_url
        or default_database_url()
    )


def _migrate(dialect: str, **options: Any) -> None:
    """Run the migrations, then put the triggers back.

    A batch rebuild on SQLite drops the triggers of its table without a word, hence after every upgrade, not only in
    the migration that first wanted them.
    """
    stands: bool | None = None

    def remember(*, step: Any, **_: Any) -> None:
        nonlocal stands
        if not step.is_stamp:
            stands = bool(step.destination_revision_ids)

    context.configure(
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        transactional_ddl=True,
        render_as_batch=dialect == "sqlite",
        include_name=_is_ours,
        include_object=partial(_is_declared_here, dialect),
        render_item=_render_item,
        compare_server_default=True,
        on_version_apply=remember,  # type: ignore[arg-type]  # called by keyword, with more than we read
        **options,
    )
    with context.begin_transaction():
        context.run_migrations()
        # Nothing moved: `alembic current` changes nothing, our own upgrade() puts a lost trigger back.
        if stands or (stands is None and RESTORE_TRIGGERS in config.attributes):
            for statement in trigger_statements(dialect):
                # text() reads ":name" as a parameter; nothing in these statements is one.
                context.execute(text(statement.replace(":", r"\:")))


def _is_ours(name: str | None, kind: str, parents: Any) -> bool:
    """Keep ``alembic revision --autogenerate`` away from a host application's tables."""
    return kind != "table" or name in metadata.tables


def _is_declared_here(dialect: str, item: Any, name: str | None, kind: str, reflected: bool, other: Any) -> bool:
    """Whether what is declared is meant for this database."""
    return reflected or kind != "foreign_key_constraint" or item.info.get("dialect", dialect) == dialect


def _render_item(kind: str, item: Any, autogen_context: Any) -> str | Literal[False]:
    """Write our column types as plain ones: a released migration must not change when a class here does."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(item, ExactNumeric):
        return 'sa.Numeric(20, 6).with_variant(sa.Text(), "sqlite")'
    return False


run()
