"""Row security: as a role that PostgreSQL's policies bind everything works, and a missing WHERE shows nobody's rows."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, create_engine, make_url, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from agentcredits import CreditService, PriceEntry, Settings, SyncCreditService, UnpricedActionError
from agentcredits.store import row_security, tenancy
from agentcredits.store.tables import metadata
from agentcredits.store.upgrade import check_schema, upgrade_database
from agentcredits.testing import FakeClock
from conftest import TENANT_ROLE
from tests.integration.cli_calls import caller

pytestmark = pytest.mark.postgres

ACME, GLOBEX = "acme", "globex"
LATER = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture
def service(secured_url: str, clock: FakeClock) -> Iterator[SyncCreditService]:
    with SyncCreditService(secured_url, clock=clock) as made:
        yield made


@pytest.fixture
def engine(secured_url: str) -> Iterator[Engine]:
    """One connection of the application's, used again and again."""
    made = create_engine(secured_url, pool_size=1, max_overflow=0)
    yield made
    made.dispose()


@pytest.fixture
def admin(secured_url: str, pg_server_url: str) -> Engine:
    """The same database as a superuser, past all policies."""
    name = make_url(secured_url).database
    return create_engine(make_url(pg_server_url).set(database=name), poolclass=NullPool)


def use(service: SyncCreditService, place: str) -> None:
    """Something of everything."""
    service.grant_credits(place, 100, idempotency_key="first")
    service.set_limit(place, amount=90, window="day")
    service.set_cost("A", "a", 2, organization_id=place)
    charge = service.consume_credits(
        organization_id=place, agent_type="A", action="a", quantity=3, user_id="ada", idempotency_key="c"
    )
    service.refund_credits(charge, 1)
    with service.reserve_credits(organization_id=place, amount=5) as hold:
        hold.commit(4)
    service.reserve_credits(organization_id=place, amount=5).release()
    service.reserve_credits(organization_id=place, amount=7, ttl=timedelta(minutes=1))
    service.open_run(place, "r1", max_credits=10)
    service.create_recurring_grant(place, 10, anchor=LATER, idempotency_key="plan")


def test_the_role_is_bound(engine: Engine, admin: Engine) -> None:
    """Else nothing below would prove anything."""
    with engine.connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user"
        ).one()
        assert tuple(found) == (False, False)
        assert tenancy.is_active(connection)
    with admin.connect() as connection:
        assert not tenancy.is_active(connection)


def test_everything_works_as_a_bound_role(service: SyncCreditService, clock: FakeClock) -> None:
    """Charges, refunds, holds, limits, prices, history, usage, reports, sweep, verify, repair: for two tenants."""
    for place in (ACME, GLOBEX):
        use(service, place)
    assert [service.get_balance(place).available for place in (ACME, GLOBEX)] == [Decimal(84), Decimal(84)]
    assert service.consume_credits(
        organization_id=ACME, agent_type="A", action="a", quantity=3, user_id="ada", idempotency_key="c"
    ).replayed
    page = service.list_transactions(ACME)
    assert {row.organization_id for row in page} == {ACME}
    assert service.get_usage(ACME, group_by="user").lines[0].charged == 6
    assert service.list_limits(ACME)[0].usage[0].held == 7
    clock.advance(timedelta(minutes=2))
    assert service.sweep().expired_reservations == 2
    report = service.verify()
    assert (report.accounts, report.problems) == (2, ())
    assert service.repair(dry_run=False)


def test_reports_over_all_organizations_walk_them(secured_url: str, clock: FakeClock) -> None:
    """What would be refused, of every tenant, counted and listed newest first."""
    with SyncCreditService(secured_url, clock=clock, settings=Settings(mode="observe")) as service:
        for place in (ACME, GLOBEX, ACME):
            clock.advance(timedelta(seconds=1))
            service.create_account(place)
            service.consume_credits(organization_id=place, amount=1)
        assert [(group.organization_id, group.count) for group in service.observe_report()] == [(ACME, 2), (GLOBEX, 1)]
        assert [denial.organization_id for denial in service.list_denials(limit=2)] == [ACME, GLOBEX]


def test_default_prices_are_read_by_all_and_written_by_the_service_only(
    service: SyncCreditService, engine: Engine
) -> None:
    """An own price is its organization's; a stray UPDATE or DELETE does not reach the defaults."""
    service.set_cost("Any", "thing", 3)
    service.import_costs([PriceEntry("Any", "other", Decimal(4))])
    service.set_cost("Own", "thing", 5, organization_id=ACME)
    assert service.get_cost("Any", "thing", organization_id=ACME).cost == 3
    assert service.get_cost("Own", "thing", organization_id=ACME).cost == 5
    with pytest.raises(UnpricedActionError):
        service.get_cost("Own", "thing", organization_id=GLOBEX)
    with engine.begin() as connection:
        _as(connection, "")  # what an earlier transaction of the connection leaves behind
        places = set(connection.exec_driver_sql("SELECT organization_id FROM agent_action_costs").scalars())
        assert places == {""}
        assert connection.exec_driver_sql("DELETE FROM agent_action_costs").rowcount == 0
        assert connection.exec_driver_sql("UPDATE agent_action_costs SET cost = 0").rowcount == 0


def test_the_command_line_works_as_a_bound_role(
    secured_url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Bulk grants (which look at all keys), counts of all organizations, verify, repair."""
    on = caller(capsys, "--database", secured_url)
    lines = tmp_path / "grants.csv"
    lines.write_text("organization_id,amount\nacme,5\nglobex,6\n")
    assert [on("bulk", "grant", lines, "--key", "spring", "--json").counts for _ in range(2)] == [(2, 0, 0), (0, 2, 0)]
    counts = on("doctor", "--json").data["counts"]
    assert (counts["accounts"], counts["grants"], counts["prices"]) == (2, 2, 8)
    assert on("verify", "--json").data["accounts"] == 2
    assert on("repair", "--dry-run").code == 0
    assert on("costs", "set", "Any", "thing", 3).code == 0
    assert on("db", "check").code == 0


def _as(connection: Connection, place: str) -> None:
    connection.execute(text("SELECT set_config('agentcredits.organization_id', :place, true)"), {"place": place})


@pytest.mark.parametrize("table", [name for name in row_security.TABLES if name != "agent_action_costs"])
def test_a_statement_without_where_sees_its_own_tenant_only(
    service: SyncCreditService, engine: Engine, admin: Engine, table: str
) -> None:
    """Nothing without the setting; A's rows under A's, and nothing again on the same connection afterwards."""
    for place in (ACME, GLOBEX):
        use(service, place)
    declared = metadata.tables[table]
    with admin.begin() as connection:
        _fill(connection, table)
        places = [row[0] for row in connection.execute(select(declared.c.organization_id))]
    assert set(places) == {ACME, GLOBEX}
    everything = select(declared.c.organization_id)
    for _ in range(2):
        with engine.begin() as connection:
            assert connection.execute(everything).all() == []
            assert connection.exec_driver_sql(f"UPDATE {table} SET organization_id = 'acme'").rowcount == 0
            assert connection.exec_driver_sql(f"DELETE FROM {table}").rowcount == 0
        with engine.begin() as connection:
            _as(connection, ACME)
            assert connection.execute(everything).scalars().all() == [ACME] * places.count(ACME)
    # Into another tenant: a copy of a row of one's own.
    names = ", ".join("'globex'" if column.name == "organization_id" else column.name for column in declared.c)
    with engine.connect() as connection:
        _as(connection, ACME)
        with pytest.raises(DBAPIError, match="row-level security"):
            connection.exec_driver_sql(f"INSERT INTO {table} SELECT {names} FROM {table}")
    with engine.connect() as connection:
        _as(connection, "")
        assert connection.execute(everything).all() == []


def _fill(connection: Connection, table: str) -> None:
    """A row for each tenant in tables that nothing above writes to."""
    rows = {
        "credit_denials": "(organization_id, id, created_at, code, reason, message)"
        " VALUES (:place, 'd', now(), 'c', 'r', 'm')",
        "credit_limit_crossings": "(organization_id, id, limit_id, scope, scope_id, unit, window_text, threshold,"
        " limit_amount, spent, created_at) VALUES (:place, 'x', 'l', 'user', 'u', 'count', 'day', 1, 1, 1, now())",
        "media_batches": "(organization_id, id, name, state, settings, created_at, updated_at)"
        " VALUES (:place, 'b', 'n', 'planned', '{}', now(), now())",
        "media_jobs": "(organization_id, batch_id, number, asset_id, name, priority, state, agent_type, action, prompt,"
        " parameters, dimensions, updated_at)"
        " VALUES (:place, 'b', 1, 'a', 'n', 1, 'planned', 'A', 'a', 'p', '{}', '{}', now())",
    }
    needed = [*(["media_batches"] if table == "media_jobs" else []), *([table] if table in rows else [])]
    for name in needed:
        for place in (ACME, GLOBEX):
            connection.execute(text(f"INSERT INTO {name} {rows[name]}"), {"place": place})


def test_every_table_with_an_organization_is_covered(admin: Engine) -> None:
    """A new tenant table cannot be forgotten: the live policies are compared with the declared tables."""
    with admin.connect() as connection:
        assert check_schema(connection) == []
        secured = connection.exec_driver_sql(
            "SELECT count(*) FROM pg_class WHERE relrowsecurity AND relforcerowsecurity"
        ).scalar_one()
    assert secured == sum("organization_id" in table.c for table in metadata.tables.values())


CHANGES = {
    "policy gone": "DROP POLICY agentcredits_tenant ON credit_grants",
    "opened": "CREATE POLICY everybody ON credit_grants USING (true)",
    "switched off": "ALTER TABLE credit_grants DISABLE ROW LEVEL SECURITY",
    "not forced": "ALTER TABLE credit_grants NO FORCE ROW LEVEL SECURITY",
    "weakened": "ALTER POLICY agentcredits_tenant ON credit_grants USING (true)",
}


@pytest.mark.parametrize("what", CHANGES)
def test_check_names_a_policy_that_was_changed(admin: Engine, what: str) -> None:
    with admin.connect() as connection:
        connection.exec_driver_sql(CHANGES[what])
        (problem,) = check_schema(connection)
        assert "credit_grants" in problem
        connection.rollback()


def test_a_charge_in_the_callers_session_names_its_tenant(
    service: SyncCreditService, engine: Engine, clock: FakeClock
) -> None:
    """Two organizations in one transaction, and a refused one between; nothing stays set afterwards."""
    for place in (ACME, GLOBEX):
        service.grant_credits(place, 10)
        service.set_cost("A", "a", 2, organization_id=place)
    with Session(engine) as session:
        for place in (ACME, GLOBEX):
            service.consume_credits(organization_id=place, agent_type="A", action="a", session=session)
        session.commit()
        assert session.execute(text("SELECT count(*) FROM credit_accounts")).scalar_one() == 0
    assert [service.get_balance(place).available for place in (ACME, GLOBEX)] == [8, 8]
    assert service.verify()


async def test_an_async_session_names_its_tenant(secured_url: str) -> None:
    """The same through psycopg's and asyncpg's connections."""
    async with CreditService(secured_url) as service:
        await service.grant_credits(ACME, 10)
        for driver in ("postgresql+psycopg", "postgresql+asyncpg"):
            engine = create_async_engine(make_url(secured_url).set(drivername=driver))
            async with AsyncSession(engine) as session, session.begin():
                await service.consume_credits(organization_id=ACME, amount=2, session=session)
            await engine.dispose()
        assert (await service.get_balance(ACME)).available == 6


OWNER = "agentcredits_owner_role"


@pytest.fixture
def owned(pg_server_url: str) -> Iterator[tuple[str, str]]:
    """A database whose tables belong to a plain role, as on a hosted server: the owner's URL, and an application's."""
    server = make_url(pg_server_url)
    name = f"owned_{uuid.uuid4().hex}"
    root = create_engine(server, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with root.connect() as connection:
        for role in (OWNER, TENANT_ROLE):
            if not connection.exec_driver_sql(f"SELECT 1 FROM pg_roles WHERE rolname = '{role}'").first():
                connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN PASSWORD '{role}' NOSUPERUSER NOBYPASSRLS")
        connection.exec_driver_sql(f"CREATE DATABASE {name} OWNER {OWNER}")
    urls = [
        server.set(database=name, username=role, password=role).render_as_string(hide_password=False)
        for role in (OWNER, TENANT_ROLE)
    ]
    engine = create_engine(urls[0], poolclass=NullPool)
    upgrade_database(engine, with_row_security=True)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {TENANT_ROLE}"
        )
    yield urls[0], urls[1]
    with root.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("who", [0, 1], ids=["the owner", "another role"])
def test_tables_of_a_plain_role_bind_their_owner_and_are_listed_by_his_function(
    owned: tuple[str, str], clock: FakeClock, who: int
) -> None:
    """FORCE: the owner too names a tenant. Sweep, verify and a second upgrade go over all organizations."""
    with SyncCreditService(owned[who], clock=clock) as service:
        for place in (ACME, GLOBEX):
            use(service, place)
        clock.advance(timedelta(minutes=2))
        assert service.sweep().accounts == 2
        assert (service.verify().accounts, service.verify().problems) == (2, ())
    engine = create_engine(owned[0], poolclass=NullPool)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM credit_transactions").scalar_one() == 0
        assert connection.exec_driver_sql("SELECT count(*) FROM credit_accounts").scalar_one() == 0
        assert check_schema(connection) == []
    upgrade_database(engine)
    with engine.connect() as connection:
        assert row_security.is_on(connection)


def test_it_is_switched_on_and_off_from_the_command_line(
    postgresql_url: str, sqlite_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On, on again, kept by a plain upgrade, checked, off; refused on SQLite."""
    on = caller(capsys, "--database", postgresql_url)
    engine = create_engine(postgresql_url, poolclass=NullPool)

    def is_on() -> bool:
        with engine.connect() as connection:
            return row_security.is_on(connection)

    try:
        for words in (("--row-security",), ("--row-security",), ()):
            assert on("db", "upgrade", *words).code == 0
            assert is_on()
        assert on("db", "check").code == 0
        assert "Row security is off" in on("db", "upgrade", "--no-row-security").out
        assert not is_on()
        assert on("db", "check").code == 0
    finally:
        upgrade_database(engine, with_row_security=False)
    refused = caller(capsys, "--database", sqlite_url)("db", "upgrade", "--row-security")
    assert refused.code == 2
    assert "PostgreSQL" in refused.err


def test_only_a_role_that_may_read_accounts_gets_their_list(secured_url: str, admin: Engine) -> None:
    """The function runs with its owner's rights, but not for everybody."""
    with admin.connect() as connection:
        connection.exec_driver_sql("CREATE ROLE agentcredits_stranger")
        connection.exec_driver_sql(
            "INSERT INTO credit_accounts (organization_id, created_at, last_posted_at) VALUES ('acme', now(), now())"
        )
        assert connection.exec_driver_sql("SELECT count(*) FROM agentcredits_accounts()").scalar_one() == 1
        connection.exec_driver_sql("SET SESSION AUTHORIZATION agentcredits_stranger")
        assert connection.exec_driver_sql("SELECT count(*) FROM agentcredits_accounts()").scalar_one() == 0
        connection.rollback()
