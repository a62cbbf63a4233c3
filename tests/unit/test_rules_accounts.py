"""An account's status and overdraft line: who may change what, what each status stops, what closing ends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agentcredits.errors import AccountClosedError, AccountFrozenError, AccountNotFoundError
from agentcredits.model import AccountStatus, GrantStatus, Overage, RecurringStatus
from agentcredits.rules import operations as ops
from agentcredits.rules.due import book_due
from agentcredits.rules.posting import Outcome, decide
from agentcredits.rules.state import AccountState, Changes, Ledger

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = START + timedelta(hours=1)
OPEN, FROZEN, CLOSED = AccountStatus.OPEN, AccountStatus.FROZEN, AccountStatus.CLOSED
COMMANDS = {
    "freeze": (frozenset({OPEN}), FROZEN),
    "unfreeze": (frozenset({FROZEN}), OPEN),
    "close": (frozenset({OPEN, FROZEN}), CLOSED),
    "reopen": (frozenset({CLOSED}), OPEN),
}


def ledger_with(**columns: Any) -> tuple[Ledger, AccountState]:
    account = AccountState("acme", START, START, **columns)
    return Ledger("acme", account), account


def command(name: str, reason: str | None = "because", by: str | None = "ann") -> ops.SetStatus:
    before, status = COMMANDS[name]
    return ops.SetStatus(organization_id="acme", before=before, status=status, reason=reason, by=by)


def keyed(kind: type[ops.KeyedOperation], id_: str, **arguments: Any) -> Any:
    facts = {"organization_id": "acme", "id": id_, "key": id_, "fingerprint": id_}
    return kind(**facts | arguments)


def post(ledger: Ledger, operation: ops.Operation, now: datetime = LATER) -> Outcome:
    book_due(ledger, now)
    return decide(ledger, operation, now)


# -- status --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "name", "after"),
    [
        (OPEN, "freeze", FROZEN),
        (FROZEN, "unfreeze", OPEN),
        (OPEN, "close", CLOSED),
        (FROZEN, "close", CLOSED),
        (CLOSED, "reopen", OPEN),
    ],
)
def test_a_command_changes_the_status_and_says_who_why_and_when(
    status: AccountStatus, name: str, after: AccountStatus
) -> None:
    """And what was said of the status before is replaced, by nothing where nothing was said."""
    ledger, account = ledger_with(status=status, status_reason="old", status_by="old", status_at=START)
    outcome = post(ledger, command(name, reason=None))
    assert (outcome.record, outcome.error, outcome.replayed) == (account, None, False)
    assert (account.status, account.status_reason, account.status_by, account.status_at) == (after, None, "ann", LATER)
    assert account.last_posted_at == LATER
    assert ledger.changes == Changes(account=True, standing=True)


@pytest.mark.parametrize(("name", "status"), [(name, status) for name, (_, status) in COMMANDS.items()])
def test_an_account_that_is_there_already_keeps_what_was_said(name: str, status: AccountStatus) -> None:
    """Nothing is written; the answer is as of now."""
    ledger, account = ledger_with(status=status, status_reason="first", status_by="bob", status_at=START)
    outcome = post(ledger, command(name))
    assert (outcome.record, outcome.replayed) == (account, True)
    assert (account.status_reason, account.status_by, account.status_at) == ("first", "bob", START)
    assert account.last_posted_at == LATER
    assert ledger.changes == Changes()


@pytest.mark.parametrize(("name", "status"), [("freeze", CLOSED), ("unfreeze", CLOSED), ("reopen", FROZEN)])
def test_a_command_for_another_status_is_refused(name: str, status: AccountStatus) -> None:
    """A closed account is not opened by unfreezing it."""
    ledger, account = ledger_with(status=status, status_reason="why")
    error = post(ledger, command(name)).error
    assert type(error) is (AccountClosedError if status is CLOSED else AccountFrozenError)
    assert (account.status, account.status_reason, account.last_posted_at) == (status, "why", START)


def test_what_is_not_there_has_no_status_and_no_line() -> None:
    """An account comes with its first grant."""
    for operation in (command("freeze"), ops.SetOverdraft(organization_id="acme", amount_micros=1)):
        assert type(post(Ledger("acme"), operation).error) is AccountNotFoundError


@pytest.mark.parametrize(
    ("status", "refused"),
    [
        (OPEN, set()),
        (FROZEN, {"consume", "reserve"}),
        (CLOSED, {"consume", "reserve", "grant", "adjust"}),
    ],
)
def test_what_each_status_stops(status: AccountStatus, refused: set[str]) -> None:
    """A frozen account still takes grants; whatever was held or charged before can be settled and given back."""
    ledger, account = ledger_with()
    for operation in (
        keyed(ops.Grant, "g", amount_micros=100),
        keyed(ops.Reserve, "h", amount_micros=5, ttl=timedelta(days=1)),
        keyed(ops.Consume, "c", amount_micros=5),
    ):
        assert post(ledger, operation).error is None
    account.status = status
    outcomes = {
        "consume": keyed(ops.Consume, "c2", amount_micros=1),
        "reserve": keyed(ops.Reserve, "h2", amount_micros=1, ttl=timedelta(days=1)),
        "grant": keyed(ops.Grant, "g2", amount_micros=1),
        "adjust": keyed(ops.Adjust, "a", amount_micros=1, grant_id="ag"),
        "take back": keyed(ops.Adjust, "b", amount_micros=-1, grant_id="-"),
        "commit": ops.Commit(organization_id="acme", reservation_id="h", transaction_id="t"),
        "refund": keyed(ops.Refund, "r", transaction_id="c"),
        "void": ops.VoidGrant(organization_id="acme", grant_id="g"),
    }
    errors = {name: post(ledger, operation).error for name, operation in outcomes.items()}
    assert {name for name, error in errors.items() if error is not None} == refused
    kind = AccountClosedError if status is CLOSED else AccountFrozenError
    assert {type(errors[name]) for name in refused} <= {kind}


def test_closing_ends_what_would_be_granted_again() -> None:
    """Freezing does not; what was cancelled before keeps its time."""
    ledger, account = ledger_with()
    for id_ in ("gone", "daily"):
        post(ledger, keyed(ops.CreateRecurring, id_, amount_micros=10, every="day", tz="UTC"), START)
    gone, daily = ledger.recurring["gone"], ledger.recurring["daily"]
    ledger.changes = Changes()
    account.next_due_at = None
    post(ledger, ops.CancelRecurring(organization_id="acme", recurring_id="gone"), START)
    assert ledger.changes == Changes(account=True, recurring={"gone"})
    assert account.next_due_at == account.next_refill_at == daily.next_at
    ledger.changes = Changes()
    post(ledger, command("freeze"))
    assert daily.is_active
    assert account.next_refill_at == daily.next_at
    post(ledger, command("close"))
    assert (daily.status, daily.cancelled_at) == (RecurringStatus.CANCELLED, LATER)
    assert gone.cancelled_at == START
    assert account.next_refill_at is None
    assert ledger.changes == Changes(account=True, standing=True, account_features=True, recurring={"daily"})


# -- the overdraft line --------------------------------------------------------------------------------------------


def test_a_line_is_set_once_and_lends_no_more_when_it_is_lowered() -> None:
    """What is overdrawn stays a debt, whatever becomes of the line."""
    ledger, account = ledger_with()
    line = ops.SetOverdraft(organization_id="acme", amount_micros=10)
    outcome = post(ledger, line)
    assert (outcome.record, outcome.replayed, account.overdraft_micros) == (account, False, 10)
    assert ledger.changes == Changes(account=True, standing=True)
    assert account.last_posted_at == LATER

    overdraft = {"overage": Overage.OVERDRAFT}
    assert post(ledger, keyed(ops.Consume, "c", amount_micros=6, **overdraft)).error is None
    post(ledger, ops.SetOverdraft(organization_id="acme", amount_micros=2))
    assert (account.overdraft_micros, account.overdrawn_micros) == (2, 6)
    post(ledger, keyed(ops.Consume, "d", amount_micros=1, **overdraft))
    assert account.overdrawn_micros == 6


def test_the_same_line_again_writes_nothing() -> None:
    """The answer is as of now."""
    ledger, account = ledger_with(overdraft_micros=10)
    outcome = post(ledger, ops.SetOverdraft(organization_id="acme", amount_micros=10))
    assert (outcome.record, outcome.replayed) == (account, True)
    assert account.last_posted_at == LATER
    assert ledger.changes == Changes()


def test_a_debt_is_paid_by_the_next_grant_in_the_same_step() -> None:
    """At the time of that step, and by what can be used then: not by what starts later."""
    ledger, account = ledger_with(overdraft_micros=10)
    post(ledger, keyed(ops.Consume, "c", amount_micros=6, overage=Overage.OVERDRAFT))
    post(ledger, keyed(ops.Grant, "later", amount_micros=50, effective_at=LATER + timedelta(days=1)))
    assert account.overdrawn_micros == 6
    post(ledger, keyed(ops.Grant, "now", amount_micros=50))
    assert account.overdrawn_micros == 0
    assert (ledger.grants["now"].repaid_micros, ledger.grants["later"].status) == (6, GrantStatus.SCHEDULED)
    assert ledger.changes.rows[-1].created_at == LATER


def test_booking_what_is_due_answers_as_of_now() -> None:
    """Also where nothing was due."""
    ledger, account = ledger_with()
    outcome = post(ledger, ops.Expire(organization_id="acme"))
    assert outcome.record is account
    assert account.last_posted_at == LATER
    assert ledger.changes == Changes()
