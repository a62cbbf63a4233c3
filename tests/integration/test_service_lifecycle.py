"""A service costs nothing until it is used, shares its runner with its like, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import Pool

import agentcredits
from agentcredits import (
    AgentCreditsWarning,
    ConfigurationError,
    CreditService,
    SchemaError,
    ServiceClosedError,
    StoreUnavailableError,
    SyncCreditService,
    configure,
    default_service,
)
from agentcredits.settings import Settings
from agentcredits.testing import FakeClock

ACME = "acme"


def posters() -> int:
    return sum(thread.name.startswith("agentcredits-") for thread in threading.enumerate())


def gone(count: Callable[[], int], expected: int) -> bool:
    end = time.monotonic() + 5
    while count() != expected and time.monotonic() < end:
        time.sleep(0.01)
    return count() == expected


# -- sharing -------------------------------------------------------------------------------------------------------


def test_two_services_on_one_database_share_a_runner(database_url: str) -> None:
    """Both faces, and differently spelled URLs: one queue, one pool, so that their callers share batches."""
    spelled = database_url.replace("postgresql+psycopg:", "postgres:").replace("sqlite:", "sqlite+aiosqlite:")
    with SyncCreditService(database_url) as first, SyncCreditService(spelled) as second:
        third = CreditService(database_url)
        first.create_account(ACME)
        assert second.get_balance(ACME).available == 0
        assert first._core.runner is second._core.runner
        assert third._core.runner is first._core.runner
        third._core.close()


def test_closing_one_service_leaves_the_others_usable(database_url: str) -> None:
    """The last to close ends the threads and closes the connections."""
    before = posters()
    first, second = SyncCreditService(database_url), SyncCreditService(database_url)
    first.grant_credits(ACME, 10)
    second.consume_credits(organization_id=ACME, amount=1)
    first.close()
    assert second.consume_credits(organization_id=ACME, amount=1).balance_after == 8
    second.close()
    assert gone(posters, before)
    with SyncCreditService(database_url) as later:
        assert later.get_balance(ACME).available == 8


def test_a_thousand_services_open_no_connection(database_url: str) -> None:
    """Constructing is free: no connection, no thread; also a used one's like opens nothing more."""
    opened: list[object] = []

    def note(connection: object, _record: object) -> None:
        opened.append(connection)

    event.listen(Pool, "connect", note)
    try:
        threads = threading.active_count()
        services = [SyncCreditService(database_url) for _ in range(1000)]
        assert opened == []
        assert threading.active_count() == threads
        services[0].create_account(ACME)
        used = len(opened)
        for service in services[1:50]:
            service.get_balance(ACME)
        assert len(opened) <= used + 1
        for service in services:
            service.close()
    finally:
        event.remove(Pool, "connect", note)


def test_services_with_a_clock_of_their_own_do_not_mix(database_url: str) -> None:
    """A test's clock is for the services that were given it."""
    clock = FakeClock()
    with SyncCreditService(database_url) as real, SyncCreditService(database_url, clock=clock) as timed:
        real.create_account(ACME)
        assert real.get_balance(ACME).as_of.year > 2025
        assert timed._core.runner is not real._core.runner


def test_an_engine_of_the_users_is_used_and_left_open(database_url: str) -> None:
    """Shared by identity; closing the service does not dispose it."""
    engine = create_engine(database_url)
    with SyncCreditService(engine) as first, SyncCreditService(engine) as second:
        first.grant_credits(ACME, 1)
        assert first._core.runner is second._core.runner
        assert first._core.runner.engine is engine
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM credit_accounts").scalar_one() == 1
    engine.dispose()


# -- the end -------------------------------------------------------------------------------------------------------


def test_a_closed_service_says_so(database_url: str) -> None:
    """Every call, also inside a session; closing twice is harmless."""
    service = SyncCreditService(database_url)
    service.create_account(ACME)
    service.close()
    service.close()
    calls: list[Callable[[], object]] = [
        lambda: service.get_balance(ACME),
        lambda: service.grant_credits(ACME, 1),
        lambda: service.consume_credits(organization_id=ACME, amount=1),
        lambda: service.reserve_credits(organization_id=ACME, amount=1),
        service.verify,
        service.flush,
    ]
    for call in calls:
        with pytest.raises(ServiceClosedError):
            call()
    engine = create_engine(database_url)
    with engine.connect() as connection, pytest.raises(ServiceClosedError):
        service.consume_credits(organization_id=ACME, amount=1, session=connection)
    engine.dispose()


async def test_the_coroutine_face_closes_without_blocking_its_loop(database_url: str) -> None:
    """Aclose and async with; afterwards it says that it is closed."""
    async with CreditService(database_url) as service:
        await service.grant_credits(ACME, 10)
        await asyncio.gather(*(service.consume_credits(organization_id=ACME, amount=1) for _ in range(5)))
    with pytest.raises(ServiceClosedError):
        await service.get_balance(ACME)
    other = CreditService(database_url)
    assert (await other.get_balance(ACME)).available == 5
    await other.aclose()
    await other.aclose()
    with pytest.raises(ServiceClosedError):
        await other.get_balance(ACME)


def test_a_service_that_is_never_closed_leaves_no_warning(sqlite_url: str) -> None:
    """At the interpreter's end what is queued is booked and every connection closed, without a word."""
    program = (
        "import sys\n"
        "from agentcredits import SyncCreditService\n"
        "service = SyncCreditService(sys.argv[1])\n"
        "service.grant_credits('acme', 10)\n"
        "hold = service.reserve_credits(organization_id='acme', amount=4)\n"
        "hold.__enter__()\n"
        "hold.settle_in_background()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", program, sqlite_url],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
    with SyncCreditService(sqlite_url) as service:
        assert service.get_balance(ACME).spent == 4


def test_a_used_service_can_be_collected(database_url: str) -> None:
    """Dropping it without closing raises nothing; the runner stays for the others until the process ends."""
    keeper = SyncCreditService(database_url)
    SyncCreditService(database_url).create_account(ACME)
    gc.collect()
    assert keeper.get_balance(ACME).available == 0
    keeper.close()
    gc.collect()


# -- which database ------------------------------------------------------------------------------------------------


def run_python(program: str, *arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("AGENTCREDITS_")}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=home,
        env=variables | {"XDG_DATA_HOME": str(home / "data")} | environment,
    )


USE_DEFAULT = (
    "import os\n"
    "from agentcredits import SyncCreditService\n"
    "for _ in range(3):\n"
    "    with SyncCreditService() as service:\n"
    "        service.grant_credits('acme', 1)\n"
    "        print(service.get_balance('acme').available, service.database_url)\n"
)


def test_the_default_file_is_made_with_schema_and_prices_and_announced_once(tmp_path: Path) -> None:
    """One absolute file for every working directory, named in one warning; ready to charge at once."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = tmp_path / "data" / "agentcredits" / "agentcredits.db"
    first = run_python(USE_DEFAULT, home=tmp_path)
    assert first.stdout.splitlines() == [f"{number} sqlite:///{path}" for number in (1, 2, 3)]
    assert first.stderr.count("AgentCreditsWarning") == 1
    assert f"development database {path}" in first.stderr
    second = run_python(f"import os; os.chdir({str(elsewhere)!r})\n{USE_DEFAULT}", home=tmp_path)
    assert second.stdout.splitlines()[-1] == f"6 sqlite:///{path}"
    with SyncCreditService(f"sqlite:///{path}") as service:
        assert len(service.list_costs()) == 8


def test_a_configured_database_is_not_announced(tmp_path: Path) -> None:
    """AGENTCREDITS_DATABASE_URL says which; an empty SQLite file gets its schema."""
    url = f"sqlite:///{tmp_path / 'mine.db'}"
    done = run_python(USE_DEFAULT, home=tmp_path, AGENTCREDITS_DATABASE_URL=url)
    assert done.stdout.splitlines()[-1] == f"3 {url}"
    assert done.stderr == ""
    assert not (tmp_path / "data").exists()


def test_merely_constructing_a_service_makes_no_file(tmp_path: Path) -> None:
    """Neither the default file nor a named one, until it is used."""
    url = f"sqlite:///{tmp_path / 'mine.db'}"
    run_python(f"from agentcredits import CreditService\nCreditService()\nCreditService({url!r})\n", home=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.postgres
def test_another_database_is_never_changed_without_being_asked(pg_server_url: str) -> None:
    """An empty PostgreSQL database gets no tables, but a sentence with the command."""
    name = "empty_for_lifecycle"
    server = create_engine(pg_server_url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    url = make_url(pg_server_url).set(database=name).render_as_string(hide_password=False)
    with SyncCreditService(url) as service, pytest.raises(SchemaError, match="agentcredits db upgrade"):
        service.grant_credits(ACME, 1)
    engine = create_engine(url)
    with engine.connect() as connection:
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        assert connection.exec_driver_sql(tables).scalar_one() == 0
    engine.dispose()
    with server.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    server.dispose()


def test_an_async_engine_is_refused_with_what_to_pass(tmp_path: Path) -> None:
    """The coroutine methods work on a plain engine or a URL all the same."""
    engine: Any = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'a.db'}")
    for face in (CreditService, SyncCreditService):
        with pytest.raises(ConfigurationError, match="pass its URL, or a plain Engine"):
            face(engine)


@pytest.mark.parametrize(
    "nonsense", [5, object(), b"sqlite://", "", "nonsense", "mysql://host/db", "sqlite:/x", Path("x")]
)
def test_what_is_no_database_is_refused_at_once(nonsense: Any) -> None:
    """At construction, not at the first charge."""
    with pytest.raises(ConfigurationError):
        SyncCreditService(nonsense)


# -- databases in memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_serves_threads(url: str) -> None:
    """One connection for all of them; nothing is lost."""
    with SyncCreditService(url) as service:
        service.grant_credits(ACME, 1000)

        def work(_number: int) -> None:
            service.consume_credits(organization_id=ACME, amount=1)
            service.get_balance(ACME)
            with service.reserve_credits(organization_id=ACME, amount=1):
                pass

        with ThreadPoolExecutor(16) as threads:
            list(threads.map(work, range(64)))
        assert service.get_balance(ACME).available == 1000 - 2 * 64
        assert service.verify()


async def test_a_database_in_memory_serves_coroutines() -> None:
    """Also together with threads, on both faces."""
    async with CreditService("sqlite://") as service:
        await service.grant_credits(ACME, 1000)

        async def work() -> None:
            await service.consume_credits(organization_id=ACME, amount=1)
            await service.get_balance(ACME)

        with SyncCreditService("sqlite://") as blocking:
            await asyncio.gather(
                *(work() for _ in range(64)),
                *(asyncio.to_thread(blocking.consume_credits, organization_id=ACME, amount=1) for _ in range(16)),
            )
        assert (await service.get_balance(ACME)).available == 1000 - 80
        assert await service.verify()


def test_a_database_in_memory_ends_with_its_last_service() -> None:
    """The next one starts empty, with its schema and prices."""
    for _ in range(2):
        with SyncCreditService("sqlite://") as service:
            service.grant_credits(ACME, 1)
            assert service.get_balance(ACME).granted == 1
            assert len(service.list_costs()) == 8


# -- secrets -------------------------------------------------------------------------------------------------------


def test_a_password_is_never_shown() -> None:
    """Not by repr, str, the URL, errors (pickled too), their causes, nor for a URL that cannot be read."""
    secret = "hunter2-secret"
    url = f"postgresql://app:{secret}@127.0.0.1:1/credits"
    settings = Settings(lock_timeout_seconds=0.3, retry_seconds=0, database_url=url)
    shown: list[str] = []
    for service in (SyncCreditService(url, settings=settings), SyncCreditService(settings=settings)):
        shown += [repr(service), str(service), service.database_url]
        with pytest.raises(StoreUnavailableError) as refusal:
            service.grant_credits(ACME, 1)
        error: BaseException | None = refusal.value
        shown.append(repr(pickle.dumps(error)))
        while error is not None:
            shown += [str(error), repr(error), repr(getattr(error, "context", None))]
            error = error.__cause__ or error.__context__
        service.close()
    with pytest.raises(ConfigurationError) as unreadable:
        SyncCreditService(f"mysql://app:{secret}@host/db")
    shown += [str(unreadable.value), repr(unreadable.value.context)]
    with pytest.raises(ConfigurationError) as unreadable:
        SyncCreditService(f"app:{secret}@host/db")
    shown += [str(unreadable.value), repr(unreadable.value.context)]
    assert "***" in shown[0]
    assert [text for text in shown if secret in text] == []


# -- the default service -------------------------------------------------------------------------------------------


def test_configure_replaces_the_default_service(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decorators and BaseCrew use the new one; the old one is closed."""
    monkeypatch.setattr("agentcredits.service._default", None)
    first = configure(database_url)
    assert default_service() is first
    second = configure(database_url, reservation_ttl_seconds=60)
    assert default_service() is second
    assert second.settings.reservation_ttl_seconds == 60
    with pytest.raises(ServiceClosedError):
        first._core.run(first._core.get_balance(ACME))
    second.close()


def test_a_setting_that_does_not_exist_is_refused_and_the_default_stays(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence names it."""
    monkeypatch.setattr("agentcredits.service._default", None)
    first = configure(database_url)
    with pytest.raises(ConfigurationError, match="reservation_tll"):
        configure(database_url, reservation_tll=5)
    with pytest.raises(ConfigurationError):
        configure("mysql://host/db")
    assert default_service() is first
    first.close()


def test_off_is_possible_in_code_only(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a warning; an environment variable that switches billing off is refused."""
    monkeypatch.setattr("agentcredits.service._default", None)
    with pytest.warns(AgentCreditsWarning, match="switched off"):
        configure(database_url, mode="off").close()
    monkeypatch.setenv("AGENTCREDITS_MODE", "off")
    with pytest.raises(ConfigurationError, match="not allowed"):
        agentcredits.SyncCreditService(database_url)


def test_a_poster_keeps_its_connection_until_the_end(database_url: str) -> None:
    """From one posting to the next, but not beyond the service's end; an application's own engine gets it back."""
    engine = create_engine(database_url)
    own_settings = Settings(pool_size=3)
    with SyncCreditService(database_url, settings=own_settings) as service, SyncCreditService(engine) as guest:
        own: Any = service._core.runner.engine.pool
        lent: Any = engine.pool
        taken: list[object] = []
        event.listen(own, "checkout", lambda raw, *_: taken.append(raw))
        service.grant_credits("acme", 10)
        taken.clear()
        for _ in range(3):
            service.consume_credits(organization_id="acme", amount=1)
            guest.consume_credits(organization_id="acme", amount=1)
        assert (taken, own.checkedout(), lent.checkedout()) == ([], 1, 0)
    assert own.checkedout() == 0
    engine.dispose()


def test_a_read_that_ends_while_its_service_closes_leaves_no_connection_open(database_url: str) -> None:
    """Hooks look at the database in the background: what posters keep is closed all the same."""
    reading = threading.Event()
    with SyncCreditService(database_url, settings=Settings(pool_size=3)) as service:
        service.grant_credits("acme", 10)
        runner = service._core.runner
        pool: Any = runner.engine.pool

        def read_late() -> None:
            reading.set()
            time.sleep(0.2)
            runner.read(lambda connection: connection.connection.dbapi_connection)

        runner.call_in_background(read_late)
        assert reading.wait(5)
    assert (pool.checkedout(), pool.checkedin()) == (0, 0)


@pytest.mark.postgres
def test_a_connection_that_was_cut_between_two_calls_is_replaced(postgresql_url: str) -> None:
    """A restart of the server or a firewall cuts pooled connections: charges, reads and prices go on."""
    with SyncCreditService(postgresql_url) as service:
        service.grant_credits("acme", 10)
        for number, call in enumerate(
            (
                lambda: service.consume_credits(organization_id="acme", amount=1),
                lambda: service.get_balance("acme"),
                lambda: service.set_cost("Agent", "act", 1),
            ),
            start=1,
        ):
            assert cut_connections(postgresql_url) >= 1, number
            assert call()
        assert service.get_balance("acme").spent == 1


def cut_connections(url: str) -> int:
    engine = create_engine(url)
    with engine.connect() as connection:
        cut = connection.exec_driver_sql(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).scalar_one()
    engine.dispose()
    return int(cut)
