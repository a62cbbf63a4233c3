"""Batch files in three formats: the same jobs from each, and errors that name file, line, asset and field."""

from __future__ import annotations

import json
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from agentcredits.errors import ConfigurationError, InvalidInputError
from agentcredits.media import read_batch_file

YAML = """\
name: spring
organization: acme
budget: 12.5
defaults: {provider: fal, agent_type: ImageAgent, action: generate_image, model: fal-ai/flux/dev}
assets:
  - id: 1
    name: city
    prompt: A city
    priority: high
    parameters: {guidance_scale: 3.5}
  - id: two
    name: video
    prompt: A wave
    model: other
    dimensions: {duration: 6}
"""

DATA = {
    "name": "spring",
    "organization": "acme",
    "budget": 12.5,
    "defaults": {
        "provider": "fal", "agent_type": "ImageAgent", "action": "generate_image", "model": "fal-ai/flux/dev"
    },
    "assets": [
        {"id": 1, "name": "city", "prompt": "A city", "priority": "high", "parameters": {"guidance_scale": 3.5}},
        {"id": "two", "name": "video", "prompt": "A wave", "model": "other", "dimensions": {"duration": 6}},
    ],
}  # fmt: skip

TOML = """\
name = "spring"
organization = "acme"
budget = 12.5
[defaults]
provider = "fal"
agent_type = "ImageAgent"
action = "generate_image"
model = "fal-ai/flux/dev"
[[assets]]
id = 1
name = "city"
prompt = "A city"
priority = "high"
parameters = {guidance_scale = 3.5}
[[assets]]
id = "two"
name = "video"
prompt = "A wave"
model = "other"
dimensions = {duration = 6}
"""


def write(folder: Path, text: str, name: str = "batch.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"), [("b.yaml", YAML), ("b.yml", YAML), ("b.json", json.dumps(DATA)), ("b.toml", TOML)]
)
def test_each_format_says_the_same(tmp_path: Path, name: str, text: str) -> None:
    found = read_batch_file(write(tmp_path, text, name))
    assert (found.name, found.organization, found.budget) == ("spring", "acme", Decimal("12.5"))
    city, video = found.jobs
    assert (city.asset_id, city.rank, city.model, city.parameters) == (
        "1", 10, "fal-ai/flux/dev", {"guidance_scale": 3.5}
    )  # fmt: skip
    assert (video.asset_id, video.model, video.dimensions, video.provider) == ("two", "other", {"duration": 6}, "fal")


@pytest.mark.parametrize(
    ("text", "message", "where"),
    [
        (YAML.replace("A wave", "''"), "batch.yaml, line 13, asset 2, field prompt: prompt must not be empty.",
         (13, 2, "prompt")),
        (YAML.replace("duration: 6", "duration: -6"),
         "batch.yaml, line 15, asset 2, field dimensions.duration: duration must not be negative, but is -6.",
         (15, 2, "dimensions.duration")),
        (YAML.replace("priority: high", "priority: soon"),
         "batch.yaml, line 9, asset 1, field priority: priority must be HIGH, MEDIUM, LOW or a whole number from 0 to"
         " 1,000,000, not 'soon'.", (9, 1, "priority")),
        (YAML.replace("    prompt: A wave\n", ""), "batch.yaml, line 11, asset 2, field prompt: prompt is missing.",
         (11, 2, "prompt")),
        (YAML.replace("id: two", "id: 1"), "batch.yaml, line 11, asset 2, field id: asset 1 has the id 1 too.",
         (11, 2, "id")),
        (YAML.replace("budget: 12.5", "budget: lots"),
         "batch.yaml, line 3, field budget: budget must be a plain decimal number such as 12.5.", (3, None, "budget")),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(
    tmp_path: Path, text: str, message: str, where: tuple[int, int | None, str]
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_batch_file(write(tmp_path, text))
    assert caught.value.message == message
    assert tuple(caught.value.context[name] for name in ("line", "asset", "field")) == where


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("b.yaml", YAML.replace("name: city", "nmae: city"), "line 7, asset 1, field nmae: there is no field 'nmae'"),
        ("b.yaml", YAML.replace("name: city", "name: city\n    name: town"), "line 8: the field 'name' stands twice"),
        ("b.yaml", "assets: [\n", "line 2"),
        ("b.yaml", "", "line 1: the file is empty"),
        ("b.yaml", "- 1", "line 1: a batch file holds a mapping"),
        ("b.yaml", "name: x\nassets: []", "line 2, field assets: assets must be a list with at least one"),
        ("b.yaml", "a: &x [1]\nassets: [*x]", "line 2: the alias"),
        ("b.yaml", YAML.replace("defaults: {", "defaults: {name: all, "), "field defaults.name"),
        ("b.yaml", "name: !!python/object/apply:os.getcwd []", "line 1: could not determine a constructor"),
        ("b.json", '{"assets": [\n1,]}', "b.json, line 2"),
        ("b.json", '{"name": "a", "name": "b"}', "'name' stands twice"),
        ("b.json", '{"assets": [1]}', "asset 1: an asset must be a mapping, not int"),
        ("b.toml", "assets = [\n", "b.toml"),
        ("b.txt", "", "ends in .yaml"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_batch_file(write(tmp_path, text, name))
    assert words in caught.value.message


def test_bytes_that_are_no_text_and_no_file(tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    path.write_bytes(b"name: a\nassets: \xff")
    with pytest.raises(InvalidInputError, match=r"b\.yaml, line 2: not valid UTF-8"):
        read_batch_file(path)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_batch_file(tmp_path / "none.yaml")


def test_yaml_without_pyyaml_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ConfigurationError, match="pip install pyyaml"):
        read_batch_file(write(tmp_path, YAML))
    assert read_batch_file(write(tmp_path, TOML, "b.toml")).name == "spring"


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    deep: Any = "[" * 100_000
    for name in ("b.json", "b.yaml"):
        with pytest.raises(InvalidInputError):
            read_batch_file(write(tmp_path, deep, name))
