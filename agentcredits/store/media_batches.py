"""The tables ``media_batches`` and ``media_jobs``: the manifest of a batch, its lease, and guarded changes of state.

Each function runs in the caller's transaction. A change names the states it may start from, so that a process that
lost its lease cannot write over what another one has done since.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, func, insert, or_, select, update

from agentcredits.clock import Clock
from agentcredits.model.media_batches import (
    RETRYABLE_REASONS,
    SPENDING_STATES,
    BatchState,
    JobState,
    MediaBatchRecord,
    MediaJobRecord,
)
from agentcredits.store.media_tables import media_batches as batches
from agentcredits.store.media_tables import media_jobs as jobs
from agentcredits.store.queries import now_of

#: What the next run takes up again, beside failures that may pass.
_AGAIN = (JobState.DRY_RUN, JobState.SKIPPED)


def create(
    connection: Connection, batch: MediaBatchRecord, lines: Iterable[MediaJobRecord], clock: Clock | None
) -> None:
    """Write a new batch with all its jobs."""
    now = now_of(connection, clock)
    connection.execute(
        insert(batches),
        {
            "organization_id": batch.organization_id,
            "id": batch.id,
            "name": batch.name,
            "state": batch.state.value,
            "budget_micros": batch.budget_micros,
            "project_id": batch.project_id,
            "department_id": batch.department_id,
            "user_id": batch.user_id,
            "settings": _to_json(batch.settings),
            "created_at": now,
            "updated_at": now,
        },
    )
    connection.execute(
        insert(jobs),
        [
            {
                "organization_id": batch.organization_id,
                "batch_id": batch.id,
                "number": line.number,
                "asset_id": line.asset_id,
                "name": line.name,
                "priority": line.priority,
                "state": line.state.value,
                "agent_type": line.agent_type,
                "action": line.action,
                "provider": line.provider,
                "model": line.model,
                "prompt": line.prompt,
                "parameters": _to_json(line.parameters),
                "dimensions": _to_json(line.dimensions),
                "estimate_micros": line.estimate_micros,
                "updated_at": now,
            }
            for line in lines
        ],
    )


# -- reading -----------------------------------------------------------------------------------------------------


def get_batch(connection: Connection, organization_id: str, batch_id: str) -> MediaBatchRecord | None:
    """The batch with its counts and sums; None: there is none."""
    found = _batches(connection, and_(batches.c.organization_id == organization_id, batches.c.id == batch_id), 1)
    return found[0] if found else None


def list_batches(connection: Connection, organization_id: str, limit: int) -> tuple[MediaBatchRecord, ...]:
    """An organization's batches, newest first."""
    return tuple(_batches(connection, batches.c.organization_id == organization_id, limit))


def charged_in_all(connection: Connection, organization_id: str) -> int:
    """Micro-credits that all batches of an organization were charged together."""
    statement = select(func.coalesce(func.sum(jobs.c.charged_micros), 0))
    return int(connection.execute(statement.where(jobs.c.organization_id == organization_id)).scalar_one())


def list_jobs(
    connection: Connection, organization_id: str, batch_id: str, states: Sequence[JobState] = ()
) -> tuple[MediaJobRecord, ...]:
    """The jobs of a batch in the order of the manifest; ``states`` narrows."""
    condition = and_(jobs.c.organization_id == organization_id, jobs.c.batch_id == batch_id)
    if states:
        condition = and_(condition, jobs.c.state.in_([state.value for state in states]))
    rows = connection.execute(select(jobs).where(condition).order_by(jobs.c.number)).mappings()
    return tuple(_job(row) for row in rows)


def _batches(connection: Connection, condition: ColumnElement[bool], limit: int) -> list[MediaBatchRecord]:
    order = (batches.c.created_at.desc(), batches.c.id.desc())
    rows = connection.execute(select(batches).where(condition).order_by(*order).limit(limit)).mappings().all()
    if not rows:
        return []
    sums = connection.execute(
        select(
            jobs.c.batch_id,
            jobs.c.state,
            func.count().label("number"),
            func.sum(jobs.c.estimate_micros).label("estimate"),
            func.coalesce(func.sum(jobs.c.charged_micros), 0).label("charged"),
        )
        .where(
            jobs.c.organization_id == rows[0]["organization_id"],
            jobs.c.batch_id.in_([row["id"] for row in rows]),
        )
        .group_by(jobs.c.batch_id, jobs.c.state)
    ).all()
    found = []
    for row in rows:
        mine = [entry for entry in sums if entry.batch_id == row["id"]]
        found.append(
            MediaBatchRecord(
                **{
                    **row,
                    "state": BatchState(row["state"]),
                    "settings": json.loads(row["settings"]),
                    "counts": {entry.state: entry.number for entry in mine},
                    "estimate_micros": sum(int(entry.estimate) for entry in mine),
                    "charged_micros": sum(int(entry.charged) for entry in mine),
                }
            )
        )
    return found


def _job(row: RowMapping) -> MediaJobRecord:
    return MediaJobRecord(
        **{
            **row,
            "state": JobState(row["state"]),
            "parameters": json.loads(row["parameters"]),
            "dimensions": json.loads(row["dimensions"]),
            "result": None if row["result"] is None else json.loads(row["result"]),
        }
    )


# -- the lease ---------------------------------------------------------------------------------------------------


def take_lease(
    connection: Connection,
    organization_id: str,
    batch_id: str,
    owner: str,
    length: timedelta,
    clock: Clock | None,
    *,
    dead: str | None = None,
) -> MediaBatchRecord | None:
    """Take the batch for a process, unless another one has it.

    Args:
        connection: In a write transaction.
        organization_id: Whose.
        batch_id: Which.
        owner: The process that asks.
        length: How long it has the batch without renewing.
        clock: Replaces the database's.
        dead: An owner that is known not to live any more: its lease counts as over.

    Returns:
        The batch as it is afterwards: ``leased_by`` says who has it. None: there is no such batch.
    """
    place = _place(organization_id, batch_id)
    row = connection.execute(select(batches).where(place).with_for_update()).mappings().first()
    if row is None:
        return None
    now = now_of(connection, clock)
    free = row["leased_by"] in (None, owner, dead) or row["leased_until"] is None or row["leased_until"] <= now
    if free:
        connection.execute(
            update(batches)
            .where(place)
            .values(leased_by=owner, leased_until=now + length, state=BatchState.RUNNING.value, updated_at=now)
        )
    return get_batch(connection, organization_id, batch_id)


def renew_lease(
    connection: Connection, organization_id: str, batch_id: str, owner: str, length: timedelta, clock: Clock | None
) -> bool:
    """Keep the batch for another ``length``; False: another process has it."""
    now = now_of(connection, clock)
    changed = connection.execute(
        update(batches)
        .where(_place(organization_id, batch_id), batches.c.leased_by == owner)
        .values(leased_until=now + length, updated_at=now)
    )
    return changed.rowcount == 1


def give_lease_back(
    connection: Connection, organization_id: str, batch_id: str, owner: str, clock: Clock | None
) -> None:
    """Let others have the batch; it is finished when a resume would have nothing to do."""
    left = any(job.left for job in list_jobs(connection, organization_id, batch_id))
    state = BatchState.PLANNED if left else BatchState.FINISHED
    connection.execute(
        update(batches)
        .where(_place(organization_id, batch_id), batches.c.leased_by == owner)
        .values(leased_by=None, leased_until=None, state=state.value, updated_at=now_of(connection, clock))
    )


# -- changes of state --------------------------------------------------------------------------------------------


def plan_again(connection: Connection, organization_id: str, batch_id: str, clock: Clock | None) -> None:
    """What was not made for want of credits, or failed for a reason that may pass, is planned again."""
    connection.execute(
        update(jobs)
        .where(
            jobs.c.organization_id == organization_id,
            jobs.c.batch_id == batch_id,
            or_(
                jobs.c.state.in_([state.value for state in _AGAIN]),
                and_(
                    jobs.c.state == JobState.FAILED.value,
                    jobs.c.reason.in_(RETRYABLE_REASONS),
                    jobs.c.charged_micros.is_(None),
                ),
            ),
        )
        .values(
            state=JobState.PLANNED.value,
            reason=None,
            message=None,
            reservation_id=None,
            provider_reference=None,
            updated_at=now_of(connection, clock),
        )
    )


def intend(
    connection: Connection, job: MediaJobRecord, owner: str, reservation_id: str, held_micros: int, clock: Clock | None
) -> Literal["intended", "over_budget", "lease_lost"]:
    """Note, before the provider is called, that it is about to be; within the budget, and only by who has the batch."""
    place = _place(job.organization_id, job.batch_id)
    batch = connection.execute(select(batches).where(place).with_for_update()).mappings().one()
    now = now_of(connection, clock)
    if batch["leased_by"] != owner:
        return "lease_lost"
    if batch["budget_micros"] is not None:
        spending = select(func.coalesce(func.sum(func.coalesce(jobs.c.charged_micros, jobs.c.estimate_micros)), 0))
        used = connection.execute(
            spending.where(
                jobs.c.organization_id == job.organization_id,
                jobs.c.batch_id == job.batch_id,
                or_(jobs.c.state.in_([state.value for state in SPENDING_STATES]), jobs.c.charged_micros.is_not(None)),
            )
        ).scalar_one()
        if int(used) + held_micros > batch["budget_micros"]:
            return "over_budget"
    changed = connection.execute(
        update(jobs)
        .where(_job_place(job), jobs.c.state == JobState.PLANNED.value, jobs.c.attempt == job.attempt)
        .values(
            state=JobState.INTENT.value,
            attempt=job.attempt + 1,
            reservation_id=reservation_id,
            estimate_micros=held_micros,
            updated_at=now,
        )
    )
    return "intended" if changed.rowcount == 1 else "lease_lost"


def change_job(
    connection: Connection,
    job: MediaJobRecord,
    clock: Clock | None,
    *,
    before: Sequence[JobState],
    values: Mapping[str, Any],
) -> bool:
    """Change a job that is in one of the states ``before``, in the same attempt; False: it is not any more."""
    stored = {name: _stored(name, value) for name, value in values.items()}
    changed = connection.execute(
        update(jobs)
        .where(_job_place(job), jobs.c.state.in_([state.value for state in before]), jobs.c.attempt == job.attempt)
        .values(**stored, updated_at=now_of(connection, clock))
    )
    return changed.rowcount == 1


def _stored(name: str, value: Any) -> Any:
    if name == "result":
        return None if value is None else _to_json(value)
    return value.value if isinstance(value, JobState) else value


def _place(organization_id: str, batch_id: str) -> ColumnElement[bool]:
    return and_(batches.c.organization_id == organization_id, batches.c.id == batch_id)


def _job_place(job: MediaJobRecord) -> ColumnElement[bool]:
    return and_(
        jobs.c.organization_id == job.organization_id,
        jobs.c.batch_id == job.batch_id,
        jobs.c.number == job.number,
    )


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
