"""The Python snippets of the integration guide that this project grew from run as they are written there.

Apart from them are only: the imports (the guide's ``app.…`` modules are agentcredits here), two lines of set-up (a
grant, the price rows of actions that the guide itself does not price), and the work that the guide leaves to the
reader (``_do_generation`` and the like).
"""

from __future__ import annotations

import asyncio
import textwrap
import warnings
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

import agentcredits
from agentcredits import (
    AgentCreditsWarning,
    CreditLimitExceededError,
    CreditService,
    InsufficientCreditsError,
    MissingContextError,
    RequestContext,
    SyncCreditService,
    configure,
    use_context,
)

ORGANIZATION = UUID("0b3f1c1e-6a0f-4c57-9d3e-1f2a3b4c5d6e")
CONTEXT = RequestContext(ORGANIZATION)

EXTENDING_BASE_CREW = """
class YourAgent(BaseCrew):
    async def generate_content(self, topic: str) -> str:
        # Check if credits are available (optional)
        if not await self.check_credits_available('generate_content'):
            raise InsufficientCreditsError("Not enough credits")

        # Consume credits before performing the action
        await self.consume_credits_for_action(
            action='generate_content',
            metadata={'topic': topic}
        )

        # Perform the actual work
        result = await self._do_generation(topic)

        return result
"""

DECORATOR = """
from app.core.decorators import consume_credits

class ContentAgent(BaseCrew):
    @consume_credits(agent_type='ContentAgent', action='generate_content')
    async def generate_content(self, topic: str, context: dict = None) -> str:
        # The decorator automatically handles credit consumption
        # Just implement your logic
        return await self._do_generation(topic)
"""

CLASS_LEVEL = """
from app.core.decorators import track_agent_usage

@track_agent_usage('ContentAgent')
class ContentAgent(BaseCrew):
    async def generate_content(self, topic: str) -> str:
        # Automatically tracked
        return await self._do_generation(topic)

    async def create_visual_post(self, prompt: str) -> dict:
        # Also automatically tracked
        return await self._create_visual(prompt)
"""

MANUAL = """
from app.services.credit_service import CreditService

async def process_request(organization_id: str, project_id: str):
    credit_service = CreditService()

    # Check balance
    balance = await credit_service.get_balance(organization_id)
    if balance['available'] < 5.0:
        raise InsufficientCreditsError("Insufficient credits")

    # Consume credits
    success = await credit_service.consume_credits(
        organization_id=organization_id,
        amount=5.0,
        project_id=project_id,
        agent_type='VideoAgent',
        action='generate_video',
        metadata={'duration': 30}
    )

    if not success:
        raise InsufficientCreditsError("Failed to consume credits")

    # Perform the work
    result = await generate_video()
    return result
"""

#: Stands inside a function in the guide's reader's code: it returns and awaits.
ERROR_HANDLING = """
from app.core.exceptions import InsufficientCreditsError, CreditLimitExceededError

try:
    await agent.consume_credits_for_action('generate_content')
    result = await agent.generate_content()
except InsufficientCreditsError:
    # Handle insufficient credits
    return {"error": "Not enough credits. Please purchase more."}
except CreditLimitExceededError as e:
    # Handle limit exceeded (department limits)
    return {"error": str(e)}
"""

TESTING = """
# In your tests
async def test_credit_consumption():
    # Set up context
    context = RequestContext(
        organization_id=UUID("..."),
        project_id=UUID("..."),
        user_id=UUID("...")
    )

    agent = YourAgent()
    agent.set_context(context)

    # Test consumption
    await agent.consume_credits_for_action('test_action')
"""

DEFAULT_COSTS = {
    ("ContentAgent", "generate_content"): "1.0",
    ("ContentAgent", "generate_instagram_reel"): "5.0",
    ("VisualPostAgent", "create_visual_post"): "2.0",
    ("VoiceAgent", "generate_voice"): "2.0",
    ("VideoAgent", "generate_video"): "10.0",
    ("ResearchAgent", "research_topic"): "1.0",
    ("QAAgent", "answer_question"): "0.5",
    ("WorkflowAgent", "execute_workflow"): "3.0",
}


def run(snippet: str, **names: Any) -> dict[str, Any]:
    """Execute a snippet with agentcredits' public names in place of its imports."""
    lines = [line for line in snippet.splitlines() if not line.startswith("from app.")]
    namespace = {**{name: getattr(agentcredits, name) for name in agentcredits.__all__}, "UUID": UUID, **names}
    exec(compile("\n".join(lines), "<guide>", "exec"), namespace)
    return namespace


def in_function(snippet: str, *arguments: str) -> Callable[..., Any]:
    """A snippet of statements as the body of an async function."""
    body = "\n".join(line for line in snippet.splitlines() if not line.startswith("from app."))
    namespace = run(f"async def body({', '.join(arguments)}):\n{textwrap.indent(body, '    ')}\n    return result")
    function: Callable[..., Any] = namespace["body"]
    return function


@pytest.fixture(autouse=True)
def _set_up(service: SyncCreditService, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the guide takes for granted: a configured database, and an organization with credits."""
    monkeypatch.setenv("AGENTCREDITS_DATABASE_URL", database_url)
    configure()
    service.grant_credits(ORGANIZATION, 20)
    yield
    monkeypatch.delenv("AGENTCREDITS_DATABASE_URL")
    configure()


def spent(service: SyncCreditService) -> Decimal:
    return service.get_balance(ORGANIZATION).spent


async def test_extending_base_crew(service: SyncCreditService) -> None:
    """Snippet 1: check, consume, work; without credits its own bare InsufficientCreditsError."""
    service.set_cost("YourAgent", "generate_content", 12)
    cls = run(EXTENDING_BASE_CREW)["YourAgent"]

    async def work(self: Any, topic: str) -> str:
        return f"about {topic}"

    cls._do_generation = work
    agent = cls()
    with pytest.raises(MissingContextError):
        await agent.generate_content("tea")
    agent.set_context(CONTEXT)
    assert await agent.generate_content("tea") == "about tea"
    assert spent(service) == 12
    assert dict(service.list_transactions(ORGANIZATION).items[0].metadata) == {"topic": "tea"}
    with pytest.raises(InsufficientCreditsError, match=r"^Not enough credits$"):
        await agent.generate_content("tea")
    assert spent(service) == 12


async def test_using_the_decorator(service: SyncCreditService) -> None:
    """Snippet 2: the decorator charges the migration's price of 1.0; a failed generation gives it back."""
    cls = run(DECORATOR)["ContentAgent"]
    failures = [None, ValueError("the model is down")]

    async def work(self: Any, topic: str) -> str:
        if failure := failures.pop(0):
            raise failure
        return f"about {topic}"

    cls._do_generation = work
    agent = cls()
    async with use_context(CONTEXT):
        assert await agent.generate_content("tea", context={"tone": "dry"}) == "about tea"
        with pytest.raises(ValueError, match="down"):
            await agent.generate_content("tea")
    assert spent(service) == 1


async def test_decorating_the_class(service: SyncCreditService) -> None:
    """Snippet 3: both public methods are tracked; the one that the guide prices elsewhere is recorded for 0."""
    cls = run(CLASS_LEVEL)["ContentAgent"]

    async def work(self: Any, text: str) -> Any:
        return {"text": text}

    cls._do_generation = cls._create_visual = work
    agent = cls().set_context(CONTEXT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AgentCreditsWarning)  # asserted in the decorators' own tests
        assert await agent.generate_content("tea") == {"text": "tea"}
        assert await agent.create_visual_post("a cup") == {"text": "a cup"}
    rows = list(service.list_transactions(ORGANIZATION, type="debit"))
    assert [(row.agent_type, row.action, row.charged, row.unpriced) for row in rows] == [
        ("ContentAgent", "create_visual_post", 0, True),
        ("ContentAgent", "generate_content", 1, False),
    ]


async def test_manual_consumption(service: SyncCreditService) -> None:
    """Snippet 4: a service made on the spot, mapping access to the balance, a float amount, a truthy answer."""
    made: list[CreditService] = []

    def credit_service() -> CreditService:
        made.append(CreditService())
        return made[-1]

    async def generate_video() -> str:
        return "video"

    process_request = run(MANUAL, CreditService=credit_service, generate_video=generate_video)["process_request"]
    for number in range(1, 5):
        assert await process_request(str(ORGANIZATION), "project-1") == "video"
        assert spent(service) == 5 * number
    with pytest.raises(InsufficientCreditsError, match=r"^Insufficient credits$"):
        await process_request(str(ORGANIZATION), "project-1")
    row = service.list_transactions(ORGANIZATION).items[0]
    assert (row.charged, row.agent_type, row.action, row.project_id) == (5, "VideoAgent", "generate_video", "project-1")
    assert dict(row.metadata) == {"duration": 30}
    for each in made:
        await each.aclose()


async def test_error_handling(service: SyncCreditService) -> None:
    """Snippet 5: both errors can be told apart and printed; a limit's error is no InsufficientCreditsError."""
    handle = in_function(ERROR_HANDLING, "agent")

    class Agent(agentcredits.BaseCrew):
        agent_type = "ContentAgent"
        error: Exception | None = None

        async def generate_content(self) -> str:
            if self.error:
                raise self.error
            return "content"

    agent = Agent().set_context(CONTEXT)
    assert await handle(agent) == "content"
    agent.error = CreditLimitExceededError("The department's limit of 10 credits is reached.")
    assert await handle(agent) == {"error": "The department's limit of 10 credits is reached."}
    service.consume_credits(organization_id=ORGANIZATION, amount=18)
    assert await handle(agent) == {"error": "Not enough credits. Please purchase more."}


def test_testing(service: SyncCreditService) -> None:
    """Snippet 6: a context made of UUIDs, bound with set_context."""
    service.set_cost("YourAgent", "test_action", 3)
    your_agent = run(EXTENDING_BASE_CREW)["YourAgent"]
    # The guide leaves the ids open: UUID("...").
    test = run(TESTING, YourAgent=your_agent, UUID=lambda _: ORGANIZATION)["test_credit_consumption"]
    asyncio.run(test())
    (row,) = service.list_transactions(ORGANIZATION, type="debit")
    assert (row.charged, row.agent_type, row.action) == (3, "YourAgent", "test_action")
    assert row.project_id == row.user_id == str(ORGANIZATION)


def test_the_guides_default_costs_are_in_the_table(service: SyncCreditService) -> None:
    """The eight rows of the guide come with the migration."""
    costs = {(cost.agent_type, cost.action): cost.cost for cost in service.list_costs()}
    assert costs == {place: Decimal(cost) for place, cost in DEFAULT_COSTS.items()}
