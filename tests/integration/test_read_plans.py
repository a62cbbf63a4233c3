"""How what callers name is found: by an index, however many rows there are and whatever the database knows of them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.pool import NullPool

from agentcredits import CreditService, RequestContext, use_context
from agentcredits.store import postgresql_reads as reads
from agentcredits.store.dialects import make_engine, normalise_url
from tests.benchmarks.ledgers import ORGANIZATION, fill

CHARGES = 20_000

#: Small tables that are also read without being posted to, as PostgreSQL likes.
READ_ELSEWHERE = {
    "agent_action_costs",
    "agentcredits_alembic_version",
    "credit_accounts",
    "credit_limit_usage",
    "credit_limits",
    "credit_runs",
}

#: The tables that grow with use; the others have a row for each account, price, limit or run.
GROWING = {
    "credit_reservations",
    "credit_transaction_allocations",
    "credit_transaction_details",
    "credit_transactions",
    "idempotency_keys",
    "usage_rollups",
}


class Watched:
    """A SQLite ledger whose statements are written down, for their plans."""

    def __init__(self, url: str) -> None:
        self.engine = make_engine(normalise_url(url), pool_size=2, lock_timeout_seconds=5, sqlite_synchronous="NORMAL")
        self.seen: dict[str, None] = {}
        event.listen(self.engine, "connect", self._watch)

    def _watch(self, connection: Any, _record: object) -> None:
        connection.set_trace_callback(self.seen.setdefault)

    def scans(self) -> list[str]:
        """The statements that read a whole table which grows, or all keys of the account (but not page by page)."""
        found = []
        asked = [sql for sql in self.seen if re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b", sql)]
        with self.engine.connect() as connection:
            for sql in asked:
                steps = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}".replace("%", "%%"))]
                whole = [step for step in steps if step.startswith("SCAN") and step.split()[1] in GROWING]
                keys = [step for step in steps if re.search(r" idempotency_keys .*\(organization_id=\?\)$", step)]
                if whole or (keys and "LIMIT" not in sql):
                    found.append(sql)
        assert asked
        return found


@pytest.fixture(params=["analyzed", "without statistics"])
def watched(sqlite_url: str, request: pytest.FixtureRequest) -> Iterator[Watched]:
    """One account and thousands of keys; when they are analyzed, SQLite knows that the account tells it nothing."""
    fill(sqlite_url, CHARGES)
    if request.param != "analyzed":
        engine = create_engine(sqlite_url, poolclass=NullPool)
        with engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM sqlite_stat1")
    made = Watched(sqlite_url)
    yield made
    made.engine.dispose()


async def test_nothing_that_is_named_is_looked_for_row_by_row(watched: Watched) -> None:
    """Keys, holds, charges and refunds, many at once; first tries and second ones."""
    acme: dict[str, Any] = {"organization_id": ORGANIZATION}
    async with CreditService(watched.engine) as service:
        await service.set_limit(ORGANIZATION, amount=1_000_000, window="month")
        for _ in range(2):
            charges = await asyncio.gather(
                *(service.consume_credits(**acme, amount=1, user_id="ada", idempotency_key=f"c{n}") for n in range(5))
            )
            holds = await asyncio.gather(
                *(service.reserve_credits(**acme, amount=1, user_id="ada", idempotency_key=f"h{n}") for n in range(5))
            )
            await asyncio.gather(
                *(service.refund_credits(one, idempotency_key=f"r{n}") for n, one in enumerate(charges[:3]))
            )
            await asyncio.gather(*(service.get_reservation(hold.id, **acme) for hold in holds))
            await asyncio.gather(*(service.grant_credits(ORGANIZATION, 5, idempotency_key=f"g{n}") for n in range(3)))
        await asyncio.gather(*(service.commit_reservation(hold.id, **acme) for hold in holds))
        page = await service.list_transactions(ORGANIZATION)
        await service.list_transactions(ORGANIZATION, cursor=page.next_cursor)
        await service.get_balance(ORGANIZATION)
        await service.get_usage(ORGANIZATION)
        assert [one.replayed for one in charges] == [True] * 5
        assert (await service.verify(ORGANIZATION)).ok
    reading = [sql for sql in watched.seen if "FROM idempotency_keys" in sql]
    assert any("'c0'" in sql and "'c4'" in sql for sql in reading), "the calls were not booked together"
    assert watched.scans() == []


async def test_what_is_purged_and_erased_is_not_looked_for_row_by_row(watched: Watched) -> None:
    """Else every page would read the whole table again."""
    async with CreditService(watched.engine) as service:
        report = await service.purge(ORGANIZATION, older_than=timedelta(days=90), details=True)
        assert report.keys > 500
        assert sum(sql.startswith("DELETE FROM idempotency_keys") for sql in watched.seen) > 5
        erased = await service.erase_user_details(ORGANIZATION, "user3")
        assert erased.transactions > 500
        assert any(sql.startswith("DELETE FROM usage_rollups") for sql in watched.seen)
        assert watched.scans() == []
        assert (await service.verify(ORGANIZATION)).ok


@pytest.mark.postgres
def test_postgresql_looks_up_each_key_in_a_table_that_it_knows_nothing_of(postgresql_url: str) -> None:
    """Also with a plan for keys of any number, which it keeps while the table grows."""
    url = make_url(postgresql_url).set(drivername="postgresql").render_as_string(hide_password=False)
    names = ("organization", "kinds", "keys")
    sql = reads.KEYS
    for place, name in enumerate(names, start=1):
        sql = sql.replace(f"%({name})s", f"${place}")
    rows = "SELECT 'acme', 'consume', 'k' || n, 'x', 'y', now() FROM generate_series(1, 2000) AS numbers(n)"
    with psycopg.connect(url, prepare_threshold=None) as connection:
        connection.execute(f"INSERT INTO idempotency_keys {rows}".encode())
        connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        connection.execute(f"PREPARE looked_up(text, text[], text[]) AS {sql}".encode())
        asked = "'acme', array['consume', 'consume', 'reserve'], array['k5', 'none', 'k5']"
        found = connection.execute(f"EXECUTE looked_up({asked})".encode()).fetchall()
        plan = connection.execute(f"EXPLAIN EXECUTE looked_up({asked})".encode()).fetchall()
        connection.rollback()
    assert [row[:3] for row in found] == [("acme", "consume", "k5")]
    steps = [step for (step,) in plan if "idempotency_keys" in step]
    assert steps
    assert all("Index" in step for step in steps), plan


def whole_reads(url: str) -> dict[str, int]:
    """How often PostgreSQL read each table as a whole; connections that were closed have told theirs."""
    with psycopg.connect(url, autocommit=True) as connection:
        end = time.monotonic() + 20
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        while connection.execute(others).fetchone() != (0,):
            assert time.monotonic() < end, "somebody stays connected"
            time.sleep(0.02)
        found = connection.execute("SELECT relname::text, seq_scan FROM pg_stat_user_tables").fetchall()
    return {name: count for name, count in found if name not in READ_ELSEWHERE}


@pytest.mark.postgres
async def test_postgresql_reads_no_table_as_a_whole_to_post(postgresql_url: str) -> None:
    """Not even tables that it has analyzed when they were tiny, with plans that it keeps while they grow."""
    url = make_url(postgresql_url).set(drivername="postgresql").render_as_string(hide_password=False)
    acme: dict[str, Any] = {"organization_id": "acme"}

    async def post(service: CreditService, names: str) -> None:
        charges = await asyncio.gather(*(service.consume_credits(**acme, amount=1, idempotency_key=n) for n in names))
        holds = await asyncio.gather(*(service.reserve_credits(**acme, amount=1, idempotency_key=n) for n in names))
        await asyncio.gather(*(hold.commit() for hold in holds))
        await asyncio.gather(*(service.refund_credits(charge) for charge in charges[:3]))

    async def operate(service: CreditService, run_id: str) -> None:
        """All else that is posted."""
        grant = await service.grant_credits("acme", 5)
        await service.void_grant(grant)
        await service.adjust_credits("acme", -1)
        await service.set_overdraft("acme", 5)
        limit = await service.set_limit("acme", scope="user", amount=1_000, window="day", include_existing=True)
        await service.open_run("acme", run_id, max_credits=50)
        await service.open_run("acme", f"{run_id}-inside", max_credits=5, parent_run_id=run_id)
        with use_context(RequestContext("acme", user_id="ada", run_id=f"{run_id}-inside")):
            await service.consume_credits(**acme, user_id="ada", amount=1)
            hold = await service.reserve_credits(**acme, user_id="ada", amount=2)
        await service.extend_reservation(hold, timedelta(minutes=20))
        await service.mark_unknown(hold, "fal", run_id)
        await service.release_reservation(hold)
        await service.end_run(run_id, organization_id="acme")
        await service.remove_limit(limit)
        recurring = await service.create_recurring_grant("acme", 1)
        await service.cancel_recurring_grant(recurring)
        await service.freeze_account("acme", "a reason")
        await service.unfreeze_account("acme")
        await service.sweep("acme")

    async with CreditService(postgresql_url) as service:
        await service.grant_credits("acme", 10_000)
        await service.set_limit("acme", amount=10_000, window="month")
        await post(service, "abcdefghijklmnop")
        await operate(service, "first")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ANALYZE")
    before = whole_reads(url)
    async with CreditService(postgresql_url) as service:
        for number in range(8):  # after the fifth time a plan is made for good
            await post(service, "".join(chr(0x400 + 16 * number + place) for place in range(16)))
            await operate(service, f"run{number}")
    after = whole_reads(url)
    assert set(after) > GROWING
    assert after == before


def test_the_watch_sees_a_scan(watched: Watched) -> None:
    """The check can fail: pairs are what SQLite looks for row by row."""
    engine: Engine = watched.engine
    with engine.connect() as connection:
        connection.exec_driver_sql(
            "SELECT * FROM idempotency_keys WHERE organization_id = 'big'"
            " AND (kind, key) IN (VALUES ('consume', 'a'), ('consume', 'b'))"
        ).all()
    (scan,) = watched.scans()
    assert "VALUES" in scan
