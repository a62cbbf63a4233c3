"""Price rules: how the price of an action depends on model, resolution, duration, tokens, or the provider's cost."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from fractions import Fraction
from typing import Any, Final, Literal, Self

from agentcredits.amounts import Amount
from agentcredits.errors import InvalidInputError
from agentcredits.model import PriceStep
from agentcredits.rules.price_nodes import (
    CACHE_CREATION_TOKENS,
    CACHED_TOKENS,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    Case,
    Part,
    Rounding,
)
from agentcredits.rules.price_parsing import VERSION, parse, parse_json
from agentcredits.rules.price_tables import Table
from agentcredits.rules.price_values import Unit, bad_rule, named

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one call costs by a rule, exactly, and how that comes about."""

    amount: Fraction
    unit: Unit
    steps: tuple[PriceStep, ...]
    #: What the price list says in US dollars.
    usd: Fraction | None = None
    as_of: date | None = None


class PriceRule:
    """How the price of an action is computed; pass it to ``set_cost`` instead of a number.

    Made by the constructors below, or from a document (a mapping as in a price list: ``PriceRule({"kind": "step",
    "dimension": "duration", "size": 15, "credits": 1})``). Immutable; equal to every rule with the same document.

    Amounts are in credits unless their name says USD, with at most 12 decimals. A price in USD needs
    ``credits_per_usd``, in the rule itself or in the table around it. The sum is rounded up to the micro-credit, once.

    Raises:
        InvalidInputError: something in it cannot be used; ``context["field"]`` names the place.
    """

    __slots__ = ("_json", "_part")

    def __init__(self, document: Document) -> None:
        self._part: Part = parse(document)
        self._json = _as_json(self._part)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The rule that the column ``rule`` of ``agent_action_costs`` holds."""
        made = cls.__new__(cls)
        made._part = parse_json(text)
        made._json = _as_json(made._part)
        return made

    # -- constructors ----------------------------------------------------------------------------------------

    @classmethod
    def flat(cls, credits: Amount, *, per: str | None = None, each: Amount = 1) -> Self:
        """Credits for one call, or for ``each`` units of the dimension ``per``: ``flat(2, per="duration")``."""
        return cls(_without_none(kind="flat", credits=credits, per=per, each=None if per is None else each))

    @classmethod
    def usd(
        cls, usd: Amount, *, credits_per_usd: Amount | None = None, per: str | None = None, each: Amount = 1
    ) -> Self:
        """US dollars for one call, or for ``each`` units of the dimension ``per``.

        ``usd("0.18", per="characters", each=1000, credits_per_usd=100)`` is 0.18 USD per 1,000 characters.
        """
        return cls(
            _without_none(
                kind="usd", usd=usd, credits_per_usd=credits_per_usd, per=per, each=None if per is None else each
            )
        )

    @classmethod
    def table(
        cls,
        dimensions: Sequence[str],
        rows: Iterable[Document],
        *,
        credits_per_usd: Amount | None = None,
    ) -> Self:
        """A price for each combination of dimensions; the first row that matches has it.

        Args:
            dimensions: Their names, such as ``("model", "resolution", "duration")``.
            rows: Mappings with a value for each dimension (a list for several; ``"*"`` or left out for any) and one of
                ``credits``, ``usd`` or ``rule``; also ``valid_until`` (a day, exclusive), ``as_of`` and ``source``.
                Texts are compared without case, numbers by value.
            credits_per_usd: For prices in USD.
        """
        return cls(
            _without_none(
                kind="table",
                dimensions=list(dimensions),
                rows=[_with_documents(row) for row in rows],
                credits_per_usd=credits_per_usd,
            )
        )

    @classmethod
    def step(
        cls,
        dimension: str,
        *,
        size: Amount | None = None,
        credits: Amount | None = None,
        usd: Amount | None = None,
        bands: Iterable[Document] | None = None,
        credits_per_usd: Amount | None = None,
    ) -> Self:
        """So much for every started ``size`` units, or a price for each band of units.

        ``step("duration", size=15, credits=1)`` is 1 credit per 15 seconds; ``step("duration", bands=[{"up_to": 5,
        "credits": 25}, {"from": 8, "up_to": 10, "credits": 50}])`` has a price up to 5 and from 8 to 10 seconds.
        """
        return cls(
            _without_none(
                kind="step",
                dimension=dimension,
                size=size,
                credits=credits,
                usd=usd,
                bands=None if bands is None else list(bands),
                credits_per_usd=credits_per_usd,
            )
        )

    @classmethod
    def cost_plus(
        cls,
        provider: Amount | PriceRule | Document,
        *,
        credits_per_usd: Amount,
        fee: Amount = 0,
        rounding: Rounding = "up",
        round_to: Amount = "0.000001",
    ) -> Self:
        """The provider's price × credits per USD + a fee, rounded.

        Args:
            provider: US dollars, or a rule that gives them (``PriceRule.usd(...)``, a table of them).
            credits_per_usd: What a dollar is sold for.
            fee: Credits on top of each call.
            rounding: "up", "half_up" (to the nearest) or "down"; never to 0.
            round_to: To multiples of how many credits.
        """
        inner: dict[str, Any] = (
            {"rule": _with_documents(provider)} if isinstance(provider, PriceRule | Mapping) else {"usd": provider}
        )
        return cls(
            {
                "kind": "cost_plus",
                **inner,
                "credits_per_usd": credits_per_usd,
                "fee": fee,
                "rounding": rounding,
                "round_to": round_to,
            }
        )

    @classmethod
    def tokens(
        cls,
        *,
        input: Amount,
        output: Amount | None = None,
        cached_input: Amount | None = None,
        cache_creation_input: Amount | None = None,
        currency: Literal["credits", "usd"] = "usd",
        credits_per_usd: Amount | None = None,
        estimate: Mapping[str, Amount] | None = None,
    ) -> Self:
        """Prices per million tokens.

        The dimensions are ``input_tokens``, ``output_tokens``, ``cached_tokens`` and ``cache_creation_tokens``.

        Args:
            input: For input tokens.
            output: For output tokens; None: the model has none.
            cached_input: For the part of the input that the provider read from its cache; ``input`` when None.
            cache_creation_input: For the part of the input that the provider wrote to its cache (for which Anthropic
                takes more than for the rest); ``input`` when None.
            currency: Of these prices.
            credits_per_usd: For prices in USD.
            estimate: Counts that are priced while none are given: what is held before an LLM call.
        """
        return cls(
            _without_none(
                kind="tokens",
                currency=currency,
                input=input,
                output=output,
                cached_input=cached_input,
                cache_creation_input=cache_creation_input,
                estimate=None if estimate is None else dict(estimate),
                credits_per_usd=credits_per_usd,
            )
        )

    # -- what it is ------------------------------------------------------------------------------------------

    @property
    def document(self) -> dict[str, Any]:
        """The rule as plain data: every number a decimal text, so that nothing is lost on the way."""
        found: dict[str, Any] = json.loads(self._json)
        return found

    def as_json(self) -> str:
        """The text for the column ``rule``."""
        return self._json

    @property
    def kind(self) -> str:
        """``"flat"``, ``"usd"``, ``"table"``, ``"step"``, ``"cost_plus"`` or ``"tokens"``."""
        return str(self._part.document()["kind"])

    @property
    def summary(self) -> str:
        """A few words for a list of prices."""
        part = self._part
        if isinstance(part, Table):
            return f"table of {len(part.lines):,} over {named(part.dimensions)}"
        return {"flat": "flat", "usd": "in USD", "step": "in steps", "cost_plus": "cost plus"}.get(
            self.kind, "by tokens"
        )

    @property
    def needs_rate(self) -> bool:
        """Whether it gives US dollars and does not say what they are worth."""
        return self._part.needs_rate

    def with_rate(self, credits_per_usd: Amount) -> PriceRule:
        """The same rule with a rate for its prices in USD; itself when it needs none."""
        return PriceRule({**self.document, "credits_per_usd": credits_per_usd}) if self.needs_rate else self

    def differences(self, other: PriceRule) -> tuple[str, ...]:
        """What another rule says otherwise, row by row for two tables over the same dimensions."""
        mine, theirs = self._part, other._part
        if not isinstance(mine, Table) or not isinstance(theirs, Table) or mine.dimensions != theirs.dimensions:
            return (f"{self.summary} → {other.summary}",) if self.kind != other.kind else ("other numbers",)
        before, after = _prices_by_title(mine), _prices_by_title(theirs)
        found = [
            f"{title}: {before.get(title, 'none')} → {after.get(title, 'none')}"
            for title in dict.fromkeys((*before, *after))
            if before.get(title) != after.get(title)
        ]
        if mine.credits_per_usd != theirs.credits_per_usd:
            found.insert(0, "another credits_per_usd")
        return tuple(found) or ("other rows or another order of them",)

    # -- what it says ----------------------------------------------------------------------------------------

    def evaluate(self, dimensions: Mapping[str, Any] | None, at: datetime) -> Evaluation:
        """What one call of these dimensions costs at a time; in USD where no rate is known.

        Raises:
            UnpricedActionError: they have no price; ``context["dimension"]`` names the one that is to blame.
        """
        if dimensions is not None and not isinstance(dimensions, Mapping):
            raise InvalidInputError(
                f"dimensions must be a mapping, not {type(dimensions).__name__}.", context={"parameter": "dimensions"}
            )
        case = Case(dimensions or {}, at)
        amount, unit = self._part.price(case)
        return Evaluation(amount, unit, tuple(case.steps), case.usd, case.as_of)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PriceRule) and self._json == other._json

    def __hash__(self) -> int:
        return hash(self._json)

    def __repr__(self) -> str:
        return f"PriceRule({self._json if len(self._json) <= 200 else self.summary})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (PriceRule.from_json, (self._json,))


@functools.lru_cache(maxsize=128)
def stored_rule(text: str) -> PriceRule:
    """The rule of a database row, parsed once for the same text.

    Raises:
        InvalidInputError: it cannot be used.
    """
    return PriceRule.from_json(text)


def usable(rule: PriceRule) -> PriceRule:
    """The rule, if it gives credits.

    Raises:
        InvalidInputError: it is in USD, and nothing says what a dollar is worth.
    """
    if rule.needs_rate:
        raise bad_rule(
            "credits_per_usd", "it is missing, and the price is in USD: say what a dollar is worth in credits"
        )
    return rule


def token_dimensions(usage: Mapping[str, Any]) -> dict[str, int]:
    """The dimensions of a "tokens" rule from an LLM call's usage, such as ``rate=`` of ``credited()`` gets.

    Takes the names of CrewAI (``prompt_tokens``, ``completion_tokens``, ``cached_prompt_tokens``,
    ``cache_creation_tokens``), OpenAI, Anthropic and the dimensions' own. Anthropic counts what it read from its cache
    and what it wrote there beside its input: they are added to it, and so they are wherever it cannot have them.

    Returns:
        The three dimensions that every provider counts, and ``cache_creation_tokens`` where there are any.

    Raises:
        InvalidInputError: a count is no whole number that is at least 0.
    """
    details: Mapping[str, Any] = next((usage[name] for name in _DETAILS if isinstance(usage.get(name), Mapping)), {})
    known = {**usage, _IN_DETAILS: details.get("cached_tokens")}
    found = {dimension: _count(known, dimension, *names) for dimension, names in _USAGE_NAMES.items()}
    parts = found[CACHED_TOKENS] + found[CACHE_CREATION_TOKENS]
    apart = "input_tokens" in usage and any(usage.get(name) is not None for name in _ANTHROPIC_NAMES)
    if apart or parts > found[INPUT_TOKENS]:
        found[INPUT_TOKENS] += parts
    if not found[CACHE_CREATION_TOKENS]:
        del found[CACHE_CREATION_TOKENS]
    return found


#: Where OpenAI says how much of the input came from its cache (Chat Completions, Responses).
_DETAILS: Final = ("prompt_tokens_details", "input_tokens_details")
_IN_DETAILS: Final = "prompt_tokens_details.cached_tokens"
_CACHE_READ, _CACHE_CREATION = _ANTHROPIC_NAMES = ("cache_read_input_tokens", "cache_creation_input_tokens")
_USAGE_NAMES: Final = {
    INPUT_TOKENS: ("prompt_tokens",),
    OUTPUT_TOKENS: ("completion_tokens",),
    CACHED_TOKENS: ("cached_prompt_tokens", _CACHE_READ, _IN_DETAILS),
    CACHE_CREATION_TOKENS: (_CACHE_CREATION,),
}


def _count(usage: Mapping[str, Any], *names: str) -> int:
    """The first of these that is there; 0 where none is."""
    name = next((name for name in names if usage.get(name) is not None), None)
    count = 0 if name is None else usage[name]
    if type(count) is not int or count < 0:
        raise InvalidInputError(f"{name} must be a whole number that is at least 0.", context={"parameter": name})
    return count


def _as_json(part: Part) -> str:
    return json.dumps({"version": VERSION, **part.document()}, ensure_ascii=False, separators=(",", ":"))


def _without_none(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _with_documents(value: Any) -> Any:
    """Rules inside a mapping as their documents."""
    if isinstance(value, PriceRule):
        found = value.document
        del found["version"]
        return found
    if isinstance(value, Mapping):
        return {name: _with_documents(item) for name, item in value.items()}
    return value


def _prices_by_title(table: Table) -> dict[str, str]:
    """What each combination costs; lines for the same one, of which each follows when another ends, in their order."""
    found: dict[str, list[str]] = {}
    for line in table.lines:
        found.setdefault(line.title(table.dimensions), []).append(_told(line.document(table.dimensions)))
    return {title: ", then ".join(told) for title, told in found.items()}


def _told(line: Mapping[str, Any]) -> str:
    """The price of a table's line, for a comparison."""
    told = [f"{line[unit]} {unit}" for unit in ("credits", "usd") if unit in line]
    told += [json.dumps(line["rule"], ensure_ascii=False)] if "rule" in line else []
    return ", ".join((*told, *(f"{name} {line[name]}" for name in ("valid_until", "as_of", "source") if name in line)))
