"""What the refusals that carry numbers say: to a program in facts, to a person in sentences."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from agentcredits.errors import CreditsError
from agentcredits.model import AccountStatus, LimitMode, LimitScope, LimitUnit
from agentcredits.rules import refusals
from agentcredits.rules.operations import Activity
from agentcredits.rules.state import AccountState, LimitState, RunState, UsageState

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CREDIT = 1_000_000
VIDEO = Activity(agent_type="VideoAgent", action="generate_video")
CHEAPER = "Choose a smaller or cheaper action."


def account(**counters: Any) -> AccountState:
    return AccountState("acme", NOW, NOW, **counters)


def facts(error: CreditsError) -> dict[str, Any]:
    """All that a refusal says, less what its class says."""
    return {name: value for name, value in error.as_dict().items() if name not in ("code", "status")}


@pytest.mark.parametrize(
    ("status", "code", "command"),
    [(AccountStatus.FROZEN, "account_frozen", "unfreeze"), (AccountStatus.CLOSED, "account_closed", "reopen")],
)
def test_an_account_that_is_not_open_names_the_command_that_opens_it(
    status: AccountStatus, code: str, command: str
) -> None:
    """The operator's own words are for programs of operators, not in the sentence that a user may see."""
    error = refusals.account_not_open(
        account(status=status, status_reason="chargeback", status_by="ann", status_at=NOW)
    )
    assert error.code == code
    assert facts(error) == {
        "message": f"the credit account of organization acme is {status.value}.",
        "reason": code,
        "limit_source": "account",
        "retryable": False,
        "context": {
            "organization_id": "acme",
            "status": status.value,
            "status_reason": "chargeback",
            "status_at": NOW,
        },
        "suggestions": [f"An operator can {command} it: agentcredits accounts {command} acme"],
        "fixes": [],
    }


# -- credits -------------------------------------------------------------------------------------------------------


def short(available: int, required: int, *, counters: dict[str, int] | None = None, **arguments: Any) -> CreditsError:
    made = account(**{name: number * CREDIT for name, number in (counters or {}).items()})
    extra = {name: number * CREDIT for name, number in arguments.items()}
    return refusals.insufficient(made, available * CREDIT, required * CREDIT, VIDEO, **extra)


def test_who_has_too_little_learns_how_much_to_add() -> None:
    """In the sentence, in the numbers, and as a fix."""
    error = short(3, 8)
    assert facts(error) == {
        "message": "organization acme has 3 credits available, generate_video needs 8; short by 5.",
        "reason": "insufficient_credits",
        "limit_source": "balance",
        "retryable": False,
        "context": {
            "organization_id": "acme",
            "agent_type": "VideoAgent",
            "action": "generate_video",
            "available": Decimal(3),
            "required": Decimal(8),
            "shortfall": Decimal(5),
            "reserved": Decimal(0),
        },
        "suggestions": ["Add at least 5 credits to organization acme.", CHEAPER],
        "fixes": [{"action": "add_credits", "amount": Decimal(5)}],
    }


def test_who_has_nothing_is_not_told_to_choose_something_cheaper() -> None:
    """Nothing is cheap enough; and an amount of one is told in the singular."""
    error = short(0, 1)
    assert error.suggestions == ("Add at least 1 credit to organization acme.",)
    nameless = refusals.insufficient(account(), 1, 2, Activity())
    assert "the charge needs" in nameless.message
    assert CHEAPER in nameless.suggestions


@pytest.mark.parametrize(("held", "waits"), [(5, True), (4, False)])
def test_who_only_has_to_wait_is_told_to_wait(held: int, waits: bool) -> None:
    """When what running work holds would do, to the last credit, nobody has to pay."""
    error = short(3, 8, counters={"reserved_micros": held})
    assert error.retryable is waits
    assert error.reason == ("credits_held" if waits else "insufficient_credits")
    assert bool(error.fixes) is not waits
    assert error.context["reserved"] == held
    waiting = f"Work that is still running holds {held} credits: wait until it ends, then try again."
    assert error.suggestions[0] == (waiting if waits else "Add at least 5 credits to organization acme.")


def test_what_is_held_of_other_grants_is_not_worth_waiting_for() -> None:
    """Only holds of grants that the action may use come back to it; ``reserved`` tells of all."""
    error = short(3, 8, counters={"reserved_micros": 50}, held_micros=0)
    assert (error.reason, error.retryable, error.context["reserved"]) == ("insufficient_credits", False, 50)
    assert short(3, 8, held_micros=5).retryable


@pytest.mark.parametrize(("restricted", "reason"), [(5, "credits_restricted"), (4, "insufficient_credits")])
def test_credits_for_other_actions_are_told_apart(restricted: int, reason: str) -> None:
    """They are the cause where they would have been enough."""
    error = short(3, 8, restricted_micros=restricted)
    assert (error.reason, error.context["restricted"]) == (reason, restricted)
    assert error.message == (
        "organization acme has 3 credits available, generate_video needs 8; short by 5."
        f" {restricted} more credits may only be used for other actions."
    )
    assert "1 more credit may" in short(3, 8, restricted_micros=1).message


def test_a_debt_is_told_as_less_than_nothing() -> None:
    """It has to be paid before anything else can be."""
    error = short(0, 1, counters={"overdrawn_micros": 2})
    assert (error.context["available"], error.context["shortfall"]) == (-2, 3)
    assert error.suggestions == ("Add at least 3 credits to organization acme.",)


# -- limits --------------------------------------------------------------------------------------------------------


def limited(
    needed: int,
    *,
    spent: int = 0,
    held: int = 0,
    end: datetime | None = NOW,
    scope: LimitScope = LimitScope.USER,
    unit: LimitUnit = LimitUnit.COUNT,
) -> CreditsError:
    """A limit of ten."""
    limit = LimitState("l1", scope, "", unit, "day UTC", 10, LimitMode.HARD, NOW)
    usage = UsageState("l1", "u1", held=held, spent=spent, window_start=None, window_end=end)
    return refusals.limit_exceeded("acme", limit, usage, needed, VIDEO, others=["l2"])


def test_a_limit_says_what_is_used_what_is_held_and_when_it_rolls() -> None:
    """In the limit's unit; ``fixes`` say how long to wait, or how far to raise it."""
    error = limited(4, spent=5, held=2)
    assert facts(error) == {
        "message": "user u1 of organization acme may use 10 charges (day UTC): 5 charges are used, 2 charges held,"
        " 3 charges left; generate_video needs 4 charges. It resets at 2026-03-01T12:00:00+00:00.",
        "reason": "limit_held",
        "limit_source": "user",
        "retryable": True,
        "context": {
            "organization_id": "acme",
            "agent_type": "VideoAgent",
            "action": "generate_video",
            "limit_id": "l1",
            "scope": "user",
            "scope_id": "u1",
            "unit": "count",
            "window": "day UTC",
            "window_start": None,
            "resets_at": NOW,
            "limit": 10,
            "spent": 5,
            "held": 2,
            "left": 3,
            "required": 4,
            "also_refused_by": ["l2"],
        },
        "suggestions": [
            "Work that is still running holds 2 charges: wait until it ends, then try again.",
            "Wait until 2026-03-01T12:00:00+00:00, when the limit's window rolls.",
            "Raise the limit of user u1 of organization acme.",
        ],
        "fixes": [{"action": "raise_limit", "limit_id": "l1", "amount": 11}],
    }


WAIT = {"action": "wait", "until": NOW}


@pytest.mark.parametrize(
    ("counters", "needed", "end", "reason", "retryable", "fixes"),
    [
        ({"spent": 5, "held": 1}, 5, None, "limit_held", True, [11]),
        ({"spent": 5, "held": 1}, 6, None, "limit_reached", False, [12]),
        ({"spent": 5}, 10, NOW, "limit_reached", True, [WAIT, 15]),
        ({"spent": 5}, 11, NOW, "limit_reached", False, [16]),
        ({"spent": 12}, 1, None, "limit_reached", False, [13]),
    ],
    ids=["held in the way", "more than what is held", "the next window", "no window ever", "gone beyond"],
)
def test_whether_waiting_helps(
    counters: dict[str, int], needed: int, end: datetime | None, reason: str, retryable: bool, fixes: list[Any]
) -> None:
    """For running work, for the next window, or not at all."""
    error = limited(needed, end=end, **counters)
    assert (error.reason, error.retryable) == (reason, retryable)
    assert [fix if fix == WAIT else fix["amount"] for fix in error.fixes] == fixes
    assert error.context["left"] == max(0, 10 - sum(counters.values()))
    assert ("resets" in error.message) is (end is not None)
    assert any("window rolls" in text for text in error.suggestions) is (WAIT in fixes)


@pytest.mark.parametrize(
    ("unit", "spent", "cheaper"),
    [(LimitUnit.CREDITS, 9, True), (LimitUnit.CREDITS, 10, False), (LimitUnit.COUNT, 9, False)],
)
def test_something_cheaper_fits_where_credits_are_left(unit: LimitUnit, spent: int, cheaper: bool) -> None:
    """A cheaper action is one charge all the same."""
    assert (CHEAPER in limited(20, spent=spent, unit=unit).suggestions) is cheaper


def test_scopes_are_named_in_words() -> None:
    """The organization's own limit names it once."""
    of_agent = limited(11, scope=LimitScope.AGENT_TYPE)
    assert of_agent.message.startswith("agent type u1 of organization acme may use")
    assert of_agent.limit_source == of_agent.context["scope"] == "agent_type"
    assert limited(11, scope=LimitScope.ORGANIZATION).message.startswith("organization acme may use")


# -- runs ----------------------------------------------------------------------------------------------------------


def run(**counters: int) -> RunState:
    numbers = {name: number * CREDIT for name, number in counters.items()}
    return RunState("r1", "r1", NOW, NOW, 60, **numbers)


def test_a_run_says_where_its_pool_went() -> None:
    """What it used, holds and gave away; what has to come back before the action fits."""
    error = refusals.run_exceeded(
        "acme",
        run(spent_micros=2, held_micros=1, carved_micros=4, inner_spent_micros=2),
        10 * CREDIT,
        6 * CREDIT,
        7 * CREDIT,
        VIDEO,
    )
    assert facts(error) == {
        "message": "run r1 of organization acme may use 10 credits: 2 are spent, 1 held, 4 claimed by the runs inside"
        " it, 3 left; generate_video needs 6.",
        "reason": "limit_held",
        "limit_source": "run",
        "retryable": True,
        "context": {
            "organization_id": "acme",
            "agent_type": "VideoAgent",
            "action": "generate_video",
            "limit_id": None,
            "scope": "run",
            "scope_id": "r1",
            "run_id": "r1",
            "unit": "credits",
            "window": "lifetime",
            "window_start": None,
            "resets_at": None,
            "limit": 10,
            "spent": 2,
            "held": 1,
            "carved": 4,
            "left": 3,
            "required": 6,
            "amount": 7,
            "also_refused_by": [],
        },
        "suggestions": [
            "Work that is still running holds 1 credit, and the runs inside claim 4 credits:"
            " wait until they end, then try again.",
            CHEAPER,
            "Raise max_credits of run r1.",
        ],
        "fixes": [{"action": "raise_max_credits", "run_id": "r1", "amount": 13}],
    }


@pytest.mark.parametrize(
    ("needed", "reason"), [(6, "limit_held"), (7, "limit_reached")], ids=["what is claimed", "more than that"]
)
def test_what_the_runs_inside_spent_never_comes_back(needed: int, reason: str) -> None:
    """Only what is held, or claimed and not spent, is worth waiting for."""
    made = run(spent_micros=2, carved_micros=8, inner_spent_micros=2)
    error = refusals.run_exceeded("acme", made, 10 * CREDIT, needed * CREDIT, needed * CREDIT, Activity())
    assert (error.reason, error.retryable) == (reason, reason == "limit_held")
    assert error.context["left"] == 0
    assert CHEAPER not in error.suggestions
    assert "the charge needs" in error.message


def test_a_run_gone_beyond_its_cap_has_nothing_left() -> None:
    """Not less than nothing; one micro-credit that is left can be used for something."""
    beyond = refusals.run_exceeded("acme", run(spent_micros=3), 2 * CREDIT, 1, 1, VIDEO)
    assert (beyond.context["left"], CHEAPER in beyond.suggestions) == (0, False)
    assert CHEAPER in refusals.run_exceeded("acme", run(), 1, 2, 2, VIDEO).suggestions
