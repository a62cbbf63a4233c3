"""The ordered rules that turn evidence into a fault: loading them, checking them, finding the first that applies."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any, Final, NamedTuple

from agentcredits.errors import ConfigurationError
from agentcredits.media.evidence import Evidence

#: Distributions add rules by an entry point of this group: a path, a mapping, or a function that returns one.
ENTRY_POINT_GROUP: Final = "agentcredits.fault_rules"

#: What load_fault_rules takes: the path of a TOML file, or what such a file holds.
RuleSource = str | PathLike[str] | Mapping[str, Any]


class FaultCategory(StrEnum):
    """What a provider's failure means for the caller."""

    CREDITS_EXHAUSTED = "credits_exhausted"
    ACCOUNT_LOCKED = "account_locked"
    QUOTA_WINDOW = "quota_window"
    RATE_LIMITED = "rate_limited"
    TRANSIENT = "transient"
    REJECTED = "rejected"
    OTHER = "other"


#: Providers whose look-ups are kept; a name is the caller's text, and texts are endless.
MOST_REMEMBERED: Final = 200

SCOPES: Final = ("account", "key", "model", "request", "service")


class Phrase(NamedTuple):
    """A regular expression and the letters without which it cannot match (looked for first: most are absent)."""

    literal: str
    pattern: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the rules: when it applies, and what the fault is then. Empty conditions are not asked."""

    id: str
    category: FaultCategory
    why: str
    providers: frozenset[str] = frozenset()
    statuses: frozenset[int] = frozenset()
    codes: frozenset[str] = frozenset()
    texts: tuple[Phrase, ...] = ()
    kinds: frozenset[str] = frozenset()
    unless: tuple[Phrase, ...] = ()
    retryable: bool | None = None
    scope: str | None = None
    guidance: str | None = None
    customer_message: str | None = None
    source: str | None = None


#: The conditions of a rule, unpacked once, and the rule.
_Asked = tuple[frozenset[int], frozenset[str], frozenset[str], tuple[Phrase, ...], tuple[Phrase, ...], Rule]


@dataclass(frozen=True, slots=True)
class Provider:
    """What is known of a provider beside its rules; ``also`` names others whose rules apply to it."""

    name: str
    title: str
    billing_url: str | None = None
    support: str | None = None
    aliases: frozenset[str] = frozenset()
    modules: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FaultRules:
    """All rules in force, in the order in which they are asked. Immutable; safe to share between threads."""

    rules: tuple[Rule, ...]
    providers: Mapping[str, Provider]
    _by_provider: dict[str | None, tuple[_Asked, ...]] = field(default_factory=dict, compare=False, repr=False)
    _by_hint: dict[str, str | None] = field(default_factory=dict, compare=False, repr=False)

    def match(self, evidence: Evidence, provider: str | None) -> Rule | None:
        """The first rule that applies; None when none does."""
        status, words, own_codes, own_kinds = evidence.status, evidence.words, evidence.codes, evidence.kinds
        for statuses, codes, kinds, texts, unless, rule in self._applicable(provider):
            if statuses and status not in statuses:
                continue
            if codes or texts or kinds:
                found = own_codes and codes and not codes.isdisjoint(own_codes)
                if not found:
                    # a plain loop in place: these look-ups are most of the work of classifying
                    for literal, pattern in texts:
                        if literal in words and pattern.search(words) is not None:
                            found = True
                            break
                if not found and (not kinds or kinds.isdisjoint(own_kinds)):
                    continue
            if not any(literal in words and pattern.search(words) for literal, pattern in unless):
                return rule
        return None

    def provider_name(self, hint: str | None, evidence: Evidence | None = None) -> str | None:
        """The provider's name as the rules know it: from what the caller said, else the host, else the client.

        A hint that no rule knows is kept, in lower case.
        """
        if hint:
            if hint not in self._by_hint and len(self._by_hint) < MOST_REMEMBERED:
                self._by_hint[hint] = self._named(hint)
            return self._by_hint[hint] if hint in self._by_hint else self._named(hint)
        if evidence is None:
            return None
        for provider in self.providers.values() if evidence.host else ():
            if any(evidence.host == host or evidence.host.endswith(f".{host}") for host in provider.hosts):
                return provider.name
        for provider in self.providers.values() if evidence.module and not evidence.host else ():
            if any(evidence.module == name or evidence.module.startswith(f"{name}.") for name in provider.modules):
                return provider.name
        return None

    def _named(self, hint: str) -> str | None:
        plain = re.sub(r"[\s.-]+", "_", hint.strip().lower())[:64]
        for provider in self.providers.values():
            if plain == provider.name or plain in provider.aliases:
                return provider.name
        return plain or None

    def rule(self, rule_id: str) -> Rule | None:
        """A rule by its id."""
        return next((rule for rule in self.rules if rule.id == rule_id), None)

    def without(self, provider: str) -> FaultRules:
        """The same rules without those that are only for this provider (to measure how far the others reach)."""
        return FaultRules(tuple(rule for rule in self.rules if provider not in rule.providers), self.providers)

    def _applicable(self, provider: str | None) -> tuple[_Asked, ...]:
        found = self._by_provider.get(provider)
        if found is None:
            known = self.providers.get(provider) if provider else None
            names = {provider, *(known.also if known else ())}
            found = tuple(
                (rule.statuses, rule.codes, rule.kinds, rule.texts, rule.unless, rule)
                for rule in self.rules
                if not rule.providers or not rule.providers.isdisjoint(names)
            )
            if len(self._by_provider) < MOST_REMEMBERED:
                self._by_provider[provider] = found
        return found


# -- loading -------------------------------------------------------------------------------------------------------


def load_fault_rules(
    extra: RuleSource | Iterable[RuleSource] | None = None, *, entry_points: bool = True
) -> FaultRules:
    """The package's rules and, before them, those of the caller and of installed distributions.

    Args:
        extra: A TOML file, what one holds, or several of these; asked in the given order, before all others.
        entry_points: Whether rules of installed distributions (group ``agentcredits.fault_rules``) are read too.

    Returns:
        The rules, ready to be passed to ``classify_provider_error(..., rules=...)``.

    Raises:
        ConfigurationError: a file is missing or malformed; the sentence names the file, the rule and the field.
    """
    sources: list[tuple[str, Mapping[str, Any]]] = []
    if isinstance(extra, str | PathLike | Mapping):
        extra = (extra,)
    for number, source in enumerate(extra or (), 1):
        sources.append(read_source(source, f"rules {number}"))
    if entry_points:
        sources.extend(_entry_point_sources())
    sources.append(read_source(_package_rules(), "faults.toml"))
    providers: dict[str, Provider] = {}
    rules: list[Rule] = []
    for name, data in sources:
        unknown = set(data) - {"rules", "providers"}
        if unknown:
            raise _fault(name, "the file", min(map(str, unknown)), "is not known: it holds rules and providers")
        for index, entry in enumerate(_tables(data, "providers", name), 1):
            provider = _provider(_Reader(name, _place(entry, "name", f"provider {index}"), entry))
            providers.setdefault(provider.name, provider)
        here = [
            _rule(_Reader(name, _place(entry, "id", f"rule {index}"), entry))
            for index, entry in enumerate(_tables(data, "rules", name), 1)
        ]
        # stable: within a file, what is said of one provider comes before what is said of all
        rules.extend(sorted(here, key=lambda rule: not rule.providers))
    names: set[str] = set()
    for rule in rules:
        if rule.id in names:
            raise ConfigurationError(f"fault rule {rule.id}: its id is used twice.", context={"rule": rule.id})
        names.add(rule.id)
    return FaultRules(tuple(rules), providers)


@lru_cache(maxsize=1)
def default_rules() -> FaultRules:
    """The package's rules and those of installed distributions, read once."""
    return load_fault_rules()


@lru_cache(maxsize=32)
def rules_of(path: Path | None) -> FaultRules:
    """The default rules, with those of the setting ``fault_rules`` before them; each file is read once.

    Raises:
        ConfigurationError: the file is missing or malformed.
    """
    return default_rules() if path is None else load_fault_rules(path)


def _package_rules() -> Mapping[str, Any]:
    return tomllib.loads(files("agentcredits.media").joinpath("faults.toml").read_text(encoding="utf-8"))


def _entry_point_sources() -> Iterable[tuple[str, Mapping[str, Any]]]:
    from importlib.metadata import entry_points

    for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name):
        name = f"entry point {point.name}"
        try:
            loaded = point.load()
            source = loaded() if callable(loaded) else loaded
        except Exception as error:  # a foreign module raises anything
            raise ConfigurationError(f"{name} of {ENTRY_POINT_GROUP} cannot be loaded: {error}.") from error
        yield read_source(source, name)


def read_source(source: object, name: str, *, of: str = "fault rules") -> tuple[str, Mapping[str, Any]]:
    """What a TOML file or a mapping holds, and what to call it in an error.

    Raises:
        ConfigurationError: neither of them, or a file that cannot be read or is not TOML.
    """
    if isinstance(source, Mapping):
        return name, source
    if not isinstance(source, str | PathLike):
        raise ConfigurationError(f"{of}: {name} is neither a path nor a mapping, but {type(source).__name__}.")
    path = Path(source)
    try:
        return path.name, tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{of}: the file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{of}: the file {path} is not TOML: {error}.") from error


def _fault(file: str, place: str, name: str, problem: str) -> ConfigurationError:
    return ConfigurationError(
        f"fault rules in {file}: {place}: {name} {problem}.", context={"file": file, "rule": place, "field": name}
    )


def _tables(data: Mapping[str, Any], name: str, file: str) -> list[Mapping[str, Any]]:
    entries = data.get(name, [])
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise _fault(file, "the file", name, f"must be a list of tables [[{name}]]")
    return entries


def _place(entry: Mapping[str, Any], key: str, otherwise: str) -> str:
    value = entry.get(key)
    return value if isinstance(value, str) and value.strip() else otherwise


class _Reader:
    """The fields of one entry, each checked as it is taken; what is left over at the end is not known."""

    def __init__(self, file: str, place: str, entry: Mapping[str, Any]) -> None:
        self.file = file
        self.place = place
        self.left = dict(entry)

    def error(self, name: str, problem: str) -> ConfigurationError:
        return _fault(self.file, self.place, name, problem)

    def text(self, name: str, *, required: bool = False) -> str | None:
        value = self.left.pop(name, None)
        if value is None and not required:
            return None
        if not isinstance(value, str) or not value.strip():
            raise self.error(name, "must be a text" if value is not None else "is missing")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.left.pop(name, [])
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
            raise self.error(name, "must be a list of texts")
        return tuple(value)

    def phrases(self, name: str) -> tuple[Phrase, ...]:
        return tuple(phrase for text in self.texts(name) for phrase in self._compiled(name, text))

    def _compiled(self, name: str, text: str) -> Iterable[Phrase]:
        try:
            pattern = re.compile(text)
        except re.error as error:
            raise self.error(name, f"has {text!r}, which is not a regular expression: {error}") from None
        if pattern.search("") is not None:
            raise self.error(name, f"has {text!r}, which matches every text")
        # several short patterns, each behind its own letters, are faster than one with alternatives
        parts = [(part, re.compile(part)) for part in alternatives(text)]
        return [Phrase(required_letters(part).lower(), compiled) for part, compiled in parts]

    def statuses(self, name: str) -> frozenset[int]:
        value = self.left.pop(name, [])
        found: set[int] = set()
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int) and not isinstance(item, bool) and 100 <= item <= 599:
                found.add(item)
            elif isinstance(item, str) and re.fullmatch(r"[1-5]xx", item):
                found.update(range(int(item[0]) * 100, int(item[0]) * 100 + 100))
            else:
                raise self.error(name, f'has {item!r}: write numbers from 100 to 599, or "5xx"')
        return frozenset(found)

    def flag(self, name: str) -> bool | None:
        value = self.left.pop(name, None)
        if value is not None and not isinstance(value, bool):
            raise self.error(name, "must be true or false")
        return value

    def choice(self, name: str, allowed: Iterable[str], *, required: bool) -> str | None:
        value = self.text(name, required=required)
        if value is not None and value not in (known := tuple(allowed)):
            raise self.error(name, f"is {value!r}: write one of {', '.join(known)}")
        return value

    def finish(self) -> None:
        if self.left:
            raise self.error(min(map(str, self.left)), "is not known")


def _rule(reader: _Reader) -> Rule:
    rule = Rule(
        id=str(reader.text("id", required=True)),
        category=FaultCategory(str(reader.choice("category", FaultCategory, required=True))),
        why=reader.text("why") or "",
        providers=frozenset(reader.texts("provider")),
        statuses=reader.statuses("status"),
        codes=frozenset(code.lower() for code in reader.texts("codes")),
        texts=reader.phrases("text"),
        kinds=frozenset(reader.texts("exceptions")),
        unless=reader.phrases("unless"),
        retryable=reader.flag("retryable"),
        scope=reader.choice("scope", SCOPES, required=False),
        guidance=reader.text("guidance"),
        customer_message=reader.text("customer_message"),
        source=reader.text("source"),
    )
    reader.finish()
    if not (rule.statuses or rule.codes or rule.texts or rule.kinds):
        raise reader.error("text", "is missing: a rule needs a status, codes, text or exceptions")
    if rule.customer_message and re.search(r"://|www\.", rule.customer_message):
        raise reader.error("customer_message", "has an address: customers are never sent to a supplier")
    try:
        (rule.guidance or "").format(provider="", billing="")
    except (KeyError, IndexError, ValueError):
        raise reader.error("guidance", "has braces: only {provider} and {billing} are filled in") from None
    return rule


def _provider(reader: _Reader) -> Provider:
    name = str(reader.text("name", required=True))
    provider = Provider(
        name=name,
        title=reader.text("title") or name,
        billing_url=reader.text("billing_url"),
        support=reader.text("support"),
        aliases=frozenset(reader.texts("aliases")),
        modules=reader.texts("modules"),
        hosts=reader.texts("hosts"),
        also=reader.texts("also"),
    )
    reader.finish()
    return provider


def alternatives(pattern: str) -> list[str]:
    """Regular expressions of which one matches exactly when the given one does: ``(?:a|b) c`` is ``a c``, ``b c``."""
    parts = [""]
    for piece, depth in _pieces(pattern):
        if piece == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += piece
    return [expanded for part in parts for expanded in _expand_first_group(part)]


def _expand_first_group(pattern: str) -> list[str]:
    """``(?:a|b) c`` as ``a c`` and ``b c``; a pattern that does not begin so, or repeats its group, as it is."""
    if not pattern.startswith("(?:"):
        return [pattern]
    pieces = list(_pieces(pattern))
    close = next(place for place, (piece, depth) in enumerate(pieces) if piece == ")" and depth == 1)
    rest = "".join(piece for piece, _ in pieces[close + 1 :])
    if rest[:1] in ("?", "*", "+", "{"):
        return [pattern]
    inner = [""]
    for piece, depth in pieces[3:close]:
        if piece == "|" and depth == 1:
            inner.append("")
        else:
            inner[-1] += piece
    return [part + rest for part in inner]


def required_letters(pattern: str) -> str:
    """The longest run of plain letters that every match of a regular expression must hold ("" when none is sure).

    Only what stands outside groups, classes, escapes and optional places counts. The pattern has no alternatives at
    its top.
    """
    runs = [""]
    for piece, depth in _pieces(pattern):
        if depth == 0 and len(piece) == 1 and (piece.isalnum() or piece in " _',"):
            runs[-1] += piece
        else:
            if piece[0] in "?*{":
                runs[-1] = runs[-1][:-1]
            runs.append("")
    return max(runs, key=len)


def _pieces(pattern: str) -> Iterator[tuple[str, int]]:
    """The pieces of a regular expression (an escape, a class, ``{m,n}`` are one each) and their depth in groups."""
    depth = place = 0
    while place < len(pattern):
        mark = pattern[place]
        end = place + 1
        if mark == "\\":
            end = place + 2
        elif mark == "[":
            end = pattern.index("]", place + 2) + 1
        elif mark == "{" and "}" in pattern[place:]:
            end = pattern.index("}", place) + 1
        depth -= mark == ")"
        yield pattern[place:end], depth + (mark in "()")
        depth += mark == "("
        place = end
