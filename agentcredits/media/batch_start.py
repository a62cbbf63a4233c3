"""What a media batch is made of: checked arguments, the first lines of its manifest, and what is found out later."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from agentcredits.context import RequestContext
from agentcredits.errors import InvalidInputError, MissingContextError
from agentcredits.ids import encode_json, scope_id
from agentcredits.media.jobs import MAX_PARAMETERS_BYTES, MediaJob
from agentcredits.model.media_batches import JobState, MediaJobRecord

MAX_JOBS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Finding:
    """What somebody found out about an UNKNOWN job: it was made, it was never sent, or it is still open."""

    kind: Literal["made", "never_sent", "open"]
    result: Any = None

    @classmethod
    def made(cls, result: Any) -> Self:
        """The provider made it: it is charged, and its file is written."""
        return cls("made", result)

    @classmethod
    def never_sent(cls) -> Self:
        """The provider knows no such request, or it failed there: the hold is given back, and a resume makes it."""
        return cls("never_sent")

    @classmethod
    def still_open(cls) -> Self:
        """It is not known yet."""
        return cls("open")


def owner_of(organization_id: object, context: RequestContext | None) -> str:
    """Who pays for a batch.

    Raises:
        MissingContextError: nobody says.
    """
    if organization_id is not None:
        return scope_id(organization_id, name="organization_id")
    if context is None:
        raise MissingContextError("who pays for the batch? Pass organization_id=, or enter use_context(...).")
    return context.organization_id


def new_records(owner: str, jobs: Iterable[MediaJob]) -> tuple[MediaJobRecord, ...]:
    """The jobs as lines of a manifest that is not written yet.

    Raises:
        InvalidInputError: too many, something that is no job, or two with the same id.
    """
    found = []
    seen: dict[str, int] = {}
    given: Iterable[object] = jobs
    for number, job in enumerate(given, start=1):
        if not isinstance(job, MediaJob):
            raise InvalidInputError(f"jobs must be MediaJob, not {type(job).__name__}.", context={"parameter": "jobs"})
        if job.asset_id in seen:
            raise InvalidInputError(
                f"jobs {seen[job.asset_id]} and {number} have the same asset_id {job.asset_id}.",
                context={"parameter": "jobs"},
            )
        if number > MAX_JOBS:
            raise InvalidInputError(f"a batch has at most {MAX_JOBS:,} jobs.", context={"parameter": "jobs"})
        seen[job.asset_id] = number
        found.append(
            MediaJobRecord(
                organization_id=owner,
                batch_id="",
                number=number,
                asset_id=job.asset_id,
                name=job.name,
                priority=job.rank,
                state=JobState.PLANNED,
                agent_type=job.agent_type,
                action=job.action,
                provider=job.provider,
                model=job.model,
                prompt=job.prompt,
                enhanced_prompt=None,
                parameters=_plain(job.parameters, "parameters", MAX_PARAMETERS_BYTES),
                dimensions=_plain(job.dimensions, "dimensions", MAX_PARAMETERS_BYTES),
                estimate_micros=0,
            )
        )
    return tuple(found)


def _plain(values: Mapping[str, Any], name: str, max_bytes: int) -> dict[str, Any]:
    """As the manifest gives them back."""
    text = encode_json(values, name=name, max_bytes=max_bytes)
    return {} if text is None else dict(json.loads(text))


def whole_number(value: object, *, name: str, most: int) -> int:
    """A whole number from 1 to ``most``.

    Raises:
        InvalidInputError: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise InvalidInputError(f"{name} must be a whole number from 1 to {most}.", context={"parameter": name})
    return value
