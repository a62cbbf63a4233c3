"""How such a ledger is often written, so that the proofs show that they would notice: nothing here is right."""

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, create_engine, text

from agentcredits.service import SyncCreditService

# -- ledgers that the state machine must catch -------------------------------------------------------------------


class _Changed:
    """The real service, with some calls done the naive way."""

    def __init__(self, service: SyncCreditService) -> None:
        self._service = service

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)


class NoKeys(_Changed):
    """A retry is a new call: nothing remembers what was done under a key."""

    def _forgetful(self, name: str, *arguments: Any, **named: Any) -> Any:
        return getattr(self._service, name)(*arguments, **named | {"idempotency_key": uuid.uuid4().hex})

    def consume_credits(self, **named: Any) -> Any:
        return self._forgetful("consume_credits", **named)

    def refund_credits(self, *arguments: Any, **named: Any) -> Any:
        return self._forgetful("refund_credits", *arguments, **named)


class FloatAmounts(_Changed):
    """Credits as floats, kept to the cent as money often is."""

    def consume_credits(self, *, amount: Any, **named: Any) -> Any:
        return self._service.consume_credits(amount=max(0.01, round(float(amount), 2)), **named)


class SelectThenUpdateSettlement(_Changed):
    """Whether a hold may be committed is looked up first, and the charge is a call of its own."""

    def commit_reservation(self, reservation_id: str, amount: Any = None, **named: Any) -> Any:
        hold = self._service.get_reservation(reservation_id, organization_id=named["organization_id"])
        self._service.release_reservation(reservation_id, organization_id=named["organization_id"])
        self._service.consume_credits(
            organization_id=named["organization_id"], amount=hold.amount if amount is None else amount
        )
        return self._service.get_reservation(reservation_id, organization_id=named["organization_id"])


# -- races ---------------------------------------------------------------------------------------------------------


class SelectThenUpdate:
    """Reads what is there, decides, and writes in a transaction of its own: two readers decide alike."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url, pool_size=64, connect_args={"timeout": 30} if "sqlite" in url else {})
        with self._engine.begin() as connection:
            connection.execute(text("CREATE TABLE naive (name VARCHAR(64) PRIMARY KEY, used INTEGER NOT NULL)"))

    def take(self, name: str, allowed: int) -> bool:
        """Use one of what ``allowed`` leaves; whether it was granted."""
        place = {"name": name}
        with self._engine.connect() as connection:
            used = connection.execute(text("SELECT used FROM naive WHERE name = :name"), place).scalar() or 0
        if used >= allowed:
            return False
        write = "INSERT INTO naive VALUES (:name, :used) ON CONFLICT (name) DO UPDATE SET used = :used"
        with self._engine.begin() as connection:
            connection.execute(text(write), place | {"used": used + 1})
        return True

    def racers(self, number: int) -> list[Callable[[], bool]]:
        """Four that settle one hold, or give back one charge: the same thing to a ledger of this kind."""
        return [lambda: self.take(f"hold-{number}", 1)] * 4

    def crowd(self, number: int) -> tuple[int, Callable[[int], bool]]:
        return 7, lambda _: self.take(f"room-{number}", 7)

    def close(self) -> None:
        self._engine.dispose()


# -- cancellations -------------------------------------------------------------------------------------------------


class Unshielded:
    """Every statement is an await of its own, and whoever is cancelled between two of them leaves what he began."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url, max_overflow=-1, connect_args={"timeout": 30} if "sqlite" in url else {})
        self._checked_out: set[Connection] = set()
        self._execute(
            None,
            "CREATE TABLE naive_account (spent INTEGER NOT NULL)",
            "CREATE TABLE naive_rows (number INTEGER)",
            "CREATE TABLE naive_holds (number INTEGER)",
            "INSERT INTO naive_account VALUES (0)",
        )

    def calls(self) -> tuple[Callable[[int], Coroutine[Any, Any, None]], ...]:
        return (self.charge, self.hold_a_body, self.read)

    async def charge(self, number: int) -> None:
        connection = await asyncio.to_thread(self._check_out)
        await asyncio.to_thread(self._execute, connection, "UPDATE naive_account SET spent = spent + 1")
        await asyncio.to_thread(self._execute, connection, f"INSERT INTO naive_rows VALUES ({number})")
        self._check_in(connection)

    async def hold_a_body(self, number: int) -> None:
        await asyncio.to_thread(self._execute, None, f"INSERT INTO naive_holds VALUES ({number})")
        try:
            await asyncio.sleep(0.0005)
        finally:
            await asyncio.to_thread(self._execute, None, f"DELETE FROM naive_holds WHERE number = {number}")

    async def read(self, number: int) -> None:
        await asyncio.to_thread(self._execute, None, "SELECT spent FROM naive_account")

    def _check_out(self) -> Connection:
        connection = self._engine.connect()
        self._checked_out.add(connection)
        return connection

    def _check_in(self, connection: Connection) -> None:
        self._checked_out.remove(connection)
        connection.close()

    def _execute(self, connection: Connection | None, *statements: str) -> None:
        with nullcontext(connection) if connection else self._engine.connect() as used:
            for statement in statements:
                used.execute(text(statement))
            used.commit()

    async def wrong(self) -> dict[str, int]:
        await asyncio.get_running_loop().shutdown_default_executor()
        with self._engine.connect() as connection:
            spent, rows, holds = (
                connection.execute(text(query)).scalar_one()
                for query in (
                    "SELECT spent FROM naive_account",
                    "SELECT count(*) FROM naive_rows",
                    "SELECT count(*) FROM naive_holds",
                )
            )
        return {"half-booked": spent - rows, "connections leaked": len(self._checked_out), "holds left": holds}

    def close(self) -> None:
        for connection in self._checked_out:
            connection.close()
        self._engine.dispose()


# -- tenants -------------------------------------------------------------------------------------------------------


class GlobalContext:
    """The tenant stands in one place for all requests."""

    def __init__(self) -> None:
        self._tenant: str | None = None

    def ways(self) -> tuple[Callable[[str], Coroutine[Any, Any, list[str | None]]], ...]:
        return (self.set_and_go_on,)

    async def set_and_go_on(self, tenant: str) -> list[str | None]:
        self._tenant = tenant
        await asyncio.sleep(0)
        return [self._tenant]


# -- writers -------------------------------------------------------------------------------------------------------


class PlainBegin:
    """SQLite's own BEGIN, which takes no lock: the first write after a read fails when somebody wrote in between."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, timeout=5, isolation_level=None)
        self._connection.execute("CREATE TABLE IF NOT EXISTS naive (name TEXT PRIMARY KEY, used INTEGER)")

    def charge(self, name: str, number: int) -> None:
        execute = self._connection.execute
        execute("BEGIN")
        try:
            row = execute("SELECT used FROM naive WHERE name = ?", (name,)).fetchone()
            execute("INSERT OR REPLACE INTO naive VALUES (?, ?)", (name, (row[0] if row else 0) + 1))
            execute("COMMIT")
        except sqlite3.OperationalError:
            execute("ROLLBACK")
            raise

    def close(self) -> None:
        self._connection.close()


# -- windows -------------------------------------------------------------------------------------------------------


class CivilDay:
    """A day begins when the clock shows 0:00 and lasts 24 hours."""

    def __init__(self, zone: ZoneInfo) -> None:
        self._zone = zone

    def bounds(self, at: datetime) -> tuple[datetime, datetime]:
        start = at.astimezone(self._zone).replace(hour=0, minute=0, second=0, microsecond=0).astimezone(UTC)
        return start, start + timedelta(days=1)
