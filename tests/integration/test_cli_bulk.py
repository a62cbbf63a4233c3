"""Bulk grants and adjustments: each line once, however often the file is run and whatever ends the run."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from agentcredits import AccountNotFoundError, SyncCreditService
from agentcredits.cli import main
from agentcredits.cli.bulk_run import LINES_AT_ONCE, MAX_PROBLEMS
from agentcredits.store.dialects import normalise_url
from agentcredits.testing import FakeClock
from tests.integration.cli_calls import Call, available

# -- once, however often -----------------------------------------------------------------------------------------


def test_a_second_run_books_nothing_and_a_mended_line_is_booked(
    bulk: Call, write: Callable[..., Path], service: SyncCreditService
) -> None:
    """The same key goes on where it stopped; another key is another bulk."""
    lines = ["organization_id,amount", "acme,5", "beta,ten", "zeta,7"]
    assert bulk("grant", write(*lines)).counts == (2, 0, 1)
    assert bulk("grant", write(*lines)).counts == (0, 2, 1)
    lines[2] = "beta,10"
    again = bulk("grant", write(*lines, "eta,1"))
    assert (again.code, again.counts) == (0, (2, 2, 0))
    assert (again.data["booked_credits"], again.data["already_there_credits"], again.data["credits"]) == (11, 12, 23)
    assert available(service, "acme", "beta", "zeta", "eta") == [5, 10, 7, 1]
    assert bulk("grant", write(*lines), key="other").counts == (3, 0, 0)


def test_a_booked_line_that_was_changed_is_a_mismatch(
    bulk: Call, write: Callable[..., Path], service: SyncCreditService
) -> None:
    """Its amount, its terms or its organization: reported, not booked, and the others go on."""
    bulk("grant", write("organization_id,amount,source", "acme,5,a", "beta,5,a", "zeta,5,a", "eta,5,a"))
    answer = bulk("grant", write("organization_id,amount,source", "acme,6,a", "beta,5,b", "other,5,a", "eta,5,a"))
    assert (answer.code, answer.counts) == (2, (0, 1, 3))
    assert [problem["code"] for problem in answer.data["problems"]] == ["idempotency_mismatch"] * 3
    assert "for another organization before" in answer.failed[4]
    assert available(service, "acme", "beta", "zeta", "eta") == [5] * 4
    with pytest.raises(AccountNotFoundError):
        service.get_balance("other")


def test_a_line_that_was_taken_out_does_not_book_the_others_twice(
    bulk: Call, write: Callable[..., Path], service: SyncCreditService
) -> None:
    """All line numbers below it shift: every such line names another organization than the key remembers."""
    names = [f"org-{number}" for number in range(300)]
    bulk("grant", write("organization_id,amount", *(f"{name},5" for name in names)))
    answer = bulk("grant", write("organization_id,amount", *(f"{name},5" for name in names[1:])))
    assert answer.counts == (0, 0, 299)
    assert available(service, *names) == [5] * 300


@pytest.mark.parametrize("key", ["50%", "a_b", "back\\slash", "K", "k:1"])
def test_keys_are_taken_literally(bulk: Call, write: Callable[..., Path], service: SyncCreditService, key: str) -> None:
    """What means something in LIKE, and the same letters in another case, are other keys."""
    bulk("grant", write("organization_id,amount", "acme,5"), key=key)
    for other in ("5000", "aXb", "backslash", "k", "k:11"):
        assert bulk("grant", write("organization_id,amount", "beta,5"), key=other).counts == (1, 0, 0)
    changed = bulk("grant", write("organization_id,amount", "zeta,5"), key=key)
    assert changed.counts == (0, 0, 1)
    assert available(service, "acme", "beta") == [5, 25]


def test_grants_and_adjustments_are_different_kinds(
    bulk: Call, write: Callable[..., Path], service: SyncCreditService
) -> None:
    """The same key may name a bulk of each: they do not know each other's lines."""
    assert bulk("grant", write("organization_id,amount", "acme,5")).counts == (1, 0, 0)
    assert bulk("adjust", write("organization_id,amount,reason", "beta,5,why")).counts == (1, 0, 0)
    assert available(service, "acme", "beta") == [5, 5]


def test_a_grant_that_has_expired_since_is_already_there(
    bulk: Call, write: Callable[..., Path], database_url: str
) -> None:
    """A restart much later must not call booked lines failed."""
    with SyncCreditService(database_url, clock=FakeClock(datetime(2020, 1, 1, tzinfo=UTC))) as then:
        end = datetime(2020, 2, 1, tzinfo=UTC)
        then.grant_credits("acme", 5, expires_at=end, idempotency_key="k:2")
    path = write("organization_id,amount,expires_at", "acme,5,2020-02-01T00:00:00Z", "beta,5,2020-02-01T00:00:00Z")
    for words in ((), ("--dry-run",)):
        answer = bulk("grant", path, *words)
        assert answer.counts == (0, 1, 1)
        assert "later than now" in answer.failed[3]


def test_lines_of_one_organization_are_booked_in_their_order(
    bulk: Call, write: Callable[..., Path], service: SyncCreditService
) -> None:
    """Many are in flight at once: in any other order some of these would find too little to take back."""
    count = LINES_AT_ONCE * 2 + 50
    lines = [f"{name},{'-' if number % 2 else ''}{number // 2 + 1},n{number}"
             for number in range(count) for name in ("acme", "beta")]  # fmt: skip
    answer = bulk("adjust", write("organization_id,amount,reason", *lines))
    assert answer.counts == (2 * count, 0, 0)
    for name in ("acme", "beta"):
        reasons: list[str | None] = []
        cursor = None
        while True:
            page = service.list_transactions(name, cursor=cursor, limit=1000)
            reasons += [row.reason for row in page]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert reasons[::-1] == [f"n{number}" for number in range(count)]


class _Interrupted:
    """A standard input whose reader is interrupted after some lines."""

    def __init__(self, lines: list[str], after: int) -> None:
        self._lines: Iterator[str] = iter(lines)
        self._left = after

    def readline(self, _size: int = -1) -> str:
        if not self._left:
            raise KeyboardInterrupt
        self._left -= 1
        return next(self._lines, "")


def test_an_interrupted_run_says_how_far_it_came_and_goes_on(
    bulk: Call, write: Callable[..., Path], service: SyncCreditService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while it reads: what was booked is counted, exit code 2; the second run books the rest."""
    lines = ["organization_id,amount\n", *(f"org-{number},1\n" for number in range(500))]
    monkeypatch.setattr(sys, "stdin", _Interrupted(lines, after=LINES_AT_ONCE + 50))
    stopped = bulk("grant", "-")
    assert (stopped.code, stopped.counts) == (2, (LINES_AT_ONCE, 0, 0))
    assert (stopped.data["stopped"], stopped.data["last_line"]) == ("it was interrupted", LINES_AT_ONCE + 1)
    again = bulk("grant", write(*(line.rstrip() for line in lines)))
    assert (again.code, again.counts) == (0, (500 - LINES_AT_ONCE, LINES_AT_ONCE, 0))


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_is_finished_by_the_next(
    bulk: Call, write: Callable[..., Path], database_url: str, service: SyncCreditService, sent: signal.Signals
) -> None:
    """Whatever moment it ends at, every line is booked once after the second run."""
    lines = ["organization_id,amount", *(f"org-{number % 700},1" for number in range(2_000))]
    path = write(*lines)
    command = [sys.executable, "-m", "agentcredits.cli", "bulk", "grant", str(path), "--key", "k"]
    with subprocess.Popen(
        [*command, "--database", database_url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        engine = create_engine(normalise_url(database_url))
        with engine.connect() as connection:
            while running.poll() is None:
                seen = connection.execute(text("SELECT count(*) FROM credit_grants")).scalar_one()
                connection.rollback()
                if seen:
                    running.send_signal(sent)
                    break
        engine.dispose()
        out, err = running.communicate(timeout=60)
    assert "Traceback" not in err
    if sent is signal.SIGINT and running.returncode:
        assert running.returncode == 2
        assert "it was interrupted" in out
    again = bulk("grant", path)
    assert again.code == 0
    booked, known, failed = again.counts
    assert (booked + known, failed) == (2_000, 0)
    assert known > 0
    assert sum(available(service, *(f"org-{number}" for number in range(700)))) == 2_000
    assert service.verify("org-1").ok


# -- dry run -----------------------------------------------------------------------------------------------------


def test_a_dry_run_checks_everything_and_writes_nothing(
    bulk: Call, write: Callable[..., Path], service: SyncCreditService, database_url: str
) -> None:
    """Totals, bad lines, what is booked already, what does not match: all of it, and no row more."""
    bulk("grant", write("organization_id,amount", "acme,5", "beta,5"))
    engine = create_engine(normalise_url(database_url))

    def rows() -> list[int]:
        tables = ("credit_accounts", "credit_grants", "credit_transactions", "idempotency_keys", "usage_rollups")
        with engine.connect() as connection:
            return [connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() for table in tables]

    before = rows()
    answer = bulk(
        "grant",
        write("organization_id,amount", "acme,5", "other,5", "zeta,7.5", "eta,x", "theta,2"),
        "--dry-run",
    )
    assert (answer.code, answer.data["ok"], answer.data["dry_run"]) == (2, False, True)
    assert (answer.data["booked"], answer.data["would_book"], answer.data["already_there"]) == (0, 2, 1)
    assert (answer.data["would_book_credits"], answer.data["already_there_credits"]) == (Decimal("9.5"), 5)
    assert list(answer.failed) == [3, 5]
    assert rows() == before
    engine.dispose()
    good = bulk("grant", write("organization_id,amount", "acme,5", "beta,5", "zeta,7"), "--dry-run")
    assert (good.code, good.data["would_book"]) == (0, 1)


def test_a_large_file_is_not_held_in_memory(cli: Call, tmp_path: Path, sqlite_url: str) -> None:
    """40,000 lines, 3 MB, cost no more memory than 4,000; a file of bad lines neither, and its report is bounded."""

    def peak(count: int, line: str) -> int:
        path = tmp_path / "large.csv"
        with path.open("w") as file:
            file.write("organization_id,amount,source\n")
            file.writelines(line.format(number) for number in range(count))
        words = ("bulk", "grant", path, "--key", "k", "--dry-run", "--json", "--database", sqlite_url)
        tracemalloc.start()
        answer = cli(*words)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert answer.data["lines"] == count
        if answer.code:
            assert len(answer.data["problems"]) == MAX_PROBLEMS
            assert answer.data["problems_left_out"] == count - MAX_PROBLEMS
        return most

    source = "x" * 50
    good = f"organization-{{}},5,{source}\n"
    peak(10, good)  # imports
    assert peak(40_000, good) < peak(4_000, good) + 500_000
    peak(4_000, "acme,x,\n")


# -- the screen --------------------------------------------------------------------------------------------------


def test_the_report_on_the_screen(cli: Call, write: Callable[..., Path], sqlite_url: str) -> None:
    """The totals on standard output, each bad line on standard error; what to do next."""
    path = write("organization_id,amount", "acme,1000.5", "beta,x", "zeta,2")
    words = ("bulk", "grant", path, "--key", "k", "--database", sqlite_url)
    answer = cli(*words)
    assert answer.code == 2
    assert answer.err == "line 3: amount must be a plain decimal number such as 12.5.\n"
    assert [line.rstrip() for line in answer.out.splitlines()] == [
        f"1 line of {path} failed.",
        "lines           3",
        "booked          2 (1,002.5 credits)",
        "already there   0 (0 credits)",
        "failed          1",
        "credits in all  1,002.5",
        "Mend them in place and run it again: nothing is booked twice under this key.",
    ]
    path = write("organization_id,amount", "acme,1000.5", "beta,3", "zeta,2")
    dry = cli(*words, "--dry-run")
    assert dry.code == 0
    assert dry.out.splitlines()[0] == f"Good: every line of {path} can be booked; nothing was (dry run)."
    done = cli(*words)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[0] == f"Good: every line of {path} is booked."


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_shown_on_a_terminal_only(
    write: Callable[..., Path], sqlite_url: str, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    """A bar on standard error while it runs; a log file gets none of it."""

    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return is_terminal

    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    path = write("organization_id,amount", *(f"org-{number},1" for number in range(LINES_AT_ONCE + 1)))
    assert main(["bulk", "grant", str(path), "--key", "k", "--database", sqlite_url]) == 0
    assert ("201 booked" in screen.getvalue()) is is_terminal
    assert bool(screen.getvalue()) is is_terminal


# -- the database goes away --------------------------------------------------------------------------------------


def test_a_run_stops_when_the_database_is_away(
    cli: Call, write: Callable[..., Path], sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not go through 10,000 lines to say so 10,000 times; afterwards the same command finishes."""
    monkeypatch.setenv("AGENTCREDITS_LOCK_TIMEOUT_SECONDS", "0.1")
    monkeypatch.setenv("AGENTCREDITS_RETRY_SECONDS", "0")
    path = write("organization_id,amount", *(f"org-{number},1" for number in range(3 * LINES_AT_ONCE)))
    words = ("bulk", "grant", path, "--key", "k", "--json", "--database", sqlite_url)
    engine = create_engine(normalise_url(sqlite_url))
    with engine.connect() as other:
        other.exec_driver_sql("BEGIN IMMEDIATE")
        answer = cli(*words)
        other.rollback()
    engine.dispose()
    assert (answer.code, answer.counts) == (2, (0, 0, LINES_AT_ONCE))
    assert answer.data["stopped"]
    assert {problem["code"] for problem in answer.data["problems"]} == {"store_unavailable"}
    done = cli(*words)
    assert (done.code, done.counts) == (0, (3 * LINES_AT_ONCE, 0, 0))


@pytest.mark.postgres
def test_one_locked_account_does_not_stop_the_others(
    cli: Call, write: Callable[..., Path], postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant whose row somebody holds is a failed line; it is booked by the next run."""
    monkeypatch.setenv("AGENTCREDITS_LOCK_TIMEOUT_SECONDS", "0.2")
    monkeypatch.setenv("AGENTCREDITS_RETRY_SECONDS", "0")
    path = write("organization_id,amount", "acme,1", *(f"org-{number},1" for number in range(50)))
    words = ("bulk", "grant", path, "--key", "k", "--json", "--database", postgresql_url)
    with SyncCreditService(postgresql_url) as service:
        service.create_account("acme")
    engine = create_engine(normalise_url(postgresql_url))
    with engine.connect() as other:
        other.exec_driver_sql("SELECT 1 FROM credit_accounts WHERE organization_id = 'acme' FOR UPDATE")
        answer = cli(*words)
        other.rollback()
    engine.dispose()
    assert (answer.code, answer.counts, list(answer.failed)) == (2, (50, 0, 1), [2])
    assert answer.data["stopped"] is None
    assert cli(*words).counts == (1, 50, 0)
