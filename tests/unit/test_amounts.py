"""Amounts are exact or refused: never rounded, never a float inside, never a surprise exception."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext, localcontext
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentcredits.amounts import (
    MAX_AMOUNT_MICROS,
    MICROS_PER_CREDIT,
    format_credits,
    from_micros,
    multiply_up,
    parse_decimal,
    to_micros,
)
from agentcredits.errors import InvalidAmountError

BAD: list[tuple[Any, str]] = [
    (True, "not_a_number"),
    (False, "not_a_number"),
    (None, "not_a_number"),
    ([], "not_a_number"),
    ({}, "not_a_number"),
    (object(), "not_a_number"),
    (1 + 2j, "not_a_number"),
    (Fraction(1, 2), "not_a_number"),
    (b"1", "not_a_number"),
    ("", "not_a_number"),
    (" 1", "not_a_number"),
    ("1 ", "not_a_number"),
    ("1\n", "not_a_number"),
    ("1_000", "not_a_number"),
    ("1,5", "not_a_number"),
    ("0x10", "not_a_number"),
    ("١٢", "not_a_number"),
    ("\uff11\uff12", "not_a_number"),
    ("ten", "not_a_number"),
    ("1\x00", "not_a_number"),
    ("\ud800", "not_a_number"),
    ("1" * 65, "not_a_number"),
    ("1e99999999999999999999", "not_a_number"),
    (float("nan"), "not_finite"),
    (float("inf"), "not_finite"),
    (float("-inf"), "not_finite"),
    ("NaN", "not_finite"),
    ("Infinity", "not_finite"),
    ("-inf", "not_finite"),
    (Decimal("NaN"), "not_finite"),
    (Decimal("sNaN"), "not_finite"),
    (Decimal("Infinity"), "not_finite"),
    (-1, "negative"),
    ("-0.000001", "negative"),
    (-0.5, "negative"),
    (Decimal(-1), "negative"),
    (0, "zero"),
    (0.0, "zero"),
    (-0.0, "zero"),
    ("0", "zero"),
    ("0.000000", "zero"),
    (Decimal("0E+999999"), "zero"),
    (Decimal("0E-999999"), "zero"),
    ("0.0000001", "too_many_decimals"),
    ("1.0000001", "too_many_decimals"),
    (Decimal("1.0000001"), "too_many_decimals"),
    (0.1234567, "too_many_decimals"),
    (1e-7, "too_many_decimals"),
    (5e-324, "too_many_decimals"),
    (Decimal("1." + "0" * 130 + "1"), "too_many_decimals"),
    (Decimal("1E-999999"), "too_many_decimals"),
    (10**25, "too_large"),
    (-(10**25), "too_large"),
    ("1" + "0" * 25, "too_large"),
    ("1e400", "too_large"),
    (1e308, "too_large"),
    (Decimal("1E+999999"), "too_large"),
    (10**5000, "too_large"),
    ("9007199254.740992", "too_large"),
]


@pytest.mark.parametrize(("value", "reason"), BAD, ids=[f"{index}-{reason}" for index, (_, reason) in enumerate(BAD)])
def test_a_bad_amount_is_refused_with_its_reason(value: Any, reason: str) -> None:
    """Each kind of bad amount has its own machine-readable reason and a sentence that names the parameter."""
    with pytest.raises(InvalidAmountError) as caught:
        to_micros(value, name="cost")
    assert caught.value.reason == reason
    assert caught.value.context["parameter"] == "cost"
    assert "cost" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "micros"),
    [
        (1, 1_000_000),
        ("1", 1_000_000),
        (Decimal(1), 1_000_000),
        (1.0, 1_000_000),
        (0.1, 100_000),
        (0.5, 500_000),
        (1e-6, 1),
        ("0.000001", 1),
        ("1.0000000", 1_000_000),
        ("+1.5", 1_500_000),
        (".5", 500_000),
        ("1E2", 100_000_000),
        ("9007199254.740991", MAX_AMOUNT_MICROS),
    ],
)
def test_a_good_amount_is_read_exactly(value: Any, micros: int) -> None:
    """int, str, Decimal and float (through its shortest text) mean what they say."""
    assert to_micros(value) == micros


def test_zero_is_taken_only_where_it_makes_sense() -> None:
    """``allow_zero`` takes zero and still refuses what is below it."""
    assert to_micros(0, allow_zero=True) == 0
    assert to_micros("-0", allow_zero=True) == 0
    with pytest.raises(InvalidAmountError):
        to_micros("-0.000001", allow_zero=True)


@given(st.integers(min_value=1, max_value=MAX_AMOUNT_MICROS))
def test_micros_survive_the_way_out_and_back(micros: int) -> None:
    """Micros → Decimal, text, display → micros loses nothing, and no exponent or trailing zero shows."""
    amount = from_micros(micros)
    assert to_micros(amount) == to_micros(str(amount)) == to_micros(format_credits(micros).replace(",", "")) == micros
    assert amount * MICROS_PER_CREDIT == micros
    assert "E" not in str(amount)
    assert "." not in str(amount) or not str(amount).endswith("0")


@given(st.integers(min_value=-(9 * 10**18), max_value=9 * 10**18))
def test_totals_are_exact_in_any_decimal_context(micros: int) -> None:
    """A caller's low decimal precision does not round what leaves or enters."""
    with localcontext() as context:
        context.prec = 3
        amount = from_micros(micros)
    assert Fraction(amount) == Fraction(micros, MICROS_PER_CREDIT)


@given(st.integers(min_value=1, max_value=MAX_AMOUNT_MICROS))
def test_reading_is_exact_in_any_decimal_context(micros: int) -> None:
    """The same the other way round: a low precision of the caller's context changes no amount."""
    amount = from_micros(micros)
    with localcontext() as context:
        context.prec = 3
        assert to_micros(amount) == micros
        assert to_micros(str(amount)) == micros


def check_exact_or_refused(value: Any) -> None:
    """The one promise: an amount is exactly its micros, or InvalidAmountError; nothing else ever comes out."""
    try:
        micros = to_micros(value, allow_zero=True)
    except InvalidAmountError as error:
        refusal = error
    else:
        exact = Fraction(repr(value)) if isinstance(value, float) else Fraction(Decimal(value))
        assert Fraction(micros, MICROS_PER_CREDIT) == exact
        assert 0 <= micros <= MAX_AMOUNT_MICROS
        return
    assert refusal.http_status == 422
    assert refusal.reason in {"not_a_number", "not_finite", "negative", "too_many_decimals", "too_large"}


@given(st.decimals(allow_nan=True, allow_infinity=True))
@example(Decimal("9.999999999999999999999999999999E-7"))
@example(Decimal("-0E+5"))
def test_any_decimal_is_exact_or_refused(value: Decimal) -> None:
    """Signalling NaN, subnormal and huge Decimals included."""
    check_exact_or_refused(value)


@given(st.floats(allow_nan=True, allow_infinity=True))
@example(0.1 + 0.2)
@example(1.1)
def test_any_float_is_exact_or_refused(value: float) -> None:
    """A float means its shortest text, or is refused."""
    check_exact_or_refused(value)


@given(st.one_of(st.text(), st.from_regex(r"[-+]?[0-9]{0,20}\.?[0-9]{0,8}([eE][-+]?[0-9]{1,3})?", fullmatch=True)))
def test_any_text_is_exact_or_refused(value: str) -> None:
    """Any text, and texts that look like numbers."""
    check_exact_or_refused(value)


@given(st.integers())
def test_any_int_is_exact_or_refused(value: int) -> None:
    """Integers of any size."""
    check_exact_or_refused(value)


@given(st.one_of(st.none(), st.booleans(), st.binary(), st.lists(st.integers()), st.complex_numbers(), st.fractions()))
def test_what_is_no_amount_is_refused(value: Any) -> None:
    """Nothing but int, str, Decimal and float is an amount."""
    with pytest.raises(InvalidAmountError):
        to_micros(value)


def test_a_tenth_ten_times_is_one() -> None:
    """No float is kept inside: ten times 0.1 is exactly 1."""
    assert sum(to_micros(0.1) for _ in range(10)) == to_micros(1)


@given(
    micros=st.integers(min_value=0, max_value=10**12),
    quantity=st.decimals(min_value=0, max_value=1000, places=6),
)
def test_a_price_times_a_quantity_rounds_up(micros: int, quantity: Decimal) -> None:
    """The product is the exact one rounded up to the micro, so a non-zero charge never becomes free."""
    assert multiply_up(micros, quantity) == math.ceil(Fraction(micros) * Fraction(quantity))


def test_a_fraction_of_a_micro_is_charged_as_one() -> None:
    """0.4 × 0.000001 costs one micro, not nothing."""
    assert multiply_up(1, Decimal("0.4")) == 1
    assert multiply_up(1, Decimal("1E-100")) == 1
    assert multiply_up(0, Decimal(5)) == 0


def test_a_product_beyond_the_largest_amount_is_refused() -> None:
    """A quantity cannot lift a charge over the largest amount."""
    assert multiply_up(MAX_AMOUNT_MICROS, Decimal(1)) == MAX_AMOUNT_MICROS
    with pytest.raises(InvalidAmountError):
        multiply_up(MAX_AMOUNT_MICROS, Decimal("1.000001"))


def test_parsing_leaves_the_callers_decimal_context_alone() -> None:
    """No flag and no precision of the caller's context is changed."""
    before = (getcontext().prec, dict(getcontext().flags))
    parse_decimal("1.5")
    to_micros("123.456789")
    multiply_up(5, Decimal("0.3"))
    assert (getcontext().prec, dict(getcontext().flags)) == before


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (0, "0"),
        (1, "0.000001"),
        (1_500_000, "1.5"),
        (-1_500_000, "-1.5"),
        (10_000_000, "10"),
        (1_234_500_000, "1,234.5"),
    ],
)
def test_credits_are_shown_as_people_read_them(micros: int, text: str) -> None:
    """No exponent, no trailing zeros, thousands separated."""
    assert format_credits(micros) == text
