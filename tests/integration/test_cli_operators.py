"""The command line of operators: limits, usage, corrections, reservations, what mode "observe" let pass."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from rich.console import Console

from agentcredits import CreditLimitExceededError, Settings, SyncCreditService
from agentcredits.cli import history, main, parameters
from agentcredits.cli.output import make_table, print_table
from agentcredits.cli.usage import bar
from agentcredits.testing import FakeClock
from tests.integration.cli_calls import Answer, Call


@pytest.fixture
def acme(service: SyncCreditService) -> SyncCreditService:
    """An organization with 1,000 credits."""
    service.grant_credits("acme", 1000)
    return service


def charge(service: SyncCreditService, amount: object = 1, **more: Any) -> str:
    return service.consume_credits(organization_id="acme", amount=amount, **more).id  # type: ignore[arg-type]


def refused(answer: Answer) -> str:
    """The sentence of an error that is not about missing credits."""
    assert (answer.code, answer.out) == (2, "")
    assert "Traceback" not in answer.err
    return answer.err.splitlines()[0]


@pytest.fixture
def past(database_url: str) -> Iterator[Callable[[datetime], SyncCreditService]]:
    """Services whose clock stands in the past."""
    opened: list[SyncCreditService] = []

    def at(moment: datetime) -> SyncCreditService:
        opened.append(SyncCreditService(database_url, clock=FakeClock(moment)))
        return opened[-1]

    yield at
    for one in opened:
        one.close()


# -- limits ------------------------------------------------------------------------------------------------------


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


# -- usage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def used(acme: SyncCreditService) -> SyncCreditService:
    """Charges of two departments, one of them given back in part."""
    video = {"agent_type": "VideoAgent", "action": "generate_video"}
    charge(acme, 30, **video, department_id="sales", user_id="ada", project_id="spring")
    back = charge(acme, 10, **video, department_id="ops", user_id="bob")
    charge(acme, "0.5", agent_type="QAAgent", action="answer_question", department_id="sales", user_id="bob")
    acme.refund_credits(back, 4, organization_id="acme")
    return acme


def test_usage_is_grouped_with_a_total(on: Call, used: SyncCreditService) -> None:
    """Lines by what was charged, most first; charged, refunded and net add up to the total."""
    answer = on("usage", "acme", "--by", "department,action", "--json")
    lines = [(list(line["group"].values()), line["charged"], line["net"]) for line in answer.data["lines"]]
    assert lines == [
        (["sales", "generate_video"], 30, 30),
        (["ops", "generate_video"], 10, 6),
        (["sales", "answer_question"], Decimal("0.5"), Decimal("0.5")),
    ]
    total = answer.data["total"]
    assert (total["charges"], total["charged"], total["refunded"], total["net_micros"]) == (
        3, Decimal("40.5"), 4, 36_500_000,
    )  # fmt: skip
    shown = [line.split() for line in on("usage", "acme", "--by", "department").out.splitlines() if line.strip()]
    assert shown[1] == ["department", "charges", "charged", "refunded", "net"]
    assert shown[3:] == [
        ["sales", "2", "30.5", "0", "30.5", "#" * 24],
        ["ops", "1", "10", "4", "6", "#" * 8],
        ["total", "3", "40.5", "4", "36.5"],
    ]


def test_usage_groups_by_action_unless_told_otherwise(on: Call, used: SyncCreditService) -> None:
    """The default is what most ask; --by with nothing, and --bucket alone, give totals."""
    assert on("usage", "acme", "--json").data["group_by"] == ["agent_type", "action"]
    assert on("usage", "acme", "--by", "", "--json").data["group_by"] == []
    assert "charges   3" in on("usage", "acme", "--by", "").out
    assert on("usage", "acme", "--bucket", "month", "--json").data["group_by"] == []


def test_usage_filters(on: Call, used: SyncCreditService) -> None:
    """Each filter narrows what is counted."""

    def charged(*words: str) -> Decimal:
        return Decimal(on("usage", "acme", *words, "--json").data["total"]["charged"])

    assert charged("--department", "sales") == Decimal("30.5")
    assert charged("--project", "spring") == 30
    assert charged("--user", "bob") == Decimal("10.5")
    assert charged("--agent", "QAAgent") == Decimal("0.5")
    assert charged("--action", "generate_video") == 40
    assert "used nothing from" in on("usage", "acme", "--user", "nobody").out


def test_usage_by_day_shows_days_without_use(on: Call, past: Callable[[datetime], SyncCreditService]) -> None:
    """A gap in time is a gap in the chart; since and until cut at UTC days, until not included."""
    first = datetime(2026, 1, 30, 12, tzinfo=UTC)
    past(first).grant_credits("acme", 100)
    for days, amount in ((0, 8), (2, 4), (40, 2)):
        charge(past(first + timedelta(days=days)), amount)
    shown = [line.split() for line in on("usage", "acme", "--bucket", "day", "--until", "2026-02-02").out.splitlines()]
    assert [line for line in shown if line and line[0].startswith("2026")] == [
        ["2026-01-30", "1", "8", "#" * 24],
        ["2026-01-31", "0", "0"],
        ["2026-02-01", "1", "4", "#" * 12],
    ]
    months = on("usage", "acme", "--bucket", "month", "--json").data["lines"]
    assert [(line["bucket"], line["charged"]) for line in months] == [
        ("2026-01-01", 8),
        ("2026-02-01", 4),
        ("2026-03-01", 2),
    ]
    for since, expected in (("2026-02-01", 6), ("2026-02-01T00:00:00+02:00", 6), ("2026-02-02", 2), ("30d", 0)):
        assert on("usage", "acme", "--since", since, "--json").data["total"]["charged"] == expected


def test_usage_as_csv_keeps_numbers_and_defuses_formulas(on: Call, acme: SyncCreditService) -> None:
    """A department called =1+1 must not be computed by whoever opens the file."""
    for department in ("=1+1", "+49", "-2", "@sum", "plain, quoted", "\uff1d1"):
        charge(acme, 2, department_id=department)
    answer = on("usage", "acme", "--by", "department", "--csv")
    rows = answer.rows
    assert {row["department"] for row in rows} == {"'=1+1", "'+49", "'-2", "'@sum", "plain, quoted", "'\uff1d1"}
    assert {(row["charges"], row["charged"], row["net"]) for row in rows} == {("1", "2", "2")}
    assert "\r" not in answer.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--by", "planet"), "group_by must hold"),
        (("--by", "user,user"), "twice"),
        (("--since", "soon"), "--since soon is not a time: write for example 2026-01-31, 7d, 12h or month."),
        (("--since", "2026-02-30"), "is not a time"),
        (("--since", "0d"), "is not a time"),
        (("--until", "2026-01-01T00:00:00"), "has no time zone"),
        (("--since", "2026-02-01", "--until", "2026-02-01"), "nothing lies between them"),
        (("--csv", "--json"), "cannot both"),
        (("--bucket", "hour"), "hour"),
    ],
)
def test_usage_that_cannot_be_asked_for_is_refused(
    on: Call, acme: SyncCreditService, words: tuple[str, ...], sentence: str
) -> None:
    """One sentence each."""
    answer = on("usage", "acme", *words)
    assert (answer.code, answer.out) == (2, "")
    assert sentence in answer.err


def test_usage_of_an_unknown_organization_is_out_of_credits(on: Call) -> None:
    """As every other command about it."""
    assert on("usage", "nobody").code == 3


@pytest.mark.parametrize(
    ("words", "start"),
    [
        ("today", "2026-03-04T00:00:00"),
        ("week", "2026-03-02T00:00:00"),
        ("month", "2026-03-01T00:00:00"),
        ("year", "2026-01-01T00:00:00"),
        ("1d", "2026-03-04T00:00:00"),
        ("7d", "2026-02-26T00:00:00"),
        ("12h", "2026-03-04T03:30:00"),
        ("2026-02-28", "2026-02-28T00:00:00"),
        ("2026-02-28T23:00:00-05:00", "2026-03-01T04:00:00"),
    ],
)
def test_since_means_what_its_help_says(monkeypatch: pytest.MonkeyPatch, words: str, start: str) -> None:
    """Call a Wednesday at 15:30 UTC."""
    monkeypatch.setattr(parameters, "host_now", lambda: datetime(2026, 3, 4, 15, 30, tzinfo=UTC))
    assert parameters.parse_period(words, None) == (datetime.fromisoformat(f"{start}+00:00"), None)
    assert parameters.parse_period(None, words) == (None, datetime.fromisoformat(f"{start}+00:00"))


def test_since_takes_the_words_that_people_use(on: Call, acme: SyncCreditService) -> None:
    """today, week, month, year, days and hours all include this moment."""
    charge(acme, 5)
    for since in ("today", "week", "month", "year", "1d", "7d", "1h"):
        rows = on("history", "acme", "--type", "debit", "--since", since, "--json").data["items"]
        assert [row["amount"] for row in rows] == [-5], since


# -- tables ------------------------------------------------------------------------------------------------------


def terminal(encoding: str, width: int) -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return Console(file=file, force_terminal=True, color_system=None, width=width, markup=False)


def test_bars_are_blocks_where_the_terminal_has_them() -> None:
    """Eighths of a block on UTF-8, # elsewhere; what is not nothing is never shown as nothing."""
    assert bar(terminal("utf-8", 120), 1, 2) == "█" * 12
    assert bar(terminal("utf-8", 120), 3, 64) == "█▏"
    assert bar(terminal("utf-8", 120), 1, 10**12) == "▏"
    assert bar(terminal("ascii", 120), 1, 2) == "#" * 12
    assert bar(terminal("ascii", 120), 1, 10**12) == "#"
    assert bar(terminal("utf-8", 80), 2, 2) == "█" * 10
    assert bar(terminal("utf-8", 120), 0, 2) == ""


def test_a_narrow_terminal_loses_no_digit() -> None:
    """Columns that may fold give way; a number is never cut, whatever the width."""
    console = terminal("utf-8", 40)
    rows = [("a note of some length", "1,234,567.123456", "-9,007,199,254.740991", "12,345")]
    print_table(console, make_table(("note", "amount", "balance", "left"), rows, right=("amount",), folds="note"))
    file = console.file
    file.flush()
    written = file.buffer.getvalue().decode()  # type: ignore[attr-defined]  # the BytesIO below it
    for number in ("1,234,567.123456", "-9,007,199,254.740991", "12,345", "a note of"):
        assert number in written


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


# -- history -----------------------------------------------------------------------------------------------------


def test_history_filters_by_scope_and_time(on: Call, past: Callable[[datetime], SyncCreditService]) -> None:
    """--department, --project, --user, --since and --until, alone and together."""
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    past(noon).grant_credits("acme", 100)
    charge(past(noon + timedelta(hours=1)), 1, department_id="sales", project_id="spring", user_id="ada")
    charge(past(noon + timedelta(days=1)), 2, department_id="sales", user_id="bob")
    charge(past(noon + timedelta(days=2)), 3, department_id="ops", user_id="bob")

    def seqs(*words: str) -> list[int]:
        return [row["seq"] for row in on("history", "acme", "--json", *words).data["items"]]

    assert seqs("--department", "sales") == [3, 2]
    assert seqs("--project", "spring") == [2]
    assert seqs("--user", "bob") == [4, 3]
    assert seqs("--user", "bob", "--department", "sales") == [3]
    assert seqs("--since", "2026-03-02") == [4, 3]
    assert seqs("--since", "2026-03-01T13:00:00Z", "--until", "2026-03-02T12:00:00Z") == [2]
    assert seqs("--until", "2026-03-02") == [2, 1]
    assert seqs("--run", "run-1") == []


def test_history_as_csv_streams_every_row_once(
    on: Call, acme: SyncCreditService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page after page without gap or repetition; --limit and --cursor cut it, filters narrow it."""
    for number in range(1, 8):
        charge(acme, number, metadata={"n": number})
    monkeypatch.setattr(history, "CSV_PAGE", 3)
    rows = on("history", "acme", "--csv").rows
    assert [row["seq"] for row in rows] == ["8", "7", "6", "5", "4", "3", "2", "1"]
    assert [row["amount"] for row in rows] == ["-7", "-6", "-5", "-4", "-3", "-2", "-1", "1000"]
    assert json.loads(rows[0]["metadata"]) == {"n": 7}
    assert list(rows[0]) == list(history.CSV_COLUMNS)
    assert datetime.fromisoformat(rows[0]["created_at"]).tzinfo is not None
    assert [row["seq"] for row in on("history", "acme", "--csv", "--limit", 4).rows] == ["8", "7", "6", "5"]
    assert [row["seq"] for row in on("history", "acme", "--csv", "--cursor", 3).rows] == ["2", "1"]
    assert len(on("history", "acme", "--csv", "--type", "debit").rows) == 7
    none = on("history", "acme", "--csv", "--type", "expire")
    assert (none.code, none.out) == (0, ",".join(history.CSV_COLUMNS) + "\n")
    assert on("history", "nobody", "--csv").out == ""


def test_history_as_csv_defuses_formulas_and_keeps_lines_whole(on: Call, acme: SyncCreditService) -> None:
    """A reason is text, whatever it begins with and holds; amounts stay numbers."""
    reasons = ["=HYPERLINK(1)", "@x", "-1", "a\r=1+1", 'say "hi", he said', "a\nb", "\ttab"]
    for reason in reasons:
        acme.refund_credits(charge(acme, 3), 1, reason, organization_id="acme")
    rows = [row for row in on("history", "acme", "--csv").rows if row["type"] == "refund"]
    assert [row["reason"] for row in reversed(rows)] == [
        "'=HYPERLINK(1)", "'@x", "'-1", "a\n=1+1", 'say "hi", he said', "a\nb", "'\ttab",
    ]  # fmt: skip
    assert {row["amount"] for row in rows} == {"1"}


def test_csv_on_a_terminal_cannot_rewrite_it(
    acme: SyncCreditService, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file gets the bytes; a screen gets the escape sequence as text."""

    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    acme.refund_credits(charge(acme, 3), 1, "a\x1b[31mb", organization_id="acme")
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    assert main(["history", "acme", "--csv", "--database", database_url]) == 0
    assert "\x1b" not in screen.getvalue()
    assert "a\\x1b[31mb" in screen.getvalue()


def test_a_reader_that_leaves_early_ends_the_stream_quietly(sqlite_url: str) -> None:
    """`agentcredits history acme --csv | head -1` shows one line and no traceback."""
    with SyncCreditService(sqlite_url) as service:
        service.grant_credits("acme", 1000)
        for _ in range(300):
            charge(service, metadata={"padding": "x" * 1000})
    command = [sys.executable, "-m", "agentcredits.cli", "history", "acme", "--csv", "--database", sqlite_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline().startswith("seq,created_at,")
        running.stdout.close()
        assert running.stderr.read() == ""
        assert running.wait(30) == 1


# -- corrections -------------------------------------------------------------------------------------------------


def test_adjust_gives_and_takes(on: Call, acme: SyncCreditService) -> None:
    """A sign makes the difference; the reason stays in the ledger."""
    assert on("adjust", "acme", 5, "--reason", "goodwill").out.splitlines() == [
        "Gave 5 credits to acme (seq 2).",
        "It has 1,005 credits available.",
    ]
    taken = on("adjust", "acme", "-0.5", "--reason", "granted twice", "--json").data
    assert (taken["type"], taken["amount"], taken["reason"]) == ("adjust", Decimal("-0.5"), "granted twice")
    assert acme.get_balance("acme").available == Decimal("1004.5")


def test_adjust_with_the_same_key_is_booked_once(on: Call, acme: SyncCreditService) -> None:
    """Said on the screen; another amount under the key is refused."""
    on("adjust", "acme", -5, "--reason", "x", "--key", "t7")
    assert "nothing new was booked" in on("adjust", "acme", -5, "--reason", "x", "--key", "t7").out
    assert "was used before" in refused(on("adjust", "acme", -6, "--reason", "x", "--key", "t7"))
    assert acme.get_balance("acme").available == 995


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("-1000.000001", "--reason", "x"), 3),
        (("0", "--reason", "x"), 2),
        (("nan", "--reason", "x"), 2),
        (("5",), 2),
        (("5", "--reason", ""), 2),
        (("5", "--raeson", "x"), 2),
    ],
)
def test_an_adjustment_that_cannot_be_changes_nothing(
    on: Call, acme: SyncCreditService, words: tuple[str, ...], code: int
) -> None:
    """Too much to take is exit code 3; anything malformed, or without a reason, is 2."""
    answer = on("adjust", "acme", *words)
    assert (answer.code, answer.out) == (code, "")
    assert acme.get_balance("acme").available == 1000
    assert len(acme.list_transactions("acme")) == 1


def test_refund_names_the_charge_by_seq_or_id(on: Call, acme: SyncCreditService) -> None:
    """A part, then the rest; never more than the charge."""
    place = charge(acme, 10, agent_type="VideoAgent", action="generate_video")
    assert on("refund", "acme", 2, "2.5", "--reason", "blurred").out.splitlines() == [
        "Gave 2.5 credits back to acme for VideoAgent.generate_video (seq 3).",
        "It has 992.5 credits available.",
    ]
    assert "7.5 of them can still be refunded" in refused(on("refund", "acme", 2, 8))
    rest = on("refund", "acme", place, "--json").data
    assert (rest["amount"], rest["refund_of"]) == (Decimal("7.5"), place)
    assert acme.get_balance("acme").available == 1000


def test_refund_with_the_same_key_is_given_once(on: Call, acme: SyncCreditService) -> None:
    """A partial refund that is sent twice."""
    charge(acme, 10)
    for _ in range(2):
        answer = on("refund", "acme", 2, 3, "--key", "r")
    assert "nothing new was booked" in answer.out
    assert acme.get_balance("acme").available == 993


@pytest.mark.parametrize("words", [("99",), ("0",), ("1",), ("nonsense",), ("2", "-1"), ("2", "0")])
def test_a_refund_that_cannot_be_changes_nothing(on: Call, acme: SyncCreditService, words: tuple[str, ...]) -> None:
    """No such row, a row that is no charge, an amount that is none."""
    charge(acme, 10)
    refused(on("refund", "acme", *words))
    assert acme.get_balance("acme").available == 990


def test_a_foreign_charge_is_an_unknown_one(on: Call, acme: SyncCreditService) -> None:
    """Another organization's id answers as any id that is not there."""
    place = charge(acme, 10)
    acme.grant_credits("other", 5)
    foreign = on("refund", "other", place, "--json")
    unknown = on("refund", "other", "01990000-0000-7000-8000-000000000000", "--json")
    first, second = (json.loads(answer.err)["error"] for answer in (foreign, unknown))
    assert (first["code"], first["status"]) == (second["code"], second["status"]) == ("transaction_not_found", 404)


def test_grants_are_listed_and_voided_by_their_id(on: Call, acme: SyncCreditService) -> None:
    """What is left goes, what is held stays with its hold; voiding again says so."""
    acme.reserve_credits(organization_id="acme", amount=10)
    (grant,) = on("grants", "list", "acme", "--json").data["items"]
    assert grant["id"] in on("grants", "list", "acme").out
    answer = on("void", "acme", grant["id"], "--reason", "unpaid")
    assert answer.out.splitlines() == [
        "Took 990 credits of the grant back from acme; 10 are still held.",
        "It has 0 credits available.",
    ]
    assert acme.list_transactions("acme").items[0].reason == "unpaid"
    assert "was voided before: nothing was taken" in on("void", "acme", grant["id"], "--reason", "unpaid").out
    assert "no grants to spend from" in on("grants", "list", "acme").out
    assert [one["status"] for one in on("grants", "list", "acme", "--all", "--json").data["items"]] == ["voided"]
    assert "--reason" in refused(on("void", "acme", grant["id"]))
    assert "has no grant" in refused(on("void", "acme", "nonsense", "--reason", "x"))


def test_sweep_books_what_is_due(on: Call, past: Callable[[datetime], SyncCreditService]) -> None:
    """Ended reservations and grants, and the holds whose provider never answered; a second sweep finds nothing."""
    then = past(datetime(2026, 1, 1, tzinfo=UTC))
    for name in ("acme", "beta"):
        then.grant_credits(name, 10)
        then.grant_credits(name, 5, expires_at=datetime(2026, 2, 1, tzinfo=UTC))
        hold = then.reserve_credits(organization_id=name, amount=2)
    then.mark_unknown(hold, "fal", "req-1")
    only = on("sweep", "acme", "--json").data
    assert only == {"accounts": 1, "expired_reservations": 1, "expired_grants": 1, "expired_unknown": []}
    shown = on("sweep").out.splitlines()
    assert shown == [
        "Booked what was due in 1 account: 1 reservation ran out, 1 grant expired.",
        f"No verdict ever came from the provider of reservation {hold.id}.",
    ]
    assert on("sweep").out == "Nothing was due.\n"


# -- reservations ------------------------------------------------------------------------------------------------


def test_reservations_are_listed_by_state(on: Call, acme: SyncCreditService) -> None:
    """Each with its id, amount and what became of it; --state may be given several times."""
    held = acme.reserve_credits(organization_id="acme", amount=7, agent_type="VideoAgent", action="generate_video")
    waits = acme.reserve_credits(organization_id="acme", amount=2)
    acme.mark_unknown(waits, "fal", "req-1")
    done = acme.reserve_credits(organization_id="acme", amount=3)
    done.commit(1)

    def ids(*states: str) -> set[str]:
        words = [word for state in states for word in ("--state", state)]
        return {one["id"] for one in on("reservations", "list", "acme", *words, "--json").data["items"]}

    assert ids("active") == {held.id}
    assert ids("active", "unknown") == {held.id, waits.id}
    assert ids() == {held.id, waits.id, done.id}
    assert len(on("reservations", "list", "acme", "--limit", 2, "--json").data["items"]) == 2
    shown = on("reservations", "list", "acme").out
    for fact in (held.id, "VideoAgent.generate_video", "at fal req-1", "charged 1"):
        assert fact in shown
    assert "has no such reservations" in on("reservations", "list", "acme", "--state", "released").out
    assert "asleep" in refused(on("reservations", "list", "acme", "--state", "asleep"))


def test_a_reservation_is_released_with_a_reason(on: Call, acme: SyncCreditService) -> None:
    """Its credits are back; releasing again is harmless, a charged one is refused."""
    held = acme.reserve_credits(organization_id="acme", amount=7)
    assert "--reason" in refused(on("reservations", "release", "acme", held.id))
    assert on("reservations", "release", "acme", held.id, "--reason", "job lost").out.splitlines() == [
        "Gave 7 held credits back to acme.",
        "It has 1,000 credits available.",
    ]
    record = acme.get_reservation(held.id, organization_id="acme")
    assert (record.state.value, record.reason, record.forced) == ("released", "job lost", True)
    again = on("reservations", "release", "acme", held.id, "--reason", "job lost")
    assert "is released already: nothing changed" in again.out
    done = acme.reserve_credits(organization_id="acme", amount=3)
    done.commit()
    refused(on("reservations", "release", "acme", done.id, "--reason", "x"))
    acme.grant_credits("other", 1)
    assert "other" in refused(on("reservations", "release", "other", held.id, "--reason", "x"))


# -- mode "observe" ----------------------------------------------------------------------------------------------


def test_observe_reports_what_would_have_been_refused(on: Call, database_url: str, acme: SyncCreditService) -> None:
    """Counted by organization, reason, source and action; listed one by one with the sentence."""
    assert on("observe", "report").out == "Nothing would have been refused.\n"
    acme.set_limit("acme", amount=10, window="day", scope="user")
    with SyncCreditService(database_url, settings=Settings(mode="observe")) as watching:
        watching.grant_credits("beta", 1)
        for _ in range(2):
            charge(watching, 2000, agent_type="VideoAgent", action="generate_video")
        charge(watching, 11, user_id="ada")
        watching.consume_credits(organization_id="beta", amount=5)
    report = on("observe", "report", "--json").data
    assert report["count"] == 4
    assert [
        (row["count"], row["required"], row["organization_id"], row["limit_source"]) for row in report["items"]
    ] == [
        (2, 4000, "acme", "balance"),
        (1, 11, "acme", "user"),
        (1, 5, "beta", "balance"),
    ]
    assert on("observe", "report", "beta").out.splitlines()[-1] == "1 call would have been refused."
    assert on("observe", "report", "--until", "2020-01-01", "--json").data == {"items": [], "count": 0}
    listed = on("observe", "list", "acme", "--limit", 1, "--json").data["items"]
    assert [row["required"] for row in listed] == [11]
    shown = on("observe", "list", "--since", "today").out
    assert "generate_video needs 2000" in " ".join(shown.split())
    assert "VideoAgent.generate_video" in on("observe", "report").out
