"""use_run: a block's own pool inside the one around; RunPool, for adapters; the children of a summary."""

from __future__ import annotations

import pytest

from agentcredits import (
    CreditLimitExceededError,
    CreditService,
    InvalidInputError,
    MissingContextError,
    RequestContext,
    RunLog,
    RunNotFoundError,
    RunPool,
    SyncCreditService,
    configure,
    current_context,
    use_context,
    use_run,
)

ACME = RequestContext("acme", user_id="ann", max_credits=10)


@pytest.fixture(autouse=True)
def _acme(service: SyncCreditService) -> None:
    service.grant_credits("acme", 100)


def spend(service: SyncCreditService, amount: int) -> int:
    return int(service.consume_credits(organization_id="acme", amount=amount).charged)


def spend_and_fail(service: SyncCreditService, around: str) -> None:
    """2 of a block's 4, and an error."""
    with use_run(max_credits=4, service=service):
        spend(service, 2)
        with pytest.raises(CreditLimitExceededError):
            spend(service, 3)
        assert service.get_run(around).remaining == 1
        raise ZeroDivisionError


def test_blocks_inside_each_other_are_carved_out_of_one_pool(service: SyncCreditService) -> None:
    """Who pays stays, the run is new; what a block did not use is there again after it, also when it failed."""
    with use_context(ACME) as around:
        with use_run(max_credits=6, service=service) as outer:
            assert (outer.user_id, outer.max_credits) == ("ann", None)
            assert outer.run_id != around.run_id
            spend(service, 1)
            with pytest.raises(ZeroDivisionError):
                spend_and_fail(service, str(outer.run_id))
            assert current_context() == outer
            assert service.get_run(str(outer.run_id)).remaining == 3
        assert current_context() == around
        run = service.get_run(str(around.run_id))
        assert (run.cap, run.spent, run.inner_spent, run.remaining) == (10, 0, 3, 7)
    assert [one.status for one in service.list_runs("acme")] == ["ended", "ended", "open"]
    assert service.verify().ok


def test_a_block_without_a_run_around_it_is_a_pool_of_its_own(service: SyncCreditService) -> None:
    """An id may be given; the block is refused where the pool around has less, unless it may be partial."""
    context = RequestContext("acme")
    with use_run(max_credits=3, run_id="mine", context=context, service=service) as inside:
        assert inside.run_id == "mine"
        refused = use_run(max_credits=4, service=service)
        with pytest.raises(CreditLimitExceededError), refused:
            pytest.fail("the block ran")
        assert current_context() == inside
        with use_run(max_credits=4, partial=True, service=service) as partial:
            assert service.get_run(str(partial.run_id)).cap == 3
        with use_run(max_credits=1, borrow=True, service=service):
            spend(service, 3)
    assert service.get_run("mine", organization_id="acme").status == "ended"


async def test_blocks_of_coroutines(service: SyncCreditService) -> None:
    """The same with the coroutine face."""
    async with CreditService(service._core._database) as own:
        with use_context(ACME):
            async with use_run(max_credits=2, service=own) as inside:
                await own.consume_credits(organization_id="acme", amount=2)
            assert (await own.get_run(str(inside.run_id), organization_id="acme")).spent == 2


def test_what_opens_nothing(service: SyncCreditService) -> None:
    """No context; a dry run; mode "off"; a block in use."""
    with pytest.raises(MissingContextError), use_run(max_credits=1, service=service):
        pytest.fail("the block ran")
    dry = RequestContext("acme", dry_run=True)
    with use_run(max_credits=1, context=dry, service=service):
        assert service.list_runs("acme") == ()
    block = use_run(max_credits=1, context=ACME, service=service)
    with block, pytest.raises(InvalidInputError), block:
        pytest.fail("the block ran twice")
    with pytest.warns(UserWarning, match="switched off"):
        off = configure(service._core._database, mode="off")
    with use_run(max_credits=1, context=RequestContext("globex"), service=off) as context:
        assert context.run_id is not None
    off.close()


def test_a_pool_of_an_adapter_ends_with_its_run(service: SyncCreditService) -> None:
    """One of its own; one inside it; one that shares; one whose id the caller gave."""
    outer = RunPool(service, RequestContext("acme"), None, None)
    inner = RunPool(service, outer.context, 4, outer)
    shared = RunPool(service, inner.context, None, inner)
    assert (outer.context.max_credits, inner.context.max_credits) == (None, None)
    assert shared.context == inner.context
    with use_context(inner.context):
        spend(service, 3)
    for pool in (shared, inner, outer):
        assert not pool.is_over
        pool.end()
        assert pool.is_over
    runs = {one.run_id: one for one in service.list_runs("acme")}
    assert runs[str(inner.context.run_id)].parent_run_id == outer.context.run_id
    assert {one.status for one in runs.values()} == {"ended"}
    late = RunPool(service, inner.context, 2, inner)
    assert late.context.run_id == inner.context.run_id
    named = RunPool(service, RequestContext("acme", run_id="mine"), 2, None)
    with use_context(named.context):
        spend(service, 1)
    named.end()
    assert service.get_run("mine", organization_id="acme").status == "open"
    RunPool(service, RequestContext("acme"), 2, None).end()
    with pytest.raises(RunNotFoundError):
        service.get_run("nothing", organization_id="acme")


def test_a_summary_shows_the_runs_inside(service: SyncCreditService) -> None:
    """Their lines are those of the run around too; a table names them."""
    outer, inner = RunLog("acme", "outer"), RunLog("acme", "inner")
    with outer.listening(), use_context(RequestContext("acme")):
        spend(service, 1)
        with inner.listening(), RunLog("acme", "innermost").listening():
            spend(service, 2)
    summary = outer.summary()
    (child,) = summary.children
    assert (summary.charged, child.run_id, child.charged, child.children[0].run_id) == (3, "inner", 2, "innermost")
    assert summary.as_dict()["children"][0]["charged"] == "2"
    cells = [str(cell) for column in summary.__rich__().columns for cell in column._cells]
    assert "run inner" in cells
    assert "  run innermost" in cells
