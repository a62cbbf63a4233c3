"""Amounts: integer micro-credits inside, Decimal credits at the Python edge.

One credit is 1,000,000 micro-credits. Amounts are taken as int, str, Decimal or float (through its shortest
``repr``, so that ``0.1`` means one tenth); bool, NaN, infinities, more than 6 decimals and values beyond
``MAX_AMOUNT_MICROS`` are refused, never rounded.
"""

from __future__ import annotations

from decimal import MAX_PREC, ROUND_CEILING, Decimal, InvalidOperation, localcontext
from typing import Any, Final

from agentcredits.errors import InvalidAmountError

MICROS_PER_CREDIT: Final = 1_000_000
DECIMALS: Final = 6

#: The largest single amount, 9.0e9 credits: exact in a JavaScript number, and a thousand of them fit a BIGINT.
MAX_AMOUNT_MICROS: Final = 2**53 - 1

_MAX_WHOLE_CREDITS: Final = MAX_AMOUNT_MICROS // MICROS_PER_CREDIT

#: The largest total that an account may ever be granted; leaves room in a signed 64-bit counter.
MAX_TOTAL_MICROS: Final = 9 * 10**18

Amount = int | str | Decimal | float
"""What a caller may pass as an amount of credits."""


def parse_decimal(value: Any, *, name: str = "amount") -> Decimal:
    """Read a finite number exactly, or say why it is none.

    Raises:
        InvalidAmountError: not a number, a bool, NaN, infinite, or too long to be an amount.
    """
    if isinstance(value, bool) or not isinstance(value, int | str | Decimal | float):
        raise InvalidAmountError(
            f"{name} must be a number of credits (int, str, Decimal or float), not {type(value).__name__}.",
            reason="not_a_number",
            context={"parameter": name},
        )
    text = repr(value) if isinstance(value, float) else value
    if isinstance(text, str) and (len(text) > 64 or not text.isascii() or text.strip() != text or "_" in text):
        raise InvalidAmountError(
            f"{name} must be a plain decimal number such as 12.5.", reason="not_a_number", context={"parameter": name}
        )
    if isinstance(text, int) and abs(text) > MAX_TOTAL_MICROS:
        raise _too_large(name)
    try:
        number = Decimal(text)
    except (InvalidOperation, ValueError) as error:
        raise InvalidAmountError(
            f"{name} must be a plain decimal number such as 12.5.", reason="not_a_number", context={"parameter": name}
        ) from error
    if not number.is_finite():
        raise InvalidAmountError(
            f"{name} must be finite, not {number}.", reason="not_finite", context={"parameter": name}
        )
    return number


def to_micros(value: Any, *, name: str = "amount", allow_zero: bool = False) -> int:
    """Read an amount of credits as micro-credits.

    Args:
        value: Credits as int, str, Decimal or float.
        name: The parameter's name, for the message.
        allow_zero: Whether 0 makes sense here.

    Raises:
        InvalidAmountError: not a number, negative, zero where it makes no sense, more than 6 decimals, too large.
    """
    if type(value) is int and 0 < value <= _MAX_WHOLE_CREDITS:
        return value * MICROS_PER_CREDIT
    number = parse_decimal(value, name=name)
    if number and number.adjusted() > 12:
        raise _too_large(name)
    if number and number.adjusted() < -DECIMALS:
        raise _too_fine(name, number)
    with localcontext() as context:
        context.prec = MAX_PREC  # a Decimal may come with any number of digits
        scaled = number.scaleb(DECIMALS)
    if scaled != scaled.to_integral_value():
        raise _too_fine(name, number)
    micros = int(scaled)
    if micros < 0:
        raise InvalidAmountError(
            f"{name} must not be negative, but is {number}.",
            reason="negative",
            context={"parameter": name, "value": number},
        )
    if micros == 0 and not allow_zero:
        raise InvalidAmountError(f"{name} must be above zero.", reason="zero", context={"parameter": name})
    if micros > MAX_AMOUNT_MICROS:
        raise _too_large(name)
    return micros


def from_micros(micros: int) -> Decimal:
    """Micro-credits as Decimal credits without trailing zeros: ``1500000`` → ``Decimal("1.5")``."""
    whole, rest = divmod(abs(micros), MICROS_PER_CREDIT)
    text = f"{whole}.{rest:06d}".rstrip("0").rstrip(".") if rest else str(whole)
    return Decimal(f"-{text}" if micros < 0 else text)


def format_credits(micros: int) -> str:
    """Micro-credits as people read them: ``"1,234.5"``."""
    return f"{from_micros(micros):,f}"


def multiply_up(micros: int, quantity: Decimal) -> int:
    """``micros × quantity`` rounded up to the micro, so that a non-zero price never becomes zero.

    Raises:
        InvalidAmountError: the product is larger than an amount may be.
    """
    if quantity == 1 and micros <= MAX_AMOUNT_MICROS:
        return micros
    with localcontext() as context:
        context.prec = 128
        product = int((Decimal(micros) * quantity).to_integral_value(rounding=ROUND_CEILING))
    if product > MAX_AMOUNT_MICROS:
        raise _too_large("price × quantity")
    return product


def _too_large(name: str) -> InvalidAmountError:
    return InvalidAmountError(
        f"{name} is too large: at most {format_credits(MAX_AMOUNT_MICROS)} credits.",
        reason="too_large",
        context={"parameter": name, "maximum": from_micros(MAX_AMOUNT_MICROS)},
    )


def _too_fine(name: str, number: Decimal) -> InvalidAmountError:
    return InvalidAmountError(
        f"{name} has more than {DECIMALS} decimals; the smallest amount is 0.000001 credits.",
        reason="too_many_decimals",
        context={"parameter": name, "value": number},
    )
