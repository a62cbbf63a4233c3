"""Settings come from arguments over the environment; what cannot be used is named."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agentcredits.errors import ConfigurationError
from agentcredits.settings import Settings, default_database_url, load_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the developer's own environment reaches these tests."""
    for name in [name for name in os.environ if name.startswith("AGENTCREDITS_")]:
        monkeypatch.delenv(name)


def test_the_defaults_are_the_documented_ones() -> None:
    """Holds live five minutes, a provider's verdict is awaited a week, no grace, enforcing, durable SQLite."""
    settings = load_settings()
    assert settings.mode == "enforce"
    assert settings.reservation_ttl == timedelta(minutes=5)
    assert settings.unknown_ttl_seconds == timedelta(days=7).total_seconds()
    assert settings.commit_grace_seconds == 0
    assert settings.on_settlement_failure == "return"
    assert settings.lock_timeout_seconds == 5
    assert settings.batch_size == 500
    assert settings.sqlite_synchronous == "FULL"
    assert settings.database_url is None


def test_the_environment_sets_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """``AGENTCREDITS_<FIELD>`` is read; an argument beats it."""
    monkeypatch.setenv("AGENTCREDITS_POOL_SIZE", "7")
    monkeypatch.setenv("AGENTCREDITS_DATABASE_URL", "sqlite:////tmp/x.db")
    assert load_settings().pool_size == 7
    assert load_settings().database_url == "sqlite:////tmp/x.db"
    assert load_settings(pool_size=9).pool_size == 9


@pytest.mark.parametrize("value", ["off", "OFF", " Off "])
def test_billing_cannot_be_switched_off_by_the_environment(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A variable that goes unseen in production must not make everything free."""
    monkeypatch.setenv("AGENTCREDITS_MODE", value)
    with pytest.raises(ConfigurationError, match="configure"):
        load_settings()
    assert load_settings(mode="off").mode == "off"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mode", "free"),
        ("reservation_ttl_seconds", 0),
        ("reservation_ttl_seconds", -1),
        ("reservation_ttl_seconds", float("nan")),
        ("reservation_ttl_seconds", float("inf")),
        ("reservation_ttl_seconds", "soon"),
        ("unknown_ttl_seconds", 0),
        ("unknown_ttl_seconds", float("nan")),
        ("unknown_ttl_seconds", float("inf")),
        ("unknown_ttl_seconds", 1e300),
        ("commit_grace_seconds", -0.1),
        ("on_settlement_failure", "ignore"),
        ("lock_timeout_seconds", 0),
        ("lock_timeout_seconds", 1e9),
        ("retry_seconds", -1),
        ("retry_seconds", float("nan")),
        ("pool_size", 0),
        ("pool_size", 1.5),
        ("batch_size", 0),
        ("price_cache_seconds", 1.5),
        ("sqlite_synchronous", "OFF"),
        ("no_such_setting", 1),
    ],
)
def test_a_bad_setting_is_refused_by_name(name: str, value: Any) -> None:
    """The error names the setting; no pydantic error comes through."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings(**{name: value})
    assert name in str(caught.value)
    assert caught.value.context["setting"] == name


def test_a_bad_environment_variable_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is checked as arguments are."""
    monkeypatch.setenv("AGENTCREDITS_BATCH_SIZE", "many")
    with pytest.raises(ConfigurationError, match="batch_size"):
        load_settings()


def test_settings_cannot_be_changed_behind_a_services_back() -> None:
    """Settings are frozen: what a service was built with stays."""
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.mode = "off"


def test_the_default_file_does_not_depend_on_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Worker, command line and cron job find the same ledger."""
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    urls = set()
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        urls.add(default_database_url())
    assert urls == {f"sqlite:///{tmp_path / 'home' / '.local' / 'share' / 'agentcredits' / 'agentcredits.db'}"}
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_database_url() == f"sqlite:///{tmp_path / 'data' / 'agentcredits' / 'agentcredits.db'}"


def test_a_relative_data_home_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The XDG rules say so, and it would give each working directory its own empty ledger."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_HOME", "data")
    assert str(tmp_path / "home") in default_database_url()
