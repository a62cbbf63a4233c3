"""Whether a ledger's size costs anything: charges, balance, a page of history and usage, on 10^4 rows and on 10^6.

The rows are written by SQL (a year of charges by 20 users of 8 departments, ten actions), the counters and totals with
them, and `verify` confirms the small one.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import Connection, create_engine, text

from agentcredits.cli.app import run as run_command
from agentcredits.rules.rollups import Totals
from agentcredits.service import SyncCreditService
from agentcredits.store import limit_records
from agentcredits.store.tables import usage_rollups

ORGANIZATION = "big"
DAYS = 365
CREDIT = 1_000_000

#: The number n of a charge as its columns; {id}, {at} and {rows} differ between the databases.
_CHARGE = """
INSERT INTO credit_transactions (organization_id, seq, id, type, amount_micros, balance_after_micros, created_at,
  agent_type, action, quantity, department_id, idempotency_key, uncollected_micros, pricing, late)
SELECT 'big', n + 1, {id}, 'debit', -{credit}, {granted} - n * {credit}, {at},
  'Agent' || (n % 2), 'action' || (n % 10), {quantity}, 'department' || (n / 10 % 20 % 8), {id}, 0, 'priced', {false}
FROM {rows}
"""
_ALLOCATION = """
INSERT INTO credit_transaction_allocations (organization_id, transaction_id, position, grant_id, amount_micros)
SELECT 'big', {id}, 0, 'grant', {credit} FROM {rows}
"""
_DETAIL = """
INSERT INTO credit_transaction_details (organization_id, transaction_id, user_id)
SELECT 'big', {id}, 'user' || (n / 10 % 20) FROM {rows}
"""
_KEY = """
INSERT INTO idempotency_keys (organization_id, kind, key, fingerprint, result_id, created_at)
SELECT 'big', 'consume', {id}, 'x', {id}, {at} FROM {rows}
"""
_USAGE = """
SELECT {day}, t.agent_type, t.action, t.department_id, '', d.user_id, COUNT(*), SUM(-t.amount_micros)
FROM credit_transactions t JOIN credit_transaction_details d
  ON d.organization_id = t.organization_id AND d.transaction_id = t.id
WHERE t.type = 'debit' GROUP BY {day}, t.agent_type, t.action, t.department_id, d.user_id
"""


def fill(url: str, charges: int) -> None:
    """Add ``charges`` charges of one credit to a new organization, spread over the last year."""
    with SyncCreditService(url) as service:
        service.create_account(ORGANIZATION)
    granted = charges * CREDIT + 10**15
    step = DAYS * 86_400 / charges
    engine = create_engine(url)
    with engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            words = {
                "id": "printf('%036d', n)",
                "at": f"strftime('%Y-%m-%d %H:%M:%f000', 'now', '-{DAYS} days', (n * {step}) || ' seconds')",
                "rows": f"(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {charges})"
                " SELECT n FROM s) AS numbers",
                "quantity": "'1'",
                "true": "1",
                "false": "0",
                "day": "DATE(t.created_at)",
            }
        else:
            words = {
                "id": "LPAD(n::text, 36, '0')",
                "at": f"now() - interval '{DAYS} days' + n * interval '{step} seconds'",
                "rows": f"generate_series(1::bigint, {charges}) AS numbers(n)",
                "quantity": "1",
                "true": "true",
                "false": "false",
                "day": "TO_CHAR(t.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
            }
        words |= {"credit": str(CREDIT), "granted": str(granted)}
        start = words["at"].replace("n * ", "0 * ")
        for statement in (
            "INSERT INTO credit_grants (organization_id, id, status, is_open, amount_micros, spent_micros, category,"
            f" effective_at, created_at) VALUES ('big', 'grant', 'active', {words['true']},"
            f" {granted}, {charges * CREDIT}, 'paid', {start}, {start})",
            "INSERT INTO credit_transactions (organization_id, seq, id, type, amount_micros, balance_after_micros,"
            f" created_at, grant_id) VALUES ('big', 1, 'purchase', 'purchase', {granted}, {granted}, {start}, 'grant')",
            "INSERT INTO credit_transaction_allocations (organization_id, transaction_id, position, grant_id,"
            f" amount_micros) VALUES ('big', 'purchase', 0, 'grant', {granted})",
            *(template.format(**words) for template in (_CHARGE, _ALLOCATION, _DETAIL, _KEY)),
            f"UPDATE credit_accounts SET granted_micros = {granted}, spent_micros = {charges * CREDIT},"
            f" last_seq = {charges + 1} WHERE organization_id = 'big'",
        ):
            connection.execute(text(statement.replace(":", r"\:")))
        _fill_totals(connection, _USAGE.format(**words))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    engine.dispose()


def _fill_totals(connection: Connection, statement: str) -> None:
    rows = [
        limit_records.rollup_values(
            ORGANIZATION,
            (row[0], tuple(row[1:6])),
            Totals(charges=int(row[6]), charged_micros=int(row[7])),
        )
        for row in connection.execute(text(statement))
    ]
    connection.execute(usage_rollups.insert(), rows)


@dataclass
class Sizes:
    """Median milliseconds by what was measured, on the small and the large ledger."""

    charges: tuple[int, int]
    samples: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    def add(self, name: str, size: int, seconds: float) -> None:
        self.samples.setdefault((name, size), []).append(seconds * 1e3)

    def median(self, name: str, size: int) -> float:
        return statistics.median(self.samples[name, size])


def measure(urls: tuple[str, str], charges: tuple[int, int], *, rounds: int, each: int) -> Sizes:
    """The same work on both ledgers, taking turns."""
    sizes = Sizes(charges)
    services = [SyncCreditService(url) for url in urls]
    if not services[0].verify():
        raise AssertionError(f"the ledger was filled wrongly: {services[0].verify().problems[:3]}")
    for service in services:
        service.set_limit(ORGANIZATION, scope="department", amount=10**8, window="month")
        service.set_limit(ORGANIZATION, amount=10**9, window="month Europe/Berlin")
    for round_number in range(rounds + 1):
        for size, (url, service) in enumerate(zip(urls, services, strict=True)):
            for name, work in works(url, service).items():
                for _ in range(each if name == "charge" else max(1, each // 20)):
                    started = time.perf_counter()
                    work()
                    if round_number:
                        sizes.add(name, size, time.perf_counter() - started)
    for service in services:
        service.close()
    return sizes


def works(url: str, service: SyncCreditService) -> dict[str, Callable[[], object]]:
    """What is measured."""

    def charge() -> object:
        return service.consume_credits(
            organization_id=ORGANIZATION, amount=1, agent_type="Agent0", action="action4", department_id="department3"
        )

    def usage() -> object:
        with contextlib.redirect_stdout(io.StringIO()):
            code = run_command(
                ["usage", ORGANIZATION, "--by", "agent_type,action,department", "--database", url, "--json"]
            )
        assert code == 0
        return code

    return {
        "charge": charge,
        "balance": lambda: service.get_balance(ORGANIZATION),
        "page of 50": lambda: service.list_transactions(ORGANIZATION, limit=50),
        "agentcredits usage (in a running process)": usage,
    }


def report(database: str, sizes: Sizes) -> list[str]:
    """Lines of the table; the goals are those of charge and usage."""
    goals = {"charge": 1.2}
    lines = []
    for name in dict.fromkeys(name for name, _ in sizes.samples):
        small, large = sizes.median(name, 0), sizes.median(name, 1)
        goal, met = "–", "–"
        if name in goals:
            goal, met = f"≤ {goals[name]:g} ×", "yes" if large <= goals[name] * small else "no"
        elif name.startswith("agentcredits usage"):
            goal, met = "< 300 ms", "yes" if large < 300 else "no"
        lines.append(f"| {database}: {name} | {small:.2f} | {large:.2f} | {large / small:.2f} × | {goal} | {met} |")
    return lines
