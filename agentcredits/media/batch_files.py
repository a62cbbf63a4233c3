"""Batch files: the jobs of a media batch in YAML, JSON or TOML, checked strictly; errors name line, asset and field.

.. code-block:: yaml

    name: spring campaign
    organization: acme
    budget: 100                # credits
    defaults: {provider: fal, agent_type: ImageAgent, action: generate_image, model: fal-ai/flux/dev}
    assets:
      - {id: 1, name: city, prompt: A futuristic city, priority: high, parameters: {image_size: square}}
"""

from __future__ import annotations

import importlib
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from agentcredits.amounts import from_micros, to_micros
from agentcredits.errors import ConfigurationError, InvalidInputError
from agentcredits.media.jobs import MediaJob

MAX_FILE_BYTES: Final = 8 * 1024 * 1024
MAX_JOBS: Final = 10_000

_TEXTS: Final = ("name", "organization", "project", "department", "user", "output_dir", "account", "generate")
_AMOUNTS: Final = ("budget", "threshold", "threshold_usd", "batch_threshold", "credits_per_usd")
_BATCH_FIELDS: Final = (*_TEXTS, *_AMOUNTS, "concurrency", "defaults", "assets")
_JOB_FIELDS: Final = tuple(
    "id" if entry.name == "asset_id" else entry.name for entry in fields(MediaJob) if entry.name != "key"
)
#: What a file's ``defaults`` may not give to all of its assets.
_OWN: Final = ("id", "name", "prompt")

#: Tells the line of an asset's field (None: of the asset itself), where the format knows lines.
Lines = Callable[[int | None, str | None], int | None]


@dataclass(frozen=True, slots=True)
class BatchFile:
    """A batch file as read; amounts are credits, ``None`` where the file does not say."""

    path: Path
    jobs: tuple[MediaJob, ...]
    name: str
    organization: str | None = None
    project: str | None = None
    department: str | None = None
    user: str | None = None
    output_dir: str | None = None
    account: str = ""
    generate: str | None = None
    budget: Decimal | None = None
    threshold: Decimal | None = None
    threshold_usd: Decimal | None = None
    batch_threshold: Decimal | None = None
    credits_per_usd: Decimal | None = None
    concurrency: int = 4


def read_batch_file(path: str | Path) -> BatchFile:
    """Read and check a batch file; its ending (.yaml, .yml, .json, .toml) says the format.

    Raises:
        InvalidInputError: it cannot be read, or something in it cannot be used; the message names file, line (YAML),
            asset and field, and so does ``context``.
        ConfigurationError: a YAML file, and PyYAML is not installed.
    """
    place = Path(path)
    text = _read(place)
    ending = place.suffix.lower()
    if ending in (".yaml", ".yml"):
        data, lines = _yaml(text, place)
    elif ending == ".json":
        data, lines = _json(text, place), _no_lines
    elif ending == ".toml":
        data, lines = _toml(text, place), _no_lines
    else:
        raise InvalidInputError(
            f"{place.name}: a batch file ends in .yaml, .yml, .json or .toml.", context={"file": str(place)}
        )
    return _Reader(place, lines).batch(data)


def _read(place: Path) -> str:
    try:
        with place.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidInputError(
            f"the file {place} cannot be read: {error.strerror or error}.",
            reason="unreadable_file",
            context={"file": str(place)},
        ) from error
    if len(raw) > MAX_FILE_BYTES:
        raise InvalidInputError(
            f"{place.name} is larger than {MAX_FILE_BYTES:,} bytes.", reason="too_large", context={"file": str(place)}
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InvalidInputError(
            f"{place.name}, line {line}: not valid UTF-8.", context={"file": str(place), "line": line}
        ) from error


def _no_lines(_item: int | None, _field: str | None) -> int | None:
    return None


# -- formats -----------------------------------------------------------------------------------------------------


def _malformed(place: Path, line: int | None, what: str) -> InvalidInputError:
    where = place.name if line is None else f"{place.name}, line {line}"
    return InvalidInputError(
        f"{where}: {' '.join(what.split()).rstrip('.')}.",
        reason="malformed_file",
        context={"file": str(place), "line": line},
    )


def _json(text: str, place: Path) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = next(name for name, _ in pairs if [other for other, _ in pairs].count(name) > 1)
            raise _malformed(place, None, f"the field {twice!r} stands twice in one object")
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise _malformed(place, error.lineno, f"{error.msg} (column {error.colno})") from error
    except RecursionError as error:
        raise _malformed(place, None, "nested too deeply") from error


def _toml(text: str, place: Path) -> Any:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        # the message itself says "(at line 3, column 5)"
        raise _malformed(place, None, str(error) or "nested too deeply") from error


def _yaml(text: str, place: Path) -> tuple[Any, Lines]:
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError as error:
        raise ConfigurationError(
            f"{place.name} is YAML, which needs PyYAML: pip install pyyaml, or write the batch as .json or .toml.",
            reason="missing_dependency",
        ) from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_aliases(yaml, text, place)
        if node is None:
            raise _malformed(place, 1, "the file is empty")
        _refuse_twice(yaml, node, place)
        data = yaml.load(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error)
        raise _malformed(place, None if mark is None else mark.line + 1, what) from error
    except (RecursionError, ValueError, OverflowError) as error:
        raise _malformed(place, None, f"it holds a value that cannot be read ({error})") from error
    return data, _lines_of(yaml, node)


def _refuse_aliases(yaml: Any, text: str, place: Path) -> None:
    """A few lines of aliases can stand for gigabytes; ``defaults`` serves what they are used for."""
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise _malformed(
                place, event.start_mark.line + 1, f"the alias *{event.anchor}: write it out, or use `defaults`"
            )


def _refuse_twice(yaml: Any, node: Any, place: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise _malformed(place, key.start_mark.line + 1, f"the field {key.value!r} stands twice")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
            _refuse_twice(yaml, value, place)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_twice(yaml, value, place)


def _lines_of(yaml: Any, node: Any) -> Lines:
    def entry(mapping: Any, name: str) -> tuple[Any, Any] | None:
        if not isinstance(mapping, yaml.MappingNode):
            return None
        return next((pair for pair in mapping.value if pair[0].value == name), None)

    def line(item: int | None, name: str | None) -> int | None:
        place = node
        if item is not None:
            assets = entry(node, "assets")
            if assets is None or not isinstance(assets[1], yaml.SequenceNode) or item >= len(assets[1].value):
                return None
            place = assets[1].value[item]
        found = place.start_mark.line + 1
        for part in (name or "").split("."):
            pair = entry(place, part)
            if pair is None:
                break
            found, place = pair[0].start_mark.line + 1, pair[1]
        return int(found)

    return line


# -- content -----------------------------------------------------------------------------------------------------


class _Reader:
    def __init__(self, place: Path, lines: Lines) -> None:
        self._place = place
        self._lines = lines

    def batch(self, data: Any) -> BatchFile:
        if not isinstance(data, Mapping):
            raise self._bad(None, None, "a batch file holds a mapping with `assets`")
        self._only(data, _BATCH_FIELDS, None)
        values: dict[str, Any] = {name: self._text(data, name) for name in _TEXTS if data.get(name) is not None}
        values |= {name: self._amount(data, name) for name in _AMOUNTS if data.get(name) is not None}
        if data.get("concurrency") is not None:
            values["concurrency"] = data["concurrency"]
        values.setdefault("name", self._place.stem or "batch")
        assets = data.get("assets")
        if not isinstance(assets, list) or not assets:
            raise self._bad(None, "assets", "assets must be a list with at least one asset")
        if len(assets) > MAX_JOBS:
            raise self._bad(None, "assets", f"a batch has at most {MAX_JOBS:,} assets")
        defaults = data.get("defaults") or {}
        if not isinstance(defaults, Mapping):
            raise self._bad(None, "defaults", "defaults must be a mapping")
        self._only(defaults, tuple(name for name in _JOB_FIELDS if name not in _OWN), None, inside="defaults")
        jobs = tuple(self._job(item, asset, defaults) for item, asset in enumerate(assets))
        self._refuse_same_ids(jobs)
        return BatchFile(path=self._place, jobs=jobs, **values)

    def _job(self, item: int, asset: Any, defaults: Mapping[str, Any]) -> MediaJob:
        if not isinstance(asset, Mapping):
            raise self._bad(item, None, f"an asset must be a mapping, not {type(asset).__name__}")
        self._only(asset, _JOB_FIELDS, item)
        values: dict[str, Any] = {**defaults, **asset}
        for name in ("parameters", "dimensions"):
            own, common = asset.get(name) or {}, defaults.get(name) or {}
            if not isinstance(own, Mapping) or not isinstance(common, Mapping):
                raise self._bad(item, name, f"{name} must be a mapping")
            values[name] = {**common, **own}
        identity = values.pop("id", None)
        values["asset_id"] = (
            str(identity)
            if isinstance(identity, int | float | Decimal) and not isinstance(identity, bool)
            else identity
        )
        for name in ("asset_id", "name", "prompt", "agent_type", "action"):
            if values.get(name) is None:
                shown = "id" if name == "asset_id" else name
                raise self._bad(item, shown, f"{shown} is missing")
        try:
            return MediaJob(**{name: value for name, value in values.items() if value is not None})
        except InvalidInputError as error:
            name = str(error.context.get("field", "")).replace("asset_id", "id")
            raise self._bad(item, name, error.message.replace("asset_id", "id"), error) from error

    def _refuse_same_ids(self, jobs: tuple[MediaJob, ...]) -> None:
        seen: dict[str, int] = {}
        for item, job in enumerate(jobs):
            if job.asset_id in seen:
                raise self._bad(item, "id", f"asset {seen[job.asset_id] + 1} has the id {job.asset_id} too")
            seen[job.asset_id] = item

    def _text(self, data: Mapping[str, Any], name: str) -> str:
        if not isinstance(data[name], str) or not data[name]:
            raise self._bad(None, name, f"{name} must be a text")
        return str(data[name])

    def _amount(self, data: Mapping[str, Any], name: str) -> Decimal:
        try:
            return from_micros(to_micros(data[name], name=name, allow_zero=name != "credits_per_usd"))
        except InvalidInputError as error:
            raise self._bad(None, name, error.message, error) from error

    def _only(
        self, data: Mapping[Any, Any], known: tuple[str, ...], item: int | None, *, inside: str | None = None
    ) -> None:
        for name in data:
            if name not in known:
                place = f"{inside}.{name}" if inside else str(name)
                raise self._bad(item, place, f"there is no field {name!r:.60} here; known are {', '.join(known)}")

    def _bad(
        self, item: int | None, name: str | None, what: str, cause: InvalidInputError | None = None
    ) -> InvalidInputError:
        line = self._lines(item, name)
        parts = [self._place.name, *([] if line is None else [f"line {line}"])]
        parts += [] if item is None else [f"asset {item + 1}"]
        parts += [f"field {name}"] if name else []
        return InvalidInputError(
            f"{', '.join(parts)}: {what.rstrip('.')}.",
            reason="malformed_file" if cause is None else cause.reason,
            context={
                "file": str(self._place),
                "line": line,
                "asset": None if item is None else item + 1,
                "field": name or None,
            },
        )
