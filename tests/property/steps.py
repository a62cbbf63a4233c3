"""What the state machine draws: calls with their arguments, oddities, and the passing of time."""

from __future__ import annotations

from datetime import timedelta

from tests.property import draws as st

CREDIT = 1_000_000

micros = st.sampled_from([CREDIT, 3 * CREDIT, 10 * CREDIT, 1]) | st.integers(1, 12 * CREDIT)
grant_micros = st.sampled_from([20 * CREDIT, 5 * CREDIT, 1]) | st.integers(CREDIT, 40 * CREDIT)
ttls = st.sampled_from([timedelta(minutes=5), timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)])
numbers = st.integers(0, 10_000)
scope_ids = st.sampled_from([None, "alpha", "beta"])
scopes = st.tuples(scope_ids, scope_ids, scope_ids)
starts = st.sampled_from([None, None, -timedelta(days=1), timedelta(0), timedelta(seconds=30), timedelta(hours=1)])
#: The same lengths as ttls, so that holds and grants often end at one instant.
ends = st.sampled_from([None, timedelta(minutes=5), timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)])
overages = st.sampled_from(["reject", "cap", "overdraft"])
run_ids = st.sampled_from(["r1", "r2", "r3", "r4"])
#: The run that something is done in, and the cap that its context brings.
in_runs = st.tuples(
    st.sampled_from([None, None, "r1", "r2", "r3", "r4"]), st.sampled_from([None, None, None, 9 * CREDIT])
)
places = st.sampled_from([0, 0, 0, 0, 1])
names_by_id = st.sampled_from(["commit_reservation", "release_reservation", "mark_unknown", "void_grant"])


#: Of the agent type Maker, in the forms that the model knows.
actions = st.sampled_from([None, "draw", "draw", "write"])
restrictions = st.sampled_from([None, None, None, ("Maker",), ("Maker.draw",), ("*.write",), ("*.write", "Maker.draw")])


def step(method: str, /, **drawn: st.Draw) -> st.Draw:
    """One call of a method of the machine."""
    return st.tuples(st.just(method), st.fixed_dictionaries(drawn))


grants = step(
    "grant",
    organization=places,
    amount=grant_micros,
    category=st.sampled_from(["paid", "promotional", "plan", "adjustment"]),
    priority=st.sampled_from([50, 50, 10]),
    start=starts,
    end=ends,
    only_for=restrictions,
)
lastings = st.sampled_from(
    [
        ("period", None),
        ("period", (None, 0, "period")),
        ("period", (5 * CREDIT, CREDIT, None)),
        ("period", (12 * CREDIT, 0, timedelta(hours=36))),
        (timedelta(days=2), None),
        (timedelta(hours=1), None),
        (None, None),
    ]
)
recurrings = step(
    "recur",
    organization=places,
    amount=st.sampled_from([10 * CREDIT, 5 * CREDIT, 1]),
    every=st.sampled_from(["day", "day", "week", "month"]),
    anchor=st.sampled_from([None, None, -timedelta(days=40), -timedelta(hours=1), timedelta(minutes=5)]),
    length=st.sampled_from([None, None, timedelta(days=3), timedelta(seconds=1)]),
    category=st.sampled_from(["plan", "plan", "paid", "promotional"]),
    priority=st.sampled_from([50, 10]),
    lasting=lastings,
    only_for=restrictions,
)
reserves = step("reserve", organization=places, amount=micros, ttl=ttls, scopes=scopes, run=in_runs, action=actions)
commits = step(
    "commit",
    number=numbers,
    change=st.sampled_from([None, 0, 1, -1, CREDIT, -CREDIT, "zero", "huge"]),
    overage=overages,
)
limits = step(
    "limit",
    organization=places,
    place=st.sampled_from(
        [
            ("organization", ""),
            ("department", ""),
            ("department", "alpha"),
            ("user", ""),
            ("user", "beta"),
            ("project", ""),
        ]
    ),
    unit=st.sampled_from(["credits", "credits", "count"]),
    window=st.sampled_from(["hour UTC", "day UTC", "fixed 10m 2026-01-01T00:00:00+00:00", "lifetime"]),
    amount=st.sampled_from([0, 5 * CREDIT, 12 * CREDIT, 30 * CREDIT, 200 * CREDIT]) | micros,
    hard=st.sampled_from([True, True, True, False]),
    include_existing=st.booleans(),
)
opens = step(
    "open_run",
    organization=places,
    run_id=run_ids,
    parent=st.sampled_from([None, "r1", "r2", "r3"]),
    amount=st.sampled_from([None, 0, 4 * CREDIT, 9 * CREDIT, 15 * CREDIT]),
    borrow=st.sampled_from([None, True, False]),
    partial=st.booleans(),
    ttl=st.sampled_from([None, timedelta(minutes=1), timedelta(hours=1)]),
)
works = st.one_of(
    grants,
    grants,
    reserves,
    reserves,
    reserves,
    step("consume", organization=places, amount=micros, overage=overages, scopes=scopes, run=in_runs, action=actions),
    recurrings,
    recurrings,
    commits,
    commits,
    step("settle_by_handle", number=numbers, change=st.sampled_from([None, 0, 1, -1, CREDIT])),
    step("release", number=numbers, force=st.booleans()),
    step("overdraw", organization=places, amount=micros, scopes=scopes),
    step("line", organization=places, amount=st.just(0) | micros),
    step("status", organization=places, change=st.sampled_from(["freeze", "unfreeze", "close", "reopen"])),
    step("thaw", organization=places),
    step("extend", number=numbers, ttl=ttls),
    step("await_verdict", number=numbers),
    step("refund", number=numbers, amount=st.none() | micros),
    step("refund", number=numbers, amount=st.sampled_from([1, CREDIT // 2])),
    step("void", number=numbers, mode=st.sampled_from(["remaining", "unreserved"])),
    step("cancel", number=numbers),
    step("cancel", number=numbers),
    step("adjust", organization=places, amount=micros | micros.map(lambda amount: -amount)),
    limits,
    limits,
    step("unlimit", number=numbers),
    opens,
    opens,
    step("end_run", organization=places, run_id=run_ids),
    step("sweep", organization=st.sampled_from([0, 1])),
    step("purge", organization=places),
)
oddities = st.one_of(
    step("replay", number=numbers),
    step("replay_with_one_field_changed", number=numbers, field=numbers),
    step("replay_with_another_ttl", number=numbers, ttl=ttls),
    step("use_a_foreign_id", number=numbers),
    step("use_an_id_that_nobody_has", number=numbers, name=names_by_id),
    step("use_an_unknown_organization", number=numbers),
    step("refund_any_row", number=numbers),
)
times = st.one_of(
    step("go_to_an_edge", number=numbers, off=st.sampled_from([-1, 0, 1])),
    step("go_to_an_edge", number=numbers, off=st.sampled_from([-1, 0, 1])),
    step(
        "pass_time", seconds=st.sampled_from([1.0, 1e-6, 59.0, 600.0, 4_000.0, 86_400.0, 8 * 86_400.0, 35 * 86_400.0])
    ),
    step("jump_back", seconds=st.sampled_from([1.0, 3_600.0])),
)
