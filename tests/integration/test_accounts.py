"""Frozen and closed accounts: what stops, what goes on, who did it and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from agentcredits import (
    Account,
    AccountClosedError,
    AccountFrozenError,
    AccountNotFoundError,
    CreditService,
    InsufficientCreditsError,
    InvalidInputError,
    PlannedAction,
    RequestContext,
    Settings,
    SyncCreditService,
    consume_credits,
    use_context,
)
from agentcredits.testing import FakeClock
from tests.integration.cli_calls import Call

ACME = "acme"

#: status → (how it is reached, the error of new work).
SHUT: dict[str, tuple[Callable[[SyncCreditService], Account], type[AccountFrozenError]]] = {
    "frozen": (lambda service: service.freeze_account(ACME, "unpaid", by="ops"), AccountFrozenError),
    "closed": (lambda service: service.close_account(ACME, "left us", by="ops"), AccountClosedError),
}


@pytest.fixture
def acme(database_url: str, clock: FakeClock) -> Iterator[SyncCreditService]:
    """100 credits; verified in the end."""
    with SyncCreditService(database_url, clock=clock) as made:
        made.grant_credits(ACME, 100)
        yield made
        assert made.verify().problems == ()


def facts(account: Account) -> tuple[str, str | None, str | None]:
    return account.status.value, account.status_reason, account.status_by


def test_an_account_begins_open(acme: SyncCreditService, clock: FakeClock) -> None:
    """No reason, no line, no debt; an organization without an account has none."""
    account = acme.get_account(ACME)
    assert facts(account) == ("open", None, None)
    assert (account.overdraft, account.debt, account.available) == (0, 0, 100)
    assert (account.created_at, account.as_of, account.status_at) == (clock.now(), clock.now(), None)
    for call in (acme.get_account, acme.unfreeze_account, acme.reopen_account):
        with pytest.raises(AccountNotFoundError):
            call("globex")
    for shut in (acme.freeze_account, acme.close_account):
        with pytest.raises(AccountNotFoundError):
            shut("globex", "why")


@pytest.mark.parametrize("status", SHUT)
def test_nothing_new_is_charged_or_held(acme: SyncCreditService, status: str) -> None:
    """Refused before the balance, the limits and the price of nothing; asked for, the answer is the same."""
    shut, error = SHUT[status]
    shut(acme)
    for amount in (1, 1_000):
        for call in (acme.consume_credits, acme.reserve_credits):
            with pytest.raises(error, match=f"organization acme is {status}") as caught:
                call(organization_id=ACME, amount=amount)
            assert (caught.value.http_status, caught.value.retryable) == (403, False)
            assert caught.value.limit_source == "account"
            assert caught.value.context["status_reason"] not in caught.value.message
    decision = acme.check_credits(ACME, amount=1)
    assert (decision.allowed, decision.reason, decision.limit_source) == (False, f"account_{status}", "account")
    acme.set_cost("Agent", "greet", 0, free=True)
    with pytest.raises(error):
        acme.consume_credits(organization_id=ACME, agent_type="Agent", action="greet")
    assert not acme.quote(ACME, [PlannedAction("Agent", "greet")]).allowed
    assert acme.get_balance(ACME).available == 100


@pytest.mark.parametrize("status", SHUT)
def test_running_work_settles(acme: SyncCreditService, clock: FakeClock, status: str) -> None:
    """Commit, release, extend, an over-run, a late settlement, a refund, a void, a key's stored answer."""
    grant = acme.grant_credits(ACME, 5, priority=99)
    names = ("commit", "release", "late", "verdict")
    holds = {name: acme.reserve_credits(organization_id=ACME, amount=10) for name in names}
    charge = acme.consume_credits(organization_id=ACME, amount=10, idempotency_key="k")
    SHUT[status][0](acme)
    assert acme.commit_reservation(holds["commit"], 12, overage="cap").charged == 12
    assert acme.release_reservation(holds["release"]).state == "released"
    assert acme.mark_unknown(holds["verdict"], "fal").state == "unknown"
    assert acme.extend_reservation(holds["late"], timedelta(minutes=1)).state == "active"
    clock.advance(timedelta(minutes=2))
    assert (settled := holds["late"].commit()).late
    assert settled.charged == 10
    assert acme.refund_credits(charge).amount == 10
    assert acme.void_grant(grant).voided == 5
    assert acme.adjust_credits(ACME, -1).amount == -1
    assert acme.consume_credits(organization_id=ACME, amount=10, idempotency_key="k").replayed
    assert acme.get_balance(ACME).available == 67


def test_a_frozen_account_is_granted_credits_and_a_closed_one_is_not(acme: SyncCreditService) -> None:
    """By a grant or a positive adjustment; the key of an earlier grant is still answered."""
    acme.freeze_account(ACME, "unpaid")
    granted = acme.grant_credits(ACME, 1, idempotency_key="k")
    acme.adjust_credits(ACME, 1)
    acme.close_account(ACME, "left us")
    for call in (acme.grant_credits, acme.adjust_credits):
        with pytest.raises(AccountClosedError):
            call(ACME, 1)
    assert acme.grant_credits(ACME, 1, idempotency_key="k").id == granted.id
    assert acme.get_balance(ACME).granted == 102


def test_who_why_and_when(acme: SyncCreditService, clock: FakeClock) -> None:
    """Every change leaves its reason in the account; the same change again leaves the first one."""
    first = clock.now()
    assert facts(acme.freeze_account(ACME, "unpaid", by="ada")) == ("frozen", "unpaid", "ada")
    clock.advance(timedelta(hours=1))
    again = acme.freeze_account(ACME, "another reason", by="bob")
    assert (facts(again), again.status_at, again.replayed) == (("frozen", "unpaid", "ada"), first, True)
    opened = acme.unfreeze_account(ACME, "paid", by="bob")
    assert (facts(opened), opened.status_at, opened.replayed) == (("open", "paid", "bob"), clock.now(), False)
    assert acme.unfreeze_account(ACME).replayed
    assert acme.reopen_account(ACME).replayed
    assert facts(acme.get_account(ACME)) == ("open", "paid", "bob")
    assert acme.consume_credits(organization_id=ACME, amount=1).charged == 1


def test_closed_is_more_than_frozen(acme: SyncCreditService) -> None:
    """A frozen account can be closed; a closed one is reopened, not unfrozen or frozen."""
    acme.freeze_account(ACME, "unpaid")
    with pytest.raises(AccountFrozenError) as caught:
        acme.reopen_account(ACME)
    assert not isinstance(caught.value, AccountClosedError)
    assert facts(acme.close_account(ACME, "left us")) == ("closed", "left us", None)
    with pytest.raises(AccountClosedError):
        acme.freeze_account(ACME, "x")
    with pytest.raises(AccountClosedError):
        acme.unfreeze_account(ACME)
    assert acme.close_account(ACME, "again").replayed
    assert facts(acme.reopen_account(ACME, "came back")) == ("open", "came back", None)


@pytest.mark.parametrize("reason", ["", "a\x00b", None, 5, "x" * 1_001])
def test_a_reason_is_needed(acme: SyncCreditService, reason: Any) -> None:
    """Some text, at most 1,000 characters; nothing changes without it."""
    for call in (acme.freeze_account, acme.close_account):
        with pytest.raises(InvalidInputError):
            call(ACME, reason)
    assert facts(acme.get_account(ACME)) == ("open", None, None)


def test_a_frozen_account_is_no_empty_one(acme: SyncCreditService) -> None:
    """``on_exhausted`` does not turn it into a plan: the operator stopped the work, not the money."""

    @consume_credits("Agent", "work", estimate=1, on_exhausted="dry_run", service=acme)
    def work() -> str:
        return "done"

    acme.freeze_account(ACME, "unpaid")
    with use_context(RequestContext(ACME)), pytest.raises(AccountFrozenError) as caught:
        work()
    assert not isinstance(caught.value, InsufficientCreditsError)


def test_mode_observe_only_records_it(acme: SyncCreditService, database_url: str, clock: FakeClock) -> None:
    """As every other refusal."""
    acme.freeze_account(ACME, "unpaid")
    with SyncCreditService(database_url, clock=clock, settings=Settings(mode="observe")) as watching:
        assert watching.consume_credits(organization_id=ACME, amount=1).charged == 0
        (denial,) = watching.list_denials(ACME)
    assert (denial.code, denial.limit_source) == ("account_frozen", "account")


async def test_the_coroutine_face_does_the_same(acme: SyncCreditService, database_url: str, clock: FakeClock) -> None:
    """Every change in turn."""
    async with CreditService(database_url, clock=clock) as service:
        seen = [
            await service.freeze_account(ACME, "a"),
            await service.unfreeze_account(ACME),
            await service.close_account(ACME, "b", by="ada"),
            await service.reopen_account(ACME, "c"),
            await service.set_overdraft(ACME, 3),
            await service.get_account(ACME),
        ]
    assert [account.status.value for account in seen] == ["frozen", "open", "closed", "open", "open", "open"]
    assert seen[-1] == acme.get_account(ACME)
    assert (seen[-1].overdraft, seen[-1].status_reason) == (3, "c")


# -- the command line ----------------------------------------------------------------------------------------------


def test_accounts_on_the_command_line(on: Call, acme: SyncCreditService) -> None:
    """Each command says what is so now, and prints the account as JSON."""
    assert (
        on("accounts", "freeze", ACME, "--reason", "unpaid", "--by", "ops").out
        == "The account of acme is now frozen.\n"
    )
    assert "already frozen" in on("accounts", "freeze", ACME, "--reason", "again").out
    shown = on("accounts", "show", ACME)
    assert shown.lines[0] == "The account of acme is frozen."
    assert {"unpaid", "ops", "100"} <= set(" ".join(shown.lines[1:]).split())
    data = on("accounts", "show", ACME, "--json").data
    assert (data["status"], data["status_reason"], data["status_by"], data["debt"]) == ("frozen", "unpaid", "ops", 0)
    assert on("accounts", "unfreeze", ACME, "--json").data["status"] == "open"
    assert on("accounts", "close", ACME, "--reason", "left us", "--json").data["status"] == "closed"
    grant = on("grant", ACME, 5)
    assert (grant.code, grant.out) == (2, "")
    assert "is closed" in grant.err
    assert "agentcredits accounts reopen acme" in grant.err
    assert on("accounts", "reopen", ACME, "--reason", "back").out == "The account of acme is now open.\n"
    assert on("accounts", "overdraft", ACME, "50").out == "organization acme may overdraw 50 credits.\n"
    acme.consume_credits(organization_id=ACME, amount=130, overage="overdraft")
    assert on("accounts", "overdraft", ACME, "50").lines == [
        "organization acme may overdraw 50 credits already.",
        "It owes 30 of them.",
    ]
    assert on("accounts", "overdraft", ACME, 0, "--json").data["debt"] == 30


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("freeze", ACME), 2),
        (("close", ACME), 2),
        (("overdraft", ACME, "-5"), 2),
        (("overdraft", ACME, "much"), 2),
        (("show", "globex"), 3),
        (("freeze", "globex", "--reason", "x"), 3),
    ],
)
def test_what_the_command_line_refuses(on: Call, acme: SyncCreditService, words: tuple[str, ...], code: int) -> None:
    """Without a reason, without a number; 3 where there is no account."""
    answer = on("accounts", *words)
    assert (answer.code, answer.out) == (code, "")
    assert answer.err
    assert acme.get_account(ACME).status == "open"
