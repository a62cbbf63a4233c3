"""One asset of a batch: what is to be made, by whom, how urgently, and what its price depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import IntEnum
from typing import Any, Final

from agentcredits.amounts import parse_decimal
from agentcredits.errors import InvalidInputError
from agentcredits.ids import check_text, encode_json

#: A prompt at most; providers take far less.
MAX_PROMPT_LENGTH: Final = 20_000

#: JSON of a job's parameters at most.
MAX_PARAMETERS_BYTES: Final = 256 * 1024

MAX_PRIORITY: Final = 1_000_000


class Priority(IntEnum):
    """The words of priorities; lower numbers are made first, and any whole number from 0 on is allowed."""

    HIGH = 10
    MEDIUM = 50
    LOW = 90


@dataclass(frozen=True, slots=True)
class MediaJob:
    """One asset.

    Args:
        asset_id: The caller's own id of the asset; unique within a batch.
        name: What to call it; also the stem of its file.
        prompt: What to make; the text that is shown and stored.
        agent_type: Its price is looked up under this and ``action``.
        action: See ``agent_type``.
        provider: Who makes it ("fal"); rules of faults and the breaker go by it.
        model: The provider's model; also the dimension ``model`` of the price, unless ``dimensions`` has one.
        parameters: What ``generate`` passes on to the provider, as JSON.
        dimensions: What the price depends on (resolution, duration …).
        priority: ``"HIGH"``, ``"MEDIUM"``, ``"LOW"`` or a whole number; lower first, then in the order given.
        key: Unique for each attempt, set when ``generate`` is called: for a provider that takes an idempotency key or
            a tag.

    Raises:
        InvalidInputError: a field cannot be used; ``context["field"]`` names it.
    """

    asset_id: str
    name: str
    prompt: str
    agent_type: str
    action: str
    provider: str | None = None
    model: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    dimensions: Mapping[str, Any] = field(default_factory=dict)
    priority: int | str = Priority.MEDIUM
    key: str = ""

    def __post_init__(self) -> None:
        for name in ("asset_id", "name", "agent_type", "action"):
            _checked(name, lambda name=name: check_text(getattr(self, name), name=name))
        for name in ("provider", "model"):
            if getattr(self, name) is not None:
                _checked(name, lambda name=name: check_text(getattr(self, name), name=name))
        _checked("prompt", lambda: check_text(self.prompt, name="prompt", max_length=MAX_PROMPT_LENGTH))
        _checked("parameters", lambda: encode_json(self.parameters, name="parameters", max_bytes=MAX_PARAMETERS_BYTES))
        _checked("dimensions", lambda: encode_json(self.dimensions, name="dimensions"))
        for name, value in self.dimensions.items():
            _checked(f"dimensions.{name}", lambda name=name, value=value: _refuse_negative(str(name), value))
        object.__setattr__(self, "priority", _checked("priority", lambda: parse_priority(self.priority)))

    @property
    def rank(self) -> int:
        """The priority as a number; lower first."""
        return int(self.priority)

    @property
    def priced_by(self) -> dict[str, Any]:
        """The dimensions that the price is asked for with."""
        return {**({} if self.model is None else {"model": self.model}), **self.dimensions}


def parse_priority(value: object) -> int:
    """A priority as a number.

    Raises:
        InvalidInputError: neither a word of ``Priority`` nor a whole number in range.
    """
    if isinstance(value, str) and value.upper() in Priority.__members__:
        return int(Priority[value.upper()])
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_PRIORITY:
        return int(value)
    raise InvalidInputError(
        f"priority must be HIGH, MEDIUM, LOW or a whole number from 0 to {MAX_PRIORITY:,}, not {value!r:.60}.",
        context={"parameter": "priority"},
    )


def priority_text(rank: int) -> str:
    """``HIGH`` for 10, ``7`` for 7."""
    try:
        return Priority(rank).name
    except ValueError:
        return str(rank)


def _refuse_negative(name: str, value: object) -> None:
    """No price depends on a negative length, whatever kind of price it is."""
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool) and parse_decimal(value, name=name) < 0:
        raise InvalidInputError(f"{name} must not be negative, but is {value}.", reason="negative")


def _checked(name: str, check: Any) -> Any:
    """What the check gives; its error names the field."""
    try:
        return check()
    except InvalidInputError as error:
        error.context["field"] = name
        raise
