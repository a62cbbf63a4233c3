"""The two faces are one service: same methods, same parameters, same answers, the colour apart."""

from __future__ import annotations

import inspect
import typing
from datetime import timedelta
from typing import Any

import pytest

from agentcredits import CreditService, SyncCreditService
from agentcredits.reservation import Reservation, ReservationRequest, SyncReservation

#: Closing has the name that its colour has everywhere in Python.
COUNTERPARTS = {"aclose": "close", "__aenter__": "__enter__", "__aexit__": "__exit__"}


def methods(face: type) -> dict[str, Any]:
    """Public methods by the blocking face's name; an ``aclose`` stands for the ``close`` beside it."""
    found = {
        name: member
        for name, member in inspect.getmembers(face, inspect.isfunction)
        if not name.startswith("_") or name in {*COUNTERPARTS, *COUNTERPARTS.values()}
    }
    for name, counterpart in COUNTERPARTS.items():
        if name in found:
            found[counterpart] = found.pop(name)
    return found


BLOCKING, COROUTINE = methods(SyncCreditService), methods(CreditService)
HANDLES = {
    name: (methods(SyncReservation)[name], methods(Reservation)[name]) for name in ("commit", "release", "extend")
}


def shape(method: Any) -> list[tuple[str, object, object, object]]:
    """Name, kind, default and annotation of each parameter; a session's type may differ."""
    return [
        (
            parameter.name,
            parameter.kind,
            parameter.default,
            None if parameter.name == "session" else parameter.annotation,
        )
        for parameter in inspect.signature(method).parameters.values()
    ]


def test_both_faces_have_the_same_methods() -> None:
    """Nothing exists in one colour only."""
    assert set(BLOCKING) == set(COROUTINE)


@pytest.mark.parametrize("name", sorted(BLOCKING))
def test_a_method_takes_the_same_parameters_on_both_faces(name: str) -> None:
    """Names, order, kinds, defaults and types."""
    assert shape(BLOCKING[name]) == shape(COROUTINE[name])


@pytest.mark.parametrize("name", sorted(BLOCKING))
def test_a_method_answers_the_same_on_both_faces(name: str) -> None:
    """Each coroutine gives what the blocking method returns; a reservation comes as a handle of its colour."""
    blocking = inspect.signature(BLOCKING[name]).return_annotation
    coroutine = inspect.signature(COROUTINE[name]).return_annotation
    if name == "reserve_credits":
        assert (blocking, coroutine) == ("SyncReservation", "ReservationRequest[Reservation]")
        assert not inspect.iscoroutinefunction(COROUTINE[name])
    else:
        assert blocking == coroutine
        assert inspect.iscoroutinefunction(COROUTINE[name])
    assert not inspect.iscoroutinefunction(BLOCKING[name])


@pytest.mark.parametrize("name", sorted(HANDLES))
def test_the_handles_have_the_same_methods(name: str) -> None:
    """Commit, release and extend of a hold."""
    blocking, coroutine = HANDLES[name]
    assert shape(blocking) == shape(coroutine)
    assert inspect.signature(blocking).return_annotation == inspect.signature(coroutine).return_annotation
    assert inspect.iscoroutinefunction(coroutine)
    assert not inspect.iscoroutinefunction(blocking)


def test_the_coroutine_face_can_be_closed_where_no_loop_runs() -> None:
    """Its close is a plain method beside aclose."""
    assert not inspect.iscoroutinefunction(CreditService.close)
    assert shape(CreditService.close) == shape(CreditService.aclose)


def test_the_constructors_are_the_same() -> None:
    """Database, settings, clock."""
    assert inspect.signature(CreditService) == inspect.signature(SyncCreditService)


def test_aliases_take_what_they_stand_for() -> None:
    """Confirm is commit_reservation, rollback is release_reservation."""
    for alias, name in (("confirm", "commit_reservation"), ("rollback", "release_reservation")):
        assert shape(BLOCKING[alias]) == shape(BLOCKING[name])


def test_the_annotations_can_be_resolved() -> None:
    """Tools that read them at run time find every name."""
    import sqlalchemy
    import sqlalchemy.ext.asyncio as asyncio_extension
    from sqlalchemy.orm import Session

    names = {
        "Connection": sqlalchemy.Connection,
        "Session": Session,
        "AsyncConnection": asyncio_extension.AsyncConnection,
        "AsyncSession": asyncio_extension.AsyncSession,
    }
    for face in (CreditService, SyncCreditService):
        for method in methods(face).values():
            typing.get_type_hints(method, localns=names)


async def test_a_request_for_a_reservation_is_awaitable_and_a_context_manager(sqlite_url: str) -> None:
    """Both `await service.reserve_credits(...)` and `async with service.reserve_credits(...)` are one method."""
    async with CreditService(sqlite_url) as service:
        await service.grant_credits("acme", 10)
        request = service.reserve_credits(organization_id="acme", amount=1, ttl=timedelta(minutes=1))
        assert isinstance(request, ReservationRequest)
        assert isinstance(await request, Reservation)
        async with service.reserve_credits(organization_id="acme", amount=1) as hold:
            assert isinstance(hold, Reservation)
