"""The command line of limits: set, listed, crossed, removed, refused."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from agentcredits import CreditLimitExceededError, SyncCreditService
from tests.integration.cli_calls import Call, charge, refused


def test_a_limit_that_was_set_refuses_and_is_listed(on: Call, acme: SyncCreditService) -> None:
    """Set on the command line, obeyed by the ledger, shown with what is used, held and left of it."""
    answer = on("limits", "set", "acme", 10, "--window", "month", "--scope", "department", "--id", "sales")
    assert answer.out.splitlines()[0] == (
        "department sales of organization acme may use 10 credits (month UTC); it refuses what goes beyond."
    )
    charge(acme, 4, department_id="sales")
    with (
        acme.reserve_credits(organization_id="acme", amount="1.5", department_id="sales"),
        pytest.raises(CreditLimitExceededError),
    ):
        charge(acme, 5, department_id="sales")
    acme.reserve_credits(organization_id="acme", amount=2, department_id="sales")
    (limit,) = on("limits", "list", "acme", "--json").data["items"]
    assert (limit["scope"], limit["scope_id"], limit["is_each"]) == ("department", "sales", False)
    assert (limit["unit"], limit["window"], limit["amount"], limit["mode"]) == ("credits", "month UTC", 10, "hard")
    (usage,) = limit["usage"]
    assert (usage["spent"], usage["held"], usage["remaining"]) == (Decimal("5.5"), 2, Decimal("2.5"))
    words = on("limits", "list", "acme").out.split()
    assert words[words.index("department") :][:9] == [
        "department", "sales", "credits", "month", "UTC", "10", "hard", "5.5", "2",
    ]  # fmt: skip
    assert limit["id"] in words


def test_setting_a_limit_again_changes_it_and_keeps_its_counters(on: Call, acme: SyncCreditService) -> None:
    """The same scope, id, unit and window is the same limit."""
    first = on("limits", "set", "acme", 10, "--window", "day", "--warn-at", "0.8", "--warn-at", "0.5", "--json").data
    charge(acme, 4)
    again = on("limits", "set", "acme", 3, "--window", "day", "--soft", "--json").data
    assert again["id"] == first["id"]
    assert (first["warn_at"], again["warn_at"]) == ([Decimal("0.5"), Decimal("0.8")], [])
    assert (again["amount"], again["mode"], again["usage"][0]["spent"]) == (3, "soft", 4)
    assert len(on("limits", "list", "acme", "--json").data["items"]) == 1


def test_a_limit_for_each_lists_the_counters_below_it(on: Call, acme: SyncCreditService) -> None:
    """Without --id the limit is for every user who has none of their own; --id narrows to what applies to one."""
    shown = on("limits", "set", "acme", 50, "--window", "day Europe/Berlin", "--scope", "user").out
    assert shown.startswith("each user of organization acme may use 50 credits (day Europe/Berlin)")
    on("limits", "set", "acme", 7, "--window", "lifetime", "--scope", "user", "--id", "bob", "--unit", "count")
    for user, amount in (("ada", 3), ("bob", 2), ("cleo", 1)):
        charge(acme, amount, user_id=user)
    lines = [line.split() for line in on("limits", "list", "acme").out.splitlines() if line.strip()][2:]
    assert [line[0] for line in lines] == ["user", "ada", "bob", "cleo", "user"]
    assert lines[1][1:4] == ["3", "0", "47"]
    assert lines[4][:9] == ["user", "bob", "count", "lifetime", "7", "hard", "1", "0", "6"]
    found = on("limits", "list", "acme", "--id", "bob", "--json").data["items"]
    assert [[usage["scope_id"] for usage in limit["usage"]] for limit in found] == [["bob"], ["bob"]]


def test_a_new_limit_counts_what_was_before_only_when_asked_to(on: Call, acme: SyncCreditService) -> None:
    """--include-existing adds up the present window once."""
    charge(acme, 4)
    plain = on("limits", "set", "acme", 10, "--window", "month", "--json").data
    full = on("limits", "set", "acme", 10, "--window", "day", "--include-existing", "--json").data
    assert (plain["usage"][0]["spent"], full["usage"][0]["spent"]) == (0, 4)


def test_crossings_are_listed_newest_first(on: Call, acme: SyncCreditService) -> None:
    """A warn threshold and a soft limit that was gone beyond, each with what was spent then."""
    on("limits", "set", "acme", 10, "--window", "lifetime", "--soft", "--warn-at", "0.75")
    assert on("limits", "crossings", "acme").out == "organization acme has crossed no threshold.\n"
    charge(acme, 8)
    charge(acme, 8)
    found = on("limits", "crossings", "acme", "--json").data["items"]
    assert [(one["threshold"], one["spent"], one["limit_amount"]) for one in found] == [
        (1, 16, 10),
        (Decimal("0.75"), 8, 10),
    ]
    shown = on("limits", "crossings", "acme").out
    assert shown.index("100 %") < shown.index("75 %")
    assert len(on("limits", "crossings", "acme", "--limit", 1, "--json").data["items"]) == 1


def test_caps_of_runs_are_listed_with_runs(on: Call, acme: SyncCreditService) -> None:
    """They would hide everything else."""
    on("limits", "set", "acme", 5, "--window", "lifetime", "--scope", "run", "--id", "run-1")
    assert "has no such limits" in on("limits", "list", "acme").out
    for words in (("--runs",), ("--scope", "run")):
        assert [one["scope_id"] for one in on("limits", "list", "acme", *words, "--json").data["items"]] == ["run-1"]
    assert "--runs lists the scope run" in refused(on("limits", "list", "acme", "--runs", "--scope", "user"))


def test_a_limit_is_removed_by_its_id_or_by_what_it_is_for(on: Call, acme: SyncCreditService) -> None:
    """After it, nothing refuses any more."""
    sales = on("limits", "set", "acme", 0, "--window", "day", "--scope", "department", "--id", "sales", "--json").data
    on("limits", "set", "acme", 0, "--window", "day", "--scope", "department", "--id", "ops")
    assert on("limits", "remove", "acme", sales["id"]).out == (
        "Removed the limit of 0 credits (day UTC) of department sales.\n"
    )
    charge(acme, department_id="sales")
    with pytest.raises(CreditLimitExceededError):
        charge(acme, department_id="ops")
    gone = on("limits", "remove", "acme", "--scope", "department", "--window", "day UTC", "--json").data
    assert gone["scope_id"] == "ops"
    charge(acme, department_id="ops")


def test_an_ambiguous_or_unknown_selection_removes_nothing(on: Call, acme: SyncCreditService) -> None:
    """Exactly one limit must match; the error names those that do."""
    made = [
        on("limits", "set", "acme", 5, "--window", window, "--scope", "user", "--id", "ada", "--json").data["id"]
        for window in ("day", "month")
    ]
    sentence = refused(on("limits", "remove", "acme", "--scope", "user", "--id", "ada"))
    assert sentence.startswith("2 limits match scope user, id ada, nothing was removed")
    assert all(limit_id in sentence for limit_id in made)
    unknown = on("limits", "remove", "acme", "--scope", "user", "--id", "bob", "--json")
    assert (unknown.code, json.loads(unknown.err)["error"]["code"]) == (2, "limit_not_found")
    for words in ((), (made[0], "--scope", "user")):
        assert "name the limit by its LIMIT_ID, or by --scope" in refused(on("limits", "remove", "acme", *words))
    refused(on("limits", "remove", "acme", "01990000-0000-7000-8000-000000000000"))
    assert [one["id"] for one in on("limits", "list", "acme", "--json").data["items"]] == made


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("-5", "--window", "day"), "must not be negative"),
        (("5", "--window", "fortnight"), "cannot be read"),
        (("5", "--window", "day Europe/Berlyn"), "did you mean Europe/Berlin?"),
        (("5", "--window", "day", "--warn-at", "80"), "warn_at"),
        (("5", "--window", "day", "--warn-at", "often"), "warn_at"),
        (("0.5", "--window", "day", "--unit", "count"), "whole number"),
        (("5", "--window", "day", "--id", "sales"), "takes no scope_id"),
        (("5", "--window", "day", "--scope", "planet"), "planet"),
        (("5",), "--window"),
    ],
)
def test_a_limit_that_cannot_be_is_refused(
    on: Call, acme: SyncCreditService, words: tuple[str, ...], sentence: str
) -> None:
    """One sentence, and no limit."""
    assert sentence in refused(on("limits", "set", "acme", *words))
    assert on("limits", "list", "acme", "--json").data["items"] == []


@pytest.mark.parametrize("columns", [80, 200])
def test_limits_fit_a_terminal_of_80_columns(
    on: Call, acme: SyncCreditService, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    """Call a narrow terminal cells have two lines; every fact is there on both."""
    on("limits", "set", "acme", 500, "--window", "month Europe/Berlin", "--scope", "department",
       "--id", "sales", "--warn-at", "0.8")  # fmt: skip
    monkeypatch.setattr("agentcredits.cli.output.PIPE_COLUMNS", columns)
    shown = on("limits", "list", "acme").out
    for fact in ("department", "sales", "500", "hard, 80 %", "Europe/Berlin"):
        assert fact in shown
    assert (max(len(line.rstrip()) for line in shown.splitlines()) <= 80) is (columns == 80)
