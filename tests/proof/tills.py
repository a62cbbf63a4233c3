"""Tills: what the workers of a proof charge at. The real one is here; the naive ones are in naive.py."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from decimal import Decimal
from typing import Any, Protocol

from sqlalchemy import select

from agentcredits import SyncCreditService
from agentcredits.errors import ReservationExpiredError, ReservationInUseError, StoreUnavailableError
from agentcredits.reservation import SyncReservation
from agentcredits.settings import Settings
from agentcredits.store.dialects import make_engine, normalise_url
from agentcredits.store.tables import credit_reservations, credit_transactions
from tests.proof.books import Books, Call

ORGANIZATION = "acme"
GRANTED_MICROS = 10**12


class Refused(Exception):  # noqa: N818  # an answer, not a failure
    """The till says that nothing was booked."""


class Unknown(Exception):  # noqa: N818  # an answer, not a failure
    """The till says that it does not know; the same call is to be repeated."""


class Till(Protocol):
    """Where a worker moves credits; several threads use it at once."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None: ...

    def do(self, call: Call) -> str:
        """Book the call; gives the id of what was booked.

        Raises:
            Refused, Unknown: the two answers that a caller is promised when the store is away.
        """

    def working(self, call: Call) -> AbstractContextManager[object]:
        """Have the credits while the block runs, and charge them at its end."""

    def close(self) -> bool:
        """Book what is still to be booked; whether nothing is left."""

    @staticmethod
    def prepare(url: str) -> None:
        """Grant the credits."""

    @staticmethod
    def read_books(url: str) -> Books:
        """What the ledger holds now."""

    @staticmethod
    def held_micros(url: str) -> int:
        """What is held now, nobody having asked for anything to be tidied up."""


class _BodyFailed(Exception):  # noqa: N818
    """What the body of a hold that is to be given back raises."""


class CreditsTill:
    """The product."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._service = SyncCreditService(url, settings=Settings(**options))

    def do(self, call: Call) -> str:
        credits_ = Decimal(call.micros) / 10**6
        try:
            if call.kind == "charge":
                return self._service.consume_credits(
                    organization_id=ORGANIZATION, amount=credits_, idempotency_key=call.key
                ).id
            if call.kind == "refund":
                return self._service.refund_credits(
                    call.of, credits_, organization_id=ORGANIZATION, idempotency_key=call.key
                ).id
            with contextlib.suppress(_BodyFailed), self.working(call) as hold:
                if call.kind == "release":
                    raise _BodyFailed
            return hold.id
        except (ReservationInUseError, ReservationExpiredError) as error:
            # An earlier try, whose answer was lost, holds the credits until its time-to-live is over, or did.
            raise Unknown from error
        except StoreUnavailableError as error:
            raise (Unknown if error.context["outcome"] == "unknown" else Refused) from error

    def working(self, call: Call) -> SyncReservation:
        return self._service.reserve_credits(
            organization_id=ORGANIZATION,
            amount=Decimal(call.micros) / 10**6,
            idempotency_key=call.key,
            ttl=timedelta(seconds=1),
        )

    def close(self) -> bool:
        end = time.monotonic() + 30
        while not self._service.flush() and time.monotonic() < end:
            time.sleep(0.02)
        settled = self._service.flush()
        self._service.close()
        return settled

    @staticmethod
    def prepare(url: str) -> None:
        with SyncCreditService(url) as service:
            service.grant_credits(ORGANIZATION, Decimal(GRANTED_MICROS) / 10**6)

    @staticmethod
    def read_books(url: str) -> Books:
        rows, holds = credit_transactions.c, credit_reservations.c
        statement = (
            select(rows.type, rows.amount_micros, rows.idempotency_key, holds.idempotency_key.label("hold_key"))
            .select_from(
                credit_transactions.outerjoin(
                    credit_reservations,
                    (rows.organization_id == holds.organization_id) & (rows.reservation_id == holds.id),
                )
            )
            .where(rows.organization_id == ORGANIZATION, rows.type.in_(("debit", "refund")))
        )
        engine = make_engine(normalise_url(url), pool_size=1, lock_timeout_seconds=5, sqlite_synchronous="FULL")
        with engine.connect() as connection:
            entries = [
                (str(row.hold_key if row.type == "debit" and row.hold_key else row.idempotency_key), row.amount_micros)
                for row in connection.execute(statement)
            ]
        engine.dispose()
        return Books(entries, _problems(url, sum(micros for _, micros in entries)))

    @staticmethod
    def held_micros(url: str) -> int:
        with SyncCreditService(url) as service:
            return service.get_balance(ORGANIZATION).reserved_micros


def _problems(url: str, total_micros: int) -> list[str]:
    with SyncCreditService(url) as service:
        service.sweep(ORGANIZATION)
        problems = [problem.message for problem in service.verify().problems]
        balance = service.get_balance(ORGANIZATION)
    if balance.spent_micros != -total_micros:
        problems.append(f"spent is {balance.spent_micros}, the rows say {-total_micros}")
    if balance.available_micros + balance.reserved_micros + balance.spent_micros != GRANTED_MICROS:
        problems.append(f"{balance} does not add up to {GRANTED_MICROS}")
    return problems
