"""Large ledgers, made by SQL: the charges of 20 users of 8 departments, ten actions, two agents.

Whatever its size, a ledger has the same charges in the last calendar month; all others lie in the 335 days before it.
Counters and totals are written with the rows, so that `verify` agrees.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import psycopg
from sqlalchemy import create_engine, make_url

from agentcredits.model import GrantCategory
from agentcredits.rules.rollups import Totals
from agentcredits.service import SyncCreditService
from agentcredits.store import limit_records
from agentcredits.store.tables import usage_rollups

ORGANIZATION = "big"
CREDIT = 1_000_000
DAYS_BEFORE = 335
PER_DAY_IN_MONTH = 30
DAY = 86_400

#: What a charge's number n says of it, in SQL and (see ``names``) in Python.
_AGENT, _ACTION = "'Agent' || (n % 2)", "'action' || (n % 10)"
_DEPARTMENT, _USER = "'department' || (n / 10 % 20 % 8)", "'user' || (n / 10 % 20)"
#: After so many charges the names repeat.
_NAMES_REPEAT_AFTER = 200

#: {id}, {at}, {rows} and the literals differ between the databases.
_STATEMENTS = (
    "INSERT INTO credit_transactions (organization_id, seq, id, type, amount_micros, balance_after_micros, created_at,"
    " agent_type, action, quantity, department_id, idempotency_key, uncollected_micros, pricing, late)"
    f" SELECT 'big', n + 1, {{id}}, 'debit', -{CREDIT}, {{granted}} - n * {CREDIT}, {{at}}, {_AGENT}, {_ACTION},"
    f" {{one}}, {_DEPARTMENT}, {{id}}, 0, 'priced', {{false}} FROM {{rows}}",
    "INSERT INTO credit_transaction_allocations (organization_id, transaction_id, position, grant_id, amount_micros)"
    f" SELECT 'big', {{id}}, 0, 'grant', {CREDIT} FROM {{rows}}",
    "INSERT INTO credit_transaction_details (organization_id, transaction_id, user_id)"
    f" SELECT 'big', {{id}}, {_USER} FROM {{rows}}",
    "INSERT INTO idempotency_keys (organization_id, kind, key, fingerprint, result_id, created_at)"
    " SELECT 'big', 'consume', {id}, 'x', {id}, {at} FROM {rows}",
)
_GRANT = (
    "INSERT INTO credit_grants (organization_id, id, status, is_open, amount_micros, spent_micros, category,"
    " effective_at, created_at)"
    " VALUES ('big', 'grant', 'active', {true}, {granted}, {spent}, 'paid', {start}, {start})",
    "INSERT INTO credit_transactions (organization_id, seq, id, type, amount_micros, balance_after_micros, created_at,"
    " grant_id) VALUES ('big', 1, 'purchase', 'purchase', {granted}, {granted}, {start}, 'grant')",
    "INSERT INTO credit_transaction_allocations (organization_id, transaction_id, position, grant_id, amount_micros)"
    " VALUES ('big', 'purchase', 0, 'grant', {granted})",
    "UPDATE credit_accounts SET granted_micros = {granted}, spent_micros = {spent}, last_seq = {last_seq}"
    " WHERE organization_id = 'big'",
)


@dataclass(frozen=True)
class Stretch:
    """Charges first..last, ``per_day`` of them on each day from ``start`` on, evenly over the day."""

    first: int
    last: int
    start: date
    per_day: int

    @property
    def unix_seconds(self) -> str:
        """SQL (whole numbers only, so that both databases and ``days`` agree): when charge n was made."""
        midnight = int(datetime.combine(self.start, time(), UTC).timestamp())
        place = f"(n - {self.first})"
        return f"{midnight} + {place} / {self.per_day} * {DAY} + {place} % {self.per_day} * {DAY} / {self.per_day}"

    def days(self) -> Iterator[tuple[date, range]]:
        """Each day with the numbers of its charges."""
        for offset, first in enumerate(range(self.first, self.last + 1, self.per_day)):
            yield self.start + timedelta(days=offset), range(first, min(first + self.per_day, self.last + 1))


def last_month(today: date) -> tuple[date, date]:
    """The calendar month before this one, half open."""
    end = today.replace(day=1)
    return (end - timedelta(days=1)).replace(day=1), end


def stretches(charges: int, today: date) -> tuple[Stretch, ...]:
    """Where ``charges`` charges lie in time: long before, and in the last calendar month.

    Raises:
        ValueError: not enough charges for the month.
    """
    since, until = last_month(today)
    before = charges - (until - since).days * PER_DAY_IN_MONTH
    if before < 1:
        raise ValueError(f"{charges} charges do not fill a month")
    return (
        Stretch(1, before, since - timedelta(days=DAYS_BEFORE), -(-before // DAYS_BEFORE)),
        Stretch(before + 1, charges, since, PER_DAY_IN_MONTH),
    )


def names(number: int) -> tuple[str, str, str, str, str]:
    """Agent type, action, department, project and user of a charge."""
    user = number // 10 % 20
    return f"Agent{number % 2}", f"action{number % 10}", f"department{user % 8}", "", f"user{user}"


def totals(stretch: Stretch) -> Iterator[tuple[date, tuple[str, ...], int]]:
    """Charges by day and names."""
    for day, numbers in stretch.days():
        whole, rest = divmod(len(numbers), _NAMES_REPEAT_AFTER)
        counts: Counter[tuple[str, ...]] = Counter()
        for place, number in enumerate(numbers[:_NAMES_REPEAT_AFTER]):
            counts[names(number)] += whole + (place < rest)
        yield from ((day, found, count) for found, count in counts.items())


def fill(url: str, charges: int) -> None:
    """Make the organization "big" with ``charges`` charges of one credit, on an empty, migrated database."""
    with SyncCreditService(url) as service:
        service.create_account(ORGANIZATION)
    parts = stretches(charges, datetime.now(UTC).date())
    granted = charges * CREDIT + 10**15
    facts = {"granted": granted, "spent": charges * CREDIT, "last_seq": charges + 1}
    make = _fill_sqlite if url.startswith("sqlite") else _fill_postgresql
    make(url, parts, facts)
    engine = create_engine(url)
    with engine.begin() as connection:
        for stretch in parts:
            rows = [
                limit_records.rollup_values(ORGANIZATION, (day.isoformat(), found), _totals(count))
                for day, found, count in totals(stretch)
            ]
            connection.execute(usage_rollups.insert(), rows)
    engine.dispose()


def _totals(charges: int) -> Totals:
    """Of charges of one credit each, from the one paid grant."""
    micros = charges * CREDIT
    return Totals(charges=charges, charged_micros=micros, net_micros={GrantCategory.PAID: micros})


def _fill_sqlite(url: str, parts: tuple[Stretch, ...], facts: dict[str, int]) -> None:
    path = str(make_url(url).database)
    connection = sqlite3.connect(path, isolation_level=None)
    # Nothing but this fills the file: no journal, no waiting for the disk.
    for name, value in (("journal_mode", "OFF"), ("synchronous", "OFF"), ("cache_size", -400_000)):
        connection.execute(f"PRAGMA {name} = {value}")

    def moment(seconds: str) -> str:
        return f"strftime('%Y-%m-%d %H:%M:%S.000000', {seconds}, 'unixepoch')"

    words = {"id": "printf('%036d', n)", "one": "'1'", "false": "0", "true": "1"}
    start = moment(str(parts[0].unix_seconds).replace("n", "1"))
    connection.execute("BEGIN")
    for statement in _GRANT:
        connection.execute(statement.format(**words, **facts, start=start))
    for statement in _STATEMENTS:
        for stretch in parts:
            numbers = (
                f"(WITH RECURSIVE s(n) AS (SELECT {stretch.first} UNION ALL SELECT n + 1 FROM s"
                f" WHERE n < {stretch.last}) SELECT n FROM s)"
            )
            connection.execute(statement.format(**words, **facts, at=moment(stretch.unix_seconds), rows=numbers))
    connection.execute("COMMIT")
    connection.execute("ANALYZE")
    connection.close()
    with Path(path).open("rb+") as file:
        os.fsync(file.fileno())  # what the system would otherwise do while we measure


def _fill_postgresql(url: str, parts: tuple[Stretch, ...], facts: dict[str, int]) -> None:
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    words = {"id": "LPAD(n::text, 36, '0')", "one": "1", "false": "false", "true": "true"}
    start = f"to_timestamp({parts[0].unix_seconds.replace('n', '1')})"
    with psycopg.connect(plain) as connection:
        if connection.execute("SELECT usesuper FROM pg_user WHERE usename = current_user").fetchone() == (True,):
            # The rows are right as they are made: foreign keys and triggers would look at each of them.
            connection.execute("SET session_replication_role = replica")
        for statement in _GRANT:
            connection.execute(statement.format(**words, **facts, start=start).encode())
        for statement in _STATEMENTS:
            for stretch in parts:
                numbers = f"generate_series({stretch.first}::bigint, {stretch.last}) AS numbers(n)"
                at = f"to_timestamp({stretch.unix_seconds})"
                connection.execute(statement.format(**words, **facts, at=at, rows=numbers).encode())
        connection.commit()
        connection.autocommit = True
        # What the server would otherwise do in the background while we measure.
        connection.execute("VACUUM (ANALYZE)")
        connection.execute("CHECKPOINT")
