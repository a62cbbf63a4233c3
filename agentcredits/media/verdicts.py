"""What the end of a media call means for the hold: charge it, give it back, or wait for the provider's verdict."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from importlib.resources import files
from os import PathLike
from typing import Any, Final, Literal

from agentcredits.errors import ConfigurationError, CreditsError, ProviderUnavailableError
from agentcredits.media.faults import MOST_EXCEPTIONS, ProviderFault, classify_provider_error, find_provider_fault
from agentcredits.media.rules import FaultCategory, FaultRules, default_rules, read_source

#: What load_charge_policy takes: the path of a TOML file, or what such a file holds.
ChargeSource = str | PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChargeRule:
    """One thing that is known about what a provider charges for; what is None is not asked.

    Attributes:
        provider: The provider's name, as the fault rules know it.
        charged: Whether the provider charges for such a failure.
        category: Only faults of this category.
        rule: Only faults that this rule decided.
        code: Only faults with this code of the provider's.
        why: In a few words.
        source: Where the provider says so.
        as_of: When it was read.
    """

    provider: str
    charged: bool
    category: str | None = None
    rule: str | None = None
    code: str | None = None
    why: str | None = None
    source: str | None = None
    as_of: date | None = None

    def applies_to(self, fault: ProviderFault) -> bool:
        """Whether the fault is one of those that are meant."""
        return (
            self.provider == fault.provider
            and self.category in (None, fault.category.value)
            and self.rule in (None, fault.rule)
            and self.code in (None, fault.code)
        )


@dataclass(frozen=True, slots=True)
class ChargePolicy:
    """Which failures a provider charges for: the first rule that applies decides, and without one it does not."""

    rules: tuple[ChargeRule, ...] = ()

    def is_charged(self, fault: ProviderFault) -> bool:
        """Whether the provider charges for this failure."""
        return next((rule.charged for rule in self.rules if rule.applies_to(fault)), False)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of the hold after a media call.

    Attributes:
        settle: ``"charge"`` it, ``"give_back"``, or ``"unknown"``: the job may still succeed, the hold waits.
        fault: What went wrong at the provider; None when it worked, and for an error of the ledger's own.
        reference: The provider's own id of the job whose outcome is unknown.
    """

    settle: Literal["charge", "give_back", "unknown"]
    fault: ProviderFault | None
    reference: str | None = None


def judge(
    *,
    result: object = None,
    error: BaseException | None = None,
    provider: str | None,
    policy: ChargePolicy | None = None,
    rules: FaultRules | None = None,
    now: datetime | None = None,
) -> Verdict:
    """What a finished media call means: for what it returned (a failure may stand inside), or for what it raised.

    Args:
        result: What the call returned.
        error: What the call raised; then the result is not looked at.
        provider: The provider's name ("fal", "replicate" …); None: it is guessed.
        policy: Which failures the provider charges for; the package's own knowledge when left out.
        rules: Fault rules in place of the default ones.
        now: The current time, for when to come back; the host's when left out.

    Returns:
        ``charge`` of a success, and of a failure that the provider charges for; ``unknown`` of a time-out with the
        id of a job that goes on at the provider; ``give_back`` of any other failure, cancellation included.
    """
    if error is None:
        fault = find_provider_fault(result, provider=provider, now=now, rules=rules)
        if fault is None:
            return Verdict("charge", None)
    elif _is_ours(error):
        return Verdict("give_back", None)
    else:
        fault = classify_provider_error(error, provider=provider, now=now, rules=rules)
        reference = unfinished_job(error)
        if reference is not None:
            return Verdict("unknown", fault, reference)
    charged = (default_charge_policy() if policy is None else policy).is_charged(fault)
    return Verdict("charge" if charged else "give_back", fault)


def _is_ours(error: BaseException) -> bool:
    """Whether the failure is the ledger's: the customer's credits must not be taken for the operator's balance."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen and len(seen) < MOST_EXCEPTIONS:
        if isinstance(current, CreditsError) and not isinstance(current, ProviderUnavailableError):
            return True
        seen.add(id(current))
        current = current.__cause__
    return False


# -- jobs that go on -----------------------------------------------------------------------------------------------

#: Where clients put the id of the job for which they stopped waiting, best first. ``request_id`` alone also names the
#: HTTP request of an ordinary answer, and is only taken from an error without a response.
_JOB_IDS: Final = ("task_id", "prediction_id", "generation_id", "job_id", "request_id")
#: Attributes that hold the job itself.
_JOBS: Final = ("task_details", "task", "prediction", "generation", "job")


def unfinished_job(error: BaseException) -> str | None:
    """The provider's id of a job that a client stopped waiting for; None when the error is no such time-out."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting and len(seen) < MOST_EXCEPTIONS:
        current = waiting.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        reference = _job_id(current) if _is_time_out(current) else None
        if reference is not None:
            return reference
        if isinstance(current, BaseExceptionGroup):
            waiting.extend(current.exceptions)
        waiting.append(current.__cause__ or (None if current.__suppress_context__ else current.__context__))
    return None


def _is_time_out(error: BaseException) -> bool:
    if _read(error, "response") is not None or _read(error, "status_code") is not None:
        return False
    return isinstance(error, TimeoutError) or any("timeout" in kind.__name__.lower() for kind in type(error).__mro__)


def _job_id(error: BaseException) -> str | None:
    places = [(error, name) for name in _JOB_IDS]
    places += [(_read(error, name), "id") for name in _JOBS]
    for holder, name in places:
        value = holder.get(name) if isinstance(holder, Mapping) else _read(holder, name)
        if isinstance(value, str) and 0 < len(value) <= 255 and value.isprintable():
            return value
    return None


def _read(holder: object, name: str) -> Any:
    try:
        return getattr(holder, name, None)
    except Exception:  # noqa: BLE001  # a property of a foreign class raises anything; then it says nothing
        return None


# -- loading -------------------------------------------------------------------------------------------------------


def load_charge_policy(extra: ChargeSource | Iterable[ChargeSource] | None = None) -> ChargePolicy:
    """The package's knowledge of what providers charge for and, before it, the caller's.

    Args:
        extra: A TOML file with tables ``[[charges]]``, what one holds, or several of these; asked in this order.

    Raises:
        ConfigurationError: a file is missing or malformed; the sentence names the file, the entry and the field.
    """
    given = (extra,) if isinstance(extra, str | PathLike | Mapping) else tuple(extra or ())
    packaged = files("agentcredits.media").joinpath("charges.toml").read_text(encoding="utf-8")
    sources = [read_source(source, f"charges {number}", of="charges") for number, source in enumerate(given, 1)]
    sources.append(("charges.toml", tomllib.loads(packaged)))
    return ChargePolicy(tuple(rule for name, data in sources for rule in _charge_rules(name, data)))


@lru_cache(maxsize=1)
def default_charge_policy() -> ChargePolicy:
    """The package's own knowledge, read once."""
    return load_charge_policy()


def _charge_rules(file: str, data: Mapping[str, Any]) -> Iterable[ChargeRule]:
    entries = data.get("charges", [])
    if set(data) - {"charges"} or not isinstance(entries, list):
        raise ConfigurationError(f"{file} must hold tables [[charges]] and nothing else.", context={"file": file})
    for number, entry in enumerate(entries, 1):
        yield _charge_rule(file, number, entry)


def _charge_rule(file: str, number: int, entry: object) -> ChargeRule:
    def problem(field: str, what: str) -> ConfigurationError:
        return ConfigurationError(
            f"{file}, entry {number}: {field} {what}.", context={"file": file, "entry": number, "field": field}
        )

    if not isinstance(entry, Mapping):
        raise problem("it", "is no table")
    left = dict(entry)
    charged, as_of = left.pop("charged", None), left.pop("as_of", None)
    if not isinstance(charged, bool):
        raise problem("charged", "must be true or false")
    if as_of is not None and (not isinstance(as_of, date) or isinstance(as_of, datetime)):
        raise problem("as_of", "must be a date")
    texts = {}
    for field in ("provider", "category", "rule", "code", "why", "source"):
        texts[field] = left.pop(field, None)
        if texts[field] is not None and not (isinstance(texts[field], str) and texts[field].strip()):
            raise problem(field, "must be a text")
    if left:
        raise problem(min(map(str, left)), "is not known")
    if texts["provider"] is None:
        raise problem("provider", "is missing")
    if texts["category"] not in (None, *FaultCategory):
        raise problem("category", f"must be one of {', '.join(FaultCategory)}")
    provider = default_rules().provider_name(texts.pop("provider"))
    return ChargeRule(provider=provider or "", charged=charged, as_of=as_of, **texts)
