"""How PostgreSQL finds the rows that a posting changes: each by its key, however many there are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, insert, select, text

from agentcredits.store.dialects import Write, dialect_of
from agentcredits.store.postgresql import FEW
from agentcredits.store.tables import credit_accounts, credit_reservations

pytestmark = pytest.mark.postgres
NOW = datetime(2026, 5, 4, tzinfo=UTC)
HOLDS = 2_000


@pytest.fixture
def engine(postgresql_url: str) -> Iterator[Engine]:
    """One account with many holds, of which PostgreSQL has no statistics."""
    made = create_engine(postgresql_url)
    hold = {
        "organization_id": "acme",
        "state": "active",
        "amount_micros": 1,
        "allocations": "[]",
        "idempotency_key": "k",
        "created_at": NOW,
        "expires_at": NOW + timedelta(days=1),
    }
    with made.begin() as connection:
        connection.execute(
            insert(credit_accounts), {"organization_id": "acme", "created_at": NOW, "last_posted_at": NOW}
        )
        connection.execute(insert(credit_reservations), [hold | {"id": f"{number:05}"} for number in range(HOLDS)])
    yield made
    made.dispose()


class Explaining:
    """A connection that runs a statement and keeps its plan."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.dialect = connection.dialect
        self.nodes: list[dict[str, Any]] = []

    def execute(self, statement: Any, parameters: Any) -> None:
        """As the connection would, with EXPLAIN ANALYZE."""
        explained = text(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}")
        plan = self._connection.execute(explained, parameters).scalar_one()
        self._note((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"])

    def _note(self, node: dict[str, Any]) -> None:
        self.nodes.append(node)
        for child in node.get("Plans", ()):
            self._note(child)


@pytest.mark.parametrize("count", [2, FEW, FEW + 1, 100])
def test_rows_are_found_by_their_keys(engine: Engine, count: int) -> None:
    """Many without a scan of the account's rows, and without comparing each with every other. Each gets its own."""
    ids = [f"{number:05}" for number in range(500, 500 + count)]
    changes = {
        "organization_id": ("acme",) * count,
        "id": ids,
        "state": ("committed",) * count,
        "transaction_id": [f"charge {id_}" for id_ in ids],
    }
    with engine.begin() as connection:
        explaining = Explaining(connection)
        writes = [Write(credit_reservations, changes, ("organization_id", "id"))]
        dialect_of(connection).write(explaining, writes)  # type: ignore[arg-type]  # all of it that is used
        read = [node for node in explaining.nodes if "Scan" in node["Node Type"] and node.get("Relation Name")]
        kinds = {node["Node Type"] for node in read}
        assert ("Tid Scan" in kinds) == (count > FEW)
        if count > FEW:
            assert kinds == {"Index Scan", "Tid Scan"}
            assert sum(node["Actual Rows"] * node["Actual Loops"] for node in read) == 2 * count
            assert [name for node in explaining.nodes for name in node if "Removed" in name and node[name]] == []
        table = credit_reservations.c
        settled = connection.execute(select(table.id, table.transaction_id).where(table.state == "committed"))
        assert {(row.id, row.transaction_id) for row in settled} == set(
            zip(ids, changes["transaction_id"], strict=True)
        )
