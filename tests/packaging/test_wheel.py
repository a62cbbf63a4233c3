"""The artefact: sdist and wheel are built, and the wheel works in a clean environment, away from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from agentcredits.store.upgrade import EXPECTED_REVISION
from tests.migration.databases import fresh_postgresql

CHECKOUT = Path(__file__).parents[2]
PACKAGES = {
    "agentcredits": CHECKOUT / "agentcredits",
    "agentcredits_crewai": CHECKOUT / "integrations/crewai/agentcredits_crewai",
    "agentcredits_migrations": CHECKOUT / "migrations/agentcredits_migrations",
}


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command as a stranger would: no paths of ours in the environment; its output, or its errors."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist (not from the checkout) as a release is."""
    output = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", output, CHECKOUT, cwd=output)
    (path,) = output.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel in it; what it depends on is borrowed from this one, ours is not."""
    home = tmp_path_factory.mktemp("clean")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=home)
    (site,) = home.glob("lib/python*/site-packages")
    # A path listed in a .pth file is searched for packages, but its own .pth files (an editable install) are not read.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return home


def test_the_wheel_holds_every_module_the_marker_and_the_migrations(wheel: Path) -> None:
    """A forgotten line in pyproject.toml would work in a checkout and nowhere else."""
    names = set(zipfile.ZipFile(wheel).namelist())
    for package, folder in PACKAGES.items():
        files = {
            f"{package}/{path.relative_to(folder).as_posix()}"
            for path in folder.rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }
        assert files <= names
    assert {"agentcredits/py.typed", "agentcredits_migrations/versions/0001_ledger.py"} <= names
    assert "agentcredits_migrations/script.py.mako" in names


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    """No tests, no examples, no stray top-level name in the user's environment; the licence is in it."""
    archive = zipfile.ZipFile(wheel)
    tops = {name.split("/")[0] for name in archive.namelist()}
    assert tops == {*PACKAGES, "agentcredits-0.1.0.dist-info"}
    licence = archive.read("agentcredits-0.1.0.dist-info/licenses/LICENSE").decode()
    assert "Apache License" in licence


def test_the_requirements_have_lower_bounds_only(wheel: Path) -> None:
    """An application joins us with frameworks that pin enough for everybody."""
    metadata = zipfile.ZipFile(wheel).read("agentcredits-0.1.0.dist-info/METADATA").decode()
    requirements = [line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if "Requires-Dist:" in line]
    assert any(line.startswith("sqlalchemy>=") for line in requirements)
    for line in requirements:
        bounds = line.partition(";")[0]
        assert not set("<~!") & set(bounds), line
        assert "==" not in bounds, line
    assert "Requires-Python: >=3.11" in metadata.splitlines()


def test_the_installed_package_is_the_wheels(clean: Path) -> None:
    """The tests below would prove nothing about a checkout that is found by accident."""
    code = "import agentcredits, agentcredits_migrations as m; print(agentcredits.__file__, m.__file__, sep='\\n')"
    for line in run(clean / "bin/python", "-W", "error", "-c", code, cwd=clean).splitlines():
        assert Path(line).is_relative_to(clean)


def test_the_import_is_light(clean: Path) -> None:
    """Web, command line, migrations and frameworks are imported by who uses them."""
    code = "import agentcredits, sys; print(sorted({'crewai', 'fastapi', 'alembic', 'typer'} & set(sys.modules)))"
    assert run(clean / "bin/python", "-c", code, cwd=clean) == "[]\n"


def test_the_import_needs_the_declared_dependencies_only(clean: Path) -> None:
    """What an extra brings, or SQLAlchemy's own asyncio extra (greenlet), may be missing."""
    missing = ("asyncpg", "aiosqlite", "crewai", "greenlet", "psycopg")
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); import agentcredits, agentcredits.cli"
    run(clean / "bin/python", "-c", code, cwd=clean)


def check_database(clean: Path, url: str) -> None:
    program = clean / "bin" / "agentcredits"
    upgraded = json.loads(run(program, "db", "upgrade", "--database", url, "--json", cwd=clean))
    assert (upgraded["before"], upgraded["revision"]) == (None, EXPECTED_REVISION)
    checked = json.loads(run(program, "db", "check", "--database", url, "--json", cwd=clean))
    assert (checked["ok"], checked["problems"]) == (True, [])
    again = json.loads(run(program, "db", "upgrade", "--database", url, "--json", cwd=clean))
    assert (again["before"], again["revision"]) == (EXPECTED_REVISION, EXPECTED_REVISION)


def test_the_command_line_upgrades_and_checks_sqlite(clean: Path, tmp_path: Path) -> None:
    """The migrations travel in the wheel and build the declared schema."""
    check_database(clean, f"sqlite:///{tmp_path / 'credits.db'}")


@pytest.mark.postgres
def test_the_command_line_upgrades_and_checks_postgresql(clean: Path, pg_server_url: str) -> None:
    """The same on PostgreSQL."""
    with fresh_postgresql(pg_server_url) as url:
        check_database(clean, url)


def test_the_price_lists_travel_in_the_wheel(clean: Path) -> None:
    """Data files are found where there is no checkout."""
    listed = json.loads(run(clean / "bin" / "agentcredits", "costs", "seeds", "--json", cwd=clean))
    assert "studio-models" in {row["name"] for row in listed["items"]}
