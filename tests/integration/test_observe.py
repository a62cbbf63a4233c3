"""Mode "observe": the work runs uncharged where "enforce" would refuse it, and what would have been is recorded."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from agentcredits import (
    AccountNotFoundError,
    AgentCreditsWarning,
    BaseCrew,
    CreditEvent,
    CreditLimitExceededError,
    CreditsError,
    CreditService,
    Denial,
    DenialGroup,
    InsufficientCreditsError,
    MissingContextError,
    PlannedAction,
    Pricing,
    RefundExceedsChargeError,
    RequestContext,
    ReservationState,
    Settings,
    SyncCreditService,
    Transaction,
    UnpricedActionError,
    consume_credits,
    track_agent_usage,
    use_context,
)
from tests.integration.limit_book import ACME, DAY, HOUR, NOON, Book

VIDEO = {"agent_type": "VideoAgent", "action": "generate_video"}  # costs 10
UNPRICED = {"agent_type": "Clerk", "action": "hum"}


@dataclass
class Case:
    """Something that "enforce" refuses."""

    error: type[CreditsError]
    reason: str
    source: str | None
    prepare: Callable[[Book], object] = field(default=lambda book: None)
    action: dict[str, str] = field(default_factory=lambda: VIDEO)
    organization: str = ACME
    user: str | None = "ann"
    required: int = 10
    #: What check_credits of "enforce" says, where the charge itself says something else.
    asked: str | None = None


CASES = {
    "no credits": Case(InsufficientCreditsError, "insufficient_credits", "balance", lambda book: book.spend(995)),
    "credits held": Case(InsufficientCreditsError, "credits_held", "balance", lambda book: book.hold(995)),
    "a limit": Case(CreditLimitExceededError, "limit_reached", "department", lambda book: book.limit(9, **DEPARTMENT)),
    "a count": Case(CreditLimitExceededError, "limit_reached", "user", lambda book: book.limit(0, **COUNT)),
    "no price": Case(UnpricedActionError, "unpriced_action", "price", action=UNPRICED, required=0),
    "nobody": Case(
        InsufficientCreditsError, "insufficient_credits", "balance", organization="nobody", asked="account_not_found"
    ),
    "no user": Case(MissingContextError, "scope_required", None, user=None),
}
DEPARTMENT: dict[str, Any] = {"scope": "department", "scope_id": "film"}
COUNT: dict[str, Any] = {"scope": "user", "unit": "count"}


@pytest.fixture
def observing(open_book: Book) -> Iterator[SyncCreditService]:
    """A service in mode "observe" that asks for a user, on the book's ledger."""
    with observer(open_book) as service:
        yield service


def observer(book: Book) -> SyncCreditService:
    settings = Settings(mode="observe", require_scopes=("user",), sqlite_synchronous="NORMAL")
    return SyncCreditService(book.url, clock=book.clock, settings=settings)


def by_charge(service: SyncCreditService, case: Case) -> Pricing:
    return service.consume_credits(organization_id=case.organization, **case.action).pricing  # type: ignore[arg-type]


def by_hold(service: SyncCreditService, case: Case) -> Pricing:
    with service.reserve_credits(organization_id=case.organization, **case.action) as hold:  # type: ignore[arg-type]
        assert (hold.state, hold.amount) == (ReservationState.ACTIVE, 0)
    assert hold.state is ReservationState.COMMITTED
    return hold.pricing


def by_decorator(service: SyncCreditService, case: Case) -> None:
    ran = []

    @consume_credits(**case.action, service=service)  # type: ignore[arg-type]  # two texts
    def work() -> str:
        ran.append(1)
        return "done"

    unpriced = case.action is UNPRICED
    with pytest.warns(AgentCreditsWarning, match="no price") if unpriced else nullcontext():
        assert work() == "done"
    assert ran == [1]


class Agent(BaseCrew):
    """An agent that charges by itself."""

    def __init__(self, service: SyncCreditService, case: Case) -> None:
        self.credit_service = service
        self.agent_type = case.action["agent_type"]


def by_mixin_charge(service: SyncCreditService, case: Case) -> Pricing:
    return Agent(service, case).consume_credits_for_action_sync(case.action["action"]).pricing


def by_mixin_hold(service: SyncCreditService, case: Case) -> Pricing:
    with Agent(service, case).reserve_credits_for_action_sync(case.action["action"]) as hold:
        pass
    return hold.pricing


def assert_observed(
    book: Book, observing: SyncCreditService, told: list[CreditEvent], what: str, act: Callable[..., Any]
) -> None:
    """The work runs; one denial with its reason, one event, no credit and no counter moved; "enforce" refuses it."""
    case = CASES[what]
    case.prepare(book)
    let_it_warn_again()
    before = None if what == "nobody" else book.service.get_balance(ACME)
    counters = book.service.list_limits(ACME)
    context = RequestContext(case.organization, user_id=case.user, department_id="film", project_id="p", run_id="r")
    del told[:]
    with use_context(context):
        assert act(observing, case) in (None, Pricing.OBSERVED)
    assert before is None or book.service.get_balance(ACME) == before
    assert book.service.list_limits(ACME) == counters

    (denial,) = observing.list_denials()
    assert (denial.organization_id, denial.reason, denial.limit_source) == (case.organization, case.reason, case.source)
    assert (denial.required, denial.created_at) == (case.required, NOON)
    assert (denial.agent_type, denial.action) == (case.action["agent_type"], case.action["action"])
    assert (denial.user_id, denial.department_id, denial.project_id, denial.run_id) == (case.user, "film", "p", "r")
    assert denial.message
    assert [event.denial for event in told if event.denial is not None] == [denial]
    assert "uncollected" not in {event.name for event in told}

    (row,) = observing.list_transactions(case.organization, type="debit", limit=1, run_id="r")
    assert (row.charged, row.uncollected, row.pricing) == (0, case.required, Pricing.OBSERVED)
    with use_context(context), strict(book) as enforcing, pytest.raises(case.error):
        enforcing.consume_credits(organization_id=case.organization, **case.action)
    assert observing.list_denials() == (denial,)
    assert observing.verify().problems == ()


@pytest.mark.parametrize("act", [by_charge, by_hold])
@pytest.mark.parametrize("what", CASES)
def test_what_enforce_refuses_runs_uncharged_and_is_recorded_once(
    open_book: Book, observing: SyncCreditService, told: list[CreditEvent], what: str, act: Callable[..., Any]
) -> None:
    """Charges and holds on both databases."""
    assert_observed(open_book, observing, told, what, act)


@pytest.mark.parametrize("act", [by_decorator, by_mixin_charge, by_mixin_hold])
@pytest.mark.parametrize("what", CASES)
def test_decorated_methods_and_the_mixin_are_observed_likewise(
    sqlite_book: Book, told: list[CreditEvent], what: str, act: Callable[..., Any]
) -> None:
    """The same for each door."""
    with observer(sqlite_book) as observing:
        assert_observed(sqlite_book, observing, told, what, act)


def let_it_warn_again() -> None:
    """An action without a price warns once in a process: let it warn again."""
    from agentcredits._call import _warned_unpriced

    _warned_unpriced.discard((UNPRICED["agent_type"], UNPRICED["action"]))


def strict(book: Book) -> SyncCreditService:
    """Mode "enforce" with the same required scopes."""
    return SyncCreditService(book.url, clock=book.clock, settings=Settings(require_scopes=("user",)))


@pytest.mark.parametrize("what", CASES)
def test_check_credits_allows_it_and_says_why_enforce_would_not(
    open_book: Book, observing: SyncCreditService, what: str
) -> None:
    """allowed=True with the reason; nothing is recorded by asking; quotes say the same."""
    case = CASES[what]
    case.prepare(open_book)
    plan = [PlannedAction(**case.action)]
    with use_context(RequestContext(case.organization, user_id=case.user, department_id="film")):
        for decision in (
            observing.check_credits(case.organization, **case.action),  # type: ignore[arg-type]  # two texts
            observing.quote(case.organization, plan).decision,
            Agent(observing, case).check_credits_available_sync(case.action["action"]),
        ):
            assert (decision.allowed, decision.reason) == (True, case.asked or case.reason)
            assert decision.required == case.required
            assert decision.message
        with strict(open_book) as enforcing:
            if case.error is UnpricedActionError:
                with pytest.raises(UnpricedActionError):
                    enforcing.check_credits(case.organization, **case.action)
            else:
                refusal = enforcing.check_credits(case.organization, **case.action)
                assert (refusal.allowed, refusal.reason) == (False, case.asked or case.reason)
    assert observing.list_denials() == ()


def test_what_enforce_allows_is_charged_as_ever(open_book: Book, observing: SyncCreditService) -> None:
    """Charges, holds, over-runs, refunds; counters move and no denial is written."""
    book = open_book
    limit = book.limit(50, scope="user")
    with use_context(organization_id=ACME, user_id="ann"):
        charge = observing.consume_credits(organization_id=ACME, **VIDEO)
        with observing.reserve_credits(organization_id=ACME, amount=5) as hold:
            assert book.counter(limit, "ann") == (10, 5)
            hold.commit(8)
        observing.refund_credits(charge, 3)
        over_run = observing.reserve_credits(organization_id=ACME, amount=5).commit(100)
        assert observing.check_credits(ACME, amount=0.5).reason is not None
    assert (charge.pricing, charge.charged, hold.record.charged) == (Pricing.PRICED, 10, 8)
    assert (over_run.charged, over_run.uncollected) == (35, 65)
    assert book.counter(limit, "ann") == (50, 0)
    assert observing.get_balance(ACME).spent == 50
    assert observing.list_denials() == ()
    assert observing.verify().ok


def test_unpriced_work_of_tracked_agents_is_recorded_as_ever(open_book: Book, observing: SyncCreditService) -> None:
    """unpriced="record" is no refusal: no denial, and a count limit counts it."""
    limit = open_book.limit(5, scope="user", unit="count")

    @track_agent_usage("Clerk", service=observing)
    class Clerk:
        def hum(self) -> str:
            return "hm"

    with use_context(organization_id=ACME, user_id="ann"), warnings.catch_warnings():
        warnings.simplefilter("ignore", AgentCreditsWarning)
        assert Clerk().hum() == "hm"
    assert observing.list_denials() == ()
    assert open_book.counter(limit, "ann") == (1, 0)
    assert observing.list_transactions(ACME, limit=1).items[0].pricing is Pricing.UNPRICED


def test_a_limit_that_would_refuse_goes_on_counting_what_it_allows(
    open_book: Book, observing: SyncCreditService
) -> None:
    """10 a day in charges of 4: two are charged, the third is not, a smaller one is; tomorrow all are again."""
    limit, count = open_book.limit(10), open_book.limit(4, unit="count")

    def charge(amount: int) -> Decimal:
        return observing.consume_credits(organization_id=ACME, amount=amount, user_id="ann").charged

    assert [charge(amount) for amount in (4, 4, 4, 2, 1)] == [4, 4, 0, 2, 0]
    assert (open_book.counter(limit), open_book.counter(count)) == ((10, 0), (3, 0))
    open_book.clock.advance(DAY)
    assert [charge(amount) for amount in (4, 4, 2, 1)] == [4, 4, 2, 0]
    assert [denial.required for denial in observing.list_denials(ACME)] == [1, 1, 4]


def test_the_cap_of_a_run_is_observed_too(open_book: Book, observing: SyncCreditService) -> None:
    """Beyond it nothing is charged; a cap that never allowed anything leaves no limit behind."""
    with use_context(RequestContext(ACME, user_id="ann", max_credits=5)):
        assert observing.consume_credits(organization_id=ACME, amount=6).charged == 0
        assert observing.list_runs(ACME) == ()
        assert observing.consume_credits(organization_id=ACME, amount=5).charged == 5
        assert observing.consume_credits(organization_id=ACME, amount=1).charged == 0
    assert [denial.limit_source for denial in observing.list_denials()] == ["run", "run"]
    assert observing.verify().ok


def test_of_two_reasons_the_one_that_enforce_would_have_said_is_recorded(
    open_book: Book, observing: SyncCreditService
) -> None:
    """An unpriced action without the user that is asked for: its price is looked up first."""
    observing.consume_credits(organization_id=ACME, **UNPRICED)  # type: ignore[arg-type]  # two texts
    observing.consume_credits(organization_id=ACME, amount=2_000)
    assert [denial.reason for denial in observing.list_denials()] == ["scope_required", "unpriced_action"]
    for arguments, error in ((UNPRICED, UnpricedActionError), ({"amount": 2_000}, MissingContextError)):
        with strict(open_book) as enforcing, pytest.raises(error):
            enforcing.consume_credits(organization_id=ACME, **arguments)  # type: ignore[arg-type]


# -- holds that were let pass --------------------------------------------------------------------------------------


def observed_hold(service: SyncCreditService, **arguments: Any) -> Any:
    return service.reserve_credits(organization_id=ACME, amount=2_000, user_id="ann", **arguments)


def test_an_observed_hold_holds_nothing_and_settles_to_nothing(open_book: Book, observing: SyncCreditService) -> None:
    """Committed whole, in part and above, released, run out, settled late, and by a service that enforces."""
    holds = [observed_hold(observing, ttl=timedelta(days=2)) for _ in range(5)]
    assert observing.get_balance(ACME).reserved == 0
    assert holds[0].commit().uncollected == 2_000
    assert holds[1].commit(700).uncollected == 700
    assert observing.commit_reservation(holds[2], 3_000).uncollected == 3_000
    assert holds[3].release().state is ReservationState.RELEASED
    assert open_book.service.commit_reservation(holds[4]).pricing is Pricing.OBSERVED
    late = observed_hold(observing, ttl=HOUR)
    observed_hold(observing, ttl=HOUR)
    open_book.clock.advance(HOUR)
    assert observing.sweep().expired_reservations == 2
    assert (late.commit(5).late, late.record.charged, late.record.uncollected) == (True, 0, 5)
    with pytest.raises(ValueError, match="frames"), observed_hold(observing):
        raise ValueError("no frames")
    balance = observing.get_balance(ACME)
    assert (balance.spent, balance.reserved, balance.available) == (0, 0, 1_000)
    assert len(observing.list_denials(ACME)) == 8
    assert observing.verify().problems == ()


def test_an_observed_charge_gives_nothing_back(open_book: Book, observing: SyncCreditService) -> None:
    """It took nothing."""
    row = observing.consume_credits(organization_id=ACME, amount=2_000, user_id="ann")
    with pytest.raises(RefundExceedsChargeError):
        observing.refund_credits(row)


def test_a_replay_is_not_recorded_again(open_book: Book, observing: SyncCreditService, told: list[CreditEvent]) -> None:
    """The same key answers the observed row and hold; also in "enforce", for its work was let pass."""
    row = observing.consume_credits(organization_id=ACME, amount=2_000, user_id="ann", idempotency_key="k")
    hold = observed_hold(observing, idempotency_key="h")
    again = observing.consume_credits(organization_id=ACME, amount=2_000, user_id="ann", idempotency_key="k")
    assert (again.id, again.replayed, again.pricing) == (row.id, True, Pricing.OBSERVED)
    assert observed_hold(observing, idempotency_key="h").id == hold.id
    enforced = open_book.service.consume_credits(organization_id=ACME, amount=2_000, user_id="ann", idempotency_key="k")
    assert enforced.id == row.id
    assert len(observing.list_denials()) == 2
    assert [event.name for event in told].count("would_refuse") == 2


def test_enforce_works_on_a_ledger_that_was_observed(open_book: Book, observing: SyncCreditService) -> None:
    """What was let pass costs nobody anything: the organization that came into being has 0, limits are at their own."""
    book = open_book
    limit = book.limit(10)
    observing.consume_credits(organization_id=ACME, amount=11, user_id="ann")
    observing.consume_credits(organization_id="nobody", amount=3, user_id="ann")
    assert book.spend(10).charged == 10
    assert book.counter(limit) == (10, 0)
    with pytest.raises(CreditLimitExceededError):
        book.spend(1)
    assert book.service.get_balance("nobody").available == 0
    with pytest.raises(InsufficientCreditsError):
        book.service.consume_credits(organization_id="nobody", amount=3)
    book.service.grant_credits("nobody", 5)
    assert book.service.consume_credits(organization_id="nobody", amount=3).charged == 3
    with pytest.raises(AccountNotFoundError):
        book.service.consume_credits(organization_id="still nobody", amount=3)
    assert book.service.verify().ok


# -- reports -------------------------------------------------------------------------------------------------------


def test_the_report_counts_what_would_have_been_refused(open_book: Book, observing: SyncCreditService) -> None:
    """By organization, reason, source and action; the most frequent first; of a time; of one organization or all."""
    book = open_book
    book.limit(9)

    def video(organization: str = ACME) -> Transaction:
        return observing.consume_credits(organization_id=organization, user_id="ann", **VIDEO)

    for _ in range(3):
        video()
        book.clock.advance(HOUR)
    observing.consume_credits(organization_id=ACME, amount=2_000, user_id="ann")
    video("other")
    video("other")

    def group(organization: str, reason: str, source: str, action: bool, count: int, *hours: int) -> DenialGroup:
        agent_type, name = ("VideoAgent", "generate_video") if action else (None, None)
        first, last = (NOON + HOUR * hour for hour in hours)
        required = (10 if action else 2_000) * count * 1_000_000
        return DenialGroup(organization, reason, source, agent_type, name, count, required, first, last)

    limited = group(ACME, "limit_reached", "organization", True, 3, 0, 2)
    plain = group(ACME, "limit_reached", "organization", False, 1, 3, 3)
    broke = group("other", "insufficient_credits", "balance", True, 2, 3, 3)
    assert observing.observe_report() == (limited, broke, plain)
    assert observing.observe_report(ACME) == (limited, plain)
    assert observing.observe_report("other")[0].required == 20
    assert observing.observe_report("nobody") == ()
    later = observing.observe_report(ACME, since=NOON + HOUR, until=NOON + 2 * HOUR)
    assert [(one.count, one.first_at, one.last_at) for one in later] == [(1, NOON + HOUR, NOON + HOUR)]

    newest = observing.list_denials(ACME, limit=2)
    assert [(one.required, one.created_at) for one in newest] == [(2_000, NOON + 3 * HOUR), (10, NOON + 2 * HOUR)]
    assert len(observing.list_denials()) == 6
    assert len(observing.list_denials("other", since=NOON + 3 * HOUR)) == 2
    assert observing.list_denials(until=NOON) == ()


async def test_the_coroutine_face_observes_too(open_book: Book, told: list[CreditEvent]) -> None:
    """Charges, holds and decorated coroutines; the reports are the same."""
    settings = Settings(mode="observe")
    async with CreditService(open_book.url, clock=open_book.clock, settings=settings) as service:

        @consume_credits("VideoAgent", "generate_video", service=service)
        async def work() -> str:
            return "done"

        await service.consume_credits(organization_id="nobody", amount=5)
        async with service.reserve_credits(organization_id="nobody", amount=6) as hold:
            pass
        with use_context(organization_id="nobody"):
            assert await work() == "done"
        assert hold.record.pricing is Pricing.OBSERVED
        denials = await service.list_denials()
        assert [denial.required for denial in denials] == [10, 6, 5]
        assert [event.denial for event in told if event.denial is not None] == list(reversed(denials))
        assert [one.count for one in await service.observe_report("nobody")] == [2, 1]


def test_a_denial_in_the_users_session_is_told_at_its_commit(
    open_book: Book, observing: SyncCreditService, told: list[CreditEvent], app_engine: Engine
) -> None:
    """Rolled back: neither row nor denial."""

    def denials() -> list[Denial]:
        return [event.denial for event in told if event.denial is not None]

    with Session(app_engine) as session:
        for end in (session.rollback, session.commit):
            row = observing.consume_credits(organization_id=ACME, amount=2_000, user_id="ann", session=session)
            assert row.pricing is Pricing.OBSERVED
            assert denials() == []
            end()
    assert denials() == list(observing.list_denials())
    assert len(denials()) == 1


def test_a_denial_is_told_beside_a_savepoint_that_was_rolled_back(
    open_book: Book, observing: SyncCreditService, told: list[CreditEvent], app_engine: Engine
) -> None:
    """What the savepoint took back is not told, what the session booked is."""
    with Session(app_engine) as session:
        savepoint = session.begin_nested()
        observing.consume_credits(organization_id=ACME, amount=2_000, user_id="ann", session=session)
        savepoint.rollback()
        observing.consume_credits(organization_id=ACME, amount=3_000, user_id="ann", session=session)
        session.commit()
    assert [event.denial.required for event in told if event.denial is not None] == [3_000]


def test_the_environment_can_ask_for_it(open_book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    """AGENTCREDITS_MODE=observe, without a change of code."""
    monkeypatch.setenv("AGENTCREDITS_MODE", "observe")
    with SyncCreditService(open_book.url, clock=open_book.clock) as service:
        assert service.consume_credits(organization_id=ACME, amount=2_000).pricing is Pricing.OBSERVED
