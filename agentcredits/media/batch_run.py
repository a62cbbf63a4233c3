"""The life of one job: price → hold → note of intent → call → verdict → result → charge → file.

Whatever moment the process dies at, the manifest says how far the job came:

- before the note of intent is committed the provider was not called; the job is planned, its hold is found again under
  the same key;
- with the note and without an answer nobody knows whether the provider works (and bills): the job is UNKNOWN, shown,
  its hold kept, and it is never sent again unless somebody says so;
- with an answer (CALLED) what is missing is the charge, which the ledger books once, or the file, which is written
  from the stored answer.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal

from agentcredits.errors import (
    CreditLimitExceededError,
    InsufficientCreditsError,
    ReservationAlreadySettledError,
    ReservationError,
    StoreUnavailableError,
    UnpricedActionError,
)
from agentcredits.ids import check_text
from agentcredits.media.breaker import TERMINAL, Breakers
from agentcredits.media.faults import ProviderFault
from agentcredits.media.files import Save, file_stem, save_atomically
from agentcredits.media.jobs import MAX_PROMPT_LENGTH, MediaJob
from agentcredits.media.manifest import Manifest
from agentcredits.media.redaction import redact
from agentcredits.media.rules import FaultCategory, rules_of
from agentcredits.media.verdicts import judge
from agentcredits.model import ReservationState
from agentcredits.model.media_batches import JobState, MediaJobRecord
from agentcredits.reservation import SyncReservation
from agentcredits.runner.pool import finish
from agentcredits.runner.steps import Steps

logger = logging.getLogger("agentcredits")

#: A hold outlives the process that made it by this: long enough for somebody to resume the batch.
HOLD_TTL: Final = timedelta(hours=24)

#: JSON of a provider's answer at most; a larger one is kept by its file alone.
MAX_RESULT_BYTES: Final = 1024 * 1024

MAX_MESSAGE_LENGTH: Final = 2_000

#: States from which an answer is noted: another process may have given this one up for dead meanwhile.
_ASKED: Final = (JobState.INTENT, JobState.UNKNOWN)

_note: ContextVar[Callable[[str], None] | None] = ContextVar("agentcredits_media_note", default=None)


def note_provider_reference(reference: str) -> None:
    """Store the provider's own id of the request that is being made, at once.

    Call it inside ``generate`` as soon as the provider has given an id. Should the process die after that, the id
    stands in the manifest, and ``reconcile`` can ask the provider for exactly this request. Elsewhere it does nothing.
    """
    note = _note.get()
    if note is not None:
        note(reference)


@dataclass(frozen=True, slots=True)
class Ready:
    """A job whose credits are held and whose note of intent is committed: the provider is called next."""

    job: MediaJobRecord
    hold: SyncReservation


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a job in this run; ``result`` is what ``generate`` returned, as it was."""

    job: MediaJobRecord
    result: Any = None


class JobRunner:
    """Brings jobs through their life.

    Args:
        manifest: The batch's, leased.
        generate: Calls the provider.
        save: Writes the file; None: no files.
        folder: Where files go.
        enhance: Makes a better prompt.
        breakers: What is known about provider accounts.
        account: The operator's account at the provider.
    """

    def __init__(
        self,
        manifest: Manifest,
        generate: Callable[[MediaJob], Any],
        *,
        save: Save | None,
        folder: Path | None,
        enhance: Callable[[MediaJob], str] | None,
        breakers: Breakers,
        account: str,
    ) -> None:
        self._manifest = manifest
        self._core = manifest.core
        self._generate = generate
        self._save = save
        self._folder = folder
        self._enhance = enhance
        self._breakers = breakers
        self._account = account

    def prepare(self, job: MediaJobRecord, skip: tuple[str, str] | None = None, *, probe: bool = False) -> Ready | Done:
        """Hold the credits of a planned job and note the intent, or say why it is not made.

        Called for one job after the other, in the order of their priority: what is scarce goes to the most urgent.

        Args:
            job: Which.
            skip: Reason and message; given, the job is not to be made.
            probe: Whether it may find out if an account with an open breaker is served again.
        """
        if skip is not None:
            return Done(self._not_made(job, JobState.SKIPPED, *skip))
        if job.provider is None:
            return self._held(job)
        ask = self._breakers.probe if probe else self._breakers.may_call
        broken = self._core.run(ask(job.provider, self._account))
        if broken is not None:
            return Done(self._not_made(job, JobState.DRY_RUN, broken.category, broken.message))
        found = None
        try:
            found = self._held(job)
        finally:
            if not isinstance(found, Ready):
                self._give_up_probe(job)
        return found

    def _held(self, job: MediaJobRecord) -> Ready | Done:
        try:
            hold = self._reserve(job)
        except (InsufficientCreditsError, CreditLimitExceededError) as error:
            return Done(self._not_made(job, JobState.DRY_RUN, error.code, error.message))
        except UnpricedActionError as error:
            return Done(self._not_made(job, JobState.SKIPPED, error.code, error.message))
        answer, job = self._manifest.intend(job, hold.id, hold.amount_micros)
        if answer == "over_budget":
            hold.release("over the batch's budget")
            return Done(self._not_made(job, JobState.DRY_RUN, "budget", "The budget of the batch does not suffice."))
        return Ready(job, hold)

    def __call__(self, task: Ready | Done) -> Done:
        """Call the provider for a job that is ready, and bring it as far as it goes; by several threads at once."""
        if isinstance(task, Done):
            return task
        try:
            return self._call(task.job, task.hold)
        finally:
            # nothing when the call was reported; a probe of which nobody knows how it ended is somebody else's
            self._give_up_probe(task.job)

    def _give_up_probe(self, job: MediaJobRecord) -> None:
        if job.provider is not None:
            self._tell_breaker(self._breakers.give_up(job.provider, self._account))

    def _tell_breaker(self, steps: Steps[None]) -> None:
        """A breaker that cannot be told must not cost the result."""
        try:
            self._core.run(steps)
        except StoreUnavailableError:
            logger.warning("agentcredits: the breaker of a provider was not told how a call ended", exc_info=True)

    def enhance(self, job: MediaJobRecord) -> MediaJobRecord:
        """A planned job with a better prompt in its manifest, so that no resume makes it a second time."""
        better = self.enhanced(job)
        if better is job:
            return job
        return self._manifest.change(job, JobState.PLANNED, enhanced_prompt=better.enhanced_prompt)

    def enhanced(self, job: MediaJobRecord) -> MediaJobRecord:
        """The job with a better prompt, where somebody makes one; a failure there costs nothing but the better one."""
        if self._enhance is None or job.enhanced_prompt is not None:
            return job
        try:
            better = check_text(self._enhance(public_job(job)), name="prompt", max_length=MAX_PROMPT_LENGTH)
        except Exception:  # the user's own code; the prompt that was given is good enough
            logger.warning("agentcredits: the prompt of asset %s could not be enhanced", job.asset_id, exc_info=True)
            return job
        return replace(job, enhanced_prompt=better)

    # -- calling ---------------------------------------------------------------------------------------------

    def _reserve(self, job: MediaJobRecord) -> SyncReservation:
        hold = self._core.run(
            self._core.reserve_credits(
                organization_id=job.organization_id,
                agent_type=job.agent_type,
                action=job.action,
                dimensions=public_job(job).priced_by,
                metadata={"media_batch": job.batch_id, "asset_id": job.asset_id},
                idempotency_key=attempt_key(job, job.attempt + 1),
                ttl=HOLD_TTL,
                handle=SyncReservation,
            )
        )
        if not isinstance(hold, SyncReservation):
            raise TypeError("a blocking handle was asked for")
        if hold.replayed and hold.state is ReservationState.ACTIVE:
            # Made by a process that died before it noted its intent: nobody else has this batch, so it is ours.
            return SyncReservation(self._core, replace(hold.record, replayed=False), ttl=HOLD_TTL)
        return hold

    def _call(self, job: MediaJobRecord, hold: SyncReservation) -> Done:
        references: list[str] = []

        def note(reference: str) -> None:
            references.append(check_text(reference, name="reference"))
            try:
                self._manifest.change(job, *_ASKED, provider_reference=reference)
            except StoreUnavailableError:
                # raised inside the user's generate it would pass for a failure of the provider
                logger.warning("agentcredits: request %s of asset %s is not noted", reference, job.asset_id)

        hold.begin()
        result, error = None, None
        token = _note.set(note)
        try:
            result = finish(self._generate(replace(public_job(job), prompt=job.shown_prompt, key=attempt_key(job))))
        except Exception as raised:  # noqa: BLE001  # whatever the provider's client raises is judged
            error = raised
        except BaseException:
            self._unknown(job, hold.id, references, "interrupted", "The call was interrupted.")
            raise
        finally:
            _note.reset(token)
        verdict = judge(
            result=result, error=error, provider=job.provider, rules=rules_of(self._core.settings.fault_rules)
        )
        fault = verdict.fault
        if verdict.reference:
            references.append(verdict.reference)
        unknown = verdict.settle == "unknown" or _unanswered(error, fault, references)
        if job.provider is not None and (fault is not None or not unknown):
            self._tell_breaker(self._breakers.report(job.provider, self._account, fault))
        if unknown:
            reason = "unknown" if fault is None else str(fault.category)
            return Done(self._unknown(job, hold.id, references, reason, _told(fault, error)))
        if fault is None:
            return self._answered(job, hold, result, references)
        message = _cut(_told(fault, error), MAX_MESSAGE_LENGTH)
        state = JobState.DRY_RUN if fault.category in TERMINAL else JobState.FAILED
        if verdict.settle == "charge":
            values = {"state": JobState.FAILED, "charged_micros": self._charge(job, hold)}
        else:
            values = {"state": state}
        job = self._manifest.change(job, *_ASKED, reason=str(fault.category), message=message, **values)
        self.let_go(job)
        return Done(job)

    def let_go(self, job: MediaJobRecord) -> None:
        """Give the hold of a job that failed back; after the note of it, so that no kill makes it UNKNOWN."""
        if job.reservation_id is not None and job.charged_micros is None:
            with suppress(ReservationAlreadySettledError):  # by hand, by an operator: what he did stands
                self._handle(job).release(_cut(job.message or "failed", 500))

    def _answered(self, job: MediaJobRecord, hold: SyncReservation, result: Any, references: list[str]) -> Done:
        reference = references[-1] if references else None
        stored = storable(result)
        if stored is None and result is not None:
            # What cannot be stored is written to its file first: its file is all that there is of it.
            job = self._written(job, result)
        job = self._manifest.change(
            job, *_ASKED, state=JobState.CALLED, result=stored, path=job.path, provider_reference=reference
        )
        return Done(self.complete(job, hold, result), result)

    def _unknown(
        self, job: MediaJobRecord, reservation_id: str, references: list[str], reason: str, message: str
    ) -> MediaJobRecord:
        reference = references[-1] if references else job.provider_reference
        job = self._manifest.change(
            job,
            *_ASKED,
            state=JobState.UNKNOWN,
            provider_reference=reference,
            reason=reason,
            message=_cut(message, MAX_MESSAGE_LENGTH),
        )
        self.keep_hold(job, reservation_id)
        return job

    def _not_made(self, job: MediaJobRecord, state: JobState, reason: str, message: str) -> MediaJobRecord:
        return self._manifest.change(
            job,
            JobState.PLANNED,
            state=state,
            reason=_cut(reason, 255),
            message=_cut(redact(message), MAX_MESSAGE_LENGTH),
        )

    # -- completing ------------------------------------------------------------------------------------------

    def complete(self, job: MediaJobRecord, hold: SyncReservation | None, result: Any) -> MediaJobRecord:
        """Charge an answered job, and write its file; what cannot be done now is done by the next resume."""
        charged = self._charge(job, hold or self._handle(job))
        if charged is None:
            return self._manifest.change(
                job, JobState.CALLED, reason="not_charged", message="The charge is not booked yet; it is retried."
            )
        job = replace(job, charged_micros=charged)
        if job.path is None and result is not None:
            job = self._written(job, result)
        unwritten = self._save is not None and job.path is None and job.result is not None
        return self._manifest.change(
            job,
            JobState.CALLED,
            state=JobState.CALLED if unwritten else JobState.DONE,
            charged_micros=charged,
            path=job.path,
            # until its file is there a signed address must stay whole
            result=_redacted(job.result) if job.path is not None else job.result,
            reason=job.reason if job.path is None and self._save is not None else None,
            message=job.message if job.path is None and self._save is not None else None,
        )

    def _charge(self, job: MediaJobRecord, hold: SyncReservation) -> int | None:
        """Micro-credits charged; None: the store is away, and the runner keeps the settlement."""
        if hold.dry_run:
            return 0
        try:
            record = hold.commit()
        except ReservationAlreadySettledError:
            # by hand, by an operator: what he did stands
            record = self._core.run(self._core.get_reservation(hold.id, organization_id=job.organization_id))
            return record.charged_micros
        return None if record.requested_micros is None else record.charged_micros

    def _written(self, job: MediaJobRecord, result: Any) -> MediaJobRecord:
        if self._save is None or self._folder is None:
            return job
        stem = file_stem(job.number, job.name)
        try:
            path = save_atomically(self._save, public_job(job), result, self._folder, stem, job.batch_id)
        except Exception as error:  # the user's own code, his disk, his network; the work is done
            logger.warning("agentcredits: the file of asset %s could not be written", job.asset_id, exc_info=True)
            return replace(
                job, reason="not_saved", message=_cut(redact(f"{type(error).__name__}: {error}"), MAX_MESSAGE_LENGTH)
            )
        return replace(job, path=str(path), reason=None, message=None)

    # -- what a dead process left ----------------------------------------------------------------------------

    def give_up(self, job: MediaJobRecord) -> MediaJobRecord:
        """A note of intent without an answer, of a process that is gone: nobody knows."""
        message = "The process ended between its call and the answer: the provider may have done the work."
        return self._unknown(job, str(job.reservation_id), [], "interrupted", message)

    def keep_hold(self, job: MediaJobRecord, reservation_id: str) -> None:
        """Let the hold wait for the verdict; one that ran out or was settled by hand stays as it is."""
        try:
            self._core.run(
                self._core.mark_unknown(
                    reservation_id,
                    job.provider or "unknown",
                    job.provider_reference,
                    organization_id=job.organization_id,
                )
            )
        except ReservationError:
            logger.warning("agentcredits: the hold of asset %s does not wait for a verdict any more", job.asset_id)

    def settle_unknown(
        self, job: MediaJobRecord, verdict: Literal["made", "never_sent"], result: Any, why: str
    ) -> MediaJobRecord:
        """Somebody knows how an UNKNOWN job ended: charge it and write its file, or give it back and plan it again."""
        if verdict == "made":
            stored = storable(result)
            job = self._manifest.change(job, JobState.UNKNOWN, state=JobState.CALLED, result=stored)
            return self.complete(job, None, result)
        with suppress(ReservationAlreadySettledError):  # by hand, by an operator: what he did stands
            self._handle(job).release(why)
        return self._manifest.change(
            job,
            JobState.UNKNOWN,
            state=JobState.PLANNED,
            reservation_id=None,
            provider_reference=None,
            reason=None,
            message=None,
        )

    def _handle(self, job: MediaJobRecord) -> SyncReservation:
        record = self._core.run(self._core.get_reservation(job.reservation_id, organization_id=job.organization_id))
        return SyncReservation(self._core, record, ttl=HOLD_TTL)


def attempt_key(job: MediaJobRecord, attempt: int | None = None) -> str:
    """The idempotency key of one attempt at a job."""
    return f"media:{job.batch_id}:{job.number}:{job.attempt if attempt is None else attempt}"


def public_job(job: MediaJobRecord) -> MediaJob:
    """The job as ``generate`` and the other functions of the user get it."""
    return MediaJob(
        asset_id=job.asset_id,
        name=job.name,
        prompt=job.prompt,
        agent_type=job.agent_type,
        action=job.action,
        provider=job.provider,
        model=job.model,
        parameters=job.parameters,
        dimensions=job.dimensions,
        priority=job.priority,
    )


def storable(result: Any) -> Any:
    """The answer as plain JSON data; None when it cannot be stored so (bytes, objects, too large, lone surrogates)."""
    try:
        if hasattr(result, "model_dump"):
            result = result.model_dump(mode="json")
        text = json.dumps(result, allow_nan=False, ensure_ascii=False)
        if len(text.encode()) > MAX_RESULT_BYTES:
            return None
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {name: _redacted(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    return value


#: Errors of clients that could not even connect: nothing was sent.
_NEVER_SENT: Final = frozenset(
    (
        *("ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "ProxyError"),
        *("NewConnectionError", "ConnectTimeoutError", "NameResolutionError", "ClientConnectorError"),
        *("ConnectionRefusedError", "gaierror"),
    )
)


def _unanswered(error: BaseException | None, fault: ProviderFault | None, references: list[str]) -> bool:
    """Whether an error leaves open what the provider does: it gave no answer, and may have got the request."""
    if error is None or fault is None or fault.status is not None:
        return False
    if references:
        return True
    return fault.category is FaultCategory.TRANSIENT and not _never_sent(error)


def _never_sent(error: BaseException | None) -> bool:
    for _ in range(10):
        if error is None:
            return False
        if any(kind.__name__ in _NEVER_SENT for kind in type(error).__mro__):
            return True
        error = error.__cause__ or error.__context__
    return False


def _told(fault: ProviderFault | None, error: BaseException | None) -> str:
    """For the operator: what the provider said, and what to do."""
    if fault is None:
        return redact(f"{type(error).__name__}: {error}" if error is not None else "no verdict")
    return f"{fault.message} {fault.guidance}".strip()


def _cut(text: str, length: int) -> str:
    clean = text.replace("\x00", "").encode(errors="replace").decode()
    return clean if len(clean) <= length else f"{clean[: length - 1]}…"
