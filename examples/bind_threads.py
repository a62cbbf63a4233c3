"""Who pays in threads and callbacks of your own: bind() carries the context there, and without it nothing runs.

python examples/bind_threads.py [DATABASE_URL]

A new thread, a pool's worker or a library's callback starts with no context (asyncio tasks and asyncio.to_thread
have their creator's). A metered call there is refused before its body runs: free work and another tenant's bill
would both be worse. Without an argument it is AGENTCREDITS_DATABASE_URL, else a SQLite file in a temporary folder.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from tempfile import TemporaryDirectory
from threading import Thread

from agentcredits import (
    MissingContextError,
    RequestContext,
    SyncCreditService,
    bind,
    configure,
    consume_credits,
    require_context,
    use_context,
)

ADA = RequestContext("acme", department_id="studio", user_id="ada")
BO = RequestContext("beta", user_id="bo")
TOPICS = ["tides", "harbours", "storms"]


@consume_credits("ResearchAgent", "research_topic")  # 1 credit
def research(topic: str) -> str:
    return f"{topic} for {require_context().user_id}"


@consume_credits("VoiceAgent", "generate_voice")  # 2 credits
def read_aloud(text: str) -> None:
    """What a callback does with a result."""


def speak(done: Future[str]) -> None:
    read_aloud(done.result())


def refused_without_bind(pool: ThreadPoolExecutor) -> None:
    with use_context(ADA):
        error = pool.submit(research, "tides").exception()
    assert isinstance(error, MissingContextError)
    print("without bind:", error)


def in_a_thread() -> None:
    with use_context(ADA):
        thread = Thread(target=bind(research), args=("tides",))
    thread.start()  # bind() took the context that was active where it was called, not where the thread starts
    thread.join()


def in_a_pool(pool: ThreadPoolExecutor) -> None:
    """The same workers serve two organizations in turn; each call is paid by the one that it was bound for."""
    with use_context(ADA):
        for_ada = pool.map(bind(research), TOPICS)
    with use_context(BO):
        for_bo = pool.map(bind(research), TOPICS[:2])
    print("with bind:", *for_ada, *for_bo, sep="\n  ")


def in_a_callback(pool: ThreadPoolExecutor) -> None:
    """A callback runs in whatever thread finishes the future: bind the callback as well as the work."""
    with use_context(BO):
        future = pool.submit(bind(research), "storms")
        future.add_done_callback(bind(speak))


def main(database: str) -> None:
    configure(database)  # what decorators use
    with SyncCreditService(database) as service:
        for organization_id in ("acme", "beta"):
            service.grant_credits(organization_id, 10)

        with ThreadPoolExecutor(max_workers=2) as pool:
            refused_without_bind(pool)
            in_a_pool(pool)
            in_a_callback(pool)
        in_a_thread()

        for organization_id in ("acme", "beta"):
            paid: Counter[tuple[str | None, str | None]] = Counter()
            for charge in service.list_transactions(organization_id, type="debit"):
                paid[charge.user_id, charge.action] += 1
            for (user_id, action), calls in sorted(paid.items(), key=str):
                print(f"{organization_id}: {calls} × {action} by {user_id}")
            print(f"{organization_id}: {service.get_balance(organization_id).available} of 10 credits left")


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("AGENTCREDITS_DATABASE_URL")
        main(given or f"sqlite:///{folder}/credits.db")
