"""Identifiers and checked texts: uuid7 ids, scope ids, keys, metadata."""

from __future__ import annotations

import json
import re
import unicodedata
import uuid
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, Final

from uuid_utils import uuid7

from agentcredits.errors import InvalidInputError

MAX_TEXT_LENGTH: Final = 255
MAX_METADATA_BYTES: Final = 8 * 1024

#: How the keys that we generate for charges and holds begin; the id of what the call makes follows.
_GENERATED: Final = "auto-"
_UUID_LENGTH: Final = 36
_UUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")


def new_id() -> str:
    """A new time-ordered id (uuid7) as text."""
    return str(uuid7())


def generated_key(record_id: str) -> str:
    """The idempotency key of a call that was given none and makes this record."""
    return _GENERATED + record_id


def record_of_key(key: str) -> str | None:
    """The id of the record that a call makes under a generated key; None for every other key."""
    record_id = key.removeprefix(_GENERATED)
    return record_id if record_id != key and _UUID.fullmatch(record_id) else None


def derived_id(*parts: str) -> str:
    """The id of what follows from other records alone: the same parts give the same id, wherever it is made."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, "\n".join(parts)))


def check_text(value: Any, *, name: str, max_length: int = MAX_TEXT_LENGTH) -> str:
    """A text of 1 to ``max_length`` characters that every database can store, unchanged.

    Raises:
        InvalidInputError: not a text, empty, too long, or with a NUL character or a lone surrogate.
    """
    if type(value) is str and 0 < len(value) <= max_length and value.isascii() and "\x00" not in value:
        return value  # nearly every text; what follows says what is wrong with the others
    if not isinstance(value, str):
        raise InvalidInputError(f"{name} must be a text, not {type(value).__name__}.", context={"parameter": name})
    if not value:
        raise InvalidInputError(f"{name} must not be empty.", reason="empty", context={"parameter": name})
    if len(value) > max_length:
        raise InvalidInputError(
            f"{name} is {len(value)} characters long; at most {max_length} are allowed.",
            reason="too_long",
            context={"parameter": name, "length": len(value), "maximum": max_length},
        )
    refuse_unstorable(value, name=name)
    return value


def refuse_unstorable(value: str, *, name: str) -> None:
    """Raise InvalidInputError for a NUL character or a lone surrogate (PostgreSQL or UTF-8 cannot hold them)."""
    if "\x00" in value:
        raise InvalidInputError(
            f"{name} contains a NUL character: remove it.", reason="nul_character", context={"parameter": name}
        )
    if not value.isascii() and any(unicodedata.category(character) == "Cs" for character in value):
        raise InvalidInputError(
            f"{name} contains a lone surrogate: it is not valid text.",
            reason="lone_surrogate",
            context={"parameter": name},
        )


def scope_id(value: Any, *, name: str) -> str:
    """An organization, project, department or user id as text: a UUID becomes its lower-case text.

    Raises:
        InvalidInputError: not a text or UUID, empty, over 255 characters, NUL or lone surrogate.
    """
    if isinstance(value, uuid.UUID) or type(value).__name__ == "UUID":
        return str(value).lower()
    text = check_text(value, name=name)
    return text.lower() if len(text) == _UUID_LENGTH and _UUID.fullmatch(text) else text


def optional_scope_id(value: Any, *, name: str) -> str | None:
    """Like :func:`scope_id`; None stays None."""
    return None if value is None else scope_id(value, name=name)


def record_id(value: Any, *, name: str) -> str:
    """The id of a ledger record, as text; anything that cannot be one is refused."""
    return scope_id(value, name=name)


def _encode(value: Any) -> Any:
    if isinstance(value, uuid.UUID | PurePath | Decimal) or type(value).__name__ == "UUID":
        return str(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be stored as JSON")


def _walk_texts(value: Any, name: str) -> None:
    if isinstance(value, str):
        refuse_unstorable(value, name=name)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _walk_texts(key, name)
            _walk_texts(item, name)
    elif isinstance(value, list | tuple):
        for item in value:
            _walk_texts(item, name)


def encode_json(value: Mapping[str, Any] | None, *, name: str, max_bytes: int = MAX_METADATA_BYTES) -> str | None:
    """Metadata or dimensions as canonical JSON text (sorted keys); None and empty become None.

    UUID, datetime, Decimal, Enum, Path, sets and dataclasses are encoded.

    Raises:
        InvalidInputError: not a mapping, not encodable, NaN inside, NUL or lone surrogate, or over ``max_bytes``.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidInputError(f"{name} must be a mapping, not {type(value).__name__}.", context={"parameter": name})
    if not value:
        return None
    try:
        text = json.dumps(
            dict(value), default=_encode, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
        )
        decoded = json.loads(text)
        _walk_texts(decoded, name)
        size = len(text.encode())
    except InvalidInputError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"{name} cannot be stored as JSON: {error}.", reason="not_json", context={"parameter": name}
        ) from error
    if size > max_bytes:
        raise InvalidInputError(
            f"{name} is {size:,} bytes of JSON; at most {max_bytes:,} are allowed.",
            reason="too_large",
            context={"parameter": name, "bytes": size, "maximum": max_bytes},
        )
    return text
