"""Nothing that is passed to the classifier makes it raise: property tests and hostile objects."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcredits.media import (
    FaultCategory,
    classify_provider_error,
)

NOW = datetime(2027, 1, 31, 12, 0, tzinfo=UTC)


# -- nothing makes it raise ----------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["error", "message", "detail", "code", "status", "errors", "base_resp", "retry_after", "type"]
            )
            | st.text(max_size=10),
            inner,
            max_size=5,
        )
    ),
    max_leaves=30,
)
ANYTHING = JSON | st.binary(max_size=60) | st.builds(object) | st.just(type) | st.dates() | st.complex_numbers()


class HostileError(Exception):
    """Every attribute raises; so do comparing, hashing and printing."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("==")

    def __hash__(self) -> int:
        raise RuntimeError("hash")

    def __str__(self) -> str:
        raise RuntimeError("str")


class HostileMapping(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("items")

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("iter")


class HostileText(str):
    __slots__ = ()

    def lower(self) -> str:
        raise RuntimeError("lower")

    def __getitem__(self, _: Any) -> str:
        raise RuntimeError("getitem")


@settings(max_examples=300)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("status", "headers", "body", "value", "provider"), ANYTHING)))
def test_no_input_makes_it_raise(arguments: dict[str, Any]) -> None:
    """Any nested JSON and any object, in any argument."""
    fault = classify_provider_error(now=NOW, **arguments)
    assert isinstance(fault.category, FaultCategory)
    assert classify_provider_error(RuntimeError(arguments.get("body")), now=NOW).rule
    json.dumps(fault.message)


HOSTILE: dict[str, Callable[[], object]] = {
    "exception": HostileError,
    "mapping": lambda: HostileMapping(error="x"),
    "text": lambda: HostileText("insufficient credits"),
    "exception inside": lambda: {"error": HostileError()},
    "mapping inside": lambda: {"error": HostileMapping(message="x")},
    "deep list": lambda: [[[[[[[[[[[["deep"]]]]]]]]]]]],
    "brackets": lambda: "[" * 100_000,
    "braces": lambda: "{" * 100_000,
    "deep JSON": lambda: '{"a":' * 5_000 + "1" + "}" * 5_000,
    "long text": lambda: "x" * 5_000_000,
    "bytes": lambda: b"\xff" * 100_000,
    "many fields": lambda: {str(number): {"error": "x"} for number in range(50_000)},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_and_huge_input_is_another_fault(name: str) -> None:
    """As a body, as a value, as headers, as a status, and as what an exception carries."""
    hostile = HOSTILE[name]()
    for argument in ("body", "value", "headers", "status", "provider"):
        assert classify_provider_error(now=NOW, **{argument: hostile}).guidance  # type: ignore[arg-type]
    carrier = hostile if isinstance(hostile, BaseException) else RuntimeError(hostile)
    carrying = RuntimeError("x")
    carrying.body = hostile  # type: ignore[attr-defined]
    for error in (carrier, carrying):
        assert classify_provider_error(error, now=NOW).guidance


def test_a_structure_that_holds_itself_is_read_once() -> None:
    """Bounded in depth and number."""
    body: dict[str, Any] = {"error": {"message": "Insufficient credits"}}
    body["error"]["self"] = body
    assert classify_provider_error(status=400, body=body, now=NOW).category == "credits_exhausted"
