"""Bad input at every door: a typed error that says what to do, and not one stored value changed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, select

from agentcredits.context import RequestContext
from agentcredits.errors import (
    CreditsError,
    InsufficientCreditsError,
    InvalidAmountError,
    InvalidInputError,
)
from agentcredits.service import CreditService, SyncCreditService
from agentcredits.store import tables
from agentcredits.testing import FakeClock
from tests.integration.bad_entries import entries
from tests.integration.bad_values import ACME, BAD, KIND, NUL, OTHER, START, Entry, Ids, Wrong


def cases(entry: Entry) -> Iterator[Wrong]:
    """Every bad value of every argument, one at a time, and the wrong combinations."""
    for name in entry.tried.split():
        for value in BAD[KIND[name]]:
            expected = InvalidAmountError if KIND[name].startswith("amount") else InvalidInputError
            yield f"{name}={value!r:.60}", {name: value}, expected
    yield from entry.wrong


def arguments_of(entry: Entry, changes: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    arguments = {**entry.good, **changes}
    return tuple(arguments.pop(name) for name in entry.positional), arguments


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """For looking at what is stored."""
    engine = create_engine(database_url)
    yield engine
    engine.dispose()


def stored(engine: Engine) -> dict[str, list[str]]:
    """Every row of every table."""
    with engine.connect() as connection:
        return {
            table.name: sorted(str(tuple(row)) for row in connection.execute(select(table)))
            for table in tables.metadata.sorted_tables
        }


def prepare(service: SyncCreditService) -> Ids:
    """Two organizations with a grant, a charge, a partial refund and an open hold each."""
    made: dict[str, Any] = {}
    for name, prefix in ((ACME, ""), (OTHER, "foreign_")):
        grant = service.grant_credits(name, 100, idempotency_key="grant")
        charge = service.consume_credits(organization_id=name, amount=9, idempotency_key="charge")
        service.refund_credits(charge.id, 2, organization_id=name, idempotency_key="refund")
        hold = service.reserve_credits(organization_id=name, amount=5, ttl=timedelta(days=1), idempotency_key="hold")
        purchase = list(service.list_transactions(name))[-1].id
        limit = service.set_limit(name, amount=1_000_000, window="lifetime")
        made |= {f"{prefix}grant": grant.id, f"{prefix}charge": charge.id, f"{prefix}hold": hold.id}
        recurring = service.create_recurring_grant(name, 2, idempotency_key="recurring")
        made |= {f"{prefix}limit": limit.id, f"{prefix}recurring": recurring.id}
        if not prefix:
            made["purchase"] = purchase
    return Ids(**made)


def says_what_to_do(error: CreditsError) -> bool:
    """A whole sentence; bad arguments are named."""
    if not str(error).strip() or str(error).isupper():
        return False
    return not isinstance(error, InvalidAmountError) or bool(error.context.get("parameter"))


async def run_all(
    engine: Engine, ids: Ids, call: Callable[[str, tuple[Any, ...], dict[str, Any]], Awaitable[Any]]
) -> list[str]:
    """Try every case; gives one line for each that went wrong."""
    problems = []
    before = stored(engine)
    for entry in entries(ids):
        for what, changes, expected in cases(entry):
            positional, arguments = arguments_of(entry, changes)
            case = f"{entry.name}({what})"
            try:
                await call(entry.name, positional, arguments)
            except CreditsError as error:
                if not isinstance(error, expected):
                    problems.append(f"{case}: {type(error).__name__} instead of {expected.__name__}: {error}")
                elif not says_what_to_do(error):
                    problems.append(f"{case}: the message does not say what to do: {error}")
            except Exception as error:  # noqa: BLE001  # an untyped error is a finding like the others
                problems.append(f"{case}: untyped {type(error).__name__}: {error}")
            else:
                problems.append(f"{case}: was taken")
            after = stored(engine)
            if after != before:
                changed = [name for name in before if before[name] != after[name]]
                problems.append(f"{case}: changed {changed}")
                before = after
    return problems


@pytest.mark.parametrize("door", ["blocking", "coroutine"])
async def test_bad_input_is_refused_and_changes_nothing(database_url: str, engine: Engine, door: str) -> None:
    """Every entry point × every bad value: the right error, and every table as it was, row by row."""
    clock = FakeClock(START)
    with SyncCreditService(database_url, clock=clock) as service:
        ids = prepare(service)
        face = CreditService(database_url, clock=clock)

        async def call(name: str, positional: tuple[Any, ...], arguments: dict[str, Any]) -> Any:
            if door == "blocking":
                return getattr(service, name)(*positional, **arguments)
            answer = getattr(face, name)(*positional, **arguments)
            return await answer if inspect.isawaitable(answer) else answer

        async with face:
            problems = await run_all(engine, ids, call)
        assert not problems, f"{len(problems)} problems:\n" + "\n".join(problems)
        assert service.verify().ok


def test_the_good_arguments_are_good(database_url: str) -> None:
    """The control: each entry's own arguments are accepted, so that only the changed one is refused above."""
    with SyncCreditService(database_url, clock=FakeClock(START)) as service:
        ids = prepare(service)
        service.grant_credits(ACME, 1_000)
        names = {entry.name for entry in entries(ids)}
        for entry in entries(ids):
            spare = service.reserve_credits(organization_id=ACME, amount=5, ttl=timedelta(days=1)).id
            positional, arguments = arguments_of(entry, {"reservation": spare} if "reservation" in entry.good else {})
            getattr(service, entry.name)(*positional, **arguments)
        takes_no_input = {"close", "flush", "aclose"}
        public = {name for name in dir(service) if not name.startswith("_") and callable(getattr(service, name))}
        assert public - takes_no_input - names == set()


def test_a_refusal_books_what_was_due_and_nothing_else(database_url: str, engine: Engine) -> None:
    """A charge that is refused after a grant and a hold have ended leaves exactly their ends in the ledger."""
    clock = FakeClock(START)
    with SyncCreditService(database_url, clock=clock) as service:
        service.grant_credits(ACME, 10, expires_at=START + timedelta(hours=2))
        service.reserve_credits(organization_id=ACME, amount=4, ttl=timedelta(hours=1))
        clock.advance(timedelta(hours=3))
        with pytest.raises(InsufficientCreditsError):
            service.consume_credits(organization_id=ACME, amount=1, idempotency_key="later")
        page = service.list_transactions(ACME)
        assert [(row.type.value, row.amount) for row in page][:-1] in ([("expire", Decimal(-10))], [])
        balance = service.get_balance(ACME)
        assert (balance.available, balance.expired, balance.reserved, balance.spent) == (0, 10, 0, 0)
        assert service.verify(ACME).ok
        service.grant_credits(ACME, 5)
        assert not service.consume_credits(organization_id=ACME, amount=1, idempotency_key="later").replayed
        before = stored(engine)
        with pytest.raises(InsufficientCreditsError):
            service.consume_credits(organization_id=ACME, amount=100)
        assert stored(engine) == before


@pytest.mark.parametrize("name", ["organization_id", "project_id", "department_id", "user_id", "request_id", "run_id"])
@pytest.mark.parametrize("value", BAD["organization"], ids=lambda value: ascii(value)[:20])
def test_a_context_with_a_bad_id_cannot_be_made(name: str, value: Any) -> None:
    """The context checks its ids when it is made, not at the first charge."""
    with pytest.raises(InvalidInputError):
        RequestContext(**{"organization_id": ACME, name: value})


def test_bad_metadata_is_refused_before_the_hold(database_url: str, engine: Engine) -> None:
    """A handle's own settlement checks its metadata too, and the hold can still be settled afterwards."""
    with SyncCreditService(database_url, clock=FakeClock(START)) as service:
        service.grant_credits(ACME, 10)
        hold = service.reserve_credits(organization_id=ACME, amount=4)
        before = stored(engine)
        with pytest.raises(InvalidInputError):
            hold.commit(1, metadata={"x": NUL})
        with pytest.raises(InvalidAmountError):
            hold.commit(math.nan)
        with pytest.raises(InvalidAmountError):
            hold.commit(-1)
        assert stored(engine) == before
        assert hold.commit(1).charged == 1
        assert service.get_balance(ACME).reserved == 0
