"""Tries of one transaction: what is repeated, and what became of it when its connection broke."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sqlalchemy.exc import SQLAlchemyError

from agentcredits.errors import CreditsError
from agentcredits.rules.operations import KeyedOperation, Operation
from agentcredits.rules.posting import Outcome
from agentcredits.runner.pending import Answer
from agentcredits.store.faults import Fault, classify, translate


@dataclass(slots=True)
class Attempts:
    """What is known of the tries of one transaction."""

    #: Nothing was tried yet: generated keys cannot be in the database.
    fresh: bool = True
    #: A COMMIT was on its way when its connection broke: it may have arrived.
    ambiguous: bool = False

    def note_failed_commit(self, error: BaseException) -> None:
        """Whether it arrived is known only when the database itself refused it."""
        if classify(error) in (Fault.LOST, Fault.AWAY):
            self.ambiguous = True

    def may_repeat(self, error: BaseException) -> bool:
        """Conflicts and lost connections; and a store that went away in mid-commit, to learn what became of it."""
        fault = classify(error)
        return fault in (Fault.CONFLICT, Fault.LOST) or (self.ambiguous and fault is Fault.AWAY)


Transact = Callable[[Sequence[Operation], Attempts], list[Outcome]]


def post_batch(
    transact: Transact, operations: Sequence[Operation], retry_seconds: float, earlier: Attempts | None = None
) -> list[Answer]:
    """Post operations in one transaction; when one of them is at fault, each in its own."""
    attempts = Attempts() if earlier is None else replace(earlier)
    try:
        return list(_repeated(transact, operations, retry_seconds, attempts))
    except CreditsError as error:
        return [error] * len(operations)
    except SQLAlchemyError as error:
        if classify(error) is Fault.DATA and len(operations) > 1:
            # One operation's own fault: post one at a time, so that only the culprit sees it.
            return [
                answer
                for operation in operations
                for answer in post_batch(transact, [operation], retry_seconds, attempts)
            ]
        return [
            translate(
                error,
                idempotency_key=operation.key if isinstance(operation, KeyedOperation) else None,
                ambiguous=attempts.ambiguous,
            )
            for operation in operations
        ]


def _repeated(
    transact: Transact, operations: Sequence[Operation], retry_seconds: float, attempts: Attempts
) -> list[Outcome]:
    """Again after conflicts, dead-locks and lost connections: keys make that safe."""
    try:
        return transact(operations, attempts)
    except SQLAlchemyError as error:
        if not attempts.may_repeat(error):
            raise
    # Nearly every posting ends above; the machinery of retrying is imported and set up only where it is needed.
    from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

    retrying = Retrying(
        retry=retry_if_exception(attempts.may_repeat),
        stop=stop_after_delay(retry_seconds),
        wait=wait_random_exponential(multiplier=0.01, max=0.5),
        reraise=True,
    )
    return retrying(transact, operations, attempts)
