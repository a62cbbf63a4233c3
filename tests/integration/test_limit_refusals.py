"""What a refusal by limits says, what it leaves untouched, and the caps of runs."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial

import pytest

from agentcredits import (
    CreditLimitExceededError,
    InsufficientCreditsError,
    RequestContext,
    SyncCreditService,
    bind,
    consume_credits,
    use_context,
)
from tests.integration.limit_book import (
    ACME,
    DAY,
    HOUR,
    MICRO,
    MIDNIGHT,
    Book,
    refused,
)


def test_of_several_limits_the_one_that_rolls_last_is_named(book: Book) -> None:
    """All are tested at once; the others that refuse are listed, those that would allow it are not."""
    day = book.limit(5)
    month = book.limit(8, "month", scope="department", scope_id="video")
    hour = book.limit(3, "hour", scope="user")
    wide = book.limit(500, "lifetime")
    error = refused(lambda: book.spend(20, department_id="video", user_id="ann"))
    assert (error.limit_source, error.context["limit_id"], error.context["scope_id"]) == (
        "department",
        month.id,
        "video",
    )
    assert set(error.context["also_refused_by"]) == {day.id, hour.id}
    assert (error.context["window"], error.context["resets_at"]) == ("month UTC", datetime(2026, 2, 1, tzinfo=UTC))
    assert refused(lambda: book.spend(6, department_id="video", user_id="ann")).limit_source == "organization"
    assert refused(lambda: book.spend(4, department_id="video", user_id="ann")).limit_source == "user"
    book.limit(19, "lifetime")
    assert refused(lambda: book.spend(20, department_id="video")).context["limit_id"] == wide.id
    assert all(book.counter(limit, "ann" if limit is hour else None) == (0, 0) for limit in (day, month, hour, wide))


def test_a_refusal_carries_its_numbers_and_pickles(book: Book) -> None:
    """402, which limit, what is left, when it rolls, what to do; the same after pickling."""
    limit = book.limit(10, scope="department", scope_id="video")
    book.spend(6, department_id="video")
    book.hold(1, department_id="video")
    error = refused(lambda: book.spend(5, department_id="video", agent_type="Cutter", action="cut"))
    assert (error.code, error.http_status, error.reason) == ("credit_limit_exceeded", 402, "limit_reached")
    assert (error.limit_source, error.retryable) == ("department", True)
    assert error.context == {
        "organization_id": ACME,
        "agent_type": "Cutter",
        "action": "cut",
        "limit_id": limit.id,
        "scope": "department",
        "scope_id": "video",
        "unit": "credits",
        "window": "day UTC",
        "window_start": MIDNIGHT - DAY,
        "resets_at": MIDNIGHT,
        "limit": 10,
        "spent": 6,
        "held": 1,
        "left": 3,
        "required": 5,
        "also_refused_by": [],
    }
    assert error.fixes == (
        {"action": "wait", "until": MIDNIGHT},
        {"action": "raise_limit", "limit_id": limit.id, "amount": 12},
    )
    assert str(error) == (
        "department video of organization acme may use 10 credits (day UTC): 6 credits are used, 1 credit held,"
        " 3 credits left; cut needs 5 credits. It resets at 2026-01-16T00:00:00+00:00."
    )
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.as_dict(), str(again)) == (CreditLimitExceededError, error.as_dict(), str(error))
    decision = book.check(5, department_id="video")
    assert (decision.allowed, decision.reason, decision.limit_source) == (False, "limit_reached", "department")
    assert book.limit(error.fixes[1]["amount"], scope="department", scope_id="video").id == limit.id
    book.spend(5, department_id="video")


def test_limits_come_before_the_balance(book: Book) -> None:
    """Too much for both: the limit speaks; enough room in the limit: the balance does."""
    book.spend(995)
    book.limit(10)
    assert refused(lambda: book.spend(11)).limit_source == "organization"
    assert refused(lambda: book.hold(11)).limit_source == "organization"
    for call in (partial(book.spend, 10), partial(book.hold, 10)):
        with pytest.raises(InsufficientCreditsError):
            call()
    decisions = [book.check(amount) for amount in (11, 10, 5)]
    assert [(one.allowed, one.limit_source) for one in decisions] == [
        (False, "organization"),
        (False, "balance"),
        (True, None),
    ]


def test_a_refused_charge_changes_nothing(book: Book) -> None:
    """Not one row of any table: also not the counter of a new day, of a new user, or the limit of a new run."""
    book.limit(10, warn_at=(0.5,))
    book.limit(5, scope="user")
    book.limit(3, "hour", unit="count")
    book.spend(4, user_id="ann")
    book.hold(5)
    book.clock.set(MIDNIGHT + HOUR)
    before = book.tables()
    run = RequestContext(ACME, max_credits=2)
    for call in (
        partial(book.spend, 6),
        partial(book.hold, 6, user_id="new"),
        partial(book.spend, 6, overage=None, idempotency_key="k"),
    ):
        refused(call)
    with use_context(run):
        assert refused(partial(book.hold, 3)).limit_source == "run"
        assert not book.check(3)
        assert book.check(2)
    assert book.tables() == before
    book.spend(5, idempotency_key="k")


def test_a_plan_is_checked_as_a_whole(book: Book) -> None:
    """quote: each action fits alone, together they go beyond the limit; and counts add up."""
    from agentcredits import PlannedAction

    book.limit(10, unit="count")
    book.limit(19)
    two = [PlannedAction("VideoAgent", "generate_video"), PlannedAction("VideoAgent", "generate_video")]
    assert book.service.quote(ACME, two[:1]).decision.allowed
    assert book.service.quote(ACME, two).decision.limit_source == "organization"
    book.limit(20)
    assert book.service.quote(ACME, two).decision.allowed
    book.limit(1, unit="count")
    assert not book.service.quote(ACME, two).decision.allowed
    book.limit(10, unit="count")
    with use_context(RequestContext(ACME, max_credits=19)):
        assert book.service.quote(ACME, two[:1]).decision.allowed
        assert book.service.quote(ACME, two).decision.limit_source == "run"


# -- the cap of a run -----------------------------------------------------------------------------------------------


def test_a_context_with_a_cap_makes_its_run(book: Book) -> None:
    """An id of its own, a limit of that run, and another run of the same organization is not touched."""
    context, other = (RequestContext(ACME, max_credits=25) for _ in range(2))
    assert None not in (context.run_id, other.run_id)
    assert context.run_id != other.run_id
    assert pickle.loads(pickle.dumps(context)) == context
    with use_context(context):
        row = book.spend(20)
        error = refused(lambda: book.spend(6))
        with use_context(RequestContext(ACME, user_id="ann")):
            book.spend(50)
        hold = book.hold(5)
        refused(lambda: book.hold(MICRO))
    assert row.run_id == context.run_id
    assert (error.limit_source, error.context["scope_id"]) == ("run", context.run_id)
    assert [error.context[name] for name in ("limit", "left", "window")] == [25, 5, "lifetime"]
    with use_context(other):
        book.spend(25)
    record = hold.commit(9)
    assert (record.charged, record.uncollected) == (5, 4)
    assert book.service.list_limits(ACME) == ()
    assert book.service.list_limits(ACME, scope="run") == ()
    assert {one.run_id: one.spent for one in book.service.list_runs(ACME)} == {context.run_id: 25, other.run_id: 25}


def test_a_cap_can_be_changed_by_the_next_context_of_the_run(book: Book) -> None:
    """Same run_id, another max_credits: the present one holds; without one, what was set last; 0 allows nothing."""
    with use_context(RequestContext(ACME, run_id="r1", max_credits=10)):
        book.spend(10)
        refused(lambda: book.spend(1))
    with use_context(RequestContext(ACME, run_id="r1", max_credits=12)):
        book.spend(1)
    with use_context(RequestContext(ACME, run_id="r1")):
        book.spend(1)
        refused(lambda: book.spend(1))
    with use_context(RequestContext(ACME, max_credits=0)):
        refused(lambda: book.spend(MICRO))
    with use_context(RequestContext("other", run_id="r1", max_credits=0)):
        book.spend(1)
    run = book.service.get_run("r1", organization_id=ACME)
    assert (run.cap, run.spent, run.held) == (12, 12, 0)


def test_nested_calls_share_the_cap_of_their_run(book: Book) -> None:
    """A decorated method that calls others, and the block around them, stop together at the run's cap."""

    @consume_credits("VideoAgent", "generate_video", service=book.service)
    def video() -> str:
        return "frames"

    @consume_credits("WorkflowAgent", "execute_workflow", service=book.service)
    def workflow(videos: int) -> list[str]:
        return [video() for _ in range(videos)]

    with use_context(RequestContext(ACME, max_credits=35)) as context:
        assert len(workflow(2)) == 2
        with pytest.raises(CreditLimitExceededError):
            workflow(1)
        book.spend(12)
        run = book.service.get_run(str(context.run_id))
    assert (run.spent, run.held, run.remaining) == (35, 0, 0)


def test_bound_threads_share_the_cap_of_their_run(book: Book) -> None:
    """Eight threads try 40 charges of 3 under a cap of 50: exactly 16 go through."""
    with use_context(RequestContext(ACME, max_credits=50)) as context, ThreadPoolExecutor(8) as pool:

        def charge(_: int) -> bool:
            try:
                book.spend(3)
            except CreditLimitExceededError:
                return False
            return True

        assert sum(pool.map(bind(charge), range(40))) == 16
        run = book.service.get_run(str(context.run_id))
    assert (run.spent, run.held) == (48, 0)


SHARER = """
import json, sys
from agentcredits import CreditLimitExceededError, RequestContext, SyncCreditService, use_context
url, run_id = sys.argv[1:]
charged = 0
with SyncCreditService(url) as service, use_context(RequestContext("acme", run_id=run_id, max_credits=41)):
    try:
        for number in range(30):
            if number % 2:
                with service.reserve_credits(organization_id="acme", amount=2):
                    pass
            else:
                service.consume_credits(organization_id="acme", amount=2)
            charged += 2
    except CreditLimitExceededError:
        pass
print(json.dumps(charged))
"""


def test_two_processes_share_the_cap_of_their_run(database_url: str) -> None:
    """Both under one run_id and a cap of 41, by charges and holds of 2: 40 in all."""
    with SyncCreditService(database_url) as service:
        service.grant_credits(ACME, 1_000)
        processes = [
            subprocess.Popen([sys.executable, "-c", SHARER, database_url, "shared"], stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        charged = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
        (run,) = service.list_runs(ACME)
        assert (sum(charged), run.spent, run.held) == (40, 40, 0)
        assert service.verify().ok
