"""The command line: granting, looking, pricing, verifying, and what an error looks like."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import typer.main
from sqlalchemy import create_engine, text

from agentcredits import SyncCreditService
from agentcredits.cli.app import app, tree_for
from agentcredits.store.dialects import normalise_url
from tests.integration.cli_calls import Answer


def sentences(answer: Answer) -> list[str]:
    assert "Traceback" not in answer.err
    assert answer.out == ""
    return answer.err.splitlines()


# -- granting and looking ----------------------------------------------------------------------------------------


def test_grant_opens_the_account_and_says_what_it_has(on: Callable[..., Answer]) -> None:
    """The first grant is all that an organization needs."""
    answer = on("grant", "acme", "12.5")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines() == [
        "Granted 12.5 paid credits to acme.",
        "It has 12.5 credits available.",
    ]
    assert "organization acme has 12.5 credits." in on("balance", "acme").out


def test_grant_takes_every_option(on: Callable[..., Answer]) -> None:
    """Category, priority, times and source arrive in the ledger as given."""
    made = on(
        "grant", "acme", 8, "--category", "promotional", "--priority", 10, "--source", "spring",
        "--effective-at", "2031-01-01T02:00:00+02:00", "--expires-at", "2032-01-01T00:00:00Z", "--json",
    ).data  # fmt: skip
    assert made["category"] == "promotional"
    assert made["priority"] == 10
    assert made["source"] == "spring"
    assert made["effective_at"] == "2031-01-01T00:00:00+00:00"
    assert made["expires_at"] == "2032-01-01T00:00:00+00:00"
    balance = on("balance", "acme", "--json").data
    assert (balance["available"], balance["scheduled"]) == (0, 8)


def test_grant_with_the_same_key_grants_once(on: Callable[..., Answer]) -> None:
    """A retried command answers the same grant and says that nothing new happened."""
    first = on("grant", "acme", 5, "--key", "invoice-7", "--json").data
    again = on("grant", "acme", 5, "--key", "invoice-7", "--json").data
    assert again["id"] == first["id"]
    assert again["replayed"] is True
    assert "nothing new was granted" in on("grant", "acme", 5, "--key", "invoice-7").out
    assert on("balance", "acme", "--json").data["available"] == 5


def test_json_amounts_are_exact_numbers_beside_their_micros(on: Callable[..., Answer]) -> None:
    """9007199254.740991 does not survive a binary float; it does survive --json."""
    made = on("grant", "acme", "9007199254.740991", "--json")
    assert made.data["amount"] == Decimal("9007199254.740991")
    assert made.data["amount_micros"] == 9007199254740991


@pytest.mark.parametrize(
    "words",
    [
        ("--json", "--database", "URL", "balance", "acme"),
        ("balance", "--json", "--database", "URL", "acme"),
        ("balance", "acme", "--database", "URL", "--json"),
        ("--database", "URL", "balance", "acme", "--json"),
    ],
)
def test_options_are_taken_before_and_after_the_command(
    cli: Callable[..., Answer], on: Callable[..., Answer], database_url: str, words: tuple[str, ...]
) -> None:
    """--database and --json may stand anywhere."""
    on("grant", "acme", 3)
    answer = cli(*(database_url if word == "URL" else word for word in words))
    assert answer.data["available"] == 3


def test_the_environment_names_the_database(
    cli: Callable[..., Answer], on: Callable[..., Answer], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --database, AGENTCREDITS_DATABASE_URL is used."""
    on("grant", "acme", 3)
    monkeypatch.setenv("AGENTCREDITS_DATABASE_URL", database_url)
    assert cli("balance", "acme", "--json").data["available"] == 3


# -- history -----------------------------------------------------------------------------------------------------


def test_history_is_newest_first_with_notes(on: Callable[..., Answer], service: SyncCreditService) -> None:
    """Each row shows its seq, action, signed amount, the balance after it, and what is special about it."""
    service.grant_credits("acme", 20)
    charge = service.consume_credits(
        organization_id="acme", agent_type="VideoAgent", action="generate_video", quantity=1
    )
    service.refund_credits(charge.id, 4, "blurred", organization_id="acme")
    lines = [line.split() for line in on("history", "acme").out.splitlines() if line.strip()]
    assert lines[0][0] == "seq"
    rows = [[*words[:1], *words[3:]] for words in lines[2:]]
    assert rows[0][:4] == ["3", "refund", "VideoAgent.generate_video", "+4"]
    assert " ".join(rows[0][4:]) == "14 refund of seq 2, blurred"
    assert rows[1] == ["2", "debit", "VideoAgent.generate_video", "-10", "10"]
    assert rows[2] == ["1", "purchase", "+20", "20"]


def test_history_pages_with_the_cursor_that_it_names(on: Callable[..., Answer], service: SyncCreditService) -> None:
    """Following --cursor gives every row once."""
    for amount in range(1, 6):
        service.grant_credits("acme", amount)
    seen: list[int] = []
    cursor: list[object] = []
    while True:
        page = on("history", "acme", "--limit", 2, "--json", *cursor).data
        seen += [row["seq"] for row in page["items"]]
        if page["next_cursor"] is None:
            break
        assert f"--cursor {page['next_cursor']}" in on("history", "acme", "--limit", 2, *cursor).out
        cursor = ["--cursor", page["next_cursor"]]
    assert seen == [5, 4, 3, 2, 1]


def test_history_filters(on: Callable[..., Answer], service: SyncCreditService) -> None:
    """--type, --agent and --action narrow the rows."""
    service.grant_credits("acme", 20)
    for agent, action in (("VideoAgent", "generate_video"), ("QAAgent", "answer_question")):
        service.consume_credits(organization_id="acme", agent_type=agent, action=action)

    def seqs(*words: str) -> list[int]:
        return [row["seq"] for row in on("history", "acme", "--json", *words).data["items"]]

    assert seqs("--type", "debit") == [3, 2]
    assert seqs("--agent", "VideoAgent") == [2]
    assert seqs("--action", "answer_question") == [3]
    assert "has no such rows" in on("history", "acme", "--action", "other").out


# -- prices ------------------------------------------------------------------------------------------------------


def test_costs_set_changes_what_is_charged(on: Callable[..., Answer], service: SyncCreditService) -> None:
    """A price set for one organization is charged to it and to nobody else."""
    answer = on("costs", "set", "VideoAgent", "generate_video", "2.5", "--org", "acme", "--source", "contract")
    assert answer.out.startswith("VideoAgent.generate_video costs 2.5 credits for acme from ")
    charged = {}
    for organization in ("acme", "other"):
        service.grant_credits(organization, 20)
        row = service.consume_credits(organization_id=organization, agent_type="VideoAgent", action="generate_video")
        charged[organization] = row.charged
    assert charged == {"acme": Decimal("2.5"), "other": Decimal(10)}


def test_costs_list_shows_the_default_prices(on: Callable[..., Answer]) -> None:
    """A migrated database starts with the eight prices of the integration guide."""
    prices = on("costs", "list", "--json").data["items"]
    assert len(prices) == 8
    micros = {price["agent_type"]: price["cost_micros"] for price in prices}
    assert micros["QAAgent"] == 500_000
    shown = on("costs", "list").out
    assert all(f"{price['agent_type']}.{price['action']}" in shown for price in prices)


def test_a_price_of_zero_must_be_called_free(on: Callable[..., Answer]) -> None:
    """0 by a slip of the finger would give work away."""
    refused = on("costs", "set", "A", "b", "0")
    assert refused.code == 2
    assert sentences(refused) == ["cost must be above zero.", "Add --free if it shall cost nothing."]
    assert "A.b is free for everybody" in on("costs", "set", "A", "b", "0", "--free").out


# -- verify ------------------------------------------------------------------------------------------------------


def test_verify_finds_a_counter_that_was_tampered_with(on: Callable[..., Answer], database_url: str) -> None:
    """Clean is exit code 0; a difference is named, with exit code 1."""
    on("grant", "acme", 5)
    on("grant", "other", 5)
    clean = on("verify")
    assert clean.code == 0
    assert clean.out == "Clean: 2 accounts, 2 ledger rows; every counter equals what its rows say.\n"
    engine = create_engine(normalise_url(database_url))
    with engine.begin() as connection:
        connection.execute(text("UPDATE credit_accounts SET spent_micros = 7 WHERE organization_id = 'acme'"))
    engine.dispose()
    broken = on("verify")
    assert broken.code == 1
    assert "acme" in broken.out
    assert on("verify", "other").code == 0


def test_repair_lists_asks_for_yes_and_mends(on: Callable[..., Answer], database_url: str) -> None:
    """--dry-run shows what would become of a counter, nothing happens without --yes, and then all is clean."""
    on("grant", "acme", 5)
    on("grant", "other", 5)
    clean = on("repair", "--dry-run")
    assert (clean.code, clean.out) == (0, "Clean: 2 accounts, 2 ledger rows; there is nothing to repair.\n")
    engine = create_engine(normalise_url(database_url))
    with engine.begin() as connection:
        connection.execute(text("UPDATE credit_accounts SET spent_micros = 7 WHERE organization_id = 'acme'"))
    engine.dispose()
    refused = on("repair")
    assert (refused.code, refused.out) == (2, "")
    assert "--dry-run" in refused.err
    listed = on("repair", "acme", "--dry-run")
    assert listed.code == 1
    assert "0.000007" in listed.out
    (change,) = on("repair", "--dry-run", "--json").data["changes"]
    assert (change["table"], change["column"], change["before"], change["after"]) == (
        "credit_accounts",
        "spent_micros",
        7,
        0,
    )
    assert on("verify").code == 1
    mended = on("repair", "--yes")
    assert mended.code == 0
    assert "made equal to the ledger" in mended.out
    assert on("verify").code == 0


def test_repair_says_what_it_cannot_mend(on: Callable[..., Answer], database_url: str) -> None:
    """A grant that is gone is listed with the reason, and the exit code is 1."""
    on("grant", "acme", 5)
    engine = create_engine(normalise_url(database_url))
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM credit_grants"))
    engine.dispose()
    answer = on("repair", "--yes")
    assert answer.code == 1
    assert "the grant is missing" in answer.out
    assert "left alone" in answer.out or "cannot be repaired" in answer.out


# -- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", ["0", "-5", "nan", "1e30", "0.0000001", "ten"])
def test_an_amount_that_cannot_be_is_refused_in_a_sentence(on: Callable[..., Answer], amount: str) -> None:
    """Exit code 2, one sentence about the amount, and no account appears."""
    answer = on("grant", "acme", amount)
    assert answer.code == 2
    assert "amount" in sentences(answer)[0]
    assert on("balance", "acme").code == 3


@pytest.mark.parametrize("value", ["tomorrow", "2031-01-01", "2031-01-01T00:00:00"])
def test_a_time_without_a_zone_is_refused(on: Callable[..., Answer], value: str) -> None:
    """The message shows how to write it."""
    answer = on("grant", "acme", 1, "--expires-at", value)
    assert answer.code == 2
    assert "write for example 20" in sentences(answer)[0]


def test_an_unknown_organization_is_out_of_credits(on: Callable[..., Answer]) -> None:
    """Exit code 3, like everything that HTTP would answer with 402."""
    answer = on("balance", "nobody")
    assert answer.code == 3
    assert "grant" in " ".join(sentences(answer))


def test_errors_are_json_on_request(on: Callable[..., Answer]) -> None:
    """With --json an error is an object on standard error, and standard output stays empty."""
    answer = on("balance", "nobody", "--json")
    assert answer.out == ""
    error = json.loads(answer.err)["error"]
    assert (error["code"], error["status"]) == ("account_not_found", 402)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("frob",), "No such command 'frob'."),
        (("grant", "acme"), "Missing argument 'AMOUNT'."),
        (("balance", "acme", "--frob"), "No such option: --frob"),
        (("history", "acme", "--limit", "0"), "--limit"),
        (("balance", "acme", "--database", "mysql://x"), "is not supported"),
        (("balance", "acme", "--database", "credits.db"), "must be a URL such as sqlite:///credits.db"),
    ],
)
def test_wrong_use_is_one_sentence(cli: Callable[..., Answer], words: tuple[str, ...], sentence: str) -> None:
    """No usage screen, no box, no traceback: what is wrong, and where the help is."""
    answer = cli(*words)
    assert answer.code == 2
    lines = sentences(answer)
    assert sentence in lines[0]
    assert len(lines) <= 2


def test_a_database_that_is_away_is_one_sentence(cli: Callable[..., Answer]) -> None:
    """Nobody listens there: exit code 2, and the password is not shown."""
    answer = cli("balance", "acme", "--database", "postgresql://user:secret@127.0.0.1:1/credits")
    assert answer.code == 2
    assert "cannot be reached" in sentences(answer)[0]
    assert "secret" not in answer.err


@pytest.mark.parametrize("name", ["[bold]x[/nope]", ":smile:", "a\x1b[31mb"])
def test_names_are_shown_and_not_obeyed(on: Callable[..., Answer], name: str) -> None:
    """Markup, emoji names and escape sequences in ids and notes reach the screen as text, in sentences and tables."""
    on("grant", name, 1)
    on("costs", "set", "A", "b", 1, "--source", name)
    for shown in (on("balance", name).out, on("costs", "list").out):
        assert "\x1b" not in shown
        assert name.replace("\x1b", "\\x1b") in shown


# -- help --------------------------------------------------------------------------------------------------------


def _leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, below in command.commands.items():
        yield from _leaves(below, (*path, name))


COMMANDS = {" ".join(path): command for path, command in _leaves(typer.main.get_command(app))}


def example_of(command: Any) -> list[str]:
    """The words of a command's example; what the shell would do with its output left out."""
    (line,) = re.findall(r"^Example: (.+)$", inspect.cleandoc(command.help), re.MULTILINE)
    words = shlex.split(line)
    return words[: words.index(">")] if ">" in words else words


def test_every_command_of_the_issue_is_there() -> None:
    """A command that is lost in a refactoring would otherwise only be missing from the tests below."""
    assert set(COMMANDS) >= {
        "demo", "db upgrade", "db current", "db check", "db sql", "doctor", "grant", "grants list", "adjust", "refund",
        "void", "sweep", "reservations list", "reservations release", "bulk grant", "bulk adjust", "balance", "verify",
        "history", "usage", "limits list", "limits set", "limits remove", "limits crossings", "costs list", "costs set",
        "costs explain", "costs import", "costs seed", "costs seeds", "costs diff", "observe report", "observe list",
    }  # fmt: skip


@pytest.mark.parametrize("word", sorted({command.split()[0] for command in COMMANDS}))
def test_only_what_the_first_word_names_is_built(word: str) -> None:
    """And that as in the whole program, with its options."""
    built = {" ".join(path): command for path, command in _leaves(tree_for(word))}
    assert set(built) == {command for command in COMMANDS if command.split()[0] == word}
    for name, command in built.items():
        assert command.help == COMMANDS[name].help
        assert [(one.name, one.opts) for one in command.params] == [
            (one.name, one.opts) for one in COMMANDS[name].params
        ]
    assert [one.name for one in tree_for(word).params] == [one.name for one in typer.main.get_command(app).params]


@pytest.mark.parametrize("word", ["", "frob", "--json", "--help", "list"])
def test_any_other_word_is_looked_for_in_the_whole_program(word: str) -> None:
    """An option, nothing, or what is no command."""
    assert {" ".join(path) for path, _ in _leaves(tree_for(word))} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_a_purpose_and_ends_with_an_example(cli: Callable[..., Answer], command: str) -> None:
    """--help says in a sentence what a command is for, explains every argument and option, and shows one call."""
    answer = cli(*command.split(), "--help")
    assert answer.code == 0
    assert f"Example: agentcredits {command}" in answer.out
    written = inspect.cleandoc(COMMANDS[command].help)
    purpose, *_, last = written.split("\n\n")
    assert purpose.endswith(".")
    assert last.startswith("Example: ")
    assert [parameter.name for parameter in COMMANDS[command].params if not parameter.help] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_parses_and_takes_json_and_a_database(command: str) -> None:
    """What the help shows is a call that the command accepts, with --json and --database behind it too."""
    program, *words = example_of(COMMANDS[command])
    path = command.split()
    assert (program, words[: len(path)]) == ("agentcredits", path)
    for more in ([], ["--json", "--database", "sqlite:///x.db"]):
        with COMMANDS[command].make_context(command, [*words[len(path) :], *more]) as context:
            assert context.args == []
            assert context.params["as_json"] is bool(more)
    assert context.params["database"] == "sqlite:///x.db"


@pytest.mark.parametrize("group", ["", "db", "grants", "reservations", "bulk", "limits", "costs", "observe"])
def test_a_group_without_a_command_shows_what_it_has(cli: Callable[..., Answer], group: str) -> None:
    """Typing a group's name alone lists its commands."""
    answer = cli(*group.split())
    assert answer.code == 2
    for command in COMMANDS:
        if command.startswith(f"{group} ".lstrip()):
            assert command.removeprefix(group).split()[0] in answer.out


def test_the_package_imports_no_typer(tmp_path: Path) -> None:
    """Whoever imports the command line's package without running it does not pay for typer and rich."""
    code = "import agentcredits.cli, sys; assert not {'typer', 'rich', 'crewai'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
