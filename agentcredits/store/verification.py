"""Verify: recompute every counter from the rows that it counts, account by account, and report any difference.

The ledger is read in pages while charges go on; then one snapshot of the account reads the few rows that came meanwhile
and all counters. Memory does not grow with the ledger, and no read lasts long (a long one would keep SQLite's log from
being written back).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from typing import Any, Final

from sqlalchemy import BindParameter, Connection, Select, bindparam, select

from agentcredits.amounts import from_micros
from agentcredits.model import GrantStatus, VerifyProblem, VerifyProgress, VerifyReport
from agentcredits.rules import burn_down
from agentcredits.rules.entries import next_event
from agentcredits.rules.recount import AccountRecount, Break, Entry, GrantSums, LimitRecount, Marks, Part, UsageRecount
from agentcredits.rules.state import GrantState, HoldState
from agentcredits.store import (
    limit_verification,
    loading,
    record_verification,
    records,
    run_verification,
    tenancy,
    usage_verification,
)
from agentcredits.store.dialects import RowLike, dialect_of
from agentcredits.store.findings import MAX_EXAMPLES, Change, Finding, Findings
from agentcredits.store.ledger_pages import entries_after, parts_between, stream
from agentcredits.store.recurring_tables import recurring_grants
from agentcredits.store.recurring_verification import RecurringCheck
from agentcredits.store.tables import (
    HOLDING,
    credit_accounts,
    credit_grants,
    credit_reservations,
    credit_transactions,
)

Step = Callable[[int], object]
"""Told how many ledger rows were read since it was told last."""


Progress = Callable[[VerifyProgress], object]


def verify(connection: Connection, organization_id: str | None, progress: Progress | None = None) -> VerifyReport:
    """Check one account, or all; each is read as of one moment.

    Args:
        connection: Where to read; its transaction is ended.
        organization_id: Whose; None: all.
        progress: Told after every page of the ledger.
    """
    accounts = list_accounts(connection, organization_id)
    meter = Meter(accounts, progress)
    problems: list[VerifyProblem] = []
    for place, _ in accounts:
        account = AccountVerification(place)
        step = meter.begin(place)
        account.walk(connection, step)
        connection.rollback()
        dialect_of(connection).begin_read(connection)
        account.finish(connection, step)
        problems += account.problems
    connection.rollback()
    if not tenancy.applies(connection):
        # Under row security a session sees one organization, and these belong to none that it could be told.
        problems += _strays(connection, organization_id)
    return VerifyReport(len(accounts), meter.rows_read, tuple(problems))


class Meter:
    """Counts accounts and rows, and tells how far it is.

    Args:
        accounts: Those that will be read, and how many rows each has.
        progress: Told after every page.
    """

    def __init__(self, accounts: Sequence[tuple[str, int]], progress: Progress | None) -> None:
        self.rows_read = 0
        self._accounts = len(accounts)
        self._rows = sum(rows for _, rows in accounts)
        self._begun = 0
        self._progress = progress

    def begin(self, organization_id: str) -> Step:
        """The next account: what its reading is to call."""
        done, self._begun = self._begun, self._begun + 1

        def step(rows: int) -> None:
            self.rows_read += rows
            if self._progress is not None:
                total = max(self._rows, self.rows_read)
                self._progress(VerifyProgress(organization_id, done, self._accounts, self.rows_read, total))

        return step


def list_accounts(connection: Connection, organization_id: str | None) -> list[tuple[str, int]]:
    """The accounts (or the one) and how many ledger rows each has."""
    table = tenancy.all_accounts(connection)
    statement = select(table.c.organization_id, table.c.last_seq).order_by(table.c.organization_id)
    if organization_id is not None:
        statement = statement.where(table.c.organization_id == organization_id)
    return [(row.organization_id, row.last_seq) for row in connection.execute(statement)]


def _strays(connection: Connection, organization_id: str | None) -> list[VerifyProblem]:
    """Rows of organizations that have no account."""
    known = select(credit_accounts.c.organization_id)
    problems = []
    for table in (credit_grants, credit_reservations, credit_transactions, recurring_grants):
        statement = select(table.c.organization_id).where(table.c.organization_id.not_in(known)).distinct()
        if organization_id is not None:
            statement = statement.where(table.c.organization_id == organization_id)
        problems += [
            VerifyProblem(place, "account", f"{table.name} has rows of organization {place}, which has no account")
            for place in connection.execute(statement.limit(MAX_EXAMPLES)).scalars()
        ]
    return problems


@dataclass(slots=True)
class _Holds:
    """What the open holds of an account add up to."""

    reserved: int = 0
    of_grants: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    of_limits: dict[tuple[str, str], int] = field(default_factory=dict)
    next_due_at: datetime | None = None


class AccountVerification:
    """The recomputation of one account: ``walk`` its rows, then ``finish`` in a transaction that sees one moment.

    ``finish`` may be called again in the same transaction: it compares anew with what the walk found.

    Args:
        organization_id: Whose.
        most: Findings of each check that are kept; None: all.
    """

    def __init__(self, organization_id: str, *, most: int | None = MAX_EXAMPLES) -> None:
        self.organization_id = organization_id
        self._most = most
        self._ledger = AccountRecount()
        self._usage = UsageRecount()
        self._usage_checked_to = ""
        self._limits: LimitRecount | None = None
        self._marks = Marks()
        #: Findings of what is read page by page, and of the last ``finish``.
        self._walked = Findings(most)
        self._finished = Findings(most)

    @property
    def findings(self) -> list[Finding]:
        """Every difference found."""
        return [*self._finished.found, *self._walked.found]

    @property
    def counter_findings(self) -> list[Finding]:
        """What the last ``finish`` found."""
        return self._finished.found

    @property
    def problems(self) -> list[VerifyProblem]:
        """The differences as they are reported."""
        return [VerifyProblem(self.organization_id, one.check, one.message) for one in self.findings]

    # -- the rows --------------------------------------------------------------------------------------------

    def walk(self, connection: Connection, step: Step) -> None:
        """Read what can be read page by page: ledger rows, settled holds, keys."""
        tenancy.enter(connection, self.organization_id)
        account = loading.load_account(connection, self.organization_id)
        if account is not None:
            now = account.last_posted_at
            self._limits = limit_verification.load_recount(connection, self.organization_id, now)
        tenancy.renew(connection)
        self._read_rows(connection, step, between=lambda: tenancy.renew(connection))
        self._walked.add(record_verification.check_settlements(connection, self.organization_id))
        self._walked.add(record_verification.check_keys(connection, self.organization_id))

    def _read_rows(self, connection: Connection, step: Step, between: Callable[[], object] = lambda: None) -> None:
        while True:
            after = self._ledger.last_seq
            page = entries_after(connection, self.organization_id, after)
            if not page:
                return
            self._read_page(connection, page, after)
            between()
            step(len(page))

    def _read_page(self, connection: Connection, page: list[Entry], after: int) -> None:
        organization_id, ledger, limits = self.organization_id, self._ledger, self._limits
        parts = parts_between(connection, organization_id, after, page[-1].seq)
        wrong: list[Finding] = []
        for row in page:
            mine = parts.get(row.seq, [])
            before = ledger.last_seq
            broken = ledger.add(row)
            if broken is not None:
                message = f"row {row.seq} does not follow from row {before}"
                self._walked.add([Finding("chain", message, blocks=broken is not Break.BALANCE)])
            closed = self._usage.add(row, mine)
            if closed is not None:
                self._walked.add(
                    usage_verification.check_days(connection, organization_id, self._usage_checked_to, *closed)
                )
                self._usage_checked_to = closed[0]
            if limits is not None:
                limits.add(row)
            for part in mine:
                ledger.add_part(row, part)
            if row.is_transfer:
                if not _is_whole(mine):
                    wrong.append(
                        Finding("debt", f"row {row.seq} does not move one amount between a grant and the debt")
                    )
            elif sum([part.amount_micros for part in mine]) != abs(row.amount_micros):
                wrong.append(Finding("allocations", f"the allocations of row {row.seq} do not add up to its amount"))
        self._walked.add(wrong)
        last = page[-1]
        self._marks.add(last.created_at, last.seq)
        if any(row.type == "refund" for row in page):
            self._walked.add(record_verification.check_refunds(connection, organization_id, after, last.seq))

    # -- the counters ----------------------------------------------------------------------------------------

    def finish(self, connection: Connection, step: Step = lambda _rows: None) -> None:
        """Read the rows that came meanwhile, and compare every counter. The transaction must see one moment."""
        organization_id = self.organization_id
        self._read_rows(connection, step)
        account = connection.execute(_account(), {"organization_id": organization_id}).mappings().one()
        found = self._finished = Findings(self._most)
        limits = limit_verification.load_limits(connection, organization_id)
        holds = _Holds()
        found.add(_read_open_holds(connection, organization_id, limits, holds))
        recurring = RecurringCheck(connection, account)
        moments = [at for at in (holds.next_due_at, recurring.next_at) if at is not None]
        scheduled = _Scheduled(min(moments, default=None))
        of_grants = list(self._check_grants(connection, account, holds, scheduled, recurring))
        found.add(self._check_account(account, holds, scheduled))
        found.add(of_grants)
        found.add(recurring.findings())
        found.add(run_verification.check_runs(connection, organization_id))
        if self._limits is not None:
            found.add(
                limit_verification.check_limits(
                    connection,
                    organization_id,
                    limits,
                    self._limits,
                    self._marks,
                    holds.of_limits,
                    account["last_posted_at"],
                )
            )
        found.add(
            usage_verification.check_days(
                connection, organization_id, self._usage_checked_to, self._usage.day, self._usage.lines, to_the_end=True
            )
        )

    def _check_account(self, account: RowLike, holds: _Holds, scheduled: _Scheduled) -> Iterator[Finding]:
        ledger = self._ledger
        for name, column, expected in (
            ("granted", "granted_micros", ledger.granted),
            ("scheduled", "scheduled_micros", scheduled.micros),
            ("spent", "spent_micros", ledger.spent),
            ("reserved", "reserved_micros", holds.reserved),
            ("expired", "expired_micros", ledger.expired),
            ("voided", "voided_micros", ledger.voided),
            ("debt", "overdrawn_micros", ledger.debt),
        ):
            stored = account[column]
            if stored != expected:
                message = f"{name} is {from_micros(stored):f}, its rows say {from_micros(expected):f}"
                yield Finding(name, message, (self._account_change(column, stored, expected),))
        if account["last_seq"] != ledger.last_seq or not ledger.is_gapless:
            change = self._account_change("last_seq", account["last_seq"], ledger.last_seq)
            yield Finding(
                "seq",
                f"last_seq is {account['last_seq']}, the ledger has {ledger.rows} rows up to {ledger.last_seq}",
                (change,) if ledger.is_gapless else (),
            )
        due, stored_due = scheduled.next_due_at, account["next_due_at"]
        if due is not None and (stored_due is None or stored_due > due):
            yield Finding(
                "due",
                f"next_due_at is {stored_due}, but something falls due at {due}",
                (self._account_change("next_due_at", stored_due, due),),
            )

    def _account_change(self, column: str, before: Any, after: Any) -> Change:
        return Change(credit_accounts, {"organization_id": self.organization_id}, column, before, after)

    def _check_grants(
        self,
        connection: Connection,
        account: RowLike,
        holds: _Holds,
        scheduled: _Scheduled,
        recurring: RecurringCheck,
    ) -> Iterator[Finding]:
        as_of, debt = account["last_posted_at"], account["overdrawn_micros"]
        strays = self._ledger.grants.keys() | holds.of_grants.keys()
        for row in stream(connection, _grants(), organization_id=self.organization_id):
            stored = records.read_grant(row._mapping)
            strays.discard(stored.id)
            sums = self._ledger.grants.get(stored.id, _NOTHING)
            expected = replace(
                stored,
                amount_micros=sums.amount,
                spent_micros=sums.spent,
                expired_micros=sums.expired,
                voided_micros=sums.voided,
                repaid_micros=sums.repaid,
                held_micros=holds.of_grants.get(stored.id, 0),
            )
            scheduled.add(expected)
            recurring.add(expected)
            yield from self._check_grant(stored, expected, is_open=bool(row.is_open), as_of=as_of)
            if debt > 0 and burn_down.usable_for([stored], as_of, None, None):
                message = f"there is a debt of {from_micros(debt):f} and grant {stored.id} has credits left to pay it"
                yield Finding("debt", message)
        for stray in sorted(strays):
            yield Finding("grant", f"rows name grant {stray}, which does not exist")

    def _check_grant(
        self, stored: GrantState, expected: GrantState, *, is_open: bool, as_of: datetime
    ) -> Iterator[Finding]:
        key = {"organization_id": self.organization_id, "id": stored.id}
        name = f"grant {stored.id}"
        for part in ("amount", "spent", "expired", "voided", "held", "repaid"):
            before, after = getattr(stored, f"{part}_micros"), getattr(expected, f"{part}_micros")
            if before != after:
                message = f"{part} of {name} is {from_micros(before):f}, its rows say {from_micros(after):f}"
                yield Finding("grant", message, (Change(credit_grants, key, f"{part}_micros", before, after),))
        if is_open != expected.is_open:
            message = f"{name} is marked {'open' if is_open else 'closed'} and is not"
            yield Finding("grant", message, (Change(credit_grants, key, "is_open", is_open, expected.is_open),))
        if not _status_fits(expected, as_of):
            yield Finding("status", f"{name} is {stored.status.value}, its dates say otherwise")


_NOTHING: Final = GrantSums()


def _is_whole(parts: Sequence[Part]) -> bool:
    """Whether a transfer moves one amount between a grant and the debt."""
    amounts = {part.amount_micros for part in parts}
    return len(parts) == 2 and len(amounts) == 1 and sum(part.grant_id is None for part in parts) == 1


@dataclass(slots=True)
class _Scheduled:
    """What the grants of an account say of its schedule."""

    next_due_at: datetime | None
    micros: int = 0

    def add(self, grant: GrantState) -> None:
        if grant.status is GrantStatus.SCHEDULED:
            self.micros += grant.amount_micros
        at = next_event(grant) if grant.is_open else None
        if at is not None and (self.next_due_at is None or at < self.next_due_at):
            self.next_due_at = at


def _status_fits(grant: GrantState, as_of: datetime) -> bool:
    """Whether the status is that of the last posting's moment; one that was used up need not have ended."""
    if grant.voided_at is not None or grant.status is GrantStatus.VOIDED:
        return grant.voided_at is not None and grant.status is GrantStatus.VOIDED
    if grant.status is GrantStatus.SCHEDULED:
        return grant.effective_at > as_of
    is_over = grant.expires_at is not None and grant.expires_at <= as_of
    if grant.status is GrantStatus.EXPIRED:
        return is_over
    return grant.effective_at <= as_of and (not is_over or not grant.is_open)


def _read_open_holds(
    connection: Connection, organization_id: str, limits: limit_verification.Limits, holds: _Holds
) -> Iterator[Finding]:
    for row in stream(connection, _open_holds(), organization_id=organization_id):
        hold: HoldState = records.read_hold(row._mapping)
        holds.reserved += hold.amount_micros
        if sum(part.amount_micros for part in hold.allocations) != hold.amount_micros:
            yield Finding("hold", f"the allocations of reservation {hold.id} do not add up to what it holds")
        for part in hold.allocations:
            holds.of_grants[str(part.grant_id)] += part.amount_micros
        limit_verification.count_hold(hold, limits, holds.of_limits)
        if holds.next_due_at is None or hold.expires_at < holds.next_due_at:
            holds.next_due_at = hold.expires_at


# -- what is asked of every account ----------------------------------------------------------------------------------

_OWNER: Final[BindParameter[str]] = bindparam("organization_id")


@cache
def _account() -> Select[Any]:
    return select(credit_accounts).where(credit_accounts.c.organization_id == _OWNER)


@cache
def _grants() -> Select[Any]:
    return select(credit_grants).where(credit_grants.c.organization_id == _OWNER).order_by(credit_grants.c.id)


@cache
def _open_holds() -> Select[Any]:
    table = credit_reservations
    return select(table).where(table.c.organization_id == _OWNER, table.c.state.in_(HOLDING)).order_by(table.c.id)
