"""What the command line says of the past: usage and history, as tables and as CSV."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from rich.console import Console

from agentcredits import SyncCreditService
from agentcredits.cli import history, main, parameters
from agentcredits.cli.output import make_table, print_table
from agentcredits.cli.usage import bar
from tests.integration.cli_calls import Call, charge

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
