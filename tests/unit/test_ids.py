"""Identifiers, checked texts and metadata: storable on every database, or refused before anything happens."""

from __future__ import annotations

import enum
import json
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import uuid_utils
from hypothesis import given
from hypothesis import strategies as st

from agentcredits.errors import InvalidInputError
from agentcredits.ids import (
    MAX_METADATA_BYTES,
    check_text,
    encode_json,
    new_id,
    optional_scope_id,
    record_id,
    scope_id,
)

NUL = "a\x00b"
LONE_SURROGATE = "a\ud800b"
SURROGATE_PAIR_AS_TWO = "\ud83d\ude00"


def test_new_ids_are_unique_ordered_uuid7() -> None:
    """Ids sort by the time of their making, within one process too."""
    ids = [new_id() for _ in range(10_000)]
    assert len(set(ids)) == len(ids)
    assert ids == sorted(ids)
    assert {uuid.UUID(one).version for one in ids} == {7}


CHECKS: list[Callable[..., Any]] = [check_text, scope_id, record_id, optional_scope_id]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "empty"),
        ("x" * 256, "too_long"),
        (NUL, "nul_character"),
        (LONE_SURROGATE, "lone_surrogate"),
        (SURROGATE_PAIR_AS_TWO, "lone_surrogate"),
        ("\udfff", "lone_surrogate"),
        (7, None),
        (1.5, None),
        (True, None),
        (b"acme", None),
        (["acme"], None),
        (NotImplemented, None),
    ],
    ids=ascii,
)
def test_a_bad_text_is_refused_by_name(check: Callable[..., Any], value: Any, reason: str | None) -> None:
    """The error names the parameter and, where there are several causes, the cause."""
    with pytest.raises(InvalidInputError) as caught:
        check(value, name="project_id")
    assert caught.value.context["parameter"] == "project_id"
    assert "project_id" in str(caught.value)
    if reason is not None:
        assert caught.value.reason == reason


@pytest.mark.parametrize("value", ["a", "org_abc", "x" * 255, " with spaces ", "Ünïcödé ✓ 😀", "\t", "0", "None"])
def test_a_good_text_is_kept_as_it_is(value: str) -> None:
    """Nothing is trimmed or changed."""
    assert check_text(value, name="name") == value
    assert scope_id(value, name="name") == value


def test_none_is_a_scope_only_where_it_may_be() -> None:
    """An optional scope may be None; an organization may not."""
    assert optional_scope_id(None, name="project_id") is None
    with pytest.raises(InvalidInputError):
        scope_id(None, name="organization_id")


def test_a_uuid_is_one_organization_however_it_is_written() -> None:
    """UUID objects, upper-case and lower-case texts of one UUID are one id."""
    value = uuid.UUID("A1B2C3D4-0000-4000-8000-00000000ABCD")
    expected = "a1b2c3d4-0000-4000-8000-00000000abcd"
    assert scope_id(value, name="organization_id") == expected
    assert scope_id(str(value).upper(), name="organization_id") == expected
    assert scope_id(uuid_utils.UUID(str(value)), name="organization_id") == expected
    assert scope_id("Org_ABC", name="organization_id") == "Org_ABC"


@given(st.text(max_size=300))
def test_any_text_is_stored_unchanged_or_refused(value: str) -> None:
    """What passes can be encoded, holds no NUL, and has 1 to 255 characters."""
    try:
        checked = check_text(value, name="name")
    except InvalidInputError:
        return
    assert checked == value
    assert checked.encode()
    assert "\x00" not in checked
    assert 1 <= len(checked) <= 255


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Shot:
    seconds: int
    path: Path


def test_everyday_python_values_are_encoded() -> None:
    """UUID, datetime, Decimal, Enum, Path, sets, dataclasses and mappings need no conversion by the caller."""
    text = encode_json(
        {
            "uuid": uuid.UUID(int=7),
            "when": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            "day": date(2026, 1, 2),
            "time": time(3, 4),
            "span": timedelta(minutes=1.5),
            "price": Decimal("0.10"),
            "colour": Colour.RED,
            "path": Path("a") / "b",
            "tags": {"b", "a"},
            "frozen": frozenset({2, 1}),
            "shot": Shot(5, Path("c")),
            "proxy": MappingProxyType({"x": 1}),
            "pair": (1, None, True, 1.5),
            "text": "✓ 😀",
        },
        name="metadata",
    )
    assert text is not None
    assert json.loads(text) == {
        "uuid": "00000000-0000-0000-0000-000000000007",
        "when": "2026-01-02T03:04:05+00:00",
        "day": "2026-01-02",
        "time": "03:04:00",
        "span": 90.0,
        "price": "0.10",
        "colour": "red",
        "path": "a/b",
        "tags": ["a", "b"],
        "frozen": [1, 2],
        "shot": {"seconds": 5, "path": "c"},
        "proxy": {"x": 1},
        "pair": [1, None, True, 1.5],
        "text": "✓ 😀",
    }


def test_equal_metadata_has_one_text() -> None:
    """The text is canonical: the order of insertion and the kind of mapping do not show."""
    one = encode_json({"b": 1, "a": {"d": 2, "c": 3}}, name="metadata")
    two = encode_json(OrderedDict([("a", MappingProxyType({"c": 3, "d": 2})), ("b", 1)]), name="metadata")
    assert one == two == '{"a":{"c":3,"d":2},"b":1}'


@pytest.mark.parametrize("value", [None, {}])
def test_no_metadata_is_none(value: Any) -> None:
    """Nothing and an empty mapping are the same."""
    assert encode_json(value, name="metadata") is None


def circular() -> dict[str, Any]:
    """A mapping that contains itself."""
    value: dict[str, Any] = {}
    value["self"] = value
    return value


def deep(levels: int) -> dict[str, Any]:
    """A mapping nested ``levels`` deep."""
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"x": value}
    return value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"x": object()}, "not_json"),
        ({"x": b"bytes"}, "not_json"),
        ({"x": lambda: None}, "not_json"),
        ({"x": float("nan")}, "not_json"),
        ({"x": [float("inf")]}, "not_json"),
        ({("a", "b"): 1}, "not_json"),
        ({1: "a", "b": 2}, "not_json"),
        (circular(), "not_json"),
        (deep(100_000), "not_json"),
        ({"x": NUL}, "nul_character"),
        ({NUL: 1}, "nul_character"),
        ({"x": [{"y": [NUL]}]}, "nul_character"),
        ({"x": Path(NUL)}, "nul_character"),
        ({"x": LONE_SURROGATE}, "lone_surrogate"),
        ({LONE_SURROGATE: 1}, "lone_surrogate"),
        ({"x": "y" * 8192}, "too_large"),
        ("text", None),
        ([1], None),
        (7, None),
    ],
    ids=lambda part: ascii(type(part)) if isinstance(part, dict) else ascii(part)[:30],
)
def test_metadata_that_cannot_be_stored_is_refused(value: Any, reason: str | None) -> None:
    """A typed error that names the parameter, whatever is wrong with it and however deep."""
    with pytest.raises(InvalidInputError) as caught:
        encode_json(value, name="metadata")
    assert caught.value.context["parameter"] == "metadata"
    if reason is not None:
        assert caught.value.reason == reason


def test_the_size_limit_counts_bytes_exactly() -> None:
    """8 KiB of JSON is stored, one byte more is not; a character of four bytes counts four."""
    overhead = len('{"x":""}')
    assert encode_json({"x": "y" * (MAX_METADATA_BYTES - overhead)}, name="metadata") is not None
    with pytest.raises(InvalidInputError) as caught:
        encode_json({"x": "y" * (MAX_METADATA_BYTES - overhead + 1)}, name="metadata")
    assert (caught.value.context["bytes"], caught.value.context["maximum"]) == (8193, 8192)
    with pytest.raises(InvalidInputError):
        encode_json({"x": "😀" * 2048}, name="metadata")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.decimals() | st.binary() | st.uuids(),
    lambda children: st.lists(children) | st.dictionaries(st.text() | st.integers(), children) | st.sets(st.integers()),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), JSON_VALUES))
def test_any_metadata_is_stored_or_refused(value: dict[str, Any]) -> None:
    """Nothing but InvalidInputError comes out; what passes is valid JSON that UTF-8 and PostgreSQL can hold."""
    try:
        text = encode_json(value, name="metadata")
    except InvalidInputError:
        return
    if text is None:
        assert value == {}
        return
    assert "\x00" not in text
    assert "\\u0000" not in text
    assert len(text.encode()) <= MAX_METADATA_BYTES
    assert set(json.loads(text)) == set(value)
