"""The numbers of price rules and the values of calls: how large, how fine, how compared and how shown."""

from __future__ import annotations

import decimal
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from typing import Any

import pytest

from agentcredits.errors import InvalidAmountError, InvalidInputError, UnpricedActionError
from agentcredits.rules.price_values import (
    as_decimal,
    bad_rule,
    comparable,
    dimension_value,
    missing,
    money,
    named,
    plain,
    rule_number,
    units,
    unknown,
)

BEYOND = "a number beyond 10^30"
LARGEST = 10**30 - 1


class Quality(Enum):
    HIGH = "High"
    LONGEST = 10


class Seconds(IntEnum):
    SIX = 6


class Resolution(StrEnum):
    FULL = "1080P"


# -- numbers of a rule ---------------------------------------------------------------------------------------------


def test_an_error_without_a_place_has_no_empty_one() -> None:
    """The whole rule is meant then."""
    assert bad_rule("", "it is odd").message == "the price rule cannot be used: it is odd."
    assert bad_rule("rows[2].usd", "it is odd").message == "the price rule cannot be used: rows[2].usd: it is odd."


@pytest.mark.parametrize(
    ("given", "number"),
    [
        (0, Fraction(0)),
        ("0E-999999", Fraction(0)),
        (0.1, Fraction(1, 10)),
        ("0.000000000001", Fraction(1, 10**12)),
        (10**12, Fraction(10**12)),
        ("999999999999.999999999999", Fraction(10**24 - 1, 10**12)),
        (Decimal("0.5" + 59 * "0"), Fraction(1, 2)),
    ],
)
def test_a_number_of_a_rule_is_read_exactly(given: Any, number: Fraction) -> None:
    """Zero included, up to 10^12 and down to 12 decimals."""
    assert rule_number(given, field="credits") == number


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("ten", "'ten' is no plain decimal number"),
        (True, "True is no plain decimal number"),
        ("-0.000001", "'-0.000001' must not be negative"),
        ("-1e13", "'-1e13' must not be negative"),
        (Decimal("-1e-999999999"), "-1E-999999999 must not be negative"),
        ("1000000000000.000000000001", "'1000000000000.000000000001' is above 1,000,000,000,000"),
        (Decimal("1e999999999"), "1E+999999999 is above 1,000,000,000,000"),
        ("0.0000000000001", "'0.0000000000001' has more than 12 decimals"),
        ("1.0000000000001", "'1.0000000000001' has more than 12 decimals"),
        (Decimal("1e-999999999"), "1E-999999999 has more than 12 decimals"),
        (Decimal("0.5" + 60 * "0"), "0.5" + 54 * "0" + "... has more than 12 decimals"),
    ],
)
def test_what_is_no_number_of_a_rule_is_refused_with_its_place(given: Any, problem: str) -> None:
    """At once, however small or large it is."""
    with pytest.raises(InvalidInputError) as caught:
        rule_number(given, field="rows[0].usd")
    assert caught.value.context == {"field": "rows[0].usd"}
    assert f"rows[0].usd: {problem}" in caught.value.message


def test_a_number_that_must_be_above_zero_may_be_small_but_not_zero() -> None:
    """Sizes and rates."""
    assert rule_number("0.5", field="size", positive=True) == Fraction(1, 2)
    for given in (0, -1):
        with pytest.raises(InvalidInputError, match=rf"size: {given} must be above zero\."):
            rule_number(given, field="size", positive=True)


def test_the_cause_of_a_refused_number_names_the_same_place() -> None:
    """For whoever reads the traceback."""
    with pytest.raises(InvalidInputError) as caught:
        rule_number("ten", field="credits")
    assert isinstance(caught.value.__cause__, InvalidAmountError)
    assert caught.value.__cause__.context == {"parameter": "credits"}


# -- how values are compared ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "value"),
    [
        (True, "true"),
        (False, "false"),
        (Quality.HIGH, "high"),
        (Seconds.SIX, Fraction(6)),
        (Resolution.FULL, "1080p"),
        ("  Gen-4 \t Turbo\n", "gen-4 turbo"),
        ("x" * 255, "x" * 255),
        ("-0.50", Fraction(-1, 2)),
        (LARGEST, Fraction(LARGEST)),
        (-LARGEST, Fraction(-LARGEST)),
        (Decimal(LARGEST), Fraction(LARGEST)),
        (str(LARGEST), Fraction(LARGEST)),
        (Decimal("1e-30"), Fraction(1, 10**30)),
        (1e-30, Fraction(1, 10**30)),
        (Decimal("0E-999"), Fraction(0)),
        (Decimal("0.5" + 59 * "0"), Fraction(1, 2)),
    ],
)
def test_a_value_is_compared_as_a_number_or_as_a_folded_text(given: Any, value: object) -> None:
    """One number however it is typed; one text however it is spaced and spelt."""
    found = comparable(given)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "given",
    [
        "x" * 256,
        10**30,
        -(10**30),
        Decimal("1e30"),
        Decimal("1e999999999"),
        1e30,
        Decimal("1e-31"),
        Decimal("0.5" + 60 * "0"),
        float("inf"),
        Decimal("sNaN"),
        b"a",
        ("a",),
    ],
    ids=lambda given: ascii(given)[:20],
)
def test_a_value_that_cannot_be_compared_is_none(given: Any) -> None:
    """Too long, beyond 10^30 either way, not finite, or of another type."""
    assert comparable(given) is None


# -- values of a call ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (10**30, BEYOND),
        (-(10**4000), BEYOND),
        (Decimal("1e30"), "1E+30"),
        (float("nan"), "nan"),
        (["a"], "a list"),
        ("é" * 256, "'" + "é" * 56 + "..."),
        ("\x00" * 256, "'" + r"\x00" * 14 + "..."),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_a_value_that_is_no_dimension_is_shown_as_far_as_it_can_be(given: Any, shown: str) -> None:
    """In the sentence and beside it; what a terminal would act on is escaped."""
    with pytest.raises(UnpricedActionError) as caught:
        dimension_value({"m": given}, "m")
    assert caught.value.context == {"dimension": "m", "given": shown}
    assert caught.value.message == f"dimension m must be a text or a finite number, not {shown}"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("long", "'long'"),
        ("x" * 58, "'" + "x" * 58 + "'"),
        ("x" * 59, "'" + "x" * 56 + "..."),
        ("a\x1b[1m", r"'a\x1b[1m'"),
        (Quality.HIGH, "'High'"),
        (Resolution.FULL, "'1080P'"),
        (True, "True"),
    ],
)
def test_a_text_where_units_are_counted_is_refused(given: Any, shown: str) -> None:
    """Shown whole up to 60 characters; an enum's member is shown as its value."""
    with pytest.raises(UnpricedActionError) as caught:
        units({"d": given}, "d")
    assert caught.value.context == {"dimension": "d", "given": shown}
    assert caught.value.message == f"dimension d must be a number, not {shown}"


@pytest.mark.parametrize(
    ("given", "zero", "words"),
    [
        (0, False, "must be above zero and at most 1,000,000,000,000, but is 0"),
        (-301, False, "must be above zero and at most"),
        (-301, True, "must not be negative and at most 1,000,000,000,000, but is -301"),
        (LARGEST, True, f"but is {LARGEST}"),
        ("1000000000000.1", False, "but is '1000000000000.1'"),
    ],
)
def test_units_out_of_range_are_refused(given: Any, zero: bool, words: str) -> None:
    """Below or at zero, or beyond 10^12."""
    with pytest.raises(UnpricedActionError) as caught:
        units({"d": given}, "d", zero=zero)
    shown = repr(given)
    assert (caught.value.reason, caught.value.context) == ("bad_dimension", {"dimension": "d", "given": shown})
    assert caught.value.message.startswith("dimension d must ")
    assert words in caught.value.message


def test_units_reach_from_their_least_to_the_largest() -> None:
    """0 where it is allowed; 10^12 itself."""
    assert units({"d": 0}, "d", zero=True) == 0
    assert units({"d": "0.000001"}, "d") == Fraction(1, 10**6)
    assert units({"d": 10**12}, "d") == 10**12


# -- what is known instead -----------------------------------------------------------------------------------------


def test_a_missing_dimension_is_told_with_what_it_may_be() -> None:
    """Or without, where nothing is known."""
    assert missing("m").message == "the price depends on the dimension m, which is missing"
    assert missing("m", ["a", 6]).message.endswith("which is missing: pass one of a, 6")


def test_an_unknown_value_is_told_with_the_closest_three_first() -> None:
    """In the operator's spelling, each once; then the others in their order."""
    error = unknown("m", "VEO-4", ["sora", "Veo-1", "Veo-2", "sora", "Veo-3", "Veo-3.5"])
    known = error.context["known"]
    assert sorted(known) == ["Veo-1", "Veo-2", "Veo-3", "Veo-3.5", "sora"]
    assert all(name.startswith("Veo") for name in known[:3])
    assert known[3] == "sora"
    assert error.context == {"dimension": "m", "given": "'VEO-4'", "known": known}
    assert error.message == f"there is no price for m 'VEO-4': known are {', '.join(known)}"
    assert unknown("m", "x", []).message == "there is no price for m 'x': known are none"


def test_the_member_of_an_enum_is_matched_by_its_value() -> None:
    """What a caller's code holds is not what a price list says."""
    error = unknown("quality", Quality.HIGH, ["low", "medium", "higher"])
    assert error.context["known"] == ("higher", "low", "medium")
    assert error.context["given"] == "'High'"


def test_ten_values_are_named_and_the_rest_is_counted() -> None:
    """Each once."""
    ten = [f"m{number}" for number in range(10)]
    assert named(ten) == named([*ten, "m3"]) == ", ".join(ten)
    assert named([*ten, "m10"]) == ", ".join(ten) + " and 1 more"


# -- for the reader ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (Fraction(1240), "1,240"),
        (Fraction(1, 20), "0.05"),
        (Fraction(10**57 + 1), f"{10**57 + 1:,}"),
        (Fraction(2, 3), "0.666666666667"),
        (Fraction(25, 10**13), "0.000000000002"),
        (Fraction(35, 10**13), "0.000000000004"),
    ],
)
def test_a_number_is_shown_exactly_or_rounded_to_twelve_decimals(number: Fraction, text: str) -> None:
    """Half to even there; nothing is charged by it."""
    assert plain(number) == text
    assert as_decimal(number) == Decimal(text.replace(",", ""))


def test_showing_a_number_does_not_depend_on_the_callers_decimal_context() -> None:
    """A program that rounds down, or that traps what is inexact, is charged and told the same."""
    with decimal.localcontext(prec=3, rounding=decimal.ROUND_DOWN, traps=[decimal.Inexact, decimal.Rounded]):
        assert plain(Fraction(2, 3)) == "0.666666666667"
        assert as_decimal(Fraction(123456, 10)) == Decimal("12345.6")


def test_money_has_its_unit() -> None:
    """One credit, else credits; dollars are never plural."""
    assert [money(Fraction(number), "credits") for number in (0, 1, 1100)] == ["0 credits", "1 credit", "1,100 credits"]
    assert money(Fraction(1), "usd") == "1 USD"
