"""Keys: what is stored for them, and how a generated one finds the charge or hold that it is made of."""

from __future__ import annotations

import copy
import dataclasses
import uuid
from datetime import timedelta
from decimal import Decimal
from itertools import product
from typing import Any

import pytest

from agentcredits.errors import IdempotencyMismatchError
from agentcredits.ids import generated_key, record_of_key
from agentcredits.model import Overage, ReservationState, Scopes
from agentcredits.rules import keys
from agentcredits.rules import operations as ops
from agentcredits.rules.due import book_due
from agentcredits.rules.posting import Outcome, decide
from agentcredits.rules.state import AccountState, HoldState, KeyState, Ledger, Row
from agentcredits.service import arguments
from agentcredits.testing import START as NOW

ACME = "acme"
TTL = timedelta(minutes=5)
ABOUT = ops.Activity(
    agent_type="Writer",
    action="write",
    quantity=Decimal("1.50"),
    dimensions_json='{"d":3}',
    scopes=Scopes(project_id="p", department_id="sales", user_id="ann"),
)


@pytest.fixture
def ledger() -> Ledger:
    """An account with 100 micro-credits."""
    made = Ledger(ACME, AccountState(ACME, NOW, NOW))
    decide(made, ops.Grant(organization_id=ACME, id="g", key="g", fingerprint="", amount_micros=100), NOW)
    return made


def spending(kind: str, *, key: str | None = None, explicit: bool = True, **changes: Any) -> Any:
    """A charge or hold as the service makes it; with a key of the caller's, or a generated one."""
    overage = changes.pop("overage", Overage.REJECT) if kind == "consume" else None
    amount, about = changes.pop("amount_micros", 4), changes.pop("activity", ABOUT)
    record_id, key, generated = arguments.identity(key)
    facts = {
        "organization_id": ACME,
        "id": record_id,
        "key": key,
        "key_generated": generated,
        "fingerprint": arguments.fingerprint(kind, ACME, amount, about, explicit, overage),
        "amount_micros": amount,
        "activity": about,
        **changes,
    }
    return ops.Consume(**facts, overage=overage) if overage else ops.Reserve(**({"ttl": TTL} | facts))


def answered(ledger: Ledger, operation: ops.Operation) -> Any:
    outcome = decide(ledger, operation, NOW)
    assert outcome.error is None, outcome.error
    return outcome.record


def test_a_generated_key_is_made_of_the_records_id() -> None:
    """And of nothing else: no key that a caller would think of names a record."""
    made = str(uuid.UUID(int=7))
    assert record_of_key(generated_key(made)) == made
    for other in (made, "auto-", "auto-7", f"auto-{made}x", f"Auto-{made}", f" auto-{made}", f"auto-auto-{made}"):
        assert record_of_key(other) is None, other


@pytest.mark.parametrize("kind", ["consume", "reserve"])
def test_a_generated_key_is_not_stored_and_stands_for_its_record_all_the_same(ledger: Ledger, kind: str) -> None:
    """The second try with it, by the caller who learned it from an error, gives the first answer."""
    first = spending(kind)
    record = answered(ledger, first)
    assert ledger.changes.new_keys == {("grant", "g")}
    assert record.idempotency_key == first.key
    before = copy.deepcopy(ledger)
    again = decide(ledger, spending(kind, key=first.key), NOW)
    assert (again.record, again.error, again.replayed) == (record, None, True)
    assert ledger == before


@pytest.mark.parametrize("kind", ["consume", "reserve"])
def test_our_own_second_try_is_no_replay(ledger: Ledger, kind: str) -> None:
    """The same operation once more: its first answer was lost, and this is it. Nothing is booked again."""
    operation = dataclasses.replace(spending(kind), fingerprint="whatever it was")
    record = answered(ledger, operation)
    before = copy.deepcopy(ledger)
    again = decide(ledger, operation, NOW)
    assert (again.record, again.error, again.replayed) == (record, None, False)
    assert ledger == before


@pytest.mark.parametrize("kind", ["consume", "reserve"])
def test_the_callers_own_key_is_stored(ledger: Ledger, kind: str) -> None:
    """Whatever it looks like; also the id of another charge is a key like any other."""
    for key in ("mine", answered(ledger, spending(kind)).id, generated_key("7")):
        made = answered(ledger, spending(kind, key=key))
        assert (kind, key) in ledger.changes.new_keys
        assert ledger.keys[kind, key].result_id == made.id


@pytest.mark.parametrize("kind", ["consume", "reserve"])
@pytest.mark.parametrize("explicit", [True, False])
def test_another_payload_under_a_generated_key_is_a_mismatch(ledger: Ledger, kind: str, explicit: bool) -> None:
    """As the record tells it: each part of the payload counts."""
    key = answered(ledger, spending(kind, explicit=explicit)).idempotency_key
    others = [
        {"activity": dataclasses.replace(ABOUT, **{name: value})}
        for name, value in (
            ("agent_type", "Painter"),
            ("action", "paint"),
            ("quantity", Decimal(2)),
            ("quantity", None),
            ("dimensions_json", None),
            ("scopes", Scopes(project_id="q", department_id="sales", user_id="ann")),
            ("scopes", Scopes(project_id="p", department_id="legal", user_id="ann")),
            ("scopes", Scopes(project_id="p", department_id="sales", user_id="bob")),
        )
    ]
    if explicit:
        others.append({"amount_micros": 5})
    before = copy.deepcopy(ledger)
    for other in others:
        outcome = decide(ledger, spending(kind, key=key, explicit=explicit, **other), NOW)
        assert isinstance(outcome.error, IdempotencyMismatchError), other
    assert ledger == before


@pytest.mark.parametrize(("explicit", "overage"), list(product([True, False], Overage)))
def test_a_charge_is_recognised_whatever_its_policy_and_what_it_could_not_collect(
    ledger: Ledger, explicit: bool, overage: Overage
) -> None:
    """The amount asked for is what was charged and what was not; a look-up's price may have changed meanwhile."""
    amount = 130 if overage is Overage.CAP else 4
    first = spending("consume", explicit=explicit, overage=overage, amount_micros=amount)
    record = answered(ledger, first)
    assert record.uncollected_micros == (30 if overage is Overage.CAP else 0)
    amount_now = amount if explicit else 9
    again = spending("consume", key=first.key, explicit=explicit, overage=overage, amount_micros=amount_now)
    assert decide(ledger, again, NOW) == Outcome(record, replayed=True)


@pytest.mark.parametrize("asked", [None, 3, 130])
def test_a_hold_is_recognised_after_its_settlement(ledger: Ledger, asked: int | None) -> None:
    """Whatever the settlement charged, and what it could not collect."""
    first = spending("reserve")
    hold: HoldState = answered(ledger, first)
    settle = ops.Commit(
        organization_id=ACME, reservation_id=hold.id, transaction_id="t", amount_micros=asked, overage=Overage.CAP
    )
    assert answered(ledger, settle).state is ReservationState.COMMITTED
    outcome = decide(ledger, spending("reserve", key=first.key), NOW)
    assert (outcome.record, outcome.error, outcome.replayed) == (hold, None, True)


def test_what_mode_observe_let_pass_is_recognised(ledger: Ledger) -> None:
    """It holds and charges nothing; what was asked for stands beside it."""
    for kind in ("consume", "reserve"):
        first = spending(kind, amount_micros=1_000, observe=True)
        record = answered(ledger, first)
        assert (record.amount_micros, record.uncollected_micros) == (0, 1_000)
        assert decide(ledger, spending(kind, key=first.key, amount_micros=1_000, observe=True), NOW).record == record


def test_after_its_hold_was_given_back_a_generated_key_is_one_like_any_other(ledger: Ledger) -> None:
    """It belongs to a living attempt: the next makes a new hold, and from then on the key is stored."""
    first = spending("reserve")
    hold: HoldState = answered(ledger, first)
    answered(ledger, ops.Release(organization_id=ACME, reservation_id=hold.id))
    second: HoldState = answered(ledger, spending("reserve", key=first.key))
    assert second.id != hold.id
    assert ("reserve", first.key) in ledger.changes.new_keys
    assert not ledger.changes.keys
    third = decide(ledger, spending("reserve", key=first.key), NOW)
    assert (third.record, third.replayed) == (second, True)


def test_a_hold_that_ended_before_our_second_try_found_it_is_told(ledger: Ledger) -> None:
    """The call made it, its answer was lost, and its time ran out: not a second hold for one call."""
    operation = spending("reserve")
    answered(ledger, operation)
    later = NOW + TTL
    book_due(ledger, later)
    outcome = decide(ledger, operation, later)
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.retryable) == ("reservation_expired", True)
    assert len(ledger.holds) == 1


def test_the_key_of_a_hold_does_not_name_its_charge(ledger: Ledger) -> None:
    """Charges and holds have keys of their own; the charge of a hold carries the hold's key, and is not found by it."""
    first = spending("reserve")
    hold: HoldState = answered(ledger, first)
    answered(ledger, ops.Commit(organization_id=ACME, reservation_id=hold.id, transaction_id=hold.id[::-1]))
    row = next(iter(ledger.rows.values()))
    charge: Row = answered(ledger, spending("consume", key=first.key))
    assert charge.id != row.id
    assert answered(ledger, spending("consume", key=generated_key(row.id))).id not in (row.id, charge.id)


def test_other_kinds_of_calls_store_their_generated_keys() -> None:
    """A grant, a refund or an adjustment has no such short cut."""
    assert not keys.is_stored(spending("consume"))
    assert not keys.is_stored(spending("reserve"))
    assert keys.is_stored(spending("consume", key="mine"))
    refund = ops.Refund(
        organization_id=ACME, id="r", key="r", key_generated=True, fingerprint="", transaction_id="t", reason=None
    )
    assert keys.is_stored(refund)
    assert keys.record_id(dataclasses.replace(refund, key=generated_key(str(uuid.UUID(int=7))))) is None


@pytest.mark.parametrize("kind", ["consume", "reserve"])
def test_whether_anything_is_known_of_a_key(ledger: Ledger, kind: str) -> None:
    """A stored key, or the record that a generated one names; of the same kind, whatever its payload."""
    generated, named = spending(kind), spending(kind, key="mine")
    for operation in (generated, named):
        assert not keys.is_known(ledger, operation)
        answered(ledger, operation)
        assert keys.is_known(ledger, operation)
        assert keys.is_known(ledger, spending(kind, key=operation.key, amount_micros=5))
    other = "reserve" if kind == "consume" else "consume"
    for key in (generated.key, "mine", None):
        assert not keys.is_known(ledger, spending(other, key=key))
    for key in ("other", generated_key("7"), generated_key(str(uuid.UUID(int=7))), None):
        assert not keys.is_known(ledger, spending(kind, key=key))


@pytest.mark.parametrize("kind", ["consume", "reserve"])
def test_what_a_generated_key_stands_for(ledger: Ledger, kind: str) -> None:
    """As if it had been stored when its record was made."""
    first = spending(kind)
    record = answered(ledger, first)
    again = spending(kind, key=first.key)
    assert keys.stored_answer(ledger, again) == KeyState(kind, first.key, first.fingerprint, first.id, NOW)
    assert record.created_at == NOW
    assert keys.stored_answer(ledger, spending(kind)) is None


@pytest.mark.parametrize(
    ("kind", "organization", "explicit", "overage", "expected"),
    [
        ("consume", "acme", True, Overage.REJECT, "a9b27afc1f4dd26e798ff4bd03490934"),
        ("consume", "acme", False, Overage.CAP, "cbf6447e72adfc5c843cb2cb4f5bebec"),
        ("consume", "globex", True, Overage.REJECT, "33ca3eda677d9b3d5635a11525a74598"),
        ("reserve", "acme", True, None, "b77be77915f166430519faa00f0bd325"),
        ("reserve", "acme", False, None, "135f40242011b2ca554cc80e2ffab4a1"),
    ],
)
def test_fingerprints_stay_as_they_are_stored(
    kind: str, organization: str, explicit: bool, overage: Overage | None, expected: str
) -> None:
    """A key that an earlier version stored is compared with what this one makes of the same payload."""
    assert arguments.fingerprint(kind, organization, 4, ABOUT, explicit, overage) == expected
