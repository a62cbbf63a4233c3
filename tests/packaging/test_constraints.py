"""constraints.txt: plain pins, complete, so that every machine installs the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).parents[2]


def pins() -> dict[str, str]:
    lines = (CHECKOUT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*==[0-9][0-9a-z.]*", line) for line in lines)
    return dict(line.split("==") for line in lines)


def test_the_pins_are_sorted_and_unique() -> None:
    """Name and version, nothing else: no URLs, no hashes, no places."""
    lines = (CHECKOUT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split("==")[0] for line in lines] == sorted(pins())


def test_every_requirement_of_the_project_is_pinned_within_its_bounds() -> None:
    """What pyproject.toml asks for, for use, for tests and for the build."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for extra in project["project"]["optional-dependencies"].values():
        wanted += extra
    pinned = pins()
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        if name != "agentcredits":
            assert requirement.specifier.contains(pinned[name]), requirement
