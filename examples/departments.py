"""Departments with monthly limits: each may spend 100 credits a month, one may spend more, one person less.

python examples/departments.py [DATABASE_URL]

A limit is checked together with the balance, before the work; the error says which limit, what is left and when it
rolls. Going through a threshold is told once a month to a hook. Without an argument it is AGENTCREDITS_DATABASE_URL,
else a SQLite file in a temporary folder.
"""

from __future__ import annotations

import logging
import os
import sys
from tempfile import TemporaryDirectory

from agentcredits import (
    CreditEvent,
    CreditLimitExceededError,
    RequestContext,
    SyncCreditService,
    add_hook,
    configure,
    consume_credits,
    remove_hook,
    use_context,
)

MONTH = "month Europe/Berlin"


@consume_credits("VideoAgent", "generate_video")  # 10 credits
def make_video(title: str) -> str:
    return f"{title}.mp4"


def warn(event: CreditEvent) -> None:
    """Tell somebody; here it is printed."""
    crossing = event.crossing
    if crossing is not None:
        reached = f"{crossing.threshold:.0%} of its {crossing.limit_amount} credits"
        print(f"{crossing.scope} {crossing.scope_id} reached {reached}")


def make_videos(context: RequestContext, count: int) -> int:
    """As many as the limits allow."""
    made = 0
    with use_context(context):
        for number in range(count):
            try:
                make_video(f"film {number}")
            except CreditLimitExceededError as error:
                left = error.context["left"]
                print(f"refused by the {error.limit_source} limit of {error.context['scope_id']}: {left} credits left")
                break
            made += 1
    return made


def main(url: str) -> None:
    configure(url)
    add_hook(warn)
    # The hook prints what the log would warn of.
    logging.getLogger("agentcredits").setLevel(logging.ERROR)
    with SyncCreditService(url) as service:
        service.grant_credits("acme", 1_000)
        service.set_limit("acme", amount=500, window=MONTH)  # the organization
        service.set_limit("acme", scope="department", amount=100, window=MONTH, warn_at=(0.8,))  # each department
        service.set_limit("acme", scope="department", scope_id="film", amount=300, window=MONTH)  # but film
        service.set_limit("acme", scope="user", scope_id="intern", amount=20, window=MONTH)

        print("sales made", make_videos(RequestContext("acme", department_id="sales"), 12))
        print("film made", make_videos(RequestContext("acme", department_id="film"), 12))
        print("the intern made", make_videos(RequestContext("acme", department_id="film", user_id="intern"), 12))
        # A cap for one run, whoever does it.
        print(
            "the run made",
            make_videos(RequestContext("acme", department_id="film", run_id="trailer", max_credits=50), 12),
        )

        for line in service.get_usage("acme", group_by="department", bucket="month"):
            print(f"{line.group['department']}: {line.charges} charges, {line.net} credits")
    remove_hook(warn)


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("AGENTCREDITS_DATABASE_URL")
        main(given or f"sqlite:///{folder}/credits.db")
