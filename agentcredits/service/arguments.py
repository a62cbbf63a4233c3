"""What the service makes of its arguments: checked, or refused with a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TypeVar

from agentcredits.amounts import Amount, from_micros, to_micros
from agentcredits.clock import as_utc, host_now
from agentcredits.errors import (
    CreditsError,
    InvalidInputError,
)
from agentcredits.ids import check_text, generated_key, new_id, scope_id
from agentcredits.model import (
    Decision,
    GrantCategory,
    Lasting,
    LimitMode,
    LimitScope,
    LimitUnit,
    Overage,
    ReservationRecord,
    ReservationState,
    RunStatus,
    Transaction,
    TransactionType,
)
from agentcredits.rules import keys
from agentcredits.rules import operations as ops

MAX_PAGE = 1_000
MAX_REASON = 1_000
MAX_PRIORITY = 1_000_000
#: Names of actions in one restriction, and the longest ``agent_type.action``.
MAX_NAMES = 50
MAX_NAME = 511
MAX_LASTING = timedelta(days=3_660)

_CURRENCY = re.compile(r"[A-Z]{3}", re.ASCII)


def key(idempotency_key: str | None) -> tuple[str, bool]:
    """The caller's idempotency key, or a generated one; and whether it was generated."""
    if idempotency_key is None:
        return new_id(), True
    return check_text(idempotency_key, name="idempotency_key"), False


def identity(idempotency_key: str | None) -> tuple[str, str, bool]:
    """The id of the charge or hold to make, the caller's key or the one of that id, and whether it was generated."""
    record_id = new_id()
    if idempotency_key is None:
        return record_id, generated_key(record_id), True
    return record_id, check_text(idempotency_key, name="idempotency_key"), False


def fingerprint(
    kind: str,
    organization_id: str,
    amount_micros: int,
    activity: ops.Activity,
    explicit_amount: bool,
    overage: Overage | None,
) -> str:
    """By amount where the caller gave one, by action where the price was looked up (it may change between tries)."""
    scopes = activity.scopes
    return keys.fingerprint(
        kind,
        organization_id,
        amount_micros if explicit_amount else None,
        project_id=scopes.project_id,
        department_id=scopes.department_id,
        user_id=scopes.user_id,
        agent_type=activity.agent_type,
        action=activity.action,
        quantity=activity.quantity,
        dimensions=activity.dimensions_json,
        overage=overage,
    )


def ttl(ttl: timedelta) -> timedelta:
    """A time-to-live above zero and of at most 366 days."""
    if not isinstance(ttl, timedelta):
        raise InvalidInputError("ttl must be a timedelta.", context={"parameter": "ttl"})
    if not timedelta(0) < ttl <= timedelta(days=366):
        raise InvalidInputError("ttl must be above zero and at most 366 days.", context={"parameter": "ttl"})
    return ttl


def age(value: timedelta, *, name: str) -> timedelta:
    """A time that is past, of at least zero."""
    if not isinstance(value, timedelta):
        raise InvalidInputError(f"{name} must be a timedelta.", context={"parameter": name})
    if not timedelta(0) <= value <= timedelta(days=36_600):
        raise InvalidInputError(f"{name} must be at least zero and at most 100 years.", context={"parameter": name})
    return value


def overage(value: str | Overage | None, default: Overage) -> Overage:
    """The overage policy named, or the default."""
    return default if value is None else choice(Overage, value, name="overage")


def overrun(value: str | Overage | None) -> Overage:
    """The overage policy of a handle: its work is done by the time it settles, so it cannot be refused."""
    policy = overage(value, Overage.CAP)
    if policy is Overage.REJECT:
        raise InvalidInputError(
            'overage of a handle must be "cap" or "overdraft": "reject" would lose work that is done.',
            context={"parameter": "overage"},
        )
    return policy


def reason(value: object) -> str:
    """Why an operator does something: any text that is not empty."""
    return check_text(value, name="reason", max_length=MAX_REASON)


T = TypeVar("T")
C = TypeVar("C", GrantCategory, LimitMode, LimitScope, LimitUnit, Overage, ReservationState, RunStatus, TransactionType)


def choice(kind: type[C], value: object, *, name: str) -> C:
    """A member of an enumeration, by its value."""
    try:
        return kind(str(value).lower())
    except ValueError:
        raise InvalidInputError(
            f"{name} must be one of {', '.join(member.value for member in kind)}, not {value!r}.",
            context={"parameter": name},
        ) from None


def whole_number(value: object, *, name: str, low: int, high: int) -> int:
    """An int in a range, never a bool."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidInputError(f"{name} must be a whole number from {low:,} to {high:,}.", context={"parameter": name})
    return value


def items(values: object, kind: type[T], *, name: str) -> tuple[T, ...]:
    """The members of a sequence that all are of one kind."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidInputError(f"{name} must be a sequence of {kind.__name__}.", context={"parameter": name})
    found = tuple(values)
    for value in found:
        if not isinstance(value, kind):
            raise InvalidInputError(
                f"{name} must hold {kind.__name__}, not {type(value).__name__}.", context={"parameter": name}
            )
    return found


def only_for(value: object) -> tuple[str, ...]:
    """The actions that a grant is kept for, in one order, each as ``agent_type.action`` with ``*`` for all of either.

    Raises:
        InvalidInputError: no sequence of texts, empty, too many, or a name that is none of the forms.
    """
    if value is None:
        return ()
    names = items(value, str, name="only_for")
    if not 1 <= len(names) <= MAX_NAMES:
        raise InvalidInputError(
            f"only_for must name 1 to {MAX_NAMES} actions; leave it out for every action.",
            context={"parameter": "only_for"},
        )
    return tuple(sorted({_action_name(name) for name in names}))


def _action_name(value: str) -> str:
    text = check_text(value, name="only_for", max_length=MAX_NAME)
    name = text if "." in text else f"{text}.*"
    inner = name.removesuffix(".*") if name.endswith(".*") else name.removeprefix("*.")
    if "*" in inner or not inner or inner.startswith(".") or inner.endswith("."):
        raise InvalidInputError(
            f"only_for names an agent type (VideoAgent), an action of it (VideoAgent.generate_video) or an action of"
            f" all agent types (*.generate_video), not {text!r}.",
            reason="unknown_action_name",
            context={"parameter": "only_for", "value": text},
        )
    return name


def cost_basis(unit_cost: Amount | None, currency: object) -> tuple[Decimal | None, str | None]:
    """What one credit cost, and in which currency: both or neither.

    Raises:
        InvalidInputError: one without the other, no currency code.
        InvalidAmountError: negative, no number, or more than 6 decimals.
    """
    if unit_cost is None and currency is None:
        return None, None
    if unit_cost is None or currency is None:
        raise InvalidInputError("unit_cost and currency belong together.", context={"parameter": "unit_cost"})
    code = check_text(currency, name="currency")
    if not _CURRENCY.fullmatch(code):
        raise InvalidInputError(
            f"currency must be a code of three capital letters such as USD, not {code!r}.",
            context={"parameter": "currency"},
        )
    return from_micros(to_micros(unit_cost, name="unit_cost", allow_zero=True)), code


def lasting(value: object, *, name: str) -> Lasting:
    """How long credits can be used: ``"period"``, whole seconds of time, or None (for ever)."""
    if value is None:
        return None
    if value == "period":
        return "period"
    if not isinstance(value, timedelta) or value.microseconds or not timedelta(0) < value <= MAX_LASTING:
        raise InvalidInputError(
            f'{name} must be "period", None (for ever) or a timedelta of whole seconds up to {MAX_LASTING.days} days.',
            context={"parameter": name},
        )
    return value


def organization(value: object) -> str:
    """An organization's id."""
    return scope_id(value, name="organization_id")


def period(since: datetime | None, until: datetime | None) -> tuple[datetime | None, datetime | None]:
    """Two aware times, or None."""
    return (
        None if since is None else as_utc(since, name="since"),
        None if until is None else as_utc(until, name="until"),
    )


def matches(**values: object) -> dict[str, str]:
    """Filters that were given: ids of scopes as the ledger has them, other names as they are."""
    found = {}
    for name, value in values.items():
        if value is not None:
            found[name] = scope_id(value, name=name) if name.endswith("_id") else check_text(value, name=name)
    return found


def page_size(limit: object) -> int:
    """How many records a page may have."""
    return whole_number(limit, name="limit", low=1, high=MAX_PAGE)


def denied(
    organization_id: str, required: int, available: int, error: CreditsError, *, allowed: bool = False
) -> Decision:
    """The Decision for a refusal (``allowed``: that would only be recorded)."""
    return Decision(
        organization_id,
        allowed,
        required,
        available,
        reason=error.reason,
        limit_source=error.limit_source,
        retryable=error.retryable,
        message=error.message,
        suggestions=error.suggestions,
        fixes=error.fixes,
    )


def dry_transaction(organization_id: str, amount_micros: int, activity: ops.Activity, key: str) -> Transaction:
    """What a charge answers in a dry run: nothing was written."""
    return Transaction(
        organization_id=organization_id,
        id="",
        seq=0,
        type=TransactionType.DEBIT,
        amount_micros=-amount_micros,
        balance_after_micros=0,
        created_at=host_now(),
        agent_type=activity.agent_type,
        action=activity.action,
        quantity=activity.quantity,
        idempotency_key=key,
        pricing=activity.pricing,
        dry_run=True,
    )


def dry_reservation(
    organization_id: str, amount_micros: int, activity: ops.Activity, key: str, ttl: timedelta
) -> ReservationRecord:
    """What a reservation answers in a dry run: nothing was written."""
    return ReservationRecord(
        organization_id=organization_id,
        id="",
        state=ReservationState.ACTIVE,
        amount_micros=amount_micros,
        created_at=host_now(),
        expires_at=host_now() + ttl,
        agent_type=activity.agent_type,
        action=activity.action,
        quantity=activity.quantity,
        idempotency_key=key,
        pricing=activity.pricing,
    )
