"""The numbers and dimension values that price rules are made of. Exact: fractions, never floats.

Numbers of a rule come from operators and are refused with InvalidInputError; values of a call come from the caller and
are refused with UnpricedActionError, so that nothing runs at a guessed price.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from enum import Enum
from fractions import Fraction
from typing import Any, Final, Literal

from agentcredits.amounts import parse_decimal
from agentcredits.errors import InvalidAmountError, InvalidInputError, UnpricedActionError

Unit = Literal["credits", "usd"]
Value = Fraction | str
"""A dimension's value as it is compared: 6, "6" and 6.0 are one number; "1080P" and "1080p" are one text."""

MAX_NUMBER: Final = 10**12
MAX_DECIMALS: Final = 12
#: How many of the values that a rule knows an error names.
MAX_NAMED: Final = 10
MAX_VALUE_LENGTH: Final = 255

_SCALE: Final = 10**MAX_DECIMALS
_MAX_DIGITS: Final = 60
#: Numbers are shown in a context of our own: the caller's may round otherwise, or trap what is inexact.
_SHOWING: Final = Context(prec=80, rounding=ROUND_HALF_EVEN)
_FINEST: Final = Decimal(1).scaleb(-MAX_DECIMALS)
_PLAIN_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30})?")


# -- numbers of a rule -------------------------------------------------------------------------------------------


def bad_rule(field: str, problem: str, *, reason: str = "bad_price_rule") -> InvalidInputError:
    """The error for a field of a rule, such as ``rows[2].credits``."""
    place = f"{field}: " if field else ""
    return InvalidInputError(
        f"the price rule cannot be used: {place}{problem}.", reason=reason, context={"field": field}
    )


def rule_number(value: Any, *, field: str, positive: bool = False) -> Fraction:
    """A number of a rule: not negative, at most 10^12, at most 12 decimals.

    Raises:
        InvalidInputError: it is none.
    """
    try:
        number = parse_decimal(value, name=field)
    except InvalidAmountError as error:
        raise bad_rule(field, f"{_shown(value)} is no plain decimal number such as 12.5") from error
    if number > MAX_NUMBER:
        raise bad_rule(field, f"{_shown(value)} is above {MAX_NUMBER:,}")
    if number < 0 or (positive and not number):
        raise bad_rule(field, f"{_shown(value)} must {'be above zero' if positive else 'not be negative'}")
    # The exact test comes last: it would take forever for 1e-999999999.
    long = number and (number.adjusted() < -MAX_DECIMALS or len(number.as_tuple().digits) > _MAX_DIGITS)
    if long or (Fraction(number) * _SCALE).denominator != 1:
        raise bad_rule(field, f"{_shown(value)} has more than {MAX_DECIMALS} decimals")
    return Fraction(number)


def number_text(number: Fraction) -> str:
    """A rule's number as it is stored: ``"0.05"``."""
    return f"{as_decimal(number):f}"


# -- values of a call --------------------------------------------------------------------------------------------


def bad_dimension(name: str, reason: str, problem: str, **context: Any) -> UnpricedActionError:
    """The refusal for a dimension of a call."""
    return UnpricedActionError(problem, reason=reason, context={"dimension": name, **context})


def dimension_value(dimensions: Mapping[str, Any], name: str) -> Value | None:
    """A dimension's value as rules compare it; None when it was not given.

    Raises:
        UnpricedActionError: it is no text or finite number.
    """
    value = dimensions.get(name)
    if value is None:
        return None
    found = comparable(value)
    if found is None:
        given = _shown(value)
        raise bad_dimension(
            name, "bad_dimension", f"dimension {name} must be a text or a finite number, not {given}", given=given
        )
    return found


def comparable(value: Any) -> Value | None:
    """A text or number as it is compared; None when it is neither."""
    value = _bare(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _comparable_text(value)
    if isinstance(value, int):
        return Fraction(value) if abs(value) < 10**30 else None
    if isinstance(value, float):
        value = Decimal(float.__repr__(value))  # a subclass may print itself otherwise
    if isinstance(value, Decimal) and value.is_finite() and (not value or -30 <= value.adjusted() < 30):
        return Fraction(value) if len(value.as_tuple().digits) <= _MAX_DIGITS else None
    return None


def _bare(value: Any) -> Any:
    """The value of an enum's member."""
    return value.value if isinstance(value, Enum) else value


def _comparable_text(text: str) -> Value | None:
    if len(text) > MAX_VALUE_LENGTH:
        return None
    words = " ".join(text.split())
    return Fraction(words) if _PLAIN_NUMBER.fullmatch(words) else words.casefold()


def units(dimensions: Mapping[str, Any], name: str, *, zero: bool = False) -> Fraction:
    """A dimension that is counted, such as seconds.

    Raises:
        UnpricedActionError: not given, no number, negative, zero (unless ``zero``) or beyond 10^12.
    """
    value = dimension_value(dimensions, name)
    if value is None:
        raise missing(name)
    given = _shown(dimensions.get(name))
    if isinstance(value, str):
        raise bad_dimension(name, "bad_dimension", f"dimension {name} must be a number, not {given}", given=given)
    if value < 0 or (not value and not zero) or value > MAX_NUMBER:
        least = "not be negative" if zero else "be above zero"
        raise bad_dimension(
            name,
            "bad_dimension",
            f"dimension {name} must {least} and at most {MAX_NUMBER:,}, but is {given}",
            given=given,
        )
    return value


def missing(name: str, known: Iterable[object] = ()) -> UnpricedActionError:
    """The refusal for a dimension that was not given."""
    names = named(known)
    hint = f": pass one of {names}" if names else ""
    return bad_dimension(
        name, "missing_dimension", f"the price depends on the dimension {name}, which is missing{hint}"
    )


def unknown(name: str, given: object, known: Iterable[object]) -> UnpricedActionError:
    """The refusal for a value that a table does not have; close matches are named first."""
    shown = _shown(given)
    texts = list(dict.fromkeys(str(value) for value in known))
    folded = {text.casefold(): text for text in reversed(texts)}
    word = str(_bare(given))[:MAX_VALUE_LENGTH].casefold()
    close = [folded[match] for match in difflib.get_close_matches(word, folded)]
    ordered = list(dict.fromkeys([*close, *texts]))
    return bad_dimension(
        name,
        "unknown_dimension",
        f"there is no price for {name} {shown}: known are {named(ordered) or 'none'}",
        given=shown,
        known=tuple(ordered[:MAX_NAMED]),
    )


def named(values: Iterable[object]) -> str:
    """At most ``MAX_NAMED`` values in one line."""
    texts = list(dict.fromkeys(str(value) for value in values))
    more = f" and {len(texts) - MAX_NAMED:,} more" if len(texts) > MAX_NAMED else ""
    return ", ".join(texts[:MAX_NAMED]) + more


def _shown(value: object) -> str:
    value = _bare(value)
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a number beyond 10^30"  # Python refuses to print the longest ones
    if isinstance(value, str):
        text = repr(value) if value.isprintable() else ascii(value)
    elif isinstance(value, int | float | Decimal):
        text = str(value)
    else:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


# -- for the reader ----------------------------------------------------------------------------------------------


def as_decimal(number: Fraction) -> Decimal:
    """For showing: exact where it ends within 12 decimals, else rounded there."""
    with localcontext(_SHOWING):
        rounded = (Decimal(number.numerator) / Decimal(number.denominator)).quantize(_FINEST).normalize()
    return Decimal(f"{rounded:f}")


def plain(number: Fraction) -> str:
    """A number as people read it: ``1,240`` or ``0.05``."""
    return f"{as_decimal(number):,f}"


def money(number: Fraction, unit: Unit) -> str:
    """``1,100 credits``, ``0.49 USD``."""
    words = {"usd": "USD", "credits": "credit" if number == 1 else "credits"}
    return f"{plain(number)} {words[unit]}"
