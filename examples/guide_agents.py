"""The integration guide's agents: the mixin, the decorator, a whole class, manual consumption, and errors.

Two lines of set-up (the database and a grant; the prices come with the database), then the guide as written.
"""

from __future__ import annotations

import asyncio
import os

from agentcredits import (
    BaseCrew,
    CreditLimitExceededError,
    CreditService,
    InsufficientCreditsError,
    RequestContext,
    consume_credits,
    track_agent_usage,
    use_context,
)


# 1. Agents that extend BaseCrew
class YourAgent(BaseCrew):
    agent_type = "ContentAgent"

    async def generate_content(self, topic: str) -> str:
        # Check if credits are available (optional)
        if not await self.check_credits_available("generate_content"):
            raise InsufficientCreditsError("Not enough credits")

        # Consume credits before performing the action
        await self.consume_credits_for_action(action="generate_content", metadata={"topic": topic})

        # Perform the actual work
        return await self._do_generation(topic)

    async def _do_generation(self, topic: str) -> str:
        return f"content about {topic}"


# 2. The decorator: a failure gives the credits back by itself
class ContentAgent(BaseCrew):
    @consume_credits(agent_type="ContentAgent", action="generate_content")
    async def generate_content(self, topic: str, context: dict[str, str] | None = None) -> str:
        if topic == "":
            raise ValueError("no topic")
        return f"content about {topic}, {len(context or {})} hints"


# 3. Every public method of a class
@track_agent_usage("VisualPostAgent", unpriced="deny")
class VisualPostAgent(BaseCrew):
    async def create_visual_post(self, prompt: str) -> dict[str, str]:
        return {"image": f"{prompt}.png"}


# 4. Manual consumption
async def process_request(organization_id: str, project_id: str) -> str:
    credit_service = CreditService()
    balance = await credit_service.get_balance(organization_id)
    if balance["available"] < 5.0:
        raise InsufficientCreditsError("Insufficient credits")
    success = await credit_service.consume_credits(
        organization_id=organization_id,
        amount=5.0,
        project_id=project_id,
        agent_type="VideoAgent",
        action="generate_video",
        metadata={"duration": 30},
    )
    if not success:
        raise InsufficientCreditsError("Failed to consume credits")
    return "a video"


async def handle(agent: YourAgent, topic: str) -> dict[str, str]:
    try:
        return {"content": await agent.generate_content(topic)}
    except InsufficientCreditsError:
        return {"error": "Not enough credits. Please purchase more."}
    except CreditLimitExceededError as error:
        return {"error": str(error)}


async def main() -> None:
    os.environ.setdefault("AGENTCREDITS_DATABASE_URL", "sqlite:///credits.db")
    await CreditService().grant_credits("acme", 9)
    context = RequestContext(organization_id="acme", project_id="spring", user_id="ada")

    agent = YourAgent()
    agent.set_context(context)
    print(await handle(agent, "tides"))

    async with use_context(context):
        print(await ContentAgent().generate_content("harbours"))
        try:
            await ContentAgent().generate_content("")
        except ValueError as error:
            print("failed and given back:", error)
        print(await VisualPostAgent().create_visual_post("a wave"))

    print(await process_request("acme", "spring"))
    print(await handle(agent, "one too many"))

    balance = await CreditService().get_balance("acme")
    print(f"granted {balance.granted}, spent {balance.spent}, left {balance.available}")


if __name__ == "__main__":
    asyncio.run(main())
