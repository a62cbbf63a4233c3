"""Prices from a litellm price map, a JSON object of models.

Each mode becomes one price with a table over the models. Models are named ``provider/model`` in lower case, and by the
map's own key where that is another. A value that no provider asks is a slip of the map: its model is left out and
reported, never sold at that price.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any, Final

from agentcredits.amounts import Amount
from agentcredits.errors import InvalidInputError
from agentcredits.ids import check_text
from agentcredits.price_lists import PriceList, read_text
from agentcredits.rules.price_entries import PriceEntry
from agentcredits.rules.price_rules import PriceRule

MAX_FILE_BYTES: Final = 64 * 1024 * 1024

#: Sanity bands in USD: what one unit may cost, both ends included.
BANDS: Final = {
    "token": (Decimal("1e-9"), Decimal("1e-2")),
    "image": (Decimal("1e-4"), Decimal(10)),
    "second": (Decimal("1e-4"), Decimal(10)),
    "character": (Decimal("1e-6"), Decimal("1e-2")),
}

_MILLION: Final = 1_000_000
_NANO: Final = Decimal("1e-9")
_RESOLUTIONS: Final = ("480p", "720p", "768p", "1080p", "2k", "4k")
_SECOND_FIELDS: Final = ("output_cost_per_second", "output_cost_per_video_per_second")
_IMAGE_FIELDS: Final = ("output_cost_per_image", "input_cost_per_image")
#: How many models a sentence names.
_NAMED: Final = 3

Row = dict[str, Any]
Model = Mapping[str, Any]


class _Unusable(Exception):  # noqa: N818  # never seen outside: it carries a reason to the report
    """A model that is left out."""


def read_litellm(
    path: str | Path,
    *,
    credits_per_usd: Amount,
    today: date,
    agent_type: str = "*",
    only: Iterable[str] = (),
    as_of: date | None = None,
) -> PriceList:
    """The prices of a litellm price map, such as ``model_prices_and_context_window.json``.

    Args:
        path: Of the file.
        credits_per_usd: What a dollar is worth.
        today: Models that were retired by then are left out; others end on their day.
        agent_type: Of the prices; ``"*"``: every agent type.
        only: Patterns such as ``"openai/*"``; models that match none are left out. Empty: all.
        as_of: The day of the map.

    Returns:
        Prices of the actions llm_call, embed (by tokens), generate_image, generate_video (per ``duration`` in seconds,
        by ``resolution``) and generate_voice (per ``characters``), as far as the map has any; ``skipped`` says what was
        left out.

    Raises:
        InvalidInputError: the file cannot be read, is no such map, or has nothing that can be used.
    """
    place = Path(path)
    tables = _Tables(tuple(pattern.casefold() for pattern in only), today)
    for key, model in _read(place).items():
        tables.add(key, model)
    entries = tuple(
        PriceEntry(
            agent_type,
            action,
            PriceRule.table(_DIMENSIONS[action], rows, credits_per_usd=credits_per_usd),
            source=f"litellm price map {place.name}"[:255],
            as_of=as_of,
        )
        for action, rows in tables.rows.items()
    )
    if not entries:
        raise InvalidInputError(
            f"{place} has no price that can be used.", reason="bad_price_list", context={"file": str(place)}
        )
    return PriceList(
        name=place.name, entries=entries, title="litellm price map", as_of=as_of, skipped=tuple(tables.report())
    )


def _read(path: Path) -> dict[str, Any]:
    context = {"file": str(path)}
    text = read_text(path, MAX_FILE_BYTES)
    try:
        document = json.loads(text, parse_float=Decimal, parse_constant=str)
    except (ValueError, ArithmeticError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        raise InvalidInputError(
            f"{path} is no JSON: {str(error)[:200]}.",
            reason="bad_price_list",
            context=context if line is None else {**context, "line": line},
        ) from error
    if not isinstance(document, dict):
        raise InvalidInputError(
            f"{path} must be a JSON object with a model's name for each entry.",
            reason="bad_price_list",
            context=context,
        )
    return document


@dataclass(slots=True)
class _Tables:
    """The rows of each action, and why models were left out."""

    only: tuple[str, ...]
    today: date
    rows: dict[str, list[Row]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    _seen: dict[tuple[str, str], Any] = field(default_factory=dict)

    def add(self, key: str, model: Any) -> None:
        if key == "sample_spec":
            return
        try:
            names = _names(key, model)
            if self.only and not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.only for name in names):
                return
            action, read = _read_as(model)
            ends = self._end(model)
            self._keep(action, names, [row if ends is None else {**row, "valid_until": ends} for row in read(model)])
        except (_Unusable, InvalidInputError) as problem:
            self.left_out.setdefault(str(problem), []).append(key)
            return
        if any(name.startswith(("input_cost_per_token_above_", "output_cost_per_token_above_")) for name in model):
            self.left_out.setdefault("has higher prices for long prompts, which are not imported", []).append(key)

    def _end(self, model: Model) -> date | None:
        told = model.get("deprecation_date")
        if told is None:
            return None
        try:
            ends = date.fromisoformat(told)
        except (TypeError, ValueError):
            raise _Unusable("deprecation_date is no day") from None
        if ends <= self.today:
            raise _Unusable("was retired")
        return ends

    def _keep(self, action: str, names: list[str], read: list[Row]) -> None:
        free = [name for name in names if (action, name) not in self._seen]
        if names[0] not in free:
            if self._seen[action, names[0]] != read:
                raise _Unusable("is there twice with other prices, the first of which is used")
            return
        for row in read:
            _check_row(row)
        self._seen |= {(action, name): read for name in free}
        model = free[0] if len(free) == 1 else free
        self.rows.setdefault(action, []).extend({"model": model, **row} for row in read)

    def report(self) -> Iterable[str]:
        for reason, keys in sorted(self.left_out.items(), key=lambda item: -len(item[1])):
            more = ", …" if len(keys) > _NAMED else ""
            yield f"{len(keys):,} × {reason}: {', '.join(key[:60] for key in keys[:_NAMED])}{more}"


def _names(key: str, model: Any) -> list[str]:
    """``provider/model`` in lower case, and the map's own key."""
    if not isinstance(model, Mapping):
        raise _Unusable("is no object")
    own = check_text(key, name="its name").casefold()
    provider = model.get("litellm_provider")
    if not isinstance(provider, str) or not provider:
        raise _Unusable("has no litellm_provider")
    provider = provider.casefold().partition("-")[0].removesuffix("_converse")
    full = own if own.startswith(f"{provider}/") else f"{provider}/{own}"
    return list(dict.fromkeys((check_text(full, name="its name"), own)))


def _read_as(model: Model) -> tuple[str, Callable[[Model], list[Row]]]:
    mode = model.get("mode")
    if not isinstance(mode, str) or mode not in _MODES:
        raise _Unusable(f"mode {str(mode)[:30]} has no price here")
    return _MODES[mode]


def _check_row(row: Row) -> None:
    """A number that no rule takes is this model's problem, not its table's."""
    if "rule" in row:
        PriceRule(row["rule"])


def _price(model: Model, names: Iterable[str], unit: str) -> Decimal | None:
    """The first of these fields that is there, if it is in its band."""
    for name in names:
        value = model.get(name)
        if value is None or value == 0:
            continue
        if isinstance(value, bool) or not isinstance(value, int | Decimal):
            raise _Unusable(f"{name} is no number")
        number = Decimal(value)
        low, high = BANDS[unit]
        if not low <= number <= high:
            raise _Unusable(f"{name} is outside {low} to {high} USD per {unit}")
        return number
    return None


def _tokens(model: Model, *, output: bool) -> list[Row]:
    paid = _price(model, ["input_cost_per_token"], "token")
    made = _price(model, ["output_cost_per_token"], "token") if output else None
    if paid is None or (output and made is None):
        raise _Unusable("costs nothing, or has no price per token")
    cached = _price(model, ["cache_read_input_token_cost"], "token")
    rule: dict[str, Any] = {"kind": "tokens", "currency": "usd", "input": _per_million(paid)}
    if made is not None:
        rule["output"] = _per_million(made)
    if cached is not None and cached < paid:
        rule["cached_input"] = _per_million(cached)
    created = _price(model, ["cache_creation_input_token_cost"], "token")
    if created is not None and created != paid:
        rule["cache_creation_input"] = _per_million(created)
    return [{"rule": rule}]


def _per_million(price: Decimal) -> Decimal:
    """Without the noise of the binary floats that the map was made with, such as 4.0000000000000003e-07."""
    return (price * _MILLION).quantize(_NANO, rounding=ROUND_HALF_EVEN)


def _llm_call(model: Model) -> list[Row]:
    return _tokens(model, output=True)


def _embed(model: Model) -> list[Row]:
    return _tokens(model, output=False)


def _image(model: Model) -> list[Row]:
    price = _price(model, _IMAGE_FIELDS, "image")
    if price is None:
        raise _Unusable("has no price per image")
    return [{"usd": price}]


def _video(model: Model) -> list[Row]:
    """By resolution where the map knows any; its base rate stands for one of them then, and it does not say which."""
    rows: list[Row] = []
    for resolution in _RESOLUTIONS:
        price = _price(model, [f"output_cost_per_second_{resolution}"], "second")
        if price is not None:
            rows.append({"resolution": resolution, "rule": {"kind": "usd", "usd": price, "per": "duration"}})
    price = _price(model, _SECOND_FIELDS, "second")
    if price is not None and not rows:
        rows.append({"rule": {"kind": "usd", "usd": price, "per": "duration"}})
    if not rows:
        raise _Unusable("has no price per second of video")
    return rows


def _voice(model: Model) -> list[Row]:
    price = _price(model, ["input_cost_per_character"], "character")
    if price is None:
        raise _Unusable("has no price per character")
    return [{"rule": {"kind": "usd", "usd": price, "per": "characters"}}]


_MODES: Final[dict[str, tuple[str, Callable[[Model], list[Row]]]]] = {
    "chat": ("llm_call", _llm_call),
    "completion": ("llm_call", _llm_call),
    "responses": ("llm_call", _llm_call),
    "embedding": ("embed", _embed),
    "image_generation": ("generate_image", _image),
    "image_edit": ("generate_image", _image),
    "video_generation": ("generate_video", _video),
    "audio_speech": ("generate_voice", _voice),
}
_DIMENSIONS: Final = {
    "llm_call": ("model",),
    "embed": ("model",),
    "generate_image": ("model",),
    "generate_video": ("model", "resolution"),
    "generate_voice": ("model",),
}
