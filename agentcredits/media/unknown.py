"""Jobs whose outcome was unknown: what happens to their holds once the provider has spoken."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Final, Literal, TypeVar, get_args, overload

from agentcredits.amounts import Amount, to_micros
from agentcredits.context import current_context
from agentcredits.errors import (
    CreditsError,
    InvalidInputError,
    ReservationAlreadySettledError,
    ReservationNotFoundError,
)
from agentcredits.ids import check_text, scope_id
from agentcredits.media import flows
from agentcredits.media.flows import Ask, Flow
from agentcredits.media.rules import default_rules
from agentcredits.model import ReservationRecord, ReservationState
from agentcredits.reservation import Reservation, SyncReservation
from agentcredits.runner.steps import Read, Steps
from agentcredits.service import CreditService, SyncCreditService, core_of
from agentcredits.service.core import ServiceCore
from agentcredits.store import media

logger = logging.getLogger("agentcredits")

T = TypeVar("T")

Outcome = Literal["succeeded", "failed"]
Looked = Literal["succeeded", "failed", "running"]
#: A reservation, its id, or the provider's name and its id of the job.
Target = str | ReservationRecord | SyncReservation | Reservation | tuple[str, str]

#: Holds that one ``reconcile`` walks.
MOST_HOLDS: Final = 500
_RELEASED: Final = (ReservationState.RELEASED, ReservationState.EXPIRED)


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What ``reconcile`` found.

    Attributes:
        settled: Holds that were charged or given back now.
        running: Holds whose jobs still run, or have no reference to ask by.
        failed: Holds that could not be looked at or settled, each with the reason.
    """

    settled: tuple[ReservationRecord, ...]
    running: tuple[ReservationRecord, ...]
    failed: tuple[tuple[ReservationRecord, str], ...]


@overload
def resolve_unknown(
    service: SyncCreditService,
    target: Target,
    *,
    outcome: Outcome,
    actual: Amount | None = None,
    organization_id: object = None,
) -> ReservationRecord: ...


@overload
def resolve_unknown(
    service: CreditService,
    target: Target,
    *,
    outcome: Outcome,
    actual: Amount | None = None,
    organization_id: object = None,
) -> Awaitable[ReservationRecord]: ...


def resolve_unknown(
    service: SyncCreditService | CreditService,
    target: Target,
    *,
    outcome: Outcome,
    actual: Amount | None = None,
    organization_id: object = None,
) -> ReservationRecord | Awaitable[ReservationRecord]:
    """Settle a hold whose job's outcome is known now: charge it, or give it back. For webhooks; safe to repeat.

    Args:
        service: Blocking, or async: then await what comes back.
        target: The reservation or its id, or ``(provider, reference)``: the provider's name and its id of the job.
        outcome: ``"succeeded"`` charges, also after the hold ran out; ``"failed"`` gives back.
        actual: Credits to charge; the whole hold when left out. What is over the hold is taken if it is there.
        organization_id: Whose it is; else the object's, else the current context's, else (for a reference) it is
            looked for everywhere.

    Returns:
        The reservation as it is settled; the same again when the same outcome is told twice. While the store is
        away it is still open: the settlement is kept and tried again.

    Raises:
        InvalidInputError: an outcome or target that is none.
        ReservationNotFoundError: no such reservation, or none that waits for this job.
        ReservationAlreadySettledError: it was settled the other way before.
        MissingContextError: an id alone, and nobody says whose.
    """
    core = core_of(service)
    steps = _resolve(core, target, outcome, actual, organization_id)
    return core.arun(steps) if isinstance(service, CreditService) else core.run(steps)


@overload
def reconcile(
    service: SyncCreditService, organization_id: object, look: Callable[[str, str], Looked]
) -> Reconciled: ...


@overload
def reconcile(
    service: CreditService, organization_id: object, look: Callable[[str, str], Looked | Awaitable[Looked]]
) -> Awaitable[Reconciled]: ...


def reconcile(
    service: SyncCreditService | CreditService, organization_id: object, look: Callable[[str, str], Any]
) -> Reconciled | Awaitable[Reconciled]:
    """Ask the provider about each job of an organization whose outcome is unknown, and settle those that ended.

    Args:
        service: Blocking, or async: then await what comes back.
        organization_id: Whose holds; the newest 500 that wait.
        look: Function of the provider's name and the job's id that says ``"succeeded"``, ``"failed"`` or
            ``"running"``; may be async with an async service. What it raises concerns that hold only.

    Returns:
        What was settled, still runs, or could not be looked at.
    """
    core = core_of(service)
    flow = _reconcile(core, organization_id, look)
    return flows.arun(core, flow) if isinstance(service, CreditService) else flows.run(core, flow)


def _resolve(
    core: ServiceCore, target: Target, outcome: Outcome, actual: Amount | None, organization_id: object
) -> Steps[ReservationRecord]:
    if outcome not in get_args(Outcome):
        raise InvalidInputError(f'outcome must be "succeeded" or "failed", not {outcome!r}.')
    if actual is not None:
        to_micros(actual, name="actual", allow_zero=True)
    if isinstance(target, tuple):
        owner, place = yield from _by_reference(core, target, organization_id)
    else:
        owner = core.organization(organization_id, target)
        place = core.id_of(target, name="reservation_id")
    record = yield from core.get_reservation(place, organization_id=owner)
    return (yield from _settled(core, record, outcome, actual))


def _by_reference(core: ServiceCore, target: tuple[Any, ...], organization_id: object) -> Steps[tuple[str, str]]:
    if len(target) != 2:
        raise InvalidInputError("a job is named by its provider and the provider's id of it: (provider, reference).")
    provider = check_text(target[0], name="provider")
    reference = check_text(target[1], name="reference")
    owner = None
    if organization_id is not None:
        owner = scope_id(organization_id, name="organization_id")
    elif (context := current_context()) is not None:
        owner = context.organization_id
    names = (provider, default_rules().provider_name(provider) or provider)
    found: tuple[str, str] | None = yield Read(
        lambda connection: media.find_by_reference(connection, names, reference, owner), owner
    )
    if found is None:
        raise ReservationNotFoundError(
            f"no reservation waits for job {reference} of {provider}.",
            context={"provider": provider, "provider_reference": reference},
        )
    return found


def _settled(
    core: ServiceCore, record: ReservationRecord, outcome: Outcome, actual: Amount | None
) -> Steps[ReservationRecord]:
    charged = record.requested_micros is not None
    if charged if outcome == "succeeded" else record.state in _RELEASED and not charged:
        return record
    if outcome == "succeeded":
        if record.state is ReservationState.RELEASED:
            raise ReservationAlreadySettledError(
                f"reservation {record.id} was given back before job {record.provider_reference} succeeded.",
                context={"reservation_id": record.id, "provider_reference": record.provider_reference},
                suggestions=("Charge the work with consume_credits().",),
            )
        hold = SyncReservation(core, record, ttl=timedelta(0))
        return (yield from hold._explicit_commit(actual, None))
    return (yield from core.release_reservation(record, "the provider's job failed"))


def _reconcile(core: ServiceCore, organization_id: object, look: Callable[[str, str], Any]) -> Flow[Reconciled]:
    owner = scope_id(organization_id, name="organization_id")
    waiting = yield from core.list_reservations(owner, states=("unknown",), limit=MOST_HOLDS)
    settled: list[ReservationRecord] = []
    running: list[ReservationRecord] = []
    failed: list[tuple[ReservationRecord, str]] = []
    for record in waiting:
        if record.provider is None or record.provider_reference is None:
            running.append(record)
            continue
        try:
            found = yield Ask(partial(look, record.provider, record.provider_reference), "look")
            if found == "running":
                running.append(record)
                continue
            settled.append((yield from _resolve(core, record, found, None, owner)))
        except Exception as problem:
            logger.warning("agentcredits: reservation %s was not reconciled", record.id, exc_info=True)
            said = problem.message if isinstance(problem, CreditsError) else type(problem).__name__
            failed.append((record, said))
    return Reconciled(tuple(settled), tuple(running), tuple(failed))
