"""Bad input at every door: a typed error that says what to do, and not one stored value changed."""

from __future__ import annotations

import inspect
import math
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, select

from agentcredits.context import RequestContext
from agentcredits.errors import (
    AccountNotFoundError,
    CreditsError,
    GrantNotFoundError,
    IdempotencyMismatchError,
    InsufficientCreditsError,
    InvalidAmountError,
    InvalidInputError,
    LimitNotFoundError,
    MissingContextError,
    OverageRejectedError,
    RecurringGrantNotFoundError,
    RefundExceedsChargeError,
    ReservationNotFoundError,
    RunNotFoundError,
    TransactionNotFoundError,
    UnpricedActionError,
)
from agentcredits.model import PlannedAction, Rollover
from agentcredits.rules.price_entries import PriceEntry
from agentcredits.rules.price_rules import PriceRule
from agentcredits.service import CreditService, SyncCreditService
from agentcredits.store import tables
from agentcredits.testing import FakeClock

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ACME, OTHER = "acme", "other"
NUL, SURROGATE, LONG = "a\x00b", "a\ud800b", "x" * 5_000
UNKNOWN_ID = str(uuid.UUID(int=12345))

NUMBERS: list[Any] = [
    *(
        -1,
        "-0.5",
        math.nan,
        math.inf,
        -math.inf,
        "NaN",
        "Infinity",
        Decimal("NaN"),
        Decimal("sNaN"),
        Decimal("-Infinity"),
    ),
    *(True, False, "0.0000001", 1.0000001, 10**25, "1e25", 1e300, Decimal("1E+999999"), "", " 1", "1,5", "ten", "0x1"),
    *("\u0661", b"1", [], {}, object(), 1j, NUL, SURROGATE),
]
BAD: dict[str, list[Any]] = {
    "amount": [*NUMBERS, 0, "0", 0.0, Decimal("-0")],
    "amount or zero": NUMBERS,
    "text": ["", NUL, SURROGATE, LONG, 5, b"text", ["x"], {"x": 1}, object(), True],
    "organization": ["", NUL, SURROGATE, LONG, 5, b"acme", ["acme"], object()],
    "when": [datetime(2027, 1, 1), date(2027, 1, 1), "2027-01-01T00:00:00Z", 1.5, True],  # noqa: DTZ001  # naive on purpose
    "ttl": [timedelta(0), timedelta(seconds=-1), timedelta.max, 300, "5m", 1.5, True],
    "json": [
        *({"x": object()}, {"x": math.nan}, {"x": b"1"}, {"x": NUL}, {NUL: 1}, {"x": [SURROGATE]}, {"x": "y" * 8192}),
        *({("a",): 1}, "text", ["x"], 5),
    ],
    "choice": ["nonsense", "", 5, object(), NUL],
    "page size": [0, -1, 10**6, True, 1.5, "5"],
    "cursor": [-1, True, 1.5, "x", 10**30],
    "priority": [-1, 10**30, True, 1.5, "5"],
    "record id": ["", NUL, SURROGATE, LONG, 5, b"x", object(), ["x"]],
}
KIND: dict[str, str] = {
    **dict.fromkeys(("amount", "quantity", "cost"), "amount"),
    **dict.fromkeys(("agent_type", "action", "reason", "provider", "provider_reference", "source"), "text"),
    **dict.fromkeys(
        ("organization_id", "project_id", "department_id", "user_id", "run_id", "scope_id"), "organization"
    ),
    **dict.fromkeys(
        ("effective_at", "expires_at", "anchor", "ends_at", "valid_from", "valid_until", "since", "until"), "when"
    ),
    **dict.fromkeys(("metadata", "dimensions"), "json"),
    **dict.fromkeys(("overage", "category", "type", "scope", "unit", "mode", "bucket", "every"), "choice"),
    **dict.fromkeys(("reservation", "transaction", "grant", "recurring"), "record id"),
    "idempotency_key": "text",
    "ttl": "ttl",
    "limit": "page size",
    "cursor": "cursor",
    "priority": "priority",
    "final_amount": "amount or zero",
    "max_credits": "amount or zero",
    "by": "text",
    "run": "record id",
    "parent_run_id": "organization",
}
Wrong = tuple[str, dict[str, Any], type[CreditsError]]


@dataclass
class Entry:
    """A method with good arguments."""

    name: str
    good: dict[str, Any]
    #: The arguments that are tried with every bad value of their kind (see KIND), separated by spaces.
    tried: str
    positional: tuple[str, ...] = ()
    #: (what, arguments, error): input that is well-formed and still wrong.
    wrong: Sequence[Wrong] = ()


@dataclass
class Ids:
    """Records that stand in the ledger: of acme, and of another organization."""

    hold: str
    charge: str
    purchase: str
    grant: str
    foreign_hold: str
    foreign_charge: str
    foreign_grant: str
    limit: str
    foreign_limit: str
    recurring: str
    foreign_recurring: str


UNKNOWN_ACCOUNT: Wrong = ("unknown organization", {"organization_id": "nobody"}, AccountNotFoundError)
NO_ORGANIZATION: Wrong = ("no organization anywhere", {"organization_id": None}, MissingContextError)
UNPRICED: Wrong = ("an unpriced action", {"amount": None, "agent_type": "A", "action": "b"}, UnpricedActionError)
PRICED_WRONG: tuple[Wrong, ...] = (
    ("neither amount nor action", {"amount": None}, InvalidInputError),
    ("an agent type without an action", {"amount": None, "agent_type": "A"}, InvalidInputError),
    UNPRICED,
    ("a bad agent type", {"amount": None, "agent_type": ["A"], "action": "b"}, InvalidInputError),
    ("a bad action", {"amount": None, "agent_type": "A", "action": NUL}, InvalidInputError),
)
CHARGE_WRONG: tuple[Wrong, ...] = (
    UNKNOWN_ACCOUNT,
    ("more than there is", {"amount": 10_000}, InsufficientCreditsError),
    *PRICED_WRONG,
)
LATER, EARLIER = START + timedelta(days=2), START + timedelta(days=1)
ACTIVITY = "organization_id amount agent_type action quantity dimensions"
SCOPES = "project_id department_id user_id metadata idempotency_key"


def key_reused(key: str) -> Wrong:
    return ("a key with another payload", {"idempotency_key": key}, IdempotencyMismatchError)


def entries(ids: Ids) -> list[Entry]:
    """Every public method that takes input."""
    acme = {"organization_id": ACME}
    first = ("organization_id",)
    return [
        Entry("get_balance", acme, "organization_id", first, [UNKNOWN_ACCOUNT]),
        Entry("create_account", {"organization_id": "newcomer"}, "organization_id", first),
        Entry(
            "check_credits",
            {**acme, "amount": 1},
            "organization_id amount quantity project_id department_id user_id",
            first,
            PRICED_WRONG,
        ),
        quote_entry(),
        Entry(
            "consume_credits",
            {**acme, "amount": 1},
            f"{ACTIVITY} {SCOPES} overage",
            (),
            [*CHARGE_WRONG, key_reused("charge")],
        ),
        Entry(
            "reserve_credits",
            {**acme, "amount": 1},
            f"{ACTIVITY} {SCOPES} ttl",
            (),
            [*CHARGE_WRONG, key_reused("hold")],
        ),
        *hold_entries(ids),
        Entry(
            "list_reservations",
            {**acme, "states": ["active"], "limit": 5},
            "organization_id limit",
            first,
            [
                ("an unknown state", {"states": ["nonsense"]}, InvalidInputError),
                ("no text", {"states": [5]}, InvalidInputError),
                ("no sequence", {"states": 5}, InvalidInputError),
                UNKNOWN_ACCOUNT,
            ],
        ),
        Entry(
            "refund_credits",
            {"transaction": ids.charge, "amount": 1, "reason": "sorry", **acme},
            "transaction amount reason organization_id idempotency_key",
            ("transaction", "amount", "reason"),
            [
                ("unknown transaction", {"transaction": UNKNOWN_ID}, TransactionNotFoundError),
                ("foreign transaction", {"transaction": ids.foreign_charge}, TransactionNotFoundError),
                ("no charge", {"transaction": ids.purchase}, CreditsError),
                ("more than the charge", {"amount": 8}, RefundExceedsChargeError),
                key_reused("refund"),
                NO_ORGANIZATION,
            ],
        ),
        *grant_entries(ids),
        *cost_entries(),
        *limit_entries(ids),
        *report_entries(),
        *account_entries(),
        *run_entries(),
        *upkeep_entries(),
        Entry(
            "list_transactions",
            {**acme, "limit": 5},
            "organization_id limit cursor type agent_type action project_id department_id user_id run_id since until",
            first,
            [UNKNOWN_ACCOUNT],
        ),
        Entry("sweep", acme, "organization_id", first),
        Entry("verify", acme, "organization_id", first),
    ]


def quote_entry() -> Entry:
    planned: list[tuple[str, Any, type[CreditsError]]] = [
        ("an unpriced action", [PlannedAction("A", "b")], UnpricedActionError),
        ("a bad quantity", [PlannedAction("ContentAgent", "generate_content", -1)], InvalidAmountError),
        ("a bad name", [PlannedAction(NUL, "b")], InvalidInputError),
        ("no planned action", [("ContentAgent", "generate_content")], InvalidInputError),
        ("no sequence", 5, InvalidInputError),
    ]
    wrong: list[Wrong] = [(what, {"actions": actions}, error) for what, actions, error in planned]
    good = {"organization_id": ACME, "actions": []}
    return Entry("quote", good, "organization_id", ("organization_id", "actions"), wrong)


def hold_entries(ids: Ids) -> list[Entry]:
    """The methods that take a reservation's id."""
    hold = {"reservation": ids.hold, "organization_id": ACME}
    wrong: list[Wrong] = [
        ("unknown reservation", {"reservation": UNKNOWN_ID}, ReservationNotFoundError),
        ("foreign reservation", {"reservation": ids.foreign_hold}, ReservationNotFoundError),
        ("own reservation, foreign organization", {"organization_id": OTHER}, ReservationNotFoundError),
        ("a transaction's id", {"reservation": ids.charge}, ReservationNotFoundError),
        NO_ORGANIZATION,
    ]
    tried = "reservation organization_id"
    too_much: Wrong = ("more than the hold", {"final_amount": 6}, OverageRejectedError)
    commit, release = {**hold, "final_amount": 1}, {**hold, "reason": "done"}
    settle, give_back = ("reservation", "final_amount"), ("reservation", "reason")
    unknown = {**hold, "provider": "fal", "provider_reference": "job"}
    return [
        Entry("commit_reservation", commit, f"{tried} final_amount overage metadata", settle, [*wrong, too_much]),
        Entry("confirm", commit, f"{tried} final_amount", settle, [*wrong, too_much]),
        Entry("release_reservation", release, f"{tried} reason", give_back, wrong),
        Entry("rollback", release, f"{tried} reason", give_back, wrong),
        Entry(
            "extend_reservation", {**hold, "ttl": timedelta(minutes=1)}, f"{tried} ttl", ("reservation", "ttl"), wrong
        ),
        Entry(
            "mark_unknown",
            unknown,
            f"{tried} provider provider_reference",
            ("reservation", "provider", "provider_reference"),
            wrong,
        ),
        Entry("get_reservation", hold, tried, ("reservation",), wrong),
    ]


COST_AND_NAMES_WRONG: tuple[Wrong, ...] = (
    *((f"only_for {value!r:.30}", {"only_for": value}, InvalidInputError) for value in ("A", 5, [], [5], [NUL], ["*"])),
    ("a cost without a currency", {"unit_cost": 1}, InvalidInputError),
    ("a currency without a cost", {"currency": "USD"}, InvalidInputError),
    *((f"currency {value!r:.30}", {"unit_cost": 1, "currency": value}, InvalidInputError) for value in BAD["text"]),
    *(
        (f"unit_cost {value!r:.30}", {"unit_cost": value, "currency": "USD"}, InvalidAmountError)
        for value in NUMBERS
        if value is not None
    ),
)


def recurring_entries(ids: Ids) -> list[Entry]:
    acme, first = {"organization_id": ACME}, ("organization_id",)
    lasting: list[Wrong] = [
        (f"expires_after {value!r:.30}", {"expires_after": value}, InvalidInputError) for value in BAD["ttl"]
    ]
    return [
        Entry(
            "create_recurring_grant",
            {**acme, "amount": 1},
            "organization_id amount every anchor ends_at category priority source idempotency_key",
            (*first, "amount"),
            [
                *((f"tz {value!r:.30}", {"tz": value}, InvalidInputError) for value in ("", "Nowhere", 5, NUL)),
                *lasting,
                ("no rollover", {"rollover": 5}, InvalidInputError),
                ("less than nothing carried over", {"rollover": Rollover(minimum=-1)}, InvalidAmountError),
                ("carried over for no time", {"rollover": Rollover(expires_after=timedelta(0))}, InvalidInputError),
                ("carried over for ever", {"expires_after": None, "rollover": Rollover()}, InvalidInputError),
                ("over already", {"ends_at": START}, InvalidInputError),
                *COST_AND_NAMES_WRONG,
                key_reused("recurring"),
            ],
        ),
        Entry(
            "cancel_recurring_grant",
            {"recurring": ids.recurring, **acme},
            "recurring organization_id",
            ("recurring",),
            [
                ("unknown recurring grant", {"recurring": UNKNOWN_ID}, RecurringGrantNotFoundError),
                ("foreign recurring grant", {"recurring": ids.foreign_recurring}, RecurringGrantNotFoundError),
                NO_ORGANIZATION,
            ],
        ),
        Entry("list_recurring_grants", acme, "organization_id", first, [UNKNOWN_ACCOUNT]),
    ]


def grant_entries(ids: Ids) -> list[Entry]:
    acme = {"organization_id": ACME}
    return [
        Entry(
            "grant_credits",
            {**acme, "amount": 1},
            "organization_id amount category priority effective_at expires_at source idempotency_key metadata",
            ("organization_id", "amount"),
            [
                ("ends before it starts", {"effective_at": LATER, "expires_at": EARLIER}, InvalidInputError),
                ("ends as it starts", {"effective_at": START, "expires_at": START}, InvalidInputError),
                ("over already", {"expires_at": START - timedelta(seconds=1)}, InvalidInputError),
                *COST_AND_NAMES_WRONG,
                key_reused("grant"),
            ],
        ),
        *recurring_entries(ids),
        Entry(
            "void_grant",
            {"grant": ids.grant, **acme},
            "grant organization_id mode",
            ("grant",),
            [
                ("unknown grant", {"grant": UNKNOWN_ID}, GrantNotFoundError),
                ("foreign grant", {"grant": ids.foreign_grant}, GrantNotFoundError),
                NO_ORGANIZATION,
            ],
        ),
        Entry("list_grants", acme, "organization_id", ("organization_id",), [UNKNOWN_ACCOUNT]),
    ]


def account_entries() -> list[Entry]:
    """The standing of accounts; of a newcomer, because the others go on working."""
    first, named = ("organization_id",), {"organization_id": "newcomer", "reason": "a reason", "by": "ann"}
    with_reason = ("organization_id", "reason")
    tried = "organization_id reason by"
    return [
        Entry("get_account", {"organization_id": ACME}, "organization_id", first, [UNKNOWN_ACCOUNT]),
        Entry(
            "set_overdraft",
            {"organization_id": ACME, "amount": 5},
            "organization_id",
            ("organization_id", "amount"),
            [UNKNOWN_ACCOUNT, *((f"amount {value!r:.30}", {"amount": value}, InvalidAmountError) for value in NUMBERS)],
        ),
        *(
            Entry(name, named, tried, with_reason, [UNKNOWN_ACCOUNT])
            for name in ("freeze_account", "unfreeze_account", "close_account", "reopen_account")
        ),
    ]


def run_entries() -> list[Entry]:
    """Runs and their pools."""
    acme, first = {"organization_id": ACME}, ("organization_id",)
    run = {**acme, "run": "run-1"}
    no_run: list[Wrong] = [
        ("unknown run", {"run": "nowhere"}, RunNotFoundError),
        ("foreign run", {"organization_id": OTHER}, RunNotFoundError),
        NO_ORGANIZATION,
    ]
    return [
        Entry(
            "open_run",
            {**acme, "run_id": "run-1", "max_credits": 5, "ttl": timedelta(hours=1)},
            "organization_id run_id max_credits ttl",
            ("organization_id", "run_id"),
            [
                UNKNOWN_ACCOUNT,
                ("an unknown run around it", {"parent_run_id": "nowhere"}, RunNotFoundError),
                ("itself around it", {"parent_run_id": "run-1"}, InvalidInputError),
            ],
        ),
        Entry("get_run", run, "run organization_id", ("run",), no_run),
        Entry("list_runs", {**acme, "limit": 5}, "organization_id limit parent_run_id", first, [UNKNOWN_ACCOUNT]),
        Entry("end_run", {**run, "reason": "done"}, "run organization_id reason", ("run",), no_run),
        Entry("purge_runs", acme, "organization_id", first, [("no time", {"older_than": 5}, InvalidInputError)]),
    ]


def upkeep_entries() -> list[Entry]:
    """What looks after what is there."""
    acme, first = {"organization_id": ACME}, ("organization_id",)
    nothing: Wrong = ("nothing to try", {"costs": None}, InvalidInputError)
    backwards: Wrong = ("ends before it starts", {"since": LATER, "until": EARLIER}, InvalidInputError)
    costs = [PriceEntry("ContentAgent", "generate_content", 2)]
    return [
        Entry("simulate", {**acme, "costs": costs}, "organization_id since until", first, [nothing, backwards]),
        Entry(
            "purge",
            {**acme, "older_than": timedelta(days=90)},
            "organization_id",
            first,
            [
                UNKNOWN_ACCOUNT,
                ("no time", {"older_than": 5}, InvalidInputError),
                ("a moment ago", {"older_than": timedelta(hours=1)}, InvalidInputError),
                ("no age at all", {"older_than": None}, InvalidInputError),
            ],
        ),
        Entry(
            "erase_user_details",
            {**acme, "user_id": "ann"},
            "organization_id user_id",
            ("organization_id", "user_id"),
            [UNKNOWN_ACCOUNT],
        ),
        Entry("repair", acme, "organization_id", first),
    ]


TWICE = [PriceEntry("A", "b", 1), PriceEntry("A", "b", 2)]
WRONG_ENTRIES: tuple[Wrong, ...] = (
    ("no sequence", {"entries": 5}, InvalidInputError),
    ("a text", {"entries": "prices.toml"}, InvalidInputError),
    ("no entries", {"entries": [{"agent_type": "A"}]}, InvalidInputError),
    ("an action twice", {"entries": TWICE}, InvalidInputError),
    ("a naive time", {"entries": [PriceEntry("A", "b", 1, valid_from=START.replace(tzinfo=None))]}, InvalidInputError),
    (
        "an end before its start",
        {"entries": [PriceEntry("A", "b", 1, valid_from=LATER, valid_until=EARLIER)]},
        InvalidInputError,
    ),
)


def cost_entries() -> list[Entry]:
    return [
        Entry(
            "set_cost",
            {"agent_type": "A", "action": "b", "cost": 1},
            "agent_type action cost organization_id valid_from valid_until source",
            ("agent_type", "action", "cost"),
            [
                ("free with a cost", {"free": True}, InvalidInputError),
                ("ends before it starts", {"valid_from": LATER, "valid_until": EARLIER}, InvalidInputError),
                ("over already", {"valid_until": START - timedelta(seconds=1)}, InvalidInputError),
                ("a rule without a price", {"cost": {"kind": "flat"}}, InvalidInputError),
                ("a rule of no kind", {"cost": {"kind": "auction"}}, InvalidInputError),
                ("dollars without a rate", {"cost": PriceRule.usd(1)}, InvalidInputError),
                ("no day", {"as_of": START}, InvalidInputError),
            ],
        ),
        Entry(
            "explain_cost",
            {"agent_type": "ContentAgent", "action": "generate_content", "quantity": 1},
            "agent_type action organization_id quantity dimensions",
            ("agent_type", "action"),
            [("an unpriced action", {"action": "nothing"}, UnpricedActionError)],
        ),
        Entry("import_costs", {"entries": []}, "organization_id", ("entries",), WRONG_ENTRIES),
        Entry("diff_costs", {"entries": []}, "organization_id", ("entries",), WRONG_ENTRIES),
        Entry(
            "get_cost",
            {"agent_type": "ContentAgent", "action": "generate_content"},
            "agent_type action organization_id",
            ("agent_type", "action"),
            [("an unpriced action", {"action": "nothing"}, UnpricedActionError)],
        ),
        Entry("list_costs", {"organization_id": ACME}, "organization_id", ("organization_id",)),
    ]


def limit_entries(ids: Ids) -> list[Entry]:
    acme, first = {"organization_id": ACME}, ("organization_id",)
    good = {**acme, "scope": "department", "scope_id": "sales", "amount": 1_000, "window": "month"}
    windows = ["", "year", "month Nowhere/Land", "fixed 0s 2026-01-01T00:00:00Z", "anniversary 2026-01-31T00:00:00", 5]
    wrong: list[Wrong] = [(f"window {window!r}", {"window": window}, InvalidInputError) for window in windows]
    wrong += [(f"amount {value!r:.30}", {"amount": value}, InvalidAmountError) for value in NUMBERS]
    no_limits: list[Wrong] = [
        (f"limit {value!r:.30}", {"limit": value}, InvalidInputError) for value in BAD["record id"]
    ]
    wrong += [
        ("an organization with an id", {"scope": "organization"}, InvalidInputError),
        ("a run without an id", {"scope": "run", "scope_id": None}, InvalidInputError),
        ("part of a charge", {"unit": "count", "amount": "1.5"}, InvalidAmountError),
        ("warned at nothing", {"warn_at": (0,)}, InvalidInputError),
        ("warned beyond it", {"warn_at": (1.5,)}, InvalidInputError),
        ("warned at a word", {"warn_at": ("most",)}, InvalidInputError),
        ("warnings in no sequence", {"warn_at": 0.5}, InvalidInputError),
    ]
    return [
        Entry("set_limit", good, "organization_id scope scope_id unit mode", first, wrong),
        Entry("list_limits", {**acme, "scope_id": "sales"}, "organization_id scope scope_id", first, [UNKNOWN_ACCOUNT]),
        Entry(
            "remove_limit",
            {**acme, "limit": ids.limit},
            "organization_id",
            ("limit",),
            [
                *no_limits,
                ("unknown limit", {"limit": UNKNOWN_ID}, LimitNotFoundError),
                ("foreign limit", {"limit": ids.foreign_limit}, LimitNotFoundError),
                NO_ORGANIZATION,
            ],
        ),
        Entry("list_limit_crossings", {**acme, "limit": 5}, "organization_id limit", first, [UNKNOWN_ACCOUNT]),
    ]


def report_entries() -> list[Entry]:
    acme, first = {"organization_id": ACME}, ("organization_id",)
    return [
        Entry(
            "adjust_credits",
            {**acme, "amount": 1, "reason": "sorry"},
            "organization_id reason idempotency_key",
            ("organization_id", "amount"),
            [
                *((f"amount {value!r:.30}", {"amount": value}, InvalidAmountError) for value in (0, "x", True, "1e30")),
                ("more than there is", {"amount": -10_000}, InsufficientCreditsError),
                ("taken from nobody", {"organization_id": "nobody", "amount": -1}, AccountNotFoundError),
            ],
        ),
        Entry(
            "get_usage",
            {**acme, "group_by": ("agent_type", "user"), "bucket": "week", "since": START.date()},
            "organization_id bucket agent_type action project_id department_id user_id",
            first,
            [
                UNKNOWN_ACCOUNT,
                ("a naive time", {"since": START.replace(tzinfo=None)}, InvalidInputError),
                ("no day", {"until": "yesterday"}, InvalidInputError),
                ("an unknown group", {"group_by": ("run",)}, InvalidInputError),
                ("a group twice", {"group_by": ("user", "user")}, InvalidInputError),
            ],
        ),
        Entry("list_denials", {**acme, "limit": 5}, "organization_id limit since until", first),
        Entry("observe_report", acme, "organization_id since until", first),
    ]


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
