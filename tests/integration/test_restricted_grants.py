"""Grants that are kept for certain actions, what a credit cost, and taking back only what is not held."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from agentcredits import (
    CreditsError,
    GrantCategory,
    GrantStatus,
    IdempotencyMismatchError,
    InsufficientCreditsError,
    InvalidAmountError,
    InvalidInputError,
    PlannedAction,
    SyncCreditService,
)
from agentcredits.testing import FakeClock
from tests.integration.test_grants import DAY, history, terms

ACME = "acme"
VIDEO = {"agent_type": "VideoAgent", "action": "generate_video"}
VOICE = {"agent_type": "VoiceAgent", "action": "generate_voice"}


@pytest.fixture
def service(database_url: str, clock: FakeClock) -> Iterator[SyncCreditService]:
    """An empty ledger under a clock that is moved by hand; clean at the end."""
    with SyncCreditService(database_url, clock=clock) as made:
        yield made
        assert made.verify().problems == ()


def consume(service: SyncCreditService, amount: Any, **arguments: Any) -> Any:
    return service.consume_credits(organization_id=ACME, amount=amount, **arguments)


def taken(service: SyncCreditService, record: Any) -> dict[str, int]:
    """What a charge or hold took, by the source of the grant."""
    sources = {grant.id: str(grant.source) for grant in service.list_grants(ACME)}
    return {sources[part.grant_id]: int(part.amount) for part in record.allocations}


# -- which action may use what -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only_for", "activity", "allowed"),
    [
        ("VideoAgent", VIDEO, True),
        ("VideoAgent.*", VIDEO, True),
        ("VideoAgent.generate_video", VIDEO, True),
        ("*.generate_video", VIDEO, True),
        ("VideoAgent", VOICE, False),
        ("VideoAgent.generate_voice", VOICE, False),
        ("VideoAgent.generate", VIDEO, False),
        ("Video.generate_video", VIDEO, False),
        ("*.generate_voice", VIDEO, False),
        ("VideoAgent", {}, False),
        ("*.generate_video", {}, False),
    ],
)
def test_a_restricted_grant_pays_for_its_actions_only(
    service: SyncCreditService, only_for: str, activity: dict[str, str], allowed: bool
) -> None:
    """By charge, hold, check and quote alike; a charge without an action uses unrestricted credits only."""
    service.grant_credits(ACME, 10, only_for=[only_for])
    assert service.check_credits(ACME, amount=1, **activity).allowed is allowed
    for charge in (consume, lambda service, amount, **rest: service.reserve_credits(
        organization_id=ACME, amount=amount, **rest)):  # fmt: skip
        if allowed:
            charge(service, 1, **activity)
        else:
            with pytest.raises(InsufficientCreditsError):
                charge(service, 1, **activity)
    assert terms(service.get_balance(ACME))["available"] == (8 if allowed else 10)


def test_a_restricted_grant_burns_first_in_its_place(service: SyncCreditService) -> None:
    """Priority and expiry come before it, category after: nothing is lost to an expiry for its sake."""
    end = service.grant_credits(ACME, 1, source="pool").created_at + DAY
    service.grant_credits(ACME, 2, source="video", only_for=["VideoAgent"])
    service.grant_credits(ACME, 4, source="promotion", category="promotional")
    service.grant_credits(ACME, 8, source="ends", expires_at=end)
    service.grant_credits(ACME, 16, source="first", priority=10)
    assert taken(service, consume(service, 17, **VIDEO)) == {"first": 16, "ends": 1}
    assert taken(service, consume(service, 8, **VIDEO)) == {"ends": 7, "video": 1}
    assert taken(service, consume(service, 4, **VOICE)) == {"promotion": 4}
    assert taken(service, consume(service, 2, **VIDEO)) == {"video": 1, "pool": 1}


def test_the_refusal_tells_what_is_there_for_other_actions(service: SyncCreditService) -> None:
    """The numbers and a reason of its own where the credits would do, if only they might be used."""
    service.grant_credits(ACME, 3)
    service.grant_credits(ACME, 10, only_for=["VideoAgent"])
    with pytest.raises(InsufficientCreditsError) as caught:
        consume(service, 5, **VOICE)
    error = caught.value
    assert error.reason == "credits_restricted"
    assert error.message.endswith("10 more credits may only be used for other actions.")
    names = ("available", "required", "shortfall", "restricted")
    assert [error.context[name] for name in names] == [3, 5, 2, 10]
    with pytest.raises(InsufficientCreditsError) as caught:
        consume(service, 20, **VOICE)
    assert (caught.value.reason, caught.value.context["restricted"]) == ("insufficient_credits", 10)
    with pytest.raises(InsufficientCreditsError) as caught:
        consume(service, 20, **VIDEO)
    assert "restricted" not in caught.value.context


def test_what_is_held_of_other_actions_credits_is_nothing_to_wait_for(service: SyncCreditService) -> None:
    """Only a hold whose credits the action could use is worth waiting for."""
    service.grant_credits(ACME, 10, only_for=["VideoAgent"])
    service.reserve_credits(organization_id=ACME, amount=10, **VIDEO)
    with pytest.raises(InsufficientCreditsError) as caught:
        consume(service, 5, **VOICE)
    assert (caught.value.reason, caught.value.retryable) == ("insufficient_credits", False)
    with pytest.raises(InsufficientCreditsError) as caught:
        consume(service, 5, **VIDEO)
    assert (caught.value.reason, caught.value.retryable) == ("credits_held", True)


def test_the_balance_counts_all_and_tells_the_restricted_part(service: SyncCreditService, clock: FakeClock) -> None:
    """Effective, unexpired and not held: what is told apart is a part of what is available."""
    service.grant_credits(ACME, 3)
    assert service.get_balance(ACME).restricted == 0
    service.grant_credits(ACME, 10, only_for=["VideoAgent"], expires_at=clock.now() + DAY)
    service.grant_credits(ACME, 5, only_for=["VideoAgent"], effective_at=clock.now() + DAY)
    service.reserve_credits(organization_id=ACME, amount=4, ttl=2 * DAY, **VIDEO)
    balance = service.get_balance(ACME)
    assert (balance.available, balance.restricted, balance["restricted"]) == (9, 6, 6)
    clock.advance(DAY)
    balance = service.get_balance(ACME)
    assert (balance.available, balance.restricted) == (8, 5)


def test_a_quote_looks_at_each_action(service: SyncCreditService) -> None:
    """In the order of the plan: what one action uses up is not there for the next."""
    service.grant_credits(ACME, 10, only_for=["VideoAgent"])
    service.grant_credits(ACME, 2)
    video, voice = PlannedAction("VideoAgent", "generate_video"), PlannedAction("VoiceAgent", "generate_voice")
    assert service.quote(ACME, [video, voice]).allowed
    decision = service.quote(ACME, [voice, voice, video]).decision
    assert not decision.allowed
    assert (decision.required, decision.available, decision.shortfall) == (14, 12, 2)
    check = service.check_credits(ACME, **VOICE)
    assert (check.allowed, check.available) == (True, 2)


def test_an_over_run_takes_what_its_action_may_use(service: SyncCreditService) -> None:
    """A capped commit and a capped charge leave other actions' credits alone."""
    service.grant_credits(ACME, 3, source="pool")
    service.grant_credits(ACME, 10, source="video", only_for=["VideoAgent"])
    hold = service.reserve_credits(organization_id=ACME, amount=1, **VOICE)
    settled = service.commit_reservation(hold.id, 5, organization_id=ACME, overage="cap")
    assert (settled.charged, settled.uncollected) == (3, 2)
    row = consume(service, 12, overage="cap", **VIDEO)
    assert (row.charged, row.uncollected, taken(service, row)) == (10, 2, {"video": 10})


def test_a_refund_goes_back_to_where_it_came_from(service: SyncCreditService) -> None:
    """Restricted credits come back restricted."""
    service.grant_credits(ACME, 10, only_for=["VideoAgent"])
    charge = consume(service, 4, **VIDEO)
    service.refund_credits(charge.id, organization_id=ACME)
    balance = service.get_balance(ACME)
    assert (balance.available, balance.restricted) == (10, 10)


def test_an_adjustment_takes_back_restricted_credits_too(service: SyncCreditService) -> None:
    """It is no use of credits, so no restriction stands in its way: burn-down order over all of them."""
    service.grant_credits(ACME, 3, source="pool")
    service.grant_credits(ACME, 10, source="video", only_for=["VideoAgent"])
    assert taken(service, service.adjust_credits(ACME, -12)) == {"video": 10, "pool": 2}


@pytest.mark.parametrize(
    "only_for",
    [
        [],
        "VideoAgent",
        [""],
        ["*"],
        ["*.*"],
        [".generate_video"],
        ["VideoAgent."],
        ["Video*"],
        ["VideoAgent.generate_*"],
        ["*.a.*"],
        [5],
        5,
        ["a\x00"],
        ["x" * 512],
        [f"Agent{n}" for n in range(51)],
    ],
    ids=repr,
)
def test_a_restriction_that_cannot_be_is_refused(service: SyncCreditService, only_for: Any) -> None:
    """A clear error, and no account."""
    with pytest.raises(InvalidInputError):
        service.grant_credits(ACME, 1, only_for=only_for)
    with pytest.raises(CreditsError, match="no credit account"):
        service.get_balance(ACME)


def test_names_are_kept_in_one_form(service: SyncCreditService) -> None:
    """Sorted, once each; the same set under the same key is the same grant, another one is a mismatch."""
    made = service.grant_credits(ACME, 1, only_for=["VoiceAgent", "VideoAgent.*", "VideoAgent"], idempotency_key="k")
    assert made.only_for == ("VideoAgent.*", "VoiceAgent.*")
    assert service.grant_credits(ACME, 1, only_for=["VideoAgent", "VoiceAgent"], idempotency_key="k").replayed
    for other in (None, ["VideoAgent"]):
        with pytest.raises(IdempotencyMismatchError):
            service.grant_credits(ACME, 1, only_for=other, idempotency_key="k")


# -- what it cost --------------------------------------------------------------------------------------------------


def test_charges_tell_what_their_credits_cost(service: SyncCreditService) -> None:
    """By category and currency, exactly; the answer, its replay and the history say the same; credits without a cost
    basis are left out.
    """
    service.grant_credits(ACME, 4, category="promotional", unit_cost=0, currency="USD")
    service.grant_credits(ACME, 10, unit_cost="0.012345", currency="USD")
    service.grant_credits(ACME, 10, priority=60, unit_cost="0.5", currency="EUR")
    service.grant_credits(ACME, 10, priority=70)
    charge = consume(service, "26.5", idempotency_key="k")
    expected = {"USD": Decimal("0.123450"), "EUR": Decimal(5)}
    replay = consume(service, "26.5", idempotency_key="k")
    listed = service.list_transactions(ACME, type="debit").items[0]
    for row in (charge, replay, listed):
        assert row.cost_basis == expected
        assert row.amount_by_category == {GrantCategory.PROMOTIONAL: 4, GrantCategory.PAID: Decimal("22.5")}
        assert [(part.category, part.unit_cost, part.currency) for part in row.allocations] == [
            (GrantCategory.PROMOTIONAL, Decimal(0), "USD"),
            (GrantCategory.PAID, Decimal("0.012345"), "USD"),
            (GrantCategory.PAID, Decimal("0.5"), "EUR"),
            (GrantCategory.PAID, None, None),
        ]
    refund = service.refund_credits(charge.id, 6, organization_id=ACME)
    assert refund.cost_basis == {"EUR": Decimal("1.75")}


def test_the_settlement_of_a_hold_tells_it_too(service: SyncCreditService) -> None:
    """Though the hold remembers only grants and amounts."""
    service.grant_credits(ACME, 10, category="plan", unit_cost="0.1", currency="USD")
    hold = service.reserve_credits(organization_id=ACME, amount=5)
    hold.commit(3)
    row = service.list_transactions(ACME, type="debit").items[0]
    assert (row.cost_basis, row.amount_by_category) == ({"USD": Decimal("0.3")}, {GrantCategory.PLAN: 3})


def test_usage_tells_paid_from_promotional(service: SyncCreditService) -> None:
    """Net of refunds, for every group and bucket; the parts add up to the net."""
    service.grant_credits(ACME, 4, category="promotional")
    service.grant_credits(ACME, 4, category="plan")
    service.grant_credits(ACME, 10)
    consume(service, 6, **VIDEO)
    last = consume(service, 7, **VIDEO)
    consume(service, 1, **VOICE)
    service.refund_credits(last.id, 6, organization_id=ACME)
    report = service.get_usage(ACME, group_by=["agent_type"], bucket="day")
    found = {line.group["agent_type"]: line for line in report}
    names = ("charged", "refunded", "net", "paid", "promotional", "plan", "adjustment")
    assert [found["VideoAgent"][name] for name in names] == [13, 6, 7, 0, 4, 3, 0]
    assert [found["VoiceAgent"][name] for name in names] == [1, 0, 1, 1, 0, 0, 0]
    assert [report.total[name] for name in names] == [14, 6, 8, 1, 4, 3, 0]


def test_a_day_may_have_given_more_back_than_it_took(service: SyncCreditService, clock: FakeClock) -> None:
    """A refund counts on its own day: that day's net is negative, and so is its part of each category."""
    service.grant_credits(ACME, 10)
    charge = consume(service, 6)
    clock.advance(DAY)
    service.refund_credits(charge.id, 5, organization_id=ACME)
    consume(service, 1)
    assert [(line.net, line.paid) for line in service.get_usage(ACME, bucket="day")] == [(6, 6), (-4, -4)]


def test_verify_recomputes_usage_by_category(database_url: str, clock: FakeClock) -> None:
    """A total that its rows do not bear out is named."""
    with SyncCreditService(database_url, clock=clock) as service:
        service.grant_credits(ACME, 10)
        consume(service, 6)
        assert service.verify().ok
        engine = create_engine(database_url)
        with engine.begin() as connection:
            connection.execute(text("UPDATE usage_rollups SET paid_micros = 5000000, plan_micros = 1000000"))
        engine.dispose()
        assert [problem.check for problem in service.verify().problems] == ["usage"]


@pytest.mark.parametrize(
    ("unit_cost", "currency", "error"),
    [
        (1, None, InvalidInputError),
        (None, "USD", InvalidInputError),
        (-1, "USD", InvalidAmountError),
        ("0.0000001", "USD", InvalidAmountError),
        (float("nan"), "USD", InvalidAmountError),
        (True, "USD", InvalidAmountError),
        (1, "usd", InvalidInputError),
        (1, "DOLLAR", InvalidInputError),
        (1, 5, InvalidInputError),
    ],
)
def test_a_cost_that_cannot_be_is_refused(
    service: SyncCreditService, unit_cost: Any, currency: Any, error: type[CreditsError]
) -> None:
    """A clear error, and no account."""
    with pytest.raises(error):
        service.grant_credits(ACME, 1, unit_cost=unit_cost, currency=currency)
    with pytest.raises(CreditsError, match="no credit account"):
        service.get_balance(ACME)


# -- taking back ---------------------------------------------------------------------------------------------------


def test_void_unreserved_takes_what_is_not_held_and_the_rest_comes_back(service: SyncCreditService) -> None:
    """The grant lives on: what its hold gives back, and a refund, can be spent."""
    grant = service.grant_credits(ACME, 10)
    charge = consume(service, 2)
    hold = service.reserve_credits(organization_id=ACME, amount=5)
    taken_back = service.void_grant(grant, mode="unreserved", reason="unpaid")
    assert (taken_back.status, taken_back.voided, taken_back.remaining, taken_back.held) == (
        GrantStatus.ACTIVE,
        3,
        0,
        5,
    )
    assert service.void_grant(grant, mode="unreserved").replayed
    hold.commit(1)
    service.refund_credits(charge.id, organization_id=ACME)
    assert terms(service.get_balance(ACME)) == {"granted": 10, "spent": 1, "voided": 3, "available": 6}
    assert history(service) == [
        ("purchase", 10, 10),
        ("debit", -2, 8),
        ("adjust", -3, 5),
        ("debit", -1, 4),
        ("refund", 2, 6),
    ]
    consume(service, 6)


def test_void_remaining_lets_nothing_come_back(service: SyncCreditService) -> None:
    """What the hold gives back is breakage, in a row of its own."""
    grant = service.grant_credits(ACME, 10)
    hold = service.reserve_credits(organization_id=ACME, amount=5)
    assert service.void_grant(grant).status is GrantStatus.VOIDED
    hold.commit(1)
    assert terms(service.get_balance(ACME)) == {"granted": 10, "spent": 1, "expired": 4, "voided": 5}
    assert history(service) == [("purchase", 10, 10), ("adjust", -5, 5), ("debit", -1, 4), ("expire", -4, 0)]


def test_a_grant_that_lives_on_still_ends(service: SyncCreditService, clock: FakeClock) -> None:
    """What comes back before its end is breakage at its end; what comes back later at once."""
    grant = service.grant_credits(ACME, 10, expires_at=clock.now() + DAY)
    first, second = (service.reserve_credits(organization_id=ACME, amount=3, ttl=3 * DAY) for _ in range(2))
    service.void_grant(grant, mode="unreserved")
    first.release()
    clock.advance(DAY)
    assert terms(service.get_balance(ACME)) == {"granted": 10, "voided": 4, "expired": 3, "reserved": 3}
    second.release()
    assert terms(service.get_balance(ACME)) == {"granted": 10, "voided": 4, "expired": 6}


def test_of_a_scheduled_grant_nothing_is_kept(service: SyncCreditService, clock: FakeClock) -> None:
    """Nothing can be held of it: both modes end it."""
    grant = service.grant_credits(ACME, 10, effective_at=clock.now() + DAY)
    assert service.void_grant(grant, mode="unreserved").status is GrantStatus.VOIDED
    clock.advance(DAY)
    assert terms(service.get_balance(ACME)) == {"granted": 10, "voided": 10}


def test_another_mode_is_refused(service: SyncCreditService) -> None:
    """A clear error; the grant is untouched."""
    grant = service.grant_credits(ACME, 10)
    with pytest.raises(InvalidInputError, match="remaining or unreserved"):
        service.void_grant(grant, mode="all")  # type: ignore[arg-type]  # wrong on purpose
    assert terms(service.get_balance(ACME)) == {"granted": 10, "available": 10}
