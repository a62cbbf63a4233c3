"""Databases without a schema: migrations start from nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.migration.databases import engine_for, fresh_postgresql


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables, on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'credits.db'}"
    return str(request.getfixturevalue("empty_postgresql_url"))


@pytest.fixture
def empty_postgresql_url(pg_server_url: str) -> Iterator[str]:
    with fresh_postgresql(pg_server_url) as url:
        yield url


@pytest.fixture
def empty_engine(empty_url: str) -> Iterator[Engine]:
    engine = engine_for(empty_url)
    yield engine
    engine.dispose()
