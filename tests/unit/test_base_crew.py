"""BaseCrew: credits for an agent class, and whose they are."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import inspect
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from agentcredits import (
    BaseCrew,
    CreditService,
    IdempotencyMismatchError,
    InsufficientCreditsError,
    InvalidInputError,
    MissingContextError,
    RequestContext,
    ReservationState,
    SyncCreditService,
    UnpricedActionError,
    configure,
    current_context,
    use_context,
)
from agentcredits.base_crew import _identities

ACME = RequestContext("acme", "project-1", user_id="user-1", run_id="run-1", metadata={"channel": "web"})
OTHER = RequestContext("other")


class Agent(BaseCrew):
    agent_type = "Agent"


@pytest.fixture(autouse=True)
def _own_context() -> Iterator[None]:
    """set_context lasts in its thread or task: no test sees another one's bindings."""
    from agentcredits.context import _bindings

    token = _bindings.set({})
    yield
    _bindings.reset(token)


@pytest.fixture
def agent(service: SyncCreditService) -> Agent:
    """An agent on a fresh database of either kind, with credits and a price."""
    service.grant_credits("acme", 100)
    service.set_cost("Agent", "work", 2)
    made = Agent()
    made.credit_service = service
    return made


def payer(agent: BaseCrew) -> str | None:
    context = agent.get_context()
    return None if context is None else context.organization_id


def in_new_thread(function: Any, *args: Any) -> Any:
    """Run where nothing was ever bound."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result()


# -- credits ---------------------------------------------------------------------------------------------------------


async def test_consume_charges_the_agents_own_action(agent: Agent, service: SyncCreditService) -> None:
    """Price by the agent's type, row with the context's ids, metadata of both, the charge's own on top."""
    agent.set_context(ACME)
    transaction = await agent.consume_credits_for_action("work", {"topic": "tea", "channel": "api"}, 3)
    assert bool(transaction) is True
    assert (transaction.charged, transaction.agent_type, transaction.action) == (6, "Agent", "work")
    assert (transaction.project_id, transaction.user_id, transaction.run_id) == ("project-1", "user-1", "run-1")
    assert transaction.request_id == ACME.request_id
    assert dict(service.list_transactions("acme").items[0].metadata) == {"topic": "tea", "channel": "api"}
    assert service.get_balance("acme").available == 94


async def test_check_answers_without_charging(agent: Agent, service: SyncCreditService) -> None:
    """Truthy when the action could be paid now."""
    agent.set_context(ACME)
    assert await agent.check_credits_available("work")
    denied = await agent.check_credits_available("work", 51)
    assert not denied
    assert (denied.required, denied.available, denied.shortfall) == (102, 100, 2)
    assert not agent.check_credits_available_sync("work", amount=101)
    assert service.get_balance("acme").available == 100


async def test_a_reservation_block_commits_or_gives_back(agent: Agent, service: SyncCreditService) -> None:
    """As a block or awaited; part of the hold can be committed; an exception gives back."""
    agent.set_context(ACME)
    async with agent.reserve_credits_for_action("work", {"k": 1}, ttl=timedelta(minutes=1)) as hold:
        assert hold.amount == 2
        assert service.get_balance("acme").reserved == 2
    with pytest.raises(KeyError):
        async with agent.reserve_credits_for_action("work"):
            raise KeyError
    hold = await agent.reserve_credits_for_action("work", quantity=5)
    assert (await hold.commit(3)).charged == 3
    assert service.get_balance("acme").spent == 5
    assert service.get_balance("acme").reserved == 0


def test_the_blocking_forms_do_the_same(agent: Agent, service: SyncCreditService) -> None:
    """…_sync for crews that are not async."""
    agent.set_context(ACME)
    assert agent.check_credits_available_sync("work")
    assert agent.consume_credits_for_action_sync("work", quantity="1.5").charged == 3
    with agent.reserve_credits_for_action_sync("work") as hold:
        assert hold.state is ReservationState.ACTIVE
    assert service.get_balance("acme").spent == 5
    assert service.verify()


def test_both_forms_take_the_same_arguments() -> None:
    """A parity test: nothing is only possible in one colour."""
    for name in ("check_credits_available", "consume_credits_for_action", "reserve_credits_for_action"):
        first, second = (inspect.signature(getattr(BaseCrew, each)) for each in (name, f"{name}_sync"))
        assert first.parameters == second.parameters


async def test_refusals_change_nothing(agent: Agent, service: SyncCreditService) -> None:
    """Too few credits, no price, no context, bad metadata: typed errors and an untouched account."""
    with pytest.raises(MissingContextError, match="set_context"):
        await agent.consume_credits_for_action("work")
    with pytest.raises(MissingContextError):
        agent.reserve_credits_for_action("work")
    agent.set_context(ACME)
    with pytest.raises(InsufficientCreditsError):
        await agent.consume_credits_for_action("work", quantity=51)
    with pytest.raises(UnpricedActionError):
        agent.check_credits_available_sync("unpriced")
    with pytest.raises(InvalidInputError, match="metadata"):
        await agent.consume_credits_for_action("work", metadata="tea")  # type: ignore[arg-type]  # the point of the test
    assert service.get_balance("acme").available == 100
    assert service.list_reservations("acme") == ()


async def test_a_key_charges_once(agent: Agent, service: SyncCreditService) -> None:
    """idempotency_key reaches the ledger."""
    agent.set_context(ACME)
    first = await agent.consume_credits_for_action("work", idempotency_key="k")
    again = agent.consume_credits_for_action_sync("work", idempotency_key="k")
    assert (again.id, again.replayed) == (first.id, True)
    with pytest.raises(IdempotencyMismatchError):
        agent.consume_credits_for_action_sync("work", idempotency_key="k", quantity=2)
    assert service.get_balance("acme").spent == 2


def test_a_dry_run_writes_nothing(agent: Agent, service: SyncCreditService) -> None:
    """Service calls of a dry context return what would be, also when the context is the agent's own."""
    agent.set_context(RequestContext("acme", dry_run=True))
    transaction = agent.consume_credits_for_action_sync("work", amount=3)
    assert (transaction.dry_run, transaction.seq, transaction.charged) == (True, 0, 3)
    with agent.reserve_credits_for_action_sync("work"):
        assert service.get_balance("acme").reserved == 0
    assert current_context() is None
    assert service.get_balance("acme").available == 100


def test_the_agent_type_is_declared_or_the_class_name(service: SyncCreditService) -> None:
    """A class attribute, an instance attribute, else the class's own name."""
    service.grant_credits("acme", 100)
    for name in ("Writer", "Declared", "Assigned"):
        service.set_cost(name, "work", 1)

    class Writer(BaseCrew):
        credit_service = service

    class Painter(Writer):
        agent_type = "Declared"

    assigned = Painter()
    assigned.agent_type = "Assigned"
    with use_context(ACME):
        types = [made.consume_credits_for_action_sync("work").agent_type for made in (Writer(), Painter(), assigned)]
    assert types == ["Writer", "Declared", "Assigned"]


def test_without_a_service_of_its_own_the_default_pays(service: SyncCreditService, database_url: str) -> None:
    """configure() is enough."""
    service.grant_credits("acme", 100)
    service.set_cost("Agent", "work", 2)
    made = configure(database_url)
    try:
        assert isinstance(made, CreditService)
        with use_context(ACME):
            assert Agent().consume_credits_for_action_sync("work").charged == 2
    finally:
        configure()


# -- whose credits ---------------------------------------------------------------------------------------------------


def test_the_active_context_wins() -> None:
    """set_context is what is left when no use_context is active."""
    agent = Agent()
    assert agent.get_context() is None
    assert agent.set_context(ACME) is agent
    assert agent.get_context() is ACME
    active = RequestContext("acme", user_id="somebody else")
    with use_context(active):
        assert agent.get_context() is active
    assert agent.get_context() is ACME


def test_two_organizations_in_one_context_are_an_error(agent: Agent, service: SyncCreditService) -> None:
    """use_context says one, set_context another: nobody guesses, nothing is charged."""
    agent.set_context(OTHER)
    with use_context(ACME), pytest.raises(MissingContextError, match=r"acme.*other") as raised:
        agent.consume_credits_for_action_sync("work")
    assert raised.value.reason == "conflicting_contexts"
    assert raised.value.context == {"active": "acme", "bound": "other"}
    assert payer(agent) == "other"
    assert service.get_balance("acme").available == 100


def test_another_thread_falls_back_to_the_latest_context() -> None:
    """One organization: the agent's own context reaches threads that know nothing."""
    agent = Agent().set_context(ACME)
    assert in_new_thread(payer, agent) == "acme"
    later = RequestContext("acme", user_id="user-2")
    agent.set_context(later)
    assert in_new_thread(agent.get_context) is later


def test_after_a_second_organization_the_fallback_is_an_error() -> None:
    """A thread would have to guess: it is told what to do instead; where set_context was called it still works."""
    agent = Agent()
    contextvars.copy_context().run(agent.set_context, ACME)
    contextvars.copy_context().run(agent.set_context, OTHER)
    with pytest.raises(MissingContextError, match="several organizations: use use_context"):
        in_new_thread(payer, agent)

    def with_active() -> str | None:
        with use_context(ACME):
            return payer(agent)

    assert in_new_thread(with_active) == "acme"
    agent.set_context(OTHER)
    assert payer(agent) == "other"
    assert asyncio.run(_payer(agent)) == "other"


async def _payer(agent: BaseCrew) -> str | None:
    return payer(agent)


def test_a_context_can_be_forgotten() -> None:
    """set_context(None): nobody pays here any more, and nobody in threads; two organizations stay two."""
    agent = Agent().set_context(ACME)
    agent.set_context(None)
    assert payer(agent) is None
    assert in_new_thread(payer, agent) is None
    agent.set_context(OTHER)
    with pytest.raises(MissingContextError, match="several"):
        in_new_thread(payer, agent)
    with use_context(ACME):
        agent.set_context(None)
        assert payer(agent) == "acme"


def test_only_contexts_are_taken() -> None:
    """An id is no context."""
    with pytest.raises(InvalidInputError, match="RequestContext"):
        Agent().set_context("acme")  # type: ignore[arg-type]  # the point of the test


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda agent: pickle.loads(pickle.dumps(agent))])
def test_a_copy_starts_without_a_context(copied: Any) -> None:
    """A copied template must not share its tenant with the original, in either direction."""
    template = Agent().set_context(ACME)
    made = copied(template)
    assert payer(made) is None
    assert in_new_thread(payer, made) is None
    made.set_context(OTHER)
    assert (payer(template), payer(made)) == ("acme", "other")
    assert in_new_thread(payer, template) == "acme"


def test_instances_are_told_apart_whatever_they_say() -> None:
    """Equal, unhashable and empty-looking agents each have their own context."""

    class Odd(BaseCrew):
        __hash__ = None  # type: ignore[assignment]  # unhashable on purpose

        def __eq__(self, other: object) -> bool:
            return True

        def __bool__(self) -> bool:
            return False

        def __len__(self) -> int:
            return 0

    first, second = Odd().set_context(ACME), Odd()
    assert (payer(first), payer(second)) == ("acme", None)
    second.set_context(OTHER)
    assert (payer(first), payer(second)) == ("acme", "other")


def test_a_new_agent_never_inherits_from_a_dead_one() -> None:
    """Python gives a dead object's address to the next one: its tenant does not come with it."""
    seen: set[int] = set()
    reused = 0
    for number in range(200):
        agent = Agent()
        reused += id(agent) in seen
        seen.add(id(agent))
        assert agent.get_context() is None
        agent.set_context(RequestContext(f"tenant-{number}"))
        del agent
    gc.collect()
    assert reused, "the test saw no address twice"


def test_bindings_of_dead_agents_do_not_pile_up() -> None:
    """A worker that makes an agent for each job stays as small as it was."""
    from agentcredits.context import _bindings

    before = len(_identities)
    for _ in range(500):
        Agent().set_context(ACME)
    gc.collect()
    assert len(_identities) <= before + 1
    assert len(_bindings.get()) <= 2


def test_no_init_is_needed() -> None:
    """Subclasses with their own __init__, __slots__ users and diamonds need not call super().__init__()."""

    class First(BaseCrew):
        def __init__(self, name: str) -> None:
            self.name = name

    class Diamond(First, BaseCrew):
        pass

    assert type(BaseCrew) is type
    assert payer(First("x").set_context(ACME)) == payer(Diamond("y").set_context(ACME)) == "acme"


def test_pydantic_models_get_no_fields_from_the_mixin() -> None:
    """CrewAI's Crew, Agent and Flow are pydantic models: the mixin leaves their schema and dumps alone."""

    class Model(BaseCrew, BaseModel):
        topic: str

    model = Model(topic="tea").set_context(ACME)
    assert set(Model.model_fields) == {"topic"}
    assert model.model_dump() == {"topic": "tea"}
    assert payer(model) == "acme"
    assert payer(model.model_copy()) is None
    assert (model.agent_type, model.credit_service) == (None, None)


def test_amounts_may_be_anything_exact(agent: Agent) -> None:
    """amount= is credits instead of the price, floats by their shortest text."""
    agent.set_context(ACME)
    assert agent.consume_credits_for_action_sync("work", amount=0.1).charged == Decimal("0.1")
