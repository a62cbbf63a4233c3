"""What a price rule computes: the parts that ``price_parsing`` builds, evaluated for the dimensions of one call.

A part gives an amount in credits or in US dollars and writes down each step of its arithmetic. Exact until the end:
``pricing.price`` multiplies by the quantity and rounds up to the micro, once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from fractions import Fraction
from typing import Any, Final, Literal, Protocol

from agentcredits.model import PriceStep
from agentcredits.rules.price_values import (
    Unit,
    as_decimal,
    bad_dimension,
    money,
    number_text,
    plain,
    units,
    unknown,
)

TOKENS_PER_PRICE: Final = 1_000_000

INPUT_TOKENS: Final = "input_tokens"
OUTPUT_TOKENS: Final = "output_tokens"
#: Parts of the input: what the provider read from its cache, and what it wrote there.
CACHED_TOKENS: Final = "cached_tokens"
CACHE_CREATION_TOKENS: Final = "cache_creation_tokens"
TOKEN_DIMENSIONS: Final = (INPUT_TOKENS, OUTPUT_TOKENS, CACHED_TOKENS, CACHE_CREATION_TOKENS)

Rounding = Literal["up", "half_up", "down"]
Money = tuple[Fraction, Unit]


@dataclass(slots=True)
class Case:
    """One call to be priced, and what is found on the way."""

    dimensions: Mapping[str, Any]
    at: datetime
    steps: list[PriceStep] = field(default_factory=list)
    #: What the price list says in US dollars, before any conversion and fee.
    usd: Fraction | None = None
    #: Of the line of a table that was used.
    as_of: date | None = None

    def step(self, text: str, amount: Fraction | None = None, unit: Unit | None = None) -> None:
        """Write down a step."""
        self.steps.append(PriceStep(text, None if amount is None else as_decimal(amount), unit))


class Part(Protocol):
    """A part of a price rule."""

    def price(self, case: Case) -> Money:
        """The amount for one.

        Raises:
            UnpricedActionError: the dimensions have no price here.
        """

    def document(self) -> dict[str, Any]:
        """The part as it is stored; numbers as decimal texts."""

    @property
    def needs_rate(self) -> bool:
        """Whether it may give US dollars, which nothing in it turns into credits."""


def converted(case: Case, amount: Fraction, unit: Unit, credits_per_usd: Fraction | None) -> Money:
    """US dollars as credits where the rate is known."""
    if unit == "credits":
        return amount, unit
    case.usd = amount
    if credits_per_usd is None:
        return amount, unit
    result = amount * credits_per_usd
    case.step(
        f"{money(amount, 'usd')} × {plain(credits_per_usd)} credits per USD = {money(result, 'credits')}",
        result,
        "credits",
    )
    return result, "credits"


def rate_field(credits_per_usd: Fraction | None) -> dict[str, str]:
    """The rate as a part of a document."""
    return {} if credits_per_usd is None else {"credits_per_usd": number_text(credits_per_usd)}


@dataclass(frozen=True, slots=True)
class Fixed:
    """Kinds "flat" (credits) and "usd": an amount for one call, or for every ``each`` units of a dimension."""

    amount: Fraction
    unit: Unit
    per: str | None = None
    each: Fraction = Fraction(1)
    credits_per_usd: Fraction | None = None

    @property
    def needs_rate(self) -> bool:
        """Whether it gives US dollars that nothing turns into credits."""
        return self.unit == "usd" and self.credits_per_usd is None

    def price(self, case: Case) -> Money:
        """What one call costs."""
        if self.per is None:
            case.step(f"{money(self.amount, self.unit)} each", self.amount, self.unit)
            return converted(case, self.amount, self.unit, self.credits_per_usd)
        count = units(case.dimensions, self.per)
        result = self.amount * count / self.each
        each = "" if self.each == 1 else f"{plain(self.each)} "
        case.step(
            f"{money(self.amount, self.unit)} per {each}{self.per} × {plain(count)} = {money(result, self.unit)}",
            result,
            self.unit,
        )
        return converted(case, result, self.unit, self.credits_per_usd)

    def document(self) -> dict[str, Any]:
        """As it is stored."""
        found: dict[str, Any] = {
            "kind": "flat" if self.unit == "credits" else "usd",
            self.unit: number_text(self.amount),
        }
        if self.per is not None:
            found["per"] = self.per
            if self.each != 1:
                found["each"] = number_text(self.each)
        return found | rate_field(self.credits_per_usd)


@dataclass(frozen=True, slots=True)
class Band:
    """Units above ``above`` (from ``start`` on, where there is a gap) up to and with ``up_to`` cost ``amount``."""

    amount: Fraction
    start: Fraction | None = None
    up_to: Fraction | None = None

    def holds(self, count: Fraction) -> bool:
        """Whether the count is in the band; bands below were asked before."""
        return (self.start is None or count >= self.start) and (self.up_to is None or count <= self.up_to)

    def __str__(self) -> str:
        if self.start is None:
            return "any" if self.up_to is None else f"up to {plain(self.up_to)}"
        return f"{plain(self.start)} and more" if self.up_to is None else f"{plain(self.start)} to {plain(self.up_to)}"


@dataclass(frozen=True, slots=True)
class Steps:
    """Kind "step": every started ``size`` units cost an amount, or each band of units has its own."""

    dimension: str
    unit: Unit
    size: Fraction | None = None
    amount: Fraction = Fraction(0)
    bands: tuple[Band, ...] = ()
    credits_per_usd: Fraction | None = None

    @property
    def needs_rate(self) -> bool:
        """Whether it gives US dollars that nothing turns into credits."""
        return self.unit == "usd" and self.credits_per_usd is None

    def price(self, case: Case) -> Money:
        """What one call costs."""
        count = units(case.dimensions, self.dimension)
        if self.size is not None:
            started = -(-count // self.size)
            result = started * self.amount
            case.step(
                f"{self.dimension} {plain(count)} ÷ {plain(self.size)}, rounded up = {started:,}"
                f" × {money(self.amount, self.unit)} = {money(result, self.unit)}",
                result,
                self.unit,
            )
            return converted(case, result, self.unit, self.credits_per_usd)
        band = next((band for band in self.bands if band.holds(count)), None)
        if band is None:
            raise unknown(self.dimension, as_decimal(count), self.bands)
        case.step(
            f"{self.dimension} {plain(count)} is in the band {band}: {money(band.amount, self.unit)}",
            band.amount,
            self.unit,
        )
        return converted(case, band.amount, self.unit, self.credits_per_usd)

    def document(self) -> dict[str, Any]:
        """As it is stored."""
        found: dict[str, Any] = {"kind": "step", "dimension": self.dimension}
        if self.size is not None:
            found |= {"size": number_text(self.size), self.unit: number_text(self.amount)}
        else:
            found["bands"] = [
                {
                    name: number_text(number)
                    for name, number in (("from", band.start), ("up_to", band.up_to), (self.unit, band.amount))
                    if number is not None
                }
                for band in self.bands
            ]
        return found | rate_field(self.credits_per_usd)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Kind "tokens": prices per million input and output tokens, and per million of those parts of the input that the
    provider read from its cache or wrote there.
    """

    unit: Unit
    input: Fraction
    output: Fraction | None = None
    cached_input: Fraction | None = None
    cache_creation_input: Fraction | None = None
    #: What is priced while no count is known yet (the hold before an LLM call).
    estimate: Mapping[str, Fraction] = field(default_factory=dict)
    credits_per_usd: Fraction | None = None

    @property
    def needs_rate(self) -> bool:
        """Whether it gives US dollars that nothing turns into credits."""
        return self.unit == "usd" and self.credits_per_usd is None

    def price(self, case: Case) -> Money:
        """What one call costs."""
        counts = self._counts(case)
        _check_parts(counts)
        if counts[OUTPUT_TOKENS] and self.output is None:
            raise bad_dimension(OUTPUT_TOKENS, "unknown_dimension", "there is no price for output tokens")
        parts = (
            ("cached input", counts[CACHED_TOKENS], self.cached_input),
            ("cache creation", counts[CACHE_CREATION_TOKENS], self.cache_creation_input),
        )
        rest = counts[INPUT_TOKENS] - sum(count for _, count, amount in parts if amount is not None)
        pools = (("input", rest, self.input), *parts, ("output", counts[OUTPUT_TOKENS], self.output))
        total = Fraction(0)
        for name, count, amount in pools:
            if count and amount is not None:
                part = count * amount / TOKENS_PER_PRICE
                case.step(
                    f"{plain(count)} {name} tokens × {money(amount, self.unit)} per million = {money(part, self.unit)}",
                    part,
                    self.unit,
                )
                total += part
        return converted(case, total, self.unit, self.credits_per_usd)

    def _counts(self, case: Case) -> dict[str, Fraction]:
        if self.estimate and all(case.dimensions.get(name) is None for name in TOKEN_DIMENSIONS):
            case.step("no tokens are counted yet: the rule's estimate is used")
            return {name: self.estimate.get(name, Fraction(0)) for name in TOKEN_DIMENSIONS}
        needed = {INPUT_TOKENS} if self.output is None else {INPUT_TOKENS, OUTPUT_TOKENS}
        counts = {}
        for name in TOKEN_DIMENSIONS:
            if case.dimensions.get(name) is None and name not in needed:
                counts[name] = Fraction(0)
                continue
            counts[name] = units(case.dimensions, name, zero=True)
            if counts[name].denominator != 1:
                raise bad_dimension(name, "bad_dimension", f"dimension {name} must be a whole number")
        return counts

    def document(self) -> dict[str, Any]:
        """As it is stored."""
        found: dict[str, Any] = {"kind": "tokens", "currency": self.unit, "input": number_text(self.input)}
        if self.output is not None:
            found["output"] = number_text(self.output)
        if self.cached_input is not None:
            found["cached_input"] = number_text(self.cached_input)
        if self.cache_creation_input is not None:
            found["cache_creation_input"] = number_text(self.cache_creation_input)
        if self.estimate:
            found["estimate"] = {name: number_text(count) for name, count in self.estimate.items()}
        return found | rate_field(self.credits_per_usd)


def _check_parts(counts: Mapping[str, Fraction]) -> None:
    """Cached tokens and those that were written to the cache are different parts of the input."""
    whole, cached, created = (counts[name] for name in (INPUT_TOKENS, CACHED_TOKENS, CACHE_CREATION_TOKENS))
    if cached > whole:
        raise bad_dimension(
            CACHED_TOKENS,
            "bad_dimension",
            f"dimension {CACHED_TOKENS} is {plain(cached)}, more than {INPUT_TOKENS} ({plain(whole)}), of which cached"
            " tokens are a part",
        )
    if cached + created > whole:
        raise bad_dimension(
            CACHE_CREATION_TOKENS,
            "bad_dimension",
            f"dimension {CACHE_CREATION_TOKENS} is {plain(created)} and {CACHED_TOKENS} {plain(cached)}, together more"
            f" than {INPUT_TOKENS} ({plain(whole)}), of which both are parts",
        )


@dataclass(frozen=True, slots=True)
class CostPlus:
    """Kind "cost_plus": what the provider takes, in US dollars, × credits per USD, + a fee, rounded."""

    provider: Part
    credits_per_usd: Fraction
    fee: Fraction = Fraction(0)
    rounding: Rounding = "up"
    round_to: Fraction = Fraction(1, 1_000_000)

    @property
    def needs_rate(self) -> bool:
        """Whether it gives US dollars that nothing turns into credits."""
        return False

    def price(self, case: Case) -> Money:
        """What one call costs."""
        amount, unit = self.provider.price(case)
        if unit != "usd":
            raise TypeError("the parser lets only US dollars in here")
        case.usd = amount
        exact = amount * self.credits_per_usd + self.fee
        fee = f" + {plain(self.fee)}" if self.fee else ""
        case.step(
            f"{money(amount, 'usd')} × {plain(self.credits_per_usd)} credits per USD{fee} = {money(exact, 'credits')}",
            exact,
            "credits",
        )
        result = self._rounded(exact)
        if result != exact:
            how = {"up": "up", "half_up": "to the nearest", "down": "down"}[self.rounding]
            case.step(f"rounded {how}, to {plain(self.round_to)}: {money(result, 'credits')}", result, "credits")
        return result, "credits"

    def _rounded(self, exact: Fraction) -> Fraction:
        parts = exact / self.round_to
        if self.rounding == "up":
            whole = -(-parts // 1)
        elif self.rounding == "half_up":
            whole = (parts + Fraction(1, 2)) // 1
        else:
            whole = parts // 1
        # A price that is not zero never becomes zero.
        return (max(whole, 1) if exact else whole) * self.round_to

    def document(self) -> dict[str, Any]:
        """As it is stored."""
        provider = self.provider.document()
        simple = set(provider) == {"kind", "usd"}
        found: dict[str, Any] = {"kind": "cost_plus"}
        found |= {"usd": provider["usd"]} if simple else {"rule": provider}
        return found | {
            "credits_per_usd": number_text(self.credits_per_usd),
            "fee": number_text(self.fee),
            "rounding": self.rounding,
            "round_to": number_text(self.round_to),
        }
