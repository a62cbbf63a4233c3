"""What a line of a bulk file asks for: checked before anything is booked, and booked by a call of the service."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from agentcredits.amounts import parse_decimal, to_micros
from agentcredits.cli.bulk_lines import Columns, Values
from agentcredits.cli.parameters import parse_time
from agentcredits.clock import as_utc
from agentcredits.errors import InvalidInputError
from agentcredits.ids import check_text, scope_id
from agentcredits.model import CreditGrant, GrantCategory, Transaction
from agentcredits.service import CreditService, arguments

MAX_PRIORITY: Final = 1_000_000

Made = CreditGrant | Transaction
"""What a line books."""


@dataclass(frozen=True, slots=True)
class Item:
    """One line, checked.

    Args:
        number: Of the line, from 1.
        organization_id: Whose account.
        amount_micros: Signed for adjustments.
        amount: The same as it was written.
        options: Further arguments of the service's method.
    """

    number: int
    organization_id: str
    amount_micros: int
    amount: Any
    options: dict[str, Any]

    def refuse_expired(self, now: datetime) -> None:
        """Say now what a booking would say: a grant whose end has passed.

        Raises:
            InvalidInputError: it would be refused.
        """
        expires_at = self.options.get("expires_at")
        if expires_at is not None and expires_at <= now:
            raise InvalidInputError("expires_at must be later than now.", reason="expires_in_the_past")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of bulk booking.

    Args:
        name: As idempotency keys have it.
        columns: Of its files.
        check: Makes an Item of a line's columns.
        book: Books an Item under a key.
    """

    name: str
    columns: Columns
    check: Callable[[int, Values], Item]
    book: Callable[[CreditService, Item, str], Coroutine[Any, Any, Made]]


def _check_grant(number: int, values: Values) -> Item:
    amount = _required(values, "amount")
    options: dict[str, Any] = {}
    if "category" in values:
        options["category"] = arguments.choice(GrantCategory, values["category"], name="category").value
    if "priority" in values:
        options["priority"] = _whole_number(values["priority"], name="priority", high=MAX_PRIORITY)
    for name in ("effective_at", "expires_at"):
        if name in values:
            moment = parse_time(check_text(values[name], name=name), option=name)
            options[name] = None if moment is None else as_utc(moment, name=name)
    if "source" in values:
        options["source"] = check_text(values["source"], name="source")
    if "only_for" in values:
        names = values["only_for"]
        options["only_for"] = arguments.only_for(names.split() if isinstance(names, str) else names)
    cost, currency = arguments.cost_basis(values.get("unit_cost"), values.get("currency"))
    options |= {} if cost is None else {"unit_cost": cost, "currency": currency}
    if "effective_at" in options and "expires_at" in options and options["expires_at"] <= options["effective_at"]:
        raise InvalidInputError("expires_at must be later than effective_at.", reason="expires_in_the_past")
    return Item(number, _organization(values), to_micros(amount), amount, options)


async def _book_grant(service: CreditService, item: Item, key: str) -> CreditGrant:
    return await service.grant_credits(item.organization_id, item.amount, **item.options, idempotency_key=key)


def _check_adjustment(number: int, values: Values) -> Item:
    amount = _required(values, "amount")
    decimal = parse_decimal(amount)
    micros = -to_micros(-decimal) if decimal < 0 else to_micros(decimal)
    reason = check_text(_required(values, "reason"), name="reason")
    return Item(number, _organization(values), micros, amount, {"reason": reason})


async def _book_adjustment(service: CreditService, item: Item, key: str) -> Transaction:
    return await service.adjust_credits(item.organization_id, item.amount, **item.options, idempotency_key=key)


def _organization(values: Values) -> str:
    return scope_id(_required(values, "organization_id"), name="organization_id")


def _required(values: Values, name: str) -> Any:
    if name not in values:
        raise InvalidInputError(f"{name} is missing.", reason="missing", context={"parameter": name})
    return values[name]


def _whole_number(value: Any, *, name: str, high: int) -> int:
    """CSV has texts, JSON has numbers."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= len(str(high)):
        value = int(value)
    return arguments.whole_number(value, name=name, low=0, high=high)


_MORE: Final = ("only_for", "unit_cost", "currency")

GRANT: Final = Kind(
    name="grant",
    columns=Columns(
        required=("organization_id", "amount"),
        optional=("category", "priority", "effective_at", "expires_at", "source", *_MORE),
    ),
    check=_check_grant,
    book=_book_grant,
)
ADJUST: Final = Kind(
    name="adjust",
    columns=Columns(required=("organization_id", "amount", "reason")),
    check=_check_adjustment,
    book=_book_adjustment,
)
