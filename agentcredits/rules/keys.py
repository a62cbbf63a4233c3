"""Idempotency keys: what they stand for, and how a repeated call is told from another one under the same key.

A key is stored beside the record that its call made. Only the key that was generated for a charge or a hold is not: it
is made of the record's id, which finds the record as well, and there it has no end.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Final

from agentcredits.ids import record_of_key
from agentcredits.model import Overage
from agentcredits.rules import operations as ops
from agentcredits.rules import refusals
from agentcredits.rules.state import HoldState, KeyState, Ledger, Row


def stored_answer(ledger: Ledger, operation: ops.KeyedOperation) -> KeyState | None:
    """The stored answer of this key, when there is one.

    Raises:
        IdempotencyMismatchError: the key stands for another payload.
    """
    known = ledger.keys.get((operation.key_kind, operation.key)) or _answer_by_id(ledger, operation)
    if known is not None and known.fingerprint != operation.fingerprint:
        raise refusals.key_mismatch(operation)
    return known


def is_known(ledger: Ledger, operation: ops.Spending) -> bool:
    """Whether anything is known of this key; what it is, is for ``stored_answer`` to say."""
    if (operation.key_kind, operation.key) in ledger.keys:
        return True
    found = operation.id if operation.key_generated else record_of_key(operation.key)
    return found is not None and found in (ledger.rows if isinstance(operation, ops.Consume) else ledger.holds)


def is_other_call(known: KeyState, operation: ops.KeyedOperation) -> bool:
    """Whether another call stored this answer; not so when our own first try arrived and only its answer was lost."""
    return known.result_id != operation.id


def remember(ledger: Ledger, operation: ops.KeyedOperation, now: datetime) -> None:
    """Let the key stand for what this operation makes."""
    if not is_stored(operation):
        return
    place = (operation.key_kind, operation.key)
    if place in ledger.keys and place not in ledger.changes.new_keys:
        ledger.changes.keys.add(place)
    else:
        ledger.changes.new_keys.add(place)
    ledger.keys[place] = KeyState(*place, operation.fingerprint, operation.id, now)


def is_stored(operation: ops.KeyedOperation) -> bool:
    """Whether the key is stored: not where the record's own id tells as much."""
    return not (operation.key_generated and isinstance(operation, ops.Spending))


def record_id(operation: ops.KeyedOperation) -> str | None:
    """The id of the charge or hold that a generated key names, whoever passes it; None for every other key."""
    return record_of_key(operation.key) if isinstance(operation, ops.Spending) else None


def _answer_by_id(ledger: Ledger, operation: ops.KeyedOperation) -> KeyState | None:
    """What a generated key stands for: the record with its id, where there is one."""
    found = record_id(operation)
    if found is None:
        return None
    record = ledger.rows.get(found) if isinstance(operation, ops.Consume) else ledger.holds.get(found)
    if record is None or record.idempotency_key != operation.key:
        return None
    # Our own second try is the same call; of another one only the record can tell.
    same = operation.id == found or operation.fingerprint in _fingerprints(ledger.organization_id, record)
    fingerprint = operation.fingerprint if same else ""
    return KeyState(operation.key_kind, operation.key, fingerprint, found, record.created_at)


def fingerprint(
    kind: str,
    organization_id: str,
    amount_micros: int | None,
    *,
    project_id: str | None,
    department_id: str | None,
    user_id: str | None,
    agent_type: str | None,
    action: str | None,
    quantity: Decimal | None,
    dimensions: str | None,
    overage: Overage | None,
) -> str:
    """That of a charge or hold: by amount where the caller gave one, by action where the price was looked up (it may
    change between tries; ``amount_micros`` is None).
    """
    return _same_again(
        kind,
        organization_id,
        project_id,
        department_id,
        user_id,
        amount_micros,
        agent_type,
        action,
        None if quantity is None else _quantity_text(quantity),
        dimensions,
        overage,
    )


@lru_cache(maxsize=1024)
def _quantity_text(quantity: Decimal) -> str:
    return f"{quantity.normalize():f}"


#: Most charges of a process repeat a payload that it has charged a moment ago.
_same_again = lru_cache(maxsize=1024, typed=True)(ops.fingerprint)


#: A hold's payload has no overage.
_NO_POLICY: Final[tuple[None]] = (None,)


def _fingerprints(organization_id: str, record: Row | HoldState) -> Iterator[str]:
    """Those of every call that can have made this charge or hold."""
    amount, rest = abs(record.amount_micros), record.uncollected_micros
    kind, policies = (
        (ops.Consume.key_kind, tuple(Overage)) if isinstance(record, Row) else (ops.Reserve.key_kind, _NO_POLICY)
    )
    # What a hold could not collect is its settlement's rest, unless mode "observe" let it pass.
    for amount_micros in (None, amount, amount + rest):
        for overage in policies:
            yield fingerprint(
                kind,
                organization_id,
                amount_micros,
                project_id=record.project_id,
                department_id=record.department_id,
                user_id=record.user_id,
                agent_type=record.agent_type,
                action=record.action,
                quantity=record.quantity,
                dimensions=record.dimensions,
                overage=overage,
            )
