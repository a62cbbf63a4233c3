"""The manifest of one batch in the database: reading it, having it alone, changing it though the store blinks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from agentcredits.errors import CreditsError, StoreUnavailableError
from agentcredits.model.media_batches import JobState, MediaBatchRecord, MediaJobRecord
from agentcredits.runner import presence
from agentcredits.runner.steps import Effect, Read, Write
from agentcredits.store import media_batches as store

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from agentcredits.service.core import ServiceCore

T = TypeVar("T")

#: How long a process has a batch without renewing: a dead one on another machine is waited for that long.
LEASE: Final = timedelta(seconds=30)

#: How long a change that must not be lost (the provider has answered) is tried again while the store is away.
PATIENCE_SECONDS: Final = 30


class MediaBatchNotFoundError(CreditsError):
    """The organization has no such batch (another organization's answers the same)."""

    code = "media_batch_not_found"
    http_status = 404
    default_message = "There is no such media batch."


class MediaBatchInUseError(CreditsError):
    """Another process works on the batch; ``context`` says which, and until when it has it."""

    code = "media_batch_in_use"
    http_status = 409
    default_message = "Another process works on this media batch."
    default_retryable = True


def _read(function: Callable[[Connection], T], organization_id: str) -> Generator[Effect, Any, T]:
    found: T = yield Read(function, organization_id)
    return found


def _write(function: Callable[[Connection], T], organization_id: str) -> Generator[Effect, Any, T]:
    found: T = yield Write(function, organization_id)
    return found


class Manifest:
    """One batch as the database has it.

    Args:
        core: The service's core.
        organization_id: Whose.
        batch_id: Which.
    """

    def __init__(self, core: ServiceCore, organization_id: str, batch_id: str) -> None:
        self.core = core
        self.organization_id = organization_id
        self.batch_id = batch_id
        self.owner = presence.own_name()

    # -- reading ---------------------------------------------------------------------------------------------

    def batch(self) -> MediaBatchRecord:
        """The batch now.

        Raises:
            MediaBatchNotFoundError: there is none.
        """
        found = self._run_read(lambda connection: store.get_batch(connection, self.organization_id, self.batch_id))
        if found is None:
            raise self._not_found()
        return found

    def jobs(self, *states: JobState) -> tuple[MediaJobRecord, ...]:
        """Its jobs, in the order of the manifest; ``states`` narrows."""
        return self._run_read(
            lambda connection: store.list_jobs(connection, self.organization_id, self.batch_id, states)
        )

    # -- having it alone -------------------------------------------------------------------------------------

    @contextmanager
    def leased(self) -> Iterator[MediaBatchRecord]:
        """Have the batch alone for the length of the block; ``renew`` keeps it.

        Raises:
            MediaBatchInUseError: a living process has it.
            MediaBatchNotFoundError: there is none.
        """
        record = self._take(None)
        if record.leased_by != self.owner and presence.is_dead(str(record.leased_by)):
            record = self._take(record.leased_by)
        if record.leased_by != self.owner:
            raise self._in_use(record)
        try:
            yield record
        finally:
            # while the store is away the lease ends by itself, and must not hide why the block ended
            with suppress(StoreUnavailableError):
                self._run_write(
                    lambda connection: store.give_lease_back(
                        connection, self.organization_id, self.batch_id, self.owner, self.core.clock
                    )
                )

    def renew(self) -> None:
        """Keep the batch.

        Raises:
            MediaBatchInUseError: this process was away for so long that another one has it.
        """
        try:
            kept = self._run_write(
                lambda connection: store.renew_lease(
                    connection, self.organization_id, self.batch_id, self.owner, LEASE, self.core.clock
                )
            )
        except StoreUnavailableError:
            return  # it is tried again at the next beat, and the note before each call looks at the lease anyway
        if not kept:
            raise self._in_use(self.batch())

    def _take(self, dead: str | None) -> MediaBatchRecord:
        found = self._run_write(
            lambda connection: store.take_lease(
                connection, self.organization_id, self.batch_id, self.owner, LEASE, self.core.clock, dead=dead
            )
        )
        if found is None:
            raise self._not_found()
        return found

    # -- changing --------------------------------------------------------------------------------------------

    def create(self, batch: MediaBatchRecord, jobs: Sequence[MediaJobRecord]) -> None:
        """Write the batch with its jobs, all or nothing."""
        self._run_write(lambda connection: store.create(connection, batch, jobs, self.core.clock))

    def plan_again(self) -> None:
        """Plan again what was not made and can be."""
        self._run_write(
            lambda connection: store.plan_again(connection, self.organization_id, self.batch_id, self.core.clock)
        )

    def intend(
        self, job: MediaJobRecord, reservation_id: str, held_micros: int
    ) -> tuple[Literal["intended", "over_budget"], MediaJobRecord]:
        """Commit the note that the provider is about to be called.

        Raises:
            MediaBatchInUseError: another process has the batch, or has done this job.
        """
        answer = self._run_write(
            lambda connection: store.intend(connection, job, self.owner, reservation_id, held_micros, self.core.clock)
        )
        if answer == "lease_lost":
            raise self._in_use(self.batch())
        if answer == "over_budget":
            return answer, job
        return answer, replace(
            job,
            state=JobState.INTENT,
            attempt=job.attempt + 1,
            reservation_id=reservation_id,
            estimate_micros=held_micros,
        )

    def change(self, job: MediaJobRecord, *before: JobState, **values: Any) -> MediaJobRecord:
        """Change a job that is in one of the states ``before``; tried for a while when the store is away.

        Raises:
            MediaBatchInUseError: it is in another state by now.
            StoreUnavailableError: the store stayed away.
        """
        changed = False
        for attempt in Retrying(
            retry=retry_if_exception_type(StoreUnavailableError),
            stop=stop_after_delay(PATIENCE_SECONDS),
            wait=wait_random_exponential(multiplier=0.05, max=2),
            reraise=True,
        ):
            with attempt:
                changed = self._run_write(
                    lambda connection: store.change_job(connection, job, self.core.clock, before=before, values=values)
                )
        if not changed:
            raise self._in_use(self.batch())
        return replace(job, **values)

    # -- helpers ---------------------------------------------------------------------------------------------

    def _run_read(self, function: Callable[[Connection], T]) -> T:
        return self.core.run(_read(function, self.organization_id))

    def _run_write(self, function: Callable[[Connection], T]) -> T:
        return self.core.run(_write(function, self.organization_id))

    def _not_found(self) -> MediaBatchNotFoundError:
        return MediaBatchNotFoundError(
            f"organization {self.organization_id} has no media batch {self.batch_id}.",
            context={"organization_id": self.organization_id, "batch_id": self.batch_id},
        )

    def _in_use(self, batch: MediaBatchRecord) -> MediaBatchInUseError:
        who, until = presence.shown(batch.leased_by or "?"), batch.leased_until
        when = "" if until is None else f" until {until:%Y-%m-%d %H:%M:%S} UTC, or longer while it lives"
        return MediaBatchInUseError(
            f"media batch {self.batch_id} is worked on by {who}{when}.",
            context={"batch_id": self.batch_id, "leased_by": batch.leased_by, "leased_until": until},
            suggestions=("Wait until it ends; when it died, try again after that time.",),
        )


def list_batches(core: ServiceCore, organization_id: str, limit: int) -> tuple[MediaBatchRecord, ...]:
    """An organization's batches, newest first."""
    return core.run(_read(lambda connection: store.list_batches(connection, organization_id, limit), organization_id))


def charged_in_all(core: ServiceCore, organization_id: str) -> int:
    """Micro-credits that all batches of an organization were charged together."""
    return core.run(_read(lambda connection: store.charged_in_all(connection, organization_id), organization_id))
