"""A life of one account, told to the last field: what each operation answers, writes and leaves, and how it refuses.

The transcript beside this file is compared word for word, sentences of refusals included. After a change that is meant,
``python -m tests.unit.test_rules_transcript`` writes it anew; read the difference before you commit it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import MISSING
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from unittest.mock import patch

from agentcredits.errors import CreditsError, UnpricedActionError
from agentcredits.model import (
    GrantCategory,
    LimitMode,
    LimitScope,
    LimitUnit,
    Overage,
    Pricing,
    Scopes,
)
from agentcredits.rules import operations as ops
from agentcredits.rules import rollups
from agentcredits.rules.due import book_due
from agentcredits.rules.posting import decide
from agentcredits.rules.state import AccountState, Changes, Ledger

TRANSCRIPT = Path(__file__).with_name("rules_transcript.json")
START = datetime(2026, 1, 30, 22, tzinfo=UTC)
CREDIT = 1_000_000
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)

VIDEO = ops.Activity(
    agent_type="VideoAgent",
    action="generate_video",
    quantity=Decimal(2),
    dimensions_json='{"seconds":6}',
    metadata_json='{"title":"a"}',
    scopes=Scopes(project_id="p1", department_id="d1", user_id="u1", request_id="q1", run_id="r1"),
)
PLAIN = ops.Activity(action="ask", scopes=Scopes(user_id="u2"))
Step = tuple[str, timedelta, ops.Operation]


def keyed(kind: type[ops.KeyedOperation], id_: str, **arguments: Any) -> Any:
    fields = {"organization_id": "acme", "id": id_, "key": f"key-{id_}", "fingerprint": f"print-{id_}"}
    return kind(**fields | arguments)


def limit(id_: str, amount: int, **arguments: Any) -> ops.SetLimit:
    defaults: dict[str, Any] = {
        "scope": LimitScope.ORGANIZATION,
        "scope_id": "",
        "unit": LimitUnit.CREDITS,
        "window_text": "day UTC",
        "mode": LimitMode.HARD,
    }
    return ops.SetLimit(organization_id="acme", id=id_, amount=amount, **defaults | arguments)


def on_hold(kind: type[ops.Operation], hold: str, **arguments: Any) -> Any:
    return kind(organization_id="acme", reservation_id=hold, **arguments)


def commit(hold: str, amount: int | None = None, **arguments: Any) -> ops.Commit:
    made: ops.Commit = on_hold(ops.Commit, hold, **{"transaction_id": f"t-{hold}", "amount_micros": amount} | arguments)
    return made


def unpriced() -> CreditsError:
    return UnpricedActionError("no price", context={"action": "ask"})


def grants() -> Iterator[Step]:
    now = timedelta(0)
    yield "charge before anything was granted", now, keyed(ops.Consume, "c0", amount_micros=1)
    yield "open", now, ops.CreateAccount(organization_id="acme")
    yield "charge of an empty account", now, keyed(ops.Consume, "c0", amount_micros=CREDIT, activity=VIDEO)
    yield "grant", now, keyed(ops.Grant, "g1", amount_micros=50 * CREDIT, source="order 1", metadata_json='{"n":1}')
    yield "the same again", now, keyed(ops.Grant, "g1b", key="key-g1", fingerprint="print-g1", amount_micros=1)
    yield "its own first try", now, keyed(ops.Grant, "g1", amount_micros=1)
    yield "its key for another", now, keyed(ops.Grant, "g1b", key="key-g1", amount_micros=1)
    plan = {"category": GrantCategory.PLAN, "priority": 10, "amount_micros": 5 * CREDIT}
    yield "a plan that ends", now, keyed(ops.Grant, "g2", expires_at=START + DAY, **plan)
    later = {"category": GrantCategory.PROMOTIONAL, "effective_at": START + 10 * MINUTE, "amount_micros": 3 * CREDIT}
    yield "a promotion that starts later", now, keyed(ops.Grant, "g3", **later)
    yield "another", now, keyed(ops.Grant, "g4", **later | {"amount_micros": 4 * CREDIT})
    yield "an end that has passed", now, keyed(ops.Grant, "g5", amount_micros=1, expires_at=START)
    yield "an end before its start", now, keyed(ops.Grant, "g5", **later | {"expires_at": START + 5 * MINUTE})
    yield "too much in all", now, keyed(ops.Grant, "g5", amount_micros=9 * 10**18)
    yield "void what has not started", now, ops.VoidGrant(organization_id="acme", grant_id="g4", reason="by mistake")
    yield "void again", now, ops.VoidGrant(organization_id="acme", grant_id="g4")
    yield "void what is not there", now, ops.VoidGrant(organization_id="acme", grant_id="g9")
    yield "adjust upwards", now, keyed(ops.Adjust, "a1", amount_micros=2 * CREDIT, grant_id="ga1", reason="sorry")
    again = {"key": "key-a1", "fingerprint": "print-a1", "amount_micros": 2 * CREDIT, "grant_id": "ga2"}
    yield "adjust again", now, keyed(ops.Adjust, "a2", **again)
    yield "adjust downwards", now, keyed(ops.Adjust, "a3", amount_micros=-CREDIT, grant_id="-", reason="twice")
    yield "adjust by too much", now, keyed(ops.Adjust, "a4", amount_micros=-90 * CREDIT, grant_id="-")
    yield "adjust by all but a micro", now, keyed(ops.Adjust, "a5", amount_micros=1 - 56 * CREDIT, grant_id="-")
    yield "which is little", now, keyed(ops.Consume, "c0", amount_micros=CREDIT, activity=VIDEO)
    yield "adjust by the micro", now, keyed(ops.Adjust, "a6", amount_micros=-1, grant_id="-")
    yield "give it again", now, keyed(ops.Grant, "g6", amount_micros=45 * CREDIT)
    yield "and some to be used first", now, keyed(ops.Grant, "g0", amount_micros=5 * CREDIT, priority=10)


def charges() -> Iterator[Step]:
    now = MINUTE
    yield "charge", now, keyed(ops.Consume, "c1", amount_micros=7 * CREDIT, activity=VIDEO)
    yield "the same charge", now, keyed(ops.Consume, "x", key="key-c1", fingerprint="print-c1", amount_micros=1)
    yield "its key for another", now, keyed(ops.Consume, "x", key="key-c1", amount_micros=1)
    yield "more than there is", now, keyed(ops.Consume, "c2", amount_micros=60 * CREDIT, activity=VIDEO)
    free = dataclasses.replace(PLAIN, pricing=Pricing.FREE)
    yield "free", now, keyed(ops.Consume, "c3", amount_micros=0, activity=free)
    yield "unpriced", now, keyed(ops.Consume, "c4", amount_micros=0, activity=PLAIN, would_refuse=unpriced())
    observed = {"observe": True, "activity": PLAIN}
    yield "unpriced, observed", now, keyed(ops.Consume, "c4", amount_micros=0, would_refuse=unpriced(), **observed)
    yield "too much, observed", now, keyed(ops.Consume, "c5", amount_micros=80 * CREDIT, **observed)
    yield "refund of a part", now, keyed(ops.Refund, "f1", transaction_id="c1", amount_micros=3 * CREDIT, reason="half")
    yield "refund again", now, keyed(ops.Refund, "f2", key="key-f1", fingerprint="print-f1", transaction_id="c1")
    yield "refund of too much", now, keyed(ops.Refund, "f2", transaction_id="c1", amount_micros=5 * CREDIT)
    yield "refund of the rest", now, keyed(ops.Refund, "f3", transaction_id="c1")
    yield "refund of nothing that is left", now, keyed(ops.Refund, "f4", transaction_id="c1")
    yield "refund of no charge", now, keyed(ops.Refund, "f4", transaction_id="f1")
    yield "one that pays from two grants", now, keyed(ops.Consume, "c6", amount_micros=6 * CREDIT, activity=PLAIN)


def holds() -> Iterator[Step]:
    now = 2 * MINUTE
    yield "hold", now, keyed(ops.Reserve, "h1", amount_micros=4 * CREDIT, ttl=5 * MINUTE, activity=VIDEO)
    same = {"key": "key-h1", "fingerprint": "print-h1", "amount_micros": 4 * CREDIT, "ttl": DAY}
    yield "the same hold", now, keyed(ops.Reserve, "x", **same)
    yield "more than is free of holds", now, keyed(ops.Reserve, "h2", amount_micros=43 * CREDIT, ttl=MINUTE)
    yield "as much as is held", now, keyed(ops.Reserve, "h2", amount_micros=44 * CREDIT, ttl=MINUTE)
    yield "hold, observed", now, keyed(ops.Reserve, "h3", amount_micros=90 * CREDIT, ttl=DAY, observe=True)
    yield "extend", now, on_hold(ops.Extend, "h1", ttl=7 * MINUTE)
    yield "commit too much", now, commit("h1", 5 * CREDIT)
    yield "commit a part", now, commit("h1", CREDIT, metadata_json='{"title":"b"}')
    yield "commit again", now, commit("h1", CREDIT, transaction_id="x")
    yield "its own first try", now, commit("h1", CREDIT)
    yield "commit otherwise", now, commit("h1", 2 * CREDIT)
    yield "release it", now, on_hold(ops.Release, "h1")
    yield "the end of its block", now, on_hold(ops.Release, "h1", automatic=True)
    yield "extend it", now, on_hold(ops.Extend, "h1", ttl=MINUTE)
    yield "the key of a settled hold", now, keyed(ops.Reserve, "x", **same)
    yield "commit what was observed", now, commit("h3")
    yield "one to give back", now, keyed(ops.Reserve, "h4", amount_micros=CREDIT, ttl=5 * MINUTE, activity=PLAIN)
    yield "give it back", now, on_hold(ops.Release, "h4", reason="failed")
    yield "give it back again", now, on_hold(ops.Release, "h4")
    yield "commit it", now, commit("h4")
    yield "commit it at the end of its block", now, commit("h4", automatic=True)
    yield "mark it", now, on_hold(ops.MarkUnknown, "h4", provider="fal", provider_reference="j", ttl=DAY)
    living = {"key": "key-h4", "fingerprint": "print-h4", "amount_micros": CREDIT, "ttl": 5 * MINUTE}
    yield "its key lives again", now, keyed(ops.Reserve, "h5", **living)
    yield "the verdict is awaited", now, on_hold(ops.MarkUnknown, "h5", provider="fal", provider_reference="j", ttl=DAY)
    yield "and awaited", now, on_hold(ops.MarkUnknown, "h5", provider="x", provider_reference="y", ttl=DAY)
    yield "extend what is awaited", now, on_hold(ops.Extend, "h5", ttl=MINUTE)
    yield "the end of its block leaves it", now, commit("h5", automatic=True)
    yield "above the hold, capped", now, commit("h5", 99 * CREDIT, overage=Overage.CAP)
    yield (
        "a free hold",
        now,
        keyed(ops.Reserve, "h6", amount_micros=0, ttl=DAY, activity=dataclasses.replace(PLAIN, pricing=Pricing.FREE)),
    )
    yield "commit it for nothing", now, commit("h6")
    yield "nothing holds what is not there", now, commit("h9")
    yield "credits again", now, keyed(ops.Grant, "g7", amount_micros=20 * CREDIT)
    yield "a hold for nothing", now, keyed(ops.Reserve, "h7", amount_micros=CREDIT, ttl=DAY)
    yield "that charges nothing", now, commit("h7", 0)


def ends() -> Iterator[Step]:
    again = {"key": "key-c1", "fingerprint": "print-c1", "amount_micros": 1}
    yield "an old charge again", 3 * MINUTE - timedelta(seconds=1), keyed(ops.Consume, "x", **again)
    yield "one that will run out", 3 * MINUTE, keyed(ops.Reserve, "e1", amount_micros=2 * CREDIT, ttl=MINUTE)
    awaited = {"provider": "fal", "provider_reference": None, "ttl": 2 * MINUTE}
    yield "and one that is awaited", 3 * MINUTE, keyed(ops.Reserve, "e2", amount_micros=CREDIT, ttl=MINUTE)
    yield "until then", 3 * MINUTE, on_hold(ops.MarkUnknown, "e2", **awaited)
    yield "it has run out", 4 * MINUTE, commit("e1")
    yield "within the grace", 4 * MINUTE + timedelta(seconds=1), commit("e1", grace=timedelta(seconds=2))
    yield "once", 4 * MINUTE + timedelta(seconds=1), commit("e1", CREDIT, late=True)
    yield "release what is over", 5 * MINUTE, on_hold(ops.Release, "e2")
    yield "extend what is over", 5 * MINUTE, on_hold(ops.Extend, "e2", ttl=MINUTE)
    yield "late and in part", 5 * MINUTE, commit("e2", 90 * CREDIT, late=True)
    yield "a grant starts", 10 * MINUTE, ops.Expire(organization_id="acme")
    plan = {"amount_micros": 3 * CREDIT, "expires_at": START + 20 * MINUTE, "priority": 1}
    yield "a grant", 11 * MINUTE, keyed(ops.Grant, "g8", **plan)
    yield "of which some is held", 11 * MINUTE, keyed(ops.Reserve, "e3", amount_micros=CREDIT, ttl=DAY, activity=VIDEO)
    yield "and some is spent", 11 * MINUTE, keyed(ops.Consume, "e4", amount_micros=CREDIT, activity=VIDEO)
    yield "ends", 20 * MINUTE, ops.Expire(organization_id="acme")
    yield "its refund ends too", 21 * MINUTE, keyed(ops.Refund, "e5", transaction_id="e4")
    yield "and what its hold gives back", 22 * MINUTE, commit("e3", CREDIT // 2)
    yield "a long hold", 22 * MINUTE, keyed(ops.Reserve, "e7", amount_micros=CREDIT, ttl=DAY)
    yield "that is shortened", 22 * MINUTE, on_hold(ops.Extend, "e7", ttl=20 * MINUTE)
    yield "and awaited for less still", 22 * MINUTE, on_hold(ops.MarkUnknown, "e7", **awaited | {"ttl": 10 * MINUTE})
    yield "for nothing", 22 * MINUTE, on_hold(ops.Release, "e7")
    # Used up before they end: nothing is due then, so their end is booked when somebody comes back to them.
    soon = {"amount_micros": CREDIT, "expires_at": START + 24 * MINUTE, "priority": 1}
    for number in (1, 2):
        yield "a grant", 23 * MINUTE, keyed(ops.Grant, f"s{number}", **soon)
        yield "that is used up", 23 * MINUTE, keyed(ops.Consume, f"su{number}", amount_micros=CREDIT)
    half = timedelta(seconds=30)
    yield "something else", 23 * MINUTE, keyed(ops.Reserve, "e8", amount_micros=CREDIT, ttl=half)
    yield "is over first", 23 * MINUTE + half, ops.Expire(organization_id="acme")
    yield "is over when it is voided", 24 * MINUTE, ops.VoidGrant(organization_id="acme", grant_id="s1")
    yield "is over when it is refunded", 24 * MINUTE, keyed(ops.Refund, "e9", transaction_id="su2")
    yield "a grant", 25 * MINUTE, keyed(ops.Grant, "s3", amount_micros=3 * CREDIT, priority=1)
    yield "some is taken back", 25 * MINUTE, keyed(ops.Adjust, "e10", amount_micros=-CREDIT, grant_id="-")
    yield "then all", 25 * MINUTE, ops.VoidGrant(organization_id="acme", grant_id="s3")


def limits() -> Iterator[Step]:
    now = DAY
    yield "credits", now, keyed(ops.Grant, "g9", amount_micros=200 * CREDIT)
    yield "a limit with a warning", now, limit("l1", 10 * CREDIT, warn_at=(5_000,))
    each = {"scope": LimitScope.USER, "window_text": "lifetime", "unit": LimitUnit.COUNT}
    yield "each user's calls", now, limit("l2", 2, **each)
    yield "one user's calls", now, limit("l3", 3, scope_id="u2", **each)
    yield "a soft one", now, limit("l4", CREDIT, scope=LimitScope.DEPARTMENT, scope_id="d1", mode=LimitMode.SOFT)
    yield "a charge that warns", now, keyed(ops.Consume, "n1", amount_micros=6 * CREDIT, activity=VIDEO)
    yield "beyond the day", now, keyed(ops.Consume, "n2", amount_micros=5 * CREDIT, activity=PLAIN)
    yield "what running work holds", now, keyed(ops.Reserve, "n3", amount_micros=3 * CREDIT, ttl=DAY, activity=PLAIN)
    yield "stands in the way", now, keyed(ops.Consume, "n4", amount_micros=2 * CREDIT, activity=VIDEO)
    yield "observed", now, keyed(ops.Consume, "n5", amount_micros=9 * CREDIT, activity=VIDEO, observe=True)
    yield (
        "cut to what is left",
        now,
        keyed(ops.Consume, "n6", amount_micros=9 * CREDIT, activity=VIDEO, overage=Overage.CAP),
    )
    yield "one call too many", now, keyed(ops.Consume, "n7", amount_micros=0, activity=VIDEO)
    yield "raised", now, limit("x", 30 * CREDIT, warn_at=(5_000, 9_000))
    yield "commit above the hold", now, commit("n3", 50 * CREDIT, overage=Overage.CAP)
    yield "a refund makes room", now, keyed(ops.Refund, "n8", transaction_id="n1", amount_micros=CREDIT)
    capped = dataclasses.replace(PLAIN, scopes=Scopes(run_id="r9", run_max_micros=2 * CREDIT))
    yield "a new day and a run's cap", 2 * DAY, keyed(ops.Consume, "n9", amount_micros=CREDIT, activity=capped)
    yield "beyond the cap", 2 * DAY, keyed(ops.Consume, "n10", amount_micros=2 * CREDIT, activity=capped)
    wider = dataclasses.replace(PLAIN, scopes=Scopes(run_id="r9", run_max_micros=5 * CREDIT))
    yield "a wider cap", 2 * DAY, keyed(ops.Consume, "n11", amount_micros=3 * CREDIT, activity=wider)
    month = {"window_text": "month", "include_existing": True}
    yield "a limit that counts what was", 2 * DAY, limit("l5", 90 * CREDIT, **month)
    agents = {"scope": LimitScope.AGENT_TYPE, "scope_id": "VideoAgent"}
    actions = {"scope": LimitScope.ACTION, "scope_id": "VideoAgent.generate_video", "window_text": "hour UTC"}
    nameless = ops.Activity(agent_type="VideoAgent")
    yield "an agent's", 3 * DAY, limit("l6", 6 * CREDIT, **agents, warn_at=(10_000,))
    yield "an action's", 3 * DAY, limit("l7", 8 * CREDIT, **actions, mode=LimitMode.SOFT)
    yield "some is held", 3 * DAY, keyed(ops.Reserve, "m1", amount_micros=2 * CREDIT, ttl=DAY, activity=nameless)
    yield "all but that", 3 * DAY, keyed(ops.Consume, "m2", amount_micros=6 * CREDIT, activity=nameless)
    yield "more than ever", 3 * DAY, keyed(ops.Consume, "m2", amount_micros=7 * CREDIT, activity=nameless)
    yield "to the last", 3 * DAY, keyed(ops.Consume, "m3", amount_micros=4 * CREDIT, activity=nameless)
    yield "of what is charged", 3 * DAY, commit("m1")
    yield "nothing is left", 3 * DAY, keyed(ops.Consume, "m4", amount_micros=CREDIT, activity=nameless)
    named = ops.Activity(agent_type="VideoAgent", action="generate_video")
    yield "lifted", 3 * DAY, limit("x", 90 * CREDIT, **agents)
    yield "to the line of a soft one", 3 * DAY, keyed(ops.Consume, "m5", amount_micros=8 * CREDIT, activity=named)
    yield "beyond it", 3 * DAY, keyed(ops.Consume, "m6", amount_micros=CREDIT, activity=named)
    yield "the longest in the way", 3 * DAY, keyed(ops.Consume, "m7", amount_micros=95 * CREDIT, activity=named)
    yield "remove", 3 * DAY, ops.RemoveLimit(organization_id="acme", limit_id="l1")
    yield "remove again", 3 * DAY, ops.RemoveLimit(organization_id="acme", limit_id="l1")


def plain(value: Any) -> Any:
    """As JSON, without what is as it always is."""
    if isinstance(value, CreditsError):
        return {"error": type(value).__name__, **plain(value.as_dict())}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(found)
            for field in dataclasses.fields(value)
            if (found := getattr(value, field.name)) != default_of(field)
        }
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): plain(found) for key, found in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, tuple | list):
        return [plain(found) for found in value]
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def default_of(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def told() -> list[dict[str, Any]]:
    """The transcript: the answer to each step, what it would write, and the account after it."""
    ledger = Ledger("acme")
    numbers = iter(range(10_000))
    lines = []
    with (
        patch("agentcredits.rules.entries.new_id", lambda: f"id-{next(numbers)}"),
        patch("agentcredits.rules.charges.new_id", lambda: f"id-{next(numbers)}"),
        patch("agentcredits.rules.limits.new_id", lambda: f"id-{next(numbers)}"),
    ):
        for chapter in (grants, charges, holds, ends, limits):
            for name, after, operation in chapter():
                now = START + after
                if ledger.account is None and operation.creates_account:
                    ledger.account = AccountState("acme", now, now)
                ledger.changes = changes = Changes()
                book_due(ledger, now)
                outcome = decide(ledger, operation, now)
                usage = [ledger.usage[place] for place in sorted(changes.usage | changes.new_usage)]
                lines.append(
                    {
                        "step": f"{chapter.__name__}: {name}",
                        "answer": plain(outcome),
                        "writes": plain(changes),
                        "grants": plain([ledger.grants[id_] for id_ in sorted(changes.grants)]),
                        "holds": plain([ledger.holds[id_] for id_ in sorted(changes.holds)]),
                        "keys": plain([ledger.keys[place] for place in sorted(changes.keys | changes.new_keys)]),
                        "limits": plain([ledger.limits[id_] for id_ in sorted(changes.limits | changes.new_limits)]),
                        "counters": plain(usage),
                        "usage": plain(rollups.totals(changes.rows)),
                        "account": plain(ledger.account),
                    }
                )
    return lines


def test_the_life_of_an_account_is_as_it_was_written_down() -> None:
    """Every step, to the last field and the last word."""
    expected = json.loads(TRANSCRIPT.read_text(encoding="utf-8"))
    actual = told()
    assert [line["step"] for line in actual] == [line["step"] for line in expected]
    for line, wanted in zip(actual, expected, strict=True):
        assert line == wanted


def test_a_fingerprint_is_the_same_for_ever() -> None:
    """It stands in databases: a key of yesterday's version must be recognised tomorrow."""
    assert ops.fingerprint("grant", 1, "é", None, START) == "ee797f0fe208b98835789d6e58ca5167"


if __name__ == "__main__":
    TRANSCRIPT.write_text(json.dumps(told(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
