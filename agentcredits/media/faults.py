"""Provider faults: what a failed or refused media call means, whoever the provider is.

Two wallets are kept apart. The customer's credits are this package's ledger, and running out of them is an
``InsufficientCreditsError``. The operator's balance at a provider is something else: a fault carries ``guidance`` for
the operator, with the provider's billing page, and a ``customer_message`` that names neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final

from agentcredits.clock import as_utc, host_now
from agentcredits.media.evidence import Collector, Evidence, exception_evidence
from agentcredits.media.redaction import redact
from agentcredits.media.retry_times import retry_time
from agentcredits.media.rules import FaultCategory, FaultRules, Provider, Rule, default_rules

__all__ = ["FaultCategory", "ProviderFault", "classify_provider_error", "find_provider_fault"]

#: Exceptions of a chain or group that are looked at, at most.
MOST_EXCEPTIONS: Final = 32
#: Characters of a message that are kept.
LONGEST_MESSAGE: Final = 500

_NOTHING: Final = Evidence()

#: Ids of the answers that no rule gave.
NO_RULE: Final = "none"
NO_FAULT: Final = "no-fault"
UNREADABLE: Final = "unreadable"
UNCLASSIFIABLE: Final = "unclassifiable"

_RETRYABLE: Final = frozenset((FaultCategory.RATE_LIMITED, FaultCategory.TRANSIENT))
_TIMED: Final = frozenset((FaultCategory.RATE_LIMITED, FaultCategory.TRANSIENT, FaultCategory.QUOTA_WINDOW))
_SCOPES: Final = {
    FaultCategory.CREDITS_EXHAUSTED: "account",
    FaultCategory.ACCOUNT_LOCKED: "account",
    FaultCategory.QUOTA_WINDOW: "account",
    FaultCategory.RATE_LIMITED: "account",
    FaultCategory.TRANSIENT: "service",
    FaultCategory.REJECTED: "request",
    FaultCategory.OTHER: "request",
}
_GUIDANCE: Final = {
    FaultCategory.CREDITS_EXHAUSTED: "The balance of your account at {provider} does not suffice: top it up{billing}."
    " Your customers' credits have nothing to do with it.",
    FaultCategory.ACCOUNT_LOCKED: "{provider} has locked or suspended your account: contact their support{support}."
    " Paying alone does not open it.",
    FaultCategory.QUOTA_WINDOW: "A quota of your account at {provider} is used up until its period ends{when}: wait,"
    " or ask for a higher one.",
    FaultCategory.RATE_LIMITED: "{provider} gets requests too fast or too many at once: try again{when_again}, with"
    " increasing pauses, or send fewer at a time.",
    FaultCategory.TRANSIENT: "{provider} has passing trouble: try again{when_again}, with increasing pauses.",
    FaultCategory.REJECTED: "{provider} refused this request for its content or parameters: the same request fails"
    " again.",
    FaultCategory.OTHER: "No rule knows this answer of {provider}: read its message, and add a rule when it comes"
    " again.",
}
_CUSTOMER: Final = {
    FaultCategory.CREDITS_EXHAUSTED: "This service is not available at the moment. Please try again later.",
    FaultCategory.ACCOUNT_LOCKED: "This service is not available at the moment. Please try again later.",
    FaultCategory.QUOTA_WINDOW: "This service is fully booked for now. Please try again later.",
    FaultCategory.RATE_LIMITED: "The service is busy. Please try again in a moment.",
    FaultCategory.TRANSIENT: "The service did not answer as it should. Please try again in a moment.",
    FaultCategory.REJECTED: "The request was refused for its content or settings. Please change them and try again.",
    FaultCategory.OTHER: "The request could not be completed. Please contact support if this happens again.",
}
#: Within an exception group, what the operator must know first.
_GRAVITY: Final = tuple(FaultCategory)


@dataclass(frozen=True, slots=True)
class ProviderFault:
    """What a provider's answer means.

    Attributes:
        category: What kind of failure it is.
        provider: The provider's name ("fal"), None when it is not known.
        status: HTTP status, None when there was none.
        code: The provider's own code, as it wrote it in lower case; None when there was none.
        retryable: Whether the same request can succeed within moments. Of a ``quota_window`` False: wait until
            ``retry_at``.
        retry_at: When the provider said to come back (aware, UTC); None when it did not say.
        scope: What is affected: ``"account"``, ``"key"``, ``"model"``, ``"service"`` or this ``"request"`` alone.
        guidance: What the operator should do; names the provider and its billing page. Not for customers.
        customer_message: What a customer may read; names no provider, no address, nothing of the raw message.
        rule: Id of the rule that decided; ``"none"``, ``"no-fault"``, ``"unreadable"`` (an answer that is not JSON) or
            ``"unclassifiable"`` when none did.
        message: The provider's own words, redacted and cut; for the operator's logs.
    """

    category: FaultCategory
    provider: str | None
    status: int | None
    code: str | None
    retryable: bool
    retry_at: datetime | None
    scope: str
    guidance: str
    customer_message: str
    rule: str
    message: str


def classify_provider_error(
    exception: BaseException | None = None,
    *,
    provider: str | None = None,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
    body: object = None,
    value: object = None,
    now: datetime | None = None,
    rules: FaultRules | None = None,
) -> ProviderFault:
    """What a provider's failure means: any exception, response, body or returned value, of any provider.

    Nothing that is passed in can make it raise: what cannot be read counts as not said.

    Args:
        exception: What the client raised; its causes, contexts and group members are looked at too.
        provider: The provider's name ("fal", "replicate" …); else it is guessed from the address or the client.
        status: HTTP status of the answer.
        headers: Headers of the answer.
        body: Body of the answer: text, bytes or parsed JSON.
        value: What a call returned without raising; only what is marked as a failure inside counts.
        now: The current time, for ``retry_at``; the host's when left out.
        rules: Rules in place of the default ones, from ``load_fault_rules``.

    Returns:
        The fault. Of a returned value that shows no failure: category OTHER with rule ``"no-fault"``.

    Raises:
        InvalidInputError: ``now`` is not a datetime with a time zone.
        ConfigurationError: the default rules, or those of an installed distribution, cannot be loaded.
    """
    moment = host_now() if now is None else as_utc(now, name="now")
    known = default_rules() if rules is None else rules
    hint = str.__str__(provider) if issubclass(type(provider), str) else None
    try:
        return _classify(exception, hint, status, headers, body, value, moment, known)
    except Exception:  # noqa: BLE001  # hostile objects fail in ways that nobody listed; the caller is handling an error
        name = known.provider_name(hint)
        return _fault(Evidence(), None, UNCLASSIFIABLE, name, moment, known)


def find_provider_fault(
    value: object, *, provider: str | None = None, now: datetime | None = None, rules: FaultRules | None = None
) -> ProviderFault | None:
    """The fault inside what a call returned without raising (HTTP 200 with an error code in it), if there is one.

    Args:
        value: What the call returned: parsed JSON, a model object, a response, a text.
        provider: The provider's name.
        now: The current time, for ``retry_at``.
        rules: Rules in place of the default ones.

    Returns:
        The fault, or None when nothing in the value says that the call failed.
    """
    fault = classify_provider_error(provider=provider, value=value, now=now, rules=rules)
    return None if fault.rule == NO_FAULT else fault


def _classify(
    exception: BaseException | None,
    hint: str | None,
    status: object,
    headers: object,
    body: object,
    value: object,
    now: datetime,
    rules: FaultRules,
) -> ProviderFault:
    evidence = _given(status, headers, body, value)
    name = rules.provider_name(hint, evidence)
    if isinstance(exception, BaseException):
        found = _decide(evidence, name, now, rules) if evidence.words else None
        if found is None or found.rule == NO_RULE:
            found = _of_chain(exception, status, headers, hint, now, rules) or found
        return found or _fault(evidence, None, NO_RULE, name, now, rules)
    # a status below 400 is an answer, and no failure by itself
    if not evidence.words and not (evidence.status is not None and evidence.status >= 400):
        return _fault(evidence, None, UNREADABLE if evidence.unreadable else NO_FAULT, name, now, rules)
    return _decide(evidence, name, now, rules)


def _given(status: object, headers: object, body: object, value: object) -> Evidence:
    """What the caller said beside an exception; of one, status and headers are added where it is read."""
    if body is None and value is None and status is None:
        return _NOTHING
    given = Collector(status, headers)
    given.add_body(body)
    if value is not None:
        given.add_value(value)
    return given.build()


def _of_chain(
    exception: BaseException, status: object, headers: object, hint: str | None, now: datetime, rules: FaultRules
) -> ProviderFault | None:
    """The outermost exception that says something definite; one with a status or code before a bare sentence."""
    decided: list[tuple[bool, ProviderFault]] = []
    undecided: ProviderFault | None = None
    group: list[ProviderFault] = []
    for error, in_group in _chain(exception):
        evidence = exception_evidence(error, status, headers) if error is exception else exception_evidence(error)
        fault = _decide(evidence, rules.provider_name(hint, evidence), now, rules)
        if fault.rule in (NO_RULE, UNREADABLE):
            undecided = undecided or fault
        elif in_group:
            group.append(fault)
        else:
            decided.append((evidence.structured, fault))
    if group:
        decided.append((True, min(group, key=lambda fault: _GRAVITY.index(fault.category))))
    for structured, fault in decided:
        if structured:
            return fault
    return decided[0][1] if decided else undecided


def _chain(exception: BaseException) -> Iterator[tuple[BaseException, bool]]:
    """The exception, the members of groups, causes and contexts, outermost first; each once, at most a few dozen."""
    seen: set[int] = set()
    waiting: list[tuple[BaseException, bool]] = [(exception, False)]
    while waiting and len(seen) < MOST_EXCEPTIONS:
        error, in_group = waiting.pop(0)
        if id(error) in seen:
            continue
        seen.add(id(error))
        members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
        if not members:
            yield error, in_group
        waiting.extend((member, True) for member in members)
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if cause is not None:
            waiting.append((cause, in_group))


def _decide(evidence: Evidence, provider: str | None, now: datetime, rules: FaultRules) -> ProviderFault:
    rule = rules.match(evidence, provider)
    otherwise = UNREADABLE if evidence.unreadable else NO_RULE
    return _fault(evidence, rule, otherwise, provider, now, rules)


def _fault(
    evidence: Evidence, rule: Rule | None, otherwise: str, name: str | None, now: datetime, rules: FaultRules
) -> ProviderFault:
    category = FaultCategory.OTHER if rule is None else rule.category
    retry_at = None
    if category in _TIMED:
        retry_at = retry_time(headers=evidence.headers, fields=evidence.fields, text=evidence.words, now=now)
    return ProviderFault(
        category=category,
        provider=name,
        status=evidence.status,
        code=_redacted_code(evidence.codes[0]) if evidence.codes else None,
        retryable=category in _RETRYABLE if rule is None or rule.retryable is None else rule.retryable,
        retry_at=retry_at,
        scope=(rule.scope if rule is not None else None) or _SCOPES[category],
        guidance=_guidance(rule, category, rules.providers.get(name or ""), name, retry_at),
        customer_message=(rule.customer_message if rule is not None else None) or _CUSTOMER[category],
        rule=otherwise if rule is None else rule.id,
        message=redact(evidence.message[: 4 * LONGEST_MESSAGE])[:LONGEST_MESSAGE],
    )


@lru_cache(maxsize=1_024)
def _redacted_code(code: str) -> str:
    return redact(code)


def _guidance(
    rule: Rule | None, category: FaultCategory, provider: Provider | None, name: str | None, retry_at: datetime | None
) -> str:
    template = (rule.guidance if rule is not None else None) or _GUIDANCE[category]
    if provider is None:
        return _sentence(template, name or "the provider", None, None, retry_at)
    return _sentence(template, provider.title, provider.billing_url, provider.support, retry_at)


@lru_cache(maxsize=512)
def _sentence(
    template: str, title: str, billing_url: str | None, support: str | None, retry_at: datetime | None
) -> str:
    sentence = template.format(
        provider=title,
        billing=f" at {billing_url}" if billing_url else "",
        support=f" ({support})" if support else "",
        when=f" at {retry_at:%Y-%m-%d %H:%M} UTC" if retry_at is not None else "",
        when_again=f" after {retry_at:%H:%M:%S} UTC" if retry_at is not None else "",
    )
    return sentence[:1].upper() + sentence[1:]
