"""Tries of one transaction."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.exc import IntegrityError

from agentcredits.rules.operations import Expire, Operation
from agentcredits.rules.posting import Outcome
from agentcredits.runner.attempts import Attempts, post_batch


def test_operations_posted_apart_know_what_was_tried_before() -> None:
    """A batch whose COMMIT may have arrived, and whose next try fails for one operation's fault: keys are looked up."""
    seen: list[tuple[int, bool, bool]] = []

    def transact(operations: Sequence[Operation], attempts: Attempts) -> list[Outcome]:
        seen.append((len(operations), attempts.fresh, attempts.ambiguous))
        if len(operations) > 1:
            attempts.fresh, attempts.ambiguous = False, True
            raise IntegrityError("INSERT", None, Exception("one of them is wrong"))
        return [Outcome()]

    assert len(post_batch(transact, [Expire(organization_id="acme")] * 2, retry_seconds=1.0)) == 2
    assert seen == [(2, True, False), (1, False, True), (1, False, True)]
