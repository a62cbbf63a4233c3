"""The quick start of README.md, word for word. Run it twice: the second time both videos are refused."""

from agentcredits import (
    InsufficientCreditsError,
    RequestContext,
    SyncCreditService,
    configure,
    consume_credits,
    use_context,
)

DATABASE = "sqlite:///credits.db"  # or postgresql://user@host/name
configure(DATABASE)  # what decorators use

service = SyncCreditService(DATABASE)
service.grant_credits("acme", 12, category="promotional", idempotency_key="welcome")


class VideoAgent:
    @consume_credits("VideoAgent", "generate_video")  # 10 credits, says the table agent_action_costs
    def generate_video(self, prompt: str) -> str:
        return f"a video of {prompt}"  # run your crew here


agent = VideoAgent()
with use_context(RequestContext(organization_id="acme", user_id="ada")):
    for prompt in ("the sea", "the moon"):
        try:
            print(agent.generate_video(prompt))
        except InsufficientCreditsError as error:
            print("refused:", error)

balance = service.get_balance("acme")
print("left:", balance.available, "of", balance.granted)
for row in service.list_transactions("acme"):
    print(row.seq, row.type.value, row.action, row.amount, row.balance_after)
