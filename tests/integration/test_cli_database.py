"""The command line's `db` and `doctor`, and the rule that only `demo` and `db upgrade` create files."""

from __future__ import annotations

import importlib.metadata
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from agentcredits.cli import main
from agentcredits.store.dialects import normalise_url
from agentcredits.store.tables import VERSION_TABLE
from agentcredits.store.upgrade import EXPECTED_REVISION, REVISIONS

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Call:
    def call(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return call


@pytest.fixture
def missing(tmp_path: Path) -> Path:
    return tmp_path / "credits.db"


# -- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("grant", "acme", "1"),
        ("balance", "acme"),
        ("history", "acme"),
        ("verify",),
        ("costs", "list"),
        ("costs", "set", "A", "b", "1"),
        ("costs", "explain", "A", "b"),
        ("costs", "seed", "agent-actions"),
        ("costs", "diff", "agent-actions"),
        ("db", "current"),
        ("db", "check"),
        ("limits", "list", "acme"),
        ("limits", "set", "acme", "1", "--window", "month"),
        ("usage", "acme"),
        ("grants", "list", "acme"),
        ("adjust", "acme", "1", "--reason", "why"),
        ("refund", "acme", "1"),
        ("sweep",),
        ("reservations", "list", "acme"),
        ("observe", "report"),
        ("bulk", "grant", "-", "--key", "k"),
        ("bulk", "grant", "-", "--key", "k", "--dry-run"),
    ],
)
def test_a_missing_file_is_not_created(cli: Call, missing: Path, words: tuple[str, ...]) -> None:
    """A slip in the path must not become a new, empty ledger: one sentence names the file and the command."""
    code, out, err = cli(*words, "--database", f"sqlite:///{missing}")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert str(missing) in err
    assert "agentcredits db upgrade" in err
    assert list(missing.parent.iterdir()) == []


def test_doctor_diagnoses_a_missing_file_without_creating_it(cli: Call, missing: Path) -> None:
    """Doctor shows where it looked and what to run, with exit code 1."""
    code, out, err = cli("doctor", "--database", f"sqlite:///{missing}")
    assert (code, err) == (1, "")
    assert f"Mend: There is no database file {missing}: create it with `agentcredits db upgrade" in out
    assert list(missing.parent.iterdir()) == []


def test_a_file_without_the_schema_is_left_alone(cli: Call, missing: Path) -> None:
    """Somebody else's SQLite file is never migrated by a command that was not asked to."""
    with sqlite3.connect(missing) as connection:
        connection.execute("CREATE TABLE theirs (id INTEGER)")
    connection.close()
    code, out, err = cli("grant", "acme", 1, "--database", f"sqlite:///{missing}")
    assert (code, out) == (2, "")
    assert "agentcredits db upgrade" in err
    connection = sqlite3.connect(missing)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]
    connection.close()


def test_upgrade_creates_the_default_file_with_its_folder(
    cli: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any URL the ledger is one file per user; only `db upgrade` makes it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("AGENTCREDITS_DATABASE_URL", raising=False)
    assert cli("balance", "acme")[0] == 2
    assert list(tmp_path.iterdir()) == []
    assert cli("db", "upgrade")[0] == 0
    assert (tmp_path / "data" / "agentcredits" / "agentcredits.db").exists()
    assert cli("grant", "acme", 1)[0] == 0


def test_upgrade_does_not_create_folders_that_were_named(cli: Call, tmp_path: Path) -> None:
    """A folder in the URL that is not there is more likely a slip than a wish."""
    code, _out, err = cli("db", "upgrade", "--database", f"sqlite:///{tmp_path}/nope/credits.db")
    assert code == 2
    assert f"There is no folder {tmp_path}/nope" in err
    assert list(tmp_path.iterdir()) == []


# -- db ----------------------------------------------------------------------------------------------------------


def test_upgrade_says_from_where_to_where(cli: Call, missing: Path) -> None:
    """The first run creates, the second finds nothing to do."""
    where = ("--database", f"sqlite:///{missing}")
    assert cli("db", "upgrade", *where)[:2] == (
        0,
        f"sqlite:///{missing} is now at {EXPECTED_REVISION} (before: empty).\n",
    )
    assert cli("db", "upgrade", *where)[:2] == (0, f"sqlite:///{missing} is at {EXPECTED_REVISION} already.\n")
    assert cli("db", "current", *where)[1] == f"sqlite:///{missing} is at {EXPECTED_REVISION} (current).\n"


def test_current_tells_a_program_whether_to_upgrade(cli: Call, missing: Path) -> None:
    """An empty database has no revision and is not current."""
    sqlite3.connect(missing).close()
    code, out, _err = cli("db", "current", "--json", "--database", f"sqlite:///{missing}")
    assert code == 0
    found = json.loads(out)
    assert (found["revision"], found["expected"], found["is_current"]) == (None, EXPECTED_REVISION, False)


def test_check_is_clean_after_the_migrations(cli: Call, database_url: str) -> None:
    """Migrated and declared schema are the same on every database."""
    assert cli("db", "check", "--database", database_url)[:2] == (0, "Clean: the live schema is the declared one.\n")


def test_check_finds_a_dropped_trigger(cli: Call, database_url: str) -> None:
    """Without its trigger the ledger is no longer append-only, and no table looks different."""
    engine = create_engine(normalise_url(database_url))
    drop = {
        "sqlite": "DROP TRIGGER credit_transactions_no_update",
        "postgresql": "DROP TRIGGER credit_transactions_append_only ON credit_transactions",
    }[engine.dialect.name]
    with engine.begin() as connection:
        connection.exec_driver_sql(drop)
    engine.dispose()
    code, out, _err = cli("db", "check", "--database", database_url)
    assert code == 1
    assert "credit_transactions" in out
    code, out, _err = cli("db", "check", "--database", database_url, "--json")
    assert (code, json.loads(out)["ok"], len(json.loads(out)["problems"])) == (1, False, 1)


def test_sql_makes_the_same_schema_by_hand(cli: Call, missing: Path) -> None:
    """What an administrator runs from the file passes `db check`, and no database is touched to write it."""
    where = ("--database", f"sqlite:///{missing}")
    code, script, _err = cli("db", "sql", *where)
    assert code == 0
    assert not missing.exists()
    connection = sqlite3.connect(missing)
    connection.executescript(script)
    connection.close()
    assert cli("db", "check", *where)[0] == 0
    assert "CREATE OR REPLACE TRIGGER" in cli("db", "sql", "--dialect", "postgresql", *where)[1]


# -- doctor ------------------------------------------------------------------------------------------------------


def test_doctor_finds_a_good_database_in_order(cli: Call, database_url: str) -> None:
    """Schema, mode, server, counts and versions, for people and for programs."""
    cli("grant", "acme", 5, "--database", database_url)
    code, out, err = cli("doctor", "--database", database_url)
    assert (code, err) == (0, "")
    assert "Everything is in order." in out
    assert "1 account, 1 grant, 0 reservations, 1 transaction, 8 prices" in out
    report = json.loads(cli("doctor", "--database", database_url, "--json")[1])
    assert report["schema"] == {
        "revision": EXPECTED_REVISION,
        "expected": EXPECTED_REVISION,
        "is_current": True,
        "missing": [],
    }
    assert (report["mode"], report["require_scopes"]) == ("enforce", [])
    assert (report["problems"], report["notes"]) == ([], [])
    assert {"python", "sqlalchemy", "crewai"} <= set(report["versions"])
    if database_url.startswith("sqlite"):
        assert Path(report["file"]).is_absolute()
        assert (report["server"]["journal_mode"], report["server"]["synchronous"]) == ("wal", "FULL")
    else:
        assert report["server"]["postgresql"][0].isdigit()


@pytest.mark.parametrize(
    ("revision", "missing"), [("0001", list(REVISIONS[1:])), ("9999", [])], ids=["an older schema", "a newer schema"]
)
def test_doctor_names_the_migrations_that_are_missing(
    cli: Call, database_url: str, revision: str, missing: list[str]
) -> None:
    """An old schema is a problem with its remedy; one that a newer version made is told apart."""
    engine = create_engine(normalise_url(database_url))
    with engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '{revision}'")
    engine.dispose()
    code, out, _err = cli("doctor", "--database", database_url, "--json")
    report = json.loads(out)
    assert code == 1
    assert report["schema"] == {
        "revision": revision,
        "expected": EXPECTED_REVISION,
        "is_current": False,
        "missing": missing,
    }
    (problem,) = report["problems"]
    assert ("agentcredits db upgrade" in problem) is bool(missing)
    code, out, _err = cli("doctor", "--database", database_url)
    assert code == 1
    assert f"{revision} (this version needs {EXPECTED_REVISION}; missing: {', '.join(missing) or 'none'})" in out


def test_doctor_shows_the_settings_that_should_be_meant(
    cli: Call, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mode observe and synchronous=NORMAL are in order, and noted; required scopes are listed."""
    monkeypatch.setenv("AGENTCREDITS_MODE", "observe")
    monkeypatch.setenv("AGENTCREDITS_SQLITE_SYNCHRONOUS", "NORMAL")
    monkeypatch.setenv("AGENTCREDITS_REQUIRE_SCOPES", '["user", "project"]')
    code, out, _err = cli("doctor", "--database", sqlite_url)
    assert code == 0
    assert "user, project" in out
    assert 'Note: Mode "observe" refuses nothing' in out
    assert "Note: SQLite's synchronous=NORMAL may lose" in out
    report = json.loads(cli("doctor", "--database", sqlite_url, "--json")[1])
    assert (report["mode"], report["require_scopes"], len(report["notes"])) == ("observe", ["user", "project"], 2)
    assert report["server"]["synchronous"] == "NORMAL"


def test_doctor_finds_adapters_without_importing_them(
    cli: Call, sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter's package is found by its name; whether its framework is there is told, and no problem."""
    for package in ("agentcredits_sqlalchemy", "agentcredits_nowhere", "agentcredits_json"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    code, out, _err = cli("doctor", "--database", sqlite_url, "--json")
    assert code == 0
    found = {adapter.pop("package"): adapter for adapter in json.loads(out)["adapters"]}
    version = importlib.metadata.version("sqlalchemy")
    assert found["agentcredits_sqlalchemy"] == {"framework": "sqlalchemy", "installed": True, "version": version}
    assert found["agentcredits_nowhere"] == {"framework": "nowhere", "installed": False, "version": None}
    assert found["agentcredits_json"] == {"framework": "json", "installed": True, "version": None}
    assert "agentcredits_migrations" not in found
    shown = " ".join(cli("doctor", "--database", sqlite_url)[1].split())
    assert f"agentcredits_sqlalchemy adapter for sqlalchemy ({version})" in shown
    assert "agentcredits_nowhere adapter for nowhere (not installed)" in shown
    assert "agentcredits_json adapter for json (installed)" in shown


def test_doctor_shows_a_database_that_is_away_without_its_password(cli: Call) -> None:
    """Doctor is for bad days: it reports what it cannot reach."""
    code, out, err = cli("doctor", "--database", "postgresql://user:secret@127.0.0.1:1/credits")
    assert code == 1
    assert "cannot be reached" in out
    assert "secret" not in out + err
    assert "user:***@127.0.0.1:1/credits" in out


def test_doctor_does_not_import_crewai(tmp_path: Path) -> None:
    """Its version is read from the installed metadata: importing it takes seconds."""
    code = (
        "import sys; from agentcredits.cli import main;"
        f" main(['doctor', '--database', 'sqlite:///{tmp_path}/credits.db']); assert 'crewai' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)
