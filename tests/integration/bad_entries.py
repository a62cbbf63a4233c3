"""Every public method with good arguments, and what is wrong with its own beside the values that are wrong anywhere."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from agentcredits.errors import (
    AccountNotFoundError,
    CreditsError,
    GrantNotFoundError,
    InsufficientCreditsError,
    InvalidAmountError,
    InvalidInputError,
    LimitNotFoundError,
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
from tests.integration.bad_values import (
    ACME,
    ACTIVITY,
    BAD,
    CHARGE_WRONG,
    EARLIER,
    LATER,
    NO_ORGANIZATION,
    NUL,
    NUMBERS,
    OTHER,
    PRICED_WRONG,
    SCOPES,
    START,
    UNKNOWN_ACCOUNT,
    UNKNOWN_ID,
    Entry,
    Ids,
    Wrong,
    key_reused,
)


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
